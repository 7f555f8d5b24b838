"""`gallery.html` of a prediction: one page that opens from the disk, those to look at first."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bustseg.deploy.predict import caption, captioned, draw_words
from bustseg.reports import gallery
from bustseg.reports.gallery import gallery_page
from tests.deploy.dark_model import write_dark_model

Bustseg = Callable[..., tuple[int, str, str]]

ROW = {"area_px": "1200", "area_mm2": "", "confidence": "0.91", "look_at_this": "0", "reason": "", "error": ""}
HEAD = {"model": {"name": "dark", "digest": "0123456789abcdef"}, "threshold": 0.5, "notice": "No diagnosis."}


def picture(path: Path, side: int = 800) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(path)


def test_those_to_look_at_come_first_and_errors_are_left_out() -> None:
    rows = [
        {**ROW, "mask": "masks/sure.png"},
        {**ROW, "mask": "masks/doubt.png", "confidence": "0.4"},
        {**ROW, "mask": "masks/odd <b>.png", "look_at_this": "1", "reason": "low contrast", "area_mm2": "31.6"},
        {**ROW, "mask": "", "error": "cannot be read"},
    ]
    page = gallery_page(rows, Path(), HEAD)
    assert re.findall(r"<figcaption><b>(.+?)</b>", page) == ["odd &lt;b&gt;", "doubt", "sure"]
    assert "3 images, 1 to look at" in page
    assert "32 mm² · confidence 0.91" in page
    assert "1,200 px · confidence 0.40" in page
    assert "low contrast" in page
    assert "model dark, digest <code>0123456789ab</code>" in page
    assert "No diagnosis." in page
    assert page.count("not a medical device") == 1, "every page of a report ends with it"


def test_the_page_holds_its_pictures_small_and_links_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "EMBEDDED", 1)
    for name in ("a", "b c"):
        picture(tmp_path / "overlays" / f"{name}.png")
    page = gallery_page([{**ROW, "mask": f"masks/{name}.png"} for name in ("a", "b c")], tmp_path, HEAD)
    sources = re.findall(r'src="([^"]+)"', page)
    assert sources[0].startswith("data:image/jpeg;base64,")
    assert len(sources[0]) < 20_000
    assert sources[1] == "overlays/b%20c.png"
    assert "http" not in page


def test_predict_names_its_model_and_writes_the_page(bustseg: Bustseg, tmp_path: Path) -> None:
    model = write_dark_model(tmp_path / "dark")
    scene = np.full((96, 128), 180, np.uint8)
    scene[24:72, 32:80] = 20
    (tmp_path / "scans").mkdir()
    Image.fromarray(scene).save(tmp_path / "scans" / "one.png")
    code, out, err = bustseg("predict", tmp_path / "scans", "--model", model, "--out", "out")
    assert code == 0, err
    assert out.splitlines()[0].startswith("model dark, digest ")
    assert "open out/gallery.html in a browser" in out
    page = Path("out/gallery.html").read_text()
    assert "<figcaption><b>one</b>" in page
    assert 'href="overlays/one.png"' in page
    Path("out/mine.txt").write_text("mine")
    assert (
        bustseg("predict", tmp_path / "scans", "--model", model, "--out", "out", "--overwrite", "--no-overlays")[0] == 0
    )
    assert "<img" not in Path("out/gallery.html").read_text()
    assert Path("out/mine.txt").exists()


def test_outlines_carry_their_confidence_and_flag_within_the_picture() -> None:
    assert caption(0.834, []) == "confidence 0.83"
    assert caption(0.5, ["low confidence"]) == "confidence 0.50, look at this"
    assert caption(None, ["tiny"]) == "look at this"
    assert caption(None, []) == ""
    for height, width in ((96, 128), (700, 900), (40, 200)):
        blank = np.full((height, width, 3), 90, np.uint8)
        drawn = captioned(blank.copy(), caption(0.5, ["tiny"]))
        changed = (drawn != blank).any(axis=(0, 2))
        assert changed.any()
        assert not changed[-1], "the words end within the picture"
        assert not (drawn != blank).any(axis=(1, 2))[height // 3 :].any(), "above what is outlined"
    assert (captioned(blank.copy(), "") == blank).all()


def test_words_have_an_edge_and_no_second_text_behind_them() -> None:
    """Thicker text is wider in OpenCV 5: an edge made of it stood out to the right of the words."""
    picture = np.full((60, 700, 3), 90, np.uint8)
    draw_words(picture, "research only, not a medical device", (10, 40), 1.0, 1)
    white, black = (picture > 200).all(axis=2), (picture < 30).all(axis=2)
    assert white.any()
    assert black.any()
    near = cv2.dilate(white.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    assert not (black & ~near).any()
