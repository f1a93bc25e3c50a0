"""Two processes on this machine, with chains or rows of their own, make one tree."""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.hosts import pieces

PROGRAM = """
import json, sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpyro, numpyro.distributions as dist
import nutfree as nf


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def run(seed):
    return nf.sample(
        nf.kernel("mala", model), 2.0, num_chains=2, num_warmup=200, num_samples=400,
        seed=seed, progress_bar=False,
    )


mine = run(jax.process_index())
whole = nf.gather_chains(mine)
try:
    nf.gather_chains(run(5))
    said = ""
except nf.InvalidOption as error:
    said = str(error)
print(json.dumps({
    "mine": mine.posterior["mu"].values.tolist(),
    "whole": whole.posterior["mu"].values.tolist(),
    "chains": whole.posterior["chain"].values.tolist(),
    "diverging": list(whole.sample_stats["diverging"].shape),
    "spent": [t.sample_stats.attrs["num_grad_evals"] for t in (mine, whole)],
    "said": said,
    "verdict": nf.check(whole, model, 2.0).sound,
}))
"""


ROWS = """
import json, sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np, numpyro, numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import nutfree as nf


def model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        here = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(rows @ beta, 1), obs=here)


rng = np.random.default_rng(jax.process_index())  # each makes its own half of the rows
X = rng.normal(size=(10_000, 2)).astype(np.float32)
y = (X @ [1.0, -2.0] + jax.process_index() + rng.normal(size=10_000)).astype(np.float32)
X[:, 1] += jax.process_index()
spread = NamedSharding(Mesh(jax.devices(), ("rows",)), PartitionSpec("rows"))
whole = [jax.make_array_from_process_local_data(spread, x) for x in (X, y)]
tree = nf.sample(
    nf.kernel("sgld", model, batch_size=200), *whole, num_chains=2, num_warmup=10,
    num_samples=300, progress_bar=False,
)
print(json.dumps({
    "rows": [len(whole[0]), sum(len(s.data) for s in whole[0].addressable_shards)],
    "product": (X.T @ X).tolist(),
    "projection": (X.T @ y).tolist(),
    "draws": tree.posterior["beta"].values.tolist(),
    "inflation": float(tree.sample_stats["predicted_inflation"].max()),
}))
"""


def two_processes(program: str) -> tuple[dict, dict]:
    """What each of two processes of `jax.distributed` prints last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(program), port]
    started = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    ended = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    first, second = (json.loads(text.splitlines()[-1]) for text in ended)
    return first, second


@pytest.mark.slow
def test_two_processes_sample_one_posterior_of_rows_that_neither_holds_whole():
    """Its mean and sds are known; within five errors of an effective sample of 100."""
    first, second = two_processes(ROWS)
    assert first["draws"] == second["draws"]
    assert first["rows"] == second["rows"] == [20_000, 10_000]
    product, projection = (
        np.add(first[name], second[name]) for name in ("product", "projection")
    )
    precision = product + np.eye(2)
    mean, covariance = np.linalg.solve(precision, projection), np.linalg.inv(precision)
    draws = np.array(first["draws"]).reshape(-1, 2)
    sd = np.sqrt(np.diag(covariance))
    assert (abs(draws.mean(0) - mean) < 5 * sd / np.sqrt(100)).all()
    assert (abs(draws.std(0) / sd - 1) < first["inflation"] + 5 / np.sqrt(200)).all()
    # neither half alone has this posterior
    for half in (first, second):
        alone = np.linalg.solve(half["product"], half["projection"])
        assert (abs(alone - mean) > 10 * sd).any()


def test_rows_spread_over_processes_take_no_checkpoint(tmp_path, monkeypatch):
    def model():
        numpyro.sample("x", dist.Normal())

    monkeypatch.setattr(pieces, "span_processes", lambda data: True)
    with pytest.raises(nf.InvalidOption, match="Leave out checkpoint"):
        nf.sample(nf.kernel("mala", model), checkpoint=tmp_path / "run")


@pytest.mark.slow
def test_two_processes_make_one_tree_of_chains():
    """The mean is within five errors of an effective sample of 200."""
    first, second = two_processes(PROGRAM)
    assert first["whole"] == second["whole"] == first["mine"] + second["mine"]
    assert first["mine"] != second["mine"]
    assert first["chains"] == [0, 1, 2, 3]
    assert first["diverging"] == [4, 400]
    assert first["spent"][1] == first["spent"][0] + second["spent"][0]
    assert "same seed" in first["said"]
    assert first["verdict"]
    variance = 9 / 10
    error = np.sqrt(variance / 200)
    assert abs(np.mean(first["whole"]) - 2 * variance) < 5 * error
