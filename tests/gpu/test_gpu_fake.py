"""No operation mixes devices: everything that runs on a GPU gives the CPU's numbers on a pretended one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from flow_runs import pairs, raft, refiner_module, trainer
from gpu_cases import CASES, TO_CPU, Given, lora, whole
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from long_video_runs import CHAINED, VARIED, animator
from on_device import awake
from pretended_cuda import PretendedCuda, is_there
from torch import Tensor
from training_runs import SAMPLING, Losses, make_trainer, stream

from motionanim.sampling.chained import continuous
from motionanim.training.preview import CameraReport, FlowPictures, Preview

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


def both(run: Callable[[str], Tensor | list[Tensor]], there: bool = True) -> None:
    """The result of `run` on the pretended device is there, or not, and close to that on the CPU.

    It is not equal: on a GPU more images are encoded and decoded at once, which changes the order of sums.
    """
    expected = run("cpu")
    with PretendedCuda() as pretended:
        got = run("cuda")
        assert {is_there(each) for each in ([got] if isinstance(got, Tensor) else got)} == {there}
    assert pretended.calls > 0
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    here = torch.arange(3.0)
    refused = [
        lambda there: there + here, lambda there: torch.stack([there[0], here[0]]), lambda there: here[there.long()],
        lambda there: here.add_(there), lambda there: torch.arange(3) + there[0],
        lambda there: torch.randn(3, device=there.device, generator=torch.Generator()),
        lambda there: torch.nn.functional.linear(there, here[None]),
    ]  # fmt: skip
    allowed = [
        lambda there: there + here[0], lambda there: there[here.long()], lambda there: there.clone().copy_(here),
        lambda there: torch.zeros(3, device=there.device) + there.new_tensor([1.0]) + torch.ones_like(there),
        lambda there: here.to(there) + here.cuda() + here.to("cuda", torch.float64).to(there),
    ]  # fmt: skip
    with PretendedCuda():
        there = here.to("cuda")
        assert (there.device.type, here.device.type, there.cpu().device.type) == ("cuda", "cpu", "cpu")
        for call in refused:
            with pytest.raises(RuntimeError, match=r"two devices|generator"):
                call(there)
        for call in allowed:
            assert call(there).device == there.device
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
        weight = torch.nn.Linear(3, 1).to("cuda").weight
        (weight @ there).sum().backward()
        assert weight.grad.is_cuda


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_part(case: str, base: Path, raft_weights: Path, tmp_path: Path) -> None:
    both(partial(CASES[case][0], Given(base, raft_weights, tmp_path)), there=case not in TO_CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "use_flow"),
    [
        ("direct", True), ("gen_l_video", False), ("continuous", False), ("loop", False),
        (partial(continuous, **CHAINED | {"gamma": 0.5, "sigma": None, "anchor": True}), True),
    ],
    ids=["direct", "gen_l_video", "continuous", "loop", "anchored"],
)  # fmt: skip
def test_long_video_with_parts_held_and_everything_given_from_the_cpu(
    base: Path, method: str | Callable, use_flow: bool
) -> None:
    random = torch.Generator().manual_seed(1)
    image, flow = torch.rand(2, 3, 16, 16, generator=random) * 2 - 1, torch.randn(2, 7, 2, 16, 16, generator=random)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:, 6:] = 1.0

    def run(device: str) -> Tensor:
        return animator(base, device, motion_guidance=1.5)(
            image, flow, num_frames=8, fps=torch.tensor([7.0, 8.0]), strength=None, use_flow=use_flow, mask=mask,
            long_video=VARIED.get(method, method), seed=0, progress=None,
        )[0]  # fmt: skip

    both(run)


class PretendedAccelerator(CPUAccelerator):
    """Lets the trainer put its model on the pretended device."""

    def setup_device(self, device: torch.device) -> None:
        pass


def training(device: str) -> dict:
    """Options of a trainer on one device."""
    accelerator = PretendedAccelerator()
    strategy = SingleDeviceStrategy(device=torch.device(device, 0) if device == "cuda" else torch.device("cpu"))
    return {"accelerator": accelerator, "strategy": strategy, "limit_val_batches": 1, "check_val_every_n_epoch": None}


class Last(L.Callback):
    """The trained weights after the last step, before the trainer moves them off the device."""

    def on_train_end(self, trainer, pl_module) -> None:
        self.weights = torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad])


@pytest.mark.slow
@pytest.mark.parametrize("make", [lora, whole])
def test_training_with_validation_and_pictures(
    base: Path,
    make: Callable,
    raft_weights: Path,
    tmp_path: Path,
) -> None:
    def run(device: str) -> Tensor:
        seen, pictures = Last(), [Preview(folder=str(tmp_path / "samples"), clips=2, sampling=SAMPLING, seed=0)]
        if make is lora:
            estimator = raft(raft_weights, device=device, updates=1)
            pictures.append(
                CameraReport(folder=str(tmp_path), clips=1, sampling=SAMPLING, flow_estimator=estimator, seed=0)
            )
        module = make(base)
        awake(module.denoiser)
        make_trainer(tmp_path, 2, Losses(), *pictures, seen, val_check_interval=2, **training(device)).fit(
            module, stream()
        )
        return seen.weights

    both(run)


@pytest.mark.slow
def test_refiner_training(tmp_path: Path) -> None:
    def run(device: str) -> Tensor:
        torch.manual_seed(0)
        seen, module = Last(), refiner_module()
        pictures = FlowPictures(folder=str(tmp_path), pairs=2)
        trainer(tmp_path, 2, callbacks=[pictures, seen], **training(device)).fit(module, pairs())
        return seen.weights

    both(run)
