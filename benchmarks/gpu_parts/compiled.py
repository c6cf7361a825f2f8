"""Part 3c of benchmarks/gpu.py: the compiled denoiser call. Compiling takes minutes, so it comes last in part 3."""

import time
from functools import partial
from typing import Any

import torch

import motionanim.cli.command
from gpu_parts.results import Results, arguments
from gpu_parts.svd_size import Sampling, matmul_rates, settings

MODES = ("default", "max-autotune-no-cudagraphs")
NEEDS = 45  # seconds of compiling, at least


def compiled(sampling: Sampling, mode: str) -> dict[str, Any]:
    """Figures of the compiled call, and the seconds of compiling it."""
    torch._dynamo.reset()
    sampling.animator.denoiser.compile_unet(mode)
    start = time.time()
    # Operations of a compiled network cannot be counted; they are those of the network that is not compiled.
    row = sampling.call(1, tflop=sampling.results.rows["denoiser call"]["tflop"])
    return row | {"with compiling, s": time.time() - start}


def main() -> None:
    args = arguments(__doc__)
    motionanim.cli.command.quiet()
    device, results = torch.device(args.device), Results(args.out / "full_scale.json", args.until)
    sampling: Sampling | None = None
    for mode in MODES:
        name = f"denoiser call, compiled, {mode}"
        if "failed" not in results.rows.get(name, {"failed": ""}):
            continue
        if results.left() > NEEDS:
            # This row stays if the process is killed while it compiles.
            results.put(name, failed="stopped while it compiled: give it more --minutes")
            sampling = sampling or Sampling(settings(device, args.overrides), device, results, matmul_rates(args.out))
        results.measure(name, partial(compiled, sampling, mode), needs=NEEDS)


if __name__ == "__main__":
    main()
