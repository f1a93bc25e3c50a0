"""A data owner as its own machine sees it, and all of them in one program.

What an owner does when it is asked is a function `(Owner, message) -> message`. In a
deployment it runs on the owner's machine; in a simulation `Owners.ask` runs it for the
owner of a number that may be traced. Owners that are alike (`nutfree.target.Shards`)
then share one program, however many they are; others are branches of a `lax.switch`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.errors import InvalidData
from nutfree.minibatch.gradients import Control, control_variate, plain
from nutfree.minibatch.sampling import Rows
from nutfree.target import Minibatch, OwnersAlike, Shards, Target


class Owner(NamedTuple):
    """One owner's log density over flat vectors, its share of the prior included.

    logdensity
        `x -> log p_s(x)`.
    terms
        `(x, indices) -> (outside, rows)`, as that of `Minibatch`, or None.
    num_rows
        N_s, which may be traced; None where it is not known.
    capacity
        Rows for which there is room: what is beyond `num_rows` stands for nothing.
    """

    logdensity: Callable[[jax.Array], jax.Array]
    terms: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None
    num_rows: Any
    capacity: int

    def value_and_grad(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return log p_s(x) and its gradient, NaN where the value is not finite."""
        value, gradient = jax.value_and_grad(self.logdensity)(x)
        return value, jnp.where(jnp.isfinite(value), gradient, jnp.nan)

    def row_gradients(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the gradients of what no row owns, `(d,)`, and of the rows, `(n, d)`.

        Rows beyond `num_rows` have zeros.
        """
        assert self.terms is not None
        terms, first = self.terms, jnp.zeros(1, int)
        outside = jax.grad(lambda x: terms(x, first)[0])(x)

        def row(i):
            return jax.grad(lambda x: terms(x, i[None])[1][0])(x)

        rows = jax.vmap(row)(jnp.arange(self.capacity))
        return outside, jnp.where(self.is_row()[:, None], rows, 0)

    def is_row(self) -> jax.Array:
        return jnp.arange(self.capacity) < self.num_rows

    def estimate(self, rng_key, x, count, batch_size: int, share, known=None):
        """Estimate the gradient from `batch_size` rows, or all where there are fewer.

        Args:
            known: `(centre, gradient of all rows and the prior there, whether that is
                so)`, relative to which the batch is taken; or None.

        Returns:
            `(gradient, count)`; all rows of the owner, evaluated once, count `share`.
        """
        assert self.terms is not None
        size = min(batch_size, self.capacity)
        few = self.num_rows <= size
        drawn = jax.random.randint(rng_key, (size,), 0, self.num_rows)
        order = jnp.arange(size)
        indices = jnp.where(few, jnp.minimum(order, self.num_rows - 1), drawn)
        weights = jnp.where(few, order < self.num_rows, self.num_rows / size)
        minibatch = Minibatch(self.capacity, self.terms)
        rows, spent = Rows(indices, weights), jnp.minimum(1.0, size / self.num_rows)
        gradient, _ = plain(minibatch, rows, x, (), 0.0)
        if known is None:
            return gradient, count + share * spent
        centre, there, is_so = known
        terms, first = self.terms, jnp.zeros(1, int)
        outside = jax.grad(lambda x: terms(x, first)[0])(centre)
        control = Control(centre, there - outside)
        relative, _ = control_variate(minibatch, rows, x, control, 0.0)
        return jnp.where(is_so, relative, gradient), count + 2 * share * spent


def owner(target: Target, unravel: Callable) -> Owner:
    """Return the owner whose log density is `target`."""
    rows = target.minibatch
    return Owner(
        lambda x: target(unravel(x)),
        None if rows is None else lambda x, i: rows.terms(unravel(x), i),
        None if rows is None else rows.num_data,
        0 if rows is None else rows.num_data,
    )


class Owners:
    """All owners of a target, as one program sees them.

    Attributes:
        count: their number S.
        num_rows: rows of each, a tuple; None where one does not know its own.
        shares: which fraction of a full-data gradient each owner's gradient is.
    """

    def __init__(self, shards: Sequence[Target], unravel: Callable):
        self.count = len(shards)
        self.num_rows = _num_rows(shards)
        self.shares = shares_of(self.num_rows, self.count)
        alike = shards.alike if isinstance(shards, Shards) else None
        self._alike = alike
        self._unravel = unravel
        self._each = [] if alike else [owner(shard, unravel) for shard in shards]

    def ask(self, s: jax.Array | int, does: Callable, *message: Any) -> Any:
        """Return `does(owner, *message)` of owner `s`; compiled once where alike."""
        if self._alike is None:
            branches = [lambda *m, own=own: does(own, *m) for own in self._each]
            if len(branches) == 1:
                return branches[0](*message)
            return jax.lax.switch(s, branches, *message)
        return does(self._of(self._alike, s), *message)

    def _of(self, alike: OwnersAlike, s: Any) -> Owner:
        unravel = self._unravel
        data = jax.tree.map(lambda leaf: leaf[s], alike.data)
        terms = alike.terms
        return Owner(
            lambda x: alike.logdensity(unravel(x), data),
            None if terms is None else lambda x, i: terms(unravel(x), i, data),
            None if alike.num_data is None else alike.num_data[s],
            alike.capacity,
        )

    def sum_over(self, does: Callable, *message: Any) -> Any:
        """Return the sum over owners of `does(owner, s, *message)`, a pytree."""

        def add(total, s):
            answer = self.ask(s, does, s, *message)
            return jax.tree.map(jnp.add, total, answer), None

        shapes = jax.eval_shape(lambda: self.ask(0, does, jnp.asarray(0), *message))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.scan(add, zeros, jnp.arange(self.count))[0]

    def each(self, does: Callable, *message: Any) -> Any:
        """Return `does(owner, s, *message)` of every owner, with a leading axis."""
        return jax.lax.map(
            lambda s: self.ask(s, does, s, *message), jnp.arange(self.count)
        )


def _num_rows(shards: Sequence[Target]) -> tuple[int, ...] | None:
    sizes = [shard.minibatch.num_data for shard in shards if shard.minibatch]
    if len(sizes) < len(shards):
        return None
    for number, size in enumerate(sizes):
        if size == 0:
            raise InvalidData(
                f"Owner {number} has no rows. Leave it out of the list of owners."
            )
    return tuple(sizes)


def shares_of(num_rows: tuple[int, ...] | None, count: int) -> tuple[float, ...]:
    """Return what fraction of all rows each owner has; even where it is not known."""
    if num_rows is None:
        return (1 / count,) * count
    return tuple(size / sum(num_rows) for size in num_rows)
