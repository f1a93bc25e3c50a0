"""The kernels that a comparison is asked for, and their runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpyro.infer.mcmc import MCMCKernel

from nutfree import registry
from nutfree.errors import InvalidOption, MissingCapability, NutfreeError

if TYPE_CHECKING:
    import xarray as xr

type KernelLike = str | tuple[str, Mapping[str, Any]] | MCMCKernel


def _check_kernels(kernels: Any) -> None:
    one = isinstance(kernels, str | MCMCKernel)
    listed = [kernels] if one else list(kernels) if _is_listing(kernels) else []
    if isinstance(kernels, Mapping):
        listed = list(kernels.values())
    if not listed or not all(map(_is_entry, listed)):
        raise InvalidOption(
            f"kernels is {kernels!r}; write names, kernels=('nuts', 'multiscale'), or "
            "('mala', {'step_size': 0.1}) in place of a name."
        )


def _is_listing(value: Any) -> bool:
    return isinstance(value, Sequence | Mapping)


def _is_entry(entry: Any) -> bool:
    if isinstance(entry, str | MCMCKernel):
        return True
    pair = isinstance(entry, tuple | list) and len(entry) == 2
    return pair and isinstance(entry[0], str) and isinstance(entry[1], Mapping)


def labelled(
    kernels: Sequence[KernelLike] | Mapping[str, KernelLike],
) -> dict[str, KernelLike]:
    """Kernels by label; a name given twice gets a number."""
    _check_kernels(kernels)
    if isinstance(kernels, Mapping):
        return dict(kernels)
    entries: dict[str, KernelLike] = {}
    for entry in [kernels] if isinstance(kernels, str | MCMCKernel) else kernels:
        if isinstance(entry, str):
            name = entry
        elif isinstance(entry, MCMCKernel):
            spec = getattr(entry, "spec", None)
            name = spec.name if spec is not None else type(entry).__name__.lower()
        else:
            name = entry[0]
        label, count = name, 1
        while label in entries:
            count += 1
            label = f"{name} ({count})"
        entries[label] = entry
    return entries


def build(entry: KernelLike, model: Callable) -> MCMCKernel:
    from nutfree.hosts.numpyro import kernel

    if isinstance(entry, MCMCKernel):
        return entry
    name, options = (entry, {}) if isinstance(entry, str) else entry
    return kernel(name, model, **options)


def options_of(entry: KernelLike) -> dict[str, Any]:
    if isinstance(entry, str):
        return {}
    return (
        dict(getattr(entry, "options", {}) or {})
        if isinstance(entry, MCMCKernel)
        else dict(entry[1])
    )


def run(
    model: Callable, entry: KernelLike, args: tuple, kwargs: dict[str, Any]
) -> "xr.DataTree | str":
    """The draws of one kernel, or why there are none."""
    from nutfree.hosts.sample import sample

    try:
        return sample(build(entry, model), *args, **kwargs)
    except MissingCapability as error:
        return f"cannot run: {error}"
    except NutfreeError as error:
        return f"failed: {error}"
    # kernels of other packages run here too; whatever one raises goes into its line of
    # the table, and what the others have drawn, perhaps in hours, is not lost
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"


def one_by_one(jobs: Mapping[str, tuple]) -> "dict[str, xr.DataTree | str]":
    """Results by kernel. Ctrl-C ends the comparison with those there are by then.

    Raises:
        KeyboardInterrupt: before the first draw.
    """
    results: dict[str, xr.DataTree | str] = {}
    interrupted = False
    for name, job in jobs.items():
        if interrupted:
            results[name] = "not run: the comparison was interrupted before"
            continue
        try:
            found = results[name] = run(*job)
            interrupted = not isinstance(found, str) and bool(
                found["sample_stats"].attrs.get("interrupted")
            )
        except KeyboardInterrupt:
            if not any(not isinstance(result, str) for result in results.values()):
                raise
            interrupted = True
            results[name] = "not run: interrupted before its first draw"
    return results


def spec_of(entry: KernelLike) -> registry.KernelSpec | None:
    if isinstance(entry, MCMCKernel):
        return getattr(entry, "spec", None)
    name, options = (entry, {}) if isinstance(entry, str) else entry
    return registry.resolve(name, options)[0]
