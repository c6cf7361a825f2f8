"""Show the product on one page: python experiments/demo/make.py [--photo my.jpg --arrows arrows.json [--mask mask.png]]

It animates a photo with arrows: as a seamless loop at full size, and as 125 frames by the embedded base, with the
paper's method and with ours. It also trains a static-camera LoRA and shows the camera without and with it. The page
runs/demo/index.html holds all of it, with figures and commands.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import page
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from tqdm import tqdm

import motionanim.cli.command
from motionanim.animate import Animation, animate
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.files import atomic_path
from motionanim.media.image_io import to_pixels
from motionanim.media.visualize import write_picture
from motionanim.metrics.temporal import seam_ratio, wrap_ratio
from motionanim.motion.camera import camera_residual

ROOT = Path(__file__).resolve().parents[2]
SCENE, HEIGHT, WIDTH = 0, 360, 640  # of the held-out procedural world: water above a shore
ARROWS = [[90, 60, 150, 66], [300, 70, 360, 76], [500, 60, 560, 62], [200, 130, 250, 134]]
TRAIN = [
    "experiment=motion_lora", "scale.height=64", "scale.width=64", "trainer.max_steps=120",
    "trainer.val_check_interval=120", "callbacks.camera.clips=8",
]  # fmt: skip


class Drawing(NamedTuple):
    """A photo, the mask of what may move, and arrows."""

    photo: Path
    arrows: Any  # as the animate command takes them
    mask: Path | None

    def settings(self) -> dict[str, Any]:
        return {"image": self.photo, "arrows": self.arrows} | ({} if self.mask is None else {"mask": self.mask})


def bundled(out: Path) -> Drawing:
    """A held-out scene of the procedural world."""
    clips = SyntheticClips(
        seed=1, length=64, num_frames=2, height=HEIGHT, width=WIDTH, fps=7, moving_camera=0.0, split="val"
    )
    clip = clips.clip(SCENE)
    write_picture(out / "photo.png", clip.frames[0])
    write_picture(out / "mask.png", clip.mask.expand(3, -1, -1) * 2 - 1)
    return Drawing(out / "photo.png", ARROWS, out / "mask.png")


def command(overrides: list[str], settings: dict[str, Any]) -> str:
    """The command line that equals a call of `animate`."""
    words = [f"{name}={value}" for name, value in settings.items()]
    return shlex.join(["python", "-m", "motionanim.animate", *overrides, *words])


def shown(title: str, text: str, made: Animation, made_by: str, figures: dict[str, str]) -> page.Item:
    video = next(path for path in made.files if path.suffix == ".mp4")
    return page.Item(title, text, [page.Film("", video)], figures, made_by)


def moving_picture(path: Path, frames: torch.Tensor, fps: float) -> None:
    """Write an animated WebP, 480 px wide, for pages that show no videos."""
    height = round(480 * frames.shape[-2] / frames.shape[-1])
    small = F.interpolate(frames, size=(height, 480), mode="bilinear", antialias=True)
    first, *rest = (Image.fromarray(to_pixels(frame)) for frame in small)
    with atomic_path(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=60)


def loop(drawing: Drawing, out: Path) -> page.Item:
    overrides = ["eulerian.loop=true"]
    settings = drawing.settings() | {"renderer": "eulerian", "frames": 60, "fps": 15, "out": out / "loop.mp4"}
    made = animate(overrides, **settings)
    moving_picture(out / "loop.webp", made.frames, fps=15)
    figures = {"frames": f"{len(made.frames)} of {made.frames.shape[-1]} x {made.frames.shape[-2]}"}
    figures |= {"made in": f"{made.record['seconds']:.0f} s"}
    figures |= {"wrap ratio (1 is a perfect loop)": f"{wrap_ratio(made.frames):.2f}"}
    text = "The picture warped along the field of the arrows. No network; the last frame leads back to the first."
    return shown("A loop of the whole picture", text, made, command(overrides, settings), figures)


def long_video(drawing: Drawing, out: Path, method: str, text: str) -> page.Item:
    overrides = [f"long_video={method}"]
    settings = drawing.settings() | {"frames": 125, "fps": 15, "out": out / f"{method}.mp4"}
    made = animate(overrides, **settings)
    run = made.record["runs"][0]
    figures = {
        "frames": f"{len(made.frames)} of {made.frames.shape[-1]} x {made.frames.shape[-2]}",
        "made in": f"{made.record['seconds']:.0f} s, {run['calls']:g} calls of the network",
        "seam ratio (1 is smooth)": f"{seam_ratio(made.frames, run['segment_starts']):.2f}",
    }
    return shown(f"125 frames, {method}", text, made, command(overrides, settings), figures)


def train(out: Path) -> tuple[Path, str]:
    """Train the LoRA by its command; the run's folder and the command."""
    runs, name = out / "training", time.strftime("%Y-%m-%d_%H-%M-%S")
    words = ["train.py", *TRAIN, f"paths.runs={runs}", f"run={name}"]
    status = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode
    if status:
        sys.exit(status)
    return runs / "motion_lora" / name, shlex.join(["python", *words])


def camera(drawing: Drawing, out: Path, run: Path, made_by: str) -> page.Item:
    """The camera without and with the LoRA, at the base's own size, from the same noise."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        estimate = instantiate(compose("train", ["experiment=motion_lora", "paths.run=."]).flow_estimator)
    films, figures = [], {}
    for name, loras in (("without", {}), ("with", {str(run / "lora.safetensors"): 1.0})):
        made = animate(
            image=drawing.photo, arrows=[], loras=loras or None, frames=16, size="model",
            out=out / f"camera_{name}.mp4",
        )  # fmt: skip
        films.append(page.Film(f"{name} the LoRA", made.files[0]))
        figures[f"camera residual {name} it, here"] = f"{camera_residual(estimate(made.frames), None):.5f}"
    report = json.loads((run / "camera.json").read_text())
    figures[f"on {len(report['clips_before'])} held-out pictures, without and with it"] = (
        f"{report['before']:.5f} and {report['after']:.5f}"
    )
    text = (
        "Trained here on clips of a static camera. Nothing steers these two videos; they begin with the same noise. "
        "The residual is the mean displacement of the corners per frame, as a share of the diagonal."
    )
    return page.Item("The static-camera LoRA", text, films, figures, made_by)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, help="a picture of your own")
    parser.add_argument("--arrows", help="its arrows: a .json file or [[x0, y0, x1, y1], ...]")
    parser.add_argument("--mask", type=Path, help="white may move")
    parser.add_argument("--out", type=Path, default=Path("runs") / "demo")
    args = parser.parse_args()
    if (args.photo is None) != (args.arrows is None):
        parser.error("a picture needs arrows, and arrows a picture: give --photo and --arrows, or none of them")
    motionanim.cli.command.quiet()
    args.out.mkdir(parents=True, exist_ok=True)
    begin, items = time.time(), []
    try:
        drawing = bundled(args.out) if args.photo is None else Drawing(args.photo, args.arrows, args.mask)
        trained: list[tuple[Path, str]] = []
        stages: list[tuple[str, Callable[[], page.Item | None]]] = [
            ("a loop of the whole picture", lambda: loop(drawing, args.out)),
            ("125 frames, phased", lambda: long_video(drawing, args.out, "phased", PHASED)),
            ("125 frames, continuous", lambda: long_video(drawing, args.out, "continuous", CONTINUOUS)),
            ("training of the LoRA", lambda: trained.append(train(args.out))),
            ("the camera without and with the LoRA", lambda: camera(drawing, args.out, *trained[0])),
        ]
        bar = tqdm(stages, unit="part", bar_format="demo: {n} of {total} parts, {elapsed} {desc}")
        for name, make in bar:
            bar.set_description_str(f"- {name}")
            item = make()
            if item is not None:
                items.append(item)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    written = page.write(args.out / "index.html", args.out / "loop.png", items, time.time() - begin)
    print(f"done in {time.time() - begin:.0f} s: open {written.resolve()} in a browser")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())


PHASED = (
    "The paper's method (Sec. 3.4): later segments inherit most denoising steps of the first. Each begins at the "
    "picture again, so the video jumps back every 16 frames."
)
CONTINUOUS = "Ours: segments share frames, and the motion goes on from one to the next."


if __name__ == "__main__":
    main()
