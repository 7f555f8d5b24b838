"""Send images to `bustseg node` with dcmtk, kill the node twice in between, and count what Orthanc has of them.

    python benchmarks/node_kill.py --n 500

Needs dcmtk and Orthanc (Debian: apt-get install dcmtk orthanc). The sender repeats what was not accepted, as a scanner
does. In the end every image must be answered exactly once in Orthanc, by a SEG that refers to it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
from tests.data import dicoms  # noqa: E402
from tests.node.peers import Orthanc, free_port, ultrasound  # noqa: E402

SEG, CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"


def start(spool: Path, port: int, receiver: int) -> subprocess.Popen[str]:
    """The node in a process of its own, once it listens."""
    command = [sys.executable, "-m", "bustseg.cli", "node", "--spool", str(spool), "--port", str(port)]
    command += ["--send_to", f"ORTHANC@127.0.0.1:{receiver}"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert node.stdout is not None
    line = node.stdout.readline()
    assert "BUSTSEG@" in line, line
    return node


def send(files: list[Path], port: int) -> list[Path]:
    """Send files with dcmtk in one association; those that the node accepted."""
    command = ["/usr/bin/storescu", "-v", "-nh", "-aec", "BUSTSEG", "127.0.0.1", str(port), *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    accepted, current = [], None
    for line in (told.stdout + told.stderr).splitlines():
        if found := re.search(r"Sending file: (.*)$", line):
            current = Path(found[1])
        if "Received Store Response (Success)" in line and current is not None:
            accepted.append(current)
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="images (default 500)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "orthanc").mkdir()
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    assert program, "Orthanc is not installed"
    orthanc = Orthanc(program, folder / "orthanc")
    rng = np.random.default_rng(0)
    left = {}
    files = []
    for k in range(options.n):
        data = ultrasound(left=int(rng.integers(0, 80)))
        files.append(dicoms.write(data, folder / "in" / f"{k:04d}.dcm"))
        left[str(data.SOPInstanceUID)] = files[-1]
    port, spool = free_port(), folder / "spool"
    begun = time.perf_counter()
    accepted: set[Path] = set()
    try:
        for part in (1, 2, 3):
            node = start(spool, port, orthanc.port)
            until = part * options.n // 3
            while len(accepted) < until:
                todo = [file for file in files if file not in accepted][: min(20, until - len(accepted))]
                accepted |= set(send(todo, port))
            if part < 3:
                waiting = len(list((spool / "queue").glob("*.dcm")))
                node.send_signal(signal.SIGKILL)
                node.wait()
                print(f"killed with {len(accepted)} accepted, {waiting} of them in the queue")
        while list((spool / "queue").glob("*.dcm")):
            time.sleep(0.5)
        seconds = time.perf_counter() - begun
        node.send_signal(signal.SIGINT)
        node.wait()
        tags = orthanc.instances()
        segs = [one for one in tags if one["SOPClassUID"] == SEG]
        captures = [one for one in tags if one["SOPClassUID"] == CAPTURE]
        answered = [
            one["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"]
            for one in segs
        ]
        once = sum(answered.count(uid) == 1 for uid in left)
        print(
            f"{options.n} images, {len(accepted)} accepted, {len(segs)} SEG and {len(captures)} captures in Orthanc, "
            f"{once} answered exactly once, {len(list((spool / 'failed').glob('*.dcm')))} put aside, "
            f"{seconds:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
    finally:
        orthanc.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
