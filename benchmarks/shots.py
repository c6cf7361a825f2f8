"""Borders of shots: ours beside PySceneDetect's detectors, on joins, flashes and pans made of real clips.

python benchmarks/shots.py CLIPS   (with scenedetect installed, its detectors too)
"""

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np

from motionanim.data.prepare.shots import SIDE, Border, borders_of
from motionanim.data.video import Video

FPS = 25.0
Case = tuple[str, np.ndarray, Border | None]  # its kind, frames (N, 64, 64, 3) uint8, the true border
Detector = Callable[[np.ndarray], list[Border]]


def mixed(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    share = (np.arange(1, count + 1) / (count + 1))[:, None, None, None]
    return one[:count] * (1 - share) + other[:count] * share


def joins(clips: dict[str, np.ndarray], rng: np.random.Generator) -> Iterator[Case]:
    """Every clip joined to every other by a cut, and by one of the slower joins in turn."""
    for slow, (first, second) in enumerate(permutations(clips, 2)):
        one, other = part(clips[first], 60, rng), part(clips[second], 60, rng)
        yield "cut", np.concatenate([one[:40], other[:40]]), (39, 40)
        count = (6, 12, 24)[slow % 3]
        mix = mixed(one[30:], other, count)
        yield f"dissolve, {count} frames", np.concatenate([one[:30], mix, other[count : count + 30]]), (29, 30 + count)
        count, black = (5, 12)[slow % 2], np.zeros_like(one)
        mix = np.concatenate([mixed(one[30:], black, count), black[:2], mixed(black, other, count)])
        frames = np.concatenate([one[:30], mix, other[count : count + 30]])
        yield f"through black, {2 * count + 2} frames", frames, (29, 32 + 2 * count)


def single_shots(
    clips: dict[str, np.ndarray], stills: dict[str, np.ndarray], rng: np.random.Generator
) -> Iterator[Case]:
    for clip in clips.values():
        for _ in range(6):
            yield "the clip itself", part(clip, 80, rng), None
        yield "every third frame", part(clip, 90, rng)[::3], None
        for count in (1, 2, 4):
            frames = part(clip, 80, rng).astype(float)
            frames[40 : 40 + count] = frames[40 : 40 + count] * 0.2 + 204
            yield "flash", frames, None
        glow = np.zeros((80, 1, 1, 1))
        glow[40:52, 0, 0, 0] = 0.9 * 0.7 ** np.arange(12)
        yield "flash that fades", part(clip, 80, rng) * (1 - glow) + 255 * glow, None
        light = np.interp(np.arange(80), [30, 50], [1, 0.4])[:, None, None, None]
        yield "exposure to 0.4", part(clip, 80, rng) * light, None
        frames = part(clip, 80, rng)
        for k in range(80):
            left, right = np.clip([(k - 25) * 5 - 30, (k - 25) * 5], 0, SIDE)
            frames[k, 8:, left:right] = (200, 60, 40)
        yield "a body crosses", frames, None
    for still in stills.values():
        wide = np.concatenate([still, still[:, ::-1]] * 8, 1)
        for speed in (0.03, 0.1, 0.2, 0.3):
            yield f"pan, {speed:.0%} a frame", view(wide, [256 * speed * k for k in range(40)]), None
        whip = np.cumsum([0.0] * 15 + [0.02, 0.08, 0.15, 0.2, 0.2, 0.15, 0.08, 0.02] + [0.0] * 15) * 256
        yield "whip pan", view(wide, list(whip)), None
        yield "shake", view(wide, list(256 + rng.normal(0, 12, 40))), None


def part(clip: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    first = rng.integers(0, len(clip) - count + 1)
    return clip[first : first + count].copy()


def view(wide: np.ndarray, left: list[float]) -> np.ndarray:
    """A square window at each place, blurred by half of its motion."""
    frames = []
    for place, speed in zip(left, np.gradient(left)):
        views = [
            np.float32([[1, 0, (place + share * speed) % (wide.shape[1] - 600)], [0, 1, 0]]) for share in (0, 0.25, 0.5)
        ]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        blurred = np.mean([cv2.warpAffine(wide, each, (256, 256), flags=flags).astype(float) for each in views], 0)
        frames.append(cv2.resize(blurred, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def theirs(name: str) -> Detector:
    import scenedetect

    def detect(frames: np.ndarray) -> list[Border]:
        detector = getattr(scenedetect, name)(min_scene_len=1)
        found = []
        for number, frame in enumerate(frames):
            found += detector.process_frame(
                scenedetect.FrameTimecode(number, FPS), np.ascontiguousarray(frame[..., ::-1])
            )
        return sorted({(int(cut.frame_num) - 1, int(cut.frame_num)) for cut in found})

    return detect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of videos of 90 frames or more")
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    rng, clips, stills = np.random.default_rng(0), {}, {}
    for path in sorted(options.clips.glob("*.mp4")):
        video = Video(path)
        frames = video.read(np.arange(min(video.info.num_frames, 300)), height=SIDE, width=SIDE)
        top, left = (frames.shape[1] - SIDE) // 2, (frames.shape[2] - SIDE) // 2
        clips[path.stem] = frames[:, top : top + SIDE, left : left + SIDE]
        stills[path.stem] = video.read(np.arange(1), height=256, width=256)[0][:256, :456]
    detectors: dict[str, Detector] = {"ours": lambda frames: borders_of(frames, FPS)}
    if importlib.util.find_spec("scenedetect"):
        names = ("ContentDetector", "AdaptiveDetector", "HistogramDetector", "HashDetector")
        detectors |= {name: theirs(name) for name in names}
    counts: dict[str, list[int]] = {}
    seconds, seen = dict.fromkeys(detectors, 0.0), 0
    for kind, frames, border in (*joins(clips, rng), *single_shots(clips, stills, rng)):
        frames = frames.round().astype(np.uint8)
        row = counts.setdefault(kind, [0] * (1 + len(detectors)))
        row[0], seen = row[0] + 1, seen + len(frames)
        for column, (name, detect) in enumerate(detectors.items(), start=1):
            began = time.perf_counter()
            found = detect(frames)
            seconds[name] += time.perf_counter() - began
            near = [each for each in found if border is None or (each[0] < border[1] and each[1] > border[0])]
            row[column] += bool(near)
    lines = [
        "# Borders of shots", "",
        f"`python benchmarks/shots.py CLIPS` on {len(clips)} real clips, {SIDE} px. Rows of joined clips count the "
        "cases in which a border is found at its place. Rows of single shots count the cases in which a border is "
        "found, which should be 0. PySceneDetect, if installed, runs at its defaults, except for min_scene_len=1. "
        f"{platform.machine()}, {date.today()}.", "",
        "| what | cases | " + " | ".join(detectors) + " |", "|" + "---|" * (2 + len(detectors)),
        *(f"| {kind} | " + " | ".join(map(str, row)) + " |" for kind, row in counts.items()),
        "| ms a frame | | " + " | ".join(f"{1e3 * seconds[name] / seen:.2f}" for name in detectors) + " |",
    ]  # fmt: skip
    options.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
