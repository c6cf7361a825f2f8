"""Configurations composed as the commands compose them."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict

import motionanim.cli.command  # noqa: F401  registers the resolvers

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def choices(group: str) -> list[str]:
    """Names of the files of a group in conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str, config: str = "train") -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(config, overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = "out"
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check_binding(node: dict[str, Any]) -> None:
    """The YAML's keys are parameters of its target, and no parameter without default is left out."""
    target = get_method(node["_target_"]) if "." in node["_target_"] else None
    arguments = {key: None for key in node if not (key.startswith("_") and key.endswith("_"))}
    if node["_target_"] == "motionanim.training.motion_lora.MotionLoraModule":
        # Arguments that it passes to its parent must bind there.
        own = set(inspect.signature(target).parameters)
        rest = {k: None for k in arguments if k not in own}
        from motionanim.training.diffusion import DiffusionModule

        inspect.signature(DiffusionModule).bind(trainable=None, **rest)
    bound = inspect.signature(target)
    if node.get("_partial_"):
        bound.bind_partial(**arguments)
    else:
        bound.bind(**arguments)
