"""FastAPI routes made from operations. OpenAPI comes from the declared signature; a request goes straight to the
executor, without FastAPI's dependency solving."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, Path, Query, Request, Security
from fastapi.routing import APIRoute, APIRouter
from fastapi.security import OpenIdConnect
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from hw_server.errors import Disconnected, Malformed, MethodNotAllowed, UnsupportedMediaType
from hw_server.http.middleware import CALL
from hw_server.http.problems import problems
from hw_server.operations import Executor
from hw_server.operations.binder import BODY, QUERY, Binder, Input
from hw_server.operations.declaration import Operation
from hw_server.operations.execution import BoundOperation

ALWAYS = (429, 500, 503, 504)


def add_operations(router: APIRouter, executor: Executor, sign_in: OpenIdConnect) -> None:
    """Adds a route below `/api` for each operation."""
    answers: dict[str, dict[str, ASGIApp]] = {}
    for bound in executor.operations.values():
        operation = bound.operation
        of_path = answers.setdefault(operation.path, {})
        if operation.method in of_path:
            raise ValueError(f"operation {operation.name}: {operation.method} {operation.path} is declared twice")
        of_path[operation.method] = _handler(executor, bound)
    for bound in executor.operations.values():
        _add(router, bound, bound.operation, answers[bound.operation.path], sign_in)


def _add(
    router: APIRouter, bound: BoundOperation, operation: Operation, answers: dict[str, ASGIApp], sign_in: OpenIdConnect
) -> None:
    """`answers` has every method of this path: the router may choose any route of it for a method it does not find."""
    possible: set[int] = {*ALWAYS, 422}
    if not operation.public:
        possible |= {401, 403}
    if bound.binder.path_fields:
        possible.add(404)
    if bound.binder.writes:
        possible.add(409)
    if bound.binder.takes_body:
        possible |= {400, 413, 415}

    allowed = ", ".join(sorted({*answers, "HEAD"} if "GET" in answers else answers))

    class OperationRoute(APIRoute):
        """A FastAPI route for the documents and the matching; the answer is given without FastAPI's own wrapping."""

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            # The protocol leaves out the body of an answer to HEAD.
            answer = answers.get("GET" if scope["method"] == "HEAD" else scope["method"])
            if answer is None:
                raise MethodNotAllowed(allow=allowed)
            await answer(scope, receive, send)

    router.add_api_route(
        f"/api{operation.path}",
        _declared_endpoint(bound, sign_in),
        methods=[operation.method],
        response_model=None if operation.status == 204 else bound.binder.returns,
        status_code=operation.status,
        name=operation.name,
        operation_id=operation.name,
        tags=[operation.tag],
        summary=operation.summary,
        description=operation.description,
        responses=problems(*possible),
        route_class_override=OperationRoute,
    )


def _declared_endpoint(bound: BoundOperation, sign_in: OpenIdConnect) -> Callable[..., Any]:
    """A function that FastAPI reads the signature of, and never calls."""

    async def endpoint() -> None:
        raise AssertionError("operations are run by the executor")

    parameters = []
    for name, kind in bound.binder.fields.items():
        mark = Query() if name == QUERY else Body() if name == BODY else Path()
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, mark]))
    if not bound.operation.public:
        kind = Annotated[Any, Security(sign_in)]
        parameters.append(inspect.Parameter("caller", inspect.Parameter.KEYWORD_ONLY, annotation=kind))
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    endpoint.__name__ = bound.operation.name
    return endpoint


def _handler(executor: Executor, bound: BoundOperation) -> ASGIApp:
    status = bound.operation.status
    takes_body = bound.binder.takes_body

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        async def raw(binder: Binder) -> Input:
            body = await _json_body(Request(scope, receive)) if takes_body else b""
            return binder.from_http(scope["path_params"], scope["query_string"], body)

        body = await executor.run(bound, scope[CALL], raw)
        headers = []
        if body is not None:
            headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body or b""})

    return handle


async def _json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType
    try:
        chunks = [chunk async for chunk in request.stream()]
    except ClientDisconnect:
        raise Disconnected from None
    if not chunks:
        raise Malformed("the body is empty; a JSON object is expected")
    return b"".join(chunks)
