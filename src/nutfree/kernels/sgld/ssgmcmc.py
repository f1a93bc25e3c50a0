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

from nutfree.kernels.sgld.family import gradients_of, stochastic_spec
from nutfree.kernels.sgld.sgld import DYNAMICS
from nutfree.kernels.sgld.stochastic import (
    BatchOptions,
    StochasticState,
    kernel_builder,
)
from nutfree.kernels.sgld.structured import (
    group_of_coordinates,
    no_past,
    remember,
    structured,
    structured_mode,
    structured_noise,
)
from nutfree.kernels.sgld.warmup import warmup_builder
from nutfree.minibatch.estimators import Estimator
from nutfree.registry import option
from nutfree.warmup import Warmup


@dataclass(frozen=True)
class Options(BatchOptions):
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


def init(position, logdensity_fn, rng_key=None, options=Options()) -> StochasticState:
    del logdensity_fn, rng_key, options
    x, _ = ravel_pytree(position)
    return StochasticState(position, position, (), no_past(position, x))


def estimator_of(options: Options) -> Estimator:
    return structured(options.gradient, options.dropout)


def build_kernel(options=Options()):
    """Return the kernel, whose params are those of SGLD."""
    inner = kernel_builder(DYNAMICS, Options(), estimator_of)(options)

    def kernel(rng_key, state, logdensity_fn, **params):
        x, _ = ravel_pytree(state.position)
        past_key = jax.random.fold_in(rng_key, 2**31 - 1)
        memory = remember(state.memory, x, past_key)
        return inner(rng_key, state._replace(memory=memory), logdensity_fn, **params)

    return kernel


def warmup(options=Options()) -> Warmup:
    """SGLD's, with the curvature and the noise of the self-averaged energy."""
    build = warmup_builder(
        DYNAMICS,
        Options(),
        partial(structured_mode, dropout=options.dropout),
        partial(structured_noise, dropout=options.dropout),
    )
    return build(options)


def gradients(options, params, target):
    """SGLD's, once for each group unless groups drop out."""
    one = gradients_of(DYNAMICS, estimator_of)(options, params, target)
    if options.dropout is not None:
        return one
    return one * (1 + group_of_coordinates(target.position).max())


SPEC = stochastic_spec(
    DYNAMICS,
    Options,
    name="ssgmcmc",
    summary="SGLD with the model's sites made independent of each other",
    paper="arXiv 2107.09028",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    bias="dependence between sites is left out, whatever the step size, and less of it "
    "with a small dropout; the kernel Stein discrepancy and another kernel show it",
    bias_order={"step_size": 1, "dropout": 1},
    gradients=gradients,
)
