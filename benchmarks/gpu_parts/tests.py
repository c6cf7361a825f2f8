"""Part 2 of benchmarks/gpu.py: run the tests marked gpu, and record the error and tolerance of each."""

import time
from pathlib import Path
from typing import Any

import pytest

from gpu_parts.results import Results, arguments

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """A pytest plugin: it writes a row after each test, leaves out tests that passed earlier, and stops in time."""

    def __init__(self, results: Results) -> None:
        self.results, self.cut = results, False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = {name for name, row in self.results.rows.items() if row.get("outcome") == "passed"}
        done = [item for item in items if item.nodeid in passed]
        items[:] = [item for item in items if item.nodeid not in passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # also an error or a skip in the setup
            row: dict[str, Any] = {"outcome": report.outcome, "seconds": report.duration}
            row |= worst(report.user_properties)
            if report.failed:
                row["failed"] = reason(report)
            self.results.put(report.nodeid, **row)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.results.put(report.nodeid, outcome="failed", failed=reason(report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if self.results.left() >= 2:
            return None
        self.cut, item.session.shouldstop = True, "the part's time is up"
        return True  # it is not run


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason of a failure, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(report.longrepr).strip().splitlines() or ["no reason given"]
    return " ".join((crash.message if crash else lines[-1]).split())[:200]


def worst(properties: list[tuple[str, Any]]) -> dict[str, float]:
    """The comparison nearest to failing, of those that a test recorded as error and tolerance in turn."""
    errors, tolerances = ([value for name, value in properties if name == kind] for kind in ("error", "tolerance"))
    pairs = list(zip(errors, tolerances, strict=False))
    nearest = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-30), default=None)
    return {} if nearest is None else {"error": nearest[0], "tolerance": nearest[1]}


def main() -> None:
    args = arguments(__doc__)
    results = Results(args.out / "tests.json", args.until)
    results.rows.pop("cut", None)
    start = time.time()
    # test_gpu_fake.py only pretends to have a GPU.
    files = sorted(str(path) for path in (ROOT / "tests" / "gpu").glob("test_gpu_*.py") if path.stem != "test_gpu_fake")
    # On a CPU the tests compare half precision with float32.
    chosen = ["-m", "gpu"] if args.device == "cuda" else ["-k", "cpu", "-m", "not slow"]
    recorder = Recorder(results)
    options = ["-q", "--no-header", "--continue-on-collection-errors", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    status = pytest.main([*files, *chosen, *options], plugins=[recorder])
    if recorder.cut:
        results.put("cut", failed=f"the time was up after {time.time() - start:.0f} s: a second call goes on")
    elif status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        results.put("cut", failed=f"pytest ended with {pytest.ExitCode(status).name}")


if __name__ == "__main__":
    main()
