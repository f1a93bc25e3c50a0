"""Chains on posteriors over many rows: ours, NumPyro's, BlackJAX's and SGMCMCJax's.

Each is compiled before it is timed. A contender returns draws, the passes spent before
the first one, and those of each draw. What a peer leaves to its user is chosen for it:
HMCECS is given the mode, at no cost. SGMCMCJax, which has no preconditioner and no
warm-up, goes to the mode as our kernels do, at that cost, and takes the step size that
their rule gives for the coordinate of the least variance. BlackJAX's SGLD is tuned by
our wrapper.

SGMCMCJax is run where `sgmcmcjax` can be imported, for which
`pip install --no-deps sgmcmcjax tqdm` is enough. Its progress bar asks for a module
that JAX no longer has, and is given an empty one.
"""

import importlib.util
import sys
import types
from collections.abc import Callable

import jax
import jax.experimental
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer import HMCECS, MCMC, NUTS

import nutfree as nf
from benchmarks.overhead import compiled, in_mcmc
from benchmarks.rows import Problem
from nutfree.minibatch.gradients import (
    Control,
    control_at,
    control_variate,
    default_batch_size,
    flat_minibatch,
)
from nutfree.minibatch.mode import laplace_of_rows
from nutfree.minibatch.sampling import draw_rows
from nutfree.numerics.langevin import step_for_inflation
from nutfree.numerics.preconditioning import matvec, root

type Chain = Callable[[], tuple]
MAX_INFLATION = 0.05


def kernel_chain(problem: Problem, name: str, schedule, **options) -> Chain:
    """One of nutfree's kernels, or NUTS, in NumPyro's MCMC."""
    num_warmup, num_draws, thinning = schedule

    def run(rng_key):
        warm_key, draw_key = jax.random.split(rng_key)
        mcmc = MCMC(
            nf.kernel(name, problem.model, **options),
            num_warmup=num_warmup * thinning,
            num_samples=num_draws * thinning,
            thinning=thinning,
            progress_bar=False,
        )
        fields = ("num_steps",)
        mcmc.warmup(warm_key, extra_fields=fields, collect_warmup=True, **problem.data)
        before = thinning * mcmc.get_extra_fields()["num_steps"].sum()
        # ours counts its pilot too
        before = getattr(mcmc.last_state, "total_grad_evals", before)
        mcmc.run(draw_key, extra_fields=fields, **problem.data)
        return mcmc.get_samples(), before, thinning * mcmc.get_extra_fields()[fields[0]]

    program = jax.jit(run).lower(jax.random.key(0)).compile()
    return lambda: program(jax.random.key(1))


def mode_of(problem: Problem):
    """Mode and covariance, `(x, unravel, covariance, minibatch)`."""
    target = problem.target
    x, unravel = ravel_pytree(target.position)
    minibatch = flat_minibatch(target.minibatch, unravel)
    found, _ = jax.jit(lambda x: laplace_of_rows(jax.random.key(0), minibatch, x, 0.0))(
        x
    )
    return found, unravel, minibatch


def hmcecs(problem: Problem, schedule) -> Chain:
    """HMCECS of NUTS, with a second-order Taylor proxy at the mode; a leapfrog step
    counts the batch, and what the proxy costs is not counted."""
    num_warmup, num_draws, _ = schedule
    found, unravel, minibatch = mode_of(problem)
    size = default_batch_size(minibatch.num_data, found.centre.size)
    mode = problem.target.constrain(unravel(found.centre))
    data = problem.data | {"batch_size": size}

    def run(rng_key):
        # with fewer draws that change rows, it would have to find the step size again
        inner = NUTS(problem.model, dense_mass=True)
        kernel = HMCECS(inner, num_blocks=20, proxy=HMCECS.taylor_proxy(mode))
        mcmc = MCMC(
            kernel, num_warmup=num_warmup, num_samples=num_draws, progress_bar=False
        )
        fields = ("hmc_state.num_steps",)
        warm_key, draw_key = jax.random.split(rng_key)
        start = {k: v for k, v in unravel(found.centre).items()}
        mcmc.warmup(
            warm_key,
            extra_fields=fields,
            collect_warmup=True,
            init_params=start,
            **data,
        )
        share = size / minibatch.num_data
        before = share * mcmc.get_extra_fields()[fields[0]].sum()
        mcmc.run(draw_key, extra_fields=fields, **data)
        each = share * mcmc.get_extra_fields()[fields[0]]
        samples = mcmc.get_samples()
        return {k: samples[k] for k in mode}, before, each

    program = jax.jit(run).lower(jax.random.key(0)).compile()
    return lambda: program(jax.random.key(1))


def _sgmcmcjax():
    if importlib.util.find_spec("sgmcmcjax") is None:
        return None
    name = "jax.experimental.host_callback"
    if name not in sys.modules:
        sys.modules[name] = module = types.ModuleType(name)
        jax.experimental.host_callback = module
    from sgmcmcjax import kernels

    return kernels


def sgmcmcjax(problem: Problem, schedule) -> Chain | None:
    """SGMCMCJax's SGLD with control variates; None where it is not installed."""
    kernels = _sgmcmcjax()
    if kernels is None:
        return None
    _, num_draws, thinning = schedule
    target = problem.target
    x, unravel = ravel_pytree(target.position)
    minibatch = flat_minibatch(target.minibatch, unravel)
    size = default_batch_size(minibatch.num_data, x.size)
    step = step_for_inflation(MAX_INFLATION, x.size / size, 1.0)

    def run(rng_key):
        mode_key, start_key, rng_key = jax.random.split(rng_key, 3)
        found, count = laplace_of_rows(mode_key, minibatch, x, jnp.zeros(()))
        # x + dt g + sqrt(2 dt) xi
        least = jnp.min(jnp.linalg.eigvalsh(found.covariance))
        init, move, get = kernels.build_sgldCV_kernel(
            0.5 * step * least,
            lambda x, row: minibatch.terms(x, row[None])[1][0],
            lambda x: minibatch.terms(x, jnp.zeros(2, int))[0],
            (jnp.arange(minibatch.num_data),),
            size,
            found.centre,
        )

        def draw(state, key):
            def one(i, state):
                return move(i, jax.random.fold_in(key, i), state)

            state = jax.lax.fori_loop(0, thinning, one, state)
            return state, target.constrain(unravel(get(state)))

        state = init(start_key, found.centre)
        keys = jax.random.split(rng_key, num_draws)
        samples = jax.lax.scan(draw, state, keys)[1]
        each = jnp.full(num_draws, 2 * size * thinning / minibatch.num_data)
        # the gradient at the centre
        return samples, count + 1, each

    program = jax.jit(run).lower(jax.random.key(0)).compile()
    return lambda: program(jax.random.key(1))


def per_step(problem: Problem, num_steps: int = 100) -> dict[str, Callable]:
    """Our SGLD in NumPyro's MCMC, and a bare scan of the same steps: the gradient from
    `size` rows at the position and the centre, a product with the preconditioner, and
    noise. `run(n)` makes n draws of `num_steps` steps."""
    found, _, minibatch = mode_of(problem)
    size = default_batch_size(minibatch.num_data, found.centre.size)
    control, _ = jax.jit(lambda x: control_at(minibatch, x, 0.0))(found.centre)
    h = 0.1
    factor = root(found.covariance)
    x0 = found.centre

    def step(x, key):
        row_key, noise_key = jax.random.split(key)
        rows = draw_rows(row_key, minibatch.num_data, size)
        g, _ = control_variate(minibatch, rows, x, Control(*control), 0.0)
        noise = jax.random.normal(noise_key, x.shape)
        drift = 0.5 * h * matvec(factor.T, g)
        return x + matvec(factor, drift + jnp.sqrt(h) * noise), None

    def chain(length):
        def draw(x, key):
            x, _ = jax.lax.scan(step, x, jax.random.split(key, num_steps))
            return x, x

        return lambda key: jax.lax.scan(draw, x0, jax.random.split(key, length))

    options = {"step_size": h, "num_steps": num_steps, "batch_size": size}
    return {
        "nf.sgld": in_mcmc("sgld", problem.model, problem.data, **options),
        "bare scan": compiled(chain),
    }
