"""A user's mistake is one line and exit code 2, also when it happened in a loader's worker."""

import http.server
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset

from motionanim.cli.command import one_line_errors, wandb_offline, wandb_unreachable

CONF = Path(__file__).resolve().parents[2] / "conf"


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise ValueError("3 of 5 clips cannot be used: see rejected.csv")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_line_is_the_error_itself(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    @one_line_errors
    def main() -> None:
        next(iter(DataLoader(Broken(), num_workers=workers)))

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: 3 of 5 clips cannot be used: see rejected.csv\n"


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    @one_line_errors
    def main() -> None:
        raise AssertionError("impossible")

    with pytest.raises(AssertionError, match="impossible"):
        main()


def test_what_main_returns_is_returned() -> None:
    assert one_line_errors(lambda value: value + 1)(2) == 3


def fill_the_host() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def fill_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free.")


@pytest.mark.parametrize("fill", [fill_the_host, fill_the_gpu, lambda: bytearray(1 << 62)])
@pytest.mark.parametrize(
    ("config", "override", "settings"),
    [
        ("train", "experiment=motion_lora", ["scale.batch_size=4 (lower)", "scale.checkpoint_width=0 (1280",
                                             "trainer.accumulate_grad_batches=1 (higher by as much)"]),
        ("animate", "long_video=phased", ["size=photo ([height,width], smaller)",
                                           "sampling.dtype=float32 (bfloat16)", "long_video.batch_size=null (lower)"]),
        ("evaluate", "long_video=direct", ["sampling.dtype=float32 (bfloat16), scale.height="]),
        ("encode", "clips=3", ["scale.num_frames=16 (lower)"]),
        ("prepare", "engine.workers=2", ["engine.workers=2 (lower)"]),
    ],
)  # fmt: skip
def test_lack_of_memory_names_the_settings_to_change(
    fill, config: str, override: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(config, overrides=[override])

    @one_line_errors
    def main(cfg: DictConfig) -> None:
        fill()

    with pytest.raises(SystemExit) as stop:
        main(cfg)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory (")
    assert told.count("\n") == 1
    for setting in [*settings, "what was finished before is kept"]:
        assert setting in told


def test_another_runtime_error_keeps_its_traceback() -> None:
    @one_line_errors
    def main() -> None:
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        main()


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


@pytest.mark.parametrize(("answers", "reason"), [("nothing", "refused"), ("never", r"no answer in 1 s|timed out")])
def test_a_wandb_server_that_is_not_there_is_noticed_quickly(
    answers: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("motionanim.cli.command.WANDB_PATIENCE", 1)
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
