"""A finished NumPyro MCMC run becomes an ArviZ ``DataTree``.

ArviZ's own converter does the work. What is added here: any pytree from a
``potential_fn``, interrupted runs, site names with a slash, plates that subsample, and
attributes that say which kernel made the draws and at what cost.
"""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.handlers import uncondition
from numpyro.infer import HMC, MCMC, Predictive
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import compute_log_probs

from nutfree.diagnostics.evidence import pooled_bridge
from nutfree.errors import InvalidOption, refuse_unknown
from nutfree.frontends.handlers import full_data

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
    from arviz_base.io_numpyro import NumPyroConverter
    from arviz_base.rcparams import rc_context

    refuse_unknown("nutfree.to_arviz", unknown, signature(to_arviz).parameters)
    attrs = dict(attrs or {})
    adapter = _adapter(mcmc)
    has_model = adapter.model is not None
    if has_model:
        dims = {**_fitting_dims(adapter), **(dims or {})}
    if isinstance(prior, int):
        prior = _prior_draws(adapter, prior) if has_model and prior else None
    predicted = None
    if isinstance(posterior_predictive, Mapping):
        predicted = dict(posterior_predictive)
    elif posterior_predictive and has_model:
        predicted = _predicted(adapter)
    # ArviZ takes the logarithm of num_steps, which some kernels do not make
    quiet = np.errstate(divide="ignore", invalid="ignore")
    with rc_context(rc={"data.sample_dims": ["chain", "draw"]}), quiet:
        converter: Any = NumPyroConverter(
            posterior=adapter,
            prior=prior,
            posterior_predictive=predicted or None,
            constant_data=constant_data,
            log_likelihood=log_likelihood and has_model,
            coords=coords,
            dims=dims,
            pred_dims={},
            extra_event_dims=extra_event_dims,
        )
        priors = converter.priors_to_xarray()
        groups = {
            "posterior": converter.posterior_to_xarray(),
            "sample_stats": converter.sample_stats_to_xarray(),
            **priors,
            "posterior_predictive": converter.posterior_predictive_to_xarray(),
            "log_likelihood": converter.log_likelihood_to_xarray(),
            "log_prior": (
                _log_prior(adapter, coords, dims)
                if log_likelihood and has_model
                else None
            ),
            "observed_data": converter.observed_data_to_xarray(),
            "constant_data": converter.constant_data_to_xarray(),
        }
    groups = {k: _plain_names(v) for k, v in groups.items() if v is not None}
    stats = groups["sample_stats"]
    if not isinstance(mcmc.sampler, HMC):
        # read off num_steps, which only a tree-building sampler makes a depth of
        groups["sample_stats"] = stats = stats.drop_vars("tree_depth", errors="ignore")
    evidence = {k: attrs[k] for k in attrs if k.startswith("log_evidence")}
    if "proposal_log_importance" in stats:
        ratios = [
            stats[name].values for name in ("log_importance", "proposal_log_importance")
        ]
        evidence |= pooled_bridge(*ratios)._asdict()
    groups["posterior"].attrs.update(_plain_attrs(evidence))
    stats.attrs.update(_plain_attrs(_run_attrs(mcmc, stats, attrs)))
    return xr.DataTree.from_dict(
        {k: v for k, v in groups.items() if v.sizes or v.attrs}
    )


def _adapter(mcmc: MCMC):
    """ArviZ's adapter, made to take whatever this run holds."""
    from arviz_base.io_numpyro import MCMCAdapter, NumPyroInferenceAdapter

    if not isinstance(mcmc, MCMC):
        raise InvalidOption(
            f"to_arviz is given a {type(mcmc).__name__}; pass the numpyro.infer.MCMC "
            "that has run."
        )
    if mcmc._states is None:
        raise InvalidOption(
            "This run has no draws yet: call mcmc.run(rng_key, ...) first."
        )

    class Adapter(MCMCAdapter):
        def __init__(self):
            samples = self._flat(mcmc.get_samples(group_by_chain=True))
            self.nchains, self.ndraws = next(iter(samples.values())).shape[:2]
            self._max_tree_depth = getattr(mcmc.sampler, "_max_tree_depth", None)
            model = getattr(mcmc.sampler, "model", None)
            NumPyroInferenceAdapter.__init__(
                self,
                mcmc,
                model=None if model is None else full_data(model),
                model_args=mcmc._args,
                model_kwargs=mcmc._kwargs,
                sample_shape=(self.nchains, self.ndraws),
            )

        @staticmethod
        def _flat(samples: Any) -> dict[str, Any]:
            if isinstance(samples, dict) and all(map(_is_array, samples.values())):
                return samples
            leaves = jax.tree_util.tree_leaves_with_path(samples)
            return {
                jax.tree_util.keystr(path, simple=True, separator=".") or "x": leaf
                for path, leaf in leaves
            }

        def get_samples(self, seed=None, **kwargs):
            return self._flat(mcmc.get_samples(group_by_chain=True))

        def get_sample_stats(self, **kwargs):
            fields = mcmc.get_extra_fields(group_by_chain=True)
            stats = {k: np.asarray(v) for k, v in fields.items() if _is_array(v)}
            shape = (self.nchains, self.ndraws)
            # ensemble kernels keep some fields once for all chains
            stats = {k: v for k, v in stats.items() if v.shape[:2] == shape}
            return {k.removeprefix("info."): v for k, v in stats.items()}

    return Adapter()


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _fitting_dims(adapter) -> dict[str, list[str]]:
    """Dimension names from the model's plates, where they fit the draws' shapes."""
    from arviz_base.io_numpyro import infer_dims

    found = infer_dims(adapter.model, adapter._args, adapter._kwargs)
    samples = adapter.get_samples()
    taken = {*samples, "chain", "draw"}
    fitting = {}
    for site, names in found.items():
        names = [f"{name}_dim" if name in taken else name for name in names]
        if site not in samples or np.ndim(samples[site]) - 2 >= len(names):
            fitting[site] = names
    return fitting


def _prior_draws(adapter, num: int) -> dict[str, Any]:
    """Prior draws and the observations they predict, with a leading chain axis."""
    predictive = Predictive(uncondition(adapter.model), num_samples=num)
    draws = predictive(jax.random.key(0), *adapter._args, **adapter._kwargs)
    wanted = {*adapter.get_samples(), *_observed(adapter)}
    return {k: np.asarray(v)[None] for k, v in draws.items() if k in wanted}


def _predicted(adapter) -> dict[str, Any]:
    """Observations predicted by each draw of the posterior."""
    predictive = Predictive(
        uncondition(adapter.model), adapter.get_samples(), batch_ndims=2
    )
    draws = predictive(jax.random.key(1), *adapter._args, **adapter._kwargs)
    return {k: np.asarray(draws[k]) for k in _observed(adapter) if k in draws}


def _observed(adapter) -> list[str]:
    """The sites that are observed; a factor is none."""
    seeded = handlers.substitute(
        handlers.seed(adapter.model, 0), substitute_fn=init_to_sample
    )
    trace = handlers.trace(seeded).get_trace(*adapter._args, **adapter._kwargs)
    return [
        name
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"] and np.size(site["value"])
    ]


def _log_prior(adapter, coords, dims) -> "xr.Dataset":
    """Log density of each latent site, at its own value, for every draw."""
    from arviz_base import dict_to_dataset

    names = set(adapter.get_samples())
    seeded = handlers.seed(adapter.model, 0)

    def one(values):
        log_probs, trace = compute_log_probs(
            seeded, adapter._args, adapter._kwargs, values, sum_log_prob=False
        )
        return {
            name: value
            for name, value in log_probs.items()
            if name in names and not trace[name]["is_observed"]
        }

    found = jax.jit(jax.vmap(jax.vmap(one)))(adapter.get_samples())
    found = {name: np.asarray(value) for name, value in found.items()}
    fitting = {
        name: names
        for name, names in (dims or {}).items()
        if name in found and found[name].ndim - 2 >= len(names)
    }
    return dict_to_dataset(found, coords=coords, dims=fitting, skip_event_dims=True)


def _plain_names(dataset: "xr.Dataset") -> "xr.Dataset":
    """Names without a slash, which a DataTree reads as a path."""
    names = [*dataset.variables, *dataset.dims]
    return dataset.rename(
        {n: str(n).replace("/", ".") for n in set(names) if "/" in str(n)}
    )


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
        k: v for k, v in params.items() if _is_array(v) and np.ndim(v) == chain_axes
    }
    if spec.findings is not None:
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
        elif _is_array(value) and np.ndim(value) == 0:
            plain[name] = np.asarray(value).item()
        else:
            plain[name] = json.dumps(value, default=_jsonable)
    return plain


def _jsonable(value: Any) -> Any:
    return np.asarray(value).tolist() if _is_array(value) else repr(value)
