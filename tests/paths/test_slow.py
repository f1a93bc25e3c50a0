"""Heavy tails: a Student-t target, and the base it needs.

With the exact estimate, by quadrature, in the estimator's place. Tolerances are five
standard errors or more, with fixed seeds: false alarms below 1e-6.
"""

import jax
import jax.numpy as jnp
import pytest
from scipy import stats

from nutfree.paths.denoisers import Denoiser, Estimate
from nutfree.paths.paths import annealed_path, noise_levels
from nutfree.paths.slow import annealed_underdamped, reverse_overdamped

NU, BASE_NU = 2.0, 2.5
#: Where the curvature at the mode puts the sd.
WIDTH = (NU / (NU + 1)) ** 0.5
NODES = jnp.sinh(jnp.linspace(-12, 12, 301))


def exact_estimate(nu):
    """Of a Student-t observed through Student-t noise or through Gaussian."""

    def step(rng_key, carry, m, s, count):
        del rng_key
        # nodes around the mode and around m, each with its share of the integral
        y = jnp.concatenate([0.5 * NODES, m[0] + 0.5 * s * NODES])
        nodes = (0.25 + y**2) ** -0.5 + (0.25 * s**2 + (y - m[0]) ** 2) ** -0.5
        squares = (y - m[0]) ** 2 / s**2
        noise, g, spread = -0.5 * squares, 1.0, 1.0
        if nu is not None:
            noise = -0.5 * (nu + 1) * jnp.log1p(squares / nu)
            g, spread = (nu + 1) / (nu + squares), (nu + squares) / (nu - 1)
        target = -0.5 * (NU + 1) * jnp.log1p(y**2 / NU)
        weights = jax.nn.softmax(target + noise - jnp.log(nodes))
        mean = jnp.sum(weights * y)[None]
        pulled = m + jnp.sum(weights * g * (y - m[0]))
        return Estimate(pulled, mean, jnp.sum(weights * spread)), carry, count

    return Denoiser(lambda m: (), step)


def beyond_ten(slow, nu, num_draws=8000, num_levels=64):
    """The share of the ends of paths that lie further out than ten."""

    def path(key):
        return annealed_path(
            key,
            exact_estimate(nu),
            noise_levels(num_levels, 3.0, 0.1),
            dim=1,
            base_scale=WIDTH,
            width=lambda m: jnp.full(1, WIDTH),
            slow=slow,
            degrees_of_freedom=nu,
        ).observation[0]

    keys = jax.random.split(jax.random.key(0), num_draws)
    return float(jnp.mean(jnp.abs(jax.jit(jax.vmap(path))(keys)) > 10.0))


#: 0.0099; one standard error is 0.0011.
EXPECTED = 2 * stats.t.sf(10.0, NU)


@pytest.mark.slow
def test_reverse_path_keeps_heavy_tails_from_a_heavy_base_alone():
    assert beyond_ten(reverse_overdamped(), None) < 0.4 * EXPECTED
    heavy = beyond_ten(reverse_overdamped(), BASE_NU)
    assert 0.5 * EXPECTED < heavy < 1.5 * EXPECTED


@pytest.mark.slow
def test_short_annealed_path_keeps_some_of_the_tails_from_a_heavy_base_alone():
    # its lag is worst far out, where Langevin dynamics hardly move
    run = {"num_draws": 20_000, "num_levels": 16}
    narrowing = BASE_NU / (BASE_NU + 2)
    assert beyond_ten(annealed_underdamped(), None, **run) < 0.1 * EXPECTED
    heavy = beyond_ten(annealed_underdamped(narrowing=narrowing), BASE_NU, **run)
    assert 0.1 * EXPECTED < heavy < 0.6 * EXPECTED
