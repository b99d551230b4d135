"""The project's own files, as `hw new` and `hw remove` change them: all or nothing."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_server.cli.stack import PROJECT

PLATFORM = ("audit", "sessions")  # features that other parts stand on
ROLES_OF = {"alice": ("read", "write"), "bob": ("read",), "dave": ("read", "write")}
REALMS = ("docker/keycloak/hw-realm.json", "docker/keycloak/hw-realm.production.json")
PACKAGE, VERSIONS = "src/hw_server", "migrations/versions"
USERS, FEATURES = f"{PACKAGE}/embedded/users.py", f"{PACKAGE}/features.py"


class ProjectError(Exception):
    """What is wrong with what was asked for, in one line."""


@dataclass(frozen=True)
class Migration:
    """A file in `migrations/versions`. `upgrade` and `downgrade` are the lines of their bodies."""

    path: Path
    revision: str
    upgrade: str
    downgrade: str

    @classmethod
    def read(cls, path: Path) -> "Migration":
        text = path.read_text()
        functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        lines = text.splitlines()

        def body(name: str) -> str:
            node = functions[name]
            # From the line below the signature, so that comments are kept.
            return "\n".join(lines[node.lineno : node.end_lineno]) + "\n"

        [revision] = re.findall(r'^revision = "(\w+)"', text, re.M) or [path.stem]
        return cls(path, revision, body("upgrade"), body("downgrade"))


class Project:
    """What the folder holds."""

    def __init__(self, root: Path = PROJECT) -> None:
        self.root = root
        if not (root / "pyproject.toml").is_file() or not (root / FEATURES).is_file():
            raise ProjectError(f"{root} is not the project's folder; install it with `make venv` (pip install -e)")

    def features(self) -> list[str]:
        """The features in `features.py`, in its order."""
        text = (self.root / FEATURES).read_text()
        return re.findall(r"^    (\w+)\.feature,$", text, re.M)

    def resources(self) -> list[str]:
        """The features that may be removed or belonged to."""
        return [name for name in self.features() if name not in PLATFORM]

    def migrations(self) -> list[Migration]:
        """Oldest first, by their names."""
        return [Migration.read(path) for path in sorted((self.root / VERSIONS).glob("*.py"))]

    def created_by(self, table: str) -> Migration | None:
        """The migration that creates the table, None where there is none or a later one drops it."""
        latest = None
        for migration in self.migrations():
            if re.search(rf"\bCREATE TABLE (IF NOT EXISTS )?{table}\b", migration.upgrade):
                latest = migration
            elif re.search(rf"\bDROP TABLE [^;]*\b{table}\b", migration.upgrade):
                latest = None
        return latest

    def references(self, table: str) -> list[str]:
        """The tables that the migration of `table` refers to."""
        migration = self.created_by(table)
        return re.findall(r"\bREFERENCES (\w+)", migration.upgrade) if migration else []

    def referring(self, table: str) -> list[str]:
        """The features whose tables refer to `table`."""
        return [name for name in self.features() if name != table and table in self.references(name)]

    def class_of(self, feature: str) -> str | None:
        """The first model of a feature: what its rows are."""
        path = self.root / PACKAGE / feature / "models.py"
        match = re.search(r"^class (\w+)\(BaseModel\)", path.read_text(), re.M) if path.is_file() else None
        return match[1] if match else None


class Changes:
    """Files to write (None deletes), applied together: a failure restores what was there."""

    def __init__(self, project: Project) -> None:
        self.root = project.root
        self._files: dict[Path, str | None] = {}

    def read(self, path: str) -> str:
        """The text of a file with the changes so far."""
        planned = self._files.get(self.root / path)
        return (self.root / path).read_text() if planned is None else planned

    def write(self, path: str, text: str) -> None:
        self._files[self.root / path] = text

    def delete(self, path: Path) -> None:
        self._files[path] = None

    def delete_folder(self, path: str) -> None:
        for file in sorted((self.root / path).rglob("*")):
            if file.is_file():
                self.delete(file)

    def lines(self) -> list[str]:
        """`new`, `changed` or `removed`, and the path of each file."""
        return [
            f"{'removed' if text is None else 'changed' if path.exists() else 'new':8} {path.relative_to(self.root)}"
            for path, text in self._files.items()
            if "__pycache__" not in path.parts
        ]

    def apply(self) -> None:
        """Raises `ProjectError` where a file cannot be written or formatted; nothing has changed then."""
        before = {path: path.read_bytes() if path.exists() else None for path in self._files}
        try:
            self._put({path: None if text is None else text.encode() for path, text in self._files.items()})
            self._format()
        except BaseException as error:
            self._put(before)
            if isinstance(error, OSError | subprocess.CalledProcessError):
                reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
                raise ProjectError(f"nothing was changed: {str(reason).strip()}") from None
            raise

    def _put(self, files: dict[Path, bytes | None]) -> None:
        for path, data in files.items():
            if data is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                continue
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or any(folder.iterdir()):
                    break
                folder.rmdir()

    def _format(self) -> None:
        """Long names break lines and change the order of imports; the project's own formatter knows how."""
        written = [str(path) for path, text in self._files.items() if text is not None and path.suffix == ".py"]
        for command in (["check", "--select", "I", "--fix"], ["format"]):
            ruff = [sys.executable, "-m", "ruff", *command, "-q", *written]
            subprocess.run(ruff, cwd=self.root, capture_output=True, text=True, check=True)  # noqa: S603


def edit_features(text: str, add: str | None = None, remove: str | None = None) -> str:
    """`features.py` with a line and an import more, or less."""
    [node] = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) and node.module == "hw_server"]
    names = sorted({name.name for name in node.names} - {remove} | ({add} if add else set()))
    lines = text.splitlines(keepends=True)
    lines[node.lineno - 1 : node.end_lineno] = [f"from hw_server import {', '.join(names)}\n"]
    text = "".join(lines)
    if remove:
        text = text.replace(f"    {remove}.feature,\n", "")
    if add:
        end = text.index("\n)", text.index("FEATURES = ("))
        text = f"{text[:end]}\n    {add}.feature,{text[end:]}"
    return text


def edit_realm(text: str, name: str, words: str, *, add: bool) -> str:
    """A realm file with the roles of a resource, or without; and its users with theirs."""
    realm = json.loads(text)
    roles, users = realm["roles"]["realm"], realm.get("users", ())
    roles[:] = _without(roles, name)
    for user in users:
        user["realmRoles"] = _without(user["realmRoles"], name)
    if add:
        described = {"read": f"Read {words}", "write": f"Create, change and delete {words}"}
        _insert(roles, [{"name": f"{name}:{kind}", "description": text} for kind, text in described.items()])
        for user in users:
            _insert(user["realmRoles"], [f"{name}:{kind}" for kind in ROLES_OF.get(user["username"], ())])
    return json.dumps(realm, indent=2, ensure_ascii=False) + "\n"


def edit_users(text: str, name: str, *, add: bool) -> str:
    """`embedded/users.py` with the roles of a resource, or without."""
    [node] = [
        node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "USERS"
    ]
    assert node.value is not None
    users = {user: _without(list(roles), name) for user, roles in ast.literal_eval(node.value).items()}
    for user, roles in users.items():
        if add:
            _insert(roles, [f"{name}:{kind}" for kind in ROLES_OF.get(user, ())])
    # Without a comma at the end, so that the formatter chooses between one line and several.
    entries = [f'    "{user}": {_tuple(roles)},\n' for user, roles in users.items()]
    lines = text.splitlines(keepends=True)
    lines[node.lineno - 1 : node.end_lineno] = [f"USERS: {ast.unparse(node.annotation)} = {{\n", *entries, "}\n"]
    return "".join(lines)


def _tuple(roles: Sequence[str]) -> str:
    quoted = [f'"{role}"' for role in roles]
    return f"({quoted[0]},)" if len(quoted) == 1 else f"({', '.join(quoted)})"


def _without(roles: list[Any], name: str) -> list[Any]:
    """The roles of all but one resource."""
    return [role for role in roles if not _name(role).startswith(f"{name}:")]


def _insert(roles: list[Any], new: list[Any]) -> None:
    """Before the roles of the platform, so that those of resources stay together."""
    platform = (place for place, role in enumerate(roles) if _name(role).partition(":")[0] in PLATFORM)
    place = next(platform, len(roles))
    roles[place:place] = new


def _name(role: Any) -> str:
    return str(role if isinstance(role, str) else role["name"])
