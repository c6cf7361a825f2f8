"""Writes the clips of finished runs as VBench reads them.

    OUT/index.json           which run and clip each file is
    OUT/score.py             runs VBench, in an environment that has it, and leaves its results beside the videos
    OUT/00/videos/0000-0.mp4 clip 0 of run 0
    OUT/00/info.json         the clips and their images, for VBench-I2V
    OUT/images/0000.png      condition images

Names of runs and clips stay in the index: VBench reads prompts out of file names, and passes paths through a shell.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motionanim.data.folder import folder_names
from motionanim.data.video import Video, write_video
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.evaluation.report.runs import Run, read_runs
from motionanim.evaluation.scores.rows import Rows
from motionanim.files import atomic_folder
from motionanim.media.image_io import from_uint8
from motionanim.media.visualize import write_picture
from motionanim.metrics.published.vbench import DIMENSIONS, I2V

INDEX, FORMAT = "index.json", 1

_SCORE = '''"""Scores the videos beside this file. Run it where `pip install vbench` has been done."""

import importlib.metadata
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
DIMENSIONS = {dimensions}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = json.loads((HERE / "index.json").read_text(encoding="utf-8"))
    for each in index["runs"]:
        folder = HERE / each["name"]
        results = folder / "results"
        if list(results.glob("*_eval_results.json")):
            continue  # scored before; remove the folder to score again
        videos = str(folder / "videos")
        if index["images"]:
            from vbench2_beta_i2v import VBenchI2V

            judge = VBenchI2V(torch.device(device), str(folder / "info.json"), str(results))
            judge.evaluate(videos, each["name"], dimension_list=DIMENSIONS)
        else:
            from vbench import VBench

            judge = VBench(torch.device(device), "", str(results))
            judge.evaluate(videos, each["name"], dimension_list=DIMENSIONS, mode="custom_input")
        version = {{"vbench": importlib.metadata.version("vbench")}}
        (results / "version.json").write_text(json.dumps(version))


if __name__ == "__main__":
    sys.exit(main())
'''


def write(folders: Sequence[Path], out: Path, *, images: Path | None = None, fps: float | None = None) -> int:
    """Write the clips of finished runs, without their reference rows, which keep no frames.

    Args:
        folders: Run folders that keep their frames, or folders of them.
        out: Folder to make; it must not exist.
        images: Folder of the true videos, named by clip, whose first frames are the condition images; None leaves out
            the dimensions of VBench-I2V.
        fps: Rate of the videos, above 0, which the dynamic degree depends on; None takes that of each run's own videos.

    Returns:
        The number of videos.

    Raises:
        ValueError: If `out` exists, a run is unfinished or lacks frames, its rate is unknown, or `images` lacks a clip.
    """
    if out.exists():
        raise ValueError(f"--out {out} exists: choose another folder")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"--fps {fps}: must be above 0")
    runs = [run for run in read_runs(folders, skip_unfinished=False)[0] if not run.reference]
    if not runs:
        raise ValueError("only reference rows: give a method's run, or the folder of several")
    firsts = {} if images is None else {str(Path(name).with_suffix("")): name for name in folder_names(images)}
    rates = [_rate(run) if fps is None else fps for run in runs]
    entries, count = [], 0
    with atomic_folder(out) as partial:
        pictures: dict[tuple[str, int, int, str], str] = {}  # files by clip, size and shape
        for number, (run, rate) in enumerate(zip(runs, rates)):
            name, clips, info = f"{number:02}", {}, []
            for place, (clip, key) in enumerate(_keys(run).items()):
                stem = f"{place:04}"
                frames = _frames(run.folder, key, clip)
                height, width = (side // 2 * 2 for side in frames.shape[-2:])  # H.264 needs even sides
                write_video(partial / name / "videos" / f"{stem}-0.mp4", frames[..., :height, :width], rate)
                clips[stem], count = clip, count + 1
                if images is None:
                    continue
                if clip not in firsts:
                    raise ValueError(f"--images {images} has no video of clip {clip!r} of {run.folder}")
                # As the run's own reading made it, so that it is the picture that the method saw.
                shape = run.record["reading"]["shape"] or "stretch"
                which = (clip, height, width, shape)
                if which not in pictures:
                    pictures[which] = f"{len(pictures):04}.png"
                    reading = Reading(num_frames=1, height=height, width=width, fps=None, shape=shape)
                    write_picture(partial / "images" / pictures[which], read_clip(images / firsts[clip], reading)[0])
                # VBench-I2V joins a folder of its own to the name, which an absolute path replaces.
                picture = str(out.resolve() / "images" / pictures[which])
                info.append({"prompt_en": stem, "dimension": [*DIMENSIONS, *I2V], "image_name": picture})
            entries.append({"name": name, "run": str(run.folder.resolve()), "label": run.label, "fps": rate,
                            "keys": run.record["keys"], "clips": clips})  # fmt: skip
            if images is not None:
                _dump(partial / name / "info.json", info)
        _dump(partial / INDEX, {"format": FORMAT, "images": images is not None, "runs": entries})
        wanted = [*DIMENSIONS, *(I2V if images is not None else ())]
        (partial / "score.py").write_text(_SCORE.format(dimensions=json.dumps(wanted)), encoding="utf-8")
    return count


def _keys(run: Run) -> dict[str, str]:
    """The row key of each clip, in the benchmark's order."""
    rows = Rows(run.folder / "clips.jsonl").by_key
    return {str(rows[key]["clip"]): key for key in run.record["keys"]}


def _frames(folder: Path, key: str, clip: str) -> Tensor:
    """The frames (T, 3, H, W) in [-1, 1] that a run kept of a clip."""
    found = sorted((folder / "frames").glob(f"*-{key}.npz"))
    if not found:
        raise ValueError(
            f"{folder} keeps no frames of clip {clip!r}: evaluate again with keep_frames=true; "
            "given videos lie in their own folder"
        )
    try:
        with np.load(found[0], allow_pickle=False) as file:
            return from_uint8(torch.from_numpy(file["frames"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{found[0]} is damaged: remove it and evaluate again") from error


def _rate(run: Run) -> float:
    rates = {round(Video(path).info.fps, 3) for path in sorted((run.folder / "videos").glob("*.mp4"))}
    if len(rates) != 1:
        raise ValueError(f"{run.folder} has videos of {len(rates)} rates: give the rate of its clips with --fps")
    return rates.pop()


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
