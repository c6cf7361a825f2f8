"""Compares every frame that `Video` gives with ffmpeg's: python benchmarks/reading.py [FOLDER ...] [--out FILE].

The files are those of `odd_videos.make` and of the given folders. A file counts as equal when each of its frames,
read in order and then from five places in any order, is within 2 of 255 of ffmpeg's, after the scaling to square
pixels that ffmpeg leaves to the player.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from odd_videos import ffmpeg, make
from tqdm import tqdm

from motionanim.data.video import Video, VideoError

HEADING = "## Frames beside ffmpeg's"  # starts its part of data_loading.md, which `data_loading.py` keeps
_MOST_DIFFERENCE = 2  # levels of 255, because two builds of FFmpeg may round differently


class Row(NamedTuple):
    name: str
    written: int  # frames
    result: str
    right: bool
    size: str = ""
    reader: str = ""


def ffmpeg_frames(path: Path) -> list[np.ndarray]:
    """The frames (H, W, 3) uint8 that `ffmpeg -i path` writes, turned as it turns them."""
    data = ffmpeg("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-c:v", "ppm",
                  "-f", "image2pipe", "-")  # fmt: skip
    frames, at = [], 0
    while at < len(data):
        _, size, _ = data[at : at + 40].split(b"\n")[:3]
        at += len(b"P6\n\n255\n") + len(size)
        width, height = map(int, size.split())
        frames.append(np.frombuffer(data, np.uint8, height * width * 3, at).reshape(height, width, 3))
        at += height * width * 3
    return frames


def compare(path: Path) -> Row:
    """Read a file and compare it with ffmpeg's frames."""
    truth = ffmpeg_frames(path)
    try:
        video = Video(path)
        height, width = video.size()
        count = video.info.num_frames
        places = np.arange(count)
        read = video.read(places, height=height, width=width)
        some = np.random.default_rng(0).permutation(count)[:5]
        again = [Video(path).read(np.array([place]), height=height, width=width)[0] for place in some]
        again += [video.read(np.array([place]), height=height, width=width)[0] for place in some]
    except VideoError as error:
        return Row(path.name, len(truth), f"rejected: {error.reason}", True)
    if count != len(truth):
        return Row(path.name, len(truth), f"WRONG: {count} frames", False)
    if any((read[place] != frame).any() for place, frame in zip([*some, *some], again)):
        return Row(path.name, len(truth), "WRONG: a frame depends on how it is reached", False)
    squared = [
        frame if frame.shape[:2] == (height, width) else cv2.resize(
            frame, (width, height),
            interpolation=cv2.INTER_AREA if height <= frame.shape[0] and width <= frame.shape[1] else cv2.INTER_CUBIC,
        )
        for frame in truth
    ]  # fmt: skip
    worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(read, squared))
    way = "decord" if video.uses_decord else "PyAV"
    if worst > _MOST_DIFFERENCE:
        return Row(path.name, len(truth), f"WRONG: differs by up to {worst} of 255 ({way})", False)
    return Row(path.name, len(truth), "equal", True, f"{width}x{height}", way)


def table(rows: list[Row]) -> str:
    lines = [
        f"{HEADING}\n",
        f"{sum('equal' in row.result for row in rows)} of {len(rows)} files are equal to what ffmpeg writes, "
        f"{sum('rejected' in row.result for row in rows)} are rejected by name, "
        f"{sum(not row.right for row in rows)} are wrong.\n",
        "| file | frames that ffmpeg writes | result | size | reader |",
        "|---|---|---|---|---|",
        *(f"| {row.name} | {row.written} | {row.result} | {row.size} | {row.reader} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*", help="more files")
    parser.add_argument("--out", type=Path, help="write the table here, at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        paths = [*make(Path(made)), *(path for folder in options.folders for path in sorted(folder.iterdir()))]
        rows = [compare(path) for path in tqdm(paths, unit="file")]
    print(table(rows))
    if options.out:
        before = options.out.read_text(encoding="utf-8").partition(HEADING)[0].rstrip() if options.out.exists() else ""
        options.out.write_text(f"{before}\n\n{table(rows)}".lstrip(), encoding="utf-8")
    sys.exit(not all(row.right for row in rows))


if __name__ == "__main__":
    main()
