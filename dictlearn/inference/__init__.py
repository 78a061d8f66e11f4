"""Sparse inference: from hidden states to codes, exact or learned."""

from dictlearn.inference.amortisation import Amortisation, amortisation
from dictlearn.inference.driver import Solution, infer
from dictlearn.inference.exchange import exchange_pursuit, price_for_exchange
from dictlearn.inference.exchange_inference import ExchangePursuit
from dictlearn.inference.gated import Gated
from dictlearn.inference.interface import Inference
from dictlearn.inference.iterative import FistaSeed, Iterative
from dictlearn.inference.objective import duality_gap, objective, objective_of, training_loss
from dictlearn.inference.pursuit import gradient_pursuit, matching_pursuit, omp
from dictlearn.inference.pursuit_encoder import PursuitEncoder
from dictlearn.inference.pursuit_inference import (
    GradientPursuit,
    MatchingPursuit,
    OrthogonalMatchingPursuit,
)
from dictlearn.inference.refit import refit
from dictlearn.inference.refitted import Refitted
from dictlearn.inference.solvers import Fista, GreedyFista, Ista, Solver, State
from dictlearn.inference.spectrum import exact_largest_eigenvalue, largest_eigenvalue
from dictlearn.inference.two_phase import TwoPhase
from dictlearn.inference.unrolled import Unrolled
from dictlearn.inference.working_set import WorkingSet, price_for_l0, solve

__all__ = [
    "Amortisation",
    "ExchangePursuit",
    "Fista",
    "FistaSeed",
    "Gated",
    "GradientPursuit",
    "GreedyFista",
    "Inference",
    "Ista",
    "Iterative",
    "MatchingPursuit",
    "OrthogonalMatchingPursuit",
    "PursuitEncoder",
    "Refitted",
    "Solution",
    "Solver",
    "State",
    "TwoPhase",
    "Unrolled",
    "WorkingSet",
    "amortisation",
    "duality_gap",
    "exact_largest_eigenvalue",
    "exchange_pursuit",
    "gradient_pursuit",
    "infer",
    "largest_eigenvalue",
    "matching_pursuit",
    "objective",
    "objective_of",
    "omp",
    "price_for_exchange",
    "price_for_l0",
    "refit",
    "solve",
    "training_loss",
]
