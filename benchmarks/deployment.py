"""Deployment: time and memory of a round between processes, and of its transport alone.

A SuperLink and a SuperNode for each owner run on loopback, with TLS and keys. The run
goes on from the checkpoint of a simulation, so that it consists of rounds. On the same
grid, two apps send messages of the same arrays to owners that send them back: one
imports Flower and NumPy only, the other what a run's owner imports, too. CPU seconds
and memory are those of all processes; memory that they share counts once for each.
"""

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

NUM_CHAINS, K = 50, 10
#: Seconds that a round may take, and a process of Flower's may take to start.
LONG = 1500
ECHO_SERVER = """\
from pathlib import Path

import numpy as np
from flwr.serverapp import ServerApp

from nutfree.hosts.flower import Nodes
from nutfree.hosts.wire import Sent

app = ServerApp()


@app.main()
def main(grid, context):
    told = context.run_config
    nodes = Nodes(grid, told["answer-timeout"])
    names = nodes.join(told["min-owners"], told["join-timeout"])
    chains = np.zeros((told["num-chains"], 2), np.float32)
    key, number = np.zeros(2, np.uint32), np.zeros((), np.float32)
    arrays = {"position": chains, "ahead": chains, "shared_key": key, "own_key": key}
    arrays |= {"step_size": number, "gain": number, "weight": number}
    for i in range(told["num-samples"]):
        sent = [Sent(name, arrays, {}) for name in names]
        answers = nodes.post("visit", sent)
        assert not any(answer.reason for answer in answers), answers
        Path(told["checkpoint"]).write_text(str(i))
"""
ECHO_CLIENT = """\
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    arrays = message.content["arrays"]
    back = {"arrived": arrays["ahead"]} if "ahead" in arrays else {}
    facts = {"name": context.node_config["name"]}
    records = {"arrays": ArrayRecord(back), "facts": ConfigRecord(facts)}
    return Message(RecordDict(records), reply_to=message)
"""
IMPORTS = "import nutfree.hosts.flower  # noqa: F401\n"
#: What owners do, and the lines of their app; None is that of a run.
CONTENDERS = {
    "send back": ECHO_CLIENT,
    "import, send back": IMPORTS + ECHO_CLIENT,
    "fald": None,
}


class Use(NamedTuple):
    """Of all processes of a deployment: CPU seconds so far, bytes, and their number."""

    seconds: float
    bytes: int
    processes: int


def use_of(net: Any) -> Use:
    """Return what a deployment's processes use."""
    from tests.hosts.deployment import family

    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    stats = family({process.pid for process in net.processes.values()}).values()
    # utime, stime, and those of children that were waited for; resident pages
    ticks = sum(int(ticks) for stat in stats for ticks in stat[11:15])
    pages = sum(int(stat[21]) for stat in stats)
    return Use(ticks / tick, pages * page, len(stats))


def run(quick: bool) -> pd.DataFrame:
    if find_spec("flwr") is None or not Path("/proc/self/stat").exists():
        why = "not run: it needs Linux, and pip install 'nutfree[federated]'"
        return pd.DataFrame([{"what owners do": why}])
    with tempfile.TemporaryDirectory() as folder:
        counts = (3, 2) if quick else (20, 3)
        return pd.DataFrame(rows_of(Path(folder), *counts))


def rows_of(folder: Path, num_owners: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each contender, on one grid."""
    from tests.hosts.deployment import Deployment

    start, alone = simulated(folder, num_owners, rounds)
    with Deployment(folder, num_owners) as net:
        # more often would be work of its own, for 20 SuperNodes on one machine
        net.environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.5"
        net.start_server()
        for s in range(num_owners):
            net.register(s)
            net.start_owner(s)
        online = ["online"] * num_owners
        net.wait_for(lambda: net.nodes() == online, LONG, "owners have not joined")
        idle = use_of(net)
        for label, client in CONTENDERS.items():
            mark = folder / f"{label}.npz"
            if client is None:
                shutil.copy(start, mark)
            times, uses = timed(net, mark, client, rounds)
            wall = statistics.mean(np.diff(times))
            seconds = (uses[-1].seconds - uses[0].seconds) / rounds
            most = max(uses, key=lambda use: use.bytes)
            yield {
                "what owners do": label,
                "owners": num_owners,
                "s / round": wall,
                "CPU s / round": seconds,
                "CPU s / message": seconds / num_owners,
                "GB, most": most.bytes / 1e9,
                "processes": most.processes,
                "GB at rest": idle.bytes / 1e9,
                "as simulated": same(mark, alone) if client is None else "–",
            }


def simulated(folder: Path, num_owners: int, rounds: int) -> tuple[Path, Path]:
    """Return checkpoints of a simulation after its warm-up, and some rounds later."""
    from nutfree.hosts.flower import simulate
    from tests.hosts.deployment import FILE

    file: dict[str, Any] = {}
    exec(FILE, file)
    owners = [file["owner"]({"partition-id": s}) for s in range(num_owners)]
    start, alone = folder / "start.npz", folder / "alone.npz"
    settings = settings_of(alone, num_owners)
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    for count in (1, 2 + rounds):
        simulate(file["model"], owners, **settings | {"num_samples": count})
        if count == 1:
            shutil.copy(alone, start)
    return start, alone


def settings_of(checkpoint: Path, num_owners: int) -> dict[str, Any]:
    return {
        "options": f'{{"num_rounds": 1, "num_local_steps": {K}}}',
        "num-chains": NUM_CHAINS,
        "checkpoint": str(checkpoint),
        "checkpoint-every": 1,
        "min-owners": num_owners,
        "join-timeout": float(LONG),
        "answer-timeout": float(LONG),
    }


def same(one: Path, other: Path) -> str:
    """Say whether checkpoints have the same draws, to the bit, or who was absent."""
    from nutfree.hosts.archive import read

    run, alone = read(one), read(other)
    why = json.loads(str(run["facts"]))["why"]
    if why:
        return f"left out: {why}"
    return "yes" if np.array_equal(run["draws"], alone["draws"]) else "no"


def timed(net: Any, mark: Path, client: str | None, rounds: int):
    """Run an app that writes `mark` after each round.

    Returns:
        `(times, uses)`, the ends of `rounds + 1` rounds, and what the processes used
        between the first and the last of them. The first round is not timed: owners
        join and compile in it.
    """
    from nutfree.hosts.flower_app import write_app

    before = 1 if client is None else 0  # draws that the checkpoint has
    settings = settings_of(mark, net.owners) | {"num-samples": before + 1 + rounds}
    number = len(list(net.folder.glob("app*")))
    model = net.folder / "model_file.py"
    app = write_app(net.folder / f"app{number}", model, settings)
    if client is not None:
        (app / "federated_app" / "server.py").write_text(ECHO_SERVER)
        (app / "federated_app" / "client.py").write_text(client)
    first = mark.stat().st_mtime if mark.exists() else None
    times: list[float] = []
    uses: list[Use] = []

    def watch() -> bool:
        written = mark.stat().st_mtime if mark.exists() else None
        if written not in (first, None) and written not in times:
            times.append(written)
        if times:
            uses.append(use_of(net))
        return len(times) > rounds

    net.flwr("run", str(app), "loop")
    net.wait_for(watch, LONG * (rounds + 1), f"rounds of {app} have not ended")
    return times, uses
