"""Operations and memory of a computation, counted without a GPU and without the memory.

In `torch._subclasses.fake_tensor.FakeTensorMode` tensors have shapes but no values, so that a model of 1.5 billion
parameters is counted in seconds on a laptop.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


def _attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: tuple[int, ...], query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_ON_CPU = {  # kernels that some versions of torch do not count
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of `run`'s matrix products, convolutions and attention; multiply and add are two."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        run()
    return counter.get_total_flops()


class PeakMemory(TorchDispatchMode):
    """Counts, within this context, the bytes of all live tensors, and the most that there ever were.

    Counts what the tensors hold, as `torch.cuda.max_memory_allocated` does but for its rounding, and not what an
    operation needs inside itself. Not to be used at once with `count_flops`, which keeps tensors alive.

    Attributes:
        now: Bytes alive.
        peak: Largest value of `now`.
    """

    def __init__(self, *kept: torch.nn.Module) -> None:
        """`kept` are modules whose parameters and buffers exist already."""
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()  # storages
        for module in kept:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._add(tensor)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.collect()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Within, normalisations return float32, as under CUDA's autocast; the CPU's leaves them in bfloat16."""
    group, layer = F.group_norm, F.layer_norm

    def whole(norm: Callable[..., Tensor], x: Tensor, *options: Any) -> Tensor:
        return norm(x.float(), *options)

    with (
        patch.object(F, "group_norm", lambda x, *options: whole(group, x, *options)),
        patch.object(F, "layer_norm", lambda x, *options: whole(layer, x, *options)),
    ):
        yield


def profiled_peak(run: Callable[[], Any]) -> int:
    """The most bytes that `run` held at once of PyTorch's CPU allocator, by the profiler's record of its every call.

    It is a reference for `PeakMemory`: it sees what operations take inside themselves too, and not what there was
    before.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
