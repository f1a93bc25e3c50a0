"""Settings of the whole suite: two host devices, a shared compilation cache."""

import os
from pathlib import Path

# read when JAX starts: "parallel" chains need a device each
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
