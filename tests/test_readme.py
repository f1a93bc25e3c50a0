"""Every Python block of the README and of the documentation runs as it is pasted."""

import re
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.M)


def run(page: Path, texts: list[str]) -> dict:
    """Execute the blocks of a page, one after the other, as one reader would."""
    names: dict = {"__name__": "a_page"}
    for number, text in enumerate(texts):
        exec(compile(text, f"{page.name}, block {number}", "exec"), names)
    return names


def right_share() -> float:
    """The posterior probability that the README's ship is above its beacons."""
    y, x = np.meshgrid(np.linspace(-5, 5, 1001), np.linspace(-5, 5, 1001))
    log = -0.5 * (x**2 + (y - 1) ** 2) / 4
    for beacon, distance in ((-1, 1.9), (1, 1.3)):
        log -= 0.5 * ((np.hypot(x - beacon, y) - distance) / 0.15) ** 2
    mass = np.exp(log)
    return mass[y > 0].sum() / mass.sum()


def test_the_first_example_weighs_both_places_rightly():
    """Five errors of an effective sample of 100 draws."""
    tree = run(README, blocks(README)[:1])["tree"]
    ship = tree["posterior"]["ship"].values
    assert ship.shape == (1, 500, 2)
    assert abs(np.mean(ship[..., 1] > 0) - right_share()) < 5 * 0.5 / np.sqrt(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT).with_suffix(""))
)
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = run(page, blocks(page))
    if page == README:
        assert names["found"].best == "multiscale"
        assert not names["found"].verdicts["nuts"].sound
    if "tree" in names:
        posterior = names["tree"]["posterior"].to_dataset()
        assert all(jnp.isfinite(v.values).all() for v in posterior.values())


def test_the_readme_has_what_its_links_name():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            made = link.startswith(("http", "#", "kernels/", "../kernels/"))
            if made or link.endswith("contributing.md"):
                continue  # the documentation's build has these, and checks them
            assert (page.parent / link.split("#")[0]).exists(), (page.name, link)


def test_one_screen_stands_before_the_first_code():
    before = README.read_text().split("```")[0]
    assert len(before.splitlines()) <= 24
