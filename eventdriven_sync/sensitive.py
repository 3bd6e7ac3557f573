"""What counts as a secret: the names of fields, and what secrets look like in a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

HIDDEN = "***"
CUT = "…"

MOST_WORDS = 8
_SHORTEST_LOOK = 8
_SHORT = 48


# --- names of fields -----------------------------------------------------------------------------------

_NAMES = (
    "pass password passwd pwd passphrase secret token authorization authorisation auth oauth credential "
    "cookie session csrf xsrf jwt bearer otp totp pin ssn card cvv cvc iban signature api_key access_key "
    "private_key secret_key session_id"
)
# Compounds in small letters have no humps to split at; these words are long enough to look for inside others.
_COMPOUND = re.compile(
    r"passw(?:or)?d|passphrase|credential|(?:api|access|private|secret)key|creditcard|cardnumber|csrf|xsrf"
    r"|sess(?:ion)?id|(?:token|secret)s?\Z"
)
# On a map of the name: A a capital, s the letter s, a another letter, 0 a digit. Plurals of acronyms first.
_WORD = re.compile(r"A{2,}s(?![as])|A++(?![as])|A+(?=A[as])|A?[as]+|0+")


def words_of(name: str) -> list[str]:
    """``userIBANs2`` → user, ibans, 2."""
    name = unicodedata.normalize("NFKC", name)
    kinds = "".join(map(_kind, name))
    return [name[found.start() : found.end()].casefold() for found in _WORD.finditer(kinds)]


def _kind(character: str) -> str:
    if character.isupper():
        return "A"
    if character.isalpha():
        return "s" if character == "s" else "a"
    return "0" if character.isdigit() else "-"


@lru_cache(maxsize=128)
def forms_of(names: tuple[str, ...]) -> frozenset[str]:
    """The names as one word each, in singular and plural."""
    joined = ("".join(words_of(name)) for name in names)
    return frozenset(word + ending for word in joined for ending in ("", "s", "es"))


def speaks_of(name: str, forms: frozenset[str]) -> bool:
    """Whether neighbouring words of the name, joined, are one of the forms."""
    words = words_of(name)
    runs = (
        "".join(words[first:last])
        for first in range(len(words))
        for last in range(first + 1, min(first + MOST_WORDS, len(words)) + 1)
    )
    return any(run in forms for run in runs)


_BUILT_IN = forms_of(tuple(_NAMES.split()))


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret by the built-in rules."""
    return speaks_of(name, _BUILT_IN) or any(_COMPOUND.search(word) for word in words_of(name))


# --- texts that look like secrets ----------------------------------------------------------------------
# Every pattern is linear: it begins only where a word begins, or what follows its beginning is bounded.

_WORD_LIKE = r"(?:[A-Z]?[a-z]++|[A-Z]++)(?:[-/.](?:[A-Z]?[a-z]++|[A-Z]++))*+[.=-]*+(?![\w~+/])"
_LOOKS = re.compile(
    rf"""
      e(?<![A-Za-z0-9]e)yJ[\w-]{{8,1024}}+(?:\.[\w-]*+){{1,4}}           # JWT, JWE, signed cookies
    | -----BEGIN[ ][A-Z0-9 ]{{1,60}}-----(?:[\s\S]*?-----END[ ][A-Z0-9 ]{{1,60}}-----|[\s\S]*)
    | A(?<![A-Za-z0-9]A)(?:KIA|SIA)[A-Z0-9]{{16}}(?![A-Za-z0-9])        # AWS
    | A(?<![A-Za-z0-9]A)Iza[\w-]{{30,}}+                                # Google
    | x(?<![A-Za-z0-9]x)ox[a-z]-[\w-]{{8,}}+                            # Slack
    | g(?<![A-Za-z0-9]g)(?:h[pousr]_|ithub_pat_|lpat-)[\w-]{{16,}}+     # GitHub, GitLab
    | s(?<![A-Za-z0-9]s)k_(?:live|test)_\w{{8,}}+                       # Stripe
    | r(?<![A-Za-z0-9]r)k_(?:live|test)_\w{{8,}}+
    | w(?<![A-Za-z0-9]w)hsec_[\w+/=]{{16,}}+
    | s(?<![A-Za-z0-9]s)k-(?=[\w-]{{0,64}}\d)[\w-]{{20,}}+               # OpenAI, Anthropic
    | n(?<![A-Za-z0-9]n)pm_\w{{30,}}+
    | (B(?<!\wB)(?:earer|EARER)\s{{1,4}})
      (?!(?:tokens?|auth\w*|realm|error|scheme|credentials?|header|is|was|of|and|or|not|required|missing|invalid)\b)
      [\w.~+/=-]{{3,}}+
    | (b(?<!\wb)(?:earer|asic)\s{{1,4}})(?!{_WORD_LIKE})[\w.~+/=-]{{6,}}+
    | (B(?<!\wB)(?:asic|ASIC)\s{{1,4}})(?!{_WORD_LIKE})[\w.~+/=-]{{6,}}+
    | (://[^\s/:@?\#"'<>\[]{{0,128}}:)(?!\d{{1,5}}(?:[/?\#,;)\]]|\Z))(?:[^\s"'<>:]|:(?!//)){{1,256}}(?=@)
    | (://)[^\s/:@?\#"'<>\[]{{1,256}}(?=@)
    """,
    re.VERBOSE | re.ASCII,
)
# Without any of these there is nothing to find, which is known sooner.
_MARKS = (
    *(
        "eyJ",
        "-----BEGIN ",
        "KIA",
        "SIA",
        "AIza",
        "xox",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
    ),
    *("glpat-", "k_live_", "k_test_", "whsec_", "sk-", "npm_", "earer", "EARER", "asic", "ASIC", "://"),
)
# Not a part of a longer number, a decimal, a phone number or a UUID.
_CARD = re.compile(
    r"[2-6](?<![A-Za-z0-9+][2-6])(?<!\d\.[2-6])(?<![0-9a-fA-F]{4}-[2-6])"
    r"\d{3}[ -]?(?:\d{6}[ -]?\d{4,5}|\d{4}[ -]?\d{4}[ -]?\d{1,4}(?:[ -]?\d{1,3})?)"
    r"(?![A-Za-z0-9]|-[0-9a-fA-F]{4}-)",
    re.ASCII,
)
_NOT_DIGIT = re.compile(r"[ -]")
_LAST_GROUP = re.compile(r"[ -]\d+\Z")
_DOUBLED = "0246813579"

_NAME_AND_SIGN = re.compile(
    r"""(?<![\w.-])([.-]{0,2}[^\W\d][\w.-]{0,99}+)\\{0,4}["']?\]?[ \t]{0,8}(=>|:=|=(?!=)|:(?!:))[ \t]{0,8}"""
)
_ON = rf"{CUT}(?!\Z)"  # the sign of a cut at the very end is not part of a value
_RUN = rf"""(?:[^\s&,;"'<>\]}}){CUT}]|["'](?=\w)|{_ON})"""
_VALUE = re.compile(
    rf"""
      ([BbRrUuFf]{{0,2}}")(?:[^"\\\n{CUT}]|\\.|{_ON})*+
    | ([BbRrUuFf]{{0,2}}')(?:[^'\\\n{CUT}]|\\.|{_ON})*+
    | (\\{{1,4}}["'])(?:[^"'\\\n{CUT}]|\\(?!["'])|{_ON})*+
    | [\[{{](?:[^\]}}{CUT}]|{_ON}){{0,2000}}+[\]}}]?{_RUN}*+
    | (?:(?i:bearer|basic|digest|token|negotiate|api-?key)[ ]+)?{_RUN}++
    """,
    re.VERBOSE,
)
_LINE = re.compile(rf"(?:[^\r\n{CUT}]|{_ON})++")
_HEADERS = frozenset({"cookie", "set-cookie", "authorization", "proxy-authorization"})
# InvalidTokenError: what follows is its message.
_ERROR_NAME = re.compile(r"(?:error|exception|warning)\Z", re.IGNORECASE)


def _masked(found: re.Match[str]) -> str:
    """What was found, but for the one group that may be shown."""
    return f"{found[found.lastindex]}{HIDDEN}" if found.lastindex else HIDDEN


def _masked_card(found: re.Match[str]) -> str:
    text = found[0]
    if _is_card(text):
        return HIDDEN
    # A security code may follow the number.
    tail = _LAST_GROUP.search(text)
    return f"{HIDDEN}{tail[0]}" if tail and _is_card(text[: tail.start()]) else text


def _is_card(text: str) -> bool:
    digits = _NOT_DIGIT.sub("", text)
    begins_like_one = "3" <= digits[0] <= "6" or "2221" <= digits[:4] <= "2720"
    return 13 <= len(digits) <= 19 and begins_like_one and _luhn(digits)


def _luhn(digits: str) -> bool:
    doubled = (_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(map(int, doubled))) % 10 == 0


def without_looks(text: str) -> str:
    """The text without what looks like a secret; less than 8 characters look like nothing."""
    if len(text) < _SHORTEST_LOOK:
        return text
    if len(text) < _SHORT or any(mark in text for mark in _MARKS):
        text = _LOOKS.sub(_masked, text)
    return _CARD.sub(_masked_card, text)


def without_pairs(text: str, hides: Callable[[str], bool]) -> str:
    """The text without the values behind hidden names: ``password=…``, ``"token": "…"``."""
    if "=" not in text and ":" not in text:
        return text
    shown: list[str] = []
    end = 0
    for found in _NAME_AND_SIGN.finditer(text):
        if found.start() < end or _ERROR_NAME.search(found[1]) or not hides(found[1]):
            continue
        value = _value(text, found)
        if value:
            shown += text[end : value.start()], _masked(value)
            end = value.end()
    return "".join([*shown, text[end:]])


def _value(text: str, name: re.Match[str]) -> re.Match[str] | None:
    value = _VALUE.match(text, name.end())
    # Unquoted headers have blanks and signs in their values.
    header = value and not value.lastindex and name[2] == ":" and name[1].lower() in _HEADERS
    return _LINE.match(text, name.end()) if header else value
