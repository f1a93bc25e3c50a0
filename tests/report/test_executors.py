"""A comparison through processes, Dask and Ray is the one without, and goes on."""

import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import nutfree as nf
from models import eight_schools

pytestmark = pytest.mark.slow
SETTINGS = {
    "kernels": ("nuts", "mala"),
    "num_warmup": 200,
    "num_samples": 200,
    "num_chains": 2,
    "progress_bar": False,
}


@pytest.fixture(scope="module")
def alone():
    return nf.compare(eight_schools.model, **eight_schools.data(), **SETTINGS)


def same(found, alone):
    timed = [c for c in found.table if "second" in c]
    for name, tree in alone.trees.items():
        for site, draws in tree["posterior"].items():
            np.testing.assert_allclose(found.trees[name]["posterior"][site], draws)
    plain = [t.drop(columns=[*timed, "verdict"]) for t in (found.table, alone.table)]
    np.testing.assert_allclose(*(p.to_numpy(float) for p in plain), rtol=1e-5)


def compared(executor):
    data = eight_schools.data()
    return nf.compare(eight_schools.model, **data, **SETTINGS, executor=executor)


def test_processes(alone):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        same(compared(executor), alone)


def test_dask(alone):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        distributed.Client(cluster) as client,
    ):
        same(compared(client), alone)


def test_ray(alone):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        same(compared(ray), alone)
    finally:
        ray.shutdown()


def test_a_comparison_that_was_killed_goes_on_at_its_checkpoint(tmp_path):
    """Killed after two of four kernels; the finished ones are not run again."""
    program = textwrap.dedent(
        f"""
        import os
        import nutfree as nf
        from models import eight_schools
        from nutfree.report import entries

        run, done = entries.run, []

        def counted(model, entry, *rest):
            if len(done) == 2:
                os._exit(9)
            done.append(entry)
            return run(model, entry, *rest)

        entries.run = counted
        nf.compare(eight_schools.model, **eight_schools.data(),
                   kernels=("nuts", "mala", "ula", "blackjax.hmc"), num_warmup=100,
                   num_samples=100, num_chains=2, progress_bar=False,
                   checkpoint={str(tmp_path / "run")!r})
        """
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == 9
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"nuts", "mala"}
    settings = {
        "num_warmup": 100,
        "num_samples": 100,
        "num_chains": 2,
        "progress_bar": False,
    }
    kernels = ("nuts", "mala", "ula", "blackjax.hmc")
    data = eight_schools.data()
    before = nf.read_checkpoint(tmp_path / "run" / "mala")
    found = nf.compare(
        eight_schools.model,
        **data,
        kernels=kernels,
        **settings,
        checkpoint=tmp_path / "run",
    )
    assert list(found.trees) == list(kernels)
    np.testing.assert_array_equal(
        found.trees["mala"]["posterior"]["mu"], before["posterior"]["mu"]
    )
