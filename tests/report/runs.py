"""Runs made up to have one fault each."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr


def bimodal():
    sides = dist.Normal(np.array([-8.0, 8.0]), 1.0)
    weights = dist.Categorical(np.array([0.4, 0.6]))
    numpyro.sample("x", dist.MixtureSameFamily(weights, sides))


def made(draws, *, seconds=1.0, grads=1000.0, diverging=0, **attrs):
    """A run of a model with one site, draws (chains, n) or (chains, n, d)."""
    draws = np.asarray(draws)
    flags = np.zeros(draws.shape[:2], dtype=bool)
    flags.ravel()[:diverging] = True
    dims = ("chain", "draw")
    stats = xr.Dataset({"diverging": (dims, flags)})
    spent = {"seconds": seconds, "num_grad_evals": grads, "kernel": "made"}
    stats.attrs = spent | attrs
    site = (*dims, *(f"x_dim_{i}" for i in range(draws.ndim - 2)))
    posterior = xr.Dataset({"x": (site, draws.astype(np.float32))})
    return xr.DataTree.from_dict({"posterior": posterior, "sample_stats": stats})


def exact(seed, *, share=0.6, chains=4, num=400):
    """Independent draws of `bimodal`, with that share on the right."""
    rng = np.random.default_rng(seed)
    right = rng.uniform(size=(chains, num)) < share
    return np.where(right, 8.0, -8.0) + rng.normal(size=(chains, num))
