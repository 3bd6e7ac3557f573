"""Python's garbage collector in a process that only works."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Containers made and not freed before the collector looks at them; Python's own number is 700, since 3.13
# 2,000. With 10,000 the CPU was the same within the noise, and what handlers leave in cycles would pile up.
FIRST = 3_000


@contextmanager
def calm_collector() -> Iterator[None]:
    """Inside the block the collector looks less often, and not at what was there before.

    A worker holds thousands of small values, and its own need no collector to be freed: searching them for
    cycles takes a tenth of its CPU. Cycles that handlers leave are still found. An application that turned
    the collector off, froze something or chose a threshold above ``FIRST`` before keeps what it chose.
    Afterwards all is as it was before. Main thread only.
    """
    before = gc.get_threshold()
    freezes = gc.isenabled() and not gc.get_freeze_count()
    if freezes:
        gc.collect()
        gc.freeze()
    if 0 < before[0] < FIRST:
        gc.set_threshold(FIRST, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if freezes:
            gc.unfreeze()
