"""What every request passes before anything answers it: the name it came by, the token, and strict headers after."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featd.web import templates

COOKIE = "featd"
COOKIE_SECONDS = 30 * 86_400
OPEN_PREFIX = "/static/"
"""What is part of featd itself needs no token: the page that asks for one has a style, too."""

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:\[\]/@\s]+)(:\d{1,5})?")


class Guard:
    """Stands before the app. `token`: empty where none is asked for."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token
        # Not the token itself, which a person may have used elsewhere too.
        self._cookie = hashlib.sha256(f"featd cookie {token}".encode()).hexdigest()
        here = socket.gethostname().lower()
        self._names = {"localhost", here, here.partition(".")[0]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, strict)

    def _answer(self, scope: Scope) -> Response | None:
        """What to say in place of the app; None where the app may answer."""
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            return PlainTextResponse(
                "featd does not answer to this name. Use the address of the machine, its host name, or localhost.\n",
                421,
            )
        if not self._token or scope["path"].startswith(OPEN_PREFIX) or self._is_known(headers):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = [value for name, value in query if name == "token"]
        if shown and self._is_same(shown[0].strip(), self._token):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            # Two slashes would lead to another host.
            path = "/" + scope["path"].lstrip("/\\")
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(
                COOKIE, self._cookie, max_age=COOKIE_SECONDS, path="/", httponly=True, samesite="strict"
            )
            return answer
        if "text/html" in headers.get("accept", ""):
            return templates.page("token.html", 401, host="", wrong=bool(shown))
        return PlainTextResponse(
            "a token is needed: send `Authorization: Bearer TOKEN` with the token of [web] in featd.toml\n",
            401,
            {"www-authenticate": "Bearer"},
        )

    def _is_ours(self, host: str) -> bool:
        """Whether a request came by a name of this machine. A page of another site may have its own name lead here; it
        cannot do so with an address."""
        found = _HOST.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = found[1].strip("[]")
        if name.rstrip(".") in self._names:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_same(shown.strip(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._is_same(cookie.value, self._cookie)

    @staticmethod
    def _is_same(one: str, other: str) -> bool:
        return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
