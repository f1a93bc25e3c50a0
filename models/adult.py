"""Adult: logistic regression on a census, in batches or in full.

Whether a person earned more than 50,000 dollars in 1994, by age, schooling, hours,
capital gains and six categorical answers of 32,561 people.

Data: UCI Machine Learning Repository, Adult, training part (CC BY 4.0). A question
mark counts as an answer of its own.
Model: a plate with `subsample_size`, so that the one text serves full-data kernels
(`batch_size=None`) and minibatch kernels alike.
For NUTS: unimodal and log-concave, but each of a draw's 60 gradients passes over all
rows.
Family: SGLD, structured SGMCMC, federated. 44 dimensions.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

from models._tables import design_matrix, read_csv

COLUMNS = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_years",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours",
    "country",
    "income",
]


def model(X, y=None, batch_size=None):
    num_people, num_features = X.shape
    intercept = numpyro.sample("intercept", dist.Normal(0, 5))
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([num_features]).to_event(1))
    with numpyro.plate("data", num_people, subsample_size=batch_size):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        logits = intercept + rows @ beta
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=labels)


def data() -> dict[str, np.ndarray]:
    table = read_csv("adult.csv.gz", names=COLUMNS, skipinitialspace=True)
    rich = table.pop("income") == ">50K"
    gains = ["capital_gain", "capital_loss"]
    table[gains] = np.log1p(table[gains])
    # fnlwgt is a survey weight, education repeats education_years
    X = design_matrix(table.drop(columns=["fnlwgt", "education", "country"]))
    return {"X": X, "y": rich.to_numpy(int)}
