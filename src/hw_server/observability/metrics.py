"""Every metric the server exports. Names, labels and buckets live here and nowhere else; labels are bounded."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own name; `hw serve` sets it for several workers


class Metrics:
    """One set of metrics for one application. Several workers add up through prometheus-client's shared files."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry, multiprocess_mode="livesum")

        def least(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry, multiprocess_mode="livemin")

        def greatest(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry, multiprocess_mode="livemax")

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry, buckets=LATENCY)

        self.http_requests = counter("http_requests_total", "Requests answered.", "method", "route", "status")
        self.http_duration = histogram("http_request_duration_seconds", "Time to the last byte.", "method", "route")
        self.http_in_progress = gauge("http_requests_in_progress", "Requests being answered.")

        self.http_refused_headers = counter(
            "http_refused_headers_total", "Connections closed over request headers: late or too_large.", "reason"
        )
        self.http_closed = counter(
            "http_connections_closed_total",
            "Connections closed by the server: invalid, body, unread or too_many.",
            "reason",
        )

        # Not `ws_connections`: a counter's family name is its name without `_total`, and two families may not share one.
        self.ws_open = gauge("ws_connections_open", "Open sockets.")
        self.ws_limit = gauge("ws_connections_limit", "Open sockets at most.")
        self.ws_outcomes = counter(
            "ws_connections_total", "Sockets by how the attempt or the connection ended.", "outcome"
        )
        self.ws_messages = counter("ws_messages_total", "Messages.", "direction")
        self.ws_rpc = histogram("ws_rpc_duration_seconds", "Socket calls.", "method", "code")

        self.db_pool_size = gauge("db_pool_connections", "Connections of the pool, and their limit.", "state")
        self.db_query = histogram("db_query_duration_seconds", "Statements, by first word.", "statement")
        self.db_errors = counter("db_errors_total", "Statements that failed and waits that timed out.", "kind")
        self.db_up = least("db_up", "1 while every worker reaches PostgreSQL, else 0.")

        self.redis_up = least("redis_up", "1 while every worker reaches Redis, else 0.")
        self.redis_duration = histogram("redis_command_duration_seconds", "Redis round trips.", "purpose")
        self.redis_errors = counter("redis_errors_total", "Redis round trips that failed.", "purpose")

        self.auth_attempts = counter(
            "auth_attempts_total", "Tokens verified, by `ok` or the reason of the refusal.", "outcome"
        )
        self.rate_limit_hits = counter("rate_limit_hits_total", "Requests refused by a limit.", "scope")
        self.rate_limit_fallback = counter("rate_limit_fallback_total", "Decisions made without Redis.", "scope")

        self.audit_rows = counter("audit_rows_total", "Audit rows, by where they were written.", "result")
        self.audit_queue = gauge("audit_queue_rows", "Audit rows waiting in memory.")
        self.audit_spill_bytes = gauge("audit_spill_bytes", "Audit rows waiting on disk, bytes.")
        self.audit_flush = histogram("audit_flush_duration_seconds", "Time to write one batch.")

        self.topic_published = counter("topic_events_published_total", "Events taken from the outbox to Redis.")
        self.topic_ephemeral = counter("topic_events_ephemeral_total", "Events sent straight to Redis.")
        self.topic_received = counter("topic_events_received_total", "Events heard of by processes with subscribers.")
        self.topic_delivered = counter("topic_deliveries_total", "Events written to subscribers.", "protocol")
        self.topic_conflated = counter(
            "topic_events_conflated_total",
            "Events that newer ones replaced for subscribers that did not read.",
            "protocol",
        )
        self.topic_streams = gauge("topic_streams_open", "Open event streams.")
        self.topic_streams_ended = counter("topic_streams_total", "Event streams by how they ended.", "outcome")
        self.topic_resets = counter("topic_resets_total", "Subscriptions told that events are lost to them.")
        self.topic_repairs = counter("topic_repairs_total", "Gaps that were read from history.")
        self.topic_dead_letters = counter("topic_dead_letters_total", "Events given up after their tries.")
        self.topic_subscriptions = gauge("topic_subscriptions", "Subscriptions of sockets and event streams.")
        self.topic_channels = gauge("topic_channels", "Topics followed by worker processes.")
        self.topic_partitions = gauge("topic_relay_partitions", "Partitions of the outbox that are relayed.")
        self.topic_outbox_lag = greatest("topic_outbox_lag_seconds", "Age of the oldest event in the outbox.")

        self.service_failures = counter(
            "service_item_failures_total", "Items that a background service could not process.", "service"
        )
        # The names of prometheus-client's own collector, which knows one process only; with several workers these are sums.
        self.process_cpu = counter("process_cpu_seconds_total", "CPU time used, user and system.")
        self.process_resident = gauge(
            "process_resident_memory_bytes", "Memory in use, what workers share counted for each."
        )
        self.process_virtual = gauge("process_virtual_memory_bytes", "Addresses in use.")
        self.process_open_files = gauge("process_open_fds", "Open files and connections.")
        self.process_max_files = least("process_max_fds", "Files and connections that one worker may open.")
        self.process_start = greatest("process_start_time_seconds", "Unix time at which the youngest worker started.")
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds",
            "How much later than due the event loop of a worker turns, looked at four times a second.",
        )
        self.workers = gauge("hw_workers", "Worker processes that serve.")

    def expose(self) -> bytes:
        """Prometheus text; of all workers where several share a folder."""
        if not os.environ.get(MULTIPROCESS_DIR):
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)
