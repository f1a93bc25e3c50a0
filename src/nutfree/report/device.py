"""How many chains a device runs in the time of a few."""

import time

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nutfree.target import Target

#: Numbers of chains that are tried.
CHAINS = (4, 16, 64, 256)
#: What more chains may cost, over what the fewest cost, and still count as free.
FREE = 1.25
#: Gradients one after the other in what is timed, and how often it is timed.
LENGTH, REPEATS = 50, 3


def free_chains(target: Target) -> int:
    """Return the most chains whose gradients take this device as long as those of four.

    The gradients are timed; a program for each number of chains is compiled.

    Args:
        target: with ``position`` set.
    """
    x, unravel = ravel_pytree(target.position)
    gradient = jax.vmap(jax.grad(lambda x: target.logdensity_fn(unravel(x))))

    def chain(points):
        def step(points, _):
            # each waits for the one before
            return points + 1e-6 * jnp.tanh(gradient(points)), None

        return jax.lax.scan(step, points, None, length=LENGTH)[0]

    seconds = {}
    for number in CHAINS:
        points = jnp.broadcast_to(x, (number, x.size))
        run = jax.jit(chain).lower(points).compile()
        jax.block_until_ready(run(points))
        seconds[number] = min(_took(run, points) for _ in range(REPEATS))
    return most_at_no_cost(seconds)


def most_at_no_cost(seconds: dict[int, float]) -> int:
    """Return the largest number up to which none takes longer than the smallest."""
    numbers = sorted(seconds)
    most = numbers[0]
    for number in numbers:
        if seconds[number] > FREE * seconds[numbers[0]]:
            break
        most = number
    return most


def _took(run, points) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run(points))
    return time.perf_counter() - started
