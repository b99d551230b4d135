"""What the documents say is so."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hw_server.cli.project import Project
from hw_server.operations import Feature
from hw_server.operations.injection import INJECTED
from hw_server.settings import PRODUCTION_DEFAULTS, variable_of
from hw_server.ws.codes import PLATFORM_ERRORS, CloseCode

PROJECT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
NAMES = {str(path.relative_to(PROJECT)): path for path in DOCUMENTS}
ROOTS = r"\.ci|\.github|bench|deploy|docker|docs|migrations|requirements|src|tests"
# How the documents show what an operation may be given.
SHOWN = {
    "read": "`db: Read`", "write": "`db: Write`", "caller": "`caller: Principal`", "call": "`call: Call`",
    "after_commit": "`after: AfterCommit`", "events": "`events: Events`", "socket": "`socket: Socket[", "provided": "`x: Provided[T]`",
}  # fmt: skip
RENAMED = re.compile(r"^\| `(HW_[A-Z_]+)` \| `HW_[A-Z_]+` \|$", re.M)  # old name, present name


@pytest.mark.parametrize("name", NAMES)
def test_links_and_paths_lead_somewhere(name: str) -> None:
    text, folder = NAMES[name].read_text(), NAMES[name].parent
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", text):
        target = folder / link if link else NAMES[name]
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if anchor else []
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
        }
    for path in re.findall(rf"`(?!docker/secrets)((?:{ROOTS})/[\w/.-]*)`", text) + re.findall(
        r'ARGS="(tests/[\w/.-]+)', text
    ):
        # A team that has removed the example keeps the documents.
        example_gone = "/authors" in path and "authors" not in Project().resources()
        assert example_gone or (PROJECT / path).exists(), path
    for path in re.findall(r"`([\w/.-]+\.(?:py|md|toml|yaml))`", text):
        # A module of the server, a file of the folder that a document tells of, or of a feature yet to be written.
        places = (PROJECT, PROJECT / "src/hw_server", PROJECT / "src/hw_server/audit")
        assert any((place / path).exists() for place in places), path


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    text = NAMES[name].read_text()
    makefiles = ("Makefile", "docker/stack.mk", "deploy/kubernetes.mk")
    rules = "".join((PROJECT / path).read_text() for path in makefiles)
    targets = re.findall(r"^([a-z-]+):", rules, re.M)
    assert set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M)) <= {(t, "") for t in targets} | {
        ("", t) for t in targets
    }
    result = subprocess.run(
        [sys.executable, "-m", "hw_server.cli", "--help"], capture_output=True, text=True, check=True
    )
    for command in re.findall(r"(?<!-n )\bhw ([a-z]+)\b", "".join(re.findall(r"`[^`]+`", text))):
        assert re.search(rf"│ {command} ", result.stdout), command


def test_every_setting_is_listed() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hw_server.cli", "config", "show", "--json"],
        capture_output=True, text=True, check=True, env={"HW_STATE": "/nowhere"},
    )  # fmt: skip
    listed = (PROJECT / "docs/settings.md").read_text()
    for name, value in PRODUCTION_DEFAULTS.items():
        assert f"| `{variable_of(name)}` | `{value}` |\n" in listed
    for item in json.loads(result.stdout):
        default = f"`{item['value']}`" if item["value"] else ""
        assert f"| `{item['variable']}` | {default} | {item['description']} |" in listed


def test_every_code_is_listed() -> None:
    text = (PROJECT / "docs/protocol.md").read_text()
    for kind in PLATFORM_ERRORS:
        assert f"| `{kind.code}` | {kind.status} | {vars(kind).get('rpc_code', '')} | {kind.title} |" in text
    for close in CloseCode:
        assert f"| {int(close)} | `{close.name.lower()}` |" in text


def test_names_of_variables_are_settings() -> None:
    known = set(re.findall(r"`(HW_[A-Z_]+)`", (PROJECT / "docs/settings.md").read_text()))
    for path in DOCUMENTS:
        text = path.read_text()
        assert set(re.findall(r"\bHW_[A-Z_]+[A-Z]\b", text)) - set(RENAMED.findall(text)) <= known, path


def test_every_decision_is_in_the_index() -> None:
    records = sorted((PROJECT / "docs/adr").glob("[0-9]*.md"))
    index = (PROJECT / "docs/adr/README.md").read_text()
    for number, path in enumerate(records, 1):
        [title, *headings] = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
        assert title.startswith(f"{number}. ")
        assert headings == ["Context", "Decision", "Consequences"]
        assert f"| [{title}]({path.name}) |" in index


def test_the_middleware_is_listed_in_order() -> None:
    listed = re.findall(r"^\| `(\w+Middleware)` \|", (PROJECT / "docs/architecture/request-flow.md").read_text(), re.M)
    app = (PROJECT / "src/hw_server/app.py").read_text().partition("middleware: list")[2].partition("]\n    web")[0]
    used = re.findall(r"\b(\w+Middleware|cors)\b", app)
    assert listed == ["CORSMiddleware" if name == "cors" else name for name in used]


def test_every_part_of_a_declaration_is_listed() -> None:
    text = (PROJECT / "docs/adding-a-resource.md").read_text()
    for argument in fields(Feature):
        assert argument.name == "name" or f"| `{argument.name}` |" in text
    for kind in INJECTED:
        assert SHOWN[kind] in text


def test_every_package_is_listed() -> None:
    text = (PROJECT / "docs/architecture/overview.md").read_text().partition("## Promises")[0]
    listed = {name for row in re.findall(r"^\| (`.+?) \|", text, re.M) for name in re.findall(r"`(\w+)`", row)}
    package = PROJECT / "src/hw_server"
    packages = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("[a-z]*.py")
    }
    own = {"authors", *Project().resources()}  # a team's resources need no line here, and the example may be gone
    assert listed - own == packages - own
