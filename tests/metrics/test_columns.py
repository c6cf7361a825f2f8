"""The columns that metrics declare, as reports and the dashboard ask for them."""

from pathlib import Path

import pytest

from motionanim import metrics
from motionanim.evaluation.report.columns import column_of, known_columns, place
from motionanim.metrics.fvd import fvd_key, is_fvd


@pytest.mark.parametrize(
    ("key", "header", "direction", "group", "value", "text"),
    [
        ("psnr", "PSNR (dB) ↑", "higher", "quality", 24.126, "24.13"),
        ("psnr_with_frame0", "PSNR (dB) ↑", "higher", "frame0", -0.001, "0.00"),
        ("fvd_i3d_ours", "FVD i3d ours ↓", "lower", "quality", 310.26, "310.3"),
        ("fvd_i3d_ours_corrected", "FVD i3d ours, bias removed ↓", "lower", "quality", -0.31, "-0.3100"),
        ("fvd_i3d_ours_disjoint", "FVD i3d ours, half: other real clips ↓", "lower", "frechet", 0.012345, "0.01235"),
        ("fvd_embedded_floor", "FVD embedded, half: real against real", None, "frechet", 31.416, "31.42"),
        ("fvd_jedi", "JEDi ↓", "lower", "quality", 2.5, "2.500"),
        ("fvd_fvmd_floor", "FVMD, half: real against real", None, "frechet", 2.5, "2.500"),
        ("fid_inception", "FID inception ↓", "lower", "quality", 31.416, "31.42"),
        ("fid_inception_disjoint", "FID inception, half: other real clips ↓", "lower", "frechet", 31.416, "31.42"),
        ("vbench/i2v_subject", "VBench I2V subject ↑", "higher", "vbench", 0.5, "0.5000"),
        ("vbench/dynamic_degree", "VBench dynamic degree → real", "real", "vbench", 0.5, "0.5000"),
        ("vbench/scene", "VBench scene", None, "vbench", 0.5, "0.5000"),
        ("seam_ratio", "Seam ratio → real", "real", "long", 1.234, "1.23"),
        ("something_new", "something_new", None, "other", 0.5, "0.5000"),
    ],
)
def test_a_key_has_a_header_direction_table_and_digits(key, header, direction, group, value, text) -> None:
    found = column_of(key)
    assert (found.key, found.header, found.direction, found.group) == (key, header, direction, group)
    assert found.print(value) == text


def test_keys_are_ordered_by_table_fvd_first_and_losses_put_the_best_first() -> None:
    keys = ["zzz", "seam_ratio", "psnr", "fvd_embedded", "flow_epe", "ssim"]
    assert sorted(keys, key=place) == ["fvd_embedded", "psnr", "ssim", "flow_epe", "seam_ratio", "zzz"]
    assert (fvd_key("i3d_ours"), fvd_key("fid_inception")) == ("fvd_i3d_ours", "fid_inception")
    assert is_fvd("fvd_i3d_ours")
    assert is_fvd("fid_inception")
    assert not is_fvd("fvd_i3d_ours_corrected")
    assert not is_fvd("fid_inception_corrected")
    assert sorted([20.0, 24.0], key=column_of("psnr").loss) == [24.0, 20.0]
    assert sorted([0.3, 0.1], key=column_of("lpips").loss) == [0.1, 0.3]
    gain = column_of("speed_gain")
    assert sorted([0.2, 0.9, 1.0], key=lambda value: gain.loss(value, 0.87)) == [0.9, 1.0, 0.2], (
        "the true clips have 0.87"
    )
    with pytest.raises(ValueError, match="score of the true clips"):
        gain.loss(0.9)
    with pytest.raises(ValueError, match="no end of it"):
        column_of("periodicity").loss(1.0)


def test_a_metric_in_a_new_file_of_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glow.py").write_text(
        "from motionanim.metrics.base import ClipMetric, Column\n\n\n"
        "class Glow(ClipMetric):\n    columns = (Column('glow', 'Glow', 1, 'lower', 'quality', 'lx'),)\n"
    )
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    known_columns.cache_clear()
    assert column_of("glow").header == "Glow (lx) ↓"
    monkeypatch.undo()
    known_columns.cache_clear()
    assert column_of("glow").group == "other"
