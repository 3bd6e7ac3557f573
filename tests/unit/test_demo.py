"""The parts of the demonstration that need no server."""

import sys
import urllib.error
from pathlib import Path

import pytest

from eventdriven_sync import demo
from eventdriven_sync.demo import stage
from eventdriven_sync.demo.stage import Child, Stage, StageFailed, blog_folder
from eventdriven_sync.demo.story import Unexpected
from eventdriven_sync.devserver import ServerBinaryMissing
from eventdriven_sync.errors import ConfigurationError
from tests.polling import eventually

ROOT = Path(__file__).parents[2]
NOWHERE = {"EVENTDRIVEN_NATS": "nats://127.0.0.1:1", "EVENTDRIVEN_MONGO": "mongodb://127.0.0.1:1/x"}


def child(code: str, lines: list[str]) -> Child:
    return Child("one", [sys.executable, "-c", code], environment={}, echo=lines.append)


def test_a_process_tells_its_lines_under_its_name_and_its_exit_code() -> None:
    lines: list[str] = []
    running = child("import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)", lines)
    assert running.wait(20) == 3
    assert sorted(lines) == ["   one | a", "   one | b"]
    assert not running.running


def test_a_process_that_does_not_end_is_ended_by_force() -> None:
    lines: list[str] = []
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    stubborn = child(code, lines)
    eventually(lambda: lines == ["   one | on"])
    stubborn.terminate()
    assert stubborn.wait(0.1) is None
    stubborn.await_end(0.1)
    assert stubborn.process.returncode == -9


def test_in_a_clone_the_example_is_beside_the_package() -> None:
    assert blog_folder() == ROOT / "examples"


def test_in_an_installed_package_the_example_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "__file__", str(tmp_path / "package" / "demo" / "stage.py"))
    with pytest.raises(ConfigurationError, match="flask_blog is neither in"):
        blog_folder()
    inside = tmp_path / "package" / "examples" / "flask_blog" / "__init__.py"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert blog_folder() == inside.parents[1]


def test_settings_of_other_applications_do_not_reach_the_blog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTDRIVEN_EMBEDDED", "1")
    monkeypatch.setenv("FLASK_SECRET_KEY", "theirs")
    environment = stage._environment(NOWHERE)
    assert {"EVENTDRIVEN_EMBEDDED", "FLASK_SECRET_KEY"}.isdisjoint(environment)
    assert environment.items() >= NOWHERE.items()


def test_a_process_that_cannot_start_is_named_with_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_APP", "no_such_blog:create_app")
    with pytest.raises(StageFailed, match=r"'(web|worker \d)' ended by itself; it printed:\n.*no_such_blog"):
        Stage(NOWHERE, echo=lambda line: None).__enter__()


def test_a_wrong_result_is_printed_and_gives_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**given: object) -> None:
        raise Unexpected("Expected dead letters: 1, found: 0")

    lines: list[str] = []
    monkeypatch.setattr(demo, "_perform", fail)
    assert demo.run(echo=lines.append) == 1
    assert lines == ["The demonstration failed. Expected dead letters: 1, found: 0"]


def test_a_missing_server_is_the_callers_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**given: object) -> None:
        raise ServerBinaryMissing("mongod was not found")

    monkeypatch.setattr(demo, "_perform", missing)
    with pytest.raises(ServerBinaryMissing):
        demo.run(echo=lambda line: None)


@pytest.mark.parametrize(("once", "code"), [(True, 1), (False, 0)])
def test_ctrl_c_ends_it_in_order(monkeypatch: pytest.MonkeyPatch, once: bool, code: int) -> None:
    def interrupted(**given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_perform", interrupted)
    assert demo.run(once=once, echo=lambda line: None) == code


def test_an_error_of_the_blog_is_an_unexpected_result() -> None:
    class Broken:
        def post(self, path: str, **values: str) -> None:
            raise urllib.error.URLError("refused")

    story = demo.Story(
        Stage(NOWHERE, echo=print), demo._bus({**NOWHERE, "EVENTDRIVEN_NAMESPACE": "x"}), print
    )
    story._ada = Broken()  # type: ignore[assignment]
    with pytest.raises(Unexpected, match="Expected the blog to answer"):
        story.tell()
