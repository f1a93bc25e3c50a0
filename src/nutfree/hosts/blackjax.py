"""Every registered kernel as a BlackJAX algorithm: `init`, `build_kernel`, callable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, NamedTuple

import jax
import numpy as np
from blackjax.base import SamplingAlgorithm

from nutfree import registry
from nutfree.errors import InvalidOption, NoFiniteStart, UnknownKernel
from nutfree.frontends.splits import check_split
from nutfree.hosts import chain
from nutfree.hosts.checks import refuse_model_options
from nutfree.hosts.state import as_float
from nutfree.numerics.programs import in_full_precision, jitted
from nutfree.registry import KernelSpec
from nutfree.target import LogDensity, Target, as_target, require


class WarmupResult(NamedTuple):
    """What a warm-up found: the kernel's state and its parameters."""

    state: Any
    parameters: dict[str, Any]


class SamplingAPI:
    """One kernel in BlackJAX's form, such as `nutfree.mala`.

    Called with a log density (or a `Target`), options and parameters, it gives a
    BlackJAX `SamplingAlgorithm`. `init` and `build_kernel` are the kernel's own
    functions, which BlackJAX's SMC takes. `warmup` finds the parameters.

    Example:
        >>> import jax, nutfree as nf
        >>> logdensity = lambda x: -0.5 * x**2
        >>> found = nf.mala.warmup(logdensity, jax.random.key(0), 1.0, num_steps=50)
        >>> algorithm = nf.mala(logdensity, **found.parameters)
        >>> state, info = algorithm.step(jax.random.key(1), found.state)
    """

    def __init__(self, spec: KernelSpec):
        self.spec = spec
        self.init = spec.init
        self.build_kernel = spec.build_kernel
        self.__doc__ = f"{spec.summary} ({spec.paper}). {type(self).__doc__}"

    def __repr__(self) -> str:
        return f"<nutfree.{self.spec.name}: {self.spec.summary}>"

    def _is_traced(self, name: str) -> bool:
        """Whether a keyword is a parameter as warm-up gives it, not a static option."""
        options = {f.name: f for f in fields(self.spec.options)}
        if name in options:
            return options[name].metadata["tuned"]
        named = signature(self.spec.build_kernel()).parameters
        return name in named or any(p.kind is p.VAR_KEYWORD for p in named.values())

    def _check_params(self, kernel, params) -> None:
        """Refuse parameters that are absent, or numbers out of their range."""
        for wanted in list(signature(kernel).parameters.values())[3:]:
            named = wanted.kind in (wanted.POSITIONAL_OR_KEYWORD, wanted.KEYWORD_ONLY)
            absent = wanted.default is wanted.empty and wanted.name not in params
            if named and absent:
                raise InvalidOption(
                    f"nutfree.{self.spec.name} needs {wanted.name}=...; give it, or "
                    f"what nutfree.{self.spec.name}.warmup(logdensity_fn, rng_key, "
                    "position).parameters has."
                )
        options = {f.name for f in fields(self.spec.options)}
        self.spec.checked(
            {k: v for k, v in params.items() if k in options and _is_number(v)}
        )

    def _target(self, logdensity_fn) -> Target:
        if not callable(logdensity_fn):
            raise InvalidOption(
                f"logdensity_fn is {logdensity_fn!r}; pass a function, position -> log "
                "density, or a nutfree.Target."
            )
        target = as_target(logdensity_fn)
        require(target, self.spec.needs, self.spec.name)
        return target

    def _check_split(self, target: Target, position: Any) -> None:
        """Refuse a split that is not one of its density, where the kernel needs it."""
        if "split" in self.spec.needs:
            check_split(target, position)

    def _algorithm(self, options: Mapping[str, Any]) -> chain.Algorithm:
        """The kernel with these options.

        Raises:
            InvalidOption: also for one that is about a model, which is not at hand.
        """
        refuse_model_options(self.spec, options)
        return chain.algorithm(self.spec, options)

    def _named(self, positional: tuple) -> dict[str, Any]:
        """Parameters given by their place, as in BlackJAX: the kernel's, in order."""
        kernel = signature(self.spec.build_kernel())
        names = [
            name
            for name, p in list(kernel.parameters.items())[3:]
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if len(positional) > len(names):
            listed = ", ".join(names) or "none"
            raise InvalidOption(
                f"nutfree.{self.spec.name} is given {len(positional)} parameters by "
                f"their place, and has {len(names)}: {listed}. Write their names."
            )
        return dict(zip(names, positional))

    def __call__(
        self, logdensity_fn: LogDensity | Target, *positional: Any, **params: Any
    ) -> SamplingAlgorithm:
        """The algorithm for one posterior.

        Args:
            logdensity_fn: log density of a pytree, or a `Target`.
            *positional: the kernel's parameters in order, such as a step size.
            **params: the kernel's options, and its parameters as `warmup` found them.

        Raises:
            MissingCapability: if the target lacks a part that the kernel needs.
            InvalidOption: for an option that does not exist or is out of range, or a
                parameter that is absent.

        `init` raises InvalidData for a split that is not one of its density.
        """
        spec, params = registry.resolve(self.spec, params)
        if spec is not self.spec:
            return SamplingAPI(spec)(logdensity_fn, *positional, **params)
        if twice := self._named(positional).keys() & params.keys():
            raise InvalidOption(
                f"nutfree.{spec.name} is given {sorted(twice)[0]} twice, by its place "
                "and by its name. Leave one out."
            )
        params = {**self._named(positional), **params}
        traced = {k: v for k, v in params.items() if self._is_traced(k)}
        options = {k: v for k, v in params.items() if k not in traced}
        target, algorithm = self._target(logdensity_fn), self._algorithm(options)
        kernel_params = {**algorithm.fixed, **traced}
        self._check_params(algorithm.kernel, kernel_params)

        @in_full_precision
        def init(position, rng_key=None):
            position = jax.tree.map(as_float, position)
            self._check_split(target, position)
            return algorithm.init(position, target, rng_key)

        @in_full_precision
        def step(rng_key, state):
            return algorithm.kernel(rng_key, state, target, **kernel_params)

        return SamplingAlgorithm(init, step)

    @in_full_precision
    def warmup(
        self,
        logdensity_fn: LogDensity | Target,
        rng_key: jax.Array,
        position: Any,
        num_steps: int = 500,
        **options: Any,
    ) -> WarmupResult:
        """Run the kernel's pilot and warm-up.

        Args:
            logdensity_fn: log density of a pytree, or a `Target`.
            rng_key: a key.
            position: where to start.
            num_steps: transitions to tune on.
            **options: the kernel's options; parameters given here are kept.

        Returns:
            `(state, parameters)`: `parameters` is what `self(logdensity_fn, ...)`
            takes, options included.

        Raises:
            NoFiniteStart: if the log density is not finite at the position.
            InvalidData: for a split that is not one of its density.
        """
        spec, options = registry.resolve(self.spec, options)
        if spec is not self.spec:
            exact = SamplingAPI(spec)
            return exact.warmup(logdensity_fn, rng_key, position, num_steps, **options)
        target, algorithm = self._target(logdensity_fn), self._algorithm(options)

        def run(rng_key, position):
            pilot_key, init_key, loop_key = jax.random.split(rng_key, 3)
            begun = chain.begin(
                algorithm, target, pilot_key, init_key, position, num_steps
            )

            def one_step(before, key):
                return chain.advance(algorithm, target, key, before, num_steps)[0], None

            keys = jax.random.split(loop_key, num_steps)
            end, _ = jax.lax.scan(one_step, begun, keys)
            return end.kernel_state, end.adapt_state.params

        position = jax.tree.map(as_float, position)
        self._check_split(target, position)
        state, params = jitted(run)(rng_key, position)
        value = getattr(state, "logdensity", 0.0)
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise NoFiniteStart(
                "The log density is not finite at the position, and no transition led "
                "to where it is. Pass a position at which it is."
            )
        return WarmupResult(state, {**options, **params})


def _is_number(value: Any) -> bool:
    """Whether the user has written it; what warm-up finds is an array of JAX's."""
    return isinstance(value, int | float | str | np.generic)


def api(name: str) -> SamplingAPI:
    """The BlackJAX form of a registered kernel.

    Raises:
        UnknownKernel: also for NumPyro's own kernels, which have no such form.
    """
    spec = registry.get(name)
    if spec.mcmc_kernel is not None:
        raise UnknownKernel(
            f"'{name}' is NumPyro's own and has no BlackJAX form; BlackJAX's is "
            "'blackjax.nuts'."
        )
    return SamplingAPI(spec)
