"""Publishers, workers and faults by seed: nothing accepted is lost, nothing succeeds twice."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import attrs
import pytest

from eventdriven_sync import envelope, executor, publishing, reconciler, recovery, settling
from eventdriven_sync.attempt import Attempt
from eventdriven_sync.stores.memory import deliveries, events
from tests.model.laws import broken_laws, verdict, verdicts
from tests.model.simulator import CALL_FAULTS, STEPS, WORLD_FAULTS, Profile, World
from tests.model.witness import EXPLAIN

QUICK = 300
MANY = 5000
CHUNK = 50
NO_FAULTS = Profile({}, ())


@pytest.mark.parametrize("first", range(0, QUICK, CHUNK))
def test_whatever_happens_nothing_accepted_is_lost_and_no_success_repeated(
    first: int, seed: int | None
) -> None:
    """With ``--seed N`` or ``PYTEST_SEED=N`` only that one is run."""
    seeds = range(first, first + CHUNK) if seed is None else range(seed, seed + 1)
    assert "\n".join(verdicts(seeds)) == ""


@pytest.mark.faults
def test_five_thousand_runs_keep_every_law(seed: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    first, began = seed or 0, time.monotonic()
    chunks = [range(begin, begin + CHUNK) for begin in range(first, first + MANY, CHUNK)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        wrong = [each for found in pool.map(verdicts, chunks) for each in found]
    took = f"{time.monotonic() - began:.1f} s, {len(wrong)} wrong"
    with capsys.disabled():
        print(f"\n{MANY:,} seeds from {first}, {STEPS} steps each: {took}")
    assert "\n".join(wrong) == ""


@pytest.mark.parametrize("kind", [*CALL_FAULTS, *WORLD_FAULTS])
def test_each_fault_alone_happens_and_breaks_no_law(kind: str) -> None:
    rates = {kind: CALL_FAULTS[kind]} if kind in CALL_FAULTS else {}
    profile = Profile(rates, (kind,) if kind in WORLD_FAULTS else ())
    seen = 0
    for number in range(12):
        with World(number, profile=profile) as world:
            world.run()
            assert broken_laws(world) == []
        seen += sum(fault.kind == kind for fault in world.witness.faults)
    assert seen, f"{kind} never happened"


def test_without_faults_every_handler_returns_once_for_each_event() -> None:
    for number in range(20):
        with World(number, profile=NO_FAULTS) as world:
            world.run()
            assert broken_laws(world) == []
        runs = world.witness.runs.values()
        slow = any(fault.kind == "slow" for fault in world.witness.faults)
        assert slow or all(sum(run.how == "returned" for run in same) <= 1 for same in runs)
        assert len(world.witness.accepted) == 12


def test_one_seed_is_one_history() -> None:
    assert _history(60) == _history(60) != _history(61)


def _history(seed: int) -> list[Any]:
    with World(seed) as world:
        world.run()
    runs = [
        (run.handler, run.event_id, run.node, run.began, run.how)
        for each in world.witness.runs.values()
        for run in each
    ]
    return [runs, world.witness.faults, world.loop.turns]


# --- a library with a fault in it is found out -------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def _acknowledge_before_recording(patch: pytest.MonkeyPatch) -> None:
    settle = settling.Settler.settle

    def wrong(self: Any, settled: Any) -> None:
        settling._finish([attempt for attempt, _ in settled])
        settle(self, settled)

    patch.setattr(settling.Settler, "settle", wrong)


def _acknowledge_what_was_fenced_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settling, "_fenced_off", lambda attempt, settlement: settling._finish([attempt]))


def _ask_nothing(patch: pytest.MonkeyPatch) -> None:
    admit = settling.Settler.admit

    def admit_unasked(self: settling.Settler, attempts: Sequence[Attempt]) -> list[Attempt]:
        for attempt in attempts:
            attempt.checked = True
        return admit(self, attempts)

    patch.setattr(settling.Settler, "admit", admit_unasked)


def _run_what_another_has_begun(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settling.Settler, "_refused", lambda self, fresh: [])


def _renew_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery.RecoveryLane, "renew", lambda self: None)


def _renew_amid_transactions(patch: pytest.MonkeyPatch) -> None:
    renew = deliveries.MemoryDeliveries.renew

    def wrong(self: Any, *args: Any, ending_within: float | None = None, **options: Any) -> set[str]:
        return renew(self, *args, **options)

    patch.setattr(deliveries.MemoryDeliveries, "renew", wrong)


def _reconcile_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconciler.Reconciler, "_bring", lambda self, record, lost: 0)


def _reconcile_what_still_comes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reconciler.Reconciler, "_still_comes", lambda self, record, event, reach: False)


def _believe_any_owner(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deliveries, "_owns", lambda stored, settlement: stored.state == "running")


def _count_no_lost_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(executor.Executor, "_worker_lost", lambda self, attempt: None)


def _emit_new_ids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publishing, "derived_id", lambda *parts, at: envelope.new_id())


def _keep_the_time_of_publishing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settling, "accepted_now", lambda events, now: tuple(events))


def _publish_although_it_failed(patch: pytest.MonkeyPatch) -> None:
    settlement = executor.Executor.settlement

    def wrong(self: Any, attempt: Any, error: Any, *, emitted: Any = ()) -> Any:
        return attrs.evolve(settlement(self, attempt, error, emitted=emitted), emitted=tuple(emitted))

    def store(tables: Any, settlement: Any) -> None:
        events.insert_events(tables.events, settlement.emitted)

    patch.setattr(executor.Executor, "settlement", wrong)
    patch.setattr(deliveries, "_store_emitted", store)


@pytest.mark.parametrize(
    "wrong",
    [
        _acknowledge_before_recording,
        _acknowledge_what_was_fenced_off,
        _ask_nothing,
        _run_what_another_has_begun,
        _renew_nothing,
        _renew_amid_transactions,
        _reconcile_nothing,
        _reconcile_what_still_comes,
        _believe_any_owner,
        _count_no_lost_start,
        _emit_new_ids,
        _keep_the_time_of_publishing,
        _publish_although_it_failed,
    ],
    ids=lambda function: function.__name__.strip("_"),
)
def test_a_library_that_breaks_a_law_is_found_out(wrong: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    assert any(verdict(number) for number in range(QUICK))


def test_faults_that_explain_a_second_run_are_faults_of_the_simulator() -> None:
    assert {*CALL_FAULTS, *WORLD_FAULTS, "slow"} >= EXPLAIN
