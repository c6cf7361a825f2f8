"""Motion-field mathematics: Eq. 3 and 5-8 of the paper.

A flow tensor has two channels on axis -3: 0 is x to the right, 1 is y down, in pixels per frame *at that tensor's own
resolution*. Only `resize_flow` may resize one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Area = tuple[slice, slice]  # rows and columns of a picture

# Of `trace_back`, as shares of the speed of a step.
STILL = 0.1  # what a pixel comes from counts as standing still below this
MOVES = 0.5  # and the pixel as moving on above this
PROBE = 1.5  # px


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Coordinates of every pixel centre: (2, H, W) float32, channel 0 = x, 1 = y, origin at the first pixel centre."""
    return area_grid((slice(0, height), slice(0, width)), device)


def area_grid(area: Area, device: torch.device | None = None) -> Tensor:
    """The same of the pixels of an area: (2, h, w)."""
    y, x = (torch.arange(side.start, side.stop, dtype=torch.float32, device=device) for side in area)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def area_of(where: Tensor, margin: int = 0) -> Area | None:
    """The smallest area that holds all of `where` (H, W) and `margin` px around it; None if nothing is there."""
    sides = []
    for axis, length in zip((1, 0), where.shape, strict=True):
        places = where.any(axis).nonzero()
        if len(places) == 0:
            return None
        sides.append(slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, length)))
    return sides[0], sides[1]


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """Sample `image` at p + displacement(p), bilinear, border pixels repeated outside.

    Args:
        image: (B, C, H, W), any float type.
        displacement: (B, 2, H, W) in pixels; to move content *along* a flow F pass about -F.

    Returns:
        (B, C, H, W) in the type of `image`.
    """
    return sample(image, pixel_grid(*image.shape[-2:], image.device) + displacement.float())


def sample(image: Tensor, where: Tensor) -> Tensor:
    """`image` (B, C, H, W) at places `where` (B, 2, h, w) in pixels, as `warp` reads it: (B, C, h, w)."""
    height, width = image.shape[-2:]
    # align_corners=True maps -1 and 1 to the first and last pixel centres, so a zero displacement is the identity.
    scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=image.device).view(2, 1, 1)
    grid = (where * scale - 1).permute(0, 2, 3, 1)
    return F.grid_sample(image.float(), grid, padding_mode="border", align_corners=True).to(image.dtype)


def integrate_flow(flow: Tensor) -> Tensor:
    """Trace every pixel of every frame back to frame 0: the displacement that Eq. 4's motion encoder sees.

    S_t(p) = q - p + S_{t-1}(q), where content at q in frame t-1 comes to p: q + F_{t-1}(q) = p. q is found to second
    order (`_origin`), so that what turns keeps its radius. What enters over the border repeats the border's offset.
    For a steady field this grows with t, which is what Eq. 4 needs: a field that is equal in
    all frames makes its softmax rows sum to 1 and the term a constant.

    Args:
        flow: (B, T-1, 2, H, W), px per frame.

    Returns:
        (B, T, 2, H, W), px: where pixel p of frame t was in frame 0, as an offset from p. Frame 0 is zero. So
        `warp(frame_0, result[:, t])` is frame 0 moved to time t.
    """
    offset = torch.zeros_like(flow[:, 0])
    offsets = [offset]
    for step in flow.unbind(1):
        offset = _follow(offset, _origin(step))
        offsets.append(offset)
    return torch.stack(offsets, dim=1)


def trace_back(flow: Tensor) -> Tensor:
    """`integrate_flow` for looking up a picture over many frames: it never leaves a stream.

    What enters over the border, or comes out of a part that stands still, was nowhere in frame 0. To repeat the last
    pixel there, as `warp` does, draws it out to a streak, which shows no motion; mirrored at its place of entry the
    picture goes on without a seam, and moves on at the speed of the field. Where the stream ends downstream it is
    mirrored again, and so on: a stream shows its own stretch of the picture back and forth for any length of time.

    A part that moves on and leaves what stood behind it is told from a stream by the flow after the step: behind the
    former nothing moves any more.

    Args:
        flow: (B, T-1, 2, H, W), px per frame.

    Returns:
        As `integrate_flow`, (B, T, 2, H, W), px.
    """
    back = ahead = torch.zeros_like(flow[:, 0])
    offsets, stream = [back], torch.zeros_like(flow[:, 0, 0], dtype=torch.bool)
    for k, step in enumerate(flow.unbind(1)):
        last = k == flow.shape[1] - 1
        later = torch.hypot(*flow[:, k if last else k + 1].unbind(1))
        speed = torch.hypot(*step.unbind(1))
        came = _origin(step)
        entered, out_of_still = _crosses(step, speed, came)
        out_of_still = out_of_still & (later > MOVES * speed)
        # After the last step nothing tells what moves on: a stream is what was one before.
        stream = out_of_still & stream if last else out_of_still
        left, into_still = _crosses(step, speed, step)
        # What enters turned round there and went downstream until now; what leaves turns round and goes upstream.
        turned_back, turned_ahead = _reflected(came, entered), _reflected(step, left)
        back, ahead = (
            torch.where(((entered > 0) | stream)[:, None], _follow(ahead, turned_back), _follow(back, came)),
            torch.where(((left > 0) | into_still)[:, None], _follow(back, turned_ahead), _follow(ahead, step)),
        )
        offsets.append(back)
    return torch.stack(offsets, dim=1)


def _origin(step: Tensor) -> Tensor:
    """Offset (B, 2, H, W) from each pixel after a step to where it was before: q - p with q + F(q) = p.

    One fixed-point iteration; plain -F turns a wheel into a spiral. Where q lies in another motion -F is kept.
    """
    found = warp(step, -step)
    same = torch.hypot(*(found - step).unbind(1)) < MOVES * torch.hypot(*step.unbind(1))
    return torch.where(same[:, None], -found, -step)


def _crosses(step: Tensor, speed: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """The share of `way` (B, 2, H, W) outside the picture, and whether it ends in a part that stands still, (B, H, W).

    Stillness is looked for at least `PROBE` px away: slow streams too have an edge.
    """
    height, width = step.shape[-2:]
    where = pixel_grid(height, width, step.device) + way
    far = where.new_tensor([width - 1, height - 1]).view(2, 1, 1)
    outside = ((where - where.clamp(min=torch.zeros_like(far), max=far)).abs() / way.abs().clamp_min(1e-6)).amax(1)
    length = torch.hypot(*way.unbind(1))[:, None].clamp_min(1e-6)
    there = warp(step, way * (length.clamp_min(PROBE) / length))
    return outside, torch.hypot(*there.unbind(1)) < STILL * speed


def _reflected(way: Tensor, outside: Tensor) -> Tensor:
    """`way` with its part outside the picture turned round; in the middle where it is not known, at a still part."""
    inside = torch.where(outside > 0, 1 - outside, 0.5)[:, None]
    return (2 * inside - 1) * way


def _follow(offset: Tensor, way: Tensor) -> Tensor:
    return warp(offset, way) + way


def motion_strength(flow: Tensor) -> Tensor:
    """Motion strength (Eq. 8): mean L2 length of the flow over frames and pixels.

    Args:
        flow: (B, T-1, 2, H, W), px per frame.

    Returns:
        (B,), px per frame at the flow's resolution.
    """
    x, y = flow.float().unbind(-3)
    return torch.hypot(x, y).flatten(1).mean(1)  # vector_norm over this axis takes 20 times as long on a CPU


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow and scale its values, so that they stay pixels per frame at the new resolution.

    Args:
        flow: (..., 2, H, W), px per frame.

    Returns:
        (..., 2, height, width); area-averaged when shrinking, bilinear when growing.

    Raises:
        ValueError: If a side of the target is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize a flow to {height}x{width}: each side must be at least 1")
    old_height, old_width = flow.shape[-2:]
    if (old_height, old_width) == (height, width):
        return flow
    flat = flow.reshape(-1, 2, old_height, old_width).float()  # antialias has no half-precision kernel on a CPU
    flat = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    scale = flat.new_tensor([width / old_width, height / old_height]).view(2, 1, 1)
    return (flat * scale).reshape(*flow.shape[:-2], height, width).to(flow.dtype)
