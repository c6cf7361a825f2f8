"""Every route, and what the page refuses."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from configs import _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from page_runs import ARROW, HOST, client, draw_photo, upload
from starlette.testclient import TestClient

from motionanim.page.guard import HEADERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[TestClient]:
    (folder / "a.safetensors").touch()
    with client(folder, image=draw_photo(folder / "first.png", seed=3)) as made:
        yield made


@pytest.fixture(scope="module")
def photo(page: TestClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its id."""
    return upload(page, draw_photo(tmp_path_factory.mktemp("photos") / "cat.png"))["id"]


def test_the_state_holds_the_first_photo_and_the_choices(page: TestClient, folder: Path) -> None:
    state = page.get("/api/state").json()
    assert (state["photo"]["name"], state["photo"]["width"], state["photo"]["height"]) == ("first.png", 64, 48)
    assert state["defaults"]["renderer"] == "eulerian"
    assert state["methods"][0] == "continuous"
    assert state["loras"] == ["a.safetensors"]
    assert (state["span"], state["most_bytes"], state["error"]) == (16, 64 * 2**20, None)
    assert state["folder"] == folder.name


def test_a_photo_and_its_picture(page: TestClient, photo: str, folder: Path) -> None:
    assert page.get(f"/api/photos/{photo}").json() == {
        "id": photo, "name": "cat.png", "width": 64, "height": 48, "url": f"/api/photos/{photo}/picture",
    }  # fmt: skip
    picture = page.get(f"/api/photos/{photo}/picture")
    assert picture.headers["content-type"] == "image/jpeg"
    assert "immutable" in picture.headers["cache-control"]
    again = page.post("/api/photos?name=other.png", content=(folder / "cat.png").read_bytes()).json()
    assert (again["id"], again["name"]) == (photo, "cat.png"), "the same bytes are not written twice"
    for path in ("/api/photos/0123456789abcdef", "/api/photos/x/picture"):
        assert page.get(path).status_code == 404
        assert "open its file again" in page.get(path).json()["error"]


def test_a_field_a_region_and_a_proposal(page: TestClient, photo: str) -> None:
    asked = {"photo": photo, "drawing": ARROW, "settings": {}, "side": 64}
    field = page.post("/api/field", json=asked)
    assert field.headers["content-type"] == "application/octet-stream"
    length = int.from_bytes(field.content[:4], "little")
    assert json.loads(field.content[4 : 4 + length])["width"] == 64
    grown = page.post("/api/magic", json={"photo": photo, "brush": [[20, 20], [30, 24]], "radius": 4, "pins": []})
    assert grown.json().keys() == {"region", "share"}
    del asked["side"]
    assert page.post("/api/proposal", json=asked).json().keys() == {"region", "share"}
    told = page.post("/api/command", json=asked | {"settings": {"frames": 9}}).json()["command"]
    assert told == (
        "python -m motionanim.animate image=cat.png arrows=cat-1.arrows.json out=cat-1.mp4 renderer=eulerian frames=9 "
        "fps=7 seed=0"
    )


@pytest.mark.parametrize("path", ["field", "proposal", "jobs"])
def test_a_drawing_for_another_photo_is_one_line(page: TestClient, photo: str, path: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    answer = page.post(f"/api/{path}", json={"photo": photo, "drawing": {"arrows": [[10, 10, 900, 10]]}})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "arrows[0]: the point (900, 10) is outside the image: x must be from 0 to 63, y from 0 to 47"
    }
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("photos?name=a.png", b"no picture", 400, "a.png is not an image that can be read"),
        ("photos", b"", 400, "the photo is empty"),
        ("field", b"{", 400, "the request is no usable JSON: Expecting property name"),
        ("field", b"[1]", 400, "the request must be an object"),
        ("field", b'{"fotos": 1}', 400, "the request must be an object with drawing, photo"),
        ("field", b'"\xe9"', 400, "the request is no usable JSON: 'utf-8' codec"),
        ("field", b"[" * 100_000, 400, "recursion"),
        ("field", b'{"photo": "0"}', 404, "no photo 0 in the folder"),
        ("field", b'{"photo": ["0"]}', 404, "no photo"),
        ("field", b'{"photo": "PHOTO", "side": 1e9}', 400, "side=1000000000.0: must be a whole number from 64"),
        ("field", b'{"photo": "PHOTO", "settings": {"frames": 1}}', 400, "frames=1: must be"),
        ("magic", b'{"photo": "PHOTO"}', 400, "regions.stroke: radius: None must be a finite number"),
        ("proposal", b'{"photo": "PHOTO", "drawing": {}}', 400, "the flow refiner needs a flow arrow"),
        ("jobs", b'{"photo": "PHOTO", "drawing": {}}', 400, "no arrows: draw what moves"),
        ("jobs", b'{"photo": "PHOTO", "drawing": null}', 400, "drawing=None: must be an object"),
        ("jobs/0/cancel", b"", 404, "no job 0"),
        ("nothing", b"", 404, "Not Found"),
        ("gallery", b"", 405, "Method Not Allowed"),
    ],
)
def test_a_mistake_is_one_line(
    page: TestClient, photo: str, path: str, content: bytes, status: int, message: str
) -> None:
    kind = {"Content-Type": "application/json"}
    answer = page.post(f"/api/{path}", content=content.replace(b"PHOTO", photo.encode()), headers=kind)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "header",
    [
        "Host: evil.example:7860", "Host: localhost", "Host: localhost:80", "Host: ", "Origin: http://evil.example",
        "Origin: null", "Origin: https://localhost:7860", "Origin: http://localhost:8888", "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)  # fmt: skip
def test_other_sites_and_names_are_refused(page: TestClient, header: str) -> None:
    headers = [tuple(header.split(": "))]
    for answer in (page.get("/api/state", headers=headers), page.post("/api/photos", content=b"x", headers=headers)):
        assert answer.status_code == 403
        assert answer.json()["error"]
        assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_the_page_itself_is_answered_and_every_answer_has_the_headers(page: TestClient) -> None:
    own = {"Host": HOST, "Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert page.get("/").headers["content-type"].startswith("text/html")
    for path in ("/", "/api/jobs", "/api/gallery", "/nowhere", "/static/nowhere.js"):
        answer = page.get(path, headers=own)
        assert answer.status_code == (404 if "nowhere" in path else 200)
        assert {key: answer.headers[key] for key in HEADERS} == HEADERS


def test_json_must_say_that_it_is_json(page: TestClient, photo: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = page.post("/api/jobs", content=json.dumps({"photo": photo}), headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"] == "Content-Type: must be application/json"


@pytest.mark.slow
def test_a_large_body_is_refused_before_it_is_read(page: TestClient) -> None:
    read = 0

    def pieces() -> Iterator[bytes]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield bytes(2**20)

    announced = page.post("/api/photos", content=pieces(), headers={"Content-Length": str(200 * 2**20)})
    assert announced.status_code == 413
    assert "the photo is larger than 64 MB" in announced.json()["error"]
    kind = {"Content-Type": "application/json"}
    streamed = page.post("/api/field", content=(bytes(2**20) for _ in range(200)), headers=kind)
    assert streamed.status_code == 413
    assert "the drawing is larger than 8 MB" in streamed.json()["error"]


@pytest.mark.parametrize(
    "name",
    [
        "..%2Fsecret.json", "%2e%2e/secret.json", "secret.json", "first.png", "a.safetensors", "%2Fetc%2Fpasswd",
        ".x.mp4",
    ],
)  # fmt: skip
def test_only_files_of_videos_are_served(page: TestClient, folder: Path, name: str) -> None:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "secret.json").write_text('{"files": {"secret.mp4": ""}}')
    assert page.get(f"/files/{name}").status_code == 404
    assert page.get(f"/static/{name}").status_code == 404


def test_a_photo_is_never_written_outside_the_folder(page: TestClient, folder: Path, tmp_path: Path) -> None:
    content = draw_photo(tmp_path / "x.png", seed=9).read_bytes()
    kept = page.post("/api/photos", params={"name": "../../../up.png"}, content=content).json()
    assert kept["name"] == "up.png"
    assert (folder / "up.png").exists()


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(
    page: TestClient, photo: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, content = sorted(folder.iterdir()), draw_photo(tmp_path / "x.png", seed=11).read_bytes()

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    for answer in (
        page.post("/api/photos?name=x.png", content=content),
        page.post("/api/jobs", json={"photo": photo, "drawing": ARROW}),
    ):
        assert answer.status_code == 507
        assert answer.json() == {"error": "the disk is full: free some space and try again"}
    assert sorted(folder.iterdir()) == before
