"""A posterior and runs on it, with what a judgement needs of them computed once."""

from functools import cached_property

import jax
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.diagnostics.convergence import convergence
from nutfree.diagnostics.density import Density
from nutfree.diagnostics.draws import latent_posterior, unconstrained_draws
from nutfree.diagnostics.limits import (
    MAX_SCORED,
    MAX_SCORED_ROWS,
    MAX_SEARCH_DIM,
)
from nutfree.diagnostics.masses import Masses, masses
from nutfree.diagnostics.smoothness import Smoothness, smoothness
from nutfree.diagnostics.subsample import MANY_ROWS, minibatch_scores
from nutfree.modes.find import BRIEF_EFFORT, ModeSearch
from nutfree.target import Target, has_gradient

NAN = float("nan")


class Posterior:
    """The target, and what is known of it beside any run."""

    def __init__(self, target: Target):
        self.target = target
        flat, self.unravel = ravel_pytree(target.position)
        self.dim = flat.size
        self.has_gradient = has_gradient(target)
        rows = target.minibatch
        self.many_rows = (
            rows is not None and rows.num_data >= MANY_ROWS and rows.in_order is None
        )
        self.num_rows = rows.num_data if rows is not None else 1

    def logdensity(self, x: jax.Array) -> jax.Array:
        return self.target.logdensity_fn(self.unravel(x))

    @cached_property
    def density(self) -> Density:
        return Density(self.logdensity, has_gradient=self.has_gradient)

    @property
    def why_no_search(self) -> str:
        """Why no modes are searched for; empty where they are."""
        if not self.has_gradient:
            return "the density has no gradient"
        if self.many_rows:
            return f"{self.num_rows:,} rows"
        if self.dim > MAX_SEARCH_DIM:
            return f"{self.dim} dimensions"
        return ""

    @cached_property
    def _mode_search(self) -> ModeSearch:
        return ModeSearch(self.target, BRIEF_EFFORT)

    def compile_ahead(self) -> None:
        """Compile the search for modes in a thread, while something else goes on."""
        if not self.why_no_search:
            self._mode_search.compile_ahead()

    @cached_property
    def masses(self) -> Masses | None:
        """Shares of the modes that a search finds; None without any."""
        return masses(self._mode_search(), self.density)

    def smoothness(self, vectors: NDArray) -> Smoothness | None:
        """Whether the log density jumps between these draws; None where a gradient is
        missing, or a pass over all rows too dear."""
        if not self.has_gradient or self.many_rows:
            return None
        return smoothness(self.density, vectors.reshape(-1, self.dim))


class Run:
    """One run's draws, statistics and figures."""

    def __init__(self, tree: xr.DataTree, posterior: Posterior):
        self.tree, self.posterior = tree, posterior
        target = posterior.target
        self.latent = latent_posterior(tree, target)
        stats = tree["sample_stats"] if "sample_stats" in tree.children else None
        self.stats = stats.to_dataset() if stats is not None else xr.Dataset()
        self.attrs = {**tree["posterior"].attrs, **self.stats.attrs}
        self.converged = convergence(self.latent, self.stats)
        self.num_chains = self.latent.sizes["chain"]
        self.num_draws = self.latent.sizes["draw"]
        limit = min(MAX_SCORED, MAX_SCORED_ROWS / posterior.num_rows)
        if posterior.many_rows:
            limit = MAX_SCORED
        self.kept = max(int(limit) // self.num_chains, 50)
        _, self.vectors = unconstrained_draws(tree, target, self.kept)

    @property
    def size(self) -> int:
        return self.num_chains * self.num_draws

    @cached_property
    def scores(self) -> NDArray:
        """Of `vectors`, in their shape; estimates where there are many rows."""
        flat = self.vectors.reshape(-1, self.posterior.dim)
        if self.posterior.many_rows:
            found = minibatch_scores(flat, self.posterior.target)
        else:
            found = self.posterior.density(flat).grad
        return found.reshape(self.vectors.shape)

    def attr(self, name: str) -> float:
        value = self.attrs.get(name, NAN)
        return NAN if value is None else float(value)
