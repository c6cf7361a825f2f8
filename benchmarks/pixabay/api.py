"""Chooses a benchmark's clips by Pixabay's video API (https://pixabay.com/api/docs/#api_search_videos)."""

import itertools
import json
import math
import re
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from download import HttpError, Sleep, open_url, read, retrying
from fetch import Needs
from tqdm import tqdm

from motionanim.evaluation.manifest import ManifestEntry, select
from motionanim.files import atomic_path, text_sha256

API = "https://pixabay.com/api/videos/"
CATEGORIES = (
    "backgrounds", "fashion", "nature", "science", "education", "feelings", "health", "people", "religion", "places",
    "animals", "industry", "computer", "food", "sports", "transportation", "travel", "buildings", "business", "music",
)  # fmt: skip
LICENCE = "Pixabay Content License, https://pixabay.com/service/license-summary/"
TERMS = """\
These videos belong to Pixabay's contributors, under the Pixabay Content License. In short, and without warranty:
they may be used and adapted free of charge and without naming the author; they may not be sold or handed on as they
are (so a manifest may be published, the videos may not), nor used to mislead or to show people in a bad light; other
rights, such as those of people and brands shown, stay to be checked.
  licence  https://pixabay.com/service/license-summary/
  terms    https://pixabay.com/service/terms/
Pixabay's API asks to keep answers for 24 hours (done here) and to say where videos come from (the manifest does). It is
meant for requests by people: many automated queries and systematic mass downloads are not allowed. A whole benchmark is
of that kind, so ask Pixabay for permission first.
  API      https://pixabay.com/api/docs/"""

_PER_PAGE = 200  # the most that the API gives
_MAX_HITS = 500  # the most of a query, whatever its total
_MOST_BYTES = 10**7  # of an answer; 200 hits are less than a tenth of it
_KEPT = 24 * 3600  # s for which the API asks to keep answers
_SPACING = 60 / 100  # s between requests, because the API allows 100 a minute


def confirm_terms(*, accepted: bool, ask: Callable[[str], str] = input) -> None:
    """Show the terms, and ask for consent on a terminal unless they are `accepted`; raises ValueError without it."""
    print(TERMS)
    if not accepted and (not sys.stdin.isatty() or ask("Type yes to accept: ").strip().lower() != "yes"):
        raise ValueError("the terms above were not accepted: nothing was requested; to accept give --accept-terms")


class PixabayClient:
    """The API's video search; it honours the API's limits and keeps answers.

    Args:
        key: The user's API key, which goes into requests and nowhere else.
        cache: Folder of kept answers.
        api: Address of the API, https unless it is on this machine.
        sleep: Waits that many seconds.
        now: Gives the seconds since 1970.

    Raises:
        ValueError: If key or address cannot be right.
    """

    def __init__(
        self,
        *,
        key: str,
        cache: Path,
        api: str = API,
        sleep: Sleep = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not re.fullmatch(r"[\w-]{8,}", key, re.ASCII):
            raise ValueError(
                "the API key must be 8 or more letters, digits and dashes: copy it from pixabay.com/api/docs/"
            )
        address = urllib.parse.urlsplit(api)
        local = address.scheme == "http" and address.hostname in ("localhost", "127.0.0.1", "::1")
        if not address.hostname or (address.scheme != "https" and not local) or address.query:
            raise ValueError(f"api={api}: must be an https address without a query (the key would travel unprotected)")
        self._key, self.cache, self.api, self.sleep, self.now = key, Path(cache), api, sleep, now
        self._pause = 0.0  # s before the next request
        self.requests = 0  # that were answered

    def search(self, **params: Any) -> Iterator[dict[str, Any]]:
        """The hits of one query, 500 at most; `params` are the API's, without key, page and per_page.

        Raises:
            HttpError: If the API does not answer, or refuses.
            ValueError: If the answer is not the documented JSON.
        """
        hits, pages = itertools.count(1), 1
        for page in itertools.count(1):
            if page > pages:
                return
            try:
                answer = self._answer({**params, "page": page, "per_page": _PER_PAGE})
            except HttpError as error:
                # Videos may be withdrawn between two requests.
                if page > 1 and error.status == 400 and "out of valid range" in str(error):
                    return
                raise
            pages = math.ceil(min(answer["totalHits"], _MAX_HITS) / _PER_PAGE)
            for hit in answer["hits"]:
                if next(hits) > _MAX_HITS:
                    return
                yield hit

    def _answer(self, params: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.api}?{urllib.parse.urlencode(sorted(params.items()))}"
        path = self.cache / f"{text_sha256(url)[:32]}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["url"] == url and 0 <= self.now() - kept["time"] < _KEPT:
                return kept["answer"]
        except (OSError, ValueError, TypeError, KeyError):
            pass  # not kept or damaged: ask again
        answer = retrying(lambda: self._request(url), sleep=self.sleep)
        with atomic_path(path) as partial:
            partial.write_text(json.dumps({"url": url, "time": self.now(), "answer": answer}), encoding="utf-8")
        return answer

    def _request(self, url: str) -> dict[str, Any]:
        if self._pause:
            self.sleep(self._pause)
        self._pause = _SPACING
        with open_url(f"{url}&key={self._key}", {}, secret=self._key) as response:
            content = read(response, _MOST_BYTES, self.api)
            if response.length and len(content) < _MOST_BYTES:  # a limited read does not complain
                raise HttpError(f"{self.api} broke off", status=0, wait=0)
            body = content.decode("utf-8", "replace").replace(self._key, "")
            left, reset = (response.headers.get(f"X-RateLimit-{name}", "") for name in ("Remaining", "Reset"))
        if left.strip() == "0" and reset.strip().isdigit():
            self._pause = max(_SPACING, float(reset))
        self.requests += 1
        try:
            answer = json.loads(body)
            if isinstance(answer["totalHits"], int) and all(isinstance(hit, dict) for hit in answer["hits"]):
                return answer
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise ValueError(f"{self.api} answers something else than Pixabay's JSON: {' '.join(body.split())[:100]!r}")


def candidate(hit: dict[str, Any], *, category: str, query: str, needs: Needs) -> ManifestEntry | str:
    """A hit as an unlocked clip, in the smallest of its sizes that is large enough; or the reason why it cannot be one.

    Videos that the API marks as made by AI are left out, because they are no truth to compare with. Videos marked
    against AI training are left out, because a folder of videos invites it.
    """
    if not str(hit.get("id", "")).isdecimal():
        return "without an id"
    if hit.get("isAiGenerated") or hit.get("noAiTraining"):
        return "marked as made by AI, or against AI training"
    duration = hit.get("duration")
    if not isinstance(duration, int | float) or not duration > 0 or duration < needs.seconds:
        return "too short"
    sizes = hit.get("videos") if isinstance(hit.get("videos"), dict) else {}
    found = []
    for size in sizes.values():
        # A missing size has an empty url.
        if isinstance(size, dict) and re.fullmatch(r"https?://[!-~]+", str(size.get("url"))):
            width, height = size.get("width"), size.get("height")
            if isinstance(width, int) and isinstance(height, int):
                found.append((width * height, width, height, size["url"]))
    if not found:
        return "without a file"
    found = [size for size in found if size[1] > size[2]]
    if not found:
        return "not landscape"
    found = [size for size in found if size[1] >= needs.min_width and size[2] >= needs.min_height]
    if not found:
        return "too small"
    _, width, height, url = min(found)
    clip = str(hit["id"])
    return ManifestEntry(
        id=clip, file=f"{clip}.mp4", url=url, category=category, sha256="", licence=LICENCE, bytes=None, width=width,
        height=height, fps=None, frames=None, duration=float(duration), page_url=_text(hit.get("pageURL")),
        author=_text(hit.get("user")), query=query,
    )  # fmt: skip


def choose(
    client: PixabayClient, *, categories: Sequence[str], queries: Sequence[str], n: int, seed: int, needs: Needs
) -> tuple[list[ManifestEntry], list[ManifestEntry]]:
    """The n clips of a benchmark and spares for an eighth of them, from all pairs of a category and a query.

    Args:
        categories: Some of `CATEGORIES`.
        queries: Search terms of at most 100 characters; an empty one finds all of a category.
        seed: Of `select`.
        needs: Checked as far as the API tells.

    Raises:
        ValueError: If an argument is out of range, or fewer than n are found: the message counts what was left out.
    """
    wrong = sorted(set(categories) - set(CATEGORIES))
    if wrong or not categories:
        raise ValueError(f"category={','.join(wrong)!r}: must be one or more of {', '.join(CATEGORIES)}")
    if not queries or max(map(len, queries)) > 100:
        raise ValueError(f"query={max(queries, key=len, default='')!r}: must be one or more, of at most 100 characters")
    found: list[ManifestEntry] = []
    left_out: Counter[str] = Counter()
    pairs = list(itertools.product(dict.fromkeys(categories), dict.fromkeys(queries)))
    for category, query in tqdm(pairs, desc="search", unit="query", delay=5):
        params = {"category": category, "video_type": "film", "safesearch": "true", "lang": "en", "order": "popular"}
        params |= {"min_width": needs.min_width, "min_height": needs.min_height} | ({"q": query} if query else {})
        for hit in client.search(**params):
            entry = candidate(hit, category=category, query=query, needs=needs)
            if isinstance(entry, str):
                left_out[entry] += 1
            else:
                found.append(entry)
    chosen = select(found, n=n + math.ceil(n / 8), seed=seed)
    if len(chosen) < n:
        counts = Counter(entry.category for entry in found)
        raise ValueError(
            f"{len(chosen)} videos can be used, needed are {n}; found "
            f"{', '.join(f'{count} in {name}' for name, count in sorted(counts.items())) or 'none'}; left out "
            f"{', '.join(f'{count} {reason}' for reason, count in sorted(left_out.items())) or 'none'}: give more "
            "queries or categories, or ask for fewer clips, fewer frames or a smaller size"
        )
    return chosen[:n], chosen[n:]


def _text(value: Any) -> str:
    """The value as one line of text."""
    return " ".join(str(value or "").split()).encode("utf-8", "replace").decode("utf-8")
