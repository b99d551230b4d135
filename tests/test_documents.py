"""What the documents say is so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hw_server.settings import PRODUCTION_DEFAULTS, variable_of
from hw_server.ws.codes import PLATFORM_ERRORS, CloseCode

PROJECT = Path(__file__).parent.parent
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
NAMES = {str(path.relative_to(PROJECT)): path for path in DOCUMENTS}


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
    for path in re.findall(r"`(?!docker/secrets)((?:src|tests|docs|bench|docker|migrations)/[\w/.-]+)`", text):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    text = NAMES[name].read_text()
    rules = (PROJECT / "Makefile").read_text() + (PROJECT / "docker/stack.mk").read_text()
    targets = re.findall(r"^([a-z-]+):", rules, re.M)
    assert set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M)) <= {(t, "") for t in targets} | {
        ("", t) for t in targets
    }
    told = subprocess.run([sys.executable, "-m", "hw_server.cli", "--help"], capture_output=True, text=True, check=True)
    for command in re.findall(r"\bhw ([a-z]+)\b", "".join(re.findall(r"`[^`]+`", text))):
        assert re.search(rf"│ {command} ", told.stdout), command


def test_every_setting_is_listed() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "hw_server.cli", "config", "show", "--json"],
        capture_output=True, text=True, check=True, env={"HW_STATE": "/nowhere"},
    )  # fmt: skip
    listed = (PROJECT / "docs/settings.md").read_text()
    for name, value in PRODUCTION_DEFAULTS.items():
        assert f"| `{variable_of(name)}` | `{value}` |\n" in listed
    for item in json.loads(told.stdout):
        default = f"`{item['value']}`" if item["value"] else ""
        assert f"| `{item['variable']}` | {default} | {item['description']} |" in listed


def test_every_code_is_listed() -> None:
    text = (PROJECT / "docs/protocol.md").read_text()
    for kind in PLATFORM_ERRORS:
        assert f"| `{kind.code}` | {kind.status} | {vars(kind).get('rpc_code', '')} |" in text
    for close in CloseCode:
        assert f"| {int(close)} | `{close.name.lower()}` |" in text


def test_names_of_variables_are_settings() -> None:
    known = set(re.findall(r"`(HW_[A-Z_]+)`", (PROJECT / "docs/settings.md").read_text()))
    for path in DOCUMENTS:
        assert set(re.findall(r"\bHW_[A-Z_]+[A-Z]\b", path.read_text())) <= known, path
