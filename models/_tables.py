"""Reading the tables in ``models/data`` and making design matrices of them."""

from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).parent / "data"


def read_csv(filename: str, **options) -> pd.DataFrame:
    """A table of ``models/data``; none of them has a header row."""
    return pd.read_csv(DATA / filename, header=None, **options)


def standardise(X) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; constant columns are dropped."""
    X = np.asarray(X, dtype=float)
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0)


def design_matrix(table: pd.DataFrame) -> np.ndarray:
    """Standardised numbers, then an indicator per category but each factor's commonest.

    Leaving out the commonest keeps the indicators' correlations low.
    """
    numbers = table.select_dtypes("number")
    factors = table.drop(columns=numbers.columns)
    indicators = [
        pd.get_dummies(factor, dtype=float).drop(columns=factor.mode()[0])
        for _, factor in factors.items()
    ]
    return np.column_stack([standardise(numbers), *indicators])
