"""RBMUMLA: MYULA in Euclidean geometry, and right at the boundaries of supports."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from nutfree.frontends.numpyro import model_target
from nutfree.kernels.bregman import myula, rbmumla
from nutfree.kernels.bregman.rbmumla import Options
from nutfree.numerics.proximal import LaplaceTerm
from tests.kernels.bregman.chains import (
    VARIANCES,
    constrained_target,
    ends,
    gaussian,
    real_target,
)

KERNELS = {
    geometry: rbmumla.build_kernel(Options(geometry=geometry))
    for geometry in ("barrier", "hyperbolic")
}


def draws(target_of, start, num_chains, num_steps, geometry="barrier", **params):
    """The values of `x` at the end of many chains that start at one place."""
    run = ends(rbmumla.init, KERNELS[geometry], target_of)
    starts = jnp.broadcast_to(start, (num_chains, start.shape[-1]))
    state, _ = run(starts, num_steps, **params)
    return np.asarray(state.values["x"])


def tuned_draws(target, start, num_samples, num_chains=4, num_warmup=200, **fixed):
    """Draws of chains that warm up by themselves, and the divergences."""
    warmup, kernel = rbmumla.warmup(), rbmumla.build_kernel()

    def chain(key):
        pilot_key, warm_key, key = jax.random.split(key, 3)
        adapt = warmup.init(pilot_key, start, target, num_warmup)

        def tune(carry, key):
            state, adapt = carry
            state, info = kernel(key, state, target, **adapt.params)
            return (state, warmup.update(adapt, state, info)), None

        carry = (rbmumla.init(adapt.position, target), adapt)
        keys = jax.random.split(warm_key, num_warmup)
        (state, adapt), _ = jax.lax.scan(tune, carry, keys)
        params = {**warmup.final(adapt), **fixed}

        def draw(state, key):
            state, info = kernel(key, state, target, **params)
            return state, (state.values, info.is_divergent)

        return jax.lax.scan(draw, state, jax.random.split(key, num_samples))[1]

    keys = jax.random.split(jax.random.key(0), num_chains)
    values, divergent = jax.jit(jax.vmap(chain))(keys)
    flat = jax.tree.map(lambda v: np.asarray(v).reshape(-1, *v.shape[2:]), values)
    return flat, int(divergent.sum())


def laplace_model():
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    log_scale = numpyro.sample("log_scale", dist.Normal(0, 1))
    beta = numpyro.sample(
        "beta", dist.Laplace(mu, jnp.exp(log_scale)).expand([3]).to_event(1)
    )
    numpyro.sample("y", dist.Normal(beta, 0.5), obs=jnp.array([1.0, -0.5, 3.0]))


def test_euclidean_geometry_is_myula_step_for_step():
    """On a model whose Laplace term has unknown location and scale."""
    target = model_target(laplace_model)
    position = {"beta": jnp.ones(3), "log_scale": jnp.array(0.2), "mu": jnp.array(0.3)}
    params = {
        "step_size": 0.1,
        "num_steps": 1,
        "inverse_mass_matrix": jnp.array([0.3, 0.4, 0.5, 0.6, 0.7]),
    }

    def path(module):
        kernel = module.build_kernel()

        def step(state, key):
            state, info = kernel(key, state, target, **params)
            return state, (state.position, info.acceptance_rate, state.logdensity)

        keys = jax.random.split(jax.random.key(0), 50)
        run = jax.jit(lambda p: jax.lax.scan(step, module.init(p, target), keys)[1])
        return run(position)

    (one, rates, values), (other, rates_too, values_too) = path(myula), path(rbmumla)
    for name in position:
        np.testing.assert_allclose(one[name], other[name], atol=1e-3)
    np.testing.assert_allclose(rates, rates_too, atol=1e-3)
    np.testing.assert_allclose(values, values_too, atol=1e-2)


def test_gaussian_law_is_that_of_the_discretised_chain():
    """20,000 independent draws; 4.5 sd bounds fail once in 100,000."""
    x = draws(
        lambda: real_target(gaussian),
        jnp.ones(2),
        20_000,
        60,
        step_size=0.4,
        inverse_mass_matrix=VARIANCES,
    )
    sd = np.sqrt(np.asarray(VARIANCES) / (1 - 0.4 / 2))
    np.testing.assert_allclose((x.mean(0) - 1) / sd, 0, atol=4.5 / 20_000**0.5)
    np.testing.assert_allclose(x.var(0) / sd**2, 1, atol=4.5 * (2 / 20_000) ** 0.5)


TARGETS = {
    "gamma": (dist.Gamma(jnp.array([1.0, 2.0, 5.0]), 1.0), constraints.positive),
    "beta": (
        dist.Beta(jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 1.0, 3.0])),
        constraints.unit_interval,
    ),
    "dirichlet": (
        dist.Dirichlet(jnp.array([1.0, 2.0, 4.0, 1.0])),
        constraints.simplex,
    ),
}


@cache
def target_of(law):
    target = constrained_target(*TARGETS[law])
    return lambda: target


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, marks=pytest.mark.slow) if law == "dirichlet" else law
        for law in TARGETS
    ],
)
def test_mirror_langevin_has_the_moments_of_laws_with_a_boundary(law):
    """g = 0. 10,000 chains that start from exact draws, for 15 units of time. 0.04 sd
    is 4 sd of the mean, 6 % some 4 sd of the sd of these laws; the step's own bias of
    up to 0.04 sd comes on top, by the order test: 0.2 makes it 0.095, 0.05 a fourth."""
    distribution, constraint = TARGETS[law]
    mean, variance = np.asarray(distribution.mean), np.asarray(distribution.variance)
    exact = distribution.sample(jax.random.key(1), (10_000,))
    start = dist.biject_to(constraint).inv(exact)
    x = draws(
        target_of(law),
        start,
        10_000,
        300,
        step_size=0.05,
        inverse_mass_matrix=jnp.asarray(variance),
        center=jnp.asarray(mean),
    )
    np.testing.assert_allclose((x.mean(0) - mean) / variance**0.5, 0, atol=0.07)
    np.testing.assert_allclose(x.std(0) / variance**0.5, 1, atol=0.08)


@pytest.mark.slow
def test_bias_has_its_stated_order_in_the_step():
    """Means of Gamma(2, 1) and Gamma(5, 1), at steps of 0.2 and 0.1.

    40,000 draws know each of the four to 0.5 % of a sd. The measured bias falls from
    0.095 to 0.042 sd, with a standard error of 0.0035: the order's is 0.13, and 0.6 is
    more than 4 of that.
    """
    law = TARGETS["gamma"][0]
    run = ends(rbmumla.init, KERNELS["barrier"], target_of("gamma"))
    starts = jnp.log(law.sample(jax.random.key(1), (40_000,)))
    errors = []
    for gamma in (0.2, 0.1):
        state, _ = run(
            starts,
            50,
            step_size=gamma,
            inverse_mass_matrix=law.variance,
            center=law.mean,
        )
        shift = (np.asarray(state.values["x"]).mean(0) - law.mean) / law.variance**0.5
        errors.append(float(shift[1:].mean()))
    assert errors[0] > 0.06
    order = np.log2(errors[0] / errors[1])
    assert order == pytest.approx(rbmumla.SPEC.bias_order["step_size"], abs=0.6)


@pytest.mark.slow
def test_share_near_the_boundary_is_right_on_every_scale():
    """P(x < q) of an exponential law, for q down to a thousandth of its mean."""
    law = dist.Gamma(jnp.array([1.0]), 1.0)
    target = constrained_target(law, constraints.positive)
    x = draws(lambda: target, jnp.zeros(1), 20_000, 800, step_size=0.03)
    for q in (0.1, 0.01, 0.001):
        # 20,000 q draws lie there; 4 sd of their count, and a tenth for the step
        assert np.mean(x < q) == pytest.approx(q, rel=0.1 + 4 / (20_000 * q) ** 0.5)


@pytest.mark.slow
def test_a_sparse_law_never_leaves_the_support_in_float32():
    target = constrained_target(
        dist.Dirichlet(jnp.array([0.05, 0.05, 30.0])), constraints.simplex
    )
    values, divergences = tuned_draws(target, {"x": jnp.zeros(2)}, 300)
    assert divergences == 0
    assert np.all(np.isfinite(values["x"]))
    assert np.all(values["x"] > 0)
    np.testing.assert_allclose(values["x"].sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_warm_up_finds_a_positive_posterior_of_mixed_scales():
    """4,000 draws of 4 chains with more than 1,000 effective ones: 4 sd are 0.13 sd."""
    law = dist.Gamma(jnp.array([1.0, 3.0, 50.0]), jnp.array([100.0, 1.0, 0.1]))
    target = constrained_target(law, constraints.positive)
    values, divergences = tuned_draws(target, {"x": jnp.zeros(3)}, 1000)
    sd = np.sqrt(law.variance)
    assert divergences == 0
    np.testing.assert_allclose((values["x"].mean(0) - law.mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(values["x"].std(0) / sd, 1, atol=0.2)


def mixed_model():
    """A support of every kind: with a map, without one, and depending on a site."""
    width = numpyro.sample("width", dist.Exponential(1.0))
    numpyro.sample("inside", dist.Uniform(0.0, width))
    numpyro.sample("correlation", dist.LKJCholesky(2, 2.0))
    numpyro.sample("effect", dist.Laplace(0.0, width))
    numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("below", dist.Uniform(-2.0, 5.0))


@pytest.mark.slow
def test_supports_without_a_map_move_on_the_sampling_space():
    """Known: inside / width is uniform, the correlation has variance 1/5 and mean 0,
    and width is Exp(1). Some 600 effective draws; 0.15 is nearly 4 sd. A funnel: the
    step of warm-up, 0.1, is too long for its neck, and makes the mean width 1.4; 0.02
    makes it 1.12, and 0.005, 1.04."""
    target = model_target(mixed_model)
    position = target.prior.sample(jax.random.key(3))
    values, divergences = tuned_draws(target, position, 1000, step_size=0.005)
    assert divergences == 0
    width = values["width"]
    assert width.mean() == pytest.approx(1.0, abs=0.15)
    assert values["share"].mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    assert values["below"].mean() == pytest.approx(1.5, abs=0.3)
    # sites without a map are kept as they are on the sampling space
    inside = jax.nn.sigmoid(values["inside"])
    assert inside.mean() == pytest.approx(0.5, abs=0.06)
    rho = jnp.tanh(values["correlation"][:, 0])
    assert rho.mean() == pytest.approx(0.0, abs=0.1)
    assert rho.var() == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_log_density_of_a_state_is_the_targets():
    target = model_target(mixed_model)
    state = rbmumla.init(target.prior.sample(jax.random.key(3)), target)
    kernel = jax.jit(
        lambda key, state: rbmumla.build_kernel()(key, state, target, 0.02, 3)
    )
    for key in jax.random.split(jax.random.key(0), 20):
        state, _ = kernel(key, state)
        expected = target(state.position)
        assert state.logdensity == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["barrier", "hyperbolic"])
def test_anisotropic_laplace_has_its_variances(geometry):
    """d = 10, scales 0.1 to 10; 20,000 draws at the end of as many chains."""
    scales = jnp.arange(1.0, 11.0) ** 2 / 10
    target = real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, scales))
    x = draws(
        lambda: target,
        jnp.zeros(10),
        20_000,
        400,
        geometry=geometry,
        step_size=0.03,
        inverse_mass_matrix=2 * scales**2,
    )
    sd = np.sqrt(2) * np.asarray(scales)
    np.testing.assert_allclose(x.mean(0) / sd, 0, atol=0.04)
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=0.08)
