"""Rows on disk: memory and seconds of SGLD on a logistic regression, and its errors.

The rows are written to a temporary folder, and each run is a process of its own, whose
peak memory is measured. The reference is the Laplace approximation in double
precision. Goals: the peak does not grow with the rows and stays under 4 GiB; means
within 0.1 posterior sd, sds within 10 %.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import nutfree as nf
from benchmarks.common import stopwatch
from benchmarks.rows import logistic as model

ROOT = Path(__file__).resolve().parents[1]
DIM, BLOCK = 7, 1_000_000


def write(folder: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.linspace(-1, 1, DIM, dtype=np.float32)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (num_rows, DIM))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.float32, (num_rows,))
    for start in range(0, num_rows, BLOCK):
        rows = rng.standard_normal((min(BLOCK, num_rows - start), DIM), np.float32)
        chance = 1 / (1 + np.exp(-rows @ truth))
        X[start : start + BLOCK] = rows
        y[start : start + BLOCK] = rng.random(len(rows), np.float32) < chance


def laplace(folder: Path, mode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mode and sds by two Newton steps from near the mode."""
    X, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "Xy")
    for _ in range(2):
        gradient, precision = -mode, np.eye(DIM)
        for start in range(0, len(y), BLOCK):
            rows = np.array(X[start : start + BLOCK], float)
            p = 1 / (1 + np.exp(-rows @ mode))
            gradient = gradient + rows.T @ (y[start : start + BLOCK] - p)
            precision = precision + (rows * (p * (1 - p))[:, None]).T @ rows
        mode = mode + np.linalg.solve(precision, gradient)
    return mode, np.sqrt(np.diag(np.linalg.inv(precision)))


def sample(folder: Path) -> dict:
    """One run in this process, and what it took."""
    data = nf.rows(X=folder / "X.npy", y=folder / "y.npy")
    with stopwatch() as watch:
        tree = nf.sample(
            nf.kernel("sgld", model, batch_size=1000),
            **data,
            num_warmup=10,
            num_samples=1000,
            num_chains=2,
            progress_bar=False,
        )
    # not getrusage's, which a process takes over from the one that started it
    status = Path("/proc/self/status").read_text()
    kilobytes = float(status.split("VmHWM:")[1].split()[0])
    draws = tree["posterior"]["beta"].values.reshape(-1, DIM).astype(float)
    return {
        "seconds": watch.seconds,
        "peak GiB": kilobytes / 2**20,
        "passes": tree["sample_stats"].attrs["num_grad_evals"] / 2,
        "mean": draws.mean(0).tolist(),
        "sd": draws.std(0).tolist(),
    }


def run(quick: bool) -> pd.DataFrame:
    sizes = (500_000, 2_000_000) if quick else (1_000_000, 10_000_000, 100_000_000)
    code = (
        "import json, pathlib, sys; from benchmarks.ondisk import sample; "
        "print(json.dumps(sample(pathlib.Path(sys.argv[1]))))"
    )
    found = []
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, num_rows)
            done = subprocess.run(
                [sys.executable, "-c", code, name],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = json.loads(done.stdout.splitlines()[-1])
            mean, sd = (np.asarray(result.pop(k)) for k in ("mean", "sd"))
            mode, exact = laplace(folder, mean)
        found.append(
            {
                "rows": num_rows,
                "GB on disk": num_rows * 4 * (DIM + 1) / 1e9,
                **result,
                "mean error / sd": float(np.abs((mean - mode) / exact).max()),
                "worst sd ratio": float((sd / exact)[np.abs(sd / exact - 1).argmax()]),
            }
        )
    return pd.DataFrame(found)
