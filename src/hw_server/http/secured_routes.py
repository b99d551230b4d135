"""What a feature's plain router shares with operations: each route says who may call it, a caller is refused before the body
is read, and what happened is in the audit trail."""

from collections.abc import Iterator
from copy import copy

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hw_server.errors import DomainError, InternalError
from hw_server.http.dependencies import Access, RouteAudit
from hw_server.http.middleware import CALL
from hw_server.http.problems import domain_error
from hw_server.operations import (
    PUBLIC,
    AuditRow,
    AuditTrail,
    Call,
    Failures,
    Feature,
    action_row,
    authorize,
    role_in_words,
)

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_RESOURCE = 255  # characters
SIGN_IN = "sign-in"  # the name of the security scheme


def secured(feature: Feature, trail: AuditTrail, failures: Failures, record_reads: bool) -> APIRouter:
    """The feature's router with secured copies of its routes, below `/api`. Raises ValueError for a route that says neither
    `require(...)` nor `public()`."""
    assert feature.router is not None
    router = copy(feature.router)
    router.routes = [
        _secured_route(feature, route, trail, failures, record_reads)
        # FastAPI keeps those that `frontend()` adds apart.
        for route in (*feature.router.routes, *getattr(feature.router, "_low_priority_routes", ()))
    ]
    return router


def _secured_route(
    feature: Feature, route: BaseRoute, trail: AuditTrail, failures: Failures, record_reads: bool
) -> BaseRoute:
    path = getattr(route, "path", "a router within its router")
    if not isinstance(route, APIRoute):
        raise ValueError(
            f"feature {feature.name}: {path} is no plain route of FastAPI, so nothing says who may call it"
        )
    declared = set(_declared(route.dependant))
    roles = sorted({access.role for access in declared if access.role is not None})
    if bool(roles) == any(access.role is None for access in declared):
        methods = ", ".join(sorted(route.methods or ()))
        raise ValueError(
            f"feature {feature.name}: {methods} {path} needs either require(...) or public() among its dependencies"
        )
    said = {access.audit for access in declared if access.audit is not None}
    usual: RouteAudit = "direct" if CHANGING & (route.methods or set()) else "reads"
    audit = said.pop() if said else usual
    if audit == "reads" and not record_reads:
        audit = "never"
    result = copy(route)
    # Not `include_router(prefix=...)`: metrics and logs would name the path without the prefix.
    result.path = f"/api{path}"
    # On exempt paths the route records its refusals itself.
    handle = _SecuredRoute(route, result.handle, roles, trail, audit, None if path in feature.exempt else failures)
    result.handle = handle  # type: ignore[method-assign]
    role = ", ".join(roles) or None
    result.description = f"{route.description}\n\n{role_in_words(role)}".lstrip()
    result.openapi_extra = {"x-role": role or PUBLIC, **(route.openapi_extra or {})}
    if roles:
        result.openapi_extra["security"] = [{SIGN_IN: []}]
    return result


def _declared(dependant: Dependant) -> Iterator[Access]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Access):
            yield dependency.call
        yield from _declared(dependency)


class _SecuredRoute:
    """ASGI application of one route."""

    def __init__(
        self,
        route: APIRoute,
        handle: ASGIApp,
        roles: list[str],
        trail: AuditTrail,
        audit: RouteAudit,
        failures: Failures | None,
    ) -> None:
        self._methods = route.methods or set()
        self._action = route.operation_id or route.name
        self._handle = handle
        self._roles: list[str | None] = [*roles] or [None]
        self._trail = trail
        self._audit = audit
        self._failures = failures  # None: they are not recorded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._methods:
            await self._handle(scope, receive, send)  # answers 405
            return
        call: Call = scope[CALL]
        recorded = False

        async def send_recorded(message: Message) -> None:
            nonlocal recorded
            if message["type"] == "http.response.start" and not recorded:
                await self._record(call, scope, message["status"])
                recorded = True
            await send(message)

        try:
            for role in self._roles:
                authorize(role, call)
            await self._handle(scope, receive, send_recorded)
        except Exception as error:
            if not recorded:
                self._record_error(call, scope, domain_error(error) or InternalError(type(error).__name__))
            raise

    async def _record(self, call: Call, scope: Scope, status: int) -> None:
        """Runs before the response is sent. A route may also return an error status instead of raising."""
        if status >= 400:
            self._record_failure(call, scope, status)
        elif self._audit == "direct":
            await self._trail.write(self._row(call, scope, status))
        elif self._audit != "never":
            self._trail.record(self._row(call, scope, status))

    def _record_error(self, call: Call, scope: Scope, error: DomainError) -> None:
        self._record_failure(call, scope, error.status, error.code)

    def _record_failure(self, call: Call, scope: Scope, status: int, code: str | None = None) -> None:
        if self._failures is not None:
            self._failures.record(call, self._action, _resource(call, scope), status, code)

    def _row(self, call: Call, scope: Scope, status: int) -> AuditRow:
        return action_row(call, self._action, _resource(call, scope), status=status)


def _resource(call: Call, scope: Scope) -> str:
    path = "".join(letter for letter in scope["path"] if letter.isprintable())
    return call.resource or path.removeprefix("/api/")[:MAX_RESOURCE]
