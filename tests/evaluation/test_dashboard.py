"""The W&B workspace as its own library would send it; nothing here asks a server."""

import json

import pytest

from motionanim.evaluation.dashboard import build_workspace, main


def sent(**changes) -> dict:
    model = build_workspace("someone", "motionanim", **changes)._to_model()
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def panels(workspace: dict) -> dict[str, list[dict]]:
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def axes(panel: dict) -> tuple[str, str]:
    return panel["config"]["xAxis"], panel["config"]["yAxis"]


def test_gamma_is_drawn_against_fvd_and_time() -> None:
    found = [axes(panel) for panel in panels(sent(features=["embedded", "i3d"]))["Gamma: quality and time (Fig. 8)"]]
    for y in ("fvd_embedded", "fvd_i3d", "seconds"):
        assert ("summary:axes/gamma", f"summary:{y}") in found
    assert ("summary:axes/sigma", "summary:fvd_embedded") in found
    assert ("summary:seconds", "summary:fvd_embedded") in found


def test_tables_strength_and_samples_have_their_panels() -> None:
    found = panels(sent())
    for name, wanted in {
        "Quality (Table 1)": {"fvd_embedded", "psnr", "ssim", "lpips", "clip_consistency"},
        "Long video (Table 2)": {"fvd_embedded", "seconds", "calls", "seam_ratio", "periodicity"},
        "Control": {"flow_epe", "camera_residual"},
    }.items():
        assert wanted <= {key for panel in found[name] for key in panel["config"]["metrics"]}
    strength = [axes(panel) for panel in found["Strength and omega (Fig. 7)"]]
    assert ("summary:axes/strength", "summary:realised_strength") in strength
    assert ("summary:axes/omega", "summary:fvd_embedded") in strength
    samples = found["Samples side by side"][0]["config"]
    assert samples["mediaKeys"] == ["samples"]
    assert samples["mode"] == "grid"
    assert '"val": "clips"' in json.dumps(found["Clips and settings"])


def test_runs_are_grouped_and_each_stays_a_point() -> None:
    runs = sent()["spec"]["section"]["runSets"][0]
    assert [key["name"] for key in runs["grouping"]] == ["group", "displayName"]
    assert runs["filters"]["filters"] == []
    assert {"summary:fvd_embedded", "summary:axes/gamma"} <= runs["runFeed"]["columnPinned"].keys()
    assert sent()["spec"]["section"]["settings"]["maxRuns"] >= 50


def test_a_group_filters_and_names_the_workspace() -> None:
    workspace = sent(group="table1")
    assert workspace["displayName"] == "Evaluation: table1"
    (only,) = workspace["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "table1")


def test_empty_names_are_refused() -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        build_workspace("someone", "motionanim", features=[])


def test_without_a_key_the_command_points_to_the_page(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there, if it were asked
    assert main(["--entity", "someone", "--project", "motionanim"]) == 2
    error = capsys.readouterr().err
    assert "WANDB_API_KEY" in error
    assert "report.html" in error
    assert error.count("\n") == 1
