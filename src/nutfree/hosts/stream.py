"""A run on data that stay on disk: a window of rows at a time.

While the device makes some transitions from the rows of one window, a thread reads the
next ones. Batches are drawn from the window, whose rows are a random part of all, so
gradients are unbiased; but the window's own chance stays for as long as it is used.
With rows evaluated u times each on average, which `USE` bounds, that adds up to a
share u to the long-run variance of the gradient's noise, and a share u times the
`row_order_effect` where neighbouring rows are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import fields
from typing import Any

import jax
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from nutfree.errors import InvalidOption, MissingCapability, warn
from nutfree.frontends.disk import DiskRows, Source
from nutfree.frontends.windows import (
    in_memory,
    on_devices,
    only_source,
    replaced,
    windowed,
)
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.hosts.pieces import PiecewiseMCMC

#: How often a row in memory is evaluated on average before it makes place.
USE = 0.5
#: Windows that the loader reads ahead, and draws that a program makes at most.
AHEAD = 2
MAX_DRAWS = 256
#: A window's share of the error of variances from which on it is worth a warning.
MAX_EXCESS = 0.02


def loaded(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    """The arguments with the rows read from disk where a window holds them all."""

    def load(rows: DiskRows):
        source = rows.source
        if source.num_data > source.window_rows:
            return rows
        return source.readers[rows.name](0, source.num_data)

    return replaced(DiskRows, load, (args, dict(kwargs)))


def check_streams(kernel: MCMCKernel, chain_method: str | None) -> None:
    """Refuse a kernel that cannot run on rows that come and go.

    Raises:
        MissingCapability: if it needs all rows at once.
        InvalidOption: for an option that remembers single rows.
    """
    if not isinstance(kernel, NutfreeKernel) or "minibatch" not in kernel.spec.needs:
        name = getattr(getattr(kernel, "spec", None), "name", type(kernel).__name__)
        raise MissingCapability(
            f"The kernel '{name}' needs all rows at once, and these stay on disk. Take "
            'one of the SGLD family, nutfree.kernel("sgld", model), or load the data.'
        )
    for option in fields(kernel.spec.options):
        value = getattr(kernel.algorithm.options, option.name)
        if value in option.metadata["needs_fixed_rows"]:
            raise InvalidOption(
                f"{option.name}='{value}' keeps a number for each row, which rows on "
                "disk do not allow. Leave it out."
            )
    if chain_method not in (None, "vectorized"):
        raise InvalidOption(
            f"chain_method='{chain_method}' would read the rows once a chain. Leave it "
            "out: the chains share what is read."
        )


class StreamedMCMC(PiecewiseMCMC):
    """`PiecewiseMCMC` on model arguments some of which are `DiskRows`."""

    # a window ends with its piece, and windows must not depend on the clock
    timed = False

    _source: Source
    _effect: float
    _use: float

    def run(self, rng_key, *args, extra_fields=(), init_params=None, **kwargs) -> None:
        self._raw = (args, kwargs)
        self._source, self._use = only_source(self._raw), 0.0
        self._seed = np.asarray(jax.random.key_data(rng_key)).ravel().tolist()
        self._ahead: dict[int, Future] = {}
        first = self._source.window(self._seed, 0)
        self._effect = self._source.order_effect(first)
        args, kwargs = self._data(on_devices(self._source, first))
        try:
            super().run(
                rng_key,
                *args,
                extra_fields=extra_fields,
                init_params=init_params,
                **kwargs,
            )
        # nothing is swallowed: rows that cannot be read end a program by JAX's error
        except Exception as error:
            if self._source.failed is not None:
                raise self._source.failed from error
            raise
        finally:
            for task in self._ahead.values():
                task.cancel()
        # what a report may run the model on
        self._args, self._kwargs = in_memory((self._args, self._kwargs))
        self.extra_attrs = {
            "num_rows": self._source.num_data,
            "window_rows": self._source.window_rows,
            "block_rows": self._source.block_rows,
            "row_order_effect": self._effect,
            "window_use": self._use,
        }
        self._warn()

    def _warn(self) -> None:
        """Say where windows that stay too long make variances too large."""
        params = self._last_state.adapt_state.params
        noise = np.max(params.get("gradient_noise", math.nan))
        step_size = np.max(params.get("step_size", math.nan))
        # the share of the noise that is a window's own, as that of batches is predicted
        excess = step_size * noise / 4 * self._use * self._effect
        if not excess < MAX_EXCESS and self._use * self._effect > 1:
            warn(
                f"Each row in memory was evaluated {self._use:.2g} times before others "
                "took its place, and the mean of a window varies as that of "
                f"1/{self._effect:.2g} of its rows: variances may be too large by a "
                f"fraction of {excess:.2g} more than is predicted. Pass nutfree.rows a "
                "larger window_rows or a smaller block_rows, or shuffle the rows on "
                "disk."
            )

    def _data(self, feed):
        return windowed(self._raw, self._source, feed)

    def _feed(self) -> dict[str, jax.Array]:
        """The next window, on the devices."""
        for number in range(self.feeds + 1, self.feeds + 2 + AHEAD):
            if number not in self._ahead:
                task = self._source.submit_window(self._seed, number)
                self._ahead[number] = task
        self.feeds += 1
        return on_devices(self._source, self._ahead.pop(self.feeds).result())

    def _compile_ahead(self, *run):
        return None

    def _piece(self, state, size: int, extra_fields, ahead: bool = False):
        size = min(size, MAX_DRAWS)
        self._compiled = self._program(state, size, extra_fields, self._data)

        def piece(state, n, thinning):
            draws = []
            while n:
                k = min(n, size, self._draws_per_window(state, thinning))
                state, made = self._compiled(state, k, thinning, self._feed())
                draws.append(jax.tree.map(lambda x: x[:, :k], jax.device_get(made)))  # noqa: B023
                used = float(np.max(np.mean(draws[-1]["num_grad_evals"], axis=1)))
                used *= k * thinning * self._source.num_data / self._source.window_rows
                self._use = max(self._use, used)
                n -= k
            if not draws:
                return state, {}
            return state, jax.tree.map(lambda *d: np.concatenate(d, axis=1), *draws)

        return piece

    def _draws_like(self, piece, state):
        source = self._source
        parts = len(source.devices)
        places = source.window_rows // parts
        feed = {
            name: jax.ShapeDtypeStruct((parts, places, *r.shape[1:]), r.dtype)
            for name, r in source.readers.items()
        }
        return jax.eval_shape(self._compiled, state, 1, 1, feed)[1]

    def _draws_per_window(self, state, thinning: int) -> int:
        """As many as `USE` allows, by what the last transition evaluated."""
        each = float(np.max(state.num_grad_evals)) * self._source.num_data * thinning
        if not each > 0 or not math.isfinite(each):
            return 1
        return max(1, int(USE * self._source.window_rows / (self._effect * each)))
