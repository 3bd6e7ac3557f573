"""The dashboard in a real browser on real servers: what a person does there, and how it looks.

Screenshots of every page are taken; those that ``docs/images`` lacks are written there.
"""

import linecache
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import attrs
import pytest
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, expect
from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import EventBus, Reject, RetryPolicy, Settings, Worker, event
from eventdriven_sync.dashboard import dashboard
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.live import watcher
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.stats import DURATION_BUCKETS_MS
from eventdriven_sync.store import DeliveryQuery
from tests.apps.serving import Served
from tests.browser import chromium
from tests.polling import eventually

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 300_000
SHOWN = (
    *("overview", "overview-dark", "operations", "events", "event", "subjects", "subject", "streams"),
    *("chain-failed", "chain-retried", "chain-dark", "chain-narrow", "chain-folded", "chain-text"),
    *("waterfall", "dead-letters", "letters", "letters-narrow", "letter", "workers", "audit", "users"),
    *("sign-in", "edit", "group-retry", "job"),
)
PASSWORD = "correct horse battery"
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


@event("User.registered", key="user_id")
@attrs.frozen(kw_only=True)
class Registered:
    user_id: str
    email: str
    profile: dict[str, Any] = attrs.field(factory=dict)


@event("User.nameUpdated", version=2, key="user_id")
@attrs.frozen(kw_only=True)
class Renamed:
    user_id: str
    first_name: str
    last_name: str = "Lovelace"


@event("Blog.userUpdated", key="user_id")
@attrs.frozen(kw_only=True)
class BlogUserUpdated:
    user_id: str


@event("Comment.userUpdated", key="user_id")
@attrs.frozen(kw_only=True)
class CommentUserUpdated:
    user_id: str


@event("Import.rowRead")
@attrs.frozen(kw_only=True)
class RowRead:
    number: int


@event("Import.priceStored")
@attrs.frozen(kw_only=True)
class PriceStored:
    number: int


COMMENTS = """
def update_author(event: Renamed) -> None:
    while slow.is_set():
        go_on.wait(0.05)
    if broken.is_set() or not event.first_name:
        raise ValueError(f"Test Error!! no author {event.first_name}")
    publish(Updated(user_id=event.user_id))
"""


class Shop:
    """An application whose comment module fails until somebody mends it, and its dashboard."""

    def __init__(self, settings: Settings) -> None:
        self.bus = EventBus(settings=settings)
        self.broken = threading.Event()
        self.broken.set()
        self.slow = threading.Event()
        self._subscribe()
        self.bus.open()
        self.worker = Worker(self.bus, threads=8, grace=5).start()
        Accounts(self.bus).add("ada", PASSWORD, role="admin", by="the test")
        app = Flask("shop")
        app.config["SECRET_KEY"] = "0123456789abcdefghijklmnopqrstuvwxyz"
        app.config["EVENTDRIVEN_DASHBOARD_STREAMS"] = 6
        app.register_blueprint(dashboard(self.bus), url_prefix="/events")
        self._served = Served(app, threads=16)
        self.url = f"http://127.0.0.1:{self._served.port}/events"

    def close(self) -> None:
        self.slow.clear()
        watcher(self.bus).end_all()
        self._served.stop()
        self.worker.stop()
        self.bus.close()

    def rename(self, user_id: str = "42", first_name: str = "Ada") -> str:
        """A rename; returns once the comment module has given it up, or handled it."""
        variables = {"user_id": user_id, "first_name": first_name, "password": "canary-4711"}
        how = {"kind": "http", "user": "ada", "variables": variables}
        return self.run("PATCH /users/<id>", Renamed(user_id=user_id, first_name=first_name), **how)

    def run(self, name: str, *events: object, wait: bool = True, **how: Any) -> str:
        """An operation that publishes events, in a thread of its own: playwright's has an event loop."""

        def begin() -> str:
            with self.bus.operation(name, **how) as operation:
                self.bus.publish_many(events)
            if wait:
                operation.wait(timeout=30)
            return operation.id

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(begin).result()

    def states(self, handler: str) -> dict[str, int]:
        return self.bus.store.deliveries.count(DeliveryQuery(handler=handler))

    def live(self) -> None:
        """What a shop does in an hour: history for the charts, an import, a registration whose mail waits."""
        self._history()
        for user_id in ("40", "41", "43"):
            self.rename(user_id)
        profile = {"name": {"first": "Bob", "last": "Hopper"}, "tags": ["new", "beta"], "age": 36}
        registered = Registered(user_id="44", email="bob@example.org", profile=profile)
        self.run("POST /users", registered, kind="http", user="bob", wait=False)
        rows = [RowRead(number=number) for number in range(150)]
        self.import_id = self.run("import-prices", *rows, kind="script", user="cron@host-3")
        for kind in ("cron", "cli", "script", "http"):
            self.run("nightly-statistics", kind=kind)
        with pytest.raises(PermissionError):
            with self.bus.operation("POST /posts", kind="http", user="eve"):
                raise PermissionError("eve may not write in this blog")

    def _history(self) -> None:
        """An hour of events and figures, as the workers of that hour would have left them."""
        minute = utcnow().replace(second=0, microsecond=0)
        events, figures = [], []
        for ago in range(1, 60):
            at = minute - timedelta(minutes=ago)
            count = 30 + (ago * 7) % 23 + (40 if 20 < ago < 33 else 0)
            failed = count // 4 if 22 < ago < 29 else ago % 9 == 0
            events += [_past(at + timedelta(seconds=number / 2)) for number in range(count)]
            durations = [0] * (len(DURATION_BUCKETS_MS) + 1)
            durations[4] = count
            figures.append(
                {
                    "_id": f"{ago}:history",
                    "minute": at,
                    "event_name": "Page.viewed",
                    "handler": "Blog.count_views",
                    "succeeded": count - int(failed),
                    "failed": int(failed),
                    "dead": int(failed > 4),
                    "discarded": 0,
                    "durations": durations,
                }
            )
        self.bus.store.events.append(events, timeout=10)
        self.bus.store.directory.write_stats(figures)

    def _subscribe(self) -> None:
        blog, comment, search, mail, imports = map(
            self.bus.group, ("Blog", "Comment", "Search", "Mail", "Import")
        )

        @blog.handler(Renamed)
        def update_author(event: Renamed) -> None:
            blog.publish(BlogUserUpdated(user_id=event.user_id))

        comment.handler(Renamed, retry=RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(0.1)))(
            self._comments(comment.publish)
        )

        @search.handler(BlogUserUpdated, CommentUserUpdated)
        def reindex(event: object) -> None: ...

        @mail.handler(Registered, retry=RetryPolicy(stop=stop_after_attempt(6), wait=wait_fixed(600)))
        def welcome(event: Registered) -> None:
            raise ConnectionError("smtp.example.org:25 refused the connection")

        @blog.handler(Registered)
        def duplicate_user(event: Registered) -> None: ...

        @imports.handler(RowRead)
        def store_price(event: RowRead) -> None:
            if event.number % 37 == 13:
                raise Reject(f"row {event.number} has no price")
            imports.publish(PriceStored(number=event.number))

        @search.handler(PriceStored)
        def index_price(event: PriceStored) -> None: ...

    def _comments(self, publish: Callable[[object], object]) -> Callable[[Renamed], None]:
        """The handler that fails, in a file of its own: its stack is shown in the manual."""
        path = "/srv/shop/comments.py"
        known: dict[str, Any] = {"Renamed": Renamed, "Updated": CommentUserUpdated}
        known |= {"broken": self.broken, "slow": self.slow, "go_on": threading.Event(), "publish": publish}
        exec(compile(COMMENTS, path, "exec"), known)
        linecache.cache[path] = (len(COMMENTS), None, COMMENTS.splitlines(keepends=True), path)
        return cast(Callable[[Renamed], None], known["update_author"])


def _past(at: Any) -> Envelope:
    event_id = new_id()
    return Envelope(
        id=event_id, name="Page.viewed", version=1, data={"page": "/"}, published_at=at, operation_id=event_id
    )


@pytest.fixture
def shop(servers: DevServers, mongo_url: str) -> Iterator[Shop]:
    settings = Settings(
        nats=servers.nats_url,
        mongo=mongo_url,
        namespace=f"shop-{uuid.uuid4().hex[:4]}",
        reconcile_every=0.5,
        poll_every=0.05,
    )
    found = Shop(settings)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@attrs.define
class Visitor:
    """Somebody at the dashboard; what the browser complains about is kept."""

    shop: Shop
    page: Page
    complaints: list[str] = attrs.field(factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.shop.url + path)
        return self.page

    def sign_in(self) -> "Visitor":
        page = self.go("/")
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        return self

    def mark(self) -> None:
        """A mark that goes with a reload."""
        self.page.evaluate("window.notReloaded = true")

    def stayed(self) -> bool:
        return bool(self.page.evaluate("window.notReloaded === true"))

    def picture(self, name: str) -> None:
        """Those of the manual are written there if they are missing: delete one, and it is made anew."""
        self.page.mouse.move(0, 0)
        path = IMAGES / f"{name}.png"
        with TemporaryDirectory() as elsewhere:
            if name.removeprefix("dashboard-") not in SHOWN or path.exists():
                path = Path(elsewhere) / path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=path, animations="disabled")
            assert 2_000 < path.stat().st_size < MOST_BYTES


@contextmanager
def visiting(browser: Browser, shop: Shop, **how: Any) -> Iterator[Visitor]:
    given: dict[str, Any] = {"viewport": DESK, "timezone_id": "Europe/Berlin", "locale": "en-GB"}
    context: BrowserContext = browser.new_context(**given | how)
    try:
        visitor = Visitor(shop, context.new_page())
        # A stream that is refused is no fault: the page polls then.
        visitor.page.on(
            "console",
            lambda said: (
                visitor.complaints.append(said.text)
                if said.type in ("error", "warning") and "503" not in said.text
                else None
            ),
        )
        visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        visitor.page.on("dialog", lambda dialog: visitor.complaints.append(f"dialog {dialog.message}"))
        yield visitor.sign_in()
        assert not visitor.complaints
    finally:
        context.close()


# --- a failing rename ---------------------------------------------------------------------------------


def test_a_failing_rename_is_found_understood_and_retried_without_reload(
    shop: Shop, browser: Browser
) -> None:
    shop.rename()
    with visiting(browser, shop) as ada:
        page = ada.go("/operations")
        page.get_by_role("link", name="PATCH /users/<id>").click()
        failed = page.locator(".node.is-dead")
        expect(failed).to_have_count(1)
        expect(failed).to_contain_text("Comment.update_author")
        expect(failed).to_contain_text("3 attempts")
        ada.mark()
        failed.click()
        detail = page.locator("#detail")
        expect(detail.locator(".failure")).to_have_count(3)
        stack = detail.locator(".failure pre").first
        expect(stack).to_be_visible()
        expect(stack).to_contain_text("ValueError: Test Error!! no author Ada")
        expect(stack).to_contain_text("/srv/shop/comments.py")
        ada.picture("dashboard-chain-failed")
        shop.broken.clear()
        detail.get_by_role("button", name="Retry").click()
        expect(page.locator("#notice")).to_contain_text("runs again")
        mended = page.locator(".node.kind-delivery.is-succeeded", has_text="Comment.update_author")
        expect(mended).to_be_visible(timeout=10_000)
        expect(page.locator(".node", has_text="Comment.userUpdated")).to_be_visible()
        expect(page.locator(".node.is-dead")).to_have_count(0)
        expect(page.locator("[data-chain-state]")).to_contain_text("succeeded")
        assert ada.stayed()
        ada.picture("dashboard-chain-retried")
    assert shop.states("Comment.update_author") == {"succeeded": 1}


def test_a_chain_is_walked_zoomed_and_closed_by_keyboard(shop: Shop, browser: Browser) -> None:
    operation_id = shop.rename()
    with visiting(browser, shop) as ada:
        page = ada.go(f"/operations/{operation_id}")
        ada.mark()
        page.locator(".node.kind-operation").focus()
        for key, text in (
            ("ArrowRight", "User.nameUpdated"),
            ("ArrowRight", "Blog.update_author"),
            ("ArrowDown", "Comment.update_author"),
            ("ArrowLeft", "User.nameUpdated"),
        ):
            page.keyboard.press(key)
            expect(page.locator(".node:focus")).to_contain_text(text)
        page.keyboard.press("Enter")
        expect(page.locator("#detail h2")).to_have_text("User.nameUpdated")
        expect(page.locator(".node:focus")).to_contain_text("User.nameUpdated")
        assert "node=" in page.url
        before = page.locator("svg.graph").get_attribute("viewBox")
        page.keyboard.press("+")
        assert page.locator("svg.graph").get_attribute("viewBox") != before
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_have_count(0)
        toggle = page.locator(".toggle").first
        toggle.click()
        expect(page.locator(".node", has_text="Blog.userUpdated")).to_have_count(0)
        page.go_back()
        expect(page.locator(".node", has_text="Blog.userUpdated")).to_be_visible()
        assert ada.stayed()


def test_a_chain_is_live_while_it_runs(shop: Shop, browser: Browser) -> None:
    operation_id = shop.run("sync-users", kind="cli")
    with visiting(browser, shop) as ada:
        page = ada.go(f"/operations/{operation_id}")
        expect(page.get_by_text("It published no event", exact=True)).to_be_visible()
        page = ada.go("/operations")
        expect(page.locator("[data-live]")).to_have_attribute("data-state", "open")
        ada.mark()
        shop.rename("77")
        expect(page.get_by_role("link", name="PATCH /users/<id>")).to_be_visible(timeout=10_000)
        assert ada.stayed()


def test_dead_letters_are_sorted_out_by_keyboard(shop: Shop, browser: Browser) -> None:
    for user_id in ("1", "2", "3"):
        shop.rename(user_id)
    with visiting(browser, shop) as ada:
        page = ada.go("/dead")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        rows = page.locator("table[data-rows] tbody tr")
        expect(rows).to_have_count(3)
        ada.mark()
        page.keyboard.press("j")
        page.keyboard.press("j")
        expect(rows.nth(1)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("k")
        expect(rows.nth(0)).to_have_attribute("aria-selected", "true")
        page.keyboard.press("d")
        page.locator("dialog[open]").get_by_label("Reason").fill("user 3 was deleted")
        page.keyboard.press("Enter")
        expect(rows).to_have_count(2)
        expect(page.locator("#notice")).to_contain_text("discarded")
        shop.broken.clear()
        page.keyboard.press("j")
        page.keyboard.press("r")
        expect(rows).to_have_count(1)
        assert ada.stayed()
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
    eventually(lambda: shop.states("Comment.update_author") == {"succeeded": 1, "discarded": 1, "dead": 1})


def test_a_letter_is_edited_and_retried(shop: Shop, browser: Browser) -> None:
    operation_id = shop.rename(first_name="")
    shop.broken.clear()
    with visiting(browser, shop) as ada:
        page = ada.go(f"/operations/{operation_id}")
        page.locator(".node.is-dead").click()
        page.get_by_role("link", name="Edit and retry").click()
        field = page.get_by_label("Payload of User.nameUpdated")
        expect(field).to_have_value(re.compile('"first_name": ""'))
        ada.picture("dashboard-edit")
        field.fill("{ nonsense")
        page.get_by_role("button", name="Retry with this payload").click()
        expect(page.get_by_role("alert")).to_contain_text("is no JSON")
        ada.complaints.clear()  # the browser reports the answer's status
        field.fill('{"user_id": "42", "first_name": "Augusta", "last_name": "Lovelace"}')
        page.get_by_role("button", name="Retry with this payload").click()
        mended = page.locator(".node.kind-delivery.is-succeeded.is-selected")
        expect(mended).to_be_visible(timeout=10_000)


def test_a_group_is_sent_back_and_cancelled_while_its_canary_waits(shop: Shop, browser: Browser) -> None:
    for user_id in ("1", "2", "3", "4"):
        shop.rename(user_id)
    shop.broken.clear()
    shop.slow.set()
    with visiting(browser, shop) as ada:
        page = ada.go("/dead")
        page.get_by_role("link", name="Comment.update_author").click()
        page.get_by_role("button", name="Retry all 4…").click()
        dialog = page.locator("dialog[open]")
        expect(dialog).to_contain_text("4 dead letters of Comment.update_author")
        dialog.get_by_label("Number of letters").fill("4")
        dialog.get_by_label("Reason").fill("the comment store is back")
        ada.picture("dashboard-group-retry")
        dialog.get_by_role("button", name="Retry them").click()
        expect(page.locator("main h1")).to_have_text("Comment.update_author")
        ada.mark()
        expect(page.get_by_text("1 of 4 sent back")).to_be_visible(timeout=15_000)
        expect(page.get_by_text("1 running")).to_be_visible(timeout=15_000)
        ada.picture("dashboard-job")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#notice")).to_contain_text("Nothing more is sent back")
        shop.slow.clear()
        expect(page.locator(".counts").get_by_text("1 succeeded")).to_be_visible(timeout=15_000)
        assert ada.stayed()
        page = ada.go("/dead/letters?handler=Comment.update_author")
        expect(page.locator("table[data-rows] tbody tr")).to_have_count(3)
        page.get_by_role("button", name="Retry all 3…").click()
        dialog = page.locator("dialog[open]")
        dialog.get_by_label("Number of letters").fill("3")
        dialog.get_by_role("button", name="Retry them").click()
        expect(page.locator(".counts").get_by_text("3 succeeded")).to_be_visible(timeout=20_000)
        expect(page.locator(".sub .state")).to_contain_text("done", timeout=20_000)
    assert shop.states("Comment.update_author") == {"succeeded": 4}


def test_a_handler_is_paused_and_resumed(shop: Shop, browser: Browser) -> None:
    with visiting(browser, shop) as ada:
        page = ada.go("/workers")
        ada.mark()
        row = page.locator("tr", has_text="Comment.update_author")
        row.get_by_role("button", name="Pause…").click()
        page.locator("dialog[open]").get_by_label("Reason").fill("the comment store moves")
        page.keyboard.press("Enter")
        expect(row).to_contain_text("the comment store moves")
        row.get_by_role("button", name="Resume").click()
        expect(row.get_by_role("button", name="Pause…")).to_be_visible()
        assert ada.stayed()


# --- how it looks -------------------------------------------------------------------------------------

# The contrast of every text with what lies behind it, by WCAG 2: those below 4.5, or 3 for large text.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('body *:not(svg *):not(script):not(.unseen):not(.skip)')) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const a = light(rgb(style.color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.7 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def pages_of(shop: Shop) -> dict[str, str]:
    operation_id = shop.rename("42")
    letter = shop.bus.dead_letters.find(operation_id=operation_id)[0]
    return {
        "overview": "/",
        "operations": "/operations",
        "chain": f"/operations/{operation_id}?node={letter.id}",
        "chain-folded": f"/operations/{shop.import_id}",
        "waterfall": f"/operations/{operation_id}?view=waterfall",
        "chain-text": f"/operations/{operation_id}?view=text",
        "events": "/events",
        "subjects": "/subjects",
        "subject": "/subjects/User.nameUpdated",
        "event": f"/events/{letter.event_id}",
        "dead-letters": "/dead",
        "letters": "/dead/letters?handler=Comment.update_author",
        "letter": f"/deliveries/{letter.id}",
        "streams": "/streams",
        "workers": "/workers",
        "audit": "/audit",
        "users": "/users",
    }


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_every_page_looks_as_it_should(shop: Shop, browser: Browser, look: str) -> None:
    """Readable in light and dark, no wider than the screen of a phone, no complaint of the browser."""
    shop.live()
    how: dict[str, Any] = {"color_scheme": "dark" if look == "dark" else "light"}
    if look == "narrow":
        how["viewport"] = PHONE
    with visiting(browser, shop, **how) as ada:
        for name, path in pages_of(shop).items():
            page = ada.go(path)
            expect(page.locator("main h1")).to_be_visible()
            expect(page.locator("time", has_text="UTC")).to_have_count(0)
            assert not page.evaluate(CONTRAST), name
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= page.viewport_size["width"], f"{name} is {width} wide"  # type: ignore[index]
            ada.picture(f"dashboard-{name}-{look}" if look != "light" else f"dashboard-{name}")


def test_the_sign_in_page_looks_as_it_should(shop: Shop, browser: Browser) -> None:
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    page.goto(f"{shop.url}/operations?status=failed")
    assert not page.evaluate(CONTRAST)
    Visitor(shop, page).picture("dashboard-sign-in")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong horse battery")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Operations")).to_be_visible()
    assert page.url.endswith("/operations?status=failed")
    context.close()


def test_light_and_dark_are_chosen_and_stay_chosen(shop: Shop, browser: Browser) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    with visiting(browser, shop, color_scheme="light") as ada:
        light = ada.page.evaluate(background)
        ada.page.get_by_role("button", name="Switch between light and dark").click()
        dark = ada.page.evaluate(background)
        assert dark != light
        ada.go("/operations")
        assert ada.page.evaluate(background) == dark
    with visiting(browser, shop, color_scheme="dark") as ada:
        assert ada.page.evaluate(background) == dark


def test_times_are_the_viewers_and_utc_is_in_their_title(shop: Shop, browser: Browser) -> None:
    operation_id = shop.rename()
    with visiting(browser, shop, timezone_id="Asia/Tokyo") as ada:
        page = ada.go(f"/operations/{operation_id}?node={operation_id}")
        time = page.locator("#detail time").first
        started = shop.bus.operations.get(operation_id).started_at
        local = started + timedelta(hours=9)
        expect(time).to_contain_text(f"{local:%Y-%m-%d %H:%M:%S}")
        expect(time).to_have_attribute("title", f"{started:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC")


# --- what events say stays text -----------------------------------------------------------------------

HOSTILE = [
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "'><svg onload=window.pwned=1>",
    "</script><script>window.pwned = 1</script>",
    "</title></textarea></style><iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "javascript:window.pwned=1",
    "{{ 7 * 7 }}{% raw %}<b>x</b>",
    "<a href=javascript:window.pwned=1>x</a>",
    "\u202e<details open ontoggle=window.pwned=1>",
    "&lt;img src=x onerror=window.pwned=1&gt;",
]
# Marks of the axis and times of waiting depend on the moment.
PASSING = ".grid-line, .cut, .kind-wait, .kind-wait > *, svg[aria-hidden] > text"
ELEMENTS = f"() => document.querySelectorAll('*:not({PASSING})').length"


@event("Hostile.said", key="text")
@attrs.frozen(kw_only=True)
class Said:
    text: str
    more: dict[str, Any] = attrs.field(factory=dict)


def test_no_text_of_an_event_becomes_an_element(shop: Shop, browser: Browser) -> None:
    @shop.bus.group("Hostile").handler(Said, retry=RetryPolicy(stop=stop_after_attempt(1)))
    def repeat(event: Said) -> None:
        raise ValueError(event.text)

    shop.bus.open()
    worker = Worker(shop.bus, threads=2, grace=5).start()
    try:
        with visiting(browser, shop) as ada:
            harmless = elements_of(ada, "x" * 30)
            for text in HOSTILE:
                assert elements_of(ada, text) == harmless, text
            assert ada.page.evaluate("window.pwned") is None
    finally:
        worker.stop()


def elements_of(ada: Visitor, text: str) -> list[int]:
    """How many elements the pages have that show this text, in every place where it can stand."""
    shop = ada.shop
    variables = {text.replace("$", "").replace(".", ""): text}
    said = Said(text=text, more={"inner": text})
    operation_id = shop.run(text, said, kind="script", user=text, variables=variables)
    (letter,) = shop.bus.dead_letters.find(operation_id=operation_id)
    paths = [
        f"/operations/{operation_id}?node={letter.id}",
        f"/operations/{operation_id}?node={operation_id}",
        f"/operations/{operation_id}?node={letter.event_id}&view=waterfall",
        f"/operations/{operation_id}?view=text",
        f"/events/{letter.event_id}",
        f"/deliveries/{letter.id}",
    ]
    counts = []
    for path in paths:
        page = ada.go(path)
        expect(page.locator("main h1")).to_be_visible()
        counts.append(page.evaluate(ELEMENTS))
    page = ada.go("/dead/letters?handler=Hostile.repeat")
    counts.append(page.locator("tr").first.evaluate("row => row.querySelectorAll('*').length"))
    shop.bus.dead_letters.discard(letter.id, reason="seen")
    return counts
