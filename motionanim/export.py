"""Export a checkpoint as a training does at its end: python -m motionanim.export ckpt=runs/.../checkpoints/last.ckpt

The result is a LoRA, a pipeline folder, T or the video features, by the trained model; averaged weights, if the run
kept an average.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from motionanim.cli.command import CONF, one_line_errors, quiet
from motionanim.cli.settings import command
from motionanim.models.weights_io import frozen_fingerprint
from motionanim.training.callbacks import export_folder
from motionanim.training.runs.checkpoints import check_weights, read_checkpoint

# The classes of conf/model. A checkpoint may come from anywhere: its settings may not run any other code.
TARGETS = frozenset(
    f"motionanim.{name}"
    for name in (
        "training.autoencoder.AutoencoderModule", "training.diffusion.DiffusionModule",
        "training.flow_refiner.FlowRefinerModule", "training.motion_lora.MotionLoraModule",
        "training.video_features.VideoFeaturesModule", "models.flow_refiner.FlowRefiner",
        "models.flow_refiner.PatchDiscriminator", "models.video_features.FeatureNetwork",
    )
)  # fmt: skip


def export(ckpt: str, out: Path | None, base: str | None) -> Path:
    """Write the trained weights of a checkpoint.

    Args:
        ckpt: A checkpoint of train.py.
        out: Folder to write into; None: exports/step_0000500 and so on in the run's folder.
        base: Where the base lies now; None: where it lay when the run was trained.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: If the file is missing, damaged or without settings, the base is another one, or the target exists.
    """
    path = Path(ckpt)
    if not path.is_file():
        raise ValueError(f"ckpt={ckpt}: no such file; give a .ckpt file, such as runs/NAME/checkpoints/last.ckpt")
    saved = read_checkpoint(path, ("state_dict", "config", "frozen", "global_step", "callbacks"))
    settings = _model_settings(saved["config"], ckpt)
    foreign = [target for target in targets(settings) if target not in TARGETS]
    if foreign:
        raise ValueError(f"{ckpt} names code that is no model of this project ({foreign[0]}): it is not run")
    folder = out or export_folder(path.parent.parent, saved["global_step"])
    target = folder / hydra.utils.get_class(settings["_target_"]).EXPORTED
    if target.exists():
        raise ValueError(f"{target} is there already and is kept: give another out=FOLDER, or remove it")
    if "compile" in settings:
        settings["compile"] = None
    if base is not None:
        if "base" not in settings:
            raise ValueError(f"base={base}: what {ckpt} holds stands by itself; leave base out")
        settings["base"] = base
    torch.manual_seed(saved["config"]["seed"])  # draws frozen weights outside the base as for the training
    module = built(settings)
    if frozen_fingerprint(module) != saved["frozen"]:
        raise ValueError(f"{ckpt} was trained on another base than {settings.get('base')}: give it by base=FOLDER")
    weights = saved["state_dict"] | saved["callbacks"].get("Ema", {})
    check_weights(module, weights)
    module.load_state_dict(weights, strict=False)
    return module.export(folder)


def _model_settings(config: Any, ckpt: str) -> dict[str, Any]:
    """The settings of the model in a checkpoint. Raises ValueError if they are not of train.py."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "_target_" not in model or "seed" not in config:
        raise ValueError(f"{ckpt} does not say which model it holds: give a checkpoint of train.py")
    return dict(model)


def targets(node: Any) -> Iterator[str]:
    """The `_target_` values at any depth, which `built` would call."""
    if isinstance(node, Mapping):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


def built(node: Any) -> Any:
    """Like Hydra's `instantiate`, without `_args_`, `_partial_` and ${...}, so that a checkpoint cannot use them."""
    if isinstance(node, list):
        return [built(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    parts = {key: built(child) for key, child in node.items()}
    target = parts.pop("_target_", None)
    if target is None:
        return parts
    try:
        return hydra.utils.get_class(target)(**parts)
    except TypeError as error:
        raise ValueError(f"the settings in the checkpoint do not fit {target}: {error}") from error


@command
@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    with torch.no_grad():
        print(f"exported: {export(config.ckpt, config.out and Path(config.out), config.base)}")


if __name__ == "__main__":
    main()
