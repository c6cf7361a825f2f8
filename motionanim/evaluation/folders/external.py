"""Videos that other systems made, as compared methods."""

import glob
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from motionanim.evaluation.benchmark import Benchmark, EvalClip
from motionanim.evaluation.folders.side import check_side, read_side
from motionanim.evaluation.folders.source import all_lossless, find_sources, open_source, source_sha256
from motionanim.evaluation.methods import MethodOutput
from motionanim.evaluation.reading import Reading, read_clip


class External:
    """Videos of another system: FOLDER/CLIP.mp4 or FOLDER/CLIP/0001.png ... for every clip of the benchmark.

    FOLDER/method.json, which may be absent, is described in `read_side`.

    Args:
        folder: The videos, named by clip.
        side: Overrides values of method.json.
        readings: How the benchmark reads each of its clips, by the clips' ids.
        left_out: Names of further clips that the folder may hold.

    Raises:
        ValueError: If a video is missing or of no clip, or method.json is not as above or does not fit the files.
        motionanim.data.video.VideoError: If a video cannot be read or is too short.
    """

    reference, timed, repeated = False, False, 0

    def __init__(
        self, *, folder: str, side: Mapping[str, Any], readings: Mapping[str, Reading], left_out: Collection[str] = ()
    ) -> None:
        found = find_sources(folder)
        check_names(folder, found, readings, left_out)
        self._side = read_side(folder, side)
        self.label = self._side.get("label") or Path(folder).resolve().name
        self.saw_motion, self.saw_mask = self._side.get("saw_motion", False), self._side.get("saw_mask", False)
        self._rate = self._side.get("fps")
        self.paths, self.readings = {clip: found[clip] for clip in readings}, readings
        for clip, path in self.paths.items():
            # Checked here, so that a long run does not fail at its last clip.
            video = open_source(path)
            self.repeated += readings[clip].check(video, rate=self._rate)
            check_side(self._side, video)
        self.files = {clip: source_sha256(path) for clip, path in self.paths.items()}
        self.lossless = all_lossless(self.paths.values())
        self.identity, self.place = {"side": self._side}, str(Path(folder).resolve())

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        path, reading = self.paths[clip.id], self.readings[clip.id]
        places = reading.indices(open_source(path), rate=self._rate)

        def first(frame: int) -> int:
            """The first frame that is read at or after a frame of the file."""
            return int(np.searchsorted(places, frame))

        starts = sorted({first(frame) for frame in self._side.get("segment_starts", [])} - {0, len(places)})
        window = first(self._side["window"]) if "window" in self._side else None
        frames = read_clip(path, reading, rate=self._rate)
        return MethodOutput(frames, segment_starts=tuple(starts), window=window, loop=self._side.get("loop", False))


def check_names(
    folder: Path | str,
    found: Collection[str],
    clips: Collection[str],
    left_out: Collection[str] = (),
    *,
    remedy: str = "",
) -> None:
    """Raises ValueError unless the names found in a folder are those of the clips, besides those left out."""
    allowed = {*clips, *left_out}
    problems, wrong = [], (("no video for", set(clips) - set(found)), ("videos of no clip:", set(found) - allowed))
    for what, names in wrong:
        if names:
            problems.append(f"{what} {', '.join(sorted(names)[:5])}" + " ..." * (len(names) > 5))
    if problems:
        raise ValueError(
            f"{folder} has {' and '.join(problems)}; a method needs exactly the benchmark's {len(clips)} clips{remedy}"
        )


def method_folders(folders: str | Sequence[str], *, truth: str, option: str) -> dict[str, Path]:
    """The folders of methods by name, without the folder `truth`.

    Args:
        folders: A folder, a pattern such as results/*, or a list of either.
        truth: Folder of the true clips; "" without one.
        option: The setting that names the folders, for messages.

    Raises:
        ValueError: If a pattern matches no folder, a folder is the truth itself, or two folders share a name.
    """
    found: dict[str, Path] = {}
    for pattern in [folders] if isinstance(folders, str) else folders:
        # The name of an existing folder is no pattern, even with brackets: res [v2].
        names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))
        matches = [Path(name) for name in names if Path(name).is_dir()]
        if not matches:
            raise ValueError(f"{option}={pattern}: no such folder; give the folder of a method's videos")
        others = [match for match in matches if not truth or match.resolve() != Path(truth).resolve()]
        if not others:
            raise ValueError(f"{option}={pattern} is the folder of the true clips; give one of a method's videos")
        for match in others:
            name = match.resolve().name
            if found.setdefault(name, match).resolve() != match.resolve():
                raise ValueError(f"{found[name]} and {match} share a name, so their rows would too; rename one")
    return found


def externals(
    *, folders: str | Sequence[str], side: Mapping[str, Mapping[str, Any]], benchmark: Benchmark, truth: str
) -> list[External]:
    """A method for each folder.

    Args:
        folders, truth: As in `method_folders`.
        side: Overrides of method.json, by name of the folder.
        benchmark: What the videos are scored on.

    Raises:
        ValueError: As `method_folders` or `External`.
    """
    made = []
    for name, path in method_folders(folders, truth=truth, option="method.folders").items():
        clips = benchmark.of(str(path))
        given = {"readings": clips.readings, "left_out": clips.left_out}
        made.append(External(folder=str(path), side=side.get(name, {}), **given))
    return made
