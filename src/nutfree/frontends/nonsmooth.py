"""Non-smooth terms of a NumPyro model: declared in it, or found at its sites."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from nutfree.errors import InvalidData
from nutfree.frontends import sites
from nutfree.numerics.proximal import (
    GroupNorm,
    Hinge,
    LaplaceTerm,
    MaxNorm,
    NuclearNorm,
    OwnTerm,
    differences,
)
from nutfree.target import At, NonSmooth

#: Norms that a term may be called by: the term of a scale, and how many axes of x it
#: has one scale for.
NORMS: dict[str, tuple[Callable, int]] = {
    "l1": (lambda scale: LaplaceTerm(0.0, scale), 0),
    "group": (GroupNorm, 1),
    "max": (MaxNorm, 1),
    "nuclear": (NuclearNorm, 2),
    "tv": (GroupNorm, 1),
}


class Declared(dist.Unit):
    """The factor exp(-g(x)), which knows its g and its x."""

    def __init__(self, term, x, *, validate_args=None):
        self.term, self.x = term, x
        super().__init__(-term.value(x))


def nonsmooth(
    name: str,
    x: Any,
    scale: Any = 1.0,
    *,
    norm: str | NonSmooth | Callable = "l1",
    prox: Callable | None = None,
) -> None:
    """Declare in a NumPyro model that its log density has the term -g(x).

    Under NUTS it is a `numpyro.factor`, and nothing else. A kernel of the Bregman
    family knows it for what it is, and does not differentiate it at its kinks. Factors
    have no normaliser: where `scale` is unknown, its power belongs into a
    `numpyro.factor` of its own.

    Args:
        name: of the term, like that of a site.
        x: an array computed from the model's sites, linear in them at best.
        scale: b in g(x) = norm(x) / b: a number, or an array of one for each norm.
        norm: "l1", the sum of |x|; "group", that of the Euclidean norms of the rows of
            the last axis; "max", that of their largest |x|; "nuclear", that of the
            singular values of the matrices of the last two axes; "tv", the total
            variation, the sum of |x[i + 1] - x[i]| of a vector, and of the norms of
            the gradients at all points of an array of more axes; one of
            `nutfree.terms`; or g itself, a function of x.
        prox: with a function as `norm`, its proximal operator `prox(x, step)`,
            argmin_y g(y) + |y - x|^2 / (2 step).

    Raises:
        InvalidData: for a norm that is none of these, or shapes that do not match.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def denoise(y, scale=0.1):
        ...     x = numpyro.sample("x", dist.Normal(0, 10).expand(y.shape).to_event(1))
        ...     nonsmooth("tv", x, scale, norm="tv")
        ...     numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)
    """
    x = jnp.asarray(x)
    term: Any = norm
    if isinstance(norm, str):
        term, x = _named(name, x, scale, norm)
    elif not hasattr(norm, "value") and callable(norm):
        if not callable(prox):
            raise InvalidData(
                f"The term '{name}' has a function as its norm, and no 'prox'. Pass "
                "prox=..., a function (x, step) -> argmin_y g(y) + |y - x|^2 / (2 step)"
                ", or one of nutfree.terms as the norm."
            )
        term = OwnTerm(norm, prox)
    missing = [m for m in ("value", "prox") if not callable(getattr(term, m, None))]
    if missing:
        raise InvalidData(
            f"The term '{name}' has a norm without '{missing[0]}'. Pass {listed()}, "
            "or an object with 'value(x)', which is g(x), and 'prox(x, step)'."
        )
    value = jax.eval_shape(term.value, x)
    if value.shape != ():
        raise InvalidData(
            f"The term '{name}' has a value of shape {value.shape} at x of shape "
            f"{x.shape}. Let its 'value' return the sum, a number."
        )
    fn = Declared(term, x)
    numpyro.sample(name, fn, obs=fn.sample(None), infer={"is_auxiliary": True})


def _named(name: str, x: jax.Array, scale: Any, norm: str) -> tuple[Any, jax.Array]:
    """The term of a norm that is called by its name, and its argument."""
    if norm not in NORMS:
        raise InvalidData(
            f"The term '{name}' has the norm {norm!r}, which is not known. Write one "
            f"of {listed()}, or pass an object with 'value' and 'prox'."
        )
    make, num_axes = NORMS[norm]
    least = 1 if norm == "tv" else num_axes
    if x.ndim < least:
        raise InvalidData(
            f"The term '{name}' has the norm {norm!r} of an array of shape {x.shape}. "
            f"Pass one of at least {least} axes."
        )
    if norm == "tv":
        one, x = x.ndim == 1, differences(x)
        make, num_axes = NORMS["l1" if one else "group"]
    wanted = x.shape[: x.ndim - num_axes]
    try:
        fits = np.broadcast_shapes(jnp.shape(scale), wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise InvalidData(
            f"The term '{name}' has a scale of shape {jnp.shape(scale)} for norms "
            f"of shape {wanted}. Pass a number, or one for each of them."
        )
    return make(scale), x


def listed() -> str:
    """The norms that have names."""
    return ", ".join(repr(name) for name in NORMS)


def part_of(site) -> NonSmooth | At | None:
    """The non-smooth term of a site of a trace; None where it is smooth or not known.

    A term of a latent site is one of its value; that of an observed site, or of a
    declaration, comes with its argument.
    """
    fn, weight = site["fn"], site["scale"]
    if isinstance(fn, Declared):
        return At(fn.term, fn.x) if weight is None else None
    if weight is not None:
        weight = _broadcast(weight, fn.event_dim)
    while isinstance(
        fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent
    ):
        if isinstance(fn, dist.MaskedDistribution):
            mask = _broadcast(jnp.asarray(fn._mask, float), fn.event_dim)
            weight = mask if weight is None else weight * mask
        fn = fn.base_dist
    if isinstance(fn, dist.AsymmetricLaplaceQuantile):
        fn = fn._ald
    if isinstance(fn, dist.Laplace):
        below = above = 1 / fn.scale
    elif isinstance(fn, dist.AsymmetricLaplace):
        below, above = 1 / fn.left_scale, 1 / fn.right_scale
    else:
        return None
    if site["is_observed"]:
        slopes = (below, above) if weight is None else (weight * below, weight * above)
        return At(Hinge(0.0, *slopes), site["value"] - fn.loc)
    if not sites.is_real(fn.support):
        return None
    if weight is None and isinstance(fn, dist.Laplace):
        return LaplaceTerm(fn.loc, fn.scale)
    weight = 1.0 if weight is None else weight
    return Hinge(fn.loc, weight * below, weight * above)


def _broadcast(weight, event_dim: int):
    """A weight of each event as one of each of its elements."""
    return jnp.reshape(weight, jnp.shape(weight) + (1,) * event_dim)
