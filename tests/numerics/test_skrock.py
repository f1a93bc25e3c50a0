"""SK-ROCK on linear drifts, where its step and its stationary law have closed forms.

Statistical tolerances are five standard errors, with fixed seeds: false alarms below
1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev

from nutfree.numerics.skrock import DAMPING, reach, sk_rock

STAGES = pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 10])


def linear_response(p, num_stages: int) -> tuple[np.ndarray, np.ndarray]:
    """`(A, B)` of the step x' = A x + B Q where h F(x) = p x, p <= 0.

    A = T_s(w0 + w1 p)/T_s(w0) and B = (1 + w1 p/2) U_(s-1)(w0 + w1 p)/U_(s-1)(w0), of
    Chebyshev polynomials of the first and second kind; on the Gaussian N(0, 1), where
    F = -x/2 and Q has variance h, the stationary variance is h B^2/(1 - A^2).
    """
    t = np.array([0.0] * num_stages + [1.0])
    slope = chebyshev.chebder(t)  # s U_(s-1)
    w0 = 1.0 + DAMPING / num_stages**2
    w1 = chebyshev.chebval(w0, t) / chebyshev.chebval(w0, slope)
    z = w0 + w1 * np.asarray(p, dtype=np.float64)
    a = chebyshev.chebval(z, t) / chebyshev.chebval(w0, t)
    u = chebyshev.chebval(z, slope) / chebyshev.chebval(w0, slope)
    return a, (1.0 + 0.5 * (z - w0)) * u


def step(x, noise, *, rate, step_size, num_stages):
    def drift(x, count):
        return -rate * x, count + 1

    return sk_rock(drift, x, noise, 0, step_size=step_size, num_stages=num_stages)


@STAGES
def test_step_on_a_linear_drift_is_its_chebyshev_polynomials(num_stages):
    p = -np.linspace(0.0, reach(num_stages), 7)
    response, noise = linear_response(p, num_stages)

    @jax.jit
    @jax.vmap
    def steps(rate):
        run = {"rate": rate, "step_size": 1.0, "num_stages": num_stages}
        one, zero = jnp.ones(()), jnp.zeros(())
        return step(one, zero, **run)[0], step(zero, one, **run)[0]

    found = steps(jnp.asarray(-p))
    np.testing.assert_allclose(found[0], response, atol=2e-5)
    np.testing.assert_allclose(found[1], noise, atol=2e-4)


@STAGES
def test_stable_up_to_its_reach_and_not_beyond(num_stages):
    inside, _ = linear_response(-np.linspace(1e-3, reach(num_stages), 2001), num_stages)
    assert (abs(inside) <= 1.0).all()
    outside, _ = linear_response(-1.05 * reach(num_stages), num_stages)
    assert abs(outside) > 1.0


def test_reach_grows_as_the_square_of_the_stages():
    assert all(1.9 < reach(s) / s**2 < 2.0 for s in (1, 2, 5, 20))


@STAGES
def test_one_evaluation_a_stage(num_stages):
    run = {"rate": 1.0, "step_size": 0.1, "num_stages": num_stages}
    assert step(jnp.ones(2), jnp.ones(2), **run)[1] == num_stages


def test_stationary_law_of_a_gaussian_is_the_closed_form():
    # sds from 1 to 0.1 under one step: the narrowest is at the edge of stability
    num_stages, sd = 5, jnp.array([1.0, 0.3, 0.1])
    step_size = 2 * 0.9 * reach(num_stages) * 0.01
    keys = jax.random.split(jax.random.key(0), 4000)

    def chain(key):
        def advance(i, x):
            noise = jnp.sqrt(step_size) * jax.random.normal(
                jax.random.fold_in(key, i), (3,)
            )
            drift = lambda x, count: (-0.5 * x / sd**2, count)  # noqa: E731
            return sk_rock(
                drift, x, noise, 0, step_size=step_size, num_stages=num_stages
            )[0]

        return jax.lax.fori_loop(0, 60, advance, jnp.zeros(3))

    draws = np.asarray(jax.jit(jax.vmap(chain))(keys))
    a, b = linear_response(-0.5 * step_size / np.asarray(sd) ** 2, num_stages)
    expected = step_size * b**2 / (1 - a**2)
    assert (abs(draws.var(0) / expected - 1) < 5 * np.sqrt(2 / 4000)).all()


def test_bias_of_the_stationary_variance_halves_with_the_step():
    def bias(step_size):
        a, b = linear_response(-0.5 * step_size, 4)
        return abs(step_size * b**2 / (1 - a**2) - 1)

    assert 1.8 < bias(0.1) / bias(0.05) < 2.2
