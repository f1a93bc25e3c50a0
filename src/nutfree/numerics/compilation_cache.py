"""JAX's persistent compilation cache, on unless the user has said otherwise.

A second process then reads the programs of the first: of the seconds before a first
draw nearly all are the compiler's. The environment variable `NUTFREE_CACHE` names
another folder, or is `off`; a cache that JAX has been told of stays as it is.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax
import platformdirs

VARIABLE = "NUTFREE_CACHE"
#: Bytes on disk, of which what was used least recently makes place.
MAX_BYTES = 2**30
#: Seconds that a program must have taken to compile to be kept. A run needs dozens of
#: small ones, which are read in a tenth of that.
MIN_SECONDS = 0.01


def turn_on() -> None:
    """Let JAX keep compiled programs, in a folder that only this user can write to."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "no", "false"):
        return
    config = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    folder = Path(named or platformdirs.user_cache_dir("nutfree")) / f"jax-{_machine()}"
    if not _is_ours(folder):
        return
    config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_compilation_cache_max_size == -1:
        config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's own default
        config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def _is_ours(folder: Path) -> bool:
    """Whether the folder is there, can be written to, and by no one else.

    Compiled programs are code that will be run: what others can write is not read.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return False
    if not os.access(folder, os.W_OK):
        return False
    if not hasattr(os, "getuid"):
        return True
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _machine() -> str:
    """Return a name for the kind of processor, whose programs another may not run."""
    kind = f"{platform.machine()} {platform.processor()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kept = [x for x in lines if x.startswith(("flags", "Features", "model name"))]
    return hashlib.sha256("\n".join([kind, *kept[:2]]).encode()).hexdigest()[:8]
