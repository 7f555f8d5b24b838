"""Kinds of entries in a run's journals, and related names."""

METRICS = "metrics"
"""``values`` by name, and their ``step``"""

PARAMS, TAGS = "params", "tags"
"""Texts by name"""

DATASETS = "datasets"
"""``datasets``: pairs of the fields of an MLflow data set and its context"""

FILE = "file"
"""``path`` within the run's files, and its ``folder`` there"""

STATUS = "status"
"""``status`` as in MLflow; the entry's time is the time of its end"""

MODEL = "model"
"""``checkpoint`` within the run's files to record as a model, and its ``epoch``"""

MODEL_FILE, MODEL_METRICS = "model_file", "model_metrics"
"""``path`` of a file to store with the model; ``prefix`` of the metrics to show with it"""

LOCAL = "local"
"""Stands for the store of runs that are only in a folder, which holds their record."""

SERVER_ID = "server_run_id"
"""File in the folder of a run that began while its server was unreachable: the id that the server assigned later."""
