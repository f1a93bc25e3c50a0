"""Whatever happens to a checkpoint's files, its draws are right or refused."""

import contextlib
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nutfree as nf
from nutfree.hosts import archive, checkpoint
from nutfree.hosts.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("toys")
RUN = {"kernel": "toy", "sample_field": "z"}
STATE = {"x": np.arange(3.0), "key": np.zeros(2, np.uint32), "i": np.asarray(7)}
PIECES = [
    {"z": np.random.default_rng(n).normal(size=(2, n + 2, 3)), "i": np.ones((2, n + 2))}
    for n in range(3)
]


def kept(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint of three pieces, by name."""
    keeper = Checkpoint(path, RUN)
    for draws in PIECES:
        keeper.save(STATE, draws, done={})
    keeper.close()
    return {file.name: file.read_bytes() for file in path.glob("*.npz")}


def all_of(path: Path):
    """State and draws as a run that goes on reads them, and as a user does."""
    with contextlib.closing(Checkpoint(path, RUN)) as keeper:
        own = keeper.state(STATE), keeper.draws(PIECES[0])
    return own, nf.read_checkpoint(path)["posterior"]["x"].values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "run"
    return path, kept(path), all_of(path)


@pytest.fixture
def folder(whole):
    path, files, _ = whole
    for file in path.iterdir():
        file.unlink()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def right_or_refused(path, expected) -> None:
    try:
        found = all_of(path)
    except nf.CheckpointMismatch:
        return
    jax.tree.map(np.testing.assert_array_equal, found, expected)


changes = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("zeros"), st.integers(0, 10**6), st.integers(1, 400)),
    st.tuples(st.just("copy"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("gone"), st.just(0), st.just(0)),
)


@given(which=st.integers(0, 3), change=changes)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_file_is_refused_or_read_as_it_was(whole, which, change):
    path, files, expected = whole
    for name, content in files.items():
        (path / name).write_bytes(content)
    names = sorted(files)
    content, (kind, at, by) = bytearray(files[names[which]]), change
    at = at % len(content)
    if kind == "byte":
        content[at] ^= by
    elif kind == "cut":
        content = content[:at]
    elif kind == "zeros":
        content[at : at + by] = bytes(len(content[at : at + by]))
    elif kind == "copy":
        content = files[names[at % 4]]
    (path / names[which]).write_bytes(content)
    if kind == "gone":
        (path / names[which]).unlink()
    right_or_refused(path, expected)


def rewritten(file: Path, **changed) -> None:
    """Change arrays, or the header by a function, with every sum right."""
    arrays = archive.read(file)
    for name, by in changed.items():
        arrays[name] = by(arrays[name])
    archive.write(file, arrays)


def header(**changed):
    return lambda old: np.asarray(json.dumps({**json.loads(str(old)), **changed}))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("draws-00001.npz", {"z": lambda z: z + 1e-9}),
        ("draws-00001.npz", {"z": lambda z: z[:, :1]}),
        ("draws-00001.npz", {"z": lambda z: np.repeat(z, 100, axis=1)}),
        ("draws-00001.npz", {"z": lambda z: z.astype(np.float32)}),
        ("draws-00001.npz", {"header": header(draws=200)}),
        ("draws-00001.npz", {"header": header(run="another")}),
        ("draws-00002.npz", {"header": header(piece=1)}),
        ("state.npz", {"header": header(pieces=2)}),
        ("state.npz", {"header": header(pieces=-1)}),
        ("state.npz", {"header": header(draws=10)}),
        ("state.npz", {"header": header(digest=3)}),
        ("state.npz", {"header": header(run=[])}),
        ("state.npz", {"header": lambda old: np.asarray("[" * 10**5)}),
        ("state.npz", {"x": lambda x: x.astype(np.float32)}),
        ("state.npz", {"x": lambda x: x[:1]}),
    ],
)
def test_a_forged_file_with_right_sums_is_refused(folder, name, changed):
    rewritten(folder / name, **changed)
    with pytest.raises(nf.CheckpointMismatch, match="Take another"):
        all_of(folder)


def test_a_shape_that_is_not_there_takes_no_memory(folder):
    """4.8 GB by its header, in a file of a kilobyte."""
    file = folder / "draws-00000.npz"
    with zipfile.ZipFile(file, "w") as made, made.open("z.npy", "w") as array:
        described = {"descr": "<f8", "fortran_order": False, "shape": (3, 2 * 10**8)}
        np.lib.format.write_array_header_1_0(array, described)
    with pytest.raises(nf.CheckpointMismatch, match="not as long"):
        nf.read_checkpoint(folder)


@pytest.mark.parametrize(
    "done", [None, {}, {"draws": -5}, {"warmup": 10**6}, {"draws": "5"}, {"more": 1}]
)
def test_progress_that_cannot_be_is_refused(done):
    from dataclasses import asdict

    from nutfree.hosts.underway import Done

    Done.kept(asdict(Done()), "run", warmup=10)
    if done:
        done = {**asdict(Done()), **done}
    with pytest.raises(nf.CheckpointMismatch, match="no run can be"):
        Done.kept(done, "run", warmup=10)


def test_no_link_is_followed_and_nothing_is_left_behind(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "draws-00003.npz").symlink_to(victim)
    (folder / ".0123456789abcdef.tmp").symlink_to(victim)
    with contextlib.closing(Checkpoint(folder, RUN)) as keeper:
        keeper.save(STATE, PIECES[0], done={})
    assert victim.read_text() == "mine"
    assert not list(folder.glob(".*.tmp"))
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(nf.CheckpointMismatch, match="No run can be kept"):
        Checkpoint(folder, RUN)
    assert victim.read_text() == "mine"


def test_a_second_run_on_a_folder_is_refused_by_name(folder):
    with contextlib.closing(Checkpoint(folder, RUN)):
        with pytest.raises(nf.CheckpointMismatch, match=r"under way, of process \d+"):
            Checkpoint(folder, RUN)
        assert nf.read_checkpoint(folder)["posterior"].sizes["draw"] == 9
    Checkpoint(folder, RUN).close()


def sampled(model, path, **settings):
    return nf.sample(
        nf.kernel("toy", model),
        num_warmup=10,
        num_chains=1,
        progress_bar=False,
        **{"num_samples": 20, "checkpoint": path, **settings},
    )


def one_site():
    numpyro.sample("x", dist.Normal())


@pytest.mark.filterwarnings("ignore:Something speaks")
@pytest.mark.parametrize("after", [0, 3, 12])
def test_a_disk_error_warns_and_the_draws_stay(after, tmp_path, monkeypatch):
    wanted, write, left = sampled(one_site, None), checkpoint.write, [after]

    def failing(path, arrays):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", failing)
        with pytest.warns(UserWarning, match="No space left"):
            tree = sampled(one_site, tmp_path / "run")
    np.testing.assert_array_equal(tree["posterior"]["x"], wanted["posterior"]["x"])
    # and the same call goes on from what is on disk
    again = sampled(one_site, tmp_path / "run")
    np.testing.assert_array_equal(again["posterior"]["x"], wanted["posterior"]["x"])


@pytest.mark.filterwarnings("ignore:Something speaks")
def test_a_changed_callback_is_refused(tmp_path):
    def centred_at(mean):
        @jax.custom_vjp
        def density(x):
            shape = jax.ShapeDtypeStruct((), x.dtype)
            return jax.pure_callback(
                lambda x: np.float32(-0.5 * (x - mean) ** 2),
                shape,
                x,
                vmap_method="sequential",
            )

        density.defvjp(lambda x: (density(x), x), lambda x, g: (-g * x,))

        def model():
            x = numpyro.sample("x", dist.Normal(0, 10))
            numpyro.factor("f", density(x))

        return model

    sampled(centred_at(0.0), tmp_path)
    longer = sampled(centred_at(0.0), tmp_path, num_samples=30)
    assert longer["posterior"].sizes["draw"] == 30
    with pytest.raises(nf.CheckpointMismatch, match="of another density"):
        sampled(centred_at(5.0), tmp_path, num_samples=40)


def test_arrays_inside_of_a_program_are_part_of_what_a_run_is():
    def looped(by):
        def fn(x):
            return jax.lax.scan(lambda c, _: (c * jnp.asarray(by), None), x, None, 2)[0]

        return checkpoint.fingerprint(fn, jnp.ones(2))[0]

    assert looped(np.array([1.0, 2.0])) == looped(np.array([1.0, 2.0]))
    assert looped(np.array([1.0, 2.0])) != looped(np.array([1.0, 3.0]))
