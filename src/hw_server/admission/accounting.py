"""Metrics and log lines of finished calls, for HTTP and the socket."""

import time
from typing import Any

from hw_server.observability.logging import RequestLog
from hw_server.observability.metrics import Metrics
from hw_server.operations import Call


class Accounting:
    """Metrics and the log line of each finished request, call or refused handshake."""

    def __init__(self, metrics: Metrics, request_log: RequestLog) -> None:
        self._metrics = metrics
        self._log = request_log
        # prometheus-client's `labels()` costs more than the rest of a count.
        self._requests: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._rpc: dict[tuple[str, str], Any] = {}

    def request(self, call: Call, method: str, route: str, status: int) -> None:
        series = self._requests.get((method, route, status))
        if series is None:
            series = self._requests[method, route, status] = (
                self._metrics.http_requests.labels(method, route, str(status)),
                self._metrics.http_duration.labels(method, route),
            )
        elapsed = time.perf_counter() - call.started
        series[0].inc()
        series[1].observe(elapsed)
        self._write("request", call, elapsed, {"method": method, "route": route, "status": status})

    def rpc(self, call: Call, method: str, code: str) -> None:
        """`code` is `ok` or the error's."""
        histogram = self._rpc.get((method, code))
        if histogram is None:
            histogram = self._rpc[method, code] = self._metrics.ws_rpc.labels(method, code)
        elapsed = time.perf_counter() - call.started
        histogram.observe(elapsed)
        self._write("call", call, elapsed, {"route": method, "code": code})

    def refused_handshake(self, call: Call, code: str) -> None:
        self._metrics.ws_outcomes.labels(code).inc()
        self._write("socket_refused", call, time.perf_counter() - call.started, {"code": code})

    def _write(self, event: str, call: Call, elapsed: float, fields: dict[str, Any]) -> None:
        if self._log.enabled:
            fields["request_id"] = call.request_id
            fields["duration_ms"] = round(elapsed * 1000, 2)
            fields["user_id"] = call.user_id
            fields["client_ip"] = call.client_ip
            self._log.write(event, fields)
