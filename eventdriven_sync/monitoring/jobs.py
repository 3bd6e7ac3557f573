"""Group retries: begun, watched and cancelled by people; their steps are taken by whichever worker leads."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from eventdriven_sync.config import check_number, check_text
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import InvalidOption, InvalidTransition, NotFound, shorten
from eventdriven_sync.handlers import check_count
from eventdriven_sync.jobs import MAX_CANARIES, RetryJob
from eventdriven_sync.monitoring.actions import Person, recorded
from eventdriven_sync.monitoring.records import Page, page_of
from eventdriven_sync.store import MAX_TEXT, DeliveryQuery, Store

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

MAX_PAGE = 200


class GroupRetryActions:
    """Retries of whole groups of dead letters. Thread-safe."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def preview_retry(
        self,
        handler: str,
        *,
        fingerprint: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """How many dead letters a retry of this group would send back now."""
        check_text(handler, field="handler", most=MAX_TEXT)
        query = DeliveryQuery(
            states=("dead",), handler=handler, fingerprint=fingerprint, since=since, until=until
        )
        return self._store.deliveries.count(query).get("dead", 0)

    def retry_group(
        self,
        handler: str,
        *,
        by: str,
        fingerprint: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        canary: int = 1,
        reason: str = "",
        ip: str = "",
    ) -> RetryJob:
        """Begin to send back the dead letters of a handler and cause.

        Args:
            fingerprint: of the last error; None is every dead letter of the handler.
            canary: how many are sent back first, up to 100: when they have succeeded the others follow, and
                it stops as soon as too many die again (more than this, and than a tenth). 0 waits for none.
            by, reason, ip: who, why and from where, for the audit log.

        Raises:
            NotFound: no dead letter matches.
            InvalidTransition: another job sends back letters of this handler.
        """
        person = Person(name=by, reason=reason, ip=ip)
        check_number(canary, field="canary", low=0, high=MAX_CANARIES, whole=True)
        total = self.preview_retry(handler, fingerprint=fingerprint, since=since, until=until)
        if not total:
            raise NotFound(f"no dead letter of {shorten(handler)} matches: there is nothing to send back")
        self._check_alone(handler)
        now = self._store.directory.now()
        job = RetryJob(
            id=new_id(),
            handler=handler,
            fingerprint=fingerprint,
            since=since,
            until=until,
            by=by,
            reason=reason,
            canary=canary,
            state="canary" if canary else "running",
            total=total,
            created_at=now,
            advanced_at=now,
        )
        before = {"handler": handler, "fingerprint": fingerprint, "dead": total}
        after = {"job": job.id, "canary": canary}
        with recorded(self._bus, "group_retry", [job.id], person, before=before, after=after):
            self._store.jobs.add(job)
        return job

    def job(self, job_id: str) -> RetryJob:
        """The job, with what became of the letters it sent back.

        Raises:
            NotFound: no job has this id.
        """
        check_text(job_id, field="job id", most=MAX_TEXT)
        found = self._store.jobs.get(job_id)
        if found is None:
            raise NotFound(f"no group retry has the id {shorten(job_id)}", id=job_id)
        return attrs.evolve(found, progress=self._store.deliveries.count(DeliveryQuery(job=job_id)))

    def jobs(self, *, over: bool | None = None, after: str | None = None, limit: int = 50) -> Page[RetryJob]:
        """Jobs, newest first.

        Args:
            over: only those that are, or are not.
        """
        check_count(limit, field="limit", high=MAX_PAGE)
        if after is not None:
            check_text(after, field="after", most=MAX_TEXT)
        if over not in (None, True, False):
            raise InvalidOption(f"over is {shorten(over)}: give True, False or None", field="over")
        found = self._store.jobs.find(over=over, after=after, limit=limit + 1)
        return page_of(found, limit, lambda job: job.id)

    def cancel(self, job_id: str, *, by: str, reason: str = "", ip: str = "") -> None:
        """Send back nothing more. What was sent back goes on.

        Raises:
            NotFound: no job has this id.
            InvalidTransition: it is over.
        """
        person = Person(name=by, reason=reason, ip=ip)
        job = self.job(job_id)
        before = {"state": job.state, "moved": job.moved}
        changes = {"state": "cancelled", "note": f"by {by}", "finished_at": self._store.directory.now()}
        if job.over:
            raise _over(job)
        with recorded(self._bus, "cancel_job", [job_id], person, before=before, after={"state": "cancelled"}):
            if not self._store.jobs.change(job_id, changes):
                raise _over(self.job(job_id))

    def _check_alone(self, handler: str) -> None:
        for job in self._store.jobs.find(over=False, limit=MAX_PAGE):
            if job.handler == handler:
                raise InvalidTransition(
                    f"job {job.id} already sends back letters of {handler}; wait until it is over, or "
                    "cancel it",
                    id=job.id,
                    state=job.state,
                )

    @property
    def _store(self) -> Store:
        self._bus.open()
        return self._bus.store


def _over(job: RetryJob) -> InvalidTransition:
    return InvalidTransition(
        f"job {job.id} is {job.state!r}: only one that is not over can be cancelled",
        id=job.id,
        state=job.state,
    )
