"""What every ``People`` promises, on the memory store and on MongoDB."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from eventdriven_sync.errors import StoreUnavailable
from eventdriven_sync.people import MAX_SESSIONS, People, Session, User, UserChange
from tests.contracts.samples import Samples
from tests.contracts.stages import StoreStage


@pytest.fixture
def people(stage: StoreStage) -> People:
    return stage.store.people


@pytest.fixture
def name(given: Samples) -> str:
    return f"ada-{given.tag}"


def user(given: Samples, name: str, **changes: Any) -> User:
    ada = User(name=name, password="scrypt:…", role="viewer", created_at=given.at(-900))
    return attrs.evolve(ada, **changes)


def session(given: Samples, name: str, number: int = 1, **changes: Any) -> Session:
    first = Session(id=f"{name}-{number}", user=name, role="viewer", started_at=given.now)
    return attrs.evolve(first, **changes)


# --- users ----------------------------------------------------------------------------------------------


def test_a_user_is_stored_with_the_servers_time(people: People, given: Samples, name: str) -> None:
    ada = user(given, name, role="admin", payloads=True, groups=("Blog", "Comment"), created_by="cli:root")
    assert people.add_user(ada)
    stored = people.user(name)
    assert stored is not None
    assert abs((stored.created_at - given.now).total_seconds()) < 5
    assert stored == attrs.evolve(ada, created_at=stored.created_at)
    assert people.user(f"{name}-other") is None


def test_a_name_is_taken_once(people: People, given: Samples, name: str) -> None:
    assert people.add_user(user(given, name))
    assert not people.add_user(user(given, name, role="admin", password="other"))
    stored = people.user(name)
    assert stored is not None
    assert (stored.role, stored.password) == ("viewer", "scrypt:…")


def test_of_many_who_take_a_name_at_once_one_gets_it(people: People, given: Samples, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda role: people.add_user(user(given, name, role=role)), "abcdefgh"))
    assert taken.count(True) == 1


def test_users_are_listed_by_name(people: People, given: Samples, name: str) -> None:
    for number, state in ((2, "active"), (1, "waiting"), (3, "disabled")):
        people.add_user(user(given, f"{name}-{number}", state=state))

    def listed(**which: Any) -> list[str]:
        found = people.users(limit=10_000, **which)
        return [each.name[-1] for each in found if each.name.startswith(f"{name}-")]

    assert listed() == ["1", "2", "3"]
    assert listed(state="waiting") == ["1"]
    assert len(people.users(limit=2)) == 2


def test_users_are_counted_by_role_and_state(people: People, given: Samples, name: str) -> None:
    role = f"role-{given.tag}"
    for number, state in ((1, "active"), (2, "waiting")):
        people.add_user(user(given, f"{name}-{number}", state=state, role=role))
    assert people.count_users(role=role) == 2
    assert people.count_users(role=role, state="active") == 1
    assert people.count_users() >= 2


def test_a_change_leaves_the_rest_as_it_is(people: People, given: Samples, name: str) -> None:
    people.add_user(user(given, name, groups=("Blog",)))
    before = people.user(name)
    assert before is not None
    after = people.change_user(name, UserChange(role="operator", state="disabled", groups=()))
    assert after == attrs.evolve(before, role="operator", state="disabled", groups=())
    assert people.user(name) == after
    assert people.change_user(name, UserChange()) == after
    assert people.change_user(f"{name}-other", UserChange(role="admin")) is None
    assert people.user(f"{name}-other") is None


def test_a_sign_in_is_noted(people: People, given: Samples, name: str) -> None:
    people.add_user(user(given, name))
    people.signed_in(name)
    people.signed_in(f"{name}-other")
    stored = people.user(name)
    assert stored is not None
    assert stored.signed_in_at is not None
    assert abs((stored.signed_in_at - given.now).total_seconds()) < 5
    assert people.user(f"{name}-other") is None


def test_a_password_is_not_shown(given: Samples, name: str) -> None:
    assert "scrypt" not in repr(user(given, name))
    assert "scrypt" not in repr(UserChange(password="scrypt:…"))


# --- sessions -------------------------------------------------------------------------------------------


def test_a_session_is_open_until_it_is_ended(people: People, given: Samples, name: str) -> None:
    opened = session(given, name, address="192.0.2.7")
    people.open_session(opened, idle=60, lifetime=600)
    found = people.session(opened.id)
    assert found is not None
    assert found.quiet < 5
    assert attrs.evolve(found, started_at=opened.started_at, quiet=0) == opened
    for _ in range(2):
        people.end_session(opened.id)
        assert people.session(opened.id) is None


def test_a_session_that_is_not_used_ends(
    stage: StoreStage, people: People, given: Samples, name: str
) -> None:
    opened = session(given, name)
    people.open_session(opened, idle=0.2, lifetime=600)
    stage.pass_time(0.21)
    assert people.session(opened.id) is None
    people.prolong(opened.id, idle=60)
    assert people.session(opened.id) is None


def test_a_session_that_is_used_lives_on(
    stage: StoreStage, people: People, given: Samples, name: str
) -> None:
    opened = session(given, name)
    people.open_session(opened, idle=1.0, lifetime=600)
    stage.pass_time(0.1)
    quiet = people.session(opened.id)
    assert quiet is not None
    assert quiet.quiet >= 0.09
    people.prolong(opened.id, idle=60)
    stage.pass_time(1.0)
    assert people.session(opened.id) is not None


def test_using_a_session_does_not_prolong_its_lifetime(
    stage: StoreStage, people: People, given: Samples, name: str
) -> None:
    opened = session(given, name)
    people.open_session(opened, idle=60, lifetime=0.3)
    people.prolong(opened.id, idle=60)
    stage.pass_time(0.31)
    assert people.session(opened.id) is None


def test_all_sessions_of_a_user_end_together(people: People, given: Samples, name: str) -> None:
    for number in (1, 2):
        people.open_session(session(given, name, number), idle=60, lifetime=600)
    other = session(given, f"{name}-other")
    people.open_session(other, idle=60, lifetime=600)
    assert people.end_sessions(name) == 2
    assert people.end_sessions(name) == 0
    assert people.session(f"{name}-1") is None
    assert people.session(other.id) is not None


def test_of_one_user_the_newest_sessions_stay(
    stage: StoreStage, people: People, given: Samples, name: str
) -> None:
    for number in range(MAX_SESSIONS + 2):
        people.open_session(session(given, name, number), idle=60, lifetime=600)
        stage.pass_time(0.002)
    alive = [n for n in range(MAX_SESSIONS + 2) if people.session(f"{name}-{n}")]
    assert alive == list(range(2, MAX_SESSIONS + 2))


# --- strikes --------------------------------------------------------------------------------------------


def counts(people: People, *keys: str, window: float = 60) -> list[int]:
    return [each.count for each in people.strike(keys, window=window)]


def test_tries_are_counted_by_key(people: People, name: str) -> None:
    assert counts(people, name, f"{name}-ip") == [1, 1]
    assert counts(people, f"{name}-ip") == [2]
    assert counts(people) == []
    [strikes] = people.strike([name], window=60)
    assert strikes.count == 2
    assert 50 < strikes.left <= 60


def test_tries_are_forgotten_after_the_window_of_the_first(
    stage: StoreStage, people: People, name: str
) -> None:
    assert counts(people, name, window=0.5) == [1]
    stage.pass_time(0.3)
    assert counts(people, name, window=0.5) == [2]
    stage.pass_time(0.21)
    assert counts(people, name, window=0.5) == [1]


def test_tries_can_be_forgiven(people: People, name: str) -> None:
    for _ in range(3):
        counts(people, name)
    people.forgive(name, count=2)
    assert counts(people, name) == [2]
    people.forgive(name, count=99)
    assert counts(people, name) == [1]
    people.forgive(name)
    assert counts(people, name) == [1]
    people.forgive(f"{name}-other", count=1)
    assert counts(people, f"{name}-other") == [1]


def test_no_try_is_lost_when_many_count_at_once(people: People, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: counts(people, name)[0], range(24)))
    assert sorted(found) == list(range(1, 25))


@pytest.mark.parametrize(
    "call",
    [
        lambda people: people.user("ada"),
        lambda people: people.session("x"),
        lambda people: people.strike(["x"], window=60),
        lambda people: people.end_sessions("ada"),
    ],
)
def test_without_a_server_nothing_is_known(stage: StoreStage, call: Callable[[People], Any]) -> None:
    with pytest.raises(StoreUnavailable):
        call(stage.unreachable().people)
