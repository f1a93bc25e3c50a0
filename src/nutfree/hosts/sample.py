"""`sample` runs a kernel to a DataTree, with the draws of NumPyro's `MCMC`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
from numpyro.infer.ensemble import EnsembleSampler
from numpyro.infer.mcmc import MCMCKernel

from nutfree.diagnostics.blocks import some_draws
from nutfree.diagnostics.ends import piled_up
from nutfree.errors import InvalidOption, NutfreeError, warn
from nutfree.frontends.disk import DiskRows
from nutfree.frontends.windows import find
from nutfree.hosts.arguments import model_arguments
from nutfree.hosts.checks import check_init_params, check_settings, explain
from nutfree.hosts.interrupts import Interrupts
from nutfree.hosts.kernel import Unbound
from nutfree.hosts.moments import check_moments
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.hosts.pieces import PiecewiseMCMC
from nutfree.hosts.store import Store, check_store
from nutfree.hosts.stream import StreamedMCMC, check_streams, loaded
from nutfree.numerics.programs import TRACING, in_full_precision

if TYPE_CHECKING:
    import xarray


#: Independent draws that a chain makes side by side on a GPU, at most.
MOST_AT_ONCE = 64


def _chain_method(kernel: MCMCKernel, num_chains: int) -> str:
    """Return "vectorized" where all chains' transitions cost the same."""
    if isinstance(kernel, NutfreeKernel | EnsembleSampler):
        return "vectorized"
    return "parallel" if 1 < num_chains <= jax.local_device_count() else "sequential"


def _at_once(
    kernel: MCMCKernel,
    draws_at_once: int | None,
    num_draws: int,
    chain_method: str | None,
    checkpoint: str | os.PathLike | None,
) -> int:
    """Return how many draws a chain makes side by side.

    Raises:
        InvalidOption: where this kernel or this run cannot make as many, with what to
            write instead.
    """
    independent = getattr(getattr(kernel, "spec", None), "draws", "") == "independent"
    if draws_at_once is None:
        several = jax.default_backend() != "cpu" and independent
        # a run that is prolonged must make as many as before
        if not several or checkpoint is not None or chain_method == "sequential":
            return 1
        return max(n for n in range(1, MOST_AT_ONCE + 1) if num_draws % n == 0)
    if draws_at_once == 1:
        return 1
    if not isinstance(kernel, NutfreeKernel) or not independent:
        name = getattr(getattr(kernel, "spec", None), "name", type(kernel).__name__)
        raise InvalidOption(
            f"draws_at_once={draws_at_once}, but a draw of '{name}' depends on the one "
            "before. Leave it out, and ask for more chains with num_chains."
        )
    if num_draws % draws_at_once:
        fits = -(-num_draws // draws_at_once) * draws_at_once
        raise InvalidOption(
            f"{num_draws} draws of each chain cannot be made {draws_at_once} at once; "
            f"ask for {fits}."
        )
    if chain_method == "sequential":
        raise InvalidOption(
            "chain_method='sequential' makes one draw at a time; leave it or "
            "draws_at_once out."
        )
    return draws_at_once


@in_full_precision
def sample(
    kernel: MCMCKernel,
    *args: Any,
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    thinning: int = 1,
    chain_method: str | None = None,
    init_params: Any = None,
    extra_fields: tuple[str, ...] = (),
    progress_bar: bool = True,
    checkpoint: str | os.PathLike | None = None,
    store: str | os.PathLike | None = None,
    keep: Literal["draws", "moments"] = "draws",
    draws_at_once: int | None = None,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    coords: dict[str, Any] | None = None,
    dims: dict[str, list[str]] | None = None,
    log_likelihood: bool = False,
    prior: dict[str, Any] | int | None = None,
    posterior_predictive: dict[str, Any] | bool | None = None,
    constant_data: dict[str, Any] | None = None,
    **kwargs: Any,
) -> xarray.DataTree:
    """Run a kernel on its model and return the draws with their diagnostics.

    Args:
        kernel: from `nutfree.kernel`, or any NumPyro kernel, `NUTS` included.
        *args, **kwargs: arguments of the model. One that is called like a setting
            is given as `model_kwargs={name: ...}`.
        num_warmup, num_samples, num_chains, thinning: as for NumPyro's `MCMC`.
        seed: of the random numbers.
        chain_method: "vectorized", "sequential" or "parallel"; by default what suits
            the kernel. Parallel chains are spread over the devices there are.
        init_params: where to start on the sampling space, with a leading axis of
            chains if there are several.
        extra_fields: further fields of the kernel's state to collect.
        progress_bar: whether to show one.
        checkpoint: a folder to keep the run in. The same call goes on from there after
            an interrupt or a crash, to the draws of a run that was never interrupted;
            one with a larger `num_samples` prolongs it. What is in the folder so far
            is read by `nutfree.read_checkpoint`.
        store: a Zarr folder to write the draws to as they are made, for a posterior
            whose draws do not fit into memory. What is there so far is read by
            `xarray.open_datatree(store, engine="zarr")`, while the run goes on and
            after a crash. A store is a checkpoint, too: the same call goes on from it.
        keep: "draws", or "moments" for a posterior whose draws are too large to store:
            the tree has a group summary in place of posterior, with the mean, standard
            deviation, quantiles and R-hat of every parameter, in constant memory.
        draws_at_once: how many draws each chain makes side by side after warm-up, for
            a kernel whose draws are independent (`nutfree.kernels()`); by default one
            on a CPU and in a run with a checkpoint, and up to 64 on a GPU, which is
            faster with more to do at once.
        model_args, model_kwargs: arguments of the model, apart from the settings.
        coords, dims, log_likelihood, prior, posterior_predictive, constant_data: for
            ArviZ, see `nutfree.to_arviz`.

    Returns:
        An `xarray.DataTree` as `nutfree.to_arviz` makes it; with `store`, one that
        reads from there what is asked for. Where draws are not finite,
        chains disagree or transitions diverge, a warning says so. Ctrl-C ends the run
        with the draws made so far and a warning.

    Raises:
        NutfreeError: for a store without zarr, `pip install "nutfree[zarr]"`.
        InvalidOption: for a setting that makes no run, a field that the kernel's state
            does not have, or init_params that do not fit the model.
        CheckpointMismatch: if the folder is of another kernel, model, data or setting.
        MissingCapability, UnsupportedModel, InvalidData, NoFiniteStart: see
            `nutfree.errors`.

    Example:
        >>> import nutfree as nf
        >>> kernel = nf.kernel("mala", potential_fn=lambda x: 0.5 * x**2)
        >>> tree = nf.sample(kernel, num_warmup=50, num_samples=50, num_chains=1,
        ...                  init_params=0.0, progress_bar=False)
    """
    if isinstance(kernel, Unbound):
        name = kernel.spec.name
        raise InvalidOption(
            f"The kernel '{name}' has no model. Write "
            f'nutfree.kernel("{name}", model), with the model itself and not what a '
            "call of it returns; its arguments go to nutfree.sample."
        )
    if not isinstance(kernel, MCMCKernel):
        raise InvalidOption(
            f"The first argument is a {type(kernel).__name__}; pass a kernel, such as "
            'nutfree.kernel("multiscale", model).'
        )
    args, kwargs = model_arguments(
        sample,
        kernel,
        args,
        kwargs,
        model_args,
        model_kwargs,
        {
            **{"num_warmup": num_warmup, "num_samples": num_samples, "seed": seed},
            **{"num_chains": num_chains, "thinning": thinning, "prior": prior},
            **{"chain_method": chain_method, "init_params": init_params},
            **{"extra_fields": extra_fields, "progress_bar": progress_bar},
            **{"checkpoint": checkpoint, "draws_at_once": draws_at_once},
            **{"store": store, "keep": keep},
            **{"coords": coords, "dims": dims, "log_likelihood": log_likelihood},
            **{"posterior_predictive": posterior_predictive},
            "constant_data": constant_data,
        },
    )
    check_settings(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        seed=seed,
        thinning=thinning,
        chain_method=chain_method,
        draws_at_once=1 if draws_at_once is None else draws_at_once,
    )
    if keep not in ("draws", "moments"):
        raise InvalidOption(f"keep={keep!r} is unknown; write 'draws' or 'moments'.")
    num_draws = num_samples // thinning
    kept = checkpoint if store is None else store
    draws_at_once = _at_once(kernel, draws_at_once, num_draws, chain_method, kept)
    if init_params is not None and num_chains > 1:
        check_init_params(init_params, None, num_chains)
    args, kwargs = loaded(args, kwargs)
    streamed = find(DiskRows, (args, kwargs))
    if streamed:
        check_streams(kernel, chain_method)
    mcmc = (StreamedMCMC if streamed else PiecewiseMCMC)(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        thinning=thinning,
        chain_method=chain_method or _chain_method(kernel, num_chains),
        progress_bar=progress_bar,
    )
    mcmc.checkpoint = checkpoint
    if store is not None:
        check_store(checkpoint, posterior_predictive)
        mcmc.store = Store(store, coords, dims)
        mcmc.checkpoint = mcmc.store.state
    mcmc.only_moments = keep == "moments"
    if mcmc.only_moments:
        check_moments(
            store=store,
            checkpoint=checkpoint,
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
        )
    mcmc.draws_at_once = draws_at_once
    with Interrupts() as signals:
        mcmc.interrupts = signals
        _run(mcmc, seed, args, kwargs, init_params, extra_fields)
        attrs = {
            "seconds": mcmc.seconds,
            "interrupted": mcmc.interrupted,
            "warmup_grad_evals": mcmc.warmup_grad_evals,
            "seed": seed,
            **mcmc.phases,
            **mcmc.extra_attrs,
        }
        groups: dict[str, Any] = {"coords": coords, "dims": dims, "prior": prior}
        groups |= {"log_likelihood": log_likelihood, "constant_data": constant_data}
        groups["posterior_predictive"] = posterior_predictive
        # of rows on disk, some of many are in memory
        groups["leave_out"] = ("observed_data",) if streamed else ()
        with TRACING:
            tree = mcmc.draws.tree(mcmc, attrs=attrs, **groups)
        said = [mcmc.draws.verdict(tree)]
        model = getattr(kernel, "model", None)
        if callable(model) and "posterior" in tree and not streamed:
            draws = some_draws(tree["posterior"].to_dataset())
            with TRACING:
                said.append(piled_up(draws, model, args, kwargs))
    for words in filter(None, said):
        warn(words)
    return tree


def _run(mcmc: PiecewiseMCMC, seed, args, kwargs, init_params, extra_fields) -> None:
    """Run, and say in our words why a run could not begin."""
    try:
        mcmc.run(
            jax.random.key(seed),
            *args,
            init_params=init_params,
            extra_fields=extra_fields,
            **kwargs,
        )
    except NutfreeError:
        raise
    # nothing is swallowed: `explain` raises in its place where it knows the cause, and
    # the error goes on as it was where it does not
    except Exception:
        explain(mcmc.sampler, args, kwargs)
        raise
