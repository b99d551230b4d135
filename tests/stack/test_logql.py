"""The log panels' queries, by Grafana's own grammar of LogQL: a package of npm, unlike Loki."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.stack.conftest import panels

pytestmark = pytest.mark.stack
PACKAGES = ["@grafana/lezer-logql@0.4.2", "@lezer/lr@1.4.10", "@lezer/common@1.5.0"]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        assert not os.environ.get("CI"), "the grammar of LogQL comes from npm"
        pytest.skip("the grammar of LogQL comes from npm: apt-get install npm")
    folder = tmp_path_factory.mktemp("logql")
    subprocess.run(["npm", "install", "--silent", "--prefix", folder, *PACKAGES], check=True, capture_output=True)
    return Path(shutil.copy(PROJECT / "tests/stack/logql.mjs", folder))


def refused(script: Path, queries: list[str]) -> list[str]:
    result = subprocess.run(["node", script], input=json.dumps(queries), capture_output=True, text=True, check=True)
    found: list[str] = json.loads(result.stdout)
    return found


def test_every_log_panel_parses(script: Path) -> None:
    queries = [expression.replace("$__auto", "5m") for _, expression in panels("loki")]
    assert len(queries) == 4
    assert refused(script, queries) == []


def test_the_grammar_refuses_what_is_wrong(script: Path) -> None:
    wrong = ['{service="hw-server"', "sum by level count"]
    assert refused(script, wrong) == wrong
