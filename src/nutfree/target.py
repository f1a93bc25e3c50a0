"""`Target`: what a kernel may ask of a posterior.

A target is callable, `target(position) -> log density`, so it can be handed to any
BlackJAX algorithm as its `logdensity_fn`. Everything else on it is optional, and a
kernel says in its `KernelSpec.needs` what it cannot do without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nutfree.errors import MissingCapability

Position = Any  # an arbitrary pytree of floating-point arrays
LogDensity = Callable[[Position], jax.Array]

#: The optional parts of a target, in the words of `KernelSpec.needs`.
PARTS = ("prior", "minibatch", "split", "shards")


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior on the sampling space.

    `sample(rng_key)` draws one position; `logdensity(position)` is its log density,
    Jacobian included.
    """

    sample: Callable[[jax.Array], Position]
    logdensity: LogDensity


@dataclass(frozen=True, eq=False)
class InOrder:
    """The rows as a pass over all of them asks for them, where that is another way.

    `terms(position, indices)` is that of `Minibatch`, for `block_size` indices that
    follow one another from a multiple of `block_size` on; beyond the last row, it
    stands for those that are missing.
    """

    block_size: int
    terms: Callable[[Position, jax.Array], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True, eq=False)
class Minibatch:
    """A log density whose data rows can be asked for one by one.

    `terms(position, indices)` returns `(outside, rows)`: the part of the log density
    that no row owns (prior, Jacobian, observations outside of the plate), a scalar,
    and the log likelihood of each row in `indices`, of the same shape `(n,)`. Where
    the rows are on disk, an index stands for whatever row is in memory in its place,
    uniformly distributed if it is; a pass over all rows then goes by `in_order`.
    """

    num_data: int
    terms: Callable[[Position, jax.Array], tuple[jax.Array, jax.Array]]
    plate: str = "data"
    in_order: InOrder | None = None

    def logdensity(self, position: Position, indices: jax.Array) -> jax.Array:
        """Unbiased estimate of the full log density from rows drawn uniformly.

        Args:
            position: a position on the sampling space.
            indices: row numbers, shape `(n,)`, drawn with or without replacement.

        Returns:
            outside + (num_data / n) sum(rows), a scalar.
        """
        outside, rows = self.terms(position, indices)
        return outside + (self.num_data / indices.shape[0]) * jnp.sum(rows)


class NonSmooth(Protocol):
    """A convex term g of the potential, minus log density, on one site's value.

    A norm may also have `huber(x, width)`, itself with a parabola within `width` of its
    kink, in closed form; `width(step)`, that of its Moreau envelope; and `gap(x, step)`
    by which that envelope lies below `huber`. One that is piecewise linear in every
    element may have `kinks(x)`: the signed distance of each element to its kink, and
    the slopes below and above it.
    """

    def value(self, x: jax.Array) -> jax.Array:
        """g(x), a scalar."""

    def prox(self, x: jax.Array, step: jax.Array) -> jax.Array:
        """argmin_y g(y) + |y - x|^2 / (2 step), of the shape of `x`."""


class At(NamedTuple):
    """A non-smooth term of something else than a site's value.

    Args:
        term: a `NonSmooth`.
        x: its argument, an array computed from the sites' values.
    """

    term: Any
    x: jax.Array


@dataclass(frozen=True, eq=False)
class Split:
    """The potential as a smooth and a non-smooth part, on the sites' own values.

    The values x are the model's constrained site values, a dict; `supports` has each
    site's NumPyro constraint. `terms(x)` returns `(smooth, nonsmooth)`: the smooth
    part's log density at x without any Jacobian, and a dict from site name to its
    `NonSmooth` term, whose parameters may depend on the other sites; any other name has
    an `At`, a term with its argument. `constrain` and `unconstrain` go between x and
    the sampling space, and `log_det(z)` is the log absolute Jacobian determinant of
    `constrain` at z.
    """

    terms: Callable[[Mapping[str, jax.Array]], tuple[jax.Array, Mapping[str, Any]]]
    supports: Mapping[str, Any]
    constrain: Callable[[Position], dict[str, jax.Array]]
    unconstrain: Callable[[Mapping[str, jax.Array]], Position]
    log_det: LogDensity

    def parts(self, x: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, At]]:
        """`terms(x)`, every term with its argument."""
        smooth, nonsmooth = self.terms(x)
        return smooth, {
            name: term if isinstance(term, At) else At(term, x[name])
            for name, term in nonsmooth.items()
        }


@dataclass(frozen=True, eq=False)
class OwnersAlike:
    """What owners have in common whose log densities are one function of their data.

    Args:
        data: a pytree with a leading axis of owners; rows that an owner does not have
            stand for any.
        logdensity: `(position, the data of one owner) -> log density`.
        terms: `(position, indices, the data of one owner)`, as that of `Minibatch`; or
            None where rows cannot be asked for one by one.
        num_data: rows of each owner, shape `(S,)`; or None without `terms`.
        capacity: rows for which there is room, at least those of every owner.
    """

    data: Any
    logdensity: Callable[[Position, Any], jax.Array]
    terms: Callable[[Position, jax.Array, Any], tuple[jax.Array, jax.Array]] | None
    num_data: jax.Array | None
    capacity: int


class Shards(tuple):
    """One target per data owner; where owners are alike, `alike` says how.

    A program that goes from owner to owner by `alike` does not grow with their number.
    """

    alike: OwnersAlike | None = None

    def __new__(cls, targets, alike: OwnersAlike | None = None) -> "Shards":
        shards = super().__new__(cls, targets)
        shards.alike = alike
        return shards


def _identity(x):
    return x


@dataclass(frozen=True, eq=False)
class Target:
    """A posterior, and the parts of it that a kernel may ask for.

    Args:
        logdensity_fn: log density on the sampling space, up to a constant, Jacobian
            included.
        position: an example position with a finite log density, or None.
        prior, minibatch, split: the optional parts, or None where absent.
        shards: one target per data owner, the prior split evenly among them, so that
            their log densities sum to this target's, a tuple or `Shards`; or None.
        constrain: sampling space to the user's parameters, deterministic sites
            included.
        unconstrain: the user's parameters to the sampling space.
        advice: for a part that is absent, what to write so that it is there.
    """

    logdensity_fn: LogDensity
    position: Position = None
    prior: Prior | None = None
    minibatch: Minibatch | None = None
    split: Split | None = None
    shards: "tuple[Target, ...] | None" = None
    constrain: Callable[[Position], Any] = _identity
    unconstrain: Callable[[Any], Position] = _identity
    advice: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, position: Position) -> jax.Array:
        return self.logdensity_fn(position)


_ADVICE = {
    "prior": "build the kernel from a NumPyro model whose latent sites have proper "
    "priors, or pass Target(logdensity_fn, prior=Prior(sample, logdensity)).",
    "minibatch": "build the kernel from a NumPyro model with "
    '`with numpyro.plate("data", N): y = numpyro.subsample(y, event_dim=0)`, or pass '
    "Target(logdensity_fn, "
    "minibatch=Minibatch(num_data, terms)).",
    "split": "build the kernel from a NumPyro model with a Laplace site or a bounded "
    "support, or pass Target(logdensity_fn, split=Split(...)).",
    "shards": "write the model of one owner's data, and build the kernel from "
    "nutfree.federated(model).",
}


def as_target(logdensity_fn: LogDensity | Target, **parts: Any) -> Target:
    """Turn a log-density function into a `Target`; a `Target` is returned as it is.

    Args:
        logdensity_fn: `position -> log density`, or a `Target`.
        **parts: optional parts of `Target`.

    Example:
        >>> target = as_target(lambda x: -0.5 * x**2)
        >>> float(target(2.0))
        -2.0
    """
    if isinstance(logdensity_fn, Target):
        return logdensity_fn
    return Target(logdensity_fn, **parts)


def require(target: Target, needs: tuple[str, ...], kernel: str) -> None:
    """Raise `MissingCapability` for the first part of `needs` that is absent."""
    for part in needs:
        if getattr(target, part) is None:
            advice = target.advice.get(part, _ADVICE[part])
            raise MissingCapability(
                f"The kernel '{kernel}' needs a target with '{part}', and this one has "
                f"none. To add it: {advice}"
            )


def has_gradient(target: Target) -> bool:
    """Whether JAX can differentiate the log density, at `target.position`.

    It cannot through a `pure_callback` or a `while_loop`.
    """
    try:
        jax.eval_shape(jax.grad(target.logdensity_fn), target.position)
    except ValueError:
        return False
    return True
