"""Checks of a `Split` that was written by hand, before a kernel relies on it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidData
from nutfree.target import At, Position, Target

#: Points at which a split is compared with its density.
NUM_POINTS = 4
#: Pairs of points at which a term and its prox are tried.
NUM_PAIRS = 32


def check_split(target: Target, position: Position) -> None:
    """Refuse a split that is not one of its target's density.

    Within a trace, where there are no numbers to compare, nothing is refused.

    Args:
        target: with a split.
        position: where the log density is finite.

    Raises:
        InvalidData: for terms that are no dictionary, of no site, without `value` or
            `prox` or with ones of a wrong shape; for a split that differs from the
            density by more than a constant; for a term that is not convex, or whose
            prox is not firmly non-expansive, where that shows at random points.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(position)):
        return
    split = target.split
    assert split is not None  # hosts have called `require`
    values = split.constrain(position)
    smooth, nonsmooth = split.terms(values)
    if not isinstance(nonsmooth, Mapping):
        raise InvalidData(
            f"The split's terms(x) returns a {type(nonsmooth).__name__} of terms. Let "
            "it return (smooth, {'site': term}), a dictionary by site."
        )
    if jnp.shape(smooth) != ():
        raise InvalidData(
            f"The smooth part of the split has the shape {jnp.shape(smooth)}. Let it "
            "be a number, the sum."
        )
    for name, term in nonsmooth.items():
        if isinstance(term, At):
            term, x = term
        elif name in values:
            x = values[name]
        else:
            listed = ", ".join(sorted(values))
            raise InvalidData(
                f"The split has a term of '{name}', which is no site: there are "
                f"{listed}. Name a site, or pass At(term, x) with the term's argument."
            )
        _check_term(name, term, jnp.asarray(x))
    _check_sum(target, position)


def _check_term(name: str, term, x) -> None:
    """Refuse a term that is not convex, or whose prox is not that of a convex one."""
    missing = [m for m in ("value", "prox") if not callable(getattr(term, m, None))]
    if missing:
        raise InvalidData(
            f"The term of '{name}' has no '{missing[0]}'. Give it 'value(x)', which is "
            "g(x), and 'prox(x, step)', which is argmin_y g(y) + |y - x|^2 / (2 step)."
        )
    step = jnp.asarray(0.5, x.dtype)
    shapes = jax.eval_shape(term.value, x).shape, jax.eval_shape(term.prox, x, step)
    for method, shape, wanted in (
        ("value", shapes[0], ()),
        ("prox", shapes[1].shape, x.shape),
    ):
        if shape != wanted:
            raise InvalidData(
                f"The {method} of the term of '{name}' has the shape {shape} at x of "
                f"shape {x.shape}. Let it return one of shape {wanted}."
            )

    @jax.jit
    @jax.vmap
    def measure(key):
        noise = jax.random.normal(key, (2, *x.shape), x.dtype)
        a, b = x + noise[0], x + 3 * noise[1]
        ends, middle = term.value(a) + term.value(b), term.value(0.5 * (a + b))
        moved = term.prox(a, step) - term.prox(b, step)
        bulge = 2 * middle - ends
        away = jnp.sum(moved * moved) - jnp.sum(moved * (a - b))
        return bulge, jnp.abs(middle) + jnp.abs(ends), away, jnp.sum((a - b) ** 2)

    keys = jax.random.split(jax.random.key(0), NUM_PAIRS)
    bulge, size, away, distance = map(np.asarray, measure(keys))
    if np.any(np.isfinite(size) & (bulge > 1e-4 * size)):
        raise InvalidData(
            f"The term of '{name}' is not convex: between two points it lies above its "
            "chord. Leave what is not convex in the smooth part."
        )
    if np.any(away > 1e-4 * distance):
        raise InvalidData(
            f"The prox of the term of '{name}' is not firmly non-expansive, as that of "
            "a convex term is. Let prox(x, step) return argmin_y g(y) + "
            "|y - x|^2 / (2 step)."
        )


def _check_sum(target: Target, position: Position) -> None:
    """Refuse a split that is not the density, but for a constant."""
    split = target.split
    assert split is not None
    flat, unravel = ravel_pytree(position)

    @jax.jit
    @jax.vmap
    def both(i):
        key = jax.random.fold_in(jax.random.key(0), i)
        noise = jax.random.normal(key, flat.shape, flat.dtype)
        z = unravel(flat + jnp.where(i > 0, 0.3, 0.0) * noise)
        smooth, parts = split.parts(split.constrain(z))
        g = sum(part.term.value(part.x) for part in parts.values())
        return target(z), smooth + split.log_det(z) - g, jnp.abs(smooth) + jnp.abs(g)

    density, total, size = (np.asarray(a, float) for a in both(jnp.arange(NUM_POINTS)))
    with np.errstate(invalid="ignore"):
        difference = density - total
    known = np.isfinite(difference)
    if np.sum(known) < 2:
        return
    apart = np.ptp(difference[known])
    if apart > 1e-4 * (1 + np.max(size[known])):
        raise InvalidData(
            "The split and the log density differ by more than a constant: by "
            f"{apart:.3g} between two points. Let 'terms' return the smooth part and "
            "the terms whose sum, smooth - g, is the log density, and put every term "
            "into the log density too."
        )
