"""What is kept of a federated run: its checkpoint, and the draws as a tree."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nutfree.errors import CheckpointMismatch, InvalidData
from nutfree.hosts import archive
from nutfree.hosts.wire import Members, Sent
from nutfree.kernels.federated.federation import (
    Chain,
    Surrogate,
)
from nutfree.kernels.federated.privacy import Ledger


def identity(server: Any) -> str:
    """What a checkpoint must have in common with the run that goes on from it."""
    run = server.run
    told = [run.kernel, dict(run.options), run.num_chains, run.seed, run.delta]
    return json.dumps(told, default=str)


def store(server: Any, draws, rounds: int, state) -> None:
    if server.run.checkpoint is None:
        return
    chain, trusted = state
    surrogates = server.setting["surrogates"]
    kept = {
        "draws": np.stack(draws),
        "misfit": np.stack(server.misfit),
        "position": chain.position,
        "ahead": chain.ahead,
        "trusted": trusted,
        "factor": server.setting["factor"],
        "bound": server.setting.get("bound", np.nan),
        **{f"surrogates_{k}": v for k, v in surrogates._asdict().items()},
        "facts": np.array(
            json.dumps(
                {
                    "version": version("nutfree"),
                    "identity": identity(server),
                    "members": [
                        server.members.names,
                        server.members.num_rows,
                        server.members.template,
                    ],
                    "rounds": rounds,
                    "spent": [own.spent for own in server.ledgers],
                    "numbers": {k: float(v) for k, v in server.numbers.items()},
                    "left_out": server.left_out,
                    "why": server.why,
                    "costs": [server.post.messages, server.post.bytes],
                }
            )
        ),
    }
    path = Path(server.run.checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    archive.write(path, {name: np.asarray(value) for name, value in kept.items()})


def restore(server: Any):
    """Return `(draws, rounds, state)` of the checkpoint, if there is one.

    Raises:
        CheckpointMismatch: if it is of another run or version, or damaged.
    """
    path = server.run.checkpoint
    if path is None or not Path(path).exists():
        return None
    kept = archive.read(Path(path))
    try:
        facts = json.loads(str(kept.get("facts", "{}")))
        told = facts.get("version"), facts.get("identity")
        if told != (version("nutfree"), identity(server)):
            raise CheckpointMismatch(
                f"'{path}' is of another run, or of another version of nutfree. Name "
                "another file, or remove it."
            )
        draws, rounds, state = _taken(server, kept, facts)
    except (AttributeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointMismatch(
            f"'{path}' is damaged ({type(error).__name__}: {error}). Name another "
            "file, or remove it."
        ) from error
    server.log(f"Going on from {len(draws)} draws in '{path}'.")
    return draws, rounds, state


def _taken(server: Any, kept: dict[str, np.ndarray], facts: dict[str, Any]):
    """Give the server what a checkpoint has; return what `restore` does."""
    names, num_rows, shapes = facts["members"]
    num_rows = tuple(num_rows) if num_rows else None
    server.members = Members(tuple(names), num_rows, shapes)
    surrogates = Surrogate(
        *(jnp.asarray(kept[f"surrogates_{k}"]) for k in Surrogate._fields)
    )
    server.setting = {
        "factor": jnp.asarray(kept["factor"]),
        "surrogates": surrogates,
    }
    if np.isfinite(kept["bound"]):
        server.setting["bound"] = jnp.asarray(kept["bound"])
    state = (
        Chain(jnp.asarray(kept["position"]), jnp.asarray(kept["ahead"])),
        jnp.asarray(kept["trusted"]),
    )
    draws, server.misfit = list(kept["draws"]), list(kept["misfit"])
    server.numbers = {k: np.float32(v) for k, v in facts["numbers"].items()}
    server.left_out, server.why = facts["left_out"], facts["why"]
    server.post.messages, server.post.bytes = facts["costs"]
    server.ledgers = [Ledger(spent) for spent in facts["spent"]]
    return draws, facts["rounds"], state


def tree_of(server: Any, draws: np.ndarray, rounds: int):
    """Return the tree of draws `(chains, draws, d)`."""
    import arviz_base

    draws = draws[:, : server.run.num_samples]
    chains, num, dim = draws.shape
    inflation = float(server.numbers["predicted_inflation"])
    values = constrained(server, draws.reshape(-1, dim))
    posterior = {
        name: v.reshape(chains, num, *v.shape[1:]) for name, v in values.items()
    }
    tree = arviz_base.from_dict(
        {
            "posterior": posterior,
            "sample_stats": {
                "num_rounds": np.full((chains, num), int(server.numbers["num_rounds"])),
                "predicted_inflation": np.full((chains, num), inflation),
                "surrogate_misfit": np.stack(server.misfit, axis=1)[:, :num],
            },
        }
    )
    attrs = {
        "kernel": server.run.kernel,
        "options": json.dumps(dict(server.run.options), default=str),
        "nutfree_version": version("nutfree"),
        "seed": server.run.seed,
        "owners": json.dumps(server.members.names),
        "left_out": json.dumps(server.left_out),
        "why_left_out": json.dumps(server.why),
        "num_rounds": rounds,
        "num_messages": server.post.messages,
        "num_bytes": server.post.bytes,
        "step_size": float(server.numbers["step_size"]),
        "predicted_inflation": inflation,
        "search_messages": int(server.numbers["search_messages"]),
    }
    if "bound" in server.setting:
        attrs |= {
            "epsilon": max(own.epsilon(server.run.delta) for own in server.ledgers),
            "delta": server.run.delta,
        }
    tree["sample_stats"].attrs.update(attrs)
    return tree


def constrained(server: Any, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Ask the first owner that answers for the draws on the model's own scale."""
    for name in server.members.names:
        (answer,) = server.post("constrain", [Sent(name, {"draws": draws}, {})])
        if not answer.reason:
            return dict(answer.arrays)
        server.leave_out(name, answer.reason)
    raise InvalidData(
        "No owner is left to put the draws on the model's scale. Start one, and "
        "run again from the checkpoint."
    )
