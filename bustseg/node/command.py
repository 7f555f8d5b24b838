"""``bustseg node``: start the node and print its address."""

from __future__ import annotations

from pathlib import Path

from bustseg.bounds import check_port
from bustseg.box import boxed_model
from bustseg.deploy.predict import check_threshold
from bustseg.disclaimer import NOTICE
from bustseg.errors import UserError
from bustseg.progress import console
from bustseg.serve.settings import is_loopback


def node(
    *,
    port: int,
    ae: str,
    send_to: str | None,
    host: str,
    spool: Path | None,
    model: str | None,
    threshold: float | None,
    allow: tuple[str, ...],
    capture: bool,
    max_waiting: int,
    seconds: float | None,
) -> int:
    """Receive ultrasound images over DICOM, and send DICOM SEG and secondary captures on, until Ctrl-C.

    Args:
        port: port to listen on; 0 takes a free one
        ae: AE title of this node
        send_to: where results go, as ``AE@HOST:PORT``; they stay in the spool when not given
        host: address to listen on; since DICOM has no passwords, only this machine has access by default
        spool: folder of the queue; in the user's state folder when not given
        model: a checkpoint, a run or an exported folder; the model in the box when not given
        threshold: probability above which a pixel belongs to a lesion; the model's when not given
        allow: AE titles that may send; all when empty
        capture: also send secondary captures
        max_waiting: most images in the queue; more are refused
        seconds: stop after this time

    Returns:
        exit code 0

    Raises:
        UserError: an option, the model or the address cannot be used
    """
    from bustseg.node.node import Node, Peer, check_title, default_spool, run
    from bustseg.node.spool import Spool

    peer = Peer.of(send_to) if send_to else None
    for title in (ae, *allow):
        check_title(title)
    check_port(port)
    check_threshold(threshold)
    if max_waiting < 1:
        raise UserError(f"--max_waiting is {max_waiting}: give at least 1")
    folder = spool.expanduser() if spool else default_spool()
    queue = Spool(folder, max_waiting)
    try:
        from bustseg.deploy.predictor import Predictor

        predictor = Predictor(model if model is not None else str(boxed_model()), threshold=threshold)
        made = Node(predictor, queue, ae, host, port, peer, allow, capture)
    except BaseException:
        queue.close()
        raise
    console.print(f"bustseg node: {ae}@{host}:{made.port} (Ctrl-C stops it)", highlight=False, markup=False)
    where = f"results go to {send_to}" if send_to else "results stay in the queue: --send_to AE@HOST:PORT sends them on"
    console.print(f"{where}; queue in {folder}, {queue.waiting} waiting", highlight=False, markup=False)
    if not is_loopback(host):
        who = f"only from {', '.join(allow)}" if allow else "from everyone who can connect: restrict it with --allow AE"
        console.print(f"images are accepted {who}", highlight=False, markup=False)
    console.print(NOTICE, highlight=False)
    run(made, seconds)
    return 0
