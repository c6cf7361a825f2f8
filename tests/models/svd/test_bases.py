"""Bases as they come: folders, hub ids and fp16 variants bring their motion weights and the settings of these."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from conftest import MOTION
from diffusers import StableVideoDiffusionPipeline
from omegaconf import OmegaConf
from safetensors import SafetensorError

from motionanim.models.svd import bases
from motionanim.models.svd.bases import in_any_variant, motion_config
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.tiny import save_pipeline

COMMIT = "0123456789" * 4
OTHER = MOTION | {"residual_std": 0.25, "motion_keys": "field"}


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with motion weights, none of them zero."""
    folder = tmp_path_factory.mktemp("trained") / "pipeline"
    save_pipeline(folder, base=base)
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion=OTHER)
    torch.nn.init.ones_(denoiser.motion.strength.weight)
    denoiser.save_motion(folder)
    return folder


@pytest.fixture
def hub_id(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same in a hub's cache."""
    cached = tmp_path / "hub" / "models--someone--rivers"
    shutil.copytree(trained, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    bases._from_hub.cache_clear()
    return "someone/rivers"


def test_a_hub_id_brings_its_motion_weights(hub_id: str) -> None:
    denoiser = Denoiser.from_pretrained(hub_id, downscale=2, motion=OTHER)
    assert (denoiser.motion.strength.weight == 1).all()
    assert motion_config(hub_id) == OTHER
    with pytest.raises(ValueError, match="motion weights of someone/rivers have channels=8"):
        Denoiser.from_pretrained(hub_id, downscale=2, motion=OTHER | {"channels": 16})


def test_a_hub_that_cannot_be_asked_is_no_silent_loss(
    hub_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "hub" / "models--someone--rivers" / "snapshots" / COMMIT / "motion")
    assert (Denoiser.from_pretrained(hub_id, downscale=2, motion=OTHER).motion.strength.weight == 0).all()
    assert "cannot be asked whether someone/rivers has motion weights" in caplog.text


def test_the_hub_is_asked_once_and_not_for_what_its_snapshot_lacks(
    hub_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = [], huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or ask(*names))
    assert [motion_config(hub_id) for _ in range(3)] == [OTHER] * 3
    assert len(asked) == 1
    cached = tmp_path / "hub" / "models--someone--rivers"
    shutil.rmtree(cached / "snapshots" / COMMIT / "motion")
    (cached / ".no_exist" / COMMIT / "motion").mkdir(parents=True)
    (cached / ".no_exist" / COMMIT / "motion" / "config.json").touch()
    bases._from_hub.cache_clear()
    assert motion_config(hub_id) == {}
    assert len(asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "files"), [("10GB", "*.fp16.safetensors"), ("1MB", "*.fp16-00002-of-*")])
def test_a_folder_of_fp16_variants_loads(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, largest: str, files: str
) -> None:
    StableVideoDiffusionPipeline.from_pretrained(trained).save_pretrained(
        tmp_path / "fp16", variant="fp16", max_shard_size=largest
    )
    shutil.copytree(trained / "motion", tmp_path / "fp16" / "motion")
    assert list((tmp_path / "fp16" / "unet").glob(files))
    plain, variant = (
        Denoiser.from_pretrained(each, downscale=2, motion=OTHER) for each in (trained, tmp_path / "fp16")
    )
    for one, other in zip(plain.parameters(), variant.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert Codec.from_pretrained(trained).fingerprint() == Codec.from_pretrained(tmp_path / "fp16").fingerprint()
    assert "An error occurred" not in caplog.text, "of the files that are not there"
    save_pipeline(tmp_path / "plain", base=tmp_path / "fp16")
    shutil.copytree(trained / "unet", tmp_path / "none" / "unet", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model"):
        Denoiser.from_pretrained(tmp_path / "none", downscale=2, motion=OTHER)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["tiny", "svd"])
@pytest.mark.parametrize("config", ["train", "animate", "evaluate"])
def test_settings_left_open_follow_the_base(trained: Path, scale: str, config: str) -> None:
    given = {"train": ["experiment=diffusion"], "animate": ["image=none"], "evaluate": []}[config]
    place = {"train": "model.motion", "animate": "motion", "evaluate": "method.motion"}[config]

    def motion(*settings: str) -> dict:
        cfg = composed(f"scale={scale}", *settings, *given, config=config)
        return OmegaConf.to_container(OmegaConf.select(cfg, place), resolve=True)

    assert motion(f"scale.base={trained}") == OTHER
    assert motion(f"scale.base={trained}", "scale.motion_channels=16") == OTHER | {"channels": 16}
    assert motion(f"scale.base={trained}", "conditioning=attention_only") == OTHER | {"warped_latent": False}
    assert motion("scale.base=someone/unknown")["channels"] == {"tiny": 32, "svd": 64}[scale], "of a plain SVD"


@pytest.mark.slow
def test_advice_can_be_followed(trained: Path) -> None:
    for key, value, setting in (
        ("channels", 16, "scale.motion_channels"), ("residual_std", None, "conditioning.residual_std"),
        ("median_strength", 0.5, "scale.median_strength"), ("motion_keys", "latents", "conditioning.motion_keys"),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"have {key}={OTHER[key]}, the command asks for {value}: leave out {setting}"
        ):
            Denoiser.from_pretrained(trained, downscale=2, motion=OTHER | {key: value})
        assert OmegaConf.select(composed("experiment=diffusion"), setting) is not None, "a setting that there is"
    without = OTHER | {"motion_field": False, "motion_keys": "latents"}  # of no account then
    assert Denoiser.from_pretrained(trained, downscale=2, motion=without).motion.encoder is None


def test_a_base_is_loaded_in_a_smaller_type_as_if_it_were_converted(trained: Path) -> None:
    whole, small = (
        Denoiser.from_pretrained(trained, downscale=2, motion=OTHER, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert {parameter.dtype for parameter in small.unet.parameters()} == {torch.bfloat16}
    for one, other in zip(whole.bfloat16().state_dict().values(), small.bfloat16().state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_pointer_in_place_of_weights_falls_back_to_fp16_or_is_told(trained: Path, tmp_path: Path) -> None:
    def load(base: Path, variant: str | None = None) -> str:
        if variant == "fp16" and base == trained:
            return "fp16"
        raise SafetensorError("header too large")  # as transformers, for a pointer of git-lfs

    assert in_any_variant(load, trained) == "fp16"
    with pytest.raises(ValueError, match="cannot be read .*header too large.*check-base"):
        in_any_variant(load, tmp_path)
