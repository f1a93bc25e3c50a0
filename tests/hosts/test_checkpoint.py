"""A run that was stopped goes on to the draws of one that never was."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree.hosts import progress as host
from nutfree.hosts import underway
from tests.targets import regression, regression_data

pytestmark = pytest.mark.usefixtures("toys")
DATA = regression_data()
SETTINGS = {"num_warmup": 20, "num_samples": 30, "num_chains": 2}


@pytest.fixture(autouse=True)
def _pieces_of_a_twentieth(monkeypatch):
    """How long a piece is must not depend on the clock here."""
    monkeypatch.setattr(underway, "PIECE_SECONDS", float("inf"))


class _Stopping(host.tqdm):
    """A progress bar at which somebody presses Ctrl-C after a number of updates."""

    after = 0

    def update(self, n=1):
        super().update(n)
        type(self).after -= 1
        if type(self).after == 0:
            raise KeyboardInterrupt


def run(name, path, *, data=DATA, model=regression, options=None, **settings):
    kernel = nf.kernel(name, model, **(options or {}))
    settings = {**SETTINGS, "progress_bar": False, **settings}
    return nf.sample(kernel, **data, **settings, checkpoint=path)


def stopped(name, path, monkeypatch, after, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(_Stopping, "after", after)
        patch.setattr(host, "tqdm", _Stopping)
        return run(name, path, **settings)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory, toys):
    """A checkpoint of the toy with some of its draws, and what was returned."""
    path = tmp_path_factory.mktemp("runs") / "half.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(underway, "PIECE_SECONDS", float("inf"))
        with pytest.warns(UserWarning, match="kept"):
            tree = stopped("toy", path, patch, 10 + 7)
    return path, tree


# in warm-up, in the first draws, and with draws on disk; the last has no warm-up
@pytest.mark.parametrize(
    ("name", "settings", "stops"),
    [
        pytest.param("nuts", {}, (14,), marks=pytest.mark.slow),
        ("toy", {"thinning": 4}, (4, 12)),
        pytest.param(
            "toy", {"chain_method": "parallel"}, (14,), marks=pytest.mark.slow
        ),
        ("toy.rows", {"num_chains": 1}, (14,)),
        (
            "toy.independent",
            {"num_warmup": 0, "num_samples": 6, "num_chains": 1},
            (3,),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Interrupted")
def test_a_stopped_run_goes_on_to_the_same_draws(
    name, settings, stops, tmp_path, monkeypatch
):
    whole = run(name, None, **settings)
    for after in stops:
        # before the first draw there is nothing to return
        with contextlib.suppress(KeyboardInterrupt):
            stopped(name, tmp_path / "run", monkeypatch, after, **settings)
    resumed = run(name, tmp_path / "run", **settings)
    for group in ("posterior", "sample_stats"):
        assert set(resumed[group]) == set(whole[group])
        for variable, expected in whole[group].items():
            np.testing.assert_array_equal(resumed[group][variable], expected)
    for attr in ("num_grad_evals", "interrupted"):
        stats = (tree["sample_stats"].attrs.get(attr) for tree in (resumed, whole))
        assert len(set(stats)) == 1


def test_a_finished_run_is_read_and_not_made_again(tmp_path, monkeypatch):
    first = run("toy", tmp_path / "run")
    kernel = nf.kernel("toy", regression)
    monkeypatch.setattr(kernel, "init", None)  # no pilot
    again = nf.sample(
        kernel, **DATA, **SETTINGS, checkpoint=tmp_path / "run", progress_bar=False
    )
    np.testing.assert_array_equal(
        again["posterior"]["beta"], first["posterior"]["beta"]
    )


def test_more_draws_prolong_a_run(half_done):
    path, _ = half_done
    longer = run("toy", path, num_samples=50)
    whole = run("toy", None, num_samples=50)
    np.testing.assert_array_equal(
        longer["posterior"]["beta"], whole["posterior"]["beta"]
    )
    with pytest.raises(nf.CheckpointMismatch, match="has 50 draws"):
        run("toy", path, num_samples=30)


def test_draws_made_so_far_are_readable(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="Call it again with this checkpoint"):
        tree = stopped("toy", tmp_path / "run", monkeypatch, 10 + 7)
    read = nf.read_checkpoint(tmp_path / "run")
    for site in ("beta", "sigma", "precision"):
        np.testing.assert_array_equal(read["posterior"][site], tree["posterior"][site])
    assert read["sample_stats"].attrs["kernel"] == "toy"
    # and by numpy alone
    draws = np.load(tmp_path / "run" / "draws-00000.npz", allow_pickle=False)
    np.testing.assert_array_equal(draws["z.sigma"], tree["posterior"]["sigma"][:, :2])


def _other_prior(X, y=None):
    import numpyro

    with numpyro.handlers.scale(scale=1.01):
        regression(X, y)


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("kernel", {"name": "toy.independent"}),
        ("options", {"options": {"step_size": 0.1}}),
        ("random key", {"seed": 1}),
        ("num_warmup", {"num_warmup": 21}),
        ("num_chains", {"num_chains": 3}),
        ("thinning", {"thinning": 2}),
        ("chain_method", {"chain_method": "sequential"}),
        ("model, data", {"model": _other_prior}),
        ("model, data", {"data": {**DATA, "y": DATA["y"] + np.float32(1e-6)}}),
    ],
)
def test_another_run_is_refused_by_what_differs(half_done, what, changed):
    with pytest.raises(nf.CheckpointMismatch, match=f"its {what}"):
        run(**{"name": "toy", "path": half_done[0], **changed})


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(nf.CheckpointMismatch, match="is no checkpoint"):
        run("toy", tmp_path)
    with pytest.raises(nf.CheckpointMismatch, match="no draws"):
        nf.read_checkpoint(tmp_path / "nowhere")


class _Trap:
    """What must never be unpickled."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("content", ["pickle", "text"])
def test_no_file_is_unpickled(content, tmp_path):
    file = tmp_path / "state.npz"
    if content == "pickle":
        trapped = np.empty((), object)
        trapped[()] = _Trap()
        np.savez(file, header=trapped)
    else:
        file.write_bytes(b"not an archive")
    with pytest.raises(nf.CheckpointMismatch, match="Take another path"):
        run("toy", tmp_path)


def test_a_state_of_another_structure_is_refused(tmp_path):
    from nutfree.hosts.checkpoint import Checkpoint

    state = {"x": jnp.zeros(3), "key": jax.random.key(0)}
    first = Checkpoint(tmp_path / "c", {"kernel": "a"})
    first.save(state, None, done={})
    first.close()
    kept = Checkpoint(tmp_path / "c", {"kernel": "a"})
    back = kept.state(state)
    assert jax.random.key_data(back["key"]).tolist() == [0, 0]
    for other in ({**state, "y": state["x"]}, {**state, "x": jnp.zeros(4)}):
        with pytest.raises(nf.CheckpointMismatch, match=r"'[xy]'"):
            kept.state(other)


_SCRIPT = """
import jax, sys, nutfree as nf
from tests.targets import regression, regression_data
nf.sample(nf.kernel("mala", regression), **regression_data(), num_warmup=20,
          num_samples=100_000, num_chains=1, checkpoint=sys.argv[1], progress_bar=False)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_in_another(tmp_path):
    path, root = tmp_path / "run", Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(path)], cwd=root)
    while process.poll() is None and not (path / "draws-00002.npz").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL)
    kept = nf.read_checkpoint(path)["posterior"].sizes["draw"]
    assert 1 + 8 + 64 <= kept < 100_000  # as pieces grow
    settings = {"num_chains": 1, "num_samples": 100_000}
    resumed, whole = (run("mala", p, **settings) for p in (path, None))
    beta = resumed["posterior"]["beta"]
    np.testing.assert_array_equal(beta, whole["posterior"]["beta"])
