"""HTTP requests with retries, waits that the server asks for, and downloads that go on where they stopped."""

import http.client
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Sleep = Callable[[float], object]  # waits that many seconds

ATTEMPTS = 6  # with waits of 1, 2, 4, 8 and 16 s between them, or longer if the server asks
_LONGEST_WAIT = 300  # s; a server that asks for more is not asked again
_TIMEOUT = 60  # s without a byte
_CHUNK = 2**18


class Limits(NamedTuple):
    """What a server may send."""

    bytes: int = 500 * 10**6  # of a file
    hosts: tuple[str, ...] = ("pixabay.com",)  # to which, or to whose subdomains, another host may redirect by https


LIMITS = Limits()
TOO_LARGE = 413  # the status of an HttpError about a file above the limit


class HttpError(ValueError):
    """A request that failed.

    Attributes:
        status: HTTP status; 0 if there was no answer, or not a whole one.
        wait: Seconds to wait before another attempt, as the server asks; None if another attempt is of no use.
    """

    def __init__(self, message: str, *, status: int, wait: float | None) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait


def retrying(attempt: Callable[[], Result], *, sleep: Sleep) -> Result:
    """Call `attempt` until it succeeds, fails for good, or has failed `ATTEMPTS` times; raises its last HttpError."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except HttpError as error:
            if error.wait is None or number == ATTEMPTS - 1:
                raise
            if error.wait > _LONGEST_WAIT:
                message = f"{error}; the server asks to wait {error.wait:.0f} s: run again later"
                raise HttpError(message, status=error.status, wait=None) from None
            wait = max(error.wait, 2.0**number)
            logger.warning("%s; again in %.0f s", error, wait)
            sleep(wait)
    raise AssertionError("unreachable")


def shown(url: str) -> str:
    """A URL for messages, without what may be secret: its query, and a user's name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def may_redirect(old: str, new: str, hosts: tuple[str, ...]) -> bool:
    """Whether a server may send us on: to its own host, or by https to one of `hosts` or a subdomain."""
    one, other = urllib.parse.urlsplit(old), urllib.parse.urlsplit(new)
    if (one.scheme, one.netloc) == (other.scheme, other.netloc):
        return True
    name = other.hostname or ""
    named = any(name == host or name.endswith(f".{host}") for host in (one.hostname, *hosts))
    return other.scheme == "https" and named


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, hosts: tuple[str, ...]) -> None:
        self.hosts = hosts

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # the names are urllib's
        if not may_redirect(req.full_url, newurl, self.hosts):
            host = urllib.parse.urlsplit(newurl).hostname
            raise HttpError(
                f"{shown(req.full_url)} redirects to {shown(newurl)}, which is not followed: if you trust it and it is "
                f"https, give --allow-host {host}",
                status=code, wait=None,
            )  # fmt: skip
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(
    url: str, headers: dict[str, str], *, secret: str = "", hosts: tuple[str, ...] = LIMITS.hosts
) -> http.client.HTTPResponse:
    """Open a URL once; redirects are followed as `may_redirect` says.

    Raises:
        HttpError: If it is no http or https, if there is no answer, one of status 400 or above, or a redirect that is
            not followed. Its message has neither the URL's query nor `secret`.
    """
    where = shown(url)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise HttpError(f"{where} is no http or https address", status=0, wait=None)
    request = urllib.request.Request(url, headers={"User-Agent": "motionanim", **headers})
    try:
        return urllib.request.build_opener(_Redirects(hosts)).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            body = read(error, 2000, where).decode("utf-8", "replace")
        text = " ".join(body.split())[:200]
        if secret:
            text = text.replace(secret, "")
        again = error.code == 429 or error.code >= 500
        wait = _asked_wait(error.headers) if again else None
        # From None, because the original error holds the whole URL.
        raise HttpError(f"{where} answers {error.code} {error.reason}: {text}", status=error.code, wait=wait) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise HttpError(f"{where} cannot be reached: {reason}", status=0, wait=0) from None


def read(response: http.client.HTTPResponse | urllib.error.HTTPError, size: int | None, where: str) -> bytes:
    """Read up to `size` bytes, or all if it is None; raises HttpError if the connection breaks."""
    try:
        return response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise HttpError(f"{where} broke off: {error}", status=0, wait=0) from None


def _asked_wait(headers: http.client.HTTPMessage) -> float:
    """Seconds until `Retry-After` (a number or a date) and `X-RateLimit-Reset` (a number); 0 without them."""
    waits = [0.0]
    for name in ("Retry-After", "X-RateLimit-Reset"):
        text = (headers.get(name) or "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            waits.append(float(text))
        elif text and name == "Retry-After":
            try:
                waits.append(parsedate_to_datetime(text).timestamp() - time.time())
            except ValueError:
                logger.info("Retry-After=%r is no number and no date", text)
    return max(waits)


def tag_path(part: Path) -> Path:
    """The file that keeps the ETag or date of an unfinished download."""
    return part.with_name(f"{part.name}.tag")


def download(url: str, part: Path, *, sleep: Sleep, stop: threading.Event, limits: Limits = LIMITS) -> None:
    """Complete `part` with the bytes of `url`, from its end if the server still has the same file.

    Without the ETag or date of `tag_path` a download begins anew.

    Args:
        stop: Set it to leave within one chunk.

    Raises:
        HttpError: If the file does not exist, is larger than the limit (`TOO_LARGE`; no part stays), or is still
            incomplete after several attempts.
        OSError: If `part` cannot be written, as on a full disk.
    """
    try:
        retrying(lambda: _download_once(url, part, stop, limits), sleep=sleep)
    except HttpError as error:
        if error.status == TOO_LARGE:
            part.unlink(missing_ok=True)
            tag_path(part).unlink(missing_ok=True)
        raise


def _download_once(url: str, part: Path, stop: threading.Event, limits: Limits) -> None:
    where = shown(url)
    tag = tag_path(part)
    validator = tag.read_text(encoding="utf-8") if tag.exists() else ""
    start = part.stat().st_size if part.exists() and validator else 0
    try:
        response = open_url(
            url, {"Range": f"bytes={start}-", "If-Range": validator} if start else {}, hosts=limits.hosts
        )
    except HttpError as error:
        if error.status == 416:  # no byte after `start`: the part is of another file, or already complete
            part.unlink(missing_ok=True)
            raise HttpError(str(error), status=416, wait=0) from None
        raise
    with response:
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/json"):
            raise HttpError(f"{where} answers with {kind}, which is no video: see it in a browser", status=0, wait=None)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != start:
                part.unlink(missing_ok=True)
                raise HttpError(f"{where} answers with another range than asked for", status=206, wait=0)
            total = int(span[2])
        else:
            start, length = 0, response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        _check_size(where, total or 0, limits)
        size = start
        with part.open("ab" if start else "wb") as file:
            if not start:
                # After the truncation, because an old part must never stand beside a new tag.
                tag.write_text(_validator(response.headers), encoding="utf-8")
            while chunk := read(response, _CHUNK, where):
                if stop.is_set():
                    raise HttpError(f"{where}: stopped", status=0, wait=None)
                size += len(chunk)
                _check_size(where, size, limits)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise HttpError(f"{where} was cut off at {size} of {total} bytes; run again to go on", status=0, wait=0)


def _check_size(where: str, size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise HttpError(
            f"{where} is larger than the limit of {limits.bytes / 1e6:.6g} MB; --max-megabytes raises it",
            status=TOO_LARGE, wait=None,
        )  # fmt: skip


def _validator(headers: http.client.HTTPMessage) -> str:
    """The value for `If-Range`: a strong ETag, else the date."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
