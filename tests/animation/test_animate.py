"""The command an artist types, on the tiny random base: files, repeatability, mistakes as one line."""

import json
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from motionanim.animate import animate
from motionanim.cli.progress import Progress
from motionanim.data.video import Video
from motionanim.files import file_sha256
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import add_lora, save_lora


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def tiny(base: Path) -> list[str]:
    GlobalHydra.instance().clear()
    return [
        f"scale.base={base}", "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.num_steps=3",
        "scale.motion_channels=8", "scale.median_strength=0.01", "long_video.overlap=2",
    ]  # fmt: skip


ARROW = [[20, 12, 26, 12]]


def test_it_leaves_video_picture_and_what_repeats_it(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.mp4"
    made = animate([*tiny[:-1], "long_video=phased"], image=photo, arrows=ARROW, frames=12, out=out, gif=True, png=True)
    assert made.frames.shape == (12, 3, 36, 48), "the photo's size"
    assert Video(out).info.num_frames == 12
    assert Video(out).info.fps == pytest.approx(7, rel=1e-3)
    with Image.open(out.with_suffix(".gif")) as gif:
        assert (gif.n_frames, gif.size) == (12, (48, 36))
    assert len(list((out.with_suffix("")).glob("*.png"))) == 12
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.height >= 192
        assert picture.width > 7 * 192, "input, arrows, field and five frames"
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["runs"][0]["calls"] == 3 + 2 * 0, "gamma 0.8 of 3 steps is all of them"
    assert record["command"]["arrows"] == ARROW
    assert record["sha256"][str(photo)] == file_sha256(photo)
    assert set(made.files) == {out, *(out.with_suffix(s) for s in (".png", ".json", ".gif", ""))}
    assert record["files"].keys() == {path.name for path in made.files} - {"out.json"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        animate(tiny, image=photo, arrows=ARROW, frames=7, seed=seed, out=tmp_path / f"{name}.mp4")
        files.append((tmp_path / f"{name}.mp4").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_outside_the_mask_nothing_moves(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[:, :24] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    made = animate(
        tiny, image=photo, arrows=[[12, 12, 18, 12]], mask=tmp_path / "mask.png", frames=7, out=tmp_path / "o.mp4"
    )
    moved = made.frames.diff(dim=0).abs().amax((0, 1))
    assert (moved[:, 24:] == 0).all()
    assert (moved[:, :22] > 0).all()


WHEEL = {"path": [[24, 10], [27, 10.5]], "kind": "turn", "region": {"brush": [[24, 18]], "radius": 9}}
LEAF = {"path": [[36, 30], [38, 30]], "kind": "sway", "period": 6, "region": {"brush": [[36, 30]], "radius": 5}}


@pytest.mark.parametrize("renderer", ["diffusion", "eulerian"])
def test_every_kind_is_drawn_and_only_regions_move(photo: Path, tiny: list[str], tmp_path: Path, renderer: str) -> None:
    options = {"image": photo, "renderer": renderer, "out": tmp_path / "o.mp4"}
    made = animate(tiny, arrows=[WHEEL, LEAF], **options)
    moved = made.frames.diff(dim=0).abs().amax((0, 1))
    assert (moved[:, :14] == 0).all(), "left of the wheel"
    assert moved[18, 28] > 0
    assert moved[30, 36] > 0
    again = animate(tiny, arrows=[{**WHEEL, "speed": 2}, LEAF], **options)
    assert not torch.equal(made.frames, again.frames)


def test_what_moves_may_leave_its_region(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    box = {"path": [[12, 12], [36, 12]], "kind": "move", "region": [[[7, 7], [17, 7], [17, 17], [7, 17]]]}
    made = animate(tiny, image=photo, arrows=[box], out=tmp_path / "o.mp4")
    moved = made.frames.diff(dim=0).abs().amax((0, 1))
    assert (moved[8:16, 8:40] > 0).all(), "all of its way"
    assert (moved[24:] == 0).all()


@pytest.mark.parametrize(
    ("size", "shape"), [("photo", (36, 48)), ("model", (12, 20)), ([20, 40], (20, 40)), ([48, 48], (48, 48))]
)
def test_the_video_has_the_size_that_was_asked_for(
    photo: Path, tiny: list[str], tmp_path: Path, size: str | list[int], shape: tuple[int, int]
) -> None:
    made = animate(tiny, image=photo, arrows=ARROW, size=size, out=tmp_path / "o.mp4")
    assert made.frames.shape == (5, 3, *shape)


def test_a_field_that_is_drawn_anew_for_each_step_is_the_models_picture_enlarged(
    photo: Path, tiny: list[str], tmp_path: Path
) -> None:
    overrides, given = [*tiny, "controls.field=advected"], {"image": photo, "arrows": ARROW, "out": tmp_path / "o.mp4"}
    large, small = (animate(overrides, size=size, **given).frames for size in ("photo", "model"))
    assert large.shape == (5, 3, 36, 48)
    assert small.shape == (5, 3, 12, 20)
    again = torch.nn.functional.interpolate(large, size=(12, 20), mode="bilinear", antialias=True)
    assert torch.corrcoef(torch.stack([again.flatten(), small.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("size", ["photo", "model"])
def test_without_motion_field_nothing_of_the_arrows_is_seen(
    photo: Path, tiny: list[str], tmp_path: Path, size: str
) -> None:
    overrides = [*tiny, "conditioning=no_motion_field", "conditioning.motion_strength=false"]
    left, right = (
        animate(overrides, image=photo, arrows=[arrow], size=size, out=tmp_path / "o.mp4").frames
        for arrow in ([26, 12, 20, 12], [20, 12, 26, 12])
    )
    assert torch.equal(left, right)


def test_a_proposed_mask_is_said_and_shown(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"mask=auto: GrabCut proposes that \d+% of the photo may move; .*o.png shows"):
        made = animate(tiny, image=photo, arrows=ARROW, mask="auto", renderer="eulerian", out=tmp_path / "o.mp4")
    assert made.record["notes"][0].startswith("mask=auto")
    moved = made.frames.diff(dim=0).abs().amax((0, 1)) > 0
    assert 0 < moved.float().mean() < 0.9
    with pytest.raises(ValueError, match="no arrows: mask=auto proposes what they may move; draw"):
        animate(tiny, image=photo, mask="auto", out=tmp_path / "o.mp4")


def test_a_speed_that_smears_is_said_as_it_will_be(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    """S19: of the arrow, or of the largest strength instead."""
    fast = [[2, 12, 46, 12]]
    with pytest.warns(UserWarning, match=r"arrows\[0\] is 44 px long and moves 11.0 px per frame, 31% of the height"):
        animate(tiny, image=photo, arrows=fast, renderer="eulerian", out=tmp_path / "o.mp4")
    with pytest.warns(UserWarning, match=r"moves 3.8 px per frame"):
        animate(tiny, image=photo, arrows=ARROW, strength=[100, 1000], renderer="eulerian", out=tmp_path / "o.mp4")


def test_a_strength_sweep_stands_side_by_side(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    made = animate(tiny, image=photo, arrows=ARROW, strength=[100, 400], out=tmp_path / "sweep.mp4")
    assert made.frames.shape == (5, 3, 36, 96)
    assert len(made.record["runs"]) == 2
    alone = animate(tiny, image=photo, arrows=ARROW, strength=400, out=tmp_path / "one.mp4")
    assert torch.equal(made.frames[..., 48:], alone.frames)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("continuous", {"strength": [100, 200]}), ("loop", {"size": "model"}), ("phased", {"arrows": None}),
        ("continuous", {"renderer": "eulerian", "strength": [100, 200]}),
    ],
    ids=str,
)  # fmt: skip
def test_the_progress_bar_expects_all_that_is_done_and_no_more(
    method: str, given: dict, photo: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []
    monkeypatch.setattr(Progress, "__exit__", lambda self, *_: bars.append(self))
    overrides = [f"long_video={method}", *(tiny[:-1] if method == "phased" else tiny)]
    animate(overrides, image=photo, frames=7, out=tmp_path / "o.mp4", **{"arrows": ARROW} | given)
    (bar,) = bars
    done = {name: stage.done for name, stage in bar.stages.items()}
    assert done == {name: pytest.approx(stage.units) for name, stage in bar.stages.items()}
    assert done["frames"] == 7 * len(given.get("strength", "1"))
    assert ("denoising" in done) == ("renderer" not in given)


def test_loras_change_the_video_by_their_weights(base: Path, photo: Path, tiny: list[str], tmp_path: Path) -> None:
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion={
        "channels": 8, "motion_field": True, "motion_keys": "latents", "motion_strength": True,
        "warped_latent": True, "residual_std": None, "median_strength": 0.01,
    })  # fmt: skip
    add_lora(denoiser.unet, rank=4, alpha=4)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.unet.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    save_lora(denoiser.unet, tmp_path / "lora.safetensors")

    def frames(**loras: float) -> torch.Tensor:
        given = {str(tmp_path / f"{name}.safetensors"): weight for name, weight in loras.items()}
        made = animate(tiny, image=photo, arrows=ARROW, loras=given, out=tmp_path / "o.mp4")
        assert given.keys() < made.record["sha256"].keys()
        return made.frames

    plain, full = frames(), frames(lora=1.0)
    assert not torch.allclose(plain, full, atol=1e-3)
    torch.testing.assert_close(frames(lora=0.0), plain, atol=1e-5, rtol=1e-5)
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "lora.safetensors").read_bytes())
    torch.testing.assert_close(frames(lora=0.5, other=0.5), full, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("loop", [False, True])
def test_eulerian_keeps_the_photos_size_without_a_network(photo: Path, tmp_path: Path, loop: bool) -> None:
    GlobalHydra.instance().clear()
    made = animate(
        [f"eulerian.loop={loop}"], image=photo, arrows=ARROW, renderer="eulerian", frames=6, out=tmp_path / "o.mp4"
    )
    assert made.frames.shape == (6, 3, 36, 48)
    assert "runs" not in made.record


def test_without_arrows_a_base_of_ones_own_moves_by_itself(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    free, strong = (animate(tiny, image=photo, strength=s, out=tmp_path / "o.mp4") for s in (None, 300))
    assert free.frames.shape == strong.frames.shape == (5, 3, 36, 48)
    assert not torch.equal(free.frames, strong.frames)
    assert free.record["notes"] == [], "one window moves"


def test_without_arrows_later_segments_that_hardly_move_are_said(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no arrows: after the first 5 frames long_video=loop moves little"):
        animate([*tiny, "long_video=loop"], image=photo, frames=8, out=tmp_path / "o.mp4")
    made = animate([*tiny[:-1], "long_video=direct"], image=photo, frames=8, out=tmp_path / "o.mp4")
    assert made.record["notes"] == []


@pytest.mark.filterwarnings("ignore:mask=auto")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strength": 300},
        {"arrows": {"pins": [[3, 3]]}},
        {"arrows": '{"arrows": []}'},
        {"arrows": [], "renderer": "eulerian"},
        {"arrows": [], "mask": "auto"},
    ],
)
def test_without_arrows_the_embedded_base_says_what_to_draw(
    photo: Path, tiny: list[str], tmp_path: Path, settings: dict[str, Any]
) -> None:
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[20:33, 4:19] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    embedded, out = [*tiny, f"paths.assets={Path(tiny[0].removeprefix('scale.base=')).parent}"], tmp_path / "o.mp4"
    given = {"image": photo, "out": out, "mask": tmp_path / "mask.png"} | settings
    with pytest.raises(
        ValueError, match=r"^no arrows: .*; draw .* in the photo's 48x36 px, such as arrows="
    ) as refused:
        animate(embedded, **given)
    assert not out.exists()
    (copied,) = re.findall(r'arrows="(.*)"$', str(refused.value))
    wanted = [[11, 26, 16, 26]] if given["mask"] != "auto" else [[23, 17, 28, 17]]
    assert json.loads(copied) == wanted, "from the middle of what may move"
    moved = animate(embedded, **given | {"arrows": copied, "renderer": "eulerian"}).frames
    assert not torch.equal(moved[0], moved[1]), "the line's own example is one that moves"


def test_what_the_embedded_base_makes_by_itself_is_there_for_who_asks(
    photo: Path, tiny: list[str], tmp_path: Path
) -> None:
    embedded = [*tiny, f"paths.assets={Path(tiny[0].removeprefix('scale.base=')).parent}"]
    asked = animate([*embedded, "arrows=[]"], image=photo, out=tmp_path / "asked.mp4").frames
    assert torch.equal(asked, animate(tiny, image=photo, out=tmp_path / "own.mp4").frames)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "nowhere.png"}, "nowhere.png cannot be opened"),
        ({"arrows": [[500, 2, 3, 4]]}, "outside the image"),
        ({"arrows": [[2, 2, 2, 2]]}, "has no length"),
        ({"arrows": "[[1, 2, 3"}, "no valid JSON"),
        ({"arrows": [[1, 2, float("nan"), 4]]}, "finite number"),
        ({"strength": -1}, "strength=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616: must be a whole number"),
        ({"frames": 1}, "frames=1: must be a whole number of at least 2"),
        ({"fps": 0}, "fps=0"),
        ({"out": "out.avi"}, "must end in .mp4"),
        ({"strength": []}, "must be a number such as 200, or a list"),
        ({"strength": "fast"}, "strength=fast: must be a number"),
        ({"frames": 7.5}, "frames=7.5: must be a whole number"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"out": "photo.mp4"}, "would replace the input .*photo.png"),
        ({"renderer": "eulerian", "loras": {"a": 1.0}}, "takes no loras"),
        ({"renderer": "magic"}, "renderer=magic: must be diffusion or eulerian"),
        ({"size": "big"}, "size=big: must be photo, model, or"),
        ({"size": [15, 20]}, r"size=\[15, 20\]: must be photo, model, or"),
        ({"loras": {"gone.safetensors": 1.0}}, "no LoRA file at gone.safetensors"),
        ({"colour": "red"}, "knows no colour"),
        ({"mask": "nowhere.png"}, "nowhere.png cannot be opened: No such file or directory; give an image file"),
        ({"arrows": [{"path": [[9, 9], [12, 9]], "region": [[[60, 9], [70, 9], [65, 15]]]}]}, "no pixel is inside"),
        (
            {"arrows": [{"path": [[9, 9], [12, 9]], "region": [[[20, 9], [30, 9], [25, 15]]]}]},
            "px outside its region",
        ),
        ({"arrows": [{"path": [[9, 9], [12, 9]], "kind": "sway"}]}, "kind=sway needs period"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named_and_an_earlier_video_stays(
    settings: dict, message: str, photo: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "out.mp4"
    earlier.write_bytes(b"earlier")
    made = {"files": {"out.mp4": file_sha256(earlier)}}
    earlier.with_suffix(".json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=message) as caught:
        animate(tiny, **{"image": photo, "arrows": ARROW, "out": earlier} | settings)
    assert "\n" not in str(caught.value)
    assert earlier.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "override",
    [
        "long_video.gamma=1.5", "long_video.omega=-1", "long_video=continuous long_video.overlap=9",
        "long_video.gamma=0.5 long_video.sigma=1",
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(override: str, photo: Path, tiny: list[str], tmp_path: Path) -> None:
    name = override.split("long_video.")[-1].split("=")[0]
    with pytest.raises(ValueError, match=name):
        animate(["long_video=phased", *tiny[:-1], *override.split()], image=photo, arrows=ARROW, out=tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("limit", [0, 20_000], ids=["at the start", "in the middle"])
def test_a_full_disk_leaves_the_earlier_files(limit: int, tmp_path: Path) -> None:
    """Really refused by the system, as by a full disk: no file may have more bytes."""
    GlobalHydra.instance().clear()
    image, out = tmp_path / "photo.png", tmp_path / "new" / "o.mp4"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(image)
    given = {"image": image, "arrows": [[20, 12, 26, 12]], "renderer": "eulerian", "png": True, "gif": True, "out": out}
    animate(frames=3, **given)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"out=.*o\.mp4 is not written \(File too large\): free some space or choose"):
            animate(frames=9, **given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def drawing(folder: Path) -> Path:
    """A folder of two .json files that name a mask file, and that file."""
    Image.new("L", (48, 36), 255).save(folder / "lake.png")
    (folder / "a.json").write_text(
        '{"arrows": [{"path": [[20, 12], [26, 12]], "region": "lake"}], "regions": {"lake": "lake.png"}}'
    )
    (folder / "b.json").write_text('[{"path": [[20, 12], [26, 12]], "region": "lake.png"}]')
    return folder


@pytest.mark.parametrize("arrows", ["a.json", "b.json"])
def test_a_mask_file_that_a_drawing_names_is_not_replaced(arrows: str, photo: Path, tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    folder = drawing(tmp_path)
    before = (folder / "lake.png").read_bytes()
    given = {"image": photo, "arrows": folder / arrows, "renderer": "eulerian", "frames": 2}
    with pytest.raises(ValueError, match=r"lake.mp4 would replace .*lake\.png.*: choose another name"):
        animate(out=folder / "lake.mp4", **given)
    assert (folder / "lake.png").read_bytes() == before
    animate(out=folder / "new" / "lake.mp4", **given)


def test_a_photo_among_frames_of_an_earlier_video_is_not_replaced(photo: Path, tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    frame = tmp_path / "o" / "00000.png"
    frame.parent.mkdir()
    photo.rename(frame)
    with pytest.raises(ValueError, match=r"would replace the input .*00000\.png"):
        animate(image=frame, arrows=ARROW, renderer="eulerian", png=True, out=tmp_path / "o.mp4")
    assert frame.exists()


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        ((1, 40), {}, "photo.png is 40x1 px: a video needs at least 2x2; give size"),
        ((40, 1), {}, "photo.png is 1x40 px: a video needs at least 2x2; give size"),
        ((2, 17000), {}, r"size=photo: a video of 17000x2 px is .* such as size=\[1080,1920\]"),
        ((2, 9000), {"strength": [1, 2]}, r"size=photo, 2 videos side by side: a video of 18000x2 px is too large"),
        ((2, 40), {"size": [8000, 8000]}, r"size=\[8000, 8000\]: a video of 8000x8000 px .* 35.7 megapixels"),
        ((2, 17000), {"size": "model"}, "size=model: a video of 17000x2 px is too large"),
    ],
)  # fmt: skip
def test_a_size_without_a_video_is_said(size: tuple[int, int], given: dict, message: str, tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    Image.new("L", size[::-1], 99).save(tmp_path / "photo.png")
    arrow = [[0, 0, size[1] - 1, size[0] - 1]]
    with pytest.raises(ValueError, match=message):
        animate(image=tmp_path / "photo.png", arrows=arrow, renderer="eulerian", out=tmp_path / "o.mp4", **given)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (2, 3000), (300, 2)])
def test_the_smallest_and_the_thinnest_photos_are_animated(size: tuple[int, int], tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    Image.new("RGB", size[::-1], (9, 99, 200)).save(tmp_path / "photo.png")
    arrow = [[0, 0, 1, 0]]
    made = animate(image=tmp_path / "photo.png", arrows=arrow, renderer="eulerian", frames=2, out=tmp_path / "o.mp4")
    assert made.frames.shape[2:] == (size[0] // 2 * 2, size[1] // 2 * 2)
    with Image.open(tmp_path / "o.png") as overview:
        assert overview.width < 20_000


def test_no_image_is_one_line(tiny: list[str]) -> None:
    with pytest.raises(ValueError, match="no image given: pass image="):
        animate(tiny)


@pytest.mark.slow
def test_the_command_ends_in_one_line(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    def run(*settings: str) -> subprocess.CompletedProcess[str]:
        return forked.run("-m", "motionanim.animate", *tiny, f"image={photo}", *settings, cwd=tmp_path)

    done = run("arrows=[[20,12,26,12]]", "frames=7")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 frames in" in done.stdout
    assert (tmp_path / "out.mp4").is_file()
    done = run("arrows=[[20,12,26,12]]", f"loras={{{tmp_path}/gone.safetensors: 0.5}}")
    assert done.returncode == 2
    assert "gone.safetensors: train one with" in done.stderr, "the override itself is understood"
    done = run("arrows=[[20,12,260,12]]")
    assert done.returncode == 2
    assert done.stderr.startswith("error: arrows[0]: the point (260, 12) is outside the image")
    assert "Traceback" not in done.stderr


def test_a_folder_of_frames_holds_this_video_only(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    for frames in (7, 3):
        animate(tiny, image=photo, arrows=ARROW, frames=frames, png=True, out=tmp_path / "o.mp4")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [f"{i:05}.png" for i in range(3)]
    (tmp_path / "o" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="would replace .*o, which no run left like that"):
        animate(tiny, image=photo, arrows=ARROW, png=True, out=tmp_path / "o.mp4")


def test_a_folder_that_cannot_be_written_is_named(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, OSError), match="file"):
        animate(tiny, image=photo, arrows=ARROW, out=tmp_path / "file" / "out.mp4")


def test_help_and_mistakes_wait_for_no_network_library() -> None:
    """Start-up: PyTorch takes two seconds to import, diffusers, transformers and Lightning ten."""
    code = "import sys, motionanim.animate; print(*{'torch', 'cv2', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_the_eulerian_renderer_waits_for_no_network_library() -> None:
    code = "import sys, motionanim.animation.job; print(*{'diffusers', 'transformers', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_without_a_mask_t_decides_and_says_so(photo: Path, tiny: list[str], tmp_path: Path) -> None:
    def made(name: str, **settings) -> tuple[list[str], int]:
        out = tmp_path / f"{name}.mp4"
        made = animate(
            tiny[:-1], image=photo, arrows=ARROW, renderer="eulerian", frames=4, out=out, progress=False, **settings
        )
        with Image.open(out.with_suffix(".png")) as picture:
            return made.record["notes"], picture.width

    with pytest.warns(UserWarning, match=r"T proposes that \d+% of the photo move; .*with\.png shows it"):
        notes, width = made("with")
    assert len(notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made("without", refiner=None) == ([], pytest.approx(width * 7 / 8, rel=0.05))
        mask = tmp_path / "mask.png"
        Image.fromarray(np.pad(np.full((20, 48), 255, np.uint8), ((0, 16), (0, 0)))).save(mask)
        assert made("masked", mask=mask)[0] == []
        # Nothing is loaded that is not asked.
        assert made("masked", mask=mask, refiner=str(tmp_path / "none.safetensors"))[0] == []
    with pytest.raises(ValueError, match=r"refiner=.*none\.safetensors: no such file"):
        made("missing", refiner=str(tmp_path / "none.safetensors"))
