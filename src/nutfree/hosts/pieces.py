"""NumPyro's `MCMC` runs in pieces that neither an interrupt nor a crash can lose.

One program, compiled once, makes a piece of the run, and the host goes from piece to
piece, where the progress bar, Ctrl-C and the checkpoint are.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.util import nested_attrgetter

from nutfree.errors import CheckpointMismatch, InvalidOption, warn
from nutfree.frontends.arguments import constant, span_processes
from nutfree.hosts import underway
from nutfree.hosts.checkpoint import Checkpoint
from nutfree.hosts.draws import Draws
from nutfree.hosts.interrupts import Interrupts, stopped_by
from nutfree.hosts.lanes import in_lanes, in_order, of_first_lane
from nutfree.hosts.moments import MomentsOfDraws
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.hosts.program import has_field, piece_program
from nutfree.hosts.progress import Progress
from nutfree.hosts.same_run import check_density, described
from nutfree.hosts.store import BLOCK_BYTES, Store
from nutfree.hosts.underway import Done, Pace, Run, how_it_goes
from nutfree.numerics.programs import TRACING

#: A piece is at most this part of warm-up, or of the draws: what it makes is in memory.
_PIECES = 20


class PiecewiseMCMC(MCMC):
    """NumPyro's `MCMC`, run in pieces of which a finished one is never lost.

    "parallel" chains of nutfree's kernels are spread over the devices there are,
    vectorized on each, so there may be more of them than devices.

    Attributes:
        checkpoint: the folder to keep the run in, or None.
        store: where the draws go that are not to stay in memory, or None.
        only_moments: whether the draws are not to stay anywhere.
        draws: what the last run has made.
        draws_at_once: how many independent draws a chain makes side by side.
        feeds: how many times the data in memory have been changed for others.
        interrupts: what notes Ctrl-C and SIGTERM, where the caller has one.
        interrupted: whether a signal ended the last run before its last draw.
        seconds: its wall time, compilation included.
        phases: wall time of its parts: setup, which is the search for a start, the
            pilot and compilation; warm-up; and sampling.
        warmup_grad_evals: gradients spent before its first draw, over all chains.
    """

    checkpoint: str | os.PathLike | None = None
    store: Store | None = None
    only_moments: bool = False
    draws: Draws
    draws_at_once: int = 1
    interrupts: Interrupts | None = None
    interrupted: bool = False
    feeds: int = 0
    seconds: float = math.nan
    phases: Mapping[str, Any] = MappingProxyType({})
    warmup_grad_evals: float = math.nan
    #: Whether time decides how long a piece is.
    timed = True
    #: What a subclass has to say about its run.
    extra_attrs: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, sampler, *, chain_method: str, **settings):
        spread = chain_method == "parallel" and isinstance(sampler, NutfreeKernel)
        # NumPyro's own wants a device for each of them
        method = "vectorized" if spread else chain_method
        super().__init__(sampler, chain_method=method, **settings)
        self.chain_method = chain_method
        self._vectorized = method == "vectorized"

    def run(self, rng_key, *args, extra_fields=(), init_params=None, **kwargs) -> None:
        """Run as `MCMC.run` does; an interrupt ends it with the draws made so far."""
        self._args, self._kwargs = args, kwargs
        if span_processes((args, kwargs)):
            self.timed = False  # all processes make the same pieces, and clocks differ
            if self.checkpoint is not None:
                raise InvalidOption(
                    "A run on rows that are spread over processes keeps no checkpoint: "
                    "each process would write it. Leave out checkpoint= and store=."
                )
        self.interrupted, self.feeds = False, 0
        started = time.perf_counter()
        bar = Progress(self._num_transitions, self.progress_bar)
        self._kept: Checkpoint | None = None
        try:
            own = Interrupts()
            with nullcontext(self.interrupts) if self.interrupts else own as signals:
                bar.phase("start and pilot")
                draws_in_turn = self._num_draws // self.draws_at_once
                size = math.ceil(max(self.num_warmup, draws_in_turn, 1) / _PIECES)
                with TRACING:
                    ahead = self._compile_ahead(
                        rng_key, init_params, size, extra_fields
                    )
                    checkpoint, state = self._resume_or_begin(
                        rng_key, init_params, extra_fields
                    )
                    size = self._that_fits(size, state)
                    piece = ahead or self._piece(state, size, extra_fields)
                    run = self._made_before(checkpoint, state, piece, bar, started)
                    bar.phase("compile")
                    # no transitions: the program that makes them is compiled
                    run.state, _ = jax.block_until_ready(piece(run.state, 0, 1))
                run.progress.setup_seconds += time.perf_counter() - started
                self._make(run, piece, size, signals)
                self._finish(run)
                bar.phase("judging")
        finally:
            bar.close()
            if self._kept is not None:
                self._kept.close()

    def _make(self, run: Run, piece, size: int, signals: Interrupts) -> None:
        """Make what is still to be made, or as much as a signal leaves time for.

        Raises:
            KeyboardInterrupt, SystemExit: if there are no draws at all.
        """
        try:
            if run.checkpoint is not None:
                signals.hold()
            self._warm_up(run, piece, size, signals)
            if signals.received is None:
                signals.hold()
                self._draw(run, piece, size, signals)
        except KeyboardInterrupt:
            if not run.draws:
                raise
        if run.progress.draws < self._num_draws:
            if not run.draws:
                raise stopped_by(signals.received)
            self._warn_of_interrupt(run)

    @property
    def _num_draws(self) -> int:
        """Draws of each chain that a run keeps."""
        return self.num_samples // self.thinning

    @property
    def _num_transitions(self) -> int:
        """Transitions of each chain that a run makes."""
        return self.num_warmup + self._num_draws * self.thinning

    def _made_before(self, checkpoint, state, piece, bar, started: float) -> Run:
        """Return the run as the checkpoint has it, or a new one.

        Raises:
            CheckpointMismatch: if it has more draws than are asked for.
        """
        progress, pieces = Done(), []
        if checkpoint is not None and checkpoint.progress is not None:
            progress = Done.kept(
                checkpoint.progress, self.checkpoint, warmup=self.num_warmup
            )
            like = self._draws_like(piece, state)
            if progress.draws and self.draws_at_once > 1:
                like = jax.tree.map(self._of_lanes, like)
            pieces = checkpoint.draws(like)
            self.feeds = progress.feeds
            found = Draws(pieces).number if self.store is None else progress.draws
            if found != progress.draws or (found and progress.warmup < self.num_warmup):
                raise CheckpointMismatch(
                    f"The checkpoint '{self.checkpoint}' has {found} draws of each "
                    f"chain, and says {progress.draws} after {progress.warmup} "
                    "transitions of warm-up. Take another folder."
                )
            if progress.draws > self._num_draws:
                raise CheckpointMismatch(
                    f"The checkpoint '{self.checkpoint}' has {progress.draws} draws of "
                    f"each chain, more than these {self._num_draws}. Ask for at least "
                    "as many; nutfree.read_checkpoint(path) has its draws."
                )
        self.warmup_grad_evals = progress.warmup_grad_evals
        bar.skip(progress.warmup + progress.draws * self.thinning)
        started -= progress.seconds
        self.draws = Draws(pieces)
        if self.store is not None:
            self.draws = self.store.draws(
                self, checkpoint.id, progress.draws, self._num_draws
            )
        elif self.only_moments:
            self.draws = MomentsOfDraws(self, self._num_draws)
        return Run(state, self.draws, progress, checkpoint, bar, started)

    def _of_lanes(self, like):
        """Return the shape of draws in order, from that of draws in lanes."""
        return jax.ShapeDtypeStruct((self.num_chains, *like.shape[1:]), like.dtype)

    def _warm_up(self, run: Run, piece, size: int, signals: Interrupts) -> None:
        """Make the transitions of warm-up that are still to be made."""
        progress, pace = run.progress, Pace(size, self.timed)
        run.bar.phase("warm-up")
        if self.num_warmup and not progress.warmup:
            run.keep(None, self.feeds)  # the pilot, if a signal has come by now
        while progress.warmup < self.num_warmup and signals.received is None:
            mark = time.perf_counter()
            n = pace.next(self.num_warmup - progress.warmup)
            run.state, made = jax.block_until_ready(piece(run.state, n, 1))
            progress.warmup += n
            progress.warmup_steps += float(
                np.sum(np.asarray(made.get("num_steps", math.nan)))
            )
            run.keep(None, self.feeds)
            pace.took(n, time.perf_counter() - mark)
            progress.warmup_seconds += time.perf_counter() - mark
            run.bar.update(n, lambda: how_it_goes(run, self.sampler.sample_field))

    def _draw(self, run: Run, piece, size: int, signals: Interrupts) -> None:
        """Make the draws that are still to be made."""
        progress, pace = run.progress, Pace(size, self.timed)
        run.bar.phase("draws")
        if not progress.draws:
            if not self.only_moments:  # of which no memory is to be left
                self._warmup_state = run.state
            progress.warmup_grad_evals = _gradients(run.state, progress.warmup_steps)
            self.warmup_grad_evals = progress.warmup_grad_evals
            run.state = in_lanes(run.state, self.draws_at_once)
            # as in `MCMC.run`, what thinning leaves over goes first
            run.state, _ = piece(run.state, self.num_samples % self.thinning, 1)
        # a signal before the first draw waits for it
        while progress.draws < self._num_draws and not (signals.received and run.draws):
            mark = time.perf_counter()
            n = pace.next((self._num_draws - progress.draws) // self.draws_at_once)
            thinning = self.thinning
            if pace.seconds > underway.PIECE_SECONDS and thinning > 1 and self.timed:
                if not self._skip(run, piece, pace.seconds / thinning, size, signals):
                    break
                thinning = 1
            run.state, made = piece(run.state, n, thinning)
            made = jax.tree.map(
                lambda x, n=n: in_order(x[:, :n], self.draws_at_once),
                jax.device_get(made),
            )
            if not run.draws.add(made):  # for want of room, of which it has told
                self.interrupted = True
                break
            progress.draws += n * self.draws_at_once
            pace.took(n, time.perf_counter() - mark)
            progress.sampling_seconds += time.perf_counter() - mark
            run.keep(made, self.feeds)
            run.bar.update(
                n * self.draws_at_once * self.thinning,
                lambda: how_it_goes(run, self.sampler.sample_field),
            )

    def _skip(self, run, piece, seconds: float, size: int, signals) -> bool:
        """Make the transitions before the next draw, in parts; False if interrupted."""
        left = self.thinning - 1
        while left and signals.received is None:
            n = max(1, min(left, size, int(underway.PIECE_SECONDS / seconds)))
            run.state, _ = jax.block_until_ready(piece(run.state, n, 1))
            left -= n
        return not left

    def _warn_of_interrupt(self, run: Run) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        message = (
            f"Interrupted: {run.progress.draws} of {self._num_draws} draws of each "
            "chain are kept."
        )
        if run.checkpoint is not None:
            message += " Call it again with this checkpoint for the others."
        warn(message)

    def _finish(self, run: Run) -> None:
        """Keep what `MCMC` reads, and what the run took."""
        self._states = run.draws.whole()
        self._states_flat = None
        self._last_state = of_first_lane(run.state, self.draws_at_once)
        self.seconds = time.perf_counter() - run.started
        self.phases = {
            "setup_seconds": run.progress.setup_seconds,
            "warmup_seconds": run.progress.warmup_seconds,
            "sampling_seconds": run.progress.sampling_seconds,
        }

    def _resume_or_begin(self, rng_key, init_params, extra_fields):
        """Return the checkpoint, if the run is kept, and the state to go on from."""
        if self.checkpoint is None:
            return None, self._begin(rng_key, init_params)
        state, kernel = None, self.sampler
        if isinstance(kernel, NutfreeKernel):
            like = self._begin(rng_key, init_params, kernel.init_shape)
        else:
            like = state = self._begin(rng_key, init_params)
        run = described(self, rng_key, like, extra_fields, init_params)
        keeper = Checkpoint(self.checkpoint, run)
        self._kept = keeper
        if keeper.progress is not None:
            if Done.kept(keeper.progress, self.checkpoint).draws:
                like = jax.eval_shape(lambda s: in_lanes(s, self.draws_at_once), like)
            state = keeper.state(like)
            if keeper.run["calls back to Python"]:
                check_density(self, state)
            return keeper, state
        return keeper, self._begin(rng_key, init_params) if state is None else state

    def _compile_ahead(self, rng_key, init_params, size: int, extra_fields):
        """Compile the programs of a run side by side, and return its `piece`.

        Returns:
            None for a run that has other programs, or that may not begin anew.
        """
        kernel = self.sampler
        begun = self.checkpoint is not None and os.path.exists(self.checkpoint)
        if begun or self.chain_method != "vectorized":
            return None
        if not isinstance(kernel, NutfreeKernel):
            return None
        state = self._begin(rng_key, init_params, kernel.init_ahead)
        size = self._that_fits(size, state)
        return self._piece(state, size, extra_fields, ahead=True)

    def _that_fits(self, size: int, state) -> int:
        """Return how many draws a piece may make that are not to fill the memory."""
        if self.store is None and not self.only_moments:
            return size
        kernel = self.sampler
        constrain = kernel.postprocess_fn(self._args, self._kwargs)
        position = nested_attrgetter(kernel.sample_field)(state)
        drawn = jax.eval_shape(jax.vmap(constrain), position), position
        of_one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(drawn))
        return max(1, min(size, BLOCK_BYTES // max(of_one * self.draws_at_once, 1)))

    def _begin(self, rng_key, init_params, init=None):
        """Return the first state of every chain, or what `init` returns instead."""
        shape_only, init = init is not None, init or self.sampler.init
        chains = self.num_chains
        # a single chain keeps its key, as in `MCMC.run`
        keys = jax.random.split(rng_key, chains) if chains > 1 else rng_key[None]
        if init_params is not None and chains == 1:
            init_params = jax.tree.map(lambda x: jnp.asarray(x)[None], init_params)
        init = partial(
            init,
            num_warmup=self.num_warmup,
            model_args=self._args,
            model_kwargs=self._kwargs,
        )
        if self._vectorized:
            return init(keys, init_params=init_params)
        states = [
            init(keys[c], init_params=jax.tree.map(lambda x, c=c: x[c], init_params))
            for c in range(1 if shape_only else chains)
        ]
        if shape_only:
            states = states * chains
            return jax.eval_shape(_stacked, *states)
        return _stacked(*states)

    def _piece(self, state, size: int, extra_fields, ahead: bool = False):
        """Return `piece(state, n, thinning) -> (state after n draws, the draws)`.

        The draws are padded to `size`, so that n is no part of the program.

        Args:
            state: of all chains, or its shapes.
            ahead: whether to begin to compile it.
        """
        kernel, key = self.sampler, None
        taken = constant(self._args, self._kwargs)
        if isinstance(kernel, NutfreeKernel):
            taken, key = kernel.arguments, kernel.program_key
        program = self._program(state, size, extra_fields, taken.rebuild, key)
        if ahead:
            program.compile_ahead(state, 0, 1, taken.fed)
        return lambda state, n, thinning: program(state, n, thinning, taken.fed)

    def _draws_like(self, piece, state):
        """Return the shapes of what `piece` draws."""
        return jax.eval_shape(piece, state, 1, 1)[1]

    def _program(self, state, size: int, extra_fields, data, key: Hashable = None):
        """Return `program(state, n, thinning, feed)`, compiled.

        Args:
            data: `data(feed) -> (args, kwargs)` of the model.
            key: of the kernel and the data, where its programs are shared.
        """
        return piece_program(
            self.sampler,
            data,
            state,
            size,
            extra_fields,
            chain_method=self.chain_method,
            vectorized=self._vectorized,
            num_chains=self.num_chains,
            key=key,
        )


def _stacked(*states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _gradients(state: Any, num_steps: float) -> float:
    """Return the gradients spent by all chains, by the kernel's own count if any."""
    if has_field(state, "total_grad_evals"):
        return float(np.sum(np.asarray(state.total_grad_evals)))
    return num_steps
