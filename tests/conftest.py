"""Settings of the whole suite: two host devices, a shared compilation cache."""

import gc
import importlib.util
import mmap
import os
from pathlib import Path

# read when JAX starts: "parallel" chains need a device each
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("MPLBACKEND", "Agg")
# processes that a test starts keep no programs in the user's folders
os.environ["NUTFREE_CACHE"] = "off"

import jax
import pytest

jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache")
)
# runs that go on, and runs of another seed, find the programs of the first
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# tracing makes many small objects that hold no cycles, and notes where each was made
jax.config.update("jax_traceback_in_locations_limit", 0)
gc.set_threshold(50_000)

#: Linux gives a process 65,530 memory maps; compiled programs take some each, and the
#: compiler crashes when none is left.
MAX_MAPS = 25_000


#: Compiles in two thirds of the time. XLA ends a process for a flag it does not know.
FAST_COMPILE = "--xla_cpu_opt_preset=fast_compile"


def _knows(flag: str) -> bool:
    name = flag.lstrip("-").partition("=")[0].encode()
    for library in Path(importlib.util.find_spec("jaxlib").origin).parent.glob("*.so"):
        with (
            open(library, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(name) >= 0:
                return True
    return False


def pytest_configure(config):
    """Before the first program is compiled, where nothing runs for long."""
    if config.option.markexpr == "not slow" and _knows(FAST_COMPILE):
        os.environ["XLA_FLAGS"] += f" {FAST_COMPILE}"


@pytest.fixture(autouse=True)
def _few_compiled_programs():
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def toys():
    """Register the kernels of `tests.toy` while a module's tests run."""
    from nutfree import registry
    from tests.toy import SPECS

    registry.specs()
    for spec in SPECS.values():
        registry.register(spec)
    yield
    for name in SPECS:
        del registry._registered[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiling is most of the quick suite, but not of what runs for long.

    Before any fixture, and for processes that a test starts as well.
    """
    marks = {mark.name for mark in item.iter_markers()}
    optimised = bool(marks & {"slow", "optimised"})
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not optimised))
    jax.config.update("jax_disable_most_optimizations", not optimised)
