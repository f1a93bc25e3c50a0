"""A model whose rows are on disk becomes a `Target` on the rows that are in memory.

The model is called with `Window`s in place of its arrays. A window has the shape of all
rows, and gives the data plate the rows that it asks for: in place of row i, the one
that the window holds at place i modulo its size. That row is uniform where i is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro import handlers
from numpyro.infer.util import constrain_fn, unconstrain_fn
from numpyro.primitives import Messenger

from nutfree.errors import InvalidData, UnsupportedModel
from nutfree.frontends.disk import DiskRows, Source
from nutfree.frontends.handlers import full_data
from nutfree.frontends.plates import row_terms
from nutfree.minibatch.gradients import sum_rows
from nutfree.target import InOrder, Minibatch, Target

#: Name of the device mesh's axis over which rows are spread.
AXIS = "rows"
#: Rows with which the model is analysed and a start is found.
FEW = 1000


@jax.tree_util.register_pytree_node_class
class Window:
    """The rows of one array that are in memory.

    Args:
        source, name: the array that the rows are from.
        value: the rows, shape `(devices, places, ...)`, spread over the devices.
        offset: row number that the first place stands for.
    """

    def __init__(self, source: Source, name: str, value: Any, offset: Any = 0):
        self.source, self.name, self.value, self.offset = source, name, value, offset

    def tree_flatten(self):
        return (self.value, self.offset), (self.source, self.name)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        return cls(*static, *leaves)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.readers[self.name].shape

    @property
    def dtype(self):
        return self.source.readers[self.name].dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices) -> jax.Array:
        """Return the rows that stand for these, `(n, ...)`; a device takes its own."""
        if not hasattr(indices, "dtype") or jnp.ndim(indices) != 1:
            self._refuse()
        parts, places = self.value.shape[:2]
        slots = jnp.asarray(indices) - self.offset
        if indices.shape[0] % parts:
            flat = self.value.reshape(parts * places, *self.value.shape[2:])
            return flat[slots % (parts * places)]
        own = slots.reshape(parts, -1) % places
        found = jax.vmap(lambda value, slots: value[slots])(self.value, own)
        return _spread(self.source, found).reshape(-1, *self.value.shape[2:])

    def few(self) -> jax.Array:
        """Return some of the rows as an array like any other."""
        value = self.value[0]
        return value[: min(FEW, value.shape[0])]

    def _refuse(self, *args, **kwargs):
        raise InvalidData(
            f"The model uses '{self.name}', whose rows are on disk, other than by "
            "rows. Inside of the data plate write "
            f"{self.name} = numpyro.subsample({self.name}, event_dim=...), and use "
            "outside of it nothing but its shape."
        )

    __array__ = __jax_array__ = __iter__ = _refuse


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow", "gt", "lt", "ge", "le"):
    setattr(Window, f"__{_name}__", Window._refuse)
    setattr(Window, f"__r{_name}__", Window._refuse)
for _name in ("T", "astype", "dot", "max", "mean", "min", "reshape", "std", "sum"):
    setattr(Window, _name, property(Window._refuse))


def _is(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda leaf: isinstance(leaf, kind)


def find(kind: type | tuple[type, ...], tree: Any) -> list:
    """Return the leaves of a tree that are of a kind."""
    return [x for x in jax.tree.leaves(tree, is_leaf=_is(kind)) if isinstance(x, kind)]


def replaced(kind: type, by: Callable, tree: Any) -> Any:
    return jax.tree.map(
        lambda x: by(x) if isinstance(x, kind) else x, tree, is_leaf=_is(kind)
    )


def only_source(tree: Any) -> Source:
    """Return the source of the rows of a tree, which has some on disk."""
    sources = {rows.source for rows in find((DiskRows, Window), tree)}
    if len(sources) > 1:
        raise InvalidData("Pass the arrays of a single nutfree.rows(...).")
    return sources.pop()


def windowed(tree: Any, source: Source, arrays: dict) -> Any:
    """Replace rows on disk by windows of the arrays that `on_devices` has made."""
    return replaced(
        DiskRows, lambda rows: Window(source, rows.name, arrays[rows.name]), tree
    )


def first_window(tree: Any, seed: int) -> Any:
    """Replace rows on disk by random ones of them in memory."""
    if not find(DiskRows, tree):
        return tree
    source = only_source(tree)
    return windowed(tree, source, on_devices(source, source.window([seed], 0)))


def in_memory(tree: Any) -> Any:
    """The model's arguments with a few rows in place of the windows."""
    return replaced(Window, Window.few, tree)


def sharding(source: Source) -> NamedSharding | None:
    """How `(devices, places, ...)` lies on several devices; None for a single one."""
    if len(source.devices) == 1:
        return None
    return NamedSharding(Mesh(source.devices, (AXIS,)), PartitionSpec(AXIS))


def _spread(source: Source, value: jax.Array) -> jax.Array:
    where = sharding(source)
    return value if where is None else jax.lax.with_sharding_constraint(value, where)


def on_devices(source: Source, arrays: dict) -> dict[str, jax.Array]:
    """Arrays of a window's rows, moved to the devices; `(devices, places, ...)`."""
    parts = len(source.devices)
    where = sharding(source) or source.devices[0]
    return {
        name: jax.device_put(value.reshape(parts, -1, *value.shape[1:]), where)
        for name, value in arrays.items()
    }


def fetch(source: Source, start: jax.Array) -> dict[str, jax.Array]:
    """`pass_rows` rows in order, from within a program; each device reads its own."""
    parts = len(source.devices)
    size = source.pass_rows // parts
    shapes = {
        name: jax.ShapeDtypeStruct((1, size, *r.shape[1:]), r.dtype)
        for name, r in source.readers.items()
    }

    def read(start):
        try:
            found = source.in_order(int(start), size)
        except InvalidData as error:
            source.failed = error  # which JAX makes an error of its own of
            raise
        return {name: value[None] for name, value in found.items()}

    def local(start, part):
        return jax.pure_callback(read, shapes, start + size * part[0])

    where = sharding(source)
    part = jnp.arange(parts)
    if where is None:
        return local(start, part)
    spec = PartitionSpec(AXIS)
    spread = jax.shard_map(
        local,
        mesh=where.mesh,
        in_specs=(PartitionSpec(), spec),
        out_specs=spec,
        check_vma=False,
    )
    return spread(start, part)


class from_windows(Messenger):
    """Give a model's `numpyro.subsample` the rows that its windows hold."""

    def __init__(self, fn=None, *, plate: str):
        self.plate, self.indices = plate, None
        super().__init__(fn)

    def postprocess_message(self, msg):
        if msg["type"] == "plate" and msg["name"] == self.plate:
            self.indices = msg["value"]
            self.size = msg["args"][0]
        if msg["type"] == "subsample" and isinstance(msg["value"], Window):
            window = msg["value"]
            if self.indices is None or self.size != len(window):
                raise InvalidData(
                    f"The rows of '{window.name}' are not those of the plate "
                    f"'{self.plate}'. Subsample it inside of that plate, and give the "
                    f"plate its size, {window.name}.shape[0]."
                )
            msg["value"] = window[self.indices]
            # nothing is left for the plate itself to take
            msg["kwargs"] = {**msg["kwargs"], "event_dim": None}


def check_deterministic(trace, plate: str) -> None:
    for name, site in trace.items():
        if site["type"] == "deterministic":
            frames = site.get("cond_indep_stack") or []
            if any(frame.name == plate for frame in frames):
                raise UnsupportedModel(
                    f"The deterministic site '{name}' has a value for each row of the "
                    f"plate '{plate}', and these rows are on disk. Leave it out; "
                    "numpyro.infer.Predictive computes it afterwards."
                )


def streamed_target(frontend: Any, args: tuple, kwargs: dict) -> Target:
    """Build the target of a model whose arguments have `Window`s.

    Args:
        frontend: the `ModelFrontend` of the model on a few rows.
    """
    source = only_source((args, kwargs))
    plate, num_data = frontend.plate, source.num_data
    model = from_windows(frontend.model, plate=plate) if plate else frontend.model

    def terms_of(args, kwargs):
        return row_terms(model, plate, num_data, args, kwargs)

    def in_order(position, indices):
        start = indices[0]
        blocks = fetch(source, start)
        block = partial(_block, blocks, start)
        return terms_of(*replaced(Window, block, (args, kwargs)))(position, indices)

    minibatch = None
    if plate is not None:
        minibatch = Minibatch(
            num_data,
            terms_of(args, kwargs),
            plate,
            InOrder(source.pass_rows, in_order),
        )

    def logdensity(position):
        (high, _), (low, _) = sum_rows(minibatch, position)
        return minibatch.terms(position, jnp.zeros(2, int))[0] + (high + low)

    small = full_data(
        handlers.seed(model, 0), rows={plate: jnp.arange(2)} if plate else None
    )

    def constrain(position):
        return constrain_fn(small, args, kwargs, position, return_deterministic=True)

    def unconstrain(values):
        latent = {name: values[name] for name in frontend.supports}
        return unconstrain_fn(small, args, kwargs, latent)

    return Target(
        logdensity,
        minibatch=minibatch,
        constrain=constrain,
        unconstrain=unconstrain,
        advice={
            **{
                part: "the data are on disk, where this kernel cannot use them: load "
                "them, or take a kernel of the SGLD family."
                for part in ("prior", "split", "shards")
            },
            **frontend.advice,
        },
    )


def _block(blocks: dict, start: jax.Array, window: Window) -> Window:
    return Window(window.source, window.name, blocks[window.name], start)
