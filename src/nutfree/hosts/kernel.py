"""`nutfree.kernel`: a registered kernel, or NumPyro's own, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel

from nutfree import registry
from nutfree.errors import InvalidOption
from nutfree.frontends.handlers import full_data
from nutfree.hosts.checks import check_posterior
from nutfree.hosts.numpyro import NutfreeKernel
from nutfree.registry import KernelSpec
from nutfree.target import Target

if TYPE_CHECKING:
    import pandas


def kernel(
    name: str,
    model: Callable | Target | None = None,
    *,
    potential_fn: Callable | None = None,
    init_strategy: Callable = init_to_uniform,
    **options: Any,
) -> MCMCKernel | Any:
    """Return a kernel for NumPyro's `MCMC`, to pass in place of `NUTS`.

    Args:
        name: a kernel or a family, see `nutfree.kernels()`.
        model: a NumPyro model, or a `Target`.
        potential_fn: minus log density of a pytree, instead of a model; then `run`
            needs `init_params`.
        init_strategy: where NumPyro looks for starting points.
        **options: options of the kernel. One that warm-up tunes is kept as given.

    Returns:
        A `numpyro.infer.mcmc.MCMCKernel`. With a name alone, an object to look at,
        whose `options` is a table of the kernel's options.

    Raises:
        UnknownKernel: with the nearest name.
        InvalidOption: with the nearest option, or the range.

    Example:
        >>> from numpyro.infer import MCMC
        >>> mcmc = MCMC(kernel("mala", potential_fn=lambda x: 0.5 * x**2),
        ...             num_warmup=10, num_samples=10)
    """
    spec, options = registry.resolve(name, options)
    if model is None and potential_fn is None and not options:
        return Unbound(spec)
    if spec.mcmc_kernel is None:
        return NutfreeKernel(
            spec,
            model,
            potential_fn=potential_fn,
            init_strategy=init_strategy,
            options=options,
        )
    check_posterior(name, model, potential_fn, init_strategy)
    known = {f.name for f in fields(spec.options)}
    spec.checked({k: v for k, v in options.items() if k in known})
    # NumPyro's own, which would refuse a subsampled plate
    if model is not None and not isinstance(model, Target):
        model = full_data(model)
    try:
        return spec.mcmc_kernel(
            model, potential_fn=potential_fn, init_strategy=init_strategy, **options
        )
    except (TypeError, ValueError) as error:
        raise InvalidOption(
            f"NumPyro's '{name}' refused its options: {error}"
        ) from error


class Unbound:
    """A kernel without a posterior, made by `nutfree.kernel(name)`, to look at.

    Attributes:
        options: a table of its options, with their defaults and what they are.
    """

    def __init__(self, spec: KernelSpec):
        self.spec = spec

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f'<nutfree.kernel("{spec.name}"): {spec.summary} ({spec.paper}). Give it a '
            f'model: nutfree.kernel("{spec.name}", model).>'
        )

    @property
    def options(self) -> pandas.DataFrame:
        import pandas as pd

        rows = [
            (f.name, f.default, f.metadata["help"]) for f in fields(self.spec.options)
        ]
        columns = ["option", "default", "what it is"]
        return pd.DataFrame(rows, columns=columns).set_index("option")
