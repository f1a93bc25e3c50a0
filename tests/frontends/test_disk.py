"""What is read from disk is what is there, in order and at random."""

import sys

import numpy as np
import pytest
import zarr

import nutfree as nf

N = 1000


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 3)).astype(np.float32)
    return {"X": X, "y": np.arange(N, dtype=np.int32)}


def _as(kind, arrays, folder):
    """The arrays on disk, and what is passed to `nutfree.rows`."""
    given = {}
    for name, value in arrays.items():
        path = folder / f"{name}.{'zarr' if kind.startswith('zarr') else 'npy'}"
        if kind.startswith("zarr"):
            # chunks that do not divide the rows, nor one another
            chunks = (230 if name == "X" else 170, *value.shape[1:])
            zarr.create_array(path, data=value, chunks=chunks)
        else:
            np.save(path, value)
        given[name] = {
            "npy path": lambda p: str(p),
            "memmap": lambda p: np.load(p, mmap_mode="r"),
            "part of a memmap": lambda p: np.load(p, mmap_mode="r")[:],
            "zarr path": lambda p: p,
            "zarr array": lambda p: zarr.open_array(p, mode="r"),
        }[kind](path)
    return given


KINDS = ("npy path", "memmap", "part of a memmap", "zarr path", "zarr array")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_as_they_are(kind, arrays, tmp_path):
    data = nf.rows(**_as(kind, arrays, tmp_path), window_rows=300, block_rows=7)
    source = data["X"].source
    assert data["X"].shape == (N, 3)
    assert data["y"].dtype == np.int32
    for low, high in ((0, N), (0, 1), (229, 231), (300, 900)):
        found = source.read(low, high)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value[low:high])
    # a pass over all of them; beyond the last row it is repeated
    size = source.pass_rows // len(source.devices)
    starts = range(0, N + size, size)
    y = np.concatenate([source.in_order(s, size)["y"] for s in starts])
    np.testing.assert_array_equal(y[:N], arrays["y"])
    assert set(y[N:]) <= {N - 1}
    # a window has whole rows, X next to its y
    window = source.window([1], 5)
    assert window["X"].shape == (300, 3)
    np.testing.assert_array_equal(window["X"], arrays["X"][window["y"]])


@pytest.mark.parametrize("kind", ["npy path", "zarr path"])
@pytest.mark.parametrize("block_rows", [1, 64, 300])
def test_every_place_of_a_window_holds_every_row_equally_often(
    kind, block_rows, arrays, tmp_path
):
    given = _as(kind, arrays, tmp_path)
    source = nf.rows(**given, window_rows=300, block_rows=block_rows)["y"].source
    windows = 4000
    numbers = np.stack(
        [source.window_blocks([0], k).ravel()[:300] for k in range(windows)]
    )
    for place in (0, 17, 299):
        counts = np.bincount(numbers[:, place], minlength=N).reshape(50, 20).sum(1)
        # chi-squared of 49 degrees of freedom, beyond 95: 1e-4 false alarms each
        expected = windows / 50
        assert np.sum((counts - expected) ** 2) / expected < 95
    # and so the mean over windows is that over all rows, for sorted rows too: sd of a
    # block's mean at most N / sqrt(12)
    error = N / np.sqrt(12 * windows * (300 // block_rows))
    assert abs(numbers.mean() - (N - 1) / 2) < 4 * error


def test_windows_are_those_of_their_seed_and_number(arrays, tmp_path):
    given = _as("memmap", arrays, tmp_path)
    first, second = (nf.rows(**given, window_rows=200)["y"].source for _ in range(2))
    again = first.window([3], 1)["y"]
    np.testing.assert_array_equal(again, second.submit_window([3], 1).result()["y"])
    assert np.any(again != first.window([3], 2)["y"])
    assert np.any(again != first.window([4], 1)["y"])


def test_sorted_rows_are_noticed():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(100_000, 2))
    effects = []
    for value in (mixed, np.sort(mixed, axis=0)):
        source = nf.rows(x=value, window_rows=10_000, block_rows=50)["x"].source
        effects.append(source.order_effect(source.window([0], 0)))
    # 200 blocks: the variance of their means is known to 10 %; four of them
    assert effects[0] < 1.4
    assert 30 < effects[1] < 70


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"X": np.zeros((4, 2)), "y": np.zeros(5)}, "number of rows"),
        ({"X": [1.0, 2.0]}, "is a list"),
        ({"X": np.zeros((0, 2))}, "has no rows"),
        ({}, "Name the arrays"),
    ],
)
def test_what_is_no_data_is_refused(given, message):
    with pytest.raises(nf.InvalidData, match=message):
        nf.rows(**given)


def _npy(content, cut=None):
    def make(folder):
        path = folder / "x.npy"
        np.save(path, content, allow_pickle=True)
        if cut is not None:
            path.write_bytes(path.read_bytes()[:cut])
        return {"x": path}

    return make


def _file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return {"x": folder / name}

    return make


def _zarr_without_a_chunk(folder):
    zarr.create_array(folder / "x.zarr", data=np.ones(100), chunks=(10,))
    for chunk in (folder / "x.zarr" / "c").iterdir():
        chunk.write_bytes(b"damaged")
    return {"x": folder / "x.zarr"}


GOOD = np.arange(40.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_npy(np.array(["a", 1], object)), "holds Python objects"),
        (_npy(GOOD, cut=200), "cannot be read from"),
        (_npy(GOOD, cut=0), "cannot be read from"),
        (_npy(GOOD, cut=50), "cannot be read from"),
        (_file("x.npy", b"garbage" * 9), "cannot be read from"),
        (_npy(np.array(["2020-01-01"], "datetime64[D]")), "dates as numbers of days"),
        (_npy(np.array(["a", "b"])), "categories as integers"),
        (_npy(np.ones(3, complex)), "two columns"),
        (_npy(np.zeros(3, [("a", float), ("b", int)])), "real numbers"),
        (lambda folder: {"x": folder / "absent.npy"}, "there is nothing"),
        (lambda folder: {"x": folder}, "cannot be read from"),
        (_file("x.zarr", b"garbage"), "cannot be read from"),
        (_zarr_without_a_chunk, r"of 'x' cannot be read"),
        (_npy(np.where(GOOD == 7, np.nan, GOOD)), "a NaN or an infinity in row 7"),
        (_npy(np.where(GOOD == 7, -np.inf, GOOD)), "a NaN or an infinity in row 7"),
        (_npy(np.where(GOOD == 7, 1e300, GOOD)), "too large for float32 in row 7"),
        (_npy(np.full(9, 2**40)), "enable_x64"),
        *(
            (lambda folder, how=how: {"x": GOOD, **how}, "at least 1")
            for how in (
                {"window_rows": 0},
                {"window_rows": -5},
                {"window_rows": "a"},
                {"block_rows": 2.5},
                {"block_rows": True},
            )
        ),
    ],
)
def test_damaged_or_useless_rows_are_refused_with_file_and_row(make, message, tmp_path):
    def read():
        source = nf.rows(**make(tmp_path))["x"].source
        return source.read(0, source.num_data)

    with pytest.raises(nf.InvalidData, match=message):
        read()


def test_a_damaged_parquet_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    for content in (b"", b"garbage" * 9):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(nf.InvalidData, match="as Parquet"):
            nf.rows(tmp_path / "x.parquet", x="a")
    with pytest.raises(nf.InvalidData, match="as Parquet"):
        nf.rows(tmp_path / "absent.parquet", x="a")


def test_rows_on_disk_do_not_become_an_array_unnoticed():
    with pytest.raises(nf.InvalidData, match=r"Pass it to nutfree\.sample"):
        np.asarray(nf.rows(X=np.zeros((5, 2)))["X"])


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(nf.NutfreeError, match=r"nutfree\[parquet\]"):
        nf.rows("data.parquet", X=["a", "b"], y="label")
