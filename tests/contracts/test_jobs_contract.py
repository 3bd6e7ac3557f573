"""What every ``Jobs`` promises, on memory and MongoDB."""

from datetime import timedelta

import attrs
import pytest

from eventdriven_sync.jobs import Jobs
from tests.contracts.samples import Samples
from tests.contracts.stages import StoreStage


@pytest.fixture
def jobs(stage: StoreStage) -> Jobs:
    return stage.store.jobs


def test_a_job_is_kept_as_it_was(jobs: Jobs, given: Samples) -> None:
    job = given.job(canaries=("a:1", "a:2"), note="x", finished_at=given.at(1), state="done")
    jobs.add(job)
    assert jobs.get(job.id) == job
    assert jobs.get("unknown") is None
    bare = given.job(fingerprint=None, since=None)
    jobs.add(bare)
    assert jobs.get(bare.id) == bare


def test_a_job_changes_until_it_is_over(jobs: Jobs, given: Samples) -> None:
    job = given.job()
    jobs.add(job)
    assert jobs.change(job.id, {"canaries": ("$a:1",), "moved": 1, "state": "running"})
    assert jobs.get(job.id) == attrs.evolve(job, canaries=("$a:1",), moved=1, state="running")
    assert jobs.change(job.id, {"state": "cancelled", "note": "$eve", "finished_at": given.at(5)})
    ended = jobs.get(job.id)
    assert not jobs.change(job.id, {"state": "running"})
    assert not jobs.change("unknown", {"moved": 1})
    assert jobs.get(job.id) == ended
    assert ended is not None
    assert (ended.over, ended.note, ended.finished_at) == (True, "$eve", given.at(5))


def test_jobs_are_found_newest_first_in_pages(jobs: Jobs, given: Samples) -> None:
    # In the future, so that they come before those of everybody else.
    begin = given.now + timedelta(days=9000)
    made = [
        given.job(created_at=begin + timedelta(seconds=n), state="done" if n % 2 else "running")
        for n in range(6)
    ]
    for job in made:
        jobs.add(job)
    ids = [job.id for job in made]

    def found(**query: object) -> list[int]:
        return [ids.index(job.id) for job in jobs.find(**query) if job.id in ids]  # type: ignore[arg-type]

    assert found(limit=4) == [5, 4, 3, 2]
    assert found(after=ids[2], limit=2) == [1, 0]
    assert found(over=True, limit=2) == [5, 3]
    assert found(over=True, after=ids[3], limit=1) == [1]
    assert found(over=False, limit=3) == [4, 2, 0]
    assert jobs.find(after="unknown", limit=3) == []
    for job in made:
        jobs.change(job.id, {"state": "done"})
