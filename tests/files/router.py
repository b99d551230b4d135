"""Files in memory, whose owners alone may remove them."""

from typing import Annotated

from fastapi import APIRouter, Request, Response

from hw_server.auth import Principal
from hw_server.errors import Conflict, Forbidden, NotFound
from hw_server.http.dependencies import call_of, provided, public, require
from hw_server.operations import AuditTrail, action_row
from tests.notes.models import NOTES_READ, NOTES_WRITE

router = APIRouter(prefix="/files", tags=["files"])
Writer = Annotated[Principal, require(NOTES_WRITE)]
held: dict[str, tuple[str, bytes]] = {}


@router.put("/{name}", operation_id="files.upload", status_code=204)
async def upload(name: str, caller: Writer, request: Request) -> None:
    """Put a file in its place."""
    if held.get(name, (caller.sub,))[0] != caller.sub:
        raise Conflict("the name is taken")
    held[name] = (caller.sub, await request.body())


@router.get("/{name}", operation_id="files.download", dependencies=[public()])
async def download(name: str) -> Response:
    if name not in held:
        raise NotFound(f"there is no file {name}")
    return Response(held[name][1])


@router.delete("/{name}", operation_id="files.remove", status_code=204, dependencies=[require(NOTES_READ)])
async def remove(name: str, caller: Annotated[Principal, require(NOTES_READ)]) -> None:
    owner, _ = held[name]
    if owner != caller.sub:
        raise Forbidden("only the owner may remove a file")
    del held[name]


@router.post("/search", operation_id="files.search", dependencies=[require(NOTES_READ, audit="reads")])
async def search(words: list[str]) -> list[str]:
    return [name for name in held if name in words]


@router.post("/report", operation_id="files.report", dependencies=[public(audit="never")])
async def report(
    request: Request, trail: Annotated[AuditTrail, provided(AuditTrail)], about: str = "files"
) -> Response:
    trail.record(action_row(call_of(request), "files.reported", about, status=202))
    return Response(status_code=202)
