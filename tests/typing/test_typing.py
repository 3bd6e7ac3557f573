"""What a type checker tells users: right code is accepted, wrong code refused at its line.

Each sample marks the lines that must be refused with ``# refused``; every other line must be accepted.
"""

import re
import textwrap
from pathlib import Path

import pytest
from mypy import api as mypy_api

ROOT = Path(__file__).parents[2]

BEGIN = """
    from typing import Any

    import attrs
    from tenacity import retry_if_exception_type, stop_after_attempt, wait_random_exponential

    from eventdriven_sync import Batch, EventBus, Retry, RetryPolicy, event

    @event("User.renamed", version=2, key="user_id")
    @attrs.frozen(kw_only=True)
    class Renamed:
        user_id: str
        age: int = 0

    @event("User.left")
    class Left:
        user_id: str

    bus = EventBus(nats="memory://", mongo="memory://", namespace="blog")
    blog = bus.group("Blog")
"""

SAMPLES = {
    "handlers": """
        @blog.handler(Renamed)
        def right(event: Renamed) -> None:
            event.user_id.upper()

        @blog.handler(Left)  # refused
        def wrong(event: Renamed) -> None: ...

        @blog.handler(Renamed, Left)  # refused
        def one_of_two(event: Renamed) -> None: ...
    """,
    "one handler for two events": """
        @blog.handler(Renamed, Left)
        def both(event: Renamed | Left) -> None:
            event.user_id.upper()
    """,
    "transactional": """
        @blog.handler(Renamed, transactional=True)
        def right(event: Renamed, session: Any) -> None: ...

        @blog.handler(Left, transactional=True)  # refused
        def wrong(event: Renamed, session: Any) -> None: ...

        right(Renamed(user_id="1"), None)
        right(Renamed(user_id="1"))  # refused
    """,
    "batches": """
        @blog.batch_handler(Renamed, group_by=lambda e: e.user_id)
        def right(batch: Batch[Renamed]) -> None:
            batch.fail(batch.events[0], ValueError())
            batch.fail("no", ValueError())  # refused

        @blog.batch_handler(Left)  # refused
        def wrong(batch: Batch[Renamed]) -> None: ...

        @blog.batch_handler(Renamed)  # refused
        def no_batch(event: Renamed) -> None: ...

        def by_age(event: Renamed) -> int:
            return event.age

        @blog.batch_handler(Left, group_by=by_age)  # refused
        def wrong_key(batch: Batch[Left]) -> None: ...
    """,
    "the function stays what it is": """
        @blog.handler(Renamed)
        def greet(event: Renamed, loud: bool = False) -> str:
            return event.user_id

        text: str = greet(Renamed(user_id="1"), loud=True)
        number: int = greet(Renamed(user_id="1"))  # refused
        greet("no")  # refused
    """,
    "events": """
        Renamed(user_id="1", age=2)
        Renamed(user_id=1)  # refused
        Renamed(age=2)  # refused
        Renamed("1")  # refused
        Renamed(user_id="1").user_id = "2"  # refused
    """,
    "events that attrs has not seen": """
        Left(user_id="1")
        Left(user_id=1)  # refused
        Left()  # refused
        Left("1")  # refused
    """,
    "publishing": """
        receipt = bus.publish(Renamed(user_id="1"), event_id="one")
        identity: str = receipt.id
        flag: bool = receipt.duplicate
        bus.publish(Renamed(user_id="1"), event_id=1)  # refused
        bus.publish(Renamed(user_id="1"), nonsense=1)  # refused
        bus.publish_many([Renamed(user_id="1"), Left(user_id="1")])
        with bus.operation("import", variables={"file": "x"}) as operation:
            operation.wait(timeout=1).succeeded
        with bus.transaction() as session:
            session.anything()
    """,
    "policies": """
        RetryPolicy(
            on=retry_if_exception_type(OSError),
            stop=stop_after_attempt(8),
            wait=wait_random_exponential(max=60),
        )
        RetryPolicy(stop=5)  # refused
        raise Retry(after="soon")  # refused
    """,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """All samples checked in one run of mypy: name -> (source, report)."""
    folder = tmp_path_factory.mktemp("samples")
    sources = {}
    for number, (name, body) in enumerate(SAMPLES.items()):
        source = textwrap.dedent(BEGIN) + textwrap.dedent(body)
        (folder / f"sample_{number}.py").write_text(source)
        sources[f"sample_{number}.py"] = (name, source)
    out, err, _ = mypy_api.run(
        [
            "--strict",
            "--config-file=",
            "--cache-dir",
            str(folder / "cache"),
            *(str(folder / f) for f in sources),
        ]
    )
    assert not err, err
    return {
        name: (source, "\n".join(line for line in out.splitlines() if f"{file}:" in line))
        for file, (name, source) in sources.items()
    }


# mypy joins the two classes to `object`, which no handler of both accepts: it takes overloads.
NOT_YET: set[str] = set()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xfail(strict=True)) if n in NOT_YET else n for n in SAMPLES]
)
def test_mypy_refuses_exactly_what_is_wrong(reports: dict[str, tuple[str, str]], name: str) -> None:
    source, report = reports[name]
    wrong = {number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# refused")}
    refused = {int(line) for line in re.findall(r"\.py:(\d+): error", report)}
    assert refused == wrong, report


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "eventdriven_sync" / "py.typed").exists()
