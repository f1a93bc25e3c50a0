"""Big data: data passes and seconds until means and sds are within 0.1 posterior sd.

A data pass is a gradient over all rows; a minibatch of n of N rows counts n/N. Passes
count from the start, pilot and warm-up included; seconds likewise, without compilation,
of a single chain. The reference is importance sampling at the mode, and for the network
a run of NUTS from another seed. `step / bare` is the wall time of a step of ours in
NumPyro's MCMC over that of a bare `lax.scan` of the same minibatch gradient. Goals:
`s / nuts` of ours at most 1/20, and half of the best minibatch peer's; `step / bare` at
most 1.2. What is run, and how peers are tuned, is told in `rows.py` and `peers.py`.
"""

from functools import partial

import jax
import numpy as np
import pandas as pd
from numpyro.infer import MCMC

import nutfree as nf
from benchmarks import peers
from benchmarks.common import seconds_of, settled
from benchmarks.overhead import per_transition
from benchmarks.rows import Problem, problems

TOLERANCE = 0.1
#: Draws of warm-up, draws, and transitions a draw (quick, full). The minibatch
#: samplers tune in their pilots; a transition of BlackJAX's and of SGMCMCJax's is one
#: small step.
SCHEDULES = {
    "sgld": ((10, 3_000, 1), (10, 5_000, 1)),
    "sghmc": ((10, 3_000, 1), (10, 5_000, 1)),
    "sgbaoab": ((10, 3_000, 1), (10, 5_000, 1)),
    "ssgmcmc": ((10, 1_000, 1), (10, 2_000, 1)),
    "blackjax.sgld": ((10, 3_000, 100), (10, 5_000, 200)),
    "SGMCMCJax": ((0, 3_000, 20), (0, 5_000, 50)),
    "HMCECS": ((200, 1_500, 1), (300, 5_000, 1)),
    "nuts": ((300, 1_200, 1), (200, 1_200, 1)),
}
#: Those that draw from the posterior of a network, and those of the other targets.
ON_NETWORKS = ("sgld", "sgbaoab", "ssgmcmc", "blackjax.sgld", "nuts")
LANGEVIN = ("sgld", "sghmc", "sgbaoab")
ON_OTHERS = (*LANGEVIN, "blackjax.sgld", "SGMCMCJax", "HMCECS", "nuts")
#: On networks plain gradients are best, far from the mode as chains are.
OF_NETWORKS = {
    "sgld": {"gradient": "plain"},
    "sgbaoab": {"gradient": "plain"},
    "ssgmcmc": {"dropout": 0.5},
}
#: There draws are to go on for longer.
NETWORK_THINNING = 10
OURS = "sgld"


def chain(problem: Problem, name: str, schedule) -> peers.Chain | None:
    """Compiled, and ready to run."""
    others = {"SGMCMCJax": peers.sgmcmcjax, "HMCECS": peers.hmcecs}
    if name in others:
        return others[name](problem, schedule)
    network = problem.reference is None
    if network and name in LANGEVIN:
        num_warmup, num_draws, _ = schedule
        schedule = (num_warmup, num_draws, NETWORK_THINNING)
    options = OF_NETWORKS.get(name, {}) if network else {}
    return peers.kernel_chain(problem, name, schedule, **options)


def long_nuts(problem: Problem, quick: bool):
    """Means and sds of what is compared, by four chains of NUTS."""
    mcmc = MCMC(
        nf.kernel("nuts", problem.model),
        num_warmup=300,
        num_samples=500 if quick else 1_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(7), **problem.data)
    seen = np.asarray(problem.look(mcmc.get_samples()), float)
    return seen.mean(0), seen.std(0)


def row(problem: Problem, name: str, schedule, mean, sd) -> dict:
    """When one contender's moments have settled."""
    program = chain(problem, name, schedule)
    if program is None:
        return {"kernel": f"{name} (not installed)"}
    results: list = []
    seconds = seconds_of(lambda: results.append(program()) or results)
    samples, before, each = results[0]
    seen = np.asarray(problem.look(samples), float)
    passes = float(before) + np.cumsum(np.asarray(each, float))
    when = settled(seen, mean, sd, TOLERANCE)
    spent = float("nan") if when is None else passes[when - 1]
    mean_error = np.abs((seen.mean(0) - mean) / sd).max()
    return {
        "kernel": name,
        "draws needed": f"{when or 'more'} of {len(seen)}",
        "passes needed": spent,
        "s needed": seconds * spent / passes[-1],
        "s of the run": seconds,
        "mean error": mean_error,
        "sd error": np.abs(seen.std(0) / sd - 1).max(),
    }


def run(quick: bool, only: str = "") -> pd.DataFrame:
    found = []
    for label, problem in problems(quick).items():
        if only not in label:
            continue
        network = problem.reference is None
        reference = problem.reference or partial(long_nuts, problem, quick)
        mean, sd = reference()
        for name in ON_NETWORKS if network else ON_OTHERS:
            schedule = SCHEDULES[name][0 if quick else 1]
            new = {"target": label} | row(problem, name, schedule, mean, sd)
            if name == OURS and not network:
                repeats = 5 if quick else 15
                times = per_transition(peers.per_step(problem), 5, 105, repeats)
                new["step / bare"] = times["nf.sgld"] / times["bare scan"]
            print(new, flush=True)
            found.append(new)
    table = pd.DataFrame(found)
    for column, short in (("passes needed", "passes"), ("s needed", "s")):
        nuts = table[table["kernel"] == "nuts"].set_index("target")[column]
        table[f"{short} / nuts"] = table[column] / table["target"].map(nuts)
    return table
