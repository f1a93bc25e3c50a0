"""A SuperLink and SuperNodes as processes, with TLS and keys, on loopback."""

import json
import socket

import numpy as np
import pytest

pytest.importorskip("flwr")

from nutfree.hosts.flower import simulate
from tests.hosts.deployment import FILE, Deployment

#: Seconds that a run of some twenty messages may take on a machine that is busy.
LONG = 1500
#: What a SuperNode says that its SuperLink does not let in.
REFUSED = "could not establish a connection to the SuperLink"
SETTINGS = {"num-samples": 6, "num-chains": 30, "options": '{"num_rounds": 1}'}


def simulated(owners, **settings):
    file: dict = {}
    exec(FILE, file)
    names = {k.replace("-", "_"): v for k, v in (SETTINGS | settings).items()}
    return simulate(file["model"], file["owners"]()[:owners], **names)


@pytest.mark.slow
def test_a_client_without_a_registered_key_is_let_in_nowhere(tmp_path):
    """Neither with a key of its own making, nor with none, nor without TLS."""
    strangers = ("stranger with a key", "stranger without a key")
    with Deployment(tmp_path, 1) as net:
        net.start_server()
        net.register(0)
        net.start_owner(0)
        net.start_owner(1, strangers[0])
        net.start_owner(2, strangers[1], key=False)
        net.wait_for(
            lambda: all(REFUSED in net.log(name) for name in strangers),
            LONG,
            "a stranger has not been turned away",
        )
        net.wait_for(lambda: net.nodes() == ["online"], LONG, "owner0 is not there")
        # and the port speaks to nobody in plain text
        with socket.create_connection(("127.0.0.1", net.port), 10) as plain:
            plain.sendall(b"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_deployment_makes_the_draws_of_the_simulation(tmp_path):
    import xarray as xr

    with Deployment(tmp_path, 3) as net:
        net.start_server()
        for s in range(3):
            net.register(s)
            net.start_owner(s)
        out = tmp_path / "draws.nc"
        net.submit(**SETTINGS, out=str(out), **{"min-owners": 3})
        net.wait_for(out.exists, LONG, "the run has not ended")
    tree = xr.open_datatree(out)
    for name, draws in simulated(3)["posterior"].items():
        np.testing.assert_array_equal(draws.values, tree["posterior"][name].values)
    owners = json.loads(tree["sample_stats"].attrs["owners"])
    assert owners == ["owner0", "owner1", "owner2"]


@pytest.mark.slow
def test_a_deployment_outlives_an_owner_and_its_server(tmp_path):
    import xarray as xr

    with Deployment(tmp_path, 3) as net:
        net.start_server()
        for s in range(3):
            net.register(s)
            net.start_owner(s)
        checkpoint, out = tmp_path / "run.npz", tmp_path / "draws.nc"
        settings = {
            **SETTINGS,
            "num-samples": 12,
            "seed": 1,
            "out": str(out),
            "min-owners": 3,
            "checkpoint": str(checkpoint),
            "checkpoint-every": 1,
            "answer-timeout": 120.0,
        }
        net.submit(**settings)
        net.wait_for(checkpoint.exists, LONG, "no checkpoint was written")
        net.kill("owner1")
        net.kill("superlink")
        net.start_server()
        net.submit(**settings | {"min-owners": 2})
        net.wait_for(out.exists, LONG, "the run has not gone on")
    tree = xr.open_datatree(out)
    why = json.loads(tree["sample_stats"].attrs["why_left_out"])
    assert "owner1" in why
    # an answer is the start of a process, which a busy machine may take too long for
    others = [reason for name, reason in why.items() if name != "owner1"]
    assert all(reason.startswith("no answer within") for reason in others), why
    draws = tree["posterior"]["slope"].values[:, 2:]
    known = simulated(3)["posterior"]["slope"].values
    # the surrogate of the owner that is gone stands for it: 300 and 150 draws
    assert abs(draws.mean() - known.mean()) < 0.5 * known.std()
    assert abs(draws.std() / known.std() - 1) < 0.35
