"""What is compared: our model, baselines without a network, videos that others made, and control rows.

A method is called with a case and a seed and returns `Made`. Its attributes tell about it: `label`, `control` (a row
that shows what a metric says of something known, never ranked), `saw_motion` (it was given the true motion rather
than a few arrows), `timed` (its videos are made here, so that their time says something), `identity` (plain values that
determine its output beyond its config), `files` (hashes of the files that its videos are), `place` (their folder) and
`repeated` (how many of them are slower than what is read, so that frames are shown twice).
"""

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
from motionanim.evaluation.arrows import Asked, RequestKind
from motionanim.evaluation.cases import Case
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.files import file_sha256
from motionanim.models.fingerprint import weights_fingerprint
from motionanim.models.svd.codec import PREDICTION
from motionanim.motion.controls import Fields
from motionanim.motion.flow import motion_strength, trace_back, warp
from motionanim.sampling.animator import Animator, LongVideo, pick_device


class Made(NamedTuple):
    """A method's answer to a case."""

    frames: Tensor  # (T, 3, H, W) in [-1, 1]
    flow: Tensor | None = None  # (T-1, 2, H, W): what to hold it against instead of the case's flow
    calls: float | None = None  # denoiser evaluations
    borders: tuple[int, ...] = ()
    split_sigma: float | None = None


class Method(Protocol):
    label: str
    control: bool
    saw_motion: bool
    timed: bool
    repeated: int
    identity: dict[str, Any]
    files: Mapping[str, str]
    place: str

    def __call__(self, case: Case, seed: int) -> Made: ...


class _Maker:
    """What methods share that make their videos here."""

    control, saw_motion, timed, repeated = False, False, True, 0
    files: Mapping[str, str] = {}
    place = ""


class Ours(_Maker):
    """Our model under a conditioning and a long-video method.

    Args:
        label: The row's name.
        request, controls, refiner, use_refiner, mask: As in `Asked`.
        motion: The conditioning.
        long_video: The method, its options bound.
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
        self.asked = Asked(request=request, controls=controls, refiner=refiner, use_refiner=use_refiner, mask=mask)
        self.label, self.saw_motion, self.long_video = label + self.asked.label, request == "exact", long_video
        pairs = lora_weights(loras)
        # A base without motion weights gets random ones behind a zero: the same in every run.
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
        # All weights, LoRAs folded in: two trainings of one base may share every layer but a few.
        networks = (self.animator.denoiser, self.animator.codec)
        self.identity = {
            "weights": [weights_fingerprint(each) for each in networks], **self.asked.identity,
            "prediction": PREDICTION,
        }  # fmt: skip

    def __call__(self, case: Case, seed: int) -> Made:
        flow = self.asked.field(case)[None]
        frames, record = self.animator(
            case.frames[:1], flow, num_frames=len(case.frames), fps=case.fps,
            strength=motion_strength(flow) if self.use_strength else None, use_flow=self.use_flow,
            mask=self.asked.mask(case)[None], long_video=self.long_video, seed=seed, progress=None,
        )  # fmt: skip
        return Made(frames[0].cpu(), None, record.calls, record.segment_starts, record.split_sigma)


class Warp(_Maker):
    """The image carried along the same field, pixel by pixel, without a network: what a model has to be better than.

    Args:
        label: The row's name.
        request, asked: As in `Asked`.
    """

    def __init__(self, *, label: str, request: RequestKind, **asked: Any) -> None:
        self.asked = Asked(request=request, **asked)
        self.label, self.saw_motion = label + self.asked.label, request == "exact"
        self.identity = {**self.asked.identity, "prediction": PREDICTION}

    def __call__(self, case: Case, seed: int) -> Made:
        moved = trace_back(self.asked.field(case)[None])[0]
        image = case.frames[:1]
        return Made(torch.where(self.asked.mask(case) > 0, warp(image.expand_as(case.frames), moved), image))


class Eulerian(Warp):
    """The image carried along a steady field without a network: `frames` of `motion.eulerian` or `motion.flow_map`."""

    def __init__(self, *, render: Callable[..., Iterable[Tensor]], **options: Any) -> None:
        super().__init__(**options)
        self.render = render

    def __call__(self, case: Case, seed: int) -> Made:
        steady, mask = self.asked.field(case).mean(0), self.asked.mask(case)
        frames = self.render(case.frames[0], steady, num_frames=len(case.frames), mask=mask)
        return Made(torch.stack(list(frames)))


class Control(_Maker):
    """A row that shows what the metrics say of something known.

    Args:
        kind: "real" is the true clip; "static_copy" its first frame again and again; "shuffled" its frames 1 ... T-1
            in random order; "flipped" the true clip held against the opposite of the motion that was asked for.
    """

    control, timed = True, False
    identity: Mapping[str, Any] = {}

    def __init__(self, *, label: str, kind: Literal["real", "static_copy", "shuffled", "flipped"]) -> None:
        if kind not in ("real", "static_copy", "shuffled", "flipped"):
            raise ValueError(f"method.kind={kind!r}: must be real, static_copy, shuffled or flipped")
        self.label, self.kind = label, kind

    def __call__(self, case: Case, seed: int) -> Made:
        frames = case.frames
        if self.kind == "static_copy":
            return Made(frames[:1].expand_as(frames).clone())
        if self.kind == "shuffled":
            order = 1 + torch.randperm(len(frames) - 1, generator=torch.Generator().manual_seed(seed))
            return Made(torch.cat([frames[:1], frames[order]]))
        return Made(frames, -case.flow if self.kind == "flipped" else None)


# What a folder of videos may tell about itself in method.json.
_SIDE = {"label": str, "saw_motion": bool, "fps": (int, float), "source": str, "size": list, "seconds": (int, float)}


class External:
    """Videos that another system made: FOLDER/CLIP.mp4 for every clip of the benchmark, and FOLDER/method.json.

    method.json may hold `label`, `saw_motion` (it used the ground-truth motion), `fps` (the true rate where the file's
    is wrong), `source`, and `size` and `seconds`, which are then checked against the files.

    Args:
        folder: The videos, with the clips' names.
        side: Like method.json, whose values it overrides.
        reading: The benchmark's protocol, which these frames are brought to.
        clips: The benchmark's clips.

    Raises:
        ValueError: If a video is missing, unreadable, too short or more than asked for, or the side information is not
            as above.
    """

    control, timed, repeated = False, False, 0

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
            # Only indices are read, so that a long run does not fail at its last clip.
            video = Video(found[clip])
            places = reading.indices(video, rate=self._rate)
            self.repeated += len(set(places.tolist())) < len(places)
            _check_side(side, video)
        self.files = {clip: file_sha256(found[clip]) for clip in clips}
        self.identity, self.place = {"side": side}, str(Path(folder).resolve())

    def __call__(self, case: Case, seed: int) -> Made:
        return Made(read_clip(self.paths[case.clip], self.reading, rate=self._rate))


def _check_side(side: dict[str, Any], video: Video) -> None:
    """Raises ValueError where method.json and a file disagree."""
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
        folders: A folder, a pattern such as results/*, or a list of either; `truth` is left out.
        side: For a folder's name what to override in its method.json.
        truth: Folder of the true clips.

    Raises:
        ValueError: If a pattern matches nothing, two folders share a name, or as `External` does.
    """
    found: dict[str, Path] = {}
    for pattern in [folders] if isinstance(folders, str) else folders:
        # A folder's own name may hold what is a pattern elsewhere: res [v2].
        names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))
        matches = [Path(name) for name in names if Path(name).is_dir()]
        if not matches:
            raise ValueError(f"method.folders={pattern}: no such folder; give the folder of a method's videos")
        for match in matches:
            if match.resolve() == Path(truth).resolve():
                continue
            if found.setdefault(match.resolve().name, match) != match:
                raise ValueError(
                    f"{found[match.resolve().name]} and {match} share a name, so that their rows would too"
                )
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
        if (
            key not in _SIDE
            or not isinstance(value, _SIDE[key])
            or (_SIDE[key] is not bool and isinstance(value, bool))
        ):
            raise ValueError(f"{path}: {key}={value!r} is not one of {', '.join(_SIDE)}, or of another type")
    for key in ("fps", "seconds"):
        if key in side and not 0 < side[key] < math.inf:
            raise ValueError(f"{path}: {key}={side[key]} must be a finite number above 0")
    return side
