"""Colours of outlines on images."""

TRUTH, PREDICTION = "#35d0ff", "#ff9f1c"
"""Outlines on grey images: cyan and orange are distinguishable for colour-blind readers, in print, and on tissue."""

OUTLINES = "truth cyan, prediction orange"


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a colour written ``#rrggbb``."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
