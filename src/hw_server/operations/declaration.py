"""Declaring operations.

    operations = Operations("/authors")

    @operations.get("authors.get", "/{id}", role="authors:read")
    async def get_author(db: Read, id: Id) -> Author: ...

Parameters are told apart by their annotation: what `injection.py` lists is given by the platform; a parameter named in the
path comes from the path; `body: Model` is the body, `query: Model` the query.
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

Handler = Callable[..., Awaitable[Any]]
Register = Callable[[Handler], Handler]
AuditMode = Literal["transaction", "direct", "queued", "reads", "never"]

SIGNED_IN = "signed-in"  # as `role`: any valid token will do
PUBLIC = "public"  # in documents, what stands for a role where no token is needed
RPC = "RPC"  # as `method`: only the socket speaks it


def role_in_words(role: str | None) -> str:
    """For documents; None is everybody."""
    if role is None:
        return "Public: needs no token."
    return "Needs any valid token." if role == SIGNED_IN else f"Needs the role `{role}`."


@dataclass(frozen=True, slots=True)
class Operation:
    """`role` is None for a public operation. `changes` is whether a success changes anything, `audit` when its audit row is
    written: with the `transaction`, `direct` (before the answer), `queued`, with other `reads` (queued, unless
    `audit.record_reads` is off) or `never` (refusals and failures are recorded all the same). `problems` are statuses of its
    own errors, for the OpenAPI document; those that its signature implies are there already."""

    name: str
    method: str
    path: str
    handler: Handler
    role: str | None
    status: int
    changes: bool
    audit: AuditMode
    problems: tuple[int, ...] = ()

    @property
    def public(self) -> bool:
        return self.role is None

    @property
    def tag(self) -> str:
        return self.name.partition(".")[0]

    @property
    def summary(self) -> str:
        return inspect.cleandoc(self.handler.__doc__ or self.name).partition("\n")[0].rstrip(".")

    @property
    def description(self) -> str:
        return inspect.cleandoc(self.handler.__doc__ or "")


class Operations:
    """The operations of one feature. `prefix` stands before each path, below `/api`.

    Each method below declares one operation: `name` is `resource.verb`, the JSON-RPC method and the OpenAPI operation id;
    `role` is the role a caller needs, or `public=True` lets everybody in. A method that changes something takes `Write`, or
    says `audit="direct"` where the change is not in PostgreSQL: its audit row is then written before the answer, and a row
    that neither PostgreSQL nor the disk takes makes that answer a 503, although the change was made.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.declared: list[Operation] = []

    def get(
        self,
        name: str,
        path: str = "",
        *,
        role: str | None = None,
        public: bool = False,
        problems: tuple[int, ...] = (),
    ) -> Register:
        return self._declare(name, "GET", path, role, public, 200, problems=problems)

    def post(
        self,
        name: str,
        path: str = "",
        *,
        role: str | None = None,
        public: bool = False,
        status: int = 201,
        reads: bool = False,
        audit: Literal["direct"] | None = None,
        problems: tuple[int, ...] = (),
    ) -> Register:
        """`reads=True` for a POST that changes nothing, such as a search with a body."""
        return self._declare(name, "POST", path, role, public, status, audit, changes=not reads, problems=problems)

    def put(
        self,
        name: str,
        path: str = "",
        *,
        role: str | None = None,
        public: bool = False,
        audit: Literal["direct"] | None = None,
    ) -> Register:
        return self._declare(name, "PUT", path, role, public, 200, audit, changes=True)

    def patch(
        self,
        name: str,
        path: str = "",
        *,
        role: str | None = None,
        public: bool = False,
        audit: Literal["direct"] | None = None,
    ) -> Register:
        return self._declare(name, "PATCH", path, role, public, 200, audit, changes=True)

    def delete(
        self,
        name: str,
        path: str = "",
        *,
        role: str | None = None,
        public: bool = False,
        audit: Literal["direct"] | None = None,
    ) -> Register:
        return self._declare(name, "DELETE", path, role, public, 204, audit, changes=True)

    def rpc(
        self,
        name: str,
        *,
        role: str | None = None,
        public: bool = False,
        audit: Literal["direct", "queued", "never"] | None = None,
        changes: bool = False,
    ) -> Register:
        """An operation that only the socket speaks."""
        return self._declare(name, RPC, "", role, public, 200, audit, changes=changes)

    def _declare(
        self,
        name: str,
        method: str,
        path: str,
        role: str | None,
        public: bool,
        status: int,
        audit: Literal["direct", "queued", "never"] | None = None,
        *,
        changes: bool = False,
        problems: tuple[int, ...] = (),
    ) -> Register:
        if (role is None) is not public:
            raise ValueError(f"operation {name}: needs either a role or public=True")
        if role == PUBLIC:
            raise ValueError(f"operation {name}: {PUBLIC} is no role; say public=True")
        mode: AuditMode = audit or ("transaction" if changes else "reads")

        def register(handler: Handler) -> Handler:
            path_below_api = "" if method == RPC else self._prefix + path
            self.declared.append(
                Operation(name, method, path_below_api, handler, role, status, changes, mode, problems)
            )
            return handler

        return register
