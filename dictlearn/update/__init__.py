"""How the atoms move: update rules, their optimizers, and the schedule of their rate."""

from dictlearn.update.optimizers import DictionaryOptimizer, HessianDiagonal, SphereAdam
from dictlearn.update.rules import Adam, HessianDiagonalRule, UpdateRule
from dictlearn.update.schedule import Schedule, lr_factor

__all__ = [
    "Adam",
    "DictionaryOptimizer",
    "HessianDiagonal",
    "HessianDiagonalRule",
    "Schedule",
    "SphereAdam",
    "UpdateRule",
    "lr_factor",
]
