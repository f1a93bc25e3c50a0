"""Simulation-based calibration of the exact kernels on a lasso, a product, a simplex
and a total variation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import chisquare

import nutfree as nf
from nutfree.frontends.numpyro import analyse
from nutfree.hosts.transition import first_state

NUM_REPLICATES, NUM_RANKS, NUM_WARMUP, THINNING = 800, 15, 200, 12
X = jnp.array([[1.0, 0.8, 0.0], [0.5, -0.3, 1.0], [0.2, 1.0, 0.4], [-0.7, 0.1, 1.2]])
CONCENTRATION = jnp.array([0.5, 1.0, 2.0])
SIZE, JUMP = 5, 0.7


def lasso(y):
    scale = numpyro.sample("scale", dist.LogNormal(0, 0.5))
    beta = numpyro.sample("beta", dist.Laplace(0, scale).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 0.7).to_event(1), obs=y)


def lasso_truth(key):
    keys = jax.random.split(key, 3)
    scale = jnp.exp(0.5 * jax.random.normal(keys[0]))
    beta = scale * jax.random.laplace(keys[1], (3,))
    y = X @ beta + 0.7 * jax.random.normal(keys[2], (4,))
    return {"scale": scale, "beta": beta}, y


def product(y):
    """A scale and what is in its units: a ridge, with a funnel at its end."""
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(scale * z, 0.3).to_event(1), obs=y)


def product_truth(key):
    keys = jax.random.split(key, 3)
    scale, z = jnp.exp(jax.random.normal(keys[0])), jax.random.normal(keys[1], (3,))
    return {"scale": scale, "z": z}, scale * z + 0.3 * jax.random.normal(keys[2], (3,))


def simplex(y):
    share = numpyro.sample("share", dist.Dirichlet(CONCENTRATION))
    numpyro.sample("y", dist.Multinomial(4, share), obs=y)


def simplex_truth(key):
    share_key, data_key = jax.random.split(key)
    share = dist.Dirichlet(CONCENTRATION).sample(share_key)
    y = dist.Multinomial(4, share, total_count_max=4).sample(data_key)
    return {"share": share}, y


def total_variation(y):
    """The prior is a walk of Laplace steps, whose density is that of the term."""
    free = dist.ImproperUniform(dist.constraints.real_vector, (), (SIZE,))
    level = numpyro.sample("level", free)
    numpyro.factor("first", -0.5 * level[0] ** 2)
    nf.nonsmooth("steps", level, JUMP, norm="tv")
    numpyro.sample("y", dist.Normal(level, 0.8).to_event(1), obs=y)


def total_variation_truth(key):
    keys = jax.random.split(key, 3)
    steps = JUMP * jax.random.laplace(keys[0], (SIZE - 1,))
    level = jax.random.normal(keys[1]) + jnp.concatenate([jnp.zeros(1), steps.cumsum()])
    return {"level": level}, level + 0.8 * jax.random.normal(keys[2], (SIZE,))


def seen(values):
    """What is ranked: every coordinate, and what of them has kinks."""
    flat = jnp.concatenate([jnp.ravel(v) for _, v in sorted(values.items())])
    kinked = jnp.sum(jnp.abs(jnp.diff(flat))), jnp.max(jnp.abs(flat))
    return jnp.concatenate([flat, jnp.stack(kinked)])


CASES = {
    "lasso": (lasso, lasso_truth),
    "product": (product, product_truth),
    "simplex": (simplex, simplex_truth),
    "total variation": (total_variation, total_variation_truth),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marbmumla", "mamyula"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_of_the_truth_are_uniform(name, case):
    """At most 7 chi-square tests at 1e-4 each, for each kernel and model."""
    model, truth_of = CASES[case]
    frontend = analyse(model, (truth_of(jax.random.key(0))[1],))

    def ranks(key):
        truth_key, *keys = jax.random.split(key, 4)
        truth, data = truth_of(truth_key)
        target = frontend.build((data,))
        kernel = nf.kernel(name, target)
        kernel._num_warmup = NUM_WARMUP
        start = jax.tree.map(jnp.zeros_like, target.unconstrain(truth))
        state = first_state(kernel.algorithm, target, NUM_WARMUP, *keys, start)

        def after(length):
            def step(state, _):
                state = jax.lax.fori_loop(
                    0, length, lambda _, s: kernel.sample(s, (), {}), state
                )
                return state, seen(target.constrain(state.z))

            return step

        state, _ = jax.lax.scan(after(1), state, None, length=NUM_WARMUP)
        draws = jax.lax.scan(after(THINNING), state, None, length=NUM_RANKS)[1]
        return jnp.sum(draws < seen(truth), axis=0)

    keys = jax.random.split(jax.random.key(7), NUM_REPLICATES)
    found = np.asarray(jax.jit(jax.vmap(ranks))(keys))
    levels = []
    for i in range(found.shape[1]):
        counts = np.bincount(found[:, i], minlength=NUM_RANKS + 1)
        levels.append(chisquare(counts).pvalue)
    print(f"{name}, {case}: least level {min(levels):.2g} of {len(levels)}")
    assert min(levels) > 1e-4
