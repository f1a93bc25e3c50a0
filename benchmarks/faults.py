"""What becomes of a run to which something happens: nothing lost, nothing wrong.

A run is stopped by signals in every phase, killed, and made to write on a full disk;
the files of a checkpoint are damaged at random or forged with right sums; rows on disk
are no numbers. Every outcome is one of: *same*, the draws of a run that nothing
happened to; *part*, the first of these draws, with a warning; *none*, an interrupt
before the first draw; *refused*, an error of this library's own; and the two that must
not be, *traceback*, any other error, and *wrong*, other draws in silence.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import nutfree as nf
from nutfree.hosts import archive, checkpoint

OUTCOMES = ("same", "part", "none", "refused", "traceback", "wrong")
#: Kernels of different kinds that are killed; the first in the quick form.
KERNELS = ("mala", "sgld", "multiscale", "ensemble", "rbmumla")
PHASES = ("start and pilot", "compile", "warm-up", "draws", "judging")

_CHILD = """
import signal, sys, warnings
import numpy as np, numpyro, numpyro.distributions as dist, nutfree as nf
warnings.simplefilter("ignore")
signal.signal(signal.SIGINT, signal.default_int_handler)
name, num_samples, folder, out, kept = sys.argv[1:]
y = np.random.default_rng(0).normal(1, 1, 200).astype(np.float32)

def model(y):
    mu = numpyro.sample("mu", dist.Laplace(0, 3))
    with numpyro.plate("rows", y.shape[0]):
        rows = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(mu, 1), obs=rows)

try:
    tree = nf.sample(nf.kernel(name, model), y, num_warmup=200, num_chains=2,
                     num_samples=int(num_samples), **{kept: folder})
    np.save(out, tree["posterior"]["mu"].values)
except KeyboardInterrupt:
    pass
"""


def _child(
    name: str, num_samples: int, folder: Path, out: Path, kept: str = "checkpoint"
) -> subprocess.Popen:
    arguments = [name, str(num_samples), str(folder), str(out), kept]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments], stderr=subprocess.PIPE, text=True
    )


def _finished(*arguments, kept: str = "checkpoint") -> np.ndarray | None:
    process = _child(*arguments, kept=kept)
    error = process.communicate()[1]
    if process.returncode not in (0, 128 + signal.SIGTERM) or "Traceback" in error:
        raise RuntimeError(error)
    out = arguments[-1]
    return np.load(out) if out.exists() else None


def _compared(found: np.ndarray | None, whole: np.ndarray) -> str:
    if found is None:
        return "none"
    if not np.array_equal(found, whole[:, : found.shape[1]]):
        return "wrong"
    return "same" if found.shape == whole.shape else "part"


def _outcome(act: Callable[[], np.ndarray | None], whole: np.ndarray) -> str:
    try:
        return _compared(act(), whole)
    except nf.NutfreeError:
        return "refused"
    # what a campaign looks for is any error whatever
    except Exception:
        return "traceback"


def _side_by_side(act: Callable[..., Iterator[str]], cases: Iterable) -> Iterator[str]:
    """What became of each case, of which two run at a time."""
    with ThreadPoolExecutor(2) as pool:
        for outcomes in pool.map(lambda case: list(act(case)), cases):
            yield from outcomes


def _signalled(folder: Path, whole: np.ndarray, quick: bool) -> Iterator[str]:
    """One signal a phase; what is kept goes on to the end."""

    def one(case) -> Iterator[str]:
        number, phase = case
        run, out = folder / f"{phase}-{number}", folder / f"{phase}-{number}.npy"
        process = _child("mala", whole.shape[1], run, out)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"nutfree: {phase},"):
                process.send_signal(number)
                break
        error = process.communicate()[1]
        if "Traceback" in error:
            yield "traceback"
            return
        yield _compared(np.load(out) if out.exists() else None, whole)
        yield _outcome(lambda: _resumed("mala", run, out, whole), whole)

    numbers = (signal.SIGTERM,) if quick else (signal.SIGINT, signal.SIGTERM)
    return _side_by_side(one, product(numbers, PHASES[3:4] if quick else PHASES))


def _resumed(name: str, run: Path, out: Path, whole: np.ndarray) -> np.ndarray | None:
    out.unlink(missing_ok=True)
    return _finished(name, whole.shape[1], run, out)


def _killed(name: str, folder: Path, whole: np.ndarray, moments: int) -> Iterator[str]:
    """A kill after each of so many pieces; the first finds no file at all."""

    def one(moment: int) -> Iterator[str]:
        run, out = folder / f"{name}-{moment}", folder / f"{name}-{moment}.npy"
        process = _child(name, whole.shape[1], run, out)
        while process.poll() is None and len(list(run.glob("*.npz"))) < moment:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        yield _outcome(lambda: _resumed(name, run, out, whole), whole)

    return _side_by_side(one, range(moments))


def _killed_store(folder: Path, whole: np.ndarray, moments: int) -> Iterator[str]:
    """A kill some time after the first draws; then what is read, and what goes on."""

    def one(moment: int) -> Iterator[str]:
        run, out = folder / f"{moment}.zarr", folder / f"{moment}.npy"
        process = _child("mala", whole.shape[1], run, out, kept="store")
        while process.poll() is None and not (run / "zarr.json").exists():
            time.sleep(0.005)
        time.sleep(0.1 * moment)
        process.kill()
        process.communicate()
        yield _outcome(lambda: _draws_of(run), whole)
        out.unlink(missing_ok=True)
        arguments = ("mala", whole.shape[1], run, out)
        yield _outcome(lambda: _finished(*arguments, kept="store"), whole)

    return _side_by_side(one, range(moments))


def _damaged(run: Path, whole: np.ndarray, tries: int) -> Iterator[str]:
    """Random bytes, cuts and holes in a random file of a checkpoint."""
    rng = np.random.default_rng(0)
    names = sorted(file.name for file in run.glob("*.npz"))
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(tries):
            copy = Path(shutil.copytree(run, Path(temporary) / "run"))
            file = copy / names[rng.integers(len(names))]
            content, at = bytearray(file.read_bytes()), 0
            at = int(rng.integers(len(content)))
            how = rng.integers(3)
            if how == 0:
                content[at] ^= int(rng.integers(1, 256))
            elif how == 1:
                content = content[:at]
            else:
                content[at : at + 64] = bytes(len(content[at : at + 64]))
            file.write_bytes(content)
            yield _outcome(lambda c=copy: _draws_of(c), whole)
            shutil.rmtree(copy)


def _draws_of(run: Path) -> np.ndarray:
    return nf.read_checkpoint(run)["posterior"]["mu"].values


def _forged(run: Path, whole: np.ndarray) -> Iterator[str]:
    """Pieces copied, cut, prolonged, retyped and shifted, with every sum right."""
    changes: dict[str, Callable] = {
        "copied": lambda arrays, other: other,
        "cut": lambda arrays, _: _each(arrays, lambda x: x[:, :1]),
        "longer": lambda arrays, _: _each(arrays, lambda x: np.repeat(x, 2, axis=1)),
        "retyped": lambda arrays, _: _each(arrays, lambda x: x.astype(np.float16)),
        "shifted": lambda arrays, _: _each(arrays, lambda x: x + x.dtype.type(1)),
    }
    pieces = sorted(run.glob("draws-*.npz"))[:2]
    with tempfile.TemporaryDirectory() as temporary:
        for change in changes.values():
            for file, other in (pieces, pieces[::-1]):
                copy = Path(shutil.copytree(run, Path(temporary) / "run"))
                arrays = change(archive.read(file), archive.read(other))
                archive.write(copy / file.name, arrays)
                yield _outcome(lambda c=copy: _draws_of(c), whole)
                shutil.rmtree(copy)


def _each(arrays: dict, change: Callable) -> dict:
    return {k: v if v.dtype.kind == "U" else change(v) for k, v in arrays.items()}


def _without_room(folder: Path, quick: bool) -> Iterator[str]:
    """A disk that is full from the first, the third, ... write on."""
    kernel = nf.kernel("mala", potential_fn=lambda x: 0.5 * x**2)

    def drawn(path: Path | None) -> np.ndarray:
        tree = nf.sample(
            kernel,
            init_params=0.0,
            num_warmup=20,
            num_samples=60,
            num_chains=1,
            progress_bar=False,
            checkpoint=path,
        )
        return tree["posterior"]["x"].values

    whole, write = drawn(None), checkpoint.write
    for after in (2,) if quick else (0, 1, 2, 3, 5, 8):
        left = [after]

        def failing(path, arrays, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, os.strerror(28))
            write(path, arrays)

        checkpoint.write = failing
        try:
            yield _outcome(lambda a=after: drawn(folder / f"full-{a}"), whole)
        finally:
            checkpoint.write = write
        yield _outcome(lambda a=after: drawn(folder / f"full-{a}"), whole)


def _bad_rows(folder: Path) -> Iterator[str]:
    """Rows that are no numbers, not finite, too large, or not there."""
    good = np.arange(50.0)
    files = {
        "objects": np.array([1, "a"], object),
        "words": np.array(["a", "b"]),
        "complex": np.ones(9, complex),
        "dates": np.array(["2020-01-01"], "datetime64[D]"),
        "nan": np.where(good == 3, np.nan, good),
        "large": np.where(good == 3, 1e300, good),
        "none": np.zeros(0),
        "cut": good,
    }
    for name, content in files.items():
        path = folder / f"{name}.npy"
        np.save(path, content, allow_pickle=True)
        if name == "cut":
            path.write_bytes(path.read_bytes()[:200])
        yield _outcome(lambda p=path: nf.rows(x=p)["x"].source.read(0, 50)["x"], good)
    for name, size in (("window_rows", 0), ("block_rows", 2.5)):
        yield _outcome(lambda n=name, s=size: nf.rows(x=good, **{n: s}), good)


def run(quick: bool = False) -> pd.DataFrame:
    """Return how often each fault was tried, and what became of it.

    Raises:
        AssertionError: if a draw was lost or wrong, or an error was not in words.
    """
    tries, rows = (200, {}) if quick else (2000, {})
    num_samples = 200_000
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        wholes = {}
        for name in KERNELS[:1] if quick else KERNELS:
            draws = num_samples if name == "mala" else num_samples // 20
            whole = folder / f"{name}-whole"
            found = _finished(name, draws, whole, folder / f"{name}-whole.npy")
            assert found is not None
            wholes[name] = found
        mala, kept = wholes["mala"], folder / "mala-whole"
        cases = {"a signal, and the run after it": _signalled(folder, mala, quick)}
        moments = 2 if quick else 10
        for name, whole in wholes.items():
            killed = _killed(name, folder, whole, moments)
            cases[f"kill -9, and the run after it: {name}"] = killed
        cases |= {
            "kill -9, the store, and the run after it": _killed_store(
                folder, mala, moments
            ),
            "a file damaged at random": _damaged(kept, mala, tries),
            "a piece forged": _forged(kept, mala),
            "no room on the disk, and after": _without_room(folder, quick),
            "rows that are no data": _bad_rows(folder),
        }
        for case, outcomes in cases.items():
            rows[case] = Counter(outcomes)
            print(case, dict(rows[case]), flush=True)
    table = pd.DataFrame(
        [[sum(c.values()), *(c[o] for o in OUTCOMES)] for c in rows.values()],
        columns=["tried", *OUTCOMES],
        index=pd.Index(rows, name="what happened"),
    )
    assert not table[["traceback", "wrong"]].to_numpy().any(), table.to_string()
    return table.reset_index()
