"""One kernel on the contract's Gaussian, ready for every check of the contract.

Its two programs, `begin` and `advance`, are compiled once. A compiled program takes
arguments of one type only, so a check in which a type changes from one transition to
the next fails by itself.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.hosts import chain
from nutfree.registry import KernelSpec
from nutfree.target import Target
from tests.targets import SHORT_PILOT, TEMPLATES, gaussian_target

#: Transitions that tune the kernel before its first draw.
NUM_WARMUP = 5
#: Beyond this value of the first coordinate there is nothing that is not finite.
NO_EDGE = np.float32(np.inf)


def with_hole(target: Target, edge, blind_edge=NO_EDGE) -> Target:
    """The target with NaN where x > `edge`, and without a gradient beyond another."""

    def holed(value, position):
        x = position["x"][0]
        blind = x > blind_edge
        # zero, with a gradient of 0 times infinity
        nothing = jnp.where(blind, jnp.sqrt(jnp.where(blind, 0.0 * x, 1.0)), 0.0)
        return jnp.where(x > edge, jnp.nan, value + nothing)

    def density(logdensity):
        return lambda position: holed(logdensity(position), position)

    def rows(position, indices):
        outside, terms = target.minibatch.terms(position, indices)
        return holed(outside, position), holed(terms, position)

    def parts(values):
        smooth, nonsmooth = target.split.terms(values)
        return holed(smooth, values), nonsmooth

    shards = [replace(s, logdensity_fn=density(s.logdensity_fn)) for s in target.shards]
    return replace(
        target,
        logdensity_fn=density(target.logdensity_fn),
        minibatch=replace(target.minibatch, terms=rows),
        split=replace(target.split, terms=parts),
        shards=tuple(shards),
    )


def recording(spec: KernelSpec, read: set[str]) -> KernelSpec:
    """The kernel with an options class whose instances note in `read` what is read."""
    names = {f.name for f in fields(spec.options)}

    @dataclass(frozen=True, eq=False)
    class Recording(spec.options):
        def __getattribute__(self, name):
            reader = sys._getframe(1).f_globals.get("__name__")
            # to copy an object is not to use its options
            if name in names and reader != "dataclasses":
                read.add(name)
            return super().__getattribute__(name)

    return replace(spec, options=Recording)


class Program:
    """A kernel's first state and its transition, compiled for the contract's Gaussian.

    Attributes:
        spec: the kernel.
        given: the options that it is given.
        options_read: the options that tracing the two programs has read.
        evaluations: for every evaluation of the log density in counted transitions,
            the share of the data that it looked at.
    """

    def __init__(self, spec: KernelSpec):
        self.spec = spec
        self.given = SHORT_PILOT.get(spec.name, {})
        self.options_read: set[str] = set()
        self.evaluations: list[float] = []

    @cached_property
    def algorithm(self) -> chain.Algorithm:
        made = chain.algorithm(recording(self.spec, self.options_read), self.given)
        # the host looks for what the user has fixed, which is no use of an option
        tuned = {f.name for f in fields(made.options) if f.metadata["tuned"]}
        self.options_read -= tuned
        return made

    def target(self, edge=NO_EDGE, is_counted=None, blind_edge=NO_EDGE) -> Target:
        """The Gaussian, with holes, and evaluations that are counted where asked."""

        def probe(weight, position):
            if is_counted is None:
                return

            # with the position as argument, it is called for every member of a batch,
            # and from several threads: appending is safe
            def note(_):
                self.evaluations.append(weight)

            jax.lax.cond(
                is_counted, lambda: jax.debug.callback(note, position), lambda: None
            )

        return with_hole(gaussian_target(TEMPLATES["dict"](), probe), edge, blind_edge)

    @cached_property
    def begin(self) -> Callable[..., chain.Chain]:
        """`begin(rng_key, edge)`, after the pilot."""
        position = TEMPLATES["dict"]()

        def begin(rng_key, edge):
            pilot_key, init_key = jax.random.split(rng_key)
            return chain.begin(
                self.algorithm,
                self.target(edge),
                pilot_key,
                init_key,
                position,
                NUM_WARMUP,
            )

        return jax.jit(begin).lower(jax.random.key(0), NO_EDGE).compile()

    @cached_property
    def first(self) -> chain.Chain:
        """The state before the first transition."""
        return self.begin(jax.random.key(0), NO_EDGE)

    @cached_property
    def advance(self) -> Callable[..., tuple[chain.Chain, Any]]:
        """`advance(rng_key, chain, edge, is_counted, blind_edge)`."""

        def advance(rng_key, state, edge, is_counted, blind_edge):
            target = self.target(edge, is_counted, blind_edge)
            return chain.advance(self.algorithm, target, rng_key, state, NUM_WARMUP)

        key, edge = jax.random.key(0), NO_EDGE
        return jax.jit(advance).lower(key, self.first, edge, np.False_, edge).compile()

    def run(self, state, keys, edge=NO_EDGE, is_counted=False, blind_edge=NO_EDGE):
        """The state after a transition for each key, the draws, and the infos."""
        draws, infos = [], []
        for key in keys:
            state, info = self.advance(
                key,
                state,
                np.float32(edge),
                np.bool_(is_counted),
                np.float32(blind_edge),
            )
            draws.append(state.kernel_state.position)
            infos.append(info)
        jax.effects_barrier()
        return state, *(stacked(trees) for trees in (draws, infos))


def stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(trees))
