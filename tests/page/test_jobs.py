"""Jobs in the real worker: bytes, order, cancelling, a killed worker, a full disk."""

import json
import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from configs import _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from page_runs import ARROW, QUICK, client, draw_photo, upload
from starlette.testclient import TestClient

from motionanim.data.video import Video
from motionanim.page import jobs

pytestmark = pytest.mark.slow  # the worker imports PyTorch
LONG = {"frames": 5000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[TestClient]:
    with client(folder, base=("scale.num_steps=2",)) as made:
        yield made


@pytest.fixture(scope="module")
def photo(page: TestClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its id; the name needs quoting."""
    return upload(page, draw_photo(tmp_path_factory.mktemp("photos") / "my cat's.png"))["id"]


def start(page: TestClient, photo: str, drawing: Any = ARROW, **settings: Any) -> dict[str, Any]:
    answer = page.post("/api/jobs", json={"photo": photo, "drawing": drawing, "settings": QUICK | settings})
    assert answer.status_code == 200, answer.text
    return answer.json()


def now(page: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in page.get("/api/jobs").json()["jobs"] if each["id"] == job["id"])


def when(page: TestClient, job: dict[str, Any], *states: str, seconds: float = 120) -> dict[str, Any]:
    """The job as soon as it is in one of these states."""
    end = time.monotonic() + seconds
    while (found := now(page, job))["state"] not in states:
        assert time.monotonic() < end, found
        assert found["state"] in ("waiting", "running"), found
        time.sleep(0.05)
    return found


def in_progress(page: TestClient, job: dict[str, Any]) -> int:
    """The process that makes a job, once it reports frames."""
    end = time.monotonic() + 120
    while now(page, job)["stage"] != "frames":
        assert time.monotonic() < end
        time.sleep(0.05)
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "motionanim.page.worker"], capture_output=True, text=True
    ).stdout.split()
    return int(worker)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_bytes_are_those_of_the_command(page: TestClient, photo: str, folder: Path) -> None:
    settings = {"frames": 5, "fps": 12.5, "loop": True, "gif": True, "webp": True}
    made = [when(page, start(page, photo, **settings), "done") for _ in range(2)]
    assert [job["name"] for job in made] == ["my cat's-1", "my cat's-2"]
    assert made[0]["files"].keys() == {"mp4", "png", "json", "arrows", "gif", "webp"}
    assert any("T proposes" in note for note in made[0]["notes"])
    contents = [{kind: (folder / name).read_bytes() for kind, name in job["files"].items()} for job in made]
    for path in folder.glob("my cat's-1*"):
        if "arrows" not in path.name:
            path.unlink()
    words = shlex.split(made[0]["command"])
    assert forked.run(*words[1:], cwd=folder).returncode == 0
    again = {kind: (folder / name).read_bytes() for kind, name in made[0]["files"].items()}
    for kind in ("mp4", "png", "gif", "webp", "arrows"):
        assert again[kind] == contents[0][kind] == contents[1][kind], kind
    records = [json.loads(each["json"]) for each in (contents[0], again)]
    assert [each.pop("seconds") > 0 for each in records] == [True, True]
    assert records[0] == records[1]


def test_the_gallery_shows_them_and_skips_foreign_files(page: TestClient, photo: str, folder: Path) -> None:
    made = when(page, start(page, photo, loop=True), "done")
    foreign = ('{"files": {"x.mp4": ""}}', "[1]", "{", "null", '{"command": {}, "files": {"f5.mp4": 1}, "seconds": 1}')
    for number, text in enumerate((*foreign, "[" * 100_000)):
        (folder / f"f{number}.json").write_text(text)
    videos = page.get("/api/gallery").json()["videos"]
    assert {video["name"] for video in videos} == {path.stem for path in folder.glob("my cat's-*.mp4")}
    video = videos[0]
    assert (video["name"], video["photo"], video["image"]) == (made["name"], photo, "my cat's.png")
    assert video["settings"] == made["settings"]
    assert video["files"] == made["files"]
    address = f"/files/{video['files']['mp4']}"
    whole = page.get(address)
    assert whole.headers["content-type"] == "video/mp4"
    assert "content-disposition" not in whole.headers
    part = page.get(address, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert "attachment" in page.get(f"{address}?download").headers["content-disposition"]
    assert page.get(f"/files/{video['files']['png']}").headers["content-type"] == "image/png"
    assert page.get(f"/files/{made['files']['arrows']}").json() == ARROW
    assert page.get(f"/api/jobs/{made['id']}/drawing").json() == ARROW


def test_two_jobs_are_made_one_after_the_other_and_a_waiting_one_can_be_cancelled(
    page: TestClient, photo: str, folder: Path
) -> None:
    first, second, third = (start(page, photo, frames=40, seed=seed) for seed in range(3))
    assert len({job["name"] for job in (first, second, third)}) == 3
    cancelled = page.post(f"/api/jobs/{second['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert not [name for name in names(folder) if name.startswith(second["name"])]
    assert now(page, third)["state"] == "waiting"
    assert now(page, third)["place"] == 1
    when(page, first, "done")
    done = when(page, third, "done")
    assert (done["share"], done["place"]) == (1, 0)
    assert done["seconds"] > 0
    assert now(page, second)["state"] == "cancelled"
    assert Video(folder / done["files"]["mp4"]).info.num_frames == 40
    assert page.post(f"/api/jobs/{done['id']}/cancel").json()["state"] == "done"


def test_a_running_job_can_be_cancelled_and_leaves_nothing(page: TestClient, photo: str, folder: Path) -> None:
    before = names(folder)
    job = start(page, photo, **LONG)
    worker = in_progress(page, job)
    found = now(page, job)
    assert 0 <= found["share"] < 1
    page.post(f"/api/jobs/{job['id']}/cancel")
    when(page, job, "cancelled", seconds=4)
    assert names(folder) == before
    other = start(page, photo, **LONG)
    assert in_progress(page, other) == worker, "it keeps the models"
    page.post(f"/api/jobs/{other['id']}/cancel")
    when(page, other, "cancelled")


def test_a_worker_that_does_not_answer_is_killed(
    page: TestClient, photo: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 1.0)
    before = names(folder)
    job = start(page, photo, **LONG)
    worker = in_progress(page, job)
    os.kill(worker, signal.SIGSTOP)
    page.post(f"/api/jobs/{job['id']}/cancel")
    asked = time.monotonic()
    when(page, job, "cancelled", seconds=10)
    assert time.monotonic() > asked + 0.9, "it is given its time"
    assert names(folder) == before


def test_a_killed_worker_fails_its_job_and_is_started_again(page: TestClient, photo: str, folder: Path) -> None:
    before = names(folder)
    job, following = start(page, photo, **LONG), start(page, photo)
    os.kill(in_progress(page, job), signal.SIGKILL)
    failed = when(page, job, "failed")
    assert failed["error"] == (
        "the process that makes videos ended (code -9), perhaps for lack of memory: try a smaller size"
    )
    done = when(page, following, "done")
    assert names(folder) - before == {f"{job['name']}.arrows.json", *done["files"].values()}


def test_a_job_that_cannot_be_made_says_why_and_the_next_is_made(page: TestClient, photo: str) -> None:
    lora = {"renderer": "diffusion", "loras": {"gone.safetensors": 1}}
    failed = when(page, start(page, photo, **lora), "failed")
    assert "gone.safetensors" in failed["error"]
    assert "\n" not in failed["error"]
    when(page, start(page, photo), "done")


def test_a_full_disk_fails_the_job_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    draw_photo(folder / "cat.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # the worker inherits it
    try:
        with client(folder) as page:
            photo = upload(page, folder / "cat.png")["id"]  # the same bytes are not written again
            failed = when(page, start(page, photo), "failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed["error"].startswith("out=cat-1.mp4 is not written (File too large): free some space")
    assert names(folder) == {"cat.png", "cat-1.arrows.json"}


@pytest.mark.long
def test_the_embedded_base_gives_the_bytes_of_the_command(page: TestClient, photo: str, folder: Path) -> None:
    settings = {"renderer": "diffusion", "frames": 4, "loop": False, "strength": 150}
    first, second = (when(page, start(page, photo, **settings), "done", seconds=400) for _ in range(2))
    videos = [(folder / job["files"]["mp4"]).read_bytes() for job in (first, second)]
    for path in folder.glob(f"{first['name']}.*"):
        if "arrows" not in path.name:
            path.unlink()
    words = shlex.split(first["command"])
    assert forked.run(*words[1:], cwd=folder).returncode == 0
    assert (folder / first["files"]["mp4"]).read_bytes() == videos[0] == videos[1]
