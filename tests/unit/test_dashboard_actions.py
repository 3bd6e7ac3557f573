"""What people do on the pages beside retrying one letter, and who may."""

import json
import re
from collections.abc import Iterator

import pytest

from eventdriven_sync.dashboard import Identity
from eventdriven_sync.testing import memory
from tests.unit.dashboards import Browser, new_bus
from tests.unit.test_dashboard_pages import World, make_world


@pytest.fixture
def world() -> Iterator[World]:
    bus = new_bus()
    with memory(bus) as run:
        yield make_world(bus, run)


@pytest.fixture
def browser(world: World) -> Browser:
    return world.browser


# --- edit and retry ----------------------------------------------------------------------------------


def test_a_letter_is_edited_and_retried_and_the_original_is_kept(world: World, browser: Browser) -> None:
    world.rename(name="Bob")
    delivery_id = world.dead
    page = browser.get(f"/deliveries/{delivery_id}/edit?back=/events/dead").text
    assert "&#34;name&#34;: &#34;Bob&#34;" in page
    world.fails = False
    token = browser.api_token()
    payload = json.dumps({"user_id": "42", "name": "Robert"})
    answer = browser.post(
        f"/deliveries/{delivery_id}/edit", token=token, payload=payload, back="/events/dead", reason="typo"
    )
    assert answer.headers["Location"] == "/events/dead?notice=retried"
    world.run.drain()
    page = browser.get(f"/deliveries/{delivery_id}").text
    assert "succeeded" in page
    assert "typo" in browser.get("/audit").text
    assert world.bus.store.events.get([delivery_id.partition(":")[2]]).popitem()[1].data["name"] == "Bob"


def test_what_is_wrong_with_an_edited_payload_is_said_beside_it(world: World, browser: Browser) -> None:
    world.rename()
    path = f"/deliveries/{world.dead}/edit"
    token = browser.api_token()
    for payload, message in (("{oops", "is no JSON"), ('{"user_id": [1]}', "user_id")):
        answer = browser.post(path, token=token, payload=payload)
        assert answer.status_code == 400
        assert message in answer.text
        assert payload.partition("[")[0].replace('"', "&#34;") in answer.text
    assert world.dead


def test_only_a_dead_letter_is_edited_and_only_by_operators(world: World, browser: Browser) -> None:
    world.rename()
    delivery_id = world.dead
    world.identity = Identity(name="eve", role="viewer", payloads=True)
    assert browser.get(f"/deliveries/{delivery_id}/edit").status_code == 403
    world.identity = Identity(name="ada", role="operator")
    done = delivery_id.replace("Comment.rename", "Blog.update")
    assert browser.get(f"/deliveries/{done}/edit").status_code == 409
    assert (
        browser.post(f"/deliveries/{done}/edit", token=browser.api_token(), payload="{}").status_code == 409
    )


# --- undo, run again, publish again ------------------------------------------------------------------


def test_a_discard_is_undone(world: World, browser: Browser) -> None:
    world.rename()
    delivery_id = world.dead
    token = browser.api_token()
    browser.post(f"/deliveries/{delivery_id}/discard", token=token, reason="mistake")
    assert "Undo the discard" in browser.get(f"/deliveries/{delivery_id}").text
    answer = browser.post(
        f"/deliveries/{delivery_id}/undo", token=token, back=f"/events/deliveries/{delivery_id}"
    )
    assert answer.status_code == 303
    assert world.dead == delivery_id
    assert browser.post(f"/deliveries/{delivery_id}/undo", token=token).status_code == 409


def test_a_handler_runs_again_for_an_event_it_has_handled(world: World, browser: Browser) -> None:
    world.rename()
    done = world.dead.replace("Comment.rename", "Blog.update")
    assert "Run again" in browser.get(f"/deliveries/{done}").text
    answer = browser.post(f"/deliveries/{done}/again", token=browser.api_token(), reason="index was lost")
    fresh = re.fullmatch(r"/events/deliveries/(Blog\.update:\w+)\?notice=again", answer.headers["Location"])
    assert fresh
    world.run.drain()
    assert world.run.store.deliveries.states([fresh[1]]) == {fresh[1]: "succeeded"}


def test_an_event_is_published_again_only_when_its_name_confirms_it(world: World, browser: Browser) -> None:
    world.rename()
    event_id = world.dead.partition(":")[2]
    token = browser.api_token()
    assert browser.post(f"/events/{event_id}/again", token=token, confirm="yes").status_code == 400
    assert len(world.run.envelopes("PagesUser.renamed")) == 1
    answer = browser.post(f"/events/{event_id}/again", token=token, confirm="PagesUser.renamed")
    assert answer.status_code == 303
    assert "published again" in browser.get(answer.headers["Location"].removeprefix("/events")).text
    assert len(world.run.envelopes("PagesUser.renamed")) == 2


# --- a group -----------------------------------------------------------------------------------------


def group_of(world: World, browser: Browser) -> dict[str, str]:
    """Three letters of one cause, and the fields that their page's form begins with."""
    for user_id in ("1", "2", "3"):
        world.rename(user_id=user_id)
    (link,) = re.findall(r'href="/events(/dead/letters\?[^"]*fingerprint[^"]*)"', browser.get("/dead").text)
    page = browser.get(link.replace("&amp;", "&")).text
    assert "Retry all 3" in page
    return dict(re.findall(r'name="(handler|fingerprint)" value="([^"]*)"', page))


def test_a_group_is_sent_back_once_its_number_confirms_it(world: World, browser: Browser) -> None:
    fields = group_of(world, browser)
    token = browser.api_token()
    for confirm in ("", "2", "all", "-3"):
        answer = browser.post("/dead/retry", token=token, confirm=confirm, canary="1", **fields)
        assert answer.status_code == 400
    answer = browser.post("/dead/retry", token=token, confirm="3", canary="2", reason="mended", **fields)
    assert answer.status_code == 303
    path = answer.headers["Location"].removeprefix("/events")
    page = browser.get(path).text
    for text in ("waits for its canaries", "0 of 3 sent back", "mended", "2 letters as canaries"):
        assert text in page
    assert "Comment.rename" in browser.get("/jobs").text
    again = browser.post("/dead/retry", token=token, confirm="3", canary="0", **fields)
    assert again.status_code == 409


def test_a_group_retry_is_cancelled(world: World, browser: Browser) -> None:
    fields = group_of(world, browser)
    token = browser.api_token()
    path = browser.post("/dead/retry", token=token, confirm="3", canary="1", **fields).headers["Location"]
    path = path.removeprefix("/events")
    answer = browser.post(f"{path}/cancel", token=token)
    assert answer.headers["Location"] == f"/events{path}?notice=cancelled"
    page = browser.get(path).text
    assert "cancelled" in page
    assert ">Cancel<" not in page
    assert browser.post(f"{path}/cancel", token=token).status_code == 409
    assert browser.get("/jobs/nope").status_code == 404


@pytest.mark.parametrize(
    "fields", [{}, {"handler": "Comment.rename"}, {"handler": "No.such", "confirm": "0"}]
)
def test_a_group_that_is_none_is_refused(world: World, browser: Browser, fields: dict[str, str]) -> None:
    answer = browser.post("/dead/retry", token=browser.api_token(), **({"canary": "1"} | fields))
    assert answer.status_code in (400, 404)


# --- handlers ----------------------------------------------------------------------------------------


def test_a_handler_is_paused_with_a_reason_and_resumed(world: World, browser: Browser) -> None:
    world.rename()
    token = browser.api_token()
    path = "/handlers/Comment.rename"
    assert browser.post(f"{path}/pause", token=token).status_code == 400
    answer = browser.post(f"{path}/pause", token=token, reason="store is full", back="/events/workers")
    assert answer.headers["Location"] == "/events/workers?notice=paused"
    page = browser.get("/workers").text
    assert "store is full" in page
    assert f'action="/events{path}/resume"' in page
    assert browser.post(f"{path}/resume", token=token).status_code == 303
    assert "store is full" not in browser.get("/workers").text
    assert browser.post("/handlers/No.such/pause", token=token, reason="x").status_code == 404


# --- who may -----------------------------------------------------------------------------------------


def test_what_goes_beyond_one_letter_takes_more_than_an_operator(world: World, browser: Browser) -> None:
    world.rename()
    delivery_id = world.dead
    event_id = delivery_id.partition(":")[2]
    world.identity = Identity(name="olga", role="operator")
    token = browser.api_token()
    for path in (
        f"/deliveries/{delivery_id}/again",
        f"/events/{event_id}/again",
        "/handlers/Comment.rename/pause",
        "/handlers/Comment.rename/resume",
    ):
        assert browser.post(path, token=token, confirm="PagesUser.renamed", reason="x").status_code == 403
    for path in (f"/events/{event_id}", "/workers", f"/deliveries/{delivery_id}"):
        page = browser.get(path).text
        assert "again…" not in page
        assert "Pause" not in page


def test_who_sees_one_group_sends_letters_of_that_group_back(world: World, browser: Browser) -> None:
    fields = group_of(world, browser)
    for group, status in (("Blog", 404), ("Comment", 303)):
        world.identity = Identity(name="olga", role="operator", groups=(group,))
        page = browser.get("/dead/letters?handler=Comment.rename").text
        assert ("Retry all" in page) == (group == "Comment")
        answer = browser.post("/dead/retry", token=browser.api_token(), confirm="3", canary="1", **fields)
        assert answer.status_code == status
