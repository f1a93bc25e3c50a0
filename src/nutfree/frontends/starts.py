"""Starting points, where the log density of a NumPyro model is finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import compute_log_probs, initialize_model

from nutfree.errors import NoFiniteStart, NutfreeError
from nutfree.frontends.arguments import Arguments
from nutfree.frontends.checks import cannot_run, check_nan
from nutfree.frontends.handlers import full_data
from nutfree.frontends.windows import in_memory
from nutfree.numerics.evaluation import is_finite
from nutfree.numerics.programs import jitted
from nutfree.target import OwnersAlike, Position


def starter(
    model: Callable,
    arguments: Arguments,
    *,
    init_strategy: Callable = init_to_uniform,
    validate_grad: bool = True,
) -> Callable[[jax.Array], Position]:
    """Return `rng_key -> position`, where the log density is finite; compiled once.

    It takes one key, or a batch of them, shape `(num_chains,)`, and finds a position
    for each.

    Args:
        model: a NumPyro model without params.
        arguments: its arguments.
        init_strategy: NumPyro's, for the points that are tried.
        validate_grad: whether the gradient has to be finite, too.

    Raises (when called):
        InvalidData: if a NaN in the data is why there is none.
        NoFiniteStart: if there is none for another reason.
    """

    def search(fed, rng_key):
        args, kwargs = in_memory(arguments.rebuild(fed))
        found = initialize_model(
            rng_key,
            full_data(model),
            init_strategy=init_strategy,
            model_args=args,
            model_kwargs=kwargs,
            validate_grad=validate_grad,
        ).param_info
        gradient = found.z_grad if validate_grad else ()
        return found.z, is_finite(found.potential_energy, gradient)

    # one program; op by op, each of them would be compiled
    key = arguments.key and ("start", arguments.key, init_strategy, validate_grad)
    compiled = jitted(search, key)

    def start(rng_key: jax.Array) -> Position:
        try:
            position, good = compiled(arguments.fed, rng_key)
        except (TypeError, ValueError) as error:
            raise cannot_run(error) from error
        if not isinstance(good, jax.core.Tracer) and not good:
            args, kwargs = in_memory(arguments.now)
            check_nan(args, kwargs)
            raise _why_no_start(model, args, kwargs)
        return position

    return start


def start_of_owners(
    of_one: Callable, alike: OwnersAlike, of_all: Callable
) -> Callable[[jax.Array], Position]:
    """Return `rng_key -> position` for owners that are alike, compiled as for one.

    Args:
        of_one: the starter of one owner's model.
        of_all: that of all owners' model, for where the first is not good for all.
    """

    def total(position):
        def add(value, one):
            return value + alike.logdensity(position, one), None

        return jax.lax.scan(add, jnp.zeros(()), alike.data)[0]

    def is_good(position):
        value, gradient = jax.value_and_grad(total)(position)
        return is_finite(value, gradient)

    batched = jitted(lambda positions: jnp.all(jax.lax.map(is_good, positions)))

    def start(rng_key: jax.Array) -> Position:
        try:
            position = of_one(rng_key)
        except NutfreeError:
            return of_all(rng_key)
        leaves = jax.tree.leaves(position)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return position
        typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
        alone = jnp.ndim(rng_key) == (0 if typed else 1)
        several = jax.tree.map(lambda x: x[None], position) if alone else position
        return position if batched(several) else of_all(rng_key)

    return start


def _why_no_start(model, args, kwargs) -> NoFiniteStart:
    log_probs, _ = compute_log_probs(at_random(model, 0), args, kwargs, {})
    bad = [k for k, v in log_probs.items() if not bool(jnp.isfinite(v))]
    where = f" Sites with no finite log density: {', '.join(bad)}." if bad else ""
    return NoFiniteStart(
        f"No starting point with a finite log density in 100 tries.{where} Check "
        "that the data lie in the support of their distribution, or pass "
        "init_strategy=numpyro.infer.init_to_value(values={...}) or init_params."
    )


def at_random(model, seed: int):
    """Put the latent sites at a random point of their supports; take all rows."""
    seeded = full_data(handlers.seed(model, seed))
    return handlers.substitute(seeded, substitute_fn=init_to_uniform)
