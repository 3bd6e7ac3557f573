"""Handlers that are the death of their process, or never return, at some numbers."""

import ctypes
import resource
import threading

from eventdriven_sync import EventBus, current_envelope
from tests.faults.journal import Journal
from tests.faults.workload import Load, WorkAsked

HANDLER = "Mail.send"
SEGFAULT, EAT, HANG = "segfault", "eat", "hang"
TIMEOUT = 2.0


def build(bus: EventBus, journal: Journal, load: Load) -> None:
    """``options``: what is done (``how``) at which numbers (``at``)."""
    how, at = load.options["how"], set(load.options["at"])

    @bus.group("Mail").handler(WorkAsked, retry=load.retry(), timeout=TIMEOUT)
    def send(asked: WorkAsked) -> None:
        envelope = current_envelope()
        assert envelope is not None
        journal.note("start", handler=HANDLER, id=envelope.id)
        if asked.number in at:
            die(how)
        threading.Event().wait(load.shortest)
        journal.note("done", handler=HANDLER, id=envelope.id)


def die(how: str) -> None:
    """Nobody can catch what this does, except the last."""
    if how == SEGFAULT:
        ctypes.string_at(0)
    elif how == EAT:
        # More than the limit allows (ulimit -v), by a library that does not look at what it was given.
        resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        ctypes.memset(libc.malloc(ctypes.c_size_t(10**11)), 0, 10**11)
    else:
        threading.Event().wait()
