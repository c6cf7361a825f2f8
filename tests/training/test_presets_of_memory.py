"""Training within less memory: passes that make up the same step, frozen weights in bfloat16, moments of 8 bits."""

import sys
from pathlib import Path

import pytest
import torch
from configs import composed
from diffusers import UNetSpatioTemporalConditionModel
from training_runs import NUMBERS, fit, make_trainer, stream, trained

from motionanim.training.diffusion import DiffusionModule
from motionanim.training.optim import adamw
from motionanim.training.strategies import Sharded, check_strategy

OPTIONS = {"lr": 1e-3, "weight_decay": 0.01, "warmup_steps": 0, "decay_steps": 0, "total": 10}


def diffusion(base: Path, **changes) -> DiffusionModule:
    torch.manual_seed(0)
    return DiffusionModule(base=str(base), trainable="temporal", **NUMBERS | changes)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "batch", "passes"), [("none", 4, 1), ("16", 1, 4), ("48", 2, 2), ("80", 4, 1)])
def test_the_passes_of_a_step_have_its_batch(preset: str, batch: int, passes: int) -> None:
    for experiment in ("diffusion", "motion_lora"):
        cfg = composed(f"experiment={experiment}", f"vram='{preset}'")
        assert (cfg.data.batch_size, cfg.trainer.accumulate_grad_batches) == (batch, passes)
    cfg = composed("experiment=diffusion", f"vram='{preset}'", "scale.batch_size=3")  # passes are of equal size
    assert cfg.data.batch_size * cfg.trainer.accumulate_grad_batches == 3


@pytest.mark.slow
def test_two_passes_are_the_step_of_one(base: Path, tmp_path: Path) -> None:
    one, two = diffusion(base, lr=1e-4), diffusion(base, lr=1e-4)
    fit(one, tmp_path / "one", 1, data=stream(batch_size=4))
    fit(two, tmp_path / "two", 1, data=stream(batch_size=2), accumulate_grad_batches=2)
    moved = (trained(one) - trained(diffusion(base))).abs().max()
    assert (trained(two) - trained(one)).abs().max() < 0.05 * moved


@pytest.mark.slow
def test_halved_weights_are_exported_as_the_bases_own(base: Path, tmp_path: Path) -> None:
    module = diffusion(base, frozen="bfloat16")
    folder = module.export(tmp_path)
    exported = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
    own = UNetSpatioTemporalConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    halved = [n for n, p in module.denoiser.unet.named_parameters() if p.dtype == torch.bfloat16]
    assert len(halved) > 20
    for name in halved:
        assert torch.equal(exported[name], own[name].half().float())


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"frozen": "bfloat16"}, {"precision": "32-true"}, r"model\.frozen=bfloat16 with trainer\.precision=32-true"),
        ({"moments": "8bit"}, {"strategy": Sharded(timeout=30)}, r"trainer=fsdp shards weights and moments of float32"),
    ],
    ids=["frozen", "moments"],
)
def test_what_cannot_be_combined_is_refused(base, tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        check_strategy(make_trainer(tmp_path, 1, **options), diffusion(base, **changes), stream())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"model\.moments=8bit needs bitsandbytes: pip install"):
        adamw([torch.nn.Parameter(torch.ones(3))], **OPTIONS, moments="8bit")


def test_moments_of_8_bits_learn_as_others_do() -> None:
    pytest.importorskip("bitsandbytes")

    def learned(moments: str) -> tuple[float, int]:
        torch.manual_seed(0)
        layer, x = torch.nn.Linear(64, 128), torch.randn(32, 64)
        optimizer = adamw(layer.parameters(), **OPTIONS, moments=moments)["optimizer"]
        for _ in range(20):
            loss = (layer(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        state = optimizer.state[layer.weight].values()
        return loss.item(), sum(v.nbytes for v in state if isinstance(v, torch.Tensor) and v.shape == (128, 64))

    (found, small), (wanted, large) = learned("8bit"), learned("float32")
    assert found == pytest.approx(wanted, rel=0.05)
    assert small == large / 4
