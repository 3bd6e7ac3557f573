import math
import subprocess
import sys
import time
from typing import Any

import attrs
import pytest

from eventdriven_sync.brokers.nats import NatsBroker
from eventdriven_sync.config import Settings, between, check_name, check_number, redact
from eventdriven_sync.errors import BrokerUnavailable, ConfigurationError, InvalidGroupName, InvalidOption


def test_the_defaults_are_valid_and_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.lease = 1.0  # type: ignore[misc]
    assert attrs.evolve(settings, lease=1.0).lease == 1.0


RANGES = [
    ("publish_timeout", 0.05, 60),
    ("broker_timeout", 0.05, 300),
    ("ack_wait", 0.3, 3600),
    ("lease", 0.3, 3600),
    ("reconcile_after", 0.1, 86400),
    ("reconcile_every", 0.05, 3600),
    ("poll_every", 0.01, 60),
    ("stall_after", 0.1, 86400),
    ("version_grace", 0, 30 * 86400),
    ("stream_max_age", 60, 3650 * 86400),
]
WHOLE_RANGES = [
    ("max_payload_bytes", 2048, 8 * 1024 * 1024),
    ("max_chain_depth", 1, 100_000),
    ("max_lost", 1, 100),
]


@pytest.mark.parametrize(("field", "low", "high"), RANGES + WHOLE_RANGES)
def test_a_number_is_taken_at_both_ends_of_its_range_and_refused_beyond(
    field: str, low: Any, high: Any
) -> None:
    for good in (low, high):
        assert getattr(Settings(**{field: good}), field) == good
    for bad in (low - 0.001, low - 1, high + 1, -1, math.nan, math.inf, -math.inf, "10", None, True, [1]):
        with pytest.raises(InvalidOption) as caught:
            Settings(**{field: bad})
        assert str(caught.value).startswith(f"{field} is ")
        assert f" from {low:,.10g} to {high:,.10g}" in str(caught.value)
        assert (caught.value.field, caught.value.limit) == (field, (low, high))


@pytest.mark.parametrize("field", [row[0] for row in WHOLE_RANGES])
def test_a_count_is_a_whole_number(field: str) -> None:
    with pytest.raises(InvalidOption, match=rf"{field} is 4096\.5: give a whole number"):
        Settings(**{field: 4096.5})


@pytest.mark.parametrize("value", [0, 2, -1, 5, True, 1.0, "3", None])
def test_replicas_are_1_or_3(value: Any) -> None:
    assert Settings(stream_replicas=3).stream_replicas == 3
    with pytest.raises(InvalidOption, match=r"stream_replicas is .*: give 1 or 3"):
        Settings(stream_replicas=value)


@pytest.mark.parametrize("value", ["", "a.b", "a_b", "-a", "a b", "é", "a" * 33, "a*", None, 5, "a\n"])
def test_a_namespace_that_cannot_begin_a_subject_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"namespace is .*: 1 to 32 characters") as caught:
        Settings(namespace=value)
    assert caught.value.value == value


GOOD_URLS = [
    ("nats", "nats://localhost"),
    ("nats", "nats://user:secret@host:4222"),
    ("nats", "tls://[::1]:4222"),
    ("nats", "nats://a:4222,nats://b:4222, tls://c:4222"),
    ("nats", "memory://"),
    ("mongo", "mongodb://localhost:27017/blog"),
    ("mongo", "mongodb://user:secret@a:1,b:2,c:3/blog?replicaSet=rs0"),
    ("mongo", "mongodb+srv://cluster.example/blog"),
    ("mongo", "memory://"),
]


@pytest.mark.parametrize(("field", "url"), GOOD_URLS)
def test_urls_of_one_server_and_of_several_are_taken(field: str, url: str) -> None:
    assert getattr(Settings(**{field: url}), field) == url
    assert getattr(Settings(**{field: f" {url}\n"}), field) == url


BAD_URLS = [
    ("nats", "nats://[::1", "cannot be read as a URL"),
    ("mongo", "mongodb://ada:\u2100@host/blog", "cannot be read as a URL"),
    ("nats", "localhost:4222", "must begin with nats://"),
    ("nats", "http://localhost:4222", "must begin with nats://"),
    ("nats", "nats:/localhost", "must begin with nats://"),
    ("nats", "nats://", "host or port"),
    ("nats", "nats://host:0", "host or port"),
    ("nats", "nats://host:99999", "host or port"),
    ("nats", "nats://host:port", "host or port"),
    ("nats", "nats://a:1,b:2", "host or port"),
    ("nats", "nats://a:1,http://b:2", "must begin with nats://"),
    ("nats", "nats://a b:1", "white space"),
    ("nats", "", "give text"),
    ("nats", None, "give text"),
    ("nats", 4222, "give text"),
    ("mongo", "localhost:27017", "must begin with mongodb://"),
    ("mongo", "mongo://localhost", "must begin with mongodb://"),
    ("mongo", "mongodb://a/b c", "white space"),
    ("mongo", None, "give text"),
]


@pytest.mark.parametrize(
    "url",
    [
        "://" * 60_000,
        "," * 200_000,
        "nats://" + "a:" * 90_000,
        "password=" * 20_000,
        "@" * 200_000,
        "a" * 200_000,
    ],
    ids=lambda url: url[:9],
)
def test_a_long_url_is_shown_without_its_secrets_in_no_time(url: str) -> None:
    began = time.perf_counter()
    redact(url)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(("field", "url", "reason"), BAD_URLS)
def test_a_url_that_cannot_be_used_is_refused_with_an_example(field: str, url: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Settings(**{field: url})
    assert str(caught.value).startswith(f"{field} URL is ")
    assert ", for example " in str(caught.value)
    assert caught.value.field == field


REDACTED = [
    ("nats://host:4222", "nats://host:4222"),
    ("nats://user:secret@host", "nats://user:***@host"),
    ("nats://secret@host", "nats://***@host"),
    ("nats://u:secret@a:1,nats://u:secret@b:2", "nats://u:***@a:1,nats://u:***@b:2"),
    ("mongodb://u:se/cr@et@a:1,b:2/db?w=1", "mongodb://u:***@a:1,b:2/db?w=1"),
    (
        "mongodb://h/db?tlsCertificateKeyFilePassword=secret&w=1",
        "mongodb://h/db?tlsCertificateKeyFilePassword=***&w=1",
    ),
    (
        "mongodb://h/db?authMechanismProperties=AWS_SESSION_TOKEN:secret",
        "mongodb://h/db?authMechanismProperties=***",
    ),
]


@pytest.mark.parametrize(("url", "shown"), REDACTED)
def test_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
    field = "nats" if url.startswith("nats") else "mongo"
    assert "secret" not in repr(Settings(**{field: url}))
    with pytest.raises(ConfigurationError) as caught:
        Settings(**{field: url.replace("nats://", "stan://").replace("mongodb://", "mysql://")})
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.facts)


def test_variables_of_the_environment_are_read_as_the_type_of_their_setting() -> None:
    environ = {
        "EVENTDRIVEN_NATS": "nats://broker:4222\n",
        "EVENTDRIVEN_NAMESPACE": "blog",
        "EVENTDRIVEN_LEASE": "2.5",
        "EVENTDRIVEN_MAX_LOST": "7",
        "EVENTDRIVEN_STREAM_REPLICAS": "3",
        "PATH": "/bin",
    }
    assert Settings.from_env(environ) == Settings(
        nats="nats://broker:4222", namespace="blog", lease=2.5, max_lost=7, stream_replicas=3
    )
    assert Settings.from_env({}) == Settings()


def test_the_environment_of_the_process_is_read_when_asked_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTDRIVEN_NAMESPACE", "from-env")
    assert Settings().namespace == "eventdriven"
    assert Settings.from_env().namespace == "from-env"


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("LEASE", "soon", "EVENTDRIVEN_LEASE is 'soon': give a number, for example 30.0"),
        ("LEASE", "", "EVENTDRIVEN_LEASE is '': give a number"),
        ("LEASE", "0", "lease is 0.0: give a number from 0.3 to 3,600"),
        ("LEASE", "nan", "lease is nan"),
        ("MAX_LOST", "2.5", "EVENTDRIVEN_MAX_LOST is '2.5': give a whole number"),
        ("NATS", "", "nats URL is ''"),
        ("NAMSPACE", "x", "EVENTDRIVEN_NAMSPACE is no setting: did you mean EVENTDRIVEN_NAMESPACE?"),
        ("NATS_URL", "x", "did you mean EVENTDRIVEN_NATS?"),
        ("MONGO_URI", "x", "did you mean EVENTDRIVEN_MONGO?"),
        ("MONGODB", "x", "did you mean EVENTDRIVEN_MONGO?"),
        ("ACKWAIT", "x", "did you mean EVENTDRIVEN_ACK_WAIT?"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(variable: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({f"EVENTDRIVEN_{variable}": text})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "variable", ["APP", "DEBUG", "NATS_SERVER_BIN", "MONGOD_BIN", "PORT", "SERVICE_HOST", "PORT_80_TCP"]
)
def test_variables_of_others_with_our_prefix_are_left_alone(variable: str) -> None:
    assert Settings.from_env({f"EVENTDRIVEN_{variable}": "x"}) == Settings()


@pytest.mark.parametrize("name", ["a", "Blog", "send-mail", "a_b", "_private", "0", "x" * 64])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name(name, what="handler") == name


def test_group_and_handler_cannot_be_joined_to_the_same_consumer_in_two_ways() -> None:
    assert check_name("import_", what="handler") == "import_"
    with pytest.raises(InvalidGroupName, match="a group without '_' at its end"):
        check_name("Blog_", what="group")


def test_a_number_is_checked_under_the_name_it_is_given() -> None:
    assert check_number(5, field="threads", low=1, high=9) == 5
    with pytest.raises(InvalidOption, match="threads is 0: give a number from 1 to 9"):
        check_number(0, field="threads", low=1, high=9)
    with pytest.raises(InvalidOption, match="size is 10: give a number from 1 to 9"):
        attrs.make_class("Sized", {"size": attrs.field(validator=between(1, 9))})(10)


def test_importing_the_package_reads_no_environment_and_loads_little() -> None:
    program = (
        "import sys, os\n"
        "os.environ = None\n"
        "import eventdriven_sync\n"
        "from eventdriven_sync import event\n"
        "heavy = {'nats', 'pymongo', 'bson', 'cattrs', 'tenacity', 'flask', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_no_part_of_an_unescaped_password_stands_in_an_error_of_the_broker() -> None:
    broker = NatsBroker("nats://u:se@cret@127.0.0.1:1", namespace="unit")
    with pytest.raises(BrokerUnavailable) as caught:
        broker.consumer_state("unit_User", "Blog__notify", timeout=0.1)
    broker.close(timeout=1)
    assert "cret" not in f"{caught.value} {caught.value.__dict__}"
