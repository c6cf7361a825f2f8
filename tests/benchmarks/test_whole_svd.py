"""The script of the full size at tiny size: the stages, what they say of each other, and its report."""

import json
from pathlib import Path

import pytest
import whole_svd
import yaml
from configs import _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from hydra.core.global_hydra import GlobalHydra
from small_svd import small_svd

SMALL = ["scale.height=64", "scale.width=64", "scale.motion_channels=8", "sampling.dtype=float32"]


@pytest.mark.long
@pytest.mark.slow
def test_the_stages_use_what_the_ones_before_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config, report = tmp_path / "svd", tmp_path / "small.yaml", tmp_path / "report.md"
    config.write_text(yaml.safe_dump(small_svd()))
    folder.mkdir()
    run = whole_svd.Run(folder, config, SMALL)

    def told(stage: str) -> dict:
        GlobalHydra.instance().clear()
        return whole_svd.INSIDE[stage](run)  # in this process, because each process imports for seconds

    assert "M" in told("make")["parameters of the unet"]
    told("shard")
    assert len(list((folder / "sharded" / "unet").glob("*.fp16-0*.safetensors"))) > 1
    assert "of type F16; names and shapes of another network" in told("names")["unet, sharded"]
    whole = told("load whole")
    assert told("load sharded") == whole | {"largest difference to the whole files": 0}
    given = ["--folder", str(folder), "--config", str(config), "--report", str(report), "--stages", "train"]
    monkeypatch.setattr("sys.argv", ["whole_svd.py", *given, *SMALL])
    whole_svd.main()
    done = json.loads((folder / "results.json").read_text())
    assert 0.1 < done["train"]["cost"]["private"] < done["train"]["cost"]["peak"] < 4
    assert told("export") == {"the LoRA of the training and that of its checkpoint": "equal"}
    assert told("load with LoRA")["largest difference to the base"] > 1e-3, "two steps changed it"
    assert report.read_text().count("\n| train | ") == 1


def test_a_failing_stage_is_told_and_the_ones_before_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = {"make": {"cost": {}, "facts": {}}}
    (tmp_path / "results.json").write_text(json.dumps(done))
    monkeypatch.setattr("sys.argv", ["whole_svd.py", "--folder", str(tmp_path), "--stages", "check-base whole"])
    monkeypatch.setattr(whole_svd, "measured", lambda command, log: (log.write_text("killed") and -9, {}))
    with pytest.raises(RuntimeError, match="check-base whole ended with exit code -9:\nkilled"):
        whole_svd.main()
    assert json.loads((tmp_path / "results.json").read_text()) == done
