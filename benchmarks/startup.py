"""How long until something works: the import, a publisher's first receipt, a worker's first event?

Each in a fresh interpreter. Imports are without the extras: orjson, Flask, rich and the others are kept from
being found. The package loads its parts when they are asked for, so that the import of its names is measured
beside that of the package. ``import_ms`` is the statement alone, ``process_ms`` a whole process that does
nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping

from benchmarks import harness
from benchmarks.crew import Crew
from benchmarks.shop import Ordered, bus_on, settings_on
from eventdriven_sync import Settings
from eventdriven_sync.devserver import DevServers

EXTRAS = ("celery", "flask", "jinja2", "orjson", "rich", "waitress")
IMPORT = f"""
import sys, time
sys.modules.update(dict.fromkeys({EXTRAS}))
began = time.perf_counter()
{{statement}}
print((time.perf_counter() - began) * 1000)
"""
RECEIPT = """
import sys, time
from benchmarks.shop import Ordered
from eventdriven_sync import EventBus
nats, mongo, namespace = sys.argv[1:]
began = time.perf_counter()
bus = EventBus(nats=nats, mongo=mongo, namespace=namespace)
bus.publish(Ordered(number=0))
print((time.perf_counter() - began) * 1000)
"""


def importing(statement: str) -> Mapping[str, float]:
    began = time.perf_counter()
    found = _printed(IMPORT.format(statement=statement))
    return {"import_ms": found, "process_ms": (time.perf_counter() - began) * 1000}


def first_receipt(settings: Settings) -> Mapping[str, float]:
    return {"ms": _printed(RECEIPT, settings.nats, settings.mongo, settings.namespace)}


def first_handled(servers: DevServers) -> Mapping[str, float]:
    """An event waits for the worker; from before its process is started to the end of the handler."""
    with bus_on(servers) as bus:
        bus.publish(Ordered(number=0))
        began = time.monotonic()
        with Crew(bus.settings) as crew:
            crew.wait(1)
            return {"ms": (crew.ended_at - began) * 1000}


def _printed(code: str, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=harness.ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    options = harness.options("Start-up")
    with DevServers() as servers:
        known = settings_on(servers)
        first_receipt(known)
        found = harness.interleaved(
            {
                "import": lambda: importing("import eventdriven_sync"),
                "import of names": lambda: importing("from eventdriven_sync import EventBus, Worker, event"),
                "first receipt, new database": lambda: first_receipt(settings_on(servers)),
                "first receipt": lambda: first_receipt(known),
                "first handled event": lambda: first_handled(servers),
            },
            runs=options.runs,
        )
    harness.report("startup", found)


if __name__ == "__main__":
    main()
