"""Found, missed and invented lesions, on masks written out."""

import cv2
import numpy as np
import pytest

from bustseg.metrics import match_components


def grid(*rows: str) -> np.ndarray:
    return np.array([[pixel == "x" for pixel in row] for row in rows])


def test_found_missed_and_spurious() -> None:
    mask = grid(
        "xx....x",
        "xx....x",
        ".......",
        "...x...",
    )
    prediction = grid(
        ".xx....",
        "..x....",
        ".....x.",
        "x......",
    )
    assert match_components(prediction, mask) == (1, 2, 2)
    assert match_components(mask, prediction) == (1, 2, 2)


def test_diagonal_neighbours_are_one_lesion() -> None:
    diagonal = grid("x..", ".x.", "..x")
    assert match_components(diagonal, diagonal) == (1, 0, 0)
    assert match_components(grid("...", "...", "..."), diagonal) == (0, 1, 0)
    assert match_components(diagonal, grid("...", "...", "...")) == (0, 0, 1)


def test_one_region_may_find_two_lesions_and_two_may_find_one() -> None:
    two, one = grid("x.x"), grid("xxx")
    assert match_components(one, two) == (2, 0, 0)
    assert match_components(two, one) == (1, 0, 0)


def test_nothing_at_all() -> None:
    empty = np.zeros((4, 4), dtype=bool)
    counts = match_components(empty, empty)
    assert (counts.found, counts.missed, counts.spurious) == (0, 0, 0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        match_components(np.ones((4, 4)), np.ones((1, 4, 4)))


def test_agrees_with_opencv_region_by_region() -> None:
    rng = np.random.default_rng(0)
    for density in (0.05, 0.2, 0.4):
        prediction, mask = rng.random((2, 40, 40)) < density
        hits = []
        for own, other in ((mask, prediction), (prediction, mask)):
            number, labels = cv2.connectedComponents(own.astype(np.uint8), connectivity=8)
            hits.append([bool(other[labels == region].any()) for region in range(1, number)])
        found, spurious = sum(hits[0]), hits[1].count(False)
        assert match_components(prediction, mask) == (found, len(hits[0]) - found, spurious)
