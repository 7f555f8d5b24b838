"""The DICOM node against peers of pynetdicom: what is received is answered, once, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.node.node import Node, Peer, check_title
from bustseg.node.spool import Full, Spool
from tests.data import dicoms
from tests.node.peers import Pacs, free_port, send_all, ultrasound

pytestmark = pytest.mark.usefixtures("sealed")

Bustseg = Callable[..., tuple[int, str, str]]
SEG, CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def started(predictor: Predictor, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes = []

    def start(pacs: Pacs | None = None, **options: Any) -> Node:
        spool = Spool(tmp_path / "spool", options.pop("limit", 1000))
        peer = Peer("PACS", "127.0.0.1", pacs.port) if pacs else options.pop("peer", None)
        nodes.append(Node(predictor, spool, port=0, peer=peer, **options))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()
        node.spool.close()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def test_an_image_comes_back_as_seg_and_capture_on_the_right_pixels(started: Any, pacs: Pacs, tmp_path: Path) -> None:
    node = started(pacs)
    data = ultrasound(left=40)
    assert send_all(node.port, [data]) == [0x0000]
    until(lambda: node.answered == 1)
    by_class = {one.SOPClassUID: one for one in pacs.taken}
    assert set(by_class) == {SEG, CAPTURE}
    for one in by_class.values():
        assert (one.PatientID, one.StudyInstanceUID) == (data.PatientID, data.StudyInstanceUID)
        assert "research only" in one.SeriesDescription
    path = tmp_path / "seg.dcm"
    by_class[SEG].save_as(path, enforce_file_format=True)
    seg = highdicom.seg.segread(path)
    expected = np.zeros((data.Rows, data.Columns), bool)
    top, left = dicoms.BANNER + 24, dicoms.LEFT + 40
    expected[top : top + 48, left : left + 48] = True
    found = seg.pixel_array.reshape(expected.shape) > 0
    assert (found != expected).sum() <= 48, "the network's grid may round a column"
    (reference,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == data.SOPInstanceUID
    capture = by_class[CAPTURE]
    picture = capture.pixel_array
    assert picture.shape[:2] >= expected.shape
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == data.SOPInstanceUID
    assert capture.BurnedInAnnotation == "YES"
    orange = np.abs(picture[: data.Rows].astype(int) - [255, 159, 28]).sum(axis=2) < 60
    rows, columns = np.nonzero(orange)
    assert (rows.min(), columns.min()) == pytest.approx((top, left), abs=2)
    assert (picture[data.Rows :] > 200).any(), "the words below"
    # nothing of the image is kept
    assert node.spool.waiting == 0
    assert not list((node.spool.folder / "results").iterdir())
    record = (node.spool.folder / "done").glob("*.json")
    text = next(record).read_text()
    assert not any(secret in text for secret in dicoms.SECRETS)


def test_the_record_has_the_calibrated_presence(calibrated: Predictor, tmp_path: Path, pacs: Pacs) -> None:
    spool = Spool(tmp_path / "spool")
    node = Node(calibrated, spool, port=0, peer=Peer("PACS", "127.0.0.1", pacs.port))
    try:
        assert send_all(node.port, [ultrasound()]) == [0x0000]
        until(lambda: node.answered == 1)
        (record,) = [json.loads(path.read_text()) for path in (spool.folder / "done").glob("*.json")]
        assert record["presence"] == pytest.approx(1 / (1 + np.exp(1 - 0.5 * 8)))
    finally:
        node.stop()
        spool.close()


def test_loops_of_every_frame(started: Any, pacs: Pacs) -> None:
    node = started(pacs)
    frames = np.stack([dicoms.screen(np.full((96, 128), 180, np.uint8)), *(ultrasound_picture(k) for k in (20, 40))])
    data = dicoms.dataset(frames, regions=[dicoms.region((96, 128))], frames=3)
    assert send_all(node.port, [data]) == [0x0000]
    until(lambda: node.answered == 1)
    seg, capture = sorted(pacs.taken, key=lambda one: one.SOPClassUID != SEG)
    assert seg.NumberOfFrames == 2
    assert capture.SourceImageSequence[0].ReferencedFrameNumber in (2, 3)


def ultrasound_picture(left: int) -> np.ndarray:
    image = np.full((96, 128), 180, np.uint8)
    image[24:72, left : left + 48] = 20
    return dicoms.screen(image)


def test_echo_and_titles(started: Any) -> None:
    node = started(allowed=("SCANNER",))
    for title, wanted in (("SCANNER", True), ("STRANGER", False)):
        ae = AE(ae_title=title)
        ae.add_requested_context(Verification)
        association = ae.associate("127.0.0.1", node.port, ae_title="BUSTSEG")
        assert association.is_established == wanted
        if wanted:
            assert association.send_c_echo().Status == 0x0000
            association.release()


def test_what_is_no_ultrasound_is_refused_with_the_right_status(started: Any) -> None:
    node = started()
    ct = ultrasound()
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ae = AE()
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", node.port)
    assert not association.is_established or not association.accepted_contexts
    assert not association.is_established or association.rejected_contexts[0].result == 0x03, "abstract syntax"
    association.abort()
    disguised = ultrasound()
    disguised.Modality = "CT"
    nothing = ultrasound()
    nothing.Rows = 0
    endless = ultrasound()
    endless.NumberOfFrames = 2_000_000_000
    nameless = ultrasound()
    nameless.StudyInstanceUID = ""
    assert send_all(node.port, [disguised, nothing, nameless, endless]) == [0xA900, *[0xC000] * 3]
    assert node.spool.waiting == node.received == 0


def test_a_full_queue_is_told_and_takes_again_when_there_is_room(started: Any) -> None:
    node = started(limit=2, peer=Peer("NOBODY", "127.0.0.1", free_port()))
    images = [ultrasound(left=k) for k in (0, 10, 20)]
    assert send_all(node.port, images) == [0x0000, 0x0000, 0xA700]
    assert send_all(node.port, images[:1]) == [0x0000], "what is known already needs no room"
    assert node.spool.waiting == 2


def test_what_cannot_be_read_is_put_aside_and_holds_nobody_up(started: Any, pacs: Pacs) -> None:
    node = started(pacs)
    broken, empty = ultrasound(), ultrasound()
    broken.PixelData = broken.PixelData[:100]
    del empty.PixelData
    assert send_all(node.port, [broken, empty, ultrasound()]) == [0x0000] * 3
    until(lambda: (node.answered, node.failed) == (1, 2))
    assert len(pacs.taken) == 2
    failed = node.spool.folder / "failed"
    assert len(list(failed.glob("*.dcm"))) == len(list(failed.glob("*.json"))) == 2


def test_results_wait_for_a_receiver_that_is_away_or_refuses(started: Any) -> None:
    port = free_port()
    node = started(peer=Peer("PACS", "127.0.0.1", port))
    assert send_all(node.port, [ultrasound(left=k) for k in (0, 10)]) == [0x0000] * 2
    until(lambda: all(node.spool.results(id) for id in node.spool.pending()))
    time.sleep(0.5)
    assert node.answered == 0
    with Pacs(port, status=0xA700) as refusing:
        until(lambda: refusing.asked > 0)
    assert node.answered == 0
    assert node.spool.waiting == 2
    with Pacs(port) as pacs:
        until(lambda: node.answered == 2)
        assert len(pacs.taken) == 4


def test_the_same_image_again_is_answered_once(started: Any, pacs: Pacs) -> None:
    node = started(pacs)
    data = ultrasound()
    for _ in range(3):
        assert send_all(node.port, [data]) == [0x0000]
    until(lambda: node.answered == 1)
    assert send_all(node.port, [data]) == [0x0000]
    time.sleep(0.5)
    assert (node.answered, len(pacs.taken)) == (1, 2)


def test_two_images_of_the_same_identifier_get_results_of_their_own(started: Any, pacs: Pacs) -> None:
    node = started(pacs)
    first, second = ultrasound(), ultrasound(16)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    assert send_all(node.port, [first, second]) == [0, 0]
    until(lambda: len(pacs.taken) == 4)
    assert len({data.SOPInstanceUID for data in pacs.taken}) == 4, "a PACS would drop one of them"


def test_idle_connections_keep_no_scanner_out(started: Any) -> None:
    node = started()
    idle = [socket.create_connection(("127.0.0.1", node.port), 5) for _ in range(30)]
    try:
        assert send_all(node.port, [ultrasound()]) == [0]
    finally:
        for one in idle:
            one.close()


def test_the_spool_survives_whatever_is_cut_off(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=2)
    first = spool.receive("1.2.3", b"one")
    assert spool.receive("1.2.3", b"one") == first
    second = spool.receive("1.2.3", b"another content")
    assert spool.pending() == [first, second]
    with pytest.raises(Full):
        spool.receive("1.2.4", b"third")
    with pytest.raises(UserError, match="another node"):
        Spool(tmp_path)
    (tmp_path / "queue" / ".half.1.tmp").write_bytes(b"ha")
    spool.keep_results(first, {"seg.dcm": b"result"}, {"area_px": 5})
    (tmp_path / "results" / second).mkdir()
    (tmp_path / "results" / second / "seg.dcm").write_bytes(b"half")
    spool.close()
    again = Spool(tmp_path)
    again.tidy()
    assert again.pending() == [first, second]
    assert [path.read_bytes() for path in again.results(first) or []] == [b"result"]
    assert again.results(second) is None, "results that are not whole are made again"
    again.finish(first)
    # killed between the record and the removal
    again.source(first).write_bytes(b"one")
    again.tidy()
    assert again.pending() == [second]
    assert again.receive("1.2.3", b"one") == first
    assert again.pending() == [second]
    again.close()
    own = Spool(tmp_path / "own")
    for folder in (own.folder, own.folder / "queue"):
        assert folder.stat().st_mode & 0o77 == 0, "patients' data are for this user alone"
    own.close()


def test_the_queue_can_be_looked_at_while_it_is_worked_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    ended = threading.Event()
    wrong: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                for id in spool.pending():
                    spool.results(id)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(300):
        id = spool.receive(f"1.2.{k}", b"content")
        spool.keep_results(id, {"seg.dcm": b"result"}, {})
        spool.finish(id)
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert spool.pending() == []
    spool.close()


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:99999", "@host:1", "A" * 17 + "@h:1"])
def test_peers_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match=r"AE@HOST:PORT|AE title"):
        Peer.of(text)


def test_peers_and_titles() -> None:
    assert Peer.of("PACS@pacs.example:104") == Peer("PACS", "pacs.example", 104)
    assert Peer.of("A B@[::1]:104") == Peer("A B", "::1", 104)
    for title in ("", "x" * 17, "a\\b", "ü", " a"):
        with pytest.raises(UserError):
            check_title(title)


class Running:
    """`bustseg node` in a process of its own."""

    def __init__(self, model: Path, spool: Path, pacs: int, port: int) -> None:
        command = [sys.executable, "-m", "bustseg.cli", "node", "--model", str(model), "--spool", str(spool)]
        command += ["--port", str(port), "--send_to", f"PACS@127.0.0.1:{pacs}"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # tests that run in a shell's background ignore Ctrl-C, and hand that on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert re.search(r"BUSTSEG@127\.0\.0\.1:\d+", line), line + self.process.stdout.read()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=150)  # a peer that has gone is waited for: twice 30 s and a thread's 60 s


@pytest.mark.slow
def test_killed_twice_every_image_is_answered(dark: Path, tmp_path: Path) -> None:
    images = [ultrasound(left=k) for k in range(24)]
    port, spool = free_port(), tmp_path / "spool"
    with Pacs(free_port(), delay=0.02) as pacs:
        accepted: set[str] = set()
        for round_ in range(3):
            node = Running(dark, spool, pacs.port, port)
            left = [one for one in images if one.SOPInstanceUID not in accepted]
            if round_ < 2:
                thread = threading.Thread(target=lambda: time.sleep(0.6) or node.kill())  # noqa: B023
                thread.start()
            for one in left:
                try:
                    if send_all(port, [one]) == [0x0000]:
                        accepted.add(one.SOPInstanceUID)
                except (AssertionError, OSError):
                    break
            if round_ < 2:
                thread.join()
        assert len(accepted) == len(images)
        until(lambda: len({one.SOPInstanceUID for one in pacs.taken}) == 2 * len(images), 120)
        assert node.stop() in (0, 130)
    segs = [one for one in pacs.taken if one.SOPClassUID == SEG]
    answered = {one.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID for one in segs}
    assert answered == {one.SOPInstanceUID for one in images}
    assert len({one.SOPInstanceUID for one in segs}) == len(images), "what is sent again is the same object"


def test_the_command_refuses_what_cannot_work(bustseg: Bustseg, dark: Path, tmp_path: Path) -> None:
    own = ["node", "--model", dark, "--spool", tmp_path / "spool"]
    for option, word in (
        (["--send_to", "nowhere"], "AE@HOST:PORT"),
        (["--ae", "a title that is too long"], "AE title"),
        (["--port", "70000"], "65535"),
        (["--max_waiting", "0"], "at least 1"),
        (["--threshold", "3"], "from 0 to 1"),
    ):
        code, _, err = bustseg(*own, *option)
        assert (code, word in err) == (2, True), err
    code, out, err = bustseg(*own, "--port", 0, "--seconds", 0.1)
    assert code == 0, err
    assert "not a medical device" in out
    assert "BUSTSEG@127.0.0.1:" in out


def dcmtk(name: str) -> str:
    """dcmtk's program; pynetdicom brings others of the same names."""
    for folder in [*os.environ["PATH"].split(os.pathsep), "/usr/bin"]:
        path = Path(folder) / name
        if path.is_file():
            told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if "dcmtk" in told.stdout:
                return str(path)
    pytest.skip(f"dcmtk's {name} is not installed (Debian: apt-get install dcmtk)")


@pytest.mark.slow
def test_dcmtks_echoscu_and_storescu(started: Any, pacs: Pacs, tmp_path: Path) -> None:
    echo, store = dcmtk("echoscu"), dcmtk("storescu")
    node = started(pacs)
    peer = ["-aec", "BUSTSEG", "127.0.0.1", str(node.port)]
    assert subprocess.run([echo, *peer], check=False).returncode == 0
    files = [dicoms.write(ultrasound(left=k), tmp_path / "in" / f"{k}.dcm") for k in range(5)]
    grey = ultrasound_picture(10)
    jpeg = dicoms.as_jpeg(dicoms.dataset(grey, regions=[dicoms.region((96, 128))]), grey)
    files.append(dicoms.write(jpeg, tmp_path / "in" / "jpeg.dcm"))
    done = subprocess.run([store, "-xy", *peer, *map(str, files)], capture_output=True, text=True, check=False)
    done = subprocess.run([store, *peer, *map(str, files[:5])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    until(lambda: node.answered == 6)
    ct = ultrasound()
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = CTImageStorage
    path = dicoms.write(ct, tmp_path / "ct.dcm")
    done = subprocess.run([store, *peer, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert node.spool.waiting == 0


@pytest.mark.slow
def test_orthanc_takes_the_results(started: Any, orthanc: Any, tmp_path: Path) -> None:
    node = started(peer=Peer("ORTHANC", "127.0.0.1", orthanc.port))
    images = [ultrasound(left=k) for k in (5, 30)]
    assert send_all(node.port, images) == [0x0000] * 2
    until(lambda: node.answered == 2)
    tags = orthanc.instances()
    assert sorted(one["SOPClassUID"] for one in tags) == sorted([SEG, CAPTURE] * 2)
    assert {one["StudyInstanceUID"] for one in tags} == {one.StudyInstanceUID for one in images}
    seg = next(one for one in tags if one["SOPClassUID"] == SEG)
    (tmp_path / "seg.dcm").write_bytes(orthanc.file(seg["id"]))
    stored = highdicom.seg.segread(tmp_path / "seg.dcm")
    (reference,) = stored.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    left = {one.SOPInstanceUID: k for one, k in zip(images, (5, 30), strict=True)}[reference.ReferencedSOPInstanceUID]
    rows, columns = np.nonzero(stored.pixel_array.squeeze())
    assert (rows.min(), columns.min()) == pytest.approx((dicoms.BANNER + 24, dicoms.LEFT + left), abs=1)
    # this Orthanc draws no 1-bit pictures; the capture is what it shows
    capture = next(one for one in tags if one["SOPClassUID"] == CAPTURE)
    picture = cv2.imdecode(np.frombuffer(orthanc.preview(capture["id"]), np.uint8), cv2.IMREAD_COLOR)
    assert (np.abs(picture.astype(int) - [28, 159, 255]).sum(axis=2) < 60).sum() > 100
