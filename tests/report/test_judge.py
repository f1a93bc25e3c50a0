"""Verdicts and recommendations, from runs made up to have one fault each.

Draws are independent and seeds are fixed. A verdict of exact draws is wrong about once
in a hundred seeds, by all its checks together.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import nutfree as nf
from nutfree import registry
from nutfree.frontends.numpyro import model_target
from nutfree.report.compare import recommendation
from nutfree.report.judge import judge
from nutfree.report.runs import Posterior
from tests.report.runs import bimodal, exact, made

DIM = 10


def gaussian():
    numpyro.sample("x", dist.Normal(0, 1).expand([DIM]).to_event(1))


def two_gaussians():
    means = jnp.array([[-4.0, -4.0], [4.0, 4.0]])
    numpyro.sample(
        "x",
        dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.5, 0.5])),
            dist.MultivariateNormal(means, jnp.eye(2)),
        ),
    )


def two_gaussians_draws(seed, share, chains=4, num=1000):
    rng = np.random.default_rng(seed)
    side = np.where(rng.uniform(size=(chains, num, 1)) < share, -4.0, 4.0)
    return side + rng.normal(size=(chains, num, 2))


@pytest.fixture(scope="module")
def target():
    return Posterior(model_target(bimodal))


@pytest.fixture(scope="module")
def gauss():
    return Posterior(model_target(gaussian))


@pytest.fixture(scope="module")
def two():
    return Posterior(model_target(two_gaussians))


def normal(seed=0, chains=4, num=1000, dim=DIM):
    return np.random.default_rng(seed).normal(size=(chains, num, dim))


def verdict(draws, target, **settings):
    return judge({"run": made(draws, **settings)}, target)["run"]


def test_exact_draws_are_sound_and_say_what_would_have_shown(target):
    found = verdict(exact(0), target)
    assert found.sound
    assert len(found.mode_shares) == 2
    assert found.figures["ess_per_second"] > 1000
    assert str(found).startswith("sound: an error of")
    assert set(found.table["result"]) <= {"fine", "not checked"}
    # a lone run says what it was not compared with
    assert "against another run" in found.not_checked[-1]


@pytest.mark.parametrize(
    ("where", "count"),
    [(np.s_[...], 4000 * DIM), (np.s_[1, 500:], 500 * DIM), (np.s_[2, 7, 3], 1)],
)
@pytest.mark.parametrize(
    "value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)]
)
def test_draws_that_are_not_finite_are_a_problem_and_counted(
    where, count, value, gauss
):
    draws = normal()
    draws[where] = value
    found = verdict(draws, gauss)
    assert not found.sound
    assert f"{count:,} of 'x'" in found.problems[0]
    assert recommendation({"run": found})[0] is None


def test_one_chain_has_no_r_hat_and_is_not_called_sound(gauss):
    found = verdict(normal(chains=1), gauss)
    assert not found.problems
    assert not found.sound
    assert "R-hat" in found.not_checked[0]
    assert str(found).startswith("not checked: R-hat (one chain")
    assert recommendation({"run": found})[0] is None


def test_a_chain_that_never_moves_is_a_problem(gauss):
    draws = normal()
    draws[2] = draws[2, 0]
    assert "never moved: chain 2" in verdict(draws, gauss).problems[0]


def test_a_mode_that_every_chain_misses_is_found_by_a_search(target):
    found = verdict(exact(0, share=1.0), target)
    assert found.figures["r_hat"] < 1.01  # all chains agree, and are wrong
    assert any("that a search finds" in problem for problem in found.problems)


def test_a_mode_that_every_chain_misses_is_seen_by_another_kernel(target):
    runs = {"nuts": made(exact(0, share=1.0)), "good": made(exact(1), seconds=50.0)}
    found = judge(runs, target)
    assert "never visited a mode" in found["nuts"].problems[0]
    assert recommendation(found)[0] == "good"


@pytest.mark.parametrize(
    "share",
    [0.1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.04, 0.2, 0.3))],
)
def test_of_two_runs_that_weigh_a_mode_differently_neither_is_recommended(share, two):
    runs = {
        "wrong": made(two_gaussians_draws(0, share)),
        "right": made(two_gaussians_draws(1, 0.5), seconds=2.0),
    }
    found = judge(runs, two)
    best, sentence = recommendation(found)
    assert best is None
    assert "weighs the modes unlike" in sentence
    assert "more chains" in sentence
    # an independent estimate says which of them is off
    assert any("importance sampling" in p for p in found["wrong"].problems)
    assert not any("importance sampling" in p for p in found["right"].problems)


def test_runs_that_agree_are_both_sound(two):
    runs = {str(s): made(two_gaussians_draws(s, 0.5)) for s in range(2)}
    assert all(found.sound for found in judge(runs, two).values())


def test_a_mode_seen_only_by_an_unsound_run_is_told(target):
    runs = {"nuts": made(exact(0, share=1.0)), "bad": made(exact(1), diverging=400)}
    assert any("bad" in note for note in judge(runs, target)["nuts"].notes)


def test_draws_far_below_the_posterior_are_no_mode(target):
    astray = made(exact(1) + 500.0)
    found = judge({"good": made(exact(0)), "bad": astray}, target)
    assert found["good"].sound
    assert found["bad"].problems


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (made(np.repeat([[8.0], [-8.0]], 400, 1) + exact(0, share=1, chains=2)), "R-"),
        (made(1.5 * exact(0)), "score"),
        (made(exact(0), diverging=100), "diverge"),
        (made(exact(0, num=8)), "too few"),
    ],
)
def test_each_fault_is_named(run, fault, target):
    found = judge({"run": run}, target)
    assert any(fault in problem for problem in found["run"].problems)
    best, sentence = recommendation(found)
    assert best is None
    assert sentence.startswith("No run can be trusted")


def tail_cut(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(9000, DIM))
    return x[np.abs(x[:, 0]) < 2][:4000].reshape(4, 1000, DIM)


@pytest.mark.parametrize(
    "draws",
    [
        normal() * np.where(np.arange(DIM) == 0, 1.2**0.5, 1.0),
        1.2 * normal(num=34),
        tail_cut(),
    ],
    ids=["one variance of ten × 1.2", "136 draws × 1.2", "a tail cut at 2 sd"],
)
def test_wrong_scales_are_seen_with_all_the_draws_there_are(draws, gauss):
    assert any("does not fit the score" in p for p in verdict(draws, gauss).problems)


def test_between_the_limits_draws_are_usable_for_means(gauss):
    found = verdict(normal(num=40), gauss)
    assert found.sound
    assert "usable for means, not for tails" in found.caveats[0]


def step_data():
    rng = np.random.default_rng(4)
    t = np.linspace(0.025, 0.975, 20)
    return t, np.where(t < 0.42, 0.0, 1.1) + 0.7 * rng.normal(size=20)


def changepoint(y):
    tau = numpyro.sample("tau", dist.Uniform(0, 1))
    a, b = (numpyro.sample(name, dist.Normal(0, 2)) for name in "ab")
    level = jnp.where(step_data()[0] < tau, a, b)
    numpyro.sample("y", dist.Normal(level, 0.7).to_event(1), obs=y)


def exact_changepoint(seed, number):
    """Draws by the cells between times: levels are Gaussian given the cell."""
    rng, (t, y) = np.random.default_rng(seed), step_data()
    edges = np.concatenate([[0.0], t, [1.0]])

    def part(values):
        """Log marginal likelihood, mean and sd of a level with these data."""
        precision = 1 / 4 + len(values) / 0.49
        mean = values.sum() / 0.49 / precision
        return (
            0.5 * mean**2 * precision - 0.5 * np.log(precision),
            mean,
            precision**-0.5,
        )

    cells = [(part(y[:k]), part(y[k:])) for k in range(len(t) + 1)]
    log_p = np.log(np.diff(edges)) + [a[0] + b[0] for a, b in cells]
    chosen = rng.choice(
        len(cells), size=number, p=np.exp(log_p - np.logaddexp.reduce(log_p))
    )
    tau = rng.uniform(edges[chosen], edges[chosen + 1])
    level = np.array([[c[0][1:], c[1][1:]] for c in cells])[chosen]
    a, b = (level[:, i, 0] + level[:, i, 1] * rng.normal(size=number) for i in (0, 1))
    return {"tau": tau, "a": a, "b": b}


def test_where_the_density_jumps_score_checks_are_off_and_exact_draws_pass():
    draws = exact_changepoint(0, 4000)
    assert abs(draws["tau"].mean() - 0.4426) < 0.01
    assert abs(np.mean(draws["tau"] < 0.425) - 0.2394) < 0.03
    sites = {k: (("chain", "draw"), v.reshape(4, 1000)) for k, v in draws.items()}
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset(sites)})
    found = nf.check(tree, changepoint, step_data()[1])
    assert not found.problems
    assert any("the log density jumps" in said for said in found.not_checked)


def test_a_run_of_another_sampler_with_a_dropped_mode_is_seen_through():
    right = np.random.default_rng(0).normal(8.0, 1.0, size=(4, 1000))
    tree = xr.DataTree.from_dict(
        {"posterior": xr.Dataset({"x": (("chain", "draw"), right)})}
    )
    found = nf.check(tree, bimodal)
    assert not found.sound
    assert "never visited a mode" in found.problems[0]
    assert any("divergences" in said for said in found.not_checked)


def test_a_run_that_is_not_of_the_model_is_refused_in_words():
    tree = made(exact(0))
    with pytest.raises(nf.InvalidData, match="no group 'posterior'"):
        nf.check(xr.DataTree(), bimodal)
    renamed = tree["posterior"].to_dataset().rename(x="z")
    with pytest.raises(nf.InvalidData, match="latent site 'x'; it has z"):
        nf.check(xr.DataTree.from_dict({"posterior": renamed}), bimodal)
    with pytest.raises(nf.InvalidData, match=r"shape \(4, 400\)"):
        nf.check(tree, gaussian)


def test_a_run_on_a_target_is_judged_by_the_names_in_its_position(gauss):
    target = nf.Target(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": jnp.zeros(2)})
    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    assert nf.check(made(draws), target).sound
    assert nf.check(made(1.5 * draws), target).problems
    nameless = nf.Target(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    with pytest.raises(nf.InvalidData, match="position as a dict"):
        nf.check(made(draws), nameless)


@pytest.mark.parametrize(("seconds", "best"), [(1.05, "nuts"), (10.0, "other")])
def test_nuts_is_named_where_it_is_as_good(seconds, best, target):
    draws = exact(0)
    runs = {"other": made(draws), "nuts": made(draws, seconds=seconds)}
    name, sentence = recommendation(judge(runs, target))
    assert name == best
    assert sentence.startswith(f"{best}: ")


def test_a_run_for_means_only_is_not_named_before_one_for_every_use(target):
    few = made(exact(0, num=60), seconds=0.1)
    verdicts = judge({"few": few, "many": made(exact(1), seconds=10.0)}, target)
    assert verdicts["few"].sound
    assert verdicts["few"].figures["seconds_to_400"] < 10
    name, sentence = recommendation(verdicts)
    assert name == "many"
    assert "few is usable for means, not for tails" in sentence
    # alone it is named, with the same word
    name, sentence = recommendation({"few": verdicts["few"]})
    assert (name, "for means, not for tails" in sentence) == ("few", True)


def test_speed_is_that_of_sampling_and_an_exact_kernel_is_worth_two_biased(target):
    """A kernel that compiles for long beside one that samples for long."""
    compiled = made(exact(0), seconds=50.7, sampling_seconds=31.0)
    sampled = made(exact(1), seconds=45.6, sampling_seconds=15.0)
    found = judge({"clc": compiled, "multiscale": sampled}, target)
    specs = {name: registry.get(name) for name in found}
    assert recommendation(found, specs)[0] == "multiscale"
    figures = found["multiscale"].figures
    ess = figures["ess_bulk"]
    assert figures["ess_per_second"] == pytest.approx(ess / 15.0)
    assert figures["seconds_to_400"] == pytest.approx(30.6 + 400 * 15.0 / ess)
    # a biased kernel that is a third faster does not win
    biased = made(exact(0), seconds=30.0, sampling_seconds=10.0)
    found = judge({"clc": biased, "multiscale": sampled}, target)
    assert recommendation(found, specs)[0] == "multiscale"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        ("mala", {"num_samples": 5000, "num_chains": 2}),
        ("nuts", {"num_samples": 1000, "num_chains": 1}),
    ],
)
def test_a_run_that_stays_in_one_labelling_of_the_galaxies_is_set_aside(
    kernel, settings
):
    from models import galaxies

    found = nf.compare(
        galaxies.model,
        kernels=[kernel],
        progress_bar=False,
        **settings,
        **galaxies.data(),
    )
    assert any("that a search finds" in p for p in found.verdicts[kernel].problems)
    assert found.best is None
