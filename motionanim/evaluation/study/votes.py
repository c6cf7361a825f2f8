"""Reads and checks the key of a study and the participants' vote files."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from motionanim.evaluation.study.make import SCHEMA

TIE = "tie"

_PASS = 2 / 3  # share of the answers to attention checks that must be the intact video


class Vote(NamedTuple):
    """One answer to one question."""

    participant: str
    clip: str
    trial: str
    question: str
    shown: tuple[str, ...]  # methods, in the order of the videos' random names
    chosen: str | None  # one of them; None is a tie


class Sheet(NamedTuple):
    """The content of one participant's file."""

    participant: str
    file: Path
    votes: list[Vote]
    answered: int  # number of answers, including those to attention checks
    asked: int  # number of questions on the whole sheet
    failed: bool | None  # more than a third of the answers to attention checks are wrong; None without such answers


def read_key(path: Path) -> dict[str, Any]:
    """A study's key.

    Raises:
        ValueError: If the file is no key, or of another version.
    """
    key = _json(path)
    if not {"methods", "videos", "trials", "checks"} <= key.keys():
        raise ValueError(f"{path}: is not a study's key; give the key.json that `make` wrote")
    _same_schema(path, key)
    return key


def read_sheet(path: Path, key: dict[str, Any]) -> Sheet:
    """One participant's votes.

    Raises:
        ValueError: If the file is unreadable, of another study, or not as the page writes it. The message names it.
    """
    data = _json(path)
    if not {"study", "participant", "trials"} <= data.keys() or not isinstance(data["trials"], list):
        raise ValueError(f"{path}: is not a file of votes; give the files that participants saved")
    _same_schema(path, data)
    if data["study"] != key["study"]:
        raise ValueError(f"{path}: holds votes of study {data['study']}, the key is of {key['study']}")
    participant = data["participant"]
    if not isinstance(participant, str) or not re.fullmatch("[0-9a-f]{16}", participant):
        raise ValueError(f"{path}: participant={participant!r} is not 16 hexadecimal digits: it was edited")
    if len(data["trials"]) != key["trials_per_participant"]:
        expected = key["trials_per_participant"]
        raise ValueError(f"{path}: has {len(data['trials'])} comparisons, the page gives {expected}: it was edited")
    seen: set[str] = set()
    votes, right = [], []
    for entry in data["trials"]:
        answers = _answers(path, entry, key, seen)
        name = entry["trial"]
        if name in key["checks"]:
            right += [answer == key["checks"][name]["intact"] for answer in answers.values()]
            continue
        shown = tuple(key["videos"][video]["method"] for video in key["trials"][name]["videos"])
        for question, answer in answers.items():
            chosen = None if answer == TIE else key["videos"][answer]["method"]
            votes.append(Vote(participant, key["trials"][name]["clip"], name, question, shown, chosen))
    missing = key["checks"].keys() - seen
    if missing:
        raise ValueError(f"{path}: lacks attention check {min(missing)}, which the page shows to all: it was edited")
    asked = len(data["trials"]) * len(key["questions"])
    failed = sum(right) < _PASS * len(right) if right else None
    return Sheet(participant, path, votes, len(votes) + len(right), asked, failed)


def read_sheets(paths: list[Path], key: dict[str, Any]) -> list[Sheet]:
    """All participants' votes.

    Raises:
        ValueError: As `read_sheet`, or if a participant comes twice.
    """
    sheets: dict[str, Sheet] = {}
    for path in paths:
        sheet = read_sheet(path, key)
        if sheet.participant in sheets:
            other = sheets[sheet.participant].file
            raise ValueError(f"{path}: the same participant ({sheet.participant}) as {other}: give only the later file")
        sheets[sheet.participant] = sheet
    return list(sheets.values())


def _answers(path: Path, entry: Any, key: dict[str, Any], seen: set[str]) -> dict[str, str]:
    """The answers to one comparison by question, without empty ones; adds its name to `seen`."""
    if not isinstance(entry, dict) or not {"trial", "shown", "opened", "answered", "answers"} <= entry.keys():
        raise ValueError(f"{path}: a comparison lacks its trial, shown, opened, answered or answers: it was edited")
    name, shown, answers = entry["trial"], entry["shown"], entry["answers"]
    trial = key["trials"].get(name) or key["checks"].get(name) if isinstance(name, str) else None
    if trial is None:
        raise ValueError(f"{path}: comparison {name!r} is not in the study")
    if name in seen:
        raise ValueError(f"{path}: comparison {name} comes twice: it was edited")
    seen.add(name)
    if not isinstance(shown, list) or sorted(shown, key=str) != trial["videos"]:
        raise ValueError(f"{path}: comparison {name} shows {shown!r}, not the study's {trial['videos']}: it was edited")
    for field in ("opened", "answered"):
        if entry[field] is not None:
            _check_time(path, field, entry[field])
    if not isinstance(answers, dict) or answers.keys() != set(key["questions"]):
        raise ValueError(f"{path}: comparison {name} does not answer exactly {', '.join(key['questions'])}: edited")
    for question, answer in answers.items():
        if answer is not None and answer not in (*shown, TIE):
            raise ValueError(f"{path}: comparison {name}, {question}: {answer!r} is no possible choice ({shown}, tie)")
    return {question: answer for question, answer in answers.items() if answer is not None}


def _check_time(path: Path, field: str, value: Any) -> None:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {field}={value!r} is not a time: it was edited") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # thousands of brackets
        raise ValueError(f"{path}: is not valid JSON: {error}; ask for the file anew") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return data


def _same_schema(path: Path, data: dict[str, Any]) -> None:
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
