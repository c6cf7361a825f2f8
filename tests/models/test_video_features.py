import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from synthetic_clips import clips
from torch import Tensor
from torch.utils.data import Dataset
from training_runs import VALIDATED, Losses, make_trainer

from motionanim.data.stream import StreamData
from motionanim.models.video_features import FILE, FeatureNetwork, VideoFeatures, resize_frames
from motionanim.motion.flow import resize_flow
from motionanim.training.video_features import (
    CORRUPTIONS,
    VideoFeaturesModule,
    clean_and_corrupted,
    freeze,
    shuffle,
)
from motionanim.types import ClipBatch

ASSET = Path(__file__).resolve().parents[2] / "motionanim" / "assets" / "video-features"
SMALL = {"channels": [4, 4, 8], "hidden": 8, "dim": 6, "size": 32}
TRAINING = {
    "damage_weight": 50.0, "motion_weight": 10.0, "look_weight": 5.0, "lr": 1e-2, "weight_decay": 0.01,
    "warmup_steps": 0, "decay_steps": 0, "seed": 0,
}  # fmt: skip


def network(**changes) -> FeatureNetwork:
    torch.manual_seed(0)
    made = FeatureNetwork(**SMALL | changes)
    with torch.no_grad():  # running statistics that a freshly made norm does not have
        for _ in range(3):
            made.train()(noisy(2, 8, 32, 32))
    return made


def noisy(*shape: int, seed: int = 0) -> Tensor:
    batch, frames, height, width = shape
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@functools.cache
def shipped() -> VideoFeatures:
    return VideoFeatures.load(ASSET)


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 32, 32), (5, 40, 33), (25, 64, 128)])
def test_any_length_and_size_gives_finite_features(frames, height, width):
    features = VideoFeatures(network())(noisy(2, frames, height, width))
    assert features.shape == (2, 6)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_features_depend_on_nothing_but_the_clip():
    """Neither on the batch nor on train mode, autocast or TF32; and they let no gradient through."""
    embed, frames = VideoFeatures(network()), noisy(3, 8, 40, 40)
    before, weights = embed(frames), {k: v.clone() for k, v in embed.state_dict().items()}
    assert torch.equal(before, torch.cat([embed(clip[None]) for clip in frames]))
    torch.nn.ModuleList([embed]).train()
    allowed = []
    embed.network.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    with torch.autocast("cpu", torch.bfloat16):
        after = embed(frames.requires_grad_())
    assert torch.equal(before, after)
    assert not any(allowed)
    assert torch.backends.cudnn.enabled
    assert not after.requires_grad
    assert not any(p.requires_grad for p in embed.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in embed.state_dict().items())
    with pytest.raises(ValueError, match="cast to torch.bfloat16"):
        embed.bfloat16()(frames)


def test_larger_frames_are_stretched_with_antialiasing():
    frames = noisy(2, 4, 96, 64)
    small = F.interpolate(frames.flatten(0, 1), (32, 32), mode="bilinear", antialias=True).view(2, 4, 3, 32, 32)
    embed = VideoFeatures(network())
    assert torch.equal(resize_frames(frames, 32), small)
    assert torch.equal(embed(frames), embed(small))
    assert resize_frames(small, 32) is small


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 3, 32, 32), "T of at least 4"),
        (torch.zeros(1, 4, 3, 31, 32), "at least 32 px"),
        (torch.zeros(4, 3, 32, 32), "must be floats \\(B, T, 3, H, W\\)"),
        (torch.zeros(0, 4, 3, 32, 32), "at least one clip"),
        (torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((1, 4, 3, 32, 32), float("nan")), "reach nan"),
        (torch.full((1, 4, 3, 32, 32), 255.0), "reach 255"),
    ],
)
def test_bad_frames_are_named(frames, message):
    with pytest.raises(ValueError, match=message):
        VideoFeatures(network())(frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [4, 0, 4]}, "channels="),
        ({"dim": 0}, "dim=0"),
        ({"size": 36}, "size=36"),
        ({"size": 8}, "size=8"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        FeatureNetwork(**SMALL | changes)


def test_saved_features_load_from_file_and_folder_and_other_files_are_named(tmp_path):
    embed, frames, path = VideoFeatures(network()), noisy(2, 8, 32, 32), tmp_path / FILE
    embed.save(path)
    for place in (tmp_path, path, str(tmp_path)):
        loaded = VideoFeatures.load(place)
        assert torch.equal(loaded(frames), embed(frames))
        assert json.loads(json.dumps(loaded.protocol)) == embed.protocol
    assert (embed.name, embed.dim) == ("embedded", 6)
    metadata = {"format": "motionanim.video_features.1", "config": json.dumps(SMALL | {"dim": 7})}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match='"dim": 7.* does not fit'):
        VideoFeatures.load(tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has format None"):
        VideoFeatures.load(tmp_path)


def test_the_fingerprint_follows_weights_norms_and_preprocessing():
    others = [network(), network(), network(), network(size=64)]
    with torch.no_grad():
        others[1].blocks[2].time.weight[0, 0, 0] += 1e-6
        others[2].blocks[0].space_norm.running_mean[0] += 1e-6
    found = [VideoFeatures(other).fingerprint for other in (network(), *others)]
    assert found[0] == found[1]
    assert len(set(found)) == 4


class SameNine(Dataset[ClipBatch]):
    """Nine small clips, over and over: one for each corruption, and each time the same."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, position: int) -> ClipBatch:
        clip = ClipBatch(*(field[position % 9] for field in clips(18)))
        return clip._replace(
            frames=resize_frames(clip.frames[None, :6], 32)[0], flow=resize_flow(clip.flow[:5], 32, 32)
        )


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_the_export_is_what_was_trained(tmp_path):
    losses = Losses()
    module = VideoFeaturesModule(network=network(dim=40), **TRAINING)
    data = StreamData(train=SameNine(), val=SameNine(), batch_size=9, num_workers=0)
    run = make_trainer(tmp_path, 16, losses, val_check_interval=16, **VALIDATED)
    run.fit(module, datamodule=data)
    assert losses.losses[-1] < 0.7 * losses.losses[0]
    assert {"val/r2_damage", "val/r2_motion", "val/r2_look"} <= run.callback_metrics.keys()
    exported = VideoFeatures.load(module.export(tmp_path))
    trained = module.network.eval()
    assert all(torch.equal(value, exported.network.state_dict()[name]) for name, value in trained.state_dict().items())
    frames = noisy(2, 8, 32, 32)
    with torch.no_grad():
        assert torch.allclose(exported(frames), trained(frames), atol=1e-5)


def test_a_broken_loss_stops_the_training(tmp_path):
    module = VideoFeaturesModule(network=network(dim=40), **TRAINING)
    with torch.no_grad():
        module.network.head[2].bias.fill_(float("nan"))
    batch = ClipBatch(*(field[:2] for field in clips(18)))
    with pytest.raises(ValueError, match="the loss is nan"):
        module.training_step(batch)


def test_a_network_of_another_size_and_weights_of_0_are_refused():
    with pytest.raises(ValueError, match="network.dim=6: must be 40"):
        VideoFeaturesModule(network=network(), **TRAINING)
    with pytest.raises(ValueError, match="'look': 0"):
        VideoFeaturesModule(network=network(dim=40), **TRAINING | {"look_weight": 0})


def frechet(first: Tensor, second: Tensor) -> float:
    first, second = first.double().numpy(), second.double().numpy()
    covs = np.cov(first.T), np.cov(second.T)
    root = np.real(sqrtm(covs[0] @ covs[1]))
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root))


def test_the_shipped_file_is_small_described_and_the_experiments():
    files = sorted(path.name for path in ASSET.iterdir())
    assert files == ["README.md", FILE]
    assert (ASSET / FILE).stat().st_size < 3e6
    card = (ASSET / "README.md").read_text()
    for word in ("commit", "seed", "experiment=video_features", "limits", "never", shipped().fingerprint):
        assert word in card
    assert (shipped().dim, shipped().network.size) == (40, 64)


@pytest.mark.slow
def test_the_shipped_features_answer_their_questions():
    """Explained variance of the training targets, on textures that were not trained on: better than guessing."""
    batch = clips(18)
    frames, targets = clean_and_corrupted(batch, seed=7)
    answers = shipped()(frames)
    strength, change = 9 + 8, 39
    for place, truth in ((1, targets.damage[:, 1]), (4, targets.damage[:, 4]), (change, targets.look[:, 20])):
        assert np.corrcoef(answers[:, place], truth)[0, 1] > 0.75, place
    assert np.corrcoef(answers[:18, strength], targets.motion[:18, 8])[0, 1] > 0.75


@pytest.mark.long
@pytest.mark.slow
def test_the_shipped_features_tell_every_corruption_from_another_sample_of_the_world():
    features = shipped()
    clean, other = clips(80).frames[:, :8].chunk(2)
    reference = features(clean)
    floor = frechet(reference, features(other))
    for name, function in CORRUPTIONS.items():
        made = torch.stack([function(clip, 1.0, torch.Generator().manual_seed(i)) for i, clip in enumerate(other)])
        assert frechet(reference, features(made.clamp(-1, 1))) > 1.2 * floor, name


@pytest.mark.slow
def test_the_shipped_features_see_what_a_mean_of_frames_cannot():
    """Frozen and shuffled clips hold frames of the same look: only a sense of time tells them from clean ones."""
    frames = clips(18).frames
    clean = shipped()(frames)
    for function in (shuffle, freeze):
        made = torch.stack([function(clip, 1.0, torch.Generator().manual_seed(i)) for i, clip in enumerate(frames)])
        moved = (shipped()(made) - clean).norm(dim=1)
        assert moved.median() > 0.3 * clean.std(0).norm(), function.__name__
