"""The denoiser that knows the modes: one is drawn, and only its own mean estimated.

The pilot's Laplace approximations q_k have weights w_k and, with
C_k = (Sigma_k^-1 + s^-2)^-1, means m_k = c_k + C_k (m - c_k)/s^2 given the observation
m. A mode k and y are drawn given m, and Langevin steps follow on the tilted density,

    y' = y + (h/2) C_k b(y) + sqrt(h C_k) xi,    b = grad log pi(y) - (y - m)/s^2,
    D = sum_j w_j m_j + mean of (y + C_k b(y) - m_k).

The mean over modes is taken in closed form. Drawn modes alone would be right in the
mean, but a path that is pushed by their noise is hotter than its law, and pulls the
weights of modes together: .77 for .8. Where pi is the mixture of the q_k, the estimate
has no variance but where modes overlap. One gradient a step.

Bias: a step that leaves its mode for another is not seen, and so the weights are those
of the q_k until moves on pi itself correct them.
"""

import jax
import jax.numpy as jnp

from nutfree.modes.mixture import (
    Modes,
    choose,
    in_widths,
    into_axes,
    log_shares,
    mode_at,
    out_of_axes,
)
from nutfree.numerics.evaluation import counted_value_and_grad
from nutfree.paths.denoisers import Denoiser, Estimate
from nutfree.paths.slow_fast import REACH
from nutfree.target import LogDensity


def by_modes(
    logdensity: LogDensity, modes: Modes, *, num_steps: int, step_size: float
) -> Denoiser:
    """Return the denoiser of this module; it carries the last y.

    Args:
        logdensity: of a vector `(d,)`, in units of about one posterior sd.
        modes: the q_k, in the same units.
        num_steps: Langevin steps of each estimate; the later half is averaged.
        step_size: h; stable below four, where the widths are right.
    """
    evaluate = counted_value_and_grad(logdensity)
    num_discarded = num_steps // 2

    def step(rng_key, y, m, s, count):
        del y  # every estimate starts again
        mode_key, start_key, rng_key = jax.random.split(rng_key, 3)
        shares = log_shares(modes, m, s)
        k = choose(mode_key, shares)
        mode, means = mode_at(modes, k), _conditional_means(modes, m, s)
        correction = jax.nn.softmax(shares) @ means - means[k]
        variance = 1.0 / (mode.width**-2.0 + s**-2.0)

        def noise(key):
            xi = jax.random.normal(key, m.shape, m.dtype)
            # turned, so that the order and the signs of the axes do not matter
            turned = jnp.sqrt(variance) * into_axes(mode.axes, xi)
            return out_of_axes(mode.axes, turned)

        def add_step(i, carry):
            y, total, count = carry
            value, grad, count = evaluate(y, count)
            finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
            force = jnp.where(finite, grad, -y) - (y - m) / s**2
            drift = out_of_axes(mode.axes, variance * into_axes(mode.axes, force))
            drift = jnp.clip(drift, -REACH, REACH)
            late = i >= num_discarded
            total = total + jnp.where(late, y + drift, 0.0)
            moved = y + 0.5 * step_size * drift
            moved = moved + step_size**0.5 * noise(jax.random.fold_in(rng_key, i))
            return moved, total, count

        start = (means[k] + noise(start_key), jnp.zeros_like(m), count)
        y, total, count = jax.lax.fori_loop(0, num_steps, add_step, start)
        mean = total / (num_steps - num_discarded) + correction
        return Estimate(mean, mean), y, count

    return Denoiser(lambda m: m, step)


def _conditional_means(modes: Modes, m: jax.Array, s) -> jax.Array:
    """Each mode's mean of X given the observation X + s z = m, `(modes, d)`."""
    share = modes.width**2 / (modes.width**2 + s**2)
    along = share * modes.width * in_widths(modes, m)
    return modes.center + jax.vmap(out_of_axes)(modes.axes, along)
