"""Train the static-camera motion LoRA (Sec. 3.3, experiment=motion_lora)."""

from pathlib import Path
from typing import Any

from motionanim.models.svd.lora import add_lora, save_lora
from motionanim.training.diffusion import DiffusionModule


class MotionLoraModule(DiffusionModule):
    """The same objective on clips from a fixed camera, with everything frozen but a LoRA in the temporal attention.

    Args:
        rank: Rank of the LoRA; 16 in the paper.
        alpha: LoRA scale; the update is alpha / rank times B A.
        **diffusion: See `DiffusionModule`; `trainable` is set here.
    """

    EXPORTED = "lora.safetensors"

    def __init__(self, *, rank: int, alpha: float, **diffusion: Any) -> None:
        super().__init__(trainable="temporal", **diffusion)
        self.save_hyperparameters("rank", "alpha")
        self.denoiser.requires_grad_(False)
        add_lora(self.denoiser.unet, rank=rank, alpha=alpha)
        if self.hparams.frozen == "bfloat16":
            self.denoiser.halve_frozen()

    def export(self, folder: Path) -> Path:
        """Write `folder`/lora.safetensors."""
        save_lora(self.denoiser.unet, folder / self.EXPORTED)
        return folder / self.EXPORTED
