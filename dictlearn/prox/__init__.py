"""The table of sparsities: proximal operators and the penalties they belong to."""

from dictlearn.prox.convex import Relu, Soft
from dictlearn.prox.sparse import TopK
from dictlearn.prox.table import Moment, Prox

__all__ = ["Moment", "Prox", "Relu", "Soft", "TopK"]
