"""Kernels that promise to be exact: simulation-based calibration, reference draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC
from scipy.stats import chisquare

import nutfree as nf
from models import posteriordb
from nutfree import registry
from nutfree.frontends.numpyro import analyse
from nutfree.hosts.transition import first_state

SPECS = registry.specs()
CHAINS = [
    name
    for name, spec in SPECS.items()
    if spec.guarantee == "exact" and spec.draws == "chain" and spec.mcmc_kernel is None
]
#: A Gaussian prior on the sampling space is more than these posteriors have.
EVERYWHERE = [name for name in CHAINS if "prior" not in SPECS[name].needs]
#: Transitions between two draws: random walks mix slowly.
THINNING = {"blackjax.rmh": 40, "mala": 10, "blackjax.mala": 10, "blackjax.barker": 10}
#: What 800 pilots side by side have the memory for; an exact kernel is exact after any.
PILOT = {
    "ensemble": {"num_pilot_draws": 64, "max_pilot_rounds": 12, "num_components": 4}
}

NUM_RANKS = 15


def smooth(y=None):
    """Three observations only, so that the posterior is far from its likelihood."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    log_sigma = numpyro.sample("sigma", dist.Normal(0, 0.5))
    with numpyro.plate("data", 3):
        return numpyro.sample("y", dist.Normal(mu, jnp.exp(log_sigma)), obs=y)


def nonsmooth(y=None):
    """The same with a Laplace prior and a bounded scale, for kernels with a split."""
    mu = numpyro.sample("mu", dist.Laplace(0, 2))
    sigma = numpyro.sample("sigma", dist.LogNormal(0, 0.5))
    with numpyro.plate("data", 3):
        return numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.fixture(scope="module")
def frontends():
    """Of the two models, and the prior of the first, which is that of any data.

    Built here, where elliptical slice sampling can look at the prior's numbers.
    """
    data = (np.zeros(3),)
    is_smooth, is_nonsmooth = (analyse(model, data) for model in (smooth, nonsmooth))
    return is_smooth, is_nonsmooth, is_smooth.build(data).prior


def rank(name, frontends, key):
    """Ranks of the true parameters among thinned draws of their posterior.

    On the sampling space, where sigma is its logarithm under both priors.
    """
    prior_key, data_key, chain_key, start_key, pilot_key = jax.random.split(key, 5)
    truth_keys = jax.random.split(prior_key)
    split = "split" in SPECS[name].needs
    law = jax.random.laplace if split else jax.random.normal
    truth = {
        "mu": 2 * law(truth_keys[0]),
        "sigma": 0.5 * jax.random.normal(truth_keys[1]),
    }
    noise = jnp.exp(truth["sigma"]) * jax.random.normal(data_key, (3,))
    is_smooth, is_nonsmooth, prior = frontends
    target = (is_nonsmooth if split else is_smooth).build((truth["mu"] + noise,))
    if not split:
        target = replace(target, prior=prior)
    kernel = nf.kernel(name, target, **PILOT.get(name, {}))
    kernel._num_warmup = 200
    start = {"mu": jnp.asarray(0.0), "sigma": jnp.asarray(0.0)}
    keys = chain_key, start_key, pilot_key
    state = first_state(kernel.algorithm, target, 200, *keys, start)

    def thinned(length):
        def step(state, _):
            state = jax.lax.fori_loop(
                0, length, lambda _, s: kernel.sample(s, (), {}), state
            )
            return state, state.z

        return step

    state, _ = jax.lax.scan(thinned(1), state, None, length=200)
    thinning = 4 * THINNING.get(name, 3)
    draws = jax.lax.scan(thinned(thinning), state, None, length=NUM_RANKS)[1]
    return {k: jnp.sum(draws[k] < truth[k]) for k in truth}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) for n in CHAINS],
)
def test_ranks_of_the_truth_are_uniform(name, frontends):
    """Two chi-square tests at 1e-3 each, for each kernel."""
    keys = jax.random.split(jax.random.key(7), 800)
    ranks = jax.jit(jax.vmap(lambda key: rank(name, frontends, key)))(keys)
    for site, values in ranks.items():
        counts = np.bincount(np.asarray(values), minlength=NUM_RANKS + 1)
        assert chisquare(counts).pvalue > 1e-3, (site, counts)


def standard_errors_apart(a, b):
    """Difference of two means of (chains, draws, ...) in Monte-Carlo errors."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    squared_errors = [x.var((0, 1)) / effective_sample_size(x) for x in (a, b)]
    return (a.mean((0, 1)) - b.mean((0, 1))) / np.sqrt(sum(squared_errors))


#: Transitions between two draws that are compared.
REFERENCE_THINNING = {
    "mala": 10,
    "blackjax.mala": 10,
    "blackjax.barker": 10,
    "blackjax.ghmc": 10,
    "blackjax.rmh": 40,
    "blackjax.adjusted_mclmc": 4,
    "mamyula": 2,
}
#: And how many times more where the curvature changes from place to place, in warm-up
#: too: of the step that 2,000 transitions tune, the tails are hardly ever left.
SLOW_POSTERIOR = {"gp_pois_regr": 10}
#: Kernels that move far enough in one transition for any of these posteriors.
QUICK = {"blackjax.nuts", "blackjax.hmc"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("posterior", posteriordb.names())
def test_exact_kernel_agrees_with_the_reference(name, posterior):
    """134 comparisons for each kernel at 4.5 standard errors: 1e-3 false alarms."""
    module = posteriordb.load(posterior)
    longer = 1 if name in QUICK else SLOW_POSTERIOR.get(posterior, 1)
    thinning = longer * REFERENCE_THINNING.get(name, 1)
    with jax.enable_x64(True):
        mcmc = MCMC(
            nf.kernel(name, module.model),
            num_warmup=2000 * longer,
            num_samples=2000 * thinning,
            thinning=thinning,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), **module.data())
        draws = jax.device_get(mcmc.get_samples(group_by_chain=True))
    worst, r_hat = 0.0, 0.0
    for site, reference in module.reference().items():
        centre = reference.mean((0, 1), dtype=float)
        mean = standard_errors_apart(draws[site], reference)
        square = standard_errors_apart(
            (draws[site] - centre) ** 2, (reference - centre) ** 2
        )
        worst = max(worst, np.abs(mean).max(), np.abs(square).max())
        # a chain that never moved has no variance, and R-hat no value
        r_hat = max(r_hat, np.nan_to_num(gelman_rubin(draws[site]), nan=np.inf).max())
    print(f"{name} {posterior}: {worst:.2f} standard errors apart, R-hat {r_hat:.3f}")
    assert r_hat < 1.05
    assert worst < 4.5
