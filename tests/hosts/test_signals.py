"""Ctrl-C and SIGTERM, in every phase of a run, end with what there is."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import nutfree as nf
from nutfree.hosts import underway
from nutfree.hosts.interrupts import Interrupts
from nutfree.hosts.underway import Pace

_SCRIPT = """
import signal, sys, warnings
import numpyro, numpyro.distributions as dist, nutfree as nf
warnings.simplefilter("ignore")
# a shell starts what it puts into the background with Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

def model():
    numpyro.sample("x", dist.Normal())

try:
    tree = nf.sample(
        nf.kernel("mala", model), num_warmup=int(sys.argv[1]), num_chains=1,
        num_samples=int(sys.argv[2]), checkpoint=sys.argv[3] or None,
    )
    print("draws", tree["posterior"].sizes["draw"])
except KeyboardInterrupt:
    print("interrupted")
"""
MANY, FEW = 1_000_000, 200


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C, which a shell lets what it puts into the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(number, phase, num_warmup, num_samples, path=""):
    """What a process prints, and its exit status, if a signal comes in a phase."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(num_warmup), str(num_samples), str(path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""},
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"nutfree: {phase},"):
            process.send_signal(number)
            break
    out, rest = process.communicate(timeout=600)
    assert said, rest
    return out.strip(), process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("phase", "sizes", "outcome"),
    [
        ("start and pilot", (FEW, FEW), None),
        ("compile", (FEW, FEW), None),
        ("warm-up", (MANY, FEW), None),
        ("draws", (FEW, MANY), "draws"),
        ("judging", (FEW, FEW), "draws 200"),
    ],
)
def test_a_signal_ends_a_run_with_what_there_is(number, phase, sizes, outcome):
    out, status = ended(number, phase, *sizes)
    if outcome is not None:
        assert out.startswith(outcome)
        assert int(out.split()[1]) < MANY
        assert status == 0
    elif number == signal.SIGINT:
        assert (out, status) == ("interrupted", 0)
    else:
        assert (out, status) == ("", 128 + signal.SIGTERM)


@pytest.mark.slow
def test_a_warmup_that_was_interrupted_is_kept(tmp_path):
    out, _ = ended(signal.SIGTERM, "warm-up", MANY, FEW, tmp_path)
    assert out == ""
    assert (tmp_path / "state.npz").exists()
    with pytest.raises(nf.CheckpointMismatch, match="no draws"):
        nf.read_checkpoint(tmp_path)


def test_the_first_signal_is_noted_and_the_second_acts():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.hold()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_of_others_and_of_other_threads_are_left_alone():
    def mine(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, mine)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seen = []

    def elsewhere():
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize("seconds", [1e-5, 1e-2, 10.0])
def test_pieces_grow_to_two_seconds_whatever_a_draw_takes(seconds):
    pace, made = Pace(10**9, timed=True), []
    for _ in range(12):
        made.append(pace.next(10**9))
        pace.took(made[-1], made[-1] * seconds)
    assert made[0] == 1
    assert made[-1] * seconds == pytest.approx(
        max(underway.PIECE_SECONDS, seconds), rel=0.01
    )
    assert pace.next(1) == 1
    assert [Pace(50, timed=False).next(left) for left in (80, 30)] == [50, 30]
