"""The rule that keeps this a modular monolith: modules know each other only by events."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flask_blog

ROOT = Path(flask_blog.__file__).parent
MODULES = ("users", "blogs", "comments")
SHARED = {"events", "extensions", "database", "web"}


def parents_imports(path: Path) -> Iterator[str]:
    """What a file imports from the application outside its own module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            yield from [node.module] if node.module else names
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from [str(node.module)] if str(node.module).startswith("flask_blog") else []
        elif isinstance(node, ast.Import):
            yield from [name for name in names if name.startswith("flask_blog")]


@pytest.mark.parametrize("path", [p for name in MODULES for p in sorted((ROOT / name).glob("*.py"))], ids=str)
def test_modules_share_the_events_and_three_tools_and_nothing_else(path: Path) -> None:
    assert set(parents_imports(path)) <= SHARED


@pytest.mark.parametrize("name", sorted(SHARED))
def test_what_is_shared_knows_no_module(name: str) -> None:
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    assert {node.module for node in imported} <= SHARED


def test_each_module_opens_its_own_database_only() -> None:
    opened = {name: (ROOT / name / "data.py").read_text(encoding="utf-8") for name in MODULES}
    assert all(text.count("@module_database(") == 1 for text in opened.values())
    assert all(f'@module_database("{name}")' in text for name, text in opened.items())
