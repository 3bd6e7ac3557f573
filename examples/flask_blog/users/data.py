"""The database ``blog_users``."""

from typing import Any

from bson import ObjectId
from flask import abort
from pymongo import ReturnDocument
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from ..database import module_database


@module_database("users")
def database(db: Database[Any]) -> None:
    db.users.create_index("email", unique=True)


def insert(user: dict[str, Any], session: Any) -> dict[str, Any]:
    document = {**user, "revision": 1}
    try:
        database().users.insert_one(document, session=session)
    except DuplicateKeyError:
        abort(409, "This e-mail address is registered already. Please sign in.")
    return document


def find(user_id: str) -> dict[str, Any] | None:
    return database().users.find_one({"_id": ObjectId(user_id)})


def find_by_email(email: str) -> dict[str, Any] | None:
    return database().users.find_one({"email": email})


def rename(user_id: str, names: dict[str, str], session: Any) -> dict[str, Any] | None:
    return database().users.find_one_and_update(
        {"_id": ObjectId(user_id)},
        {"$set": names, "$inc": {"revision": 1}},
        session=session,
        return_document=ReturnDocument.AFTER,
    )


def contributions(user_id: str) -> dict[str, int]:
    found = database().contributions.find_one({"_id": user_id}) or {}
    return {"posts": found.get("posts", 0), "comments": found.get("comments", 0)}


def count(user_id: str, what: str, session: Any) -> None:
    """Not in the user's document: a handler must not be in the way of a request that changes it."""
    database().contributions.update_one({"_id": user_id}, {"$inc": {what: 1}}, upsert=True, session=session)
