"""The code that `compile_unet` makes outlives the process: a later run does not compile again."""

import json
import os
import tempfile
from pathlib import Path

import forked
import pytest

from motionanim.models.svd.denoiser import Denoiser

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# A layer of a UNet stands for all of it, which takes most of a minute. Both processes share the imports.
SCRIPT = """
import json, os, torch, torch._inductor.compile_fx
from diffusers import UNetSpatioTemporalConditionModel
from torch._dynamo.utils import counters
from conftest import MOTION, UNET
from motionanim.models.svd.denoiser import Denoiser

for _ in range(2):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    torch.manual_seed(0)
    denoiser = Denoiser(UNetSpatioTemporalConditionModel(**UNET), downscale=2, scaling=1.0, motion=MOTION).eval()
    denoiser.unet = denoiser.unet.time_embedding.linear_1
    denoiser.compile_unet("default")
    with torch.no_grad():
        out = denoiser.unet(torch.ones(1, UNET["block_out_channels"][0]))
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
    print(json.dumps(found | {"sum": out.double().sum().item()}))
    break
"""


def test_the_folder_of_compiled_code(denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser.unet, "compile", lambda **_: None)

    def place(before: str | None, home: Path) -> str | None:
        """The folder, from the environment as it was before."""
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv(VARIABLE, raising=False)
        if before is not None:
            monkeypatch.setenv(VARIABLE, before)
        denoiser.compile_unet("default")
        return os.environ.get(VARIABLE)

    kept = str(tmp_path / ".cache/motionanim/compiled")
    default = str(Path(tempfile.gettempdir(), "torchinductor_me"))
    assert place(None, tmp_path) == place(default, tmp_path) == kept
    own = str(tmp_path / "torchinductor_mine")
    assert place(own, tmp_path) == own
    (tmp_path / "file").touch()
    assert place(default, tmp_path / "file") == default  # no folder can be made there


@pytest.mark.long
@pytest.mark.slow
def test_a_second_process_takes_the_compiled_code_of_the_first(tmp_path: Path) -> None:
    script = tmp_path / "compiles.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    done = forked.run(script, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines()[-2:])
    assert first["miss"] > 0
    assert first["hit"] == 0
    assert second == {"hit": first["miss"], "miss": 0, "bypass": 0, "sum": first["sum"]}
    assert any((tmp_path / ".cache/motionanim/compiled").iterdir())
