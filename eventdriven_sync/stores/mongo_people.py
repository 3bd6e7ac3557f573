"""Users, sessions and strikes in MongoDB. What is compared is the server's time (``$$NOW``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from eventdriven_sync.people import MAX_SESSIONS, USER_STATES, Session, Strikes, User, UserChange, UserState
from eventdriven_sync.stores.collections import SESSIONS, STRIKES, USERS, Document
from eventdriven_sync.stores.connection import Link

_ALIVE: Document = {"$expr": {"$gt": ["$idle_until", "$$NOW"]}}


class MongoPeople:
    """The ``People`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add_user(self, user: User) -> bool:
        """Store a new user; False if the name is taken."""
        target = self._link.now.collections[USERS]
        fields = attrs.asdict(user) | {"_id": user.name, "groups": list(user.groups)}
        del fields["name"], fields["created_at"]
        # One that is there stays as it is: only then is the document without ``_id`` before.
        fresh = {"$mergeObjects": [{"$literal": fields}, {"created_at": "$$NOW"}]}
        change = [{"$replaceWith": {"$cond": [{"$gt": ["$created_at", None]}, "$$ROOT", fresh]}}]

        def add() -> bool:
            try:
                return target.update_one({"_id": user.name}, change, upsert=True).upserted_id is not None
            except DuplicateKeyError:
                return False  # somebody else took the name at this moment

        return self._link.now.call("while adding a user", add)

    def user(self, name: str) -> User | None:
        """The user of this name, or None."""
        target = self._link.now.collections[USERS]
        found = self._link.now.call("while reading a user", lambda: target.find_one({"_id": name}))
        return _user(found) if found else None

    def users(self, *, state: UserState | None = None, limit: int = 100) -> list[User]:
        """Users by name."""
        target = self._link.now.collections[USERS]
        where: Document = {"state": state} if state else {}
        found = self._link.now.call(
            "while reading users", lambda: list(target.find(where).sort("_id", ASCENDING).limit(limit))
        )
        return [_user(document) for document in found]

    def count_users(self, *, role: str | None = None, state: UserState | None = None) -> int:
        """How many users there are, of a role and in a state."""
        target = self._link.now.collections[USERS]
        where: Document = {"state": state or {"$in": list(USER_STATES)}} | ({"role": role} if role else {})
        return self._link.now.call("while counting users", lambda: target.count_documents(where))

    def change_user(self, name: str, change: UserChange) -> User | None:
        """Change a user and return what is stored; None if there is none."""
        target = self._link.now.collections[USERS]
        fields = {key: value for key, value in attrs.asdict(change).items() if value is not None}
        if not fields:
            return self.user(name)
        found = self._link.now.call(
            "while changing a user",
            lambda: target.find_one_and_update(
                {"_id": name}, {"$set": fields}, return_document=ReturnDocument.AFTER
            ),
        )
        return _user(found) if found else None

    def signed_in(self, name: str) -> None:
        """Note that the user signed in now."""
        target = self._link.now.collections[USERS]
        change = [{"$set": {"signed_in_at": "$$NOW"}}]
        self._link.now.call("while noting a sign-in", lambda: target.update_one({"_id": name}, change))

    def open_session(self, session: Session, *, idle: float, lifetime: float) -> None:
        """Store a new session; of one user the newest 20 stay."""
        target = self._link.now.collections[SESSIONS]
        fields = {"user": session.user, "role": session.role, "address": session.address}
        change = [
            {
                "$set": {name: {"$literal": value} for name, value in fields.items()}
                | {
                    "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
                    "seen_at": "$$NOW",
                    "idle_until": {"$add": ["$$NOW", _ms(min(idle, lifetime))]},
                    "until": {"$add": ["$$NOW", _ms(lifetime)]},
                }
            }
        ]
        self._link.now.call(
            "while opening a session", lambda: target.update_one({"_id": session.id}, change, upsert=True)
        )
        self._link.now.call("while opening a session", lambda: self._trim(session.user))

    def _trim(self, user: str) -> None:
        target = self._link.now.collections[SESSIONS]
        newest = target.find({"user": user}, {"_id": 1}).sort([("started_at", DESCENDING), ("_id", 1)])
        old = [document["_id"] for document in newest.skip(MAX_SESSIONS)]
        if old:
            target.delete_many({"_id": {"$in": old}})

    def session(self, session_id: str) -> Session | None:
        """The session, or None if there is none or it has ended."""
        target = self._link.now.collections[SESSIONS]
        stages: list[Document] = [
            {"$match": {"_id": session_id} | _ALIVE},
            {"$set": {"quiet": {"$subtract": ["$$NOW", "$seen_at"]}}},
        ]
        found = self._link.now.call("while reading a session", lambda: list(target.aggregate(stages)))
        return _session(found[0]) if found else None

    def prolong(self, session_id: str, *, idle: float) -> None:
        """The session was used; one that has ended stays so."""
        target = self._link.now.collections[SESSIONS]
        until = {"$min": ["$until", {"$add": ["$$NOW", _ms(idle)]}]}
        change = [{"$set": {"seen_at": "$$NOW", "idle_until": until}}]
        self._link.now.call(
            "while prolonging a session", lambda: target.update_one({"_id": session_id} | _ALIVE, change)
        )

    def end_session(self, session_id: str) -> None:
        """End it, if it exists."""
        target = self._link.now.collections[SESSIONS]
        self._link.now.call("while ending a session", lambda: target.delete_one({"_id": session_id}))

    def end_sessions(self, user: str) -> int:
        """End all sessions of a user; how many there were."""
        target = self._link.now.collections[SESSIONS]
        done = self._link.now.call("while ending sessions", lambda: target.delete_many({"user": user}))
        return done.deleted_count

    def strike(self, keys: Sequence[str], *, window: float) -> list[Strikes]:
        """Count a try for each key."""
        action = "while counting tries"
        return [self._link.now.call(action, partial(self._strike, key, window)) for key in keys]

    def _strike(self, key: str, window: float) -> Strikes:
        target = self._link.now.collections[STRIKES]
        counting = {"$gt": ["$until", "$$NOW"]}
        change: list[Document] = [
            {
                "$set": {
                    "count": {"$cond": [counting, {"$add": ["$count", 1]}, 1]},
                    "until": {"$cond": [counting, "$until", {"$add": ["$$NOW", _ms(window)]}]},
                }
            },
            {"$set": {"left": {"$subtract": ["$until", "$$NOW"]}}},
        ]
        while True:
            try:
                found = target.find_one_and_update(
                    {"_id": key}, change, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                continue  # somebody else counted the first try at this moment: ours is the second
            assert found is not None
            return Strikes(count=found["count"], left=found["left"] / 1000)

    def forgive(self, key: str, *, count: int | None = None) -> None:
        """Take back so many tries, or all of them."""
        target = self._link.now.collections[STRIKES]
        if count is None:
            self._link.now.call("while forgetting tries", lambda: target.delete_one({"_id": key}))
            return
        change = [{"$set": {"count": {"$max": [0, {"$subtract": ["$count", count]}]}}}]
        self._link.now.call("while forgetting tries", lambda: target.update_one({"_id": key}, change))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _user(document: Document) -> User:
    return User(name=document["_id"], **_known(document, User) | {"groups": tuple(document["groups"])})


def _session(document: Document) -> Session:
    return Session(id=document["_id"], **_known(document, Session) | {"quiet": document["quiet"] / 1000})


def _known(document: Document, kind: type[Any]) -> Document:
    """The fields that this version knows: a later one may have stored more."""
    return {field.name: document[field.name] for field in attrs.fields(kind) if field.name in document}
