"""The script of the full size runs at tiny size: the stages, what they say of each other, and its report."""

import json
from pathlib import Path

import forked
import pytest
import yaml
from small_svd import small_svd

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "whole_svd.py"
SMALL = ["scale.height=64", "scale.width=64", "scale.motion_channels=8", "sampling.dtype=float32"]


def carried_out(folder: Path, *arguments: str) -> None:
    config = folder.parent / "small.yaml"
    config.write_text(yaml.safe_dump(small_svd()))
    done = forked.run(
        SCRIPT, "--folder", folder, "--config", config, "--report", folder.parent / "report.md", *arguments, *SMALL,
        cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_stages_use_what_the_ones_before_made(tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    carried_out(folder, "--stages", "make,shard,check-base sharded,load whole,load sharded,train,export,load with LoRA")
    done = json.loads((folder / "results.json").read_text())
    facts = {stage: each["facts"] for stage, each in done.items()}
    assert len(list((folder / "sharded" / "unet").glob("*.fp16-0*.safetensors"))) > 1
    told = facts["check-base sharded"]
    assert told["exit code"] == 2, "a network of other layers"
    assert "a shard" in told["`unet/diffusion_pytorch_model.fp16-00001-of-00003.safetensors`"]
    assert facts["load sharded"]["largest difference to the whole files"] == 0
    assert facts["export"] == {"the LoRA of the training and that of its checkpoint": "equal"}
    assert facts["load with LoRA"]["largest difference to the base"] > 1e-3, "two steps changed it"
    assert all(0.1 < each["cost"]["private"] < each["cost"]["peak"] < 4 for each in done.values())
    report = (tmp_path / "report.md").read_text()
    assert report.count("\n| ") == 1 + len(done)
    before = (folder / "whole" / "model_index.json").stat().st_mtime_ns
    carried_out(folder, "--stages", "load whole")
    assert (folder / "whole" / "model_index.json").stat().st_mtime_ns == before, "what is made is not made again"
    assert json.loads((folder / "results.json").read_text()).keys() == done.keys()
