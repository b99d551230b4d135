"""FastAPI routes made from operations. OpenAPI comes from the declared signature; a request goes straight to the
executor, without FastAPI's dependency solving."""

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

from fastapi import Body, Path, Query, Request, Security
from fastapi.routing import APIRoute, APIRouter
from fastapi.security import OpenIdConnect
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from hw_server.errors import ClientDisconnected, MethodNotAllowed, UnsupportedMediaType
from hw_server.http.middleware import CALL, is_json, media_type
from hw_server.http.problems import problem_responses
from hw_server.operations import PUBLIC, BoundOperation, Call, Executor, limit_members, role_in_words
from hw_server.operations.declaration import RPC
from hw_server.operations.signature import BODY, QUERY

ALWAYS_POSSIBLE = {422, 429, 500, 503, 504}


class OperationRoute(APIRoute):
    """A FastAPI route for the documents. The first route of a path takes the requests of all its methods: the path is matched
    and the method dispatched once."""

    handlers: dict[str, ASGIApp]  # of all methods of this path; empty for all but the first route of it

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not self.handlers:
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        if match is Match.NONE:
            return match, child_scope
        handler = child_scope["endpoint"] = self.handler(scope["method"])
        return (Match.PARTIAL if handler is None else Match.FULL), child_scope

    def handler(self, method: str) -> ASGIApp | None:
        # uvicorn leaves out the body of a response to HEAD.
        return self.handlers.get("GET" if method == "HEAD" else method)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["endpoint"] is None:
            allowed = {*self.handlers, "HEAD"} if "GET" in self.handlers else {*self.handlers}
            raise MethodNotAllowed(allow=", ".join(sorted(allowed)))
        await scope["endpoint"](scope, receive, send)


class OperationPaths:
    """Takes requests for a path without parameters straight to its operation. The router tries one route after the other: it
    takes the rest, and every path that a route before the operation matches."""

    def __init__(self, app: ASGIApp, router: APIRouter) -> None:
        self.app = app
        self._routes: dict[str, OperationRoute] = {}
        for route in router.routes:
            if isinstance(route, OperationRoute) and route.handlers and "{" not in route.path:
                scope = {"type": "http", "path": route.path, "method": next(iter(route.handlers))}
                if next(other for other in router.routes if other.matches(scope)[0] is not Match.NONE) is route:
                    self._routes[route.path] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"])
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"], scope["path_params"] = route, {}
        scope["endpoint"] = route.handler(scope["method"])
        await route.handle(scope, receive, send)


def add_operations(router: APIRouter, executor: Executor, sign_in: OpenIdConnect, max_members: int) -> None:
    """Adds a route below `/api` for each operation that HTTP speaks. Raises ValueError where two have the same."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for bound in _by_precedence(executor.operations.values()):
        operation = bound.operation
        if operation.method == RPC:
            continue
        first = operation.path not in by_path
        handlers = by_path.setdefault(operation.path, {})
        if operation.method in handlers:
            raise ValueError(f"operation {operation.name}: {operation.method} {operation.path} is declared twice")
        handlers[operation.method] = partial(_handle, executor, bound, max_members)
        _add_route(router, bound, handlers if first else {}, sign_in)


def _by_precedence(operations: Collection[BoundOperation]) -> list[BoundOperation]:
    """Within a tag `/authors/newest` before `/authors/{id}`, whichever is declared first: the first route that matches is taken."""
    tags = [bound.operation.tag for bound in operations]

    def precedence(bound: BoundOperation) -> tuple[int, list[bool]]:
        return tags.index(bound.operation.tag), [part.startswith("{") for part in bound.operation.path.split("/")]

    return sorted(operations, key=precedence)


def _add_route(router: APIRouter, bound: BoundOperation, handlers: dict[str, ASGIApp], sign_in: OpenIdConnect) -> None:
    operation, signature = bound.operation, bound.signature
    statuses = {*ALWAYS_POSSIBLE, *operation.problems}
    if not operation.public:
        statuses |= {401, 403}
    if signature.path_fields:
        statuses.add(404)
    if operation.changes:
        statuses.add(409)
    if BODY in signature.fields:
        statuses |= {400, 413, 415}

    class Route(OperationRoute):
        pass

    Route.handlers = handlers
    router.add_api_route(
        f"/api{operation.path}",
        _declared_endpoint(bound, sign_in),
        methods=[operation.method],
        response_model=None if operation.status == 204 else signature.returns,
        status_code=operation.status,
        name=operation.name,
        operation_id=operation.name,
        tags=[operation.tag],
        summary=operation.summary,
        description=f"{operation.description}\n\n{role_in_words(operation.role)}".lstrip(),
        openapi_extra={"x-role": operation.role or PUBLIC},
        responses=problem_responses(*statuses),
        route_class_override=Route,
    )


def _declared_endpoint(bound: BoundOperation, sign_in: OpenIdConnect) -> Callable[..., Any]:
    """A function whose signature FastAPI reads for the document; the executor answers."""

    async def endpoint() -> None:
        raise AssertionError("operations are run by the executor")

    parameters = []
    for name, annotation in bound.signature.fields.items():
        mark = Query() if name == QUERY else Body() if name == BODY else Path()
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, mark])
        )
    if not bound.operation.public:
        security = Annotated[Any, Security(sign_in)]
        parameters.append(inspect.Parameter("caller", inspect.Parameter.KEYWORD_ONLY, annotation=security))
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    endpoint.__name__ = bound.operation.name
    return endpoint


async def _handle(
    executor: Executor, bound: BoundOperation, max_members: int, scope: Scope, receive: Receive, send: Send
) -> None:
    async def bind() -> dict[str, Any]:
        body = b""
        if BODY in bound.signature.fields:
            body = await _json_body(Request(scope, receive), max_members)
        return bound.binder.from_http(scope["path_params"], scope["query_string"], body)

    call: Call = scope[CALL]
    call.asked = scope["path_params"]
    response = await executor.run(bound, call, bind)
    headers = []
    if response is not None:
        headers = [(b"content-length", b"%d" % len(response)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": bound.operation.status, "headers": headers})
    await send({"type": "http.response.body", "body": response or b""})


async def _json_body(request: Request, max_members: int) -> bytes:
    if not is_json(media_type(request.scope)):
        raise UnsupportedMediaType("the body must be application/json")
    try:
        body = b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect:
        raise ClientDisconnected from None
    if not request.headers.get("content-type"):
        limit_members(body, max_members)  # with a content type the middleware has checked it
    return body
