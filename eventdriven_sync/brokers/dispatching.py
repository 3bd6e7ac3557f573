"""Sending without waiting: which messages are on their way, which must be sent again, which are given up.

Messages for one stream that are sent together are one flight, and only the last of them asks for a
confirmation: a stream takes what one connection sends in order, so that the last one's answers for all. A
flight is kept until the broker confirms it. After a reconnect and when no confirmation comes it is sent
again with the same ids, which the server recognises. Whatever cannot be delivered within ``DEADLINE`` is
dropped and counted: it is a stored event, and the reconciler brings it, as what a server lost unnoticed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from eventdriven_sync.broker import Outgoing, StreamSpec
from eventdriven_sync.brokers.jetstream import is_subject
from eventdriven_sync.errors import shorten

# Messages sent and not confirmed; more would only fill buffers.
WINDOW = 4096
# Messages of one flight: what is sent again when a single one is lost.
RUN = 64
# A publisher that goes on has its messages sent in runs so far apart, seconds: each sending wakes this
# process, the server and its consumers, which costs more than a message does. The first one goes at once;
# where more than one gathers, and so many come a second, the runs are further apart.
PACE, STEADY_PACE = 0.002, 0.005
STEADY = 500
# Messages and bytes taken and not settled; beyond it dispatches are dropped.
LIMIT = 20_000
LIMIT_BYTES = 256 * 1024 * 1024
# Without connection for longer than this, dispatches are dropped at once.
BREAKER = 1.0
DEADLINE = 30.0

_ANSWER_WAIT = 2.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
_CALM = _REFUSED_FOR = 10.0
# The server counts headers as payload, nats-py does not, and the server cuts the connection.
_HEADER_MARGIN = 1024


class Flight:
    """Messages of one stream on their way, numbered from ``first`` to ``number``."""

    __slots__ = ("again_at", "deadline", "first", "messages", "number", "stream", "wait")

    def __init__(self, messages: list[Outgoing], first: int, deadline: float) -> None:
        self.messages = messages
        self.stream = messages[0].stream
        self.first = first
        self.number = first + len(messages) - 1
        self.deadline = deadline
        self.wait = _ANSWER_WAIT
        self.again_at = 0.0


class _Stall:
    """A stream that did not respond: what waits for it, and when to ask for it again.

    It outlives the answer: a stream without a leader exists and responds to nobody.
    """

    def __init__(self, stream: StreamSpec) -> None:
        self.stream = stream
        self.flights: deque[Flight] = deque()
        self.asking = False
        self._pause = _FIRST_PAUSE
        self._again_at = 0.0

    def is_due(self, now: float) -> bool:
        return bool(self.flights) and not self.asking and self._again_at <= now

    def ended(self, now: float) -> deque[Flight]:
        """The asking ended, well or not: the next comes later each time, unless all was quiet for long."""
        calm = now - self._again_at > _CALM
        self._pause = _FIRST_PAUSE if calm else min(self._pause * 2, _LAST_PAUSE)
        self._again_at = now + self._pause
        self.asking = False
        return self.flights


class Dispatcher:
    """Everything dispatched and not settled. Loop thread only, except ``take``, ``wake`` and the counters.

    Args:
        inbox: prefix of the subjects to which the broker confirms; the rest is the flight's number.
        send: hands a message to the connection, False if there is none.
        later: calls back on the loop after so many seconds.
        ensure: asked to create a missing stream; answers by ``stream_ready`` or ``stream_failed``.
        trouble: hears what went wrong.
    """

    def __init__(
        self,
        *,
        inbox: str,
        send: Callable[[str, bytes, str, dict[str, str] | None], bool],
        later: Callable[[float, Callable[[], None]], object],
        ensure: Callable[[StreamSpec], None],
        trouble: Callable[[str], None],
    ) -> None:
        self.dropped = 0
        self.settled = 0
        self._guard = threading.Lock()  # guards _waiting's growth, _taken, _taken_bytes and _refused
        self._taken = self._taken_bytes = self._refused = 0
        self._settled_bytes = 0
        self._waiting: deque[Outgoing] = deque()
        self._flights: dict[int, Flight] = {}
        self._aloft = 0  # messages of these flights
        self._awake = False
        self._ran_at = 0.0
        self._stalls: dict[str, _Stall] = {}
        self._forbidden: dict[str, float] = {}
        self._confirmations: dict[str, bytes] = {}
        self._number = 0
        self._inbox = inbox
        self._send = send
        self._later = later
        self._ensure = ensure
        self._trouble = trouble
        self._open = False
        self._closed_at = time.monotonic()
        self._max_payload = 0

    # --- any thread

    def take(self, messages: Sequence[Outgoing], *, down_for: float) -> int:
        """Queue what there is room for and return how many; ``wake`` tells whether ``run`` must follow."""
        size = sum(len(message.data) for message in messages)
        with self._guard:
            room = max(0, LIMIT - (self._taken - self.settled))
            if down_for > BREAKER or self._taken_bytes - self._settled_bytes + size > LIMIT_BYTES:
                room = 0
            taken = messages[:room] if room < len(messages) else messages
            self._waiting.extend(taken)
            self._taken += len(taken)
            self._taken_bytes += size if taken is messages else sum(len(m.data) for m in taken)
            self._refused += len(messages) - len(taken)
        return len(taken)

    def wake(self) -> bool:
        """Whether ``run`` must be called on the loop; if not, it goes on there and sees what was taken."""
        if self._awake:
            return False
        self._awake = True
        return True

    def counts(self) -> tuple[int, int, int]:
        """How many were taken, were dropped, and are not settled yet."""
        return self._taken, self._refused + self.dropped, self._taken - self.settled

    # --- loop thread

    def opened(self, max_payload: int) -> None:
        """A connection is there: send everything unconfirmed again, then what waits."""
        self._open = True
        self._max_payload = max_payload
        for flight in list(self._flights.values()):
            self._fly(flight)
        self.pump()

    def closed(self) -> None:
        """The connection is gone."""
        if self._open:
            self._open = False
            self._closed_at = time.monotonic()

    def run(self) -> None:
        """Send what waits, and go on with what comes until nothing does."""
        # Before the look at what waits: whoever takes something after it finds that nobody is awake.
        self._awake = False
        if self._waiting and self._open:
            self._awake = True
            now = time.monotonic()
            gathered = len(self._waiting)
            steady = gathered > 1 and gathered >= STEADY * (now - self._ran_at)
            self._ran_at = now
            self._later(STEADY_PACE if steady else PACE, self.run)
            self.pump()

    def pump(self) -> None:
        """Send what waits, as far as the window allows."""
        if not self._open:
            return
        now = time.monotonic()
        while self._waiting and self._aloft < WINDOW:
            flight = self._next(now)
            stream = flight.stream.name
            stall = self._stalls.get(stream)
            if stall is not None and stall.flights:
                stall.flights.append(flight)
            elif self._forbidden and self._forbidden.get(stream, 0.0) > now:
                self._drop(flight, f"stream {stream} cannot be used")
            else:
                self._launch(flight)

    def _next(self, now: float) -> Flight:
        """The messages that wait longest, of one stream."""
        messages = [self._waiting.popleft()]
        stream, room = messages[0].stream.name, min(RUN, WINDOW - self._aloft)
        while self._waiting and len(messages) < room and self._waiting[0].stream.name == stream:
            messages.append(self._waiting.popleft())
        flight = Flight(messages, self._number + 1, now + DEADLINE)
        self._number = flight.number
        return flight

    def answered(self, token: str, data: bytes, status: str) -> None:
        """A confirmation, an error, or "no responders" (503) for the flight with this number."""
        flight = self._flights.get(int(token)) if token.isdigit() else None
        if flight is None:
            return
        self._land(flight)
        if status == "503":
            self._stall(flight)
        elif data.startswith(self._confirmation(flight.stream.name)):
            self._settle(flight)
        else:
            self._judge(flight, data)
        if self._waiting:
            self.pump()

    def tick(self) -> None:
        """Send again what was not answered, give up what is too old."""
        now = time.monotonic()
        for flight in list(self._flights.values()):
            if flight.deadline < now:
                self._land(flight)
                self._drop(flight, f"no confirmation within {DEADLINE:g} s")
            elif self._open and flight.again_at < now:
                self._fly(flight)
        for stall in self._stalls.values():
            self._tick_stall(stall, now)
        if not self._open and now - self._closed_at > DEADLINE:
            self._drop_waiting()
        self.pump()

    def stream_ready(self, name: str) -> None:
        """The stream exists now: send what waited for it."""
        stall = self._stalls[name]
        flights, stall.flights = stall.ended(time.monotonic()), deque()
        for flight in flights:
            self._launch(flight)

    def stream_failed(self, name: str, why: str, *, for_good: bool) -> None:
        """It could not be created: try again a little later, or drop what waits for it."""
        stall, now = self._stalls[name], time.monotonic()
        flights = stall.ended(now)
        if for_good:
            self._forbidden[name] = now + _REFUSED_FOR
            stall.flights = deque()
            for flight in flights:
                self._drop(flight, why)

    def denied(self, subject: str) -> None:
        """The server refuses this subject (it reports it in lower case); nothing more will be heard of it."""
        for flight in list(self._flights.values()):
            denied = [message for message in flight.messages if message.subject.lower() == subject]
            if denied:
                self._sort_out(flight, denied, f"no permission to publish to {denied[0].subject}")
                self._fly(flight)  # perhaps it was the last that asked for the confirmation

    def mark(self) -> int:
        """Send what waits; the number that everything dispatched until now stays below."""
        self.pump()
        return self._number + len(self._waiting) + 1

    def settled_below(self, mark: int) -> bool:
        """Whether everything dispatched before ``mark`` was taken is confirmed or given up."""
        oldest = min((flight.first for flight in self._all()), default=self._number + 1)
        return min(oldest, self._number + 1) >= mark

    def _all(self) -> Iterator[Flight]:
        yield from self._flights.values()
        for stall in self._stalls.values():
            yield from stall.flights

    def _launch(self, flight: Flight) -> None:
        self._flights[flight.number] = flight
        self._aloft += len(flight.messages)
        self._fly(flight)

    def _land(self, flight: Flight) -> None:
        del self._flights[flight.number]
        self._aloft -= len(flight.messages)

    def _fly(self, flight: Flight) -> None:
        """Send its messages; only the last one has somewhere to be confirmed to."""
        for message in list(flight.messages):
            if reason := self._obstacle(message):
                self._sort_out(flight, [message], reason)
        if not flight.messages:
            self._land(flight)
            return
        flight.again_at = time.monotonic() + flight.wait
        flight.wait *= 2
        replies = [""] * (len(flight.messages) - 1) + [f"{self._inbox}{flight.number}"]
        for message, reply in zip(flight.messages, replies, strict=True):
            self._send(message.subject, message.data, reply, {"Nats-Msg-Id": message.message_id})

    def _sort_out(self, flight: Flight, messages: list[Outgoing], why: str) -> None:
        """Drop some messages of a flight that is on its way."""
        flight.messages = [each for each in flight.messages if all(each is not other for other in messages)]
        self._aloft -= len(messages)
        self._drop_messages(messages, why)

    def _obstacle(self, message: Outgoing) -> str:
        if not is_subject(message.subject):
            return f"subject {shorten(message.subject)} cannot be published to"
        size = len(message.data) + len(message.message_id) + _HEADER_MARGIN
        if size > self._max_payload:
            return (
                f"message {shorten(message.message_id)} has {len(message.data)} bytes, but max_payload of "
                f"the server is {self._max_payload} including headers: raise it in nats-server.conf"
            )
        return ""

    def _confirmation(self, stream: str) -> bytes:
        known = self._confirmations.get(stream)
        if known is None:
            known = self._confirmations[stream] = f'{{"stream":"{stream}"'.encode()
        return known

    def _judge(self, flight: Flight, data: bytes) -> None:
        """An answer that is not the usual confirmation."""
        name = flight.stream.name
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {}
        error = answer.get("error")
        if error is None and answer.get("stream") == name:
            self._settle(flight)
        elif error is not None and error.get("code") == 503:
            self._trouble(f"stream {name}: {error.get('description')} ({error.get('err_code')})")
            self._flights[flight.number] = flight
            self._aloft += len(flight.messages)
        elif len(flight.messages) > 1:
            # Each for itself now: what is wrong with the last may be wrong with no other.
            for number, message in enumerate(flight.messages, start=flight.first):
                self._launch(Flight([message], number, flight.deadline))
        elif error is None:
            other, subject = shorten(answer.get("stream")), flight.messages[0].subject
            self._drop(flight, f"subject {subject} is taken by stream {other}, not {name}")
        else:
            self._drop(flight, f"stream {name}: {error.get('description')} ({error.get('err_code')})")

    def _stall(self, flight: Flight) -> None:
        stream = flight.stream
        stall = self._stalls.setdefault(stream.name, _Stall(stream))
        stall.flights.append(flight)
        self._tick_stall(stall, time.monotonic())

    def _tick_stall(self, stall: _Stall, now: float) -> None:
        if self._open and stall.is_due(now):
            stall.asking = True
            self._ensure(stall.stream)
        while stall.flights and stall.flights[0].deadline < now:
            self._drop(
                stall.flights.popleft(), f"stream {stall.stream.name} was not there for {DEADLINE:g} s"
            )

    def _drop_waiting(self) -> None:
        while self._waiting:
            self._drop(self._next(self._closed_at), f"no connection for {DEADLINE:g} s")

    def _settle(self, flight: Flight) -> None:
        self.settled += len(flight.messages)
        self._settled_bytes += sum(len(message.data) for message in flight.messages)

    def _drop(self, flight: Flight, why: str) -> None:
        self._drop_messages(flight.messages, why)

    def _drop_messages(self, messages: Sequence[Outgoing], why: str) -> None:
        self.settled += len(messages)
        self._settled_bytes += sum(len(message.data) for message in messages)
        self.dropped += len(messages)
        self._trouble(f"dispatch dropped: {why}")
