"""`sample` makes NumPyro's draws, and loses none of them to an interrupt."""

from functools import cache

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import AIES, MCMC, NUTS, BarkerMH

import nutfree as nf
from nutfree.hosts import progress as host
from nutfree.hosts import underway
from nutfree.hosts.pieces import PiecewiseMCMC
from tests.targets import regression, regression_data

pytestmark = pytest.mark.usefixtures("toys")
DATA = regression_data()


@pytest.fixture(autouse=True)
def _pieces_of_a_twentieth(monkeypatch):
    """How long a piece is must not depend on the clock here."""
    monkeypatch.setattr(underway, "PIECE_SECONDS", float("inf"))


def draws_by(runner, kernel, method):
    with jax.enable_x64(True):  # rounding grows from one transition to the next
        data = {key: np.asarray(value, float) for key, value in DATA.items()}
        mcmc = runner(
            kernel,
            num_warmup=25,
            num_samples=23,
            num_chains=2,
            thinning=2,
            chain_method=method,
            progress_bar=False,
        )
        mcmc.run(jax.random.key(3), **data)
        return mcmc.get_samples(group_by_chain=True)


@pytest.fixture(scope="module")
def mcmc_draws(toys):
    """By kernel. Of one chain method: `test_whole_runs.py` shows that all agree."""

    def made(name):
        return draws_by(
            MCMC, named(name), "sequential" if name == "barker" else "vectorized"
        )

    return cache(made)


def named(name):
    return BarkerMH(regression) if name == "barker" else nf.kernel(name, regression)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("toy", "sequential"),
        ("toy", "parallel"),
        ("toy", "vectorized"),
        pytest.param("barker", "sequential", marks=pytest.mark.slow),
        pytest.param("nuts", "vectorized", marks=pytest.mark.slow),
        pytest.param("nuts", "sequential", marks=pytest.mark.slow),
        pytest.param("nuts", "parallel", marks=pytest.mark.slow),
    ],
)
def test_draws_are_those_of_numpyros_mcmc(name, method, mcmc_draws):
    expected, found = mcmc_draws(name), draws_by(PiecewiseMCMC, named(name), method)
    assert expected["beta"].shape == found["beta"].shape == (2, 11, 2)
    for site in expected:
        np.testing.assert_allclose(found[site], expected[site], atol=1e-5)


def sampled(**settings):
    """Draws of y, by an independent kernel, `(chains, draws)`."""
    settings = {"num_warmup": 8, "num_samples": 12, "num_chains": 4} | settings
    name = settings.pop("name", "toy.independent")
    kernel = nf.kernel(name, potential_fn=lambda x: 0.5 * x**2)
    with jax.enable_x64(True):
        tree = nf.sample(
            kernel, init_params=np.zeros(4), progress_bar=False, **settings
        )
    return tree["posterior"]["x"].values, tree


def test_parallel_chains_are_spread_over_the_devices_evenly():
    assert jax.local_device_count() == 2
    draws, _ = sampled(chain_method="parallel")
    alone, _ = sampled(chain_method="vectorized")
    np.testing.assert_allclose(draws, alone, rtol=1e-8)


def test_draws_are_made_side_by_side_and_kept_in_order(tmp_path):
    draws, tree = sampled(draws_at_once=3)
    assert draws.shape == (4, 12)
    # each with random numbers of its own
    assert len(np.unique(draws)) == draws.size
    # and each counted once, after a warm-up that is that of the four chains
    _, alone = sampled()
    stats, others = tree["sample_stats"], alone["sample_stats"]
    assert stats["num_grad_evals"].shape == (4, 12)
    assert stats.attrs["num_grad_evals"] == others.attrs["num_grad_evals"]
    shapes = [{k: np.shape(v) for k, v in s.attrs.items()} for s in (stats, others)]
    assert shapes[0] == shapes[1]
    # a run that goes on makes the same ones, also over two devices
    folder = tmp_path / "run"
    settings = {"draws_at_once": 3, "checkpoint": folder, "chain_method": "parallel"}
    sampled(num_samples=6, **settings)
    longer, _ = sampled(**settings)
    np.testing.assert_allclose(longer, draws, rtol=1e-8)


def test_a_device_that_is_no_cpu_makes_independent_draws_side_by_side(monkeypatch):
    asked, _ = sampled(draws_at_once=12)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    chosen, _ = sampled()
    np.testing.assert_allclose(chosen, asked, rtol=1e-8)
    chain, _ = sampled(name="toy")
    monkeypatch.undo()
    np.testing.assert_array_equal(chain, sampled(name="toy")[0])


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"draws_at_once": 5}, "ask for 15"),
        ({"draws_at_once": 0}, "at least 1"),
        ({"draws_at_once": 3, "name": "toy"}, "num_chains"),
        ({"draws_at_once": 3, "chain_method": "sequential"}, "one draw at a time"),
    ],
)
def test_draws_at_once_that_cannot_be_are_refused(settings, hint):
    with pytest.raises(nf.InvalidOption, match=hint):
        sampled(**settings)


@pytest.mark.slow
def test_one_program_makes_the_whole_run(monkeypatch):
    traced = []
    kernel = nf.kernel("toy", regression)
    original = kernel.sample
    monkeypatch.setattr(
        kernel, "sample", lambda *args: (traced.append(None), original(*args))[1]
    )
    mcmc = PiecewiseMCMC(
        kernel,
        num_warmup=50,
        num_samples=101,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), **DATA)
    # once for the shapes of what is collected at most, and once for the program
    assert len(traced) <= 2


class _Interrupting(host.tqdm):
    """A progress bar at which somebody presses Ctrl-C after a number of updates."""

    after = 0

    def update(self, n=1):
        super().update(n)
        type(self).after -= 1
        if type(self).after == 0:
            raise KeyboardInterrupt


def _interrupted(monkeypatch, after):
    monkeypatch.setattr(_Interrupting, "after", after)
    monkeypatch.setattr(host, "tqdm", _Interrupting)
    return nf.sample(
        nf.kernel("toy", regression),
        **DATA,
        num_warmup=100,
        num_samples=100,
        num_chains=2,
        progress_bar=False,
    )


def test_a_log_file_tells_how_the_draws_are_so_far(monkeypatch, capsys):
    # where NumPyro shows no progress
    for name in ("CI", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "LINE_SECONDS", -1.0)
    settings = {"num_warmup": 25, "num_samples": 60, "num_chains": 2}
    nf.sample(nf.kernel("toy", regression), **DATA, **settings)
    lines = capsys.readouterr().err.splitlines()
    phases = ("start and pilot", "compile", "warm-up", "draws", "judging")
    assert all(any(f"nutfree: {phase}," in line for line in lines) for phase in phases)
    found = [line for line in lines if "of 85 transitions" in line and "ESS" in line]
    for word in ("step size", "divergences", "R-hat"):
        assert word in found[-1]


def test_a_notebook_has_a_table_of_how_the_draws_are_so_far(monkeypatch):
    shown = []

    class Handle:
        update = staticmethod(shown.append)

    def display(table, display_id):
        shown.append(table)
        return Handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(host, "_in_notebook", lambda: True)
    monkeypatch.setattr(host, "LOOK_SECONDS", -1.0)
    bar = host.Progress(30, shown=True)
    bar.phase("draws")
    for ess in ("12", "25"):
        bar.update(10, lambda ess=ess: {"step size": "0.5", "ESS": ess})
    bar.close()
    names = [column.header for column in shown[-1].columns]
    assert names == ["phase", "transitions", "step size", "ESS"]
    html = shown[-1]._repr_mimebundle_([], [])["text/html"]
    assert len(shown) == 2
    assert all(text in html for text in ("draws", "20", "0.5", "25"))


def test_an_interrupt_keeps_the_draws_made_so_far(monkeypatch):
    with pytest.warns(UserWarning, match="35 of 100 draws"):
        tree = _interrupted(monkeypatch, after=20 + 7)
    assert tree["posterior"].sizes["draw"] == 35
    assert bool(tree["sample_stats"].attrs["interrupted"])


def test_an_interrupt_before_the_first_draw_is_an_interrupt(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        _interrupted(monkeypatch, after=3)


def test_tree_has_the_draws_and_what_they_cost():
    tree = nf.sample(
        nf.kernel("toy", regression),
        **DATA,
        num_warmup=30,
        num_samples=40,
        num_chains=2,
        progress_bar=False,
    )
    assert tree["posterior"]["beta"].shape == (2, 40, 2)
    attrs = tree["sample_stats"].attrs
    assert attrs["kernel"] == "toy"
    # of two chains: what their pilots spent, and 70 transitions
    assert attrs["num_grad_evals"] == 2 * 2
    assert attrs["num_density_evals"] == 2 * (3 + 70)
    assert attrs["seconds"] > 0


def test_the_first_argument_must_be_a_kernel():
    def model(x):
        """What a call of it returns is no model."""

    with pytest.raises(nf.InvalidOption, match="not what a call of it returns"):
        nf.sample(nf.kernel("toy", model(3.0)), 3.0)
    with pytest.raises(nf.InvalidOption, match="pass a kernel, such as"):
        nf.sample(regression, **DATA)


def test_an_ensemble_of_numpyros_own_is_sampled_too():
    """Its state has no field besides the draws, and its chains run together."""
    settings = {"num_warmup": 5, "num_samples": 6, "num_chains": 8}
    tree = nf.sample(AIES(regression), **DATA, **settings, progress_bar=False)
    assert tree["posterior"]["beta"].shape == (8, 6, 2)
    assert np.all(tree["posterior"]["sigma"] > 0)


@pytest.mark.slow
def test_draws_of_numpyros_own_nuts_follow_bounds_that_depend_on_another_site():
    """Inside of `to_event`, where NumPyro keeps the bounds of the start."""

    def model():
        top = numpyro.sample("top", dist.LogNormal(1.0, 0.5))
        x = numpyro.sample("x", dist.Uniform(0.0, top).expand([3]).to_event(1))
        numpyro.deterministic("share", x / top)

    settings = {"num_warmup": 50, "num_samples": 200, "progress_bar": False}
    tree = nf.sample(NUTS(model), num_chains=2, **settings)
    share = tree["posterior"]["share"].values
    # uniform, so that its errors are .29 over the root of 100 effective draws
    assert 0 < share.min() < share.max() < 1
    assert abs(share.mean() - 0.5) < 5 * 0.29 / 10
    assert share.max() > 0.9
