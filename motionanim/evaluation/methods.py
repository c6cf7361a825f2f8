"""Methods that are compared: our model, baselines without a network, and reference rows.

`evaluation.folders.external` has the videos of other systems.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from motionanim.cli.settings import check_control, lora_weights
from motionanim.evaluation.benchmark import EvalClip
from motionanim.evaluation.method_input import MethodInput, RequestKind
from motionanim.models.svd.bases import control_note, network_motion
from motionanim.models.svd.codec import PREDICTION
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.controls import Fields
from motionanim.motion.flow import motion_strength, trace_back, warp
from motionanim.sampling.animator import Animator, LongVideo, pick_device
from motionanim.sampling.moving.release import Release


class MethodOutput(NamedTuple):
    """The video that a method makes of a clip."""

    frames: Tensor  # (T, 3, H, W) in [-1, 1]
    flow: Tensor | None = None  # (T-1, 2, H, W): the motion to score it against, if not the clip's flow
    calls: float | None = None  # denoiser calls
    segment_starts: tuple[int, ...] = ()
    split_sigma: float | None = None
    window: int | None = None  # frames of one window of the method; None: those of our model
    loop: bool = False  # whether the last frame shall lead back to the first


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

    def take(self, label: str, given: MethodInput) -> None:
        """Store the input; the row's name and marks say what the method is given."""
        self.input, self.label = given, label + given.label
        self.saw_motion, self.saw_mask = given.request == "exact", given.gives_mask


class Ours(_Made):
    """Our model with a conditioning and a long-video method.

    Args:
        label: The row's name.
        request, controls, refiner, use_refiner, mask: As in `MethodInput`.
        motion: The conditioning.
        control: "motion" lets the base's motion weights follow the field; "warp" needs none.
        release: Arguments of `Release`, for "warp".
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
        control: str,
        release: Mapping[str, float],
        sampling: Mapping[str, Any],
        loras: Mapping[str, float] | str | None,
        context_length: int,
        long_video: LongVideo,
    ) -> None:
        given = MethodInput(request=request, controls=controls, refiner=refiner, use_refiner=use_refiner, mask=mask)
        check_control(control, release)
        self.release = Release(**release) if control == "warp" else None
        self.take(label + ", control=warp" * (self.release is not None), given)
        self.long_video, pairs = long_video, lora_weights(loras)
        if note := control_note(base, control):
            print(f"note: {note}")
        # A base without motion weights gets random ones behind a zero layer: seeded, so that every run has the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.animator, _ = Animator.load(
                base=base, motion=network_motion(base, motion, control), sampling=sampling, loras=pairs,
                context_length=context_length, device=pick_device(),
            )  # fmt: skip
        self.use_flow = self.release is not None or bool(motion["motion_field"] or motion["warped_latent"])
        self.use_strength = bool(motion["motion_strength"])
        # Hashes all weights with LoRAs merged, because two trainings of one base may differ in a few layers only.
        networks = (self.animator.denoiser, self.animator.codec)
        self.identity = {
            "weights": [weights_fingerprint(each) for each in networks], **self.input.identity,
            "prediction": PREDICTION,
            **({} if self.release is None else {"release": self.release._asdict()}),
        }  # fmt: skip

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        flow = self.input.field(clip)[None]
        frames, record = self.animator(
            clip.frames[:1], flow, num_frames=len(clip.frames), fps=clip.fps,
            strength=motion_strength(flow) if self.use_strength else None, use_flow=self.use_flow,
            mask=self.input.mask(clip)[None], long_video=self.long_video, seed=seed, progress=None,
            release=self.release,
        )  # fmt: skip
        return MethodOutput(
            frames[0].cpu(), None, record.calls, record.segment_starts, record.split_sigma, loop=record.loops
        )


class Warp(_Made):
    """Warps the image along the motion field, without a network: the baseline that a model has to beat.

    Args:
        label: The row's name.
        options: As in `MethodInput`.
    """

    def __init__(self, *, label: str, **options: Any) -> None:
        self.take(label, MethodInput(**options))
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
