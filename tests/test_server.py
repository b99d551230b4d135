"""The process as a whole: health, metrics, logs, workers, shutdown, documents."""

import asyncio
import contextlib
import re
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from hw_server.db.migrations import ADVISORY_LOCK
from hw_server.embedded import Stack
from tests.conftest import Running, Serve, until
from tests.provider import Provider
from tests.proxy import Proxy

Token = Callable[[str], str]
HEALTH = ("/health", "/health/ready")


async def test_health_names_every_component(server: Running) -> None:
    async with server.client() as client:
        report = (await client.get("/health")).json()
        for path in ("/health/live", "/health/ready"):
            assert (await client.get(path)).json() == {"status": "ok"}
    assert report["status"] == "ok"
    assert set(report["components"]) == {"postgresql", "redis_cache", "redis_auth", "identity"}


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-Ip"])
async def test_health_names_nothing_to_strangers(server: Running, header: str) -> None:
    async with server.client() as client:
        assert (await client.get("/health", headers={header: "for=192.0.2.1"})).json() == {"status": "ok"}


def test_a_start_with_nothing_to_migrate_imports_no_alembic(server: Running, serve: Serve) -> None:
    """It would be a third of the start, and stay in memory."""
    with serve(PYTHONPROFILEIMPORTTIME="1") as running:
        imported = set(re.findall(r"\| +([\w.]+)$", running.log_file.read_text(), re.MULTILINE))
    assert {"asyncpg", "fastapi"} <= imported
    assert not {"alembic", "sqlalchemy"} & imported


async def test_counts_requests_by_route(server: Running, dave: httpx.AsyncClient) -> None:
    series = 'http_requests_total{method="GET",route="/api/notes/{id}",status="404"}'
    before = (await server.metrics()).get(series, 0)
    for index in range(3):
        await dave.get(f"/api/notes/{2**62 + index}")
    after = await server.metrics()
    assert after[series] == before + 3
    assert not [name for name in after if "/api/notes/4611" in name]


async def test_probes_are_counted_nowhere(server: Running) -> None:
    """Else the error rate would be that of the probes at night, when nobody else asks."""
    async with server.client() as client:
        for path in ("/health", "/health/ready", "/health/live", "/metrics"):
            await client.get(path, headers={"X-Request-ID": "a-probe-of-this"})
            await client.post(path)
        await client.get("/api/me", headers={"X-Request-ID": "a-user-of-this"})
    await until(lambda: server.lines_of("a-user-of-this"))
    assert not server.lines_of("a-probe-of-this")
    assert not [name for name in await server.metrics() if "/health" in name or "/metrics" in name]


async def test_exports_what_the_design_promises(server: Running, token: Token) -> None:
    async with server.socket(token("dave")) as socket:
        await socket.call("notes.list")
        names = {series.partition("{")[0] for series in await server.metrics()}
    assert names >= {
        "http_requests_total", "http_request_duration_seconds_count", "http_requests_in_progress", "ws_connections_open",
        "ws_messages_total", "ws_rpc_duration_seconds_count", "db_pool_connections", "db_query_duration_seconds_count",
        "redis_up", "redis_command_duration_seconds_count", "auth_attempts_total", "audit_rows_total", "db_up",
    }  # fmt: skip


async def test_the_event_loop_s_lag_is_measured(serve: Serve) -> None:
    with serve() as running:
        before = await until(lambda: looks(running))
        with asleep(psutil.Process(running.process.pid)):
            await asyncio.sleep(1.5)

        async def noticed() -> bool:
            return (await running.metrics())["event_loop_lag_seconds_sum"] > before + 1

        await until(noticed)


async def looks(running: Running) -> float | None:
    metrics = await running.metrics()
    return metrics["event_loop_lag_seconds_sum"] if metrics["event_loop_lag_seconds_count"] else None


async def test_what_workers_cost_adds_up(serve: Serve) -> None:
    async with two_workers(serve) as (running, workers):

        async def right() -> bool:
            metrics = await running.metrics()
            expected = {
                "process_max_fds": workers[0].rlimit(psutil.RLIMIT_NOFILE)[0],
                "process_start_time_seconds": pytest.approx(max(worker.create_time() for worker in workers), abs=1),
                "process_resident_memory_bytes": pytest.approx(sum(w.memory_info().rss for w in workers), rel=0.2),
                "process_open_fds": pytest.approx(sum(worker.num_fds() for worker in workers), abs=6),
                "process_cpu_seconds_total": pytest.approx(sum(sum(w.cpu_times()[:2]) for w in workers), rel=0.3),
            }
            return {name: metrics[name] for name in expected} == expected

        await until(right)


async def test_a_request_can_be_found_in_the_log(server: Running, dave: httpx.AsyncClient) -> None:
    mine = uuid.uuid4().hex
    response = await dave.get("/api/notes", headers={"X-Request-ID": mine})
    [line] = await until(lambda: server.lines_of(mine))
    assert response.headers["x-request-id"] == mine
    assert (line["event"], line["level"], line["route"], line["status"]) == ("request", "info", "/api/notes", 200)
    assert (line["user_id"], line["method"]) == ("dave", "GET")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"])


async def test_lines_of_a_feature_and_of_a_library_name_the_request(
    server: Running, dave: httpx.AsyncClient, token: Token
) -> None:
    mine = uuid.uuid4().hex
    await dave.get("/api/notes/tagged", params={"tags": mine}, headers={"X-Request-ID": mine})
    async with server.socket(token("dave")) as socket:
        await socket.call("notes.tagged", tags=[f"{mine}-socket"])
    own = await until(lambda: [line for line in server.log() if any(mine in tag for tag in line.get("tags", ()))][1:])
    for request_id in (mine, own[0]["request_id"]):
        lines = {line["event"]: line for line in server.log() if line.get("request_id") == request_id}
        assert [lines[event]["user_id"] for event in ("tags_wanted", "tags are slow")] == ["dave", "dave"]


@pytest.mark.parametrize(
    "given", ["short", "with space in it", "x" * 65, "new\\nline-and-more", "<script>alert</script>"]
)
async def test_replaces_an_unusable_request_id(dave: httpx.AsyncClient, given: str) -> None:
    response = await dave.get("/api/me", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])


async def test_every_answer_has_security_headers(dave: httpx.AsyncClient) -> None:
    for path in ("/api/me", "/api/nothing", "/health", "/openapi.json", "/docs"):
        headers = (await dave.get(path)).headers
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert "content-security-policy" in headers


@contextlib.asynccontextmanager
async def two_workers(serve: Serve, **settings: str) -> AsyncIterator[tuple[Running, list[psutil.Process]]]:
    with serve("--workers", "2", **settings) as running:
        await until(lambda: workers_counted(running, 2))
        yield running, psutil.Process(running.process.pid).children()


async def workers_counted(running: Running, number: int) -> bool:
    return (await running.metrics()).get("hw_workers") == number


@contextlib.contextmanager
def asleep(worker: psutil.Process) -> Iterator[None]:
    """While this one is stopped, the other worker takes every connection."""
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


async def status(running: Running, token: str) -> int:
    """Of a request on a connection of its own."""
    async with running.client(token) as client:
        return (await client.get("/api/me")).status_code


async def test_several_workers_are_one_server(serve: Serve, token: Token) -> None:
    limits = {"HW_REDIS__KEY_PREFIX": f"{uuid.uuid4().hex}:", "HW_RATELIMIT__HTTP_PER_MINUTE": "3"}
    async with two_workers(serve, **limits) as (running, (first, second)):
        with asleep(first):
            statuses = [await status(running, token("dave")) for _ in range(2)]
        with asleep(second):
            statuses += [await status(running, token("dave")) for _ in range(2)]
        metrics = await running.metrics()
    assert statuses == [200, 200, 200, 429]
    assert metrics['http_requests_total{method="GET",route="/api/me",status="200"}'] == 3


async def test_a_revocation_reaches_all_workers(serve: Serve, provider: Provider) -> None:
    token = provider.token()
    async with two_workers(serve, **provider.settings()) as (running, (first, second)):
        with asleep(second):
            assert await status(running, token) == 200
        with asleep(first):
            async with running.client(token) as client:
                await client.delete(f"/api/sessions/{(await client.get('/api/me')).json()['session_id']}")
            assert await status(running, token) == 401
        with asleep(second):

            async def refused() -> bool:
                return await status(running, token) == 401

            await until(refused)


async def test_a_dead_worker_is_replaced(serve: Serve) -> None:
    async with two_workers(serve) as (running, before):
        for worker in before:
            worker.kill()
        parent = psutil.Process(running.process.pid)
        await until(lambda: len(set(parent.children()) - set(before)) == 2)
        # What the dead ones held is not counted any more.
        await until(lambda: workers_counted(running, 2))


async def test_a_worker_that_hangs_is_replaced(serve: Serve, token: Token) -> None:
    async with two_workers(serve, HW_HTTP__WORKER_TIMEOUT="2") as (running, before):
        before[0].suspend()
        await until(lambda: not before[0].is_running())
        await until(lambda: len(psutil.Process(running.process.pid).children()) == 2)
        await until(lambda: workers_counted(running, 2))
        assert [await status(running, token("dave")) for _ in range(20)] == [200] * 20
        assert before[1].is_running()
    assert [line["pid"] for line in running.log() if line["event"] == "worker_hangs"] == [before[0].pid]


async def test_a_stopped_parent_replaces_nobody_that_works(serve: Serve) -> None:
    async with two_workers(serve, HW_HTTP__WORKER_TIMEOUT="2") as (running, before):
        with asleep(parent := psutil.Process(running.process.pid)):
            await asyncio.sleep(3)
            assert await workers_counted(running, 2)
        await until(lambda: parent.status() == "sleeping")
        # It sleeps between its looks at the workers: each voluntary switch is one.
        looked = parent.num_ctx_switches().voluntary
        await until(lambda: parent.num_ctx_switches().voluntary > looked + 3)
        assert parent.children() == before


async def test_workers_that_crash_without_end_end_the_server(serve: Serve) -> None:
    async with two_workers(serve) as (running, _):
        parent = psutil.Process(running.process.pid)

        def ended() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                for worker in parent.children():
                    worker.kill()
            return running.process.poll() is not None

        await until(ended, 60)
    assert running.process.returncode == 1
    assert len([line for line in running.log() if line["event"] == "workers_crash_looping"]) == 1


async def test_no_worker_outlives_its_parent(serve: Serve) -> None:
    async with two_workers(serve) as (running, workers):
        running.process.kill()
        gone, left = await asyncio.to_thread(psutil.wait_procs, workers, 20)
    assert (len(gone), left) == (2, [])


async def test_shutdown_is_graceful(serve: Serve, token: Token, database: asyncpg.Connection) -> None:
    with serve(HW_HTTP__DRAIN_DELAY="1", HW_AUDIT__FLUSH_INTERVAL="30") as running:
        async with running.socket(token("alice")) as socket, running.client(token("alice")) as client:
            response = await client.get("/api/notes")
            assert "connection" not in response.headers
            running.process.send_signal(signal.SIGTERM)
            statuses = [(await until(lambda path=path: draining(client, path))).status_code for path in HEALTH]
            last = await client.get("/api/notes")
            assert (statuses, last.status_code, last.headers["connection"]) == ([503, 503], 200, "close")
            assert (await socket.read())["method"] == "server.draining"
            assert await socket.closed() == (1001, "going_away")
        assert await asyncio.to_thread(running.process.wait, 30) == 0
    query = "SELECT count(*) FROM user_actions WHERE request_id = $1"
    assert await database.fetchval(query, response.headers["x-request-id"]) == 1
    assert running.log()[-1]["event"] == "stopped"


async def test_a_socket_that_arrives_during_the_drain_is_told(serve: Serve, stack: Stack, token: Token) -> None:
    with Proxy.running(stack.ports.redis) as proxy:
        settings = {"HW_REDIS__URL": f"redis://127.0.0.1:{proxy.port}", "HW_REDIS__TIMEOUT": "10"}
        with serve(**settings) as running:
            proxy.hold_at = b":sockets:"
            arriving = asyncio.create_task(running.socket(token("alice")).__aenter__())
            await until(proxy.held.is_set)
            running.process.send_signal(signal.SIGTERM)
            await until(lambda: [line for line in running.log() if line["event"] == "closing_sockets"])
            proxy.release.set()
            assert await (await arriving).closed() == (1001, "going_away")


async def draining(client: httpx.AsyncClient, path: str) -> httpx.Response | None:
    response = await client.get(path)
    return response if response.json()["status"] == "draining" else None


async def test_a_running_request_is_finished(serve: Serve, token: Token, database: asyncpg.Connection) -> None:
    """Also one that takes more than half of the whole shutdown."""
    with serve(HW_HTTP__SHUTDOWN_TIMEOUT="12", HW_DATABASE__COMMAND_TIMEOUT="9") as running:
        async with running.client(token("alice")) as client:
            async with database.transaction():
                await database.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
                request = asyncio.create_task(client.post("/api/notes", json={"title": str(uuid.uuid4())}))
                await until(lambda: waiters(database, "relation"))
                running.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(6.1)  # its share is 8 s
            assert (await request).status_code == 201


async def waiters(database: asyncpg.Connection, kind: str) -> int:
    """Sessions of the whole database server that wait for a lock."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = $1 AND NOT granted"
    return int(await database.fetchval(query, kind))


async def test_an_operation_ends_at_its_timeout(serve: Serve, token: Token, database: asyncpg.Connection) -> None:
    with serve(HW_HTTP__REQUEST_TIMEOUT="1") as running:
        async with running.client(token("alice")) as client, database.transaction():
            await database.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
            responses = await asyncio.gather(*(client.get("/api/notes") for _ in range(15)))
        assert {(response.status_code, response.json()["code"]) for response in responses} == {(504, "timeout")}
        async with running.client(token("alice")) as client:
            assert (await client.get("/api/notes")).status_code == 200


async def test_both_documents_list_every_operation(server: Running, dave: httpx.AsyncClient) -> None:
    openapi, openrpc = (await dave.get("/openapi.json")).json(), (await dave.get("/openrpc.json")).json()
    routes = {method["operationId"] for path in openapi["paths"].values() for method in path.values()}
    methods = {method["name"] for method in openrpc["methods"]}
    only_http = {
        "topic.events",
        "audit.export",
        "sessions.backchannel_logout",
        "health.get",
        "health.ready",
        "health.live",
    }
    only_rpc = {
        "topic.subscribe",
        "topic.unsubscribe",
        "ping",
        "rpc.discover",
        "session.authenticate",
        "session.refresh",
    }
    assert routes - only_http == methods - only_rpc
    create = openapi["paths"]["/api/notes"]["post"]
    assert set(create["responses"]) == {
        "201",
        "400",
        "401",
        "403",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
        "504",
    }
    assert create["security"] == [{"sign-in": []}]


async def test_the_document_describes_problems_as_they_are(dave: httpx.AsyncClient) -> None:
    document = (await dave.get("/openapi.json")).json()
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, methods in document["paths"].items():
        for method in methods.values() if path.startswith("/api") else ():
            errors = {status: described for status, described in method["responses"].items() if status >= "400"}
            assert errors
            assert all(error["content"] == problem and error["description"] for error in errors.values())
    refused = (await dave.get("/api/notes", params={"per_page": 0})).json()
    assert set(refused) <= document["components"]["schemas"]["Problem"]["properties"].keys()
    assert set(refused["errors"][0]) == document["components"]["schemas"]["FieldProblem"]["properties"].keys()


async def test_the_api_page_needs_nobody_else(server: Running, dave: httpx.AsyncClient) -> None:
    page = (await dave.get("/docs")).text
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert {Path(asset).suffix for asset in assets} >= {".js", ".css"}
    assert not [asset for asset in assets if "//" in asset]
    assert {(await dave.get(asset)).status_code for asset in assets} == {200}


@pytest.fixture
async def fresh(stack: Stack) -> AsyncIterator[str]:
    """The address of an empty database."""
    admin = await asyncpg.connect(host="127.0.0.1", port=stack.ports.postgres, user="postgres", password="postgres")
    name = f"fresh_{uuid.uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name} OWNER hw")
    yield f"postgresql://hw:hw-dev@127.0.0.1:{stack.ports.postgres}/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_migrations_of_two_servers_wait_for_each_other(serve: Serve, fresh: str) -> None:
    database = await asyncpg.connect(fresh)
    with ThreadPoolExecutor() as threads, contextlib.ExitStack() as ended:
        async with database.transaction():
            await database.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
            starting = [threads.submit(ended.enter_context, serve(HW_DATABASE__URL=fresh)) for _ in range(2)]

            async def both_wait() -> bool:
                return await waiters(database, "advisory") == 2

            await until(both_wait)
            assert await database.fetchval("SELECT to_regclass('user_actions')") is None
        for server in starting:
            async with (await asyncio.wrap_future(server)).client() as client:
                assert (await client.get("/health")).status_code == 200
    assert await database.fetchval("SELECT count(*) FROM alembic_version") == 1
    await database.close()
