"""Changes of a picture's look that keep its motion, so that training on rendered scenes serves photos."""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.media.image_io import from_uint8


def vary(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Vary colours, exposure, sharpness, noise and compression of an image (3, H, W) float32 in [-1, 1].

    The same state of the generator gives the same picture, bit for bit.
    """
    picture = (image.permute(1, 2, 0).numpy() + 1) / 2
    swap, mix, grey, gamma, blur, noise, compress = generator.random(7)
    if swap < 0.5:
        picture = picture[..., generator.permutation(3)]
    if mix < 0.7:
        mean = picture.mean((0, 1))
        picture = (picture - mean) @ (np.eye(3) + generator.normal(0, 0.25, (3, 3))) + mean
    if grey < 0.1:
        picture = np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
    picture = picture.clip(0, 1)
    if gamma < 0.7:
        picture = picture ** np.exp(generator.normal(0, 0.4))
    if blur < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), generator.uniform(0.3, 1.2))
    if noise < 0.5:
        picture = picture + generator.normal(0, generator.uniform(0, 0.06), picture.shape)
    stored = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    if compress < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 95))]
        stored = cv2.imdecode(cv2.imencode(".jpg", stored, quality)[1], cv2.IMREAD_COLOR)
    return from_uint8(torch.from_numpy(np.ascontiguousarray(stored.transpose(2, 0, 1))))
