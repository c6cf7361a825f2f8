"""Latents made beforehand, so that training neither decodes videos nor runs the VAE: motionanim.data.encode."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from motionanim.data.stream import as_floats, collate, shuffled_index
from motionanim.files import atomic_path
from motionanim.types import ClipBatch, LatentBatch

MANIFEST = "latents.json"
FORMAT = "motionanim-latents-4"


class PreparedLatents(Dataset[LatentBatch]):
    """The training stream over a folder of latents: every epoch is a permutation of its own.

    Attributes:
        vae: Fingerprint of the VAE that encoded them.
        predicts: Whether the motion-compensated frames are there too.

    Args:
        folder: What `encode_clips` left.
        seed: Of the stream.
        num_frames, height, width: What the experiment expects of a clip.

    Raises:
        ValueError: If the folder is none of latents, is unfinished, or holds clips of another size.
    """

    def __init__(self, folder: str | Path, *, seed: int, num_frames: int, height: int, width: int) -> None:
        self.folder, self.seed = Path(folder), seed
        manifest = _read_manifest(self.folder)
        if manifest is None:
            raise ValueError(
                f"latents={folder} holds no {MANIFEST}: make latents with python -m motionanim.data.encode out=FOLDER"
            )
        self.length, self.vae, self.predicts = manifest["clips"], manifest["vae"], manifest["predict"]
        wanted = {"num_frames": num_frames, "height": height, "width": width}
        if manifest["size"] != wanted:
            raise ValueError(f"latents={folder} holds clips of {manifest['size']}, the experiment's are {wanted}")
        missing = len(_missing(self.folder, self.length))
        if missing:
            raise ValueError(
                f"latents={folder} lacks {missing} of {self.length} clips: run motionanim.data.encode again, it goes on"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> LatentBatch:
        parts = load_file(_clip_path(self.folder, shuffled_index(self.seed, position, self.length)))
        parts.setdefault("predicted", parts["latents"][:1])
        return LatentBatch(**parts, position=torch.tensor(position, dtype=torch.int64))


def encode_clips(
    clips: Dataset[ClipBatch],
    *,
    count: int,
    encode: Callable[[Tensor], Tensor],
    predict: Callable[[Tensor, Tensor], Tensor] | None,
    vae: str,
    size: Mapping[str, int],
    source: Mapping[str, Any],
    folder: Path,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> int:
    """Write the latents, flow and first frame of positions 0 to count-1 of a training stream, a file each.

    Clips that are there already are kept, so that a killed run goes on and a larger `count` adds to a folder.

    Args:
        clips: Addressed by position.
        count: How many, at least 1. Random crops and starts are drawn once; take more positions than there are videos
            to have several of each.
        encode: Frames (B, T, 3, H, W) in [-1, 1] to scaled latents.
        predict: `Codec.predict`, to store what it predicts too; None for models that do not ask.
        vae: Fingerprint of what encodes.
        size: num_frames, height and width of a clip.
        source: Where the clips come from; a folder keeps to one source.
        folder: Target.

    Returns:
        How many were made now.

    Raises:
        ValueError: If `count` is below 1, or the folder holds latents of another VAE, size or source.
    """
    if count < 1:
        raise ValueError(f"clips={count}: must be at least 1")
    manifest = {
        "format": FORMAT, "clips": count, "size": dict(size), "vae": vae, "predict": predict is not None,
        "source": dict(source),
    }  # fmt: skip
    earlier = _read_manifest(folder)
    for key, value in (earlier or {}).items():
        if key != "clips" and manifest[key] != value:
            raise ValueError(f"out={folder} holds latents of another {key}: choose another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    if earlier is None:
        _write_manifest(folder, manifest)
    todo = _missing(folder, count)
    loader = DataLoader(clips, batch_size, sampler=todo, num_workers=num_workers, collate_fn=collate)
    for stored in tqdm(loader, desc="encode", unit="batch", disable=not todo):
        batch = as_floats(ClipBatch(*(field.to(device) for field in stored)))
        parts = {
            "latents": encode(batch.frames).half(),
            "image": ((batch.image + 1) * 127.5).round().byte().movedim(1, -1),
            "flow": batch.flow.half(),
            "fps": batch.fps,
        }
        if predict is not None:
            parts["predicted"] = predict(batch.image, batch.flow).half()
        for row, position in enumerate(batch.position.tolist()):
            with atomic_path(_clip_path(folder, position)) as path:
                save_file({name: values[row].contiguous().cpu() for name, values in parts.items()}, path)
    if earlier is not None and count > earlier["clips"]:  # only now, so that a folder that fails to grow stays usable
        _write_manifest(folder, manifest)
    return len(todo)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: delete the folder and encode again") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{folder / MANIFEST} has format {manifest.get('format')!r}, this version reads {FORMAT!r}")
    return manifest


def _clip_path(folder: Path, index: int) -> Path:
    return folder / f"{index // 1000:04}" / f"{index:07}.safetensors"


def _missing(folder: Path, count: int) -> list[int]:
    present = {entry.name for part in os.scandir(folder) if part.is_dir() for entry in os.scandir(part)}
    return [index for index in range(count) if _clip_path(folder, index).name not in present]
