"""Streams and consumers: creating what is missing, refusing what differs, reading how they are.

Each function is a conversation with the JetStream API: it yields a question (path and body), receives the
answer, or gets the server's ``ApiError`` thrown in, and returns its result. Who asks does not matter here.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from eventdriven_sync.broker import ConsumerSpec, ConsumerState, StreamSpec, StreamState
from eventdriven_sync.brokers import jetstream
from eventdriven_sync.brokers.jetstream import ApiError
from eventdriven_sync.errors import StreamConflict

logger = logging.getLogger(__name__)

T = TypeVar("T")
Question = tuple[str, Mapping[str, object] | None]
Info = dict[str, Any]
Conversation = Generator[Question, Info, T]


def ensure_stream(spec: StreamSpec) -> Conversation[Info]:
    """The stream's INFO, after creating it if it is missing.

    Raises:
        StreamConflict, UnsafeStream: it exists otherwise than we want it.
    """
    info = yield from _unless_missing((f"STREAM.INFO.{spec.name}", None))
    if info is None:
        info = yield from _create_stream(spec)
    jetstream.check_stream(spec, info["config"])
    return info


def ensure_consumer(spec: ConsumerSpec) -> Conversation[Info]:
    """The consumer's INFO, after creating it and its stream if they are missing.

    Raises:
        StreamConflict, UnsafeStream, ConsumerConflict: something exists otherwise than we want it.
    """
    # First the consumer: what it delivered by then is never ahead of what the stream has afterwards.
    info = yield from consumer_info(spec.stream.name, spec.name)
    stream = yield from ensure_stream(spec.stream)
    if info is not None and jetstream.is_ahead(info, stream):
        logger.warning(
            "consumer %s is ahead of stream %s, which lost messages; it is created anew",
            spec.name,
            spec.stream.name,
            extra={"action": "consumer_ahead"},
        )
        yield from _unless_missing((f"CONSUMER.DELETE.{spec.stream.name}.{spec.name}", None))
        info = None
    if info is None:
        info = yield from _create_consumer(spec)
    jetstream.check_consumer(spec, info["config"])
    return info


def consumer_info(stream: str, name: str) -> Conversation[Info | None]:
    """The consumer's INFO, or None if it or its stream does not exist."""
    return (yield from _unless_missing((f"CONSUMER.INFO.{stream}.{name}", None)))


def consumer_state(stream: str, name: str) -> Conversation[ConsumerState | None]:
    """See ``Broker.consumer_state``."""
    info = yield from consumer_info(stream, name)
    return None if info is None else (yield from _state(info))


def streams(prefix: str) -> Conversation[list[StreamState]]:
    """See ``Broker.streams``."""
    found = []
    for stream in (yield from _pages("STREAM.LIST", "streams")):
        name = stream["config"]["name"]
        if name.startswith(prefix):
            states = []
            for consumer in (yield from _pages(f"CONSUMER.LIST.{name}", "consumers")):
                states.append((yield from _state(consumer)))
            found.append(jetstream.stream_state(stream, tuple(states)))
    return found


def delete_consumer(stream: str, name: str) -> Conversation[bool]:
    """See ``Broker.delete_consumer``."""
    return (yield from _unless_missing((f"CONSUMER.DELETE.{stream}.{name}", None))) is not None


def messages(stream: str, sequences: Sequence[int]) -> Conversation[list[bytes]]:
    """What the stream holds under these sequences, empty where it holds nothing any more."""
    found = []
    for sequence in sequences:
        answer = yield from _unless_missing((f"STREAM.MSG.GET.{stream}", {"seq": sequence}))
        found.append(base64.b64decode(answer["message"].get("data", "")) if answer else b"")
    return found


def account() -> Conversation[Info]:
    """See ``Broker.info``."""
    info = yield "INFO", None
    return {"api_level": info.get("api", {}).get("level", 0), "storage": info.get("storage", 0)}


def _create_stream(spec: StreamSpec) -> Conversation[Info]:
    try:
        info = yield f"STREAM.CREATE.{spec.name}", jetstream.stream_config(spec)
    except ApiError as error:
        if error.err_code == jetstream.STREAM_NAME_IN_USE:  # somebody created it in this moment
            return (yield f"STREAM.INFO.{spec.name}", None)
        if error.err_code == jetstream.SUBJECTS_OVERLAP:
            raise (yield from _overlap(spec)) from error
        raise
    logger.info("stream %s created", spec.name, extra={"action": "stream_created"})
    return info


def _overlap(spec: StreamSpec) -> Conversation[StreamConflict]:
    taken: set[str] = set()
    for subject in spec.subjects:
        answer = yield "STREAM.NAMES", {"subject": subject}
        taken.update(answer.get("streams") or ())
    others = ", ".join(sorted(taken)) or "another stream"
    return StreamConflict(
        f"stream {spec.name} cannot be created: its subjects {', '.join(spec.subjects)} are already taken by "
        f"{others}; delete that stream or change its subjects, or use another namespace",
        name=spec.name,
        field="subjects",
        have=others,
        want=sorted(spec.subjects),
    )


def _create_consumer(spec: ConsumerSpec) -> Conversation[Info]:
    stream = spec.stream.name
    body = {"stream_name": stream, "config": jetstream.consumer_config(spec), "action": "create"}
    try:
        info = yield f"CONSUMER.CREATE.{stream}.{spec.name}", body
    except ApiError as error:
        found = yield from consumer_info(stream, spec.name)
        if error.err_code not in jetstream.CONSUMER_IN_USE or found is None:
            raise
        return found
    logger.info("consumer %s created", spec.name, extra={"action": "consumer_created"})
    return info


def _state(info: Info) -> Conversation[ConsumerState]:
    oldest = (yield from _oldest(info)) if jetstream.has_backlog(info) else None
    return jetstream.consumer_state(info, oldest)


def _oldest(info: Info) -> Conversation[datetime | None]:
    """When the first message after the acknowledged ones was stored: none that can still come is older."""
    config = info["config"]
    first = info.get("ack_floor", {}).get("stream_seq", 0) + 1
    times = []
    for subject in config.get("filter_subjects") or [config.get("filter_subject") or ">"]:
        question = (f"STREAM.MSG.GET.{info['stream_name']}", {"seq": first, "next_by_subj": subject})
        answer = yield from _unless_missing(question)
        if answer is not None:
            times.append(jetstream.parse_time(answer["message"]["time"]))
    return min(times, default=None)


def _unless_missing(question: Question) -> Conversation[Info | None]:
    try:
        return (yield question)
    except ApiError as error:
        if error.err_code in jetstream.MISSING:
            return None
        raise


def _pages(path: str, field: str) -> Conversation[list[Info]]:
    items: list[Info] = []
    while True:
        answer = yield path, {"offset": len(items)}
        page = answer.get(field) or []
        items += page
        if not page or len(items) >= answer.get("total", 0):
            return items
