"""Federated kernels between real machines, carried by Flower.

An app is a `ServerApp` and a `ClientApp` made here of a model file. The messages, and
what owners and server do with them, are those of `nutfree.hosts.owner` and
`nutfree.hosts.server`; the transport, its encryption and its authentication are
Flower's. See `docs/federated.md` for the commands.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nutfree.errors import InvalidData, NutfreeError
from nutfree.frontends.federated import FederatedModel, checked_owners
from nutfree.hosts.owner import OwnerSide
from nutfree.hosts.server import Server
from nutfree.hosts.simulation import InProcess
from nutfree.hosts.wire import Back, Run, Sent

if TYPE_CHECKING:
    import xarray
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

#: Records of a message.
ARRAYS, FACTS, SETTING = "arrays", "facts", "setting"
#: Seconds that the server waits for owners to join, and for their answers.
JOIN, ANSWER = 60.0, 120.0
#: For how much of the time for an answer the server waits for a node that Flower holds
#: for absent: a busy machine's misses heartbeats, which are half a minute apart.
PATIENCE = 0.3
#: Defaults of a run's settings, by their names in Flower's run config.
RUN_CONFIG: dict[str, Any] = {
    "kernel": "fald",
    "options": "{}",
    "num-samples": 1000,
    "num-chains": 4,
    "seed": 0,
    "delta": 1e-5,
    "min-owners": 2,
    "join-timeout": JOIN,
    "answer-timeout": ANSWER,
    "checkpoint": "",
    "checkpoint-every": 10,
    "out": "",
}


def client_app(model: Callable, owner: Callable[[Mapping[str, Any]], Any]) -> ClientApp:
    """Make the `ClientApp` that runs on each owner's machine.

    Args:
        model: a NumPyro model of one owner's data.
        owner: `(node config) -> this owner's arguments of the model`, a dict or a
            tuple; the node config is what `flower-supernode --node-config` is given.

    The node config may have `name`, `allow-exact`, `max-epsilon`, `delta` and
    `noise-seed`, see `nutfree.hosts.owner.OwnerSide`.
    """
    from flwr.app import ArrayRecord, Message
    from flwr.clientapp import ClientApp

    app = ClientApp()
    # in a deployment a process answers one message; in a simulation, all of them
    sides: dict[int, OwnerSide] = {}

    def answer(message: Message, context: Any) -> Message:
        kind = message.content[FACTS]["kind"]
        told = {k: v for k, v in message.content[FACTS].items() if k != "kind"}
        allows = dict(context.node_config)
        memory = _memory(context)
        try:
            side = sides.get(context.node_id)
            if side is None:
                side = OwnerSide(model, owner(allows), allows, memory)
                sides[context.node_id] = side
            side.memory, side.allows = memory, allows
            arrays, facts = side.answer(str(kind), _numpy(message, ARRAYS), told)
        except NutfreeError as error:
            # its text names no value of a row; what else goes wrong stays here
            return _reply(message, {}, {"refused": str(error)})
        # the owner's own model and data can raise whatever they like, and a text may
        # quote a row: the server is told the type alone, the owner's own log the rest,
        # and the server leaves this owner out and names it
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            return _reply(message, {}, {"refused": f"a {type(error).__name__}"})
        _remember(context, memory)
        return _reply(message, arrays, facts)

    def _reply(message, arrays, facts) -> Message:
        return Message(_records(arrays, facts), reply_to=message)

    def _memory(context) -> dict[str, Any]:
        state = context.state
        facts = dict(state[FACTS]) if FACTS in state else {}
        setting = _arrays(state[SETTING]) if SETTING in state else {}
        return {"facts": facts, "setting": setting}

    def _remember(context, memory) -> None:
        from flwr.app import ConfigRecord

        context.state[FACTS] = ConfigRecord(memory["facts"])
        context.state[SETTING] = ArrayRecord(
            {k: _array(v) for k, v in memory["setting"].items()}
        )

    app.query()(answer)
    return app


def server_app(**defaults: Any) -> ServerApp:
    """Make the `ServerApp` that runs beside the SuperLink; it has no data and no model.

    Args:
        **defaults: in place of those of `RUN_CONFIG`, with underscores in the names.
    """
    from flwr.serverapp import ServerApp

    app = ServerApp()
    own = {name.replace("_", "-"): value for name, value in defaults.items()}

    @app.main()
    def main(grid: Grid, context: Any) -> None:
        config = RUN_CONFIG | own | dict(context.run_config)
        tree = run_on(grid, config)
        if out := config["out"]:
            beside = f"{out}.part"
            tree.to_netcdf(beside)
            os.replace(beside, out)
            print(f"Draws written to {out}")

    return app


def run_on(grid: Grid | InProcess, config: Mapping[str, Any]) -> xarray.DataTree:
    """Run on the owners of a Flower `Grid`, and return the draws."""
    run = Run(
        kernel=str(config["kernel"]),
        options=json.loads(str(config["options"])),
        num_samples=int(config["num-samples"]),
        num_chains=int(config["num-chains"]),
        seed=int(config["seed"]),
        delta=float(config["delta"]),
        checkpoint=str(config["checkpoint"]) or None,
        checkpoint_every=int(config["checkpoint-every"]),
    )
    nodes = Nodes(grid, float(config["answer-timeout"]))
    names = nodes.join(int(config["min-owners"]), float(config["join-timeout"]))
    return Server(run, nodes.post).sample(names)


class Nodes:
    """Owners by name, and their nodes on a grid."""

    def __init__(self, grid: Grid | InProcess, timeout: float):
        self.grid, self.timeout = grid, timeout
        self.node_of: dict[str, int] = {}
        self.known: dict[int, str] = {}

    def join(self, at_least: int, timeout: float) -> list[str]:
        """Wait for owners, and return their names.

        Raises:
            InvalidData: if there are too few, or two have one name.
        """
        end = time.monotonic() + timeout
        while True:
            self._look()
            if len(self.node_of) >= at_least:
                return sorted(self.node_of)
            if time.monotonic() > end:
                raise InvalidData(
                    f"{len(self.node_of)} owners have joined within {timeout:g} s, and "
                    f"the run waits for {at_least}. Start their SuperNodes, or set "
                    "min-owners."
                )
            time.sleep(1.0)

    def _look(self) -> None:
        """Ask nodes that are new for their names."""
        there = set(self.grid.get_node_ids())
        new = sorted(there - set(self.known))
        answers = self._exchange("describe", [(node, {}, {}) for node in new])
        for node, answer in zip(new, answers):
            if answer.reason:
                print(f"Node {node} does not take part: {answer.reason}")
                self.known[node] = ""
                continue
            name = str(answer.facts["name"]) or f"node {node}"
            holder = self.node_of.get(name)
            if holder is not None and holder in there:
                raise InvalidData(
                    f"Two owners are called '{name}'. Give each SuperNode a name of "
                    "its own in its node config."
                )
            self.node_of[name], self.known[node] = node, name

    def post(self, kind: str, messages: list[Sent]) -> list[Back]:
        """Send messages to owners, and return their answers; see `server.Post`."""
        end = time.monotonic() + PATIENCE * self.timeout
        while self._lack(messages):
            self._look()  # one that has started anew may be another node
            if not self._lack(messages) or time.monotonic() > end:
                break
            time.sleep(min(1.0, PATIENCE * self.timeout / 4))
        wanted = [(self.node_of.get(m.owner, 0), m.arrays, m.facts) for m in messages]
        return self._exchange(kind, wanted)

    def _lack(self, messages: list[Sent]) -> bool:
        """Whether the node of any owner is not on the grid."""
        there = set(self.grid.get_node_ids())
        return any(self.node_of.get(m.owner) not in there for m in messages)

    def _exchange(self, kind: str, wanted: Sequence[tuple[int, dict, dict]]):
        from flwr.app import Message

        there = set(self.grid.get_node_ids())
        out, places = [], {}
        answers = [Back({}, {}, "it is absent")] * len(wanted)
        for place, (node, arrays, facts) in enumerate(wanted):
            if node in there:
                # the place makes two messages to one owner two messages
                content = _records(arrays, facts | {"kind": kind, "place": place})
                out.append(Message(content, node, "query", ttl=4 * self.timeout))
                places[node, place] = place
        replies = self._replies(out)
        for message, (_, place) in zip(out, places):
            reply = replies.get(message.metadata.message_id)
            answers[place] = _back(reply, self.timeout)
        return answers

    def _replies(self, out: list) -> dict[str, Any]:
        """Return replies by the identity of the message that they answer."""
        if not out:
            return {}
        ids = list(self.grid.push_messages(out))
        for message, identity in zip(out, ids):
            message.metadata.__dict__["_message_id"] = identity
        end, waiting, found = time.monotonic() + self.timeout, set(ids), {}
        while waiting:
            for reply in self.grid.pull_messages(list(waiting)):
                found[reply.metadata.reply_to_message_id] = reply
            waiting -= set(found)
            if time.monotonic() > end:
                break
            if waiting:
                time.sleep(0.05)
        return found


def _back(reply: Any, timeout: float) -> Back:
    if reply is None:
        return Back({}, {}, f"no answer within {timeout:g} s")
    if reply.has_error():
        return Back({}, {}, f"error {reply.error.code}")
    try:
        facts, arrays = dict(reply.content[FACTS]), _numpy(reply, ARRAYS)
    except (KeyError, TypeError, ValueError) as error:
        return Back({}, {}, f"its message cannot be read: {error}")
    if "refused" in facts:
        return Back({}, {}, str(facts["refused"]))
    return Back(arrays, facts)


def _records(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Any:
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    return RecordDict(
        {
            ARRAYS: ArrayRecord({k: _array(v) for k, v in arrays.items()}),
            FACTS: ConfigRecord(dict(facts)),
        }
    )


def _array(value: Any) -> Any:
    from flwr.app import Array

    return Array(np.asarray(value))


def _arrays(record: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(array.numpy()) for name, array in record.items()}


def _numpy(message: Any, record: str) -> dict[str, np.ndarray]:
    return _arrays(message.content[record])


def simulate(
    model: Callable, owners: Iterable[Any], names: Sequence[str] = (), **settings: Any
) -> xarray.DataTree:
    """Run the apps of a deployment in this process, message by message.

    Args:
        model: a NumPyro model of one owner's data, or the `FederatedModel` of it.
        owners: each owner's arguments, a list of dicts or tuples.
        names: of the owners; `owner0`, `owner1`, ... by default.
        **settings: those of `RUN_CONFIG`, with underscores in the names; `node_config`,
            a dict for all owners, or a list with one for each.

    Returns:
        The draws that a deployment of the same seed makes, bit for bit where its
        machines compute alike, and owner s has the `noise-seed` s as it has here.
    """
    if isinstance(model, FederatedModel):
        model = model.model
    data = checked_owners(owners)
    names = tuple(names) or tuple(f"owner{s}" for s in range(len(data)))
    given = settings.pop("node_config", {})
    configs = [given] * len(data) if isinstance(given, Mapping) else list(given)
    nodes = [
        {"noise-seed": s} | dict(config) | {"name": name, "partition-id": s}
        for s, (name, config) in enumerate(zip(names, configs))
    ]
    app = client_app(model, lambda config: data[int(config["partition-id"])])
    config = RUN_CONFIG | {"min-owners": len(data)}
    config |= {name.replace("_", "-"): value for name, value in settings.items()}
    if isinstance(config["options"], Mapping):
        config["options"] = json.dumps(dict(config["options"]))
    return run_on(InProcess(app, nodes), config)
