"""Prepared latents in several shapes: training on them is training on the clips that they are made of."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import shard_runs
import torch
from mixed_videos import SHAPES, mixed_data, shapes_32, write_videos

from motionanim.data.latents.prepared import PreparedLatents, clip_size
from motionanim.data.stream import StreamData, as_floats, collate
from motionanim.models.svd.codec import Codec
from motionanim.types import ClipBatch

SIZE = {"num_frames": 5, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StreamData:
    root = tmp_path_factory.mktemp("mixed")
    write_videos(root, 24)
    return mixed_data(root, root / ".cache")


def encoded(data: StreamData, codec: Codec, folder: Path, count: int, encode=None) -> int:
    return shard_runs.encoded(
        data.train, codec, folder, count=count, encode=encode, batch_size=3, shard_clips=6, vae="v", source={},
        size=clip_size(shapes_32(), **SIZE), shape_number=data.train.shape_number,
    )  # fmt: skip


def opened(folder: Path, row: int = 4) -> PreparedLatents:
    return shard_runs.prepared(folder, shapes=shapes_32(row), **SIZE)


def test_a_shard_holds_clips_of_several_shapes_and_training_sees_those_of_the_videos(data, codec, tmp_path):
    assert encoded(data, codec, tmp_path, 22) == 22
    sizes = []
    for shard in tmp_path.glob("*.tar"):
        with tarfile.open(shard) as tar:
            sizes.append({member.size for member in tar})
    assert max(map(len, sizes)) > 1, "a shard crosses from row to row"
    prepared = opened(tmp_path)
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


def test_a_killed_run_gives_the_same_bytes_and_a_folder_grows(data: StreamData, codec: Codec, tmp_path: Path) -> None:
    encoded(data, codec, tmp_path / "whole", 22)
    with pytest.raises(KeyboardInterrupt):
        encoded(data, codec, tmp_path / "cut", 13, encode=shard_runs.ends_after(3, codec, KeyboardInterrupt()))
    assert encoded(data, codec, tmp_path / "cut", 13) == 7
    assert encoded(data, codec, tmp_path / "cut", 22) == 10  # the shard of one clip is made anew, whole
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "cut")}
    assert files["whole"] == files["cut"]
    last = sorted((tmp_path / "cut").glob("*.tar"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-10240])
    with pytest.raises(ValueError, match="is truncated: .* run motionanim.data.encode again"):
        opened(tmp_path / "cut")
    assert encoded(data, codec, tmp_path / "cut", 22) == 4
    assert last.read_bytes() == content


def test_latents_of_other_shapes_are_refused(data: StreamData, codec: Codec, tmp_path: Path) -> None:
    encoded(data, codec, tmp_path, 6)
    assert opened(tmp_path, row=2).order.item(0) >= 0, "rows are made anew from what is stored"
    with pytest.raises(ValueError, match="holds clips of .*: scale.buckets is true for one of them only"):
        shard_runs.prepared(tmp_path, **SIZE)
    manifest = json.loads((tmp_path / "latents.json").read_text())
    assert sum(count for _, count in manifest["shapes_in_order"]) == 6
    numbers = np.repeat(*np.array(manifest["shapes_in_order"]).T)
    assert numbers.tolist() == [data.train.shape_number(position) for position in range(6)]
