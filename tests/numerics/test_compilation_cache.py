"""Compiled programs are kept between processes, where the user has not said no."""

import os
import subprocess
import sys

import pytest

REPORT = """
import jax, nutfree
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""
COMPILE = """
import jax, jax.numpy as jnp, nutfree
from jax import monitoring
seen = []
monitoring.register_event_listener(lambda event, **_: seen.append(event))
jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x @ x.T)))(jnp.ones((9, 3)))
print(sum("cache_hits" in event for event in seen))
"""


def in_process(script: str, **environment) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    clean.pop("NUTFREE_CACHE", None)
    run = [sys.executable, "-c", script]
    environment = {k: str(v) for k, v in environment.items()}
    return subprocess.run(
        run, env=clean | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    first = in_process(COMPILE, NUTFREE_CACHE=tmp_path)
    second = in_process(COMPILE, NUTFREE_CACHE=tmp_path)
    assert int(first) == 0
    assert int(second) >= 1


def test_the_cache_is_in_the_users_folder_and_theirs_alone(tmp_path):
    where, size = in_process(REPORT, XDG_CACHE_HOME=tmp_path).split()
    assert where.startswith(str(tmp_path / "nutfree"))
    assert os.stat(where).st_mode & 0o077 == 0
    assert int(size) == 2**30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NUTFREE_CACHE": "off"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "/their/own"}, "/their/own"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"NUTFREE_CACHE": "/proc/nowhere"}, "None"),
    ],
)
def test_a_user_who_has_said_otherwise_is_heard(environment, expected):
    assert in_process(REPORT, **environment) == f"{expected} -1"


@pytest.mark.slow
def test_a_folder_that_others_can_write_to_is_not_read(tmp_path):
    where, _ = in_process(REPORT, NUTFREE_CACHE=tmp_path).split()
    os.chmod(where, 0o777)
    assert in_process(REPORT, NUTFREE_CACHE=tmp_path) == "None -1"
