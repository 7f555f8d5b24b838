"""The page in Chromium, as a reader uses it: drop, threshold, correct, undo, save, reload, download."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bustseg.serve
from bustseg.deploy.predictor import Predictor
from bustseg.disclaimer import WORDS
from tests.data import dicoms
from tests.serve.serving import Running, as_png, scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE = float(os.environ.get("BUSTSEG_BROWSER_SECONDS", "60"))

pytestmark = [
    pytest.mark.usefixtures("sealed"),
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

Start = Callable[..., Running]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, start: Start) -> Iterator[Any]:
    """A page whose errors fail the test, whatever else it checks; it is closed before the servers of the test are."""
    context = browser.new_context(viewport={"width": 1360, "height": 860}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    outside: list[str] = []
    page.on("request", lambda request: "127.0.0.1" not in request.url and outside.append(request.url))
    page.expected_errors = 0
    yield page
    context.close()
    assert len(wrong) <= page.expected_errors, wrong
    assert not [url for url in outside if not url.startswith(("blob:", "data:"))], "the page asks another server"


def until(page: Any, condition: str) -> Any:
    """Wait for a JavaScript condition; the page's own policy forbids Playwright's way."""
    end = time.monotonic() + PATIENCE
    while not (value := page.evaluate(condition)):
        assert time.monotonic() < end, condition
        time.sleep(0.03)
    return value


def visit(page: Any, running: Running, *images: tuple[str, bytes], path: str = "/") -> None:
    page.goto(running.url + path)
    until(page, "document.documentElement.dataset.ready")
    if images:
        payload = [{"name": n, "mimeType": "application/octet-stream", "buffer": content} for n, content in images]
        page.set_input_files("#picker", payload)
        until(page, "performance.getEntriesByName('outline').length")
        settled(page, len(images))


def settled(page: Any, items: int) -> None:
    waiting = (
        "[...document.querySelectorAll('#list .what')].some(e => /waiting|sending|segmenting/.test(e.textContent))"
    )
    until(page, f"document.querySelectorAll('#list .item').length === {items} && !{waiting}")
    until(page, "document.querySelector('#busy').textContent === ''")


def value(page: Any, name: str) -> str:
    return page.evaluate(
        "(name) => [...document.querySelectorAll('#values dt')].find(e => e.textContent === name)"
        ".nextElementSibling.textContent",
        name,
    )


def area(page: Any) -> int:
    return int(value(page, "Area").split()[0])


def point(page: Any, x: float, y: float, shape: tuple[int, int] = (96, 128)) -> tuple[float, float]:
    """Where a point of the image lies on the screen, as long as it is fitted."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / shape[1], box["height"] / shape[0]) * 0.98
    left = box["x"] + (box["width"] - shape[1] * scale) / 2
    top = box["y"] + (box["height"] - shape[0] * scale) / 2
    return left + x * scale, top + y * scale


def stroke(page: Any, *points: tuple[float, float]) -> None:
    page.mouse.move(*point(page, *points[0]))
    page.mouse.down()
    for one in points[1:]:
        page.mouse.move(*point(page, *one), steps=6)
    page.mouse.up()


def downloaded(page: Any, button: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.click(button)
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def soft() -> np.ndarray:
    """A scene whose lesion has a rim that only a low threshold takes in."""
    image = scene()
    image[16:80, 24:88] = 104
    image[24:72, 32:80] = 20
    return image


def test_from_drop_to_a_saved_correction_and_back(
    page: Any, start: Start, predictor: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / "corrections"
    running = start(corrections=folder)
    visit(page, running, ("first.png", as_png(soft())), ("second.png", as_png(scene(top=0, left=0, side=32))))
    expected = predictor(soft())
    assert area(page) == expected.area_px
    assert page.locator("#list .item").first.get_attribute("aria-selected") == "true"

    # the threshold moves the outline at once, and asks for no image again
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "() => { const t = document.querySelector('#threshold'); t.value = 0.3; t.dispatchEvent(new Event('input')); }"
    )
    assert area(page) == predictor(soft(), threshold=0.3).area_px > expected.area_px
    time.sleep(0.8)
    assert not [url for url in asked if url.endswith(("/logits", "/picture"))]
    page.evaluate(
        "() => { const t = document.querySelector('#threshold'); t.value = 0.5; t.dispatchEvent(new Event('input')); }"
    )
    assert area(page) == expected.area_px

    # brush, undo, redo, eraser, polygon
    page.click("[data-tool=brush]")
    stroke(page, (100, 80), (115, 80))
    painted = area(page)
    assert painted - expected.area_px == pytest.approx(15 * 16 + np.pi * 64, rel=0.15)
    page.keyboard.press("Control+z")
    assert area(page) == expected.area_px
    page.keyboard.press("Control+y")
    assert area(page) == painted
    page.click("#undo")
    page.click("[data-tool=eraser]")
    stroke(page, (56, 20), (56, 76))
    assert expected.area_px - area(page) == pytest.approx(16 * 48, rel=0.2)
    page.keyboard.press("Control+z")
    page.click("[data-tool=polygon]")
    for corner in ((90, 10), (120, 10), (120, 30), (90, 30)):
        page.mouse.click(*point(page, *corner))
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("Enter")
    corrected = area(page)
    assert corrected - expected.area_px == pytest.approx(30 * 20, abs=60)

    # save, and find it again after a reload
    page.fill("#who", "A. Reader")
    page.select_option("#label", "benign")
    page.click("#accept")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: corrected by A. Reader')")
    (record,) = [json.loads(line) for line in (folder / "corrections.jsonl").read_text().splitlines()]
    assert (record["who"], record["verdict"], record["label"]) == ("A. Reader", "corrected", "benign")
    mask = np.asarray(Image.open(folder / "masks" / f"{record['image']}.png")) > 127
    before = np.asarray(Image.open(folder / record["before"])) > 127
    assert np.array_equal(before, expected.mask.astype(bool))
    assert mask.sum() == corrected
    assert np.array_equal(np.asarray(Image.open(folder / "images" / f"{record['image']}.png")), soft())
    page.reload()
    until(page, "performance.getEntriesByName('outline').length")
    settled(page, 2)
    assert area(page) == corrected
    assert page.locator("#list .mark").first.text_content() == "corrected"
    assert page.input_value("#who") == "A. Reader"

    # what is downloaded is what is seen
    name, content = downloaded(page, "#save-mask")
    assert name == "first_mask.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("L")) > 127, mask)
    name, content = downloaded(page, "#save-overlay")
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert picture.shape == (96, 128, 3)
    assert (abs(picture - [53, 208, 255]).max(axis=2) < 90).sum() > 200
    assert (picture[0, 0] == 180).all(), "the picture itself is not changed"
    assert (picture[84:, :60] != 180).any(), "the disclaimer is drawn below"
    assert WORDS in (Path(bustseg.serve.__file__).parent / "page" / "viewer.js").read_text()
    _, content = downloaded(page, "#csv")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [row["image"] for row in rows] == ["first.png", "second.png"]
    assert (rows[0]["area_px"], rows[0]["verdict"]) == (str(expected.area_px), "corrected")

    # the second is accepted, then thought better of
    page.keyboard.press("n")
    until(page, "document.querySelector('#canvas').getAttribute('aria-label').startsWith('second.png')")
    page.keyboard.press("a")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: accepted')")
    assert len(list((folder / "images").iterdir())) == 2
    page.keyboard.press("x")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: rejected')")
    assert len(list((folder / "images").iterdir())) == 1


def test_a_correction_outlives_a_restart_of_the_server(page: Any, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    first = start(corrections=folder)
    visit(page, first, ("a.png", as_png(scene())))
    page.click("[data-tool=brush]")
    stroke(page, (100, 80), (115, 80))
    edited = area(page)
    page.expected_errors = 40  # Chromium reports each try, and the 404 of the upload that has gone
    first.stop()
    page.keyboard.press("a")
    until(page, "document.querySelector('#busy').textContent.includes('trying again')")
    start(corrections=folder, at=first.port)
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: corrected')")
    (record,) = [json.loads(line) for line in (folder / "corrections.jsonl").read_text().splitlines()]
    saved = np.asarray(Image.open(folder / "masks" / f"{record['image']}.png")) > 127
    assert saved.sum() == edited
    assert page.evaluate("JSON.parse(sessionStorage.getItem('bustseg-uploads')).length") == 1


def test_two_pages_at_once_keep_their_own_images(page: Any, start: Start, tmp_path: Path) -> None:
    running = start(corrections=tmp_path / "corrections")
    other = page.context.new_page()
    pages = {"a.png": page, "b.png": other}
    for name, one in pages.items():
        visit(one, running, (name, as_png(scene())))
    for name, one in pages.items():
        one.reload()
        until(one, "performance.getEntriesByName('outline').length")
        settled(one, 1)
        assert one.locator("#list .name").all_text_contents() == [name]
    # the same picture: both words are kept, and the last one counts
    for name, one in pages.items():
        one.fill("#who", name)
        one.click("#accept")
        until(one, f"document.querySelector('#saved').textContent.includes('by {name}')")
    lines = (tmp_path / "corrections" / "corrections.jsonl").read_text().splitlines()
    assert [json.loads(line)["who"] for line in lines] == list(pages)


@pytest.mark.parametrize("width", [1360, 820])
def test_the_keyboard_alone_is_enough(page: Any, start: Start, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 1100})
    running = start(corrections=tmp_path / "corrections")
    visit(page, running, ("a.png", as_png(scene())), ("b.png", as_png(scene(side=32))))
    whole = area(page)
    page.focus("#canvas")
    page.keyboard.press("b")
    for _ in range(4):  # from the middle to the right, beyond the lesion
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")
    assert area(page) > whole
    page.keyboard.press("Control+z")
    assert area(page) == whole
    page.keyboard.press("e")
    page.keyboard.down("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.up("Space")
    assert area(page) < whole
    page.keyboard.press("Control+z")
    page.keyboard.press("p")
    for key in ("Shift+ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press("Space")
        page.keyboard.press(key)
        page.keyboard.press(key)
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    edited = area(page)
    assert edited != whole
    page.keyboard.press("a")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: corrected')")
    page.keyboard.press("t")
    before = page.text_content("#threshold-text")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#threshold-text") != before
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('#canvas').getAttribute('aria-label').startsWith('b.png')")
    page.focus("#canvas")
    page.keyboard.press("?")
    assert page.evaluate("document.querySelector('#help').open")
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    # every control can be reached
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.tool || ''"))
    wanted = {"open", "open-folder", "look-first", "list", "pan", "brush", "canvas", "threshold", "opacity", "level"}
    assert wanted | {"width", "who", "label", "accept", "reject", "save-mask", "csv", "theme"} <= reached


def test_files_and_folders_can_be_dropped_and_the_doubtful_come_first(page: Any, start: Start) -> None:
    running = start()
    visit(page, running)
    contents = {
        "sure.png": as_png(scene()),
        "border.png": as_png(scene(top=0, left=0)),
        "faint.png": as_png(np.where(scene() < 100, 97, 180).astype(np.uint8)),
        "broken.png": as_png(scene())[:120],
    }
    page.expected_errors = 1  # Chromium reports the broken file's 422
    page.evaluate(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([Uint8Array.from(bytes)], name));
            const event = {dataTransfer: transfer, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", event));
        }""",
        [[name, list(content)] for name, content in contents.items()],
    )
    settled(page, 4)
    assert page.locator("#list .name").all_text_contents() == list(contents)
    assert page.text_content("#count") == "3 of 4 to look at"
    page.keyboard.press("l")
    shown = page.locator("#list .name").all_text_contents()
    assert set(shown) == {"border.png", "faint.png", "broken.png"}
    assert shown[0] == "faint.png", "the least confident comes first"
    assert "no image" in page.locator("#list .error").last.text_content() or "corrupt" in page.content()


def test_loops_have_a_slider_and_a_dicom_seg_takes_corrections(
    page: Any, start: Start, predictor: Predictor, tmp_path: Path
) -> None:
    import highdicom

    frames = np.stack(
        [dicoms.screen(scene()), dicoms.screen(scene(side=32)), dicoms.screen(np.full((96, 128), 180, np.uint8))]
    )
    data = dicoms.dataset(frames, regions=[dicoms.region((96, 128))], frames=3)
    content = dicoms.write(data, tmp_path / "loop.dcm").read_bytes()
    visit(page, start(), ("loop.dcm", content))
    assert page.is_visible("#loop")
    assert page.text_content("#frame-text") == "1 of 3"
    assert area(page) == 48 * 48
    assert "18.4 mm²" in page.content()
    page.keyboard.press(".")
    until(page, "document.querySelector('#frame-text').textContent === '2 of 3'")
    until(page, "document.querySelector('#busy').textContent === ''")
    page.click("[data-tool=brush]")
    stroke(page, (100, 60), (100, 61))
    edited = area(page)
    page.keyboard.press(".")
    until(page, "document.querySelector('#frame-text').textContent === '3 of 3'")
    until(page, "document.querySelector('#busy').textContent === ''")
    assert value(page, "Lesion") == "none"
    name, written = downloaded(page, "#save-seg")
    assert name == "loop_seg.dcm", "it is of the whole loop"
    (tmp_path / "seg.dcm").write_bytes(written)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    masks = seg.pixel_array.reshape(-1, *frames.shape[1:])
    assert len(masks) == 3, "a frame without a lesion is stored too, so that readers find every frame"
    assert masks[2].sum() == 0
    assert masks[0].sum() == 48 * 48
    assert masks[1].sum() == edited
    assert masks[1, dicoms.BANNER + 60, dicoms.LEFT + 100] == 1


def test_a_dicom_seg_takes_corrections_that_were_saved_before_a_reload(page: Any, start: Start, tmp_path: Path) -> None:
    import highdicom

    frames = np.stack([dicoms.screen(scene()), dicoms.screen(scene(side=32))])
    data = dicoms.dataset(frames, regions=[dicoms.region((96, 128))], frames=2)
    content = dicoms.write(data, tmp_path / "loop.dcm").read_bytes()
    visit(page, start(corrections=tmp_path / "corrections"), ("loop.dcm", content))
    page.keyboard.press(".")
    until(page, "document.querySelector('#frame-text').textContent === '2 of 2'")
    until(page, "document.querySelector('#busy').textContent === ''")
    page.click("[data-tool=brush]")
    stroke(page, (100, 60), (100, 61))
    edited = area(page)
    page.keyboard.press("a")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved: corrected')")
    page.reload()
    until(page, "performance.getEntriesByName('outline').length")
    settled(page, 1)
    assert page.text_content("#frame-text") == "1 of 2"
    _, written = downloaded(page, "#save-seg")
    (tmp_path / "seg.dcm").write_bytes(written)
    masks = highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array
    assert masks[1].sum() == edited != 32 * 32
    _, table = downloaded(page, "#csv")
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert [row["corrected_area_px"] for row in rows] == ["", str(edited)]
    assert {row["notice"] for row in rows} == {WORDS}


def test_a_class_and_a_late_answer_stay_with_their_own_image(page: Any, start: Start, tmp_path: Path) -> None:
    running = start(corrections=tmp_path / "corrections")
    visit(page, running, ("a.png", as_png(soft())), ("b.png", as_png(scene(side=32))))
    other = page.locator("#list .what").last.text_content()
    page.select_option("#label", "malignant")
    page.focus("#canvas")
    # the flag at another threshold is asked for a moment later, when the other image is shown
    page.evaluate(
        "() => { const t = document.querySelector('#threshold'); t.value = 0.3; t.dispatchEvent(new Event('input')); }"
    )
    lower = area(page)
    page.keyboard.press("n")
    until(page, "document.querySelector('#canvas').getAttribute('aria-label').startsWith('b.png')")
    assert page.input_value("#label") == "unknown"
    until(page, f"document.querySelector('#list .what').textContent.startsWith('{lower} px')")
    assert page.locator("#list .what").last.text_content() == other
    page.keyboard.press("Shift+N")
    until(page, "document.querySelector('#canvas').getAttribute('aria-label').startsWith('a.png')")
    assert page.input_value("#label") == "malignant"
    # one button leads back to what the network gives
    page.click("#reset")
    assert page.text_content("#threshold-text") == "0.50"
    assert area(page) < lower


def test_of_a_folder_only_its_images_are_opened(page: Any, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for name in ("x (10).png", "x (2).png", "x (2)_mask.png", "x (2)_mask_1.png", "alone_mask.png", ".hidden.png"):
        (folder / name).write_bytes(as_png(scene()))
    dicoms.write(dicoms.dataset(scene()), folder / "IM0001")
    (folder / "labels.csv").write_text("image\n")
    visit(page, start())
    page.set_input_files("#folder-picker", folder)
    settled(page, 4)
    shown = ["alone_mask.png", "IM0001", "x (2).png", "x (10).png"]
    assert page.locator("#list .name").all_text_contents() == [f"study/{name}" for name in shown]
    assert page.text_content("#note") == "Left out of the folder: 2 masks beside their image, 1 other files."


@pytest.mark.parametrize("width", [390, 820])
def test_on_a_narrow_screen_the_picture_stays_in_view(page: Any, start: Start, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    visit(page, start(), *((f"{k}.png", as_png(scene(side=20 + k))) for k in range(9)))
    page.focus("#canvas")
    page.evaluate("scrollTo(0, 0)")
    for k in range(1, 9):
        page.keyboard.press("n")
        until(page, f"document.querySelector('#canvas').getAttribute('aria-label').startsWith('{k}.png')")
        until(page, "document.querySelector('#busy').textContent === ''")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut at the side"
    inside = """() => {
        const list = document.querySelector('#list').getBoundingClientRect();
        const item = document.querySelector('#list [aria-selected=true]').getBoundingClientRect();
        return item.top >= list.top - 1 && item.bottom <= list.bottom + 1;
    }"""
    assert page.evaluate(inside), "the list shows the image that is open"


def test_a_picture_that_may_name_the_patient_is_saved_only_when_asked(page: Any, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    content = dicoms.write(dicoms.dataset(dicoms.screen(scene())), tmp_path / "a.dcm").read_bytes()
    visit(page, start(corrections=folder), ("a.dcm", content))
    asked: list[str] = []

    def refuse(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", refuse)
    page.click("#accept")
    until(page, "true")
    assert "may name the patient" in asked[0]
    assert not list((folder / "images").iterdir())
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#accept")
    until(page, "document.querySelector('#saved').textContent.startsWith('Saved')")
    assert len(list((folder / "images").iterdir())) == 1


def test_with_a_token_the_page_takes_it_from_its_address(page: Any, start: Start) -> None:
    token = "a token of this test only"
    running = start(token=token)
    page.expected_errors = 1
    page.goto(running.url)
    until(page, "document.querySelector('#busy').textContent.includes('token')")
    page.goto("about:blank")
    visit(page, running, ("a.png", as_png(scene())), path=f"/#token={token}")
    assert area(page) == 48 * 48
    assert token not in page.url
    page.reload()
    until(page, "document.documentElement.dataset.ready")


@pytest.mark.parametrize("method", ["Grad-CAM", "Occlusion"])
def test_the_heat_map_of_a_checkpoint_and_of_an_exported_model(
    page: Any, start: Start, trained_run: Any, method: str
) -> None:
    running = start(model=Predictor(trained_run.checkpoint)) if method == "Grad-CAM" else start()
    visit(page, running, ("a.png", as_png(scene())))
    assert method.casefold() in page.inner_text("#heat-name").casefold()
    plain = page.locator("#canvas").screenshot()
    page.click("#heat")
    until(page, "document.querySelector('#busy').textContent === ''")
    time.sleep(0.3)
    heated = np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot()))).astype(int)
    assert abs(heated - np.asarray(Image.open(io.BytesIO(plain))).astype(int)).mean() > 2


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 820])
def test_axe_finds_nothing(
    page: Any, start: Start, theme: str, width: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 1000})
    page.emulate_media(color_scheme=theme)
    visit(page, start(corrections=tmp_path / "corrections"))
    states = [Axe().run(page)]
    page.set_input_files("#picker", [{"name": "a.png", "mimeType": "image/png", "buffer": as_png(scene(top=0))}])
    settled(page, 1)
    states.append(Axe().run(page))
    page.click("#keys")
    states.append(Axe().run(page))
    record_property("by", f"axe-core {states[0].response['testEngine']['version']}")
    record_property("cases", len(states))
    for results in states:
        found = [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in results.response["violations"]]
        assert not found
    # nothing sticks out sideways
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_of_live_shows_the_newest_frame(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    import threading

    import cv2
    import uvicorn
    from axe_playwright_python.sync_playwright import Axe

    from bustseg.live.app import create_app
    from bustseg.live.stream import Frames, Live
    from bustseg.serve.command import listen
    from bustseg.serve.settings import Settings

    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 20, (128, 96))
    for k in range(20):
        writer.write(cv2.cvtColor(scene(left=2 * k), cv2.COLOR_GRAY2BGR))
    writer.release()
    live = Live(Frames(str(clip), repeat=True), [predictor])
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(live, Settings(), "dark"), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    live.start()
    try:
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        until(page, "Number(document.documentElement.dataset.frames) > 10")
        assert float(value(page, "Frames per second")) > 0
        assert "of" in value(page, "Dropped")
        assert not Axe().run(page).response["violations"]
        # the picture keeps its shape
        assert page.evaluate("getComputedStyle(document.querySelector('#canvas')).objectFit") == "contain"
        page.click("#pause")
        time.sleep(0.2)
        before = page.evaluate("document.documentElement.dataset.frames")
        time.sleep(0.4)
        assert page.evaluate("document.documentElement.dataset.frames") == before
        page.click("#pause")
        page.expected_errors = 1  # Chromium reports the 410 that says that it is over
        live.stop()
        until(page, "document.querySelector('#busy').textContent.includes('no more frames')")
    finally:
        live.stop()
        server.should_exit = True
        thread.join(timeout=20)
