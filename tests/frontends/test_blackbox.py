"""Black boxes: values, batches, errors that are counted, values that are kept."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree import registry
from nutfree.hosts import chain


def potential(position):
    """Refuses what NumPy functions refuse: a tracer."""
    return -0.5 * float(np.sum(np.asarray(position["x"]) ** 2)) + float(position["y"])


def stacked(n):
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return {"x": jnp.asarray(x), "y": jnp.arange(n, dtype=jnp.float32)}


@pytest.mark.parametrize("one_cpu", [True, False])
def test_values_under_jit_and_vmap_are_the_functions(one_cpu, monkeypatch):
    monkeypatch.setattr("nutfree.frontends.blackbox._is_one_cpu", lambda: one_cpu)
    kept = []

    def keeps(position):
        kept.append(position)
        return potential(position)

    box = nf.blackbox(keeps)
    positions = stacked(5)
    found = jax.jit(jax.vmap(box))(positions)
    rows = [jax.tree.map(lambda a, i=i: a[i], positions) for i in range(5)]
    np.testing.assert_allclose(found, [potential(row) for row in rows])
    assert box.num_calls == 5
    # what the function keeps is its own, and no buffer that is written to again
    np.testing.assert_array_equal([p["x"] for p in kept], positions["x"])
    # a leaf that is shared by the batch
    shared = jax.vmap(lambda y: box({"x": jnp.ones(2), "y": y}))(positions["y"])
    np.testing.assert_allclose(shared, np.arange(5) - 1.0)


def test_a_batch_is_handed_over_in_parts():
    sizes = []

    def several(position):
        sizes.append(len(position["y"]))
        return -0.5 * np.sum(position["x"] ** 2, axis=1) + position["y"]

    positions = stacked(5)
    one_by_one = jax.vmap(nf.blackbox(potential))(positions)
    together = jax.vmap(nf.blackbox(several, batch=2))(positions)
    np.testing.assert_allclose(together, one_by_one)
    assert sorted(sizes) == [1, 2, 2]


def test_exceptions_are_counted_and_the_others_have_their_values():
    def fails(position):
        if position["y"] == 2:
            raise RuntimeError("no convergence")
        return potential(position)

    box = nf.blackbox(fails)
    with pytest.warns(UserWarning, match="no convergence"):
        found = np.asarray(jax.vmap(box)(stacked(4)))
    assert list(np.isnan(found)) == [False, False, True, False]
    assert (box.num_calls, box.num_errors) == (4, 1)
    with pytest.raises(Exception, match="no convergence"):
        jax.block_until_ready(
            jax.vmap(nf.blackbox(fails, on_error="raise"))(stacked(4))
        )


def test_eight_chains_call_side_by_side():
    """All eight wait until eight have begun; one after the other they would never."""
    together = threading.Barrier(8, timeout=60)

    def waits(position):
        together.wait()
        return -0.5 * float(np.sum(position**2))

    walk = chain.algorithm(registry.get("blackjax.rmh"), {})
    with ThreadPoolExecutor(8) as executor:
        box = nf.blackbox(waits, executor=executor)

        @jax.jit
        @jax.vmap
        def draws(key, start):
            def step(state, key):
                return walk.kernel(key, state, box, step_size=0.5)[0], None

            begun = walk.init(start, box, key)
            return jax.lax.scan(step, begun, jax.random.split(key, 5))[0]

        keys = jax.random.split(jax.random.key(0), 8)
        end = draws(keys, jnp.arange(16.0).reshape(8, 2))
        assert np.all(np.isfinite(end.logdensity))
    # where each starts, and five proposals
    assert box.num_calls == 48


def test_a_function_that_raises_does_so_before_anything_is_compiled():
    """And not in a program, which has errors of its own."""

    def fails(position):
        raise RuntimeError("no convergence")

    box = nf.blackbox(fails, on_error="raise")
    # added to another density, and of the first of two chains
    for kernel in (
        nf.kernel("ensemble", potential_fn=lambda x: jnp.sum(x**2) + box(x)),
        nf.kernel("ensemble", nf.Target(box)),
    ):
        with pytest.raises(RuntimeError, match=r"^no convergence$"):
            nf.sample(kernel, num_chains=2, init_params=np.ones((2, 3)))
    assert box.num_calls == 2


@pytest.mark.slow
def test_calls_run_on_dask(tmp_path):
    """Workers are processes of their own, with nothing of this one but the function."""
    distributed = pytest.importorskip("distributed")

    def where(position):
        import os

        (tmp_path / str(os.getpid())).touch()
        return -0.5 * float(position["y"]) ** 2

    with distributed.Client(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as client:
        box = nf.blackbox(where, executor=client.get_executor())
        found = jax.jit(jax.vmap(box))({"y": jnp.arange(16.0)})
    np.testing.assert_allclose(found, -0.5 * np.arange(16.0) ** 2)
    import os

    workers = {path.name for path in tmp_path.iterdir()}
    assert workers
    assert str(os.getpid()) not in workers
    assert box.num_calls == 16


def test_known_values_are_not_computed_again_by_a_later_process(tmp_path):
    positions = stacked(6)
    first = nf.blackbox(potential, cache=tmp_path / "known")
    values = jax.vmap(first)(positions)
    later = nf.blackbox(potential, cache=tmp_path / "known")
    np.testing.assert_array_equal(jax.vmap(later)(positions), values)
    assert (first.num_calls, later.num_calls, later.num_cached) == (6, 0, 6)


def test_what_cannot_be_is_refused_with_what_to_write():
    for wrong, said in (
        ({"batch": 0}, "at least 1"),
        ({"on_error": "ignore"}, "reject"),
        ({"executor": 8}, "ThreadPoolExecutor"),
    ):
        with pytest.raises(nf.InvalidOption, match=said):
            nf.blackbox(potential, **wrong)
    with pytest.raises(nf.InvalidOption, match="function"):
        nf.blackbox(3)


SMALL = {"num_pilot_draws": 128, "max_pilot_rounds": 8, "num_components": 2}


@pytest.mark.slow
def test_a_density_that_raises_gives_the_truncated_posterior():
    """N(0, 1) without x > 1.6449, a twentieth of it: mean -.1086; three errors."""

    def fails(position):
        if position > 1.6448536:
            raise RuntimeError("no convergence")
        return 0.5 * float(position) ** 2

    box = nf.blackbox(fails)
    with pytest.warns(UserWarning, match="no convergence"):
        tree = nf.sample(
            nf.kernel("ensemble", potential_fn=box, **SMALL),
            num_warmup=50,
            num_samples=3000,
            init_params=jnp.zeros(4),
            progress_bar=False,
        )
    x = tree["posterior"]["x"].values
    truth = -np.exp(-0.5 * 1.6448536**2) / np.sqrt(2 * np.pi) / 0.95
    from arviz_stats.base import array_stats

    error = x.std() / np.sqrt(array_stats.ess(x, method="mean"))
    assert x.max() < 1.6449
    assert abs(x.mean() - truth) < 3 * error
    assert tree["sample_stats"]["num_not_finite"].sum() > 0
    assert box.num_errors > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "blackjax.rmh"])
def test_a_model_with_a_black_box_inside_is_sampled(name):
    box = nf.blackbox(lambda position: -0.5 * float((position["mu"] - 1.0) ** 2) / 0.04)

    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        numpyro.factor("data", box({"mu": mu}))

    options = SMALL if name == "ensemble" else {}
    tree = nf.sample(
        nf.kernel(name, model, **options),
        num_warmup=300,
        num_samples=1000,
        progress_bar=False,
    )
    mu = tree["posterior"]["mu"].values
    assert abs(mu.mean() - 1.0) < 0.05
    assert abs(mu.std() / 0.2 - 1) < 0.15
