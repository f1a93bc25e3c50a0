"""The ensemble kernel: laws, weights of modes, evidence, and what it says in failure.

Chains have pilots of their own, so that the spread of their estimates is the error;
tolerances are those of Student's t at one false alarm in 10,000 unless said otherwise.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

import nutfree as nf
from nutfree.diagnostics.convergence import convergence
from nutfree.diagnostics.evidence import pareto_k
from nutfree.diagnostics.limits import MAX_PARETO_K
from nutfree.hosts import chain
from nutfree.kernels.ensemble import ensemble, moves
from nutfree.kernels.ensemble.student import (
    draw,
    fit,
    log_density,
    one_component,
    together,
)

LOG_2PI = np.log(2 * np.pi)


def run(logdensity, d, num_chains=4, num_samples=2000, seed=0, **options):
    """`(draws (chains, n, d), infos, params)`; each chain has a pilot of its own."""
    algorithm = chain.algorithm(ensemble.SPEC, options)
    target = nf.Target(logdensity, jnp.zeros(d))

    @jax.jit
    @jax.vmap
    def one(key):
        keys = jax.random.split(key, 3)
        begun = chain.begin(algorithm, target, keys[0], keys[1], jnp.zeros(d), 100)

        def step(state, key):
            state, info = chain.advance(algorithm, target, key, state, 100)
            return state, (state.kernel_state.position, info)

        keys = jax.random.split(keys[2], 100 + num_samples)
        end, out = jax.lax.scan(step, begun, keys)
        out = jax.tree.map(lambda leaf: leaf[100:], out)
        return *out, end.adapt_state.params

    x, info, params = one(jax.random.split(jax.random.key(seed), num_chains))
    return np.asarray(x, float), info, params


def assert_mean(values, truth, level=1e-4):
    """`values` has one estimate a chain."""
    error = values.std(ddof=1) / len(values) ** 0.5
    allowed = student.ppf(1 - level / 2, len(values) - 1) * error
    assert abs(values.mean() - truth) < allowed


def eight_modes(d, seed=0):
    """`(log density, centres, weights)` of unit Gaussians, uniform in [-8, 8]^d."""
    centers = np.random.default_rng(seed).uniform(-8, 8, (8, d))
    weights = np.arange(1, 9) / 36

    def logdensity(x):
        squares = jnp.sum((x - jnp.asarray(centers, x.dtype)) ** 2, axis=-1)
        return jax.nn.logsumexp(jnp.log(jnp.asarray(weights, x.dtype)) - 0.5 * squares)

    return logdensity, centers, weights


def shares(x, centers):
    """Shares of the nearest centres, `(8,)`."""
    squares = ((x[:, None] - centers) ** 2).sum(-1)
    return np.bincount(squares.argmin(1), minlength=8) / len(x)


def test_a_small_gaussian_and_its_evidence():
    """With a pilot of a thousand evaluations, 32 chains; 4 comparisons."""
    small = {"num_pilot_draws": 128, "max_pilot_rounds": 8, "num_components": 2}
    x, info, _ = run(lambda x: -0.5 * jnp.sum(x**2), 2, 32, 300, **small)
    for i in range(2):
        assert_mean(x[..., i].mean(1), 0.0)
        assert_mean((x[..., i] ** 2).mean(1), 1.0)
    ratios = np.asarray(info.proposal_log_importance, float)
    assert_mean(np.nanmean(np.exp(ratios), axis=1), 2 * np.pi)
    assert not np.any(info.num_not_finite)


def test_a_mixture_that_is_too_narrow_neither_holds_a_chain_nor_bends_its_law():
    """20,000 exact draws of N(0, I), each moved by ten steps; q has .2 of its width.

    Five standard errors, three times: false alarms below 2e-6.
    """
    n, d = 20_000, 2
    mixture = one_component(jnp.zeros(d), 0.2 * jnp.eye(d), 2)
    kernel = ensemble.build_kernel()
    params = {
        "mixture": mixture,
        "archive": jax.random.normal(jax.random.key(1), (20, d)),
        "step_size": jnp.ones(()),
        "log_evidence": jnp.asarray(d / 2 * LOG_2PI, jnp.float32),
        "global_probability": jnp.asarray(0.9),
        "num_steps": 10,
    }

    def logdensity(x):
        return -0.5 * jnp.sum(x**2)

    def moved(key, x):
        state = ensemble.init(x, logdensity)
        return kernel(key, state, logdensity, **params)[0].position

    start = jax.random.normal(jax.random.key(2), (n, d))
    keys = jax.random.split(jax.random.key(0), n)
    x = np.asarray(jax.jit(jax.vmap(moved))(keys, start), float)
    radius = np.sum(x**2, axis=1)
    assert abs(radius.mean() - 2) < 5 * (4 / n) ** 0.5
    beyond = np.exp(-(2.5**2) / 2)
    assert abs(np.mean(radius > 2.5**2) - beyond) < 5 * (beyond / n) ** 0.5
    # where q is hardly ever accepted, all steps and not one in ten are local
    weight = -0.5 * np.sum(np.asarray(start) ** 2, 1) - log_density(mixture, start)
    is_heavy = np.asarray(weight) > d / 2 * LOG_2PI + np.log(500)
    stayed = np.all(x == np.asarray(start), axis=1)
    assert is_heavy.sum() > 50
    assert stayed[is_heavy].mean() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 8])
def test_eight_modes_have_their_weights(d):
    logdensity, centers, weights = eight_modes(d)
    x, _, params = run(logdensity, d, num_samples=20_000)
    rng = np.random.default_rng(1)
    exact = centers[rng.choice(8, 10**6, p=weights)] + rng.normal(size=(10**6, d))
    found = shares(x.reshape(-1, d), centers)
    variation = 0.5 * np.abs(found - shares(exact, centers)).sum()
    print(f"d = {d}: total variation {variation:.4f}")
    # the standard error of a share over 30,000 effective draws is at most 0.003
    assert variation < 0.01
    assert np.all(params["global_probability"] > 0.5)


@pytest.mark.slow
def test_a_thin_curved_ridge_is_followed_to_its_ends():
    """x0 of sd 1, x1 = 10 (x0^2 - 1) + noise; 1 % of it lies beyond |x0| = 2.576."""

    def logdensity(x):
        return -0.5 * x[0] ** 2 - 0.5 * (x[1] - 10 * (x[0] ** 2 - 1)) ** 2

    x, _, _ = run(logdensity, 2, 8, 20_000)
    assert_mean(np.mean(np.abs(x[..., 0]) > 2.5758, axis=1), 0.01)
    assert_mean(x[..., 0].mean(1), 0.0)
    assert_mean((x[..., 0] ** 2).mean(1), 1.0)
    # each chain for itself: some 2,000 effective draws, five errors
    assert np.all(np.abs((x[..., 0] ** 2).mean(1) - 1) < 5 * (2 / 2000) ** 0.5)


@pytest.mark.slow
def test_a_correlated_gaussian_in_twenty_dimensions():
    d = 20
    scales = np.geomspace(0.3, 3, d)
    covariance = 0.9 ** np.abs(np.subtract.outer(range(d), range(d)))
    covariance *= np.outer(scales, scales)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    x, _, _ = run(lambda x: -0.5 * x @ precision @ x, d, 8, 5000)
    standard = x / scales
    for i in (0, d // 2, d - 1):
        assert_mean(standard[..., i].mean(1), 0.0)
        assert_mean((standard[..., i] ** 2).mean(1), 1.0)


@pytest.mark.slow
def test_in_sixty_dimensions_differences_alone_are_right():
    d = 60
    scales = np.geomspace(0.3, 3, d)
    x, info, params = run(
        lambda x: -0.5 * jnp.sum((x / jnp.asarray(scales)) ** 2), d, 8, 4000
    )
    assert np.all(params["global_probability"] == 0)
    assert np.all(np.isnan(info.proposal_log_importance))
    standard = (x / scales)[..., ::20].reshape(8, -1)
    assert_mean(standard.mean(1), 0.0)
    assert_mean((standard**2).mean(1), 1.0)
    said = ensemble.concerns(jax.tree.map(lambda p: p[0], params))
    assert "No mixture" in said[0]


@pytest.mark.parametrize("kind", ["evolution", "snooker", "within"])
def test_moves_leave_a_law_invariant(kind, monkeypatch):
    """20,000 exact draws of a law in three dimensions, each moved ten times.

    Five standard errors, twice: false alarms below 1e-6.
    """
    snooker = 1.0 if kind == "snooker" else 0.0
    monkeypatch.setattr(moves, "SNOOKER_PROBABILITY", snooker)
    root = jnp.asarray([[1.0, 0, 0], [0.5, 0.8, 0], [0, 0.3, 0.4]])
    far = one_component(jnp.full(3, -1.0), 0.5 * jnp.eye(3), 2)
    mixture = together(one_component(jnp.ones(3), root, 2), far, 0.3)
    archive = jax.random.normal(jax.random.key(1), (10, 3)) + 0.5
    n = 20_000

    def moved(key, x):
        def step(x, key):
            keys = jax.random.split(key)
            if kind == "within":
                proposal = moves.propose_within(keys[0], x, mixture)
            else:
                proposal = moves.propose(keys[0], x, archive, jnp.ones(()))
            log_ratio = 0.5 * jnp.sum(x**2 - proposal.x**2) + proposal.log_jacobian
            accepted = jnp.log(jax.random.uniform(keys[1])) < log_ratio
            return jnp.where(accepted, proposal.x, x), accepted

        return jax.lax.scan(step, x, jax.random.split(key, 10))

    keys = jax.random.split(jax.random.key(0), n)
    start = jax.random.normal(jax.random.key(2), (n, 3))
    x, accepted = jax.jit(jax.vmap(moved))(keys, start)
    assert 0.05 < np.mean(accepted) < 0.95
    radius = np.sum(np.asarray(x, float) ** 2, axis=1)
    assert abs(radius.mean() - 3) < 5 * (6 / n) ** 0.5
    assert abs(np.mean(x)) < 5 * (1 / (3 * n)) ** 0.5


def test_draws_of_a_mixture_have_its_density():
    """E exp(log p - log q) = 1 over draws of q, for a narrower p; five errors."""
    root = jnp.asarray([[1.0, 0.0], [0.5, 0.8]])
    mixture = one_component(jnp.asarray([1.0, -1.0]), root, 3)
    narrow = one_component(jnp.asarray([1.0, -1.0]), 0.7 * root, 3)
    keys = jax.random.split(jax.random.key(0), 20_000)
    x = jax.vmap(draw, (0, None))(keys, mixture)
    ratio = np.exp(np.asarray(log_density(narrow, x) - log_density(mixture, x), float))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5


def test_a_fit_finds_two_clusters_and_their_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)) + np.where(rng.random((2000, 1)) < 0.3, 20, -20)
    start = one_component(jnp.zeros(2), 10 * jnp.eye(2), 4)
    weights = jnp.full(2000, 1 / 2000)
    mixture = jax.jit(fit)(jax.random.key(0), start, jnp.asarray(x), weights)
    right = mixture.center[:, 0] > 0
    share = jnp.sum(jnp.exp(mixture.log_weight) * right)
    assert float(share) == pytest.approx(np.mean(x[:, 0] > 0), abs=0.01)
    live = np.isfinite(mixture.log_weight)
    apart = np.abs(np.abs(np.asarray(mixture.center)[live]) - 20)
    assert np.all(apart < 3)


@pytest.mark.slow
@pytest.mark.parametrize("num_pilot_draws", [64, 256, 4096])
def test_no_run_loses_modes_unsaid(num_pilot_draws):
    """Eight modes in eight dimensions, 20 seeds of four chains: pilots that are too
    small for them, and the one by default, which loses none.

    Said by what needs no gradient and no search: R-hat, or Pareto k of the mixture.
    """
    logdensity, centers, weights = eight_modes(8)
    options = {"num_pilot_draws": num_pilot_draws, "max_pilot_rounds": 12}
    if num_pilot_draws == ensemble.Options().num_pilot_draws:
        options = {}
    simulate = jax.jit(partial(_four_chains, logdensity, options))
    unsaid = lost = 0
    for seed in range(20):
        draws, stats = simulate(jax.random.key(seed))
        tree = _tree(draws)
        variation = (
            0.5
            * np.abs(shares(np.asarray(draws).reshape(-1, 8), centers) - weights).sum()
        )
        if variation > 0.1:
            lost += 1
            problems = convergence(tree["posterior"].to_dataset()).problems
            unsaid += not (problems or pareto_k(stats[1]) > MAX_PARETO_K)
    print(f"{num_pilot_draws}: {lost} of 20 runs lost modes, {unsaid} unsaid")
    assert (lost == 0) if not options else (lost > 0)
    assert unsaid == 0


def _four_chains(logdensity, options, key):
    algorithm = chain.algorithm(ensemble.SPEC, options)
    target = nf.Target(logdensity, jnp.zeros(8))

    def one(key):
        keys = jax.random.split(key, 3)
        begun = chain.begin(algorithm, target, keys[0], keys[1], jnp.zeros(8), 0)

        def step(state, key):
            state, info = chain.advance(algorithm, target, key, state, 0)
            kept = info.log_importance, info.proposal_log_importance
            return state, (state.kernel_state.position, kept)

        return jax.lax.scan(step, begun, jax.random.split(keys[2], 2000))[1]

    return jax.vmap(one)(jax.random.split(key, 4))


def _tree(draws):
    import xarray as xr

    posterior = xr.Dataset({"x": (("chain", "draw", "i"), np.asarray(draws))})
    return xr.DataTree.from_dict({"posterior": posterior})
