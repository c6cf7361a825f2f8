"""Downloads of one file over HTTP that go on where an interrupted one stopped."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm


def continue_download(url: str, partial: Path, name: str) -> None:
    """Append the missing rest of the file to `partial`; `name` stands before the progress bar.

    Raises:
        OSError, http.client.HTTPException: If the address cannot be read, or the connection breaks.
    """
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the last run stopped after the last byte
        raise
    with response:
        # A server that ignores the range sends 200 and the whole file.
        start = start if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, mininterval=1) as bar,
        ):
            while block := response.read(1 << 20):
                bar.update(file.write(block))
    size = partial.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"it stopped after {size} of {total} bytes")
