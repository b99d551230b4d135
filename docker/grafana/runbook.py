"""Makes the dashboard `runbook`, a panel for each alert, from docs/deployment/monitoring.md: addresses that open wherever Grafana
runs. `python docker/grafana/runbook.py` writes it anew after a change of that document."""

import json
import re
from pathlib import Path
from typing import Any
from zlib import crc32

PROJECT = Path(__file__).parent.parent.parent
DOCUMENT = PROJECT / "docs/deployment/monitoring.md"
BOARD = Path(__file__).parent / "provisioning/dashboards/runbook.json"
COLUMNS, WIDTH, HEIGHT = 2, 12, 5  # Grafana's grid is 24 wide


def panel_id(alert: str) -> int:
    """The same wherever the alert stands in the document, so that links stay right."""
    return crc32(alert.encode()) % 1_000_000 + 1


def address(alert: str) -> str:
    return f"/d/runbook?viewPanel={panel_id(alert)}"


def board(document: str) -> dict[str, Any]:
    """The dashboard of the sections `### Alert` in a Markdown document."""
    sections = re.findall(r"^### (\w+)\n+(.+?)(?=\n+#|\Z)", document, re.M | re.S)
    return {
        "uid": "runbook",
        "title": "Runbook",
        "tags": ["hw-server"],
        "editable": False,
        "schemaVersion": 39,
        "panels": [_panel(place, alert, text.strip()) for place, (alert, text) in enumerate(sections)],
    }


def _panel(place: int, alert: str, text: str) -> dict[str, Any]:
    row, column = divmod(place, COLUMNS)
    return {
        "id": panel_id(alert),
        "type": "text",
        "title": alert,
        "description": "",
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "options": {"mode": "markdown", "content": text},
    }


if __name__ == "__main__":
    BOARD.write_text(json.dumps(board(DOCUMENT.read_text()), indent=2) + "\n")
