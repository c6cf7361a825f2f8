import math

import numpy as np
import pytest
import scipy.linalg
import torch

from motionanim.metrics.frechet import frechet_distance, jackknife, moments
from motionanim.metrics.fvd import FVD, group_of

GROUPS = 32
KEYS = ["value", "corrected", "low", "high", "half", "disjoint", "floor", "n", "n_real"]


def cloud(count, dim, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 3, dim, dtype=torch.float64)
    return shift + scale * spread * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def stats(features, ddof=1):
    return features.mean(0), torch.from_numpy(np.cov(features.numpy(), rowvar=False, ddof=ddof))


def between(first, second):
    return frechet_distance(*stats(first), *stats(second)).item()


def textbook(first, second):
    """With scipy's root of a general matrix, as most public scripts do."""
    (mean1, cov1), (mean2, cov2) = (tuple(x.numpy() for x in stats(features)) for features in (first, second))
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2) - 2 * np.trace(root).real)


def metric(dim=6, ddof=1, groups=GROUPS):
    return FVD(dim=dim, groups=groups, ddof=ddof)


def add(fvd, fake, real, positions=None):
    """Clips of both sides, whose groups are their positions modulo the number of groups."""
    for features, true in ((fake, False), (real, True)):
        places = torch.arange(len(features)) if positions is None else positions
        fvd.update(features, places % fvd.groups, real=true)
    return fvd


def filled(fake, real, positions=None, **options):
    return add(metric(dim=fake.shape[1], **options), fake, real, positions)


def same(first, second, rel=1e-9):
    assert list(first) == list(second) == [*KEYS, "left_out", "share"]
    torch.testing.assert_close(first["left_out"], second["left_out"], rtol=rel, atol=0, equal_nan=True)
    torch.testing.assert_close(first["share"], second["share"])
    for key in KEYS:
        assert first[key].item() == pytest.approx(second[key].item(), rel=rel, nan_ok=True), key


@pytest.mark.parametrize("count", [200, 24, 10, 2])
def test_the_distance_is_scipys_and_exact_below_full_rank(count):
    """The overlap tr (cov1 cov2)^(1/2) is also the sum of the singular values of one cloud times the other."""
    first, second = cloud(count, 24, seed=0), cloud(count, 24, seed=1, shift=0.3, scale=1.4)
    # The general root of a singular matrix is only exact to the root of the rounding.
    assert between(first, second) == pytest.approx(textbook(first, second), rel=1e-9 if count > 24 else 1e-5)
    (mean1, cov1), (mean2, cov2) = stats(first), stats(second)
    overlap = torch.linalg.svdvals((first - mean1) @ (second - mean2).T).sum() / (count - 1)
    exact = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap
    assert between(first, second) == pytest.approx(exact.item(), rel=1e-9)


@pytest.mark.parametrize("count", [250, 100, 20])
def test_a_cloud_is_at_no_distance_from_itself(count):
    features = cloud(count, 100, seed=2, shift=5.0)
    assert between(features, features) == pytest.approx(0, abs=1e-9 * features.var(0).sum().item())


@pytest.mark.parametrize(
    ("mean", "first", "second", "expected"),
    [((3.0, 4.0), 1, 4, 25 + 2), ((1.0, 1.0), 0, 0, 2), ((1.0, 1.0), 0, 1, 4)],
)
def test_gaussians_of_one_shape_have_a_closed_form(mean, first, second, expected):
    mean = torch.tensor(mean)
    found = frechet_distance(mean, first * torch.eye(2), torch.zeros(2), second * torch.eye(2))
    assert found.item() == pytest.approx(expected)
    assert found.dtype == torch.float64  # computed in double, from single


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_are_numpys(ddof):
    features = cloud(9, 5, seed=10, shift=20.0)
    mean, cov = moments(torch.tensor(9.0), features.sum(0), features.T @ features, ddof=ddof)
    torch.testing.assert_close((mean, cov), stats(features, ddof))
    with pytest.raises(ValueError, match="vectors.*at least"):
        moments(torch.tensor(float(ddof)), features.sum(0), features.T @ features, ddof=ddof)


def test_the_jackknife_of_a_mean_is_the_mean_with_its_standard_error():
    values = torch.randn(24, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    left_out = (values.sum() - values) / 23
    corrected, low, high = jackknife(values.mean(), left_out, torch.ones(24) / 24)
    half_width = 2.0687 * values.std() / math.sqrt(24)  # Student's t, 23 degrees of freedom
    assert corrected.item() == pytest.approx(values.mean().item())
    assert low.item() == pytest.approx((values.mean() - half_width).item(), rel=1e-4)
    assert high.item() == pytest.approx((values.mean() + half_width).item(), rel=1e-4)


def test_the_jackknife_takes_a_bias_in_one_over_n_off_exactly_for_groups_of_any_size():
    counts = torch.tensor([1.0, 2.0, 5.0, 3.0], dtype=torch.float64)
    n = counts.sum()
    assert [part.item() for part in jackknife(7 + 3 / n, 7 + 3 / (n - counts), counts / n)] == pytest.approx([7, 7, 7])


def draws(dim, count, repeats, same_distribution):
    """Pairs that are correlated as fake and real ones are, their results, and the true distance."""
    generator = torch.Generator().manual_seed(12)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    spread = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.25
    mean, mix = torch.zeros(dim, dtype=torch.float64), spread.diag()
    if not same_distribution:
        mean, mix = 0.4 * normal(dim), spread.diag() + 0.1 * normal(dim, dim)
    true = frechet_distance(mean, mix @ mix.T, torch.zeros(dim), spread.square().diag()).item()
    results = []
    for _ in range(repeats):
        real = normal(count, dim)
        fake = 0.6 * real + 0.8 * normal(count, dim)
        results.append(filled(mean + fake @ mix.T, real * spread, groups=16).compute())
    return {key: torch.stack([result[key] for result in results]) for key in KEYS}, true


@pytest.mark.slow
@pytest.mark.parametrize("same_distribution", [False, True], ids=["different", "equal"])
def test_the_corrected_value_is_unbiased_and_its_interval_covers_the_truth(same_distribution):
    results, true = draws(8, 40, 100, same_distribution)
    error = results["corrected"].std().item() / math.sqrt(100)
    assert results["corrected"].mean().item() == pytest.approx(true, abs=3.5 * error)
    assert results["value"].mean().item() > true + 5 * error
    covered = ((results["low"] <= true) & (true <= results["high"])).double().mean().item()
    # 0.88 is three standard deviations below 0.95. Where the truth is 0 the interval is rather too wide.
    assert covered >= 0.88


def test_below_as_many_clips_as_dimensions_the_bias_remains_so_there_is_no_interval():
    results, true = draws(16, 10, 20, same_distribution=False)
    assert true * 1.2 < results["corrected"].mean().item() < results["value"].mean().item()
    assert results["low"].isnan().all()
    assert results["high"].isnan().all()


def test_every_number_is_what_it_says():
    fake, real = cloud(70, 6, seed=15, shift=0.5), cloud(70, 6, seed=16)
    result = filled(fake, real).compute()
    # Positions below 70 modulo 32: groups 0 to 5 hold three clips, and even positions are even groups.
    group = torch.arange(70) % GROUPS
    left_out = torch.tensor([between(fake[group != g], real[group != g]) for g in range(GROUPS)], dtype=torch.float64)
    share = torch.bincount(group).double() / 70
    corrected, low, high = jackknife(torch.tensor(between(fake, real), dtype=torch.float64), left_out, share)
    expected = {
        "value": between(fake, real),
        "corrected": corrected.item(),
        "low": low.item(),
        "high": high.item(),
        "half": (between(fake[::2], real[::2]) + between(fake[1::2], real[1::2])) / 2,
        "disjoint": (between(fake[::2], real[1::2]) + between(fake[1::2], real[::2])) / 2,
        "floor": between(real[::2], real[1::2]),
        "n": 70,
        "n_real": 70,
    }
    assert {key: result[key].item() for key in KEYS} == pytest.approx(expected, rel=1e-8)
    torch.testing.assert_close(result["left_out"], left_out)
    torch.testing.assert_close(result["share"], share)
    assert all(value.dtype == torch.float64 for value in result.values())


def test_sets_of_different_size_need_no_pairs():
    fake, real = cloud(30, 6, seed=34, shift=0.5), cloud(45, 6, seed=35)
    result = filled(fake, real).compute()
    assert result["value"].item() == pytest.approx(between(fake, real))
    assert (result["n"].item(), result["n_real"].item()) == (30, 45)
    assert result["low"] < result["corrected"] < result["high"]


def test_the_group_of_a_clip_is_independent_of_its_place_and_category():
    """Categories dealt in turn: a group by place would hold even categories only, and a floor would see that."""
    names = [f"{index:06}" for index in range(4000)]
    groups = torch.tensor([group_of(name, GROUPS) for name in names])
    assert torch.bincount(groups, minlength=GROUPS).min() > 80  # 125 in the mean
    for category in range(20):
        even = (groups[category::20] % 2 == 0).double().mean().item()
        assert even == pytest.approx(0.5, abs=0.15), "five standard deviations"


def test_ddof_0_divides_by_n():
    fake, real = cloud(30, 6, seed=17, shift=0.5), cloud(30, 6, seed=18)
    expected = frechet_distance(*stats(fake, 0), *stats(real, 0)).item()
    assert filled(fake, real, ddof=0).compute()["value"].item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_streamed_in_any_order_merged_reset_and_cast_are_one(kind):
    fake, real = cloud(45, 6, seed=19, shift=0.5).to(kind), cloud(45, 6, seed=20).to(kind)
    whole = filled(fake.double(), real.double()).compute()
    order = torch.randperm(45, generator=torch.Generator().manual_seed(21))
    stream = filled(real, fake)
    stream.reset()
    for position in order.split(1):
        add(stream, fake[position], real[position], position)
        stream.to(kind)  # the sums stay in float64
    same(stream.compute(), whole)
    part, rest = order[:10], order[10:]
    merged = filled(fake[part], real[part], part)
    assert merged.compute()["value"] != whole["value"]  # which merging must forget
    merged.merge_state(filled(fake[rest], real[rest], rest))
    merged.merge_state(metric())
    same(merged.compute(), whole)


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (2, {"corrected", "low", "high", "half", "disjoint", "floor"}),
        (3, {"low", "high", "half", "disjoint", "floor"}),
        (4, {"low", "high"}),
        (7, {"low", "high"}),
        (8, set()),
    ],
)
def test_few_clips_leave_numbers_undefined_but_none_wrong(count, missing):
    result = filled(cloud(count, 6, seed=30), cloud(count, 6, seed=31)).compute()
    assert {key for key in KEYS if result[key].isnan()} == missing


def test_one_group_or_only_even_ones_leave_numbers_undefined():
    fake, real = cloud(20, 6, seed=32), cloud(20, 6, seed=33)
    one = filled(fake, real, torch.zeros(20, dtype=torch.int64)).compute()
    assert {key for key in KEYS if one[key].isnan()} == {"corrected", "low", "high", "half", "disjoint", "floor"}
    even = filled(fake, real, 2 * torch.arange(20)).compute()
    assert {key for key in KEYS if even[key].isnan()} == {"half", "disjoint", "floor"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_fewer_than_two_clips_and_bad_arguments_are_an_error():
    one = filled(torch.ones(1, 6), torch.ones(1, 6))
    for fvd, count in ((metric(), 0), (one, 1)):
        with pytest.raises(ValueError, match=f"FVD of {count} generated and {count} real clips.*2 of each"):
            fvd.compute()
    for bad in ({"dim": 0}, {"groups": 3}, {"groups": 0}, {"ddof": 2}):
        with pytest.raises(ValueError, match=r"(dim|groups|ddof)=\d"):
            FVD(**{"dim": 4, "groups": 32, "ddof": 1} | bad)


BAD = {
    "features too short": (torch.ones(2, 5), torch.tensor([0, 1])),
    "no batch": (torch.ones(6), torch.tensor([0])),
    "too few groups": (torch.ones(2, 6), torch.tensor([0])),
    "group too high": (torch.ones(2, 6), torch.tensor([0, 32])),
    "group too low": (torch.ones(2, 6), torch.tensor([-1, 0])),
    "group no integer": (torch.ones(2, 6), torch.tensor([0.0, 1.0])),
    "not a number": (torch.tensor([[1.0] * 6, [math.nan] * 6]), torch.tensor([0, 1])),
    "infinite": (torch.full((2, 6), math.inf), torch.tensor([0, 1])),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_features_are_an_error_and_not_added(bad):
    fvd = metric()
    with pytest.raises(ValueError, match=r"must be|not finite"):
        fvd.update(*BAD[bad], real=True)
    assert fvd.count.sum() == 0
