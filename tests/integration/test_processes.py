"""The supervisor with real children: restarts, signals, exit codes, and no orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventdriven_sync.errors import ConfigurationError
from eventdriven_sync.processes import COMMAND, run_processes
from tests.polling import eventually

ROOT = Path(__file__).parents[2]

# arguments: directory, changed constants as "NAME=value ...", processes, grace, the child's code
SUPERVISE = """
import logging, sys
from eventdriven_sync import processes
logging.basicConfig(level="INFO", format="%(message)s")
for change in sys.argv[2].split():
    name, _, value = change.partition("=")
    assert hasattr(processes, name)
    setattr(processes, name, float(value))
child = (sys.executable, "-c", sys.argv[5])
count, grace = int(sys.argv[3]), float(sys.argv[4])
sys.exit(processes.run_processes([sys.argv[1]], processes=count, grace=grace, command=child))
"""

# Every child leaves <pid> when it is ready, and <pid>.<signal> when it got a signal.
CHILD = """
import os, pathlib, signal, sys, time
directory = pathlib.Path(sys.argv[1])
def note(number, frame):
    (directory / f"{os.getpid()}.{number}").touch()
    %s
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
(directory / str(os.getpid())).touch()
%s
while True:
    signal.pause()
"""
OBEDIENT = CHILD % ("sys.exit(0)", "")
FAILS_TO_STOP = CHILD % ("sys.exit(7)", "")
STUBBORN = CHILD % ("pass", "")


class Supervisor:
    """A supervisor process and the children it has had."""

    def __init__(self, directory: Path, child: str, processes: int, grace: float, changes: str) -> None:
        self.directory = directory
        arguments = [str(directory), changes, str(processes), str(grace), child]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=(directory / "log").open("wb"),
        )

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")

    def pids(self) -> list[int]:
        """All children so far, oldest first."""
        found = [path for path in self.directory.iterdir() if path.name.isdigit()]
        return [int(path.name) for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def living(self) -> list[int]:
        return [pid for pid in self.pids() if is_alive(pid)]

    def wait_for(self, count: int) -> list[int]:
        """The living children, as soon as there are so many."""
        return eventually(lambda: len(self.living()) == count and self.living(), timeout=20)

    def got(self, pid: int, number: signal.Signals) -> bool:
        return (self.directory / f"{pid}.{int(number)}").exists()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def offspring(pid: int) -> list[int]:
    """Direct children, watchers among them."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[Supervisor] = []

    def start(
        child: str = OBEDIENT, *, processes: int = 2, grace: float = 10, changes: str = ""
    ) -> Supervisor:
        started.append(Supervisor(tmp_path, child, processes, grace, changes))
        return started[-1]

    yield start
    for supervisor in started:
        if supervisor.process.poll() is None:
            supervisor.process.kill()
            supervisor.process.wait()
        for pid in supervisor.living():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_all_end_in_order(supervise: Supervise, number: signal.Signals) -> None:
    supervisor = supervise(processes=3)
    pids = supervisor.wait_for(3)
    descendants = offspring(supervisor.process.pid)
    assert supervisor.end(number) == 0
    assert all(supervisor.got(pid, number) for pid in pids)
    assert not any(is_alive(pid) for pid in [*pids, *descendants])
    assert "asking 3 processes to end" in supervisor.log


def test_a_killed_process_is_started_again_and_the_others_stay(supervise: Supervise) -> None:
    supervisor = supervise()
    killed, other = supervisor.wait_for(2)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not is_alive(killed))
    living = supervisor.wait_for(2)
    assert other in living
    assert killed not in living
    assert f"(pid {killed}) ended with signal 9" in supervisor.log
    assert supervisor.end() == 0


def test_a_process_that_ends_with_0_unasked_is_started_again(supervise: Supervise) -> None:
    supervisor = supervise(processes=1)
    (first,) = supervisor.wait_for(1)
    os.kill(first, signal.SIGTERM)
    eventually(lambda: not is_alive(first))
    supervisor.wait_for(1)
    assert supervisor.end() == 0


def test_a_crash_loop_is_slowed_down_and_never_ends_with_0(supervise: Supervise) -> None:
    supervisor = supervise(
        CHILD % ("", "sys.exit(1)"), processes=1, changes="FIRST_PAUSE=0.05 LONGEST_PAUSE=0.2"
    )
    eventually(lambda: supervisor.log.count("starts again") >= 5, timeout=30)
    pauses = [
        float(line.split(" in ")[1].split()[0]) for line in supervisor.log.splitlines() if " in " in line
    ]
    assert pauses[:5] == [0.05, 0.1, 0.2, 0.2, 0.2]
    eventually(lambda: supervisor.process.poll() is None and not supervisor.living())
    assert supervisor.end() != 0


def test_the_pause_is_short_again_after_a_healthy_life(supervise: Supervise) -> None:
    supervisor = supervise(
        CHILD % ("", "time.sleep(0.3); sys.exit(1)"),
        processes=1,
        changes="FIRST_PAUSE=0.05 LONGEST_PAUSE=0.2 HEALTHY_AFTER=0.2",
    )
    eventually(lambda: supervisor.log.count("starts again in 0.05 s") >= 3, timeout=30)
    assert "in 0.1 s" not in supervisor.log


def test_a_command_that_is_used_wrongly_ends_the_service_with_2(supervise: Supervise) -> None:
    supervisor = supervise(CHILD % ("", "sys.exit(2)"), changes="FIRST_PAUSE=0.05")
    assert supervisor.process.wait(30) == 2
    assert len(supervisor.pids()) >= 6
    assert "wrong" in supervisor.log


def test_one_process_failing_with_2_does_not_end_the_healthy_one(supervise: Supervise) -> None:
    fails_if_second = "(directory / 'first').exists() and sys.exit(2); (directory / 'first').touch()"
    supervisor = supervise(
        CHILD % ("sys.exit(0)", fails_if_second), changes="FIRST_PAUSE=0.05 LONGEST_PAUSE=0.1"
    )
    eventually(lambda: supervisor.log.count("exit code 2") >= 4, timeout=30)
    assert supervisor.process.poll() is None
    assert supervisor.end() == 2


def test_a_process_that_fails_to_stop_makes_the_exit_code(supervise: Supervise) -> None:
    supervisor = supervise(FAILS_TO_STOP)
    supervisor.wait_for(2)
    assert supervisor.end() == 7


def test_who_does_not_end_within_the_grace_period_is_killed(supervise: Supervise) -> None:
    supervisor = supervise(STUBBORN, grace=0.2, changes="EXTRA_GRACE=0.2")
    pids = supervisor.wait_for(2)
    assert supervisor.end() == 128 + signal.SIGKILL
    assert all(supervisor.got(pid, signal.SIGTERM) for pid in pids)
    assert not supervisor.living()
    assert supervisor.log.count("does not end: killing it") == 2


def test_a_second_signal_kills_at_once(supervise: Supervise) -> None:
    supervisor = supervise(STUBBORN, grace=60)
    pids = supervisor.wait_for(2)
    supervisor.process.send_signal(signal.SIGTERM)
    eventually(lambda: all(supervisor.got(pid, signal.SIGTERM) for pid in pids))
    assert supervisor.end() == 128 + signal.SIGKILL
    assert not supervisor.living()


def test_no_process_outlives_a_killed_supervisor(supervise: Supervise) -> None:
    supervisor = supervise()
    pids = supervisor.wait_for(2)
    watchers = [pid for pid in offspring(supervisor.process.pid) if pid not in pids]
    supervisor.process.kill()
    eventually(lambda: not supervisor.living())
    assert all(supervisor.got(pid, signal.SIGTERM) for pid in pids)
    eventually(lambda: not any(is_alive(pid) for pid in watchers))


def test_not_even_a_stubborn_one(supervise: Supervise) -> None:
    supervisor = supervise(STUBBORN, processes=1, grace=0)
    supervisor.wait_for(1)
    supervisor.process.kill()
    eventually(lambda: not supervisor.living())


def test_sighup_replaces_one_process_after_the_other(supervise: Supervise) -> None:
    supervisor = supervise(changes="SETTLED_AFTER=0.3")
    before = supervisor.wait_for(2)
    supervisor.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(supervisor.pids()) == 4 and len(supervisor.living()) == 2, timeout=20)
    assert not set(before) & set(supervisor.living())
    events = [line.split()[2] for line in supervisor.log.splitlines() if line.startswith("Process")]
    assert events == ["started", "started", "(pid", "started", "(pid", "started"]
    assert supervisor.end() == 0


def test_a_rolling_restart_stops_at_a_process_that_does_not_stay(supervise: Supervise) -> None:
    fails_later = "len([p for p in directory.iterdir() if p.name.isdigit()]) > 2 and sys.exit(1)"
    supervisor = supervise(CHILD % ("sys.exit(0)", fails_later))
    supervisor.wait_for(2)
    supervisor.process.send_signal(signal.SIGHUP)
    eventually(lambda: "rolling restart stops" in supervisor.log)
    assert len(supervisor.living()) == 1
    assert supervisor.process.poll() is None
    assert supervisor.end() == 1


def test_the_supervisor_idles_while_nothing_happens(supervise: Supervise) -> None:
    supervisor = supervise(changes="SETTLED_AFTER=0.1")
    supervisor.wait_for(2)
    supervisor.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(supervisor.pids()) == 4 and len(supervisor.living()) == 2, timeout=20)
    assert_idle(supervisor)


def test_the_supervisor_idles_while_the_last_one_takes_its_time(supervise: Supervise) -> None:
    """The others have ended by then, and must not be due for a restart."""
    claim = """
try:
    (directory / "stays").symlink_to(str(os.getpid()))
except FileExistsError:
    pass
stays = os.readlink(directory / "stays") == str(os.getpid())
"""
    supervisor = supervise(CHILD % ("stays or sys.exit(0)", claim), grace=60)
    supervisor.wait_for(2)
    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.wait_for(1)
    assert_idle(supervisor)


def assert_idle(supervisor: Supervisor) -> None:
    spent, until = cpu_ticks(supervisor.process.pid), time.monotonic() + 1.5
    eventually(lambda: time.monotonic() > until)
    assert cpu_ticks(supervisor.process.pid) - spent <= 5


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_command_that_cannot_be_executed_is_tried_again(supervise: Supervise, tmp_path: Path) -> None:
    script = SUPERVISE.replace('(sys.executable, "-c", sys.argv[5])', '("/nonexistent/command",)')
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "FIRST_PAUSE=0.05", "1", "1", ""],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=(tmp_path / "log").open("wb"),
    )
    eventually(lambda: (tmp_path / "log").read_text().count("exit code 127") >= 2)
    process.terminate()
    assert process.wait(10) == 127


def test_each_process_may_have_arguments_of_its_own(tmp_path: Path) -> None:
    tell = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(2)"
    code = run_processes(
        lambda number: [str(tmp_path / f"process-{number}")],
        processes=2,
        command=(sys.executable, "-c", tell),
    )
    assert code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["process-1", "process-2"]


def test_the_default_command_is_this_library() -> None:
    assert list(COMMAND) == [sys.executable, "-m", "eventdriven_sync"]


@pytest.mark.parametrize(
    ("processes", "grace"),
    [(0, 25), (257, 25), (1.5, 25), ("2", 25), (True, 25), (2, -1), (2, "25"), (2, 4000)],
)
def test_wrong_options_are_refused(processes: int, grace: float) -> None:
    with pytest.raises(ConfigurationError, match=r"processes|grace"):
        run_processes(["worker"], processes=processes, grace=grace)
