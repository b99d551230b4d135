"""Declaring features: everything that one folder brings to the application."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi import APIRouter

from hw_server.errors import DomainError
from hw_server.operations.declaration import Operations
from hw_server.operations.topic import Topic
from hw_server.runtime.parts import Factory


class Reference(NamedTuple):
    """The `detail` of a `Conflict` for both sides of a foreign key: `missing` where a row refers to one that does not exist,
    `used` where a row that others refer to is deleted."""

    missing: str
    used: str


@dataclass(frozen=True, slots=True)
class Seed:
    """Rows that `hw up` adds for development where `GET /api{path}` lists none: the bodies of `POST /api{path}`.

    `references` are fields that hold the id of another feature's row, each with the path of the list they are taken from:
    its first rows, in turn. An earlier feature's rows are there already.
    """

    path: str
    rows: Sequence[Mapping[str, Any]]
    references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Feature:
    """One folder, and all that it brings.

    operations: what can be asked of it, over both protocols.
    router: the routes that only HTTP speaks, below `/api`.
    conflicts: what a caller is told when a database constraint of the feature's tables, by its name, is violated, by an
    operation of any feature; a `Reference` for a foreign key.
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
    conflicts: Mapping[str, str | Reference] = field(default_factory=dict)
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
