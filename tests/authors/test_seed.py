"""What `hw up` shows of the example."""

import json
import os
import subprocess

from tests.conftest import PROJECT
from tests.shell import Shell


def test_the_first_request_lists_five_authors() -> None:
    with Shell.temporary() as shell:
        result = shell.up()
        assert result.returncode == 0, result.stderr
        [command] = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("curl ")]
        environment = {**os.environ, "HW_STATE": str(shell.state)}
        shown = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=PROJECT, env=environment, check=True
        )
        listed = shell.get("/api/authors", shell.token("bob")).json()
    assert len(json.loads(shown.stdout)["items"]) == 5
    assert listed == json.loads(shown.stdout)
