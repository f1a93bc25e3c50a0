"""Compiled programs that take the data as arguments, and multiply in full precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps

import jax


def full_precision() -> AbstractContextManager:
    """Return a context in which products of float32 are in float32 on every device.

    On a GPU JAX makes them in TensorFloat-32 unless told otherwise, which is wrong by
    3e-4: more than a posterior is wide that many rows have made narrow. A precision
    that the user has set with `jax.default_matmul_precision` stays.
    """
    if jax.config.jax_default_matmul_precision is not None:
        return nullcontext()
    return jax.default_matmul_precision("highest")


def in_full_precision[**P, R](fun: Callable[P, R]) -> Callable[P, R]:
    """Return `fun`, called and traced in `full_precision`."""

    @wraps(fun)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with full_precision():
            return fun(*args, **kwargs)

    return call


def jitted(fun: Callable) -> Callable:
    """Return `jax.jit(fun)`, with the arrays that `fun` closes over as arguments.

    `fun` is traced with their values at hand, as a user's model may need them. As
    constants, large data are slow to compile: a pilot over 10^6 rows of 50 columns took
    26 s, and 10 s with them as arguments.
    """
    programs: dict = {}

    def call(*inputs):
        leaves, treedef = jax.tree.flatten(inputs)
        kind = (jax.config.jax_enable_x64, treedef, *map(jax.typeof, leaves))
        if kind not in programs:
            closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*inputs)
            structure = jax.tree.structure(shapes)

            def run(constants, leaves):
                results = jax.core.eval_jaxpr(closed.jaxpr, constants, *leaves)
                return jax.tree.unflatten(structure, results)

            run.__name__ = fun.__name__
            programs[kind] = jax.jit(run), closed.consts
        program, constants = programs[kind]
        return program(constants, leaves)

    return call
