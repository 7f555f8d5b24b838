"""Where a network looks: Grad-CAM and its relatives for one-channel segmentation, attention maps, and their scores."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from bustseg.errors import UserError
from bustseg.masks import MaskRule, probability_of

_NOT_A_PLAIN_MAP = {
    "AblationCAM": "replaces layers of the network",
    "FinerCAM": "contrasts classes, and there is only one here",
    "FullGrad": "explains biases of all layers instead of one layer",
    "ShapleyCAM": "needs second derivatives, which fused attention and fast depthwise convolutions do not have",
    "RefineCAM": "averages other methods over layers",
    "SESS": "repeats another method over sliding windows",
}
"""Methods of the library that are not offered, and why."""

_DECOMPOSITIONS = frozenset({"EigenCAM", "EigenGradCAM", "SegEigenCAM", "KPCA_CAM"})
"""Methods that decompose an N x N matrix of the layer's N positions: ten gigabytes for a map of 224 x 224."""

_LARGEST_DECOMPOSED = 56
"""Largest height and width of a decomposed map; larger maps are averaged down to it."""

_FROZEN = "freeze_encoders"
"""Attribute of a network (see :class:`bustseg.models.FusionUNet`) whose encoders run without autograd."""

_SMALLEST_SHARE = 8
"""Largest stride of a default layer's map (PSPNet's decoder ends at stride 8)."""


@dataclass(frozen=True)
class Layer:
    """A module whose output is one map per channel, so that it can be explained.

    Attributes:
        name: dotted name in the network
        kind: class of the module
        shape: channels, height and width of its output
    """

    name: str
    kind: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Explanation:
    """Heat maps of B images and the predictions that they explain.

    Attributes:
        heat: name of each layer -> float32 (B, H, W) in 0..1, each map's maximum 1; all 0 where the layer has no
            evidence for the target
        logits: float32 (B, H, W)
        mask: ``uint8`` of 0 and 1 (B, H, W), the predicted lesions; an image without one is explained as a whole
    """

    heat: dict[str, np.ndarray]
    logits: np.ndarray
    mask: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Probability of a lesion, float32 (B, H, W)."""
        return np.stack([probability_of(plane) for plane in self.logits])


@cache
def methods() -> dict[str, type]:
    """The ``grad-cam`` library's methods that explain one layer, by name."""
    import pytorch_grad_cam
    from pytorch_grad_cam.base_cam import BaseCAM

    return {
        name: method
        for name, method in sorted(vars(pytorch_grad_cam).items())
        if inspect.isclass(method) and issubclass(method, BaseCAM) and method is not BaseCAM
        if name not in _NOT_A_PLAIN_MAP
    }


def find_method(name: str, others: Sequence[str] = ()) -> type:
    """The class of a method of :func:`methods`.

    Args:
        name: name of the method
        others: names of further methods to suggest in a message

    Raises:
        UserError: there is no such method, or it is not offered
    """
    known = methods()
    if name in known:
        return known[name]
    offered = [*known, *others]
    if name in _NOT_A_PLAIN_MAP:
        raise UserError(f"{name} {_NOT_A_PLAIN_MAP[name]}: choose one of {', '.join(offered)}")
    raise UserError(f"no explanation method {name!r}: {_close(name, offered, 'the methods are ' + ', '.join(offered))}")


def _close(name: str, known: list[str], otherwise: str) -> str:
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(by_lower[match] for match in found)}?" if found else otherwise


def network_of(model: nn.Module) -> nn.Module:
    """The network in a task (whose layers are named from the network on), or the model itself."""
    inner = getattr(model, "network", None)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def _set_apart(model: nn.Module) -> Iterator[None]:
    """Context with evaluation mode, no gradients of weights, and autograd through frozen parts; restores all of it."""
    modes = [(module, module.training) for module in model.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    # a frozen encoder runs without autograd, so no graph would connect its layers with the logits
    frozen = [module for module in model.modules() if getattr(module, _FROZEN, False) is True]
    try:
        model.eval()
        for weight, _, _ in weights:
            weight.requires_grad_(False)
        for module in frozen:
            setattr(module, _FROZEN, False)
        yield
    finally:
        for module in frozen:
            setattr(module, _FROZEN, True)
        for weight, requires_grad, grad in weights:
            weight.requires_grad_(requires_grad)
            weight.grad = grad
        for module, mode in modes:
            module.training = mode


def _as_input(model: nn.Module, images: Tensor | np.ndarray) -> Tensor:
    """Float copy on the model's device: autograd accepts neither integers nor inference tensors."""
    images = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    device = next((weight.device for weight in model.parameters()), images.device)
    return images.to(device, torch.float32, copy=True)


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    output: Any


def _calls(model: nn.Module, image: Tensor | np.ndarray) -> list[_Call]:
    """Modules of the network in the order in which they finish, with their output for the first image."""
    network = network_of(model)
    calls: dict[str, _Call] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.pop(name, None)  # a module that runs twice is listed at its last run
            calls[name] = _Call(name, module, output)

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in network.named_modules() if name]
    try:
        with _set_apart(model), torch.no_grad():
            model(_as_input(model, image)[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1


def list_layers(model: nn.Module, image: Tensor | np.ndarray) -> list[Layer]:
    """Layers that can be explained, in the order in which they finish.

    Args:
        model: a task (grey images (B, 1, H, W) in 0..255 in) or a network (float images (B, C, H, W) in), logits
            (B, 1, H, W) out
        image: (1, C, H, W); its content does not matter
    """
    return [
        Layer(call.name, type(call.module).__name__, tuple(call.output.shape[1:]))
        for call in _calls(model, image)
        if _is_map(call.output)
    ]


def default_layer(model: nn.Module, image: Tensor | np.ndarray) -> str:
    """Name of the layer to explain by default: the network's own ``cam_layer``, else the input of its head.

    That is the last output before the logits with more than one channel and at least an eighth of the image's height
    and width; for a segmentation-models-pytorch network it is ``decoder``, whose output is that of its last block.

    Args:
        model, image: as in :func:`list_layers`

    Raises:
        UserError: there is no such layer
    """
    own = getattr(network_of(model), "cam_layer", None)
    if isinstance(own, str):
        return own
    height, width = image.shape[-2:]
    fits = [
        layer.name
        for layer in list_layers(model, image)
        if layer.shape[0] > 1
        and layer.shape[1] * _SMALLEST_SHARE >= height
        and layer.shape[2] * _SMALLEST_SHARE >= width
    ]
    if not fits:
        raise UserError(
            f"{type(network_of(model)).__name__} has no layer that is clearly the last before its logits: name one "
            "with --layer"
        )
    return fits[-1]


def encoder_stages(model: nn.Module, image: Tensor | np.ndarray) -> list[str]:
    """Name of each encoder's last stage; an encoder is a module that returns a list of maps.

    Args:
        model, image: as in :func:`list_layers`
    """
    calls = _calls(model, image)
    encoders: list[_Call] = []
    for call in sorted(calls, key=lambda call: call.name.count(".")):
        maps = call.output if isinstance(call.output, list | tuple) else ()
        inside = any(call.name.startswith(f"{outer.name}.") for outer in encoders)
        if maps and all(isinstance(item, Tensor) and item.ndim == 4 for item in maps) and not inside:
            encoders.append(call)
    stages = []
    for encoder in sorted(encoders, key=lambda call: call.name):
        last = encoder.output[-1]
        own = [call for call in calls if call.name.startswith(f"{encoder.name}.") and _is_map(call.output)]
        same = [call for call in own if call.output is last] or [
            call for call in own if call.output.shape == last.shape
        ]
        stages += [call.name for call in same[-1:]]
    return stages


def attention_maps(model: nn.Module, images: Tensor | np.ndarray) -> dict[str, np.ndarray]:
    """Maps of the network's attention modules (CBAM, Non-Local), in the order in which the modules run.

    Args:
        model, images: as in :func:`list_layers`, any number of images

    Returns:
        name of each module with an ``attention_map`` -> float32 (B, h, w) at the module's own resolution
    """
    maps: dict[str, np.ndarray] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[name] = module.attention_map(inputs[0])[:, 0].float().cpu().numpy()  # type: ignore[operator]

        return record

    handles = [
        module.register_forward_pre_hook(recorder(name))
        for name, module in network_of(model).named_modules()
        if callable(getattr(module, "attention_map", None))
    ]
    try:
        if handles:
            with _set_apart(model), torch.no_grad():
                model(_as_input(model, images))
    finally:
        for handle in handles:
            handle.remove()
    return maps


class _LesionLogit:
    """Target of one image: the mean logit over its predicted lesion, over the whole image if nothing is predicted.

    Args:
        rule: turns the logits into the predicted lesion
        enlarge: multiply by the number of pixels. The gradients of a mean over 50,000 pixels are so small that the
            constants which some methods add to avoid division by zero would dominate the map.
        layers: names, for the message when no gradient reaches them
    """

    def __init__(self, rule: MaskRule, enlarge: bool, layers: Sequence[str]) -> None:
        self.rule, self.enlarge, self.layers = rule, enlarge, layers
        self.region: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.region is None:  # some methods call again with parts of the image hidden: the region stays the same
            lesion = self.rule.masks(logits[None])[0]
            self.region = lesion if bool(lesion.any()) else torch.ones_like(lesion)
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError(
                f"no gradient reaches {' or '.join(self.layers)}: what follows runs without autograd, or does not lead "
                "to the logits; choose another layer, or a method without gradients such as EigenCAM"
            )
        mean = logits[self.region].mean()
        return mean * logits.numel() if self.enlarge else mean


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name in the network.

    Raises:
        UserError: there is no layer with that name
    """
    modules = dict(network_of(model).named_modules())
    if not name or name not in modules:
        raise UserError(
            f"the network has no layer {name!r}: {_close(name, list(modules), 'see bustseg explain --list-layers')}"
        )
    return modules[name]


def heat_maps(
    model: nn.Module,
    images: Tensor | np.ndarray,
    layers: Sequence[str] | None = None,
    method: str = "GradCAM",
    threshold: float | None = None,
) -> Explanation:
    """Explain a network's predictions of lesions by the maps of some of its layers, in one pass.

    Grad-CAM weights each channel by the mean gradient of the target and keeps the positive part of their sum (Selvaraju
    et al. 2017, https://arxiv.org/abs/1610.02391); the target is the mean logit over the predicted lesion (the whole
    image when nothing is predicted), as in Seg-Grad-CAM (Vinogradova et al. 2020, https://arxiv.org/abs/2002.11434).
    A map is resized to the image (bilinear) and divided by its maximum. Weights, gradients, modes and hooks are
    restored afterwards.

    Args:
        model: a task (grey images (B, 1, H, W) in 0..255 in) or a network (float images (B, C, H, W) in), logits
            (B, 1, H, W) out
        images: of any number type
        layers: dotted names in the network; :func:`default_layer` when not given
        method: a name of :func:`methods`
        threshold: probability above which a pixel belongs to the predicted lesion; the task's own when not given (0.5
            for a network)

    Raises:
        UserError: there is no such method or layer, a layer's output is not a map, or no gradient reaches it
    """
    make = find_method(method)
    names = list(dict.fromkeys(layers)) if layers else [default_layer(model, images[:1])]
    modules = [find_layer(model, name) for name in names]
    rule = getattr(model, "mask_rule", MaskRule())
    if threshold is not None:
        rule = replace(rule, threshold=threshold)

    def as_float(maps: Tensor) -> Tensor:
        """Float copy: NumPy has no bfloat16, and a module that works in place would change the stored map."""
        maps = maps.detach().float().clone()
        height, width = (min(size, _LARGEST_DECOMPOSED) for size in maps.shape[2:])
        return F.adaptive_avg_pool2d(maps, (height, width)) if method in _DECOMPOSITIONS else maps

    recorded = _Recorded(names)
    with torch.inference_mode(False), torch.enable_grad(), _set_apart(model), ExitStack() as stack:
        batch = _as_input(model, images)
        for name, module in zip(names, modules, strict=True):
            stack.callback(module.register_forward_hook(recorded.graph_from(name)).remove)
        cam = make(model, modules, reshape_transform=as_float)
        stack.callback(cam.activations_and_grads.release)
        # the library rescales each map from its minimum, which would hide uniform heat
        cam.get_cam_image = recorded.maps_of(cam)
        cam(batch, [_LesionLogit(rule, cam.uses_gradients, names) for _ in range(len(batch))])
        logits = cam.outputs.detach().float()
    # the library stores maps in the order in which the layers finish
    by_name = {name: as_heat(map, logits.shape[2:]) for name, map in zip(recorded.finished, recorded.raw, strict=True)}
    mask = rule.masks(logits)[:, 0].cpu().numpy().astype(np.uint8)
    return Explanation({name: by_name[name] for name in names}, logits[:, 0].cpu().numpy(), mask)


class _Recorded:
    """Records the layers' maps in one pass.

    Args:
        names: dotted names of the layers

    Attributes:
        finished: the layers that were reached, in this order
        raw: the map of each of these, (B, h, w)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.finished: list[str] = []
        self.raw: list[np.ndarray] = []

    def graph_from(self, name: str) -> Callable[..., Tensor]:
        """A forward hook that starts autograd at the first layer; what comes before costs no more than a prediction."""

        def start(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not _is_map(output):
                raise UserError(
                    f"the output of layer {name} is not a map (B, C, H, W): choose a layer that --list-layers shows"
                )
            if name not in self.finished:
                self.finished.append(name)
            with torch.enable_grad():
                # a clone, because the next layer may work in place, which autograd forbids on a leaf
                return output if output.requires_grad else output.detach().requires_grad_().clone()

        return start

    def maps_of(self, cam: Any) -> Callable[..., np.ndarray]:
        """A wrapper of the method's ``get_cam_image`` that also stores each map."""
        weigh = cam.get_cam_image

        def keep(*args: Any, **kwargs: Any) -> np.ndarray:
            gradients = cam.activations_and_grads.gradients
            if len(self.finished) < len(self._names) or (cam.uses_gradients and len(gradients) < len(self._names)):
                raise UserError(f"no gradient reaches {' or '.join(self._names)}: the logits do not depend on it")
            self.raw.append(np.asarray(weigh(*args, **kwargs)))
            return self.raw[-1]

        return keep


def as_heat(raw: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Positive part of maps (B, h, w), resized to ``size`` (H, W) and each divided by its maximum."""
    heat = torch.from_numpy(np.maximum(np.nan_to_num(raw), 0)).float()[:, None]
    heat = F.interpolate(heat, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp_min(torch.finfo(heat.dtype).tiny), 0).numpy()


def cam_energy(heat: np.ndarray, lesion: np.ndarray) -> float:
    """Share of the heat that lies in the lesion: the energy-based pointing game.

    Uniform heat gives the lesion's share of the image. A map without heat gives 0: leaving such maps out would favour a
    network that cannot be explained.

    Source: Wang et al. 2020 (Score-CAM), https://arxiv.org/abs/1910.01279, section 4.3.

    Args:
        heat: (H, W), not negative
        lesion: (H, W) of 0 and 1

    Returns:
        0 to 1, nan without a lesion
    """
    _check_shapes(heat, lesion)
    if not lesion.any():
        return float("nan")
    total = float(heat.sum(dtype=np.float64))
    return float(heat[lesion.astype(bool)].sum(dtype=np.float64)) / total if total > 0 else 0.0


def pointing_hit(heat: np.ndarray, lesion: np.ndarray, tolerance: float = 0) -> float:
    """Whether the hottest pixel lies in the lesion: the pointing game.

    If several pixels share the maximum, the share of them that hits; a map without heat gives 0.

    Source: Zhang et al. 2018, https://arxiv.org/abs/1608.00507, section 4.1 (with a tolerance of 15 pixels).

    Args:
        heat: (H, W), not negative
        lesion: (H, W) of 0 and 1
        tolerance: pixels by which the maximum may miss the lesion

    Returns:
        0 or 1 (or between, see above), nan without a lesion
    """
    _check_shapes(heat, lesion)
    if not lesion.any():
        return float("nan")
    highest = heat.max()
    if not highest > 0:
        return 0.0
    near = lesion.astype(bool)
    if tolerance > 0:  # a distance map takes longer than everything else
        near = ndimage.distance_transform_edt(~near) <= tolerance
    return float(near[heat == highest].mean())


def _check_shapes(heat: np.ndarray, lesion: np.ndarray) -> None:
    if heat.shape != lesion.shape or heat.ndim != 2:
        raise ValueError(f"heat {heat.shape} and lesion {lesion.shape} must have the same shape (H, W)")
