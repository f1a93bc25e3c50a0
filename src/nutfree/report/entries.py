"""The kernels that a comparison is asked for, and their runs."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
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
    from nutfree.hosts.kernel import kernel

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


class Failure(NamedTuple):
    """Why a kernel has no draws: a clause for the table, and the traceback."""

    reason: str
    traceback: str = ""


def run(
    model: Callable, entry: KernelLike, args: tuple, kwargs: dict[str, Any]
) -> "xr.DataTree | Failure":
    """The draws of one kernel, or why there are none."""
    from nutfree.hosts.sample import sample

    try:
        return sample(build(entry, model), *args, **kwargs)
    except MissingCapability as error:
        return Failure(f"cannot run: {error}", traceback.format_exc())
    except NutfreeError as error:
        return Failure(f"failed: {error}", traceback.format_exc())
    # kernels of other packages run here too; whatever one raises goes into its line of
    # the table, and what the others have drawn, perhaps in hours, is not lost
    except Exception as error:
        reason = f"failed: {type(error).__name__}: {error}"
        return Failure(reason, traceback.format_exc())


def folder_of(checkpoint: str | Path | None, name: str) -> str | None:
    """The folder of one kernel's run in that of the comparison."""
    if checkpoint is None:
        return None
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return str(Path(checkpoint) / safe)


def run_all(
    jobs: Mapping[str, tuple], executor: Any = None, timeout: float | None = None
) -> "dict[str, xr.DataTree | Failure]":
    """Results by kernel, one by one or through an executor.

    Raises:
        InvalidOption: for an executor that cannot run them, with one that can.
    """
    if executor is None:
        if timeout is not None:
            raise InvalidOption(
                "timeout is for the kernels of an executor, which can be left behind. "
                "Pass one, or leave timeout out: Ctrl-C keeps what has been drawn."
            )
        return one_by_one(jobs)
    submit = _submitter(executor)
    pending = {name: submit(job) for name, job in jobs.items()}
    return {name: _result(wait, timeout) for name, wait in pending.items()}


def _run_packed(job: bytes) -> "xr.DataTree | Failure":
    """`run` in another process, which may lack the module that the model is from."""
    return run(*cloudpickle.loads(job))


def _submitter(executor: Any) -> Callable[[tuple], Callable[[float | None], Any]]:
    """`job -> wait`, where `wait(timeout)` gives the result."""
    if isinstance(executor, ThreadPoolExecutor):
        raise InvalidOption(
            "executor is a ThreadPoolExecutor, and NumPyro traces one model at a time "
            "in a process. Pass concurrent.futures.ProcessPoolExecutor(mp_context="
            "multiprocessing.get_context('spawn')), or a dask.distributed.Client."
        )
    if isinstance(executor, ProcessPoolExecutor):
        context = executor._mp_context  # there is no public way to ask
        if context is not None and context.get_start_method() == "fork":
            raise InvalidOption(
                "executor forks this process, which JAX does not survive. Pass "
                "concurrent.futures.ProcessPoolExecutor(mp_context="
                "multiprocessing.get_context('spawn'))."
            )
    if hasattr(executor, "submit"):
        return lambda job: executor.submit(_run_packed, cloudpickle.dumps(job)).result
    if hasattr(executor, "remote") and hasattr(executor, "get"):  # the module ray
        task = executor.remote(_run_packed)

        def submit(job: tuple) -> Callable[[float | None], Any]:
            reference = task.remote(cloudpickle.dumps(job))
            return lambda timeout: executor.get(reference, timeout=timeout)

        return submit
    raise InvalidOption(
        f"executor is a {type(executor).__name__}; pass a ProcessPoolExecutor, a "
        "dask.distributed.Client, or the module ray."
    )


def _result(
    wait: Callable[[float | None], Any], timeout: float | None
) -> "xr.DataTree | Failure":
    try:
        return wait(timeout)
    except TimeoutError:
        return Failure(f"failed: no result within {timeout:g} s")
    # a worker can die, or its result be lost on the way, in whatever way its executor
    # has for it: the row says so, and the others go on
    except Exception as error:
        reason = f"failed: its worker ended with {type(error).__name__}: {error}"
        return Failure(reason, traceback.format_exc())


def one_by_one(jobs: Mapping[str, tuple]) -> "dict[str, xr.DataTree | Failure]":
    """Results by kernel. Ctrl-C ends the comparison with those there are by then.

    Raises:
        KeyboardInterrupt: before the first draw.
    """
    results: dict[str, xr.DataTree | Failure] = {}
    interrupted = False
    for name, job in jobs.items():
        if interrupted:
            results[name] = Failure("not run: the comparison was interrupted before")
            continue
        try:
            found = results[name] = run(*job)
            interrupted = not isinstance(found, Failure) and bool(
                found["sample_stats"].attrs.get("interrupted")
            )
        except KeyboardInterrupt:
            if not any(not isinstance(r, Failure) for r in results.values()):
                raise
            interrupted = True
            results[name] = Failure("not run: interrupted before its first draw")
    return results


def spec_of(entry: KernelLike) -> registry.KernelSpec | None:
    if isinstance(entry, MCMCKernel):
        return getattr(entry, "spec", None)
    name, options = (entry, {}) if isinstance(entry, str) else entry
    return registry.resolve(name, options)[0]
