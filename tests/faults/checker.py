"""The judgement: what publishers and handlers noted, against what the database holds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import pymongo

from tests.faults.journal import Journal
from tests.faults.workload import EFFECTS, TRANSACTIONAL, Load

SHOWN = 5
SETTLED = ("succeeded", "dead", "discarded")


@attrs.frozen(kw_only=True)
class Verdict:
    """What a run came to.

    Attributes:
        accepted: ids for which publish returned.
        unpublished: numbers that should have been published and were not.
        lost: accepted, but not at its end with every handler, as "handler id: why".
        dup_starts: starts of handlers that no recorded attempt accounts for.
        started_again: of the first few of them, what is known.
        dup_effects: transactional effects that are there more than once, or without a success.
        doubtful: ids whose publisher never learned whether they were accepted, and which are stored.
        dead: dead deliveries by reason.
        most_lost_starts: of all deliveries that died of it, the most starts one had.
        refused: errors of publish by name.
        slowest_publish: in seconds, refused ones included; likewise ``publish_p99``.
        drain: seconds from the last fault to the last settled delivery.
        audit_exit: exit code of ``eventdriven audit``.
        seconds: the whole run.
    """

    accepted: int
    unpublished: int
    lost: tuple[str, ...]
    dup_starts: int
    started_again: tuple[str, ...]
    dup_effects: int
    doubtful: int
    dead: Mapping[str, int]
    most_lost_starts: int
    refused: Mapping[str, int]
    slowest_publish: float
    publish_p99: float
    drain: float = 0.0
    audit_exit: int = 0
    seconds: float = 0.0


def check(journal: Journal, database: pymongo.database.Database[Any], load: Load) -> Verdict:
    """Compare every accepted id with every handler's delivery, effects and notes."""
    receipts = list(journal.notes("receipt"))
    accepted = {note["id"] for note in receipts}
    refusals = list(journal.notes("refused"))
    begun = {note["id"] for note in journal.notes("begun")}
    deliveries = {d["_id"]: d for d in database["deliveries"].find({}, {"event": 0, "failures": 0})}
    effects = {d["_id"]: d["times"] for d in database[EFFECTS].find()}
    starts = Counter((n["handler"], n["id"]) for n in journal.notes("start"))
    done = Counter((n["handler"], n["id"]) for n in journal.notes("done"))
    excess = {key: n for key, count in starts.items() if (n := _excess(count, deliveries.get(":".join(key))))}
    seen = starts + Counter((n["handler"], n["id"]) for n in journal.notes("entered"))
    stored = {d["_id"].partition(":")[2] for d in deliveries.values()}
    seconds = sorted(note["seconds"] for note in [*receipts, *refusals])
    lost_starts = [d for d in deliveries.values() if d.get("reason") == "worker_lost"]
    return Verdict(
        accepted=len(accepted),
        unpublished=load.events - len(accepted if load.repeat_doubtful else begun),
        lost=tuple(_lost(accepted, deliveries, done, seen, effects, load)),
        dup_starts=sum(excess.values()),
        started_again=tuple(_told(list(excess)[:SHOWN], journal, deliveries)),
        dup_effects=sum(_wrong_effect(i, times, deliveries) for i, times in effects.items()),
        doubtful=len((begun - accepted) & stored),
        dead=Counter(d.get("reason", "") for d in deliveries.values() if d["state"] == "dead"),
        most_lost_starts=max((_starts(d, starts) for d in lost_starts), default=0),
        refused=Counter(note["error"] for note in refusals),
        slowest_publish=seconds[-1] if seconds else 0.0,
        publish_p99=seconds[int(len(seconds) * 0.99)] if seconds else 0.0,
    )


def _lost(
    accepted: Iterable[str],
    deliveries: Mapping[str, Any],
    done: Mapping[tuple[str, str], int],
    seen: Mapping[tuple[str, str], int],
    effects: Mapping[str, int],
    load: Load,
) -> Iterable[str]:
    for handler in load.handlers:
        for event in sorted(accepted):
            state = deliveries.get(f"{handler}:{event}", {}).get("state", "no delivery")
            if state not in SETTLED:
                yield f"{handler} {event}: {state}"
            elif state == "succeeded" and not done[handler, event]:
                yield f"{handler} {event}: succeeded, but the witness saw no end"
            elif state == "dead" and not seen[handler, event]:
                yield f"{handler} {event}: dead, but the witness saw no start"
            elif handler == TRANSACTIONAL and state == "succeeded" and not effects.get(event):
                yield f"{handler} {event}: succeeded without its effect"


def _excess(starts: int, delivery: Mapping[str, Any] | None) -> int:
    """Starts beyond those that were recorded as a failure or as the success."""
    if delivery is None:
        return starts
    recorded = delivery.get("failed", 0) + (delivery["state"] == "succeeded")
    return max(0, starts - max(1, recorded))


def _told(keys: Sequence[tuple[str, str]], journal: Journal, deliveries: Mapping[str, Any]) -> Iterable[str]:
    """Everything the witness and the database say of these handlers' attempts at these events."""
    found: dict[tuple[str, str], list[str]] = {key: [] for key in keys}
    for note in journal.notes("entered", "start", "failed", "done") if keys else ():
        if (note["handler"], note["id"]) in found:
            found[note["handler"], note["id"]].append(
                f"{note['what']} {note['at']:.3f} in {note['pid']}.{note['thread']}"
            )
    for key, notes in found.items():
        yield f"{' '.join(key)}: {', '.join(notes)}; stored: {deliveries.get(':'.join(key))}"


def _wrong_effect(event: str, times: int, deliveries: Mapping[str, Any]) -> int:
    """Effects beyond the one of a success: all of them if there is no success."""
    state = deliveries.get(f"{TRANSACTIONAL}:{event}", {}).get("state")
    return int(times) - (state == "succeeded")


def _starts(delivery: Mapping[str, Any], starts: Mapping[tuple[str, str], int]) -> int:
    handler, _, event = delivery["_id"].partition(":")
    return starts[handler, event]
