"""Compiled programs that take the data as arguments, and multiply in full precision.

Programs are shared within a process. One with the key of an earlier one is not traced
again; one whose trace is that of an earlier one is not compiled again.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from threading import Thread
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

#: Keys whose programs a process keeps; that of the oldest use makes place.
MAX_SHARED = 128
#: Bytes of arrays inside of a traced function up to which it is digested, so that
#: neither hashing them nor keeping them with a program costs much.
MAX_DIGESTED = 2**26

_shared: OrderedDict[Hashable, Any] = OrderedDict()


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


class Program:
    """A function that is compiled, with the arrays it closes over as arguments.

    The function is traced with their values at hand, as a user's model may need them.
    As constants, large data are slow to compile: a pilot over 10^6 rows of 50 columns
    took 26 s, and 10 s with them as arguments.

    Args:
        key: what the program is, but for the shapes and types of its arguments: of two
            functions with one key the second is not traced, and the program of the
            first runs in its place. None for a program that nothing shares.
    """

    def __init__(self, fun: Callable, key: Hashable = None):
        self._fun = fun
        self._compiled: dict = {} if key is None else _kept(key, dict)

    def __call__(self, *inputs: Any) -> Any:
        made = self._for(inputs)
        if made.compiling is not None:
            made.compiling.join()
        return made.program(made.constants, jax.tree.leaves(inputs))

    def shapes(self, *inputs: Any) -> Any:
        """Return the shapes and types of what it returns; nothing runs."""
        return self._for(inputs).shapes

    def compile_ahead(self, *inputs: Any) -> Any:
        """Compile in a thread while the caller goes on, and return `shapes`.

        Args:
            inputs: of the program, or their shapes and types.
        """
        made = self._for(inputs)
        if made.compiling is None:
            lowered = made.program.lower(made.constants, jax.tree.leaves(inputs))

            def compile_():
                # what goes wrong here goes wrong again where the program is called
                with suppress(Exception):
                    lowered.compile()

            # no daemon: a process that ends while it compiles would abort
            made.compiling = Thread(target=compile_)
            made.compiling.start()
        return made.shapes

    def _for(self, inputs: tuple) -> "_Compiled":
        leaves, treedef = jax.tree.flatten(inputs)
        kind = (_settings(), treedef, *map(jax.typeof, leaves))
        if kind not in self._compiled:
            self._compiled[kind] = _trace(self._fun, inputs)
        return self._compiled[kind]


#: Held while a model is traced: NumPyro's handlers are those of the whole process.
TRACING = threading.RLock()


def jitted(fun: Callable, key: Hashable = None) -> Program:
    """Return `jax.jit(fun)` with the arrays that `fun` closes over as arguments."""
    return Program(fun, key)


@dataclass
class _Compiled:
    """A program for inputs of some shapes, the arrays that it takes before them, the
    shapes of what it returns, and the thread that compiles it, if any."""

    program: Any
    constants: list
    shapes: Any
    compiling: Thread | None = None


def _trace(fun: Callable, inputs: tuple) -> _Compiled:
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*inputs)
    structure = jax.tree.structure(shapes)

    def run(constants, leaves):
        results = jax.core.eval_jaxpr(closed.jaxpr, constants, *leaves)
        return jax.tree.unflatten(structure, results)

    run.__name__ = getattr(fun, "__name__", "run")
    same, program = digest(closed.jaxpr, []), jax.jit(run)
    if same is not None:
        program = _kept((_settings(), same, structure), lambda: program)
    return _Compiled(program, closed.consts, shapes)


def _kept(key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what is kept under a key, made if there is none."""
    if key not in _shared:
        _shared[key] = make()
    _shared.move_to_end(key)
    while len(_shared) > MAX_SHARED:
        _shared.popitem(last=False)
    return _shared[key]


def _settings() -> tuple:
    """Return the settings of JAX that a trace depends on."""
    config = jax.config
    return (
        config.jax_enable_x64,
        config.jax_default_matmul_precision,
        config.jax_default_device,
        config.jax_debug_nans,
    )


def digest(jaxpr: Jaxpr, consts: list) -> str | None:
    """Return a digest of a traced function and of the arrays in it.

    Args:
        consts: the values of its constants, as far as they are part of it.

    Returns:
        None where it cannot be told from another one by what it computes: if it calls
        back to Python, has arrays that are not known yet, or more than `MAX_DIGESTED`
        bytes of them.
    """
    text = str(jaxpr)
    arrays = [*consts, *arrays_in(jaxpr)]
    if "callback" in text or any(isinstance(x, jax.core.Tracer) for x in arrays):
        return None
    return digest_of(text, arrays)


def digest_of(text: str, arrays: list) -> str | None:
    """Return a digest of a text and of arrays.

    None if they are large, or lie on devices of other processes.
    """
    if not all(getattr(x, "is_fully_addressable", True) for x in arrays):
        return None
    if sum(getattr(x, "nbytes", 0) for x in arrays) > MAX_DIGESTED:
        return None
    digest = hashlib.sha256(text.encode())
    for x in arrays:
        if jax.dtypes.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = np.ascontiguousarray(x)
        digest.update(f"{x.dtype}{x.shape}".encode() + x.tobytes())
    return digest.hexdigest()


def arrays_in(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yield the arrays that a jaxpr holds, which its text leaves out."""
    for equation in jaxpr.eqns:
        for value in equation.invars:
            if isinstance(value, Literal) and np.ndim(value.val):
                yield value.val
        for inner, consts in inner_jaxprs(equation):
            yield from consts
            yield from arrays_in(inner)


def inner_jaxprs(equation: Any) -> Iterator[tuple[Jaxpr, list]]:
    """Yield the jaxprs that an equation of another one calls, and their constants."""
    kinds = (ClosedJaxpr, Jaxpr)
    parts = list(equation.params.values())
    for found in jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(found, ClosedJaxpr):
            yield found.jaxpr, found.consts
        elif isinstance(found, Jaxpr):
            yield found, []
