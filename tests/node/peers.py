"""Peers of the node: a receiver, a sender, and Orthanc."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from bustseg.node.node import _RESULTS, ULTRASOUND
from tests.data import dicoms


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ultrasound(left: int = 32) -> Dataset:
    """A scanner's screen with a dark square at ``left`` of the scanned region."""
    image = np.full((96, 128), 180, np.uint8)
    image[24:72, left : left + 48] = 20
    return dicoms.dataset(dicoms.screen(image), regions=[dicoms.region((96, 128))])


class Pacs:
    """A receiver that keeps what it takes in memory.

    Args:
        port: where it listens
        status: what it answers
        delay: seconds that each answer takes
    """

    def __init__(self, port: int, status: int = 0x0000, delay: float = 0.0) -> None:
        self.port, self.status, self.delay = port, status, delay
        self.taken: list[Dataset] = []
        self.asked = 0

    def _store(self, event: Any) -> int:
        self.asked += 1
        time.sleep(self.delay)
        if self.status == 0x0000:
            data = event.dataset
            data.file_meta = event.file_meta
            self.taken.append(data)
        return self.status

    def __enter__(self) -> Pacs:
        self._ae = AE(ae_title="PACS")
        for uid in _RESULTS:
            self._ae.add_supported_context(uid)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self._ae.shutdown()


def send_all(port: int, images: Sequence[Dataset]) -> list[int]:
    """Send images in one association; the statuses."""
    ae = AE(ae_title="SCANNER")
    for uid in ULTRASOUND[:2]:
        ae.add_requested_context(uid)
    association = ae.associate("127.0.0.1", port, ae_title="BUSTSEG")
    assert association.is_established
    statuses = []
    for one in images:
        answer = association.send_c_store(one)
        statuses.append(int(answer.Status) if "Status" in answer else -1)
    association.release()
    return statuses


class Orthanc:
    """Orthanc in a process of its own, asked over its REST interface."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port, self.http = free_port(), free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "UnknownSopClassAccepted": True,
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
                return
            except OSError:
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.1)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            return answer.read()

    def instances(self) -> list[dict[str, Any]]:
        """Tags of all instances, with Orthanc's id."""
        ids = json.loads(self.get("/instances"))
        return [{**json.loads(self.get(f"/instances/{id}/simplified-tags")), "id": id} for id in ids]

    def file(self, id: str) -> bytes:
        return self.get(f"/instances/{id}/file")

    def preview(self, id: str) -> bytes:
        return self.get(f"/instances/{id}/preview")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
