"""Pulling without pause: credit, what is in hand, and what was finished a moment ago.

The server is asked for as many messages as there is room for, again as soon as half of the room is free, so
it never waits for us and never sends more than ``window``. Requests do not survive a disconnect, and a
request can be lost without a word; idle heartbeats tell.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from eventdriven_sync.broker import ConsumerSpec, Incoming
from eventdriven_sync.brokers.jetstream import ACK_PREFIX, Ack, incoming, parse_ack

logger = logging.getLogger(__name__)

ACK, NAK, IN_PROGRESS = b"+ACK", b"-NAK", b"+WPI"

_EXPIRES, _HEARTBEAT = 30.0, 5.0
_MISSED = _HEARTBEAT * 2.5
_SILENT, _SECOND_LOOK = 15.0, 2.0
# Nothing has come for so long: nothing is on its way.
_QUIET = 0.2
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
# A server that was killed forgets its last acknowledgements and delivers those messages again at once;
# others come back after ack_wait. What is no longer remembered here the store is asked for.
_REMEMBER = 30.0
_REMEMBER_MOST = 10_000
_OWED_MOST = 50_000


class _Held:
    __slots__ = ("message", "reply")

    def __init__(self, message: Incoming, reply: str) -> None:
        self.message = message
        self.reply = reply


class _Recent:
    """Sequences finished a moment ago, in two generations: dropping a whole dict costs nothing."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._young: dict[int, datetime] = {}
        self._old: dict[int, datetime] = {}
        self._turned_at = 0.0

    def add(self, message: Incoming) -> None:
        self._young[message.sequence] = message.stored_at

    def has(self, sequence: int, stored_at: datetime) -> bool:
        """The time tells a message from its namesake in a stream that was wiped and created again."""
        found = self._young.get(sequence) or self._old.get(sequence)
        return found is not None and found == stored_at

    def turn(self, now: float) -> None:
        if now - self._turned_at > self._keep or len(self._young) > _REMEMBER_MOST:
            self._old, self._young, self._turned_at = self._young, {}, now


class Pull:
    """A running pull of one consumer: the broker's ``Consumption``. Its public methods are thread-safe.

    Args:
        post: runs an action on the loop thread.
        soon: runs an action on the loop thread after what is being read now.
        send: hands a message to the connection, False if there is none.
        retire: lets the broker unsubscribe the inbox of this pull.
        trouble: hears what went wrong.
    """

    def __init__(
        self,
        spec: ConsumerSpec,
        deliver: Callable[[list[Incoming]], None],
        *,
        window: int,
        post: Callable[[Callable[[], object]], None],
        soon: Callable[[Callable[[], object]], object],
        send: Callable[[str, bytes, str], bool],
        retire: Callable[[Pull], None],
        trouble: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.stopped = False
        self.retiring = False
        self._held_back: list[str] = []
        self.opening = False
        self.looking = False
        self.again_at = 0.0
        self._deliver = deliver
        self._window = window
        self._post, self._soon, self._send = post, soon, send
        self._retire, self._trouble = retire, trouble
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream.name}.{spec.name}"
        self._inbox = ""
        self._requested = 0
        self._hand: dict[int, _Held] = {}
        self._arrived: list[Incoming] = []
        self._recent = _Recent(spec.ack_wait + _REMEMBER)
        self._owed: deque[str] = deque(maxlen=_OWED_MOST)
        self._pause = _FIRST_PAUSE
        self._suspected = False
        self._heard_at = self._fed_at = self._signalled_at = time.monotonic()

    # --- any thread

    def finish(self, messages: Sequence[Incoming]) -> None:
        """Acknowledge: these need never come again."""
        self._post(partial(self._finish, messages))

    def release(self, messages: Sequence[Incoming]) -> None:
        """Give back: the broker delivers them again at once, to anybody."""
        self._post(partial(self._release, messages))

    def forget(self, messages: Sequence[Incoming]) -> None:
        """Neither: signals stop, and the broker delivers them again after ``ack_wait``."""
        self._post(partial(self._forget, messages))

    def resize(self, window: int) -> None:
        """Hold at most this many messages in hand from now on."""
        self._post(partial(self._resize, window))

    def stop(self) -> None:
        """Pull no more. What is in hand stays in hand."""
        self._post(self.stop_now)

    @property
    def in_hand(self) -> int:
        """Messages delivered to us and not finished, released or forgotten."""
        return len(self._hand)

    # --- loop thread: the connection

    @property
    def wants_opening(self) -> bool:
        """Whether it is time to verify the consumer, subscribe anew and call ``opened``."""
        due = self.again_at <= time.monotonic()
        return not (self._inbox or self.stopped or self.opening) and due

    @property
    def only_waits(self) -> bool:
        """Whether it has asked, for no more than it may hold, and holds nothing: a look a second will do."""
        return 0 < self._requested <= self._window and not self._hand

    @property
    def wants_look(self) -> bool:
        """Whether nothing came for so long that the consumer should be looked at; see ``looked_at``."""
        asked = bool(self._inbox) and self._requested > 0 and not self.looking
        return asked and time.monotonic() - self._fed_at > _SILENT

    def opened(self, inbox: str) -> None:
        """The consumer is there and ``inbox`` is subscribed: pull from zero."""
        self._inbox = inbox
        self._requested = 0
        self._heard_at = self._fed_at = time.monotonic()
        while self._owed:
            self._send(self._owed.popleft(), ACK, "")
        self._pull()

    def lost(self) -> None:
        """Connection, consumer or requests are gone: open again after a pause."""
        self._inbox = ""
        self._requested = 0

    def failed(self) -> None:
        """It could not be opened, or was refused: wait longer each time."""
        self.lost()
        if self.again_at <= time.monotonic():
            self.again_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LAST_PAUSE)

    def looked_at(self, *, stalled: bool) -> None:
        """What looking at the silent consumer showed; ``stalled``: it should deliver and does not.

        It may deliver in this very moment, so a second look decides.
        """
        now = time.monotonic()
        suspected, self._suspected = self._suspected, stalled
        self._fed_at = now - _SILENT + _SECOND_LOOK if stalled and not suspected else now
        if stalled and suspected:
            self._trouble(f"consumer {self.spec.name} has messages and delivers none; pulling anew")
            self.lost()

    def tick(self) -> None:
        """Signals for what is in hand, and a look at the clock for everything else."""
        now = time.monotonic()
        self._recent.turn(now)
        if now - self._signalled_at >= self.spec.ack_wait / 3:
            self._signalled_at = now
            for held in self._hand.values():
                self._send(held.reply, IN_PROGRESS, "")
        if self._inbox and self._requested and now - self._heard_at > _MISSED:
            self.lost()
        if now - self._fed_at > _QUIET:
            self._take_back_surplus()
        self._pull()

    def arrived(self, subject: str, data: bytes, headers: Mapping[str, str], reply: str) -> None:
        """A message of our inbox: data if and only if its reply acknowledges, else a status.

        A header named Status says nothing: any publisher may send one.
        """
        self._heard_at = time.monotonic()
        ack = parse_ack(reply) if reply.startswith(ACK_PREFIX) else None
        if ack is None:
            self._status(headers)
            return
        self._fed_at = self._heard_at
        self._pause = _FIRST_PAUSE
        self._suspected = False
        self._requested = max(0, self._requested - 1)
        if self.stopped:
            self._give_back(reply)
        elif self._recent.has(ack.sequence, ack.stored_at):
            self._send(reply, ACK, "")
        elif not self._is_in_hand(ack, reply):
            self._take(incoming(ack, subject, data, headers, reply))

    def _is_in_hand(self, ack: Ack, reply: str) -> bool:
        """Redelivered while in hand: only the newest reply counts, and nobody runs it twice."""
        held = self._hand.get(ack.sequence)
        if held is None or held.message.stored_at != ack.stored_at:
            return False
        held.reply = reply
        return True

    def _take(self, message: Incoming) -> None:
        self._hand[message.sequence] = _Held(message, message.reply)
        if not self._arrived:
            self._soon(self._hand_over)
        self._arrived.append(message)

    def _hand_over(self) -> None:
        messages, self._arrived = self._arrived, []
        try:
            self._deliver(messages)
        except Exception:
            logger.exception("messages could not be handed over", extra={"action": "deliver_failed"})
            self._forget(messages)
        self._pull()

    def _status(self, headers: Mapping[str, str]) -> None:
        status = headers.get("Status", "")
        if status == "100":
            self._pause = _FIRST_PAUSE
            return
        unserved = headers.get("Nats-Pending-Messages", "")
        self._requested = max(0, self._requested - int(unserved)) if unserved.isdigit() else 0
        description = headers.get("Description", "")
        if status in ("404", "408") or description.lower().startswith("batch completed"):
            self._pull()
            return
        if status != "503":  # its description is garbled by nats-py when headers follow
            self._trouble(f"consumer {self.spec.name}: {status} {description}")
        self.failed()

    def _pull(self) -> None:
        """Ask for what there is room for, but not for every single free place."""
        free = self._window - self._requested - len(self._hand)
        if not self._inbox or free <= 0 or (self._requested and free * 2 < self._window):
            return
        body = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (free, _EXPIRES * 1e9, _HEARTBEAT * 1e9)
        if self._send(self._next, body, self._inbox):
            if not self._requested:
                self._heard_at = self._fed_at = time.monotonic()
            self._requested += free

    # --- loop thread: what execution says

    def _finish(self, messages: Sequence[Incoming]) -> None:
        for message in messages:
            reply = self._let_go(message)
            if reply:
                self._recent.add(message)
                if not self._send(reply, ACK, ""):
                    self._owed.append(reply)
        self._pull()

    def _release(self, messages: Sequence[Incoming]) -> None:
        for message in messages:
            reply = self._let_go(message)
            if reply:
                self._give_back(reply)
        self._pull()

    def _give_back(self, reply: str) -> None:
        """To be delivered at once, but not to the inbox that is just being unsubscribed: nobody reads it.

        Without a connection it is not sent later: a late one would start a further delivery beside the one
        after ``ack_wait``.
        """
        if self.retiring:
            self._held_back.append(reply)
        else:
            self._send(reply, NAK, "")

    def retired(self) -> None:
        """The server sends nothing more to the old inbox."""
        self.retiring = False
        replies, self._held_back = self._held_back, []
        for reply in replies:
            self._send(reply, NAK, "")

    def _retire_inbox(self) -> None:
        self.lost()
        self.retiring = True
        self._retire(self)

    def _forget(self, messages: Sequence[Incoming]) -> None:
        for message in messages:
            self._let_go(message)
        self._pull()

    def _let_go(self, message: Incoming) -> str:
        held = self._hand.get(message.sequence)
        if held is None or held.message is not message:
            return ""
        del self._hand[message.sequence]
        return held.reply

    def _resize(self, window: int) -> None:
        self._window = window
        if window == 0:
            self._take_back_surplus()
        self._pull()

    def _take_back_surplus(self) -> None:
        """More is asked for than there is room: what comes uses that up, and else another inbox ends it.

        The only way to take requests back is another inbox. What is on its way to the old one may get lost
        in the server, which delivers it again only after ``ack_wait``.
        """
        if self._inbox and self._requested and self._requested + len(self._hand) > self._window:
            self._retire_inbox()

    def stop_now(self) -> None:
        """Pull no more."""
        if not self.stopped:
            self.stopped = True
            self._retire_inbox()
