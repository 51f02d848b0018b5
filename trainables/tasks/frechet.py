"""Frechet distance between two sets of images, by torchmetrics.

Heusel et al. 2017: between normal distributions with the means and covariances of a network's
features. Only with Inception-v3 is that number an FID, to be compared with published ones.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.tasks.images import load

#: Features of the small network, and how it is trained.
FEATURES = 32
UPDATES, BATCH, RATE = 300, 64, 2e-3


def frechet_distance(
    real: Tensor, fake: Tensor, features: nn.Module | None, weights: str | None = None
) -> float:
    """Frechet distance between the features of two sets of images.

    Args:
        real: (n, channels, rows, columns) in [0, 1], n >= 2.
        fake: likewise; the numbers of images may differ.
        features: gives (n, features) of images; None takes Inception-v3, for colour images.
        weights: file with the weights of Inception-v3.

    Raises:
        InputError: the file of weights cannot be read.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its memory
        metric: Any = (
            FrechetInceptionDistance(feature=features, normalize=True)
            if features is not None
            else _inception(str(weights))
        )
        metric = metric.to(real.device)
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return float(metric.compute())


def _inception(weights: str) -> nn.Module:
    from torchmetrics.image.fid import FrechetInceptionDistance

    place = os.path.expanduser(weights)
    try:
        return FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=place)
    except Exception as error:  # pickle raises whatever a damaged file leads to
        law = f"holds no weights of torch-fidelity's Inception-v3 ({type(error).__name__})"
        remedy = "use weights-inception-2015-12-05-6726825d.pth, or leave inception out"
        raise InputError([Mistake("task.inception", weights, law, remedy)]) from error


def weights_mistakes(weights: object) -> Iterator[Mistake]:
    """Mistakes in a file of Inception's weights, found without reading it."""
    if weights is None:
        return
    if not isinstance(weights, str) or not os.path.isfile(os.path.expanduser(weights)):
        law, remedy = "there is no such file", "give the path of the weights, or leave it out"
        yield Mistake("task.inception", weights, law, remedy)
    elif importlib.util.find_spec("torch_fidelity") is None:
        law, remedy = "torch-fidelity, which has Inception-v3, is not installed", "install it"
        yield Mistake("task.inception", weights, law, remedy)


class SmallFeatures(nn.Module):
    """Two convolutions, pooled to `FEATURES` numbers an image, and a classifier to train them."""

    num_features = FEATURES

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, FEATURES, 3, stride=2, padding=1)
        self.output = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1], (n, `FEATURES`)."""
        like = self.first.weight
        hidden = F.silu(self.first(images.to(like.device, like.dtype) - 0.5))
        return F.silu(self.second(hidden)).mean((2, 3))


@lru_cache(maxsize=4)
def small_features(name: str, data_root: str | None) -> SmallFeatures:
    """A network for features, trained to classify the set's training images, always the same.

    Adam, 300 updates on mini-batches of 64, float64, one thread: a second or two.

    Args:
        name: a set of `trainables.tasks.images`.
        data_root: as there.
    """
    (pixels, labels), _ = load(name, data_root)
    count = min(len(labels), UPDATES * BATCH)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        torch.set_num_threads(1)  # whose number shows in the last bits
        network = SmallFeatures(pixels.shape[1], int(labels.max()) + 1).double()
        optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
        for step in range(UPDATES):
            rows = torch.arange(step * BATCH, (step + 1) * BATCH).numpy() % count
            images = torch.from_numpy(pixels[rows]).double() / 255
            loss: Any = F.cross_entropy(
                network.output(network(images)), torch.from_numpy(labels[rows])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        torch.set_num_threads(threads)
    return network.requires_grad_(False).eval()
