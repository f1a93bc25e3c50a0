"""Posteriors over many rows, each a model that runs in full and in batches.

    logistic   N x d synthetic rows
    census     the same on the adult data: UCI Machine Learning Repository (CC BY 4.0),
               shipped in models/data
    counts     hierarchical Poisson regression: 20 groups, 5 covariates, synthetic
    network    one hidden layer on the age, schooling and hours of the same census

A network's weights can change places and signs, so it is judged by the log odds that it
gives to 50 people; the others by their parameters on the sampling space. With more of
the census, or the capital gains, it has lesser modes in which chains of NUTS stay, and
there is no reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

import models
import nutfree as nf
from benchmarks.common import laplace_reference
from benchmarks.overhead import synthetic

NUM_GROUPS, NUM_HIDDEN, NUM_PEOPLE = 20, 4, 50


@dataclass(frozen=True)
class Problem:
    """A model, its data, and what is compared.

    look
        `samples -> (n, k)`, from the model's own values with a leading axis of draws.
    reference
        `() -> (mean, sd)` of what `look` shows; None stands for a long run of NUTS.
    """

    model: Callable
    data: dict
    look: Callable
    reference: Callable[[], tuple[NDArray, NDArray]] | None

    @property
    def target(self) -> nf.Target:
        return nf.model_target(self.model, kwargs=self.data)


def logistic(X, y=None, batch_size=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0], subsample_size=batch_size):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


def counts(X, group, y=None, batch_size=None):
    level = numpyro.sample("level", dist.Normal(0, 2))
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("groups", NUM_GROUPS):
        effect = numpyro.sample("effect", dist.Normal(level, spread))
    with numpyro.plate("data", X.shape[0], subsample_size=batch_size):
        rows = numpyro.subsample(X, event_dim=1)
        which = numpyro.subsample(group, event_dim=0)
        seen = None if y is None else numpyro.subsample(y, event_dim=0)
        rate = jnp.exp(effect[which] + rows @ beta)
        numpyro.sample("y", dist.Poisson(rate), obs=seen)


def synthetic_counts(num_rows: int, dim: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(num_rows, dim)).astype(np.float32)
    # groups of unequal sizes, the smallest of a few hundred rows
    share = np.geomspace(1, 100, NUM_GROUPS)
    group = rng.choice(NUM_GROUPS, num_rows, p=share / share.sum())
    effect = 0.5 + 0.7 * rng.normal(size=NUM_GROUPS)
    rate = np.exp(effect[group] + X @ rng.normal(scale=0.3, size=dim))
    return {"X": X, "group": group, "y": rng.poisson(rate)}


def network(X, y=None, batch_size=None):
    def normal(name, *shape, fan_in=1):
        prior = dist.Normal(0, fan_in**-0.5).expand(shape).to_event(len(shape))
        return numpyro.sample(name, prior)

    w1 = normal("w1", X.shape[1], NUM_HIDDEN, fan_in=X.shape[1])
    b1 = normal("b1", NUM_HIDDEN)
    w2 = normal("w2", NUM_HIDDEN, fan_in=NUM_HIDDEN / 9)
    b2 = normal("b2")
    with numpyro.plate("data", X.shape[0], subsample_size=batch_size):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        logits = jnp.tanh(rows @ w1 + b1) @ w2 + b2
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=labels)


def log_odds(X) -> Callable:
    @jax.jit
    def look(draws):
        hidden = jnp.tanh(
            jnp.einsum("pf,nfh->nph", X, draws["w1"]) + draws["b1"][:, None]
        )
        return jnp.einsum("nph,nh->np", hidden, draws["w2"]) + draws["b2"][:, None]

    return look


def unconstrained(target: nf.Target) -> Callable:
    """Values on the sampling space, where posteriors are near to Gaussian."""
    flat = jax.jit(jax.vmap(lambda v: ravel_pytree(target.unconstrain(v))[0]))
    names = list(target.position)
    return lambda samples: flat({k: samples[k] for k in names})


def by_importance(model, data, num_draws=20_000) -> Problem:
    """With importance sampling at the mode as the reference."""
    target = nf.model_target(model, kwargs=data)

    def reference():
        mean, sd, ess = laplace_reference(target, num_draws)
        if ess < num_draws / 4:
            raise RuntimeError(f"the reference is worth {ess:.0f} draws only")
        return mean, sd

    return Problem(model, data, unconstrained(target), reference)


def problems(quick: bool) -> dict[str, Problem]:
    adult = models.load("adult")
    census = adult.data()
    rows, dim = (100_000, 20) if quick else (1_000_000, 50)
    many = 20_000 if quick else 200_000
    enough = 4_000 if quick else 8_000
    some = 4_000 if quick else 10_000
    # age, years of schooling and hours, as standardised there
    X = census["X"][:some, [0, 1, 4]].astype(np.float32)
    small = {"X": X, "y": census["y"][:some]}
    people = small["X"][:: len(small["X"]) // NUM_PEOPLE][:NUM_PEOPLE]
    return {
        "census": by_importance(adult.model, census, enough),
        f"logistic {rows:,} × {dim}": by_importance(
            logistic, synthetic(rows, dim), enough
        ),
        f"counts {many:,}": by_importance(counts, synthetic_counts(many), enough),
        f"network {len(small['y']):,}": Problem(
            network, small, log_odds(jnp.asarray(people)), None
        ),
    }
