"""The first result, and the second: seconds from the call to the tree.

Each kernel runs in processes of its own, with a compilation cache that begins empty:
`first` is the first call, `again` another one there with a kernel built anew and other
seeds, `second process` the first call of another process, which finds the programs on
disk; `compiles` is what the compiler takes there, `sampling` what the transitions alone
take. `first / nuts` compares with NumPyro's NUTS.

Goals: `first / nuts` at most 2 (1.5); `again / sampling` at most 1.2; `compiles` below
a second.
"""

import json
import os
import subprocess
import sys
import tempfile

import pandas as pd

from nutfree import registry

SETTINGS = dict(num_warmup=500, num_samples=500, num_chains=4, progress_bar=False)
POSTERIORS = ("eight_schools", "galaxies")
PEERS = ("nuts", "blackjax.nuts")
#: Families whose kernels need another posterior than these.
ELSEWHERE = ("sgld", "federated", "numpyro", "blackjax")
QUICK = ("nuts", "mala", "multiscale")

CHILD = """
import json, sys, time
import jax
from jax import monitoring

spent = []
monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: spent.append((event, seconds))
)
import nutfree as nf
import models

name, posterior, calls, settings = json.loads(sys.argv[1])
module = models.load(posterior)
found = []
for seed in range(calls):
    spent.clear()
    started = time.perf_counter()
    kernel = nf.kernel(name, module.model)
    tree = nf.sample(kernel, **module.data(), **settings, seed=seed)
    seconds = time.perf_counter() - started
    about = tree.sample_stats.attrs
    compiles = [s for e, s in spent if e.endswith("backend_compile_duration")]
    read = [s for e, s in spent if e.endswith("cache_retrieval_time_sec")]
    found.append({
        "seconds": seconds,
        "programs": len(compiles),
        "compiles": sum(compiles) - sum(read),
        "sampling": about["warmup_seconds"] + about["sampling_seconds"],
    })
print(json.dumps(found))
"""


def calls(name: str, posterior: str, number: int, cache: str) -> list[dict]:
    """What so many calls of one process took."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"NUTFREE_CACHE": cache, "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([".", *sys.path])
    job = json.dumps([name, posterior, number, SETTINGS])
    command = [sys.executable, "-c", CHILD, job]
    made = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(made.stdout.splitlines()[-1])


def names(quick: bool) -> tuple[str, ...]:
    if quick:
        return QUICK
    recommended = [
        spec.name
        for spec in registry.specs().values()
        if spec.recommended and spec.family not in ELSEWHERE
    ]
    return tuple(dict.fromkeys((*PEERS, "mala", "multalmc", *recommended)))


def run(quick: bool) -> pd.DataFrame:
    """A row for each kernel on each posterior."""
    rows = []
    for posterior in POSTERIORS[: 1 if quick else None]:
        for name in names(quick):
            with tempfile.TemporaryDirectory() as cache:
                first, again = calls(name, posterior, 2, cache)
                (second,) = calls(name, posterior, 1, cache)
            row = {
                "posterior": posterior,
                "kernel": name,
                "first": first["seconds"],
                "programs": first["programs"],
                "again": again["seconds"],
                "programs again": again["programs"],
                "sampling": again["sampling"],
                "again / sampling": again["seconds"] / again["sampling"],
                "second process": second["seconds"],
                "compiles": second["compiles"],
            }
            nuts = (
                row
                if name == "nuts"
                else next(
                    r
                    for r in rows
                    if (r["posterior"], r["kernel"]) == (posterior, "nuts")
                )
            )
            rows.append(row | {"first / nuts": row["first"] / nuts["first"]})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)
