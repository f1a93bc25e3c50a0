"""Two processes on this machine, each with chains of its own, make one tree."""

import json
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

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


@pytest.mark.slow
def test_two_processes_make_one_tree_of_chains():
    """The mean is within five errors of an effective sample of 200."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), port]
    started = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    ended = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    first, second = (json.loads(text.splitlines()[-1]) for text in ended)
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
