"""What tells a run from others, so that none goes on with the draws of another."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import numpy as np

from nutfree.errors import CheckpointMismatch
from nutfree.hosts.checkpoint import fingerprint, versions
from nutfree.hosts.numpyro import NutfreeKernel


def described(
    mcmc: Any, rng_key: jax.Array, state: Any, extra_fields, init_params
) -> dict[str, Any]:
    """Return what must be the same where a run goes on.

    Args:
        mcmc: the `PiecewiseMCMC` whose run it is.
        state: of all chains, or its shapes.
    """
    kernel, args, kwargs = mcmc.sampler, mcmc._args, mcmc._kwargs
    if not mcmc._vectorized:
        state = jax.eval_shape(partial(jax.tree.map, lambda x: x[0]), state)
    spec = getattr(kernel, "spec", None)
    digest, calls_back = fingerprint(
        lambda s: kernel.sample(s, args, kwargs),
        state,
        data=(args, kwargs, init_params),
    )
    return {
        "kernel": spec.name if spec is not None else type(kernel).__name__,
        "options": getattr(kernel, "options", {}),
        **{f"{name}_version": v for name, v in versions().items()},
        "num_warmup": mcmc.num_warmup,
        "num_chains": mcmc.num_chains,
        "thinning": mcmc.thinning,
        "rest of num_samples by thinning": mcmc.num_samples % mcmc.thinning,
        "chain_method": mcmc.chain_method,
        "draws_at_once": mcmc.draws_at_once,
        "random key": np.asarray(jax.random.key_data(rng_key)).tolist(),
        "extra_fields": list(extra_fields),
        "sample_field": kernel.sample_field,
        "model, data or init_params": digest,
        "calls back to Python": calls_back,
    }


def check_density(mcmc: Any, state: Any) -> None:
    """Refuse a density that is not the one that the state was made with.

    No digest tells what a program does that calls back to Python.

    Raises:
        CheckpointMismatch: with both values.
    """
    if not isinstance(mcmc.sampler, NutfreeKernel):
        return
    target = mcmc.sampler.target(mcmc._args, mcmc._kwargs)
    first = jax.tree.map(lambda x: x[0], (state.z, state.potential_energy))
    kept, now = -float(first[1]), float(target(first[0]))
    if not abs(now - kept) <= 1e-3 + 1e-4 * abs(kept) and not math.isnan(kept):
        raise CheckpointMismatch(
            f"The checkpoint '{mcmc.checkpoint}' is of another density: where the "
            f"run stopped it was {kept:.6g}, and now it is {now:.6g}. Run with the "
            "same, or take another folder."
        )
