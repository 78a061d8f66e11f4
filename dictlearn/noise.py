"""Silences lines of other libraries that tell a user of this one nothing."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*LeafSpec.*",
    ".*torch.jit.*",
    ".*is not a torch DataLoader.*",
    ".*No device id is provided via .*",
    ".*ModelCheckpoint.* `monitor`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*smaller than the logging interval.*",
    ".*Total length of .* across ranks is zero.*",
)
# Says which process has ended before it ends all others.
_OF_LAUNCHED = "lightning_fabric.strategies.launchers.subprocess_script"


def quiet() -> None:
    """Filter known noise of Lightning, torch and transformers; everything else still shows."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(_OF_LAUNCHED).setLevel(logging.INFO)
