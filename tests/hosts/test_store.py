"""Draws that leave memory as they are made are those that would have stayed there."""

import builtins
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import nutfree as nf
from nutfree.hosts import store as host
from nutfree.hosts import underway
from nutfree.hosts.checkpoint import Checkpoint
from tests.targets import regression, regression_data

pytestmark = [
    pytest.mark.usefixtures("toys"),
    pytest.mark.filterwarnings("ignore:Something speaks against"),
]
DATA = regression_data()
SETTINGS = {
    "num_warmup": 20,
    "num_samples": 30,
    "num_chains": 2,
}
GROUPS = {
    "prior": 3,
    "log_likelihood": True,
    "constant_data": {"n": np.arange(2)},
}


@pytest.fixture(autouse=True)
def _pieces_of_a_twentieth(monkeypatch):
    """How long a piece is must not depend on the clock here."""
    monkeypatch.setattr(underway, "PIECE_SECONDS", float("inf"))


def run(path=None, name="toy", **settings):
    settings = {**SETTINGS, "progress_bar": False, **settings}
    return nf.sample(nf.kernel(name, regression), **DATA, **settings, store=path)


def assert_same(found, expected, groups):
    assert set(groups) <= set(found.children)
    for group in groups:
        one, other = (tree[group].to_dataset().load() for tree in (found, expected))
        xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


@pytest.fixture(scope="module")
def stored(tmp_path_factory, toys):
    """A store, its tree, and the tree of the same run in memory."""
    path = tmp_path_factory.mktemp("runs") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(underway, "PIECE_SECONDS", float("inf"))
        patch.setattr(host, "BLOCK_BYTES", 300)  # pieces and blocks of a few draws
        return path, run(path, **GROUPS), run(**GROUPS)


def test_a_store_has_the_groups_of_a_run_in_memory(stored):
    path, tree, expected = stored
    assert not tree["posterior"]["beta"].variable._in_memory
    assert_same(tree, expected, expected.children)
    with xr.open_datatree(path, engine="zarr") as read:
        assert_same(read, expected, expected.children)
    assert_same(nf.read_checkpoint(path), expected, ("posterior", "sample_stats"))
    attrs, wanted = (t["sample_stats"].attrs for t in (tree, expected))
    assert attrs.keys() == wanted.keys()
    for name in ("kernel", "num_grad_evals", "tuned"):
        assert attrs[name] == wanted[name]


def test_a_run_goes_on_from_its_store(stored):
    path, _, _ = stored
    longer, whole = run(path, num_samples=50), run(num_samples=50)
    assert_same(longer, whole, ("posterior", "sample_stats"))
    with pytest.raises(nf.CheckpointMismatch, match="has 50 draws"):
        run(path)
    with pytest.raises(nf.CheckpointMismatch, match="its random key"):
        run(path, num_samples=50, seed=1)


def test_a_crash_between_two_writes_is_made_good(tmp_path, monkeypatch):
    """A piece whose draws are on disk and whose state is not."""
    path, save, left = (
        tmp_path / "run.zarr",
        Checkpoint.save,
        [1 + 10 + 7],
    )  # of the pilot, warm-up and draws

    def crashing(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("crash")
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", crashing)
        with pytest.raises(RuntimeError, match="crash"):
            run(path)
    whole = run()
    so_far = nf.read_checkpoint(path)["posterior"]["sigma"]
    np.testing.assert_array_equal(so_far, whole["posterior"]["sigma"][:, :14])
    assert_same(run(path), whole, ("posterior", "sample_stats"))


def test_what_a_run_killed_in_its_first_piece_has_left_half_written_goes(tmp_path):
    path = tmp_path / "run.zarr"
    (path / ".nutfree").mkdir(parents=True)
    (path / "posterior").mkdir()
    for name in ("zarr.json", "posterior/zarr.json"):
        (path / name).write_text('{"attributes": {')
    assert run(path)["posterior"].sizes["draw"] == SETTINGS["num_samples"]


def test_a_full_disk_ends_a_run_with_its_draws(tmp_path, monkeypatch):
    path, append, left = tmp_path / "run.zarr", host.Store.append, [4]

    def failing(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, os.strerror(28))
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(host.Store, "append", failing)
        with pytest.warns(UserWarning, match="goes on from the last piece"):
            tree = run(path, **GROUPS)
    assert tree["posterior"].sizes["draw"] == 8
    assert_same(run(path), run(), ("posterior", "sample_stats"))


def _other_run(path):
    group = host.needed("zarr", "").open_group(path, mode="r+")
    group.attrs["nutfree_run"] = "another"


def _fewer_draws(path):
    zarr = host.needed("zarr", "")
    array = zarr.open_group(path, mode="r+", use_consolidated=False)["posterior/draw"]
    array.resize((3,))


def _garbage(path):
    (path / "posterior" / "zarr.json").write_text("{")


@pytest.mark.parametrize("damage", [_other_run, _fewer_draws, _garbage])
def test_a_damaged_store_is_refused(damage, stored, tmp_path):
    path = shutil.copytree(stored[0], tmp_path / "run.zarr")
    damage(path)
    with pytest.raises(nf.CheckpointMismatch, match=r"The store .* Take another"):
        run(path, num_samples=50)


def test_a_damaged_chunk_is_seen(stored, tmp_path):
    path = shutil.copytree(stored[0], tmp_path / "run.zarr")
    chunk = path / "posterior" / "sigma" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"(?i)zstd"):
        nf.read_checkpoint(path)["posterior"]["sigma"].load()


def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch):
    with pytest.raises(nf.InvalidOption, match="is a checkpoint, too"):
        run(tmp_path / "run.zarr", checkpoint=tmp_path / "run")
    with pytest.raises(nf.InvalidOption, match="posterior_predictive=True"):
        run(tmp_path / "run.zarr", posterior_predictive={"y": 0})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(nf.CheckpointMismatch, match="no store"):
        run(tmp_path)

    def absent(name, *args, **kwargs):
        if name == "zarr":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.delitem(sys.modules, "zarr")
    monkeypatch.setattr("nutfree.errors.import_module", absent)
    with pytest.raises(nf.NutfreeError, match=r'pip install "nutfree\[zarr\]"'):
        run(tmp_path / "run.zarr")


_SCRIPT = """
import resource, sys, warnings
import numpyro, numpyro.distributions as dist, nutfree as nf
warnings.simplefilter("ignore")
path, num_samples, dimension = sys.argv[1], *map(int, sys.argv[2:])

def model():
    numpyro.sample("x", dist.Normal().expand([dimension]).to_event(1))

nf.sample(nf.kernel("ula", model), num_warmup=5, num_samples=num_samples, num_chains=2,
          store=path, progress_bar=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def child(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("few", "many", "dimension"), [(1_000, 100_000, 3), (10, 60, 1_000_000)]
)
def test_memory_does_not_grow_with_the_draws(few, many, dimension, tmp_path):
    """60 draws of two chains are 460 MiB; of the small ones, all programs the most."""
    peaks = []
    for number in (few, many):
        process = child(tmp_path / f"{number}.zarr", number, dimension)
        peaks.append(int(process.communicate()[0]) * 1024)
    grown = many * 2 * dimension * np.dtype("f4").itemsize
    assert peaks[1] < peaks[0] + max(0.25 * grown, 100 << 20)


@pytest.mark.slow
def test_a_killed_run_is_readable_and_goes_on(tmp_path):
    path, number = tmp_path / "run.zarr", 1_000_000
    process = child(path, number, 3)
    while process.poll() is None and not (path / "zarr.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)  # all of them take 3 s
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    so_far = nf.read_checkpoint(path)["posterior"]["x"].load()
    assert 0 < so_far.sizes["draw"] < number
    assert np.isfinite(so_far).all()
    for folder in (path, tmp_path / "whole.zarr"):
        assert child(folder, number, 3).wait() == 0
    found, whole = (
        nf.read_checkpoint(p)["posterior"]["x"] for p in (path, tmp_path / "whole.zarr")
    )
    np.testing.assert_array_equal(so_far, found[:, : so_far.sizes["draw"]])
    np.testing.assert_array_equal(found, whole)


def test_moments_are_those_of_the_draws_that_are_not_kept():
    settings = {name: GROUPS[name] for name in ("prior", "constant_data")}
    tree, whole = run(keep="moments", **settings), run(**settings)
    assert "posterior" not in tree
    groups = ("prior", "constant_data", "observed_data", "sample_stats")
    assert_same(tree, whole, groups)
    draws = whole["posterior"].to_dataset().stack(all=("chain", "draw"))
    for site in ("beta", "sigma"):
        found = tree["summary"][site]
        assert found.dims[1:] == whole["posterior"][site].dims[2:]
        mean, sd = draws[site].mean("all"), draws[site].std("all", ddof=1)
        np.testing.assert_allclose(found.sel(summary="mean"), mean, rtol=1e-4)
        np.testing.assert_allclose(found.sel(summary="sd"), sd, rtol=1e-4)
    with pytest.raises(nf.InvalidOption, match=r"log_likelihood=... needs the draws"):
        run(keep="moments", log_likelihood=True)
    with pytest.raises(nf.InvalidOption, match="write 'draws' or 'moments'"):
        run(keep="mean")
