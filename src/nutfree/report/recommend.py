"""Which kernels suit a model, before any of them has run.

A model's own structure says most: its data plate, supports, priors, owners, hierarchy.
A few cheap probes add whether a gradient exists, whether the density jumps or has
kinks, and whether descents from many starts end in separate modes. What a kernel is
good for is said by its spec.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from nutfree import registry
from nutfree.numerics.programs import in_full_precision
from nutfree.report.device import free_chains
from nutfree.report.probe import probe

if TYPE_CHECKING:
    from nutfree.listing import Listing

__all__ = ["recommend"]

#: Rows of the table unless all are asked for.
NUM_SHOWN = 5
#: What a kernel asks for, in words.
PART = {
    "prior": "a prior",
    "minibatch": "rows in minibatches",
    "split": "a split",
    "shards": "data in shards",
}


@in_full_precision
def recommend(
    model: Callable,
    *args: Any,
    seed: int = 0,
    all_kernels: bool = False,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> "Listing":
    """Kernels for a model, most promising first, each with the reason.

    Nothing is sampled, so this is advice: `compare` measures. Where nothing speaks
    against NUTS, it comes first.

    Args:
        model: a NumPyro model.
        *args, **kwargs: its arguments.
        seed: of the probes' starting points.
        all_kernels: whether to list every kernel, also those that do not fit; by
            default the five that fit best.
        model_args, model_kwargs: as for ``nutfree.sample``.

    Returns:
        A data frame with columns kernel, fits, why, needs_missing, which prints its
        sentences in full. A kernel that does not fit lacks a part of the posterior;
        needs_missing says what would add it. On a GPU ``attrs["num_chains"]`` is how
        many chains take as long as four.

    Raises:
        UnsupportedModel, InvalidData, NoFiniteStart: see `nutfree.errors`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model():
        ...     numpyro.sample("x", dist.Normal())
        >>> recommend(model)["kernel"][0]
        'nuts'
    """
    from nutfree.frontends.hierarchy import centred_sites
    from nutfree.frontends.numpyro import model_target
    from nutfree.hosts.arguments import model_arguments
    from nutfree.listing import Listing

    settings = {"seed": seed, "all_kernels": all_kernels}
    args, kwargs = model_arguments(
        recommend, model, args, kwargs, model_args, model_kwargs, settings
    )
    target = model_target(model, args, kwargs)
    facts = probe(target, centred=centred_sites(model, args, kwargs), seed=seed)
    rows = []
    for order, spec in enumerate(registry.specs().values()):
        missing = [part for part in spec.needs if getattr(target, part) is None]
        score, why = fit = spec.suits(facts)
        fits = fit.fits and not missing
        if not facts.has_gradient and spec.uses_gradient:
            fits, why = False, "needs a gradient, and this log density has none"
        elif missing:
            why = f"needs {' and '.join(PART[part] for part in missing)}"
        lacks = "; ".join(f"{p}: {target.advice.get(p, 'absent')}" for p in missing)
        rank = (not fits, -score, not spec.recommended, order)
        rows.append((rank, spec.name, fits, why, lacks))
    rows.sort(key=lambda row: row[0])
    columns = ["kernel", "fits", "why", "needs_missing"]
    table = Listing([row[1:] for row in rows], columns=columns)
    if not all_kernels:
        table = table[table["fits"]].head(NUM_SHOWN)
    if facts.has_gradient and jax.default_backend() != "cpu":
        table.attrs["num_chains"] = free_chains(target)
    return table
