"""Latents made beforehand: equal to those made in training, resumable, refused where they do not fit."""

import functools
import json
import tarfile
from pathlib import Path

import forked
import numpy as np
import pytest
import shard_runs
import torch
from configs import ROOT, _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from hydra.utils import instantiate
from mixed_videos import SHAPES, mixed_data, shapes_32, write_videos
from training_runs import Losses, lora_module, make_trainer

from motionanim.data.latents.prepared import PreparedLatents, clip_size
from motionanim.data.stream import StreamData, as_floats, collate
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.models.svd.codec import Codec
from motionanim.types import ClipBatch

SIZE = {"num_frames": 5, "height": 16, "width": 16}
opened = functools.partial(shard_runs.prepared, **SIZE)


def rendered(kind: type[SyntheticClips] = SyntheticClips) -> SyntheticClips:
    return kind(seed=3, length=4, fps=7, moving_camera=0.5, split="train", **SIZE)


def encoded(codec: Codec, folder: Path, count: int = 4, **changes) -> int:
    options = {"vae": codec.fingerprint(), "size": SIZE, "source": {"seed": 3}, "shard_clips": 2} | changes
    return shard_runs.encoded(rendered(), codec, folder, count=count, batch_size=2, **options)


def batch_of(item: tuple) -> tuple:
    return as_floats(item._make(field[None] for field in item))


def test_latents_are_those_of_the_clips(codec: Codec, tmp_path: Path) -> None:
    assert encoded(codec, tmp_path) == 4
    prepared = opened(tmp_path)
    by_image = {batch_of(prepared[p]).image.mean().item(): batch_of(prepared[p]) for p in range(4)}
    assert len(by_image) == 4, "an epoch shows every clip once"
    for position in range(4):
        clip = ClipBatch(*(field[None] for field in rendered()[position]))
        made = min(by_image.values(), key=lambda latents: (latents.image - clip.image).abs().max().item())
        torch.testing.assert_close(made.image, clip.image, atol=0.5 / 127.5 + 1e-6, rtol=0)
        torch.testing.assert_close(made.latents, codec.encode(clip.frames), atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(made.image_embed, codec.embed_image(clip.image), atol=5e-3, rtol=1e-2)
        torch.testing.assert_close(made.flow, clip.flow, atol=2e-3, rtol=1e-3)
        assert made.fps.item() == 7
        assert torch.equal(made.warped_latents, made.latents[:, :1].expand_as(made.latents)), "none are stored"


def test_what_does_not_fit_is_refused_in_words(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_clips=0"):
        encoded(codec, tmp_path, shard_clips=0)
    with pytest.raises(ValueError, match="shuffle_shards=0"):
        opened(tmp_path, shuffle_shards=0)
    encoded(codec, tmp_path, count=1)
    others = {"vae": "other", "shard_clips": 3, "size": {"num_frames": 6}, "source": {"seed": 4}}
    others["warp"] = codec.warp_image
    for key, value in others.items():
        with pytest.raises(ValueError, match=f"holds latents of another {'predict' if key == 'warp' else key}: choose"):
            encoded(codec, tmp_path, count=1, **{key: value})
    with pytest.raises(ValueError, match=r"holds clips of .*'height': 16.* the experiment's are .*'height': 32"):
        opened(tmp_path, height=32)
    (tmp_path / "latents.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete it; run motionanim.data.encode again"):
        opened(tmp_path)


def test_latents_need_no_videos_where_nothing_is_validated(codec: Codec, tmp_path: Path) -> None:
    encoded(codec, tmp_path / "latents")
    size = [f"scale.{name}={value}" for name, value in SIZE.items()]
    cfg = composed("experiment=motion_lora", "data=latents", f"data.latents={tmp_path / 'latents'}", *size)
    data = instantiate(cfg.data, _convert_="all")
    assert (len(data.train[0].latents), len(data.val)) == (5, 0)


@pytest.mark.slow
def test_training_on_latents_is_training_on_their_clips(base: Path, codec: Codec, tmp_path: Path) -> None:
    encoded(codec, tmp_path / "latents", warp=codec.warp_image)
    prepared = opened(tmp_path / "latents", seed=3)

    class InTheirOrder(SyntheticClips):
        def __getitem__(self, position: int) -> ClipBatch:
            images = torch.stack([super(InTheirOrder, self).__getitem__(p).frames[0] for p in range(4)])
            wanted = batch_of(prepared[position]).image
            nearest = (images - wanted).abs().amax((1, 2, 3)).argmin()
            return super().__getitem__(int(nearest))._replace(position=torch.tensor(position))

    clips, losses = rendered(InTheirOrder), []
    for train in (prepared, clips):
        seen = Losses()
        data = StreamData(train=train, val=clips, batch_size=2, num_workers=0)
        make_trainer(tmp_path, 3, seen).fit(lora_module(base), data)
        losses.append(torch.tensor(seen.losses))
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "another"}, "are of another VAE or CLIP .fingerprint another, .*encode them again"),
        ({}, "lack warped latents: encode them again with predict=true"),
    ],
)
def test_latents_that_do_not_fit_the_model_stop_training(base, codec, tmp_path, changes, message) -> None:
    encoded(codec, tmp_path, **changes)
    data = StreamData(train=opened(tmp_path), val=rendered(), batch_size=2, num_workers=0)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, 1).fit(lora_module(base), data)


# Clips of several shapes.

SIZE_32 = SIZE | {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StreamData:
    root = tmp_path_factory.mktemp("mixed")
    write_videos(root, 24)
    return mixed_data(root, root / ".cache")


def encoded_mixed(data: StreamData, codec: Codec, folder: Path, count: int, encode=None) -> int:
    return shard_runs.encoded(
        data.train, codec, folder, count=count, encode=encode, batch_size=3, shard_clips=6, vae="v", source={},
        size=clip_size(shapes_32(), **SIZE_32), shape_number=data.train.shape_number,
    )  # fmt: skip


def opened_mixed(folder: Path, row: int = 4) -> PreparedLatents:
    return shard_runs.prepared(folder, shapes=shapes_32(row), **SIZE_32)


@pytest.mark.slow
def test_a_shard_holds_clips_of_several_shapes_and_training_sees_those_of_the_videos(data, codec, tmp_path):
    assert encoded_mixed(data, codec, tmp_path, 22) == 22
    sizes = []
    for shard in tmp_path.glob("*.tar"):
        with tarfile.open(shard) as tar:
            sizes.append({member.size for member in tar})
    assert max(map(len, sizes)) > 1, "a shard crosses from row to row"
    prepared = opened_mixed(tmp_path)
    seen = set()
    for row in range(8):
        positions = range(4 * row, 4 * row + 4)
        batch = as_floats(collate([prepared[position] for position in positions]))
        # The clip that was stored as the n-th is that at position n of the stream of videos.
        stored = [prepared.order.item(position) for position in positions]
        clips = as_floats(ClipBatch(*collate([data.train[number] for number in stored])))
        assert batch.position.tolist() == list(positions)
        torch.testing.assert_close(batch.image, clips.image, atol=0.5 / 127.5 + 1e-6, rtol=0)
        torch.testing.assert_close(batch.latents, codec.encode(clips.frames), atol=2e-3, rtol=1e-3)
        assert torch.equal(batch.flow, clips.flow)
        seen.add(tuple(batch.image.shape[-2:]))
    assert seen == set(SHAPES.values())


@pytest.mark.slow
def test_a_killed_run_gives_the_same_bytes_and_a_folder_grows_or_stays_usable(data, codec, tmp_path) -> None:
    encoded_mixed(data, codec, tmp_path / "whole", 22)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        encoded_mixed(data, codec, cut, 13, encode=shard_runs.ends_after(3, codec, KeyboardInterrupt()))
    with pytest.raises(ValueError, match="is unfinished: run motionanim.data.encode again"):
        opened_mixed(cut)
    (first,) = cut.glob("*.tar")
    written = first.stat().st_mtime_ns
    assert encoded_mixed(data, codec, cut, 13) == 7
    full = OSError("no space left on device")
    with pytest.raises(OSError, match="no space"):
        encoded_mixed(data, codec, cut, 22, encode=shard_runs.ends_after(0, codec, full))
    usable = opened_mixed(cut)
    assert [len(usable.shards.read(number)["latents"]) for number in range(len(usable))] == [5] * 13
    assert encoded_mixed(data, codec, cut, 22) == 10  # the shard of one clip is made anew, whole
    assert encoded_mixed(data, codec, cut, 2) == 0
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "cut")}
    assert files["whole"] == files["cut"]
    last = sorted(cut.glob("*.tar"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-10240])
    with pytest.raises(ValueError, match="is truncated: .* run motionanim.data.encode again"):
        opened_mixed(cut)
    assert encoded_mixed(data, codec, cut, 22) == 4
    assert last.read_bytes() == content
    assert first.stat().st_mtime_ns == written


def test_latents_of_other_shapes_are_refused(data: StreamData, codec: Codec, tmp_path: Path) -> None:
    encoded_mixed(data, codec, tmp_path, 6)
    assert opened_mixed(tmp_path, row=2).order.item(0) >= 0, "rows are made anew from what is stored"
    with pytest.raises(ValueError, match="holds clips of .*: scale.buckets is true for one of them only"):
        shard_runs.prepared(tmp_path, **SIZE_32)
    manifest = json.loads((tmp_path / "latents.json").read_text())
    assert sum(count for _, count in manifest["shapes_in_order"]) == 6
    numbers = np.repeat(*np.array(manifest["shapes_in_order"]).T)
    assert numbers.tolist() == [data.train.shape_number(position) for position in range(6)]


@pytest.mark.long
@pytest.mark.slow
def test_the_commands_encode_and_train(base: Path, tmp_path: Path) -> None:
    run = functools.partial(forked.run, cwd=tmp_path)
    small = [f"scale.{name}={value}" for name, value in SIZE.items()]
    small += [f"scale.base={base}", "scale.batch_size=2", "scale.num_workers=0"]
    encode = ["-m", "motionanim.data.encode", "clips=3", "shard_clips=2", "engine.workers=1", *small]
    for more in (["out=latents"], ["out=alone", "engine.workers=0"]):
        done = run(*encode, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "3 clips encoded now" in done.stdout
    made, alone = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("latents", "alone")
    )
    assert made == alone, "by another process or this one"
    done = run(
        str(ROOT / "train.py"), "experiment=motion_lora", "trainer.max_steps=1", "run=smoke", *small,
        "scale.motion_channels=8", "sampling.num_steps=2", "callbacks.camera.clips=1", "callbacks.preview.clips=1",
        "trainer.limit_val_batches=1", "data.latents=latents",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/motion_lora/smoke/lora.safetensors").is_file()
