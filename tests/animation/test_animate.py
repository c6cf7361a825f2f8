"""The command an artist types, on the tiny random base: what it draws, what it says, mistakes as one line."""

# ruff: noqa: F811 (tests take imported fixtures as arguments)
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import MOTION
from loras import add_random_lora
from photos import ARROW, _fresh, photo, quick, tiny  # noqa: F401  fixtures
from PIL import Image

from motionanim.animate import Animation, animate
from motionanim.cli.progress import Progress
from motionanim.data.video import Video
from motionanim.files import file_sha256
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import save_lora

WAYS = [[26, 12, 20, 12]], [[20, 12, 26, 12]]
WHEEL = {"path": [[24, 10], [27, 10.5]], "kind": "turn", "region": {"brush": [[24, 18]], "radius": 9}}
LEAF = {"path": [[36, 30], [38, 30]], "kind": "sway", "period": 6, "region": {"brush": [[36, 30]], "radius": 5}}
BOX = {"path": [[12, 12], [36, 12]], "kind": "move", "region": [[[7, 7], [17, 7], [17, 17], [7, 17]]]}


@pytest.fixture
def embedded(base: Path, tiny: list[str]) -> list[str]:
    """The tiny base as if it were the one in the assets."""
    return [*tiny, f"paths.assets={base.parent}"]


def moved(made: Animation) -> torch.Tensor:
    """How far each pixel changes, (H, W)."""
    return made.frames.diff(dim=0).abs().amax((0, 1))


def test_it_leaves_video_picture_and_what_repeats_it(photo: Path, tiny: list[str]) -> None:
    out = Path("new/out.mp4")
    given = {"image": photo, "arrows": ARROW, "frames": 12, "out": out, "gif": True, "webp": True, "png": True}
    made = animate([*tiny[:-1], "long_video=phased", "control=motion"], **given)
    assert made.frames.shape == (12, 3, 36, 48), "the photo's size"
    assert Video(out).info.num_frames == 12
    assert Video(out).info.fps == pytest.approx(7, rel=1e-3)
    with Image.open(out.with_suffix(".gif")) as gif:
        assert (gif.n_frames, gif.size) == (12, (48, 36))
    with Image.open(out.with_suffix(".webp")) as webp:
        assert (webp.n_frames, webp.size) == (12, (48, 36))
    assert len(list((out.with_suffix("")).glob("*.png"))) == 12
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.height >= 192
        assert picture.width > 7 * 192, "input, arrows, field and five frames"
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["runs"][0]["calls"] == 3, "gamma 0.8 of 3 steps is all of them"
    assert record["command"]["arrows"] == ARROW
    assert record["sha256"][str(photo)] == file_sha256(photo)
    assert set(made.files) == {out, *(out.with_suffix(s) for s in (".png", ".json", ".gif", ".webp", ""))}
    assert record["files"].keys() == {path.name for path in made.files} - {"out.json"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(photo: Path, tiny: list[str]) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        animate([*tiny, "scale.num_steps=2"], image=photo, arrows=ARROW, size="model", seed=seed, out=f"{name}.mp4")
        files.append(Path(f"{name}.mp4").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.slow
def test_outside_the_mask_nothing_moves(photo: Path, tiny: list[str]) -> None:
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[:, :24] = 255
    Image.fromarray(mask).save("mask.png")
    change = moved(animate(tiny, image=photo, arrows=[[12, 12, 18, 12]], mask="mask.png", frames=7))
    assert (change[:, 24:] == 0).all()
    assert (change[:, :22] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("renderer", ["diffusion", "eulerian"])
def test_every_kind_is_drawn_and_only_regions_move(photo: Path, tiny: list[str], renderer: str) -> None:
    change = moved(animate(tiny, image=photo, arrows=[WHEEL, LEAF], renderer=renderer))
    assert (change[:, :14] == 0).all(), "left of the wheel"
    assert change[18, 28] > 0
    assert change[30, 36] > 0
    change = moved(animate(tiny, image=photo, arrows=[BOX], renderer=renderer))
    assert (change[8:16, 8:40] > 0).all(), "all of its way, not only its region"
    assert (change[24:] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "shape"), [("photo", (36, 48)), ("model", (12, 20)), ([20, 40], (20, 40))])
def test_the_video_has_the_size_that_was_asked_for(photo: Path, tiny: list[str], size: Any, shape: tuple) -> None:
    assert animate(tiny, image=photo, arrows=ARROW, size=size).frames.shape == (5, 3, *shape)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "model"), [((12, 150), (4, 56)), ((97, 31), (28, 8))], ids=["panorama", "odd sides"])
def test_any_photo_is_animated_in_its_own_shape(size: tuple, model: tuple, tmp_path: Path, tiny: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "long.png")
    made = animate(tiny, image=tmp_path / "long.png", arrows=[[4, 4, 9, 4]])
    assert made.frames.shape == (5, 3, *(side - side % 2 for side in size))
    assert tuple(made.record["model_size"]) == model


@pytest.mark.slow
def test_an_advected_field_is_the_models_picture_enlarged(photo: Path, tiny: list[str]) -> None:
    overrides = [*tiny, "controls.field=advected"]
    large, small = (animate(overrides, image=photo, arrows=ARROW, size=size).frames for size in ("photo", "model"))
    assert large.shape == (5, 3, 36, 48)
    assert small.shape == (5, 3, 12, 20)
    again = torch.nn.functional.interpolate(large, size=(12, 20), mode="bilinear", antialias=True)
    assert torch.corrcoef(torch.stack([again.flatten(), small.flatten()]))[0, 1] > 0.9


@pytest.mark.slow
def test_a_base_without_motion_weights_follows_arrows_by_itself_and_says_so(photo: Path, tiny: list[str]) -> None:
    """As Stable Video Diffusion, whose network knows no field: the same bytes for left and right, if nothing helps."""
    plain = [*tiny[:-1], "conditioning=attention_only", "conditioning.residual_std=null", "long_video=phased"]

    def videos(*more: str) -> list[torch.Tensor]:
        options = {"image": photo, "refiner": None, "size": "model"}
        made = [animate([*plain, *more], arrows=arrows, **options) for arrows in WAYS]
        (note,) = made[0].record["notes"]
        assert re.search(r"has no motion weights: control=(warp guides|motion lets it ignore)", note)
        return [each.frames for each in made]

    left, right = videos()
    assert (left - right)[1:].abs().amax() > 0.1
    assert torch.equal(*videos("control=motion"))


@pytest.mark.slow
def test_without_motion_field_nothing_of_the_arrows_is_seen(photo: Path, tiny: list[str]) -> None:
    overrides = [*tiny, "conditioning=no_motion_field", "conditioning.motion_strength=false"]
    left, right = (animate(overrides, image=photo, arrows=arrows).frames for arrows in WAYS)
    assert torch.equal(left, right)


@pytest.mark.slow
def test_a_proposed_mask_is_said_and_shown(photo: Path) -> None:
    with pytest.warns(UserWarning, match=r"mask=auto: GrabCut proposes that \d+% of the photo may move; o.png shows"):
        made = quick(photo, mask="auto")
    assert made.record["notes"][0].startswith("mask=auto")
    assert 0 < (moved(made) > 0).float().mean() < 0.9


@pytest.mark.slow
def test_a_speed_that_smears_is_said_as_it_will_be(photo: Path, tiny: list[str]) -> None:
    """S19: of the arrow, or of the largest strength instead."""
    given = {"image": photo, "renderer": "eulerian", "refiner": None}
    with pytest.warns(UserWarning, match=r"arrows\[0\] is 44 px long and moves 11.0 px per frame, 31% of the height"):
        animate(tiny, arrows=[[2, 12, 46, 12]], **given)
    with pytest.warns(UserWarning, match=r"moves 3.8 px per frame"):
        animate(tiny, arrows=ARROW, strength=[100, 1000], **given)


@pytest.mark.slow
def test_a_strength_sweep_stands_side_by_side(photo: Path, tiny: list[str]) -> None:
    made = animate(tiny, image=photo, arrows=ARROW, strength=[100, 400])
    assert made.frames.shape == (5, 3, 36, 96)
    assert len(made.record["runs"]) == 2
    assert torch.equal(made.frames[..., 48:], animate(tiny, image=photo, arrows=ARROW, strength=400).frames)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("continuous", {"strength": [100, 200]}), ("loop", {"size": "model"}), ("phased", {"arrows": None}),
        ("continuous", {"renderer": "eulerian", "strength": [100, 200]}),
    ],
    ids=str,
)  # fmt: skip
def test_the_progress_bar_expects_all_that_is_done_and_no_more(
    method: str, given: dict, photo: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []
    monkeypatch.setattr(Progress, "__exit__", lambda self, *_: bars.append(self))
    overrides = [f"long_video={method}", *(tiny[:-1] if method == "phased" else tiny)]
    animate(overrides, image=photo, frames=7, **{"arrows": ARROW} | given)
    (bar,) = bars
    done = {name: stage.done for name, stage in bar.stages.items()}
    assert done == {name: pytest.approx(stage.units) for name, stage in bar.stages.items()}
    assert done["frames"] == 7 * len(given.get("strength", "1"))
    assert ("denoising" in done) == ("renderer" not in given)


@pytest.mark.slow
def test_loras_change_the_video_by_their_weights(base: Path, photo: Path, tiny: list[str]) -> None:
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    add_random_lora(denoiser.unet)
    for name in ("lora", "other"):
        save_lora(denoiser.unet, f"{name}.safetensors")

    def frames(**loras: float) -> torch.Tensor:
        given = {f"{name}.safetensors": weight for name, weight in loras.items()}
        made = animate(tiny, image=photo, arrows=ARROW, loras=given)
        assert given.keys() < made.record["sha256"].keys()
        return made.frames

    plain, full = frames(), frames(lora=1.0)
    assert not torch.allclose(plain, full, atol=1e-3)
    torch.testing.assert_close(frames(lora=0.0), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frames(lora=0.5, other=0.5), full, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_without_arrows_a_base_of_ones_own_moves_by_itself(photo: Path, tiny: list[str]) -> None:
    free, strong = (animate(tiny, image=photo, strength=s) for s in (None, 300))
    assert free.frames.shape == strong.frames.shape == (5, 3, 36, 48)
    assert not torch.equal(free.frames, strong.frames)
    assert free.record["notes"] == [], "one window moves"
    with pytest.warns(UserWarning, match="no arrows: after the first 5 frames long_video=loop moves little"):
        animate([*tiny, "long_video=loop"], image=photo, frames=8)
    assert animate([*tiny[:-1], "long_video=direct"], image=photo, frames=8).record["notes"] == []


@pytest.mark.filterwarnings("ignore:mask=auto")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"arrows": {"pins": [[3, 3]]}},
        {"arrows": '{"arrows": []}'},
        {"arrows": [], "renderer": "eulerian"},
        {"arrows": [], "mask": "auto"},
    ],
)
def test_without_arrows_the_embedded_base_says_what_to_draw(photo: Path, embedded: list[str], settings: dict) -> None:
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[20:33, 4:19] = 255
    Image.fromarray(mask).save("mask.png")
    given = {"image": photo, "mask": "mask.png"} | settings
    with pytest.raises(ValueError, match=r"^no arrows: .*; draw .* in the photo's 48x36 px, such as arrows=") as said:
        animate(embedded, **given)
    assert not Path("out.mp4").exists()
    (copied,) = re.findall(r'arrows="(.*)"$', str(said.value))
    wanted = [[11, 26, 16, 26]] if given["mask"] != "auto" else [[23, 17, 28, 17]]
    assert json.loads(copied) == wanted, "from the middle of what may move"
    if settings.get("renderer"):
        assert moved(animate(embedded, **given | {"arrows": copied})).any(), "the line's own example is one that moves"


@pytest.mark.slow
def test_what_the_embedded_base_makes_by_itself_is_there_for_who_asks(
    photo: Path, tiny: list[str], embedded: list[str]
) -> None:
    assert torch.equal(animate([*embedded, "arrows=[]"], image=photo).frames, animate(tiny, image=photo).frames)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": 3}, "mask=3: must be the name of an image file or auto"),
        ({"arrows": "[[1, 2, 3"}, "no valid JSON"),
        ({"arrows": [{"path": [[9, 9], [12, 9]], "kind": "sway"}]}, "kind=sway needs period"),
        ({"strength": -1}, "strength=-1"),
        ({"strength": []}, "must be a number such as 200, or a list"),
        ({"seed": 2**64}, "seed=18446744073709551616: must be a whole number"),
        ({"frames": 1}, "frames=1: must be a whole number of at least 2"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"renderer": "eulerian", "loras": {"a": 1.0}}, "takes no loras"),
        ({"size": [15, 20]}, r"size=\[15, 20\]: must be photo, model, or"),
        ({"loras": {"gone.safetensors": 1.0}}, "no LoRA file at gone.safetensors"),
        ({"colour": "red"}, "knows no colour"),
        ({"overrides": ["long_video=phased", "long_video.gamma=1.5"]}, "gamma=1.5"),
        ({"overrides": ["long_video=continuous", "long_video.overlap=9"]}, "overlap=9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named_and_an_earlier_video_stays(
    settings: dict, message: str, photo: Path, tiny: list[str]
) -> None:
    photo.rename("photo.png")
    Path("out.mp4").write_bytes(b"earlier")
    Path("out.json").write_text(json.dumps({"files": {"out.mp4": file_sha256(Path("out.mp4"))}}))
    own = settings.pop("overrides", tiny[-1:])
    with pytest.raises(ValueError, match=message) as caught:
        animate([*tiny[:-1], *own], **{"image": "photo.png", "arrows": ARROW} | settings)
    assert "\n" not in str(caught.value)
    assert Path("out.mp4").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        ((1, 40), {}, "p.png is 40x1 px: a video needs at least 2x2; give size"),
        ((2, 17000), {}, r"size=photo: a video of 17000x2 px is .* such as size=\[1080,1920\]"),
        ((2, 9000), {"strength": [1, 2]}, r"size=photo, 2 videos side by side: a video of 18000x2 px is too large"),
        ((2, 40), {"size": [8000, 8000]}, r"size=\[8000, 8000\]: a video of 8000x8000 px .* 35.7 megapixels"),
        ((2, 17000), {"size": "model"}, "size=model: a video of 17000x2 px is too large"),
    ],
)  # fmt: skip
def test_a_size_without_a_video_is_said(size: tuple[int, int], given: dict, message: str) -> None:
    Image.new("L", size[::-1], 99).save("p.png")
    with pytest.raises(ValueError, match=message):
        quick(Path("p.png"), arrows=[[0, 0, size[1] - 1, size[0] - 1]], **given)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 2), (3, 5), (2, 3000)])
def test_the_smallest_and_the_thinnest_photos_are_animated(size: tuple[int, int]) -> None:
    Image.new("RGB", size[::-1], (9, 99, 200)).save("p.png")
    made = animate(["eulerian.loop=true"], image="p.png", arrows=[[0, 0, 1, 0]], renderer="eulerian", frames=2)
    assert made.frames.shape[2:] == (size[0] // 2 * 2, size[1] // 2 * 2)
    assert "runs" not in made.record
    with Image.open("out.png") as overview:
        assert overview.width < 20_000


@pytest.mark.slow
def test_without_a_mask_t_decides_and_says_so(photo: Path) -> None:
    def made(name: str, **settings: Any) -> tuple[list[str], int]:
        made = animate(image=photo, arrows=ARROW, renderer="eulerian", frames=4, out=f"{name}.mp4", **settings)
        with Image.open(f"{name}.png") as picture:
            return made.record["notes"], picture.width

    with pytest.warns(UserWarning, match=r"T proposes that \d+% of the photo move; with\.png shows it"):
        notes, width = made("with")
    assert len(notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made("without", refiner=None) == ([], pytest.approx(width * 7 / 8, rel=0.05))
        Image.fromarray(np.pad(np.full((20, 48), 255, np.uint8), ((0, 16), (0, 0)))).save("mask.png")
        assert made("masked", mask="mask.png", refiner="none.safetensors")[0] == [], "not even loaded"
    with pytest.raises(ValueError, match=r"refiner=none\.safetensors: no such file"):
        made("missing", refiner="none.safetensors")


@pytest.mark.long
@pytest.mark.slow
def test_the_command_ends_in_one_line(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    photo = photo.rename(tmp_path / "photo.png")

    def run(*settings: str) -> subprocess.CompletedProcess[str]:
        return forked.run("-m", "motionanim.animate", *tiny, f"image={photo}", *settings, cwd=tmp_path)

    done = run("arrows=[[20,12,26,12]]", "frames=7")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 frames in" in done.stdout
    assert (tmp_path / "out.mp4").is_file()
    done = run("arrows=[[20,12,26,12]]", f"loras={{{tmp_path}/gone.safetensors: 0.5}}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "gone.safetensors: train one with" in done.stderr, "the override itself is understood"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "late"),
    [("motionanim.animate", "'torch', 'cv2', 'diffusers'"),
     ("motionanim.animation.job", "'diffusers', 'transformers', 'lightning'")],
)  # fmt: skip
def test_nothing_waits_for_a_library_that_it_does_not_need(module: str, late: str) -> None:
    """Start-up: PyTorch takes two seconds to import; diffusers, transformers and Lightning ten."""
    code = f"import sys, {module}; print(*{{{late}}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
