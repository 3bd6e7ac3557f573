"""What the events bring about, with broker and store in memory."""

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eventdriven_sync.testing import MemoryRun
from flask_blog.blogs import data as blogs
from flask_blog.comments import data as comments
from flask_blog.comments.handlers import rename_author
from flask_blog.events import (
    BlogDayEnded,
    BlogPostViewed,
    BlogUserDuplicated,
    BlogUserUpdated,
    CommentUserUpdated,
    UserNameUpdated,
    UserRegistered,
)
from flask_blog.extensions import events
from flask_blog.users import data as users

LOVELACE = {"first_name": "Ada", "last_name": "Lovelace"}


def test_a_registered_user_is_known_to_the_other_modules(
    app: Flask, ada: FlaskClient, run: MemoryRun
) -> None:
    [registered] = run.assert_published(UserRegistered, first_name="Ada", last_name="Byron")
    run.assert_published(BlogUserDuplicated, user_id=registered.user_id, times=1)
    with app.app_context():
        for module in (blogs, comments):
            assert module.find_user(registered.user_id)["last_name"] == "Byron"


def test_a_user_who_is_not_copied_yet_is_asked_to_wait(visitor: FlaskClient, run: MemoryRun) -> None:
    visitor.post("/register", json={**LOVELACE, "email": "a@b.org", "password": "Analytical1"})
    answer = visitor.post("/posts", json={"title": "Notes", "text": "On the Engine"})
    assert (answer.status_code, "try again in a moment" in answer.json["error"]) == (409, True)


def test_a_rename_reaches_posts_and_comments(ada: FlaskClient, post_id: str, run: MemoryRun) -> None:
    ada.post("/me/name", json=LOVELACE)
    run.drain()
    run.assert_published(BlogUserUpdated, posts=1, times=1)
    run.assert_published(CommentUserUpdated, comments=1, times=1)
    [comment] = ada.get(f"/posts/{post_id}/comments").json["comments"]
    for author in (ada.get(f"/posts/{post_id}").json["post"]["author"], comment["author"]):
        assert author == {"id": ada.get("/me").json["user"]["id"], **LOVELACE}


def test_names_that_come_late_or_twice_change_nothing(app: Flask, ada: FlaskClient, post_id: str) -> None:
    user_id = ada.get("/me").json["user"]["id"]
    names = [{"first_name": "Ada", "last_name": name} for name in ("King", "Byron")]
    with app.app_context():
        for module in (blogs, comments):
            renamed = [module.rename_author(user_id, names[i], revision=3 - i) for i in (0, 1, 0)]
            module.keep_user(user_id, names[1], 1)
            assert renamed == [1, 0, 0]
            assert module.find_user(user_id)["last_name"] == "King"
        assert blogs.find(post_id)["author"]["last_name"] == "King"


def test_while_the_fault_is_on_comments_keep_the_old_name_until_the_retry(
    app: Flask, ada: FlaskClient, post_id: str, run: MemoryRun
) -> None:
    ada.post("/demonstration/fault", json={"fault": "on"})
    ada.post("/me/name", json=LOVELACE)
    run.drain()
    [letter] = events.bus_of(app).dead_letters.find()
    assert (letter.handler, letter.failed) == ("Comment.rename_author", 5)
    assert letter.failures[-1].message == "Test Error!!"
    run.assert_published(BlogUserUpdated, posts=1)
    run.assert_not_published(CommentUserUpdated)
    ada.post("/demonstration/fault", json={"fault": "off"})
    events.bus_of(app).dead_letters.retry(letter.id)
    run.drain()
    run.assert_published(CommentUserUpdated, comments=1, times=1)


def test_a_handler_has_a_retry_policy_of_its_own(app: Flask) -> None:
    policy = events.bus_of(app).handlers["Comment.rename_author"].retry
    decisions = [policy.decide(RuntimeError(), failures=n) for n in range(1, 6)]
    assert decisions == [0.5, 1.0, 2.0, 4.0, "attempts_exhausted"]


def test_a_handler_is_a_function_that_a_test_can_call(app: Flask, run: MemoryRun) -> None:
    with app.app_context():
        rename_author(UserNameUpdated(user_id="1", revision=2, **LOVELACE))
        assert comments.find_user("1")["last_name"] == "Lovelace"
    run.assert_published(CommentUserUpdated, comments=0)


def test_a_transactional_handler_that_fails_publishes_nothing(
    visitor: FlaskClient, run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no database")

    with monkeypatch.context() as broken:
        broken.setattr(blogs, "keep_user", fail)
        visitor.post("/register", json={**LOVELACE, "email": "a@b.org", "password": "Analytical1"})
        run.drain(retries=False)
    run.assert_not_published(BlogUserDuplicated)
    run.drain()
    run.assert_published(BlogUserDuplicated, times=1)


def test_views_are_counted_in_one_batch_per_post(
    ada: FlaskClient, post_id: str, run: MemoryRun, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ada.post("/posts", json={"title": "More", "text": "Notes"}).json["id"]
    for read in (post_id, other, post_id, post_id):
        assert ada.get(f"/posts/{read}").status_code == 200
    capsys.readouterr()
    run.drain()
    said = [line for line in capsys.readouterr().out.splitlines() if "postViewed" in line]
    assert sorted(line.split(" Blog ")[1] for line in said) == [
        "adds 1 to the views of a post",
        "adds 3 to the views of a post",
    ]
    run.assert_published(BlogPostViewed, times=4)
    assert [post["views"] for post in ada.get("/").json["posts"]] == [1, 3]


def test_contributions_are_counted_for_the_user_and_the_post(
    ada: FlaskClient, post_id: str, run: MemoryRun
) -> None:
    user = ada.get("/me").json["user"]
    assert (user["posts"], user["comments"]) == (1, 1)
    assert ada.get("/").json["posts"][0]["comments"] == 1


def test_the_nightly_statistics_happen_once_however_often_they_run(
    app: Flask, ada: FlaskClient, post_id: str, run: MemoryRun
) -> None:
    command = ["blog", "nightly-statistics", "--day", "2026-11-26"]
    said = [app.test_cli_runner().invoke(args=command).output for _ in range(3)]
    run.drain()
    assert ["already" in line for line in said] == [False, True, True]
    assert len({line.split()[0] for line in said}) == 1
    run.assert_published(BlogDayEnded, times=1)
    counted = {"day": "2026-11-26", "posts": 1, "comments": 1, "views": 0, "counted": 1}
    assert ada.get("/statistics").json["days"] == [counted]


def test_a_command_is_stored_with_its_user_and_without_secrets(app: Flask, ada: FlaskClient) -> None:
    answer = ada.post("/me/name", json=LOVELACE)
    bus = events.bus_of(app)
    operation = bus.operations.get(answer.headers["X-Operation-Id"])
    assert (operation.kind, operation.name) == ("http", "userUpdateNames")
    assert operation.user == answer.json["id"]
    assert dict(operation.variables) == LOVELACE
    [registered] = bus.operations.find(name="registerUser")
    assert dict(registered.variables) == {"email": "ada@example.org"}
    with app.app_context():
        assert users.find(answer.json["id"])["password"].startswith("scrypt:")


def test_a_post_sent_twice_under_one_key_is_written_once(ada: FlaskClient, run: MemoryRun) -> None:
    def send(text: str) -> TestResponse:
        return ada.post("/posts", json={"title": "Notes", "text": text}, headers={"Idempotency-Key": "n1"})

    first, again, other = send("On the Engine"), send("On the Engine"), send("On the Loom")
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert first.json == again.json
    assert len(run.envelopes("Blog.postWritten")) == len(ada.get("/").json["posts"]) == 1
