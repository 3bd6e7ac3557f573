"""Edited payloads: what is hidden from who edits stays what it was."""

import json
from typing import Any

import pytest

from eventdriven_sync.dashboard.editing import MAX_DEPTH, MAX_TEXT, edited_payload
from eventdriven_sync.errors import InvalidOption

STORED: dict[str, Any] = {
    "name": "Ada",
    "password": "hunter2",
    "cards": [{"number": "4111"}, {"number": "4242"}],
    "note": "token=abc and more",
}
SHOWN: dict[str, Any] = {
    "name": "Ada",
    "password": "***",
    "cards": [{"number": "***"}, {"number": "***"}],
    "note": "token=*** and more",
}


def edited(**changes: Any) -> dict[str, Any]:
    return edited_payload(json.dumps(SHOWN | changes), shown=SHOWN, stored=STORED)


def test_what_was_left_alone_is_what_is_stored() -> None:
    assert edited() == STORED
    assert edited(name="Bob") == STORED | {"name": "Bob"}


def test_hidden_values_inside_lists_and_texts_are_kept() -> None:
    cards = [{"number": "***", "owner": "Ada"}, {"number": "1234"}]
    assert edited(cards=cards)["cards"] == [{"number": "4111", "owner": "Ada"}, {"number": "1234"}]
    assert edited(note="token=*** and more")["note"] == STORED["note"]


def test_a_hidden_value_may_be_replaced_or_taken_out() -> None:
    assert edited(password="new")["password"] == "new"
    assert "password" not in edited_payload(json.dumps({"name": "Ada"}), shown=SHOWN, stored=STORED)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"other": "***"}, "payload.other"),
        ({"cards": [{"number": "***"}]}, "payload.cards.0.number"),
        ({"note": "token=*** and less"}, "payload.note"),
    ],
)
def test_a_mask_that_would_become_the_value_is_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidOption, match=path):
        edited(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[1]",
        "null",
        '"x"',
        "x" * (MAX_TEXT + 1),
        '{"a": ' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        "[" * 100_000,
    ],
)
def test_what_is_no_payload_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="payload"):
        edited_payload(text, shown=SHOWN, stored=STORED)


def test_numbers_and_truth_values_are_not_mistaken_for_each_other() -> None:
    found = edited_payload('{"flag": true}', shown={"flag": 1}, stored={"flag": 1})
    assert found["flag"] is True
