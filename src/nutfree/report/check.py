"""The verdict on a run that one already has, by whatever sampler."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nutfree.errors import InvalidData
from nutfree.numerics.programs import in_full_precision
from nutfree.report.judge import judge
from nutfree.report.verdict import Verdict
from nutfree.target import Target

if TYPE_CHECKING:
    import xarray as xr


@in_full_precision
def check(
    tree: "xr.DataTree", model: Callable | Target, *args: Any, **kwargs: Any
) -> Verdict:
    """Judge the draws of a run against the model that they are meant to be of.

    The draws may be of any sampler, such as NumPyro's, PyMC's or Stan's: what counts is
    that the tree's posterior has the model's latent sites, by their names and on their
    own supports, with dimensions chain and draw.

    Args:
        tree: an ArviZ ``DataTree`` with a group posterior and, where there is one,
            sample_stats.
        model: a NumPyro model, or a `Target` whose ``position`` is a dict of sites.
        *args, **kwargs: its arguments.

    Returns:
        A :class:`nutfree.report.Verdict`, with ``sound``, ``problems``, ``caveats``,
        ``not_checked`` and a ``table`` of the checks.

    Raises:
        InvalidData: if the tree has no posterior, or lacks a latent site, or has one
            of another shape; or if a `Target` does not name its sites.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist, xarray as xr
        >>> def model():
        ...     numpyro.sample("x", dist.Normal())
        >>> draws = np.random.default_rng(0).normal(size=(4, 500))
        >>> posterior = xr.Dataset({"x": (("chain", "draw"), 3 * draws)})
        >>> tree = xr.DataTree.from_dict({"posterior": posterior})
        >>> check(tree, model).sound
        False
    """
    target = target_of(model, args, kwargs)
    _check_sites(tree, target)
    return judge({"run": tree}, target)["run"]


def target_of(
    model: Callable | Target, args: tuple, kwargs: Mapping[str, Any]
) -> Target:
    """The target of a model, or the one that is given, if its sites have names.

    Raises:
        InvalidData: if they have none.
    """
    from nutfree.frontends.numpyro import model_target

    if not isinstance(model, Target):
        return model_target(model, args, kwargs)
    if not isinstance(model.position, Mapping):
        raise InvalidData(
            "The target does not name its sites. Write its position as a dict, "
            'such as Target(lambda z: logdensity(z["x"]), {"x": start}).'
        )
    return model


def _check_sites(tree: "xr.DataTree", target: Any) -> None:
    import jax.numpy as jnp

    if "posterior" not in getattr(tree, "children", {}):
        raise InvalidData(
            "The run has no group 'posterior'; pass the DataTree that nutfree.sample, "
            "nutfree.to_arviz or another package's converter makes."
        )
    posterior = tree["posterior"]
    values = target.constrain(target.position)
    assert isinstance(target.position, Mapping)
    for name in target.position:
        plain = name.replace("/", ".")
        shape = jnp.shape(values[name])
        if plain not in posterior:
            listed = ", ".join(map(str, posterior.data_vars)) or "none"
            raise InvalidData(
                f"The run has no draws of the latent site '{name}'; it has {listed}. "
                "Rename its variables to the model's sites."
            )
        found = posterior[plain]
        if found.dims[:2] != ("chain", "draw") or found.shape[2:] != shape:
            raise InvalidData(
                f"The draws of '{name}' have dimensions {found.dims} and shape "
                f"{found.shape}; the model wants ('chain', 'draw', ...) and "
                f"(chains, draws, *{shape})."
            )
