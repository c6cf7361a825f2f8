"""Prepare latents of a training source: python -m motionanim.data.encode data=folder data.root=FOLDER out=LATENTS."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from motionanim.cli.command import CONF, one_line_errors, quiet
from motionanim.cli.settings import check_size, command
from motionanim.data.latents.encoding import encode_clips, encode_shard
from motionanim.data.latents.prepared import clip_size
from motionanim.data.latents.remote import is_remote
from motionanim.data.video.index import READER

# Settings left out of a folder's source, because they do not change the clips. Cached flow does change where clips
# begin, but not by the place of its folder; `names` enters as the list that it gives.
_NO_MATTER = (
    "batch_size", "num_workers", "val", "val_clips", "rejected", "max_rejected_share", "names", "flow_cache", "latents",
    "hint", "min_speed", "device", "reading",
)  # fmt: skip

# Settings that are a file or folder, and those that are one or the name of a download.
_PATHS = ("out", "cache", "runs", "run", "root", "jsonl", "names", "index", "flow_cache", "rejected", "latents")
_PATHS_OR_NAMES = ("base", "weights")


def portable(config: DictConfig) -> DictConfig:
    """The configuration resolved, with absolute paths: it then means the same on every machine that shares the disk."""

    def absolute(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            if key == "root":  # several folders and their weights
                return {str(Path(folder).expanduser().absolute()): weight for folder, weight in node.items()}
            return {key: absolute(value, key) for key, value in node.items()}
        if isinstance(node, list):
            return [absolute(value, key) for value in node]
        if not isinstance(node, str) or is_remote(node):
            return node
        is_path = key in _PATHS or (key in _PATHS_OR_NAMES and Path(node).exists())
        return str(Path(node).absolute()) if is_path else node

    return OmegaConf.create(absolute(OmegaConf.to_container(config, resolve=True)))


def clip_source(data: DictConfig, names: Iterable[str]) -> dict[str, Any]:
    """All that decides the clips of a training stream: its settings, a digest of its videos, the reader's version."""
    settings = _settled(OmegaConf.to_container(data, resolve=True))
    if not settings.get("shapes", {}).get("used"):  # as folders of earlier versions record it
        settings.pop("shapes", None)
    return settings | {"videos": _digest(names), "reader": READER}


def _settled(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _settled(value) for key, value in node.items() if key not in _NO_MATTER}
    return node


def _digest(names: Iterable[str]) -> str:
    """Hash of the list of videos: when it changes, positions mean other clips."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _work(config: str) -> Callable[[range, Path], None]:
    """`encode_shard` with a configuration's options bound, made once per worker process."""
    cfg = OmegaConf.create(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = hydra.utils.instantiate(cfg.codec).to(device)
    clips = hydra.utils.instantiate(cfg.data, _convert_="all").train
    getattr(clips, "buckets", None)  # looks up sizes here, and not in every loader process
    return functools.partial(
        encode_shard,
        clips=clips,
        encode=codec.encode,
        embed=codec.embed_image,
        warp=codec.warp_image if cfg.predict else None,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        device=device,
    )


def make_shard(positions: range, folder: Path, *, config: str) -> None:
    """`encode_shard` for a `portable` configuration as YAML text, which can be sent to any worker."""
    quiet()
    _work(config)(positions, folder)


@command
@hydra.main(config_path=str(CONF), config_name="encode", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Encode `clips` positions of the training stream of `data` into `out`: see conf/encode.yaml."""
    quiet()
    if is_remote(config.out):
        raise ValueError(
            f"out={config.out}: encode writes to a local folder; give out=FOLDER, upload it, and train on it with "
            f"data.latents={config.out}"
        )
    config = portable(config)
    data = hydra.utils.instantiate(config.data, _convert_="all")
    codec = hydra.utils.instantiate(config.codec)
    shapes = getattr(data.train, "shapes", None)
    several = 0 if shapes is None else config.scale.bucket_multiple
    check_size(config.scale.height, config.scale.width, codec.downscale, bucket_multiple=several)
    size = {name: config.scale[name] for name in ("num_frames", "height", "width")}
    source = clip_source(config.data, getattr(data.train, "names", ()))
    if shapes is not None:
        size, source["buckets"] = clip_size(shapes, **size), data.train.buckets
    made = encode_clips(
        functools.partial(make_shard, config=OmegaConf.to_yaml(config)),
        count=config.clips,
        shard_clips=config.shard_clips,
        predict=config.predict,
        vae=codec.fingerprint(),
        size=size,
        source=source,
        folder=Path(config.out),
        engine=hydra.utils.instantiate(config.engine),
        shape_number=None if shapes is None else data.train.shape_number,
    )
    print(f"{made} clips encoded now; train on them with data.latents={config.out}")


if __name__ == "__main__":
    # Imported by its name, because worker processes would look for `make_shard` in their own __main__.
    from motionanim.data.encode import main

    main()
