"""Random crops and flips of a mini-batch, as small colour images are usually trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Pixels that an image is padded with on each side before it is cropped to its size again.
PADDING = 4


def cropped_and_flipped(inputs: Tensor, background: Sequence[float], key: Sequence[int]) -> Tensor:
    """Each image shifted by up to four pixels both ways, and every second one mirrored.

    Args:
        inputs: (batch, channels, rows, columns).
        background: what is put in at the edges, one number a channel.
        key: numbers that decide all of it: the same ones, the same crops, on every device.
    """
    random = np.random.RandomState(list(key))
    count, channels, rows, columns = inputs.shape
    shift = random.randint(0, 2 * PADDING + 1, (2, count, 1))
    flip = random.randint(0, 2, (count, 1)) == 1
    down = shift[0] + np.arange(rows)
    across = np.where(flip, np.arange(columns)[::-1], np.arange(columns)) + shift[1]
    edge = inputs.new_tensor(background).reshape(1, channels, 1, 1)
    size = (count, channels, rows + 2 * PADDING, columns + 2 * PADDING)
    padded = edge.expand(size).clone()
    padded[:, :, PADDING : PADDING + rows, PADDING : PADDING + columns] = inputs
    i, j = (torch.from_numpy(index).to(inputs.device) for index in (down, across))
    sample = torch.arange(count, device=inputs.device).reshape(-1, 1, 1, 1)
    channel = torch.arange(channels, device=inputs.device).reshape(1, -1, 1, 1)
    return padded[sample, channel, i[:, None, :, None], j[:, None, None, :]]
