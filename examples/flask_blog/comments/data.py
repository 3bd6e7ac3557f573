"""The database ``blog_comments``: comments, copies of who may write them on what, and a switch."""

from typing import Any

from pymongo.database import Database

from ..database import module_database


@module_database("comments")
def database(db: Database[Any]) -> None:
    db.comments.create_index("author.id")
    db.comments.create_index("post_id")


def keep_user(user_id: str, names: dict[str, str], revision: int) -> None:
    """Keep the newest name, in whatever order they come, and however often."""
    users = database().users
    users.update_one({"_id": user_id}, {"$setOnInsert": {"revision": 0}}, upsert=True)
    users.update_one(
        {"_id": user_id, "revision": {"$lt": revision}}, {"$set": {**names, "revision": revision}}
    )


def find_user(user_id: str) -> dict[str, Any] | None:
    return database().users.find_one({"_id": user_id})


def keep_post(post_id: str, title: str) -> None:
    database().posts.update_one({"_id": post_id}, {"$set": {"title": title}}, upsert=True)


def has_post(post_id: str) -> bool:
    return database().posts.find_one({"_id": post_id}) is not None


def rename_author(user_id: str, names: dict[str, str], revision: int) -> int:
    keep_user(user_id, names, revision)
    renamed = database().comments.update_many(
        {"author.id": user_id, "author_revision": {"$lt": revision}},
        {"$set": {**{f"author.{name}": value for name, value in names.items()}, "author_revision": revision}},
    )
    return renamed.modified_count


def insert(user: dict[str, Any], post_id: str, text: str, session: Any) -> dict[str, Any]:
    author = {"id": user["_id"], "first_name": user["first_name"], "last_name": user["last_name"]}
    comment = {"post_id": post_id, "text": text, "author": author, "author_revision": user["revision"]}
    database().comments.insert_one(comment, session=session)
    return comment


def of_post(post_id: str, limit: int = 500) -> list[dict[str, Any]]:
    return list(database().comments.find({"post_id": post_id}).sort("_id", 1).limit(limit))


def fault() -> bool:
    found = database().switches.find_one({"_id": "fault"})
    return bool(found and found["on"])


def set_fault(on: bool) -> None:
    database().switches.update_one({"_id": "fault"}, {"$set": {"on": on}}, upsert=True)
