"""Big data: data passes and seconds until means and sds are within 0.1 posterior sd.

The census, and a synthetic logistic regression. A data pass is a gradient over all
rows; a minibatch of n of N rows counts n/N. Passes count from the start, pilot and
warm-up included; seconds likewise, without compilation, of a single chain. The
reference is importance sampling at the mode. Goals: `s / nuts` at most 1/20, and half
of the best minibatch peer's.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC

import models
import nutfree as nf
from benchmarks.common import laplace_reference, seconds_of, settled
from benchmarks.overhead import synthetic

TOLERANCE = 0.1
#: Draws of warm-up, draws, and transitions a draw (quick, full). The minibatch
#: samplers tune in their pilots; a transition of BlackJAX's is one small step.
SCHEDULES = {
    "sgld": ((10, 3_000, 1), (10, 5_000, 1)),
    "blackjax.sgld": ((10, 3_000, 1_000), (10, 5_000, 20_000)),
    "nuts": ((300, 1_500, 1), (500, 3_000, 1)),
}


def model(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


def chain(name: str, model, data, schedule):
    """A compiled run: draws `(n, d)`, passes before them, passes of each."""
    num_warmup, num_draws, thinning = schedule

    def run(rng_key):
        warm_key, draw_key = jax.random.split(rng_key)
        mcmc = MCMC(
            nf.kernel(name, model),
            num_warmup=num_warmup * thinning,
            num_samples=num_draws * thinning,
            thinning=thinning,
            progress_bar=False,
        )
        fields = ("num_steps",)
        mcmc.warmup(warm_key, extra_fields=fields, collect_warmup=True, **data)
        before = thinning * mcmc.get_extra_fields()["num_steps"].sum()
        # ours counts its pilot too
        before = getattr(mcmc.last_state, "total_grad_evals", before)
        mcmc.run(draw_key, extra_fields=fields, **data)
        each = thinning * mcmc.get_extra_fields()["num_steps"]
        return mcmc.get_samples(), before, each

    return jax.jit(run).lower(jax.random.key(0)).compile()


def run(quick: bool) -> pd.DataFrame:
    adult = models.load("adult")
    rows, dim = (100_000, 20) if quick else (1_000_000, 50)
    targets = {
        "adult census": (adult.model, adult.data()),
        f"logistic {rows:,} × {dim}": (model, synthetic(rows, dim)),
    }
    found = []
    for label, (text, data) in targets.items():
        target = nf.model_target(text, kwargs=data)
        mean, sd, _ = laplace_reference(target, 20_000)
        for name, schedules in SCHEDULES.items():
            program = chain(name, text, data, schedules[0 if quick else 1])
            results = []
            seconds = seconds_of(
                lambda p=program, r=results: r.append(p(jax.random.key(1))) or r
            )
            samples, before, each = results[0]
            flat = jax.vmap(lambda z: ravel_pytree(z)[0])(samples)
            passes = float(before) + np.cumsum(np.asarray(each, float))
            flat = np.asarray(flat)
            when = settled(flat, mean, sd, TOLERANCE)
            spent = float("nan") if when is None else passes[when - 1]
            found.append(
                {
                    "target": label,
                    "kernel": name,
                    "passes before": float(before),
                    "draws needed": f"{when or 'more'} of {len(flat)}",
                    "passes needed": spent,
                    "s needed": seconds * spent / passes[-1],
                    "s of the run": seconds,
                }
            )
    table = pd.DataFrame(found)
    for column, short in (("passes needed", "passes"), ("s needed", "s")):
        nuts = table[table["kernel"] == "nuts"].set_index("target")[column]
        table[f"{short} / nuts"] = table[column] / table["target"].map(nuts)
    return table
