"""The shape of every warm-up: BlackJAX's adaptation triple, with a pilot in `init`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from nutfree.target import Position, Target


class AdaptationState(NamedTuple):
    """What warm-up carries from one transition to the next.

    params
        What the kernel is called with now, a dict of traced arrays.
    position
        Where the chain starts: the host's position, or a better one that the pilot
        has found. The host reads it once, after `init`, and leaves None there.
    num_grad_evals, num_density_evals
        What the pilot has cost, counted by the code that evaluates.
    inner
        The kernel's own adaptation state, any pytree.
    """

    params: dict[str, Any]
    position: Position
    num_grad_evals: jax.Array | float = 0.0
    num_density_evals: jax.Array | float = 0.0
    inner: Any = ()

    @property
    def step_size(self) -> jax.Array:
        """The current step size.

        Raises:
            AttributeError: for a kernel that has none.
        """
        if "step_size" not in self.params:
            raise AttributeError("This kernel has no step_size.")
        return self.params["step_size"]


class Warmup(NamedTuple):
    """How a kernel tunes itself.

    init
        `init(rng_key, position, target, num_steps) -> AdaptationState`. Work that is
        done once, a pilot, is done here; it must be traceable and bounded.
        `num_steps`, a Python int, is the number of warm-up transitions to come; it
        may be 0, and then `init` alone must give parameters to start with.
    update
        `update(adapt_state, state, info) -> AdaptationState`, after each of them.
    final
        `final(adapt_state) -> params`, once, after the last of them.
    """

    init: Callable[[jax.Array, Position, Target, int], AdaptationState]
    update: Callable[[AdaptationState, Any, Any], AdaptationState]
    final: Callable[[AdaptationState], dict[str, Any]]
