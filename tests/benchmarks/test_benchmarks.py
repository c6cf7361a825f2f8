"""The benchmark of full scale runs on any machine, at the smallest size there is."""

import re

import ceilings
import full_scale
import pytest

SMALL = ["scale.num_frames=4", "scale.height=16", "scale.width=16", "scale.num_steps=5", "scale.batch_size=2"]


def numbers(report: str, row: str) -> list[float]:
    line = next(line for line in report.splitlines() if line.startswith(f"| {row} "))
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e[-+]\d+)?", line.removeprefix(f"| {row} "))]


@pytest.mark.long
@pytest.mark.slow
def test_full_scale_writes_its_report_without_a_gpu(base, tmp_path, monkeypatch):
    report = tmp_path / "report.md"
    words = ["--device", "cpu", "--frames", "8", "--rounds", "1", "--steps", "1", "--report", str(report)]
    monkeypatch.setattr("sys.argv", ["full_scale.py", *words, f"scale.base={base}", *SMALL])
    monkeypatch.setattr(ceilings, "LONG", 0.01)
    full_scale.main()
    text = report.read_text(encoding="utf-8")
    assert "On a GPU: not measured" in text
    first, second = numbers(text, "phase 1"), numbers(text, "phase 2")
    # 5 calls for the first of two segments, 1 of 5 for the other: gamma is 0.8.
    assert first[0] == pytest.approx(5 * second[0], rel=0.01)
    assert "segments one by one | out of memory" not in text
    for preset in ("motion LoRA", "temporal", "literal"):
        plain, batch, ours, batch_too, ratio, used = numbers(text.replace("not measured", ""), preset)
        assert batch == batch_too == 2
        assert ratio == pytest.approx(plain / ours, abs=0.02 * ratio)
        assert 0 < used < 1
