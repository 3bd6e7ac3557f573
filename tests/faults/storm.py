"""A handler that always fails for as long as a file is there."""

from pathlib import Path

from tenacity import stop_after_attempt, wait_random_exponential

from eventdriven_sync import EventBus, RetryPolicy, current_envelope
from tests.faults.journal import Journal
from tests.faults.workload import Disturbed, Load, WorkAsked

HANDLER = "Mail.send"
PATIENT = RetryPolicy(stop=stop_after_attempt(50), wait=wait_random_exponential(multiplier=1, max=15))


def build(bus: EventBus, journal: Journal, load: Load) -> None:
    storm = Path(load.options["storm"])

    @bus.group("Mail").handler(WorkAsked, retry=PATIENT)
    def send(asked: WorkAsked) -> None:
        envelope = current_envelope()
        assert envelope is not None
        journal.note("start", handler=HANDLER, id=envelope.id)
        if storm.exists():
            journal.note("failed", handler=HANDLER, id=envelope.id)
            raise Disturbed("the mail is down")
        journal.note("done", handler=HANDLER, id=envelope.id)
