"""Structured SGMCMC: groups of coordinates made independent, for large networks.

Reference: Alexos, Boyd and Mandt, ICML 2022, arXiv 2107.09028. SGLD on the
self-averaged energy

    U_S(theta) = sum_i E[U(theta_i, past_-i)],

past drawn from earlier states of the chain, each group by itself; with `dropout`, each
group is current with probability rho = 1 - dropout and past otherwise, and the gradient
of the current ones divided by rho. Groups are the model's sample sites.

It does not draw from the posterior: its law is a variational approximation of it, the
best product over groups in the paper's sense, to which dropout gives a share rho of the
dependence back. Where the posterior is Gaussian with precision P, the law has P with
its blocks between groups multiplied by 0 or rho: marginal variances are too small where
groups are correlated, at any step size. A step costs one gradient per group, or one in
all with dropout; one transition is about 2/h steps, and adds one state to the past.
"""

from dataclasses import dataclass
from functools import partial

import jax
from jax.flatten_util import ravel_pytree

from nutfree.facts import many_rows
from nutfree.kernels.sgld.sgld import DYNAMICS
from nutfree.kernels.sgld.stochastic import (
    StochasticOptions,
    StochasticState,
    kernel_builder,
)
from nutfree.kernels.sgld.structured import (
    no_past,
    remember,
    structured,
    structured_mode,
    structured_noise,
)
from nutfree.kernels.sgld.warmup import warmup_builder
from nutfree.registry import KernelSpec, option
from nutfree.warmup.base import Warmup


def init(position, logdensity_fn, rng_key=None) -> StochasticState:
    del logdensity_fn, rng_key
    x, _ = ravel_pytree(position)
    return StochasticState(position, position, (), no_past(position, x))


def build_kernel(
    *,
    batch_size: int | None = None,
    gradient: str = "plain",
    sampling: str = "auto",
    replacement: bool = True,
    dropout: float | None = None,
):
    """Return the kernel, whose params are those of SGLD."""
    build = kernel_builder(DYNAMICS, lambda name, _: structured(name, dropout))
    inner = build(
        batch_size=batch_size,
        gradient=gradient,
        sampling=sampling,
        replacement=replacement,
    )

    def kernel(rng_key, state, logdensity_fn, **params):
        x, _ = ravel_pytree(state.position)
        past_key = jax.random.fold_in(rng_key, 2**31 - 1)
        memory = remember(state.memory, x, past_key)
        return inner(rng_key, state._replace(memory=memory), logdensity_fn, **params)

    return kernel


def warmup(
    *,
    batch_size: int | None = None,
    gradient: str = "plain",
    sampling: str = "auto",
    replacement: bool = True,
    dropout: float | None = None,
    max_inflation: float = 0.05,
) -> Warmup:
    """SGLD's, with the curvature and the noise of the self-averaged energy."""
    build = warmup_builder(
        DYNAMICS,
        partial(structured_mode, dropout=dropout),
        partial(structured_noise, dropout=dropout),
    )
    return build(
        batch_size=batch_size,
        gradient=gradient,
        sampling=sampling,
        replacement=replacement,
        max_inflation=max_inflation,
    )


@dataclass(frozen=True)
class Options(StochasticOptions):
    gradient: str = option(
        "plain",
        "how the gradient is estimated from a batch; far from the mode, plain is best",
        choices=("plain", "control_variate"),
    )
    dropout: float | None = option(
        None,
        "chance that a group is past; None is one gradient for each group",
        gt=0,
        lt=1,
    )


SPEC = KernelSpec(
    name="ssgmcmc",
    family="sgld",
    summary="SGLD with the model's sites made independent of each other",
    paper="arXiv 2107.09028",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
    needs=("minibatch",),
    collects=("predicted_inflation",),
    suits=many_rows,
    guarantee="biased",
    bias="dependence between sites is left out, whatever the step size, and less of it "
    "with a small dropout; the kernel Stein discrepancy and another kernel show it",
)
