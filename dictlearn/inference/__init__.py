"""Sparse inference: from hidden states to codes, exact or learned."""

from dictlearn.inference.driver import Solution, infer
from dictlearn.inference.interface import Inference
from dictlearn.inference.iterative import FistaSeed, Iterative
from dictlearn.inference.objective import duality_gap, objective, training_loss
from dictlearn.inference.solvers import Fista, Ista, Solver, State
from dictlearn.inference.spectrum import exact_largest_eigenvalue, largest_eigenvalue
from dictlearn.inference.unrolled import Unrolled

__all__ = [
    "Fista",
    "FistaSeed",
    "Inference",
    "Ista",
    "Iterative",
    "Solution",
    "Solver",
    "State",
    "Unrolled",
    "duality_gap",
    "exact_largest_eigenvalue",
    "infer",
    "largest_eigenvalue",
    "objective",
    "training_loss",
]
