"""A federated run over Flower's messages, in this process.

What a network of processes adds: `test_flower_deployment.py`.
"""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.errors import CheckpointMismatch, InvalidData

pytest.importorskip("flwr")

from nutfree.hosts import archive
from nutfree.hosts.flower import (
    ARRAYS,
    FACTS,
    RUN_CONFIG,
    Nodes,
    _numpy,
    _records,
    client_app,
    simulate,
)
from nutfree.hosts.owner import OwnerSide, Refused
from nutfree.hosts.server import Server
from nutfree.hosts.simulation import InProcess
from nutfree.hosts.wire import Run

#: The row of an owner that has no other, and which its first messages once gave away.
ROW = np.array([1.0, 0.37, -1.9, 42.0], np.float32)


def logistic(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


def linear(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 10))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(y)):
        x, y = numpyro.subsample(x, event_dim=0), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def linear_owners():
    rng = np.random.default_rng(0)
    owners = []
    for centre, size in ((-1.0, 60), (0.5, 40), (2.0, 90)):
        x = rng.normal(centre, 1, size)
        y = 1.3 * x + 0.5 * rng.normal(size=size)
        owners.append({"x": x.astype(np.float32), "y": y.astype(np.float32)})
    return owners


def logistic_owners(num_rows=(80, 100)):
    rng = np.random.default_rng(1)
    owners = []
    for size in num_rows:
        X = np.column_stack([np.ones(size), rng.normal(size=(size, 3))])
        X = X.astype(np.float32) * np.array([1, 1, 1, 10], np.float32)
        y = rng.uniform(size=size) < 1 / (1 + np.exp(-X @ [0.2, 0.5, -0.5, 0.05]))
        owners.append({"X": X, "y": y.astype(int)})
    return [*owners, {"X": ROW[None], "y": np.ones(1, int)}]


def app_of(model, owners):
    return client_app(model, lambda config: owners[int(config["partition-id"])])


def configs(count, **more):
    return [
        {"name": f"hospital {s}", "partition-id": s, "noise-seed": s} | more
        for s in range(count)
    ]


def run(grid, said=lambda text: None, **settings):
    nodes = Nodes(grid, 5.0)
    server = Server(Run(**settings), nodes.post, said)
    return server.sample(nodes.join(1, 5.0))


@cache
def linear_app():
    """One app for all tests, whose programs compile once for each owner."""
    return app_of(linear, linear_owners())


SETTINGS = {"num_samples": 40, "num_chains": 12, "seed": 3}


@cache
def healthy():
    return run(InProcess(linear_app(), configs(3)), **SETTINGS)


def test_draws_are_of_the_pooled_posterior():
    """480 draws, of which a few hundred independent: five errors of .06 sd."""
    tree = healthy()
    owners = linear_owners()
    x, y = (np.concatenate([o[name] for o in owners]) for name in ("x", "y"))
    slope = x @ y / (x @ x)
    residual = np.sqrt(np.mean((y - slope * x) ** 2))
    sd = residual / np.sqrt(x @ x)
    draws = tree["posterior"]["slope"].values
    assert abs(draws.mean() - slope) / sd < 0.3
    np.testing.assert_allclose(draws.std() / sd, 1.0, atol=0.2)
    assert abs(tree["posterior"]["scale"].values.mean() - residual) < 0.02
    attrs = tree["sample_stats"].attrs
    assert attrs["num_messages"] > 2 * 3 * attrs["num_rounds"]
    assert attrs["num_bytes"] > 0
    assert attrs["left_out"] == "{}"
    assert "epsilon" not in attrs


def test_the_same_seed_makes_the_same_draws_and_a_checkpoint_goes_on(tmp_path):
    class Stop(Exception):
        pass

    visits = 0

    def killed(node, request, reply):
        nonlocal visits
        visits += request.content[FACTS]["kind"] == "visit"
        if visits > 3 * 13:
            raise Stop
        return reply

    file = tmp_path / "run.npz"
    grid = InProcess(linear_app(), configs(3), killed)
    with pytest.raises(Stop):
        run(grid, checkpoint=file, **SETTINGS)
    assert file.exists()
    said = []
    grid = InProcess(linear_app(), configs(3))
    tree = run(grid, said.append, checkpoint=file, **SETTINGS)
    assert "Going on from 10 draws" in said[0]
    for name, draws in healthy()["posterior"].items():
        np.testing.assert_array_equal(draws.values, tree["posterior"][name].values)
    with pytest.raises(CheckpointMismatch):
        run(grid, checkpoint=file, **SETTINGS | {"seed": 4})
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-200] + bytes(200), b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointMismatch, match="damaged"):
            run(grid, checkpoint=file, **SETTINGS)
    file.write_bytes(whole)
    arrays = archive.read(file)
    archive.write(file, {k: v for k, v in arrays.items() if k != "factor"})
    with pytest.raises(CheckpointMismatch, match="'factor'"):
        run(grid, checkpoint=file, **SETTINGS)


def spoilt(kind):
    """An owner whose visits come back as no owner in its senses would answer."""

    def intercept(node, request, reply):
        if node != 2 or request.content[FACTS]["kind"] != "visit":
            return reply
        arrays = _numpy(reply, ARRAYS)
        if kind == "late":
            return None
        if kind == "not finite":
            arrays["arrived"] = np.full_like(arrays["arrived"], np.nan)
        elif kind == "another shape":
            arrays["arrived"] = arrays["arrived"][:, :1]
        elif kind == "another type":
            arrays["arrived"] = arrays["arrived"].astype(str)
        elif kind == "far away":
            arrays["arrived"] = arrays["arrived"] + np.float32(1e20)
        reply.content = _records(arrays, {})
        return reply

    return intercept


@pytest.mark.parametrize(
    "kind",
    [
        "late",
        "not finite",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("another shape", "another type", "far away")
        ),
    ],
)
def test_an_owner_that_answers_wrongly_is_left_out_and_named(kind):
    said = []
    grid = InProcess(linear_app(), configs(3), spoilt(kind))
    nodes = Nodes(grid, 0.2)
    settings = {**SETTINGS, "num_samples": 12}
    tree = Server(Run(**settings), nodes.post, said.append).sample(nodes.join(3, 5.0))
    assert list(json.loads(tree["sample_stats"].attrs["left_out"])) == ["hospital 1"]
    assert any("hospital 1" in line for line in said)
    expected = healthy()["posterior"]["slope"].values
    draws = tree["posterior"]["slope"].values
    # its surrogate stands for it: 144 draws, four errors of .1 sd
    assert abs(draws.mean() - expected.mean()) < 0.4 * expected.std()


@pytest.mark.slow
def test_an_absent_owner_is_waited_for_no_longer_and_comes_back():
    grid = InProcess(linear_app(), configs(3))
    rounds = 0

    def leaves(node, request, reply):
        nonlocal rounds
        rounds += node == 1 and request.content[FACTS]["kind"] == "visit"
        grid.absent = {2} if 5 <= rounds < 9 else set()
        return reply

    grid.intercept = leaves
    tree = run(grid, **SETTINGS)
    why = json.loads(tree["sample_stats"].attrs["why_left_out"])
    assert why == {"hospital 1": "it is absent"}
    assert json.loads(tree["sample_stats"].attrs["left_out"])["hospital 1"] < 8


def test_an_owner_that_has_started_anew_is_told_the_setting_again():
    grid = InProcess(linear_app(), configs(3))
    rounds = 0

    def forgets(node, request, reply):
        nonlocal rounds
        rounds += node == 1
        if rounds == 12:
            grid.contexts[2].state.clear()
        return reply

    grid.intercept = forgets
    tree = run(grid, **SETTINGS)
    assert tree["sample_stats"].attrs["left_out"] == "{}"
    for name, draws in healthy()["posterior"].items():
        np.testing.assert_array_equal(draws.values, tree["posterior"][name].values)


def attacked(owners, options, **allows):
    """What the server can make of what the owner of one row has sent: directions."""
    seen, settings = [], {}

    def read(node, request, reply):
        arrays = _numpy(reply, ARRAYS)
        asked = _numpy(request, ARRAYS)
        if node != len(owners):
            return reply
        for array in arrays.values():
            if array.dtype.kind == "f" and array.ndim and array.shape[-1] == len(ROW):
                seen.extend(np.atleast_2d(array))
            if array.shape == (len(ROW), len(ROW)):
                seen.append(np.linalg.eigh(array)[1][:, -1])
        if request.content[FACTS]["kind"] == "visit":
            settings.update({k: v for k, v in asked.items() if "setting." in k})
            if "arrived" in arrays:
                seen.extend(implied_gradients(asked, arrays, settings, request))
                seen.append(np.mean(seen[-len(arrays["arrived"]) :], axis=0))
        return reply

    grid = InProcess(app_of(logistic, owners), configs(len(owners), **allows), read)
    tree = run(grid, num_samples=8, num_chains=4, options=options | {"num_rounds": 1})
    return np.array(seen), tree


def implied_gradients(asked, arrays, settings, request):
    """Take what is public out of a visit of one step; the owner's gradient is left."""
    R, told = settings["setting.factor"], request.content[FACTS]
    h, rho = asked["step_size"], told["shared-noise"]
    key = jax.random.wrap_key_data(jnp.asarray(asked["shared_key"]))
    for i, (x, arrived) in enumerate(zip(asked["ahead"], arrays["arrived"])):
        step = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        noise = np.asarray(jax.random.normal(step, x.shape, x.dtype))
        move = arrived - x - np.sqrt(h) * rho * R @ noise
        v = np.linalg.solve(R @ R.T, move) * 2 / h
        own, pooled = (
            settings[f"setting.{which}_gradient"]
            - settings[f"setting.{which}_precision"]
            @ (x - settings[f"setting.{which}_centre"])
            for which in ("own", "pooled")
        )
        yield (v - pooled) / asked["gain"] + own


def recovers(seen):
    """Whether a direction is the row's, up to the share of the prior, to a tenth."""
    with np.errstate(divide="ignore", invalid="ignore"):
        guesses = seen / seen[:, :1]
    return bool(np.any(np.all(np.abs(guesses / ROW - 1) < 0.1, axis=1)))


@pytest.mark.slow
def test_no_message_of_an_owner_gives_its_row_away():
    """Gradients, curvatures, and steps with all that the server knows taken out."""
    options = {"num_local_steps": 1}
    seen, tree = attacked(logistic_owners(), options)
    assert len(seen) > 30
    assert not recovers(seen)
    assert "exact gradient" in tree["sample_stats"].attrs["why_left_out"]


@pytest.mark.slow
def test_the_attack_works_where_an_owner_allows_it():
    exact = {"num_local_steps": 1, "shared_noise": 1.0}
    seen, _ = attacked(logistic_owners(), exact, **{"allow-exact": True})
    assert recovers(seen)


def test_with_noise_that_all_share_an_owner_of_one_row_takes_no_step():
    side = OwnerSide(
        logistic, logistic_owners()[-1], {"name": "few"}, {"facts": {}, "setting": {}}
    )
    with pytest.raises(Refused, match="1 rows"):
        side.answer("expand", {"centre": np.zeros(4, np.float32)}, {"num-owners": 3})
    zeros, ones = np.zeros((2, 4), np.float32), np.ones((), np.float32)
    asked = {
        "position": zeros,
        "ahead": zeros,
        "setting.factor": np.eye(4, dtype=np.float32),
        **{n: ones for n in ("step_size", "gain", "weight")},
    }
    told = {"num-local-steps": 1, "shared-noise": 1.0, "batch-size": 0, "num-owners": 3}
    with pytest.raises(Refused, match="1 rows"):
        side.answer("visit", asked, told)


@pytest.mark.slow
def test_clipped_runs_say_their_epsilon_and_owners_keep_to_theirs():
    pytest.importorskip("dp_accounting")
    options = {
        "clip": 5.0,
        "shared_noise": 0.0,
        "num_local_steps": 1,
        "step_size": 0.1,
        "num_rounds": 1,
    }
    app = app_of(logistic, logistic_owners()[:2])
    tree = run(InProcess(app, configs(2)), num_samples=3, num_chains=1, options=options)
    attrs = tree["sample_stats"].attrs
    assert 0 < attrs["epsilon"] < 20
    assert attrs["delta"] == 1e-5
    said = []
    grid = InProcess(app, configs(2, **{"max-epsilon": attrs["epsilon"] * 0.7}))
    with pytest.raises(InvalidData, match="epsilon"):
        run(grid, said.append, num_samples=3, num_chains=1, options=options | {
            "noise_multiplier": 0.5})  # fmt: skip
    # and an owner with a budget refuses a run that does not clip
    with pytest.raises(InvalidData, match="does not clip"):
        run(grid, said.append, num_samples=3, num_chains=1)


@pytest.mark.slow
def test_owners_whose_rows_are_on_disk_have_the_pooled_posterior(tmp_path):
    """As in memory: messages of 400 draws, about 200 independent, five errors."""
    owners = []
    for s, owner in enumerate(linear_owners()):
        # rows enough for windows, sorted, so that neighbours are alike
        many = {k: np.tile(v, 40)[np.argsort(np.tile(owner["x"], 40))]
                for k, v in owner.items()}  # fmt: skip
        for name, array in many.items():
            np.save(tmp_path / f"{name}{s}.npy", array)
        files = {name: tmp_path / f"{name}{s}.npy" for name in many}
        owners.append(nf.rows(**files, window_rows=800, block_rows=8))
    memory = [
        {name: np.load(tmp_path / f"{name}{s}.npy") for name in owner}
        for s, owner in enumerate(owners)
    ]
    told = {"num-owners": 3}
    centre = {"centre": np.asarray([0.1, 1.2], np.float32), "key": np.zeros(2, "u4")}
    answers = [
        OwnerSide(linear, data, {}, {"facts": {}, "setting": {}}).answer(
            "expand", centre, told
        )[0]
        for data in (owners[0], memory[0])
    ]
    for name, array in answers[1].items():
        np.testing.assert_allclose(answers[0][name], array, rtol=1e-4)
    x, y = (np.concatenate([o[name] for o in memory]) for name in ("x", "y"))
    slope = x @ y / (x @ x)
    sd = np.sqrt(np.mean((y - slope * x) ** 2) / (x @ x))
    options = {"batch_size": 40}
    app = app_of(linear, owners)
    tree = run(InProcess(app, configs(3)), **SETTINGS, options=options)
    draws = tree["posterior"]["slope"].values
    assert abs(draws.mean() - slope) / sd < 0.35
    np.testing.assert_allclose(draws.std() / sd, 1.0, atol=0.25)
    assert tree["sample_stats"].attrs["left_out"] == "{}"
    # batches that would use up a window are refused by name, as is clipping
    for bad, why in (
        ({"batch_size": 80}, "window_rows=1600"),
        ({"clip": 2.0, "shared_noise": 0.0}, "on disk"),
    ):
        with pytest.raises(InvalidData, match=why):
            run(InProcess(app, configs(3)), **SETTINGS, options=bad)


def test_a_huge_covariate_never_leaves_its_owner():
    owner = linear_owners()[1]
    owner["x"][3] = 1e20
    side = OwnerSide(linear, owner, {}, {"facts": {}, "setting": {}})
    with pytest.raises(InvalidData, match=r"'x' has a value of 1e\+20"):
        side.answer("describe", {}, {})


def test_simulate_takes_a_federated_model_and_refuses_an_owner_without_rows():
    empty = {"x": np.zeros(0, np.float32), "y": np.zeros(0, np.float32)}
    with pytest.raises(InvalidData, match="Owner 3 has no rows"):
        simulate(nf.federated(linear), [*linear_owners(), empty])
    assert set(RUN_CONFIG) >= {"kernel", "num-samples", "checkpoint"}
