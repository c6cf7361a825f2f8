"""How given videos are read if nothing else is asked for: their number of frames, rate and size, from the files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from motionanim.data.video import Video
from motionanim.evaluation.folders.source import PictureFolder, find_sources, open_source
from motionanim.evaluation.reading import Reading

SAME_RATE = 1.005  # rates up to this ratio are one rate, such as 24 and 23.976
LARGE = 2**30  # bytes of a clip's frames that are worth a note

Auto = Literal["auto"]


class Asked(NamedTuple):
    """What the user asks of a `Reading`; "auto" follows the files."""

    num_frames: int | Auto
    height: int | Auto
    width: int | Auto
    fps: float | Auto | None  # None compares frame by frame
    shape: Literal["stretch", "crop"]
    slower: Literal["repeat", "refuse"]


class Found(NamedTuple):
    """A clip in a folder."""

    path: Path
    video: Video | PictureFolder
    fps: float | None  # None: pictures, whose rate nobody tells
    size: tuple[int, int]  # (height, width) px


class Plan(NamedTuple):
    """How every clip is read."""

    truth: dict[str, Reading]  # by clip
    made: dict[str, dict[str, Reading]]  # by folder and clip
    stated: dict[str, Any]  # for reports, as `Benchmark.stated`


def survey(folder: Path | str, fps: float | None) -> dict[str, Found]:
    """The clips in a folder by name, each opened and its first frame decoded.

    Args:
        fps: Their true rate; None takes the files' own.

    Raises:
        ValueError: As `find_sources`, or a VideoError if a clip cannot be read.
    """
    found = {}
    for clip, path in find_sources(folder).items():
        video = open_source(path)
        rate = fps or (None if isinstance(video, PictureFolder) else video.info.fps)
        found[clip] = Found(path, video, rate, video.size())
    return found


def plan(truth: Mapping[str, Found], made: Mapping[str, Mapping[str, Found]], asked: Asked, *, paired: bool) -> Plan:
    """Readings of true and made clips that compare.

    - Rate: Where the files of a clip have one rate, frame k is compared with frame k. Where they differ, frames are
      taken by time at the lowest of them. Pictures without a rate are taken one after another.
    - Number of frames: What every file has, so all clips have equally many.
    - Size: Paired, that of the true clip. Unpaired, that of the true clips if they agree, else each file's own.

    Args:
        truth: By clip.
        made: By folder and clip; paired, with the clips of `truth`.
        paired: Whether a made clip is compared with the true clip of its name. If not, all files have one rate.

    Raises:
        ValueError: If a setting is out of range, or the common length is below 2 frames.
    """
    _check(asked)
    everything = [truth, *made.values()]
    if paired:
        groups = [[clips[name] for clips in everything] for name in truth]
    else:
        groups = [[clip for clips in everything for clip in clips.values()]]
    rates = [_common_rate(group) if asked.fps == "auto" else asked.fps for group in groups]
    counts = [
        (len(Reading(1, 1, 1, rate, asked.shape).available(clip.video, rate=clip.fps)), clip)
        for group, rate in zip(groups, rates)
        for clip in group
    ]
    least, shortest = min(counts, key=lambda pair: pair[0])
    length = least if asked.num_frames == "auto" else asked.num_frames
    if length < 2:
        raise ValueError(f"{shortest.path} has {least} frames to compare with the other videos; at least 2 are needed")
    sizes = {clip.size for clip in truth.values()}

    def reading(clip: Found, rate: float | None) -> Reading:
        size = clip.size if paired or len(sizes) > 1 else next(iter(sizes))
        height, width = (own if side == "auto" else side for side, own in zip((asked.height, asked.width), size))
        return Reading(length, height, width, rate, asked.shape, asked.slower)

    if paired:
        read = {name: reading(clip, rate) for (name, clip), rate in zip(truth.items(), rates)}
        plans = Plan(read, {folder: dict(read) for folder in made}, {})
    else:
        read, *others = ({name: reading(clip, rates[0]) for name, clip in clips.items()} for clips in everything)
        plans = Plan(read, dict(zip(made, others)), {})
    notes = [_length_note(length, least, shortest, groups), _rate_note(groups, rates), *_size_notes(truth, made, plans)]
    shared = {
        name: values.pop() if len(values := {getattr(each, name) for each in plans.truth.values()}) == 1 else None
        for name in Reading._fields
    }
    return plans._replace(stated=shared | {"sizes": _listed_sizes(plans.truth), "taken": notes[1], "notes": notes})


def _check(asked: Asked) -> None:
    for name, least in (("num_frames", 2), ("height", 1), ("width", 1)):
        value = getattr(asked, name)
        if value != "auto" and not (isinstance(value, int) and value >= least):
            raise ValueError(f"benchmark.reading.{name}={value}: must be at least {least}, or auto for the files' own")
    if (asked.height == "auto") != (asked.width == "auto"):
        raise ValueError("benchmark.reading.height and width: give both, or auto for both")
    if asked.fps not in ("auto", None) and not (isinstance(asked.fps, int | float) and asked.fps > 0):
        raise ValueError(f"benchmark.reading.fps={asked.fps}: must be above 0, auto, or null to compare frame by frame")


def _common_rate(clips: Sequence[Found]) -> float | None:
    """The lowest rate of some clips; None if they agree, so that frame k is compared with frame k."""
    known = [clip.fps for clip in clips if clip.fps is not None]
    return min(known) if known and max(known) > SAME_RATE * min(known) else None


def _length_note(length: int, least: int, shortest: Found, groups: Sequence[Sequence[Found]]) -> str:
    longer = any(clip.video.info.num_frames > length for group in groups for clip in group)
    why = f", as many as the shortest has ({shortest.path})" if length == least and longer else ""
    return f"{length} frames of every clip{why}"


def _rate_note(groups: Sequence[Sequence[Found]], rates: Sequence[float | None]) -> str:
    known = sorted({round(clip.fps, 3) for group in groups for clip in group if clip.fps is not None})
    listed = ", ".join(f"{rate:g}" for rate in known)
    unknown = sorted({str(clip.path.parent) for group in groups for clip in group if clip.fps is None})
    note = f"frame by frame ({listed or 'unknown'} frames a second)"
    used = sorted({round(rate, 3) for rate in rates if rate is not None})
    if used:
        some = "" if None not in rates else " where rates differ"
        at = ", ".join(f"{rate:g}" for rate in used)
        note = f"those nearest in time at {at} frames a second{some} (files have {listed or 'none'})"
    if unknown:
        some = ", ".join(unknown[:3]) + " ..." * (len(unknown) > 3)
        note += f"; pictures one after another, without a rate (fps in method.json gives it): {some}"
    return note


def _size_notes(truth: Mapping[str, Found], made: Mapping[str, Mapping[str, Found]], plans: Plan) -> list[str]:
    notes = ["scored at " + ", ".join(_listed_sizes(plans.truth))]
    for folder, clips, readings in [("truth", truth, plans.truth), *((k, made[k], plans.made[k]) for k in made)]:
        sizes = [(clips[name].size, (reading.height, reading.width)) for name, reading in readings.items()]
        changed = [(old, new) for old, new in sizes if old != new]
        shapes = sum(abs(old[0] * new[1] / (old[1] * new[0]) - 1) > 0.01 for old, new in changed)
        if changed:
            told = f", {shapes} of them to another shape" * bool(shapes)
            how = "resized (bilinear, antialiased)"
            notes.append(f"{folder}: {len(changed)} of {len(readings)} videos are {how}{told}")
    most = max(12 * r.num_frames * r.height * r.width for r in plans.truth.values())
    if most > LARGE:
        notes.append(
            f"a clip takes {most / 2**30:.1f} GiB, and some metrics several times that: benchmark.reading.num_frames=, "
            "or height= and width=, lower it"
        )
    return notes


def _listed_sizes(readings: Mapping[str, Reading]) -> list[str]:
    counts = Counter(f"{reading.width}x{reading.height}" for reading in readings.values())
    if len(counts) == 1:
        return list(counts)
    return [f"{size} ({count} clip{'s' * (count > 1)})" for size, count in counts.most_common()]
