"""A plain Python function as a log density: NumPy, a subprocess, a simulator.

JAX calls it back with concrete numbers, for all members of a batch at once (the chains
of a vectorised run, the draws of a pilot's round), and the calls of a batch are spread
over an executor. It has no gradient.

On one CPU the callback reads and writes XLA's own buffers. `jax.pure_callback` makes
JAX arrays of them first, on every device: 63 microseconds of a CPU a call, where this
takes 3. A GPU's buffers would have to be copied, and of several devices each would
call.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from os import PathLike
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.errors import InvalidOption, warn

try:
    # JAX says that a later version may have it elsewhere
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # pragma: no cover
    buffer_callback = None  # type: ignore[assignment]

ON_ERROR = ("reject", "raise")


class BlackBox:
    """Made by `blackbox`; call it with a position inside of JAX or outside.

    Attributes:
        num_calls: positions that the function was called with.
        num_cached: positions whose value was known already.
        num_errors: positions at which it raised, and which are rejections.
        num_not_finite: positions at which its value was NaN or infinite.
        first_error: the first exception; None without any.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        batch: int | None,
        executor: Executor | None,
        on_error: str,
        cache: str | PathLike | None,
    ):
        self._function, self._batch, self._executor = function, batch, executor
        self._on_error = on_error
        self._values: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self._store = None if cache is None else _Store(cache)
        if self._store is not None:
            self._values.update(self._store.read())
        self.num_calls = self.num_cached = self.num_errors = self.num_not_finite = 0
        self.first_error: BaseException | None = None

    def __call__(self, position: Any) -> jax.Array:
        """The function's value, a scalar; NaN where it raised.

        Outside of a program the function is called at once.
        """
        leaves, structure = jax.tree.flatten(position)
        dtype = jnp.result_type(float, *leaves)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            stacked = [np.array(leaf)[None] for leaf in leaves]
            return jnp.asarray(self._evaluate(stacked, structure)[0], dtype)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        shapes = [leaf.shape for leaf in leaves]

        def evaluate(*stacked):
            # copies, as what is passed on may be kept, and a buffer is not
            stacked = [np.asarray(leaf).copy() for leaf in stacked]
            batch = stacked[0].shape[: stacked[0].ndim - len(shapes[0])]
            full = [leaf.reshape(-1, *shape) for leaf, shape in zip(stacked, shapes)]
            values = self._evaluate(full, structure)
            return np.asarray(values, dtype).reshape(batch)

        def evaluate_into(context, out, *stacked):
            del context
            np.asarray(out)[...] = evaluate(*stacked)

        out, how = jax.ShapeDtypeStruct((), dtype), "broadcast_all"
        if _is_one_cpu() and buffer_callback is not None:
            return buffer_callback(evaluate_into, out, vmap_method=how)(*leaves)
        return jax.pure_callback(evaluate, out, *leaves, vmap_method=how)

    def _evaluate(self, leaves: list[np.ndarray], structure) -> list[float]:
        """Values at the rows of the leaves, `(n, ...)`."""
        rows = range(len(leaves[0]))
        keys = [b"".join([leaf[i].tobytes() for leaf in leaves]) for i in rows]
        with self._lock:
            new = {k: i for i, k in enumerate(keys) if k not in self._values}
        self.num_cached += len(keys) - len(new)
        if new:
            found = self._call(leaves, structure, list(new.values()))
            fresh = dict(zip(new, found))
            with self._lock:
                self._values.update(fresh)
                if self._store is not None:
                    self._store.write(fresh)
        return [self._values[key] for key in keys]

    def _call(self, leaves: list[np.ndarray], structure, rows) -> list[float]:
        size = self._batch or 1
        jobs, counts = [], []
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            index = part[0] if self._batch is None else part
            chosen = [leaf[index] for leaf in leaves]
            jobs.append(jax.tree.unflatten(structure, chosen))
            counts.append(len(part))
        found: list[float] = []
        for count, result in zip(counts, self._map(jobs)):
            found += self._read(result, count)
        return found

    def _map(self, jobs: list[Any]) -> Iterable[tuple[Any, BaseException | None]]:
        if self._executor is None or len(jobs) < 2:
            return map(_guarded, [self._function] * len(jobs), jobs)
        # `map` of another library's executor may differ; `submit` is the protocol
        futures = [self._executor.submit(_guarded, self._function, j) for j in jobs]
        return (future.result() for future in futures)

    def _read(self, result, count: int) -> list[float]:
        value, error = result
        self.num_calls += count
        if error is not None:
            if self._on_error == "raise":
                raise error
            if self.first_error is None:
                self.first_error = error
                warn(
                    f"The black box raised {type(error).__name__}: {error}. Such "
                    "positions are rejected and counted; write on_error='raise' to "
                    "stop at the first."
                )
            self.num_errors += count
            return [float("nan")] * count
        values = np.asarray(value, float).reshape(-1)
        if values.size != count:
            raise InvalidOption(
                f"The black box returned {values.size} numbers for {count} positions; "
                "return one log density for each."
            )
        self.num_not_finite += count - int(np.count_nonzero(np.isfinite(values)))
        return values.tolist()


def _is_one_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


class _Store:
    """Known values in a file, which a later process reads."""

    def __init__(self, path: str | PathLike):
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute(
            "create table if not exists known (position blob primary key, value real)"
        )

    def read(self) -> dict[bytes, float]:
        rows = self._connection.execute("select position, value from known")
        # SQLite has no NaN, and stores it as null
        return {k: float("nan") if v is None else v for k, v in rows}

    def write(self, values: dict[bytes, float]) -> None:
        with self._connection:
            self._connection.executemany(
                "insert or replace into known values (?, ?)", values.items()
            )


def _guarded(function, position) -> tuple[Any, BaseException | None]:
    """The value or the exception, so that one failure does not end the others."""
    try:
        return function(position), None
    # whatever a stranger's simulator raises; `_read` counts it or raises it again
    except Exception as error:
        return None, error


def blackbox(
    function: Callable[[Any], Any],
    *,
    batch: int | None = None,
    executor: Executor | None = None,
    on_error: Literal["reject", "raise"] = "reject",
    cache: str | PathLike | None = None,
) -> BlackBox:
    """Make a log density, or a potential, of a function that JAX cannot trace.

    Args:
        function: `position -> number`, with NumPy arrays for the leaves of a position.
        batch: where given, the function takes up to so many positions at once, stacked
            along a first axis, and returns as many numbers.
        executor: any with `submit`, such as those of `concurrent.futures` or Dask's;
            calls of a batch run side by side.
        on_error: "reject" makes an exception a rejection that is counted; "raise" ends
            the run with it.
        cache: a file of values known already, so that a run that goes on repeats none.

    Returns:
        A `BlackBox`, for `Target`, `potential_fn`, or `numpyro.factor` in a model.

    Raises:
        InvalidOption: for a batch below one, or another word for `on_error`.

    Example:
        >>> import numpy as np
        >>> density = blackbox(lambda x: -0.5 * np.sum(x**2))
        >>> float(density(np.ones(2)))
        -1.0
    """
    if not callable(function):
        raise InvalidOption(
            f"The black box is a {type(function).__name__}; pass a function of a "
            "position that returns its log density."
        )
    if batch is not None and batch < 1:
        raise InvalidOption(f"batch={batch}; write a number of at least 1, or None.")
    if on_error not in ON_ERROR:
        raise InvalidOption(
            f"on_error={on_error!r}; write one of {', '.join(map(repr, ON_ERROR))}."
        )
    if executor is not None and not hasattr(executor, "submit"):
        raise InvalidOption(
            f"The executor is a {type(executor).__name__} without `submit`; pass one "
            "of concurrent.futures, such as ThreadPoolExecutor(8)."
        )
    return BlackBox(function, batch, executor, on_error, cache)
