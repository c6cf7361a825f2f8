"""Draw world.png and samples.png beside this file: python experiments/embedded_base/pictures.py"""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import motionanim.cli.command
from motionanim.cli.command import CONF
from motionanim.cli.progress import Progress
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.media.visualize import flow_to_rgb, sheet, write_picture
from motionanim.training.preview import sample

HERE = Path(__file__).resolve().parent
SETTINGS = ["experiment=diffusion", "paths.run=.", "data=synthetic_static"]
CLIPS, SIDE = 6, 96  # samples; px of a training clip


def world() -> torch.Tensor:
    """Four frames of each of 24 training clips, in three columns."""
    clips = SyntheticClips(
        seed=5, length=24, num_frames=16, height=SIDE, width=SIDE, fps=7, moving_camera=0.3, split="train"
    )
    strips = [sheet([clips[i].frames], columns=4) for i in range(24)]
    return torch.cat([torch.cat(strips[i : i + 8], dim=-2) for i in (0, 8, 16)], dim=-1)


def samples() -> torch.Tensor:
    """True clip, motion field and sample of held-out clips under a still camera, in two columns."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", SETTINGS)
    module = instantiate(cfg.model, _convert_="all").eval()
    data = instantiate(cfg.data, _convert_="all")
    batch = data.first_val(CLIPS)
    sampling = OmegaConf.to_container(cfg.sampling, resolve=True)
    with Progress() as progress:
        videos = sample(module, batch, sampling=sampling, seed=0, has_flow=True, guidance=True, progress=progress)
    flow = flow_to_rgb(torch.cat([batch.flow, batch.flow[:, -1:]], dim=1))
    rows = [sheet([batch.frames[i], flow[i], videos[i]], columns=6) for i in range(CLIPS)]
    half = CLIPS // 2
    return torch.cat([torch.cat(rows[:half], dim=-2), torch.cat(rows[half:], dim=-2)], dim=-1)


def main() -> None:
    motionanim.cli.command.quiet()
    write_picture(HERE / "world.png", world())
    write_picture(HERE / "samples.png", samples())


if __name__ == "__main__":
    main()
