"""Flower's `Grid` over `ClientApp`s in this process: a message is a function call.

Arrays go through Flower's own records, so that what owners get is what they would get
from a wire, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Message


class InProcess:
    """Nodes that each have a memory and a node config of their own.

    It has the methods of Flower's `Grid`, which is imported where it is used.

    Args:
        app: the `ClientApp` of all of them.
        configs: a node config for each.
        intercept: `(node, request, reply) -> reply or None`, for tests that read or
            spoil what crosses the wire.
    """

    def __init__(
        self,
        app: Callable[[Message, Any], Message],
        configs: Sequence[Mapping[str, Any]],
        intercept: Callable[[int, Message, Message], Message | None] | None = None,
    ):
        from flwr.app import Context, RecordDict
        from flwr.app.user_config import UserConfig
        from flwr.supercore.task_identity import TaskIdentity

        self.app, self.intercept = app, intercept
        self.absent: set[int] = set()
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config=UserConfig(config),
                state=RecordDict(),
                run_config=UserConfig(),
            )
            for node, config in enumerate(configs, start=1)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        # Flower sets it in each process that it starts
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Any) -> None:
        del run

    @property
    def run(self) -> Any:
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        from flwr.app import Message

        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.contexts if node not in self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            identity = f"message {self._sent}"
            message.metadata.__dict__["_message_id"] = identity
            ids.append(identity)
            node = message.metadata.dst_node_id
            reply: Message | None = self.app(message, self.contexts[node])
            if self.intercept is not None and reply is not None:
                reply = self.intercept(node, message, reply)
            if reply is not None:
                self._replies[identity] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [
            self._replies.pop(identity)
            for identity in message_ids
            if identity in self._replies
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del timeout
        return self.pull_messages(self.push_messages(messages))
