"""FSGLD: federated Langevin dynamics, for data that may not leave their S owners.

Reference: El Mekkaoui, Mesquita, Blomstedt and Kaski, arXiv 2004.11231. An owner s,
visited with probability f_s, makes K steps and hands x on:

    x' = x + (h/2) C v_s(x) + sqrt(h C) xi,
    v_s = (1/f_s) (grad log p_s - grad log q_s) + grad log q,     q = prod_s q_s,

where p_s is the owner's likelihood and an even share of the prior, and the conducive
gradient, grad log q - (1/f_s) grad log q_s, has mean zero over s. Here q_s is a Laplace
approximation of p_s at the pooled mode, fitted once; the paper keeps the prior apart,
which for a Gaussian prior or f_s = 1/S is the same, and has C = 1.
Bias of order h, see `family`: V is zero for Gaussian owners with all of their rows.
"""

from dataclasses import dataclass

from nutfree.kernels.federated.family import (
    max_inflation_option,
    num_rounds_option,
    share_exact_option,
    step_size_option,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme
from nutfree.kernels.federated.spec import federated_spec
from nutfree.registry import option


@dataclass(frozen=True)
class Options:
    num_local_steps: int = option(10, "steps K that an owner makes per visit", ge=1)
    batch_size: int | None = option(
        None, "rows per gradient of a visited owner; None is all of its rows", ge=1
    )
    visits: str = option(
        "size",
        "how often an owner is visited: by its number of rows, or evenly",
        choices=("size", "uniform"),
    )
    share_exact: bool = share_exact_option()
    max_inflation: float = max_inflation_option()
    step_size: float | None = step_size_option()
    num_rounds: int | None = num_rounds_option()


def scheme(options: Options, owners: Owners) -> Scheme:
    return scheme_of(options, owners, conducive=True)


def scheme_of(options: Options, owners: Owners, conducive: bool) -> Scheme:
    """One owner a round, drawn by its weight; the noise is its own."""
    even = (1 / owners.count,) * owners.count
    weights = owners.shares if options.visits == "size" else even
    return Scheme(
        1, True, weights, options.num_local_steps, 0.0, conducive, options.batch_size
    )


SPEC = federated_spec(
    scheme,
    Options,
    name="fsgld",
    summary="federated Langevin with conducive gradients from owners' surrogates",
    paper="arXiv 2004.11231",
    recommended=True,
)
