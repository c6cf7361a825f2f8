"""Who may use the page: only itself, in a browser on this machine. Other sites and other names of this host may not."""

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class TooLarge(Exception):
    """A body has more bytes than are read."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most


class Guard:
    """Refuses requests of other origins and adds the headers of `HEADERS` to every answer.

    A site elsewhere cannot read the page's answers, but it could send requests, or take a name that leads to this
    machine. The browser tells in Host, Origin and Sec-Fetch-Site where a request comes from.

    Args:
        app: Answers what is not refused.
        hosts: Names of this machine, with the port.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache")  # scripts of two versions do not fit together
            await send(message)

        reason = self._refused(Headers(scope=scope))
        answer = self._app if reason is None else refusal(reason, 403)
        await answer(scope, receive, guarded)

    def _refused(self, headers: Headers) -> str | None:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return f"the page is not served as {host[:80] or 'a nameless host'}: open {min(self._hosts)}"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}":
            return f"requests from {origin[:80]} are not answered: use the page itself"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "requests from other sites are not answered: use the page itself"
        return None


def refusal(reason: str, status: int) -> JSONResponse:
    """An error as the page reads it, in one line."""
    return JSONResponse({"error": " ".join(reason.split())}, status)


async def body(request: Request, most: int) -> bytes:
    """The body of a request, read in pieces. Raises TooLarge beyond `most` bytes, announced or read."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise TooLarge(most)
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise TooLarge(most)
    return bytes(content)
