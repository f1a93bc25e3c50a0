"""What the benchmarks share: clocks, floors, slopes, runs of a kernel, and tables.

A floor is the value that the same discrepancy has between two exact samples of that
size (its 95 % quantile): nothing below it speaks against a sampler.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

import nutfree as nf


@dataclass
class Stopwatch:
    """Wall time, and CPU time of this process."""

    seconds: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """`with stopwatch() as watch: ...`, then `watch.seconds`."""
    watch, begin, cpu = Stopwatch(), time.perf_counter(), time.process_time()
    try:
        yield watch
    finally:
        watch.seconds = time.perf_counter() - begin
        watch.cpu = time.process_time() - cpu


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall time of one call, until its result is there."""
    with stopwatch() as watch:
        jax.block_until_ready(run())
    return watch.seconds


def fastest(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least wall time of each run; they take turns, so that a busy moment of the
    machine falls on all of them."""
    times = [{k: seconds_of(run) for k, run in runs.items()} for _ in range(repeats)]
    return {k: min(t[k] for t in times) for k in runs}


def slope(sizes: ArrayLike, values: ArrayLike) -> float:
    """Least-squares slope of log value on log size: 1 is proportional growth."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def tv_floor(
    weights: ArrayLike, num_draws: int, num_reference: int | None = None
) -> float:
    """95 % quantile of the total variation of an exact sample's mode weights.

    Args:
        weights: of the modes.
        num_draws: size of the sample.
        num_reference: size of the exact sample that it is compared with; None where it
            is compared with `weights` themselves.
    """
    rng, p = np.random.default_rng(0), np.asarray(weights, float)
    p = p / p.sum()
    sample = rng.multinomial(num_draws, p, size=2000) / num_draws
    other = p
    if num_reference is not None:
        other = rng.multinomial(num_reference, p, size=2000) / num_reference
    return float(np.quantile(0.5 * np.abs(sample - other).sum(1), 0.95))


def moment_errors(draws: NDArray, mean: NDArray, sd: NDArray) -> tuple[float, float]:
    """Largest error of a mean and of a sd over coordinates, in reference sds.

    Args:
        draws: `(n, d)`.
        mean, sd: of the reference, `(d,)`.
    """
    draws = np.asarray(draws, float)
    mean_error = np.abs(draws.mean(0) - mean) / sd
    sd_error = np.abs(draws.std(0, ddof=1) / sd - 1)
    return float(mean_error.max()), float(sd_error.max())


def moment_floor(ess: float, ess_reference: float, dim: int) -> tuple[float, float]:
    """95 % quantiles of `moment_errors` between exact normal samples, independent over
    coordinates, of those effective sizes."""
    rng = np.random.default_rng(0)
    noise = np.abs(rng.standard_normal((4000, dim))).max(1)
    quantile = float(np.quantile(noise, 0.95))
    mean = quantile * np.sqrt(1 / ess + 1 / ess_reference)
    return float(mean), float(mean / np.sqrt(2))


def settled(draws: NDArray, mean: NDArray, sd: NDArray, tolerance: float) -> int | None:
    """Draws of one chain, `(n, d)`, from which on every mean and sd is within
    `tolerance` reference sds of the reference; None if that is never so.

    The number is one of 200 evenly spaced ones.
    """
    draws = (np.asarray(draws, float) - mean) / sd
    counts = np.unique(np.linspace(2, len(draws), 200).astype(int))
    first = np.cumsum(draws, axis=0)[counts - 1] / counts[:, None]
    second = np.cumsum(draws**2, axis=0)[counts - 1] / counts[:, None]
    deviation = np.sqrt(np.maximum(second - first**2, 0))
    error = np.maximum(np.abs(first), np.abs(deviation - 1)).max(1)
    outside = np.flatnonzero(~(error <= tolerance))
    after = outside[-1] + 1 if len(outside) else 0
    return int(counts[after]) if after < len(counts) else None


def laplace_reference(target: nf.Target, num_draws: int) -> tuple[NDArray, ...]:
    """Moments of a unimodal posterior, by importance sampling at its mode.

    The proposal is a Student t with 8 degrees of freedom and the mode's curvature,
    which no kernel under test has a part in.

    Returns:
        `(mean, sd, ess)`: `(d,)`, `(d,)`, and the effective number of draws.
    """
    start, unravel = ravel_pytree(target.position)

    def logdensity(x):
        return target(unravel(x))

    def newton(x):
        return x - jnp.linalg.solve(jax.hessian(logdensity)(x), jax.grad(logdensity)(x))

    def curvature(x):
        return -np.asarray(hessian(jnp.asarray(x, start.dtype)), float)

    def loss(x):
        value, grad = ascent(jnp.asarray(x, start.dtype))
        return -float(value), -np.asarray(grad, float)

    ascent, hessian = map(
        jax.jit, (jax.value_and_grad(logdensity), jax.hessian(logdensity))
    )
    x = minimize(loss, np.asarray(start, float), jac=True, method="L-BFGS-B").x
    # which may end where a bare Newton step leads away
    near = {"jac": True, "hess": curvature, "options": {"gtol": 1.0, "maxiter": 50}}
    x = minimize(loss, x, method="trust-exact", **near).x
    x = jax.lax.fori_loop(0, 5, lambda _, x: newton(x), jnp.asarray(x, start.dtype))
    precision = curvature(x)
    factor = np.linalg.cholesky(np.linalg.inv(precision))
    rng, freedom = np.random.default_rng(0), 8
    noise = rng.standard_normal((num_draws, x.size))
    noise /= np.sqrt(rng.chisquare(freedom, size=(num_draws, 1)) / freedom)
    draws = np.asarray(x, float) + noise @ factor.T
    evaluate = jax.jit(lambda xs: jax.lax.map(logdensity, xs, batch_size=16))
    log_target = np.asarray(evaluate(jnp.asarray(draws, x.dtype)), float)
    power = 0.5 * (freedom + x.size)
    log_weight = log_target + power * np.log1p((noise**2).sum(1) / freedom)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ draws
    return mean, np.sqrt(weight @ (draws - mean) ** 2), 1 / (weight**2).sum()


def sample(name: str, model: Any, data: dict, **settings: Any) -> xr.DataTree:
    """Run one kernel on the model of `args` and `data`; `options` are the kernel's, the
    other settings those of `nutfree.sample`."""
    options, args = settings.pop("options", {}), settings.pop("args", ())
    kernel = nf.kernel(name, model, **options)
    return nf.sample(kernel, *args, progress_bar=False, **settings, **data)


def matrix(tree: xr.DataTree, sites: Sequence[str] | None = None) -> NDArray:
    """Draws of the sites as `(chains, draws, d)`."""
    posterior = tree["posterior"].to_dataset()
    arrays = [posterior[name].values for name in sites or posterior.data_vars]
    return np.concatenate([a.reshape(*a.shape[:2], -1) for a in arrays], axis=2)


def smallest_ess(tree: xr.DataTree, sites: Sequence[str] | None = None) -> float:
    """Bulk ESS of the worst coordinate."""
    from arviz_stats.base import array_stats

    draws = matrix(tree, sites)
    ess = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
    return float(np.min(ess))


def gradients(tree: xr.DataTree, *, warmup: bool = True) -> float:
    """Full-data gradients over all chains, with or without those before the draws."""
    stats = tree["sample_stats"]
    if warmup:
        return float(stats.attrs["num_grad_evals"])
    name = "num_grad_evals" if "num_grad_evals" in stats else "n_steps"
    return float(stats[name].sum())


def show(title: str, table: pd.DataFrame, watch: Stopwatch) -> None:
    """Print one table; columns in seconds are for orientation only."""
    text = Table(title=title.strip().splitlines()[0], title_justify="left")
    for name in table.columns:
        number = pd.api.types.is_numeric_dtype(table[name])
        text.add_column(str(name), justify="right" if number else "left")
    for row in table.itertuples(index=False):
        text.add_row(*[_cell(value) for value in row])
    console = Console(width=max(160, Console().width))
    console.print(text)
    console.print(f"{watch.seconds:.0f} s, {watch.cpu:.0f} s of CPU\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:.3g}"
    return str(value)
