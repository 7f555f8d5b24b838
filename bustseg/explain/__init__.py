"""Heat maps that show what a network looks at."""

from bustseg.explain.gradcam import (
    Explanation,
    Layer,
    attention_maps,
    cam_energy,
    default_layer,
    encoder_stages,
    heat_maps,
    list_layers,
    pointing_hit,
)
from bustseg.explain.occlusion import occlusion_map

__all__ = [
    "Explanation",
    "Layer",
    "attention_maps",
    "cam_energy",
    "default_layer",
    "encoder_stages",
    "heat_maps",
    "list_layers",
    "occlusion_map",
    "pointing_hit",
]
