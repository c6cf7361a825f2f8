"""The W&B workspace as W&B's own library would send it, without a server."""

import json

import pytest

from motionanim.evaluation.dashboard import build_workspace, main


def sent(**changes) -> dict:
    model = build_workspace("someone", "motionanim", **changes)._to_model()
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def panels(workspace: dict) -> dict[str, list[dict]]:
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def axes(section: list[dict]) -> set[tuple[str, str]]:
    return {(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in section}


def test_sections_have_their_panels_and_metrics_theirs() -> None:
    found = panels(sent(features=["embedded", "i3d"]))
    for name, wanted in {
        "Quality (Table 1)": {"fvd_embedded", "fvd_i3d", "psnr", "ssim", "lpips", "clip_consistency"},
        "Long video (Table 2)": {"fvd_embedded", "seconds", "calls", "seam_ratio", "periodicity"},
        "Control": {"flow_epe", "camera_residual"},
    }.items():
        keys = {key for panel in found[name] for key in panel["config"]["metrics"]}
        assert wanted <= keys
        assert "requested_strength" not in keys, "it has no better end"
    gamma = axes(found["Gamma: quality and time (Fig. 8)"])
    assert gamma >= {("summary:axes/gamma", f"summary:{y}") for y in ("fvd_embedded", "fvd_i3d", "seconds")}
    assert gamma >= {("summary:axes/sigma", "summary:fvd_embedded"), ("summary:seconds", "summary:fvd_embedded")}
    assert axes(found["Strength and omega (Fig. 7)"]) >= {
        ("summary:axes/strength", "summary:realised_strength"), ("summary:axes/omega", "summary:fvd_embedded"),
    }  # fmt: skip
    assert found["Samples side by side"][0]["config"]["mediaKeys"] == ["samples"]
    assert '"val": "clips"' in json.dumps(found["Clips and settings"])


def test_runs_are_grouped_and_each_stays_a_point() -> None:
    runs = sent()["spec"]["section"]["runSets"][0]
    assert [key["name"] for key in runs["grouping"]] == ["group", "displayName"]
    assert runs["filters"]["filters"] == []
    assert {"summary:fvd_embedded", "summary:axes/gamma"} <= runs["runFeed"]["columnPinned"].keys()


def test_a_group_filters_and_names_the_workspace() -> None:
    workspace = sent(group="table1")
    assert workspace["displayName"] == "Evaluation: table1"
    (only,) = workspace["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "table1")
    with pytest.raises(ValueError, match="none may be empty"):
        build_workspace("someone", "motionanim", features=[])


@pytest.mark.slow
def test_without_a_key_the_command_points_to_the_page(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    assert main(["--entity", "someone", "--project", "motionanim"]) == 2
    error = capsys.readouterr().err
    assert "WANDB_API_KEY" in error
    assert "report.html" in error
    assert error.count("\n") == 1
