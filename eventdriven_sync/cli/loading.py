"""Finding the bus of ``--app module:bus``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eventdriven_sync.cli.words import did_you_mean, listed
from eventdriven_sync.errors import ConfigurationError, EventDrivenError, shorten

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus


def load_bus(target: str) -> EventBus:
    """The bus that ``module:attribute`` names; the working directory is searched first.

    The attribute may also be an application that has one (``app.extensions["eventdriven"]``), or a function
    without parameters that makes either: ``blog:create_app`` or ``blog:create_app()``.

    Raises:
        ConfigurationError: naming the part that is missing, and what is there instead.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise ConfigurationError(
            f"--app is {shorten(target)}: give module:bus, for example --app blog.events:bus", field="app"
        )
    module = _import(module_name)
    found: Any = module
    for name in path.removesuffix("()").split("."):
        found = _attribute(found, name, module)
    if inspect.isfunction(found):
        found = _made_by(found, target)
    bus = _bus_in(found)
    if bus is None:
        raise ConfigurationError(
            f"--app {target} is {_article(found)}, not an EventBus; {_buses_of(module)}", field="app"
        )
    return bus


def _made_by(factory: Callable[[], Any], target: str) -> Any:
    try:
        return factory()
    except EventDrivenError:
        raise
    except Exception as error:  # foreign code runs
        raise _failed(target, error, doing="calling") from error


def _bus_in(found: Any) -> EventBus | None:
    from eventdriven_sync.bus import EventBus

    extensions = getattr(found, "extensions", None)
    if isinstance(extensions, dict) and "eventdriven" in extensions:
        found = getattr(extensions["eventdriven"], "bus", None)
    return found if isinstance(found, EventBus) else None


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise ConfigurationError(
            f"--app: there is no module {error.name!r} in {here} or among the installed packages"
            f"{did_you_mean(error.name, _modules_here())}",
            field="app",
        ) from error
    except Exception as error:  # foreign code runs while it is imported
        raise _failed(name, error) from error


def _failed(name: str, error: Exception, *, doing: str = "importing") -> ConfigurationError:
    return ConfigurationError(
        f"--app: {doing} {name!r} failed with {type(error).__name__}: {error} (--debug shows where)",
        field="app",
    )


def _attribute(owner: Any, name: str, module: ModuleType) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise ConfigurationError(
            f"--app: {module.__name__!r} has no {name!r}{did_you_mean(name, vars(owner))}; "
            f"{_buses_of(module)}",
            field="app",
        ) from error


def _buses_of(module: ModuleType) -> str:
    from eventdriven_sync.bus import EventBus

    names = [name for name, value in vars(module).items() if isinstance(value, EventBus)]
    return f"its buses: {listed(names, none='it has none')}"


def _article(value: object) -> str:
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        return f"the class {name}"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _modules_here() -> list[str]:
    here = Path.cwd()
    packages = [path.parent.name for path in here.glob("*/__init__.py")]
    return packages + [path.stem for path in here.glob("*.py")]
