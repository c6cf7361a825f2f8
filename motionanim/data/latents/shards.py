"""Shards: many samples in a few large tar files; each sample is read by its number from a folder or object storage.

The layout is webdataset's (one member `NUMBER.safetensors` per sample), so that tar and webdataset read it as well. The
sizes of all samples are known, so a sample's place in its shard is known without an index.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from motionanim.data.latents.remote import is_remote, remote_request, repair
from motionanim.data.latents.shard_cache import ShardCache
from motionanim.files import atomic_path, file_sha256

Result = TypeVar("Result")


class ShardLayout(NamedTuple):
    """The place of each sample of a dataset."""

    samples: int  # of the dataset
    shard_samples: int  # of a shard; the last shard may hold fewer
    sample_bytes: int | np.ndarray  # of one safetensors member; (N,) where they differ

    def ranges(self) -> list[range]:
        """The sample numbers of each shard."""
        return shard_ranges(self.samples, self.shard_samples)

    def range_of(self, shard: int) -> range:
        """The sample numbers of one shard."""
        first = shard * self.shard_samples
        return range(first, min(first + self.shard_samples, self.samples))

    def sizes(self, numbers: range) -> np.ndarray:
        """Bytes of some samples' members: (N,)."""
        return np.broadcast_to(self.sample_bytes, self.samples)[numbers.start : numbers.stop]

    def starts(self, numbers: range) -> np.ndarray:
        """Where samples begin in a shard that holds `numbers`, and where the last one ends: (N + 1,) bytes.

        A sample is a header and its bytes, padded to whole blocks.
        """
        blocks = 1 + -(-self.sizes(numbers) // tarfile.BLOCKSIZE)
        return tarfile.BLOCKSIZE * np.concatenate([[0], np.cumsum(blocks)])

    def shard_bytes(self, numbers: range) -> int:
        """Size of a shard; a tar file ends with two empty blocks and is padded to whole records."""
        used = int(self.starts(numbers)[-1]) + 2 * tarfile.BLOCKSIZE
        return -(-used // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def shard_ranges(samples: int, shard_samples: int) -> list[range]:
    """The sample numbers of each shard."""
    return [range(first, min(first + shard_samples, samples)) for first in range(0, samples, shard_samples)]


def shard_name(numbers: range) -> str:
    """File name by the sample numbers, so that a shard that a longer dataset fills up is another file."""
    return f"{numbers.start:09}-{numbers.stop:09}.tar"


def write_shard(folder: Path, numbers: range, samples: Iterable[Mapping[str, Tensor]], *, mixed: bool = False) -> None:
    """Write one shard, and then its SHA-256 beside it (as sha256sum does), which marks the shard as complete.

    The bytes depend on the samples alone.

    Args:
        mixed: Whether samples may differ in size.

    Raises:
        ValueError: If they do otherwise.
    """
    path = folder / shard_name(numbers)
    _digest_path(path).unlink(missing_ok=True)  # it is of other bytes if a damaged shard is written again
    with atomic_path(path) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            sizes = set()
            for number, sample in zip(numbers, samples, strict=True):
                content = safetensors.torch.save(dict(sample))
                member = tarfile.TarInfo(_member(number))
                member.size = len(content)
                sizes.add(member.size)
                if len(sizes) > 1 and not mixed:
                    raise ValueError(
                        f"sample {number} takes {member.size} bytes, others {min(sizes)}: sizes must agree"
                    )
                tar.addfile(member, io.BytesIO(content))
        digest = file_sha256(partial)
    with atomic_path(_digest_path(path)) as partial:
        partial.write_text(f"{digest}  {path.name}\n", encoding="ascii")


def finished_shard(folder: Path, numbers: range) -> tuple[str, list[int]] | None:
    """SHA-256 and sample sizes of a local shard; None if it is missing or cut and must be written again."""
    path = folder / shard_name(numbers)
    try:
        with tarfile.open(path) as tar:
            sizes = [member.size for member in tar]
        digest = _digest_path(path).read_text(encoding="ascii")[:64]
    except (FileNotFoundError, tarfile.TarError):
        return None
    if len(sizes) != len(numbers) or len(digest) != 64:
        return None
    whole = ShardLayout(len(sizes), len(sizes), np.array(sizes)).shard_bytes(range(len(sizes)))
    return (digest, sizes) if path.stat().st_size == whole else None


def remove_shard(folder: Path, numbers: range) -> None:
    path = folder / shard_name(numbers)
    _digest_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@dataclass
class Shards:
    """Reads samples by number. It holds no open file and no connection, so it can be pickled and forked.

    Raises:
        ValueError: If a number is out of its range, or the cache too small.
    """

    url: str  # local folder, or a URL of any fsspec filesystem (s3://, gs://, https://, ...; its package is needed)
    layout: ShardLayout
    digests: list[str]  # SHA-256 of each shard
    _: KW_ONLY
    cache: str | Path  # local folder for whole shards of a remote dataset
    cache_gb: float  # size of the cache in GB; 0 reads each sample by itself, without a cache
    retries: int  # how often a failed request is repeated, after 1, 2, 4, ... s
    together: int = 1  # shards that are read in turns: a cache must hold them all, not to fetch them again and again

    def __post_init__(self) -> None:
        if self.cache_gb < 0 or self.retries < 0:
            raise ValueError(f"cache_gb={self.cache_gb}, retries={self.retries}: must be at least 0")
        self.url = self.url.rstrip("/")
        self._cache = ShardCache(self.cache, round(self.cache_gb * 1e9))
        together = min(self.together, len(self.digests))
        largest = max(map(self.layout.shard_bytes, self.layout.ranges()), default=0)
        least = together * largest / 1e9
        if is_remote(self.url) and 0 < self.cache_gb < least:
            raise ValueError(
                f"reading.cache_gb={self.cache_gb}: must be 0, or hold the {together} shards that are read in turns: "
                f"at least {least}; or lower reading.shuffle_shards"
            )

    def read(self, number: int) -> dict[str, Tensor]:
        """Sample `number`.

        Raises:
            ValueError: If its shard is missing, cut or damaged, or the store cannot be reached.
        """
        shard, place = divmod(number, self.layout.shard_samples)
        numbers = self.layout.range_of(shard)
        name = shard_name(numbers)
        start = int(self.layout.starts(numbers)[place])
        end = start + tarfile.BLOCKSIZE + int(self.layout.sizes(numbers)[place])
        where, mend = f"{self.url}/{name}", repair(self.url)
        if not is_remote(self.url):
            content = self._read_local(Path(self.url, name), start, end)
        elif self._cache.size:
            content = self._read_cached(self.digests[shard], numbers, start, end)
            where, mend = str(self._cache.path(self.digests[shard])), "it is fetched anew"
        else:
            content = self._remote(name, lambda files, path: files.cat_file(path, start=start, end=end))
        if len(content) > end - start:
            raise ValueError(f"the server of {where} ignores byte ranges: set reading.cache_gb above 0")
        if len(content) < end - start:
            raise ValueError(f"{where} is truncated: sample {number} ends at byte {end}: delete it; {mend}")
        try:
            if content[: tarfile.LENGTH_NAME].rstrip(b"\0").decode() != _member(number):
                raise ValueError("another sample is in its place")
            return safetensors.torch.load(content[tarfile.BLOCKSIZE :])
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{where} is damaged at sample {number} ({error}): delete it; {mend}") from error

    def _read_local(self, path: Path, start: int, end: int) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), end - start, start)
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: {repair(self.url)}") from error

    def _read_cached(self, digest: str, numbers: range, start: int, end: int) -> bytes:
        name = shard_name(numbers)

        def fetch(path: Path) -> None:
            self._remote(name, lambda files, source: files.get_file(source, str(path)))
            if file_sha256(path) != digest:
                where = f"{self.url}/{name}"
                raise ValueError(f"{where} is truncated or damaged: its SHA-256 is wrong; {repair(self.url)}")

        return self._cache.read(digest, self.layout.shard_bytes(numbers), fetch, start, end)

    def _remote(self, name: str, request: Callable[..., Result]) -> Result:
        try:
            return remote_request(f"{self.url}/{name}", request, retries=self.retries)
        except FileNotFoundError as error:
            raise ValueError(f"{self.url}/{name} is missing: {repair(self.url)}") from error


def _member(number: int) -> str:
    return f"{number:09}.safetensors"


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
