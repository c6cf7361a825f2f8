"""Downloads that are whole, cut off, other files or pointers, checked against a record of a tiny base."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MOTION
from diffusers import StableVideoDiffusionPipeline
from safetensors.torch import load_file, save_file

from motionanim import interchange
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.interchange.whole import Finding, check_base, published

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
CLIP = "image_encoder/model.fp16.safetensors"
Record = dict[str, Any]
STEMS = {"image_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


@pytest.fixture(scope="module")
def downloaded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A folder as published, in float32 and fp16, and its record, made by other code than the check."""
    folder, record = tmp_path_factory.mktemp("download") / "svd", {"source": "someone/tiny", "files": {}, "parts": {}}
    pipeline = StableVideoDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    for part, stem in STEMS.items():
        lines = sorted(
            f"{name} {list(value.shape)}\n" for name, value in load_file(folder / part / f"{stem}.safetensors").items()
        )
        record["parts"][part] = {"weights": stem, "layers_sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        name = str(path.relative_to(folder))
        record["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return folder, record


@pytest.fixture
def record(downloaded: tuple[Path, Record]) -> Record:
    return downloaded[1]


@pytest.fixture
def copy(downloaded: tuple[Path, Record], tmp_path: Path) -> Path:
    """The same with fp16 files alone, which are enough."""
    shutil.copytree(downloaded[0], tmp_path / "svd")
    for part, stem in STEMS.items():
        (tmp_path / "svd" / part / f"{stem}.safetensors").unlink()
    return tmp_path / "svd"


def wrong(found: list[Finding]) -> dict[str, str]:
    return {each.file: each.told for each in found if each.wrong}


def test_whole_folders_are_whole(downloaded: tuple[Path, Record], record: Record, copy: Path) -> None:
    folder = downloaded[0]
    both, half = check_base(folder, record), check_base(copy, record)
    assert {each.told for each in (*both, *half)} == {"whole"}
    assert sorted(each.file for each in both) == sorted(record["files"])
    assert len(half) == len(both) - 3


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def renamed_layer(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"conv_in.bias"', b'"conv_in.bian"'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "missing: fetch it, or the file without fp16"),
        (cut_off, r"wrong size (\d+ of \d+ bytes)"),
        (flipped, "wrong SHA-256"),
        (pointer, "a git-lfs pointer, not the weights: run `git lfs pull`"),
        (renamed_layer, "other layers than SVD's, by names and shapes"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "no safetensors file (22 bytes)"),
        (lambda path: path.write_bytes(b""), "no safetensors file (0 bytes)"),
    ],
)
def test_wrong_weights_are_told(record: Record, copy: Path, spoil: Callable[[Path], Any], words: str) -> None:
    size = (copy / UNET).stat().st_size
    spoil(copy / UNET)
    ((file, told),) = wrong(check_base(copy, record)).items()
    assert file == UNET
    assert told.startswith(words.replace(r"\d+ of \d+", f"{size - 100} of {size}"))


def test_a_variant_that_is_not_needed_may_be_a_pointer_but_not_a_broken_file(
    downloaded: tuple[Path, Record], record: Record, copy: Path
) -> None:
    for part, stem in STEMS.items():
        pointer(copy / part / f"{stem}.safetensors")
    found = check_base(copy, record)
    assert wrong(found) == {}
    assert sum(each.told.startswith("a git-lfs pointer") for each in found) == 3
    load(copy)
    pointer(copy / CLIP)
    with pytest.raises((ValueError, OSError)):
        Codec.from_pretrained(copy)
    shutil.copyfile(downloaded[0] / CLIP, copy / CLIP)
    path = copy / UNET.replace(".fp16", "")
    shutil.copyfile(downloaded[0] / UNET.replace(".fp16", ""), path)
    cut_off(path)
    assert list(wrong(check_base(copy, record))) == [UNET.replace(".fp16", "")]


def load(folder: Path) -> None:
    Codec.from_pretrained(folder)
    Denoiser.from_pretrained(folder, downscale=2, motion=MOTION)


def sharded(folder: Path) -> dict[str, str]:
    """Split the UNet's file in two, with diffusers' names; its index."""
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:40], names[40:]), start=1):
        file = f"diffusion_pytorch_model.fp16-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
        index |= dict.fromkeys(part, file)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return index


def test_sharded_files_are_checked_by_length_and_layers(record: Record, copy: Path) -> None:
    index = sharded(copy)
    found = check_base(copy, record)
    assert wrong(found) == {}
    assert sum(each.told.startswith("whole, a shard") for each in found) == 2
    load(copy)
    shard = copy / "unet" / index["conv_in.weight"]
    kept = shard.read_bytes()
    cut_off(shard)
    assert wrong(check_base(copy, record))[f"unet/{shard.name}"].startswith("wrong size")
    shard.unlink()
    assert wrong(check_base(copy, record)) == {f"unet/{shard.name}": "missing: fetch it"}
    shard.write_bytes(kept)
    path = copy / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    path.write_text(json.dumps({"weight_map": {k: v for k, v in index.items() if k != "conv_in.weight"}}))
    assert wrong(check_base(copy, record))[f"unet/{path.name}"].startswith("other layers than SVD's")
    path.write_text("[]")
    assert wrong(check_base(copy, record)) == {f"unet/{path.name}": "no index of shards: fetch it again"}


def test_configs_may_be_edited_but_not_to_other_layers(record: Record, copy: Path) -> None:
    path = copy / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"sample_size": 4}))
    (told,) = [each for each in check_base(copy, record) if each.file == "unet/config.json"]
    assert (told.told, told.wrong) == ("whole, edited without a change of the layers", False)
    for content, words in (
        (json.dumps(config | {"in_channels": 4}), "wrong: it describes a network of other layers"),
        ("{", "cannot be used"),
        ("{}", "cannot be used"),
    ):
        path.write_text(content)
        assert wrong(check_base(copy, record))["unet/config.json"].startswith(words)
    path.unlink()
    (copy / "model_index.json").write_text("{")
    assert wrong(check_base(copy, record)).keys() == {"unet/config.json", "model_index.json"}


def test_the_command_prints_a_line_for_each_file(
    record: Record, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interchange, "published", lambda: record)
    assert interchange.main(["check-base", str(copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(UNET)] == [[UNET, "whole"]]
    assert lines[-1] == f"{copy} is whole: use it as scale=svd scale.base={copy}"
    cut_off(copy / UNET)
    assert interchange.main(["check-base", str(copy)]) == 2
    told = f"1 of {len(lines) - 1} files are missing or unlike those of someone/tiny"
    assert capsys.readouterr().err == f"error: {copy} is not whole: {told}\n"


@pytest.mark.weights
def test_the_shipped_record_is_that_of_the_published_folder(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, record = shared / "svd" / "config", published()
    pointers = 0
    for name, known in record["files"].items():
        content = (config / name).read_bytes()
        if content.startswith(b"version https://git-lfs"):
            stated = dict(line.split(" ", 1) for line in content.decode().splitlines())
            assert (stated["oid"], stated["size"]) == (f"sha256:{known['sha256']}", str(known["size"]))
            pointers += 1
        else:
            assert hashlib.sha256(content).hexdigest() == known["sha256"]
    assert pointers == 6
    for part, about in record["parts"].items():
        shapes = json.loads((shared / "svd" / f"{part}_keys.json").read_text())
        text = "".join(f"{name} {shapes[name]}\n" for name in sorted(shapes))
        assert (len(shapes), hashlib.sha256(text.encode()).hexdigest()) == (about["tensors"], about["layers_sha256"])
    assert interchange.main(["check-base", str(config)]) == 2
    told = capsys.readouterr().out
    assert told.count("a git-lfs pointer") == 6
    assert told.count("  whole\n") == 6


@pytest.mark.weights
def test_an_edited_config_of_svd_still_describes_its_layers(shared: Path, tmp_path: Path) -> None:
    for part in STEMS:
        (tmp_path / part).mkdir()
        config = json.loads((shared / "svd" / "config" / part / "config.json").read_text())
        (tmp_path / part / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if k[0] != "_" or k == "_class_name"})
        )
    edited = [each for each in check_base(tmp_path, published()) if "edited" in each.told]
    assert len(edited) == 3
