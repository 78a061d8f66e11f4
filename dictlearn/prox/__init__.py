"""The table of sparsities: proximal operators and the penalties they belong to."""

from dictlearn.prox.convex import ElasticNet, Relu, SignedSoft, Soft
from dictlearn.prox.jump import Jump
from dictlearn.prox.penalty import Penalty, Priced
from dictlearn.prox.power import Power
from dictlearn.prox.sparse import BatchTopK, TopK
from dictlearn.prox.table import Moment, Prox
from dictlearn.prox.weighted import Reweighted, Weighted

__all__ = [
    "BatchTopK",
    "ElasticNet",
    "Jump",
    "Moment",
    "Penalty",
    "Power",
    "Priced",
    "Prox",
    "Relu",
    "Reweighted",
    "SignedSoft",
    "Soft",
    "TopK",
    "Weighted",
]
