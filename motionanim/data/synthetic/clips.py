"""A procedural world rendered on the fly with exact motion: fluids, wheels, foliage, drifting bodies and a camera.

Each frame is sampled at two samples per pixel and axis from the same textures at a random sub-pixel phase, and averaged
down. So no frame is sharper than another, by which a network could tell frame 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from motionanim.data import stream
from motionanim.data.latents.prepared import PreparedLatents
from motionanim.data.order import Buckets, shuffled_index
from motionanim.data.synthetic import scenes
from motionanim.data.synthetic.cameras import CAMERAS, draw_camera
from motionanim.data.synthetic.layers import SUPER, Layer, Points, Stage
from motionanim.data.synthetic.photometric import vary
from motionanim.data.synthetic.textures import draw_style
from motionanim.types import ClipBatch, FlowPairBatch, Hint

# Loader processes are the parallelism; OpenCV's threads would compete with them and with training.
cv2.setNumThreads(1)

_STEADY = ((scenes.river, 4), (scenes.pond, 2), (scenes.sky, 3), (scenes.wheel, 2), (scenes.drift, 3))
_ALL = (*_STEADY, (scenes.foliage, 3), (scenes.still, 1))


class SyntheticClip(NamedTuple):
    """A rendered clip. T frames of H x W pixels."""

    frames: Tensor  # (T, 3, H, W) float32 in [-1, 1], RGB
    flow: Tensor  # (T-1, 2, H, W) float32; motion of the visible surface by object and camera, px from frame k to k+1
    camera_flow: Tensor  # (T-1, 2, H, W) float32; motion of a still background; exact zeros under a still camera
    mask: Tensor  # (1, H, W) float32 in {0, 1}; 1 where frame 0 shows something that moves in the world


def _grid(height: int, width: int, step: int) -> Points:
    """Picture coordinates of `step` samples per pixel and axis, each (height * step, width * step)."""
    x = ((np.arange(width * step) + 0.5) / step - 0.5).astype(np.float32)
    y = ((np.arange(height * step) + 0.5) / step - 0.5).astype(np.float32)
    return np.broadcast_to(x, (len(y), len(x))), np.broadcast_to(y[:, None], (len(y), len(x)))


def _sample(image: np.ndarray, points: Points, origin: tuple[float, float], border: int) -> np.ndarray:
    x, y = ((points[axis] - np.float32(origin[axis])) * np.float32(SUPER) - np.float32(0.5) for axis in (0, 1))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)


def _paint(picture: np.ndarray, layer: Layer, stage: Stage, world: Points, time: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay `layer` over `picture` (h, w, 3): the new picture and the layer's coverage (h, w)."""
    material = world if layer.motion is None else layer.motion.material(world, time)
    pixels = _sample(layer.pixels, material, layer.origin, layer.border)
    if layer.region is not None:
        cover = _sample(layer.region, world, stage.origin, cv2.BORDER_REPLICATE)
        return picture + (pixels - picture) * cover[..., None], cover
    if pixels.shape[2] == 3:
        return pixels, np.ones(pixels.shape[:2], np.float32)
    cover = pixels[..., 3]
    return pixels[..., :3] + picture * (1 - cover)[..., None], cover


def _shrink(image: np.ndarray, stage: Stage) -> np.ndarray:
    return cv2.resize(image, (stage.width, stage.height), interpolation=cv2.INTER_AREA)


def _render(
    rng: np.random.Generator,
    stage: Stage,
    *,
    moving_camera: float,
    camera: str,
    split: str,
    kinds: tuple[tuple[Callable, int], ...],
) -> SyntheticClip:
    style = draw_style(rng, split)
    weights = np.array([weight for _, weight in kinds], float)
    layers = kinds[rng.choice(len(kinds), p=weights / weights.sum())][0](rng, stage, style)
    eye = draw_camera(rng, stage, bool(rng.random() < moving_camera), camera)
    fine, coarse = _grid(stage.height, stage.width, SUPER), _grid(stage.height, stage.width, 1)
    frames, flows, camera_flows = [], [], []
    world, backdrop = eye.to_world(fine, 0), np.zeros((), np.float32)
    for time in range(stage.num_frames):
        if time == 0 or eye.moves:
            world = eye.to_world(fine, time)
            backdrop = _paint(backdrop, layers[0], stage, world, time)[0]
        picture, covers = backdrop, []
        for layer in layers[1:]:
            picture, cover = _paint(picture, layer, stage, world, time)
            covers.append(_shrink(cover, stage) > 0.5)
        frames.append(_shrink(picture, stage))
        if time == 0:
            mask = np.zeros((stage.height, stage.width), bool)
            for layer, cover in zip(layers[1:], covers):
                mask = np.where(cover, layer.motion is not None, mask)
        if time == stage.num_frames - 1:
            break
        here = eye.to_world(coarse, time)
        there = here
        for layer, cover in zip(layers[1:], covers):
            moved = here if layer.motion is None else layer.motion.step(here, time)
            there = tuple(np.where(cover, new, old) for new, old in zip(moved, there))
        # Displacements happen in the world; the next frame's camera sees them.
        if eye.moves:
            rest = eye.to_picture(here, time + 1)
            camera_flows.append(np.stack([rest[0] - coarse[0], rest[1] - coarse[1]]))
            seen = eye.to_picture(there, time + 1)
            flows.append(np.stack([seen[0] - coarse[0], seen[1] - coarse[1]]))
        else:
            camera_flows.append(np.zeros((2, stage.height, stage.width), np.float32))
            flows.append(np.stack([there[0] - here[0], there[1] - here[1]]))
    pictures = np.clip(np.stack(frames).transpose(0, 3, 1, 2) * 2 - 1, -1, 1)
    return SyntheticClip(
        torch.from_numpy(np.ascontiguousarray(pictures, np.float32)),
        torch.from_numpy(np.stack(flows).astype(np.float32, copy=False)),
        torch.from_numpy(np.stack(camera_flows).astype(np.float32, copy=False)),
        torch.from_numpy(mask[None].astype(np.float32)),
    )


def _checked_stage(length: int, num_frames: int, height: int, width: int) -> Stage:
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1")
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: must be at least 2, for there to be motion")
    if min(height, width) < 16:
        raise ValueError(f"height x width = {height}x{width}: each must be at least 16 pixels")
    return Stage(num_frames, height, width)


@dataclass(kw_only=True)
class SyntheticClips(Dataset[ClipBatch]):
    """Endless clips of random scenes: fluids, wheels, foliage, drifting bodies, or nothing that moves.

    Item `position` (any int >= 0) is a pure function of (seed, position), bit for bit. Object speeds are log-uniform
    from 0.3 to 4 % of the width per frame, camera speeds from 0.3 to 2.5 %. With `shapes` all of them are equally
    frequent.

    Raises:
        ValueError: If a setting is out of range.
    """

    seed: int
    length: int  # items of one pass, for validation
    num_frames: int  # T, at least 2
    height: int  # px, at least 16
    width: int  # px, at least 16
    moving_camera: float  # share of clips with a moving camera, in [0, 1]
    split: str  # `train` or `val`, which share no palette, leaf shape or noise slope
    fps: float  # label of the clips
    # Motion of a moving camera: `any` combination of pan, zoom, shake and roll; or `pan`, always to the right at 2 % of
    # the width per frame, so that a model can know it without a motion field.
    camera: Literal["any", "pan"] = "any"
    shapes: Buckets | None = None  # None: all clips of height x width

    def __post_init__(self) -> None:
        sizes = ((self.height, self.width),) if self.shapes is None else self.shapes.shapes
        self.stages = [_checked_stage(self.length, self.num_frames, *size) for size in sizes]
        if not 0 <= self.moving_camera <= 1:
            raise ValueError(f"moving_camera={self.moving_camera}: must be a share in [0, 1]")
        if self.camera not in CAMERAS:
            raise ValueError(f"camera={self.camera}: must be {' or '.join(CAMERAS)}")

    def __len__(self) -> int:
        return self.length

    # What `StreamData` reads.

    @property
    def row(self) -> int | None:
        return self.shapes and self.shapes.row

    @property
    def buckets(self) -> str | None:
        return self.shapes and self.shapes.fingerprint()

    def shape_number(self, position: int) -> int:
        """The number of a clip's shape: every so many rows have each shape once, in another order."""
        return 0 if self.shapes is None else shuffled_index(self.seed, position // self.row, len(self.stages))

    def clip(self, position: int) -> SyntheticClip:
        """The clip at `position` with all its ground truth."""
        options = {"moving_camera": self.moving_camera, "camera": self.camera, "split": self.split}
        stage = self.stages[self.shape_number(position)]
        return _render(stream.rng(self.seed, position), stage, kinds=_ALL, **options)

    def __getitem__(self, position: int) -> ClipBatch:
        clip = self.clip(position)
        return ClipBatch(
            frames=clip.frames,
            flow=clip.flow,
            fps=torch.tensor(self.fps, dtype=torch.float32),
            position=torch.tensor(position, dtype=torch.int64),
        )


@dataclass(kw_only=True)
class SyntheticFlowPairs(Dataset[FlowPairBatch]):
    """Images with their exact steady field under a still camera, for the flow refiner (Sec. 3.2).

    Training pictures also vary in look, by `photometric.vary`.
    """

    seed: int
    length: int  # items of one pass, for validation
    height: int  # px, at least 16
    width: int  # px, at least 16
    split: str  # `train` or `val`, as in `SyntheticClips`
    hint: Callable[[Tensor, Tensor, np.random.Generator], Hint]  # draws arrows by (flow (2, H, W), mask (1, H, W), rng)

    def __post_init__(self) -> None:
        self.stage = _checked_stage(self.length, 2, self.height, self.width)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> FlowPairBatch:
        generator = stream.rng(self.seed, position)
        clip = _render(generator, self.stage, moving_camera=0.0, camera="any", split=self.split, kinds=_STEADY)
        field = clip.flow[0] * clip.mask
        hint = self.hint(field, clip.mask, generator)
        return FlowPairBatch(
            vary(clip.frames[0], generator) if self.split == "train" else clip.frames[0],
            *hint,
            mask=clip.mask,
            flow=field,
            position=torch.tensor(position, dtype=torch.int64),
        )


def synthetic_data(
    *,
    items: Literal["clips", "pairs"],
    hint: Callable[[Tensor, Tensor, np.random.Generator], Hint],
    train: Mapping[str, Any],
    val: Mapping[str, Any],
    latents: str | None,
    reading: Mapping[str, Any],
    num_frames: int,
    height: int,
    width: int,
    fps: float,
    batch_size: int,
    num_workers: int,
    shapes: Buckets | None = None,
) -> stream.StreamData:
    """The world as training and validation data, in the kind of item that the experiment reads.

    Args:
        items: `clips` gives `SyntheticClips`, `pairs` gives `SyntheticFlowPairs` with `hint`.
        train: seed, length, split, moving_camera and camera of the training stream; pairs have a still camera.
        val: The same for validation.
        latents: Folder or URL of latents by motionanim.data.encode to train on instead of the rendered stream.
        reading: How `PreparedLatents` reads them.
        shapes: Of training clips; validation is at height x width.

    Raises:
        ValueError: If `items` is neither, pairs are to have several shapes, or the latents do not fit.
    """
    if items not in ("clips", "pairs"):
        raise ValueError(f"items={items}: must be clips or pairs")

    if shapes is not None and items == "pairs":
        raise ValueError("scale.buckets=true: pairs have one shape, only clips have several; leave it out")
    size = {"num_frames": num_frames, "height": height, "width": width}

    def dataset(side: Mapping[str, Any], shapes: Buckets | None = None) -> Dataset:
        if items == "clips":
            return SyntheticClips(**size, fps=fps, shapes=shapes, **side)
        still = {name: value for name, value in side.items() if name not in ("moving_camera", "camera")}
        return SyntheticFlowPairs(height=height, width=width, hint=hint, **still)

    if latents is None:
        trained = dataset(train, shapes)
    else:
        trained = PreparedLatents(latents, seed=train["seed"], shapes=shapes, **size, **reading)
    return stream.StreamData(train=trained, val=dataset(val), batch_size=batch_size, num_workers=num_workers)
