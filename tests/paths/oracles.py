"""What the path samplers are compared with: the exact denoiser, and a ring of modes."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.paths.denoisers import Denoiser, without_carry
from nutfree.target import Target


def gaussian_mixture_denoiser(weights, means, scales) -> Denoiser:
    """The closed form of D for a mixture of Gaussians.

    Args:
        weights: (components,).
        means: (components, d).
        scales: standard deviations, (components,).
    """
    means = jnp.asarray(means)
    log_weights = jnp.log(jnp.asarray(weights))
    variances = jnp.broadcast_to(jnp.asarray(scales)[:, None] ** 2, means.shape)

    def estimate(rng_key, m, s, count):
        del rng_key
        total = variances + s**2
        logits = log_weights - 0.5 * jnp.sum(
            (m - means) ** 2 / total + jnp.log(total), axis=-1
        )
        each = (variances * m + s**2 * means) / total
        return jax.nn.softmax(logits) @ each, count

    return without_carry(estimate)


ANGLES = np.arange(8) * np.pi / 4
MEANS = 10 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(8))
SD = 0.7


def _ring(x):
    squares = jnp.sum((x["x"] - MEANS) ** 2, axis=-1) / SD**2
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * squares)


#: Eight Gaussians of unequal weights.
RING = Target(_ring, position={"x": jnp.zeros(2)})


def assert_ring(states, info):
    """Every mode has its weight, mean and sd; 4.5 errors, for a thousand draws."""
    x = np.asarray(states.position["x"])
    mode = np.linalg.norm(x[:, None] - MEANS, axis=-1).argmin(1)
    share = np.bincount(mode, minlength=8) / len(x)
    error = np.sqrt(WEIGHTS * (1 - WEIGHTS) / len(x))
    assert (abs(share - WEIGHTS) < 4.5 * error).all()
    inside = x - MEANS[mode]
    np.testing.assert_allclose(inside.std(0), SD, rtol=0.1)
    np.testing.assert_allclose(inside.mean(0), 0.0, atol=0.1)
    assert not info.is_divergent.any()
