"""The database ``blog_blogs``: posts, copies of the users who may write them, statistics."""

from datetime import date
from typing import Any

from bson import ObjectId
from pymongo.database import Database

from ..database import module_database, object_id


@module_database("blogs")
def database(db: Database[Any]) -> None:
    db.posts.create_index("author.id")


def keep_user(user_id: str, names: dict[str, str], revision: int, session: Any = None) -> None:
    """Keep the newest name, in whatever order they come, and however often."""
    users = database().users
    users.update_one({"_id": user_id}, {"$setOnInsert": {"revision": 0}}, upsert=True, session=session)
    users.update_one(
        {"_id": user_id, "revision": {"$lt": revision}},
        {"$set": {**names, "revision": revision}},
        session=session,
    )


def find_user(user_id: str) -> dict[str, Any] | None:
    return database().users.find_one({"_id": user_id})


def rename_author(user_id: str, names: dict[str, str], revision: int) -> int:
    keep_user(user_id, names, revision)
    renamed = database().posts.update_many(
        {"author.id": user_id, "author_revision": {"$lt": revision}},
        {"$set": {**{f"author.{name}": value for name, value in names.items()}, "author_revision": revision}},
    )
    return renamed.modified_count


def insert(user: dict[str, Any], texts: dict[str, str], session: Any) -> dict[str, Any]:
    author = {"id": user["_id"], "first_name": user["first_name"], "last_name": user["last_name"]}
    post = {**texts, "author": author, "author_revision": user["revision"], "views": 0, "comments": 0}
    database().posts.insert_one(post, session=session)
    return post


def find(post_id: str) -> dict[str, Any] | None:
    return database().posts.find_one({"_id": object_id(post_id)})


def newest(before: str | None, limit: int) -> list[dict[str, Any]]:
    older = {"_id": {"$lt": object_id(before)}} if before else {}
    return list(database().posts.find(older).sort("_id", -1).limit(limit))


def count(post_id: str, what: str, number: int, session: Any) -> None:
    database().posts.update_one({"_id": ObjectId(post_id)}, {"$inc": {what: number}}, session=session)


def count_day(day: date, session: Any) -> dict[str, Any]:
    sums = {"posts": {"$sum": 1}, "views": {"$sum": "$views"}, "comments": {"$sum": "$comments"}}
    groups = list(database().posts.aggregate([{"$group": {"_id": None, **sums}}]))
    totals = {name: groups[0][name] if groups else 0 for name in sums}
    database().statistics.update_one(
        {"_id": day.isoformat()}, {"$set": totals, "$inc": {"counted": 1}}, upsert=True, session=session
    )
    return totals


def statistics(limit: int) -> list[dict[str, Any]]:
    return list(database().statistics.find().sort("_id", -1).limit(limit))
