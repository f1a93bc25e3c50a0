"""Countries of birth: a sparse Dirichlet posterior with a known answer.

The shares of 42 answers to a census question, from the first 500 people asked. Most
countries were named by nobody, and a Dirichlet prior with concentration 1/5 puts
their shares within a hair of zero, at the corners and edges of the simplex. (Much
smaller concentrations would put some shares below the least float32.)

Data: UCI Machine Learning Repository, Adult, training part (CC BY 4.0).
Model: Dirichlet and multinomial, conjugate: the posterior is Dirichlet, and
`exact_draws` draws from it.
For NUTS: right, at 31 gradients a draw and a rare divergence; on the log scale, where
the empty shares have one-sided exponential tails of rate 1/5, a draw is worth a quarter
of one of the other shares.
Family: Bregman proximal, with the negative entropy as its mirror map. 41 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import read_csv

NUM_PEOPLE = 500


def model(concentration, counts=None, total=NUM_PEOPLE):
    share = numpyro.sample("share", dist.Dirichlet(concentration))
    numpyro.sample("counts", dist.Multinomial(total, share), obs=counts)


def data(concentration: float = 0.2) -> dict[str, np.ndarray]:
    country = read_csv("adult.csv.gz", skipinitialspace=True)[13]
    answers = np.unique(country)
    counts = country[:NUM_PEOPLE].value_counts().reindex(answers, fill_value=0)
    return {
        "concentration": np.full(len(answers), concentration),
        "counts": counts.to_numpy(),
    }


def exact_draws(seed: int, num_draws: int, concentration: float = 0.2) -> np.ndarray:
    """Independent posterior draws of ``share``, one a row."""
    target = data(concentration)
    rng = np.random.default_rng(seed)
    return rng.dirichlet(target["concentration"] + target["counts"], size=num_draws)
