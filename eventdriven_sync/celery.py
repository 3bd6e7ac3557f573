"""Celery: operations travel into tasks, and a task that runs again publishes the same events again.

``connect(celery_app, bus)`` is all there is to call. From then on

- a task sent by a handler or inside an operation takes the chain along in a message header, and what the
  task publishes belongs to that chain: below the handler's delivery, below the operation;
- a task sent from anywhere else (beat, a script) is an operation of its own, of kind ``celery``;
- ids of what a task publishes are derived from the task's id and from what the events say: a retried or
  redelivered task publishes each event once.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from eventdriven_sync import context
from eventdriven_sync.bus import EventBus
from eventdriven_sync.envelope import derived_id, new_id
from eventdriven_sync.errors import (
    ConfigurationError,
    EventDrivenError,
    InvalidOption,
    MissingExtra,
    shorten,
)
from eventdriven_sync.executor import failure_of
from eventdriven_sync.operations import OperationScope
from eventdriven_sync.outcome import Failure, stack_of
from eventdriven_sync.redaction import Redaction

try:
    from celery import Celery, signals, states  # type: ignore[import-untyped]
    from celery.exceptions import Reject, Retry  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtra('this needs: pip install "eventdriven_sync[celery]"', extra="celery") from error

log = logging.getLogger(__name__)

HEADER = "eventdriven_chain"
KIND = "celery"

_MAX_NAME = 200

Outer = tuple[tuple[ContextVar[Any], Any], ...]


def connect(
    celery_app: Celery,
    bus: EventBus | Callable[[], EventBus],
    *,
    store_all: bool = False,
    redaction: Redaction | None = None,
) -> None:
    """Connect the tasks of a Celery application with a bus. Call it where the application is made.

    Nothing is opened and ``bus`` is not called before a task needs it. Called again for the same
    application it replaces what was said before; it never connects twice.

    Args:
        celery_app: the tasks of this application; those of others in this process are left alone.
        bus: the bus, or what gives it when it is needed, such as ``lambda: events.bus_of(flask_app)``.
        store_all: also store operations of tasks that succeed without having published anything, and every
            operation at its beginning: two writes per task. By default an operation is stored by its first
            event, when it ends having sent other tasks, and when it fails.
        redaction: what is hidden of arguments and errors; the built-in rules by default.

    Raises:
        InvalidOption: an argument is of another type.

    Example:
        >>> celery_app = Celery("shop", broker="redis://localhost:6379/0")  # doctest: +SKIP
        >>> connect(celery_app, bus)  # doctest: +SKIP
    """
    _check(celery_app, bus, redaction)
    # `celery.current_app` and its like stand for an application that tasks name themselves.
    application = getattr(celery_app, "_get_current_object", lambda: celery_app)()
    _connections[application] = Connection(bus, store_all=store_all, redaction=redaction or Redaction())
    signals.before_task_publish.connect(_take_along, dispatch_uid=f"{__name__}.take_along")
    signals.task_prerun.connect(_begin, dispatch_uid=f"{__name__}.begin")
    signals.task_postrun.connect(_end, dispatch_uid=f"{__name__}.end")


def _check(celery_app: object, bus: object, redaction: object) -> None:
    if not isinstance(celery_app, Celery):
        raise InvalidOption(
            f"celery_app is {shorten(celery_app)}: give the celery.Celery application", field="celery_app"
        )
    if not isinstance(bus, EventBus) and not callable(bus):
        raise InvalidOption(f"bus is {shorten(bus)}: give an EventBus, or what returns one", field="bus")
    if redaction is not None and not isinstance(redaction, Redaction):
        raise InvalidOption(f"redaction is {shorten(redaction)}: give a Redaction", field="redaction")


class Connection:
    """What one application was connected with. Thread-safe: it keeps nothing between calls."""

    def __init__(
        self, bus: EventBus | Callable[[], EventBus], *, store_all: bool, redaction: Redaction
    ) -> None:
        self._bus = bus
        self.store_all = store_all
        self._redaction = redaction

    def operation(self, task: Any, args: Any, kwargs: Any) -> OperationScope:
        """The operation that this run of a task is; begun again by a retry it is the same one."""
        bus = self._bus if isinstance(self._bus, EventBus) else self._bus()
        if not isinstance(bus, EventBus):
            raise ConfigurationError(f"the bus given to connect() is {shorten(bus)}: return an EventBus")
        redaction = self._within(bus)
        return bus.operation(
            task.name[:_MAX_NAME],
            kind=KIND,
            variables=redaction.document(_named(task, args, kwargs)),
            details=redaction.document(_details(task.request)),
            idempotency_key=_key(task),
        )

    def failure(self, error: BaseException, task: Any) -> Failure:
        """The error without secrets, those among the task's arguments included."""
        request = task.request
        secrets = self._redaction.secrets(_named(task, request.args, request.kwargs))
        failure = failure_of(error)
        return attrs.evolve(
            failure,
            message=self._redaction.text(failure.message, secrets=secrets),
            traceback=self._redaction.text(stack_of(error, below="celery.app.trace"), secrets=secrets),
        )

    def _within(self, bus: EventBus) -> Redaction:
        """Arguments are shortened to what may be stored, they must not keep a task from running."""
        limit = min(self._redaction.max_bytes, bus.settings.max_payload_bytes)
        return attrs.evolve(self._redaction, max_bytes=limit)


_connections: WeakKeyDictionary[Celery, Connection] = WeakKeyDictionary()


@attrs.define(eq=False, kw_only=True)
class Run:
    """One run of a task, from its prerun to its postrun signal.

    Attributes:
        task: what runs.
        request: Celery's, of this run and no other.
        outer: the context as it was before.
        scope: the operation this task is; None if it goes on with a chain it was sent with.
        led_on: tasks were sent in this operation: they will need it.
        suspended: it is stored that the operation goes on with a retry.
    """

    connection: Connection
    task: Any
    request: Any
    outer: Outer
    scope: OperationScope | None
    led_on: bool = False
    suspended: bool = False

    def is_sent_again(self, headers: Mapping[str, Any]) -> bool:
        """Whether this is a message for a retry of this very task."""
        retries = headers.get("retries") or 0
        return bool(headers.get("id") == self.request.id and retries > (self.request.retries or 0))

    def suspend(self, scope: OperationScope, error: BaseException | None) -> None:
        """The operation goes on with another run. Stored before that can begin: its end must come last."""
        if not self.suspended:
            self.suspended = True
            scope.suspend(self.connection.failure(error, self.task) if error else None)

    def end(self, scope: OperationScope, state: str | None, result: Any) -> None:
        """Record how the operation ended with this run, or that it goes on."""
        error = _error_of(result)
        if state == states.RETRY or (state == states.REJECTED and getattr(result, "requeue", False)):
            self.suspend(scope, error)
        elif error is not None and state not in (states.SUCCESS, states.IGNORED):
            scope.end(self.connection.failure(error, self.task))
        elif self.connection.store_all or self.led_on:
            scope.end()
        else:
            scope.forget()


_running: ContextVar[Run | None] = ContextVar("eventdriven_task", default=None)
_VARIABLES = (context.handling, context.transaction, context.origin, _running)


def _error_of(result: object) -> BaseException | None:
    """What a task raised. Celery's Retry and Reject say what was behind them."""
    # Without a result the signal is sent while the exception passes through: SystemExit, or `throw=True`.
    error = result if isinstance(result, BaseException) else sys.exc_info()[1]
    behind = {Retry: "exc", Reject: "reason"}.get(type(error))
    cause = getattr(error, behind, None) if behind else None
    return cause if isinstance(cause, BaseException) else error


# --- receivers of signals ------------------------------------------------------------------------------
# Celery logs what they raise and goes on: what must not go unnoticed is made to fail in the task itself.


def _take_along(headers: Any = None, **_: Any) -> None:
    """Before a task is sent: the chain it is sent in, if any."""
    if not isinstance(headers, dict) or headers.get(HEADER) is not None:
        return  # a retry brings along what the task came with
    chain, run, origin = context.current_chain(), _running.get(), context.origin.get()
    if not chain or (origin and isinstance(origin.before_publishing, _Refusal)):
        return
    if run is not None and run.scope is not None:
        if run.is_sent_again(headers):  # it will be this operation itself
            _record(run, states.RETRY, partial(run.suspend, run.scope, sys.exc_info()[1]))
            return
        run.led_on |= chain["operation_id"] == run.scope.id
    headers[HEADER] = chain


def _begin(task: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    """Before a task runs."""
    connection = _connections.get(task.app)
    request = task.request
    if connection is None or (request.is_eager and context.current_operation_id()):
        return
    outer: Outer = tuple((variable, variable.get()) for variable in _VARIABLES)
    if not request.is_eager:
        # Nothing that an earlier task left behind in this thread is this task's.
        for variable in _VARIABLES:
            variable.set(None)
    scope = None if _go_on(task) else _begin_operation(connection, task, args, kwargs)
    _running.set(Run(connection=connection, task=task, request=request, outer=outer, scope=scope))


def _end(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """After a task ran, however it ended."""
    run = _running.get()
    if run is None or run.request is not task.request:
        return  # it joined what was there
    try:
        if run.scope is not None:
            _record(run, state, partial(run.end, run.scope, state, retval))
    finally:
        for variable, value in run.outer:
            variable.set(value)


def _record(run: Run, state: str | None, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # Celery would log it without the operation
        operation_id = run.scope.id if run.scope else None
        log.error(
            "Operation %s of task %s ended (%s), which was not stored: %s",
            operation_id,
            _label(run.task),
            state,
            error,
            exc_info=not isinstance(error, EventDrivenError),
            extra={"action": "task_outcome_lost", "operation_id": operation_id},
        )


def _go_on(task: Any) -> bool:
    """Go on with the chain the task was sent in; False if there is none."""
    headers = task.request.headers
    chain = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if not chain and (chain is None or chain == {}):
        return False
    try:
        context.origin.set(context.origin_of(chain, idempotency_key=_key(task)))
    except InvalidOption as error:
        log.warning(
            "Task %s was sent with a header %s that is ignored: %s",
            _label(task),
            HEADER,
            error,
            extra={"action": "task_chain_ignored"},
        )
        return False
    return True


def _begin_operation(connection: Connection, task: Any, args: Any, kwargs: Any) -> OperationScope | None:
    """The task is an operation of its own. If that cannot be, what it publishes fails."""
    try:
        scope = connection.operation(task, args, kwargs)
        scope.begin()
    except Exception as error:  # the user's way to the bus may fail with anything
        log.exception("Task %s cannot begin an operation", _label(task))
        refusal = _Refusal(_label(task), error)
        context.origin.set(context.Origin(operation_id=new_id(), before_publishing=refusal))
        return None
    if connection.store_all:
        _store(scope, task)
    return scope


def _store(scope: OperationScope, task: Any) -> None:
    try:
        scope.store()
    except EventDrivenError as error:
        log.error(
            "Operation %s of task %s began, which was not stored: %s",
            scope.id,
            _label(task),
            error,
            extra={"action": "task_begin_lost", "operation_id": scope.id},
        )


class _Refusal:
    """Publishing raises: events outside their operation would not be the same when the task is retried."""

    def __init__(self, label: str, error: Exception) -> None:
        self._label, self._error = label, error

    def __call__(self) -> None:
        raise ConfigurationError(
            f"task {self._label} has no operation to publish in: {self._error}"
        ) from self._error


# --- what a task says of itself ------------------------------------------------------------------------


def _key(task: Any) -> str:
    """What names the runs of this task. A task that replaced itself keeps its id and is another one."""
    request = task.request
    nesting = request.get("replaced_task_nesting", 0)
    return f"{KIND}:{derived_id(task.name, str(request.id), str(nesting), at='')}"


def _label(task: Any) -> str:
    return f"{task.name}[{str(task.request.id)[:_MAX_NAME]}]"


def _details(request: Any) -> dict[str, Any]:
    delivered = request.delivery_info or {}
    return {
        "task_id": str(request.id)[:_MAX_NAME],
        "queue": delivered.get("routing_key"),
        "retries": request.retries or 0,
    }


def _named(task: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by the names of their parameters: names tell what is secret."""
    try:
        return dict(inspect.signature(task.run).bind_partial(*args or (), **kwargs or {}).arguments)
    except (TypeError, ValueError):  # the call will fail, or the function says nothing of its parameters
        return {"args": f"{len(args or ())} arguments that do not fit the task", **(kwargs or {})}
