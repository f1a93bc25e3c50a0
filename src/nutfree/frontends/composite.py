"""A posterior written once, as a smooth part and non-smooth terms."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from nutfree.errors import InvalidData
from nutfree.frontends.shares import log_det_of_sticks
from nutfree.frontends.sites import is_real, is_simplex
from nutfree.frontends.splits import check_split
from nutfree.target import Split, Target

#: The name of the only site of a posterior whose values are an array.
ONLY = "x"


def composite(
    smooth: Callable[[Any], jax.Array],
    terms: Any,
    start: Any,
    *,
    supports: Mapping[str, Any] | None = None,
) -> Target:
    """Build the target whose log density is smooth(x) - sum of the terms.

    The density is written once: the target that a kernel samples, and the split that a
    kernel of the Bregman family asks for, are made of the same two functions.

    Args:
        smooth: the smooth part of the log density, `x -> a number`, of the values x on
            their own supports and without any Jacobian; x is like `start`.
        terms: the non-smooth terms: a dict from site to one of `nutfree.terms`, or any
            object with `value(x)` and `prox(x, step)`; or, where they depend on other
            sites or are of something computed, a function from x to such a dict, which
            gives any other name an `At(term, argument)`. For an x that is an array, a
            term will do.
        start: values at which the log density is finite: a dict of arrays by site, or
            one array.
        supports: by site, its NumPyro constraint; those left out are real.

    Returns:
        A `Target` whose `position` is `start` on the sampling space, with its `split`.

    Raises:
        InvalidData: for a start outside of a support or of the domain of a term; for
            terms of no site, without `value` or `prox`, with ones of a wrong shape, or
            that are not convex; for a prox that is not firmly non-expansive.

    Example:
        >>> import jax.numpy as jnp, nutfree as nf
        >>> lasso = nf.composite(
        ...     lambda x: -0.5 * jnp.sum((x - 1.0) ** 2),
        ...     nf.terms.LaplaceTerm(0.0, 0.5),
        ...     jnp.zeros(3),
        ... )
        >>> kernel = nf.kernel("marbmumla", lasso)
    """
    named = isinstance(start, Mapping)
    given = start if named else {ONLY: start}
    values = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in given.items()}
    real = {
        k: constraints.independent(constraints.real, jnp.ndim(v))
        for k, v in values.items()
    }
    constraint_of = real | dict(supports or {})
    _check_supports(constraint_of, values)
    bijection = {k: biject_to(c) for k, c in constraint_of.items()}
    position = {k: bijection[k].inv(v) for k, v in values.items()}
    position = position if named else position[ONLY]

    def constrain(z):
        z = z if named else {ONLY: z}
        return {k: bijection[k](v) for k, v in z.items()}

    def unconstrain(x):
        z = {k: bijection[k].inv(x[k]) for k in bijection}
        return z if named else z[ONLY]

    def log_det_of(name, z):
        if is_simplex(constraint_of[name]):
            return log_det_of_sticks(z)
        return bijection[name].log_abs_det_jacobian(z, bijection[name](z))

    def log_det(z):
        z = z if named else {ONLY: z}
        steps = (jnp.sum(log_det_of(k, v)) for k, v in z.items())
        return sum(steps, jnp.asarray(0.0))

    def parts_of(x):
        given = x if named else x[ONLY]
        found = terms
        if callable(terms) and not hasattr(terms, "prox"):
            found = terms(given)
        if not named and not isinstance(found, Mapping):
            found = {ONLY: found}
        return smooth(given), found

    split = Split(parts_of, constraint_of, constrain, unconstrain, log_det)

    def logdensity(z):
        value, parts = split.parts(split.constrain(z))
        g = sum(part.term.value(part.x) for part in parts.values())
        return value + split.log_det(z) - g

    def to_user(z):
        return constrain(z) if named else constrain(z)[ONLY]

    def from_user(x):
        return unconstrain(x if named else {ONLY: x})

    target = Target(
        logdensity, position, split=split, constrain=to_user, unconstrain=from_user
    )
    check_split(target, position)
    _check_start(target, position)
    return target


def _check_supports(supports: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for name, constraint in supports.items():
        if name not in values:
            listed = ", ".join(values)
            raise InvalidData(
                f"supports has '{name}', which is no site: start has {listed}. Give "
                "every site a value in start."
            )
        if not is_real(constraint) and not np.all(constraint(values[name])):
            raise InvalidData(
                f"The start of '{name}' is outside of its support, {constraint}. Pass "
                "a value inside."
            )


def _check_start(target: Target, position: Any) -> None:
    assert target.split is not None
    smooth, parts = target.split.parts(target.split.constrain(position))
    finite = {name: part.term.value(part.x) for name, part in parts.items()}
    for name, value in finite.items():
        if not np.isfinite(value):
            raise InvalidData(
                f"The start is outside of the domain of the term of '{name}', where it "
                f"is {float(value)}. Pass a start at which every term is finite."
            )
    if not jnp.isfinite(jnp.sum(jax.lax.stop_gradient(smooth))):
        raise InvalidData(
            f"The smooth part is {float(smooth)} at the start. Pass a start at which "
            "it is finite."
        )
