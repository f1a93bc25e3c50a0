"""A run says so where owners' surrogates do not describe the posterior."""

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf

STRAY, NO_MODE = "owners' steps stray", "mode was not found"


def network(X, y):
    inner = numpyro.sample("inner", dist.Normal(0, 1).expand([2, 3]).to_event(2))
    outer = numpyro.sample("outer", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        mean = jnp.tanh(rows @ inner) @ outer
        numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def logistic(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=y)


def owners_of(model):
    """Four owners of unequal sizes, each with covariates of its own range."""
    rng = np.random.default_rng(0)
    z = np.sort(rng.uniform(-2, 2, 800))
    if model is network:
        y = (np.sin(z) + 0.3 * rng.normal(size=800)).astype(np.float32)
    else:
        y = (rng.uniform(size=800) < 1 / (1 + np.exp(-z))).astype(int)
    X = np.column_stack([np.ones(800), z]).astype(np.float32)
    cuts = [100, 300, 500]
    return [{"X": a, "y": b} for a, b in zip(np.split(X, cuts), np.split(y, cuts))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "options", "said"),
    [
        (network, "fald", {}, STRAY),
        (network, "fald", {"num_local_steps": 1}, NO_MODE),
        (network, "fsgld", {}, NO_MODE),
        (network, "plain_fald", {"num_rounds": 5}, STRAY),
        (logistic, "plain_fald", {"num_rounds": 5}, STRAY),
        (logistic, "fald", {}, ""),
        (logistic, "fald", {"num_local_steps": 100, "participation": 0.5}, ""),
        (logistic, "fsgld", {}, ""),
    ],
)
def test_owners_that_stray_from_their_surrogates_are_told_of(
    model, name, options, said
):
    """Of logistic rows: 400 rounds in two coordinates, three errors of 0.05."""
    kernel = nf.kernel(name, nf.federated(model), **options)
    settings = {"num_warmup": 5, "num_samples": 200, "num_chains": 2}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tree = nf.sample(kernel, owners_of(model), progress_bar=False, **settings)
    heard = " ".join(str(warning.message) for warning in seen)
    if said:
        assert said in heard
    else:
        assert STRAY not in heard
        assert NO_MODE not in heard
        np.testing.assert_allclose(
            tree["sample_stats"]["surrogate_misfit"].mean(), 1, atol=0.15
        )
