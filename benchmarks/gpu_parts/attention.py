"""Part 3a of benchmarks/gpu.py: measure how many sequences one call of attention can handle.

Temporal attention has one sequence per latent pixel of each clip in the batch: 4 096 at 512 x 512, twice as many with
guidance, and 65 536 for eight segments of phase 2 in one batch. Kernels that put sequences on the grid's second or
third axis can handle 65 535. Eq. 4 doubles the width of the values, which some kernels do not support.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.results import Results, arguments
from motionanim.cli.progress import now

BACKENDS = {
    "as chosen": None, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
HEADS, FRAMES, WIDTH = 5, 25, 64  # of SVD's first stage


def attend(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend | None) -> Tensor:
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def tried(sequences: int, values: int, backend: SDPBackend | None, device: torch.device) -> dict[str, Any]:
    """Seconds of a call, and its error against float64 on the first and the last sequences.

    Args:
        values: Width of the values: 64, or 128 with Eq. 4's motion values beside them.
    """
    make: Callable[..., Tensor] = torch.randn
    query, key = (make(sequences, HEADS, FRAMES, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(2))
    value = make(sequences, HEADS, FRAMES, values, device=device, dtype=torch.bfloat16)
    got = attend(query, key, value, backend)
    times = []
    for _ in range(3):
        start = now()
        attend(query, key, value, backend)
        times.append(now() - start)
    seconds = min(times)
    ends = [slice(0, 4), slice(sequences - 4, sequences)]
    sample, exact = (
        torch.cat([got[end].double() for end in ends]),
        torch.cat([attend(*(x[end].double() for x in (query, key, value)), None) for end in ends]),
    )
    error = float(torch.linalg.vector_norm(sample - exact) / torch.linalg.vector_norm(exact))
    return {"seconds": seconds, "error": error}


def main() -> None:
    args = arguments(__doc__)
    device, results = torch.device(args.device), Results(args.out / "full_scale.json", args.until)
    counts = (65535, 65536, 131072) if device.type == "cuda" else (255, 256)
    backends = BACKENDS if device.type == "cuda" else {"as chosen": None, "math": SDPBackend.MATH}
    for sequences in counts:
        for values in (WIDTH, 2 * WIDTH):
            for name, backend in backends.items():
                results.measure(
                    f"attention, {sequences} sequences, values of {values}, {name}",
                    lambda s=sequences, v=values, b=backend: tried(s, v, b, device),
                    needs=1,
                )


if __name__ == "__main__":
    main()
