"""A model that stays loaded: reused for equal settings only, and a LoRA counts by its content."""

from pathlib import Path

import pytest
import torch
from configs import composed
from conftest import MOTION
from loras import randomise_lora
from omegaconf import OmegaConf

from motionanim.animation.loaded import Loaded
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import add_lora, save_lora


@pytest.mark.slow
def test_it_is_loaded_again_only_when_something_changes(base: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    sampling = OmegaConf.to_container(composed("image=none", config="animate").sampling, resolve=True)
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    add_lora(denoiser.unet, rank=2, alpha=2.0)
    for seed, path in enumerate((file, other)):
        randomise_lora(denoiser.unet, seed)
        save_lora(denoiser.unet, path)
    given = {
        "base": str(base), "motion": MOTION, "sampling": sampling, "loras": [(str(file), 0.5)], "context_length": 5,
        "device": torch.device("cpu"),
    }  # fmt: skip
    loaded = Loaded()
    first = loaded.animator(**given)
    assert loaded.animator(**given)[0] is first[0]
    changed = [
        {"loras": [(str(file), 0.6)]}, {"loras": []}, {"context_length": 6}, {"sampling": sampling | {"num_steps": 3}},
    ]  # fmt: skip
    for change in changed:
        assert loaded.animator(**given | change)[0] is not first[0]
    again = loaded.animator(**given)
    file.write_bytes(other.read_bytes())
    assert loaded.animator(**given)[0] is not again[0], "the file's content counts"
    with pytest.raises(ValueError, match=r"gone\.safetensors"):
        loaded.animator(**given | {"loras": [("gone.safetensors", 1.0)]})
    assert loaded.animator(**given)[1] == first[1]
