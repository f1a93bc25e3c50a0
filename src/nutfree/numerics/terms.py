"""The non-smooth terms that a user can name: `nutfree.terms`.

Norms, sets, and `OwnTerm` for any other convex function with a proximal operator; `At`
gives a term another argument than a site's value.
"""

from nutfree.numerics.bodies import Box, HalfSpace, Simplex
from nutfree.numerics.proximal import (
    GroupNorm,
    Hinge,
    LaplaceTerm,
    MaxNorm,
    NuclearNorm,
    OwnTerm,
    differences,
)
from nutfree.target import At

__all__ = [
    "At",
    "Box",
    "GroupNorm",
    "HalfSpace",
    "Hinge",
    "LaplaceTerm",
    "MaxNorm",
    "NuclearNorm",
    "OwnTerm",
    "Simplex",
    "differences",
]
