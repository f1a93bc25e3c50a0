"""The paths with the exact denoiser in the estimator's place: their own error.

Statistical tolerances are five standard errors or more, with fixed seeds.
"""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from nutfree.paths.paths import (
    annealed_path,
    noise_levels,
    observations_path,
    overdamped_look,
    underdamped_look,
)
from nutfree.paths.slow import (
    annealed_overdamped,
    annealed_underdamped,
    reverse_overdamped,
    reverse_underdamped,
)
from tests.paths.oracles import gaussian_mixture_denoiser

SD = 0.5
DYNAMICS = {
    "annealed_overdamped": lambda levels, step_size: annealed_overdamped(step_size),
    "annealed_underdamped": lambda levels, step_size: annealed_underdamped(step_size),
    "reverse_overdamped": lambda levels, step_size: reverse_overdamped(),
    "reverse_underdamped": lambda levels, step_size: reverse_underdamped(levels),
}


@cache
def _program(name):
    """The last observations of paths, given all numbers."""

    @jax.jit
    def run(keys, levels, mixture, widths, step_size, base_scale):
        denoiser = gaussian_mixture_denoiser(*mixture)
        means = mixture[1]

        def one(key):
            return annealed_path(
                key,
                denoiser,
                levels,
                dim=means.shape[1],
                base_scale=base_scale,
                width=lambda m: widths[jnp.argmin(jnp.sum((m - means) ** 2, axis=1))],
                slow=DYNAMICS[name](levels, step_size),
            ).observation

        return jax.vmap(one)(keys)

    return run


GAUSSIAN = (jnp.ones(1), jnp.zeros((1, 1)), jnp.full(1, SD))
MEANS = jnp.array([[-1.3, 0.0], [0.1, 0.9], [1.2, -0.5]])
WEIGHTS = np.array([0.2, 0.5, 0.3])
SCALES = np.array([0.1, 0.05, 0.15])
MIXTURE = (jnp.asarray(WEIGHTS), MEANS, jnp.asarray(SCALES))
LINE = (jnp.asarray(WEIGHTS), jnp.array([[-1.3], [0.1], [1.2]]), jnp.asarray(SCALES))


def ends(
    name, levels, widths, num_draws, mixture=GAUSSIAN, step_size=1.0, base_scale=1.0
):
    """The last observations of `num_draws` paths.

    `widths` are those that the path takes the components of the mixture to have.
    """
    keys = jax.random.split(jax.random.key(1), num_draws)
    means = mixture[1]
    widths = jnp.broadcast_to(jnp.reshape(jnp.asarray(widths), (-1, 1)), means.shape)
    return np.asarray(
        _program(name)(keys, levels, mixture, widths, step_size, base_scale)
    )


def to_a_twentieth(num_levels, schedule="sigmoid"):
    return noise_levels(num_levels, 3.0, 0.05, schedule)


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
        # D is SD^2/(SD^2 + s^2) times the observation, the part of u along a
        mean = gain + np.outer(pull, a / (a @ a)) * SD**2 / (SD**2 + s**2)
        noise = earlier - gain @ step @ earlier
        noise += np.outer(pull, pull) / (width**-2 + s**-2)
        covariance = mean @ covariance @ mean.T + noise
    observed = before / (before @ before)
    return observed @ covariance @ observed / (SD**2 + levels[-1] ** 2)


def test_annealed_path_on_a_gaussian_has_the_law_of_its_recursion():
    total = SD**2 + 0.05**2
    draws = ends("annealed_overdamped", to_a_twentieth(12), 0.3, 100_000, step_size=0.7)
    expected = annealed_variance(12, 0.7, 0.3) * total
    assert abs(draws.mean()) < 5 * np.sqrt(expected / len(draws))
    assert abs(draws.var() / expected - 1) < 5 * np.sqrt(2 / len(draws))


@pytest.mark.slow
def test_annealed_path_is_exact_once_the_levels_are_many():
    draws = ends("annealed_overdamped", to_a_twentieth(400), SD, 50_000, step_size=0.7)
    expected = SD**2 + 0.05**2
    assert abs(draws.var() / expected - 1) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("annealed_underdamped", None),
        ("reverse_overdamped", reverse_variance),
        ("reverse_underdamped", kinetic_variance),
    ],
)
def test_paths_on_a_gaussian_have_the_laws_of_their_steps(name, law):
    levels, total = to_a_twentieth(16), SD**2 + 0.05**2
    if law is not None:
        found = ends(name, levels, 0.3, 100_000).var() / total
        assert abs(found / law(16, 0.3) - 1) < 5 * np.sqrt(2 / 100_000)
    # of the width: what is left is the base in place of the first level, and some lag
    found = ends(name, levels, SD, 100_000).var() / total
    assert abs(found - 1) < 0.015 + 5 * np.sqrt(2 / 100_000)


def test_annealed_bias_halves_as_the_slow_step_halves():
    # the recursion is the law of the path, by the test above
    bias = [abs(annealed_variance(n, 32 / n, 0.3) - 1) for n in (64, 128, 256)]
    assert 1.7 < bias[0] / bias[1] < 2.3
    assert 1.7 < bias[1] / bias[2] < 2.3


def test_reverse_bias_halves_as_the_levels_double():
    # less the bias of the start, which no number of levels takes away
    for law in (reverse_variance, kinetic_variance):
        limit = law(2048, 0.3)
        bias = [abs(law(n, 0.3) - limit) for n in (16, 32, 64, 128)]
        for coarse, fine in pairwise(bias):
            assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize(
    "schedule", ["linear", pytest.param("cosine", marks=pytest.mark.slow)]
)
def test_every_schedule_goes_from_the_first_noise_to_the_last(schedule):
    levels = to_a_twentieth(64, schedule)
    np.testing.assert_allclose(np.asarray(levels)[[0, -1]], [3.0, 0.05], rtol=1e-4)
    assert (np.diff(levels) < 0).all()
    draws = ends("reverse_overdamped", levels, SD, 50_000)
    assert abs(draws.var() / (SD**2 + 0.05**2) - 1) < 0.02 + 5 * np.sqrt(2 / 50_000)


def nearest_mode(draws, means):
    apart = np.sum((draws[:, None] - np.asarray(means)) ** 2, axis=-1)
    return np.argmin(apart, axis=1)


def weight_error(draws, means):
    """Total variation between the weights of the modes and those found."""
    found = np.bincount(nearest_mode(draws, means), minlength=3) / len(draws)
    return 0.5 * np.abs(found - WEIGHTS).sum()


@pytest.mark.optimised
@pytest.mark.parametrize(
    "name",
    [
        "reverse_overdamped",
        pytest.param("annealed_underdamped", marks=pytest.mark.slow),
        pytest.param("reverse_underdamped", marks=pytest.mark.slow),
    ],
)
def test_paths_find_the_weights_and_shapes_of_modes(name):
    num_levels = 800 if name.startswith("annealed") else 200
    draws = ends(name, to_a_twentieth(num_levels), SCALES, 10_000, MIXTURE)
    # the Monte-Carlo floor is 0.006; the rest is lag, and the step
    assert weight_error(draws, MEANS) < 0.03
    nearest = nearest_mode(draws, MEANS)
    for k in range(3):
        inside = draws[nearest == k] - MEANS[k]
        sd = np.sqrt(SCALES[k] ** 2 + 0.05**2)
        assert (abs(inside.mean(0)) < 0.1 * sd).all()
        np.testing.assert_allclose(inside.std(0), sd, rtol=0.08)


def test_a_narrow_base_misweighs_modes_even_with_the_exact_denoiser():
    levels = noise_levels(64, 3.0, 0.5)
    draws = ends("reverse_overdamped", levels, 0.1, 5_000, MIXTURE, base_scale=0.1)
    # a tenth of the posterior's sd: twice the bound of a base that covers it, above
    assert weight_error(draws, MEANS) > 0.06


@pytest.mark.slow
def test_annealed_path_finds_the_weights_of_modes_as_it_gets_finer():
    def error(num_levels, step_size):
        levels = to_a_twentieth(num_levels)
        options = {"mixture": LINE, "step_size": step_size}
        draws = ends("annealed_overdamped", levels, 0.05, 20_000, **options)
        return weight_error(draws, LINE[1])

    # the Monte-Carlo floor is 0.004
    coarse = error(50, 1.0)
    assert coarse < 0.12
    assert error(800, 0.25) < 0.5 * coarse


def observations_variance(num_observations, sigma, num_steps, step, friction=2.0):
    """Variance of the mean of the observations, with the exact D of the Gaussian."""
    decay = np.exp(-friction * step)
    # rows and columns: y, velocity, mean of the earlier looks
    covariance = np.diag([1 + sigma**2, 1.0, 0.0])
    for m in range(1, num_observations + 1):
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


@jax.jit
def _observed(keys, base_scale, noise, num_observations, num_steps, step_size):
    def one(key):
        return observations_path(
            key,
            gaussian_mixture_denoiser(*GAUSSIAN),
            num_observations,
            dim=1,
            base_scale=base_scale,
            noise=noise,
            num_steps=num_steps,
            look_step=underdamped_look(step_size),
        ).observation

    return jax.vmap(one)(keys)


def observed(*numbers):
    keys = jax.random.split(jax.random.key(1), 100_000)
    return np.asarray(_observed(keys, *numbers))


def test_observations_path_on_a_gaussian_has_the_law_of_its_recursion():
    expected = observations_variance(5, 1.2, 3, 0.7)
    draws = observed(1.0, jnp.asarray(1.2), 5, 3, 0.7)
    assert abs(draws.mean()) < 5 * np.sqrt(expected / len(draws))
    assert abs(draws.var() / expected - 1) < 5 * np.sqrt(2 / len(draws))


def test_mean_of_many_observations_has_the_smoothed_law():
    num_observations, sigma = 16, 1.5
    draws = observed(SD, jnp.asarray(sigma), num_observations, 4, 1.4)
    expected = SD**2 + sigma**2 / num_observations
    # one standard error is 0.5 %
    assert abs(draws.var() / expected - 1) < 0.05


def test_error_of_the_observations_step_falls_by_four_as_it_halves():
    # the recursion is the law of the path, by the test above; time is held fixed
    def law(num_steps):
        return observations_variance(5, 1.2, num_steps, 2.8 / num_steps)

    limit = law(4096)
    for num_steps in (4, 8, 16):
        error = abs(law(num_steps) - limit) / abs(law(2 * num_steps) - limit)
        assert 3.0 < error < 7.0


def test_lag_of_the_observations_falls_with_their_steps():
    exact = SD**2 + 1.2**2 / 24
    bias = [abs(observations_variance(24, 1.2, n, 1.4) / exact - 1) for n in (1, 2, 4)]
    assert bias[0] > 0.2
    assert max(bias[1:]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("separation", [4.0, 10.0, 26.0, 64.0])
def test_observations_with_the_exact_denoiser_weigh_two_modes(separation):
    """.8 and .2, within two standard errors of .0028: weights given the last mean."""
    weights = jnp.array([0.8, 0.2])
    scale = (1 + 0.16 * separation**2) ** 0.5
    means = jnp.array([[-0.2, 0.0], [0.8, 0.0]]) * separation / scale
    width = jnp.ones(2) / scale

    def one(key):
        end = observations_path(
            key,
            gaussian_mixture_denoiser(weights, means, width),
            24,
            dim=2,
            base_scale=jnp.asarray(1.0),
            noise=jnp.asarray(1.5),
            num_steps=8,
            look_step=underdamped_look(1.0),
        )
        variance = width**2 + end.noise**2
        squares = jnp.sum((end.observation - means) ** 2, axis=1) / variance
        return jax.nn.softmax(jnp.log(weights) - 0.5 * squares)[0]

    keys = jax.random.split(jax.random.key(0), 20_000)
    near = np.asarray(jax.jit(jax.vmap(one))(keys))
    error = near.std() / len(near) ** 0.5
    print(f"separation {separation}: {near.mean():.4f}, standard error {error:.4f}")
    assert abs(near.mean() - 0.8) < 2 * error


def test_all_observations_at_once_are_one_of_their_noise():
    """The mean of three of them, moved one by one in R^3, moves as one does."""
    sigma, count = 1.5, 3
    look_step = underdamped_look(1.0)
    rng = np.random.default_rng(0)
    y, velocity, xi = rng.standard_normal((3, count))
    mean = y.mean()
    pull = SD**2 / (SD**2 + sigma**2 / count) * mean
    move, _ = look_step(xi, velocity, (pull - y) / sigma)
    s = sigma / count**0.5
    of_mean = [count**0.5 * part.mean() for part in (xi, velocity)]
    together, _ = look_step(*of_mean, (pull - mean) / s)
    assert float(s * together) == pytest.approx(float((sigma * move).mean()), rel=1e-5)


def test_overdamped_observations_have_their_variance():
    """Of one observation with the exact D; five errors."""

    def one(key):
        return observations_path(
            key,
            gaussian_mixture_denoiser(*GAUSSIAN),
            1,
            dim=1,
            base_scale=1.0,
            noise=jnp.asarray(0.5),
            num_steps=40,
            look_step=overdamped_look(0.1),
        ).observation

    draws = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(2), 20_000)))
    # y' = y - (1 - decay) y/2 + noise: the law of the recursion, not of the limit
    decay = np.exp(-0.1)
    factor = 1 - (1 - decay) * (1 - SD**2 / (SD**2 + 0.25))
    expected = 0.25 * (1 - decay**2) / (1 - factor**2)
    assert abs(draws.var() / expected - 1) < 5 * (2 / 20_000) ** 0.5 + 0.02
