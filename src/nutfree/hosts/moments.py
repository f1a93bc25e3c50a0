"""Draws that are told of by their moments and quantiles, and not kept.

For a posterior whose draws neither memory nor a disk holds: `keep="moments"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC

from nutfree.diagnostics.convergence import Convergence, in_a_sentence, misfit_of
from nutfree.diagnostics.convert import stats_attrs
from nutfree.diagnostics.groups import groups_of
from nutfree.diagnostics.running import COLUMNS, RunningSummary
from nutfree.errors import InvalidOption
from nutfree.hosts.draws import Draws, run_of


def check_moments(**settings: Any) -> None:
    """Refuse what cannot be without draws.

    Raises:
        InvalidOption: with what to write instead.
    """
    for name, value in settings.items():
        if value is not None and value is not False:
            raise InvalidOption(
                f"{name}=... needs the draws, of which keep='moments' keeps none. "
                'Leave it out, or write them to a disk by store="run.zarr".'
            )


class MomentsOfDraws(Draws):
    """What is known of the draws of a run, of which the last piece is kept.

    Args:
        mcmc: the run.
        total: draws of each chain that are to come.
    """

    def __init__(self, mcmc: MCMC, total: int):
        super().__init__([])
        self._field, self._total = mcmc.sampler.sample_field, total
        self._last: Mapping[str, Any] = {}
        self._sites: dict[str, RunningSummary] = {}

    def add(self, made):
        position = made[self._field]
        for path, block in jax.tree_util.tree_leaves_with_path(position):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
            site = self._sites.setdefault(name, RunningSummary(self._total))
            site.add(np.asarray(block))
        # one draw is enough to know names and shapes
        self._last = {self._field: jax.tree.map(lambda x: x[:, -1:], position)}
        rest = {k: v for k, v in made.items() if k != self._field}
        return super().add(rest)

    def to_look_at(self, field):
        return None

    def whole(self):
        # sample statistics are of a posterior that has draws
        return {self._field: {"x": np.zeros(self._shape)}, **super().whole()}

    @property
    def _shape(self) -> tuple[int, int]:
        last = jax.tree.leaves(self._last)[0]
        return last.shape[0], self.number

    def tree(self, mcmc, *, leave_out, **groups):
        """Return the tree of a run, with a group summary in place of posterior."""
        import xarray as xr

        stats = groups_of(mcmc, with_model=False)["sample_stats"]
        stats.attrs.update(stats_attrs(mcmc, stats, groups.pop("attrs")))
        found = groups_of(run_of(mcmc, self._last), **groups)
        like = found.pop("posterior")
        summary = xr.Dataset(coords={"summary": list(COLUMNS)})
        for name, site in like.items():
            table = self._sites[self._original(str(name))].table()
            summary[name] = (("summary", *site.dims[2:]), table)
        summary = summary.assign_coords(
            {k: v for k, v in like.coords.items() if k not in ("chain", "draw")}
        )
        found |= {"summary": summary, "sample_stats": stats}
        return xr.DataTree.from_dict(
            {k: v for k, v in found.items() if v.sizes and k not in leave_out}
        )

    def _original(self, name: str) -> str:
        return next(k for k in self._sites if k.replace("/", ".") == name)

    def verdict(self, tree):
        misfit = misfit_of(tree["sample_stats"].to_dataset())
        return in_a_sentence(self._convergence()._replace(misfit=misfit))

    def _convergence(self) -> Convergence:
        """Return what speaks against the draws; their effective number is not known."""
        nan = float("nan")
        sites = self._sites
        hats = np.concatenate([np.ravel(site.r_hat()) for site in sites.values()])
        hats = hats[np.isfinite(hats)]
        unmoved = np.all([site.unmoved for site in sites.values()], axis=0)
        chains, number = self._shape
        return Convergence(
            ess_bulk=nan,
            ess_tail=nan,
            r_hat=float(hats.max()) if hats.size else nan,
            not_finite={k: s.not_finite for k, s in sites.items() if s.not_finite},
            unmoved=[int(c) for c in np.flatnonzero(unmoved)] if number > 1 else [],
            divergent=self.diverging / (chains * number),
            largest=max(site.largest for site in sites.values()),
        )
