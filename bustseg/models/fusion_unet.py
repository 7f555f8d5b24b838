"""The paper's network: several encoders side by side, fused at stride 32, one attention decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from bustseg.errors import UserError
from bustseg.losses import PresenceLoss
from bustseg.models.attention import build_attention
from bustseg.models.decoder import DSCDecoder, PresenceGate, resize
from bustseg.models.encoders import Encoder, build_encoder
from bustseg.models.layers import pad_to_multiple

Attention = Literal["none", "cbam", "nonlocal", "sk", "transformer"] | Callable[[int], nn.Module]
"""A name of :data:`bustseg.models.attention.ATTENTIONS`, or a callable from the number of channels to a module."""


CLASSES, NORMAL = 3, 2
"""Benign, malignant and normal, as in :data:`bustseg.data.sources.LABELS`; higher codes are unknown."""


class FusionUNet(nn.Module):
    """Multi-encoder UNet for breast-tumour segmentation: images (B, C, H, W) in, logits (B, 1, H, W) out.

    Every encoder sees the image; their coarsest maps (stride 32) are concatenated and decoded by depthwise separable
    blocks with attention. Images may have any size: they are padded to a multiple of 32 by repeating the last row
    and column, and the logits are cropped.

    With the defaults this is the network of Anari et al. 2025, with exactly the published number of parameters
    (23,794,557; with ``cbam`` 23,881,989, with ``nonlocal`` 24,493,277). What these numbers do not determine is chosen
    here: x2 upsampling after each block's attention, bilinear; element-wise dropout on the fused bottleneck; a frozen
    encoder keeps its BatchNorm statistics.

    Source: Anari, Sadeghi, Sheikhi, Ranjbarzadeh, Bendechache (2025), Explainable attention based breast tumor
    segmentation using a combination of UNet, ResNet, DenseNet, and EfficientNet models, Scientific Reports.

    Args:
        encoders: names of torchvision or timm models, see :func:`bustseg.models.encoders.build_encoder`
        attention: after each of the decoder's blocks: ``none``, ``cbam``, ``nonlocal``, ``sk``, ``transformer``, or a
            callable that makes a module for a number of channels
        skips: concatenate the encoders' maps of strides 16 to 2 before the blocks (the paper's networks have none)
        weights: ``imagenet``, ``none`` or a file, for all encoders or one for each
        freeze_encoders: encoders are not trained, run without autograd, and keep their BatchNorm statistics
        dropout: share of the fused features that is dropped in training
        in_channels: channels of the images
        decoder_channels: output channels of the decoder's blocks
        upsample: how the decoder doubles its maps
        presence: also estimate from the fused bottleneck whether the image shows a lesion at all, and gate every pixel
            with it, see :class:`PresenceGate` (the paper's networks do not)
        bottleneck: attention on the fused features, chosen like ``attention`` (the paper's networks have none)
        classify: weight in training of classifying images as benign, malignant or normal from the fused bottleneck
            (multi-task learning; Aumente-Maestro et al. 2025); 0: no such head
        deep_supervision: weight in training of the logits of the decoder's coarser blocks (Lee et al. 2015,
            Deeply-supervised nets); 0: no such heads
        detection: weight in training of a coarse map of where there are lesions at all, learned from every image;
            outside training no pixel is more probable than the map nearby, see :class:`DetectionHead`. Use it with
            :class:`bustseg.losses.LesionLoss`, so that the masks are learned from images with a lesion; 0: no such map

    Raises:
        UserError: there is no such encoder or attention
        WeightsError: an encoder's weights cannot be obtained

    Examples:
        >>> net = FusionUNet(["resnet18"], attention="cbam", weights="none")
        >>> net(torch.zeros(2, 3, 65, 97)).shape
        torch.Size([2, 1, 65, 97])
    """

    def __init__(
        self,
        encoders: list[str] | tuple[str, ...] = ("resnet18", "densenet121", "efficientnet_b0"),
        attention: Attention = "none",
        skips: bool = False,
        weights: str | list[str] = "imagenet",
        freeze_encoders: bool = False,
        dropout: float = 0.3,
        in_channels: int = 3,
        decoder_channels: list[int] | tuple[int, ...] = (512, 256, 128, 64),
        upsample: Literal["bilinear", "nearest"] = "bilinear",
        presence: bool = False,
        bottleneck: Attention = "none",
        classify: float = 0.0,
        deep_supervision: float = 0.0,
        detection: float = 0.0,
    ) -> None:
        super().__init__()
        each = [weights] * len(encoders) if isinstance(weights, str) else list(weights)
        if not encoders or len(each) != len(encoders):
            raise UserError(f"{len(encoders)} encoders but {len(each)} weights: give one for all or one for each")
        if not 1 <= len(decoder_channels) <= 4:
            raise UserError(f"decoder_channels has {len(decoder_channels)} entries: give one to four (strides 32 to 4)")
        self.encoders = nn.ModuleList(
            build_encoder(name, weights=source, in_channels=in_channels, last_only=not skips)
            for name, source in zip(encoders, each, strict=True)
        )
        self.freeze_encoders = freeze_encoders
        if freeze_encoders:
            self.encoders.requires_grad_(False)
            self.encoders.eval()
        self.dropout = nn.Dropout(dropout)
        widths = [dict(zip(encoder.strides, encoder.channels, strict=True)) for encoder in self._encoders()]
        self.bottleneck = build_attention(bottleneck, sum(encoder.channels[-1] for encoder in self._encoders()))
        self.skip_strides = (16, 8, 4, 2)[: len(decoder_channels)] if skips else ()
        self.decoder = DSCDecoder(
            in_channels=sum(encoder.channels[-1] for encoder in self._encoders()),
            skip_channels=[sum(width.get(stride, 0) for width in widths) for stride in self.skip_strides],
            channels=decoder_channels,
            attention=attention,
            upsample=upsample,
            supervised=deep_supervision > 0,
            detect=detection > 0,
        )
        self.classify, self.deep_supervision, self.detection = classify, deep_supervision, detection
        self.detection_loss = PresenceLoss(weight=0.4) if detection > 0 else None
        fused = sum(encoder.channels[-1] for encoder in self._encoders())
        self.classifier = nn.Linear(fused, CLASSES) if classify > 0 else None
        self._class_logits: torch.Tensor | None = None
        self.presence = PresenceGate(sum(encoder.channels[-1] for encoder in self._encoders())) if presence else None

    @property
    def cam_layer(self) -> str:
        """Name of the submodule that Grad-CAM explains by default: the last decoder block."""
        return f"decoder.blocks.{len(self.decoder.blocks) - 1}"

    def _encoders(self) -> list[Encoder]:
        return [encoder for encoder in self.encoders if isinstance(encoder, Encoder)]

    def train(self, mode: bool = True) -> FusionUNet:
        """Set training mode; frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.freeze_encoders:
            self.encoders.eval()
        return self

    @property
    def frozen(self) -> bool:
        """Whether :meth:`encode` always gives the same maps for the same image."""
        learning = any(parameter.requires_grad for parameter in self.encoders.parameters())
        return self.freeze_encoders and not learning

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The decoder's inputs for images (B, C, H, W): fused maps of stride 32, then each skip, coarsest first.

        The encoders' maps are concatenated along the channels. A stride that no encoder has gives a map with 0
        channels. Runs without autograd when the encoders are frozen.
        """
        x = pad_to_multiple(x, 32)
        size = x.shape[-2:]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoders):
            maps = [dict(zip(encoder.strides, encoder(x), strict=True)) for encoder in self._encoders()]
            coarsest = [own[encoder.strides[-1]] for own, encoder in zip(maps, self._encoders(), strict=True)]
            skips = [[own[stride] for own in maps if stride in own] for stride in self.skip_strides]
            return [
                _concatenate(own, size, stride) if own else x.new_zeros(len(x), 0, *_shape(size, stride))
                for own, stride in zip([coarsest, *skips], (32, *self.skip_strides), strict=True)
            ]

    def decode(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Logits (B, 1, H, W) from the result of :meth:`encode` for images of ``size`` (H, W)."""
        height, width = size
        fused, *skips = maps
        padded = (height + -height % 32, width + -width % 32)
        fused = self.dropout(self.bottleneck(fused))
        if self.classifier is not None and self.training:
            self._class_logits = self.classifier(fused.mean((2, 3)))
        gate = None if self.presence is None else self.presence(fused)
        logits = self.decoder(fused, skips, padded, gate)
        return logits[..., :height, :width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x), x.shape[-2:])

    def auxiliary_loss(self, mask: torch.Tensor, label: torch.Tensor) -> torch.Tensor | None:
        """Additional loss of the last training step: class, coarser blocks and detection; None without any of them.

        Args:
            mask: (B, 1, H, W) of 0 and 1
            label: (B,), positions in :data:`bustseg.data.sources.LABELS`; an image without a lesion counts as normal,
                one of unknown class is left out
        """
        terms: list[torch.Tensor] = []
        if self._class_logits is not None:
            shown = mask.flatten(1).amax(1) > 0
            # of a lesion that was moved into a normal image, nothing is known but that it is one
            lesion = torch.where(label == NORMAL, CLASSES, label)
            target = torch.where(shown, lesion, NORMAL)
            distance = F.cross_entropy(self._class_logits.float(), target, ignore_index=CLASSES)
            terms.append(self.classify * distance)
            self._class_logits = None
        levels, self.decoder.level_logits = self.decoder.level_logits, []
        for logits in levels:
            coarse = F.interpolate(mask.float(), logits.shape[-2:], mode="area")
            distance = F.binary_cross_entropy_with_logits(logits.float(), coarse)
            terms.append(self.deep_supervision / len(levels) * distance)
        detection, self.decoder.detection_logits = self.decoder.detection_logits, None
        if detection is not None and self.detection_loss is not None:
            shown = F.adaptive_max_pool2d(mask.float(), detection.shape[-2:])  # a small lesion fills no cell
            terms.append(self.detection * self.detection_loss(detection, shown))
        return sum(terms[1:], terms[0]) if terms else None


def _shape(size: Sequence[int], stride: int) -> tuple[int, int]:
    return size[0] // stride, size[1] // stride


def _concatenate(maps: list[torch.Tensor], size: Sequence[int], stride: int) -> torch.Tensor:
    """Maps concatenated along the channels, after resizing to ``size`` / ``stride`` where needed."""
    return torch.cat([resize(own, _shape(size, stride)) for own in maps], 1)
