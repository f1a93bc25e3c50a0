"""One chain of a kernel from its own warm-up, as one program."""

from functools import partial

import jax

from nutfree.hosts import chain


def sample(target, *, spec, seed=0, **settings):
    """Return the states of the draws, their infos, and the tuned parameters."""
    run = partial(run_chain, target, spec=spec, **settings)
    return jax.jit(run)(jax.random.key(seed))


def run_chain(target, key, *, spec, num_warmup=60, num_samples=500, **options):
    """Do what `sample` does, inside a program of the caller's."""
    algorithm = chain.algorithm(spec, options)
    advance = partial(chain.advance, algorithm, target, num_warmup=num_warmup)

    def transition(state, key):
        state, info = advance(key, state)
        return state, (state.kernel_state, info)

    pilot_key, init_key, key = jax.random.split(key, 3)
    begun = chain.begin(
        algorithm, target, pilot_key, init_key, target.position, num_warmup
    )
    keys = jax.random.split(key, num_warmup + num_samples)
    end, drawn = jax.lax.scan(transition, begun, keys)
    states, info = jax.tree.map(lambda leaf: leaf[num_warmup:], drawn)
    return states, info, end.adapt_state.params
