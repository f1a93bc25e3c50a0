"""The flow of a Gaussian with kinks, against its equations of motion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.bregman.kinks import Kinks, flow
from nutfree.kernels.bregman.reference import Reference

D, M = 4, 3
FACTORS = {"dense": np.eye(D) + 0.2, "separate": np.array([0.3, 1.0, 0.5, 2.0])}
U, V, TILT = np.array([[0.3, -1.2, 0.8, 2.0], [1.5, 0.2, -0.7, -1.1], [0.5, 0, -1, 0]])


def kinks(separate: bool) -> Kinks:
    offset, below, above = jnp.array([[0.1, -0.4, 0], [-3, -0.5, -9], [3, 2, 9.0]])
    rows = jnp.array([2, 0, 3])
    if not separate:
        rows = jnp.eye(D)[rows]
    return Kinks(offset, below, above, rows, rows, rows).drawn(FACTORS["separate"])


def dense_kinks() -> Kinks:
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(M, D)))
    return kinks(False)._replace(rows=rows).drawn(FACTORS["dense"])


CASES = {"dense": dense_kinks, "separate": lambda: kinks(True)}
followed = jax.jit(flow)


@pytest.mark.parametrize("omega", [0.0, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_flow_solves_the_equations_of_motion(case, omega):
    """Leapfrog with 200,000 steps is off by 1e-4 at kinks."""
    k, n, time = CASES[case](), 200_000, 1.0
    pull = np.zeros((M, D))
    for i in range(D):
        pull[:, i] = k.along(jnp.eye(D)[i])
    offset, below, above = np.asarray(k.offset), np.asarray(k.below), k.above

    def force(u):
        y = offset + pull @ u
        return TILT - omega**2 * u - jnp.where(y < 0, below, above) @ pull

    @jax.jit
    def leapfrog(u, v):
        h = time / n

        def step(_, uv):
            u, v = uv
            v = v + 0.5 * h * force(u)
            u = u + h * v
            return u, v + 0.5 * h * force(u)

        return jax.lax.fori_loop(0, n, step, (u, v))

    with jax.enable_x64(True):
        expected = leapfrog(jnp.asarray(U), jnp.asarray(V))
    u, v, arrived = followed(*map(jnp.float32, (U, V, time, omega, TILT)), k)
    assert arrived
    np.testing.assert_allclose(u, expected[0], atol=4e-4)
    np.testing.assert_allclose(v, expected[1], atol=4e-3)


@pytest.mark.parametrize("case", CASES)
def test_flow_conserves_energy_and_runs_backwards(case):
    with jax.enable_x64(True):
        k = jax.tree.map(
            lambda a: a.astype(float) if a.dtype == jnp.float32 else a, CASES[case]()
        )
        u, v, tilt = map(jnp.asarray, (U, V, TILT))
        ours = Reference(jnp.zeros(D), tilt, jnp.asarray(0.7), k.drawn(FACTORS[case]))
        end, w, _ = followed(u, v, 4.0, ours.omega, tilt, ours.kinks)
        before, after = (
            ours.potential(x, 1.0) + 0.5 * jnp.sum(p * p) for x, p in ((u, v), (end, w))
        )
        assert abs(after - before) < 1e-10
        back, w, _ = followed(end, -w, 4.0, ours.omega, tilt, ours.kinks)
        np.testing.assert_allclose(back, u, atol=1e-9)
        np.testing.assert_allclose(w, -v, atol=1e-9)


def test_separate_kinks_flow_as_the_same_ones_in_a_matrix():
    numbers = jnp.float32(U), jnp.float32(V), 3.0, 0.7, jnp.float32(TILT)
    for a, b in zip(
        followed(*numbers, kinks(True)), followed(*numbers, kinks(False)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_flow_over_too_many_kinks_says_so():
    k = kinks(True)
    k = k._replace(below=1e6 * k.below, above=1e6 * k.above)
    _, _, arrived = followed(jnp.float32(U), jnp.float32(V), 5.0, 0.0, jnp.zeros(D), k)
    assert not arrived
