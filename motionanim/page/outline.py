"""A region as the parts of a drawing: polygons, and erased polygons for its holes."""

from typing import Any

import cv2
import numpy as np

SIDE = 1024  # px of the longer side at which outlines are taken
SIMPLER = 1.0  # px at that size that a simplified outline may be off


def outlined(region: np.ndarray, width: int, height: int) -> list[Any]:
    """Parts for `motion.regions.read_region` in the pixels of a photo, in order: a part lies on those before it.

    Args:
        region: (h, w) bool, over the whole photo at any size.
        width, height: Of the photo.

    Raises:
        ValueError: If nothing of a polygon's size is inside.
    """
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left = (cv2.resize(region.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
    across, down = width / size[0], height / size[1]
    parts, erased = [], False
    while left.any():
        outlines, _ = cv2.findContours(left, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = np.zeros_like(left)
        cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
        for outline in outlines:
            corners = cv2.approxPolyDP(outline, SIMPLER, True)[:, 0].astype(float)
            if len(corners) < 3:  # a line or a dot
                continue
            corners = (corners + 0.5) * (across, down) - 0.5
            polygon = [[round(x, 1), round(y, 1)] for x, y in corners.tolist()]
            parts.append({"erase": polygon} if erased else polygon)
        left, erased = filled - left, not erased  # first the holes, then what lies in them
    if not parts:
        raise ValueError("nothing is found there: draw a longer stroke or arrow on the thing that moves")
    return parts
