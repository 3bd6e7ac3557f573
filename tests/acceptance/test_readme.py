"""The README is true: its files and commands are taken from its text and run on real servers."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventdriven_sync.devserver import DevServers
from tests.polling import eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```console\n(.*?)```", README, re.S)).splitlines()
SOURCES = re.findall(r"```python\n(.*?)```", README, re.S)
FILES = {text.splitlines()[0].removeprefix("# "): text for text in SOURCES}


@pytest.fixture
def shell(
    tmp_path: Path, servers: DevServers, namespace: str, database_name: str, mongo_url: str
) -> Iterator["Shell"]:
    """A directory with the README's files, and the environment that ``eventdriven dev up`` prints."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    running = Shell(tmp_path, servers.settings(namespace=namespace, database=database_name))
    yield running
    running.stop()


class Shell:
    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.environment = (
            os.environ | settings | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
        )
        self.background: list[subprocess.Popen[str]] = []

    def words(self, command: str) -> list[str]:
        words = shlex.split(command)
        return [sys.executable, "-m", "eventdriven_sync", *words[1:]] if words[0] == "eventdriven" else words

    def run(self, command: str, *, code: int = 0) -> str:
        done = subprocess.run(
            self.words(command),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str) -> "Path":
        log = self.folder / f"background-{len(self.background)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self.words(command),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.background.append(process)
        return log

    def stop(self) -> None:
        for process in self.background:
            process.terminate()
        for process in self.background:
            process.wait(timeout=40)


def command(beginning: str, *, nth: int = 0) -> str:
    return [line for line in COMMANDS if line.startswith(beginning)][nth]


def test_ci_runs_the_test_command_of_the_readme_and_nothing_weaker() -> None:
    assert command("pip install", nth=0) == 'pip install -e ".[demo]" && eventdriven demo'
    tests = command("pip install", nth=1)
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_five_minute_tour_does_what_the_readme_says(shell: Shell) -> None:
    log = shell.start(command("eventdriven --app blog:bus worker"))
    eventually(lambda: "runs Blog.update_posts" in log.read_text(), timeout=30)
    operation, *deliveries = shell.run(f"{sys.executable} rename.py").splitlines()
    assert sorted(deliveries) == ["Blog.update_posts succeeded 0", "Comment.update_comments dead 3"]
    assert "Failed 3 times, handler: Comment.update_comments, error: the comments are down" in log.read_text()
    assert "Added to dead letter queue" in log.read_text()
    chain = command("eventdriven --app blog:bus chain").replace("OPERATION", operation)
    assert "dead" in shell.run(chain)
    assert "Comment.update_comments" in shell.run(command("eventdriven --app blog:bus dead list"))
    shell.run(command("touch"))
    shell.run(command("eventdriven --app blog:bus dead retry"))
    eventually(lambda: "comments now by Ada Lovelace" in log.read_text(), timeout=30)
    eventually(lambda: "dead" not in shell.run(chain), timeout=30)
    assert log.read_text().count("posts now by Ada Lovelace") == 1
    shell.run("eventdriven --app blog:bus audit")


def test_the_test_of_the_readme_passes(shell: Shell) -> None:
    assert "1 passed" in shell.run(f"{sys.executable} -m pytest -q -p no:cacheprovider test_blog.py")


def test_everything_else_the_readme_shows_runs(shell: Shell) -> None:
    shell.run(f"{sys.executable} more.py")
    assert "User.nameUpdated" in shell.run("eventdriven --app more:bus events list")


def test_the_flask_application_of_the_readme_serves_and_handles(shell: Shell) -> None:
    log = shell.start("eventdriven --app web:create_app worker")
    eventually(lambda: "runs Mailing.greet" in log.read_text(), timeout=30)
    request = (
        "from web import create_app; answer = create_app().test_client().post('/users/42/name', "
        "json={'first_name': 'Ada', 'last_name': 'Lovelace'}); print(answer.headers['X-Operation-Id'])"
    )
    operation = shell.run(f'{sys.executable} -c "{request}"').strip()
    eventually(lambda: "web greets Ada" in log.read_text(), timeout=30)
    shown = shell.run(f"{sys.executable} -m flask --app web:create_app events chain {operation}")
    assert "Mailing.greet" in shown
    assert "rename" in shown


def test_every_command_in_the_table_exists(shell: Shell) -> None:
    table = re.findall(r"^\| (.*?) \|", README, re.M)
    named = {shlex.split(part)[0] for row in table for part in re.findall(r"`eventdriven ([a-z ]+)", row)}
    help_text = shell.run("eventdriven --help")
    assert named >= {"worker", "dead", "audit", "doctor"}
    assert all(name in help_text for name in named)
