"""`nutfree federated`: a posterior over data that stay with their owners.

A model file has `model`, a NumPyro model of one owner's data, and `owner(config)`, the
arguments of the owner whose SuperNode has this config. To simulate, it has `owners()`,
a list with the arguments of each.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

File = Annotated[Path, typer.Argument(help="Python file with `model` and `owner`.")]
Kernel = Annotated[str, typer.Option(help="fald, fsgld, or a baseline.")]
Samples = Annotated[int, typer.Option(min=1, help="Draws a chain.")]
Chains = Annotated[int, typer.Option(min=1, help="Chains, all in one message.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="Option of the kernel, key=value.")
]


def federated_commands(
    load: Callable[[Path], ModuleType],
    parsed: Callable[[list[str]], dict[str, Any]],
    plain_errors: Callable[[], AbstractContextManager],
) -> typer.Typer:
    """Return the commands, given how the command line loads and complains."""
    app = typer.Typer(
        help="Sample from data that stay with their owners.", no_args_is_help=True
    )

    def settings(kernel, num_samples, num_chains, seed, option) -> dict[str, Any]:
        return {
            "kernel": kernel,
            "options": json.dumps(parsed(option or [])),
            "num-samples": num_samples,
            "num-chains": num_chains,
            "seed": seed,
        }

    @app.command()
    def simulate(
        file: File,
        kernel: Kernel = "fald",
        num_samples: Samples = 1000,
        num_chains: Chains = 4,
        seed: Seed = 0,
        option: Options = None,
        out: Annotated[
            Path | None, typer.Option(help="File for the draws, NetCDF.")
        ] = None,
    ) -> None:
        """Run server and owners in this process, message by message."""
        with plain_errors():
            from nutfree.errors import InvalidData
            from nutfree.hosts.flower import simulate as run

            module = load(file)
            for name in ("model", "owners"):
                if not callable(getattr(module, name, None)):
                    raise InvalidData(
                        f"'{file}' has no function '{name}'. To simulate, it needs "
                        "model, and owners(), a list of each owner's arguments."
                    )
            given = settings(kernel, num_samples, num_chains, seed, option)
            given = {k.replace("-", "_"): v for k, v in given.items()}
            tree = run(module.model, module.owners(), **given)
            _say(tree)
            if out is not None:
                tree.to_netcdf(out)
                print(f"Draws written to {out}")

    @app.command("app")
    def make_app(
        file: File,
        folder: Annotated[Path, typer.Argument(help="Folder for the app.")],
        kernel: Kernel = "fald",
        num_samples: Samples = 1000,
        num_chains: Chains = 4,
        seed: Seed = 0,
        option: Options = None,
    ) -> None:
        """Write the Flower app of a model file, for `flwr run`."""
        with plain_errors():
            from nutfree.hosts.flower_app import write_app

            given = settings(kernel, num_samples, num_chains, seed, option)
            write_app(folder, file, given)
            print(f"Written to {folder}. Run it with: flwr run {folder} SUPERLINK")

    @app.command()
    def run(
        file: File,
        superlink: Annotated[
            str, typer.Argument(help="A SuperLink of Flower's config.")
        ],
        out: Annotated[
            str, typer.Option(help="File for the draws, on the server's machine.")
        ],
        kernel: Kernel = "fald",
        num_samples: Samples = 1000,
        num_chains: Chains = 4,
        seed: Seed = 0,
        option: Options = None,
        min_owners: Annotated[
            int, typer.Option(min=1, help="Owners that the run waits for.")
        ] = 2,
        checkpoint: Annotated[
            str, typer.Option(help="File on the server from which a run goes on.")
        ] = "",
        answer_timeout: Annotated[
            float, typer.Option(help="Seconds that a round waits for owners.")
        ] = 120.0,
    ) -> None:
        """Submit a run to a SuperLink, through `flwr run`."""
        with plain_errors():
            from nutfree.hosts.flower_app import write_app

            given = settings(kernel, num_samples, num_chains, seed, option) | {
                "min-owners": min_owners,
                "out": out,
                "checkpoint": checkpoint,
                "answer-timeout": answer_timeout,
            }
            with tempfile.TemporaryDirectory() as folder:
                made = write_app(Path(folder) / "app", file, given)
                beside = Path(sys.executable).with_name("flwr")
                flwr = str(beside) if beside.exists() else shutil.which("flwr")
                if flwr is None:
                    typer.echo("There is no command flwr: pip install flwr.", err=True)
                    raise typer.Exit(2)
                command = [flwr, "run", str(made), superlink, "--stream"]
                raise typer.Exit(subprocess.run(command, check=False).returncode)

    return app


def _say(tree: Any) -> None:
    import arviz_stats

    attrs = tree["sample_stats"].attrs
    print(arviz_stats.summary(tree).to_string())
    print(
        f"{attrs['num_rounds']} rounds, {attrs['num_messages']} messages, "
        f"{attrs['num_bytes'] / 1e6:.2f} MB"
    )
    if "epsilon" in attrs:
        print(f"epsilon {attrs['epsilon']:.3g} at delta {attrs['delta']:g}")
    if attrs["left_out"] != "{}":
        print(f"Left out: {attrs['why_left_out']}")
