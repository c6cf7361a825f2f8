"""benchmarks/gpu.py leaves whole files after a kill, goes on when called again, and gives better weights."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import gpu
import pytest
import torch
from gpu_parts import weights
from gpu_parts.report import report, summary
from gpu_parts.results import Results, read_rows
from gpu_parts.take import take
from gpu_parts.tests import Recorder
from kill import ROOT, kill_when, wait_until

SCRIPT = ROOT / "benchmarks" / "gpu.py"
ASSETS = ROOT / "motionanim" / "assets" / "tiny-svd"
SMALL = ["scale.height=32", "scale.width=32", "scale.num_frames=4", "scale.num_steps=3", "frames=8"]
TRAIN = ["scale.height=32", "scale.width=32", "scale.num_frames=4"]


def later(seconds: float) -> float:
    return time.time() + seconds


def test_a_row_is_on_disk_at_once_and_an_error_is_tried_again_by_the_next_call_only(tmp_path):
    part, calls = tmp_path / "part.json", []
    results = Results(part, later(60))

    def broken() -> dict[str, float]:
        assert read_rows(part) == {"first": {"s": 1.0}}
        calls.append(1)
        raise RuntimeError("CUDA error:\n  invalid configuration argument")

    def full() -> dict[str, float]:
        raise torch.OutOfMemoryError

    results.measure("first", lambda: {"s": 1.0}, needs=1)
    results.measure("kernel", broken, needs=1)
    results.measure("memory", full, needs=1)
    results.measure("late", lambda: {"s": 1.0}, needs=3600)
    failed = {name: row.get("failed") for name, row in read_rows(part).items()}
    assert failed.pop("late").startswith("no time")
    assert failed == {
        "first": None, "kernel": "RuntimeError: CUDA error: invalid configuration argument", "memory": "out of memory",
    }  # fmt: skip
    again = Results(part, later(7200))
    again.measure("late", lambda: {"s": 1.0}, needs=3600)
    again.measure("late", broken, needs=1)  # it has its figure
    assert again.rows["late"] == {"s": 1.0}
    assert len(calls) == 1
    part.write_text("[1, 2")
    with pytest.raises(ValueError, match="holds no results: move it away"):
        Results(part, later(1))
    assert part.read_text() == "[1, 2"


def test_weights_come_back_from_files_of_a_bounded_size(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"block.{i}.weight": torch.randn(100, 100, generator=generator) for i in range(5)}
    monkeypatch.setattr(weights, "MOST_BYTES", 45_000)
    files = weights.save(tmp_path, "weights-1", tensors)
    assert len(files) == 3
    assert max((tmp_path / file).stat().st_size for file in files) <= 45_000
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    weights.load(tmp_path, files, found)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.half().float())
    with pytest.raises(ValueError, match="does not hold other of shape"):
        weights.load(tmp_path, files, {"other": torch.zeros(1)})


def test_the_shipped_base_fits_one_file_of_16_mib(tmp_path):
    from safetensors.torch import load_file

    both = {
        **load_file(ASSETS / "unet" / "diffusion_pytorch_model.safetensors"),
        **load_file(ASSETS / "motion" / "motion.safetensors"),
    }
    (file,) = weights.save(tmp_path, "weights", both)
    assert (tmp_path / file).stat().st_size <= 16 * 2**20


def test_the_summary_has_at_most_40_lines_and_names_what_failed(tmp_path):
    scale = Results(tmp_path / "full_scale.json", later(1))
    for i in range(60):
        scale.put(f"denoiser call {i}", s=0.5, floor_s=0.2, tflop=1.0)
    scale.put("attention, 65536 sequences, values of 64, flash", failed="RuntimeError: no kernel")
    lines = summary(tmp_path, {"tests (tests)": "ended with exit code -9"}, minutes=1.0)
    assert len(lines) <= 40
    assert "floor 0.2 s (0.40)" in "\n".join(lines)
    assert "1 of 1 calls failed" in "\n".join(lines)
    report(tmp_path, {"tests (tests)": "ended with exit code -9"})
    text = (tmp_path / "report.md").read_text()
    assert "- tests (tests): ended with exit code -9" in text
    assert "| 65536 sequences, values of 64, flash | RuntimeError: no kernel |" in text


@pytest.mark.long
@pytest.mark.slow
def test_the_parts_import_no_package_that_a_bare_machine_lacks():
    absent = ["pillow_heif", "decord", "av", "wandb", "timm", "pyarrow", "krippendorff"]
    parts = "gpu_parts.compiled, gpu_parts.pool, gpu_parts.svd_size, gpu_parts.train"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {parts}"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--minutes", "0"], "--minutes 0.0: must be above 0"),
        (["--out", "x", "height"], "height: settings are KEY=VALUE"),
        (["--out", "x", "--from", "nowhere"], "holds no train.json"),
        (["--take", "nowhere"], "holds no report.md"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def record_tests(rank: int, folder: Path) -> None:
    os.chdir(folder)
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "test_some.py"], plugins=[Recorder(Results(Path("tests.json"), later(60)))]
    )


@pytest.mark.slow
def test_each_test_leaves_its_outcome_and_what_passed_is_not_run_again(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "def test_right(record_property):\n    for error, tolerance in ((0.1, 1.0), (0.5, 0.6), (0.9, 2.0)):\n"
        "        record_property('error', error)\n        record_property('tolerance', tolerance)\n"
        "def test_wrong():\n    open('runs', 'a').write('x')\n    assert 1 == 2\n"
    )
    for runs in ("x", "xx"):
        forked.call(record_tests, tmp_path, ranks=1)
        rows = json.loads((tmp_path / "tests.json").read_text())
        row = rows["test_some.py::test_right"]
        assert (row["error"], row["tolerance"]) == (0.5, 0.6), "the comparison nearest to failing"
        assert rows["test_some.py::test_wrong"]["outcome"] == "failed"
        assert "assert 1 == 2" in rows["test_some.py::test_wrong"]["failed"]
        assert (tmp_path / "runs").read_text() == runs


def command(out: Path, minutes: float, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--device", "cpu", "--minutes", str(minutes), "--out", str(out), *more]


def measured(monkeypatch: pytest.MonkeyPatch, out: Path, minutes: float, *more: str) -> None:
    """Call gpu.py with each of its processes a fork."""

    def run(step: gpu.Step, args: argparse.Namespace, until: float) -> None:
        part = ["-m", f"gpu_parts.{step.module}", "--out", args.out, "--device", args.device, "--until", str(until)]
        done = forked.run(*part, *(args.overrides if step.overrides else []), cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(gpu, "run_step", run)
    monkeypatch.setattr(sys, "argv", command(out, minutes, *more)[1:])
    gpu.main()


def children(pid: int) -> list[int]:
    """Processes that descend from `pid`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grandchild for child in found for grandchild in children(child)]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_training_goes_on_and_its_weights_can_be_taken(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    family: list[int] = []

    def checkpointed(pid: int) -> bool:
        family[:] = children(pid)
        return "checkpoint" in read_rows(out / "train.json")

    kill_when(checkpointed, *command(out, 30, *TRAIN, "--parts", "machine", "train")[1:])
    assert len(family) >= 2, "the training and its loaders"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 20)  # none outlives the command
    machine, first = read_rows(out / "machine.json"), read_rows(out / "train.json")
    assert machine["matmul float32"]["flop_per_s"] > 0
    for file in [*first["checkpoint"]["weights"], *first["checkpoint"]["average"]]:
        assert (out / file).is_file()

    measured(monkeypatch, out, 0.1, *TRAIN, "--parts", "train")
    assert len(capsys.readouterr().out.rpartition("minutes; everything")[2].splitlines()) < 40
    assert read_rows(out / "machine.json") == machine
    with pytest.raises(SystemExit, match="2"):
        measured(monkeypatch, out, 0.05, "--parts", "train")
    assert "was made with other settings (cpu scale.height=32" in capsys.readouterr().err
    second = read_rows(out / "train.json")
    assert second["total"]["steps"] > first["total"]["steps"]
    assert second["total"]["calls"] == 2
    assert second["held-out loss"]["shipped"] == first["held-out loss"]["shipped"]
    assert {path.name for path in out.glob("*.safetensors")} == {
        *second["checkpoint"]["weights"], *second["checkpoint"]["average"]
    }  # fmt: skip

    assets, reports = tmp_path / "assets", tmp_path / "reports"
    shutil.copytree(ASSETS, assets)
    unet = (assets / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"it was trained with scale.height=32 .*, the base is not"):
        take(out, reports=reports, assets=assets)
    machine["settings"]["overrides"] = []
    (out / "machine.json").write_text(json.dumps(machine))
    for after, taken in ((second["held-out loss"]["shipped"], False), (0.0, True)):
        second["held-out loss"]["after"]["loss"] = after
        (out / "train.json").write_text(json.dumps(second))
        take(out, reports=reports, assets=assets)
        assert ((assets / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != unet) == taken
    with pytest.raises(ValueError, match="it went on from other weights"):
        take(out, reports=reports, assets=assets)
    card = (assets / "README.md").read_text()
    assert re.search(r"\| \d{4}-\d\d-\d\d \| \S+ CPU \| [\d.]+ \| \d+ \| \d+ \| 0\.\d{4} \| 0\.0000 \|\n$", card)
    assert card.startswith((ASSETS / "README.md").read_text().rstrip("\n"))
    assert [path.suffix for path in reports.iterdir()] == [".md"]


@pytest.mark.long
@pytest.mark.slow
def test_a_short_run_on_a_cpu_measures_the_full_scale(tmp_path, monkeypatch):
    measured(monkeypatch, tmp_path, 3, *SMALL, "--parts", "machine", "full_scale")
    rows = read_rows(tmp_path / "full_scale.json")
    assert not [row["failed"] for row in rows.values() if "failed" in row]
    call, video = rows["denoiser call"], rows["phased video, whole"]
    # 3 steps for the first of two windows; of the second, 0.8 of 3 steps are inherited.
    assert video["calls"] == rows["phased video, extrapolated"]["calls"] == 3
    assert rows["denoiser call, 2 segments at once"]["tflop"] == pytest.approx(2 * call["tflop"], rel=0.01)
    assert call["floor_s"] == pytest.approx(
        call["tflop"] * 1e12 / read_rows(tmp_path / "machine.json")["matmul float32"]["flop_per_s"]
    )
    steps = [name for name in rows if name.startswith("training step")]
    assert len(steps) == 6
    assert rows["training step, literal, batch 2"]["tflop"] > rows["training step, motion LoRA, batch 2"]["tflop"]
    assert (tmp_path / "report.md").read_text().count("| training step") == 6
