"""Which kernels suit a model, before any of them has run.

A model's own structure says most: its data plate, supports, non-smooth priors, owners.
A few cheap probes add whether a gradient exists and whether optimisations from several
starts end in separate modes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree import registry
from nutfree.diagnostics.modes import squared_distances
from nutfree.facts import Facts
from nutfree.numerics.programs import in_full_precision
from nutfree.report.judge import has_gradient
from nutfree.target import Target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["probe", "recommend"]

#: A probe may evaluate this many rows times dimensions times gradients.
PROBE_BUDGET = 2e9
NUM_STARTS, NUM_STEPS = 24, 60


def probe(target: Target, *, seed: int = 0) -> Facts:
    """Look at a target's parts, and search for separate optima where that is cheap."""
    dim = ravel_pytree(target.position)[0].size
    num_data = target.minibatch.num_data if target.minibatch else None
    gradient = has_gradient(target)
    non_smooth: tuple[str, ...] = ()
    bounded: tuple[str, ...] = ()
    if target.split is not None:
        values = target.split.constrain(target.position)
        non_smooth = tuple(target.split.terms(values)[1])
        bounded = tuple(k for k, c in target.split.supports.items() if not _is_real(c))
    cost = (num_data or 1) * dim * NUM_STARTS * NUM_STEPS
    modes = None
    if gradient and cost <= PROBE_BUDGET:
        modes = count_modes(target, seed=seed)
    return Facts(
        dim=dim,
        num_data=num_data,
        num_owners=len(target.shards or ()),
        non_smooth=non_smooth,
        bounded=bounded,
        has_gradient=gradient,
        num_modes=modes,
    )


def _is_real(support: Any) -> bool:
    support = getattr(support, "base_constraint", support)
    return type(support).__name__ in {"_Real", "_RealVector"}


def count_modes(target: Target, *, seed: int = 0) -> int:
    """Number of distinct optima of comparable density on the sampling space.

    L-BFGS runs from prior draws (around the starting point without a prior). Optima
    closer than three posterior standard deviations, by the curvature at the better one,
    are one mode; those more than ten below the best log density are left out. Optima
    that were not reached (a funnel has none) do not count.
    """
    import optax

    keys = jax.random.split(jax.random.key(seed), NUM_STARTS)
    center, unravel = ravel_pytree(target.position)
    if target.prior is not None:
        draw = target.prior.sample
        starts = jax.vmap(lambda key: ravel_pytree(draw(key))[0])(keys)
    else:
        starts = center + jax.vmap(lambda k: 2.0 * jax.random.normal(k, center.shape))(
            keys
        )

    def loss(x: jax.Array) -> jax.Array:
        return -target(unravel(x))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def descend(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(carry, _):
            x, state = carry
            value, grad = value_and_grad(x, state=state)
            update, state = solver.update(
                grad, state, x, value=value, grad=grad, value_fn=loss
            )
            return (optax.apply_updates(x, update), state), None

        (x, _), _ = jax.lax.scan(step, (x, solver.init(x)), length=NUM_STEPS)
        value, grad = jax.value_and_grad(loss)(x)
        return x, value, grad

    found = jax.jit(lambda xs: jax.lax.map(descend, xs))(starts)
    optima, values, grads = (np.asarray(part, dtype=np.float64) for part in found)
    curvature = _curvature(loss, optima)
    return _distinct(optima, values, grads, curvature)


def _curvature(loss: Callable, optima: NDArray) -> NDArray:
    """Diagonal of the Hessian at each optimum, by central differences of gradients."""
    gradient = jax.jit(jax.vmap(jax.grad(loss)))
    dim = optima.shape[1]
    probes = (
        np.eye(dim)
        if dim <= 64
        else np.random.default_rng(0).choice([-1.0, 1.0], size=(16, dim))
    )
    total = np.zeros_like(optima)
    for direction in probes:
        move = 1e-2 * direction
        up = np.asarray(gradient(jnp.asarray(optima + move, jnp.float32)), float)
        down = np.asarray(gradient(jnp.asarray(optima - move, jnp.float32)), float)
        total += direction * (up - down) / 2e-2
    return total / (1 if dim <= 64 else len(probes))


def _distinct(
    optima: NDArray, values: NDArray, grads: NDArray, curvature: NDArray
) -> int:
    finite = np.isfinite(values) & np.isfinite(optima).all(1)
    with np.errstate(all="ignore"):
        # how much a Newton step would still gain; large where there is no optimum
        gain = (grads**2 / np.maximum(curvature, 1e-3)).sum(1)
    finite &= np.isfinite(gain) & (gain < 0.5) & (curvature > 0).all(1)
    if not finite.any():
        return 1
    best = values[finite].min()
    kept: list[int] = []
    for i in np.argsort(np.where(finite, values, np.inf)):
        if not finite[i] or values[i] > best + 10.0:
            break
        apart = [
            squared_distances(
                optima[i : i + 1] * np.sqrt(curvature[j]),
                optima[j : j + 1] * np.sqrt(curvature[j]),
            ).item()
            > 9.0 + optima.shape[1] ** 0.5
            for j in kept
        ]
        if all(apart):
            kept.append(int(i))
    return max(len(kept), 1)


@in_full_precision
def recommend(
    model: Callable, *args: Any, seed: int = 0, **kwargs: Any
) -> "pd.DataFrame":
    """Kernels for a model, most promising first, each with the reason.

    Nothing is sampled, so this is advice: `compare` measures. Where nothing speaks
    against NUTS, it comes first.

    Args:
        model: a NumPyro model.
        *args, **kwargs: its arguments.
        seed: of the probes' starting points.

    Returns:
        A data frame with columns kernel, fits, why, needs_missing. A kernel that does
        not fit lacks a part of the posterior; needs_missing says what would add it.

    Raises:
        UnsupportedModel, InvalidData, NoFiniteStart: see `nutfree.errors`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model():
        ...     numpyro.sample("x", dist.Normal())
        >>> recommend(model)["kernel"][0]
        'nuts'
    """
    import pandas as pd

    from nutfree.frontends.numpyro import model_target

    target = model_target(model, args, kwargs)
    facts = probe(target, seed=seed)
    rows = []
    for order, spec in enumerate(registry.specs().values()):
        missing = [part for part in spec.needs if getattr(target, part) is None]
        fits = not missing and (facts.has_gradient or not spec.uses_gradient)
        score, why = spec.suits(facts)
        lacks = "; ".join(f"{p}: {target.advice.get(p, 'absent')}" for p in missing)
        if not facts.has_gradient and spec.uses_gradient:
            why = "needs a gradient, and this log density has none"
        rank = (not fits, -score, not spec.recommended, order)
        rows.append((rank, spec.name, fits, why, lacks))
    rows.sort(key=lambda row: row[0])
    columns = ["kernel", "fits", "why", "needs_missing"]
    return pd.DataFrame([row[1:] for row in rows], columns=columns)
