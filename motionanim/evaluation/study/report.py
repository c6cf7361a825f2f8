"""Writes the results of a study: a report in Markdown, CSV files and a plot."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from motionanim.evaluation.study.make import QUESTIONS
from motionanim.evaluation.study.tally import Estimate, agreement, shares, strengths, win_rates
from motionanim.evaluation.study.votes import TIE, Sheet, Vote, read_key, read_sheets
from motionanim.files import atomic_path, check_own

_METHOD = """
A share is of the votes that showed the method; a tie gives each video shown the same part of the vote. Intervals are
95 % and hold for other participants and other clips: Wilson's, with a variance clustered by participants and by clips,
and Student's t. Strengths are Bradley-Terry's (for more than two videos, Luce's) on a logarithmic scale of mean 0: a
method d stronger than another is chosen e^d times as often. Alpha is Krippendorff's. A dash is a number that these
votes do not give.
"""

FILES = ("report.md", "shares.csv", "pairwise.csv", "votes.csv", "shares.png")


class Result(NamedTuple):
    """The numbers of one question."""

    votes: list[Vote]
    shares: dict[str, Estimate]
    rates: dict[tuple[str, str], Estimate]
    strengths: dict[str, Estimate]
    reason: str  # why there are no strengths; "" if there are
    alpha: float


def count_study(key_file: Path, files: Sequence[Path], out: Path, *, exclude_failed: bool) -> list[str]:
    """Count the votes and write report.md, shares.csv, pairwise.csv, votes.csv and shares.png to `out`.

    Args:
        key_file: key.json of the study.
        files: The participants' files.
        out: Folder of the results.
        exclude_failed: True leaves out participants who failed the attention checks; False counts and names them.

    Returns:
        Lines that tell what was counted and left out. The report begins with them.

    Raises:
        ValueError: If `out` holds files of these names that no count left, a file does not fit the study, a participant
            comes twice, or no vote is left.
    """
    check_own(out, FILES, FILES, option="--out ")
    key = read_key(key_file)
    sheets = read_sheets(list(files), key)
    left_out = [sheet for sheet in sheets if exclude_failed and sheet.failed]
    counted = [sheet for sheet in sheets if sheet not in left_out]
    votes = [vote for sheet in counted for vote in sheet.votes]
    if not votes:
        raise ValueError(f"no vote to count: {len(sheets)} files, {len(left_out)} left out for failed attention checks")
    notes = _notes(key, sheets, counted, left_out, votes)
    results = {name: _result([v for v in votes if v.question == name], key["methods"]) for name in key["questions"]}
    _write_csv(out, key["methods"], results, votes)
    _plot(out / "shares.png", results, 1 / len(key["methods"]) if key["choose_best"] else 0.5)
    with atomic_path(out / "report.md") as partial:
        partial.write_text(_markdown(key, notes, results), encoding="utf-8")
    return notes


def _result(votes: list[Vote], methods: list[str]) -> Result:
    reason, fitted = "", {}
    try:
        fitted = strengths(votes, methods)
    except ValueError as error:
        reason = str(error)
    return Result(votes, shares(votes, methods), win_rates(votes, methods), fitted, reason, agreement(votes))


def _notes(
    key: dict[str, Any], sheets: list[Sheet], counted: list[Sheet], left_out: list[Sheet], votes: list[Vote]
) -> list[str]:
    clips, all_clips = len({vote.clip for vote in votes}), len({trial["clip"] for trial in key["trials"].values()})
    kind = "best of all shown" if key["choose_best"] else "one of two"
    people, trials = len({vote.participant for vote in votes}), len({vote.trial for vote in votes})
    notes = [
        f"votes: {len(votes)} ({kind}); participants: {people}; clips: {clips} of {all_clips}; "
        f"comparisons: {trials} of {len(key['trials'])}"
    ]
    for sheet in counted:
        if sheet.answered < sheet.asked:
            notes.append(f"{sheet.file.name}: half-filled, {sheet.answered} of {sheet.asked} answers, all counted")
        if sheet.failed:
            notes.append(f"{sheet.file.name}: failed the attention checks; counted, --exclude-failed leaves it out")
    for sheet in left_out:
        notes.append(f"{sheet.file.name}: failed the attention checks; {len(sheet.votes)} votes left out")
    unchecked = sum(sheet.failed is None for sheet in sheets)
    if key["checks"] and unchecked:
        notes.append(f"participants who answered no attention check: {unchecked}")
    return notes


def _markdown(key: dict[str, Any], notes: list[str], results: dict[str, Result]) -> str:
    lines = [f"# User study {key['study']}", "", *(f"- {note}" for note in notes)]
    for name, result in results.items():
        title, text = QUESTIONS[name]
        lines += ["", f"## {title}", "", f"{text} Votes: {len(result.votes)}; alpha: {_plain(result.alpha)}.", ""]
        lines += ["| method | share % | 95 % | votes | strength | 95 % |", "|---|---|---|---|---|---|"]
        for method in _by_share(result):
            part = result.shares[method]
            strength = result.strengths.get(method, Estimate(math.nan, math.nan, math.nan, 0))
            cells = [method, _percent(part.value), _range(part, _percent), str(part.votes)]
            lines.append("| " + " | ".join([*cells, _plain(strength.value), _range(strength, _plain)]) + " |")
        if result.reason:
            lines += ["", result.reason]
        if result.rates:
            order = _by_share(result)
            lines += ["", "How often (%) the row won against the column:", ""]
            lines += ["| | " + " | ".join(order) + " |", "|---" * (len(order) + 1) + "|"]
            for method in order:
                row = [result.rates.get((method, against)) for against in order]
                lines.append(f"| {method} | " + " | ".join(_percent(r.value) if r else "–" for r in row) + " |")
    return "\n".join([*lines, "", "![shares](shares.png)", _METHOD])


def _write_csv(out: Path, methods: list[str], results: dict[str, Result], votes: list[Vote]) -> None:
    numbers = ["share", "low", "high", "votes"]
    table: list[list[Any]] = [
        ["question", "method", *numbers, "wins", "ties", *(f"strength{s}" for s in ("", "_low", "_high"))]
    ]
    pairs: list[list[Any]] = [["question", "method", "against", *numbers]]
    for name, result in results.items():
        for method in methods:
            part = result.shares[method]
            wins = sum(vote.chosen == method for vote in result.votes)
            ties = sum(vote.chosen is None and method in vote.shown for vote in result.votes)
            strength = result.strengths.get(method, (math.nan,) * 3)[:3]
            table.append([name, method, *map(_cell, part[:3]), part.votes, wins, ties, *map(_cell, strength)])
        for (method, against), rate in result.rates.items():
            pairs.append([name, method, against, *map(_cell, rate[:3]), rate.votes])
    given: list[list[Any]] = [["participant", "clip", "trial", "question", "shown", "chosen"]]
    given += [[v.participant, v.clip, v.trial, v.question, ";".join(v.shown), v.chosen or TIE] for v in votes]
    for file, rows in (("shares.csv", table), ("pairwise.csv", pairs), ("votes.csv", given)):
        with atomic_path(out / file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)


def _plot(path: Path, results: dict[str, Result], chance: float) -> None:
    """Shares with their intervals: a panel for each question, the same order of methods; a dashed line at chance."""
    order = _by_share(list(results.values())[-1])[::-1]
    figure = Figure(figsize=(4 * len(results), 1.2 + 0.35 * len(order)), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), sharey=True, squeeze=False)[0], results.items()):
        for place, method in enumerate(order):
            part = result.shares[method]
            axes.plot([100 * part.low, 100 * part.high], [place, place], color="0.5", linewidth=2)
            axes.plot(100 * part.value, place, "o", color="C0")
        axes.axvline(100 * chance, color="0.6", linestyle="--", linewidth=1)
        axes.set(title=QUESTIONS[name][0], xlabel="share of votes, %", xlim=(0, 100), yticks=range(len(order)))
        axes.set_yticklabels(order)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120)


def _by_share(result: Result) -> list[str]:
    """The methods, the most chosen first, those without votes last."""
    values = {method: part.value for method, part in result.shares.items()}
    return sorted(values, key=lambda method: (math.isnan(values[method]), -values[method], method))


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _range(estimate: Estimate, text: Any) -> str:
    return "–" if math.isnan(estimate.low) else f"{text(estimate.low)} to {text(estimate.high)}"


def _cell(value: float) -> float | str:
    """The value of a CSV cell, empty for NaN."""
    return "" if math.isnan(value) else round(value, 6)
