"""Send images to `bustseg node` with dcmtk, kill the node twice in between, and check the results in Orthanc.

    python benchmarks/node_kill.py --images 500

Needs dcmtk and Orthanc (Debian: apt-get install dcmtk orthanc). The node is killed once in the middle of an
association, when it has a third of the images, and once when it has answered a third; the sender repeats what was not
accepted, as a scanner does. In the end every image must be answered exactly once in Orthanc, by a SEG that refers to it
and lies on its pixels. Writes its table into docs/how-to/dicom-node.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
from measured import REPOSITORY, Measurement, add_page, write

from bustseg.box import boxed_model
from bustseg.data.phantom import draw_phantom
from bustseg.deploy.predictor import Predictor

sys.path.insert(0, str(REPOSITORY))
from tests.data import dicoms
from tests.node.peers import Orthanc, free_port

SEG, CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"
_PHANTOMS = 20


def image_of(number: int) -> np.ndarray:
    """A unique phantom, grey ``uint8`` (H, W)."""
    image, _ = draw_phantom(np.random.default_rng(number % _PHANTOMS), "benign")
    return np.roll(image, number // _PHANTOMS, axis=1)


def start(spool: Path, port: int, receiver: int) -> subprocess.Popen[str]:
    """The node in its own process, once it listens."""
    command = [sys.executable, "-m", "bustseg.cli", "node", "--spool", str(spool), "--port", str(port)]
    command += ["--send_to", f"ORTHANC@127.0.0.1:{receiver}"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert node.stdout is not None
    line = node.stdout.readline()
    assert "BUSTSEG@" in line, line
    return node


def known(spool: Path) -> tuple[int, int]:
    """Numbers of waiting and of answered images in the spool."""
    return len(list((spool / "queue").glob("*.dcm"))), len(list((spool / "done").glob("*.json")))


def kill_when(node: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    """Kill the node (SIGKILL) if it is time."""
    if node.poll() is None and due():
        node.send_signal(signal.SIGKILL)
        node.wait()


def send(files: list[Path], port: int, node: subprocess.Popen[str], due: Callable[[], bool]) -> list[Path]:
    """Send files with dcmtk in one association, and kill the node when it is time; returns the accepted files."""
    command = ["/usr/bin/storescu", "-v", "-nh", "-aec", "BUSTSEG", "127.0.0.1", str(port), *map(str, files)]
    with tempfile.TemporaryFile("w+") as told:
        sender = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, text=True)
        while sender.poll() is None:
            kill_when(node, due)
            time.sleep(0.05)
        told.seek(0)
        lines = told.read().splitlines()
    accepted, current = [], None
    for line in lines:
        if found := re.search(r"Sending file: (.*)$", line):
            current = Path(found[1])
        if "Received Store Response (Success)" in line and current is not None:
            accepted.append(current)
    return accepted


def looked_at(orthanc: Orthanc, sent: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """The results in Orthanc by SOP instance, compared with the network's prediction for each region."""
    predictor = Predictor(boxed_model())
    tags = orthanc.instances()
    segs = [one for one in tags if one["SOPClassUID"] == SEG]
    captures = [one for one in tags if one["SOPClassUID"] == CAPTURE]
    answers: Counter[str] = Counter()
    worst, outlines, lesions = 0, 0, 0
    masks: dict[str, np.ndarray] = {}
    for one in segs:
        path = folder / "seg.dcm"
        path.write_bytes(orthanc.file(one["id"]))
        seg = highdicom.seg.segread(path)
        (reference,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        source = str(reference.ReferencedSOPInstanceUID)
        answers[source] += 1
        image = sent[source]
        expected = np.zeros(dicoms.screen(image).shape, bool)
        rows = slice(dicoms.BANNER, dicoms.BANNER + image.shape[0])
        expected[rows, dicoms.LEFT : dicoms.LEFT + image.shape[1]] = predictor(image).mask
        masks[source] = seg.pixel_array.reshape(expected.shape) > 0
        worst = max(worst, int((masks[source] != expected).sum()))
        lesions += bool(masks[source].any())
    for one in captures:
        source = one["SourceImageSequence"][0]["ReferencedSOPInstanceUID"]
        picture = cv2.imdecode(np.frombuffer(orthanc.preview(one["id"]), np.uint8), cv2.IMREAD_COLOR)
        ys, xs = np.nonzero(np.abs(picture.astype(int) - [28, 159, 255]).sum(axis=2) < 60)
        rows_, columns = np.nonzero(masks[source])
        if rows_.size and xs.size:
            found = np.array([ys.min(), ys.max(), xs.min(), xs.max()])
            wanted = np.array([rows_.min(), rows_.max(), columns.min(), columns.max()])
            outlines += bool(np.abs(found - wanted).max() <= 4)
    once = sum(answers[uid] == 1 for uid in sent)
    return {
        "segs": len(segs), "captures": len(captures), "once": once, "worst": worst, "outlines": outlines,
        "lesions": lesions,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="number of images (default 500)")
    add_page(parser, "docs/how-to/dicom-node.md")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "orthanc").mkdir()
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    assert program, "Orthanc is not installed"
    orthanc = Orthanc(program, folder / "orthanc")
    measurement = Measurement()
    files, sent = [], {}
    for k in range(options.images):
        image = image_of(k)
        data = dicoms.dataset(dicoms.screen(image), regions=[dicoms.region((image.shape[0], image.shape[1]))])
        files.append(dicoms.write(data, folder / "in" / f"{k:04d}.dcm"))
        sent[str(data.SOPInstanceUID)] = image
    port, spool = free_port(), folder / "spool"
    begun = time.perf_counter()
    accepted: set[Path] = set()
    killed = []
    try:
        third = options.images // 3
        for due in (lambda: sum(known(spool)) >= third, lambda: known(spool)[1] >= third, lambda: False):
            node = start(spool, port, orthanc.port)
            while node.poll() is None and len(accepted) < options.images:
                accepted |= set(send([file for file in files if file not in accepted], port, node, due))
            while node.poll() is None and known(spool)[0]:
                kill_when(node, due)
                time.sleep(0.2)
            killed.append((len(accepted), *known(spool)))
            print(f"accepted, in the queue, answered: {killed[-1]}", flush=True)
        killed.pop()
        seconds = time.perf_counter() - begun
        node.send_signal(signal.SIGINT)
        node.wait()
        found = looked_at(orthanc, sent, folder)
        aside = len(list((spool / "failed").glob("*.dcm")))
        lines = [
            f"`python benchmarks/node_kill.py --images {options.images}`, with dcmtk's storescu as the sender, Orthanc "
            "as the receiver and the model in the box, on phantoms; the node was killed (SIGKILL) in the middle of an "
            "association, and again when it had answered a third:",
            "",
            "| | |",
            "| --- | --- |",
            *(
                f"| kill {number}: accepted; of them answered already, still in the queue | {was}; {done}, {queue} |"
                for number, (was, queue, done) in enumerate(killed, 1)
            ),
            f"| accepted in the end | {len(accepted)} of {options.images} |",
            f"| SEG and secondary captures in Orthanc | {found['segs']} and {found['captures']} |",
            f"| images that exactly one SEG refers to | {found['once']} |",
            f"| put aside, left in the queue | {aside}, {known(spool)[0]} |",
            f"| pixels that differ between a SEG, read from Orthanc by highdicom, and `predict`'s mask at most | "
            f"{found['worst']} |",
            f"| captures whose outline, as Orthanc draws it, lies around the SEG | {found['outlines']} of "
            f"{found['lesions']} with a lesion |",
            f"| time | {seconds:.0f} s |",
            "",
            measurement.told() + ".",
        ]
        write(options.page, "python benchmarks/node_kill.py", lines)
    finally:
        orthanc.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
