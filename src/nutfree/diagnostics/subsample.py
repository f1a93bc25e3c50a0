"""Scores and a log density of a posterior over many rows, from some of the rows.

Around a centre c, with G the gradient of all rows' log likelihood there,

    scores      grad outside(x) + G + (N/n) sum_batch (grad l_i(x) - grad l_i(c)),
                unbiased, from a batch of its own for each draw
    surrogate   outside(x) + (x - c)'(G - (N/m) sum_sub grad l_i(c))
                + (N/m) sum_sub (l_i(x) - l_i(c)),
                one subsample's log density, with the full data's gradient at c

The surrogate is a density that an exact kernel can walk on. On a Gaussian posterior its
mean is right, and its covariance up to errors of a share (d/m)^(1/2) or so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike, NDArray

from nutfree.minibatch.gradients import (
    Control,
    control_at,
    control_variate,
    flat_minibatch,
)
from nutfree.minibatch.sampling import draw_rows
from nutfree.numerics.programs import in_full_precision, jitted
from nutfree.target import Minibatch, Target

#: Rows of a score's batch, and of the subsample; from so many rows on, a comparison
#: judges by these in place of all rows.
SCORE_ROWS, SUBSAMPLE_ROWS = 4096, 2**14
MANY_ROWS = 4 * SUBSAMPLE_ROWS


def _at_centre(
    minibatch: Minibatch, x: NDArray, dtype, centre: ArrayLike | None
) -> Control:
    """A control variate, by default at the draws' mean."""
    if centre is None:
        centre = x[np.isfinite(x).all(1)].mean(0)
    start = jnp.asarray(centre, dtype)
    return jitted(lambda c: control_at(minibatch, c, 0.0)[0])(start)


@in_full_precision
def minibatch_scores(
    draws: ArrayLike,
    target: Target,
    *,
    batch_size: int = SCORE_ROWS,
    centre: ArrayLike | None = None,
    seed: int = 0,
) -> NDArray:
    """Unbiased estimates of the score at each draw, with errors that are independent.

    Costs one pass over all rows, and 2 n/N of one a draw.

    Args:
        draws: raveled positions on the sampling space, `(n, d)`.
        target: with `minibatch` and `position`.
        batch_size: rows drawn for each score; where it is that of all rows or more,
            the scores are exact.
        centre: of the control variate, `(d,)`; the draws' mean where None.
        seed: of the batches.

    Returns:
        Array `(n, d)`, for `kernel_stein_discrepancy(..., noisy=True)`.
    """
    assert target.minibatch is not None
    start, unravel = ravel_pytree(target.position)
    minibatch = flat_minibatch(target.minibatch, unravel)
    x = np.asarray(draws, np.float64)
    control = _at_centre(minibatch, x, start.dtype, centre)

    def score(key, x):
        rows = draw_rows(key, minibatch.num_data, batch_size)
        return control_variate(minibatch, rows, x, control, 0.0)[0]

    keys = jax.random.split(jax.random.key(seed), len(x))
    run = jitted(lambda keys, xs: jax.lax.map(lambda kx: score(*kx), (keys, xs)))
    return np.asarray(run(keys, jnp.asarray(x, start.dtype)), np.float64)


def surrogate(
    draws: ArrayLike,
    target: Target,
    *,
    num_rows: int = SUBSAMPLE_ROWS,
    centre: ArrayLike | None = None,
    seed: int = 0,
):
    """The log density of a subsample with the full data's gradient at a centre.

    Args:
        draws: raveled positions, `(n, d)`, whose mean is the centre where that is None.
        target: with `minibatch` and `position`.
        num_rows: m, the subsample's rows.
        seed: of the subsample.

    Returns:
        `x -> log density`, of a vector, up to a constant. It costs m/N passes.
    """
    assert target.minibatch is not None
    start, unravel = ravel_pytree(target.position)
    minibatch = flat_minibatch(target.minibatch, unravel)
    x = np.asarray(draws, np.float64)
    control = _at_centre(minibatch, x, start.dtype, centre)
    rows = draw_rows(jax.random.key(seed), minibatch.num_data, num_rows, False)
    scale = minibatch.num_data / rows.indices.shape[0]

    def terms(x):
        return minibatch.terms(x, rows.indices)[1]

    @jitted
    def at_centre(c):
        return terms(c), scale * jax.grad(lambda c: jnp.sum(terms(c)))(c)

    reference, own = at_centre(control.centre)
    correction = control.rows_gradient - own

    def logdensity(x):
        outside, at_x = minibatch.terms(x, rows.indices)
        moved = scale * jnp.sum(at_x - reference)
        return outside + moved + (x - control.centre) @ correction

    return logdensity
