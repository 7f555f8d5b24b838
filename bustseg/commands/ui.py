"""`bustseg ui`."""

from __future__ import annotations

import os
import sys


def ui(*, uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Start the MLflow UI on the project's store.

    Example:
        bustseg ui --port 5000

    Args:
        uri: MLflow store (default: MLFLOW_TRACKING_URI or sqlite:///mlruns/mlflow.db)
        host: address to listen on
        port: port
    """
    from bustseg.bounds import check_port
    from bustseg.progress import console
    from bustseg.runs.opening import open_store
    from bustseg.runs.store import Store, tracking_uri
    from bustseg.runs.view import views
    from bustseg.serve.command import listen

    check_port(port)
    place = tracking_uri(uri)
    if place.startswith("http"):
        console.print(f"the MLflow UI of this project is at {Store(place).shown}")
        return 0
    store = open_store(place)
    listen(host, port).close()  # MLflow would say only after seconds, and in a traceback, that it cannot
    base = f"http://{host}:{port}"
    # without the last parameter MLflow opens its view for language models
    lines = [
        f"MLflow UI of {store.shown}; it answers in a few seconds, and Ctrl-C stops it:",
        f"  {base}/#/experiments?workflowType=machine_learning",
    ]
    for name, link in views(store, base):
        lines += [f"runs of {name}, with their scores:", f"  {link}"]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "2"]  # instead of four, each of which takes half a gigabyte: one user needs few
    # not as an argument, which other users of this machine could see: the URI may contain a password
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": place}
    # MLflow's job queues for judging language models: a dozen processes, which a kill leaves behind
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    environment.setdefault("PYTHONWARNINGS", "ignore")  # about the libraries of MLflow, for its developers
    os.execve(sys.executable, command, environment)
