"""The floor: what FastAPI and asyncpg do alone. No sign-in, no limits, no audit, no metrics, no log. It
reads and writes the table of `tests.notes`."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime

import asyncpg
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from pydantic import BaseModel


class Note(BaseModel):
    id: int
    title: str
    text: str
    due: date | None
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    items: list[Note]
    per_page: int
    next_cursor: str | None = None


class NoteCreate(BaseModel):
    title: str
    text: str = ""
    due: date | None = None


COLUMNS = "id, title, text, due, created_at, updated_at"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["HW_DATABASE__URL"], min_size=10, max_size=10) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/notes", response_model=Page)
async def notes(request: Request, per_page: int = 20) -> object:
    rows = await request.app.state.pool.fetch(f"SELECT {COLUMNS} FROM notes ORDER BY id LIMIT $1", per_page)
    return {"items": [dict(row) for row in rows], "per_page": per_page}


@app.post("/notes", response_model=Note, status_code=201)
async def create(request: Request, body: NoteCreate) -> object:
    query = f"INSERT INTO notes (title, text, due) VALUES ($1, $2, $3) RETURNING {COLUMNS}"
    return dict(await request.app.state.pool.fetchrow(query, body.title, body.text, body.due))


@app.websocket("/web")
async def idle(socket: WebSocket) -> None:
    await socket.accept()
    async for _ in socket.iter_text():
        await socket.send_text("pong")


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", ws="websockets-sansio",
        ws_per_message_deflate=False, access_log=False, log_level="warning",
    )  # fmt: skip
