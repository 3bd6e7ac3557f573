"""NATS's client protocol where we write and read it ourselves, because nats-py does it message by message.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

_ONE_ID = re.compile(rb"NATS/1\.0\r\nNats-Msg-Id: ?([!-~]+)\r\n\r\n")

Message = tuple[str, bytes, str, Mapping[str, str] | None]
"""Subject, payload, reply subject (may be empty) and headers of what is sent."""

Hear = Callable[[str, bytes, Mapping[str, str], str], None]
"""What is told of each message that comes: subject, payload, headers and reply subject."""


def published(message: Message) -> bytes:
    """The command that publishes a message. Its subjects were checked before.

    Raises:
        ValueError: a header holds a line break.
    """
    subject, data, reply, headers = message
    if headers is None:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
    if head.count(b"\n") != len(lines) + 2:
        raise ValueError(f"a header of a message to {subject} holds a line break")
    sizes = (len(head), len(head) + len(data))
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), *sizes, head, data)


def only_id(headers: bytes) -> dict[str, str] | None:
    """The headers of a message that has none but its id, as ours do; None of any other."""
    found = _ONE_ID.fullmatch(headers)
    return {"Nats-Msg-Id": found[1].decode()} if found else None


class Listeners:
    """Who hears the messages of which subscription, as they are read. Loop thread only."""

    def __init__(self) -> None:
        self._hearing: dict[int, Hear] = {}

    def add(self, sid: int, hear: Hear) -> None:
        """From now on."""
        self._hearing[sid] = hear

    def remove(self, sid: int) -> None:
        """No longer."""
        self._hearing.pop(sid, None)

    def tell(self, sid: int, subject: bytes, data: bytes, headers: Mapping[str, str], reply: bytes) -> bool:
        """Whether somebody heard it. Never raises: that would end nats-py's reader without a word."""
        hear = self._hearing.get(sid)
        if hear is None:
            return False
        try:
            hear(text_of(subject), data, headers, text_of(reply))
        except Exception:
            logger.exception("a message could not be taken", extra={"action": "message_failed"})
        return True


def text_of(subject: bytes) -> str:
    """A subject as text, whatever its bytes are."""
    return subject.decode(errors="backslashreplace")
