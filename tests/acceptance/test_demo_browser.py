"""The blog's pages in a real browser, on real servers with real workers, and the chain they set off."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from eventdriven_sync import EventBus
from eventdriven_sync.chain import Chain
from eventdriven_sync.demo.stage import Stage
from eventdriven_sync.devserver import DevServers
from tests.browser import chromium
from tests.polling import eventually


@pytest.fixture
def settings(own_servers: DevServers) -> dict[str, str]:
    return own_servers.settings(namespace="blog", database="blog_events")


@pytest.fixture
def blog(settings: dict[str, str]) -> Iterator[Stage]:
    with Stage(settings, echo=print) as running:
        yield running


@pytest.fixture
def page(blog: Stage) -> Iterator[Page]:
    """A page of the blog. The browser has nothing to complain about but the wrong password."""
    complaints: list[str] = []
    with chromium() as browser:
        page = browser.new_page(base_url=blog.url, viewport={"width": 360, "height": 740})
        page.on("console", lambda message: "401" in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
    assert not complaints


@pytest.fixture
def bus(settings: dict[str, str]) -> Iterator[EventBus]:
    with EventBus.from_env(settings) as bus:
        yield bus


def register(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="Register").click()
    page.get_by_label("First name").fill("Ada")
    page.get_by_label("Last name").fill("Byron")
    page.get_by_label("E-mail").fill("ada@example.org")
    page.get_by_label("Password").fill("Analytical-Engine")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_role("status")).to_have_text("Welcome, Ada!")


def sign_out_and_in(page: Page) -> None:
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("E-mail").fill("ada@example.org")
    page.get_by_label("Password").fill("Wrong-Engine")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("The e-mail address or the password is wrong.")
    page.get_by_label("Password").fill("Analytical-Engine")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_have_text("You are signed in.")


def write_and_comment(page: Page, bus: EventBus) -> str:
    page.get_by_role("link", name="Write", exact=True).click()
    page.get_by_label("Title").fill("Notes <i>on</i> the Engine")
    page.get_by_label("Text").fill("It weaves algebraical patterns.\n\nAs the loom weaves flowers.")
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Notes <i>on</i> the Engine")
    await_modules(bus, "writePost")
    page.get_by_label("Your comment").fill("Note G will be longer.")
    page.get_by_role("button", name="Comment").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("1 comment")
    return page.url


def rename(page: Page) -> str:
    """Rename Ada; the id of the operation, which the page shows."""
    page.get_by_role("link", name="Ada Byron").click()
    page.get_by_label("Last name").fill("Lovelace")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Ada Lovelace")
    found = re.search(r"eventdriven chain ([0-9a-f]{24})", page.get_by_role("status").inner_text())
    assert found
    return found[1]


def await_modules(bus: EventBus, *names: str) -> None:
    """Until the modules have copied what these events tell; a person types more slowly than this test."""

    def copied() -> bool:
        settled = {each.name: bus.operations.chain(each.id).settled for each in bus.operations.find()}
        return all(settled.get(name) for name in names)

    eventually(copied, timeout=30)


def shape(chain: Chain) -> dict[str, dict[str, list[str]]]:
    """Event → handler → events, as the chain shows them below the operation."""
    return {
        node.event.name: {
            child.delivery.handler: [event.event.name for event in child.events] for child in node.deliveries
        }
        for node in chain.events
    }


def test_a_rename_in_the_browser_reaches_both_modules_and_its_chain_shows_how(
    page: Page, bus: EventBus, settings: dict[str, str]
) -> None:
    register(page)
    await_modules(bus, "registerUser")
    sign_out_and_in(page)
    post = write_and_comment(page, bus)
    operation_id = rename(page)
    chain = bus.operations.wait(operation_id, timeout=30)
    assert (chain.operation.kind, chain.operation.name) == ("http", "userUpdateNames")
    assert shape(chain) == {
        "User.nameUpdated": {
            "Blog.rename_author": ["Blog.userUpdated"],
            "Comment.rename_author": ["Comment.userUpdated"],
        }
    }
    assert chain.succeeded
    page.goto(post)
    expect(page.locator("#author")).to_have_text("Ada Lovelace")
    expect(page.locator(".commentator")).to_have_text("Ada Lovelace")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    printed = cli(settings, "chain", operation_id)
    wanted = r"userUpdateNames.*User\.nameUpdated.*Blog\.rename_author.*Blog\.userUpdated"
    assert re.search(wanted, printed, re.S)
    assert re.search(r"Comment\.rename_author\s+succeeded.*Comment\.userUpdated", printed, re.S)


def cli(settings: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "eventdriven_sync", *arguments],
        env=os.environ | settings | {"NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
