"""Networks with random weights for metrics that need some."""

import torch
import torchvision
from torch import Tensor, nn


def random_alexnet() -> nn.Sequential:
    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features  # without the large classifier
    features = features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in features.parameters():
        std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        nn.init.normal_(parameter, std=std, generator=generator)
    return features


class Encoder(nn.Module):
    """A small CLIP image encoder: patches, a mean, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.project = nn.Conv2d(3, 8, 32, 32), nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[1:] == (3, 224, 224)
        return self.project(self.patches(pixels).relu().mean((2, 3)))
