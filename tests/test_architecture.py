"""The shape of the package, read from its source: layers, sizes, names, and what importing it does."""

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eventdriven_sync"
NAME = PACKAGE.name

MAX_MODULE = 450
MAX_FUNCTION = 50
MAX_PUBLIC_METHODS = 20

MODEL, EXECUTION, ADAPTERS, FACADE, EDGES = range(1, 6)

# The first matching entry says to which layer a module belongs; a folder stands for everything in it.
LAYERS = {
    EDGES: "__init__ __main__ cli dashboard doctor devserver testing demo processes endpoint flask celery",
    FACADE: (
        "bus publishing confirmed recorded group worker dead_letters operations chain audit documents "
        "topology monitor monitoring health vitals replay archive"
    ),
    ADAPTERS: "brokers stores",
    EXECUTION: (
        "attempt executor batching counting group_retries handlers middleware settling recovery recording "
        "reconciler pool pulse lanes stats watchdog"
    ),
    MODEL: (
        "_version broker codec config context envelope errors events figures fingerprint greenlets heap jobs "
        "outcome payload people queries records redaction retry sensitive shapes store telemetry upcasting"
    ),
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

# The law says "async lives in two modules": the bridge, with its link, and the NATS broker, with its client.
ASYNC_MODULES = {"brokers/bridge.py", "brokers/client.py", "brokers/link.py", "brokers/nats.py"}

FOREIGN = {
    "nats": r"brokers/(client|nats)\.py",
    "pymongo": r"stores/.*|devserver/mongod\.py",
    "bson": r"stores/.*|codec\.py|shapes\.py",
    "flask": r"flask/.*|dashboard/.*",
    "jinja2": r"dashboard/.*",
    "click": r"cli/.*|flask/commands\.py|__main__\.py",
    "rich": r"cli/.*",
    "celery": r"celery\.py",
}

PUBLIC_NAMES = [
    "Batch",
    "Discard",
    "Envelope",
    "EventBus",
    "EventDrivenError",
    "Receipt",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Worker",
    "__version__",
    "continue_chain",
    "current_chain",
    "current_envelope",
    "current_operation_id",
    "event",
]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """What a module imports, at its top or lazily; not what only a type checker sees."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}: relative import in line {node.lineno}"
            assert node.module
            known = node.module == NAME
            yield from (f"{NAME}.{alias.name}" for alias in node.names) if known else [node.module]
        waiting.extend(ast.iter_child_nodes(node))


def layer(module: str) -> int:
    return LAYER_OF[module]


def own_imports(path: Path) -> Iterator[str]:
    """The first part below the package: a module of ours, or a folder."""
    for name in imports(path):
        first = name.removeprefix(f"{NAME}.").partition(".")[0]
        if name.startswith(f"{NAME}.") and first in LAYER_OF:
            yield first


def test_every_module_has_a_layer() -> None:
    unknown = {
        short(path) for path in modules() if short(path).partition("/")[0].removesuffix(".py") not in LAYER_OF
    }
    assert not unknown, f"say in LAYERS where these belong: {unknown}"


@pytest.mark.parametrize("path", modules(), ids=short)
def test_imports_go_downwards_only(path: Path) -> None:
    own = short(path).partition("/")[0].removesuffix(".py")
    upwards = {
        other for other in own_imports(path) if layer(other) > layer(own) and not lazily_picked(own, other)
    }
    assert not upwards, f"{short(path)} (layer {layer(own)}) imports from above: {upwards}"


def lazily_picked(own: str, other: str) -> bool:
    """The package's own names, loaded on first use, and the program's entry."""
    return own == "__init__" or (own, other) == ("__main__", "cli")


@pytest.mark.parametrize(
    "path", [p for p in modules() if short(p).startswith(("brokers/", "stores/"))], ids=short
)
def test_adapters_know_the_model_and_not_execution(path: Path) -> None:
    wrong = {other for other in own_imports(path) if layer(other) == EXECUTION}
    own = short(path).partition("/")[0]
    wrong |= {other for other in own_imports(path) if other in ("brokers", "stores") and other != own}
    assert not wrong


def test_only_the_bus_picks_an_adapter() -> None:
    """The testing package brings its own; the edges may look at servers."""
    pickers = {
        short(path)
        for path in modules()
        if {"brokers", "stores"} & set(own_imports(path))
        and not short(path).startswith(("brokers/", "stores/"))
    }
    below = {each for each in pickers if layer(each.partition("/")[0].removesuffix(".py")) < EDGES}
    assert below == {"bus.py"}


@pytest.mark.parametrize("package", FOREIGN)
def test_foreign_packages_stay_in_their_modules(package: str) -> None:
    users = {short(p) for p in modules() for name in imports(p) if name.partition(".")[0] == package}
    assert not {user for user in users if not re.fullmatch(FOREIGN[package], user)}


@pytest.mark.parametrize("package", ["flask", "rich", "click", "jinja2", "celery", "orjson"])
def test_optional_packages_are_not_needed_to_import_the_library(package: str) -> None:
    for path in modules():
        if layer(short(path).partition("/")[0].removesuffix(".py")) == EDGES:
            continue
        for node in tree(path).body:
            found = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            assert not re.match(rf"(import|from) {package}\b", found), f"{short(path)}: {found}"


def test_async_lives_in_two_modules() -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = {short(path) for path in modules() for node in ast.walk(tree(path)) if isinstance(node, kinds)}
    assert found == ASYNC_MODULES


@pytest.mark.parametrize("path", modules(), ids=short)
def test_modules_functions_and_classes_keep_their_size(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_MODULE, f"{lines} lines: split it"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = code_lines(node)
            assert length <= MAX_FUNCTION, f"{node.name} in line {node.lineno} has {length} lines"
        if isinstance(node, ast.ClassDef):
            public = [
                each.name
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_")
            ]
            assert len(public) <= MAX_PUBLIC_METHODS, f"{node.name} has {len(public)} public methods"


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, the docstring aside: long ones belong to what users read."""
    assert node.end_lineno
    doc = node.body[0] if ast.get_docstring(node) else None
    in_doc = doc.end_lineno - doc.lineno + 1 if doc and doc.end_lineno else 0
    return node.end_lineno - node.lineno + 1 - in_doc


def test_modules_are_named_after_what_they_hold() -> None:
    vague = re.compile(r"(utils?|common|helpers?|base|managers?|misc|tools)")
    assert not [short(path) for path in modules() if vague.fullmatch(path.stem)]


def test_the_public_names_are_these() -> None:
    import eventdriven_sync

    assert sorted(eventdriven_sync.__all__) == PUBLIC_NAMES
    assert all(getattr(eventdriven_sync, name) is not None for name in PUBLIC_NAMES)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = eventdriven_sync.Nothing


def in_a_new_process(code: str) -> dict[str, object]:
    code = textwrap.dedent(code) + "\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return dict(json.loads(done.stdout))


WATCH = """
    import json, os, signal, socket, sys, threading

    opened = []
    real = socket.socket.__init__
    socket.socket.__init__ = lambda self, *a, **k: (opened.append(1), real(self, *a, **k))[1]
    reads = []
    get = os._Environ.__getitem__
    os._Environ.__getitem__ = lambda self, key: (reads.append(key), get(self, key))[1]
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
"""
REPORT = """
    found = {
        "threads": threading.active_count(),
        "sockets": len(opened),
        "environment": [key for key in reads if key.startswith("EVENTDRIVEN")],
        "signals": (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before,
        "drivers": sorted({"nats", "pymongo"} & set(sys.modules)),
    }
"""
NOTHING = {"threads": 1, "sockets": 0, "environment": [], "signals": True, "drivers": []}


def test_importing_the_package_opens_nothing() -> None:
    names = ", ".join(name for name in PUBLIC_NAMES if not name.startswith("_"))
    code = f"from eventdriven_sync import {names}\n"
    assert in_a_new_process(WATCH + "    " + code + REPORT) == NOTHING


def test_a_bus_with_its_handlers_opens_nothing_before_its_first_use() -> None:
    code = """
    from eventdriven_sync import EventBus, event

    @event("User.renamed")
    class Renamed:
        name: str

    bus = EventBus(nats="nats://127.0.0.1:1", mongo="mongodb://127.0.0.1:1/x", namespace="blog")

    @bus.group("Blog").handler(Renamed)
    def handle(event): ...
    """
    assert in_a_new_process(WATCH + code + REPORT) == NOTHING


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_tests_poll_and_never_sleep() -> None:
    """What a handler or a program under test does is its own affair: those are strings and ``tests/apps``."""
    sleeping = []
    for path in sources("tests"):
        if "apps" in path.parts:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
                sleeping.append(f"{path.name}:{node.lineno}")
    assert not sleeping


def test_no_text_names_a_folder_of_somebodys_machine() -> None:
    private = re.compile(r"/(?:work|root|home)/\w|/Users/\w|C:\\Users")
    named = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources("eventdriven_sync", "tests", "benchmarks", "examples")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(line)
    ]
    assert not named


def test_unit_tests_need_no_server() -> None:
    fixtures = {"servers", "own_servers", "nats_url", "mongo_url", "mongo_client"}
    for path in sources("tests/unit"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                wanted = {argument.arg for argument in node.args.args}
                assert not fixtures & wanted, f"{path.name}: {node.name} asks for a server"
