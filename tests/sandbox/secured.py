"""A Nomad server with TLS and ACLs, beside the sandbox, which has neither."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox import ports
from sandbox.nomad import Agent, secured_config
from sandbox.process import start, stop
from sandbox.programs import programs

READY = 60.0  # seconds
CA = "nomad-agent-ca.pem"


@dataclass(frozen=True)
class Secured:
    """A running server; its folder has the files that `nomad tls` made."""

    environ: dict[str, str]  # to reach it, without a token
    folder: Path
    manager: str  # a token that may do everything

    def token(self, name: str, rules: str) -> str:
        """Make a token with a policy of that name."""
        self.nomad("acl", "policy", "apply", name, "-", text=rules)
        return made(self.nomad("acl", "token", "create", "-policy", name, "-json"))

    def nomad(self, *args: str, text: str = "") -> str:
        """Run `nomad` as the manager."""
        return nomad(self.folder, *args, environ=self.environ | {"NOMAD_TOKEN": self.manager}, text=text)


@contextmanager
def secured_server(folder: Path, verify_clients: bool = False) -> Iterator[Secured]:
    """Start a server; with `verify_clients`, it talks only to whom its CA has given a certificate."""
    nomad(folder, "tls", "ca", "create")
    nomad(folder, "tls", "cert", "create", "-server", "-region", "global")
    nomad(folder, "tls", "cert", "create", "-client", "-region", "global")
    block = ports.take_block()
    agent = Agent("secured", block.take(), block.take(), block.take())
    config = folder / "server.hcl"
    config.write_text(secured_config(agent, str(folder), verify_clients))
    server = start("nomad", [programs()["nomad"], "agent", "-config", config], folder / "log", {})
    environ = {"NOMAD_ADDR": f"https://127.0.0.1:{agent.http}", "NOMAD_CACERT": str(folder / CA)}
    if verify_clients:
        environ["NOMAD_CLIENT_CERT"] = str(folder / "global-client-nomad.pem")
        environ["NOMAD_CLIENT_KEY"] = str(folder / "global-client-nomad-key.pem")
    try:
        manager = server.wait_until(
            lambda: made(nomad(folder, "acl", "bootstrap", "-json", environ=environ)),
            READY,
            "it has a leader",
            ignoring=(subprocess.CalledProcessError,),
        )
        yield Secured(environ, folder, manager)
    finally:
        stop([server])
        block.release()


def made(token: str) -> str:
    """Take the secret from what `nomad acl … -json` prints."""
    secret: str = json.loads(token)["SecretID"]
    return secret


def nomad(folder: Path, *args: str, environ: dict[str, str] | None = None, text: str = "") -> str:
    """Run `nomad` in a folder, with nothing else in its environment."""
    return subprocess.run(
        [programs()["nomad"], *args],
        env=environ or {},
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
