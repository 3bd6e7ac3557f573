"""``eventdriven demo`` as a program: what it prints, how it ends, and that nothing outlives it."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventdriven_sync.devserver import DevServers, ServerBinaryMissing
from tests.polling import eventually


class Terminal:
    """The demonstration in a terminal of its own, with its data below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {"TMPDIR": str(folder), "NO_COLOR": "1"}
        self._control, own = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eventdriven_sync", "demo"],
            env=self.environment,
            stdin=own,
            stdout=own,
            stderr=own,
            start_new_session=True,
        )
        os.close(own)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self._control, "rb", buffering=0) as control:
            try:
                while data := control.read(4096):
                    self.text += data.decode(errors="replace").replace("\r\n", "\n")
            except OSError:
                return  # how Linux says that the program's side is closed

    def shows(self, text: str, timeout: float = 90) -> None:
        """Wait until it has printed this."""
        eventually(lambda: text in self.text or self.process.poll() is not None, timeout=timeout)
        assert text in self.text, self.text

    def children(self) -> list[int]:
        """The pids of the processes it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def end(self) -> int:
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    try:
        DevServers().nats.find_binary(), DevServers().mongo.find_binary()
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    running = Terminal(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.end()


def test_the_demonstration_shows_failure_retry_and_success_and_stays_up_until_ctrl_c(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.shows("eventdriven operations list")
    printed = terminal.text
    assert re.search(r"worker \d \| Event! - \[User\.nameUpdated\]", printed)
    assert [
        f"Failed {n} times, handler: Comment.rename_author, error: Test Error!!" in printed for n in range(7)
    ] == [
        False,
        *[True] * 5,
        False,
    ]
    assert re.search(r"worker \d \| .*Added to dead letter queue", printed)
    red, green = re.findall(r"^userUpdateNames  http .*?\n\n", printed, re.M | re.S)
    assert re.search(r"Blog\.rename_author  succeeded", red)
    assert re.search(r"Comment\.rename_author  dead \(attempts_exhausted\)  5 attempts", red)
    assert "Comment.userUpdated" not in red
    assert re.search(r"Comment\.rename_author  succeeded.*Comment\.userUpdated", green, re.S)
    assert "nothing lost" in printed
    assert re.search(r"^Everything stays up until Ctrl-C\. The blog: http://127\.0\.0\.1:\d+$", printed, re.M)
    settings = dict(re.findall(r"export (\w+)='(.*)'", printed))
    command = [sys.executable, "-m", "eventdriven_sync", "operations", "list"]
    listed = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=True
    )
    assert "userUpdateNames" in listed.stdout
    dashboard = re.search(r"^The dashboard.*: (http://127\.0\.0\.1:\d+)$", printed, re.M)
    assert dashboard
    with urllib.request.urlopen(f"{dashboard[1]}/operations", timeout=30) as page:
        assert b"userUpdateNames" in page.read()
    children = terminal.children()
    assert len(children) >= 6
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert not [pid for pid in children if alive(pid)]
    assert not list(tmp_path.iterdir())


def test_sigterm_in_the_middle_leaves_no_process_and_no_data(terminal: Terminal, tmp_path: Path) -> None:
    terminal.shows("2. A visitor registers")
    children = terminal.children()
    terminal.process.terminate()
    assert terminal.end() == 143
    assert not [pid for pid in children if alive(pid)]
    assert not list(tmp_path.iterdir())


def test_no_process_survives_the_death_of_the_demonstration(terminal: Terminal) -> None:
    terminal.shows("2. A visitor registers")
    children = terminal.children()
    assert len(children) >= 6
    terminal.process.kill()
    assert terminal.end() == -signal.SIGKILL
    eventually(lambda: not [pid for pid in children if alive(pid)], timeout=20)
