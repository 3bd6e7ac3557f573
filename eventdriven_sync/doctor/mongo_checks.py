"""What can be wrong with MongoDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from eventdriven_sync.config import redact
from eventdriven_sync.doctor.check import Check, Unknown, fail, info, known, ok, skip, version, warn
from eventdriven_sync.doctor.facts import Facts
from eventdriven_sync.doctor.nats_checks import is_loopback

LEAST_VERSION = (5, 0)
SLOW_WRITE = 1.0
LEAST_OPLOG_HOURS = 24
MUCH_SKEW, SOME_SKEW = 30.0, 2.0


def reachable(facts: Facts) -> Check:
    """MongoDB answers and can be the event store."""
    where = redact(facts.settings.mongo)
    if facts.mongo_error:
        return fail(facts.mongo_error, f"check that mongod runs and that the URL {where} is right")
    return ok(f"{where} answers")


def server_version(facts: Facts) -> Check:
    """New enough, and allowed to be."""
    text, feature = _fact(facts, "version"), _fact(facts, "feature_version")
    if version(text) < LEAST_VERSION:
        return fail(f"mongod {text} is too old", "install MongoDB 5.0 or newer")
    if version(feature) < LEAST_VERSION:
        return fail(
            f"mongod {text} runs with feature compatibility version {feature}",
            f"db.adminCommand({{setFeatureCompatibilityVersion: '{'.'.join(str(text).split('.')[:2])}'}})",
        )
    return ok(f"mongod {text}, feature compatibility version {feature}")


def replica_set(facts: Facts) -> Check:
    """A replica set of three members that hold data."""
    mongo = _mongo(facts)
    if mongo.get("sharded"):
        return info("a sharded cluster; its shards are not looked at")
    if not mongo.get("replica_set"):
        return fail(
            "mongod is a standalone server: it has no transactions and no majority",
            "start mongod with --replSet rs0 and run rs.initiate() once; one member will do",
        )
    members = len(mongo.get("hosts") or ())
    if members < 3:
        return warn(
            f"{mongo['replica_set']} has {members} member(s) with data: when one is lost, "
            + ("so are the events" if members < 2 else "nothing can be written"),
            "use 3 members with data, in 3 failure zones, in production",
        )
    return ok(f"{mongo['replica_set']} has {members} members with data")


def arbiters(facts: Facts) -> Check:
    """None: they vote and hold nothing."""
    found = _set_fact(facts, "arbiters")
    if found:
        return warn(
            f"{', '.join(found)} only vote: with one data member away no majority holds a write",
            "replace each arbiter by a member with data",
        )
    return ok("none")


def journaled_majority(facts: Facts) -> Check:
    """A majority means on disks."""
    if not _set_fact(facts, "journaled_majority", read_as="replica_set"):
        return warn(
            "writeConcernMajorityJournalDefault is false: for other writes than ours a majority may be in "
            "memory only",
            "set it to true with rs.reconfig()",
        )
    return ok("writeConcernMajorityJournalDefault is true")


def storage_engine(facts: Facts) -> Check:
    """One that writes to the disk."""
    engine = _fact(facts, "storage_engine")
    if engine != "wiredTiger":
        return fail(f"the storage engine is {engine}", "use wiredTiger: accepted events must be on disks")
    return ok(str(engine))


def durable_write(facts: Facts) -> Check:
    """A write confirmed by a majority, journaled, in good time."""
    _mongo(facts)
    if isinstance(facts.probe_write, Unknown):
        return fail(
            f"a majority-committed, journaled write failed: {facts.probe_write.reason}",
            "see that a majority of the members runs and that the user may write (role readWrite)",
        )
    concern = _fact(facts, "write_concern")
    if not proved(concern):
        return fail(
            f"our writes carry the write concern {dict(concern)} instead of majority and journal",
            "report it: whatever the URL says, this library asks for w: majority, j: true",
        )
    if facts.probe_write > SLOW_WRITE:
        return warn(
            f"a majority-committed, journaled write took {facts.probe_write:.1f} s",
            "look at the disks and at the network between the members: every publish waits so long",
        )
    return ok(f"{facts.probe_write * 1000:.1f} ms, sent with w: majority and j: true")


def proved(concern: Mapping[str, Any]) -> bool:
    """Whether a write that carried this was on the disks of a majority when it was confirmed."""
    return concern.get("w") == "majority" and concern.get("j") is True


def default_concern(facts: Facts) -> Check:
    """What the application's own writes get when they name none."""
    concern = _fact(facts, "default_write_concern")
    if concern != "majority":
        return warn(
            f"the default write concern is w: {concern}: our writes name their own, those of your handlers "
            "outside of our sessions can be rolled back",
            "db.adminCommand({setDefaultRWConcern: 1, defaultWriteConcern: {w: 'majority'}})",
        )
    return ok("w: majority")


def transactions(facts: Facts) -> Check:
    """They commit, and leave nothing when aborted."""
    _mongo(facts)
    cure = "transactions need a replica set and the role readWrite"
    if isinstance(facts.aborted, Unknown):
        return fail(f"a transaction could not be made: {facts.aborted.reason}", cure)
    if not facts.aborted:
        return fail("an aborted transaction left its write behind", cure)
    if isinstance(facts.trip, Unknown):
        return ok("an aborted one left nothing (committing was not tried)")
    if not facts.trip.committed:
        return fail(f"a transaction did not commit: {facts.trip.obstacle}", cure)
    return ok("one committed, an aborted one left nothing")


def indexes(facts: Facts) -> Check:
    """All of ours, as they should be."""
    wrong = [
        f"{collection}.{index} {difference or 'is missing'}"
        for collection, problems in (_fact(facts, "indexes") or {}).items()
        for index, difference in problems.items()
    ]
    if wrong:
        return fail(
            "; ".join(wrong),
            "drop the index that differs; what is missing is created when a bus is opened",
        )
    if foreign := _fact(facts, "foreign_ttl"):
        return fail(
            f"{', '.join(foreign)} deletes documents by their age, dead letters among them",
            "drop the index: what may be deleted has an index of ours",
        )
    return ok("all there")


def oplog(facts: Facts) -> Check:
    """Members that were away for a day can catch up."""
    hours = float(_set_fact(facts, "oplog_hours"))
    if hours < LEAST_OPLOG_HOURS:
        return warn(
            f"the oplog reaches back {hours:.1f} h (on a new server it cannot be more yet)",
            "if it stays below 24 h: db.adminCommand({replSetResizeOplog: 1, size: <MB>})",
        )
    return ok(f"reaches back {hours:.0f} h")


def security(facts: Facts) -> Check:
    """Over a network: user and TLS."""
    url = facts.settings.mongo
    if url.startswith("memory"):
        skip("the event store is in memory, for tests")
    address, _, query = url.partition("://")[2].partition("?")
    hosts = address.partition("/")[0].rpartition("@")[2].split(",")
    options = {name.lower(): value.lower() for name, value in parse_qsl(query)}
    foreign = [host for host in hosts if not is_loopback(urlsplit(f"//{host}").hostname or "")]
    lacks = []
    if "@" not in address and "authmechanism" not in options:
        lacks.append("user")
    if "true" not in (options.get("tls"), options.get("ssl")) and not url.startswith("mongodb+srv"):
        lacks.append("TLS")
    if foreign and lacks:
        return fail(
            f"{', '.join(foreign)} is used without {' and without '.join(lacks)}",
            "configure authorization and TLS in mongod, give mongodb://user:password@host/?tls=true as URL",
        )
    return ok("loopback only" if not foreign else "user and TLS")


def clock(facts: Facts) -> Check:
    """MongoDB's clock and ours agree."""
    return judge_clock("MongoDB", float(_fact(facts, "clock_skew")))


def judge_clock(whose: str, skew: float) -> Check:
    """Leases, starting points and the reconciler compare times of different machines."""
    text = f"{whose} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    if abs(skew) > MUCH_SKEW:
        return fail(text, "set the clocks by NTP: new handlers would miss events, or wait for them")
    if abs(skew) > SOME_SKEW:
        return warn(text, "set the clocks by NTP")
    return ok("less than 0.1 s apart" if abs(skew) < 0.1 else text)


def _mongo(facts: Facts) -> Mapping[str, Any]:
    mongo = known(facts.mongo)
    if mongo.get("version") == "memory":
        skip("the event store is in memory, for tests")
    return mongo


def _fact(facts: Facts, name: str, *, read_as: str = "") -> Any:
    """One of them, or why this user may not read it (as part of ``read_as``)."""
    mongo = _mongo(facts)
    unreadable = (mongo.get("unreadable") or {}).get(read_as or name)
    if unreadable:
        known(Unknown(f"{unreadable} (the role clusterMonitor may read it)"))
    if mongo.get(name) is None:
        known(Unknown("MongoDB does not tell"))
    return mongo[name]


def _set_fact(facts: Facts, name: str, *, read_as: str = "") -> Any:
    """One that only a replica set has."""
    mongo = _mongo(facts)
    if not mongo.get("replica_set"):
        skip("it is no replica set")
    return _fact(facts, name, read_as=read_as)
