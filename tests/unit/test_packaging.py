"""The wheel and the source distribution hold what they must, and nothing of the tests."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from shutil import copyfile, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[2]
BLOG = ROOT / "examples" / "flask_blog"
BUILD = """
import sys, setuptools.build_meta as backend
target = sys.argv[1]  # the backend changes sys.argv
backend.build_sdist(target), backend.build_wheel(target)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution, built from a copy of the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for folder in ("eventdriven_sync", "examples"):
        copytree(ROOT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copyfile(ROOT / name, source / name)
    build = [sys.executable, "-c", BUILD, str(target)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def names(built: Path) -> dict[str, set[str]]:
    [wheel], [source] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as tar:
        inner = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in tar.getnames()}
        return {"wheel": set(archive.namelist()), "source": inner}


def blog_files() -> set[str]:
    files = {path.relative_to(BLOG).as_posix() for path in BLOG.rglob("*") if path.is_file()}
    return {name for name in files if "__pycache__" not in name and not name.startswith("tests/")}


def test_the_wheel_holds_every_module_and_the_marker_of_types(built: Path) -> None:
    package = ROOT / "eventdriven_sync"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    assert names(built)["wheel"] >= modules | {"eventdriven_sync/py.typed"}


def test_wheel_and_source_hold_the_example_with_templates_and_static_files(built: Path) -> None:
    files = blog_files()
    assert {"templates/layout.html", "static/blog.css", "README.md", "users/routes.py"} <= files
    assert names(built)["wheel"] >= {f"eventdriven_sync/examples/flask_blog/{name}" for name in files}
    assert names(built)["source"] >= {f"examples/flask_blog/{name}" for name in files}


def test_no_test_is_in_the_wheel(built: Path) -> None:
    ours = ("eventdriven_sync/testing/",)
    found = {name for name in names(built)["wheel"] if "test" in name.lower() and not name.startswith(ours)}
    assert not found
