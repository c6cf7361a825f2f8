"""train.py when checkpoints are damaged or a run ends early: what is taken, kept and advised."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from motionanim.training.checkpoints import WholeFile, find_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
import train


def saved(run: Path, *, last: bytes | None) -> Path:
    """Two checkpoints, of steps 1 and 2, the last one damaged."""
    path = run / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        WholeFile().save_checkpoint({"global_step": step}, path)
    if last is not None:
        path.write_bytes(last)
    return path


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_stays(tmp_path: Path, content: bytes) -> None:
    last = saved(tmp_path, last=content)
    previous = last.with_name("previous.ckpt")
    for how in ("last", "auto"):
        assert find_checkpoint(how, tmp_path) == (previous, [last])
    WholeFile().save_checkpoint({"global_step": 3}, last)
    assert [torch.load(path)["global_step"] for path in (previous, last)] == [1, 3]
    for path in (previous, last):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt_path=auto: .*last\.ckpt, .*previous\.ckpt cannot be read: remove"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize(
    ("mode", "content", "wanted"),
    [
        (RunMode.RUN, None, "kept: {0}/last.ckpt (step 2), {0}/previous.ckpt (step 1); run=0 ckpt_path=last goes on"),
        (RunMode.RUN, b"", "kept: {0}/last.ckpt (damaged), {0}/previous.ckpt (step 1); run=0 ckpt_path=last goes on"),
        (RunMode.MULTIRUN, None, "the same command, with -m, with run=sweep ckpt_path=auto goes on"),
    ],
)
def test_a_run_that_ended_early_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: RunMode, content: bytes | None, wanted: str
) -> None:
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=mode))
    out = tmp_path / "sweep" / "0"
    saved(out, last=content)
    assert train.kept(out).endswith(wanted.format(out / "checkpoints"))
    assert train.kept(tmp_path) == "nothing that can be read was saved before"


def test_the_model_is_drawn_alike_whatever_the_data_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []

    def instantiate(node: str, **_: object) -> None:
        drawn.append(torch.rand(1).item())
        if node == "model":
            raise InterruptedError

    monkeypatch.setattr(train.hydra.utils, "instantiate", instantiate)
    cfg = OmegaConf.create({"seed": 0, "data": "data", "model": "model"})
    with pytest.raises(InterruptedError):
        train.train(cfg, tmp_path, None, first=True)
    assert drawn[0] == drawn[1]


def test_a_full_disk_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left") as raised:
        WholeFile().save_checkpoint({}, tmp_path / "last.ckpt")
    assert raised.value.filename == str(tmp_path / "last.ckpt")
