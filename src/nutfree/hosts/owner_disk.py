"""An owner whose rows stay on its own disk.

Log densities, gradients and curvatures are sums over passes; the batches of a visit are
drawn from a window of random rows, read anew for each visit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidData
from nutfree.frontends.disk import DiskRows
from nutfree.frontends.numpyro import analyse
from nutfree.frontends.windows import (
    find,
    in_memory,
    on_devices,
    only_source,
    windowed,
)
from nutfree.hosts.stream import USE
from nutfree.kernels.federated.owners import Owner


class OnDisk:
    """The rows of one owner, of which a window is in memory.

    Args:
        model: a NumPyro model of one owner's data.
        data: its arguments `(args, kwargs)`, with some of their rows on disk.

    Raises:
        InvalidData: if the model cannot take rows in batches.
    """

    def __init__(self, model: Callable, data: tuple[tuple, dict]):
        self.data, self.source = data, only_source(data)
        self.first = self.window([0])
        self.args, self.kwargs = self._with(self.first)
        self.frontend = analyse(model, self.args, self.kwargs)
        if self.frontend.plate is None:
            raise InvalidData(
                "The rows are on disk, and the model takes them all at once: "
                + self.frontend.advice["minibatch"]
            )

    @property
    def few(self) -> tuple[tuple, dict]:
        """The model's arguments with a few rows in memory."""
        return in_memory((self.args, self.kwargs))

    def window(self, seed: list[int]) -> dict[str, jax.Array]:
        """Read random rows; a seed fixes them."""
        return on_devices(self.source, self.source.window(seed, 0))

    def check_use(self, num_rows: int) -> None:
        """Refuse visits in which a chain evaluates too many rows of one window.

        Raises:
            InvalidData: with the number of rows that a window must have.
        """
        if num_rows > USE * self.source.window_rows:
            raise InvalidData(
                f"A visit takes batches of {num_rows} rows in all from a window of "
                f"{self.source.window_rows}. Write nutfree.rows(..., "
                f"window_rows={int(num_rows / USE)})."
            )

    def owner(
        self, unravel: Callable, num_owners: int
    ) -> Callable[[dict[str, jax.Array]], Owner]:
        """Return `window -> Owner`, traceable in the window."""
        num_data, left = self.source.num_data, 1.0 - 1.0 / num_owners

        def of(window):
            args, kwargs = self._with(window)
            rows = self.frontend.build(args, kwargs).minibatch
            assert rows is not None
            assert rows.in_order is not None
            in_order = rows.in_order
            prior = self.frontend.prior_logdensity(*in_memory((args, kwargs)))

            def terms(x, indices):
                outside, each = rows.terms(unravel(x), indices)
                return outside - left * prior(unravel(x)), each

            @jax.checkpoint  # a pass keeps one block, and reads it again to go back
            def block(x, start):
                indices = start + jnp.arange(in_order.block_size)
                _, each = in_order.terms(unravel(x), jnp.minimum(indices, num_data - 1))
                return jnp.sum(jnp.where(indices < num_data, each, 0))

            def logdensity(x):
                starts = jnp.arange(0, num_data, in_order.block_size)
                zero = jnp.zeros((), x.dtype)
                total, _ = jax.lax.scan(
                    lambda so_far, start: (so_far + block(x, start), None), zero, starts
                )
                return terms(x, jnp.zeros(2, int))[0] + total

            return Owner(logdensity, terms, num_data, num_data)

        return of

    def _with(self, window: dict[str, jax.Array]) -> tuple[tuple, dict]:
        return windowed(self.data, self.source, window)


def on_disk(model: Callable, data: tuple[tuple, dict]) -> OnDisk | None:
    """Return the rows of an owner that are on disk, or None where all are in memory."""
    return OnDisk(model, data) if find(DiskRows, data) else None
