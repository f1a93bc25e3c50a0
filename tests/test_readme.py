"""The first example of the README runs as it is pasted."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_visits_both_labellings():
    """Each has half of the mass; five errors of an effective sample of 100 draws."""
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(compile(block, str(README), "exec"), names)
    means = names["tree"]["posterior"]["means"].values
    assert means.shape == (1, 500, 2)
    assert abs(np.mean(means[..., 0] < means[..., 1]) - 0.5) < 5 * 0.5 / np.sqrt(100)
