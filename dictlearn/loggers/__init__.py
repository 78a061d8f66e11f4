"""Where the history of a run goes: a CSV file, Weights & Biases, TensorBoard."""

from dictlearn.loggers.report import RunReport, finish_loggers, log_artifact, log_config

__all__ = ["RunReport", "finish_loggers", "log_artifact", "log_config"]
