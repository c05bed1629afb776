"""Training images, each shifted and mirrored by chance."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size, and mirror it in half of the cases.

    For 32 × 32 pixels these are the random crop with 4 pixels of padding and the horizontal flip of the
    long-tailed protocol. What comes in from outside is black.

    Parameters
    ----------
    pixels : Tensor
        Shape (batch, 3, size, size), or (batch, pictures, 3, size, size).
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    images = pixels.reshape(-1, *pixels.shape[-3:])
    batch, _, size, _ = images.shape
    margin = size // 8
    top, left = torch.randint(2 * margin + 1, (2, batch), generator=generator)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    steps = torch.arange(size)
    across = torch.where(mirrored[:, None], size - 1 - steps, steps) + left[:, None]
    down = steps + top[:, None]
    padded = pad(images, (margin,) * 4).movedim(1, -1)
    rows = torch.arange(batch)[:, None, None]
    return padded[rows, down[:, :, None], across[:, None]].movedim(-1, 1).reshape(pixels.shape)
