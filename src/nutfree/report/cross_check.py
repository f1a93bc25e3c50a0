"""Checks of draws from a posterior over many rows, without a pass for each draw.

The exact chain walks on the `surrogate` of `nutfree.diagnostics.subsample`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from nutfree.diagnostics.draws import unconstrained_draws
from nutfree.diagnostics.subsample import SUBSAMPLE_ROWS, surrogate
from nutfree.errors import MissingCapability
from nutfree.numerics.programs import in_full_precision
from nutfree.target import Target

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

#: What draws and the exact chain may differ by, in sds, besides Monte-Carlo errors.
TOLERANCE = 0.1


@dataclass(frozen=True)
class CrossCheck:
    """Draws beside those of an exact chain on a subsample.

    Attributes:
        table: a row for each coordinate of the sampling space: the difference of the
            means in sds of the exact chain, with its Monte-Carlo error, and the ratio
            of the sds, with its own.
        num_rows: of the subsample.
        passes: over all rows that the check took, or its worth of them.
    """

    table: "pd.DataFrame"
    num_rows: int
    passes: float

    @property
    def agrees(self) -> bool:
        """Whether no coordinate's mean or sd is off by more than a tenth of an sd and
        four Monte-Carlo errors."""
        t = self.table
        mean = t["mean_difference"].abs() <= TOLERANCE + 4 * t["mean_error"]
        sd = (t["sd_ratio"] - 1).abs() <= TOLERANCE + 4 * t["sd_error"]
        return bool((mean & sd).all())

    def __str__(self) -> str:
        t = self.table
        mean = t.loc[t["mean_difference"].abs().idxmax()]
        sd = t.loc[(t["sd_ratio"] - 1).abs().idxmax()]
        return (
            f"{'agrees' if self.agrees else 'does not agree'} with NUTS on "
            f"{self.num_rows:,} rows: means within {abs(mean['mean_difference']):.2f} "
            f"± {mean['mean_error']:.2f} sd, sds by a factor of {sd['sd_ratio']:.2f} "
            f"± {sd['sd_error']:.2f} at worst"
        )


@in_full_precision
def cross_check(
    tree: "xr.DataTree",
    model: Any,
    *args: Any,
    num_rows: int = SUBSAMPLE_ROWS,
    num_warmup: int = 300,
    num_samples: int = 700,
    seed: int = 0,
    plate: str | None = None,
    **kwargs: Any,
) -> CrossCheck:
    """Compare draws with a short exact chain on a subsample of the rows.

    NUTS runs on the log density of `num_rows` rows with the full data's gradient at the
    draws' mean, where the subsample has their posterior. It starts there, and so checks
    location and scale; another mode it does not find.

    Args:
        tree: draws of the model, from `nutfree.sample`.
        model: the NumPyro model, or a `Target` with `minibatch`.
        *args, **kwargs: the model's arguments, all rows of them, or those of
            `nutfree.rows`; then the subsample is from one window of these.
        num_rows: of the subsample.
        num_warmup, num_samples: of NUTS.
        seed: of the subsample and of the chain.
        plate: the data plate, where the model has several.

    Raises:
        MissingCapability: where no plate's rows can be drawn.
    """
    import pandas as pd

    from nutfree.frontends.numpyro import model_target
    from nutfree.frontends.windows import first_window
    from nutfree.hosts.kernel import kernel
    from nutfree.hosts.sample import sample

    target = model
    if not isinstance(model, Target):
        args, kwargs = first_window((args, kwargs), seed)
        target = model_target(model, args, kwargs, plate=plate)
    if target.minibatch is None:
        raise MissingCapability(
            "A check on a subsample needs rows that can be drawn: "
            f"{target.advice.get('minibatch', 'the target has no minibatch.')}"
        )
    chains = unconstrained_draws(tree, target, tree["posterior"].sizes["draw"])[1]
    flat = chains.reshape(-1, chains.shape[-1])
    density = surrogate(flat, target, num_rows=num_rows, seed=seed)
    centre, spread = flat.mean(0), flat.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    dtype = ravel_pytree(target.position)[0].dtype
    place, scale = jnp.asarray(centre, dtype), jnp.asarray(spread, dtype)
    exact = sample(
        kernel("nuts", potential_fn=lambda u: -density(place + scale * u)),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=1,
        seed=seed,
        init_params=jnp.zeros_like(place),
        progress_bar=False,
    )
    walked = np.asarray(exact["posterior"]["x"].values, np.float64)
    table = _compared((chains - centre) / spread, walked)
    share = min(num_rows, target.minibatch.num_data) / target.minibatch.num_data
    passes = 1 + share * float(exact["sample_stats"].attrs["num_grad_evals"])
    names = _coordinates(target)
    return CrossCheck(
        pd.DataFrame(table, index=pd.Index(names, name="coordinate")),
        min(num_rows, target.minibatch.num_data),
        passes,
    )


def _compared(ours: NDArray, exact: NDArray) -> dict[str, NDArray]:
    """Moments of `(chain, draw, d)` arrays beside each other."""

    def moments(x):
        flat = x.reshape(-1, x.shape[-1])
        return flat.mean(0), flat.std(0), _ess(x, "mean"), _ess(x, "sd")

    (mean, sd, ess, ess_sd), (mean_e, sd_e, ess_e, ess_sd_e) = map(
        moments, (ours, exact)
    )
    ratio = sd / sd_e
    return {
        "mean_difference": (mean - mean_e) / sd_e,
        "mean_error": np.sqrt(ratio**2 / ess + 1 / ess_e),
        "sd_ratio": ratio,
        "sd_error": ratio * np.sqrt(0.5 / ess_sd + 0.5 / ess_sd_e),
    }


def _ess(x: NDArray, method: str) -> NDArray:
    from arviz_stats.base import array_stats

    return np.array(
        [
            array_stats.ess(x[..., i], chain_axis=0, draw_axis=1, method=method)
            for i in range(x.shape[-1])
        ]
    )


def _coordinates(target: Target) -> list[str]:
    """Names of the raveled coordinates."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(target.position):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        shape = np.shape(leaf)
        found += [
            name + (str(list(index)) if index else "") for index in np.ndindex(shape)
        ]
    return found
