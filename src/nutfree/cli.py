"""Command line: list kernels, sample from a model file, compare, recommend.

A model file is a Python file with a NumPyro model ``model`` and a function ``data``
that returns the model's arguments: a dict of keywords, or a tuple.
"""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nutfree.cli_federated import federated_commands

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

app = typer.Typer(
    help="MCMC kernels for the posteriors that NUTS is not made for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console()

File = Annotated[
    Path, typer.Argument(help="Python file with `model` and `data()`.", metavar="FILE")
]
Warmup = Annotated[int, typer.Option(min=0, help="Warm-up transitions a chain.")]
Samples = Annotated[int, typer.Option(min=1, help="Draws a chain.")]
Chains = Annotated[int, typer.Option(min=1, help="Chains.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]
Out = Annotated[
    Path | None, typer.Option(help="Directory for draws, plots, table and report.")
]
Progress = Annotated[bool, typer.Option(help="Show a progress bar.")]


class _BadInput(Exception):
    """What the user can put right; ends the command with its message."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Messages without a traceback, and exit code 2."""
    from nutfree.errors import NutfreeError

    try:
        yield
    except (_BadInput, NutfreeError) as error:
        stderr = Console(stderr=True)
        stderr.print("Error:", style="bold red", end=" ")
        stderr.print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from None


def _load(path: Path) -> tuple[Any, tuple, dict[str, Any]]:
    """The model of a file, and the arguments its `data` returns."""
    module = _module(path)
    model = _function(module, "model", path, "a NumPyro model: def model(...): ...")
    make = _function(
        module, "data", path, "its arguments: def data(): return {'y': ...}"
    )
    with _users_code(path, "has a data() that fails"):
        data = make()
    if isinstance(data, dict):
        return model, (), data
    if isinstance(data, tuple | list):
        return model, tuple(data), {}
    return model, () if data is None else (data,), {}


def _module(path: Path) -> ModuleType:
    """The module that a file is."""
    if not path.is_file():
        raise _BadInput(f"There is no file '{path}'.")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise _BadInput(f"'{path}' is not a Python file; its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    # a model file may import its neighbours, and the package it is part of
    folder = path.resolve().parent
    root = folder
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path[:0] = [str(folder), str(root)]
    with _users_code(path, "cannot be imported"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _users_code(path: Path, what: str) -> Iterator[None]:
    """Whatever the file raises becomes a message with the line that did."""
    try:
        yield
    # a script of the user's can raise whatever it likes, and its traceback through our
    # command would hide the one line that counts, which the message names
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename) == path.resolve()]
        where = f" (line {lines[-1]})" if lines else ""
        raise _BadInput(
            f"'{path}' {what}{where}: {type(error).__name__}: {error}"
        ) from error


def _function(module: ModuleType, name: str, path: Path, wanted: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found):
        raise _BadInput(f"'{path}' has no function '{name}'. Add {wanted}")
    return found


def _options(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs, values read as Python literals where they are."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise _BadInput(f"--option {pair!r} is not of the form key=value.")
        try:
            options[name.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name.strip()] = text
    return options


def _show(frame: "pd.DataFrame", *, title: str | None = None) -> None:
    table = Table(
        title=title, title_justify="left", header_style="bold", padding=(0, 1, 0, 0)
    )
    for number, column in enumerate(frame.columns):
        numeric = frame[column].dtype.kind in "fi"
        # in a narrow terminal, what wraps is the text and not the names
        table.add_column(
            str(column),
            justify="right" if numeric else "left",
            no_wrap=numeric or number == 0,
        )
    for row in frame.itertuples(index=False):
        table.add_row(*(_text(value) for value in row))
    console.print(table)


def _text(value: Any) -> str:
    from rich.markup import escape

    from nutfree.report.words import number

    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return escape(str(value))


def _directory(out: Path) -> Path:
    from nutfree.report.plots import check_matplotlib

    check_matplotlib()  # before the run, not after it
    if out.exists() and not out.is_dir():
        raise _BadInput(f"--out '{out}' is a file; name a directory.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _BadInput(f"--out '{out}' cannot be made: {error}") from error
    return out


def _save(tree: "xr.DataTree", name: str, out: Path) -> None:
    from nutfree.report import plot_draws

    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    tree.to_netcdf(out / f"{stem}.nc")
    plot_draws(tree, title=name).savefig(out / f"{stem}_draws.png", dpi=120)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"nutfree {version('nutfree')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """MCMC kernels for the posteriors that NUTS is not made for."""


@app.command("kernels")
def list_kernels(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page with all options.")
    ] = False,
) -> None:
    """List every kernel, with its family, needs and promise."""
    from nutfree import registry
    from nutfree.listing import show

    if markdown:
        from nutfree.report.catalogue import documentation

        print(documentation(), end="")
        return
    with _plain_errors():
        show(registry.kernels(), console)


@app.command()
def sample(
    file: File,
    kernel: Annotated[str, typer.Option(help="A name from `nutfree kernels`.")],
    num_samples: Samples = 1000,
    num_warmup: Warmup = 500,
    num_chains: Chains = 4,
    seed: Seed = 0,
    out: Out = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the kernel, as key=value.")
    ] = None,
    progress: Progress = True,
) -> None:
    """Sample from the posterior of a model file with one kernel."""
    with _plain_errors():
        import arviz_stats

        from nutfree.hosts.kernel import kernel as build
        from nutfree.hosts.sample import sample as run

        options = _options(option or [])
        # an unknown kernel is refused before the model's data are read
        _known(kernel)
        model, args, kwargs = _load(file)
        folder = _directory(out) if out is not None else None
        tree = run(
            build(kernel, model, **options),
            model_args=args,
            model_kwargs=kwargs,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            seed=seed,
            progress_bar=progress,
        )
        summary = arviz_stats.summary(tree, round_to="none")
        table = summary.rename_axis("parameter").reset_index()
        heads = {"ess_bulk": "ESS", "ess_tail": "tail ESS", "r_hat": "R-hat"}
        shown = table.drop(columns=["mcse_mean", "mcse_sd"], errors="ignore")
        _show(shown.head(30).rename(columns=heads), title=f"Posterior by {kernel}")
        if len(table) > 30:
            console.print(f"… and {len(table) - 30} more parameters.")
        if folder is not None:
            _save(tree, kernel, folder)
            table.to_csv(folder / "table.csv", index=False)
            console.print(f"Written to {folder}", markup=False)


def _known(kernel: str) -> None:
    from nutfree import registry

    registry.get(kernel)


@app.command()
def compare(
    file: File,
    kernels: Annotated[
        str, typer.Option(help="Names from `nutfree kernels`, with commas between.")
    ] = "nuts,multiscale,clc",
    num_samples: Samples = 1000,
    num_warmup: Warmup = 500,
    num_chains: Chains = 4,
    seed: Seed = 0,
    out: Out = None,
    progress: Progress = True,
) -> None:
    """Run several kernels on a model file and say which to use, and why."""
    with _plain_errors():
        from nutfree.report import compare as run
        from nutfree.report.terminal import show

        names = [name.strip() for name in kernels.split(",") if name.strip()]
        if not names:
            raise _BadInput("--kernels names no kernel; write --kernels nuts,mala.")
        for name in names:
            _known(name)
        model, args, kwargs = _load(file)
        folder = _directory(out) if out is not None else None
        found = run(
            model,
            model_args=args,
            model_kwargs=kwargs,
            kernels=names,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            seed=seed,
            progress_bar=progress,
        )
        show(found, console, title=str(file))
        if folder is not None:
            found.table.to_csv(folder / "table.csv")
            for name, tree in found.trees.items():
                _save(tree, name, folder)
            found.to_html(folder / "report.html")
            found.plot().savefig(folder / "comparison.png", dpi=120)
            console.print(f"Written to {folder}", markup=False)


@app.command()
def recommend(
    file: File,
    seed: Seed = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="List every kernel, not five.")
    ] = False,
) -> None:
    """Say which kernels suit a model file, without sampling."""
    with _plain_errors():
        from nutfree.listing import show
        from nutfree.report import recommend as run

        model, args, kwargs = _load(file)
        found = run(
            model,
            model_args=args,
            model_kwargs=kwargs,
            seed=seed,
            all_kernels=everything,
        )
        show(found, console)
        if "num_chains" in found.attrs:
            number = found.attrs["num_chains"]
            console.print(
                f"On this device {number} chains take as long as 4: write "
                f"--num-chains {number}."
            )


app.add_typer(federated_commands(_module, _options, _plain_errors), name="federated")


def main() -> None:
    """Entry point of the `nutfree` command."""
    app()


if __name__ == "__main__":
    main()
