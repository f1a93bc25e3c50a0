"""Adjusted trajectories: exact whatever the step and the smoothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.stats import kurtosis

import nutfree as nf
from nutfree.kernels.bregman import marbmumla
from nutfree.kernels.bregman.coordinates import Kinds, Tails, enter, fitted, leave
from nutfree.kernels.bregman.reference import reference_at
from nutfree.kernels.bregman.scales import Scales, found_scales, which_of
from nutfree.numerics.moments import Moments
from nutfree.numerics.proximal import LaplaceTerm
from nutfree.warmup import fisher
from tests.kernels.bregman.chains import (
    assert_law,
    constrained_target,
    ends,
    gaussian,
    real_target,
)

NUM_CHAINS = 20_000
KERNELS = {on: marbmumla.build_kernel(mirrored=on) for on in (True, False)}


def advanced(
    target_of, start, *, mirrored=True, num_transitions, target_args=(), **params
):
    """Positions after so many transitions of chains that start from `start`."""
    run = ends(marbmumla.init, KERNELS[mirrored], target_of, num_steps_each=None)
    state, rates = run(start, num_transitions, *target_args, **params)
    return np.asarray(state.position["x"]), float(rates.mean())


def laplace_target():
    return real_target(lambda x: jnp.asarray(0.0), LaplaceTerm(0.0, 1.0))


def gamma_target():
    return constrained_target(GAMMA, constraints.positive)


GAMMA = dist.Gamma(jnp.array([0.5, 1.0, 20.0]), 1.0)


@pytest.mark.parametrize("smoothing", [0.1, 5.0])
def test_laplace_stays_laplace_with_long_steps_and_any_smoothing(smoothing):
    """Exact draws stay exact: no bias from the step or from the envelope."""
    law = dist.Laplace(0.0, 1.0)
    start = law.sample(jax.random.key(1), (NUM_CHAINS, 1))
    x, rate = advanced(
        laplace_target, start, step_size=1.0, smoothing=smoothing, num_transitions=10
    )
    assert 0.2 < rate < 0.97
    assert_law(x[:, 0], law.cdf)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scale", [pytest.param(0.1, marks=pytest.mark.slow), 1.0, 10.0]
)
@pytest.mark.parametrize("is_diagonal", [True, False])
def test_a_kinked_gaussian_stays_as_it_is_whatever_the_reference(scale, is_diagonal):
    """N(1, 1) times Laplace(0, b), with a quadratic, a slope and kinks that are off."""
    target = kinked_target(scale)
    x = np.linspace(-12, 12, 240_001)
    mass = np.cumsum(np.exp(-0.5 * (x - 1) ** 2 - np.abs(x) / scale))
    uniform = jax.random.uniform(jax.random.key(1), (NUM_CHAINS, 2))
    start = jnp.interp(uniform, mass / mass[-1], x)
    root = jnp.array([0.7, 0.9])
    root = root if is_diagonal else jnp.diag(root) + jnp.array([[0, 0], [0.2, 0]])
    found = reference_at(target.split, jnp.array([0.2, -0.1]), lambda s: {"x": s}, root)
    kinks = found.kinks._replace(above=0.8 * found.kinks.above)
    ours = found._replace(tilt=jnp.array([0.3, 0.5]), omega=0.8, kinks=kinks)
    params = {"step_size": 1.2, "factor": root, "reference": ours}
    x_end, rate = advanced(
        kinked_target, start, num_transitions=6, target_args=(scale,), **params
    )
    assert 0.2 < rate < 0.999
    assert ours.kinks.are_separate == is_diagonal
    for i in range(2):
        assert_law(x_end[:, i], lambda v: np.interp(v, x, mass / mass[-1]))


def kinked_target(scale):
    return real_target(
        lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), LaplaceTerm(0.0, scale)
    )


def test_gaussian_is_reached_from_afar_at_half_the_stability_limit():
    """20,000 draws; 4.5 sd bounds fail once in 100,000."""
    start = jnp.full((NUM_CHAINS, 2), 4.0)
    x, _ = advanced(
        lambda: real_target(gaussian), start, step_size=1.0, num_transitions=30
    )
    sd = np.array([1.0, 2.0])
    np.testing.assert_allclose((x.mean(0) - 1) / sd, 0, atol=4.5 / NUM_CHAINS**0.5)
    spread = 4.5 * (2 / NUM_CHAINS) ** 0.5
    np.testing.assert_allclose(x.var(0) / sd**2, 1, atol=spread)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize(
    ("unit", "left"), [(0.1, 0.5), pytest.param(1.0, 0.0, marks=pytest.mark.slow)]
)
def test_gamma_laws_stay_as_they_are(mirrored, unit, left):
    """Near the boundary and far from it, whatever the unit and the tail."""
    start = jnp.log(GAMMA.sample(jax.random.key(1), (NUM_CHAINS,)))
    # the standard deviations of the logs
    factor = jnp.ones(3) if mirrored else jnp.array([2.2, 1.3, 0.23])
    tails = Tails(unit, 0.0, left, 0.0)
    params = {"step_size": 0.6, "tails": tails, "factor": factor}
    x, rate = advanced(
        gamma_target, start, mirrored=mirrored, num_transitions=10, **params
    )
    assert 0.2 < rate < 0.999
    for i, shape in enumerate((0.5, 1.0, 20.0)):
        cdf = partial(jax.scipy.special.gammainc, shape)
        assert_law(np.exp(x[:, i]), lambda v, cdf=cdf: np.asarray(cdf(v)))


def test_coordinates_invert_and_have_their_jacobian():
    """Logs of distances, logits of shares and a real one whose scale two distances
    make, with and without tails."""
    z = jnp.array([-80.0, -20.0, -6.0, 0.0, 1.5, 6.0] * 4 + [3.0])
    no, yes = np.zeros(6, bool), np.ones(6, bool)
    half = np.concatenate([yes, yes, no, no, [False]])
    share, real = np.concatenate([no, no, yes, yes, [False]]), np.arange(25) == 24
    of = Kinds(half, share, np.zeros(25), real)
    tail = jnp.asarray(np.concatenate([no, yes, no, yes, [False]]), float)
    powers = jnp.zeros((1, 12)).at[0, jnp.array([4, 10])].set(jnp.array([0.7, -1.2]))
    scales = Scales(powers, jnp.full(12, 0.5), jnp.array([0.3]))
    center = jnp.where(half, 0.0, -0.3)
    tails = Tails(0.7, center, 4.0 * tail, 0.8 * tail, scales)

    @jax.jit
    def there_and_back(z):
        s = enter(z, of, tails)
        jacobian = jax.jacfwd(lambda s: leave(s, of, tails)[0])(s)
        return *leave(s, of, tails), jacobian

    back, log_slope, jacobian = there_and_back(z)
    np.testing.assert_allclose(back, z, rtol=1e-5, atol=1e-5)
    slope = jnp.sum(jnp.log(jnp.diag(jacobian)))  # which is triangular
    np.testing.assert_allclose(log_slope, slope, rtol=1e-4)


def log_gamma(rng, shape, num):
    """Logs of Gamma draws, also of those that are less than the least number."""
    return np.log(rng.gamma(shape + 1, size=num)) + np.log(rng.random(num)) / shape


def test_coordinates_of_bounded_laws_are_nearly_gaussian():
    """In NumPyro's own coordinates excess kurtoses are up to 4."""
    rng, num = np.random.default_rng(0), 2000
    logs = {
        "gamma .05": log_gamma(rng, 0.05, num),
        "exponential": log_gamma(rng, 1.0, num),
        "gamma 50": log_gamma(rng, 50.0, num),
        "half a Cauchy": np.log(np.abs(rng.standard_cauchy(num))),
    }
    shapes = ((0.2, 500.0), (0.1, 0.1), (0.2, 0.4), (300.0, 200.0))
    logits = [log_gamma(rng, a, num) - log_gamma(rng, b, num) for a, b in shapes]
    z = jnp.asarray(np.stack([*logs.values(), *logits], axis=1), jnp.float32)
    half = np.arange(8) < 4
    of = Kinds(half, ~half, np.zeros(8), np.zeros(8, bool))
    tails, known = fitted(of, moments_of(z), moments_of(jnp.exp(jnp.where(half, z, 0))))
    s = np.asarray(jax.vmap(lambda z: enter(z, of, tails))(z))
    assert known.all()
    assert np.all((s.std(0) > 0.8) & (s.std(0) < 1.6))
    assert np.all(np.abs(kurtosis(s)) < 2)


@pytest.mark.parametrize(
    ("power", "noise"),
    [pytest.param(-1.0, 100.0, id="a funnel"), pytest.param(1.0, 0.1, id="a ridge")],
)
def test_scales_are_found_from_scores(power, noise):
    """x ~ N(0, exp(t)) alone, and x ~ N(0, 1) with an observation of x exp(t).

    By 60 points about a curve, in both there is one coordinate y in which x and t are
    independent, nearly, and in others there is none.
    """

    def logdensity(z):
        t, x, other = z
        if power < 0:
            return -0.5 * (x * jnp.exp(-t)) ** 2 - t - 0.5 * t**2 - 0.5 * other**2
        seen = (x * jnp.exp(t) - 2.0) / noise
        return -0.5 * (x**2 + t**2 + other**2 + seen**2)

    t, x, other = np.random.default_rng(0).normal(size=(3, 60)).astype(np.float32)
    t = t if power < 0 else 1.0 + 0.5 * t
    x = x * np.exp(t) if power < 0 else (2.0 + noise * x) * np.exp(-t)
    z = jnp.stack([t, x, other], 1)
    which = which_of(np.array([False, True, True]), np.array([True, False, False]))
    told = jnp.ones(60, bool)
    find = jax.jit(partial(found_scales, which))
    score = jax.vmap(jax.grad(logdensity))(z)
    found = find(z, score, told, jnp.mean(t)[None])
    np.testing.assert_allclose(found.powers, [[power], [0.0]], atol=0.1)
    assert found.onset[0] >= 1
    # a posterior that is a Gaussian is left alone
    assert not np.any(find(z, -z, told, jnp.zeros(1)).powers)


def moments_of(x) -> Moments:
    squares = jnp.sum((x - x.mean(0)) ** 2, axis=0)
    return Moments(jnp.asarray(float(len(x))), x.mean(0), squares)


def test_fisher_factor_of_a_gaussian_is_exact_from_few_draws():
    """60 draws of 30 coordinates, where a sample covariance is off by half."""
    d, num = 30, 60
    basis = jax.random.normal(jax.random.key(0), (d, d))
    covariance = basis @ basis.T / d + 0.1 * jnp.eye(d)
    x = (
        jax.random.normal(jax.random.key(1), (num, d))
        @ jnp.linalg.cholesky(covariance).T
    )
    g = -jnp.linalg.solve(covariance, x.T).T
    start = fisher.no_sums(d, x.dtype)
    sums, _ = jax.lax.scan(lambda s, xg: (fisher.add(s, *xg), None), start, (x, g))
    root = jax.jit(fisher.factor)(sums)
    white = jnp.linalg.solve(root, jnp.linalg.cholesky(covariance))
    singular = np.linalg.svd(white, compute_uv=False)
    assert np.all((singular > 0.75) & (singular < 1.35))


def test_a_far_start_is_left_before_the_pilot():
    """Where the log density is so low that float32 cannot tell steps apart."""
    scales = jnp.array([1e-3, 1.0])
    target = real_target(lambda x: -0.5 * jnp.sum((x / scales) ** 2))
    warmup = marbmumla.warmup()
    init = jax.jit(partial(warmup.init, target=target, num_steps=0))
    adapt = init(jax.random.key(0), {"x": jnp.full(2, 50.0)})
    params = warmup.final(adapt)
    assert params["step_size"] > 0.2
    assert jnp.all(jnp.abs(adapt.position["x"] / scales) < 6)
    found = jnp.sqrt(jnp.sum(params["factor"] ** 2, axis=1)) / scales
    assert jnp.all((found > 0.7) & (found < 1.4))


def test_steps_and_densities_are_counted():
    target = real_target(gaussian)
    state = marbmumla.init({"x": jnp.zeros(2)}, target)
    kernel = jax.jit(partial(marbmumla.build_kernel(), logdensity_fn=target))
    for options, expected in (
        ({"step_size": 0.7, "num_steps": 0}, 2),
        ({"step_size": 0.5, "num_steps": 3}, 3),
        ({"step_size": 1e-6, "num_steps": 0}, 128),
    ):
        _, info = kernel(jax.random.key(0), state, **options)
        assert marbmumla.SPEC.gradients(None, options, target) == expected
        assert info.num_grad_evals == info.num_steps == expected
        assert info.num_density_evals == 1


def denoise(y):
    x = numpyro.sample("x", dist.Normal(0, 10).expand(y.shape).to_event(2))
    nf.nonsmooth("tv", x, 0.1, norm="tv")
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marbmumla", "mamyula"])
def test_a_picture_takes_less_than_100_vectors_of_memory(name):
    """Warm-up and transitions of a chain, by the compiler's own account."""
    n = 256
    target = nf.model_target(denoise, (jnp.zeros((n, n)),))
    mirrored = name == "marbmumla"
    warmup = marbmumla.warmup(mirrored=mirrored)

    def run(key, position):
        adapt = warmup.init(key, position, target, 0)
        state = marbmumla.init(adapt.position, target)
        params = warmup.final(adapt)
        return KERNELS[mirrored](key, state, target, **params)

    program = jax.jit(run).lower(jax.random.key(0), target.position).compile()
    used = program.memory_analysis().temp_size_in_bytes / (4 * n * n)
    print(f"{name}: {used:.0f} vectors")
    assert used < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marbmumla", "mamyula", "rbmumla", "myula"])
@pytest.mark.parametrize(
    "label", ["lasso_diabetes", "positive_regression", "simplex_regression"]
)
def test_untuned_answer_agrees_with_nuts(name, label):
    """500 + 3,000 transitions of 4 chains: means within 0.3 sd, sds within 15 %.

    That is more than 6 standard errors of a mean, and of a sd, where the draws come
    as far out as 9 of them, 5, over at most 51 coordinates.
    """
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    import models
    from nutfree.hosts.kernel import kernel

    zoo = models.load(label)

    def run(kernel, num_samples):
        mcmc = MCMC(
            kernel,
            num_warmup=500,
            num_samples=num_samples,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), **zoo.data())
        return mcmc.get_samples(group_by_chain=True)

    reference = run(NUTS(zoo.model, target_accept_prob=0.9), 3000)
    draws = run(kernel(name, model=zoo.model), 3000)
    for site, exact in reference.items():
        sd, x = exact.std((0, 1)), np.asarray(draws[site])
        shift = (x.mean((0, 1)) - exact.mean((0, 1))) / sd
        np.testing.assert_allclose(shift, 0, atol=0.3)
        np.testing.assert_allclose(x.std((0, 1)) / sd, 1, atol=0.15)
        assert np.all(split_gelman_rubin(x) < 1.05)
        assert np.min(effective_sample_size(x)) > 100
