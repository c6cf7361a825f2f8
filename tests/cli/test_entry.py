"""Errors of a command become one line and exit code 2; faults of the code keep their traceback; W&B's server."""

import gc
import http.server
import re
import socket
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from configs import composed
from torch.utils.data import DataLoader, Dataset

from motionanim.cli.command import one_line, one_line_errors, wandb_offline, wandb_unreachable
from motionanim.cli.memory import is_out_of_memory, memory_advice, phase


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise ValueError("3 of 5 clips cannot be used: see rejected.csv")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_line_is_the_error_itself(workers, capsys, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # waits so long for the loader's end
    with pytest.raises(SystemExit, match="2"):
        one_line_errors(lambda: next(iter(DataLoader(Broken(), num_workers=workers))))()
    assert capsys.readouterr().err == "error: 3 of 5 clips cannot be used: see rejected.csv\n"
    gc.collect()  # ends the loader


@pytest.mark.parametrize("fault", [AssertionError, RuntimeError], ids=str)
def test_a_fault_of_the_code_keeps_its_traceback(fault: type[Exception]) -> None:
    with pytest.raises(fault, match="impossible"):
        one_line_errors(Mock(side_effect=fault("impossible")))()


@pytest.mark.parametrize(
    "use", ["float(value)", "int(value)", "value < 1", "value.real", "[][:value]", "exec('assert 0')"]
)
def test_an_error_of_pythons_own_names_the_setting_of_a_wrong_type(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motionanim.cli.command.wrong_setting", lambda: "steps=ten: must be a number")
    with pytest.raises(Exception) as raised:  # noqa: PT011  any of Python's own
        eval(use, {"value": "ten"})
    assert one_line(raised.value, None) == "steps=ten: must be a number"


def test_what_main_returns_is_returned() -> None:
    assert one_line_errors(lambda value: value + 1)(2) == 3


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free.")


@pytest.mark.slow
def test_lack_of_memory_names_the_settings_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = composed("experiment=motion_lora")

    def in_phases(_: object) -> None:
        with phase("training step"), phase("encoding"):  # the inner one counts
            raise OUT_OF_MEMORY

    for fill, where in (
        (lambda _: torch.empty(1 << 60, dtype=torch.uint8), None), (lambda _: bytearray(1 << 62), None),
        (Mock(side_effect=OUT_OF_MEMORY), None), (in_phases, "encoding"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            one_line_errors(fill)(cfg)
        told, place = capsys.readouterr().err, f" in {where}" if where else ""
        assert re.fullmatch(rf"error: out of memory{place} \(.*: change .*; what was finished before is kept\n", told)
        assert memory_advice(cfg, where) in told
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize(
    ("config", "override", "where", "advice"),
    [
        ("animate", "vram='24'", "decoding", "vram=24 (a preset for the GPU: 16, 24, 48 or 80 (GB)), "
         "sampling.decode_chunk=14 (lower, such as 8 frames), sampling.decode_tile=640 (512: in tiles)"),
        ("animate", "long_video=phased", "denoising", "vram=none (a preset for the GPU: 16, 24, 48 or 80 (GB)), "
         "sampling.dtype=float32 (bfloat16), sampling.offload=null"),
        ("train", "experiment=motion_lora", "training step", "scale.checkpoint_width=0 (1280"),
        ("train", "experiment=motion_lora", "encoding", "scale.batch_size=4 (lower)"),
        ("train", "experiment=motion_lora", None, "scale.checkpoint_width=0 (1280: all blocks are computed twice), "
         "scale.batch_size=4 (lower), trainer.accumulate_grad_batches=1 (higher by as much), scale.num_workers=1"),
        ("animate", "long_video=phased", None, "size=photo ([height,width], smaller), sampling.dtype=float32 "
         "(bfloat16), long_video.batch_size=null (lower)"),
        ("evaluate", "long_video=direct", None, "sampling.dtype=float32 (bfloat16), scale.height="),
        ("encode", "clips=3", None, "scale.num_frames=16 (lower)"),
        ("prepare", "engine.workers=2", None, "engine.workers=2 (lower)"),
    ],
)  # fmt: skip
def test_each_command_and_phase_has_its_advice(config: str, override: str, where: str | None, advice: str) -> None:
    assert advice in memory_advice(composed(override, config=config), where)


def test_wandb_is_offline_unless_there_is_a_key_for_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_offline()
    (tmp_path / "_netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert not wandb_offline()
    (tmp_path / ".netrc").write_text("machine github.com login user password secret\n")
    assert wandb_offline(), "a file with another host's key only"
    monkeypatch.setenv("WANDB_BASE_URL", "https://github.com")
    assert not wandb_offline()
    (tmp_path / ".netrc").write_text("not a netrc file\n")
    assert wandb_offline()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert not wandb_offline()


@pytest.mark.parametrize(("answers", "reason"), [("nothing", "refused"), ("never", r"no answer in 0.3 s|timed out")])
def test_a_wandb_server_that_is_not_there_is_noticed(answers, reason, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("motionanim.cli.command.WANDB_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:  # its backlog takes connections, and nobody reads them
        port = server.getsockname()[1] if answers == "never" else 9
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        assert re.search(reason, wandb_unreachable.__wrapped__())
    assert time.monotonic() - began < 3
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_unreachable.__wrapped__() is None, "nobody asked for it"


def test_a_wandb_server_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:  # 501 to everything
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert wandb_unreachable.__wrapped__() is None
