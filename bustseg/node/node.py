"""The DICOM node: receives ultrasound images, segments them, and sends the results on.

It has three parts that share only the :class:`bustseg.node.spool.Spool`: associations store what they receive, one
thread segments, and one sends. Each may be killed at any moment: unfinished work is done again with the same unique
identifiers, so that the receiver has each result once.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg import bounds
from bustseg.data import dicom
from bustseg.data.inputs import Inputs, Item
from bustseg.deploy import dicom_seg
from bustseg.deploy.predict import overlay, placed
from bustseg.errors import DataError, UserError
from bustseg.node.capture import secondary_capture, with_words
from bustseg.node.spool import Full, Spool
from bustseg.progress import console, error_console

if TYPE_CHECKING:
    from bustseg.deploy.prediction import Prediction
    from bustseg.deploy.predictor import Predictor

ULTRASOUND = (
    "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.6",  # the same two, retired
    "1.2.840.10008.5.1.4.1.1.3",
)
_RESULTS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7")  # Segmentation, Secondary Capture
_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE
)
# DICOM PS3.4, table B.2-1
SUCCESS, OUT_OF_RESOURCES, WRONG_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_BATCH = 8
_LONGEST_PAUSE = 60.0
_TITLE = re.compile(r"^[\x21-\x7e]([\x20-\x7e]{0,14}[\x21-\x7e])?$")
_PEER = re.compile(r"^(?P<title>[^@]{1,16})@(?P<host>\[[0-9a-fA-F:]+\]|[^:@/]+):(?P<port>\d{1,5})$")


def check_title(title: str) -> str:
    """Check an application entity's title.

    Raises:
        UserError: it is not a valid title
    """
    if not _TITLE.match(title) or "\\" in title:
        raise UserError(f"{title!r} is not an AE title: use 1 to 16 ASCII characters, no backslash")
    return title


@dataclass(frozen=True)
class Peer:
    """Another node, written ``AE@HOST:PORT``."""

    title: str
    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Peer:
        """The peer that ``text`` names.

        Raises:
            UserError: it does not name a peer
        """
        found = _PEER.match(text)
        if not found or not 0 < int(found["port"]) < 65536:
            raise UserError(f"{text!r} is not a peer: write AE@HOST:PORT, such as ORTHANC@pacs.example:4242")
        return cls(check_title(found["title"]), found["host"].strip("[]"), int(found["port"]))


class Node:
    """The node, until :meth:`stop`.

    Args:
        predictor: the model in use
        spool: the queue
        title: its AE title
        host, port: where it listens; port 0 takes a free one
        peer: receiver of the results; None keeps them in the spool
        allowed: AE titles that may send; all when empty
        capture: also send secondary captures

    Attributes:
        received, answered, failed: numbers of images since the start

    Raises:
        UserError: the extra is not installed, or the address is taken
    """

    def __init__(
        self,
        predictor: Predictor,
        spool: Spool,
        title: str = "BUSTSEG",
        host: str = "127.0.0.1",
        port: int = 11112,
        peer: Peer | None = None,
        allowed: tuple[str, ...] = (),
        capture: bool = True,
    ) -> None:
        self.predictor, self.spool, self.title, self.peer = predictor, spool, check_title(title), peer
        self.host, self.capture = host, capture
        self.received = self.answered = self.failed = 0
        self._stop, self._work, self._made = threading.Event(), threading.Event(), threading.Event()
        try:
            from pynetdicom import AE, _config, evt
        except ImportError as error:
            raise UserError("bustseg node needs pynetdicom: pip install 'bustseg[serve]'") from error
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom's messages quote data sets
        dicom_seg.check()
        spool.tidy()
        self._ae = AE(ae_title=title)
        self._ae.maximum_pdu_size = 0
        # connections that ask for nothing must not keep the scanners out
        self._ae.maximum_associations = 50
        self._ae.acse_timeout, self._ae.dimse_timeout = 10, 30
        self._ae.network_timeout = 60
        self._ae.add_supported_context("1.2.840.10008.1.1")  # Verification
        for uid in ULTRASOUND:
            self._ae.add_supported_context(uid, list(_SYNTAXES))
        self._ae.require_calling_aet = [check_title(one) for one in allowed]
        handlers: list[Any] = [(evt.EVT_C_ECHO, lambda event: SUCCESS), (evt.EVT_C_STORE, self._store)]
        try:
            self._server = self._ae.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error.strerror or error}): name another --port"
            ) from error
        assert self._server is not None
        assert self._server.socket is not None
        self.port = self._server.socket.getsockname()[1]
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._segmenting, self._sending)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the current image only; the rest stays in the spool."""
        self._stop.set()
        self._work.set()
        self._made.set()
        self._ae.shutdown()
        for thread in self._threads:
            thread.join(timeout=60)

    # ------------------------------------------------------------ receive

    def _store(self, event: Any) -> int:
        """C-STORE: success only once the image is on disk."""
        try:
            content = event.encoded_dataset()
            status = self._refusal(event, content)
            if status is not None:
                return status
            self.spool.receive(str(event.request.AffectedSOPInstanceUID), content)
        except Full:
            return OUT_OF_RESOURCES
        except OSError as error:
            error_console.print(f"an image could not be stored: {error.strerror}", highlight=False, markup=False)
            return OUT_OF_RESOURCES
        self.received += 1
        self._work.set()
        return SUCCESS

    @staticmethod
    def _refusal(event: Any, content: bytes) -> int | None:
        """Error status for anything but an ultrasound image; None for an ultrasound image."""
        import pydicom

        tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames"]
        try:
            data = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=tags)
            if str(data.SOPClassUID) != str(event.request.AffectedSOPClassUID):
                return WRONG_CLASS
            if str(data.get("Modality", "US")).strip().upper() not in ("US", ""):
                return WRONG_CLASS
            if str(data.SOPInstanceUID) != str(event.request.AffectedSOPInstanceUID) or not data.StudyInstanceUID:
                return NOT_UNDERSTOOD
            rows, columns, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
            bounds.check_pixels("an image", rows, columns, frames)
            return None if rows * columns > 0 and frames > 0 else NOT_UNDERSTOOD
        except Exception:  # a damaged data set may cause any error in the reader
            return NOT_UNDERSTOOD

    # ------------------------------------------------------------ segment

    def _segmenting(self) -> None:
        while not self._stop.is_set():
            self._work.clear()
            todo = [id for id in self.spool.pending() if self.spool.results(id) is None]
            for id in todo:
                if self._stop.is_set():
                    return
                if not self.spool.source(id).is_file():  # answered since the queue was read
                    continue
                try:
                    self._segment(id)
                    self._made.set()
                except DataError as error:
                    self.failed += 1
                    self.spool.fail(id, str(error))
                    error_console.print(f"image {id} was set aside: {error}", highlight=False, markup=False)
                except OSError as error:  # the disk is full: the image stays in the queue
                    error_console.print(f"waiting for disk space: {error.strerror}", highlight=False, markup=False)
                    self._stop.wait(5)
                except Exception as error:
                    self.failed += 1
                    self.spool.fail(id, type(error).__name__)
                    error_console.print(f"image {id} was set aside ({type(error).__name__})", highlight=False)
            if not todo:
                self._work.wait(2)

    def _segment(self, id: str) -> None:
        source = self.spool.source(id)
        dicom.check_codestreams(source)
        items = list(Inputs([str(source)], self.spool.folder / "none"))
        masks: list[np.ndarray] = []
        best: tuple[int, Item, Prediction] | None = None
        reasons: dict[str, None] = {}
        confidences, presences = [], []
        for start in range(0, len(items), _BATCH):
            chunk = items[start : start + _BATCH]
            pictures = [item.read() for item in chunk]
            regions = [item.cut(picture) for item, picture in zip(chunk, pictures, strict=True)]
            found_many = self.predictor.predict_many(regions, _BATCH)
            for item, picture, found in zip(chunk, pictures, found_many, strict=True):
                shape = (picture.shape[0], picture.shape[1])
                masks.append(placed(found.mask, item.box, shape))
                reasons |= dict.fromkeys(found.look_at_this)
                if found.confidence is not None:
                    confidences.append(found.confidence)
                if found.presence is not None:
                    presences.append(found.presence)
                if best is None or found.area_px > best[2].area_px:
                    best = (len(masks) - 1, item, found)
        assert best is not None
        settings = f"{self.predictor.threshold} {self.predictor.postprocess}"
        files = {"seg.dcm": dicom_seg.segmentation(source, masks, self.predictor.digest, settings)}
        frame, item, _ = best
        if self.capture:
            picture = with_words(overlay(item.read(), masks[frame]))
            number = frame if len(items) > 1 else None
            files["capture.dcm"] = secondary_capture(source, picture, self.predictor.digest, settings, number)
        said = {
            "image": item.image,
            "frames": len(items),
            "area_px": max(int(mask.sum()) for mask in masks),
            "presence": max(presences) if presences else None,
            "confidence": min(confidences) if confidences else None,
            "look_at_this": list(reasons),
            "model": self.predictor.digest[:12],
        }
        self.spool.keep_results(id, files, said)

    # ------------------------------------------------------------ send

    def _sending(self) -> None:
        pause = 1.0
        while not self._stop.is_set():
            self._made.clear()
            ready = [id for id in self.spool.pending() if self.spool.results(id) is not None]
            if not ready or self.peer is None:
                self._made.wait(2)
                continue
            if self._send_all(ready):
                pause = 1.0
            else:
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _send_all(self, ids: list[str]) -> bool:
        """Send the results of images in one association; returns whether the receiver accepted all of them."""
        assert self.peer is not None
        import pydicom
        from pynetdicom import AE

        ae = AE(ae_title=self.title)
        ae.acse_timeout = ae.dimse_timeout = 30
        for uid in _RESULTS:
            ae.add_requested_context(uid, list(_SYNTAXES[:2]))
        association = ae.associate(self.peer.host, self.peer.port, ae_title=self.peer.title, max_pdu=0)
        if not association.is_established:
            error_console.print(
                f"{self.peer.title} does not answer: {len(ids)} results wait", highlight=False, markup=False
            )
            return False
        taken = True
        try:
            for id in ids:
                if self._stop.is_set():
                    return taken
                refused = None
                for path in self.spool.results(id) or []:
                    answer = association.send_c_store(pydicom.dcmread(path))
                    if "Status" not in answer:  # the connection broke
                        return False
                    status = int(answer.Status)
                    # 0xB000 and similar: stored, with a warning
                    if status != SUCCESS and status & 0xF000 != 0xB000:
                        refused = status
                        break
                if refused is None:
                    self.spool.finish(id)
                    self.answered += 1
                else:
                    taken = False
                    words = f"{self.peer.title} refuses a result (0x{refused:04X}); it waits"
                    error_console.print(words, highlight=False, markup=False)
        except (OSError, RuntimeError, ValueError) as error:
            error_console.print(f"sending failed ({type(error).__name__})", highlight=False)
            return False
        finally:
            if association.is_established:
                association.release()
        return taken


def run(node: Node, seconds: float | None = None) -> None:
    """Run until Ctrl-C, printing a line whenever something was done."""
    start, said = time.monotonic(), (0, 0, 0)
    try:
        while seconds is None or time.monotonic() - start < seconds:
            time.sleep(1)
            now = (node.received, node.answered, node.failed)
            if now != said:
                said = now
                console.print(
                    f"received {now[0]}, answered {now[1]}, set aside {now[2]}, waiting {node.spool.waiting}",
                    highlight=False,
                )
    finally:
        node.stop()
        node.spool.close()


def default_spool() -> Path:
    """Default folder of the queue."""
    import platformdirs

    return Path(platformdirs.user_state_dir("bustseg")) / "node"
