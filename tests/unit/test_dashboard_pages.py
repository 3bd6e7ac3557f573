"""The pages on a bus in memory: what they show to whom, and what their forms do."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
from flask import Flask
from tenacity import stop_after_attempt

from eventdriven_sync import EventBus, Reject, RetryPolicy, event
from eventdriven_sync.dashboard import Identity
from eventdriven_sync.testing import MemoryRun, memory
from tests.unit.dashboards import Browser, new_bus, site


@event("PagesUser.renamed", version=2, key="user_id")
@attrs.frozen(kw_only=True)
class Renamed:
    user_id: str
    name: str = "Ada"


@event("PagesBlog.changed")
@attrs.frozen(kw_only=True)
class Changed:
    user_id: str


EVIL = "\"><img src=x onerror=alert(1)><script>alert(2)</script>'&"
PATHS = [
    *(
        "/",
        "/operations",
        "/events",
        "/subjects",
        "/dead",
        "/dead/letters",
        "/jobs",
        "/streams",
        "/workers",
        "/audit",
    ),
]


@attrs.define
class World:
    """A bus whose comment module fails, one rename on it, and who looks at the dashboard."""

    bus: EventBus
    run: MemoryRun
    identity: Identity
    operation_id: str = ""
    fails: bool = True

    @property
    def app(self) -> Flask:
        return site(self.bus, authorize=lambda request: self.identity)

    @property
    def browser(self) -> Browser:
        return Browser(self.app)

    @property
    def dead(self) -> str:
        (letter,) = self.run.deliveries(state="dead")
        return letter.id

    def rename(self, *, user_id: str = "42", name: str = "Ada") -> str:
        with self.bus.operation(
            name, kind="http", user="bob", variables={"password": "hunter2"}
        ) as operation:
            self.bus.publish(Renamed(user_id=user_id, name=name))
        self.operation_id = operation.id
        self.run.drain()
        return operation.id


def make_world(bus: EventBus, run: MemoryRun) -> World:
    found = World(bus, run, Identity(name="ada", role="admin"))
    blog, comment = bus.group("Blog"), bus.group("Comment")

    @blog.handler(Renamed)
    def update(event: Renamed) -> None:
        blog.publish(Changed(user_id=event.user_id))

    @comment.handler(Renamed, retry=RetryPolicy(stop=stop_after_attempt(2)))
    def rename(event: Renamed) -> None:
        if found.fails:
            raise ValueError(f"Test Error!! {event.name}")

    return found


@pytest.fixture
def world() -> Iterator[World]:
    bus = new_bus()
    with memory(bus) as run:
        yield make_world(bus, run)


@pytest.mark.parametrize("path", PATHS)
def test_a_page_without_anything_to_show_says_what_to_do(world: World, path: str) -> None:
    answer = world.browser.get(path)
    assert answer.status_code == 200
    assert 'class="empty"' in answer.text or path in ("/streams", "/subjects")


@pytest.mark.parametrize("path", PATHS)
def test_a_page_with_something_to_show_is_a_page_without_inline_scripts_and_styles(
    world: World, path: str
) -> None:
    world.rename()
    page = parsed(world.browser.get(path).text)
    assert page.main
    assert not page.inline


def test_lists_name_what_happened(world: World) -> None:
    world.rename(name="rename-ada")
    browser = world.browser
    assert "rename-ada" in browser.get("/operations").text
    assert "PagesUser.renamed" in browser.get("/events").text
    assert "Test Error!!" in browser.get("/dead").text
    assert "Comment.rename" in browser.get("/dead/letters").text
    assert "Comment.rename" in browser.get("/workers").text


def test_filters_keep_what_was_asked_and_find_it(world: World) -> None:
    world.rename(name="rename-ada")
    browser = world.browser
    assert "rename-ada" in browser.get("/operations?name=rename-ada&user=bob&since=1h").text
    nothing = browser.get("/operations?name=other").text
    assert "No operation matches" in nothing
    assert 'value="other"' in nothing
    found = browser.get("/events?name=PagesUser.renamed&since=1h&payload=user_id%3D%2242%22").text
    assert world.operation_id in found
    assert (
        "No event matches" in browser.get("/events?name=PagesUser.renamed&since=1h&payload=user_id%3D7").text
    )


@pytest.mark.parametrize(
    "path",
    [
        "/operations?status=odd",
        "/operations?since=yesterday",
        "/operations?name=" + "x" * 1001,
        "/events?payload=nothing",
        "/events?payload=a%3D1",
        "/audit?until=2026-13-01",
        "/stream?topic=odd",
        "/stream?topic=chain",
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_cure(world: World, path: str) -> None:
    answer = world.browser.get(path)
    assert answer.status_code == 400
    assert "give" in answer.text


def test_what_does_not_exist_is_not_found(world: World) -> None:
    world.rename()
    browser = world.browser
    for path in (
        "/operations/nope",
        "/events/nope",
        "/deliveries/nope",
        f"/operations/{world.operation_id}?node=x",
    ):
        assert browser.get(path).status_code == 404


def test_a_list_goes_on_where_the_page_before_ended(world: World) -> None:
    for _ in range(51):
        with world.bus.operation("begun", kind="script"):
            pass
    browser = world.browser
    first = browser.get("/operations?kind=script").text
    (link,) = re.findall(r'<a class="button" rel="next" href="/events([^"]*)"', first)
    second = browser.get(link.replace("&amp;", "&")).text
    assert first.count("<tr data-id") == 50
    assert second.count("<tr data-id") == 1
    assert "Back to the newest" in second


# --- the chain ---------------------------------------------------------------------------------------


def test_the_chain_is_drawn_with_states_times_and_links_to_details(world: World) -> None:
    page = world.browser.get(f"/operations/{world.rename()}").text
    for text in (
        "PagesUser.renamed",
        "Blog.update",
        "PagesBlog.changed",
        "waited",
        "dead · 2 attempts",
        "key 42",
    ):
        assert text in page
    assert 'class="node kind-delivery is-dead"' in page
    assert f'data-id="{world.dead}"' in page


def test_the_detail_of_a_dead_delivery_has_its_stacks_payload_and_forms(world: World) -> None:
    page = world.browser.get(f"/operations/{world.rename()}?node={world.dead}").text
    assert "Failed attempts" in page
    assert page.count('class="failure"') == 2
    assert "Traceback" in page
    assert "user_id" in page
    assert f'action="/events/deliveries/{world.dead}/retry"' in page
    assert f"eventdriven dead retry {world.dead}" in page


def test_the_detail_of_an_event_and_of_the_operation_stand_beside_the_chain(world: World) -> None:
    browser = world.browser
    chain = world.bus.operations.chain(world.rename())
    shown = browser.get(f"/operations/{world.operation_id}?node={chain.events[0].event.id}").text
    assert "the operation" in shown
    assert "Deliveries" in shown
    operation = browser.get(f"/operations/{world.operation_id}?node={world.operation_id}").text
    assert "Called with" in operation
    assert "hunter2" not in operation


@pytest.mark.parametrize(("view", "text"), [("waterfall", 'class="waterfall"'), ("text", "├─ ")])
def test_the_chain_is_shown_over_time_and_as_text(world: World, view: str, text: str) -> None:
    world.rename()
    second = world.rename()
    page = world.browser.get(f"/operations/{second}?view={view}").text
    assert text in page or "└─ " in page
    assert "Comment.rename" in page


def test_a_branch_is_closed_and_opened_by_its_link(world: World) -> None:
    browser = world.browser
    path = f"/operations/{world.rename()}"
    toggle = r'<a class="toggle" href="/events([^"]*)"'
    (close,) = re.findall(toggle, browser.get(path).text)
    closed = browser.get(close.replace("&amp;", "&")).text
    assert "PagesBlog.changed" not in closed
    (again,) = re.findall(toggle, closed)
    assert "PagesBlog.changed" in browser.get(again.replace("&amp;", "&")).text


def test_the_chain_is_exported_as_svg_and_as_mermaid(world: World) -> None:
    browser = world.browser
    world.rename(name=EVIL)
    svg = browser.get(f"/operations/{world.operation_id}/chain.svg")
    assert svg.mimetype == "image/svg+xml"
    drawing = ET.fromstring(svg.text)
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert tags == {"svg", "style", "rect", "path", "text", "g", "title"}
    mermaid = browser.get(f"/operations/{world.operation_id}/chain.mmd")
    assert mermaid.text.startswith("flowchart LR")
    assert "attachment" in mermaid.headers["Content-Disposition"]


def test_a_delivery_that_no_worker_has_begun_is_shown_as_pending(world: World) -> None:
    with world.bus.operation("waits") as operation:
        receipt = world.bus.publish(Renamed(user_id="1"))
    page = world.browser.get(f"/operations/{operation.id}?node=Comment.rename:{receipt.id}").text
    assert "No worker has begun it yet" in page


def test_a_subject_shows_what_its_events_set_off(world: World) -> None:
    world.rename()
    browser = world.browser
    assert "PagesBlog.changed" in browser.get("/subjects?span=1h").text
    page = browser.get("/subjects/PagesUser.renamed").text
    for text in ("Blog.update", "PagesBlog.changed", "Comment.rename", "1 delivery", "100 % failed"):
        assert text in page
    assert "/events/subjects/PagesBlog.changed?span=24h" in page
    assert "/events/dead/letters?handler=Comment.rename" in page
    assert "No such event in this time" in browser.get("/subjects/Nothing.known").text
    assert browser.get("/subjects?span=2y").status_code == 400


# --- what people may and do --------------------------------------------------------------------------


def test_a_viewer_sees_no_payload_no_stack_and_no_buttons(world: World) -> None:
    world.identity = Identity(name="eve", role="viewer")
    browser = world.browser
    chain = f"/operations/{world.rename()}?node={world.dead}"
    for path in (chain, f"/deliveries/{world.dead}", "/dead/letters"):
        page = browser.get(path).text
        assert "Traceback" not in page
        assert ">Retry<" not in page
        assert "Discard" not in page
        assert "user_id" not in page
    assert browser.get("/events?payload=user_id%3D42&name=a&since=1h").status_code == 400
    assert browser.get("/audit").status_code == 403


def test_who_sees_one_group_finds_nothing_of_another(world: World) -> None:
    world.rename()
    world.identity = Identity(name="blogger", role="operator", groups=("Blog",))
    browser = world.browser
    for path in ("/dead", "/dead/letters"):
        assert "Test Error" not in browser.get(path).text
    assert browser.get(f"/deliveries/{world.dead}").status_code == 404
    assert browser.get(f"/operations/{world.operation_id}?node={world.dead}").status_code == 404
    answer = browser.post(f"/deliveries/{world.dead}/retry", token=browser.api_token())
    assert answer.status_code == 404
    assert world.dead


def test_retry_runs_it_again_and_stands_in_the_audit_log(world: World) -> None:
    browser = world.browser
    world.rename()
    world.fails = False
    delivery_id = world.dead
    back = f"/events/operations/{world.operation_id}?node={delivery_id}"
    answer = browser.post(f"/deliveries/{delivery_id}/retry", token=browser.api_token(), back=back)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{back}&notice=retried")
    world.run.drain()
    page = browser.get(answer.headers["Location"].removeprefix("/events")).text
    assert "It runs again" in page
    assert 'class="node kind-delivery is-succeeded is-selected"' in page
    audit = browser.get("/audit").text
    assert "retry" in audit
    assert delivery_id in audit


def test_discard_takes_a_reason_and_keeps_it(world: World) -> None:
    browser = world.browser
    world.rename()
    path = f"/deliveries/{world.dead}"
    token = browser.api_token()
    assert browser.post(f"{path}/discard", token=token, reason="  ").status_code == 400
    delivery_id = world.dead
    assert browser.post(f"{path}/discard", token=token, reason="asked by Ada").status_code == 303
    page = browser.get(path).text
    assert "discarded (asked by Ada)" in page
    assert browser.post(f"/deliveries/{delivery_id}/retry", token=token).status_code == 409


@pytest.mark.parametrize(
    "back",
    [
        "https://evil.example/",
        "//evil.example/",
        "/events/\\evil",
        "/other",
        "/events/\r\nX: y",
        "javascript:alert(1)",
        "",
    ],
)
def test_a_form_leads_back_to_this_dashboard_only(world: World, back: str) -> None:
    browser = world.browser
    world.rename()
    answer = browser.post(f"/deliveries/{world.dead}/retry", token=browser.api_token(), back=back)
    assert answer.headers["Location"] == "/events/?notice=retried"


@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_what_changes_something_needs_the_role_and_the_token(world: World, verb: str) -> None:
    browser = world.browser
    world.rename()
    path = f"/deliveries/{world.dead}/{verb}"
    assert browser.post(path, token="0" * 64, reason="x").status_code == 403
    world.identity = Identity(name="eve", role="viewer")
    assert browser.post(path, token=browser.api_token(), reason="x").status_code == 403
    assert browser.get(path).status_code == 405
    assert world.dead


# --- nothing an event says becomes markup ------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page, and what should not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inline: list[str] = []
        self.main = False
        self._script = False

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = dict(given)
        self.main = self.main or tag == "main"
        self.inline += [name for name in names if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" else []
        self._script = tag == "script"
        for name in ("href", "src", "action"):
            if (names.get(name) or "").lower().startswith(("javascript:", "data:", "http", "//")):
                self.inline.append(f"{name}={names[name]}")

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def counts(text: str) -> dict[str, int]:
    tags = parsed(text).tags
    return {tag: tags.count(tag) for tag in set(tags)}


@pytest.mark.parametrize(
    "where", [*PATHS, "chain", "waterfall", "text", "detail", "letter", "event", "subject"]
)
def test_hostile_text_makes_no_element(world: World, where: str) -> None:
    def look(text: str) -> Any:
        operation_id = world.rename(name=text, user_id=text)
        (newest, *_) = world.run.deliveries(handler="Comment.rename", state="dead")
        paths = {
            "chain": f"/operations/{operation_id}",
            "waterfall": f"/operations/{operation_id}?view=waterfall",
            "text": f"/operations/{operation_id}?view=text",
            "detail": f"/operations/{operation_id}?node={newest.id}",
            "letter": f"/deliveries/{newest.id}",
            "event": f"/events/{newest.event_id}",
            "subject": "/subjects/PagesUser.renamed",
        }
        page = world.browser.get(paths.get(where, where)).text
        assert not parsed(page).inline
        world.bus.dead_letters.discard(newest.id, reason="seen")
        return counts(page)

    harmless = look("x" * len(EVIL))
    hostile = look(EVIL)
    assert {"img", "script"}.isdisjoint(set(hostile) - set(harmless))
    assert hostile.get("img", 0) == 0
    assert hostile["script"] == harmless["script"]


def test_a_message_that_is_no_event_is_shown_as_it_came(world: World) -> None:
    @world.bus.group("Raw").handler(Changed)
    def reject(event: Changed) -> None:
        raise Reject("never")

    world.rename()
    page = world.browser.get("/dead/letters").text
    assert "Raw.reject" in page
    assert "rejected" in page
