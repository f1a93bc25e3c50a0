"""Data and reference draws as posteriordb stores them, as arrays."""

import json
import re

import numpy as np

from models._tables import DATA


def read_data(posterior: str) -> dict:
    """The data of ``posterior``, lists as arrays, under their names in Stan."""
    text = (DATA / "posteriordb" / posterior / "data.json").read_text()
    return {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
    }


def read_reference(posterior: str) -> dict[str, np.ndarray]:
    """Reference draws of ``posterior`` by site: ``beta[1]``, ... become one array."""
    scalars = np.load(DATA / "posteriordb" / posterior / "draws.npz")
    elements: dict[str, list[np.ndarray]] = {}
    for name in scalars.files:  # elements of a vector are stored in order
        elements.setdefault(re.sub(r"\[\d+\]$", "", name), []).append(scalars[name])
    return {
        name: np.stack(draws, axis=-1) if f"{name}[1]" in scalars else draws[0]
        for name, draws in elements.items()
    }
