"""MRFE-CNN, a competitor of the paper's table 5.

Source: Ranjbarzadeh, Tataei Sarshar, Jafarzadeh Ghoushchi, Saleh Esfahani, Parhizkar, Pourasad, Anari, Bendechache
(2022), MRFE-CNN: Multi-route feature extraction model for breast tumor segmentation in Mammograms using a convolutional
neural network, Annals of Operations Research, https://doi.org/10.1007/s10479-022-04755-8.

Stated (abstract; the article is not open): a shallow convolutional network with several feature extraction routes; the
image is enhanced beforehand, which makes a very deep structure unnecessary; it segments and classifies tumours in
mammograms.

Reconstructed, everything else:

* three routes that differ in their kernels (3, 5 and 7 taps): four convolutions and two poolings each, 32 and 64 wide
* their maps are concatenated and fused by two 3 x 3 convolutions (128, 64), with dropout 0.3 before the head
* fully convolutional, with one logit per four pixels upsampled bilinearly
* the enhancement belongs to the preprocessing of mammograms and is left out: every network here gets the same images
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bustseg.models.decoder import resize
from bustseg.models.layers import ConvNormAct, pad_to_multiple


class Route(nn.Sequential):
    """One feature extraction route: (B, C, H, W) -> (B, 2 D, H / 4, W / 4).

    Args:
        in_channels: C
        width: D, doubled after the first pooling
        kernel: taps along each side of all four convolutions
    """

    def __init__(self, in_channels: int, width: int, kernel: int) -> None:
        super().__init__(
            ConvNormAct(in_channels, width, kernel),
            ConvNormAct(width, width, kernel),
            nn.MaxPool2d(2),
            ConvNormAct(width, 2 * width, kernel),
            ConvNormAct(2 * width, 2 * width, kernel),
            nn.MaxPool2d(2),
        )


class MRFECNN(nn.Module):
    """Multi-route feature extraction CNN: images (B, C, H, W) in, logits (B, 1, H, W) out.

    The module's docstring says what is reconstructed.

    Images may have any size: they are padded to a multiple of 4, and the logits are cropped.

    Args:
        in_channels: channels of the images
        kernels: taps of each route
        width: channels of a route's first half
        dropout: share of the fused features that is dropped in training
    """

    cam_layer = "fuse"
    """Layer that Grad-CAM explains by default: the input of the head."""

    def __init__(
        self, in_channels: int = 3, kernels: Sequence[int] = (3, 5, 7), width: int = 32, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.routes = nn.ModuleList(Route(in_channels, width, kernel) for kernel in kernels)
        self.fuse = nn.Sequential(
            ConvNormAct(2 * width * len(kernels), 4 * width), ConvNormAct(4 * width, 2 * width), nn.Dropout(dropout)
        )
        self.head = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 4)
        logits = self.head(self.fuse(torch.cat([route(x) for route in self.routes], 1)))
        return resize(logits, x.shape[-2:])[..., :height, :width]
