"""A finished NumPyro MCMC run becomes an ArviZ ``DataTree``.

The attributes say which kernel made the draws and at what cost.
"""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro.infer import HMC, MCMC

from nutfree.diagnostics.evidence import pooled_bridge
from nutfree.diagnostics.groups import groups_of, is_array
from nutfree.errors import refuse_unknown

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["to_arviz"]


def to_arviz(
    mcmc: MCMC,
    *,
    prior: dict[str, Any] | int | None = None,
    log_likelihood: bool = False,
    posterior_predictive: dict[str, Any] | bool | None = None,
    constant_data: dict[str, Any] | None = None,
    coords: dict[str, Any] | None = None,
    dims: dict[str, list[str]] | None = None,
    extra_event_dims: dict[str, list[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> "xr.DataTree":
    """Convert a finished NumPyro ``MCMC``, of any kernel, to an ArviZ ``DataTree``.

    Args:
        mcmc: a run whose draws are collected; an interrupted one gives what it has.
        prior: prior draws to keep beside the posterior, or how many to draw, with
            the observations that they predict.
        log_likelihood: also evaluate the log likelihood of each observed site, and the
            log prior of each latent one.
        posterior_predictive: draws of the observed sites, or True to make one for
            each draw of the posterior.
        constant_data: what else the model was given, by name.
        coords: coordinate values by dimension.
        dims: dimension names by site; found from the model's plates when None.
        extra_event_dims: names of further dimensions, by deterministic site.
        attrs: further attributes of ``sample_stats``, such as ``seconds``. Values are
            turned into types that NetCDF and Zarr can hold.

    Returns:
        A tree with groups posterior and sample_stats and, where the model has them or
        they are asked for, observed_data, constant_data, prior, prior_predictive,
        posterior_predictive, log_likelihood and log_prior. The posterior has the
        attributes log_evidence and log_evidence_se where the kernel draws from a known
        proposal too. ``sample_stats`` has attributes
        kernel, options (JSON), nutfree_version, and num_grad_evals and
        num_density_evals: totals over chains, warm-up included where it was counted.

    Raises:
        InvalidOption: if it is no MCMC, the run has no draws, or an argument is
            misspelt.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model():
        ...     numpyro.sample("x", dist.Normal())
        >>> mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=50, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> to_arviz(mcmc).posterior.sizes["draw"]
        50
    """
    import xarray as xr

    refuse_unknown("nutfree.to_arviz", unknown, signature(to_arviz).parameters)
    attrs = dict(attrs or {})
    groups = groups_of(
        mcmc,
        prior=prior,
        log_likelihood=log_likelihood,
        posterior_predictive=posterior_predictive,
        constant_data=constant_data,
        coords=coords,
        dims=dims,
        extra_event_dims=extra_event_dims,
    )
    stats = groups["sample_stats"]
    groups["posterior"].attrs.update(posterior_attrs(stats, attrs))
    stats.attrs.update(stats_attrs(mcmc, stats, attrs))
    return xr.DataTree.from_dict(
        {k: v for k, v in groups.items() if v.sizes or v.attrs}
    )


def posterior_attrs(stats: "xr.Dataset", attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the log evidence, where a kernel finds it, as attributes."""
    evidence = {k: attrs[k] for k in attrs if k.startswith("log_evidence")}
    if "proposal_log_importance" in stats:
        ratios = [
            stats[name].values for name in ("log_importance", "proposal_log_importance")
        ]
        evidence |= pooled_bridge(*ratios)._asdict()
    return _plain_attrs(evidence)


def stats_attrs(
    mcmc: MCMC, stats: "xr.Dataset", attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return which kernel made the draws and at what cost, as attributes."""
    return _plain_attrs(_run_attrs(mcmc, stats, attrs))


def _run_attrs(
    mcmc: MCMC, stats: "xr.Dataset", attrs: Mapping[str, Any]
) -> dict[str, Any]:
    sampler, state = mcmc.sampler, mcmc.last_state
    spec = getattr(sampler, "spec", None)
    evals: dict[str, Any] = {}
    for kind in ("grad", "density"):
        name = f"num_{kind}_evals"
        total = getattr(state, f"total_{kind}_evals", None)
        if total is not None:
            evals[name] = float(np.sum(np.asarray(total, dtype=np.float64)))
        elif name in stats:
            evals[name] = float(stats[name].sum())
    if isinstance(sampler, HMC):
        evals["num_density_evals"] = 0.0
        if "n_steps" in stats:
            warmup = float(attrs.get("warmup_grad_evals") or math.nan)
            known = not math.isnan(warmup)
            # of the transitions that were thinned out, only the mean is known
            drawn = float(stats["n_steps"].sum()) * mcmc.thinning
            evals["num_grad_evals"] = drawn + (warmup if known else 0.0)
            evals["warmup_counted"] = known
    return {
        "kernel": spec.name if spec is not None else type(sampler).__name__.lower(),
        "options": getattr(sampler, "options", {}),
        **_tuned(spec, state),
        "nutfree_version": version("nutfree"),
        "inference_library": "numpyro",
        **evals,
        **attrs,
    }


def _tuned(spec: Any, state: Any) -> dict[str, Any]:
    """What warm-up found, a list over chains for each number."""
    params = getattr(getattr(state, "adapt_state", None), "params", None)
    if spec is None or not isinstance(params, Mapping):
        return {}
    chain_axes = np.ndim(state.diverging)
    found = {
        k: v for k, v in params.items() if is_array(v) and np.ndim(v) == chain_axes
    }
    # a model without latent sites has no parameters
    if spec.findings is not None and params:
        findings = jax.vmap(spec.findings) if chain_axes else spec.findings
        found |= findings(params)
    return {"tuned": {k: np.ravel(v).tolist() for k, v in found.items()}}


def _plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as numbers and strings; None is left out, structures become JSON."""
    plain: dict[str, Any] = {}
    for name, value in attrs.items():
        if value is None:
            continue
        if isinstance(value, bool | np.bool_):
            plain[name] = int(value)
        elif isinstance(value, int | float | str):
            plain[name] = value
        elif is_array(value) and np.ndim(value) == 0:
            plain[name] = np.asarray(value).item()
        else:
            plain[name] = json.dumps(value, default=_jsonable)
    return plain


def _jsonable(value: Any) -> Any:
    return np.asarray(value).tolist() if is_array(value) else repr(value)
