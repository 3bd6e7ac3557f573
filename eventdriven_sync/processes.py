"""Several processes of one command under a supervisor: started, watched, replaced, stopped together."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import attrs

from eventdriven_sync.config import check_number
from eventdriven_sync.errors import ConfigurationError

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "eventdriven_sync")
# A process that is asked to end ends by itself within its grace period; this much later it is killed.
EXTRA_GRACE = 2.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 60.0
# Exit code 2 says the command or its configuration is wrong, which no restart cures.
MISUSE = 2
MISUSES = 3
QUICK = 10.0
# In a rolling restart a new process has to live so long before the next one is replaced.
SETTLED_AFTER = 3.0
_CANNOT_START = 71
_LOOK_EVERY = 5.0

# A child waits here until its watcher exists, then becomes the command (same pid).
_GATE = 'read -r _ && exec "$@" </dev/null'
# Without its supervisor a child is asked to end, and killed after $2 seconds.
_WATCHER = """
read -r _ && exit
kill -TERM "$1" || exit
seconds=0
while [ "$seconds" -lt "$2" ] && kill -0 "$1"; do sleep 1; seconds=$((seconds + 1)); done
kill -KILL "$1"
"""


def run_processes(
    argv: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    processes: int,
    grace: float = 25.0,
    command: Sequence[str] = COMMAND,
) -> int:
    """Run a command in several processes until SIGTERM or SIGINT; returns the exit code.

    A process that ends is started again: after half a second at first, then after pauses that double up to
    30 seconds, until it has lived for a minute. SIGTERM and SIGINT are passed on; who has not ended
    ``grace`` + 2 seconds later is killed, by a second signal at once. SIGHUP replaces one process after the
    other (in a terminal it stops them: the terminal was closed). When this process is killed, its
    children are asked to end and killed ``grace`` + 2 seconds later. To be called in the main thread.

    Args:
        argv: arguments of the command, for example ``["worker", "--app", "blog:bus"]``; or a function that
            gives those of process number 1, 2, and so on.
        processes: how many, 1 to 256.
        grace: seconds a process may take to end, 0 to 3,600.
        command: what the arguments are for; this library's command line by default.

    Returns:
        0 only when they were asked to end and every one of them ended with 0; 2 when all of them fail
        with 2 as soon as they start (wrong arguments or configuration); otherwise the exit code of one that
        failed, 128 + number for one that a signal ended.

    Raises:
        ConfigurationError: an option is outside its range.
    """
    check_number(grace, field="grace", low=0, high=3600)
    check_number(processes, field="processes", low=1, high=256)
    if not isinstance(processes, int):
        raise ConfigurationError(f"processes is {processes!r}: give a whole number", field="processes")
    arguments = argv if callable(argv) else lambda number: argv
    commands = [[*command, *arguments(number)] for number in range(1, processes + 1)]
    return _Supervisor(commands, grace=grace).run()


class _Child:
    """One running process, and the watcher that ends it should the supervisor be killed."""

    def __init__(self, command: Sequence[str], *, patience: float) -> None:
        # Own sessions keep the terminal's Ctrl-C away from them: the supervisor passes it on, once.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "sh", *command], stdin=subprocess.PIPE, start_new_session=True
        )
        self.pid = self._process.pid
        self._started_at = time.monotonic()
        try:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHER, "sh", str(self.pid), str(math.ceil(patience))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._process.communicate()  # behind a gate that never opens it ends by itself
            raise
        _say_go(self._process)

    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._started_at

    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def bury(self) -> None:
        """It has ended: its watcher goes home, since the pid may soon belong to somebody else."""
        _say_go(self._watcher)
        self._watcher.wait()


def _say_go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


@attrs.define
class _Slot:
    """One of the processes, over all its lives. Times are of ``time.monotonic``.

    Attributes:
        start_at: when the next life begins, while there is none.
        kill_at: when it is killed, after it was asked to end.
        settled_at: when it counts as running, in a rolling restart.
        failures: lives in a row that were short; they make the pause longer.
        misuses: lives in a row that ended at once with exit code 2.
    """

    number: int
    command: Sequence[str]
    child: _Child | None = None
    start_at: float = 0.0
    kill_at: float | None = None
    settled_at: float | None = None
    failures: int = 0
    misuses: int = 0
    exit_code: int = 0

    def due_at(self) -> float:
        """When something has to be done about it, unless it ends before."""
        if self.child is None:
            return self.start_at
        return min(self.kill_at or math.inf, self.settled_at or math.inf)


class _Supervisor:
    """Everything happens in the main thread; signal handlers only put their number into a queue."""

    def __init__(self, commands: Sequence[Sequence[str]], *, grace: float) -> None:
        self._patience = grace + EXTRA_GRACE
        self._slots = [_Slot(number, command) for number, command in enumerate(commands, 1)]
        # Unlike an Event, a SimpleQueue may be used by a handler that interrupts its own use.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._rolling: deque[_Slot] = deque()
        self._replacing: _Slot | None = None
        self._stopping = False
        self._misused = False

    def run(self) -> int:
        """Until all have ended; the exit code."""
        with self._handlers():
            try:
                self._look()
                while not self._stopping or any(slot.child for slot in self._slots):
                    self._obey(self._next_signal())
                    self._look()
            finally:
                self._kill_all()
        return self._exit_code()

    # --- signals ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.put(number)

    def _next_signal(self) -> int | None:
        watched = [slot.due_at() for slot in self._slots if slot.child or not self._stopping]
        pause = min(watched, default=math.inf) - time.monotonic()
        with contextlib.suppress(queue.Empty):
            return self._signals.get(timeout=min(max(pause, 0.0), _LOOK_EVERY))
        return None

    def _obey(self, number: int | None) -> None:
        if number in (None, signal.SIGCHLD):
            return
        if number == signal.SIGHUP and not _in_terminal():
            self._roll()
        elif self._stopping:
            log.warning("%s again: killing what still runs", signal.Signals(number or 0).name)
            self._kill_all()
        else:
            self._stop(signal.Signals(number or 0))

    def _stop(self, number: signal.Signals) -> None:
        log.info("%s: asking %d processes to end", number.name, len(self._slots))
        self._stopping = True
        for slot in self._slots:
            self._ask_to_end(slot, number)

    def _ask_to_end(self, slot: _Slot, number: signal.Signals) -> None:
        if slot.child:
            slot.child.send(number)
            slot.kill_at = time.monotonic() + self._patience

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.child:
                slot.child.send(signal.SIGKILL)

    # --- what becomes of the processes --------------------------------------------------------------------

    def _look(self) -> None:
        for slot in self._slots:
            if slot.child:
                self._look_at(slot, slot.child)
            elif not self._stopping and time.monotonic() >= slot.start_at:
                self._start(slot)
        self._roll_on()

    def _look_at(self, slot: _Slot, child: _Child) -> None:
        code = child.exit_code()
        if code is not None:
            self._ended(slot, child, code)
        elif slot.kill_at and time.monotonic() >= slot.kill_at:
            log.warning("Process %d (pid %d) does not end: killing it", slot.number, child.pid)
            slot.kill_at = math.inf
            child.send(signal.SIGKILL)

    def _start(self, slot: _Slot) -> None:
        try:
            slot.child = _Child(slot.command, patience=self._patience)
        except OSError as error:
            slot.exit_code = _CANNOT_START
            self._pause(slot, f"could not be started ({error})")
            return
        slot.settled_at = time.monotonic() + SETTLED_AFTER if slot is self._replacing else None
        log.info("Process %d started (pid %d)", slot.number, slot.child.pid)

    def _ended(self, slot: _Slot, child: _Child, code: int) -> None:
        child.bury()
        asked = slot.kill_at is not None or self._stopping
        slot.child, slot.kill_at, slot.exit_code = None, None, code
        text = f"(pid {child.pid}) ended with {_in_words(code)} after {child.age():.1f} s"
        if asked:
            log.info("Process %d %s", slot.number, text)
            slot.start_at = time.monotonic()
            return
        if child.age() >= HEALTHY_AFTER:
            slot.failures = 0
        slot.misuses = slot.misuses + 1 if code == MISUSE and child.age() < QUICK else 0
        self._pause(slot, text)
        if all(each.misuses >= MISUSES for each in self._slots):
            self._give_up()

    def _pause(self, slot: _Slot, what: str) -> None:
        pause = min(FIRST_PAUSE * 2.0 ** min(slot.failures, 10), LONGEST_PAUSE)
        slot.failures += 1
        slot.start_at = time.monotonic() + pause
        log.error("Process %d %s; it starts again in %g s", slot.number, what, pause)
        self._stop_rolling(slot)

    def _give_up(self) -> None:
        log.critical("All processes end at once with exit code 2: the command or its configuration is wrong")
        self._misused = self._stopping = True

    def _exit_code(self) -> int:
        if self._misused:
            return MISUSE
        codes = [slot.exit_code for slot in self._slots if slot.exit_code]
        return (128 - codes[0] if codes[0] < 0 else codes[0]) if codes else 0

    # --- rolling restart ------------------------------------------------------------------------------------

    def _roll(self) -> None:
        if self._stopping:
            return
        log.info("SIGHUP: replacing %d processes, one after the other", len(self._slots))
        self._rolling = deque(self._slots)
        if self._replacing:
            self._replacing.settled_at = None
            self._replacing = None

    def _roll_on(self) -> None:
        """Ask the next one to end as soon as the one before has settled."""
        now, slot = time.monotonic(), self._replacing
        if slot and slot.settled_at and now >= slot.settled_at:
            slot.settled_at = self._replacing = None
        if self._stopping or self._replacing or not self._rolling:
            return
        slot = self._replacing = self._rolling.popleft()
        slot.start_at, slot.failures = now, 0
        self._ask_to_end(slot, signal.SIGTERM)

    def _stop_rolling(self, slot: _Slot) -> None:
        if slot is self._replacing:
            log.error("The rolling restart stops: process %d does not stay alive", slot.number)
            self._rolling.clear()
            slot.settled_at = self._replacing = None


def _in_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _in_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
