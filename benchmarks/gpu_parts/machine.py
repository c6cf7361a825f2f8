"""Part 1 of benchmarks/gpu.py: describe the machine and measure its ceilings."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from ceilings import copy_rate, matmul_rate

from gpu_parts.results import Results, arguments

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "numpy", "opencv-python-headless", "triton")


def machine(device: torch.device) -> dict[str, Any]:
    """Card, driver, versions, processor."""
    found: dict[str, Any] = {
        "card": f"{platform.machine()} CPU", "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "system": platform.platform(),
    }  # fmt: skip
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "card": card.name, "memory_gib": card.total_memory / 2**30, "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda, "driver": driver(),
        }  # fmt: skip
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def driver() -> str:
    """The driver's version by nvidia-smi, or "unknown"."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return asked.stdout.strip().splitlines()[0] if asked.stdout.strip() else "unknown"


def main() -> None:
    args = arguments(__doc__)
    device, results = torch.device(args.device), Results(args.out / "machine.json", args.until)
    results.measure("machine", lambda: machine(device), needs=0)
    results.measure("copy", lambda: {"bytes_per_s": copy_rate(device)}, needs=1)
    # A CPU without half-precision instructions takes a minute for such a product.
    for name in ("float32", *(["bfloat16", "float16"] if device.type == "cuda" else [])):
        results.measure(
            f"matmul {name}", lambda name=name: {"flop_per_s": matmul_rate(device, getattr(torch, name))}, needs=2
        )


if __name__ == "__main__":
    main()
