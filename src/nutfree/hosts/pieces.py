"""NumPyro's `MCMC` in pieces that neither an interrupt nor a crash can lose.

One program, compiled once, makes a piece of the run, and the host goes from piece to
piece, where the progress bar, Ctrl-C and the checkpoint are.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from numpyro.infer import MCMC
from numpyro.util import nested_attrgetter
from tqdm.auto import tqdm

from nutfree.errors import CheckpointMismatch
from nutfree.hosts.checkpoint import Checkpoint, fingerprint, versions
from nutfree.hosts.checks import check_fields
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.hosts.state import like_key, typed_key
from nutfree.numerics.programs import jitted

#: What is collected besides the default fields where the kernel's state has it.
_FIELDS = (
    "diverging",
    "potential_energy",
    "accept_prob",
    "num_steps",
    "adapt_state.step_size",
)
#: Fields of a `NutfreeState` that count over a whole run.
_TOTALS = ("total_grad_evals", "total_density_evals")
_PIECES = 20


class PiecewiseMCMC(MCMC):
    """NumPyro's `MCMC`, run in pieces of which a finished one is never lost.

    "parallel" chains of nutfree's kernels are spread over the devices there are,
    vectorized on each, so there may be more of them than devices.

    Attributes:
        checkpoint: the folder to keep the run in, or None.
        draws_at_once: how many independent draws a chain makes side by side.
        feeds: how many times the data in memory have been changed for others.
        interrupted: whether Ctrl-C ended the last run before its last draw.
        seconds: its wall time, compilation included.
        phases: wall time of its parts: setup, which is the search for a start, the
            pilot and compilation; warm-up; and sampling.
        warmup_grad_evals: gradients spent before its first draw, over all chains.
    """

    checkpoint: str | os.PathLike | None = None
    draws_at_once: int = 1
    interrupted: bool = False
    feeds: int = 0
    seconds: float = math.nan
    phases: Mapping[str, Any] = MappingProxyType({})
    warmup_grad_evals: float = math.nan
    #: What a subclass has to say about its run.
    extra_attrs: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, sampler, *, chain_method: str, **settings):
        spread = chain_method == "parallel" and isinstance(sampler, NutfreeKernel)
        # NumPyro's own wants a device for each of them
        method = "vectorized" if spread else chain_method
        super().__init__(sampler, chain_method=method, **settings)
        self.chain_method = chain_method
        self._batched = method == "vectorized"

    def run(self, rng_key, *args, extra_fields=(), init_params=None, **kwargs) -> None:
        """As `MCMC.run`; an interrupt ends it with the draws made so far."""
        self._args, self._kwargs = args, kwargs
        self.interrupted, self.feeds = False, 0
        begin = time.perf_counter()
        done = _Progress()
        keeper, state = self._resume_or_begin(rng_key, init_params, extra_fields)
        num_draws = self.num_samples // self.thinning
        lanes = self.draws_at_once
        size = math.ceil(max(self.num_warmup, num_draws // lanes, 1) / _PIECES)
        piece = self._piece(state, size, extra_fields)
        draws = []
        if keeper is not None and keeper.progress is not None:
            done = _Progress(**keeper.progress["done"])
            draws = keeper.draws(self._draws_like(piece, state))
            self.feeds = done.feeds
            if done.draws > num_draws:
                raise CheckpointMismatch(
                    f"The checkpoint '{self.checkpoint}' has {done.draws} draws of "
                    f"each chain, more than these {num_draws}. Ask for at least as "
                    "many; nutfree.read_checkpoint(path) has its draws."
                )
        self.warmup_grad_evals = done.warmup_grad_evals
        before = done.seconds
        # no transitions: the program that makes them is compiled
        state, _ = jax.block_until_ready(piece(state, 0, 1))
        done.setup_seconds += time.perf_counter() - begin

        def keep(state, made):
            done.seconds = before + time.perf_counter() - begin
            done.feeds = self.feeds
            if keeper is not None:
                keeper.save(state, made, done=asdict(done))

        bar = tqdm(
            total=self.num_warmup + num_draws * self.thinning,
            initial=done.warmup + done.draws * self.thinning,
            desc="warmup",
            disable=not self.progress_bar,
        )
        try:
            mark = time.perf_counter()
            for n in _cut(self.num_warmup - done.warmup, size):
                state, made = jax.block_until_ready(piece(state, n, 1))
                done.warmup += n
                done.warmup_steps += float(np.sum(made.get("num_steps", math.nan)))
                keep(state, None)
                bar.update(n)
                done.warmup_seconds += time.perf_counter() - mark
                mark = time.perf_counter()
            bar.set_description("sample")
            if not done.draws:
                self._warmup_state = state
                done.warmup_grad_evals = _gradients(state, done.warmup_steps)
                self.warmup_grad_evals = done.warmup_grad_evals
                state = self._side_by_side(state)
                # as in `MCMC.run`, what thinning leaves over goes first
                state, _ = piece(state, self.num_samples % self.thinning, 1)
            for n in _cut((num_draws - done.draws) // lanes, size):
                state, made = piece(state, n, self.thinning)
                made = jax.tree.map(partial(self._of_chains, n=n), jax.device_get(made))
                draws.append(made)
                done.draws += n * lanes
                done.sampling_seconds += time.perf_counter() - mark
                mark = time.perf_counter()
                keep(state, made)
                bar.update(n * lanes * self.thinning)
        except KeyboardInterrupt:
            if not draws:
                raise
            self.interrupted = True
            message = (
                f"Interrupted: {done.draws} of {num_draws} draws of each chain are "
                "kept."
            )
            if keeper is not None:
                message += " Call it again with this checkpoint for the others."
            warnings.warn(message, stacklevel=4)
        finally:
            bar.close()
        self._states = jax.tree.map(lambda *d: np.concatenate(d, axis=1), *draws)
        self._states_flat = None
        self._last_state = self._in_one(state)
        self.seconds = before + time.perf_counter() - begin
        self.phases = {
            "setup_seconds": done.setup_seconds,
            "warmup_seconds": done.warmup_seconds,
            "sampling_seconds": done.sampling_seconds,
        }

    def _resume_or_begin(self, rng_key, init_params, extra_fields):
        """The checkpoint, if there is to be one, and the state to go on from."""
        if self.checkpoint is None:
            return None, self._begin(rng_key, init_params)
        state, kernel = None, self.sampler
        if isinstance(kernel, NutfreeKernel):
            like = self._begin(rng_key, init_params, shape_only=True)
        else:
            like = state = self._begin(rng_key, init_params)
        keeper = Checkpoint(
            self.checkpoint, self._described(rng_key, like, extra_fields, init_params)
        )
        if keeper.progress is not None:
            if keeper.progress["done"]["draws"]:
                like = jax.eval_shape(self._side_by_side, like)
            return keeper, keeper.state(like)
        return keeper, self._begin(rng_key, init_params) if state is None else state

    def _described(self, rng_key, state, extra_fields, init_params) -> dict[str, Any]:
        """What must be the same where a run goes on."""
        kernel, args, kwargs = self.sampler, self._args, self._kwargs
        if not self._batched:
            state = jax.eval_shape(partial(jax.tree.map, lambda x: x[0]), state)
        spec = getattr(kernel, "spec", None)
        return {
            "kernel": spec.name if spec is not None else type(kernel).__name__,
            "options": getattr(kernel, "options", {}),
            **{f"{name}_version": v for name, v in versions().items()},
            "num_warmup": self.num_warmup,
            "num_chains": self.num_chains,
            "thinning": self.thinning,
            "rest of num_samples by thinning": self.num_samples % self.thinning,
            "chain_method": self.chain_method,
            "draws_at_once": self.draws_at_once,
            "random key": np.asarray(jax.random.key_data(rng_key)).tolist(),
            "extra_fields": list(extra_fields),
            "sample_field": kernel.sample_field,
            "model, data or init_params": fingerprint(
                lambda s: kernel.sample(s, args, kwargs),
                state,
                data=(args, kwargs, init_params),
            ),
        }

    def _begin(self, rng_key, init_params, shape_only=False):
        """The first state of every chain, or its shapes."""
        chains = self.num_chains
        # a single chain keeps its key, as in `MCMC.run`
        keys = jax.random.split(rng_key, chains) if chains > 1 else rng_key[None]
        if init_params is not None and chains == 1:
            init_params = jax.tree.map(lambda x: jnp.asarray(x)[None], init_params)
        init = partial(
            self.sampler.init_shape if shape_only else self.sampler.init,
            num_warmup=self.num_warmup,
            model_args=self._args,
            model_kwargs=self._kwargs,
        )
        if self._batched:
            return init(keys, init_params=init_params)
        states = [
            init(keys[c], init_params=jax.tree.map(lambda x, c=c: x[c], init_params))
            for c in range(1 if shape_only else chains)
        ]
        if shape_only:
            states = states * chains
            return jax.eval_shape(_stacked, *states)
        return _stacked(*states)

    def _side_by_side(self, state):
        """Every chain `draws_at_once` times, each with random numbers of its own."""
        lanes = self.draws_at_once
        if lanes == 1:
            return state
        keys = jax.vmap(lambda key: jax.random.split(key, lanes))(
            typed_key(state.rng_key)
        ).reshape(-1)
        whole = jax.tree.map(lambda x: jnp.repeat(x, lanes, axis=0), state)
        first = jnp.arange(len(keys)) % lanes == 0
        counts = {name: jnp.where(first, getattr(whole, name), 0) for name in _TOTALS}
        return whole._replace(rng_key=like_key(keys, state.rng_key), **counts)

    def _in_one(self, state):
        """The states of the chains, from those of draws made side by side."""
        lanes = self.draws_at_once
        if lanes == 1:
            return state
        counts = {
            name: getattr(state, name).reshape(-1, lanes).sum(1) for name in _TOTALS
        }
        return jax.tree.map(lambda x: x[::lanes], state)._replace(**counts)

    def _of_chains(self, made: np.ndarray, n: int) -> np.ndarray:
        """The first n draws of those made side by side, each chain's in one row."""
        made = made[:, :n]
        if self.draws_at_once == 1:
            return made
        made = made.reshape(self.num_chains, self.draws_at_once, *made.shape[1:])
        return made.swapaxes(1, 2).reshape(self.num_chains, -1, *made.shape[3:])

    def _piece(self, state, size: int, extra_fields):
        """`piece(state, n, thinning)`: the state after n draws, and the draws.

        The draws are padded to `size`, so that n is no part of the program.
        """
        return self._program(state, size, extra_fields)

    def _draws_like(self, piece, state):
        """Shapes of what `piece` draws."""
        return jax.eval_shape(piece, state, 1, 1)[1]

    def _devices(self) -> list:
        """As many as share the chains evenly."""
        if self.chain_method != "parallel":
            return jax.local_devices()[:1]
        count = jax.local_device_count()
        while self.num_chains % count:
            count -= 1
        return jax.local_devices()[:count]

    def _data(self, *feed) -> tuple[tuple, dict]:
        """The model's arguments, from what a program is fed besides."""
        return self._args, self._kwargs

    def _program(self, state, size: int, extra_fields):
        """`program(state, n, thinning, *feed)`, compiled."""
        kernel = self.sampler
        vectorized = self._batched
        check_fields(state, extra_fields, _has)
        wanted = (*kernel.default_fields, *_FIELDS, *extra_fields)
        fields = tuple(dict.fromkeys(f for f in wanted if _has(state, f)))
        getters = {field: nested_attrgetter(field) for field in fields}

        def collect(state):
            return {field: get(state) for field, get in getters.items()}

        def run(state, n, thinning, *feed):
            args, kwargs = self._data(*feed)
            postprocess = kernel.postprocess_fn(args, kwargs)

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
            z = made[fields[0]]
            constrain = jax.vmap(postprocess)
            made[fields[0]] = (jax.vmap(constrain) if vectorized else constrain)(z)
            return state, made

        if vectorized:

            def chains(state, n, thinning, *feed):
                state, made = run(state, n, thinning, *feed)
                return state, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)

            devices = self._devices()
            if len(devices) == 1:
                return jitted(chains)
            along = PartitionSpec("chains")
            return jitted(
                jax.shard_map(
                    chains,
                    mesh=jax.sharding.Mesh(devices, ("chains",)),
                    in_specs=(along, PartitionSpec(), PartitionSpec()),
                    out_specs=along,
                    check_vma=False,
                )
            )
        if self.chain_method == "parallel":
            return jax.pmap(run, in_axes=(0, None, None))

        def in_turn(state, n, thinning):
            return jax.lax.map(lambda s: run(s, n, thinning), state)

        return jitted(in_turn)


@dataclass
class _Progress:
    """How far a run is: transitions of warm-up, draws, and what they took.

    `seconds` is wall time in all, `setup_seconds` until the first transition, and the
    other two are that of the transitions of either kind.
    """

    warmup: int = 0
    draws: int = 0
    warmup_steps: float = 0.0
    warmup_grad_evals: float = math.nan
    seconds: float = 0.0
    setup_seconds: float = 0.0
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    feeds: int = 0


def _stacked(*states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _cut(total: int, size: int) -> list[int]:
    """`total` in pieces of `size`, the last one what is left."""
    return [min(size, total - done) for done in range(0, total, size)] if total else []


def _has(state: Any, field: str) -> bool:
    for name in field.split("."):
        if not hasattr(state, name):
            return False
        state = getattr(state, name)
    return True


def _gradients(state: Any, num_steps: float) -> float:
    """Gradients spent so far over all chains, by the kernel's own count if any."""
    if _has(state, "total_grad_evals"):
        return float(np.sum(state.total_grad_evals))
    return num_steps
