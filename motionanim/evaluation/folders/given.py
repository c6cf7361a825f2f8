"""One's own folders of videos as benchmarks: paired with true clips by name, or sets of any size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motionanim.evaluation.benchmark import EvalClip, digest
from motionanim.evaluation.folders.external import check_names, method_folders
from motionanim.evaluation.folders.side import check_side, read_side
from motionanim.evaluation.folders.source import source_sha256
from motionanim.evaluation.folders.survey import Asked, Found, plan, survey
from motionanim.evaluation.reading import Reading, read_clip


class GivenClips:
    """Clips of one folder, without a requested motion: the benchmark that the videos of a folder are scored on.

    Args:
        name, stated: As in `Benchmark`.
        place: The folder.
        found, readings: Its clips, and how they are read.
        left_out: Names of the clips beyond the first n.
        truth: The true clips that all clips together are compared with; None if the clips are the truth themselves,
            and made videos are paired with them by name.
        sets: Clips of the other folders; `of` returns them by folder.
    """

    request, procedural = None, False

    def __init__(
        self,
        *,
        name: str,
        place: Path | str,
        found: Mapping[str, Found],
        readings: Mapping[str, Reading],
        stated: dict[str, Any],
        left_out: Sequence[str] = (),
        truth: "TrueSet | None" = None,
        sets: Iterable["GivenClips"] = (),
    ) -> None:
        self.name, self.place, self.left_out = name, str(Path(place).resolve()), left_out
        self.readings, self.stated, self.truth = readings, stated, truth
        self.ids, self.reading = list(readings), next(iter(readings.values()))
        self._clips, self._hashes = [found[clip] for clip in self.ids], {}
        self.settings = ("given", "pairs" if truth is None else "sets")
        self.repeated = sum(
            reading.check(clip.video, rate=clip.fps) for clip, reading in zip(self._clips, readings.values())
        )
        self._sets = {each.place: each for each in sets}

    def of(self, folder: str) -> "GivenClips":
        # A reference row has no folder, and "" would be the current one.
        return self._sets.get(str(Path(folder).resolve()), self) if folder else self

    def identity(self, index: int) -> str:
        clip = self._clips[index]
        if index not in self._hashes:
            self._hashes[index] = source_sha256(clip.path)
        return digest(self.settings, self.readings[self.ids[index]].identity, clip.fps, self._hashes[index])

    def clip(self, index: int) -> EvalClip:
        clip, reading = self._clips[index], self.readings[self.ids[index]]
        frames, fps = read_clip(clip.path, reading, rate=clip.fps), reading.rate(clip.path, clip.fps)
        return EvalClip(self.ids[index], frames, None, None, (), fps, own_motion=self.truth is None)


class TrueSet:
    """All true clips of a comparison of sets.

    Args:
        found, readings: As in `GivenClips`.
    """

    def __init__(self, *, found: Mapping[str, Found], readings: Mapping[str, Reading]) -> None:
        self.ids, self._found, self._readings = list(readings), found, readings
        self.identities = [
            digest(readings[clip].identity, found[clip].fps, source_sha256(found[clip].path)) for clip in self.ids
        ]
        self._features: dict[str, Tensor] = {}

    def features(self, extractor: Any, get: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """As `TrueClips.features`."""
        known = extractor.fingerprint
        if known not in self._features:
            clips = (read_clip(self._found[k].path, self._readings[k], rate=self._found[k].fps) for k in self.ids)
            self._features[known] = torch.stack([get(extractor, frames) for frames in clips])
        return self._features[known]


def given_clips(
    *,
    name: str,
    truth: str | None,
    videos: str | Sequence[str] | None,
    paired: bool,
    side: Mapping[str, Mapping[str, Any]],
    n: int | None,
    reading: Mapping[str, Any],
) -> GivenClips:
    """The benchmark of `evaluate.py truth=DIR videos=DIR`.

    Everything that is wrong with the folders is found here, before any work.

    Args:
        name: Of the benchmark.
        truth: Folder of true clips: video files, or folders of pictures. Of its method.json, `fps`, `size` and
            `seconds` count.
        videos: Folders of methods: a folder, a pattern or a list.
        paired: True pairs clips by their names without suffix. False compares each folder's clips with all true clips
            as sets; then there are no scores of single clips against their truth.
        side: Overrides of method.json, by name of the folder.
        n: Takes the first n clips of every folder; None takes all.
        reading: The fields of `Asked`.

    Returns:
        The true clips. Their `of` gives the clips that a folder's videos are scored on.

    Raises:
        ValueError: If a folder is missing, empty, or the truth itself; if names do not pair; or a clip cannot be
            read or is not as its folder's method.json says.
    """
    for option, value, what in (("truth", truth, "the true clips"), ("videos", videos, "a method's videos")):
        if not value:
            raise ValueError(f"{option}= is missing: give the folder of {what}")
    if not Path(truth).is_dir():
        raise ValueError(f"truth={truth}: no such folder; give the folder of the true clips")
    if n is not None and n < 1:
        raise ValueError(f"n={n}: must be at least 1 clip, or null for all")
    folders = method_folders(videos, truth=truth, option="videos")
    sides = {key: read_side(folder, side.get(key, {})) for key, folder in folders.items()}
    about = read_side(truth, {})
    true = survey(truth, about.get("fps"))
    for found in true.values():
        check_side(about, found.video)
    made = {key: survey(folder, sides[key].get("fps")) for key, folder in folders.items()}
    if paired:
        for key, folder in folders.items():
            check_names(
                folder, made[key], true,
                remedy=f" in {truth}. paired=false compares the folders as sets of any size, by FVD",
            )  # fmt: skip
    chosen = dict(list(true.items())[:n])
    if paired:
        kept = {key: {clip: clips[clip] for clip in chosen} for key, clips in made.items()}
    else:
        kept = {key: dict(list(clips.items())[:n]) for key, clips in made.items()}
    plans = plan(chosen, kept, Asked(**reading), paired=paired)
    shared = {"name": name, "stated": plans.stated}
    whole = shared | {"place": truth, "found": chosen, "readings": plans.truth, "left_out": list(true)[len(chosen) :]}
    if paired:
        return GivenClips(**whole)
    goal = TrueSet(found=chosen, readings=plans.truth)
    plans.stated["paired"] = False
    plans.stated["notes"].append(f"not paired: each folder's clips are compared with all {len(chosen)} true clips")
    sets = [
        GivenClips(
            place=folder, found=kept[key], readings=plans.made[key], left_out=list(made[key])[len(kept[key]) :],
            truth=goal, **shared,
        )
        for key, folder in folders.items()
    ]  # fmt: skip
    return GivenClips(truth=goal, sets=sets, **whole)
