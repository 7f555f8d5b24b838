"""Alias for older checkpoints and configurations: :class:`bustseg.masks.PostProcess`."""

from bustseg.masks import PostProcess

__all__ = ["PostProcess"]
