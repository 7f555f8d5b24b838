"""The name under which older checkpoints and configurations know :class:`bustseg.masks.PostProcess`."""

from bustseg.masks import PostProcess

__all__ = ["PostProcess"]
