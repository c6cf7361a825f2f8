"""Damages files in many ways and reads them: python benchmarks/fuzz.py OUT.jsonl [--videos 1000] [--others 300].

A process of its own reads them. It is a fault if that process dies or computes for more than 20 s; it is then replaced.
Every other file must be read, or refused by an error that names it. Results are kept line by line, so that a killed run
goes on.
"""

import argparse
import io
import json
import multiprocessing
import signal
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from odd_videos import make
from PIL import Image
from pillow_heif import register_heif_opener
from tqdm import tqdm

from motionanim.data.video import Video
from motionanim.media.image_io import load_image, load_mask
from motionanim.motion.drawing import parse_controls

MOST_SECONDS = 20

_ARROWS = {
    "arrows": [[1, 2, 30, 4], {"path": [[3, 4], [20, 20.5]], "kind": "sway", "period": 8, "region": "a"}],
    "pins": [[2, 2]],
    "regions": {"a": [[[0, 0], [40, 0], [40, 30], [0, 30]]]},
}


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """Flip some bytes, cut out a piece, or swap two pieces; often near the front, where headers are."""
    data = bytearray(content)
    for _ in range(int(generator.choice([1, 1, 2, 3]))):
        if len(data) < 4:
            break
        span = len(data) if generator.random() < 0.6 else min(len(data), 1024)
        first, second = sorted(generator.integers(span, size=2).tolist())
        length = int(generator.integers(1, max(2, span // 8)))
        match generator.integers(5):
            case 0 | 1:
                for place in generator.integers(span, size=int(generator.integers(1, 3 + min(61, len(data) // 300)))):
                    data[place] = int(generator.integers(256))
            case 2:
                del data[first : first + length]
            case 3:
                del data[max(1, second) :]
            case 4:
                a, b = bytes(data[first : first + length]), bytes(data[second : second + length])
                data[second : second + length], data[first : first + length] = a, b
    return bytes(data)


def read(kind: str, path: Path) -> str:
    """Read a file as the package does and say the outcome; raises any error but ValueError, as that is a fault."""
    try:
        if kind == "video":
            video = Video(path)
            indices, _ = video.grid(fps=7, stride=None)
            video.read(indices[:32], height=32, width=32)
            video.read(np.array([video.info.num_frames - 1]), height=32, width=32)
        elif kind == "picture":
            load_image(path)
            load_mask(path, 48, 64)
        else:
            parse_controls(path, torch.ones(1, 48, 64))
    except ValueError as error:
        if kind == "picture" and "must have the image's size" in str(error):
            return "read"
        return f"refused: {error}"
    return "read"


def seeds(kind: str, folder: Path) -> list[bytes]:
    """Intact files of a kind."""
    if kind == "video":
        return [path.read_bytes() for path in make(folder) if path.stat().st_size < 300_000]
    if kind == "arrows":
        return [json.dumps(_ARROWS).encode(), json.dumps(_ARROWS["arrows"][:1]).encode()]
    colours = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    register_heif_opener()
    made = []
    for form, mode in (("png", "RGBA"), ("png", "L"), ("jpeg", "RGB"), ("webp", "RGB"), ("tiff", "RGBA"),
                       ("gif", "RGB"), ("bmp", "RGB"), ("heif", "RGB"), ("jpeg", "CMYK")):  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(colours).convert(mode).save(file, form)
        made.append(file.getvalue())
    return made


def _work(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        kind, path = connection.recv()
        # Counts this process's own seconds, whatever else the machine does; the signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            connection.send(read(kind, Path(path)))
        except Exception as error:
            connection.send(f"FAULT: {type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)


class Reader:
    """Reads files in a process, and in a new one after it died."""

    def __init__(self) -> None:
        self._process = None

    def __call__(self, kind: str, path: Path) -> str:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_work, args=(other,), daemon=True)
            self._process.start()
            other.close()
        self._connection.send((kind, str(path)))
        try:
            if self._connection.poll(30 * MOST_SECONDS):
                return self._connection.recv()
            result = "FAULT: hangs"
        except (EOFError, ConnectionError):
            self._process.join()
            died = self._process.exitcode
            result = f"FAULT: takes more than {MOST_SECONDS} s" if died == -signal.SIGPROF else f"FAULT: died ({died})"
        self.close()
        return result

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def fuzz(out: Path, counts: dict[str, int], seed: int) -> Counter[str]:
    """Damage and read so many files of each kind; a file that shows a fault is kept beside `out`.

    Returns:
        Numbers of files that were read, were refused and showed faults, in this run and earlier ones.
    """
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["kind"], row["number"]) for row in rows}
    reader = Reader()
    with tempfile.TemporaryDirectory() as folder, out.open("a") as file, tqdm(total=sum(counts.values())) as progress:
        try:
            for place, (kind, count) in enumerate(counts.items()):
                whole = seeds(kind, Path(folder, kind)) if count else []
                for number in range(count):
                    progress.update()
                    if (kind, number) in done:
                        continue
                    content = damaged(whole[number % len(whole)], np.random.default_rng([seed, place, number]))
                    path = Path(folder, "damaged.json" if kind == "arrows" else "damaged")
                    path.write_bytes(content)
                    result = reader(kind, path)
                    if result.startswith("refused") and "damaged" not in result and kind != "arrows":
                        result = f"FAULT: does not name the file: {result}"
                    if result.startswith("FAULT"):
                        out.with_name(f"{out.stem}_{kind}_{number}").write_bytes(content)
                    rows.append({"kind": kind, "number": number, "result": result})
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
        finally:
            reader.close()
    return Counter(f"{row['kind']} {row['result'].split(':')[0]}" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--others", type=int, default=300, help="pictures, and as many arrow files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = fuzz(
        options.out, {"video": options.videos, "picture": options.others, "arrows": options.others}, options.seed
    )
    for what, count in sorted(found.items()):
        print(f"{what}: {count}")
    sys.exit(any("FAULT" in what for what in found))


if __name__ == "__main__":
    main()
