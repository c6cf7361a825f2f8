"""A pretended CUDA device: its tensors are in the CPU's memory, report device "cuda", and may not mix with CPU tensors.

PyTorch's own fake tensors hold no values: code that reads one (`if kept.any()`, `position.tolist()`) fails, and without
a driver their backward pass ends the process. Here every operation runs on the CPU, and an operation on tensors of both
devices raises, as CUDA's would. Only calls from Python are seen; kernels, memory and arithmetic of a GPU are not.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

CUDA = torch.device("cuda", 0)
_MARK = "_pretended"
_MAY_MIX = ("copy_", "__set__", "_has_compatible_shallow_copy_type")  # the latter two are how nn.Module.to works


class PretendedCuda(TorchFunctionMode):
    """Within this context a device "cuda" exists. Tensors moved or created there, and results of them, are there.

    Raises:
        RuntimeError: If a call mixes devices, except for what CUDA allows (a CPU scalar among operands, CPU indices,
            copies), or draws numbers on the GPU from a CPU generator.
        TypeError: If a tensor there is converted to NumPy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0  # on tensors on the device

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return _get(func, args, kwargs)
        if name in ("to", "cpu", "cuda"):
            return _move(name, func, args, kwargs)
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        there = any(map(is_there, given))
        self.calls += there
        if there and name in ("numpy", "__array__"):
            raise TypeError("a tensor on CUDA cannot become a NumPy array: it needs .cpu() first")
        wanted = kwargs.get("device")
        if name not in _MAY_MIX:
            _check(name, args, given)
        if wanted is not None:
            there = torch.device(wanted).type == "cuda"
            kwargs = kwargs | {"device": "cpu" if there else wanted}
        if there and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name}: a generator on the CPU cannot draw numbers on CUDA")
        if name == "copy_":
            there = is_there(args[0])
        if name == "__set__" and isinstance(args[1], Tensor):  # parameter.data = moved
            _mark(args[0], is_there(args[1]))
        made = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda value: _mark(value, True), made) if there else made


def is_there(tensor: Tensor) -> bool:
    return tensor.__dict__.get(_MARK, False)


def _mark(tensor: Tensor, there: bool) -> Tensor:
    tensor.__dict__[_MARK] = there
    return tensor


def _get(func: Any, args: tuple, kwargs: dict) -> Any:
    value, owner = func(*args, **kwargs), args[0]
    if isinstance(value, torch.device):
        return CUDA if is_there(owner) else value
    attribute = getattr(func.__self__, "__name__", "")
    if attribute in ("is_cuda", "is_cpu"):
        return is_there(owner) == (attribute == "is_cuda")
    return _mark(value, True) if isinstance(value, Tensor) and is_there(owner) else value


def _move(name: str, func: Any, args: tuple, kwargs: dict) -> Any:
    """`Tensor.to` in each of its forms, and its short forms."""
    tensor, *rest = args
    target = kwargs.get("device") if name == "to" else name
    if name != "to":
        rest, kwargs = [], {}
    elif rest and isinstance(rest[0], Tensor):
        target, rest = "cuda" if is_there(rest[0]) else "cpu", [rest[0].dtype, *rest[1:]]
    elif rest and isinstance(rest[0], str | torch.device):
        target, rest = rest[0], ["cpu", *rest[1:]]
    elif target is not None:
        kwargs = kwargs | {"device": "cpu"}
    there = is_there(tensor) if target is None else torch.device(target).type == "cuda"
    made = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
    if there != is_there(tensor) and made is tensor:
        made = tensor.clone()
    return made if made is tensor else _mark(made, there)


def _check(name: str, args: tuple, given: list[Tensor]) -> None:
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        # CPU indices are allowed; so is a number to be put in.
        given = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
        indices = [value for value in tree_iter(args[1]) if isinstance(value, Tensor)]
        if not is_there(args[0]):
            given += [index for index in indices if is_there(index)]
    numbers = name not in ("cat", "stack")
    devices = {is_there(value) for value in given if is_there(value) or value.ndim or not numbers}
    if len(devices) > 1:
        shapes = ", ".join(f"{tuple(value.shape)} on {'cuda' if is_there(value) else 'cpu'}" for value in given)
        raise RuntimeError(f"{name}: tensors on two devices: {shapes}")
