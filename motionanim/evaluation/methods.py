"""Methods that are compared: our model, baselines without a network, other systems' videos, and reference rows."""

import glob
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from motionanim.cli.settings import lora_weights
from motionanim.data.folder import folder_names
from motionanim.data.video import Video
from motionanim.evaluation.benchmark import EvalClip
from motionanim.evaluation.method_input import MethodInput, RequestKind
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.files import file_sha256
from motionanim.models.svd.codec import PREDICTION
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.controls import Fields
from motionanim.motion.flow import motion_strength, trace_back, warp
from motionanim.sampling.animator import Animator, LongVideo, pick_device


class MethodOutput(NamedTuple):
    """The video that a method makes of a clip."""

    frames: Tensor  # (T, 3, H, W) in [-1, 1]
    flow: Tensor | None = None  # (T-1, 2, H, W): the motion to score it against, if not the clip's flow
    calls: float | None = None  # denoiser calls
    segment_starts: tuple[int, ...] = ()
    split_sigma: float | None = None


class Method(Protocol):
    label: str  # the row's name
    reference: bool  # a reference row: it shows what the metrics say of something known and is never ranked
    saw_motion: bool  # it was given the true motion instead of a few arrows
    saw_mask: bool  # it was given the true clip's mask beside its arrows
    lossless: bool  # its frames were never in a compressed file
    timed: bool  # its videos are made here, so their time is measured
    repeated: int  # videos with a lower frame rate than is read, so that some of their frames are repeated
    identity: dict[str, Any]  # plain values that determine its output besides its config
    files: Mapping[str, str]  # hashes of the videos that it reads, by clip
    place: str  # folder of those videos; "" without them

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput: ...


class _Made:
    """Attributes of the methods that make their videos here."""

    reference, saw_motion, saw_mask, lossless, timed, repeated = False, False, False, True, True, 0
    files: Mapping[str, str] = {}
    place = ""


class Ours(_Made):
    """Our model with a conditioning and a long-video method.

    Args:
        label: The row's name.
        request, controls, refiner, use_refiner, mask: As in `MethodInput`.
        motion: The conditioning.
        long_video: The method, with its options bound.
        base, sampling, loras, context_length: As in `Animator`.
    """

    def __init__(
        self,
        *,
        label: str,
        request: RequestKind,
        controls: Callable[..., Fields],
        refiner: str | None,
        use_refiner: bool,
        mask: bool,
        base: str,
        motion: Mapping[str, Any],
        sampling: Mapping[str, Any],
        loras: Mapping[str, float] | str | None,
        context_length: int,
        long_video: LongVideo,
    ) -> None:
        self.input = MethodInput(
            request=request, controls=controls, refiner=refiner, use_refiner=use_refiner, mask=mask
        )
        self.label, self.saw_motion, self.long_video = label + self.input.label, request == "exact", long_video
        self.saw_mask = mask
        pairs = lora_weights(loras)
        # A base without motion weights gets random ones behind a zero layer: seeded, so that every run has the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.animator, _ = Animator.load(
                base=base,
                motion=motion,
                sampling=sampling,
                loras=pairs,
                context_length=context_length,
                device=pick_device(),
            )
        self.use_flow = bool(motion["motion_field"] or motion["warped_latent"])
        self.use_strength = bool(motion["motion_strength"])
        # Hashes all weights with LoRAs merged, because two trainings of one base may differ in a few layers only.
        networks = (self.animator.denoiser, self.animator.codec)
        self.identity = {
            "weights": [weights_fingerprint(each) for each in networks], **self.input.identity,
            "prediction": PREDICTION,
        }  # fmt: skip

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        flow = self.input.field(clip)[None]
        frames, record = self.animator(
            clip.frames[:1], flow, num_frames=len(clip.frames), fps=clip.fps,
            strength=motion_strength(flow) if self.use_strength else None, use_flow=self.use_flow,
            mask=self.input.mask(clip)[None], long_video=self.long_video, seed=seed, progress=None,
        )  # fmt: skip
        return MethodOutput(frames[0].cpu(), None, record.calls, record.segment_starts, record.split_sigma)


class Warp(_Made):
    """Warps the image along the motion field, without a network: the baseline that a model has to beat.

    Args:
        label: The row's name.
        request, options: As in `MethodInput`.
    """

    def __init__(self, *, label: str, request: RequestKind, **options: Any) -> None:
        self.input = MethodInput(request=request, **options)
        self.label, self.saw_motion = label + self.input.label, request == "exact"
        self.saw_mask = self.input.gives_mask
        self.identity = {**self.input.identity, "prediction": PREDICTION}

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        offsets = trace_back(self.input.field(clip)[None])[0]
        image = clip.frames[:1]
        warped = warp(image.expand_as(clip.frames), offsets)
        return MethodOutput(torch.where(self.input.mask(clip) > 0, warped, image))


class Eulerian(Warp):
    """Moves the image along a steady field without a network.

    Args:
        render: `motion.eulerian.frames` or `motion.flow_map.frames`, with its options bound.
        options: As in `Warp`.
    """

    def __init__(self, *, render: Callable[..., Iterable[Tensor]], **options: Any) -> None:
        super().__init__(**options)
        self.render = render

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        steady, mask = self.input.field(clip).mean(0), self.input.mask(clip)
        frames = self.render(clip.frames[0], steady, num_frames=len(clip.frames), mask=mask)
        return MethodOutput(torch.stack(list(frames)))


class Reference(_Made):
    """A reference row, which shows what the metrics say of something known.

    Args:
        label: The row's name.
        kind: "real" is the true clip; "static_copy" repeats its first frame; "shuffled" has its frames 1 ... T-1 in
            random order; "flipped" is the true clip, scored against the opposite of the requested motion.
    """

    reference, timed = True, False
    identity: Mapping[str, Any] = {}

    def __init__(self, *, label: str, kind: Literal["real", "static_copy", "shuffled", "flipped"]) -> None:
        if kind not in ("real", "static_copy", "shuffled", "flipped"):
            raise ValueError(f"method.kind={kind!r}: must be real, static_copy, shuffled or flipped")
        self.label, self.kind = label, kind

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        frames = clip.frames
        if self.kind == "static_copy":
            return MethodOutput(frames[:1].expand_as(frames).clone())
        if self.kind == "shuffled":
            order = 1 + torch.randperm(len(frames) - 1, generator=torch.Generator().manual_seed(seed))
            return MethodOutput(torch.cat([frames[:1], frames[order]]))
        return MethodOutput(frames, -clip.flow if self.kind == "flipped" else None)


# The fields of method.json and their types.
_SIDE = {"label": str, "saw_motion": bool, "fps": (int, float), "source": str, "size": list, "seconds": (int, float)}


class External:
    """Videos of another system: FOLDER/CLIP.mp4 for every clip of the benchmark, and optionally FOLDER/method.json.

    method.json may hold `label`, `saw_motion`, `fps` (the true rate, if the file's is wrong), `source`, and `size` and
    `seconds`, which are checked against the files.

    Args:
        folder: The videos, named by clip.
        side: Overrides values of method.json.
        reading: How the benchmark reads frames.
        clips: Ids of the benchmark's clips.

    Raises:
        ValueError: If a video is missing or of no clip, or method.json is not as above or does not fit the files.
        motionanim.data.video.VideoError: If a video cannot be read or is too short.
    """

    reference, timed, repeated, saw_mask, lossless = False, False, 0, False, False

    def __init__(self, *, folder: str, side: Mapping[str, Any], reading: Reading, clips: Sequence[str]) -> None:
        found: dict[str, Path] = {}
        for name in folder_names(folder):
            clip = str(Path(name).with_suffix(""))
            if clip in found:
                raise ValueError(f"{folder} has two videos named {clip}: names without suffix must differ")
            found[clip] = Path(folder, name)
        for what, names in (("no video for", set(clips) - set(found)), ("videos of no clip:", set(found) - set(clips))):
            if names:
                listed = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
                raise ValueError(
                    f"{folder} has {what} {listed}: a method needs exactly the benchmark's {len(clips)} clips"
                )
        side = _side(Path(folder, "method.json"), side)
        self.label = side.get("label") or Path(folder).name
        self.saw_motion, self._rate = side.get("saw_motion", False), side.get("fps")
        self.paths, self.reading = found, reading
        for clip in clips:
            # Checked here, so that a long run does not fail at its last clip. This reads no frames.
            video = Video(found[clip])
            places = reading.indices(video, rate=self._rate)
            self.repeated += len(set(places.tolist())) < len(places)
            _check_side(side, video)
        self.files = {clip: file_sha256(found[clip]) for clip in clips}
        self.identity, self.place = {"side": side}, str(Path(folder).resolve())

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        return MethodOutput(read_clip(self.paths[clip.id], self.reading, rate=self._rate))


def _check_side(side: dict[str, Any], video: Video) -> None:
    """Raises ValueError if method.json and a video disagree."""
    height, width = video.size()
    if "size" in side and list(side["size"]) != [width, height]:
        raise ValueError(
            f"{video.path} is {width}x{height} px and method.json says size={side['size']} [width, height]"
        )
    seconds = video.info.seconds * video.info.fps / side.get("fps", video.info.fps)
    if "seconds" in side and abs(side["seconds"] - seconds) > 0.05 * seconds:
        raise ValueError(f"{video.path} lasts {seconds:.2f} s and method.json says seconds={side['seconds']}")


def externals(
    *,
    folders: str | Sequence[str],
    side: Mapping[str, Mapping[str, Any]],
    reading: Reading,
    clips: Sequence[str],
    truth: str,
) -> list[External]:
    """A method for each folder.

    Args:
        folders: A folder, a pattern such as results/*, or a list of either; the folder `truth` is left out.
        side: Overrides of method.json, by name of the folder.
        reading, clips: As in `External`.
        truth: Folder of the true clips.

    Raises:
        ValueError: If a pattern matches no folder or two folders share a name, or as `External`.
    """
    found: dict[str, Path] = {}
    for pattern in [folders] if isinstance(folders, str) else folders:
        # The name of an existing folder is no pattern, even with brackets: res [v2].
        names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))
        matches = [Path(name) for name in names if Path(name).is_dir()]
        if not matches:
            raise ValueError(f"method.folders={pattern}: no such folder; give the folder of a method's videos")
        for match in matches:
            if match.resolve() == Path(truth).resolve():
                continue
            name = match.resolve().name
            if found.setdefault(name, match) != match:
                raise ValueError(f"{found[name]} and {match} share a name, so their rows would too; rename one")
    return [
        External(folder=str(path), side=side.get(name, {}), reading=reading, clips=clips)
        for name, path in found.items()
    ]


def _side(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    side: Any = {}
    if path.exists():
        try:
            side = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(side, dict):
        raise ValueError(f"{path}: must be an object with any of {', '.join(_SIDE)}")
    side |= overrides
    for key, value in side.items():
        kind = _SIDE.get(key)
        if kind is None or not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{path}: {key}={value!r} is not one of {', '.join(_SIDE)}, or of another type")
    for key in ("fps", "seconds"):
        if key in side and not 0 < side[key] < math.inf:
            raise ValueError(f"{path}: {key}={side[key]} must be a finite number above 0")
    return side
