"""Motion conditioning (Sec. 3.2): everything the paper adds to Stable Video Diffusion.

The UNet stays a plain SVD UNet. All new parameters live here and reach it in three places:

- Eq. 4 in every temporal self-attention: out += W_o softmax(Q K^T / sqrt(d)) W_V z_m, tokens = the frames at one pixel;
- motion strength (Eq. 8) as a fourth added time id: its sinusoid adds to the first added-embedding layer;
- (ours) the first frame warped along the field: its latents add to the input convolution.

In each exactly one factor is zero at the start, so that an untrained adapter leaves an SVD checkpoint's outputs *equal*
while gradients flow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from motionanim.models.schedule import per_clip
from motionanim.motion.flow import integrate_flow
from motionanim.types import Condition

# Standard deviation of the residual by displacement, measured on the procedural world (experiments/embedded_base).
STILL_STD = 0.05  # where nothing has moved; more than measured: a lower one gives such parts too much loss weight
HALFWAY = 1 / 8  # the displacement, as a share of the width, at which half of the variance is reached

# Settings in which a base's motion weights must agree with the command, and the command's names for them.
SETTINGS = {
    "channels": "scale.motion_channels",
    "median_strength": "scale.median_strength",
    "residual_std": "conditioning.residual_std",
    "motion_keys": "conditioning.motion_keys",
}
# The setting that switches on a module of `MotionConditioner`.
SWITCHES = {
    "encoder": "motion_field", "values": "motion_field", "strength": "motion_strength", "warped": "warped_latent",
}  # fmt: skip


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class MotionEncoder(nn.Module):
    """Motion field to feature maps z_m: strided 4x4 convolutions and residual blocks, as in Endo et al. 2019.

    Sees the displacement integrated to each frame (so that z_m differs per frame even for a steady field) and the flow
    itself, both divided by the frame size. Keeps maps: no global pooling.
    """

    def __init__(self, *, channels: int, downscale: int) -> None:
        super().__init__()
        stages = downscale.bit_length() - 1
        if 2**stages != downscale or channels % 8:
            raise ValueError(f"downscale={downscale} must be a power of 2, channels={channels} a multiple of 8")
        widths = [4, *[channels] * stages]
        layers: list[nn.Module] = []
        for i in range(stages):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1), ResidualBlock(widths[i + 1])]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, channels), nn.SiLU())

    def forward(self, flow: Tensor, displacement: Tensor) -> Tensor:
        """(B, T-1, 2, H, W) px per frame and (B, T, 2, H, W) px to z_m (B, T, channels, H/downscale, W/downscale)."""
        height, width = flow.shape[-2:]
        size = flow.new_tensor([width, height]).view(2, 1, 1)
        padded = torch.cat([flow, flow[:, -1:]], dim=1)  # N-1 flows for N frames: the last one stands twice
        # A step is about 1/100 of the frame: bring both to the order of 1.
        x = torch.cat([displacement / size * 10, padded / size * 100], dim=2).flatten(0, 1)
        dtype = self.layers[0].weight.dtype
        return self.layers(x.to(dtype)).unflatten(0, (flow.shape[0], -1))


class MotionValue(nn.Module):
    """W_V and W_o of Eq. 4 for one temporal attention, and W_K where z_m has keys of its own; W_o starts at zero."""

    def __init__(self, motion_channels: int, inner: int, channels: int, *, keys: bool) -> None:
        super().__init__()
        self.to_k = nn.Linear(motion_channels, inner, bias=False) if keys else None
        self.to_v = nn.Linear(motion_channels, inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)
        nn.init.zeros_(self.to_out.weight)


class MotionContext(NamedTuple):
    """A condition as the denoiser reads it: parts that are dropped are zero. The same at every denoising step."""

    image_latents: Tensor  # (B, C, h, w), scaled
    image_embed: Tensor  # (B, 1, D)
    time_ids: Tensor  # (B, 3) SVD's added time ids: fps - 1, motion bucket, noise_aug
    tokens: dict[int, Tensor]  # z_m as (B * pixels, T, channels) of each UNet stage, by B * pixels; {} without Eq. 4
    strength: Tensor | None  # (B, width) sinusoid of the strength id
    warped: Tensor | None  # (B, T, C, h, w) `prediction`, in the weights' type
    expected: Tensor | float  # (B, T, C, h, w) around which the estimate is centred: `prediction`, or 0 as in SVD
    sigma_data: Tensor  # as `MotionConditioner.sigma_data`
    time_offset: Tensor | None = None  # (B * T, D) of one call: what each frame's time embedding adds to frame 0's


class MotionAttention:
    """Attention processor of a temporal attn1 with Eq. 4.

    As printed, one softmax weighs both V and the motion values. With keys of its own, z_m has a second softmax, as the
    image in IP-Adapter (Ye et al. 2023): the other reading of "cross-attention".
    """

    def __init__(self, conditioner: "MotionConditioner", index: int) -> None:
        self.conditioner, self.index = conditioner, index

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        frames: slice = slice(None),
    ) -> Tensor:
        """Attend over (B * pixels, T, width).

        Args:
            attention_mask: (T, T) booleans, true where the frame of the row looks at the frame of the column.
            frames: Which of the clip's frames these are.
        """
        batch, length, _ = hidden_states.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, length, attn.heads, -1).transpose(1, 2)

        query, key, value = (heads(to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v))
        motion = self.conditioner.values[self.index]
        motion_tokens = self.conditioner.now.tokens[batch][:, frames]
        motion_value = heads(motion.to_v(motion_tokens)).to(value.dtype)
        attend = partial(F.scaled_dot_product_attention, query, attn_mask=attention_mask)
        if motion.to_k is None:
            both = attend(key=key, value=torch.cat([value, motion_value], dim=-1))
            out, motion_out = both.transpose(1, 2).unflatten(-1, (2, -1)).unbind(-2)
        else:
            motion_key = heads(motion.to_k(motion_tokens)).to(key.dtype)
            out = attend(key=key, value=value).transpose(1, 2)
            motion_out = attend(key=motion_key, value=motion_value).transpose(1, 2)
        out = attn.to_out[1](attn.to_out[0](out.flatten(2)))
        return (out + motion.to_out(motion_out.flatten(2))) / attn.rescale_output_factor


class MotionConditioner(nn.Module):
    """All motion parameters, attached to a plain SVD UNet by forward hooks and attention processors.

    Args:
        unet: The UNet to steer; its own modules and parameter names stay as they are.
        latent_channels: C of the latents.
        downscale: Pixels per latent pixel, 8 for SVD.
        channels: Channels of z_m.
        motion_field: Use Eq. 4.
        motion_keys: Where its keys come from: "latents", as Eq. 4 is printed, or "field", from z_m.
        motion_strength: Use the strength embedding.
        warped_latent: Use the first frame warped along the field; without, it stands still.
        residual_std: Diffuse the residual, the latents minus that prediction (`Denoiser`): its standard deviation
            where nothing is known of the motion (`sigma_data`). None diffuses the latents themselves, as SVD.
        median_strength: Median strength of the training set as a share of the frame width per frame; it maps to the
            strength id 127 (`strength_id`), the middle of SVD's motion-bucket scale.
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        latent_channels: int,
        downscale: int,
        channels: int,
        motion_field: bool,
        motion_keys: Literal["latents", "field"],
        motion_strength: bool,
        warped_latent: bool,
        residual_std: float | None,
        median_strength: float,
    ) -> None:
        super().__init__()
        if median_strength <= 0:
            raise ValueError(f"median_strength={median_strength}: a share of the frame width, must be above 0")
        if motion_keys not in ("latents", "field"):
            raise ValueError(f"motion_keys={motion_keys!r}: must be 'latents' or 'field'")
        if residual_std is not None and residual_std <= 0:
            raise ValueError(f"residual_std={residual_std}: must be above 0, or null to diffuse the latents themselves")
        self.downscale, self.median_strength, self.residual_std = downscale, median_strength, residual_std
        self.levels = len(unet.config.block_out_channels)
        self.encoder = MotionEncoder(channels=channels, downscale=downscale) if motion_field else None
        self.values = nn.ModuleList()
        self.strength = self.warped = None
        self.now: MotionContext | None = None  # what hooks and processors read; `using` alone sets and clears it
        if motion_field:
            for name, module in unet.named_modules():
                if name.endswith(".attn1") and ".temporal_transformer_blocks." in name:
                    module.set_processor(MotionAttention(self, len(self.values)))
                    self.values.append(
                        MotionValue(
                            channels, module.inner_dim, module.to_out[0].out_features, keys=motion_keys == "field"
                        )
                    )
        if motion_strength:
            layer, width = unet.add_embedding.linear_1, unet.config.addition_time_embed_dim
            self.sinusoid = Timesteps(width, True, downscale_freq_shift=0)
            self.strength = nn.Linear(width, layer.out_features, bias=False)
            nn.init.zeros_(self.strength.weight)
            layer.register_forward_hook(self._add_strength)
        if warped_latent:
            first = unet.conv_in.out_channels
            self.warped = nn.Conv2d(latent_channels, first, 3, padding=1, bias=False)
            nn.init.zeros_(self.warped.weight)
            unet.conv_in.register_forward_hook(self._add_warped)

    # Forward hooks; methods rather than lambdas, so that the model can be sent to other processes.
    def _add_strength(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self.strength(self.now.strength).to(out.dtype)

    def _add_warped(self, _: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self.warped(self.now.warped.flatten(0, 1)).to(out.dtype)

    def strength_id(self, motion_strength: Tensor, width: int) -> Tensor:
        """Strength in px per frame at `width` to the 100-400 scale of Fig. 7 (the training median is 127)."""
        return motion_strength / width * (127 / self.median_strength)

    @contextmanager
    def using(self, context: MotionContext) -> Iterator[None]:
        """Within, the UNet's hooks and attention processors read `context`."""
        before, self.now = self.now, context
        try:
            yield
        finally:
            self.now = before

    def context(self, condition: Condition) -> MotionContext:
        """All that the denoiser reads of a condition, without the parts whose flag is 0; gradients flow through it."""
        dtype = next((parameter.dtype for parameter in self.parameters()), torch.float32)
        condition = _without_dropped_image(condition)
        predicted = None if self.warped is None and self.residual_std is None else self.prediction(condition)
        offsets = None
        if self.encoder is not None or self.residual_std is not None:
            offsets = integrate_flow(condition.flow.float())
        strength = None
        if self.strength is not None:
            ids = self.strength_id(condition.motion_strength.float(), condition.flow.shape[-1])
            strength = (self.sinusoid(ids) * condition.use_strength[:, None]).to(dtype)
        return MotionContext(
            image_latents=condition.image_latents,
            image_embed=condition.image_embed,
            # SVD was trained on fps - 1: the same in training and inference.
            time_ids=torch.stack([condition.fps - 1, self._bucket(condition), condition.noise_aug], dim=1),
            tokens={} if self.encoder is None else self._encode(condition, offsets, dtype),
            strength=strength,
            warped=None if self.warped is None else predicted.to(dtype),
            expected=0.0 if self.residual_std is None else predicted,
            sigma_data=self.sigma_data(condition, offsets),
        )

    def _bucket(self, condition: Condition) -> Tensor:
        """SVD's own motion bucket (B,): the strength id within SVD's range, or its usual 127 where strength is off."""
        ids = self.strength_id(condition.motion_strength, condition.flow.shape[-1]).clamp(1, 255)
        known = condition.use_strength if self.strength is not None else torch.zeros_like(condition.use_strength)
        return torch.where(known > 0, ids, torch.full_like(ids, 127.0))

    def _encode(self, condition: Condition, offsets: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        height, width = condition.image_latents.shape[-2:]
        has_flow = condition.use_flow.view(-1, 1, 1, 1, 1).to(dtype)
        features = self.encoder(condition.flow.float(), offsets) * has_flow
        by_count, frames = {}, features.shape[1]
        for _ in range(self.levels):
            stage = F.adaptive_avg_pool2d(features.flatten(0, 1), (height, width)).unflatten(0, (-1, frames))
            tokens = stage.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h w, T, channels)
            by_count[len(tokens)] = tokens
            height, width = -(-height // 2), -(-width // 2)
        return by_count

    def prediction(self, condition: Condition) -> Tensor:
        """(B, T, C, h, w) latents that the frames are expected to be near: frame 0 warped, or standing still.

        Raises:
            ValueError: If the warped latents have another number of frames than the flow.
        """
        frames = condition.flow.shape[1] + 1
        if condition.warped_latents.shape[1] != frames:
            raise ValueError(
                f"the condition has {condition.warped_latents.shape[1]} warped frames for a flow of {frames}: make "
                "them with Codec.warp_image(image, flow)"
            )
        still = condition.warped_latents[:, :1].expand(-1, frames, -1, -1, -1)
        if self.warped is None:
            return still
        return torch.where(condition.use_flow.view(-1, 1, 1, 1, 1) > 0, condition.warped_latents, still)

    def sigma_data(self, condition: Condition, offsets: Tensor | None = None) -> Tensor:
        """EDM's sigma_data for each latent pixel: (B, T, 1, h, w), or 1 for all (0-dimensional) as in SVD.

        It is small where the prediction stands still, because nothing is left to add there, and grows with the
        displacement: parts that have not moved are then sharp and free of grain by construction, and the network's
        effort goes where motion is. The displacement of a latent pixel is the largest in it and its eight neighbours,
        because a moving part uncovers its neighbours. Without motion field any later frame may be anything; without
        image so may the first.

        Args:
            offsets: `integrate_flow` of the condition's flow, if it is known.
        """
        one = condition.flow.new_ones((), dtype=torch.float32)
        if self.residual_std is None:
            return one
        has_image, has_flow = (flag.view(-1, 1, 1, 1, 1) > 0 for flag in (condition.use_image, condition.use_flow))
        x, y = (integrate_flow(condition.flow.float()) if offsets is None else offsets).unbind(2)
        reach = torch.hypot(x, y) / condition.flow.shape[-1]
        near = F.max_pool2d(reach, 3 * self.downscale, stride=self.downscale, padding=self.downscale)[:, :, None]
        later = torch.ones_like(near)
        later[:, 0] = 0
        share = torch.where(has_flow & (self.warped is not None), near / (near + HALFWAY), later)
        return torch.where(has_image, (STILL_STD**2 + self.residual_std**2 * share).sqrt(), one)


def _without_dropped_image(condition: Condition) -> Condition:
    """Zero all that shows the image where `use_image` is 0."""
    parts = {name: getattr(condition, name) for name in ("image_latents", "image_embed", "warped_latents")}
    return condition._replace(
        **{name: torch.where(per_clip(condition.use_image, part) > 0, part, 0) for name, part in parts.items()}
    )
