"""Where the history of a run goes: a CSV file, Weights & Biases, TensorBoard."""

from dictlearn.loggers.report import (
    RunReport,
    finish_loggers,
    history_rows,
    log_artifact,
    log_config,
    rewind,
)

__all__ = [
    "RunReport",
    "finish_loggers",
    "history_rows",
    "log_artifact",
    "log_config",
    "rewind",
]
