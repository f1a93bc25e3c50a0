"""Targets that the contract suite runs every kernel on, with every part of `Target`."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

from nutfree import registry
from nutfree.numerics.proximal import LaplaceTerm
from nutfree.target import Minibatch, Prior, Split, Target

NUM_ROWS, NUM_OWNERS = 12, 3

#: Every kernel of this package; NumPyro's own is NumPyro's to test.
SPECS = {n: s for n, s in registry.specs().items() if s.mcmc_kernel is None}
#: One that moves by the density, by rows, by owners, by a split; an ensemble, and one
#: of independent draws.
KINDS = {"mala", "sgld", "fsgld", "rbmumla", "follmer", "multalmc"}
#: A pilot of thousands of transitions amplifies the last digit until nothing is alike,
#: and where the log density is NaN it finds a step that a trajectory takes minutes of.
SHORT_PILOT = {
    "blackjax.adjusted_mclmc": {"num_tuning_steps": 100},
    "ensemble": {"num_pilot_draws": 256, "max_pilot_rounds": 8, "num_components": 4},
}


def kernel_param(name: str, *rest, quick: bool = True):
    """A kernel as a parameter; the quick suite leaves out what is not `quick`."""
    return pytest.param(name, *rest, marks=[] if quick else [pytest.mark.slow])


#: Positions of every kind that a kernel must take.
TEMPLATES = {
    "scalar": lambda: jnp.asarray(0.3),
    "d=1": lambda: jnp.asarray([0.3]),
    "d=100": lambda: jnp.linspace(-1.0, 1.0, 100),
    "nested": lambda: {
        "a": jnp.asarray(0.3),
        "b": (jnp.zeros((2, 2)), [jnp.ones(1), jnp.asarray(-0.5)]),
    },
    "dict": lambda: {"x": jnp.asarray([0.3, -0.2]), "y": jnp.asarray(0.1)},
}


def templates_for(spec) -> list[str]:
    """A split is of a model's named sites, so its positions are dicts; and BlackJAX's
    microcanonical kernels refuse a single dimension."""
    if "split" in spec.needs:
        return ["dict"]
    refused = ("scalar", "d=1") if spec.name.endswith("mclmc") else ()
    return [name for name in TEMPLATES if name not in refused]


def gaussian_target(position, probe=lambda weight, position: None) -> Target:
    """A Gaussian posterior with a prior, rows and owners; with a split, a Laplace term.

    Every evaluation of the log density calls `probe(weight, position)` while it runs,
    where the weight is the share of the data that it looks at.
    """
    flat, unravel = ravel_pytree(position)
    rows = jnp.asarray(
        np.random.default_rng(0).normal(0.5, 1.0, (NUM_ROWS, flat.size)), flat.dtype
    )

    def log_prior(position):
        return -0.5 * jnp.sum(ravel_pytree(position)[0] ** 2) / 4.0

    def log_rows(position, rows):
        return -0.5 * jnp.sum((ravel_pytree(position)[0] - rows) ** 2, axis=1) / 10.0

    def logdensity(position):
        probe(1.0, position)
        return log_prior(position) + jnp.sum(log_rows(position, rows))

    def terms(position, indices):
        probe(indices.shape[0] / NUM_ROWS, position)
        return log_prior(position), log_rows(position, rows[indices])

    def shard(owned):
        def logdensity(position):
            probe(1.0 / NUM_OWNERS, position)
            prior = log_prior(position) / NUM_OWNERS
            return prior + jnp.sum(log_rows(position, owned))

        return Target(logdensity, position=position)

    def prior_sample(rng_key):
        return unravel(2.0 * jax.random.normal(rng_key, flat.shape, flat.dtype))

    return Target(
        logdensity,
        position=position,
        prior=Prior(prior_sample, log_prior),
        minibatch=Minibatch(NUM_ROWS, terms),
        shards=tuple(shard(rows[s::NUM_OWNERS]) for s in range(NUM_OWNERS)),
        split=_split(logdensity, position),
    )


def gaussian_moments(position) -> tuple[jax.Array, float]:
    """Mean, of shape `(d,)`, and variance of every coordinate, of `gaussian_target`."""
    dim = ravel_pytree(position)[0].size
    rows = np.random.default_rng(0).normal(0.5, 1.0, (NUM_ROWS, dim))
    precision = 1 / 4 + NUM_ROWS / 10
    return jnp.asarray(rows.sum(0) / 10 / precision, jnp.float32), 1 / precision


def _split(logdensity, position) -> Split | None:
    if not isinstance(position, dict) or "x" not in position:
        return None
    term = LaplaceTerm(jnp.zeros_like(position["x"]), jnp.ones_like(position["x"]))

    def terms(values):
        # the smooth part takes the term back, so that the whole stays as it was
        return logdensity(values) + term.value(values["x"]), {"x": term}

    supports = {name: dist.constraints.real for name in position}
    return Split(terms, supports, dict, dict, lambda z: jnp.asarray(0.0))


def regression(X, y=None, batch_size=None):
    """A linear regression with a Laplace and a positive site, and a data plate."""
    beta = numpyro.sample("beta", dist.Laplace(0, 1).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.deterministic("precision", sigma**-2)
    with numpyro.plate("data", X.shape[0], subsample_size=batch_size):
        X_rows = numpyro.subsample(X, event_dim=1)
        y_rows = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(X_rows @ beta, sigma), obs=y_rows)


def regression_data(num_rows=60, num_columns=2, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, num_columns)).astype(np.float32)
    noise = rng.normal(size=num_rows)
    y = X @ np.linspace(-1, 1, num_columns) + 0.7 * noise
    return {"X": X, "y": y.astype(np.float32)}
