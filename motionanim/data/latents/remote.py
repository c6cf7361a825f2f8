"""Requests to object storage by URL, through fsspec, with retries of passing failures."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import fsspec

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Failures of this machine's disk, for which asking the store again is of no use.
_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EISDIR})


def is_remote(url: str) -> bool:
    return "://" in url


def repair(dataset: str) -> str:
    """Advice that repairs an incomplete or damaged dataset of `motionanim.data.encode`."""
    if is_remote(dataset):
        return "run motionanim.data.encode with its settings into a local folder, and upload that in its place"
    return "run motionanim.data.encode again with the same settings, it rewrites only what is missing"


def remote_request(url: str, request: Callable[[fsspec.AbstractFileSystem, str], Result], *, retries: int) -> Result:
    """Call `request(filesystem, path)` for `url`, again after 1, 2, 4, ... s if it fails.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If this machine cannot write what `request` gets.
        ValueError: If the kind of store is unknown, it refuses access, or it still fails after `retries` more tries.
    """
    try:
        # In each process when it is needed, because connections do not survive a fork; fsspec keeps them.
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be read: {error}") from error
    for attempt in range(retries + 1):
        try:
            return request(files, path)
        except Exception as error:  # every kind of store has its own errors
            if isinstance(error, FileNotFoundError) or _is_local(error):
                raise
            what = f"{type(error).__name__}: {error}"
            if _is_refusal(error):
                raise ValueError(
                    f"{url}: the store refuses access ({what}): check its credentials, and whether the URL is right"
                ) from error
            if attempt == retries:
                raise ValueError(
                    f"{url} cannot be reached after {retries + 1} tries ({what}): when it can, ckpt_path=last goes on "
                    "from the last checkpoint of the run, if there is one"
                ) from error
            logger.warning("%s: %s, trying again in %d s", url, error, 2**attempt)
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def _is_local(error: Exception) -> bool:
    """Whether this machine's disk failed; a PermissionError of a store names no file."""
    return (isinstance(error, OSError) and error.errno in _LOCAL) or (
        isinstance(error, PermissionError) and error.filename is not None
    )


def _is_refusal(error: Exception) -> bool:
    """Whether a store refuses access: by HTTP's status, or by botocore's and google-auth's errors of credentials."""
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", None) in (401, 403)
        or "Credentials" in type(error).__name__
    )
