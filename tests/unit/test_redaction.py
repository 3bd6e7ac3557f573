"""Redaction: secrets are hidden by name, by look and as given literals; all else is shown, within limits."""

import json
import string
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventdriven_sync.codec import Codec
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.redaction import MAX_FREE_TEXT, Redaction
from eventdriven_sync.sensitive import HIDDEN

REDACTION = Redaction()
CODEC = Codec()
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1g"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"


def size(document: Any) -> int:
    return len(json.dumps(document, ensure_ascii=False).encode())


# --- names ---------------------------------------------------------------------------------------------

# fmt: off
HIDDEN_NAMES = [
    "password", "Password", "PASSWORD", "passwords", "password2", "user_password", "userPassword",
    "newpassword", "user[password]", "PGPASSWORD", "PassWoRD", "pass-word", "passwd", "pass", "passes",
    "db_pass", "dbPass", "pwd", "user.pwd", "passphrase", "secret", "secrets", "clientSecret",
    "clientsecret", "token", "tokens", "token_count", "accessToken", "accesstoken",
    "csrfmiddlewaretoken", "authorization", "Proxy-Authorization", "auth", "auths", "oauth",
    "OAuth2Token", "apiKey", "api-key", "api_keys", "apikey", "X-API-Key", "APIKey", "access_key",
    "accessKeyId", "private_key", "secretKey", "SECRET_KEY", "credential", "credentials", "cookie",
    "Set-Cookie", "cookies", "session", "sessionId", "sessionid", "PHPSESSID", "JSESSIONID", "csrf",
    "XSRF-TOKEN", "jwt", "JWTs", "bearer", "otp", "totp_code", "pin", "PINs", "cardPin", "ssn", "card",
    "cards", "card_id", "cardNumber", "cardnumber", "credit_card", "creditcard", "cvv", "cvv2", "cvc",
    "iban", "IBAN", "IBANs", "userIban", "signature", "ｐａｓｓｗｏｒｄ",
]

SHOWN_NAMES = [
    "passenger", "compass", "bypass", "surpass", "passing", "passport", "tests_passed", "cardinality",
    "postcard", "discard", "dashboard", "cardiology", "shipping", "spin", "pinned", "opinion", "key",
    "keyboard", "monkey", "primaryKey", "keys", "author", "authors", "authority", "authenticated",
    "secretary", "tokenizer", "tokenize", "possession", "obsession", "caliban", "designature",
    "description", "user_id", "name", "email", "title", "address", "zip", "phone", "amount", "42", "_",
    "-", "…", "x",
]
# fmt: on


@pytest.mark.parametrize("name", HIDDEN_NAMES)
def test_values_of_these_names_are_hidden(name: str) -> None:
    assert REDACTION.hides(name)
    assert REDACTION.document({name: "Canary!", "n": [{name: {"deep": "Canary!"}}]}) == {
        name: HIDDEN,
        "n": [{name: HIDDEN}],
    }


@pytest.mark.parametrize("name", SHOWN_NAMES)
def test_values_of_names_that_only_resemble_them_are_shown(name: str) -> None:
    assert not REDACTION.hides(name)
    assert REDACTION.document({name: "value"}) == {name: "value"}


@pytest.mark.parametrize(
    "name", ["taxId", "tax_id", "TAX-ID", "taxid", "tax ids", "userTaxId", "user_tax_id_2"]
)
def test_more_names_can_be_hidden_however_they_are_spelt(name: str) -> None:
    assert not REDACTION.hides(name)
    for own in ("tax_id", "taxId", "tax id", "TAX-ID"):
        assert Redaction(names=(own,)).hides(name)


@pytest.mark.parametrize("name", ["syntax_idea", "tax", "id", "tax_office_id", "id_tax"])
def test_an_own_name_hides_no_other(name: str) -> None:
    assert not Redaction(names=("tax_id",)).hides(name)


def test_exact_names_can_be_allowed_but_not_those_that_were_hidden_on_purpose() -> None:
    redaction = Redaction(names=("internal",), allow=("token_count", "internal_id"))
    assert redaction.document({"token_count": 7, "tokenCount": 7, "internal_id": 7}) == {
        "token_count": 7,
        "tokenCount": HIDDEN,
        "internal_id": HIDDEN,
    }
    assert redaction.text("token_count=7 token=7") == "token_count=7 token=***"


def test_a_name_that_is_no_name_is_hidden_and_shown_short() -> None:
    [(key, value)] = REDACTION.document({"n" * 100_000: "Canary!"}).items()
    assert (len(key), key[-1], value) == (200, "…", HIDDEN)


def test_keys_of_other_types_count_as_their_text() -> None:
    assert REDACTION.document({("user", "password"): 1, b"token": 2, 7: 3, None: 4}) == {  # type: ignore[dict-item]
        "('user', 'password')": HIDDEN,
        "<5 bytes>": 2,
        "7": 3,
        "None": 4,
    }


# --- looks ---------------------------------------------------------------------------------------------

SECRETS = [
    JWT,
    JWT.rpartition(".")[0],
    PEM,
    PEM.replace("\n", "\\n"),
    PEM[:50],
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "xoxb-123456789012-abcdefGHIJ",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "sk_test_4eC39HqLyjWDarjtT1zdp7dc",
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4222222222222",
    "378282246310005",
    "3782 822463 10005",
    "30569309025904",
    "5555555555554444",
    "2223003122003222",
    "6011111111111117",
    "6304000000000000",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "it is {} there", "'{}'", '{{"x":["{}"]}}', "({})", "a\n{}\nb", "x={} y"]
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(secret: str, around: str) -> None:
    if secret == PEM[:50]:
        around = around.partition("}")[0] + "}"  # without its end it ends with the text
    text = around.format(secret)
    shown = around.format(HIDDEN)
    assert REDACTION.text(text) == shown
    assert REDACTION.document({"note": text, "list": [text]}) == {"note": shown, "list": [shown]}


PARTLY_HIDDEN = [
    ("got Bearer xyz", "got Bearer ***"),
    ("sent bearer abc123.DEF", "sent bearer ***"),
    ("Basic dXNlcjpwYXNz for x", "Basic *** for x"),
    ("no mongodb://ada:hunter2@db:27017/blog", "no mongodb://ada:***@db:27017/blog"),
    ("redis://:hunter2@cache/0", "redis://:***@cache/0"),
    ("nats://hunter2@host", "nats://***@host"),
    ("https://u:hun/te@r2@host/x", "https://u:***@host/x"),
    ("card 4111 1111 1111 1111 12/25 123", "card *** 12/25 123"),
    ("4111111111111111 123", "*** 123"),
    ("card-4111111111111111", "card-***"),
    ("4111-1111-1111-1111-123", "***-123"),
]

NOT_SECRET = [
    "65f000000000000000000001",
    "411111111111111111111111",
    "41111111-1111-4111-8111-111111111111",
    "11111111-1111-4111-8411-111111111111",
    "2024-05-06T12:34:56.789012+00:00",
    "20240506123456",
    "1717171717171",
    "1717171717171717171",
    "+49 30 4111 1111",
    "+4111111111111111",
    "030 4111 1111",
    "4111111111111112",
    "0.4111111111111111",
    "1111111111111117",
    "8711111111111111",
    "Basic information about HTML/CSS",
    "basic authentication failed.",
    "the bearer of bad news",
    "Bearer token required",
    'Bearer realm="blog"',
    "https://medium.com/@ada/post",
    "http://host:8080/users/@ada",
    "see http://host/x or mail ada@example.com",
    "http://[::1]:8080/@ada",
    "disk-live_1234567890 task_live_123456789",
    "sk-learn-is-a-nice-library-for-models",
    "AKIA is a prefix, AKIAIOSFODNN7EXAMPLEX is longer",
    "InvalidTokenError: The token has expired",
    "KeyError: 'password'",
    "if token == expected: password::text",
    "at 12:34:56 the passenger: Ada",
]


@pytest.mark.parametrize(("text", "shown"), PARTLY_HIDDEN)
def test_only_the_secret_part_is_hidden(text: str, shown: str) -> None:
    assert REDACTION.text(text) == shown
    assert REDACTION.document({"note": text}) == {"note": shown}


@pytest.mark.parametrize("text", NOT_SECRET)
def test_ordinary_texts_and_ids_are_shown(text: str) -> None:
    assert REDACTION.text(text) == text
    assert REDACTION.document({"note": text}) == {"note": text}


PAIRS = [
    ("password=hunter2 for ada", "password=*** for ada"),
    ("token: hunter2", "token: ***"),
    ("pin=7", "pin=***"),
    ('{"password": "hun\\"ter2", "user": "ada"}', '{"password": "***", "user": "ada"}'),
    ("{'apiKey': 'hunter2', 'user': 'ada'}", "{'apiKey': '***', 'user': 'ada'}"),
    (r'"{\"password\": \"hunter2\", \"user\": 1}"', r'"{\"password\": \"***\", \"user\": 1}"'),
    ("User(name='ada', password=b'hunter2')", "User(name='ada', password=b'***')"),
    ("/login?token=hunter2&user=ada", "/login?token=***&user=ada"),
    ("user[password]=hunter2&user[name]=ada", "user[password]=***&user[name]=ada"),
    ("curl --password=hunter2 url", "curl --password=*** url"),
    ('"card": {"number": "hunter2", "x": 1}, "user": 1', '"card": ***, "user": 1'),
    ("Authorization: Digest a=hunter2, b=hunter2\nHost: a", "Authorization: ***\nHost: a"),
    ("Cookie: a=hunter2; b=hunter2\nHost: a", "Cookie: ***\nHost: a"),
    ("auth: token hunter2 at 7", "auth: *** at 7"),
    ("self.db_pass = hunter2", "self.db_pass = ***"),
    ('"secret" => "hunter2"', '"secret" => "***"'),
    ("password=hun'ter2 x", "password=*** x"),
    ("error: url=http://a?x&secret=hunter2", "error: url=http://a?x&secret=***"),
]


@pytest.mark.parametrize(("text", "shown"), PAIRS)
def test_what_stands_behind_a_hidden_name_in_a_text_is_hidden(text: str, shown: str) -> None:
    assert REDACTION.text(text) == shown
    assert REDACTION.text(shown) == shown


def test_own_names_are_hidden_in_texts_too() -> None:
    assert Redaction(names=("tax_id",)).text("taxId: 12-34 name: Ada") == "taxId: *** name: Ada"


def test_a_card_number_is_hidden_as_a_number_too() -> None:
    assert REDACTION.document({"a": 4111111111111111, "b": 4111111111111112}) == {
        "a": HIDDEN,
        "b": 4111111111111112,
    }


# --- literals ------------------------------------------------------------------------------------------


def test_the_values_of_hidden_names_are_collected_at_any_depth() -> None:
    value: dict[str, Any] = {
        "password": "hunter22",
        "pin": 1234,
        "cvv": 123,
        "token": None,
        "secret": True,
        "user": [{"Authorization": "Bearer abcd1234"}, {"name": "Ada"}],
        "card": {"number": ["4242"], "x": {"y": b"bytes"}},
    }
    value["user"].append(value)
    assert REDACTION.secrets(value) == {
        "hunter22",
        "1234",
        "Bearer abcd1234",
        "abcd1234",
        "4242",
        "bytes",
    }
    assert REDACTION.secrets("hunter22") == frozenset()


def test_given_literals_are_hidden_also_where_they_are_escaped() -> None:
    secret = 'p&ss"wörd\n1'
    forms = [secret, repr(secret), json.dumps(secret), "?q=p%26ss%22w%C3%B6rd%0A1"]
    for form in forms:
        text = REDACTION.text(f"failed on {form} today", secrets=[secret])
        assert "rd" not in text.replace("today", "")
        assert HIDDEN in text


def test_a_literal_that_contains_another_is_hidden_as_a_whole() -> None:
    assert REDACTION.text("it was hunter2222", secrets=["hunter2", "hunter2222", ""]) == "it was ***"


def test_a_literal_at_the_edge_of_what_is_kept_of_a_text_is_hidden() -> None:
    secret = "hunter-2222-hunter"
    for before in range(MAX_FREE_TEXT - 1024 - 20, MAX_FREE_TEXT - 1024 + 2):
        assert "hunt" not in REDACTION.text("x" * before + secret + " y" * 5000, secrets=[secret])


# --- limits --------------------------------------------------------------------------------------------


def test_long_texts_are_cut_and_marked() -> None:
    redaction = Redaction(max_text=20)
    assert redaction.document({"a": "x" * 20, "b": "x" * 21}) == {"a": "x" * 20, "b": "x" * 19 + "…"}


def test_a_secret_across_the_cut_does_not_pass() -> None:
    redaction = Redaction(max_text=60)
    for before in range(60):
        text = "word " * 20 + JWT
        shown = redaction.document({"a": text[100 - before :] + " and more" * 50})["a"]
        assert "eyJ" not in shown


def test_long_lists_and_objects_say_how_much_was_left_out() -> None:
    redaction = Redaction(max_items=3)
    assert redaction.document({"a": [1, 2, 3], "b": [1, 2, 3, 4], "c": (1, 2, 3, 4, 5)}) == {
        "a": [1, 2, 3],
        "b": [1, 2, "… 2 left out"],
        "c": [1, 2, "… 3 left out"],
    }
    assert redaction.document(dict.fromkeys("abcdefgh", 1)) == {"a": 1, "b": 1, "…": "6 left out"}


def test_what_is_nested_too_deep_is_left_out() -> None:
    assert Redaction(max_depth=2).document({"a": {"b": {}, "c": [], "d": {"e": 1}, "f": [1, 2]}}) == {
        "a": {"b": {}, "c": [], "d": "… 1 left out", "f": "… 2 left out"}
    }


def test_a_document_that_contains_itself_ends() -> None:
    document: dict[str, Any] = {"list": [1]}
    document["self"] = document
    document["list"].append(document["list"])
    assert REDACTION.document(document) == {"list": [1, "<cycle>"], "self": "<cycle>"}


def test_the_same_object_twice_is_no_cycle() -> None:
    same = {"a": 1}
    assert REDACTION.document({"x": same, "y": [same, same]}) == {"x": same, "y": [same, same]}


@pytest.mark.parametrize(
    "document",
    [
        {f"field{number}": "ö" * 900 for number in range(90)},
        {"rows": [[{"a": 1}] * 99] * 99},
        {"\1" * 150 + str(number): "\2" * 999 for number in range(99)},
        {"a": {"b": {"c": {"d": ["x" * 500] * 100}}}},
    ],
    ids=["texts", "rows", "escapes", "deep"],
)
@pytest.mark.parametrize("most", [256, 1000, 16 * 1024])
def test_the_whole_stays_within_its_bytes_and_is_cut_in_the_same_way(document: Any, most: int) -> None:
    redaction = Redaction(max_bytes=most)
    copy = redaction.document(document)
    assert size(copy) <= most
    assert copy == redaction.document(document) == redaction.document(copy)
    assert "left out" in str(copy) or "…" in str(copy)


def test_texts_are_shortened_before_fields_are_left_out() -> None:
    copy = Redaction(max_bytes=2000).document({f"field{number}": "x" * 900 for number in range(20)})
    assert len(copy) == 20
    assert {value[-2:] for value in copy.values()} == {"x…"}


ADVERSARIAL = [
    "eyJ" * 30_000,
    "eyJ-" * 30_000,
    "eyJa.eyJaaaaaaaaa." * 9000,
    "-----BEGIN A-----" * 9000,
    "-----BEGIN " * 9000,
    "a://" * 30_000,
    "a://b:" * 30_000,
    "://a:b@" * 20_000,
    "4111 " * 30_000,
    "4111-" * 30_000,
    "4" * 100_000,
    "password=" * 20_000,
    'password="' * 20_000,
    "password={" * 20_000,
    "token: " + "\\" * 100_000,
    'token:\\"' * 20_000,
    "basic " * 20_000,
    "Basic " + "a." * 50_000 + "!",
    "bearer a-" * 20_000,
    "a." * 60_000,
    "-." * 60_000,
    "a" * 100_000 + ":",
    "sk-" * 40_000,
    "xoxb-" * 30_000,
    "cookie: bearer " + " " * 100_000,
    "".join(f"{number:x}a=1 " for number in range(20_000)),
    "\0" * 100_000,
    "\ud800" * 100_000,
]


@pytest.mark.parametrize("seed", ADVERSARIAL, ids=lambda seed: repr(seed[:12]))
def test_hostile_texts_of_a_mebibyte_take_no_longer_than_others(seed: str) -> None:
    """Patterns that backtrack would run into the time limit of the test run."""
    text = (seed * (1024 * 1024 // len(seed) + 1))[: 1024 * 1024]
    assert len(REDACTION.text(text).encode()) <= 3 * MAX_FREE_TEXT
    assert size(REDACTION.document({"a": text, text: "b", "c": [text] * 50})) <= REDACTION.max_bytes


# --- foreign values --------------------------------------------------------------------------------------


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Away:
    """A proxy of something that is not there."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("working outside of request context")

    def __str__(self) -> str:
        raise RuntimeError("working outside of request context")


class BrokenMapping(Broken, Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1


@attrs.frozen
class Login:
    user: str
    password: str


FOREIGN = [
    (datetime(2024, 5, 6, tzinfo=UTC), "2024-05-06 00:00:00+00:00"),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (Decimal("1.50"), "1.50"),
    (b"12345", "<5 bytes>"),
    (bytearray(1234), "<1,234 bytes>"),
    ({3, 1, 2}, [1, 2, 3]),
    (("a", frozenset("b")), ["a", ["b"]]),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    (2**63, str(2**63)),
    (-(2**63), -(2**63)),
    (10**5000, "<int without text>"),
    (True, True),
    (None, None),
    (1.5, 1.5),
    ("a\ud800b", "a?b"),
    ("a\0b", "a\0b"),
    (Broken(), "<Broken without text>"),
    (Away(), "<Away without text>"),
    (BrokenMapping(), "<BrokenMapping without text>"),
    (Login("ada", "hunter2"), "Login(user='ada', password='***')"),
    (ValueError("token=hunter2"), "token=***"),
]


@pytest.mark.parametrize(("value", "shown"), FOREIGN, ids=lambda value: type(value).__name__)
def test_values_json_does_not_know_become_short_text(value: Any, shown: Any) -> None:
    copy = REDACTION.document({"x": value})
    assert copy == {"x": shown}
    assert type(copy["x"]) is type(shown)
    assert CODEC.plain(copy) == copy


def test_keys_mongodb_cannot_hold_are_mended() -> None:
    copy = REDACTION.document({"a\0b": 1, "c\ud800": 2, "": 3, "$set": 4, "a.b": 5})
    assert copy == {"a\ufffdb": 1, "c?": 2, "": 3, "$set": 4, "a.b": 5}
    assert CODEC.plain(copy) == copy


def test_a_key_that_holds_a_secret_is_hidden_itself() -> None:
    assert REDACTION.document({JWT: 1}) == {HIDDEN: 1}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"names": "iban"}, "names"),
        ({"names": ("",)}, "names"),
        ({"names": (7,)}, "names"),
        ({"allow": ("x" * 201,)}, "allow"),
        ({"names": ("x",) * 1001}, "names"),
        ({"max_text": 15}, "max_text"),
        ({"max_items": 1}, "max_items"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_bytes": 255}, "max_bytes"),
        ({"max_bytes": 1e4}, "max_bytes"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Redaction(**options)
    assert caught.value.field == field


@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_a_document_must_be_a_mapping(value: Any) -> None:
    with pytest.raises(InvalidOption, match="give a dict"):
        REDACTION.document(value)


# --- properties ------------------------------------------------------------------------------------------

# fmt: off
PIECES = st.sampled_from(
    [
        *"abcZ09 .:=/-_@'\"\\{}[](),;&?\n\0…é", "\ud800", JWT, PEM, "eyJ", "://", "Bearer ", "basic ",
        "token", "pin", "password=", '"secret": "', "4111111111111111", "***", "Cookie: ", "sk_live_",
        "x" * 40,
    ]
)
# fmt: on
TEXTS = st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=12).map("".join))
NAMES = st.one_of(TEXTS, st.sampled_from(["name", "user", *HIDDEN_NAMES]))
LEAVES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=5),
    st.datetimes(),
    st.sampled_from([2**63, -(10**4000), 4111111111111111]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(NAMES, inner, max_size=5), st.tuples(inner)
    ),
    max_leaves=25,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=6)
LIMITS = st.builds(
    Redaction,
    max_text=st.integers(16, 60),
    max_items=st.integers(2, 6),
    max_depth=st.integers(1, 6),
    max_bytes=st.integers(256, 2000),
)


@given(document=DOCUMENTS, redaction=st.one_of(st.just(REDACTION), LIMITS))
@settings(max_examples=300, deadline=None)
def test_every_document_becomes_one_that_can_be_stored_and_stays_as_it_is(
    document: dict[str, Any], redaction: Redaction
) -> None:
    copy = redaction.document(document)
    assert CODEC.plain(copy) == copy
    assert json.loads(json.dumps(copy, allow_nan=False)) == copy
    assert size(copy) <= redaction.max_bytes
    assert redaction.document(copy) == copy


CANARY = "Canary-7391-Canary"


def with_canary(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers around what holds the canary, with anything beside it."""
    return st.one_of(
        st.builds(lambda before, it: [*before, it], st.lists(VALUES, max_size=2), inner),
        st.builds(lambda beside, name, it: {**beside, name: it}, DOCUMENTS, NAMES, inner),
    )


HIDING = st.builds(
    lambda name, wrap: {name: wrap},
    st.sampled_from(HIDDEN_NAMES),
    st.sampled_from([CANARY, [CANARY], {"a": CANARY}, CANARY.encode(), (CANARY, {CANARY: CANARY})]),
)


@given(inner=st.recursive(HIDING, with_canary, max_leaves=6), redaction=st.one_of(st.just(REDACTION), LIMITS))
@example(
    inner={"a": {"b": {"c": {"d": {"e": {"f": {"password": CANARY}}}}}}}, redaction=Redaction(max_depth=50)
)
@settings(max_examples=300, deadline=None)
def test_a_canary_under_a_hidden_name_appears_nowhere(inner: Any, redaction: Redaction) -> None:
    document = {"top": inner}
    assert "Canary" not in json.dumps(redaction.document(document))
    assert CANARY in redaction.secrets(document)
    error = redaction.text(f"failed: {document!r} {CANARY}", secrets=redaction.secrets(document))
    assert "Canary" not in error


@given(
    secret=st.text(string.ascii_letters + string.punctuation + "äß€ ", min_size=4, max_size=30),
    before=TEXTS,
    after=TEXTS,
)
@settings(max_examples=200, deadline=None)
def test_no_spelling_of_a_literal_is_left_in_a_text(secret: str, before: str, after: str) -> None:
    for spelt in (secret, repr(secret), json.dumps(secret)):
        text = REDACTION.text(f"{before} {spelt} {after}", secrets=[secret])
        assert spelt not in text or secret in f"{before} {after}" or spelt in HIDDEN * 10


@given(text=st.lists(PIECES, max_size=30).map("".join))
@settings(max_examples=500, deadline=None)
def test_a_text_that_was_redacted_stays_as_it_is(text: str) -> None:
    shown = REDACTION.text(text)
    assert REDACTION.text(shown) == shown
