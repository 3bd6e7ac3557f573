"""Counting what was published and handled, so that a page need not: by minute, and by hour once it is over.

Publishers count nothing. Whoever leads reads what was published from the index of the events, minute by
minute, and adds up each hour. Who asks takes whole hours where there are any, minutes at the edges, and
the events themselves for the last two minutes.

An event that became visible more than ``LATE`` seconds after its time is in no figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import reduce

import attrs

from eventdriven_sync.errors import QueryTooSlow
from eventdriven_sync.figures import Figures, HandledCount, HourCount, PublishedCount
from eventdriven_sync.store import Store

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
LATE = timedelta(seconds=90)
# Workers write their statistics every few seconds, and a minute longer than it lasts.
STATS_LATE = timedelta(minutes=3)
KEPT = timedelta(days=30)
PATIENCE = HOUR
CHUNK = 60
HOURS_AT_ONCE = 6


@attrs.frozen(kw_only=True)
class MinuteRow:
    """What happened in one minute.

    Attributes:
        failed: attempts that failed and are tried again; ``dead`` ones are not among them.
    """

    minute: datetime
    published: int = 0
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    discarded: int = 0


class Counting:
    """Keeps the counts up to date. For one thread; whoever calls it leads.

    Args:
        store: where events are and counts go.
        unrecorded_since: from when on events may be missing in the store that NATS has accepted; None if
            none are. They are waited for, up to ``PATIENCE``.
    """

    def __init__(
        self, store: Store, *, unrecorded_since: Callable[[], datetime | None] = lambda: None
    ) -> None:
        self._store = store
        self._unrecorded_since = unrecorded_since
        self._chunk = CHUNK
        self._next: datetime | None = None

    def round(self) -> int:
        """Count the next minutes that are over, then hours; how many minutes. Nearly free if none is due."""
        now = self._store.directory.now()
        until = floor(now - LATE, MINUTE)
        if self._next is not None and self._next >= until:
            return 0
        until = self._recorded(until)
        begin = self._begin(now)
        end = min(until, begin + self._chunk * MINUTE)
        if begin < end and not self._count(begin, end):
            return 0
        self._next = max(begin, end)
        self._add_up(min(self._next, now - STATS_LATE))
        return max(0, (end - begin) // MINUTE)

    def _recorded(self, until: datetime) -> datetime:
        """As far as nothing is missing any more."""
        since = self._unrecorded_since()
        return until if since is None else min(until, floor(max(since - LATE, until - PATIENCE), MINUTE))

    def _begin(self, now: datetime) -> datetime:
        figures = self._store.figures
        begin = figures.counted_until() or figures.oldest_published() or now
        return floor(max(begin, now - KEPT), MINUTE)

    def _count(self, begin: datetime, end: datetime) -> bool:
        """Count a stretch of minutes; one that takes too long is tried again, shorter, next time."""
        try:
            counts = self._store.figures.published(since=begin, until=end)
        except QueryTooSlow:
            if self._chunk == 1:
                raise
            self._chunk = max(1, self._chunk // 4)
            return False
        self._store.figures.save_published(counts, since=begin, until=end)
        return True

    def _add_up(self, until: datetime) -> None:
        figures = self._store.figures
        last = figures.last_hour()
        first = last + HOUR if last else figures.oldest_published()
        if first is None:
            return
        hour = floor(max(first, until - KEPT), HOUR)
        for _ in range(HOURS_AT_ONCE):
            if hour + HOUR > until:
                return
            figures.save_hour(_hour(figures, hour))
            hour += HOUR


def floor(moment: datetime, step: timedelta) -> datetime:
    """The last minute or hour that had begun by then."""
    return moment - (moment - moment.replace(hour=0, minute=0, second=0, microsecond=0)) % step


def _hour(figures: Figures, hour: datetime) -> HourCount:
    published = figures.saved_published(since=hour, until=hour + HOUR)
    minutes = Counter[int]()
    names = Counter[tuple[str, int]]()
    for each in published:
        minutes[(each.minute - hour) // MINUTE] += each.count
        names[each.name, each.version] += each.count
    return HourCount(
        hour=hour,
        published=tuple(minutes[number] for number in range(60)),
        attempts=tuple(figures.handled_by_minute(since=hour, until=hour + HOUR)),
        names=_names(hour, names),
        subjects=tuple(figures.handled_by_subject(since=hour, until=hour + HOUR)),
    )


def _names(minute: datetime, counts: Counter[tuple[str, int]]) -> tuple[PublishedCount, ...]:
    return tuple(
        PublishedCount(minute=minute, name=name, version=version, count=count)
        for (name, version), count in sorted(counts.items())
    )


# --- asking -------------------------------------------------------------------------------------------


def minute_counts(store: Store, *, since: datetime, until: datetime) -> list[MinuteRow]:
    """Every minute of ``[since, until)``, oldest first, without gaps.

    Raises:
        QueryTooSlow: what nobody has counted yet is too much.
    """
    hours, gaps = _split(store.figures, since, until)
    published = Counter[datetime]()
    handled: list[HandledCount] = []
    for hour in hours:
        published.update({hour.hour + n * MINUTE: count for n, count in enumerate(hour.published)})
        handled += hour.attempts
    for begin, end in gaps:
        for each in _published(store.figures, begin, end):
            published[each.minute] += each.count
        handled += store.figures.handled_by_minute(since=begin, until=end)
    by_minute = {each.minute: each for each in handled}
    moments = (since + number * MINUTE for number in range((until - since) // MINUTE))
    return [_minute(moment, published[moment], by_minute.get(moment)) for moment in moments]


def subject_counts(
    store: Store, *, since: datetime, until: datetime
) -> tuple[list[PublishedCount], list[HandledCount]]:
    """What was published in ``[since, until)`` by name and version, and handled by name and handler.

    Raises:
        QueryTooSlow: what nobody has counted yet is too much.
    """
    hours, gaps = _split(store.figures, since, until)
    published = [each for hour in hours for each in hour.names]
    handled = [each for hour in hours for each in hour.subjects]
    for begin, end in gaps:
        published += _published(store.figures, begin, end)
        handled += store.figures.handled_by_subject(since=begin, until=end)
    names = Counter[tuple[str, int]]()
    for count in published:
        names[count.name, count.version] += count.count
    return list(_names(since, names)), _merged(handled)


def _split(
    figures: Figures, since: datetime, until: datetime
) -> tuple[list[HourCount], list[tuple[datetime, datetime]]]:
    """The hours that were added up, and the stretches between them."""
    hours = [hour for hour in figures.hours(since=since, until=until) if hour.hour + HOUR <= until]
    gaps, begin = [], since
    for hour in hours:
        gaps.append((begin, hour.hour))
        begin = hour.hour + HOUR
    return hours, [(a, b) for a, b in [*gaps, (begin, until)] if a < b]


def _published(figures: Figures, since: datetime, until: datetime) -> list[PublishedCount]:
    counted = figures.counted_until() or since
    kept = figures.saved_published(since=since, until=min(until, counted)) if since < counted else []
    fresh = max(since, counted)
    return kept + (figures.published(since=fresh, until=until) if fresh < until else [])


def _minute(minute: datetime, published: int, handled: HandledCount | None) -> MinuteRow:
    if handled is None:
        return MinuteRow(minute=minute, published=published)
    return MinuteRow(
        minute=minute,
        published=published,
        succeeded=handled.succeeded,
        failed=handled.failed,
        dead=handled.dead,
        discarded=handled.discarded,
    )


def _merged(counts: Iterable[HandledCount]) -> list[HandledCount]:
    by_key: dict[tuple[str, str], list[HandledCount]] = {}
    for each in counts:
        by_key.setdefault((each.event_name, each.handler), []).append(each)
    return [reduce(_plus, same) for _, same in sorted(by_key.items())]


def _plus(one: HandledCount, other: HandledCount) -> HandledCount:
    return attrs.evolve(
        one,
        succeeded=one.succeeded + other.succeeded,
        failed=one.failed + other.failed,
        dead=one.dead + other.dead,
        discarded=one.discarded + other.discarded,
        durations=_sum(one.durations, other.durations),
    )


def _sum(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
