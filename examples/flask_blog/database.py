"""Each module has a database of its own, and only that module reads or writes it."""

from collections.abc import Callable
from typing import Any

from bson import ObjectId
from flask import abort, current_app
from pymongo.database import Database

from .extensions import events


def module_database(name: str) -> Callable[[Callable[[Database[Any]], Any]], Callable[[], Database[Any]]]:
    """Makes of a function that creates indexes one that returns the module's database.

    The client is the event store's, since sessions of transactions belong to the client that began them.
    """

    def decorate(create_indexes: Callable[[Database[Any]], Any]) -> Callable[[], Database[Any]]:
        def database() -> Database[Any]:
            given = current_app.config["BLOG_MONGO_CLIENT"]
            client = events.mongo_client if given is None else given
            found: Database[Any] = client[f"{current_app.config['BLOG_DATABASES']}_{name}"]
            ready = current_app.extensions.setdefault("blog_databases", set())
            if name not in ready:
                create_indexes(found)
                ready.add(name)
            return found

        return database

    return decorate


def object_id(text: str) -> ObjectId:
    """The id that a URL or a body names; 404 if it cannot be one."""
    if not ObjectId.is_valid(text):
        abort(404, "There is nothing with this id.")
    return ObjectId(text)
