"""Eulerian animation of one picture: the "Animating-pictures" baseline, after Holynski et al. (CVPR 2021).

The picture is moved along a steady field in both directions of time: frame t mixes the content that arrives from frame
0 with the content that will return to the picture at frame N. Holynski et al. splat, which leaves holes where a field
diverges. Here each output pixel looks up where its content comes from, so that there are no holes. Splatting weights a
pixel by the number of contributions; here the weight is the density of the backward offsets: how many picture pixels
went into the output pixel.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from motionanim.motion.flow import pixel_grid, warp


def frames(
    image: Tensor,
    flow: Tensor,
    *,
    num_frames: int,
    loop: bool,
    mask: Tensor,
    min_density: float,
) -> Iterator[Tensor]:
    """Animate a picture, one frame at a time; the memory grows with the square root of `num_frames`.

    Frame 0 is the picture. Pixels outside the mask or with zero flow stay exactly as they are. A pixel that no content
    inside the mask can have reached, from either direction of time, shows the picture unmoved.

    Args:
        image: (3, H, W) float32 in [-1, 1], RGB, H and W at least 2.
        flow: (2, H, W) px per frame: the velocity at each place, at all times.
        num_frames: N, at least 2.
        loop: True fades from the past to the future over the clip, so that frame N would be frame 0. False shows the
            past as long as it lasts, and the future only where the past has been stretched thin or has left.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        min_density: Picture pixels per output pixel at which its content has full weight, above 0; 0.5 allows a texture
            to be stretched to twice its area.

    Yields:
        N frames (3, H, W) in the value range of `image`.

    Raises:
        ValueError: If a shape, `num_frames` or `min_density` is not as above, or an input is not finite.
    """
    check_inputs(image, flow, mask, num_frames, least_side=2)
    if not min_density > 0:
        raise ValueError(f"min_density={min_density}: must be above 0, such as 0.5")
    return _frames(image, flow, num_frames, loop, mask, min_density)


def check_inputs(image: Tensor, flow: Tensor, mask: Tensor, num_frames: int, *, least_side: int) -> None:
    """Raises ValueError for inputs that no renderer of a steady field can use; arguments as in `frames`."""
    height, width = image.shape[-2:]
    if image.ndim != 3 or len(image) != 3 or min(height, width) < least_side:
        raise ValueError(
            f"image of shape {tuple(image.shape)}: must be (3, H, W) with H and W of at least {least_side}"
        )
    if flow.shape != (2, height, width) or mask.shape != (1, height, width):
        raise ValueError(
            f"flow of shape {tuple(flow.shape)} and mask of shape {tuple(mask.shape)}: must be (2, {height}, {width}) "
            f"and (1, {height}, {width}), as the image is; resize a flow by motionanim.motion.flow.resize_flow"
        )
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: must be at least 2")
    for name, values in (("image", image), ("flow", flow)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} is not finite: replace its NaN and infinite values, such as by zero motion")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask has values other than 0 and 1: threshold it")


def _frames(
    image: Tensor, flow: Tensor, num_frames: int, loop: bool, mask: Tensor, min_density: float
) -> Iterator[Tensor]:
    field = flow.float() * mask
    still = (field == 0).all(0)
    source = torch.cat([image * mask, mask.to(image)])
    past = torch.zeros_like(field)
    futures = _traces_reversed(field, num_frames)
    for t in range(num_frames):
        future = next(futures)
        if t == 0:
            yield image.clone()
            continue
        past = _step(past, -field)
        from_past, past_cover = _carried(source, past, min_density)
        from_future, future_cover = _carried(source, future, min_density)
        # Each of the two composed over the other, both over the unmoved picture; alpha mixes the two orders.
        alpha = 1 - t / num_frames if loop else 1.0
        past_weight = past_cover * (1 - (1 - alpha) * future_cover)
        future_weight = future_cover * (1 - alpha * past_cover)
        rest = (1 - past_cover) * (1 - future_cover)
        yield torch.where(still, image, past_weight * from_past + future_weight * from_future + rest * image)


def _step(displacement: Tensor, field: Tensor) -> Tensor:
    """One step of Euler integration: D(p) + F(p + D(p)) (Holynski et al., Eq. 2); all (2, H, W)."""
    return displacement + warp(field[None], displacement[None])[0]


def _traces_reversed(field: Tensor, steps: int) -> Iterator[Tensor]:
    """Displacements (2, H, W) after steps, steps - 1, ..., 1 steps along the field.

    Stores about sqrt(steps) of them and integrates again from those: all of a 60-frame clip at 1280x896 take 550 MB.
    """
    stride = math.isqrt(steps - 1) + 1
    displacement, kept = torch.zeros_like(field), []
    for step in range(steps):
        if step % stride == 0:
            kept.append(displacement)
        displacement = _step(displacement, field)
    while kept:
        left = steps - (len(kept) - 1) * stride
        run = [_step(kept.pop(), field)]
        while len(run) < min(stride, left):
            run.append(_step(run[-1], field))
        yield from reversed(run)


def _carried(source: Tensor, displacement: Tensor, min_density: float) -> tuple[Tensor, Tensor]:
    """The picture looked up at p + D(p), (3, H, W), and the weight in [0, 1] (H, W) of each pixel.

    `source` (4, H, W) is the picture times the mask, and the mask. The division comes after the look-up, so that no
    colour from outside the mask bleeds in.
    """
    height, width = source.shape[-2:]
    looked_up = warp(source[None], displacement[None])[0]
    x, y = pixel_grid(height, width, source.device) + displacement
    (x_down, x_right), (y_down, y_right) = torch.gradient(x), torch.gradient(y)
    density = x_right * y_down - x_down * y_right
    outside = torch.maximum((x - x.clamp(0, width - 1)).abs(), (y - y.clamp(0, height - 1)).abs())
    cover = (density / min_density).clamp(0, 1) * looked_up[3] * (1 - outside).clamp(min=0)
    return looked_up[:3] / looked_up[3].clamp(min=torch.finfo(cover.dtype).tiny), cover
