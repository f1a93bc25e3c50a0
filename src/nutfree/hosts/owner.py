"""An owner's side of a federated run, whatever carries the messages.

An owner answers what a server asks, arrays by name for arrays by name. What each kind
of message holds:

    describe   nothing       ->  shapes of latent sites, number of rows, a name
    expand     a centre      ->  log density, gradient and curvature there
    measure    some points   ->  gradients there
    visit      chains, step  ->  where they have arrived
    constrain  draws         ->  the same on the model's own scale

No row is in any of them. An owner with fewer than 10 rows per coordinate refuses
`expand` and `measure`, unless its own settings say `allow-exact` or rows are clipped,
and an owner with `max-epsilon` refuses what would spend more.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.util import constrain_fn, potential_energy

from nutfree.errors import InvalidData, NutfreeError
from nutfree.frontends.handlers import full_data, prior_only
from nutfree.frontends.numpyro import analyse, owner_target
from nutfree.frontends.starts import at_random
from nutfree.hosts.owner_disk import on_disk
from nutfree.hosts.stream import loaded
from nutfree.kernels.federated.federation import (
    Chain,
    Setting,
    Surrogate,
    Visit,
    expand,
    visit,
)
from nutfree.kernels.federated.owners import Owner
from nutfree.kernels.federated.privacy import (
    Ledger,
    Privacy,
    private_expansion,
    step_multiplier,
)
from nutfree.kernels.federated.rounds import Scheme, estimator
from nutfree.kernels.federated.warmup import ROWS_PER_COORDINATE
from nutfree.numerics.programs import full_precision, jitted

Arrays = dict[str, np.ndarray]
#: What an owner says that has forgotten the run's setting, or never had it.
NO_SETTING = "no setting"
#: Of an owner that does not say what it allows at which delta.
DELTA = 1e-5


class Refused(NutfreeError):
    """An owner does not answer, and says why."""


class OwnerSide:
    """One owner, its model and its data.

    Args:
        model: a NumPyro model of one owner's data.
        data: its arguments, a dict or a tuple.
        allows: what this owner allows: `name`, `allow-exact`, `max-epsilon`, `delta`,
            and `noise-seed`, of its own noise, which is from the operating system
            without it.
        memory: what the owner remembers from message to message, kept by the caller:
            strings and numbers in `facts`, arrays in `setting`.
    """

    def __init__(
        self, model: Callable, data: Any, allows: Mapping[str, Any], memory: dict
    ):
        self.model, self.allows, self.memory = model, allows, memory
        given = isinstance(data, Mapping)
        args: tuple = () if given else tuple(data)
        kwargs = dict(data) if given else {}
        self.args, self.kwargs = loaded(args, kwargs)
        self.disk = on_disk(model, (self.args, self.kwargs))
        if self.disk is not None:
            self.args, self.kwargs = self.disk.few
        self._programs: dict[Any, Callable] = {}
        self._owners: dict[Any, Callable[[Any], Owner]] = {}

    def _program(self, kind: Any, make: Callable[[], Callable]) -> Callable:
        """Return a compiled program, made once for messages of one kind."""
        if kind not in self._programs:
            self._programs[kind] = jitted(make())
        return self._programs[kind]

    def answer(self, kind: str, arrays: Arrays, told: Mapping[str, Any]) -> Any:
        """Answer a message: `(arrays, facts)`.

        Raises:
            Refused: with the reason, which is all that then leaves the owner.
        """
        answers = {
            "describe": self._describe,
            "expand": self._expand,
            "measure": self._measure,
            "visit": self._visit,
            "constrain": self._constrain,
        }
        if kind not in answers:
            raise Refused(f"There is no message '{kind}'.")
        with full_precision():
            found = answers[kind](arrays, told)
        return {k: np.asarray(v) for k, v in found[0].items()}, found[1]

    def _describe(self, arrays: Arrays, told: Mapping[str, Any]):
        del arrays, told
        facts = self._facts()
        return {}, {
            "name": str(self.allows.get("name", "")),
            "template": facts["template"],
            "num-rows": facts["num-rows"],
        }

    def _facts(self) -> dict[str, Any]:
        """What is known of the model and the data, found once."""
        facts = self.memory["facts"]
        if "template" not in facts:
            check_values(self.args, self.kwargs)
            frontend = analyse(self.model, self.args, self.kwargs)
            facts["template"] = json.dumps(
                {name: list(shape) for name, shape in frontend.shapes.items()}
            )
            facts["num-rows"] = (
                observed_rows(self.model, self.args, self.kwargs)
                if self.disk is None
                else self.disk.source.num_data
            )
        return facts

    def _position(self) -> dict[str, jax.Array]:
        return template(self._facts()["template"])

    def _owner(self, num_owners: int, by_row: bool) -> Callable[[Any], Owner]:
        """Return `window -> Owner`; without rows on disk, the window is ignored."""
        kind = num_owners, by_row
        if kind not in self._owners:
            _, unravel = ravel_pytree(self._position())
            if self.disk is not None:
                self._owners[kind] = self.disk.owner(unravel, num_owners)
            else:
                owner = self._make_owner(unravel, num_owners, by_row)
                self._owners[kind] = lambda window: owner
        return self._owners[kind]

    def _window(self, key: jax.Array | None = None) -> Any:
        """Return rows that are in memory; random ones where a key is given."""
        if self.disk is None:
            return ()
        if key is None:
            return self.disk.first
        return self.disk.window(np.asarray(jax.random.key_data(key)).ravel().tolist())

    def _make_owner(self, unravel: Callable, num_owners: int, by_row: bool) -> Owner:
        num_rows = self._facts()["num-rows"]
        if by_row:
            bound = partial(self.model, *self.args, **self.kwargs)
            target = owner_target(bound, num_owners)
            rows = target.minibatch
            if rows is None:
                raise Refused("The model has no data plate with numpyro.subsample.")
            return Owner(
                lambda x: target(unravel(x)),
                lambda x, i: rows.terms(unravel(x), i),
                num_rows,
                num_rows,
            )
        seeded = full_data(handlers.seed(self.model, 0))
        prior = prior_only(seeded)
        left = 1.0 - 1.0 / num_owners

        def logdensity(x):
            values = unravel(x)
            own = potential_energy(seeded, self.args, self.kwargs, values)
            return left * potential_energy(prior, self.args, self.kwargs, values) - own

        return Owner(logdensity, None, num_rows or None, num_rows)

    def _check_exact(self, dim: int) -> None:
        rows, least = self._facts()["num-rows"], ROWS_PER_COORDINATE * dim
        if rows < least and not self.allows.get("allow-exact", False):
            raise Refused(
                f"This owner has {rows or 'an unknown number of'} rows, and sends no "
                f"exact gradient of fewer than {least}. Set allow-exact=true where it "
                "may, or clip."
            )

    def _spend(self, spend: Callable[[Ledger], Ledger]) -> None:
        """Enter a mechanism in the ledger, or refuse it."""
        facts = self.memory["facts"]
        after = spend(Ledger(float(facts.get("spent", 0.0))))
        most = self.allows.get("max-epsilon")
        if most is not None:
            delta = float(self.allows.get("delta", DELTA))
            epsilon = after.epsilon(delta)
            if epsilon > float(most):
                raise Refused(
                    f"This would come to epsilon {epsilon:.3g} at delta {delta:g}, and "
                    f"this owner allows {most}."
                )
        facts["spent"] = after.spent

    def _only_in_memory(self) -> None:
        if self.disk is not None:
            raise Refused(
                "This owner's rows are on disk, and rows are clipped only in memory. "
                "Load them, numpy.load(...), or run without clip."
            )

    def _only_private(self) -> None:
        if self.allows.get("max-epsilon") is not None:
            raise Refused(
                "This owner has a max-epsilon, and the run does not clip. Run with "
                "clip=... and shared_noise=0."
            )

    def _expand(self, arrays: Arrays, told: Mapping[str, Any]):
        centre = jnp.asarray(arrays["centre"])
        num_owners = int(told["num-owners"])
        if told.get("clip"):
            self._only_in_memory()
            clip, noise = float(told["clip"]), float(told["noise-multiplier"])
            privacy = Privacy(clip, 0.0, noise)
            self._spend(lambda ledger: ledger.expansion(privacy))
            owner = self._owner(num_owners, by_row=True)
            key = self._own_key(arrays["key"])
            program = self._program(
                ("expand", num_owners, privacy),
                lambda: lambda w, x, key: private_expansion(owner(w), key, x, privacy),
            )
        else:
            self._only_private()
            self._check_exact(centre.size)
            owner = self._owner(num_owners, by_row=False)
            key = jax.random.wrap_key_data(jnp.asarray(arrays["key"]))
            program = self._program(
                ("expand", num_owners),
                lambda: lambda w, x, key: expand(owner(w), key, x, 0.0, 1.0)[0],
            )
        return program(self._window(), centre, key)._asdict(), {}

    def _measure(self, arrays: Arrays, told: Mapping[str, Any]):
        points = jnp.asarray(arrays["points"])
        self._only_private()
        self._check_exact(points.shape[1])
        owner = self._owner(int(told["num-owners"]), by_row=False)

        def each(window, points):
            return jax.lax.map(lambda x: owner(window).value_and_grad(x)[1], points)

        program = self._program(("measure", told["num-owners"]), lambda: each)
        return {"gradients": program(self._window(), points)}, {}

    def _visit(self, arrays: Arrays, told: Mapping[str, Any]):
        setting = self._setting(arrays)
        scheme = Scheme(
            1,
            False,
            (1.0,),
            int(told["num-local-steps"]),
            float(told["shared-noise"]),
            setting.own is not None,
            int(told["batch-size"]) or None,
        )
        private = setting.bound is not None
        if private:
            self._only_in_memory()
            z = step_multiplier(
                arrays["step_size"],
                arrays["gain"],
                arrays["weight"],
                scheme.shared_noise,
                setting.bound,
            )
            chains = len(arrays["position"])
            steps = scheme.num_local_steps * chains
            self._spend(lambda ledger: ledger.steps(float(z), steps))
        else:
            self._only_private()
            if scheme.shared_noise == 1:
                # the server knows all of the noise, and so the gradient
                self._check_exact(arrays["ahead"].shape[1])
        by_row = private or scheme.batch_size is not None
        owner = self._owner(int(told["num-owners"]), by_row)
        shared = jax.random.wrap_key_data(jnp.asarray(arrays["shared_key"]))
        own = self._own_key(arrays["own_key"])
        numbers = [jnp.asarray(arrays[n]) for n in ("step_size", "gain", "weight")]

        if self.disk is not None and scheme.batch_size is not None:
            self.disk.check_use(scheme.num_local_steps * scheme.batch_size)

        def of_chain(window, position, ahead, i, setting, shared, own, numbers):
            keys = jax.random.fold_in(shared, i), jax.random.fold_in(own, i)
            asked = Visit(Chain(position, ahead), *keys, *numbers)
            return visit(
                owner(window),
                asked,
                setting,
                estimator(scheme, 1.0),
                scheme.num_local_steps,
                scheme.shared_noise,
                0.0,
            )[0]

        def program(window, position, ahead, *rest):
            order = jnp.arange(position.shape[0])
            return jax.vmap(of_chain, (None, 0, 0, 0, None, None, None, None))(
                window, position, ahead, order, *rest
            )

        kind = ("visit", told["num-owners"], scheme, private)
        found = self._program(kind, lambda: program)(
            self._window(own),
            jnp.asarray(arrays["position"]),
            jnp.asarray(arrays["ahead"]),
            setting,
            shared,
            own,
            numbers,
        )
        return found._asdict(), {}

    def _setting(self, arrays: Arrays) -> Setting:
        """The run's setting, which comes with a visit once and is remembered."""
        sent = {k: v for k, v in arrays.items() if k.startswith("setting.")}
        if sent:
            self.memory["setting"] = sent
        kept = {
            k.removeprefix("setting."): jnp.asarray(v)
            for k, v in self.memory["setting"].items()
        }
        if "factor" not in kept:
            raise Refused(NO_SETTING)
        own = pooled = None
        if "own_centre" in kept:
            own, pooled = (
                Surrogate(*(kept[f"{which}_{part}"] for part in Surrogate._fields))
                for which in ("own", "pooled")
            )
        return Setting(kept["factor"], own, pooled, kept.get("bound"))

    def _own_key(self, told: np.ndarray) -> jax.Array:
        """Return a key that the server does not know."""
        key = jax.random.wrap_key_data(jnp.asarray(told))
        seed = self.allows.get("noise-seed")
        if seed is not None:
            return jax.random.fold_in(key, int(seed))
        secret = np.frombuffer(os.urandom(8), np.uint32)
        return jax.random.wrap_key_data(jnp.asarray(secret))

    def _constrain(self, arrays: Arrays, told: Mapping[str, Any]):
        """Only latent sites: what is deterministic may hold rows."""
        del told
        position = self._position()
        _, unravel = ravel_pytree(position)
        model = full_data(handlers.seed(self.model, 0))

        def one(x):
            values = constrain_fn(model, self.args, self.kwargs, unravel(x))
            return {name: values[name] for name in position}

        program = self._program("constrain", lambda: lambda x: jax.lax.map(one, x))
        return program(jnp.asarray(arrays["draws"])), {}


def observed_rows(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """Return the size of the largest plate with an observation, or 0."""
    trace = handlers.trace(at_random(model, 0)).get_trace(*args, **kwargs)
    sizes = [
        frame.size
        for site in trace.values()
        if site["type"] == "sample" and site["is_observed"]
        for frame in site["cond_indep_stack"]
    ]
    return max(sizes, default=0)


def template(text: str) -> dict[str, jax.Array]:
    """Return a position of zeros from the names and shapes of latent sites."""
    return {name: jnp.zeros(shape) for name, shape in json.loads(text).items()}


def check_values(args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse data that no model can mean, before anything is made of them.

    Raises:
        InvalidData: for a value that is not finite, or 1e9 times the usual one.
    """
    named = {**{f"argument {i}": a for i, a in enumerate(args)}, **kwargs}
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        if not hasattr(leaf, "dtype") or np.asarray(leaf).dtype.kind != "f":
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = np.abs(np.asarray(leaf, float))
        if not np.all(np.isfinite(values)):
            raise InvalidData(f"'{name}' has values that are not finite. Drop them.")
        usual = np.median(values[values > 0]) if np.any(values > 0) else 1.0
        if np.max(values, initial=0.0) > 1e9 * usual:
            raise InvalidData(
                f"'{name}' has a value of {np.max(values):.3g}, and its usual size is "
                f"{usual:.3g}. Correct it, or drop its row."
            )
