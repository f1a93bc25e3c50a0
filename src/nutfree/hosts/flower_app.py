"""A folder that `flwr run` takes, made of a model file.

The owners' part imports the model file, the server's part does not.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nutfree.errors import InvalidData
from nutfree.hosts.flower import RUN_CONFIG

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A posterior over data that stay with their owners"
license = "Apache-2.0"
dependencies = ["nutfree[federated]"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "federated_app.server:app"
clientapp = "federated_app.client:app"

[tool.flwr.app.config]
{config}
"""
_SERVER = """\
from nutfree.hosts.flower import server_app

app = server_app()
"""
_CLIENT = """\
from federated_app.model_file import model, owner
from nutfree.hosts.flower import client_app

app = client_app(model, owner)
"""


def write_app(
    folder: Path, file: Path, settings: Mapping[str, Any], publisher: str = "nutfree"
) -> Path:
    """Write a Flower app of a model file.

    Args:
        folder: where; it must be empty or not there.
        file: with `model`, a NumPyro model of one owner's data, and
            `owner(node config)`, which returns this owner's arguments of it.
        settings: the run's, by the names of `RUN_CONFIG`.

    Raises:
        InvalidData: if there is no such file, it has no `owner`, or the folder is in
            use.
    """
    if not file.is_file():
        raise InvalidData(f"There is no file '{file}'.")
    text = file.read_text()
    for name in ("model", "owner"):
        if not re.search(rf"^(async )?(def )?{name}\b", text, re.MULTILINE):
            raise InvalidData(
                f"'{file}' has no '{name}'. Add def model(...), of one owner's data, "
                "and def owner(config), which returns the arguments of this owner."
            )
    if folder.exists() and any(folder.iterdir()):
        raise InvalidData(f"The folder '{folder}' is not empty; name another.")
    package = folder / "federated_app"
    package.mkdir(parents=True)
    config = RUN_CONFIG | dict(settings)
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "federated"
    (folder / "pyproject.toml").write_text(
        _PROJECT.format(name=name, publisher=publisher, config="\n".join(lines))
    )
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)
    shutil.copy(file, package / "model_file.py")
    return folder
