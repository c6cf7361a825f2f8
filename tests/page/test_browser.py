"""The page as its users see it: drawing, preview, making and accessibility, in Debian's Chromium without a window."""

import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
from photo_page import Photo, Site, river
from PIL import Image

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # in software


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    river(folder / "river.png")
    command = [sys.executable, "-m", "motionanim.page", "image=river.png", "port=0", "open=false", "frames=8"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        yield Site(process.stdout.readline().split()[0], folder, process)
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator["object"]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        made = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu-compositing", *GL])
        yield made
        made.close()


@pytest.fixture
def photo(browser, site: Site) -> Iterator[Photo]:
    context = browser.new_context(viewport={"width": 800, "height": 480}, color_scheme="dark")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = Photo(context.new_page()).open(site.url)
    yield made
    context.close()
    assert made.errors == []


def seen(photo: Photo) -> np.ndarray:
    """The stage as RGB."""
    return np.asarray(Image.open(io.BytesIO(photo.page.locator("#stage").screenshot())).convert("RGB")).astype(int)


def moves(photo: Photo) -> bool:
    """Whether the photo changes within a second."""
    before = seen(photo)
    photo.page.wait_for_timeout(700)
    return (np.abs(seen(photo) - before).max(2) > 8).mean() > 0.002


def draw(photo: Photo) -> None:
    """Two arrows, a pin and a brush region."""
    photo.drag((60, 60), (100, 60))
    photo.drag((200, 60), (200, 100))
    photo.page.keyboard.press("p")
    photo.click(140, 30)
    photo.page.keyboard.press("b")
    photo.drag((60, 180), (120, 180), (180, 185))
    photo.page.keyboard.press("a")


def make(photo: Photo, **fields: object) -> None:
    photo.page.click("#tab-make")
    for name, value in fields.items():
        photo.page.fill(f"#settings [name={name}]", str(value))
    photo.page.click("#animate")


@pytest.mark.long
def test_a_drawing_becomes_the_video_of_the_command_line(photo: Photo, site: Site, tmp_path: Path) -> None:
    """The preview moves, 16 frames are made, and the downloaded video has the bytes of the command that is shown."""
    draw(photo)
    photo.page.click("[data-view=motion]")
    assert any(moves(photo) for _ in range(20))
    photo.page.click("[data-view=drawing]")
    make(photo, frames=16)
    card = photo.page.locator("#job-list li").first  # the newest
    card.locator("video").wait_for(timeout=60_000)
    with photo.page.expect_download() as download:
        card.get_by_role("link", name="MP4").click()
    video = Path(tmp_path / "page.mp4")
    download.value.save_as(video)

    drawing = photo.saved(tmp_path / "arrows.json")
    assert len(drawing["arrows"]) == 2
    assert len(drawing["pins"]) == 1
    assert len(drawing["regions"]) == 1
    photo.page.click("#tab-make")
    photo.page.wait_for_timeout(600)
    photo.page.click("#copy")
    command = shlex.split(photo.page.evaluate("navigator.clipboard.readText()"))
    given = [each for each in command[3:] if not each.startswith(("arrows=", "out=", "image="))]
    words = ["-m", "motionanim.animate", f"image={site.folder}/river.png", "arrows=arrows.json"]
    done = forked.run(*words, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out.mp4").read_bytes() == video.read_bytes()


def test_no_click_is_lost_while_the_page_starts(photo: Photo, site: Site) -> None:
    held = []
    photo.page.route("**/api/state", lambda route: held.append(route))
    photo.page.goto(site.url)
    with pytest.raises(Exception, match="Timeout"):  # nothing takes it
        photo.page.click("#show-help", timeout=500)
    held[0].continue_()
    photo.page.click("#show-help")
    photo.page.locator("#help[open]").wait_for()


def test_undo_leads_to_nothing_and_redo_back(photo: Photo, tmp_path: Path) -> None:
    empty = photo.saved(tmp_path / "empty.json")
    draw(photo)
    drawn = photo.saved(tmp_path / "drawn.json")
    for _ in range(20):
        photo.page.keyboard.press("Control+z")
    assert photo.saved(tmp_path / "undone.json") == empty
    assert photo.page.locator("#undo").is_disabled()
    for _ in range(20):
        photo.page.keyboard.press("Control+Shift+z")
    assert photo.saved(tmp_path / "again.json") == drawn


def test_a_reload_keeps_the_drawing(photo: Photo, site: Site, tmp_path: Path) -> None:
    draw(photo)
    drawn = photo.saved(tmp_path / "a.json")
    photo.open(site.url)
    assert photo.saved(tmp_path / "b.json") == drawn


def test_points_land_where_they_are_drawn_when_zoomed_in(photo: Photo, tmp_path: Path) -> None:
    photo.page.mouse.move(*photo.at(100, 80))
    for _ in range(4):
        photo.page.mouse.wheel(0, -120)
    scale = float(photo.page.get_attribute("#stage", "data-scale"))
    photo.page.keyboard.press("0")
    assert scale / float(photo.page.get_attribute("#stage", "data-scale")) > 3
    photo.page.mouse.move(*photo.at(100, 80))
    for _ in range(4):
        photo.page.mouse.wheel(0, -120)
    photo.drag((90, 70), (130, 95))
    (arrow,) = photo.saved(tmp_path / "a.json")["arrows"]
    assert np.abs(np.subtract(arrow["path"], [(90, 70), (130, 95)])).max() <= 1


def test_points_and_arrows_can_be_dragged_and_added(photo: Photo, tmp_path: Path) -> None:
    photo.drag((60, 60), (160, 60))
    photo.drag((160, 60), (160, 120))  # its tip
    photo.page.mouse.dblclick(*photo.at(110, 90))  # its middle
    photo.drag((110, 90), (120, 70))
    (arrow,) = photo.saved(tmp_path / "a.json")["arrows"]
    np.testing.assert_allclose(arrow["path"], [(60, 60), (120, 70), (160, 120)], atol=1)
    photo.drag((90, 65), (100, 85))  # the line: all of it
    (moved,) = photo.saved(tmp_path / "b.json")["arrows"]
    np.testing.assert_allclose(np.subtract(moved["path"], arrow["path"]), np.full((3, 2), [10, 20]), atol=1)


def test_a_photo_opened_by_the_button_has_its_own_brush_and_drawing(photo: Photo, tmp_path: Path) -> None:
    draw(photo)
    drawn = photo.saved(tmp_path / "a.json")
    for name, width in (("wide.png", 640), ("river.png", 320)):
        photo.choose(river(tmp_path / name, width=width))
    assert photo.saved(tmp_path / "b.json") == drawn, "back at the first photo"
    photo.choose(tmp_path / "wide.png")
    photo.page.keyboard.press("b")
    photo.drag((60, 60), (160, 60))
    ((stroke,),) = photo.saved(tmp_path / "c.json")["regions"].values()
    assert stroke["radius"] == pytest.approx(0.25 * 640 * 0.4**2, abs=0.1)


def test_a_photo_can_be_pasted(photo: Photo, tmp_path: Path) -> None:
    content = river(tmp_path / "pasted.png", width=200).read_bytes()
    photo.page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        list(content),
    )
    photo.page.locator("#stage[data-photo='200x240 pasted.png']").wait_for()


def test_undo_in_the_middle_of_a_drag_ends_the_drag(photo: Photo, tmp_path: Path) -> None:
    photo.drag((60, 60), (100, 60))
    one = photo.saved(tmp_path / "a.json")
    mouse = photo.page.mouse
    mouse.move(*photo.at(200, 60))
    mouse.down()
    mouse.move(*photo.at(220, 90), steps=3)
    photo.page.keyboard.press("Control+z")
    mouse.move(*photo.at(240, 120), steps=3)
    mouse.up()
    assert photo.saved(tmp_path / "b.json")["arrows"] == []
    photo.page.keyboard.press("Control+Shift+z")
    assert photo.saved(tmp_path / "c.json") == one


def test_a_choice_moves_nothing(photo: Photo, tmp_path: Path) -> None:
    photo.drag((60, 60), (160, 60))
    drawn = photo.saved(tmp_path / "a.json")
    photo.page.mouse.move(*photo.at(63, 58))
    photo.page.mouse.down()
    photo.page.mouse.move(*photo.at(64, 59))
    photo.page.mouse.up()
    assert photo.saved(tmp_path / "b.json") == drawn


def test_an_arrow_in_a_region_that_travels_leaves_it_alone(photo: Photo, tmp_path: Path) -> None:
    photo.page.keyboard.press("b")
    photo.drag((60, 60), (160, 60))
    photo.page.keyboard.press("a")
    photo.drag((70, 60), (100, 60))
    photo.page.click("#arrow-list .pick")
    photo.page.check("#inspector input[value=move]", force=True)
    photo.page.locator("#message").filter(has_text="no longer a loop").wait_for()
    photo.refusals = True
    photo.drag((140, 60), (150, 90))
    first, second = photo.saved(tmp_path / "a.json")["arrows"]
    assert (first["kind"], first["region"]) == ("move", "region 1")
    assert "region" not in second
    photo.page.locator("#message.bad").filter(has_text="Arrow 2 starts").wait_for()


def test_another_tool_keeps_the_polygon_under_way(photo: Photo, tmp_path: Path) -> None:
    photo.page.keyboard.press("l")
    for corner in ((40, 40), (100, 40), (100, 90)):
        photo.click(*corner)
    photo.page.keyboard.press("a")
    (region,) = photo.saved(tmp_path / "a.json")["regions"].values()
    np.testing.assert_allclose(region, [[(40, 40), (100, 40), (100, 90)]], atol=1)


def test_the_eraser_takes_away_and_the_magic_brush_grows(photo: Photo, tmp_path: Path) -> None:
    photo.page.keyboard.press("b")
    photo.drag((60, 60), (160, 60))
    photo.page.keyboard.press("e")
    photo.drag((110, 50), (110, 70))
    (region,) = photo.saved(tmp_path / "a.json")["regions"].values()
    assert [set(part) for part in region] == [{"brush", "radius"}, {"erase", "radius"}]
    photo.page.keyboard.press("n")
    photo.page.keyboard.press("m")
    photo.drag((200, 150), (240, 160))
    photo.page.locator("#region-list li").nth(1).wait_for(timeout=10_000)
    grown = photo.saved(tmp_path / "b.json")["regions"]["region 2"]
    assert all(isinstance(part, list) or set(part) == {"erase"} for part in grown)


def test_fingers_draw_and_zoom(browser, site: Site, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    photo = Photo(context.new_page()).open(site.url)
    touch = context.new_cdp_session(photo.page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        places = [dict(zip("xy", point), id=i) for i, point in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    fingers("touchStart", photo.at(100, 100))
    for share in (0.3, 0.7, 1):
        fingers("touchMove", photo.at(100 + 60 * share, 100 + 20 * share))
    fingers("touchEnd")
    (arrow,) = photo.saved(tmp_path / "a.json")["arrows"]
    np.testing.assert_allclose(arrow["path"], [(100, 100), (160, 120)], atol=1)

    before = float(photo.page.get_attribute("#stage", "data-scale"))
    x, y = photo.at(160, 120)
    fingers("touchStart", (x - 20, y))
    fingers("touchStart", (x - 20, y), (x + 20, y))
    for apart in (30, 45, 60):
        fingers("touchMove", (x - apart, y), (x + apart, y))
    fingers("touchEnd")
    assert 2.5 < float(photo.page.get_attribute("#stage", "data-scale")) / before < 3.5
    assert len(photo.saved(tmp_path / "b.json")["arrows"]) == 1
    assert photo.errors == []
    context.close()


def test_the_keyboard_alone_draws_and_animates(photo: Photo, tmp_path: Path) -> None:
    keys = photo.page.keyboard
    for _ in range(40):
        keys.press("Tab")
        if photo.page.evaluate("document.activeElement.id") == "board":
            break
    keys.press("a")
    keys.press("Enter")  # the cross appears
    keys.press("Enter")  # press
    for _ in range(6):
        keys.press("ArrowRight")
    keys.press("Enter")  # release
    (arrow,) = photo.saved(tmp_path / "a.json")["arrows"]
    (x0, y0), (x1, y1) = arrow["path"]
    assert x1 - x0 > 10
    assert y0 == y1
    made = photo.page.locator("#job-list li:has(video)")
    before = made.count()
    keys.press("Control+Enter")
    made.nth(before).wait_for(timeout=60_000)


def test_a_job_can_be_cancelled_and_is_found_again(photo: Photo, site: Site) -> None:
    photo.drag((60, 60), (100, 60))
    make(photo, frames=3000)
    stop = photo.page.get_by_role("button", name="Cancel").first
    stop.wait_for()
    photo.open(site.url)  # the page is gone for a moment, the job is not
    photo.page.click("#tab-results")
    stop.wait_for()
    stop.click()
    photo.page.get_by_text("Cancelled; nothing was written.").first.wait_for(timeout=20_000)
    photo.page.keyboard.press("Control+z")
    photo.page.locator("#job-list").get_by_role("button", name="Again").first.click()
    photo.page.locator("#message").filter(has_text="Drawing and settings of").wait_for()
    assert photo.page.input_value("#settings [name=frames]") == "3000"
    assert photo.page.locator("#arrow-list .pick").count() == 1
    assert not list(site.folder.glob("**/.*.tmp"))
    assert photo.page.get_by_role("button", name="Cancel").count() == 0


def test_a_drawing_for_another_photo_and_a_broken_photo_are_refused(photo: Photo, tmp_path: Path) -> None:
    photo.drag((60, 60), (100, 60))
    before = photo.saved(tmp_path / "a.json")
    photo.refusals = True
    message = photo.page.locator("#message.bad")
    for name, content, expected in (
        ("arrows.json", b'{"arrows": [[10, 10, 4000, 10]]}', "another photo"),
        ("arrows.json", b"{", "no arrows.json"),
        ("other.json", b'{"foo": 1}', "holds no drawing"),
        ("broken.jpg", b"\xff\xd8\xff not a photo", "broken.jpg"),
    ):
        photo.page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})
        message.filter(has_text=expected).wait_for(timeout=10_000)
    assert photo.saved(tmp_path / "b.json") == before


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing_serious(browser, site: Site, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme=scheme)
    photo = Photo(context.new_page()).open(site.url)
    found = {}
    rules = None if scheme == "dark" else {"runOnly": ["color-contrast"]}  # the rest is the same

    def check(name: str) -> None:
        for each in axe.run(photo.page, options=rules).response["violations"]:
            if each["impact"] in ("serious", "critical"):
                found[f"{name}: {each['id']}"] = [node["target"] for node in each["nodes"]]

    draw(photo)
    check("drawing")
    photo.page.click("#arrow-list li:first-child button")
    check("arrow")
    for opener in ("#tab-make", "#tab-results", "#show-help"):
        photo.page.click(opener)
        check(opener)
    photo.page.click("#help .close")
    photo.page.click("#show-gallery")
    photo.page.wait_for_timeout(500)
    check("gallery")
    context.close()
    assert found == {}
