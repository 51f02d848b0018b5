"""MCNN and CSRNet: how many people are in a picture, by a map of their density.

Fang et al. (ACCV 2022), section 4.2: both networks on NWPU-Crowd, squared error of the density map;
MCNN with Adam at a rate of 1e-4 over 100 epochs, ten independent runs, CSRNet by the protocol of
its authors. Figures of merit: mean absolute error, root of the mean squared error, and absolute
error over the true count (Wang et al. 2021).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import Loss, summed_squares
from trainables.options import choice, whole
from trainables.tasks.crowds import crowd_tensors, root_mistakes

METRICS = {
    "mae": "mean absolute error of the count",
    "mse": "root mean squared error of the count",
    "nae": "mean absolute error over the true count, where anybody is",
}


@dataclass(frozen=True)
class _CrowdCounting:
    """What both networks share.

    Args:
        samples: pictures to train with, at most 3,109 from NWPU-Crowd.
        held_out: pictures that are held out, at most 500 from NWPU-Crowd.
        size: sides in pixels of the square that is cut out of each, a multiple of 16.
        batch_size: mini-batch size, or None for the full batch.
        metric_kind: `mae`, `mse` (its root, as the field writes it) or `nae`.
        width: channels of the network over those of the paper.
        data_root: folder of NWPU-Crowd, or None for made-up crowds.
    """

    samples: int = 64
    held_out: int = 16
    size: int = 64
    batch_size: int | None = 8
    metric_kind: str = "mae"
    width: float = 1.0
    data_root: str | None = None

    needs: ClassVar[str | None] = "NWPU-Crowd in a folder (images/, mats/, train.txt, val.txt)"
    #: Pixels of a picture along one of the density map.
    factor: ClassVar[int]

    def __post_init__(self) -> None:
        mistakes: list[Mistake] = [
            *whole("task.samples", self.samples, 1, 10_000),
            *whole("task.held_out", self.held_out, 1, 10_000),
            *whole("task.size", self.size, 16, 4096),
            *choice("task.metric_kind", self.metric_kind, tuple(METRICS)),
            *root_mistakes(self.data_root),
        ]
        number = isinstance(self.width, (int, float)) and not isinstance(self.width, bool)
        if not number or not 0 < self.width <= 4:
            mistakes.append(Mistake("task.width", self.width, "in (0, 4]", "1 is the paper's"))
        if not mistakes and self.size % 16:
            law, remedy = "a multiple of 16", f"use {16 * (self.size // 16)}"
            mistakes.append(Mistake("task.size", self.size, law, remedy))
        if self.batch_size is not None and not mistakes:
            mistakes += whole("task.batch_size", self.batch_size, 1, self.samples)
        if mistakes:
            raise InputError(mistakes)

    @property
    def stand_in(self) -> str | None:
        """Made-up crowds are not NWPU-Crowd."""
        return None if self.data_root else "made-up crowds (for NWPU-Crowd)"

    @property
    def metric_name(self) -> str:
        """What the metric measures."""
        return METRICS[self.metric_kind]

    @property
    def loss(self) -> Loss:
        """Half the squared error, summed over the map, a mean over the batch (both papers)."""
        return summed_squares(0.5)

    @property
    def batch(self) -> int | None:
        """Mini-batch size."""
        return self.batch_size

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Pictures and density maps."""
        return self._data("train", self.samples)

    def test_data(self) -> tuple[Tensor, Tensor]:
        """Those that are held out."""
        return self._data("val", self.held_out)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Error of the counts, which are the sums of the maps."""
        counts, truth = outputs.flatten(1).sum(1), targets.flatten(1).sum(1)
        error = (counts - truth).abs()
        if self.metric_kind == "mse":
            return float((error**2).mean().sqrt())
        if self.metric_kind == "nae":
            anybody = truth > 0.5
            return float((error / truth)[anybody].mean()) if bool(anybody.any()) else 0.0
        return float(error.mean())

    def _data(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        arrays = crowd_tensors(self.data_root, part, count, self.size, self.factor)
        pictures, maps = (torch.from_numpy(array) for array in arrays)
        return pictures, maps

    def _channels(self, given: Sequence[int]) -> list[int]:
        return [max(round(count * self.width), 1) for count in given]


@dataclass(frozen=True)
class MCNN(_CrowdCounting):
    """Three columns of convolutions with large, middle and small kernels (Zhang et al. 2016).

    133,705 parameters with three colours: counted from figure 2 of that paper, which gives kernels
    and channels; reviews list 0.13 M. The regulariser acts on the last layer.

    Args:
        samples: pictures to train with; so are the others those of `_CrowdCounting`.
    """

    name: ClassVar[str] = "crowd-mcnn"
    source: ClassVar[str] = "Fang et al. 2022, section 4.2 and table 1; Zhang et al. 2016"
    regularised_layer: ClassVar[str] = "merge"
    factor: ClassVar[int] = 4

    def module(self, seed: int) -> nn.Module:
        """The network; weights start from a normal distribution of deviation 0.01."""
        with torch.random.fork_rng(devices=[]):
            return _started(self._network(), seed)

    def _network(self) -> nn.Module:
        columns = [
            self._column((16, 32, 16, 8), (9, 7, 7, 7)),
            self._column((20, 40, 20, 10), (7, 5, 5, 5)),
            self._column((24, 48, 24, 12), (5, 3, 3, 3)),
        ]
        merged = sum(self._channels([8, 10, 12]))
        parts = OrderedDict(columns=_Beside(columns), merge=nn.Conv2d(merged, 1, 1))
        return nn.Sequential(parts)

    def _column(self, channels: Sequence[int], kernels: Sequence[int]) -> nn.Module:
        layers: list[nn.Module] = []
        before = 3
        for index, (after, kernel) in enumerate(
            zip(self._channels(channels), kernels, strict=True)
        ):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index < 2 else []
            before = after
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class CSRNet(_CrowdCounting):
    """Ten layers of VGG-16 and six dilated convolutions (Li et al. 2018, back end B).

    16,263,489 parameters, the 16.26 M that its authors give in table 2. Their front end starts from
    weights trained on ImageNet, which this one does not have: all weights start from a normal
    distribution. The regulariser acts on the last layer.

    Args:
        samples: pictures to train with; so are the others those of `_CrowdCounting`.
    """

    name: ClassVar[str] = "crowd-csrnet"
    source: ClassVar[str] = "Fang et al. 2022, section 4.2 and figure 5; Li et al. 2018"
    regularised_layer: ClassVar[str] = "output"
    factor: ClassVar[int] = 8

    def module(self, seed: int) -> nn.Module:
        """The network; weights start from a normal distribution of deviation 0.01."""
        with torch.random.fork_rng(devices=[]):
            return _started(self._network(), seed)

    def _network(self) -> nn.Module:
        front = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512]
        layers: list[nn.Module] = []
        before = 3
        for count in front:
            if not count:
                layers.append(nn.MaxPool2d(2))
                continue
            (after,) = self._channels([count])
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            before = after
        for after in self._channels([512, 512, 512, 256, 128, 64]):
            layers += [nn.Conv2d(before, after, 3, padding=2, dilation=2), nn.ReLU()]
            before = after
        parts = OrderedDict(layers=nn.Sequential(*layers), output=nn.Conv2d(before, 1, 1))
        return nn.Sequential(parts)


class _Beside(nn.Module):
    """Columns beside each other, their channels joined."""

    def __init__(self, columns: Sequence[nn.Module]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, sum of channels, height / 4, width / 4)."""
        return torch.cat([column(inputs) for column in self.columns], 1)


def _started(module: nn.Module, seed: int) -> nn.Module:
    """Weights from N(0, 0.01^2), biases 0, as both programs do."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                noise = torch.randn(part.weight.shape, generator=generator, dtype=torch.float64)
                part.weight.copy_(0.01 * noise)
                if part.bias is not None:
                    part.bias.zero_()
    return module
