"""A visitor of the blog who talks JSON."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from typing import Any

import attrs

TIMEOUT = 10.0
PATIENCE = 20.0
NOT_YET = 409


@attrs.frozen(kw_only=True)
class Answer:
    """What a change was answered with.

    Attributes:
        operation_id: from the header ``X-Operation-Id``.
    """

    operation_id: str
    body: dict[str, Any]


class Visitor:
    """One browser session, without a browser. Not thread-safe.

    Args:
        url: of the blog.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(CookieJar()), urllib.request.ProxyHandler({})
        )

    def get(self, path: str) -> dict[str, Any]:
        """The page's values.

        Raises:
            urllib.error.HTTPError: the answer is an error.
            OSError: there is no answer.
        """
        return self._send(path, None).body

    def post(self, path: str, **values: str) -> Answer:
        """Change something. While the answer is 409, "not yet", it asks again, for up to 20 s.

        Raises:
            what ``get`` raises.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._send(path, json.dumps(values).encode())
            except urllib.error.HTTPError as error:
                if error.code != NOT_YET or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _send(self, path: str, data: bytes | None) -> Answer:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=data, headers=headers)
        with self._opener.open(request, timeout=TIMEOUT) as response:
            return Answer(operation_id=response.headers.get("X-Operation-Id") or "", body=json.load(response))
