"""`python -m motionanim.export ckpt=runs/.../checkpoints/last.ckpt`: of any checkpoint what training leaves at its end.

A LoRA, a pipeline folder, T or the video features, by what was trained. Where the run kept an average of its weights,
it is the average.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from motionanim.entry import CONF, one_line_errors, quiet
from motionanim.fingerprint import frozen_fingerprint
from motionanim.settings import command
from motionanim.training.callbacks import export_folder
from motionanim.training.checkpoints import check_weights, read_checkpoint


def export(ckpt: str, out: Path | None, base: str | None) -> Path:
    """Write what a checkpoint has learned.

    Args:
        ckpt: A checkpoint of train.py.
        out: Folder to write into; None: exports/step_0000500 and so on in the folder of the run.
        base: Where the base lies now; None: where it lay when the run was trained.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: If the file is missing, damaged or holds no settings, or the base is another one.
    """
    path = Path(ckpt)
    if not path.is_file():
        raise ValueError(f"ckpt={ckpt}: no such file; give a .ckpt file, such as runs/NAME/checkpoints/last.ckpt")
    saved = read_checkpoint(path, ("state_dict", "config", "frozen", "global_step", "callbacks"))
    settings = dict(saved["config"]["model"])
    foreign = [target for target in targets(settings) if not target.startswith("motionanim.")]
    if foreign:  # a checkpoint is data, and may come from anywhere
        raise ValueError(f"{ckpt} names code that is not this project's ({foreign[0]}): it is not run")
    if "compile" in settings:
        settings["compile"] = None
    if base is not None:
        if "base" not in settings:
            raise ValueError(f"base={base}: what {ckpt} holds stands by itself; leave base out")
        settings["base"] = base
    torch.manual_seed(saved["config"]["seed"])  # what is frozen and not in the base is as it was drawn for the training
    module = hydra.utils.instantiate(settings, _convert_="all")
    if frozen_fingerprint(module) != saved["frozen"]:
        raise ValueError(f"{ckpt} was trained on another base than {settings.get('base')}: give it by base=FOLDER")
    weights = saved["state_dict"] | saved["callbacks"].get("Ema", {})
    check_weights(module, weights)
    module.load_state_dict(weights, strict=False)
    return module.export(out or export_folder(path.parent.parent, saved["global_step"]))


def targets(node: Any) -> Iterator[str]:
    """What `instantiate` would import, at any depth."""
    if isinstance(node, Mapping):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


@command
@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    with torch.no_grad():
        print(f"exported: {export(config.ckpt, config.out and Path(config.out), config.base)}")


if __name__ == "__main__":
    main()
