"""Every registered kernel as a NumPyro `MCMCKernel`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel

from nutfree import registry
from nutfree.errors import NoFiniteStart, UnsupportedModel, warn
from nutfree.frontends.arguments import Arguments, both, of_density, static_key
from nutfree.frontends.checks import check_nan
from nutfree.frontends.hierarchy import centred_sites, funnels
from nutfree.frontends.numpyro import ModelFrontend, analyse
from nutfree.frontends.splits import check_split
from nutfree.frontends.windows import Window, find, in_memory
from nutfree.hosts import chain
from nutfree.hosts.checks import (
    check_init_params,
    check_posterior,
    refuse_model_options,
)
from nutfree.hosts.state import (
    ACROSS_CHAINS,
    NutfreeState,
    as_float,
    is_batch,
    split_key,
    typed_key,
)
from nutfree.hosts.still import algorithm_for
from nutfree.hosts.transition import energy_of, first_state, next_state
from nutfree.numerics.programs import Program, in_full_precision, jitted
from nutfree.registry import KernelSpec
from nutfree.target import PARTS, Target, as_target, require

if TYPE_CHECKING:
    pass


class NutfreeKernel(MCMCKernel):
    """A registered kernel for NumPyro's `MCMC`; made by `nutfree.kernel`.

    Args:
        spec: what the registry knows of the kernel.
        model: a NumPyro model, or a `Target`.
        potential_fn: minus log density of a pytree, instead of a model.
        init_strategy: where NumPyro looks for starting points.
        options: options of the kernel.
    """

    def __init__(
        self,
        spec: KernelSpec,
        model: Callable | Target | None = None,
        *,
        potential_fn: Callable | None = None,
        init_strategy: Callable = init_to_uniform,
        options: Mapping[str, Any] | None = None,
    ):
        check_posterior(spec.name, model, potential_fn, init_strategy)
        self.spec = spec
        self.options = dict(options or {})
        self.init_strategy = init_strategy
        self.algorithm = self._algorithm = chain.algorithm(spec, self.options)
        self._model: Callable | None = None
        self._target: Target | None = None
        if potential_fn is not None:
            self._target = as_target(_Minus(potential_fn))
        elif isinstance(model, Target):
            self._target = model
        else:
            self._model = model
        if self._target is not None:
            refuse_model_options(spec, self.options)
            require(self._target, spec.needs, spec.name)
        self._frontend: ModelFrontend | None = None
        self._num_warmup = 0
        self._run: tuple | None = None  # what `init` was last prepared for
        self.arguments: Arguments  # of the model, as programs take them
        self._compiled_begin: Program
        self._find_start: Callable
        # MCMC asks for this to know whether `init` has run
        self._sample_fn: Callable | None = None

    def __repr__(self) -> str:
        what = self._model if self._target is None else self._target.logdensity_fn
        name = getattr(what, "__name__", None) or repr(what)
        given = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f'nutfree.kernel("{self.spec.name}", {name}{given})'

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process is made of: no program, no trace."""
        spec = self.spec
        known = registry.specs().get(spec.name) is spec
        return {
            "spec": spec.name if known else spec,
            "options": self.options,
            "init_strategy": self.init_strategy,
            "_model": self._model,
            "_target": self._target,
            "_num_warmup": self._num_warmup,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.spec, str):
            self.spec = registry.get(self.spec)
        self.algorithm = self._algorithm = chain.algorithm(self.spec, self.options)
        self._frontend, self._run, self._sample_fn = None, None, None

    @property
    def model(self) -> Callable | None:
        """The NumPyro model, or None for a kernel built from a density."""
        return self._model

    @property
    def sample_field(self) -> str:
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        return (
            "z",
            "diverging",
            "potential_energy",
            "accept_prob",
            "num_steps",
            "num_grad_evals",
            "num_density_evals",
            *(f"info.{name}" for name in self.spec.collects),
        )

    def get_diagnostics_str(self, state: NutfreeState) -> str:
        parts = [f"{float(state.total_grad_evals):.3g} gradients"]
        step_size = state.adapt_state.params.get("step_size")
        if step_size is not None:
            parts.append(f"step size {float(step_size):.2e}")
        if not jnp.isnan(state.mean_accept_prob):
            parts.append(f"acc. prob={float(state.mean_accept_prob):.2f}")
        return ", ".join(parts)

    @in_full_precision
    def target(self, model_args: tuple = (), model_kwargs=None) -> Target:
        """Return the posterior for these arguments of the model.

        Raises:
            MissingCapability: if it lacks a part that the kernel needs.
        """
        if self._target is not None:
            return self._target
        if self._frontend is None:
            assert self._model is not None
            plate = getattr(self.algorithm.options, "plate", None)
            self._frontend = analyse(
                self._model, model_args, model_kwargs, plate=plate, may_be_empty=True
            )
            empty = not self._frontend.supports
            self.algorithm = algorithm_for(self.spec) if empty else self._algorithm
        target = self._frontend.build(model_args, model_kwargs)
        if not self._frontend.supports:
            return target
        require(target, self.spec.needs, self.spec.name)
        return target

    def postprocess_fn(self, model_args, model_kwargs) -> Callable:
        return in_full_precision(self.target(model_args, model_kwargs).constrain)

    @in_full_precision
    def init(
        self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None
    ) -> NutfreeState:
        """Find a starting point, run the kernel's pilot, and return the first state.

        Args:
            rng_key: one key, or `(num_chains,)` keys for vectorized chains.
            num_warmup: transitions that tune the kernel before the first draw.
            init_params: a position on the sampling space, with a leading axis of
                chains if there are several keys.

        Raises:
            MissingCapability, UnsupportedModel, InvalidData, NoFiniteStart: see
                `nutfree.errors`.
        """
        inputs = self._inputs(
            rng_key, num_warmup, init_params, model_args, model_kwargs
        )
        self._check_split(inputs)
        state = self._compiled_begin(*inputs)
        self._sample_fn = self.sample
        self._check_start(state, model_args, dict(model_kwargs or {}))
        return state

    @in_full_precision
    def init_shape(
        self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None
    ) -> NutfreeState:
        """Return the shapes and types of what `init` returns; no pilot is run."""
        inputs = self._inputs(
            rng_key, num_warmup, init_params, model_args, model_kwargs
        )
        self._sample_fn = self.sample
        return self._compiled_begin.shapes(*inputs)

    @in_full_precision
    def init_ahead(
        self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None
    ) -> NutfreeState:
        """Begin to compile what `init` will run, and return as `init_shape` does."""
        inputs = self._inputs(
            rng_key, num_warmup, init_params, model_args, model_kwargs
        )
        return self._compiled_begin.compile_ahead(*inputs)

    def _inputs(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """Prepare `_compiled_begin` for these arguments, and return its own."""
        batched = is_batch(rng_key)
        leaves = jax.tree.leaves((model_args, model_kwargs))
        run = (num_warmup, batched, [id(leaf) for leaf in leaves])
        fresh = self._run is None or self._run[0] != run
        if fresh:
            # the leaves are kept, so that their identities stay theirs
            self._run, self._num_warmup = (run, leaves), num_warmup
            self._frontend = None
            data = (model_args, dict(model_kwargs or {}))
            target = self.target(*data)
            self.arguments = self._as_arguments(data, target, init_params, batched)
            self._compiled_begin = self._begin_program(batched)
            if self._frontend is not None:
                self._find_start = self._frontend.starter(
                    self.arguments,
                    init_strategy=self.init_strategy,
                    validate_grad=self.spec.uses_gradient,
                )
        keys = split_key(rng_key, batched)
        position = init_params
        if position is None:
            target = self.target(model_args, model_kwargs)
            position = self._start(keys[1], batched, target)
        else:
            shapes = None if self._frontend is None else self._frontend.shapes
            chains = rng_key.shape[0] if batched else None
            check_init_params(position, shapes, chains)
        if fresh and self._target is not None:
            _call_once(self._target, position, batched)
        return self.arguments.fed, *keys, position

    def _as_arguments(self, data, target, init_params, batched) -> Arguments:
        """Return the model's arguments as the programs of a run take them."""
        if self._frontend is not None:
            args, kwargs = data
            return self._frontend.arguments(args, kwargs, self.spec.uses_gradient)
        position = target.position
        if position is None:
            position = jax.tree.map(lambda x: x[0] if batched else x, init_params)
        position = jax.tree.map(as_float, position)
        parts = (getattr(target, part) for part in (*PARTS, "constrain", "unconstrain"))
        return of_density(data, target.logdensity_fn, tuple(parts), position)

    @property
    def program_key(self) -> Hashable:
        """What tells the programs of this kernel, prepared by `init`, from others."""
        spec = self.spec
        options = [both(name, static_key(v)) for name, v in self.options.items()]
        return both(
            self.arguments.key,
            (spec.name, spec.init, spec.build_kernel, spec.warmup),
            both(*options),
            self._num_warmup,
        )

    def _begin_program(self, batched: bool) -> Program:
        """Return `begin(fed, *keys, position)`, compiled."""
        rebuild = self.arguments.rebuild

        def one(fed, *inputs):
            target = self.target(*rebuild(fed))
            return first_state(self.algorithm, target, self._num_warmup, *inputs)

        def begin(fed, *inputs):
            if not batched:
                return one(fed, *inputs)
            # on a CPU one after the other: a pilot's loops then end when the chain's
            # own do, and its products are no slow batches
            if jax.default_backend() == "cpu":
                return jax.lax.map(lambda chain: one(fed, *chain), inputs)
            return jax.vmap(one, (None, 0, 0, 0, 0))(fed, *inputs)

        return jitted(begin, both("begin", self.program_key, batched))

    def _start(self, rng_key, batched, target):
        if self._frontend is not None:
            return self._find_start(rng_key)
        if target.position is None:
            raise NoFiniteStart(
                "A kernel built from a density does not know where to start. Pass "
                "init_params=... to run, with a leading axis of chains if there are "
                "several."
            )
        if not batched:
            return target.position
        chains = rng_key.shape[0]
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (chains, *jnp.shape(x))), target.position
        )

    def _check_split(self, inputs) -> None:
        """Refuse a hand-written split that is not one of its density."""
        target = self._target
        if target is None or "split" not in self.spec.needs:
            return
        *_, key, position = inputs
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(position)):
            return
        if jnp.ndim(key):  # a leading axis of chains
            position = jax.tree.map(lambda x: x[0], position)
        check_split(target, jax.tree.map(as_float, position))

    def _check_start(self, state, model_args, model_kwargs) -> None:
        found = (state.z, getattr(state.kernel_state, "logdensity", ()))
        leaves = jax.tree.leaves(found)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            check_nan(*in_memory((model_args, model_kwargs)))
            raise NoFiniteStart(
                "The log density is not finite at the starting point. Pass an "
                "init_params where it is."
            )
        # a model without latent sites has no parameters
        if self.spec.concerns is not None and state.adapt_state.params:
            for concern in self.spec.concerns(state.adapt_state.params):
                warn(concern)
        self._check_hierarchy(state, model_args, model_kwargs)

    def _check_hierarchy(self, state, model_args, model_kwargs) -> None:
        """Warn of a funnel, which nothing shows in a kernel that never rejects."""
        spec, frontend = self.spec, self._frontend
        if frontend is None or (spec.guarantee, spec.draws) != ("biased", "chain"):
            return
        data = (model_args, model_kwargs)
        found = centred_sites(frontend.model, *data)
        if found and not find(Window, data):
            first = state.z if not jnp.ndim(state.i) else _of_first_chain(state.z)
            prior = frontend.prior_logdensity(*data)
            found = funnels(found, self.target(*data), prior, first)
        for site, scale in found:
            warn(
                f"'{site}' is centred on its scale '{scale}', of which the data say "
                f"too little for '{spec.name}': draws of '{scale}' may collapse, and "
                "no transition diverge. Write it non-centred, "
                "numpyro.handlers.reparam(model, "
                f"config={{'{site}': LocScaleReparam(0)}}), or take a kernel that is "
                "exact."
            )

    @in_full_precision
    def sample(self, state: NutfreeState, model_args, model_kwargs) -> NutfreeState:
        """Make one transition of one chain, or of all vectorized ones."""
        target = self.target(model_args, model_kwargs)
        advance = partial(next_state, self.algorithm, target, self._num_warmup)
        if not is_batch(state.rng_key):
            return advance(state)
        # the chains share one `i`, so that warm-up's conditions stay conditions
        axes = ACROSS_CHAINS
        shared = state._replace(i=state.i[0])
        state = jax.vmap(advance, in_axes=(axes,), out_axes=axes)(shared)
        return state._replace(i=jnp.broadcast_to(state.i, state.diverging.shape))

    @in_full_precision
    def refresh(self, state: NutfreeState, model_args, model_kwargs) -> NutfreeState:
        """Recompute what the state caches, for a block of `numpyro.infer.Gibbs`."""
        if self.spec.draws != "chain":
            raise UnsupportedModel(
                f"'{self.spec.name}' draws anew at every transition and cannot be a "
                "block of a Gibbs sampler. Take a kernel whose draws are a chain."
            )
        target = self.target(model_args, model_kwargs)
        key = jax.random.fold_in(typed_key(state.rng_key), state.i)
        kernel_state = self.algorithm.init(state.z, target, key)
        return state._replace(
            kernel_state=kernel_state, potential_energy=energy_of(kernel_state)
        )

    def wrap_model(self, wrapper: Callable) -> NutfreeKernel:
        """A copy of this kernel for the model `wrapper(self.model)`."""
        if self._model is None:
            raise UnsupportedModel(
                "Only a kernel built from a NumPyro model can have its model wrapped."
            )
        kernel = copy.copy(self)
        kernel.algorithm = self.algorithm
        kernel._model = wrapper(self._model)
        kernel._frontend = kernel._sample_fn = kernel._run = None
        return kernel


@dataclass(frozen=True)
class _Minus:
    """Minus a potential: a log density that pickles where the potential does."""

    potential_fn: Callable

    @property
    def __name__(self) -> str:
        return getattr(self.potential_fn, "__name__", "potential_fn")

    def __call__(self, position):
        return -self.potential_fn(position)


def _call_once(target: Target, position, batched: bool) -> None:
    """Call a density that is Python's where the first chain starts.

    One that raises, or takes long, is known at once and not after compiling.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(position)):
        return
    first = jax.tree.map(as_float, _of_first_chain(position) if batched else position)
    if "callback" in str(jax.make_jaxpr(target.logdensity_fn)(first)):
        target(first)


def _of_first_chain(tree):
    return jax.tree.map(lambda x: x[0], tree)
