"""RBMUMLA: MYULA in Euclidean geometry, and right at the boundaries of supports."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from nutfree.frontends.numpyro import model_target
from nutfree.kernels.bregman import myula, rbmumla
from nutfree.target import Split, Target
from tests.kernels.bregman.test_myula import VARIANCES, gaussian, real_target


def constrained_target(distribution, constraint) -> Target:
    """One site `x` of a given law on a given support."""
    transform = biject_to(constraint)

    def log_det(z):
        return jnp.sum(transform.log_abs_det_jacobian(z["x"], transform(z["x"])))

    split = Split(
        lambda values: (jnp.sum(distribution.log_prob(values["x"])), {}),
        {"x": constraint},
        lambda z: {"x": transform(z["x"])},
        lambda values: {"x": transform.inv(values["x"])},
        log_det,
    )

    def logdensity(z):
        return split.terms(split.constrain(z))[0] + log_det(z)

    return Target(logdensity, split=split)


def draws(target, start, num_chains, num_steps, geometry="barrier", **params):
    """The values of `x` at the end of many chains that start at one place."""
    kernel = partial(rbmumla.build_kernel(geometry), num_steps=1)

    def chain(key):
        state = rbmumla.init({"x": start}, target, geometry=geometry)

        def step(state, key):
            return kernel(key, state, target, **params)[0], None

        state, _ = jax.lax.scan(step, state, jax.random.split(key, num_steps))
        return state.values["x"]

    keys = jax.random.split(jax.random.key(0), num_chains)
    return np.asarray(jax.jit(jax.vmap(chain))(keys))


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
    variances = jnp.array([0.3, 0.4, 0.5, 0.6, 0.7])
    states = [mod.init(position, target) for mod in (myula, rbmumla)]
    kernels = [
        jax.jit(
            partial(
                mod.build_kernel(), logdensity_fn=target, step_size=0.1, num_steps=1
            )
        )
        for mod in (myula, rbmumla)
    ]
    for key in jax.random.split(jax.random.key(0), 50):
        states, infos = zip(
            *(k(key, s, inverse_mass_matrix=variances) for k, s in zip(kernels, states))
        )
        one, other = (jax.tree.leaves(s.position) for s in states)
        for a, b in zip(one, other):
            np.testing.assert_allclose(a, b, atol=1e-3)
        rates = [info.acceptance_rate for info in infos]
        np.testing.assert_allclose(rates[0], rates[1], atol=1e-3)
        assert states[0].logdensity == pytest.approx(
            float(states[1].logdensity), abs=1e-2
        )


def test_gaussian_law_is_that_of_the_discretised_chain():
    """20,000 independent draws; 4.5 sd bounds fail once in 100,000."""
    x = draws(
        real_target(gaussian),
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
    "gamma": (dist.Gamma(jnp.array([1.0, 2.0, 5.0]), 1.0), constraints.positive, 3),
    "beta": (
        dist.Beta(jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 1.0, 3.0])),
        constraints.unit_interval,
        3,
    ),
    "dirichlet": (
        dist.Dirichlet(jnp.array([1.0, 2.0, 4.0, 1.0])),
        constraints.simplex,
        3,
    ),
}


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, marks=pytest.mark.slow) if law == "dirichlet" else law
        for law in TARGETS
    ],
)
def test_mirror_langevin_has_the_moments_of_laws_with_a_boundary(law):
    """g = 0. 10,000 independent draws: 0.04 sd is 4 sd of the mean, 6 % some 4 sd of
    the sd of these laws; the step's own bias of up to 0.05 sd comes on top."""
    distribution, constraint, size = TARGETS[law]
    target = constrained_target(distribution, constraint)
    mean, variance = np.asarray(distribution.mean), np.asarray(distribution.variance)
    x = draws(
        target,
        jnp.zeros(size),
        10_000,
        300,
        step_size=0.03,
        inverse_mass_matrix=jnp.asarray(variance),
        center=jnp.asarray(mean),
    )
    np.testing.assert_allclose((x.mean(0) - mean) / variance**0.5, 0, atol=0.09)
    np.testing.assert_allclose(x.std(0) / variance**0.5, 1, atol=0.09)


def test_bias_falls_with_the_step():
    """The mean of Gamma(2, 1), which 40,000 draws know to 0.5 % of its sd."""
    target = constrained_target(dist.Gamma(jnp.array([2.0]), 1.0), constraints.positive)
    errors = [
        abs(
            draws(
                target,
                jnp.zeros(1),
                40_000,
                steps,
                step_size=gamma,
                inverse_mass_matrix=2.0,
            ).mean()
            - 2.0
        )
        for gamma, steps in ((0.6, 60), (0.05, 300))
    ]
    assert errors[0] > 0.08
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
def test_share_near_the_boundary_is_right_on_every_scale():
    """P(x < q) of an exponential law, for q down to a thousandth of its mean."""
    target = constrained_target(dist.Gamma(jnp.array([1.0]), 1.0), constraints.positive)
    x = draws(target, jnp.zeros(1), 20_000, 800, step_size=0.03)
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
    from nutfree.numerics.proximal import LaplaceTerm

    scales = jnp.arange(1.0, 11.0) ** 2 / 10
    target = real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, scales))
    x = draws(
        target,
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
