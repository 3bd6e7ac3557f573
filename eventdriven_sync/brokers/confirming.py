"""Sending and waiting for the confirmation: what callers wait for, and their messages on the way.

A call's messages go out together and are confirmed one by one, to an inbox of our own. After a reconnect, and
when no confirmation comes, they are sent again with the same ids, which the server recognises. A caller whose
time is over takes its messages along: nothing is sent for it any more.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from eventdriven_sync.broker import ConsumerSpec, Outgoing
from eventdriven_sync.brokers.jetstream import is_subject
from eventdriven_sync.errors import (
    BrokerError,
    BrokerPermissionDenied,
    EventDrivenError,
    PayloadTooLarge,
    StreamConflict,
    shorten,
)

# Messages sent and not confirmed, of all callers.
WINDOW = 4096

_ANSWER_WAIT = 2.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
# The server counts headers as payload, nats-py does not, and the server cuts the connection.
_HEADER_MARGIN = 1024

Place = tuple[str, str]


class Ticket:
    """One call: its messages, what is known of them, and the lock its thread waits at.

    Attributes:
        queue: which messages are to be sent, or sent again.
        unanswered: which are not known to be accepted or refused.
        sent: which may have reached the server.
        known_as: of those that the stream had, the sequence it has them under.
        errors: why messages were refused.
        abandoned: its thread waits no longer.
    """

    __slots__ = (
        "_lock",
        "abandoned",
        "again_at",
        "consumers",
        "errors",
        "known_as",
        "messages",
        "queue",
        "sent",
        "unanswered",
        "wait",
    )

    def __init__(self, messages: Sequence[Outgoing], consumers: Sequence[ConsumerSpec]) -> None:
        self.messages = messages
        self.consumers = consumers
        self.queue = deque(range(len(messages)))
        self.unanswered = set(self.queue)
        self.sent: set[int] = set()
        self.known_as: dict[int, int] = {}
        self.errors: list[EventDrivenError] = []
        self.abandoned = False
        self.wait = _ANSWER_WAIT
        self.again_at = 0.0
        self._lock = threading.Lock()  # a wake-up call, guards nothing: released when all is known
        self._lock.acquire()

    def wait_for(self, timeout: float) -> bool:
        """Whether all is known in time. Otherwise, also when interrupted, nothing more is sent for it."""
        known = False
        try:
            known = self._lock.acquire(timeout=timeout)
        finally:
            # Before anybody looks at ``sent``: the loop adds to that before it looks at this.
            self.abandoned = not known
        return known

    def settle(self, index: int) -> None:
        """What became of a message is known."""
        self.unanswered.discard(index)
        if not self.unanswered:
            self._wake()

    def refuse(self, index: int, error: EventDrivenError) -> None:
        """A message was refused."""
        self.errors.append(error)
        self.settle(index)

    def give_up(self, error: EventDrivenError) -> None:
        """Nothing more will be known; ``error`` is why what was not sent never will be."""
        self.errors.append(error)
        self._wake()

    def _wake(self) -> None:
        if self._lock.locked():
            self._lock.release()

    def unknown(self) -> list[str]:
        """The ids of the messages that may or may not have been accepted."""
        return [self.messages[index].message_id for index in sorted(self.sent & self.unanswered)]


class Confirming:
    """The calls that wait. Loop thread only, except ``take``.

    Args:
        inbox: prefix of the subjects to which the broker confirms; the rest is the message's number.
        send: hands a message to the connection, False if there is none.
        write: hands commands to the socket at once, False if it takes none.
        prepare: asked to create a missing consumer and its stream; answers by ``ready`` or ``failed``.
        trouble: hears what went wrong.
    """

    def __init__(
        self,
        *,
        inbox: str,
        send: Callable[[str, bytes, str, dict[str, str] | None], bool],
        write: Callable[[bytes], bool],
        prepare: Callable[[ConsumerSpec], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._inbox = inbox
        self._send = send
        self._write = write
        self._prepare = prepare
        self._trouble = trouble
        # Bounded: one ticket per waiting thread.
        self._arrived: deque[Ticket] = deque()
        self._waiting: deque[Ticket] = deque()
        self._flights: dict[int, tuple[Ticket, int]] = {}
        self._number = 0
        self._open = False
        self._ended: EventDrivenError | None = None
        self._max_payload = 0
        # By stream and name. Of this connection: those that are there, when others are asked for again.
        self._ready: set[Place] = set()
        self._ask_at: dict[Place, float] = {}
        self._pauses: dict[str, float] = {}
        self._confirmations: dict[str, bytes] = {}

    # --- the connection

    def opened(self, max_payload: int) -> None:
        """A connection is there: everything unconfirmed goes out again, once its consumers are there."""
        self._open = True
        self._max_payload = max_payload
        self._ready.clear()
        self._ask_at.clear()
        self._requeue(self._flying())
        self.pump()

    def closed(self) -> None:
        """The connection is gone."""
        self._open = False

    def end(self, error: EventDrivenError) -> None:
        """Nothing can be sent any more."""
        self._ended = error
        self.give_up(error)

    def give_up(self, error: EventDrivenError) -> None:
        """Nothing of what waits will be answered: nobody needs to wait for it."""
        for ticket in dict.fromkeys([*self._flying(), *self._waiting]):
            ticket.give_up(error)
        self._flights.clear()
        self._waiting.clear()

    def denied(self, subject: str, error: BrokerPermissionDenied) -> None:
        """The server refuses this subject (it reports it in lower case); nothing more will be heard of it."""
        for number, (ticket, index) in list(self._flights.items()):
            if ticket.messages[index].subject.lower() == subject:
                del self._flights[number]
                ticket.refuse(index, error)

    # --- any thread

    def take(self, ticket: Ticket) -> None:
        """A call; ``pump`` must follow on the loop."""
        self._arrived.append(ticket)

    # --- sending

    def pump(self) -> None:
        """Send what waits, as far as the window allows and the consumers are there, in one piece."""
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        if self._ended is not None:
            self.give_up(self._ended)
        flying: list[tuple[str, Outgoing]] = []
        for _ in range(len(self._waiting) if self._open else 0):
            ticket = self._waiting.popleft()
            if ticket.abandoned or not ticket.unanswered:
                continue
            if self._is_ready(ticket):
                flying += self._fly(ticket)
            if ticket.queue:
                self._waiting.append(ticket)
        if flying:
            self._hand_over(flying)

    def tick(self) -> None:
        """Send again what was not answered, forget what nobody waits for any more."""
        now = time.monotonic()
        for number, (ticket, _) in list(self._flights.items()):
            if ticket.abandoned:
                del self._flights[number]
        if any(ticket.abandoned for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.abandoned)
        if self._open:
            self._requeue([ticket for ticket in self._flying() if ticket.again_at < now])
            self.pump()

    def _flying(self) -> list[Ticket]:
        return list(dict.fromkeys(ticket for ticket, _ in self._flights.values()))

    def _requeue(self, tickets: Sequence[Ticket]) -> None:
        """What of these is not answered waits to be sent again; older calls come first."""
        if not tickets:
            return
        again = set(tickets)
        self._flights = {n: flight for n, flight in self._flights.items() if flight[0] not in again}
        for ticket in reversed(tickets):
            ticket.queue = deque(sorted(ticket.unanswered))
            ticket.wait *= 2
            if ticket not in self._waiting:
                self._waiting.appendleft(ticket)

    def _fly(self, ticket: Ticket) -> list[tuple[str, Outgoing]]:
        """The messages of a call that are sent now, with where they are answered."""
        flights, queue, sent = self._flights, ticket.queue, ticket.sent
        ticket.again_at = time.monotonic() + ticket.wait
        flying: list[tuple[str, Outgoing]] = []
        while queue and len(flights) < WINDOW:
            index = queue.popleft()
            message = ticket.messages[index]
            obstacle = self._obstacle(message)
            if obstacle is not None:
                ticket.refuse(index, obstacle)
                continue
            sent.add(index)
            self._number += 1
            flights[self._number] = (ticket, index)
            flying.append((f"{self._inbox}{self._number}", message))
        # If abandoned, its thread looked at ``sent`` before this, and said that nothing was.
        return [] if ticket.abandoned else flying

    def _hand_over(self, flying: Sequence[tuple[str, Outgoing]]) -> None:
        if not self._write(b"".join([_command(message, reply) for reply, message in flying])):
            for reply, message in flying:
                self._send(message.subject, message.data, reply, {"Nats-Msg-Id": message.message_id})

    def _obstacle(self, message: Outgoing) -> EventDrivenError | None:
        size = len(message.data) + len(message.message_id) + _HEADER_MARGIN
        if size > self._max_payload:
            return PayloadTooLarge(
                f"message {shorten(message.message_id)} has {len(message.data):,} bytes, but max_payload of "
                f"the server is {self._max_payload:,} including headers: raise it in nats-server.conf",
                size=size,
                limit=self._max_payload,
            )
        if not is_subject(message.subject):
            return BrokerError(f"subject {shorten(message.subject)} cannot be published to")
        if not message.message_id.isascii() or not message.message_id.isprintable():
            return BrokerError(f"id {shorten(message.message_id)} cannot be sent: use printable ASCII")
        return None

    # --- consumers

    def _is_ready(self, ticket: Ticket) -> bool:
        missing = [spec for spec in ticket.consumers if _place(spec) not in self._ready]
        for spec in missing:
            if self._ask_at.get(_place(spec), 0.0) <= time.monotonic():
                self._ask_at[_place(spec)] = math.inf
                self._prepare(spec)
        return not missing

    def ready(self, spec: ConsumerSpec) -> None:
        """The consumer is there: send what waited for it."""
        self._ready.add(_place(spec))
        self.pump()

    def failed(self, spec: ConsumerSpec, error: EventDrivenError, *, for_good: bool) -> None:
        """It could not be created: try again a little later, or tell whoever waits for it."""
        self._ask_at[_place(spec)] = time.monotonic() + self._longer(spec.stream.name)
        if not for_good:
            return
        for ticket in [ticket for ticket in self._waiting if spec in ticket.consumers]:
            for index in list(ticket.unanswered):
                ticket.refuse(index, error)

    def _longer(self, stream: str) -> float:
        """The next pause: none, then longer each time."""
        pause = self._pauses.get(stream, 0.0)
        self._pauses[stream] = min(max(pause * 2, _FIRST_PAUSE), _LAST_PAUSE)
        return pause

    # --- answers

    def answered(self, token: str, data: bytes, status: str) -> None:
        """A confirmation, an error, or "no responders" (503) for the message with this number."""
        flight = self._flights.pop(int(token), None) if token.isdigit() else None
        if flight is None:
            return
        ticket, index = flight
        stream = ticket.messages[index].stream.name
        if data.startswith(self._confirmation(stream)) and b"duplicate" not in data:
            if self._pauses:
                self._pauses.pop(stream, None)
            ticket.settle(index)
        elif status == "503":
            self._gone(ticket, index, stream)
        else:
            self._judge(ticket, index, data, int(token))
        if self._waiting:
            self.pump()

    def _confirmation(self, stream: str) -> bytes:
        known = self._confirmations.get(stream)
        if known is None:
            known = self._confirmations[stream] = f'{{"stream":"{stream}"'.encode()
        return known

    def _gone(self, ticket: Ticket, index: int, stream: str) -> None:
        """Nobody responds for the stream: it is missing, or has no leader. Its consumer comes first."""
        for place in [place for place in self._ready if place[0] == stream]:
            self._ready.remove(place)
            self._ask_at[place] = time.monotonic() + self._longer(stream)
        ticket.queue.append(index)
        if ticket not in self._waiting:
            self._waiting.append(ticket)

    def _judge(self, ticket: Ticket, index: int, data: bytes, number: int) -> None:
        """An answer that is not the usual confirmation."""
        message = ticket.messages[index]
        name, answer = message.stream.name, _object(data)
        error = answer.get("error")
        if error is None and answer.get("stream") == name:
            if answer.get("duplicate"):
                ticket.known_as[index] = int(answer.get("seq", 0))
            ticket.settle(index)
        elif error is None:
            other = shorten(answer.get("stream"))
            ticket.refuse(
                index,
                StreamConflict(
                    f"subject {message.subject} is taken by stream {other}, not {name}; delete that stream "
                    "or use another namespace"
                ),
            )
        elif error.get("code") == 503:
            self._trouble(f"stream {name}: {error.get('description')} ({error.get('err_code')})")
            self._flights[number] = (ticket, index)  # sent again when no better answer comes
        else:
            text = f"stream {name} refused {message.message_id}: {error.get('description')}"
            ticket.refuse(index, BrokerError(text, code=error.get("code"), err_code=error.get("err_code")))


def _command(message: Outgoing, reply: str) -> bytes:
    """HPUB as the protocol has it: https://docs.nats.io/reference/reference-protocols/nats-protocol."""
    header = f"NATS/1.0\r\nNats-Msg-Id: {message.message_id}\r\n\r\n"
    size = len(header) + len(message.data)
    begin = f"HPUB {message.subject} {reply} {len(header)} {size}\r\n{header}"
    return b"%b%b\r\n" % (begin.encode(), message.data)


def _place(spec: ConsumerSpec) -> Place:
    return spec.stream.name, spec.name


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
