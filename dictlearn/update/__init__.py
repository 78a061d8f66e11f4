"""How the atoms move: update rules, their optimizers, and the schedule of their rate."""

from dictlearn.update.joint import JointOptimizer, copy_state
from dictlearn.update.mairal import BlockCoordinate, Mairal
from dictlearn.update.optimizers import DictionaryOptimizer, HessianDiagonal, SphereAdam
from dictlearn.update.phased import (
    EncoderAdam,
    FirstAdam,
    Frozen,
    Phased,
    PhasedOptimizer,
    ThenHessianDiagonal,
)
from dictlearn.update.rates import Run, auto_rate
from dictlearn.update.rules import Adam, HessianDiagonalRule, UpdateRule
from dictlearn.update.schedule import Phases, Schedule, lr_factor
from dictlearn.update.signum import Signum, SphereSignum

__all__ = [
    "Adam",
    "BlockCoordinate",
    "DictionaryOptimizer",
    "EncoderAdam",
    "FirstAdam",
    "Frozen",
    "HessianDiagonal",
    "HessianDiagonalRule",
    "JointOptimizer",
    "Mairal",
    "Phased",
    "PhasedOptimizer",
    "Phases",
    "Run",
    "Schedule",
    "Signum",
    "SphereAdam",
    "SphereSignum",
    "ThenHessianDiagonal",
    "UpdateRule",
    "auto_rate",
    "copy_state",
    "lr_factor",
]
