"""The load of the machine during a fit, if requested."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.runs.tracker import Tracker, runs_logger


class SystemMetrics(Callback):
    """Records the load of CPU, memory, disk, network and GPU with MLflow's own monitor, if the tracker is set to.

    The monitor writes directly to the store, every ten seconds, and stops if the store becomes unreachable: unlike a
    training's metrics, these are not worth keeping until it is back.
    """

    def __init__(self) -> None:
        self._monitor: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = runs_logger(trainer)
        if not (trainer.is_global_zero and isinstance(logger, Tracker) and logger.system_metrics):
            return
        if logger.begun_away:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # it logs when it starts and stops, and every device that it cannot query
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(logger.run_id, resume_logging=True, tracking_uri=logger.uri)  # type: ignore[no-untyped-call]
        self._monitor.start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
