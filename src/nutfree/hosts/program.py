"""The compiled program that makes a piece of a run."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from numpyro.infer import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import nested_attrgetter

from nutfree.frontends.arguments import both
from nutfree.hosts.checks import check_fields
from nutfree.numerics.bounds import constrain_by_own_bounds
from nutfree.numerics.programs import jitted

#: Collected besides the kernel's default fields, where its state has them.
FIELDS = (
    "diverging",
    "potential_energy",
    "accept_prob",
    "num_steps",
    "adapt_state.step_size",
    "energy",
)


def piece_program(
    kernel: MCMCKernel,
    data: Callable[[Any], tuple[tuple, dict]],
    state: Any,
    size: int,
    extra_fields: tuple[str, ...],
    *,
    chain_method: str,
    vectorized: bool,
    num_chains: int,
    key: Hashable = None,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Return `program(state, n, thinning, feed)`: the state after n draws, and they.

    n is no part of the program: the draws are padded to `size`, of which the first n
    are made.

    Args:
        data: `data(feed)` is `(model_args, model_kwargs)`.
        state: a state of all chains, or its shapes.
        extra_fields: further fields of the state to collect.
        vectorized: whether a state of the kernel is of all chains.
        key: of the kernel and the data, see `nutfree.numerics.programs.jitted`.

    Raises:
        InvalidOption: for a field that the state does not have.
    """
    check_fields(state, extra_fields, has_field)
    wanted = (*kernel.default_fields, *FIELDS, *extra_fields)
    fields = tuple(dict.fromkeys(f for f in wanted if has_field(state, f)))
    run = _piece(kernel, data, size, fields, vectorized)
    if vectorized:
        devices = _devices(chain_method, num_chains)
        key = both("piece", key, size, fields, tuple(devices))
        return _over_devices(run, devices, key)
    if chain_method == "parallel":
        return jax.pmap(run, in_axes=(0, None, None, None))

    def in_turn(state, n, thinning, feed):
        return jax.lax.map(lambda s: run(s, n, thinning, feed), state)

    return jitted(in_turn, both("piece in turn", key, size, fields))


def _piece(kernel, data, size: int, fields: tuple[str, ...], vectorized: bool):
    """Return the program of a piece, before it is compiled, of one chain or of all."""
    getters = {field: nested_attrgetter(field) for field in fields}

    def collect(state):
        return {field: get(state) for field, get in getters.items()}

    def run(state, n, thinning, feed):
        args, kwargs = data(feed)
        constrain = None
        if isinstance(kernel, HMC):
            constrain = constrain_by_own_bounds(kernel, args, kwargs)
        constrain = constrain or kernel.postprocess_fn(args, kwargs)

        def draw(i, carry):
            state, made = carry
            state = jax.lax.fori_loop(
                0, thinning, lambda _, s: kernel.sample(s, args, kwargs), state
            )
            return state, jax.tree.map(
                lambda m, v: m.at[i].set(v), made, collect(state)
            )

        shapes = jax.eval_shape(collect, state)
        made = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
        state, made = jax.lax.fori_loop(0, n, draw, (state, made))
        position, *_ = fields
        if jax.tree.leaves(made[position]):
            in_all = jax.vmap(jax.vmap(constrain) if vectorized else constrain)
            made[position] = in_all(made[position])
        else:  # a model without latent sites
            draws = made["diverging"].shape
            made[position] = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (*draws, *jnp.shape(x))),
                constrain(made[position]),
            )
        return state, made

    return run


def _over_devices(run, devices: list, key: Hashable):
    """Compile a piece of vectorized chains, which are spread over the devices."""

    def chains(state, n, thinning, feed):
        state, made = run(state, n, thinning, feed)
        return state, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)

    if len(devices) == 1:
        return jitted(chains, key)
    along = PartitionSpec("chains")
    return jitted(
        jax.shard_map(
            chains,
            mesh=jax.sharding.Mesh(devices, ("chains",)),
            in_specs=(along, PartitionSpec(), PartitionSpec(), PartitionSpec()),
            out_specs=along,
            check_vma=False,
        ),
        key,
    )


def _devices(chain_method: str, num_chains: int) -> list:
    """As many devices as share the chains evenly."""
    if chain_method != "parallel":
        return jax.local_devices()[:1]
    count = jax.local_device_count()
    while num_chains % count:
        count -= 1
    return jax.local_devices()[:count]


def has_field(state: Any, field: str) -> bool:
    """Whether a state has a field; `adapt_state.params` is a field of a field."""
    for name in field.split("."):
        if not hasattr(state, name):
            return False
        state = getattr(state, name)
    return True
