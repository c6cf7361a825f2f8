"""One bar over a job of several stages, and the calls that the long-video methods announce to it."""

import io
from unittest.mock import Mock

import pytest
from long_video_runs import METHODS, run

from motionanim.cli import progress
from motionanim.cli.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list of one: the time of the clock in seconds."""
    time = [100.0]
    monkeypatch.setattr(progress, "now", lambda: time[0])
    monkeypatch.setattr(progress, "DELAY", 0.0)
    return time


def job(bar: Progress, clock: list[float], *stages: tuple[str, int, float, float]) -> list[tuple[float, float]]:
    """Time spent and time left after each report. A stage: name, units, seconds before the first, seconds of each."""
    told = []
    for stage, units, before, each in stages:
        clock[0] += before
        for _ in range(units):
            clock[0] += each
            bar.done(stage)
            told.append((clock[0] - 100.0, bar.left))
    return told


def test_the_time_left_is_right_once_each_stage_was_measured(clock: list[float]) -> None:
    with Progress() as bar:
        bar.expect("frames", 20, seconds=1.0)
        bar.expect("denoising", 10)
        told = job(bar, clock, ("denoising", 10, 5.0, 3.0), ("frames", 20, 4.0, 0.5))
    total = told[-1][0]
    assert total == 5 + 30 + 4 + 10
    assert told[1][1] == 8 * 3 + 20 * 1.0, "the guess for frames, the second call's time for calls"
    assert told[11][1] == 18 * 0.5
    assert told[-1][1] == 0
    for spent, left in told[2:]:  # the third report is after the first fifth
        assert (total - spent) / 2 <= left <= 2 * (total - spent), "right within a factor of 2"


def test_an_unknown_stage_has_no_time_until_its_first_unit(clock: list[float]) -> None:
    with Progress() as bar:
        bar.expect("predicting", 2, seconds=1.0)
        bar.expect("denoising", 4)
        assert [left for _, left in job(bar, clock, ("predicting", 2, 0, 1))] == [None, None]
        assert job(bar, clock, ("denoising", 1, 0, 7))[-1][1] == 21


def test_a_sweep_expects_every_stage_once_for_each_video(clock: list[float]) -> None:
    with Progress(runs=3) as bar:
        for _ in range(3):
            bar.expect("denoising", 2, seconds=2.0)
        assert bar.left == 12
        assert job(bar, clock, ("denoising", 6, 0, 2))[-1] == (12, 0)


def test_one_line_says_stage_share_and_time_left(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("sys.stderr", told)
    monkeypatch.setattr(progress, "EVERY", (0.0, 0.0))
    with Progress() as bar:
        bar.expect("denoising", 4, seconds=30.0)
        bar.expect("frames", 2, seconds=15.0)
        job(bar, clock, ("denoising", 4, 0, 30), ("frames", 1, 0, 15))
        lines = told.getvalue().split("\r")
    assert any(line.startswith("denoising:  60%") and line.endswith("01:00 left") for line in map(str.rstrip, lines))
    assert any(line.startswith("frames:  90%") and line.endswith("00:15 left") for line in map(str.rstrip, lines))


def test_in_a_log_there_are_few_lines_and_without_progress_none(clock, capfd):
    for shown in (True, False):
        with Progress(shown=shown) as bar:
            bar.expect("frames", 500, seconds=1.0)
            job(bar, clock, ("frames", 500, 0, 1))
        assert capfd.readouterr().err.count("%|") == shown


@pytest.mark.parametrize("shown", [True, False])
def test_a_watch_is_told_of_each_report_and_may_stop_the_job(clock: list[float], shown: bool) -> None:
    told = []
    with Progress(shown=shown, watch=lambda *each: told.append(each)) as bar:
        bar.expect("denoising", 2)
        bar.expect("frames", 4, seconds=1.0)
        job(bar, clock, ("denoising", 2, 0, 3), ("frames", 4, 0, 1))
    assert told == [
        ("denoising", 0.3, 7.0), ("frames", 0.6, 4.0),
        ("frames", 0.7, 3.0), ("frames", 0.8, 2.0), ("frames", 0.9, 1.0), ("frames", 1.0, 0.0),
    ]  # fmt: skip
    stop = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), Progress(shown=shown, watch=stop) as bar:
        bar.done("frames")


OPTIONS = ({}, {"warm_start": True}, {"sigma": None, "gamma": 1.0}, {"shared_noise": "image"}, {"batch_size": 2})
CASES = [
    (name, options)
    for name, method in METHODS.items()
    for options in OPTIONS
    if options.keys() <= getattr(method, "keywords", {}).keys()
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_a_method_announces_the_calls_that_it_takes(method, options, monkeypatch):
    expected = []
    monkeypatch.setattr(Progress, "expect", lambda self, stage, units, seconds=None: expected.append((stage, units)))
    with Progress(shown=False) as bar:
        _, record = run(method, progress=bar, options=options)
    assert expected == [("denoising", pytest.approx(record.calls))]
    assert record.calls > 0
