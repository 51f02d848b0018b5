"""A task of your own: change the network and the data, and keep the rest.

stabmap tasks --check my-task --tasks task.py    is it deterministic, batchable, resumable?
stabmap run sweep.yaml --tasks task.py           how large may its learning rate be?
"""

import torch
from torch import Tensor, nn

from stabmap import task_from
from trainables.losses import CROSS_ENTROPY


def network(seed: int, width: int = 16) -> nn.Module:
    """PyTorch's random numbers are seeded: the initial weights depend on the seed alone."""
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))


def moons(samples: int = 200) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two half circles that reach into each other; as many points again to test with."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(2 * samples) % 2
    angle = torch.pi * torch.rand(2 * samples, generator=generator)
    x = torch.where(label == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.1 * torch.randn(2 * samples, 2, generator=generator)
    return (points[:samples], label[:samples]), (points[samples:], label[samples:])


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the points in the right half circle."""
    return (outputs.argmax(1) == targets).double().mean()


MyTask = task_from("my-task", network, moons, CROSS_ENTROPY, accuracy)
