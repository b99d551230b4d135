"""Declaring features: everything that one folder brings to the application."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter

from hw_server.errors import DomainError
from hw_server.operations.declaration import Operations
from hw_server.operations.topic import Topic
from hw_server.runtime.parts import Factory


@dataclass(frozen=True, slots=True)
class Seed:
    """Rows that `hw up` adds for development where `GET /api{path}` lists none: the bodies of `POST /api{path}`."""

    path: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Feature:
    """One folder, and all that it brings.

    operations: what can be asked of it, over both protocols.
    router: the routes that only HTTP speaks, below `/api`.
    conflicts: what the caller is told when a database constraint, by its name, is violated.
    errors: its own domain errors, for the documents.
    provides: parts that operations of any feature may be given (`Provided[T]`), by type, each with what constructs it.
    services: what constructs its background work; services start in the order of the features and stop in reverse.
    topics: what can be subscribed to.
    seed: rows for development.
    exempt: paths of its router without authentication and rate limit; the route itself must verify who calls.
    """

    name: str
    operations: Operations = field(default_factory=Operations)
    router: APIRouter | None = None
    conflicts: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[type[DomainError]] = ()
    provides: Mapping[type, Factory] = field(default_factory=dict)
    services: Sequence[Factory] = ()
    topics: Sequence[Topic[Any]] = ()
    seed: Seed | None = None
    exempt: Sequence[str] = ()


def load_features(reference: str) -> tuple[Feature, ...]:
    """The list that `module:NAME` names; raises ImportError or AttributeError where there is none."""
    module, _, name = reference.partition(":")
    features: Iterable[Feature] = getattr(importlib.import_module(module), name)
    return tuple(features)
