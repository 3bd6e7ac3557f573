"""What happens in the demonstration, step by step, and what must come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from eventdriven_sync.audit import audit
from eventdriven_sync.bus import EventBus
from eventdriven_sync.chain import Chain
from eventdriven_sync.cli.render import plain_chain
from eventdriven_sync.demo.stage import Echo, Stage
from eventdriven_sync.demo.visitor import Visitor
from eventdriven_sync.errors import EventDrivenError

WAIT = 60.0
VIEWS = 3

ADA = {
    "first_name": "Ada",
    "last_name": "Byron",
    "email": "ada@example.org",
    "password": "Analytical-Engine",
}
NEW_NAME = {"first_name": "Ada", "last_name": "Lovelace"}


class Unexpected(EventDrivenError):
    """Something came otherwise than promised."""


class Story:
    """A user registers, writes, comments, is read, renames herself; then a handler fails and is retried.

    Args:
        stage: the running blog.
        bus: of the same servers, to look at chains and dead letters.
        echo: prints a line.
    """

    def __init__(self, stage: Stage, bus: EventBus, echo: Echo) -> None:
        self._stage, self._bus, self._echo = stage, bus, echo
        self._ada = Visitor(stage.url)
        self._post = ""

    def tell(self) -> None:
        """Run all of it.

        Raises:
            Unexpected: naming what was expected and what was found.
            EventDrivenError: something was not answered, or not settled in time.
        """
        try:
            self._register_and_write()
            self._count_the_day()
            operation_id = self._rename_with_a_fault()
            self._retry(operation_id)
            self._look_at_the_result()
        except OSError as error:
            raise Unexpected(f"Expected the blog to answer, found: {error}") from error

    def _register_and_write(self) -> None:
        self._echo("2. A visitor registers, writes a post, comments on it; it is read three times:")
        registered = self._ada.post("/register", **ADA)
        self._ada.post("/sign-in", email=ADA["email"], password=ADA["password"])
        post = self._ada.post("/posts", title="Notes", text="The Engine weaves algebraical patterns.")
        self._post = f"/posts/{post.body['id']}"
        comment = self._ada.post(f"{self._post}/comments", text="As the loom weaves flowers and leaves.")
        for _ in range(VIEWS):
            self._ada.get(self._post)
        for answer, events in (
            (registered, ["Blog.userDuplicated", "User.registered"]),
            (post, ["Blog.postWritten"]),
            (comment, ["Comment.written"]),
        ):
            self._settled(answer.operation_id, events)
        self._eventually(f"views of {self._post}", lambda: self._read()["views"], VIEWS)

    def _count_the_day(self) -> None:
        self._echo("3. Cron runs the nightly statistics on two instances at the same time:")
        day = datetime.now(UTC).date().isoformat()
        lines = self._stage.run_at_once("blog", "nightly-statistics", "--day", day, times=2)
        operations = {line.partition(" ")[0] for line in lines}
        self._expect("operations of the night", len(operations), 1)
        self._settled(operations.pop(), ["Blog.dayEnded"])
        counted = [(row["day"], row["counted"], row["posts"]) for row in self._days()]
        self._expect("days counted, how often, posts", counted, [(day, 1, 1)])

    def _rename_with_a_fault(self) -> str:
        self._echo("4. She renames herself. Blog follows; Comment fails at 5 attempts with growing pauses:")
        self._ada.post("/demonstration/fault", fault="on")
        operation_id = self._ada.post("/me/name", **NEW_NAME).operation_id
        chain = self._show(operation_id)
        self._expect(
            "deliveries of the renaming",
            _deliveries(chain),
            {"Blog.rename_author": ("succeeded", 0), "Comment.rename_author": ("dead", 5)},
        )
        self._expect("events of the renaming", _events(chain), ["Blog.userUpdated", "User.nameUpdated"])
        self._expect("author of the post", self._read()["author"]["last_name"], NEW_NAME["last_name"])
        self._expect("author of the comment", self._commentator(), ADA["last_name"])
        return operation_id

    def _retry(self, operation_id: str) -> None:
        self._ada.post("/demonstration/fault", fault="off")
        letters = self._bus.dead_letters.find(operation_id=operation_id)
        self._expect("dead letters", len(letters), 1)
        self._echo(f"5. The fault is mended and the dead letter {letters[0].id} retried:")
        self._bus.dead_letters.retry(letters[0].id, by="demo")
        chain = self._show(operation_id)
        self._expect("the whole chain succeeded", chain.succeeded, True)
        self._expect(
            "events of the renaming",
            _events(chain),
            ["Blog.userUpdated", "Comment.userUpdated", "User.nameUpdated"],
        )

    def _look_at_the_result(self) -> None:
        self._echo("6. The result, and the audit: every accepted event was handled by every handler:")
        self._expect("author of the comment", self._commentator(), NEW_NAME["last_name"])
        user = self._ada.get("/me")["user"]
        self._expect("her posts and comments", (user["posts"], user["comments"]), (1, 1))
        result = audit(self._bus)
        self._expect(
            "lost events", {handler.name: handler.lost for handler in result.handlers if not handler.ok}, {}
        )
        accepted = sum(handler.accepted for handler in result.handlers)
        self._echo(f"   {len(result.handlers)} handlers, {accepted} deliveries, nothing lost")

    def _read(self) -> dict[str, Any]:
        """The post as the list shows it: looking there is no view."""
        return next(post for post in self._ada.get("/")["posts"] if self._post.endswith(post["id"]))

    def _commentator(self) -> str:
        return str(self._ada.get(f"{self._post}/comments")["comments"][0]["author"]["last_name"])

    def _days(self) -> list[dict[str, Any]]:
        return list(self._ada.get("/statistics")["days"])

    def _settled(self, operation_id: str, events: list[str]) -> None:
        chain = self._bus.operations.wait(operation_id, timeout=WAIT)
        self._expect(f"events of {chain.operation.name}", _events(chain), events)
        self._expect(f"{chain.operation.name} succeeded", chain.succeeded, True)

    def _show(self, operation_id: str) -> Chain:
        chain = self._bus.operations.wait(operation_id, timeout=WAIT)
        self._echo(f"\n{plain_chain(chain)}\n")
        return chain

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise Unexpected(f"Expected {what}: {expected}, found: {found}")

    def _eventually(self, what: str, look: Callable[[], Any], expected: object) -> None:
        """What no operation can be waited for: a view of a page is an event without one."""
        deadline = time.monotonic() + WAIT
        while (found := look()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        self._expect(what, found, expected)


def _events(chain: Chain) -> list[str]:
    return sorted(node.event.name for node in chain.walk())


def _deliveries(chain: Chain) -> dict[str, tuple[str, int]]:
    return {delivery.handler: (delivery.state, delivery.failed) for delivery in chain.deliveries}
