"""Several trained networks as one."""

from __future__ import annotations

import torch
from torch import nn

from bustseg.errors import UserError


class Ensemble(nn.Module):
    """Mean of the logits of several networks: images (B, C, H, W) in, logits (B, 1, H, W) out.

    `bustseg ensemble` makes one of trained checkpoints. The mean of logits is the normalised geometric mean of the
    probabilities. If the ensemble itself is trained, its networks are trained jointly; for diverse members, train them
    one by one.

    Args:
        networks: images in, logits out, all with the same shapes

    Raises:
        UserError: no networks

    Examples:
        >>> from bustseg.models import FusionUNet
        >>> net = Ensemble([FusionUNet(["resnet18"], weights="none") for _ in range(2)])
        >>> net(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 1, 64, 96])
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise UserError("an ensemble needs networks: give at least one")
        self.networks = nn.ModuleList(networks)

    @property
    def cam_layer(self) -> str | None:
        """Layer that Grad-CAM explains by default: that of the first network."""
        inner = getattr(self.networks[0], "cam_layer", None)
        return f"networks.0.{inner}" if inner else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(0)
