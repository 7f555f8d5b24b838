"""Kinds of entries in a run's journals, and the names that go with them."""

METRICS = "metrics"
"""``values`` by name, and their ``step``"""

PARAMS, TAGS = "params", "tags"
"""Texts by name"""

DATASETS = "datasets"
"""``datasets``: pairs of the fields of an MLflow data set and its context"""

FILE = "file"
"""``path`` within the run's files, and the ``folder`` that it is in there"""

STATUS = "status"
"""``status`` as in MLflow; the entry's time is when it ended"""

MODEL = "model"
"""``checkpoint`` within the run's files that is to be recorded as a model, and its ``epoch``"""

MODEL_FILE, MODEL_METRICS = "model_file", "model_metrics"
"""``path`` of a file that belongs beside the model; ``prefix`` of the metrics that are shown beside it"""

LOCAL = "local"
"""Stands for the store of runs that no store keeps: their record is in their folder"""

SERVER_ID = "server_run_id"
"""File in the folder of a run that began while its server was away: the id that the server gave it later."""
