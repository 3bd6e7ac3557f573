"""What goes out to the broker: dispatches that nobody waits for, and calls that wait for confirmations.

Both meet the same connection: it comes and goes, it carries their answers, it refuses. Loop thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from eventdriven_sync.broker import ConsumerSpec, StreamSpec
from eventdriven_sync.brokers.confirming import Confirming
from eventdriven_sync.brokers.dispatching import Dispatcher
from eventdriven_sync.brokers.trouble import Trouble
from eventdriven_sync.errors import BrokerUnavailable, ConfigurationError, EventDrivenError

# An answer to a call that waits has it before its number.
_CALL = "c"


class Outbound:
    """The two ways out of one process.

    Args:
        inbox: prefix of the subjects to which the broker answers.
        send: hands a message to the connection, False if there is none.
        write: hands commands to the socket at once, False if it takes none.
        later: calls back on the loop after so many seconds.
        ensure: asked to create a missing stream, or a consumer with its stream; answers by ``ready`` or
            ``failed``.
        trouble: hears what went wrong.
    """

    def __init__(
        self,
        *,
        inbox: str,
        send: Callable[[str, bytes, str, dict[str, str] | None], bool],
        write: Callable[[bytes], bool],
        later: Callable[[float, Callable[[], None]], object],
        ensure: Callable[[StreamSpec, ConsumerSpec | None], None],
        trouble: Trouble,
    ) -> None:
        self._trouble = trouble
        self.dispatcher = Dispatcher(
            inbox=inbox,
            send=send,
            later=later,
            ensure=lambda stream: ensure(stream, None),
            trouble=trouble,
        )
        self.confirming = Confirming(
            inbox=inbox + _CALL,
            send=send,
            write=write,
            prepare=lambda spec: ensure(spec.stream, spec),
            trouble=trouble,
        )

    def opened(self, max_payload: int) -> None:
        """A connection is there."""
        self.dispatcher.opened(max_payload)
        self.confirming.opened(max_payload)

    def closed(self) -> None:
        """The connection is gone."""
        self.dispatcher.closed()
        self.confirming.closed()

    def tick(self) -> None:
        """Look at the clock."""
        self.dispatcher.tick()
        self.confirming.tick()

    def answered(self, token: str, data: bytes, status: str) -> None:
        """What the broker sent to the inbox; ``token`` is the rest of the subject."""
        if token.startswith(_CALL):
            self.confirming.answered(token[len(_CALL) :], data, status)
        else:
            self.dispatcher.answered(token, data, status)

    def denied(self, subject: str) -> None:
        """The server refuses this subject; nothing more will be heard of it."""
        self.dispatcher.denied(subject.lower())
        self.confirming.denied(subject.lower(), self._trouble.forbidden(subject))

    def ready(self, stream: StreamSpec, consumer: ConsumerSpec | None) -> None:
        """What ``ensure`` was asked for is there."""
        if consumer is None:
            self.dispatcher.stream_ready(stream.name)
        else:
            self.confirming.ready(consumer)

    def failed(self, stream: StreamSpec, consumer: ConsumerSpec | None, error: Exception) -> None:
        """What ``ensure`` was asked for could not be created."""
        self._trouble(str(error))
        for_good = isinstance(error, ConfigurationError)
        if consumer is None:
            self.dispatcher.stream_failed(stream.name, str(error), for_good=for_good)
        else:
            known = error if isinstance(error, EventDrivenError) else BrokerUnavailable(str(error))
            self.confirming.failed(consumer, known, for_good=for_good)
