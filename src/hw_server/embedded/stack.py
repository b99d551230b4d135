"""All servers of the native stack, in start order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hw_server.embedded import keycloak, nanoidp, postgres, valkey
from hw_server.embedded.process import Process, ProcessSpec
from hw_server.embedded.users import USERS

Provider = Literal["nanoidp", "keycloak"]


@dataclass(frozen=True, slots=True)
class Ports:
    app: int = 8000
    postgres: int = 15432
    redis: int = 16379
    oidc: int = 18080


class Stack:
    """PostgreSQL, Valkey and an OpenID provider. Stopping and starting again keeps their data. `users` are NanoIDP's, by
    name with their roles; Keycloak has those of its realm file. `origins` are those of front ends besides the application's own
    pages."""

    def __init__(
        self,
        state: Path,
        ports: Ports,
        provider: Provider = "nanoidp",
        users: Mapping[str, tuple[str, ...]] = USERS,
        origins: Sequence[str] = (),
    ) -> None:
        self.state = state.absolute()
        self.ports = ports
        self.provider = provider
        self.origins = tuple(origins)
        identity = (
            keycloak.spec(self.state, ports.oidc, ports.postgres, ports.app, self.origins)
            if provider == "keycloak"
            else nanoidp.spec(self.state, ports.oidc, ports.app, users, self.origins)
        )
        specs = (
            postgres.spec(self.state, ports.postgres),
            valkey.spec(self.state, ports.redis),
            identity,
        )
        self.processes = {spec.name: Process(spec, self.state) for spec in specs}

    def add(self, spec: ProcessSpec) -> Process:
        """One more process of this stack, such as the application."""
        process = self.processes[spec.name] = Process(spec, self.state)
        return process

    def start(self, progress: Callable[[str], None] = lambda line: None) -> None:
        """Starts what does not run and returns once all of it answers."""
        self.state.mkdir(parents=True, exist_ok=True)
        processes = list(self.processes.values())
        self.refuse_taken_ports()
        for process in processes:
            process.stop_outdated(progress)
        fresh = []
        for process in processes:
            if process.start():
                fresh.append(process)
            if process.spec.name == "postgresql" and self.provider == "keycloak":
                process.wait()  # Keycloak needs its database before it starts.
        for process in processes:
            process.wait()
            progress(f"{process.spec.name} is {'ready' if process in fresh else 'running already'}")

    def refuse_taken_ports(self) -> None:
        """All of them before anything starts, so that a refusal leaves nothing behind."""
        for process in self.processes.values():
            process.refuse_taken_port()

    def start_one(self, name: str, progress: Callable[[str], None] = lambda line: None) -> None:
        process = self.processes[name]
        process.start()
        process.wait()
        progress(f"{name} is ready")

    def stop(self, progress: Callable[[str], None] = lambda line: None) -> None:
        """Stops all, the last started first."""
        for process in reversed(self.processes.values()):
            if process.stop():
                progress(f"{process.spec.name} stopped")

    def environment(self) -> dict[str, str]:
        """Settings of an application that uses this stack."""
        issuer = f"http://127.0.0.1:{self.ports.oidc}"
        oidc = (
            {"HW_OIDC__ISSUER": f"{issuer}/realms/hw", "HW_OIDC__ROLES_CLAIM": "realm_access.roles"}
            if self.provider == "keycloak"
            else {"HW_OIDC__ISSUER": issuer, "HW_OIDC__ROLES_CLAIM": "roles"}
        )
        return {
            "HW_DATABASE__URL": f"postgresql://hw:hw-dev@127.0.0.1:{self.ports.postgres}/hw_db",
            "HW_REDIS__URL": f"redis://127.0.0.1:{self.ports.redis}",
            "HW_HTTP__PORT": str(self.ports.app),
            "HW_HTTP__PUBLIC_URL": f"http://localhost:{self.ports.app}",
            "HW_AUDIT__SPILL_DIR": str(self.state / "spill"),
            **({"HW_HTTP__CORS_ORIGINS": ",".join(self.origins)} if self.origins else {}),
            **oidc,
        }

    def owner(self) -> dict[str, str]:
        """Settings that `hw migrate` has besides: those of the role that owns the tables."""
        return {"HW_DATABASE__OWNER_URL": f"postgresql://hw_owner:hw-owner-dev@127.0.0.1:{self.ports.postgres}/hw_db"}
