"""Training on several processes: replicated (trainer=ddp) or sharded (trainer=fsdp)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from motionanim.data.stream import StreamData

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def replicated(*, timeout: float) -> DDPStrategy:
    """DDP; its processes wait for each other for at most `timeout` seconds."""
    return DDPStrategy(timeout=timedelta(seconds=timeout))


class Sharded(ModelParallelStrategy):
    """FSDP2: every process keeps its share of the weights, gradients and optimizer state.

    A checkpoint is the file that one process would write, so that any trainer with any number of processes can resume
    it. Lightning's own sharded checkpoints also gather the frozen weights, and number the optimizer's parameters by
    their index among all parameters, not among those that train.

    Args:
        timeout: Processes wait for each other for at most this many seconds.
    """

    def __init__(self, *, timeout: float) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout))

    # `configure_model` shards the weights before the checkpoint is loaded, so that Lightning's usual order works.
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    lightning_module_state_dict = Strategy.lightning_module_state_dict
    optimizer_state = Strategy.optimizer_state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather tensor by tensor into the memory of rank 0's machine, and write there."""
        keep = self.is_global_zero
        Strategy.save_checkpoint(self, tree_map(lambda x: whole(x, keep=keep), checkpoint), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The saved file. Every process reads it; its tensors stay on the disk until a share of them is taken."""
        return torch.load(self.broadcast(checkpoint_path), map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = dict(self.lightning_module.named_parameters())
        state = {k: share(v, like=mine[k]) if k in mine else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_share_state(optimizer, saved))


def whole(value: Any, *, keep: bool) -> Any:
    """A sharded tensor gathered on the CPU, or None unless `keep`; other values unchanged. All processes must call."""
    if not isinstance(value, DTensor):
        return value
    full = value.detach().full_tensor()
    return full.cpu() if keep else None


def local(value: Tensor) -> Tensor:
    """This process's share of a tensor, sharded or not, without gradient; it shares the tensor's memory."""
    return value.detach().to_local() if isinstance(value, DTensor) else value.detach()


def share(value: Tensor, *, like: Tensor) -> Tensor:
    """A whole tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _share_state(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state; each tensor with its parameter's shape is sharded as the parameter is."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        entries = saved["state"].get(number, {})
        alike = {n: v for n, v in entries.items() if isinstance(v, Tensor) and v.shape == parameter.shape}
        state[number] = {**entries, **{name: share(value, like=parameter) for name, value in alike.items()}}
    return {**saved, "state": state}


def shard(module: nn.Module, blocks: list[nn.Module], *, device: torch.device) -> None:
    """Shard `module` over all processes; each of `blocks` is gathered for its own forward pass only."""
    # On a machine with GPUs the default mesh is of GPUs, even for a run on the CPU.
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)


@contextmanager
def gathered(module: nn.Module, *, keep: bool) -> Iterator[None]:
    """Within this context a sharded module has its whole weights on the CPU if `keep`, to be read or saved.

    All processes must enter it.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            full = whole(parameter, keep=keep)
            if full is not None and full is not parameter:
                part.register_parameter(name, nn.Parameter(full, requires_grad=parameter.requires_grad))
                replaced.append((part, name, parameter))
    try:
        yield
    finally:
        for part, name, parameter in replaced:
            part.register_parameter(name, parameter)


def check_trainer(trainer: L.Trainer) -> None:
    """Check the precision, and have trainer.val_check_interval count optimizer steps; Lightning counts batches.

    Raises:
        ValueError: If the precision is not one of `PRECISIONS`.
    """
    if trainer.precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={trainer.precision}: AdamW's small steps are lost without float32 weights; use "
            f"{', '.join(PRECISIONS)}"
        )
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= trainer.accumulate_grad_batches


def check_strategy(trainer: L.Trainer, module: L.LightningModule, data: StreamData) -> None:
    """Raises ValueError if the trainer cannot train this module, or shards it or its validation clips and cannot."""
    halved = module.hparams.get("frozen") == "bfloat16"
    if halved and trainer.precision != "bf16-mixed":
        raise ValueError(
            f"model.frozen=bfloat16 with trainer.precision={trainer.precision}: only bf16-mixed rounds these weights "
            "at each use anyway; set model.frozen=float32 or vram=none"
        )
    if isinstance(trainer.strategy, Sharded) and (halved or module.hparams.get("moments") == "8bit"):
        raise ValueError(
            "trainer=fsdp shards weights and moments of float32 only: set model.frozen=float32 and "
            "model.moments=float32, or vram=none"
        )
    if not isinstance(trainer.strategy, Sharded):
        return
    if not is_overridden("configure_model", module):
        raise ValueError(
            f"trainer=fsdp: {type(module).__name__} is too small to shard, only the denoiser (experiment=diffusion, "
            "motion_lora, tiny_base) can be; use trainer=ddp"
        )
    world, clips = trainer.world_size, len(data.val)
    batches = [len(each) for each in data.val_batches(world)]
    limit = trainer.limit_val_batches
    if min(batches) < max(batches) and not (isinstance(limit, int) and limit <= min(batches)):
        raise ValueError(
            f"trainer=fsdp: {clips} validation clips in batches of {data.batch_size} are not the same number of "
            f"batches for each of {world} processes, which gather each other's weights: set "
            f"trainer.limit_val_batches={min(batches)}, or use trainer=ddp"
        )
