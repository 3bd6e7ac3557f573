"""Fingerprints: one for each cause, whatever ids, numbers and values stand in the message."""

import pytest

from eventdriven_sync.fingerprint import fingerprint, normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user 42 not found", "user 7 not found"),
        ("took 1.5 s", "took 20,000.25 s"),
        ("offset -3", "offset 12"),
        ("no key 'a b'", "no key 'it'"),
        ('field "name" missing', 'field "first name" missing'),
        ("table `users` is gone", "table `posts` is gone"),
        ("order 65f0a1b2c3d4e5f6a7b8c9d0 is closed", "order 65f0a1b2c3d4e5f6a7b8c9d1 is closed"),
        ("at 0x7f437a44f210", "at 0x7f437a44ffff"),
        (
            "job 0af76519-16cd-43dd-8448-eb211c80319c failed",
            "job b7ad6b71-6920-4331-9a61-1f3b3c4d5e6f failed",
        ),
        ("connect 10.0.0.1:5432", "connect 192.168.7.12:5433"),
        ("a  b\nc", "a b c"),
        ("x" * 300, "x" * 999),
        ("row '" + "a" * 500 + "' is bad", "row 'b' is bad"),
    ],
)
def test_failures_that_differ_in_values_have_one_fingerprint(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert fingerprint("KeyError", one) == fingerprint("KeyError", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user not found", "order not found"),
        ("facade is gone", "decade is gone"),
        ("the users' list of writers' rows", "the users' loss of writers' rows"),
        ("ab c", "a bc"),
        ("", "1"),
    ],
)
def test_other_words_are_another_fingerprint(one: str, other: str) -> None:
    assert fingerprint("KeyError", one) != fingerprint("KeyError", other)


def test_another_class_of_error_is_another_fingerprint() -> None:
    assert fingerprint("KeyError", "x") != fingerprint("ValueError", "x")
    assert fingerprint("Key", "Error") != fingerprint("KeyError", "")


@pytest.mark.parametrize("text", ["", "\ud800", "\x00", "'" * 1000, "0" * 100_000, "a'" * 500])
def test_any_text_has_a_fingerprint(text: str) -> None:
    assert len(fingerprint(text, text)) == 12
