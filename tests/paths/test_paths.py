"""The paths with the exact denoiser in the estimator's place: their own error.

Statistical tolerances are five standard errors or more, with fixed seeds.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from nutfree.paths.denoisers import gaussian_mixture_denoiser
from nutfree.paths.paths import annealed_path, looks_path, noise_levels
from nutfree.paths.slow import (
    annealed_underdamped,
    reverse_overdamped,
    reverse_underdamped,
)

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


@pytest.mark.slow
def test_annealed_path_is_exact_once_the_levels_are_many():
    draws = ends(annealed(400, 0.7, jnp.array([SD])), 50_000)
    expected = SD**2 + 0.05**2
    assert abs(draws.var() / expected - 1) < 0.03


def annealed_variance(num_levels, step_size, width):
    """Variance of X_lambda where the annealed path ends, over what it should be."""
    variance, decay = 1.0, np.exp(-step_size)
    levels = np.exp(np.linspace(np.log(3.0), np.log(0.05), num_levels))
    for share in 1 / (1 + levels**2):
        total = share * SD**2 + 1 - share
        smallest = share * width**2 + 1 - share
        factor = 1 - (1 - decay) * smallest / total
        variance = factor**2 * variance + (1 - decay**2) * smallest
    return variance / total


def reverse_variance(num_levels, width):
    """The same for the reverse path, in m."""
    levels = np.exp(np.linspace(np.log(3.0), np.log(0.05), num_levels))
    variance = 1 + levels[0] ** 2
    for s, following in pairwise(levels):
        q = 1 - following**2 / s**2
        factor = 1 - q * s**2 / (SD**2 + s**2)
        left = q**2 / (width**-2 + s**-2)
        variance = factor**2 * variance + following**2 * q + left
    return variance / (SD**2 + levels[-1] ** 2)


DYNAMICS = {
    "annealed_underdamped": lambda levels: annealed_underdamped(),
    "reverse_overdamped": lambda levels: reverse_overdamped(),
    "reverse_underdamped": reverse_underdamped,
}
every_dynamics = pytest.mark.parametrize("name", list(DYNAMICS))


def walked(name, num_levels, width, denoiser=GAUSSIAN, schedule="sigmoid", dim=1):
    levels = noise_levels(num_levels, 3.0, 0.05, schedule)
    slow = DYNAMICS[name](levels)
    options = {"dim": dim, "base_scale": 1.0, "width": width, "slow": slow}
    return lambda key: annealed_path(key, denoiser, levels, **options)


def kinetic_variance(num_levels, width):
    """The same for the kinetic reverse path, in position and velocity themselves."""
    levels = np.exp(np.linspace(np.log(3.0), np.log(0.05), num_levels))

    def flow(t):
        return np.exp(-t) * np.array([[1 + t, t], [-t, 1 - t]])

    def share(t):
        return np.sum(flow(t)[:, 0] ** 2)

    def time(s):
        return brentq(lambda t: share(t) - 1 / (1 + s**2), 1e-6, 10.0, xtol=1e-14)

    covariance = np.eye(2)
    for s, following in pairwise(levels):
        a, before = flow(time(s)), flow(time(following))
        step = flow(time(s) - time(following))
        a, before = a[:, 0], before[:, 0]
        given_x, earlier = (np.eye(2) - np.outer(e, e) for e in (a, before))
        gain = earlier @ step.T @ np.linalg.inv(given_x)
        pull = before - gain @ a
        # D is SD^2/(SD^2 + s^2) times the look, the part of u along a
        mean = gain + np.outer(pull, a / (a @ a)) * SD**2 / (SD**2 + s**2)
        noise = earlier - gain @ step @ earlier
        noise += np.outer(pull, pull) / (width**-2 + s**-2)
        covariance = mean @ covariance @ mean.T + noise
    look = before / (before @ before)
    return look @ covariance @ look / (SD**2 + levels[-1] ** 2)


def test_reverse_paths_on_a_gaussian_have_the_laws_of_their_bridges():
    for name, law in (
        ("reverse_overdamped", reverse_variance),
        ("reverse_underdamped", kinetic_variance),
    ):
        found = ends(walked(name, 16, 0.3)).var() / (SD**2 + 0.05**2)
        assert abs(found / law(16, 0.3) - 1) < 5 * np.sqrt(2 / 100_000)


@every_dynamics
def test_paths_are_exact_on_a_gaussian_of_the_width(name):
    # what is left is the base in place of the first level, and a little lag
    found = ends(walked(name, 16, SD)).var() / (SD**2 + 0.05**2)
    assert abs(found - 1) < 0.015 + 5 * np.sqrt(2 / 100_000)


def test_annealed_bias_halves_as_the_slow_step_halves():
    bias = [abs(annealed_variance(n, 32 / n, 0.3) - 1) for n in (64, 128, 256)]
    assert 1.7 < bias[0] / bias[1] < 2.3
    assert 1.7 < bias[1] / bias[2] < 2.3
    draws = ends(annealed(64, 0.5, jnp.array([0.3])))
    # one standard error is 0.0045
    assert abs(draws.var() / (SD**2 + 0.05**2) - 1 + bias[0]) < 5 * 0.0045


def test_reverse_bias_halves_as_the_levels_double():
    # less the bias of the start, which no number of levels takes away
    for law in (reverse_variance, kinetic_variance):
        limit = law(2048, 0.3)
        bias = [abs(law(n, 0.3) - limit) for n in (16, 32, 64, 128)]
        for coarse, fine in pairwise(bias):
            assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_schedule_goes_from_the_first_noise_to_the_last(schedule):
    levels = np.asarray(noise_levels(64, 3.0, 0.05, schedule))
    np.testing.assert_allclose(levels[[0, -1]], [3.0, 0.05], rtol=1e-4)
    assert (np.diff(levels) < 0).all()
    draws = ends(walked("reverse_overdamped", 64, SD, schedule=schedule), 50_000)
    assert abs(draws.var() / (SD**2 + 0.05**2) - 1) < 0.02 + 5 * np.sqrt(2 / 50_000)


MEANS = jnp.array([[-1.3, 0.0], [0.1, 0.9], [1.2, -0.5]])
WEIGHTS = np.array([0.2, 0.5, 0.3])
SCALES = np.array([0.1, 0.05, 0.15])


@every_dynamics
def test_paths_find_the_weights_and_shapes_of_modes(name):
    denoiser = gaussian_mixture_denoiser(WEIGHTS, MEANS, SCALES)

    def width(m):
        return jnp.asarray(SCALES)[jnp.argmin(jnp.sum((m - MEANS) ** 2, axis=1))]

    num_levels = 800 if name.startswith("annealed") else 200
    draws = ends(walked(name, num_levels, width, denoiser, dim=2), 10_000)
    apart = jnp.sum((draws[:, None] - MEANS) ** 2, axis=-1)
    nearest = np.asarray(jnp.argmin(apart, axis=1))
    found = np.bincount(nearest, minlength=3) / len(draws)
    # the Monte-Carlo floor is 0.006; the rest is lag, and the step
    assert 0.5 * np.abs(found - WEIGHTS).sum() < 0.03
    for k in range(3):
        inside = np.asarray(draws)[nearest == k] - MEANS[k]
        sd = np.sqrt(SCALES[k] ** 2 + 0.05**2)
        assert (abs(inside.mean(0)) < 0.1 * sd).all()
        np.testing.assert_allclose(inside.std(0), sd, rtol=0.08)


def test_a_narrow_base_misweighs_modes_even_with_the_exact_denoiser():
    denoiser = gaussian_mixture_denoiser(WEIGHTS, MEANS, SCALES)
    levels = noise_levels(64, 3.0, 0.5)
    options = {"dim": 2, "base_scale": 0.1, "width": 0.1, "slow": reverse_overdamped()}
    draws = ends(lambda key: annealed_path(key, denoiser, levels, **options), 5_000)
    apart = jnp.sum((draws[:, None] - MEANS) ** 2, axis=-1)
    found = np.bincount(np.asarray(jnp.argmin(apart, axis=1)), minlength=3) / 5_000
    # a tenth of the posterior's sd: twice the bound of a base that covers it, above
    assert 0.5 * np.abs(found - WEIGHTS).sum() > 0.06


@pytest.mark.optimised
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


def looks_variance(num_looks, sigma, num_steps, step, friction=2.0):
    """Variance of the mean of the looks, with the exact D of the Gaussian."""
    decay = np.exp(-friction * step)
    # rows and columns: y, velocity, mean of the earlier looks
    covariance = np.diag([1 + sigma**2, 1.0, 0.0])
    for m in range(1, num_looks + 1):
        shrink = SD**2 / (SD**2 + sigma**2 / m)
        kick = np.eye(3)
        kick[1] += step * np.array([shrink / m - 1, 0, shrink * (m - 1) / m]) / sigma
        drift = np.eye(3)
        drift[:2, 1] = sigma * step / 2 * (1 + decay), decay
        noise = np.sqrt(1 - decay**2) * np.array([sigma * step / 2, 1, 0])
        for _ in range(num_steps):
            step_matrix = drift @ kick
            covariance = step_matrix @ covariance @ step_matrix.T
            covariance = covariance + np.outer(noise, noise)
        average = np.eye(3)
        average[2] = [1 / m, 0, (m - 1) / m]
        covariance = average @ covariance @ average.T
    return covariance[2, 2]


def looks(num_looks, sigma, num_steps, step):
    return lambda key: looks_path(
        key,
        GAUSSIAN,
        num_looks,
        dim=1,
        base_scale=1.0,
        noise=jnp.asarray(sigma),
        num_steps=num_steps,
        step_size=step,
    )


def test_looks_path_on_a_gaussian_has_the_law_of_its_recursion():
    expected = looks_variance(5, 1.2, 3, 0.7)
    draws = ends(looks(5, 1.2, 3, 0.7))
    assert abs(draws.mean()) < 5 * np.sqrt(expected / len(draws))
    assert abs(draws.var() / expected - 1) < 5 * np.sqrt(2 / len(draws))


def test_error_of_the_looks_step_falls_by_four_as_it_halves():
    # the recursion is the law of the path, by the test above; time is held fixed
    def law(num_steps):
        return looks_variance(5, 1.2, num_steps, 2.8 / num_steps)

    limit = law(4096)
    for num_steps in (4, 8, 16):
        error = abs(law(num_steps) - limit) / abs(law(2 * num_steps) - limit)
        assert 3.0 < error < 7.0


def test_lag_of_the_looks_falls_with_their_steps():
    exact = SD**2 + 1.2**2 / 24
    bias = [abs(looks_variance(24, 1.2, n, 1.4) / exact - 1) for n in (1, 2, 4)]
    assert bias[0] > 0.2
    assert max(bias[1:]) < 0.02


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
            num_steps=4,
            step_size=1.4,
        ),
        20_000,
    )
    expected = SD**2 + sigma**2 / num_looks
    # one standard error is 1 %
    assert abs(draws.var() / expected - 1) < 0.05
