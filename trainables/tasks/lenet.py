"""LeNet-5 with one output more, for numbers instead of classes (Fang et al. 2022, section 4.1)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def lenet(channels: int, seed: int) -> nn.Module:
    """The network for images of 32 x 32 pixels; weights are PyTorch's defaults from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(16, 120, 5),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc2=nn.Linear(84, 10),
            relu5=nn.ReLU(),
            fc3=nn.Linear(10, 1),
        )
        return nn.Sequential(layers).double()
