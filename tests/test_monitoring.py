"""Alerts: proven by promtool, on series that are really exported."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from docker.grafana import runbook

from hw_server.ws.codes import PLATFORM_ERRORS, CloseCode
from tests.conftest import PROJECT, Running, until
from tests.traefik import run_traefik

PROMETHEUS = PROJECT / "docker" / "prometheus"
ALERTS = (PROMETHEUS / "alerts.yml").read_text()
NAMES = re.findall(r"alert: (\w+)", ALERTS)
PAGING = (PROMETHEUS / "paging.yml").read_text()
PAGES = re.findall(r"alert: (\w+)", PAGING)
EXPRESSIONS = re.findall(r"expr: >-\n +(.+)", ALERTS + PAGING)
FROM_ELSEWHERE = {
    "up", "jvm_memory_used_bytes", "jvm_memory_max_bytes", "traefik_tls_certs_not_after",
    "backup_last_success_timestamp_seconds",
}  # fmt: skip


@pytest.fixture
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None and not os.environ.get("CI"):
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return path or "promtool"


def check(promtool: str, *arguments: str, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_there_are_sixteen_alerts_in_eight_groups() -> None:
    assert (len(NAMES), len(re.findall(r"- name: ", ALERTS))) == (16, 8)
    for part in ("severity:", "summary:", "description:", "runbook_url:"):
        assert ALERTS.count(part) == 16
        assert PAGING.count(part) == len(PAGES)


@pytest.mark.parametrize(("file", "names"), [("alerts", NAMES), ("paging", PAGES)])
def test_each_alert_fires_and_stays_quiet(promtool: str, file: str, names: list[str]) -> None:
    result = check(promtool, "test", "rules", f"{file}_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    cases = re.findall(r"^  - name: (.+)$", (PROMETHEUS / f"{file}_test.yml").read_text(), re.M)
    assert len(set(cases)) == len(cases)
    # More cases of an alert say what is particular to them: "ServerDown fires, no target is known".
    assert {case.partition(",")[0] for case in cases} == {
        f"{name} {kind}" for name in names for kind in ("fires", "stays quiet")
    }


@pytest.mark.parametrize(
    ("file", "change"),
    [
        *product(("alerts", "paging"), [("== 0", "== 7"), ("> 0.05", "> 99"), ("for: 10m", "for: 10h")]),
        ("paging", ('(count(up{job="fastapi"} == 1) or vector(0)) == 0', 'sum(up{job="fastapi"}) == 0')),
        ("paging", ('(count(up{job="traefik"} == 1) or vector(0)) == 0', 'absent(up{job="traefik"})')),
        ("paging", ("quantile_over_time(0.5, ", "quantile_over_time(1, ")),
        ("paging", (' or absent(up{job="alertmanager"})', "")),
        ("paging", (' or absent(up{job="backup"})', "")),
        ("paging", ("> 26 * 3600", "> 28 * 3600")),
    ],
)
def test_a_broken_alert_is_noticed(promtool: str, tmp_path: Path, file: str, change: tuple[str, str]) -> None:
    shutil.copy(PROMETHEUS / f"{file}_test.yml", tmp_path)
    rules = (PROMETHEUS / f"{file}.yml").read_text()
    assert change[0] in rules
    (tmp_path / f"{file}.yml").write_text(rules.replace(*change))
    assert check(promtool, "test", "rules", f"{file}_test.yml", folder=tmp_path).returncode == 1


def test_the_configuration_is_valid(promtool: str, tmp_path: Path) -> None:
    for name in ("alerts.yml", "paging.yml"):
        shutil.copy(PROMETHEUS / name, tmp_path)
    text = (PROMETHEUS / "prometheus.yml").read_text().replace("/etc/prometheus/", "")
    (tmp_path / "prometheus.yml").write_text(text)
    result = check(promtool, "check", "config", "prometheus.yml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


async def test_alerts_use_series_that_are_exported(server: Running, token: Callable[[str], str]) -> None:
    async with server.client(token("dave")) as client, server.socket(token("dave")) as socket:
        await client.get("/api/notes")
        await socket.call("ping")
        text = (await client.get("/metrics")).text
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.M)) | set(re.findall(r"^(\w+)[{ ]", text, re.M))
    # A counter with labels has no sample before it first counts, but its TYPE line is there.
    used = {name for line in EXPRESSIONS for name in re.findall(r"\b([a-z]\w+_\w+|up)\b(?=[{\[ )])", line)}
    used -= {"histogram_quantile"}
    assert used - FROM_ELSEWHERE <= exported


def test_what_pages_is_what_a_receiver_is_told_at_once() -> None:
    """The ratios of `alerts.yml` ask for no minimum of traffic: a few failures at night would wake somebody."""
    labels = re.findall(r"labels: \{(.+)\}", PAGING)
    assert {'page: "true"' in label for label in labels if "critical" in label} == {True}
    assert "page:" not in ALERTS
    route = (PROJECT / "docker/alertmanager/alertmanager.yml").read_text()
    assert re.findall(r"matchers: (.+)", route) == ["['page=\"true\"']"]


async def test_traefik_exports_the_end_of_a_certificate(tmp_path: Path) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=9)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api.example.org")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, ends - timedelta(days=90), ends)
    (tmp_path / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    files = {"certFile": str(tmp_path / "cert.pem"), "keyFile": str(tmp_path / "key.pem")}
    with run_traefik(tmp_path, {"tls": {"certificates": [files]}}) as url:
        pattern = re.compile(r"^traefik_tls_certs_not_after\{(.+)\} (\S+)$", re.M)
        [(labels, value)] = await until(lambda: pattern.findall(httpx.get(f"{url}/metrics").text))
    assert 'cn="api.example.org"' in labels
    assert float(value) == ends.timestamp()


def test_rejections_are_outcomes_that_exist() -> None:
    [outcomes] = re.findall(r'ws_connections_total\{outcome=~"([^"]+)"\}', ALERTS)
    assert set(outcomes.split("|")) <= {kind.code for kind in PLATFORM_ERRORS} | {
        code.name.lower() for code in CloseCode
    }


def test_every_alert_has_its_runbook() -> None:
    text = (PROJECT / "docs/deployment/monitoring.md").read_text()
    assert re.findall(r"^### (\w+)$", text, re.M) == NAMES + PAGES
    board = json.loads(runbook.BOARD.read_text())
    assert board == runbook.board(text), "run: python docker/grafana/runbook.py"
    assert [panel["title"] for panel in board["panels"]] == NAMES + PAGES
    assert re.findall(r'runbook_url: "{{ \$externalLabels.grafana }}(.+)"', ALERTS + PAGING) == [
        runbook.address(name) for name in NAMES + PAGES
    ]


def linked_panels() -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Panels with links to runbooks, and the addresses by alert."""
    for path in sorted(runbook.BOARD.parent.glob("*-metrics.json")):
        for panel in json.loads(path.read_text())["panels"]:
            if links := panel.get("links"):
                yield panel, {link["title"].removeprefix("Runbook: "): link["url"] for link in links}


LINKED = [*linked_panels()]


def test_panels_lead_to_runbooks() -> None:
    led = {alert: url for _, links in LINKED for alert, url in links.items()}
    assert led == {alert: runbook.address(alert) for alert in led}
    # The first names a job. The others' series are in production alone, and a panel must show data in development too.
    assert {*NAMES, *PAGES} - {*led} == {"MonitoringDown", "BackupTooOld", "CertificateExpires"}


@pytest.mark.parametrize(("panel", "links"), LINKED, ids=[panel["title"] for panel, _ in LINKED])
def test_a_panel_shows_at_which_value_its_alerts_fire(panel: dict[str, Any], links: dict[str, str]) -> None:
    field = panel["fieldConfig"]
    thresholds = [field["defaults"].get("thresholds", {"steps": []})]
    thresholds += [
        rule["value"] for item in field["overrides"] for rule in item["properties"] if rule["id"] == "thresholds"
    ]
    steps = {step["value"] for threshold in thresholds for step in threshold["steps"]}
    assert steps > {None}
    if panel["type"] == "timeseries":
        assert field["defaults"]["custom"]["thresholdsStyle"] == {"mode": "line"}
    expressions = dict(zip(NAMES + PAGES, EXPRESSIONS, strict=True))
    for alert in links:
        found = re.search(r"[<>=] ([\d.]+)$", expressions[alert])
        # A step begins at its value, and what is counted is above or not at 0 from 1 on.
        assert found is None or (float(found[1]) or 1) in steps, alert
        assert found is not None or alert == "ReplicaMissing"  # whose limit is a figure of the past
