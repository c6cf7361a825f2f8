"""Draw the results of docs/animate.md from scenes of the procedural world: python experiments/animate/pictures.py

The photos are held-out scenes of the procedural world, 256 px wide, with their true masks. Videos go to runs/animate.
"""

from pathlib import Path

import torch

import motionanim.cli.command
from motionanim.animate import animate
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.media.visualize import sheet, write_picture

HERE = Path(__file__).resolve().parent
OUT = Path("runs/animate")
SIDE = 256


def photo(position: int) -> dict[str, Path]:
    """A scene's first frame and mask as files."""
    clips = SyntheticClips(
        seed=1, length=64, num_frames=2, height=SIDE, width=SIDE, fps=7, moving_camera=0.0, split="val"
    )
    clip, files = clips.clip(position), {"image": OUT / f"{position}.png", "mask": OUT / f"{position}_mask.png"}
    OUT.mkdir(parents=True, exist_ok=True)
    write_picture(files["image"], clip.frames[0])
    write_picture(files["mask"], clip.mask.expand(3, -1, -1) * 2 - 1)
    return files


def main() -> None:
    motionanim.cli.command.quiet()
    made = {
        "eulerian": animate(
            ["eulerian.loop=true"], **photo(5), arrows=[[130, 60, 138, 84]], renderer="eulerian", frames=60, fps=15,
            out=OUT / "eulerian.mp4",
        ),
        "proposal": animate(
            image=photo(5)["image"], arrows=[[130, 60, 138, 84]], renderer="eulerian", frames=60, fps=15,
            out=OUT / "proposal.mp4",
        ),
        "diffusion": animate(**photo(18), arrows=[[80, 170, 150, 165]], frames=125, out=OUT / "diffusion.mp4"),
        "strength": animate(
            **photo(31), arrows=[[60, 80, 120, 80]], strength=[100, 200, 300, 400], out=OUT / "strength.mp4"
        ),
    }  # fmt: skip
    for name in ("eulerian", "proposal", "diffusion"):
        (HERE / f"{name}.png").write_bytes((OUT / f"{name}.png").read_bytes())
    sweep = sheet([made["strength"].frames], columns=3)
    write_picture(HERE / "strength.png", sweep)
    for name, animation in made.items():
        seconds, shape = animation.record["seconds"], tuple(animation.frames.shape)
        print(f"{name}: {shape[0]} frames of {shape[2]}x{shape[3]} in {seconds:.0f} s")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
