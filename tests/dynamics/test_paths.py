"""The paths with the exact denoiser in the estimator's place: their own error.

Statistical tolerances are five standard errors or more, with fixed seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.dynamics.denoisers import gaussian_mixture_denoiser
from nutfree.dynamics.paths import annealed_path, looks_path, noise_levels

SD = 0.5
GAUSSIAN = gaussian_mixture_denoiser([1.0], jnp.zeros((1, 1)), [SD])


def ends(path, num_draws=100_000):
    keys = jax.random.split(jax.random.key(1), num_draws)
    return jax.jit(jax.vmap(lambda key: path(key).look))(keys)


def annealed(num_levels, step_size, width, denoiser=GAUSSIAN):
    levels = noise_levels(num_levels, 3.0, 0.05)
    options = {"dim": 1, "base_scale": 1.0, "width": width, "step_size": step_size}
    return lambda key: annealed_path(key, denoiser, levels, **options)


def test_annealed_path_on_a_gaussian_has_the_law_of_its_recursion():
    width, step_size = 0.3, 0.7
    variance, decay = 1.0, np.exp(-step_size)
    levels = np.asarray(noise_levels(12, 3.0, 0.05))
    for s in levels:
        share = 1 / (1 + s**2)
        total = share * SD**2 + 1 - share
        smallest = share * width**2 + 1 - share
        factor = 1 - (1 - decay) * smallest / total
        variance = factor**2 * variance + (1 - decay**2) * smallest
    draws = ends(annealed(12, step_size, jnp.array([width])))
    expected = variance * (1 + levels[-1] ** 2)
    assert abs(draws.mean()) < 5 * np.sqrt(expected / len(draws))
    assert abs(draws.var() / expected - 1) < 5 * np.sqrt(2 / len(draws))


def test_annealed_path_is_exact_once_the_levels_are_many():
    draws = ends(annealed(400, 0.7, jnp.array([SD])), 50_000)
    expected = SD**2 + 0.05**2
    assert abs(draws.var() / expected - 1) < 0.03


def test_annealed_path_finds_the_weights_of_modes_as_it_gets_finer():
    weights = jnp.array([0.2, 0.5, 0.3])
    means = jnp.array([[-1.3], [0.1], [1.2]])
    denoiser = gaussian_mixture_denoiser(weights, means, [0.1, 0.05, 0.15])

    def error(num_levels, step_size):
        path = annealed(num_levels, step_size, jnp.array([0.05]), denoiser)
        draws = ends(path, 20_000)
        nearest = jnp.argmin(jnp.abs(draws - means[:, 0]), axis=1)
        found = np.bincount(nearest, minlength=3) / len(draws)
        return 0.5 * np.abs(found - np.asarray(weights)).sum()

    # the Monte-Carlo floor is 0.004
    coarse = error(50, 1.0)
    assert coarse < 0.12
    assert error(800, 0.25) < 0.5 * coarse


def test_looks_path_on_a_gaussian_has_the_law_of_its_recursion():
    num_looks, sigma, num_steps, step = 5, 1.2, 3, 0.7
    half, decay = step / 2, np.exp(-step)
    # rows and columns: y, velocity, mean of the earlier looks
    covariance = np.diag([1 + sigma**2, 1.0, 0.0])
    for m in range(1, num_looks + 1):
        shrink = SD**2 / (SD**2 + sigma**2 / m)
        drift = np.eye(3)
        drift[0, 1] = step * sigma
        force = np.array([shrink / m - 1, 0.0, shrink * (m - 1) / m]) / sigma
        kick = np.eye(3)
        kick[1] = decay * np.array([0, 1, 0]) + half * (1 + decay) * force
        for _ in range(num_steps):
            step_matrix = drift @ kick
            covariance = step_matrix @ covariance @ step_matrix.T
            thermal = drift @ np.diag([0, 1 - decay**2, 0]) @ drift.T
            covariance = covariance + thermal
        average = np.eye(3)
        average[2] = [1 / m, 0, (m - 1) / m]
        covariance = average @ covariance @ average.T
    draws = ends(
        lambda key: looks_path(
            key,
            GAUSSIAN,
            num_looks,
            dim=1,
            base_scale=1.0,
            noise=jnp.asarray(sigma),
            num_steps=num_steps,
            step_size=step,
        )
    )
    assert abs(draws.mean()) < 5 * np.sqrt(covariance[2, 2] / len(draws))
    assert abs(draws.var() / covariance[2, 2] - 1) < 5 * np.sqrt(2 / len(draws))


def test_mean_of_many_looks_has_the_smoothed_law():
    num_looks, sigma = 16, 1.5
    draws = ends(
        lambda key: looks_path(
            key,
            GAUSSIAN,
            num_looks,
            dim=1,
            base_scale=SD,
            noise=jnp.asarray(sigma),
            num_steps=8,
            step_size=0.7,
        ),
        20_000,
    )
    expected = SD**2 + sigma**2 / num_looks
    # one standard error is 1 %
    assert abs(draws.var() / expected - 1) < 0.1
