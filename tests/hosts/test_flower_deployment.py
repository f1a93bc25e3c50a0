"""A SuperLink and SuperNodes as processes, with TLS and keys, on loopback."""

import json

import numpy as np
import pytest

pytest.importorskip("flwr")

from nutfree.hosts.flower import simulate
from tests.hosts.deployment import FILE, Deployment

#: Seconds that a run of some twenty messages may take on a machine that is busy.
LONG = 1500
SETTINGS = {"num-samples": 6, "num-chains": 30, "options": '{"num_rounds": 1}'}


def simulated(owners, **settings):
    file: dict = {}
    exec(FILE, file)
    names = {k.replace("-", "_"): v for k, v in (SETTINGS | settings).items()}
    return simulate(file["model"], file["owners"]()[:owners], **names)


@pytest.mark.slow
def test_a_deployment_makes_the_draws_of_the_simulation_and_outlives_its_machines(
    tmp_path,
):
    import xarray as xr

    with Deployment(tmp_path, 3) as net:
        net.start_server()
        for s in range(3):
            net.register(s)
            net.start_owner(s)
        # one whose key is not registered, and one without a key
        net.start_owner(3)
        net.processes["stranger"] = net.processes.pop("owner3")
        first = tmp_path / "first.nc"
        net.submit(**SETTINGS, out=str(first), **{"min-owners": 3})
        net.wait_for(first.exists, LONG, "the run has not ended")
        tree = xr.open_datatree(first)
        expected = simulated(3)
        for name, draws in expected["posterior"].items():
            np.testing.assert_array_equal(draws.values, tree["posterior"][name].values)
        assert json.loads(tree["sample_stats"].attrs["owners"]) == [
            "owner0",
            "owner1",
            "owner2",
        ]

        # an owner and the server are killed midway
        checkpoint, second = tmp_path / "run.npz", tmp_path / "second.nc"
        more = {
            **SETTINGS,
            "num-samples": 12,
            "seed": 1,
            "out": str(second),
            "min-owners": 3,
            "checkpoint": str(checkpoint),
            "checkpoint-every": 1,
            "answer-timeout": 120.0,
        }
        net.submit(**more)
        net.wait_for(checkpoint.exists, LONG, "no checkpoint was written")
        net.kill("owner1")
        net.kill("superlink")
        net.start_server()
        net.submit(**more | {"min-owners": 2})
        net.wait_for(second.exists, LONG, "the run has not gone on")
        tree = xr.open_datatree(second)
    attrs = tree["sample_stats"].attrs
    # on a machine that is busy, another may have been late
    assert "owner1" in json.loads(attrs["left_out"])
    draws = tree["posterior"]["slope"].values[:, 2:]
    known = expected["posterior"]["slope"].values
    # the surrogate of the owner that is gone stands for it: 300 and 150 draws
    assert abs(draws.mean() - known.mean()) < 0.5 * known.std()
    assert abs(draws.std() / known.std() - 1) < 0.35
