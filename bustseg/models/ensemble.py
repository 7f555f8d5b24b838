"""Several trained networks as one."""

from __future__ import annotations

import torch
from torch import nn

from bustseg.errors import UserError


class Ensemble(nn.Module):
    """Mean of the logits of several networks: images (B, C, H, W) in, logits (B, 1, H, W) out.

    `bustseg ensemble` makes one of trained checkpoints. The mean of logits is the normalised geometric mean of the
    probabilities. Trained itself, its networks learn together what none of them need know alone; for members that
    differ, train them one by one.

    Args:
        networks: images in, logits out, all of one shape

    Raises:
        UserError: no networks

    Example:
        >>> from bustseg.models import FusionUNet
        >>> net = Ensemble([FusionUNet(["resnet18"], weights="none") for _ in range(2)])
        >>> net(torch.zeros(2, 3, 64, 96)).shape
        torch.Size([2, 1, 64, 96])
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise UserError("an ensemble of no networks: give networks at least one")
        self.networks = nn.ModuleList(networks)

    @property
    def cam_layer(self) -> str | None:
        """What Grad-CAM explains by default: the first network's own layer."""
        inner = getattr(self.networks[0], "cam_layer", None)
        return f"networks.0.{inner}" if inner else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(0)
