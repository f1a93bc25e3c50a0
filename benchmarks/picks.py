"""Picks: whether what `recommend` names first is near the best by what it takes.

On each posterior of the zoo and of posteriordb the picks of `recommend` run beside
NUTS, multiscale and MALA. A pick is good where its first 400 effective draws take at
most twice the seconds of the best sound run, all told. A posterior on which no run is
sound counts for nothing.
"""

import numpy as np
import pandas as pd

import models
import nutfree as nf
from models import posteriordb
from nutfree.errors import NutfreeError

#: What every pick is compared with.
OTHERS = ("nuts", "multiscale", "mala")
QUICK = ("eight_schools", "galaxies")
#: Posteriors over so many rows that a run takes minutes, or of more than 80 dimensions.
DEAR = {"adult", "bnn", "german", "sonar", "ionosphere"}
#: Those without a gradient, which the others cannot run on.
BLACK_BOXES = {"lotka_volterra_scipy", "source_location"}
#: A pick may take so many times the seconds of the best.
GOOD = 2.0


def posteriors(quick: bool) -> dict:
    if quick:
        return {name: models.load(name) for name in QUICK}
    zoo = {n: models.load(n) for n in models.names() if n not in DEAR | BLACK_BOXES}
    return zoo | {n: posteriordb.load(n) for n in posteriordb.names()}


def run(quick: bool, only: str = "") -> pd.DataFrame:
    """A row for each posterior, and the share of good picks."""
    rows = []
    for name, module in posteriors(quick).items():
        if only not in name:
            continue
        data = module.data()
        pick = nf.recommend(module.model, **data)["kernel"].iloc[0]
        try:
            found = nf.compare(
                module.model,
                **data,
                kernels=tuple(dict.fromkeys((pick, *OTHERS))),
                num_warmup=500,
                num_samples=1000,
                progress_bar=False,
            )
        except NutfreeError:
            continue
        seconds = {
            kernel: verdict.figures["seconds_to_400"]
            for kernel, verdict in found.verdicts.items()
            if verdict.sound
        }
        best = min(seconds, key=lambda kernel: seconds[kernel], default="none is sound")
        ratio = seconds.get(pick, np.inf) / seconds[best] if seconds else np.nan
        rows.append(
            {
                "posterior": name,
                "pick": pick,
                "best": best,
                "pick / best, seconds to 400": ratio,
                "good": "" if np.isnan(ratio) else str(bool(ratio <= GOOD)),
            }
        )
        print(rows[-1], flush=True)
    judged = [row["good"] == "True" for row in rows if row["good"]]
    rows.append({"posterior": "share of good picks", "good": f"{np.mean(judged):.0%}"})
    return pd.DataFrame(rows)
