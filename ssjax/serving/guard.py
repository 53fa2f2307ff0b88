"""What stands before every path: the host, the key, the kind and the size of bodies."""

import base64
import binascii
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Collection

from starlette.requests import Request
from starlette.responses import JSONResponse

from ssjax.serving.problems import Problem

_PORT = re.compile(r":\d+$")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_OPEN = ("/health",)  # for those who only look whether the process lives


class KeyGuard:
    """ASGI middleware that lets nobody pass without the key, whatever the path.

    The key comes as "Authorization: Bearer KEY", as API clients send it, or as the password of
    "Basic", which browsers ask for.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str):
        self._app, self._key = app, key.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket") and scope["path"] not in _OPEN:
            given = _given_key(dict(scope["headers"]).get(b"authorization", b""))
            if not secrets.compare_digest(given, self._key):
                problem = Problem("a valid API key is needed", 401, code="invalid_api_key")
                answer = JSONResponse(problem.body(), 401, headers=problem.headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def allowed_hosts(address: str, names: Collection[str] | None) -> frozenset[str] | None:
    """The hosts that are answered for; None: any.

    Args:
      address: listened on.
      names: that are given; None: none are.
    """
    if names is None and address not in _LOOPBACK:
        return None
    return _LOOPBACK | {"[::1]"} | {name.strip().lower() for name in names or ()}


class HeadGuard:
    """ASGI middleware that refuses large heads: what came in one piece, uvicorn reads."""

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            if fields + len(scope["raw_path"]) + len(scope["query_string"]) > self._max_bytes:
                problem = Problem(
                    f"the head has more than {self._max_bytes} bytes; send fewer headers", 431
                )
                await JSONResponse(problem.body(), 431)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class HostGuard:
    """ASGI middleware that answers only requests for hosts of some names.

    A page of another site may be found at its own name by a browser on this machine first, and at
    ours later; it then seems to be our page to the browser, but still asks for its own name.

    Args:
      app: behind it.
      hosts: lower case, without ports.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Collection[str]):
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            if _PORT.sub("", given) not in self._hosts:
                problem = Problem(
                    "this server does not answer for that host; name it with --allowed_hosts", 421
                )
                await JSONResponse(problem.body(), 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _given_key(header: bytes) -> bytes:
    kind, _, value = header.strip().partition(b" ")
    value = value.strip()
    if kind.lower() == b"bearer":
        return value
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


async def read_json(request: Request, max_bytes: int) -> object:
    """The JSON of a body.

    Only "application/json" is taken: a page of another site cannot send that without being
    allowed to, so a browser on this machine is no way in.

    Raises:
      Problem: another type, too many bytes, or no JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem("the body must be JSON; send Content-Type: application/json", 415)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise Problem(f"the body has more than {max_bytes} bytes; send less", 413)
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Problem("the body is not JSON") from None


def _no_number(name: str) -> None:
    raise ValueError(name)
