"""`bustseg sync`: send what a store missed, and report what is left."""

from __future__ import annotations

from bustseg.progress import console
from bustseg.runs.entries import LOCAL
from bustseg.runs.opening import open_store
from bustseg.runs.spool import settle
from bustseg.runs.store import Store, tracking_uri


def sync_command(uri: str | None = None) -> int:
    """Send what earlier commands could not send, each entry once, and end the runs of processes that have ended.

    Args:
        uri: store; ``MLFLOW_TRACKING_URI`` or the local sqlite store when not given

    Returns:
        0 when nothing is left to send to this store, else 1

    Raises:
        TrackingError: the store cannot be used
    """
    store = open_store(tracking_uri(uri), write=True, send=False)
    left = settle(store)  # it reports what it did
    here = Store(LOCAL)
    if here.folder != store.folder:
        settle(here)
    for run_id, entries in left.left.items():
        console.print(
            f"{entries} entries of run {run_id} could not be sent and wait in {store.folder / 'spool' / run_id}"
        )
    for run_id, metrics in left.held.items():
        console.print(
            f"{metrics} metrics of an interrupted epoch of run {run_id} wait until the run is continued: bustseg fit "
            f"--ckpt_path {run_id}",
            highlight=False,
        )
    for other in sorted(left.elsewhere):
        console.print(
            f"entries for {other} are also waiting here: send them with bustseg sync --uri {other}", highlight=False
        )
    if not left.left:
        console.print(f"nothing waits to be sent to {store.shown}", highlight=False)
    return 1 if left.left else 0
