"""Event-driven architecture for Python code that is not async: NATS JetStream and MongoDB, behind threads.

Names are loaded on first use (PEP 562), so importing the package is cheap and opens nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eventdriven_sync._version import __version__

if TYPE_CHECKING:
    from eventdriven_sync.batching import Batch
    from eventdriven_sync.bus import EventBus, Receipt
    from eventdriven_sync.config import Settings
    from eventdriven_sync.context import (
        continue_chain,
        current_chain,
        current_envelope,
        current_operation_id,
    )
    from eventdriven_sync.envelope import Envelope
    from eventdriven_sync.errors import EventDrivenError
    from eventdriven_sync.events import event
    from eventdriven_sync.outcome import Discard, Reject, Retry
    from eventdriven_sync.retry import RetryPolicy
    from eventdriven_sync.worker import Worker

_HOME = {
    "Batch": "batching",
    "Discard": "outcome",
    "Envelope": "envelope",
    "EventBus": "bus",
    "EventDrivenError": "errors",
    "Receipt": "bus",
    "Reject": "outcome",
    "Retry": "outcome",
    "RetryPolicy": "retry",
    "Settings": "config",
    "Worker": "worker",
    "continue_chain": "context",
    "current_chain": "context",
    "current_envelope": "context",
    "current_operation_id": "context",
    "event": "events",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
