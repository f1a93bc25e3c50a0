"""The groups of an ArviZ ``DataTree``, from the draws of a NumPyro run.

ArviZ's own converter does the work. What is added here: any pytree from a
``potential_fn``, runs of which a part is there, site names with a slash, and plates
that subsample.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.handlers import uncondition
from numpyro.infer import HMC, MCMC, Predictive
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import compute_log_probs

from nutfree.errors import InvalidOption
from nutfree.frontends.checks import check_latent
from nutfree.frontends.handlers import full_data

if TYPE_CHECKING:
    import xarray as xr


def groups_of(
    mcmc: MCMC,
    *,
    prior: dict[str, Any] | int | None = None,
    log_likelihood: bool = False,
    posterior_predictive: dict[str, Any] | bool | None = None,
    constant_data: dict[str, Any] | None = None,
    coords: dict[str, Any] | None = None,
    dims: dict[str, list[str]] | None = None,
    extra_event_dims: dict[str, list[str]] | None = None,
    with_model: bool = True,
    seed: int = 1,
) -> dict[str, "xr.Dataset"]:
    """Return the groups of a run's tree by name; see `nutfree.to_arviz`.

    Args:
        with_model: whether to look at the model; without it there are the groups
            posterior and sample_stats, with the names of dimensions that are given.
        seed: of the predictions.

    Raises:
        InvalidOption: if it is no MCMC, or the run has no draws.
        UnsupportedModel: if the model has no site that has any.
    """
    from arviz_base.io_numpyro import NumPyroConverter
    from arviz_base.rcparams import rc_context

    adapter = _adapter(mcmc, with_model)
    has_model = adapter.model is not None
    if has_model:
        dims = {**_fitting_dims(adapter), **(dims or {})}
    if isinstance(prior, int):
        prior = _prior_draws(adapter, prior) if has_model and prior else None
    if log_likelihood and has_model:
        _refuse_summed(adapter)
    predicted = None
    if isinstance(posterior_predictive, Mapping):
        predicted = dict(posterior_predictive)
    elif posterior_predictive and has_model:
        predicted = _predicted(adapter, seed)
    # ArviZ takes the logarithm of num_steps, which some kernels do not make
    quiet = np.errstate(divide="ignore", invalid="ignore")
    with (
        rc_context(rc={"data.sample_dims": ["chain", "draw"]}),
        quiet,
        warnings.catch_warnings(),
    ):
        # a part of a run may have few draws
        warnings.filterwarnings("ignore", "Found chain dimension to be longer")
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
    if not isinstance(mcmc.sampler, HMC):
        # read off num_steps, which only a tree-building sampler makes a depth of
        groups["sample_stats"] = groups["sample_stats"].drop_vars(
            "tree_depth", errors="ignore"
        )
    return groups


def named_dims(mcmc: MCMC) -> dict[str, list[str]]:
    """Return the names of the dimensions of sites, as far as plates have them."""
    adapter = _adapter(mcmc, True)
    return {} if adapter.model is None else _fitting_dims(adapter)


def sites_of(mcmc: MCMC) -> list[str]:
    """Return the names of what a run draws."""
    return list(_adapter(mcmc, False).get_samples())


def _adapter(mcmc: MCMC, with_model: bool):
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
            check_latent(samples)
            self.nchains, self.ndraws = next(iter(samples.values())).shape[:2]
            self._max_tree_depth = getattr(mcmc.sampler, "_max_tree_depth", None)
            model = getattr(mcmc.sampler, "model", None) if with_model else None
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
            if isinstance(samples, dict) and all(map(is_array, samples.values())):
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
            stats = {k: np.asarray(v) for k, v in fields.items() if is_array(v)}
            shape = (self.nchains, self.ndraws)
            # ensemble kernels keep some fields once for all chains
            stats = {k: v for k, v in stats.items() if v.shape[:2] == shape}
            return {k.removeprefix("info."): v for k, v in stats.items()}

    return Adapter()


def is_array(value: Any) -> bool:
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


def _predicted(adapter, seed: int) -> dict[str, Any]:
    """Observations predicted by each draw of the posterior."""
    predictive = Predictive(
        uncondition(adapter.model), adapter.get_samples(), batch_ndims=2
    )
    draws = predictive(jax.random.key(seed), *adapter._args, **adapter._kwargs)
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


def _refuse_summed(adapter) -> None:
    """Refuse the log likelihood where discrete sites have no draws.

    Raises:
        InvalidOption: with the way that works.
    """
    known = adapter.get_samples()
    for name, site in _latent(adapter).items():
        if site["fn"].support.is_discrete and name not in known:
            raise InvalidOption(
                f"The log likelihood depends on the discrete site '{name}', which is "
                "summed out and has no draws. Leave log_likelihood out, or sum it out "
                "by dist.MixtureSameFamily."
            )


def _latent(adapter) -> dict[str, Any]:
    """The sites of the model that are not observed."""
    seeded = handlers.substitute(
        handlers.seed(adapter.model, 0), substitute_fn=init_to_sample
    )
    trace = handlers.trace(seeded).get_trace(*adapter._args, **adapter._kwargs)
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


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
