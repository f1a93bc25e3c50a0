"""A Flower deployment on loopback: keys, a SuperLink, and SuperNodes, as processes."""

import contextlib
import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from nutfree.hosts.flower_app import write_app

BIN = Path(sys.executable).parent
FILE = """\
import numpy as np
import numpyro
import numpyro.distributions as dist


def model(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 10))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(y)):
        x, y = numpyro.subsample(x, event_dim=0), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def owner(config):
    s = int(config["partition-id"])
    rng = np.random.default_rng(s)
    x = rng.normal(s - 1.0, 1, 60 + 30 * s)
    y = 1.3 * x + 0.5 * rng.normal(size=len(x))
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def owners():
    return [owner({"partition-id": s}) for s in range(3)]
"""


def make_keys(folder: Path, owners: int) -> None:
    """Write a certificate authority, the server's certificate, and owners' keys."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def new():
        return ec.generate_private_key(ec.SECP384R1())

    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject, key, authority_key, is_authority):
        now = datetime.datetime.now(datetime.UTC)
        local = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        built = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(
                x509.BasicConstraints(ca=is_authority, path_length=None), True
            )
            .add_extension(x509.SubjectAlternativeName(local), False)
            .sign(authority_key, hashes.SHA256())
        )
        return built.public_bytes(forms.Encoding.PEM)

    none = forms.NoEncryption()
    authority, server = new(), new()
    (folder / "ca.crt").write_bytes(
        certificate("authority", authority, authority, True)
    )
    (folder / "server.pem").write_bytes(
        certificate("localhost", server, authority, False)
    )
    (folder / "server.key").write_bytes(
        server.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, none)
    )
    for s in range(owners):
        key = new()
        (folder / f"node{s}").write_bytes(
            key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, none)
        )
        (folder / f"node{s}.pub").write_bytes(
            key.public_key().public_bytes(
                forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH
            )
        )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def family(processes: set[int]) -> dict[int, list[str]]:
    """Return the fields of `/proc/PID/stat`, from the state on, of these processes and
    of all that they have started; nothing where there is no `/proc`."""
    table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        table[int(folder.name)] = text[text.rindex(")") + 2 :].split()
    ours = set(processes)
    while new := {p for p, stat in table.items() if int(stat[1]) in ours} - ours:
        ours |= new
    return {p: table[p] for p in ours if p in table}


class Deployment:
    """Processes of one deployment, all of which are ended with it."""

    def __init__(self, folder: Path, owners: int):
        self.folder, self.owners = folder, owners
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen] = {}
        make_keys(folder, owners + 1)
        (folder / "model_file.py").write_text(FILE)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n\n[superlink.loop]\n'
            f'address = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{folder / "ca.crt"}"\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def _start(self, name: str, command: list[str]) -> None:
        # a new session, so that what it starts ends with it
        log = open(self.folder / f"{name}.log", "a")  # noqa: SIM115
        self.processes[name] = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def start_server(self) -> None:
        tls = ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        self._start(
            "superlink",
            [
                "flower-superlink",
                *tls,
                *("--ssl-ca-certfile", "ca.crt", "--enable-supernode-auth"),
                "--disable-runtime-dependency-installation",
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--database", "state.db"),
            ],
        )
        self.wait_for(self._listens, 120, "the SuperLink does not listen")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def register(self, s: int) -> None:
        self.flwr("supernode", "register", f"node{s}.pub", "loop")

    def start_owner(self, s: int, name: str = "", key: bool = True) -> None:
        private = ["--auth-supernode-private-key", f"node{s}"] if key else []
        self._start(
            name or f"owner{s}",
            [
                "flower-supernode",
                *("--root-certificates", "ca.crt"),
                *("--superlink", f"127.0.0.1:{self.port}"),
                *private,
                *("--port", str(free_port())),
                *("--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"),
                *("--ssl-ca-certfile", "ca.crt"),
                "--node-config",
                f'partition-id={s} name="owner{s}" noise-seed={s}',
            ],
        )

    def nodes(self) -> list[str]:
        """Return the states of the nodes that the SuperLink knows of."""
        told = self.flwr("supernode", "list", "loop", "--format", "json")
        return [node["status"] for node in json.loads(told)["nodes"]]

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, **settings) -> None:
        number = len(list(self.folder.glob("app*")))
        app = write_app(
            self.folder / f"app{number}", self.folder / "model_file.py", settings
        )
        self.flwr("run", str(app), "loop")

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        # what runs the server's part has a session of its own
        started = family({process.pid})
        os.killpg(process.pid, signal.SIGKILL)
        for one in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, condition, seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            for name, process in self.processes.items():
                if "stranger" not in name and process.poll() is not None:
                    raise AssertionError(f"{name} has ended: {self.log(name)[-3000:]}")
            if time.monotonic() > end:
                tails = [f"{n}: {self.log(n)[-1500:]}" for n in self.processes]
                raise AssertionError("\n".join([otherwise, *tails]))
            time.sleep(0.5)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        for name in list(self.processes):
            self.kill(name)
