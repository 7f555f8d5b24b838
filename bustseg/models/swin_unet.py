"""Swin-UNet, a competitor of the paper's table 5.

Source: Cao, Wang, Chen, Jiang, Zhang, Tian, Wang (2021), Swin-Unet: Unet-like pure transformer for medical image
segmentation, https://arxiv.org/abs/2105.05537 (ECCV 2022 workshops, https://doi.org/10.1007/978-3-031-25066-8_9).

Stated: patches of 4 x 4 pixels, embedding 96, two Swin blocks on each of four levels with 3, 6, 12 and 24 heads, window
7; patch merging down; patch-expanding layers up (a linear layer, then neurons rearranged into space) and a last one
x4; skips concatenated and reduced by a linear layer; the encoder starts from Swin-T's ImageNet weights; images of 224
pixels.

Reconstructed:

* no biases in the expanding layers and the head, a LayerNorm after each expansion and before the last: with these the
  network has 27,168,132 parameters (27,168,900 with the nine classes of its paper), matching the 27.2 million that
  comparisons state for it
* stochastic depth 0.2 in the encoder (Swin-T's) and none in the decoder
* of Swin-T's 2, 2, 6, 2 blocks the first two of each level are loaded; the decoder is initialised at random
* images of any size: padded to a multiple of 32, their windows padded to 7 by timm, and the logits cropped; the
  windows of the coarsest level are not shifted, since at 224 pixels one window is the whole map
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import nn

from bustseg.models.layers import pad_to_multiple
from bustseg.models.weights import download_error, fail_fast, load_encoder_file

_SWIN_T = "swin_tiny_patch4_window7_224"
_CHANNELS, _HEADS, _WINDOW = (96, 192, 384, 768), (3, 6, 12, 24), 7
_GRID = 224 // 4
"""Patches along each side of the image that the network is built for."""


class PatchExpand(nn.Module):
    """Rearranges channels into space: tokens (B, H, W, C) -> (B, s H, s W, D).

    Args:
        channels: C
        out_channels: D
        scale: s
    """

    def __init__(self, channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(channels, scale * scale * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = x.shape
        s = self.scale
        x = self.expand(x).reshape(batch, height, width, s, s, -1).transpose(2, 3)
        return self.norm(x.reshape(batch, s * height, s * width, -1))


class FinalExpand(nn.Module):
    """The last expansion: tokens (B, H, W, C) -> map (B, C, 4 H, 4 W), with the channels first again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = PatchExpand(channels, channels, scale=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expand(self.norm(x)).permute(0, 3, 1, 2)


class UpStage(nn.Module):
    """A level of the decoder: tokens (B, H, W, 2 C) and skip (B, 2 H, 2 W, C) -> (B, 2 H, 2 W, C).

    Args:
        channels: C
        heads: of the two Swin blocks
        grid: 2 H for the size that the network is built for, which decides whether windows are shifted
    """

    def __init__(self, channels: int, heads: int, grid: int) -> None:
        super().__init__()
        self.expand = PatchExpand(2 * channels, channels)
        self.fuse = nn.Linear(2 * channels, channels)
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    channels,
                    (grid, grid),
                    heads,
                    window_size=_WINDOW,
                    shift_size=shift,
                    dynamic_mask=True,
                )
                for shift in (0, _WINDOW // 2)
            )
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.fuse(torch.cat([self.expand(x), skip], 3)))


class SwinUNet(nn.Module):
    """UNet of Swin transformer blocks: images (B, C, H, W) in, logits (B, 1, H, W) out.

    The module's docstring says what is reconstructed.

    Args:
        in_channels: channels of the images
        weights: of the encoder: ``imagenet`` (timm's Swin-T, downloaded once into its cache), ``none`` (random), or a
            file with a state dict of timm's Swin-T
        drop_path: stochastic depth of the encoder's last block

    Raises:
        WeightsError: the weights cannot be obtained or do not fit
    """

    cam_layer = "final"
    """Layer that Grad-CAM explains by default: the input of the head."""

    def __init__(self, in_channels: int = 3, weights: str = "imagenet", drop_path: float = 0.2) -> None:
        super().__init__()
        encoder = timm.create_model(
            _SWIN_T,
            depths=(2, 2, 2, 2),
            in_chans=in_channels,
            num_classes=0,
            strict_img_size=False,
            drop_path_rate=drop_path,
        )
        assert isinstance(encoder, SwinTransformer)
        self.encoder = encoder
        if weights == "imagenet":
            self._load_imagenet(in_channels)
        elif weights != "none":
            load_encoder_file(self.encoder, Path(weights), "patch_embed.proj.weight")
        self.ups = nn.ModuleList(
            UpStage(_CHANNELS[level], _HEADS[level], _GRID // 2**level) for level in reversed(range(3))
        )
        self.final = FinalExpand(_CHANNELS[0])
        self.head = nn.Conv2d(_CHANNELS[0], 1, 1, bias=False)
        for module in [*self.ups.modules(), *self.final.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _load_imagenet(self, in_channels: int) -> None:
        try:
            with fail_fast():
                full = timm.create_model(_SWIN_T, pretrained=True, in_chans=in_channels, num_classes=0)
        except Exception as error:  # the hub's client raises errors of several libraries
            raise download_error(f"timm/{_SWIN_T}", error) from error
        wanted = self.encoder.state_dict().keys()
        self.encoder.load_state_dict({key: value for key, value in full.state_dict().items() if key in wanted})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = self.encoder.patch_embed(pad_to_multiple(x, 32))
        skips = []
        for stage in self.encoder.layers:
            x = stage(x)
            skips.append(x)
        x = self.encoder.norm(skips.pop())
        for stage in self.ups:
            x = stage(x, skips.pop())
        return self.head(self.final(x))[..., :height, :width]
