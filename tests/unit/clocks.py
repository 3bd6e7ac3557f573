"""The clock of tests: stands in for the module ``time`` and moves when it is told to."""


class Clock:
    """Time that stands still until ``now`` is changed."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """As ``time.monotonic``."""
        return self.now
