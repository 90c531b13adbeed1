"""The training loop of the earlier PyTorch re-implementation, written anew from its description, for comparison only.

Every sample is made by Pillow in a worker: opened, stretched to a square, jittered, and cut into Laplacian pyramids of
saturating uint8 differences. Networks run in float32 and NCHW, with batch normalisation after every convolution, a 3
to 3 convolution at every U-Net's entry, and a stage less than MSEC's, as its count of layers includes the bridge.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import pil_to_tensor

LEVELS = 4


def pyramid(image: Image.Image) -> list[Image.Image]:
    """Return the Laplacian pyramid, coarsest first; negative detail is lost."""
    bands = []
    for _ in range(LEVELS - 1):
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
        bands.append(ImageChops.subtract(image, small.resize(image.size, Image.Resampling.BILINEAR)))
        image = small
    return [image, *bands[::-1]]


class EarlierDataset(Dataset[tuple[list[Tensor], list[Tensor]]]):
    """Pyramids of the jittered photo, and the photo at every level's size; `paths` are those of RGB photos."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size
        self.jitter = ColorJitter(brightness=0.85, saturation=0.3, contrast=0.3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        photo = Image.open(self.paths[index]).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        sizes = [self.size >> level for level in range(LEVELS)][::-1]
        targets = [photo.resize((size, size), Image.Resampling.BILINEAR) for size in sizes]
        inputs = pyramid(self.jitter(photo))
        return [pil_to_tensor(x) / 255 for x in inputs], [pil_to_tensor(x) / 255 for x in targets]


def _double_conv(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


class EarlierUNet(nn.Module):
    """A U-Net of `depth` encoder stages with batch normalisation."""

    def __init__(self, depth: int, first: int) -> None:
        super().__init__()
        channels = [first * 2**stage for stage in range(depth + 1)]
        self.entry = nn.Conv2d(3, 3, 3, padding=1)
        self.encoder = nn.ModuleList(
            _double_conv(before, after) for before, after in zip([3, *channels[:-2]], channels[:-1], strict=True)
        )
        self.bridge = _double_conv(channels[-2], channels[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(_double_conv(2 * c, c) for c in reversed(channels[:-1]))
        self.head = nn.Conv2d(first, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` to the same."""
        x, skips = self.entry(x), []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bridge(x)
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = stage(torch.cat((skip, up(x)), dim=1))
        return self.head(x)


class EarlierGenerator(nn.Module):
    """One U-Net for each level, coarse to fine, each with an additive skip and a squashed output."""

    def __init__(self) -> None:
        super().__init__()
        self.unets = nn.ModuleList(
            EarlierUNet(depth - 1, first) for depth, first in ((4, 24), (3, 24), (3, 24), (3, 16))
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(3, 3, 2, stride=2) for _ in range(LEVELS - 1))

    def forward(self, bands: Sequence[Tensor]) -> list[Tensor]:
        """Map the bands of a pyramid, coarsest first, to the corrected photo at every level's size."""
        outputs: list[Tensor] = []
        for level, (unet, band) in enumerate(zip(self.unets, bands, strict=True)):
            x = band if level == 0 else self.up[level - 1](outputs[-1]) + band
            outputs.append((torch.tanh(unet(x) + x) + 1) / 2)
        return outputs


class EarlierTraining:
    """Its loop, one epoch after the other."""

    def __init__(self, paths: Sequence[Path], *, size: int, batch_size: int, workers: int) -> None:
        self.network = EarlierGenerator()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.loader = DataLoader(
            EarlierDataset(paths, size),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def run(self, steps: int) -> int:
        """Take `steps` steps, at most an epoch's, and return the number of photos."""
        count = 0
        for number, (inputs, targets) in enumerate(self.loader):
            if number == steps:
                break
            self.optimizer.zero_grad()
            outputs = self.network(inputs)
            loss = torch.stack([F.l1_loss(y, t) for y, t in zip(outputs, targets, strict=True)]).sum()
            loss.backward()
            self.optimizer.step()
            loss.item()
            count += len(targets[-1])
        return count
