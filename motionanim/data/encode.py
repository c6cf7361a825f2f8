"""Prepare latents of a training source: python -m motionanim.data.encode data=folder data.root=FOLDER out=LATENTS."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from motionanim.data.latents import encode_clips
from motionanim.entry import one_line_errors, quiet

# What a folder may differ in: none of it changes a clip.
_NO_MATTER = (
    "batch_size", "num_workers", "val", "rejected", "max_rejected_share", "flow_cache", "latents", "hint", "min_speed",
    "device",
)  # fmt: skip


def _settled(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _settled(value) for key, value in node.items() if key not in _NO_MATTER}
    return node


def _digest(names: Iterable[str]) -> str:
    """Of the list of videos: positions mean other clips when it changes."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()[:16]


@hydra.main(config_path=str(Path(__file__).parents[2] / "conf"), config_name="encode", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Encode `clips` positions of the training stream of `data` into `out`: see conf/encode.yaml."""
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = hydra.utils.instantiate(config.codec).to(device)
    data = hydra.utils.instantiate(config.data, _convert_="all")
    source = _settled(OmegaConf.to_container(config.data, resolve=True))
    source["videos"] = _digest(getattr(data.train, "names", ()))
    made = encode_clips(
        data.train,
        count=config.clips,
        encode=codec.encode,
        predict=codec.predict if config.predict else None,
        vae=codec.fingerprint(),
        size={name: config.scale[name] for name in ("num_frames", "height", "width")},
        source=source,
        folder=Path(config.out),
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
        device=device,
    )
    print(f"{made} clips encoded now; train on them with data.latents={config.out}")


if __name__ == "__main__":
    main()
