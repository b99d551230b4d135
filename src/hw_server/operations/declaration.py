"""Declaring operations and features.

    operations = Operations("/authors")

    @operations.get("authors.get", "/{id}", role="authors:read")
    async def get_author(db: Read, id: Id) -> Author: ...

Parameters are told apart by their annotation: `Read`, `Write`, `Principal`, `AfterCommit` and `Provided[T]` are given by
the platform; a parameter named in the path comes from the path; `body: Model` is the body, `query: Model` the query.
"""

import importlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter

from hw_server.db import Connection

T = TypeVar("T")
Handler = Callable[..., Awaitable[Any]]


SIGNED_IN = "signed-in"  # as `role`: any valid token will do


class Access:
    """Marks of what the platform gives."""

    READ = "read"
    WRITE = "write"
    PROVIDED = "provided"


Read = Annotated[Connection, Access.READ]
Write = Annotated[Connection, Access.WRITE]
Provided = Annotated[T, Access.PROVIDED]


class AfterCommit(list[Callable[[], Awaitable[None]]]):
    """Calls to make once the operation's transaction has committed; a failure of one is logged, never answered."""


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    method: str
    path: str
    handler: Handler
    role: str | None
    public: bool
    status: int

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
    """The operations of one feature. `prefix` stands before each path, below `/api`."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.declared: list[Operation] = []

    def _declare(
        self, method: str, name: str, path: str, role: str | None, public: bool, status: int
    ) -> Callable[[Handler], Handler]:
        if (role is None) is not public:
            raise ValueError(f"operation {name}: needs either a role or public=True")

        def register(handler: Handler) -> Handler:
            self.declared.append(Operation(name, method, self._prefix + path, handler, role, public, status))
            return handler

        return register

    def get(
        self, name: str, path: str = "", *, role: str | None = None, public: bool = False
    ) -> Callable[[Handler], Handler]:
        return self._declare("GET", name, path, role, public, 200)

    def post(
        self, name: str, path: str = "", *, role: str | None = None, public: bool = False, status: int = 201
    ) -> Callable[[Handler], Handler]:
        return self._declare("POST", name, path, role, public, status)

    def put(
        self, name: str, path: str = "", *, role: str | None = None, public: bool = False
    ) -> Callable[[Handler], Handler]:
        return self._declare("PUT", name, path, role, public, 200)

    def patch(
        self, name: str, path: str = "", *, role: str | None = None, public: bool = False
    ) -> Callable[[Handler], Handler]:
        return self._declare("PATCH", name, path, role, public, 200)

    def delete(
        self, name: str, path: str = "", *, role: str | None = None, public: bool = False
    ) -> Callable[[Handler], Handler]:
        return self._declare("DELETE", name, path, role, public, 204)


@dataclass(frozen=True, slots=True)
class Feature:
    """One folder. `conflicts` maps names of database constraints to what the caller is told; `router` holds the routes
    that only HTTP speaks, below `/api`; `exempt` those of its paths that no rate limit counts and no caller is looked
    for on, because something else lets in one sender alone."""

    name: str
    operations: Operations = field(default_factory=Operations)
    router: APIRouter | None = None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()


def load_features(reference: str) -> tuple[Feature, ...]:
    """The list that `module:NAME` names; raises `ImportError` or `AttributeError` where there is none."""
    module, _, name = reference.partition(":")
    features: Iterable[Feature] = getattr(importlib.import_module(module), name)
    return tuple(features)
