"""Two sizes of a row: a quick one for the usual tests, and that of the catalogue."""

from typing import Any

import attrs
import pytest

from tests.faults.workload import Load

# Longer than any row takes, on a machine that does other things as well.
PATIENCE = 900


@attrs.frozen(kw_only=True)
class Size:
    """How much a row does: ``count`` faults, about ``every`` seconds, while ``load`` goes on."""

    load: Load
    count: int
    every: float


def sizes(
    *, quick: tuple[int, float] | None, full: tuple[int, float], rate: float, takes: float = 1.0, **load: Any
) -> Any:
    """Parametrizes a test with ``size``, each given as (faults, seconds between two of them).

    There are events for as long as faults come, each of which takes about ``takes`` seconds by itself.
    """

    def size(count: int, every: float) -> Size:
        seconds = 3 + count * (1.2 * every + takes)
        return Size(load=Load(events=round(rate * seconds), rate=rate, **load), count=count, every=every)

    patient = pytest.mark.timeout(PATIENCE)
    found = [pytest.param(size(*quick), id="quick", marks=patient)] if quick else []
    found.append(pytest.param(size(*full), id="full", marks=[pytest.mark.faults, patient]))
    return pytest.mark.parametrize("size", found)
