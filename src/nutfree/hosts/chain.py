"""The core of every host: begin a chain, advance it, and tune it on the way.

These are pure functions of one chain. NumPyro's `MCMC`, the BlackJAX form, the tests
and the benchmarks all run a kernel through them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.hosts.state import strongly_typed
from nutfree.registry import KernelSpec
from nutfree.target import Position, Target
from nutfree.warmup import AdaptationState, Warmup


class Algorithm(NamedTuple):
    """A kernel with its options, ready to run on any target.

    spec
        What the registry knows of the kernel.
    options
        Its options object.
    fixed
        The tuned parameters that the user has fixed, by name.
    kernel
        `kernel(rng_key, state, logdensity_fn, **params) -> (state, info)`.
    warmup
        What tunes `params`.
    """

    spec: KernelSpec
    options: Any
    fixed: dict[str, Any]
    kernel: Callable
    warmup: Warmup

    def init(self, position: Position, target: Callable, rng_key: jax.Array) -> Any:
        """Return the kernel's state at `position`."""
        return self.spec.init(position, target, rng_key, options=self.options)


class Chain(NamedTuple):
    """A chain between two transitions.

    i
        Transitions made, those of warm-up included.
    kernel_state
        The kernel's own state.
    adapt_state
        What warm-up tunes; `adapt_state.params` are the kernel's parameters.
    """

    i: jax.Array
    kernel_state: Any
    adapt_state: AdaptationState


def algorithm(spec: KernelSpec, options: Mapping[str, Any]) -> Algorithm:
    """Return the kernel with these options.

    Raises:
        InvalidOption: for a misspelt, ill-typed or out-of-range option.
    """
    chosen = spec.checked(options)
    return Algorithm(
        spec,
        chosen,
        spec.fixed(chosen),
        spec.build_kernel(options=chosen),
        spec.warmup(options=chosen),
    )


def begin(
    algorithm: Algorithm,
    target: Target,
    pilot_key: jax.Array,
    init_key: jax.Array,
    position: Position,
    num_warmup: int,
) -> Chain:
    """Run the pilot from `position`, and return the chain before its first transition.

    Args:
        num_warmup: transitions that will tune the kernel, a Python int.
    """
    adapt = algorithm.warmup.init(pilot_key, position, target, num_warmup)
    adapt = _keep_fixed(algorithm, adapt)
    kernel_state = algorithm.init(adapt.position, target, init_key)
    adapt = adapt._replace(position=None)  # the kernel's state has it
    return _strongly_typed(Chain(jnp.asarray(0), kernel_state, adapt))


def advance(
    algorithm: Algorithm,
    target: Target,
    rng_key: jax.Array,
    chain: Chain,
    num_warmup: int,
) -> tuple[Chain, Any]:
    """Make one transition; the first `num_warmup` of them tune the kernel.

    Returns:
        `(chain, info)`, with the kernel's own info.
    """
    adapt = chain.adapt_state
    kernel_state, info = algorithm.kernel(
        rng_key, chain.kernel_state, target, **adapt.params
    )
    if num_warmup:
        # a loop of one turn or none: unlike a condition's, its carry is not copied
        adapt = jax.lax.fori_loop(
            0,
            jnp.asarray(chain.i < num_warmup, int),
            lambda _, adapt: tune(
                algorithm, adapt, kernel_state, info, chain.i + 1 == num_warmup
            ),
            adapt,
        )
    return _strongly_typed((Chain(chain.i + 1, kernel_state, adapt), info))


def tune(
    algorithm: Algorithm,
    adapt: AdaptationState,
    kernel_state: Any,
    info: Any,
    is_last: jax.Array | bool,
) -> AdaptationState:
    """Tune the parameters after one transition of warm-up."""
    warmup = algorithm.warmup
    adapt = _keep_fixed(algorithm, warmup.update(adapt, kernel_state, info))
    return jax.lax.cond(
        is_last,
        lambda a: _keep_fixed(algorithm, a._replace(params=warmup.final(a))),
        lambda a: a,
        adapt,
    )


def _strongly_typed(tree: Any) -> Any:
    """Give numbers the types that transitions keep: a weak one compiles twice."""
    return jax.tree.map(strongly_typed, tree)


def _keep_fixed(algorithm: Algorithm, adapt: AdaptationState) -> AdaptationState:
    """Keep the parameters that the user has fixed."""
    fixed = {
        name: jnp.asarray(value, jnp.asarray(adapt.params[name]).dtype)
        for name, value in algorithm.fixed.items()
    }
    params = jax.tree.map(jnp.asarray, {**adapt.params, **fixed})
    return adapt._replace(params=params)
