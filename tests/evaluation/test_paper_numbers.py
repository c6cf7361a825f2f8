"""Sec. 4.1 of the paper against the composed config: paper numbers live in YAML only."""

from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state


def test_diffusion_and_lora_at_full_scale() -> None:
    for experiment in ("diffusion", "motion_lora"):
        cfg = composed(f"experiment={experiment}", "scale=svd")
        assert (cfg.model.lr, cfg.data.batch_size, cfg.trainer.max_steps) == (3e-5, 4, 100_000)
        assert (cfg.model.warmup_steps, cfg.model.decay_steps) == (0, 0), "constant learning rate"
        assert (cfg.data.num_frames, cfg.data.height, cfg.data.width) == (25, 512, 512)
        assert (cfg.model.sigma_mean, cfg.model.free_sigma_mean, cfg.model.sigma_std) == (0.7, 0.7, 1.6)
    assert cfg.model.rank == 16
    assert composed("experiment=diffusion", "scale=svd").model.trainable == "literal"


def test_flow_refiner() -> None:
    cfg = composed("experiment=flow_refiner", "scale=svd", "model=flow_refiner_paper", "hint=paper")
    assert (cfg.model.lr, cfg.data.batch_size, cfg.trainer.max_steps) == (5e-3, 32, 10_000)
    assert (cfg.data.hint.sigma * 512, cfg.data.hint.normalized) == (170, False)
    assert (cfg.model.error_weight, cfg.model.beta1, cfg.model.weight_decay) == (100, 0.5, 0), "pix2pix's"
    assert (cfg.model.warmup_share, cfg.model.decay_share) == (0, 0), "constant learning rate"
    assert (cfg.model.refiner.width, cfg.model.refiner.depth, cfg.model.discriminator.width) == (64, 8, 64)


def test_the_long_video_method_is_the_papers_and_the_sampler_svds() -> None:
    cfg = composed("experiment=motion_lora", "scale=svd", "+long_video=phased")
    assert (cfg.long_video.gamma, cfg.long_video.omega, cfg.long_video.sigma) == (0.8, 0.2, None)
    cfg = cfg.sampling
    assert (cfg.num_steps, cfg.sigma_min, cfg.sigma_max, cfg.rho) == (25, 0.002, 700.0, 7.0)
    assert (cfg.min_guidance, cfg.max_guidance, cfg.noise_aug) == (1.0, 3.0, 0.02)


def test_the_optimizer_is_adamw() -> None:
    from torch import nn
    from torch.optim import AdamW

    from motionanim.training.optim import adamw

    made = adamw(nn.Linear(2, 2).parameters(), lr=3e-5, weight_decay=0.01, warmup_steps=0, decay_steps=0, total=-1)
    assert type(made["optimizer"]) is AdamW
