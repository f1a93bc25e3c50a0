"""Run benchmarks: `python benchmarks/run.py NAME [--quick]`, or `all` for every one.

Peers run beside ours in the same process on the same target, so that what is compared
is a ratio. Seconds are shown, and mean nothing on another machine.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "overhead",
    "first",
    "honesty",
    "picks",
    "multimodal",
    "constrained",
    "nonsmooth",
    "gradientfree",
    "tunnel",
    "bigdata",
    "ondisk",
    "faults",
    "federated",
    "deployment",
)


#: Those whose targets `--only` chooses.
FILTERED = (
    "picks",
    "multimodal",
    "nonsmooth",
    "gradientfree",
    "tunnel",
    "bigdata",
    "federated",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument("--quick", action="store_true", help="smaller, in minutes")
    parser.add_argument(
        "--only",
        default="",
        help=f"those targets of {', '.join(FILTERED)} that have this text",
    )
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # `models` and `benchmarks` are not installed
    from benchmarks.common import show, stopwatch

    for name in NAMES if options.name == "all" else (options.name,):
        module = import_module(f"benchmarks.{name}")
        with stopwatch() as watch:
            only = {"only": options.only} if name in FILTERED else {}
            table = module.run(options.quick, **only)
        show(module.__doc__, table, watch)


if __name__ == "__main__":
    main()
