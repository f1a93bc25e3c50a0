"""Honesty: what verdicts make of planted faults, and of runs that are right.

Faults are planted into exact draws of posteriors: reference draws of posteriordb, a
Gaussian, two modes. Power is the share of the seeds in which the verdict names a
problem; runs that are right should have none (false alarms). Independent draws, 2,000
of them in four chains; 4,000 where a tail is cut.
"""

from collections.abc import Callable, Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

import nutfree as nf
from models import posteriordb
from nutfree.report.judge import judge
from nutfree.report.runs import Posterior

CHAINS, DRAWS = 4, 2000
NAMES = ("arK", "blr", "kidscore_interaction", "logmesquite_logva", "garch11")


class Subject:
    """A posterior with exact draws, on its sampling space."""

    def __init__(self, model: Callable, data: dict, draw: Callable):
        self.model, self.data = model, data
        self.posterior = Posterior(nf.model_target(model, (), data))
        self.target = self.posterior.target
        self.draw = lambda rng, number: draw(self, rng, number)
        self._constrain = jax.jit(
            jax.vmap(lambda x: self.target.constrain(self.posterior.unravel(x)))
        )

    def tree(self, x: NDArray) -> xr.DataTree:
        """Draws `(chains, n, d)` as a run of any sampler."""
        flat = jnp.asarray(x.reshape(-1, x.shape[-1]), jnp.float32)
        sites = self._constrain(flat)
        names = {name: sites[name] for name in self.target.position}
        return tree_of(
            {
                k: np.asarray(v).reshape(*x.shape[:2], *v.shape[1:])
                for k, v in names.items()
            }
        )

    def problems(self, tree: xr.DataTree) -> list[str]:
        return judge({"run": tree}, self.posterior)["run"].problems


def tree_of(sites: dict[str, NDArray]) -> xr.DataTree:
    """Draws by site, `(chains, n, ...)`, without sample statistics."""
    posterior = {
        name: (("chain", "draw", *(f"{name}_{i}" for i in range(v.ndim - 2))), v)
        for name, v in sites.items()
    }
    return xr.DataTree.from_dict({"posterior": xr.Dataset(posterior)})


def reference(name: str) -> Subject:
    """A posterior of posteriordb, whose reference draws are taken at random."""
    module = posteriordb.load(name)
    stored = module.reference()

    @cache
    def vectors(subject: Subject) -> NDArray:
        sites = {k: v.reshape(-1, *v.shape[2:]) for k, v in stored.items()}
        ravel = lambda values: ravel_pytree(subject.target.unconstrain(values))[0]  # noqa: E731
        return np.asarray(jax.jit(jax.vmap(ravel))(sites), float)

    def draw(subject, rng, number):
        return rng.permutation(vectors(subject))[:number]

    return Subject(module.model, module.data(), draw)


def gaussian() -> Subject:
    def model():
        numpyro.sample("x", dist.Normal(0, 1).expand([10]).to_event(1))

    return Subject(model, {}, lambda _, rng, number: rng.normal(size=(number, 10)))


def two_modes(share: float = 0.5) -> Subject:
    means = jnp.array([[-4.0, -4.0], [4.0, 4.0]])

    def model():
        parts = dist.MultivariateNormal(means, jnp.eye(2))
        weights = dist.Categorical(jnp.array([0.5, 0.5]))
        numpyro.sample("x", dist.MixtureSameFamily(weights, parts))

    def draw(_, rng, number):
        side = np.where(rng.uniform(size=(number, 1)) < share, -4.0, 4.0)
        return side + rng.normal(size=(number, 2))

    return Subject(model, {}, draw)


def in_chains(x: NDArray) -> NDArray:
    number = len(x) // CHAINS * CHAINS
    return x[:number].reshape(CHAINS, -1, x.shape[1])


# faults: (rng, subject) -> tree


def wider(part: float, coordinates: slice) -> Callable:
    def plant(rng, subject):
        x = subject.draw(rng, DRAWS)
        center = x.mean(0)
        x[:, coordinates] = center[coordinates] + (1 + part) ** 0.5 * (
            x[:, coordinates] - center[coordinates]
        )
        return subject.tree(in_chains(x))

    return plant


def tail_cut(rng, subject):
    x = subject.draw(rng, 2 * DRAWS + DRAWS // 2)
    z = (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()
    return subject.tree(in_chains(x[np.abs(z) < 2][: 2 * DRAWS]))


def stuck_chain(rng, subject):
    x = in_chains(subject.draw(rng, DRAWS))
    x[1, x.shape[1] // 4 :] = x[1, x.shape[1] // 4]
    return subject.tree(x)


def not_a_number(rng, subject):
    x = in_chains(subject.draw(rng, DRAWS))
    x[rng.integers(CHAINS), rng.integers(x.shape[1]), rng.integers(x.shape[2])] = np.nan
    return subject.tree(x)


def nothing(rng, subject):
    return subject.tree(in_chains(subject.draw(rng, DRAWS)))


# runs of kernels


def runs(subject: Subject, kernel, number: int, **settings) -> Iterator[xr.DataTree]:
    """So many runs of `CHAINS` chains, made side by side."""
    tree = nf.sample(
        kernel,
        num_chains=CHAINS * number,
        chain_method="vectorized",
        progress_bar=False,
        **{"num_warmup": 500, "num_samples": 500, **settings, **subject.data},
    )
    for i in range(number):
        chains = slice(CHAINS * i, CHAINS * (i + 1))
        yield tree.isel(chain=chains)


def hierarchy(groups, y):
    """Centred, with groups that hardly differ: SGLD falls into the funnel's neck."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    tau = numpyro.sample("tau", dist.HalfNormal(0.5))
    with numpyro.plate("groups", 20):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(y)):
        group = numpyro.subsample(groups, event_dim=0)
        rows = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(theta[group], 1.0), obs=rows)


def hierarchy_data() -> dict:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 150)
    y = (0.08 * rng.normal(size=20))[groups] + rng.normal(size=groups.size)
    return {"groups": groups, "y": y.astype(np.float32)}


def run(quick: bool) -> pd.DataFrame:
    """A row for each fault, and for each kind of run that is right."""
    seeds = 5 if quick else 20
    names = NAMES[:2] if quick else NAMES
    stored = {name: reference(name) for name in names}
    plain, modes = gaussian(), two_modes()
    everywhere = {"Gaussian d = 10": plain, **stored}
    rows = []

    def add(what: str, subject: str, found: list[bool], right: bool = False):
        row = {"what": what, "posterior": subject, "seeds": len(found)}
        share = float(np.mean(found))
        row["false alarms" if right else "power"] = share
        rows.append(row)
        print(row, flush=True)

    def plant(what: str, fault: Callable, subjects: dict[str, Subject], each: int):
        for name, subject in subjects.items():
            found = [
                bool(subject.problems(fault(np.random.default_rng(seed), subject)))
                for seed in range(each)
            ]
            add(what, name, found, right=fault is nothing)

    two = {"two modes": modes}
    dropped, light = two_modes(0.0), two_modes(0.1)
    plant(
        "a mode dropped",
        lambda rng, s: s.tree(in_chains(dropped.draw(rng, DRAWS))),
        two,
        seeds,
    )
    plant(
        "a mode at .1 for .5",
        lambda rng, s: s.tree(in_chains(light.draw(rng, DRAWS))),
        two,
        seeds,
    )
    each = max(seeds // 3, 2)
    plant("variance + 20 % in one coordinate", wider(0.2, slice(1)), everywhere, each)
    plant("variance + 20 % in all", wider(0.2, slice(None)), everywhere, each)
    plant("a tail cut at 2 sd", tail_cut, everywhere, each)
    plant("a stuck chain", stuck_chain, everywhere, each)
    plant("NaN in a site", not_a_number, everywhere, each)

    linear = stored[names[0]]
    long = nf.kernel("ula", linear.model, step_size=1.0)
    found = [
        bool(linear.problems(t)) for t in runs(linear, long, seeds, num_samples=1000)
    ]
    add("ULA, h = 1", names[0], found)
    neck = Subject(hierarchy, hierarchy_data(), lambda *_: None)
    sgld = nf.kernel("sgld", hierarchy)
    found = [bool(neck.problems(t)) for t in runs(neck, sgld, 3 if quick else 10)]
    add("SGLD in a funnel's neck", "hierarchy", found)

    right = {"two modes": modes, **everywhere}
    plant(
        "exact draws",
        nothing,
        right,
        3 if quick else 20,
    )
    number = 5 if quick else 30
    found = [
        bool(linear.problems(t))
        for t in runs(linear, nf.kernel("nuts", linear.model), number)
    ]
    add("NUTS", names[0], found, right=True)
    ours = nf.kernel("multiscale", modes.model)
    found = [bool(modes.problems(t)) for t in runs(modes, ours, number)]
    add("multiscale", "two modes", found, right=True)
    return pd.DataFrame(rows)
