"""T: its network against closed forms and invariances, its losses against pix2pix's, its training step by step."""

import json
import math
import os
from pathlib import Path

import forked
import lightning as L
import numpy as np
import pytest
import torch
from conftest import free_port
from flow_runs import SMALL, TRAINING, pairs, refiner, refiner_module, trainer
from safetensors.torch import load_file, save_file
from torch import nn

from motionanim.data.synthetic.clips import SyntheticFlowPairs
from motionanim.models.flow_refiner import FlowRefiner, PatchDiscriminator
from motionanim.motion.paths import nearest_on_path, path_hint
from motionanim.training.flow_refiner import FlowRefinerModule
from motionanim.types import FlowPairBatch, Hint


def drawn(paths, speeds, pins, height: int, width: int, *, sigma: float, batch: int = 1) -> Hint:
    pins = torch.tensor(pins).view(-1, 2)
    hint = path_hint([torch.tensor(p) for p in paths], speeds, pins, height, width, sigma=sigma, normalized="exact")
    return Hint(*(each.expand(batch, -1, -1, -1) for each in hint))


def inputs(height: int = 32, width: int = 32, batch: int = 2) -> tuple[torch.Tensor, Hint, torch.Tensor]:
    """Random image and mask, and a drawing of two arrows and a pin."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    mask = (torch.rand(batch, 1, height, width, generator=generator) > 0.5).float()
    arrows = ([[0.2, 0.3], [0.6, 0.4]], [[0.7, 0.8], [0.5, 0.9], [0.4, 0.6]])
    paths = [[[x * width, y * height] for x, y in arrow] for arrow in arrows]
    return image, drawn(paths, [1.0, 0.5], [[0.9 * width, 0.1 * height]], height, width, sigma=0.3, batch=batch), mask


def faster(hint: Hint, factor: float) -> Hint:
    scale = torch.tensor([factor, factor, 1.0]).view(3, 1, 1)
    return Hint(hint.flow * factor, hint.reach, hint.arrows * scale)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 31), (9, 50), (1, 1)])
def test_any_size_gives_a_flow_of_that_size_inside_the_mask(height, width):
    image, hint, mask = inputs(height, width)
    flow = refiner().refine(image, hint, mask)
    assert (flow.shape, flow.dtype) == ((2, 2, height, width), torch.float32)
    assert flow[(mask == 0).expand_as(flow)].eq(0).all()
    assert flow.isfinite().all()
    assert not flow.requires_grad


def test_before_training_the_flow_is_the_soft_hint_and_gradients_reach_every_parameter():
    image, hint, mask = inputs()
    network = refiner(trained=False)
    soft = hint.flow * hint.reach.clamp(max=1) * mask
    torch.testing.assert_close(network(image, hint, mask).flow, soft, atol=2e-3, rtol=0)
    network(image, hint, mask).flow.square().sum().backward()
    assert network.head.weight.grad.abs().sum() > 0
    network = refiner()
    network(*inputs()).flow.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_clip_s_flow_is_the_same_alone_and_again():
    network, (image, hint, mask) = refiner(), inputs()
    together = network.refine(image, hint, mask)
    torch.manual_seed(5)
    assert torch.equal(network.train().refine(image, hint, mask), together)
    alone = network.refine(image[1:], Hint(*(each[1:] for each in hint)), mask[1:])
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=1e-5)


def test_every_input_matters_and_a_blind_refiner_ignores_the_image():
    image, hint, mask = inputs()
    seeing, blind = (refiner(sees_image=sees) for sees in (True, False))
    plain = seeing.refine(image, hint, mask)
    arrows, reach = hint._replace(arrows=hint.arrows.flip(-1)), hint._replace(reach=hint.reach.flip(-1))
    for other_image, other in ((-image, hint), (image, faster(hint, -1.0)), (image, arrows), (image, reach)):
        assert not torch.allclose(seeing.refine(other_image, other, mask), plain, atol=1e-3)
    inside = mask.expand_as(plain) > 0
    assert not torch.allclose(seeing.refine(image, hint, torch.ones_like(mask))[inside], plain[inside], atol=1e-3)
    assert torch.equal(blind.refine(-image, hint, mask), blind.refine(image, hint, mask))
    for network, seen in ((seeing, True), (blind, False)):
        condition, _ = network.condition(image, hint, mask)
        assert condition.shape[1] == 12
        assert condition[:, :7].flatten(2).any(2).all()
        assert condition[:, 7:].any() == seen


def test_in_use_the_drawing_holds_on_its_lines_and_far_from_all_of_them():
    image, paths, ones = inputs(64, 64)[0], [[[8.0, 8.0], [20.0, 8.0]]], torch.ones(2, 1, 64, 64)
    hint = drawn(paths, [1.5], [[12.0, 20.0]], 64, 64, sigma=0.2, batch=2)
    network = refiner()
    free, flow = network(image, hint, ones), network.refine(image, hint, ones)
    assert (free.flow[:, :, 8, 12] - torch.tensor([1.5, 0.0])).abs().max() > 0.05
    torch.testing.assert_close(flow[:, :, 8, 12], torch.tensor([[1.5, 0.0]] * 2), atol=1e-4, rtol=0)
    assert flow[:, :, 20, 12].abs().max() < 1e-3
    apart = nearest_on_path(torch.tensor(paths[0]), 64, 64)[0].sqrt() / (0.2 * 64)
    assert flow[:, :, apart > 2.0].abs().max() < 1e-30
    assert free.flow[:, :, apart > 2.0].abs().max() > 0
    between = (apart > 1.0) & (apart < 1.5) & (hint.arrows[0, 2] < 1e-6)
    decided = free.flow * torch.sigmoid(2 * free.moves) / torch.sigmoid(free.moves)
    torch.testing.assert_close(flow[:, :, between], decided[:, :, between], atol=1e-5, rtol=1e-4)
    # Several arrows in one place reach a little farther: four weights of exp(-d²) sum to exp(-4) there.
    flow = network.refine(image[:1], drawn(paths * 4, [1.5] * 4, [], 64, 64, sigma=0.2), ones[:1])
    farthest = math.sqrt(2.0**2 + math.log(4))
    assert flow[:, :, apart > farthest + 1e-3].abs().max() < 1e-30
    assert flow[:, :, (apart > 2.0) & (apart < farthest - 0.1)].abs().max() > 0


def test_likeness_is_one_under_the_arrows_and_follows_the_colour_but_not_a_pin():
    network = refiner()
    image = torch.full((1, 3, 32, 32), -0.5)
    image[..., 16:] = 0.5  # the arrow lies on the left, the pin on the right
    hint, mask = drawn([[[2.0, 8.0], [9.0, 10.0]]], [1.0], [[28.0, 4.0]], 32, 32, sigma=0.3), torch.ones(1, 1, 32, 32)
    condition, unit = network.condition(image, hint, mask)
    likeness = condition[0, 10:]
    assert likeness[:, :, :12].min() > 0.99
    assert likeness[0, :, 20:].max() < 0.01
    assert unit.item() == pytest.approx(1, rel=0.1)  # the pin slows its surroundings
    brighter, _ = network.condition(image * 0.3 + 0.2, hint, mask)
    torch.testing.assert_close(brighter, condition, atol=2e-3, rtol=2e-3)  # neither exposure nor contrast matters
    nothing = Hint(*(torch.zeros_like(each) for each in hint))
    assert network.condition(image, nothing, mask)[0][:, 10:].eq(0).all()


@pytest.mark.parametrize("factor", [0.0, 0.01, 30.0])
def test_twice_the_hint_gives_twice_the_flow(factor):
    network, (image, hint, mask) = refiner(), inputs()
    made, wanted = network.refine(image, faster(hint, factor), mask), factor * network.refine(image, hint, mask)
    torch.testing.assert_close(made, wanted, atol=1e-2 if factor == 0 else 1e-4, rtol=1e-3)


def test_what_does_not_fit_is_named():
    image, hint, mask = inputs()
    for name, given in (
        ("mask", (image, hint, mask[..., :16])), ("image", (image[:, :1], hint, mask)),
        (r"hint\.reach", (image, hint._replace(reach=hint.reach[:1]), mask)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} of shape"):
            refiner().refine(*given)
    for bad in ({"width": 12}, {"width": 0}, {"depth": 0}, {"side": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            FlowRefiner(**SMALL | bad)


def test_the_discriminator_s_receptive_field_is_70_px_and_it_sees_its_condition():
    torch.manual_seed(0)
    network = PatchDiscriminator(width=8).double()
    for name, layer in network.layers.named_children():
        if isinstance(layer, nn.GroupNorm):  # its mean and variance see the whole frame
            setattr(network.layers, name, nn.Identity())
    condition = torch.randn(1, 12, 128, 128, dtype=torch.float64)
    flow = torch.randn(1, 2, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = network(condition, flow)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows, columns = flow.grad[0].abs().sum(0).nonzero().T
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 70
    assert not torch.allclose(network(-condition, flow), logits)
    smallest = [each[..., :24, :24] for each in (condition, flow)]
    assert network(*smallest).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs 24 px"):
        network(*(each[..., :23] for each in smallest))


def test_saving_and_loading_rebuilds_the_network_and_other_files_are_named(tmp_path):
    network, path = refiner(depth=2), tmp_path / "t.safetensors"
    network.save(path)
    loaded = FlowRefiner.load(path)
    assert loaded.config == network.config
    assert torch.equal(loaded.refine(*inputs()), network.refine(*inputs()))
    for config in ({**SMALL, "width": 16}, {**SMALL, "width": 9}, {**SMALL, "dropout": 0.5}, {"width": 8}):
        metadata = {"format": "motionanim.flow_refiner.4", "config": json.dumps(config)}
        save_file(load_file(path), path, metadata=metadata)
        with pytest.raises(ValueError, match=r"t\.safetensors: its config .* does not fit"):
            FlowRefiner.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="experiment=flow_refiner"):
        FlowRefiner.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        FlowRefiner.load(path)
    with pytest.raises(FileNotFoundError):
        FlowRefiner.load(tmp_path / "none.safetensors")


def test_max_steps_are_iterations_and_both_networks_train(tmp_path):
    model, batches = refiner_module(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit = trainer(tmp_path, 3, callbacks=[L.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, model, out, batch, index: batches.append(batch.position.tolist()))
    ])  # fmt: skip
    fit.fit(model, pairs())
    assert fit.global_step == 3
    assert batches == [[0, 1], [2, 3], [4, 5]]
    for name, value in model.named_parameters():
        assert name == "refiner.head.bias" or not torch.equal(value, before[name]), name
    assert set(fit.callback_metrics) >= {"train/loss", "train/loss_discriminator", "val/epe_hint", "val/epe_refined"}
    assert set(model.hparams) == set(TRAINING)
    assert FlowRefiner.load(model.export(tmp_path)).config == SMALL


def test_a_step_is_pix2pix_s_two_losses_from_the_same_weights(tmp_path):
    model, reference = refiner_module(), refiner_module()
    nn.init.normal_(model.refiner.head.weight, std=0.05)
    reference.load_state_dict(model.state_dict())
    data = pairs()
    trainer(tmp_path, 1, limit_val_batches=0).fit(model, data)

    batch = torch.utils.data.default_collate([data.train[0], data.train[1]])
    cross_entropy = nn.BCEWithLogitsLoss()
    g, d = reference.refiner, reference.discriminator
    given = torch.stack([batch.mask[0], torch.ones_like(batch.mask[1])])  # (0 and 1) * 0.618 against a share of 0.5
    condition, unit = g.condition(batch.image, batch.hint, given)
    true, made = batch.flow * batch.mask / unit, g(batch.image, batch.hint, given)
    fake = made.flow / unit
    ones = torch.ones(2, 1, 1, 1)
    error = ((fake - true).square().sum(1) + 1e-20).sqrt().clamp(max=4).mean()
    probability = torch.sigmoid(made.moves)
    moves = -(batch.mask * probability.log() + (1 - batch.mask) * (1 - probability).log()) * given
    generator_loss = cross_entropy(d(condition, fake), ones) + 100 * (error + 0.1 * moves.mean())
    discriminator_loss = 0.5 * (
        cross_entropy(d(condition, true), ones) + cross_entropy(d(condition, fake.detach()), 0 * ones)
    )
    for loss, network, trained in (
        (generator_loss, g, model.refiner), (discriminator_loss, d, model.discriminator),
    ):  # fmt: skip
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for parameter, expected in zip(trained.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_without_a_discriminator_the_generator_trains_alone_and_in_bf16(tmp_path):
    model = refiner_module(gan=False)
    before = model.refiner.head.weight.clone()
    fit = trainer(tmp_path, 2, precision="bf16-mixed")
    fit.fit(model, pairs())
    assert fit.global_step == 2
    assert not torch.equal(model.refiner.head.weight, before)
    assert not {name for name in fit.callback_metrics if "gan" in name or "discriminator" in name}
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_mask_is_given_for_its_share_of_the_items(share):
    mask = torch.zeros(1000, 1, 2, 2)
    batch = FlowPairBatch(None, None, None, None, mask, None, torch.arange(1000))
    given = refiner_module(mask_share=share)._given(batch)
    assert float((given == 0).float().mean()) == pytest.approx(share, abs=0.005)


@pytest.mark.slow
def test_training_and_resuming_repeat_bit_for_bit(tmp_path):
    def run(max_steps: int, checkpoint=None) -> tuple[FlowRefinerModule, L.Trainer]:
        L.seed_everything(1, verbose=False)
        model, fit = refiner_module(), trainer(tmp_path, max_steps, limit_val_batches=0)
        fit.fit(model, pairs(), ckpt_path=checkpoint, weights_only=checkpoint is not None)
        return model, fit

    whole, _ = run(4)
    _, half = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, fit = run(4, str(tmp_path / "half.ckpt"))
    assert fit.global_step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_validation_errors_are_means_over_all_pixels_without_a_mask(tmp_path):
    model = refiner_module()
    mask = torch.zeros(2, 1, 24, 24)
    mask[0, :, :12] = 1
    spread = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 24, 24)
    reach, arrows = torch.full((2, 1, 24, 24), 0.25), torch.zeros(2, 3, 24, 24)
    batch = FlowPairBatch(torch.zeros(2, 3, 24, 24), spread, reach, arrows, mask, spread * mask, torch.arange(2))
    loader = torch.utils.data.DataLoader([0], collate_fn=lambda _: batch)
    scores = trainer(tmp_path, 1).validate(model, loader, verbose=False)[0]
    assert scores["val/epe_still"] == pytest.approx(5 / 4)
    # A quarter of the speed everywhere: 5 * 3/4 off where it moves, 5/4 elsewhere.
    assert scores["val/epe_hint"] == pytest.approx(5 * (3 / 4 + 1 / 4 + 1 / 4 + 1 / 4) / 4)
    assert scores["val/epe_refined"] == pytest.approx(scores["val/epe_hint"], rel=1e-4)
    assert scores["val/iou"] == 0  # untrained, a reach of a quarter counts as still
    batch = batch._replace(reach=torch.full_like(reach, 0.75))
    assert trainer(tmp_path, 1).validate(model, loader, verbose=False)[0]["val/iou"] == pytest.approx(1 / 4)


def test_a_nan_stops_the_run_before_it_reaches_the_weights(tmp_path):
    class Broken(SyntheticFlowPairs):
        def __getitem__(self, position):
            pair = super().__getitem__(position)
            return pair._replace(flow=pair.flow * np.nan) if position == 3 else pair

    data, model = pairs(batch_size=1), refiner_module()
    data.train.__class__ = Broken
    with pytest.raises(ValueError, match="nan at step 3"):
        trainer(tmp_path, 10, limit_val_batches=0).fit(model, data)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model._trainer = type("Fp16", (), {"precision": "16-mixed"})()
    with pytest.raises(ValueError, match="bf16-mixed"):  # a loss scaler would hide infinite gradients
        model.on_fit_start()


@pytest.mark.slow
def test_the_learning_rate_falls_over_the_last_share_of_the_run(tmp_path):
    model, fit = refiner_module(decay_share=0.5), trainer(tmp_path, 4, limit_val_batches=0)
    fit.fit(model, pairs())
    for optimizer in model.optimizers(use_pl_optimizer=False):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(model.lr / 2)  # of the last step: 1 of 2 is left
    for share, steps, message in ((1.5, 4, r"decay_share=1.5: must be in \[0, 1\]"), (0.5, -1, "needs an end")):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, steps, limit_val_batches=0, val_check_interval=1).fit(
                refiner_module(decay_share=share), pairs()
            )


def test_example_pictures_are_frames():
    data = pairs()
    batch = torch.utils.data.default_collate([data.val[0], data.val[1]])
    pictures = refiner_module().example_pictures(batch)
    assert list(pictures) == ["image", "hint", "refined", "truth"]
    for name, picture in pictures.items():
        assert picture.shape == (2, 3, 24, 24)
        assert picture.abs().max() <= 1
        assert name == "image" or picture.ne(1).any(), "white stands still"
    assert pictures["truth"][(batch.mask == 0).expand(-1, 3, -1, -1)].eq(1).all()


@pytest.mark.long
@pytest.mark.slow
def test_a_short_training_beats_the_hint_on_textures_never_seen(tmp_path):
    L.seed_everything(0, verbose=False)
    data = pairs(size=32)
    train = [data.train[position] for position in range(96)]  # rendered once: the test is about the network
    val = [data.val[position] for position in range(32)]
    fit = trainer(tmp_path, 150, val_check_interval=None, check_val_every_n_epoch=1)
    fit.fit(refiner_module(lr=1e-3), torch.utils.data.DataLoader(train, 8), torch.utils.data.DataLoader(val, 32))
    best = min(fit.callback_metrics["val/epe_hint"], fit.callback_metrics["val/epe_still"])
    assert fit.callback_metrics["val/epe_refined"] < 0.8 * best


def two_steps(rank: int, port: int, devices: int, folder: Path) -> None:
    """One of `devices` processes; leaves its weights before and after, in a row each."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    L.seed_everything(0, verbose=False)
    model, rows = refiner_module(), []
    fit = trainer(folder, 2, devices=devices, strategy="ddp" if devices > 1 else "auto", limit_val_batches=0)
    for run in (lambda: None, lambda: fit.fit(model, pairs(batch_size=4 // devices))):
        run()
        rows.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.save(torch.stack(rows), folder / f"{devices}_{rank}.pt")


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    for devices in (1, 2):
        forked.call(two_steps, free_port(), devices, tmp_path, ranks=devices)
    (start, one), *both = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert (one - start).abs().mean() > 1e-4
    for _, weights in both:
        # Adam's first steps have the length lr whatever the gradient's size, so a gradient near zero may turn its sign.
        assert (one - weights).abs().quantile(0.99) < 1e-5
