"""Motion fields (Eq. 3): warping, backward offsets over many frames, motion strength (Eq. 8), resizing.

A flow tensor has two channels on axis -3: channel 0 is x to the right, channel 1 is y down, in pixels per frame *at
that tensor's own resolution*. Only `resize_flow` may resize one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Area = tuple[slice, slice]  # rows and columns of a picture

# Thresholds of `trace_back`; the first two are shares of the speed of a step.
STILL = 0.1  # a place with less speed stands still
MOVES = 0.5  # a pixel with more speed in the next step keeps moving
PROBE = 1.5  # px, the least distance at which stillness is measured

MEDIAN_ID = 127  # strength of the training set's median on the scale of Fig. 7: the middle of SVD's motion buckets


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Coordinates of every pixel centre: (2, H, W) float32, channel 0 = x, 1 = y, origin at the first pixel centre."""
    return area_grid((slice(0, height), slice(0, width)), device)


def area_grid(area: Area, device: torch.device | None = None) -> Tensor:
    """The part (2, h, w) of `pixel_grid` that lies in an area."""
    y, x = (torch.arange(side.start, side.stop, dtype=torch.float32, device=device) for side in area)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def area_of(where: Tensor, margin: int = 0) -> Area | None:
    """The smallest area that holds all True pixels of `where` (H, W), grown by `margin` px; None if there are none."""
    sides = []
    for axis, length in zip((1, 0), where.shape, strict=True):
        places = where.any(axis).nonzero()
        if len(places) == 0:
            return None
        sides.append(slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, length)))
    return sides[0], sides[1]


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """Sample `image` at p + displacement(p): bilinear, border pixels repeated outside.

    Args:
        image: (B, C, H, W), any float type.
        displacement: (B, 2, H, W) in px; to move content *along* a flow F, pass about -F.

    Returns:
        (B, C, H, W) in the type of `image`.
    """
    return sample(image, pixel_grid(*image.shape[-2:], image.device) + displacement.float())


def sample(image: Tensor, where: Tensor) -> Tensor:
    """Sample `image` (B, C, H, W) at the points `where` (B, 2, h, w), in px, as `warp` does: (B, C, h, w)."""
    height, width = image.shape[-2:]
    # align_corners=True maps -1 and 1 to the first and last pixel centres, so a zero displacement is the identity.
    scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=image.device).view(2, 1, 1)
    grid = (where * scale - 1).permute(0, 2, 3, 1)
    return F.grid_sample(image.float(), grid, padding_mode="border", align_corners=True).to(image.dtype)


def integrate_flow(flow: Tensor) -> Tensor:
    """Backward offsets: where each pixel of each frame was in frame 0. The motion encoder of Eq. 4 sees them.

    S_t(p) = q - p + S_{t-1}(q), where content at q in frame t-1 moves to p: q + F_{t-1}(q) = p. `_origin` finds q to
    second order, so that rotating content keeps its radius. Content that enters over the border repeats the offset of
    the border. The offsets of a steady field grow with t. Eq. 4 needs that: with the same field in all frames the rows
    of its softmax sum to 1, and the term is a constant.

    Args:
        flow: (B, T-1, 2, H, W), px per frame.

    Returns:
        (B, T, 2, H, W), px, as offsets from p; zero in frame 0. `warp(frame_0, result[:, t])` is frame 0 moved to time
        t.
    """
    offset = torch.zeros_like(flow[:, 0])
    offsets = [offset]
    for step in flow.unbind(1):
        offset = _follow(offset, _origin(step))
        offsets.append(offset)
    return torch.stack(offsets, dim=1)


def trace_back(flow: Tensor) -> Tensor:
    """Backward offsets for warping one picture over many frames: like `integrate_flow`, but a stream never runs dry.

    Content that enters over the border, or that flows out of a still part, has no place in frame 0. `warp` would repeat
    the last pixel there: a streak, which shows no motion. Here the picture is mirrored at the place of entry, so that
    it continues without a seam and moves at the speed of the field. It is mirrored again where the stream ends
    downstream, and so on: a stream shows its own stretch of the picture back and forth for any length of time.

    An object that moves away also leaves still pixels behind. The flow after the step tells the two apart: behind an
    object nothing moves any more.

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
        # No flow follows the last step: only streams of the step before it count.
        stream = out_of_still & stream if last else out_of_still
        left, into_still = _crosses(step, speed, step)
        # Content that enters was mirrored there and came downstream; content that leaves is mirrored and goes upstream.
        turned_back, turned_ahead = _reflected(came, entered), _reflected(step, left)
        back, ahead = (
            torch.where(((entered > 0) | stream)[:, None], _follow(ahead, turned_back), _follow(back, came)),
            torch.where(((left > 0) | into_still)[:, None], _follow(back, turned_ahead), _follow(ahead, step)),
        )
        offsets.append(back)
    return torch.stack(offsets, dim=1)


def _origin(step: Tensor) -> Tensor:
    """Offset (B, 2, H, W) from each pixel after a step to its place before the step: q - p with q + F(q) = p.

    One fixed-point iteration, because plain -F turns a rotation into a spiral. Where the motion at q differs too much
    from that at p, -F is kept.
    """
    found = warp(step, -step)
    same = torch.hypot(*(found - step).unbind(1)) < MOVES * torch.hypot(*step.unbind(1))
    return torch.where(same[:, None], -found, -step)


def _crosses(step: Tensor, speed: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """Where `way` (B, 2, H, W) leaves the picture: its share outside, (B, H, W), and whether it ends in a still part.

    Stillness is measured at least `PROBE` px away, because a slow stream has edges too.
    """
    height, width = step.shape[-2:]
    where = pixel_grid(height, width, step.device) + way
    far = where.new_tensor([width - 1, height - 1]).view(2, 1, 1)
    outside = ((where - where.clamp(min=torch.zeros_like(far), max=far)).abs() / way.abs().clamp_min(1e-6)).amax(1)
    length = torch.hypot(*way.unbind(1))[:, None].clamp_min(1e-6)
    there = warp(step, way * (length.clamp_min(PROBE) / length))
    return outside, torch.hypot(*there.unbind(1)) < STILL * speed


def _reflected(way: Tensor, outside: Tensor) -> Tensor:
    """`way` with its share outside the picture turned round; at a still part, which has no such share, at half way."""
    inside = torch.where(outside > 0, 1 - outside, 0.5)[:, None]
    return (2 * inside - 1) * way


def _follow(offset: Tensor, way: Tensor) -> Tensor:
    return warp(offset, way) + way


def follow_points(flow: Tensor, points: Tensor) -> Tensor:
    """Carry points of frame 0 along a flow, bilinearly; outside the picture the flow of its border goes on.

    Args:
        flow: (T-1, 2, H, W), px per frame.
        points: (N, 2), px, x and y in frame 0.

    Returns:
        (T, N, 2), px, the places of the points in each frame.
    """
    places = [points.float()]
    for step in flow:
        where = places[-1].T[None, :, None]  # (1, 2, 1, N)
        places.append(places[-1] + sample(step[None], where)[0, :, 0].T.float())
    return torch.stack(places)


def motion_strength(flow: Tensor) -> Tensor:
    """Motion strength (Eq. 8): the mean L2 norm of the flow over frames and pixels.

    Args:
        flow: (B, T-1, 2, H, W), px per frame.

    Returns:
        (B,), px per frame at the flow's resolution.
    """
    x, y = flow.float().unbind(-3)
    return torch.hypot(x, y).flatten(1).mean(1)  # on a CPU 20 times as fast as vector_norm over this axis


def strength_to_px(strength: float, *, median_strength: float, width: int) -> float:
    """From the 100-400 scale of Fig. 7 to px per frame (Eq. 8) at `width`; the inverse of
    `MotionConditioner.strength_id`.

    Args:
        strength: At least 0; 127 is the training set's median, 0 is no motion.
        median_strength: That median, as a share of the width per frame.

    Raises:
        ValueError: If `strength` is not as above.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength}: must be at least 0; the usual range is 100 to 400, 127 the median")
    return strength / MEDIAN_ID * median_strength * width


def with_strength(flow: Tensor, strength: float | None, *, median_strength: float) -> Tensor:
    """Scale a measured field to a motion strength; `motion.controls.at_strength` does it for arrows.

    The speed of the moving parts becomes `strength_to_px(strength)`. It is the mean of |F| weighted by |F| itself, sum
    |F|² / sum |F|: where all moving pixels have one speed, it is that speed, however few they are; slow surroundings
    and the noise of an estimate count for little.

    Args:
        flow: (N-1, 2, H, W) px per frame.
        strength: As in `strength_to_px`; None keeps the field's own.
        median_strength: As in `strength_to_px`.

    Returns:
        (N-1, 2, H, W) px per frame; a zero field stays zero.
    """
    if strength is None:
        return flow
    wanted = strength_to_px(strength, median_strength=median_strength, width=flow.shape[-1])
    speed = torch.hypot(*flow.double().unbind(-3))
    total = float(speed.sum())
    return flow * (wanted * total / float(speed.square().sum())) if total > 0 else flow


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow and scale its values, so that they stay pixels per frame at the new resolution.

    Args:
        flow: (..., 2, H, W), px per frame.

    Returns:
        (..., 2, height, width); area-averaged when shrinking, bilinear when enlarging.

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
