"""What events carry is not believed: secrets are in no response, and markup in no page."""

import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
from flask import Flask
from tenacity import stop_after_attempt, wait_none

from eventdriven_sync import EventBus, RetryPolicy, event
from eventdriven_sync.dashboard import Identity, passwords
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.envelope import new_id, utcnow
from eventdriven_sync.executor import failure_of
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.outcome import Dead
from eventdriven_sync.records import RawMessage, Settlement
from eventdriven_sync.testing import memory
from tests.unit.dashboards import CHEAP, Browser, new_bus, site


@event("Shop.signedUp", key="email")
@attrs.frozen(kw_only=True)
class SignedUp:
    email: str
    password: str = ""
    profile: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class World:
    """A shop with something in every place that a response can be made of."""

    bus: EventBus
    operation: str
    events: tuple[str, ...]
    letters: tuple[str, ...]

    def paths(self, app: Flask) -> list[str]:
        """Every address that can be looked at, for every record there is."""
        known = {
            "delivery_id": self.letters,
            "letter_id": self.letters,
            "event_id": self.events,
            "operation_id": (self.operation,),
            "job_id": tuple(job.id for job in Monitor(self.bus).jobs().items),
            "name": ("Shop.signedUp",),
        }
        found: list[str] = []
        for rule in app.url_map.iter_rules():
            if "GET" not in (rule.methods or set()) or "/static/" in rule.rule:
                continue
            names = re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)
            assert len(names) <= 1, f"say in this test how {rule.rule} is filled in"
            if not names:
                found.append(rule.rule)
            for value in known[names[0]] if names else ():
                found.append(re.sub(r"<[^>]+>", value, rule.rule))
        chain = f"/events/operations/{self.operation}"
        nodes = [f"{chain}?node={node}" for node in (self.operation, *self.events, *self.letters)]
        return [*found, *nodes, f"{chain}?view=waterfall", f"{chain}?view=text"]


def make_world(bus: EventBus, run: Any, *, text: str, payload: dict[str, Any], note: str) -> World:
    """Put ``text`` where errors are, ``payload`` where documents are, ``note`` where reasons are."""

    @bus.group("Mail").handler(SignedUp, retry=RetryPolicy(stop=stop_after_attempt(1), wait=wait_none()))
    def welcome(event: SignedUp) -> None:
        raise ConnectionError(text)

    bus.open()
    signed_up = SignedUp(email="ada@example.org", password=payload.get("password", text), profile=payload)
    operation = bus.operation("sign-up", kind="http", variables=payload, details=payload, user="ada")
    operation.begin()
    receipts = [bus.publish(signed_up) for _ in range(3)]
    operation.end(failure_of(ValueError(text)))
    run.drain()
    letters = [f"Mail.welcome:{receipt.id}" for receipt in receipts]
    monitor = Monitor(bus)
    monitor.discard(letters[0], by="ada", reason=note, ip="192.0.2.1")
    monitor.retry_group("Mail.welcome", by="ada", reason=note)
    monitor.pause("Mail.welcome", by="ada", reason=note)
    monitor.retry(letters[1], by="ada", reason=note)
    return World(
        bus=bus,
        operation=operation.id,
        events=tuple(receipt.id for receipt in receipts),
        letters=(*letters, _store_junk(run, text)),
    )


def _store_junk(run: Any, text: str) -> str:
    """A message that is no event, kept as it came; the id of its dead letter."""
    event_id = new_id()
    failure = failure_of(ValueError(text))
    raw = RawMessage(
        stream="shop_Shop",
        sequence=7,
        subject="shop.Shop.signedUp",
        headers={"Authorization": f"Bearer {text}", "X-Note": text},
        data=json.dumps({"password": text, "note": text}).encode() + b"\xff",
    )
    settlement = Settlement(
        handler="Mail.welcome",
        event_id=event_id,
        event_name="Shop.signedUp",
        operation_id=event_id,
        outcome=Dead(reason="undecodable", failure=failure),
        token=new_id(),
        claimed=False,
        started_at=utcnow(),
        duration_ms=1.0,
        worker="host:1",
        raw=raw,
    )
    assert run.store.deliveries.settle([settlement]) == [True]
    return settlement.delivery_id


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[EventBus, Any]]:
    monkeypatch.setattr(passwords, "METHOD", CHEAP)
    bus = new_bus()
    with memory(bus) as run:
        yield bus, run


# --- secrets --------------------------------------------------------------------------------------------

CANARY = "c4n4ry-7f1d9e"
JWT = ".".join(
    base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
    for part in ('{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{CANARY}"}}', CANARY * 3)
)
SECRET_PAYLOAD = {
    "password": CANARY,
    "profile": {"api_key": CANARY, "deep": [{"authorization": f"Bearer {CANARY}"}]},
    "cookie": f"sid={CANARY}",
    "note": f"see https://ada:{CANARY}@example.org/x",
    "text": f"he said password={CANARY} and left",
    "token_text": JWT,
}
SECRET_TEXT = (
    f"cannot reach mongodb://ada:{CANARY}@db:27017/x; password={CANARY}; "
    f"Authorization: Bearer {CANARY}; {JWT}"
)


def test_a_secret_is_in_no_response(run_of: tuple[EventBus, Any]) -> None:
    """It stands in payloads, variables, details, errors, stacks, raw messages, reasons and accounts."""
    bus, run = run_of
    world = make_world(bus, run, text=SECRET_TEXT, payload=SECRET_PAYLOAD, note=f"retried, token={CANARY}")
    stored = repr(vars(run.store._state._tables) if hasattr(run.store._state._tables, "__dict__") else "")
    stored += repr([bus.store.events.get(list(world.events)), bus.operations.get(world.operation)])
    stored += repr([bus.dead_letters.get(each) for each in world.letters])
    assert stored.count(CANARY) > 12, "the canary must be there to be hidden"
    app = site(bus, secret_key=f"{CANARY}-0123456789-abcdefghijklmnopqrstuvwxyz")
    Accounts(bus).add("root", f"{CANARY}-password", role="admin", by="test")
    browser = Browser(app)
    wrong = browser.sign_in("root", f"wrong {CANARY}")
    assert CANARY not in wrong.text
    assert browser.sign_in("root", f"{CANARY}-password").status_code == 303
    seen = 0
    for path in world.paths(app):
        answer = browser.client.get(path)
        said = f"{answer.headers}{answer.get_data(as_text=True)}"
        hidden = base64.b64encode(CANARY.encode()).decode()[:12]
        assert CANARY not in said, (path, said[max(said.index(CANARY) - 200, 0) :][:400])
        assert JWT.split(".")[1] not in said, path
        assert hidden not in said, path
        seen += answer.status_code == 200
    assert seen > 30


# --- markup ---------------------------------------------------------------------------------------------

CORPUS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe src=javascript:alert(1)>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    "</text></svg><script>alert(1)</script>",
    '" autofocus onfocus=alert(1) x="',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{7*7}}{% print(7*7) %}",
    "${7*7}<%= 7*7 %>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u2028\u2029<b>x</b>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "<form action=//evil.example><input name=password>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<a href=javascript:alert(1)>x</a>",
    "<math><mi xlink:href=javascript:alert(1)>x",
    "\x00<script>alert(1)</script>",
    "‮<script>",
    "&#x3c;script&#x3e;",
    "<details open ontoggle=alert(1)>",
    "+ADw-script+AD4-alert(1)",
    "`-alert(1)-`",
]
EVIL = " ".join(CORPUS)
# Without what Markup is made of, and as long.
HARMLESS = re.sub(r"[<>\"'&=:`{}%$\x00\u2028\u2029\u202e/]", "x", EVIL)


class Page(HTMLParser):
    """The elements of a page, and what in it could run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.running: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            scheme = (value or "").strip().lower()
            linked = name in ("href", "src", "action", "formaction", "xlink:href")
            if name.startswith("on") or name == "style" or name == "srcdoc":
                self.running.append(f"{tag} {name}")
            if linked and re.match(r"(?:[a-z][a-z0-9+.-]*:|//|\\)", scheme):
                self.running.append(f"{tag} {name}={value}")
        if tag == "script" and not dict(attrs).get("src") and dict(attrs).get("type") != "application/json":
            self.running.append("script inline")


def counted(text: str) -> dict[str, int]:
    tags = Page(text).tags
    return {tag: tags.count(tag) for tag in sorted(set(tags))}


def looked_at(bus: EventBus, run: Any, text: str) -> dict[str, str]:
    """Every page of a world that is full of this text, by the shape of its address."""
    payload = {"note": text, "list": [text, {"deep": text}], re.sub(r"[.$\x00]", "", text)[:200]: text}
    clean = text.replace("\x00", "")
    world = make_world(bus, run, text=clean, payload=payload, note=clean)
    app = site(bus, insecure=True)
    client = app.test_client()
    pages: dict[str, str] = {}
    for path in world.paths(app):
        answer = client.get(path)
        if answer.mimetype in ("text/html", "image/svg+xml"):
            shape = re.sub(r"[0-9a-f]{24}", "ID", path)
            pages[f"{shape} {len([each for each in pages if each.startswith(f'{shape} ')])}"] = answer.text
    assert len(pages) > 15
    return pages


def test_what_events_carry_makes_no_element() -> None:
    found: dict[str, dict[str, str]] = {}
    for text in (HARMLESS, EVIL):
        bus = new_bus()
        with memory(bus) as run:
            found[text] = looked_at(bus, run, text)
    for shape, page in found[EVIL].items():
        assert Page(page).running == [], shape
        harmless = counted(found[HARMLESS][shape])
        if shape.startswith("/events/ ") or "view=waterfall" in shape:
            # The overview has a bar more when a minute ends in between, and the axis follows the clock.
            assert set(counted(page)) == set(harmless)
        else:
            assert counted(page) == harmless, shape


@pytest.fixture
def browser(run_of: tuple[EventBus, Any]) -> Browser:
    bus, _ = run_of
    Accounts(bus).add("root", "correct horse battery", role="admin", by="test")
    return Browser(site(bus, registration=True))


@pytest.mark.parametrize("text", CORPUS)
def test_what_is_sent_makes_no_element(browser: Browser, text: str) -> None:
    harmless = "x" * 20
    for at in ("/login", "/register"):
        fields = {"password": "wrong horse battery", "password_again": "x"}
        evil, good = (browser.post(at, name=name, **fields).text for name in (text, harmless))
        assert counted(evil) == counted(good)
        assert Page(evil).running == []
    for query in ({"next": text}, {text: text}):
        page = browser.get("/login", query_string=query).text
        assert counted(page) == counted(browser.get("/login").text)
        assert Page(page).running == []


@pytest.mark.parametrize("text", CORPUS)
def test_what_is_asked_for_makes_no_element(run_of: tuple[EventBus, Any], text: str) -> None:
    bus, _ = run_of
    client = site(bus, authorize=lambda request: Identity(name=text or "x", role="admin")).test_client()
    for path in ("/operations", "/events", "/dead", "/dead/letters", "/audit"):
        for name in ("name", "kind", "key", "who", "since", "status", "after", "handler", "payload"):
            page = client.get(f"/events{path}", query_string={name: text})
            assert page.status_code in (200, 400), page.text
            assert Page(page.text).running == [], (path, name)
    missing = client.get("/events/" + text.replace("/", ""))
    assert Page(missing.text).running == []


def test_data_for_scripts_cannot_end_the_script() -> None:
    from eventdriven_sync.dashboard.rendering import environment

    text = environment().from_string("{{ value|tojson }}").render(value={"x": "</script>&\u2028\u2029<!--"})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"x": "</script>&\u2028\u2029<!--"}


def test_no_template_trusts_what_it_shows() -> None:
    from eventdriven_sync.dashboard.rendering import environment

    assert environment().autoescape is True
    loader = environment().loader
    assert loader
    for name in environment().list_templates():
        source, _, _ = loader.get_source(environment(), name)
        unsafe = r"\|\s*safe\b|Markup|autoescape\s+false|javascript:|\sstyle=|\son\w+="
        assert not re.search(unsafe, source), name
        # A drawing that is saved as a file has its style in it.
        assert "<style" not in source or name.endswith(".svg"), name
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", source), name


def test_no_script_makes_markup_of_text() -> None:
    from eventdriven_sync.dashboard.assets import FOLDER

    for path in FOLDER.glob("*.js"):
        source = path.read_text(encoding="utf-8")
        unsafe = r"(?:inner|outer)HTML\s*\+?=[^=]|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(unsafe, source), path.name
