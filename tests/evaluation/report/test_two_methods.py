"""The report's verdicts on two synthetic methods whose true difference is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import loaded, run

from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.comparisons import compare
from motionanim.evaluation.scores.summary import fvd_entries
from motionanim.metrics.fvd import FVD, group_of

N, DIM, DRAWS, SHIFT = 64, 12, 100, 0.25
FVD_KEY = "fvd_i3d_ours_corrected"
# Videos have clips of 20 categories, dealt in turn, that differ far more than methods do.
CATEGORIES = 20


def by_hash(count: int) -> list[int]:
    return [group_of(f"{index:06}", 32) for index in range(count)]


def fvd_between(fake: np.ndarray, real: np.ndarray, groups: Sequence[int]) -> FVD:
    fvd = FVD(dim=real.shape[1], groups=32, ddof=1)
    for features, true in ((fake, False), (real, True)):
        fvd.update(torch.from_numpy(features), torch.tensor(groups), real=true)
    return fvd


def draw(root: Path, shift: float, seed: int) -> dict[str, str]:
    """Verdicts on b against a in one draw: b's features lie `shift` further off, its PSNR is 10 `shift` dB lower."""
    generator = np.random.default_rng(seed)
    category = 3 * generator.normal(size=(CATEGORIES, DIM))[np.arange(N) % CATEGORIES]
    real = category + generator.normal(size=(N, DIM))
    clip_psnr = 27 + 6 * generator.normal(size=N) + 8 * generator.exponential(size=N)  # skewed, as easy clips make it
    for name, off in (("a", 0.0), ("b", shift)):
        fake = 0.8 * real + 0.6 * generator.normal(size=(N, DIM)) + 0.5 + off
        entries = fvd_entries("fvd_i3d_ours", fvd_between(fake, real, by_hash(N)), "f1", n=N)
        psnr = clip_psnr - 10 * off + generator.normal(size=N) + 0.5 * generator.exponential(size=N)
        run(root / f"{shift}-{seed}", name, {"psnr": list(psnr)}, entries=entries)
    (block,), _ = loaded(root / f"{shift}-{seed}", against="a")
    b = block.methods[1].folder
    return {key: compare(block, column_of(key))[b].verdict for key in ("psnr", FVD_KEY)}


@pytest.mark.long
@pytest.mark.slow
def test_verdicts_are_right_where_methods_differ_and_absent_where_they_do_not(tmp_path: Path) -> None:
    differ = [draw(tmp_path, SHIFT, seed) for seed in range(DRAWS)]
    equal = [draw(tmp_path, 0.0, DRAWS + seed) for seed in range(DRAWS)]
    for key in ("psnr", FVD_KEY):
        right = sum(verdicts[key] == "worse" for verdicts in differ)
        silent = sum(verdicts[key] == "" for verdicts in equal)
        assert right >= 95, (key, right)
        assert silent >= 95, (key, silent)


def test_one_draw_is_decided_and_one_is_not(tmp_path: Path) -> None:
    assert draw(tmp_path, SHIFT, 0) == {"psnr": "worse", FVD_KEY: "worse"}
    assert draw(tmp_path, 0.0, 0) == {"psnr": "", FVD_KEY: ""}


def test_the_floor_of_categories_dealt_in_turn_is_that_of_clips_in_any_order() -> None:
    """Groups by place would compare even categories with odd ones, whose clips differ far more than clips of one do."""
    category = 3 * np.random.default_rng(0).normal(size=(CATEGORIES, DIM))
    real = category[np.arange(2000) % CATEGORIES] + np.random.default_rng(1).normal(size=(2000, DIM))
    floors = {}
    for name, groups in (
        ("hash", by_hash(2000)),
        ("place", [index % 32 for index in range(2000)]),
        ("chance", np.random.default_rng(2).integers(0, 32, 2000).tolist()),
    ):
        floors[name] = fvd_between(real, real, groups).compute()["floor"].item()
    assert floors["hash"] < 3 * floors["chance"]
    assert floors["place"] > 10 * floors["chance"]


def test_a_collapsed_method_does_not_win_because_there_are_few_clips(tmp_path: Path) -> None:
    """With n = 48 below D = 60, less varied videos have the smaller FVD although they are the worse ones."""
    generator = np.random.default_rng(0)
    real = generator.normal(size=(48, 60))
    means = {}
    for name, spread in (("a", 1.0), ("b", 0.85)):
        fake = spread * generator.normal(size=(48, 60))
        entries = fvd_entries("fvd_i3d_ours", fvd_between(fake, real, by_hash(48)), "f1", n=48)
        means[name] = entries["fvd_i3d_ours"]["mean"]
        run(tmp_path, name, {"psnr": [20.0] * 48}, entries=entries)
    assert means["b"] < means["a"], "the bias is that large"
    (block,), _ = loaded(tmp_path, against="a")
    (compared,) = compare(block, column_of("fvd_i3d_ours")).values()
    assert compared.difference.mean < 0
    assert compared.verdict == ""
