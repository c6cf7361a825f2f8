"""A bounded cache of a store's files on the local disk, shared by all processes of a machine."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ShardCache:
    """Whole files by the SHA-256 of their content, so that another version never answers. Holds no open file.

    A file is `DIGEST.tar`, and `.DIGEST.BYTES.partial` while it is fetched. Who fetches a file holds the lock of its
    first two digits; who counts and deletes files holds the lock `room`. A process that dies leaves no lock.

    Args:
        folder: Made when it is needed.
        size: Bytes, at least those of one file. The files that were not read for longest are deleted.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder, self.size = Path(folder), size

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.tar"

    def read(self, digest: str, size: int, fetch: Callable[[Path], None], start: int, end: int) -> bytes:
        """Bytes `start` to `end` of the file of `size` bytes.

        Args:
            fetch: Writes the file to a path and checks it; called if the file is not in the cache.

        Raises:
            ValueError: If this machine's disk cannot hold it.
        """
        path = self.path(digest)
        try:
            if (content := _read(path, start, end)) is not None:
                return content
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(digest[:2]):
                if (content := _read(path, start, end)) is not None:
                    return content  # another process has fetched it meanwhile
                partial = self.folder / f".{digest}.{size}.partial"
                partial.unlink(missing_ok=True)  # left by a killed process
                try:
                    self._reserve(partial, digest, size)
                    fetch(partial)
                    content = _read(partial, start, end)  # before another process can delete it to make room
                    os.replace(partial, path)
                    return content
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"cache={self.folder}: {error.strerror or error}: choose another folder with reading.cache, or "
                "lower reading.cache_gb"
            ) from error

    def _reserve(self, partial: Path, digest: str, size: int) -> None:
        while True:
            with self._locked("room"):
                if self._make_room(digest, size):
                    partial.touch()
                    return
            time.sleep(0.1)  # other processes fetch as much as the cache holds; finished files can be deleted

    def _make_room(self, digest: str, size: int) -> bool:
        """Delete files until `size` more bytes fit; False if they do not fit beside the unfinished files."""
        room = self.size - size
        for partial in self.folder.glob(".*.partial"):
            _, other, whole, _ = partial.name.split(".")
            if other[:2] == digest[:2] or self._is_free(other[:2]):
                # Left by a killed process: who fetches holds the lock, and begins while `room` is locked.
                partial.unlink(missing_ok=True)
            else:
                room -= int(whole)
        if room < 0:
            return False
        files = [
            (state.st_mtime_ns, state.st_size, path) for path in self.folder.glob("*.tar") if (state := path.stat())
        ]
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if total <= room:
                break
            path.unlink(missing_ok=True)
            total -= length
        return True

    def _is_free(self, name: str) -> bool:
        try:
            with self._locked(name, fcntl.LOCK_NB):
                return True
        except BlockingIOError:
            return False

    @contextmanager
    def _locked(self, name: str, how: int = 0) -> Iterator[None]:
        with open(self.folder / f"lock-{name}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | how)
            yield


def _read(path: Path, start: int, end: int) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            os.utime(file.fileno(), ns=(time.time_ns(),) * 2)  # finer than the kernel's clock
            return os.pread(file.fileno(), end - start, start)
    except FileNotFoundError:
        return None
