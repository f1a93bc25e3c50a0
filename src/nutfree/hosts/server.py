"""The server's side of a federated run, whatever carries the messages.

The server finds the pooled mode and a step from owners' expansions, then sends chains
out and takes them in, round after round. It holds no data and no model. An owner that
is absent, late, or whose answer makes no sense is left out of the round, by name, and
is not asked again for a number of rounds that doubles.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree import registry
from nutfree.diagnostics.convergence import short_verdict
from nutfree.errors import InvalidData, InvalidOption
from nutfree.hosts.owner import NO_SETTING
from nutfree.hosts.server_record import restore, store, tree_of
from nutfree.hosts.server_warmup import warm_up
from nutfree.hosts.wire import Back, Costs, Members, Post, Run, Sent
from nutfree.kernels.federated.federation import (
    Answer,
    Chain,
    add_answer,
    misfit,
    no_answers,
    pool,
    server_step,
)
from nutfree.kernels.federated.privacy import Ledger, step_multiplier
from nutfree.kernels.federated.rounds import (
    Scheme,
    forecast,
    plan_round,
)

#: Most rounds for which an owner that did not answer is not asked again.
MAX_REST = 64


class Server:
    """A federated run, from the first message to the last."""

    def __init__(self, run: Run, post: Post, log: Callable[[str], None] = print):
        self.run, self.post, self.log = run, Costs(post), log
        spec = registry.get(run.kernel)
        if spec.scheme is None:
            raise InvalidOption(
                f"The kernel '{run.kernel}' does not run where owners are; write "
                "kernel='fald'."
            )
        self.spec, self.options = spec, spec.checked(run.options)
        self.left_out: dict[str, int] = {}
        self.why: dict[str, str] = {}
        self.members: Members
        self.scheme: Scheme
        self.setting: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}
        self.ledgers: list[Ledger] = []
        self.misfit: list[Any] = []

    def sample(self, names: list[str]):
        """Run to the end, and return the draws as an `xarray.DataTree`."""
        start = restore(self)
        if start is None:
            self.members = self._meet(sorted(names))
        assert self.spec.scheme is not None
        self.scheme = self.spec.scheme(self.options, self.members)
        if start is None:
            self.setting, self.numbers, state = warm_up(self)
            draws: list[np.ndarray] = []
            rounds = 0
        else:
            draws, rounds, state = start
        self._rests: dict[int, tuple[int, int]] = {}
        self._knows: set[int] = set()
        key = jax.random.fold_in(jax.random.key(self.run.seed), 1)
        per_draw = int(self.numbers["num_rounds"])
        while len(draws) < self.run.num_samples:
            self.misfit.append(0.0)
            for i in range(per_draw):
                round_key = jax.random.fold_in(jax.random.fold_in(key, len(draws)), i)
                state, strayed = self._round(round_key, state, rounds)
                self.misfit[-1] += strayed / per_draw
                rounds += 1
            draws.append(np.asarray(state[0].position))
            last = len(draws) == self.run.num_samples
            if last or len(draws) % self.run.checkpoint_every == 0:
                store(self, draws, rounds, state)
        tree = tree_of(self, np.stack(draws, axis=1), rounds)
        if said := short_verdict(tree):
            self.log(said)
        return tree

    def _meet(self, nodes: list[str]) -> Members:
        answers = self.post("describe", [Sent(node, {}, {}) for node in nodes])
        there = []
        for node, answer in zip(nodes, answers):
            if answer.reason:
                self.leave_out(node, answer.reason)
            else:
                there.append((node, answer.facts))
        if not there:
            raise InvalidData(
                "No owner has answered. Their reasons: "
                + "; ".join(f"{k}: {v}" for k, v in self.why.items())
            )
        templates = {facts["template"] for _, facts in there}
        if len(templates) > 1:
            raise InvalidData(
                f"The owners' latent sites differ: {', '.join(sorted(templates))}. "
                "Give all of them the same model, and data of the same columns."
            )
        rows = tuple(int(facts["num-rows"]) for _, facts in there)
        return Members(
            tuple(node for node, _ in there),
            rows if all(rows) else None,
            templates.pop(),
        )

    def leave_out(self, name: str, why: str) -> None:
        if self.why.get(name) != why:
            self.log(f"Owner '{name}' is left out: {why}")
        self.left_out[name] = self.left_out.get(name, 0) + 1
        self.why[name] = why

    def told(self) -> dict[str, Any]:
        privacy = self.scheme.privacy
        told: dict[str, Any] = {"num-owners": self.members.count}
        if privacy is not None:
            told |= {"clip": privacy.clip, "noise-multiplier": privacy.noise_multiplier}
        return told

    def checked(self, name: str, answer: Back, shapes) -> dict[str, np.ndarray] | None:
        """Return the answer's arrays if they are those that were asked for."""
        if answer.reason:
            self.leave_out(name, answer.reason)
            return None
        for key, shape in shapes.items():
            array = answer.arrays.get(key)
            if array is None or array.shape != shape or array.dtype.kind not in "fi":
                got = "nothing" if array is None else f"{array.dtype} {array.shape}"
                self.leave_out(name, f"'{key}' should have shape {shape}, not {got}")
                return None
        return {key: answer.arrays[key] for key in shapes}

    def _round(self, key, state, number: int):
        chain, trusted = state
        first = jax.tree.map(lambda a: a[0], chain)
        h = self.numbers["step_size"]
        slots = _plan(self.scheme, key, first, h)
        chosen = np.asarray(slots.owners)
        sent, places = [], []
        for place, s in enumerate(chosen):
            until, _ = self._rests.get(int(s), (0, 0))
            if number >= until:
                sent.append(self._visit(place, int(s), slots, chain))
                places.append(place)
        answers = dict(zip(places, self.post("visit", sent)))
        for place in places:
            # an owner that has started anew has forgotten the setting
            if answers[place].reason == NO_SETTING:
                s = int(chosen[place])
                self._knows.discard(s)
                again = self._visit(place, s, slots, chain)
                answers[place] = self.post("visit", [again])[0]
        shapes = {"arrived": chain.ahead.shape, "status": chain.ahead.shape[:1]}
        so_far = jax.vmap(no_answers)(chain.ahead)
        surrogates, factor = self.setting["surrogates"], self.setting["factor"]
        expects = forecast(self.scheme, surrogates, factor, h)
        for place, s in enumerate(map(int, chosen)):
            name = self.members.names[s]
            found = None
            if place in answers:
                found = self.checked(name, answers[place], shapes)
                self._rest(s, number, found is not None)
            if found is None:
                continue
            self._knows.add(s)
            self._account(slots, place)
            asked = jax.tree.map(lambda a, place=place: a[place], slots.asked)
            answer = Answer(*map(jnp.asarray, (found["arrived"], found["status"])))
            so_far, out = _add(
                so_far, asked, chain, answer, trusted[s], factor, expects
            )
            if bool(jnp.any(out)):
                self.leave_out(name, "its answer is not finite, or nowhere near")
            trusted = trusted.at[s].set(~out)
        self._check_anybody_answers()
        kept = (1 - h / 2) ** self.scheme.num_local_steps
        chain, _ = jax.vmap(server_step, (0, 0, None, None))(
            chain, so_far, self.scheme.shared_noise, kept
        )
        return (chain, trusted), np.asarray(jax.vmap(misfit)(so_far))

    def _rest(self, s: int, number: int, answered: bool) -> None:
        _, length = self._rests.get(s, (0, 0))
        length = 0 if answered else min(max(1, 2 * length), MAX_REST)
        self._rests[s] = (number + length, length)

    def _check_anybody_answers(self) -> None:
        """End a run whose draws would stand still.

        Raises:
            InvalidData: if the last answer of every owner was none.
        """
        silent = [length > 0 for _, length in self._rests.values()]
        if len(silent) < self.members.count or not all(silent):
            return
        why = "; ".join(f"{name}: {reason}" for name, reason in self.why.items())
        raise InvalidData(
            f"No owner answers any more ({why}). When they do, run again: a run with a "
            "checkpoint goes on from there."
        )

    def _account(self, slots, place: int) -> None:
        """Enter the steps that an owner has sent."""
        if "bound" not in self.setting:
            return
        z = step_multiplier(
            self.numbers["step_size"],
            slots.asked.gain[place],
            slots.asked.weight[place],
            self.scheme.shared_noise,
            self.setting["bound"],
        )
        steps = self.scheme.num_local_steps * self.run.num_chains
        s = int(slots.owners[place])
        self.ledgers[s] = self.ledgers[s].steps(float(z), steps)

    def _visit(self, place: int, s: int, slots, chain: Chain) -> Sent:
        asked = jax.tree.map(lambda a: a[place], slots.asked)
        arrays = {
            "position": chain.position,
            "ahead": chain.ahead,
            "shared_key": jax.random.key_data(asked.shared_key),
            "own_key": jax.random.key_data(asked.own_key),
            "step_size": asked.step_size,
            "gain": asked.gain,
            "weight": asked.weight,
        }
        if s not in self._knows:
            arrays |= self._setting_of(s)
        told = self.told() | {
            "num-local-steps": self.scheme.num_local_steps,
            "shared-noise": float(self.scheme.shared_noise),
            "batch-size": self.scheme.batch_size or 0,
        }
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        return Sent(self.members.names[s], arrays, told)

    def _setting_of(self, s: int) -> dict[str, Any]:
        setting = {"setting.factor": self.setting["factor"]}
        if self.scheme.conducive:
            surrogates = self.setting["surrogates"]
            own, pooled = jax.tree.map(lambda a: a[s], surrogates), pool(surrogates)
            for which, one in (("own", own), ("pooled", pooled)):
                for part, leaf in one._asdict().items():
                    setting[f"setting.{which}_{part}"] = leaf
        if "bound" in self.setting:
            setting["setting.bound"] = self.setting["bound"]
        return setting


_plan = jax.jit(plan_round, static_argnums=0)


@jax.jit
def _add(so_far, asked, chain, answer, trusted, factor, expects):
    """Take an owner's answer into the round of every chain."""

    def one(so_far, chain, answer, trusted):
        asked_of = asked._replace(chain=chain)
        return add_answer(so_far, asked_of, answer, trusted, factor, expects)

    return jax.vmap(one)(so_far, chain, answer, trusted)
