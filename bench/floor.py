"""The floor: what FastAPI and asyncpg do alone. No sign-in, no limits, no audit, no metrics, no log."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime

import asyncpg
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from pydantic import BaseModel


class Author(BaseModel):
    id: int
    name: str
    bio: str
    born: date | None
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    items: list[Author]
    per_page: int
    next_cursor: str | None = None


class AuthorCreate(BaseModel):
    name: str
    bio: str = ""
    born: date | None = None


COLUMNS = "id, name, bio, born, created_at, updated_at"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["HW_DATABASE__URL"], min_size=10, max_size=10) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/authors", response_model=Page)
async def authors(request: Request, per_page: int = 20) -> object:
    rows = await request.app.state.pool.fetch(f"SELECT {COLUMNS} FROM authors ORDER BY id LIMIT $1", per_page)
    return {"items": [dict(row) for row in rows], "per_page": per_page}


@app.post("/authors", response_model=Author, status_code=201)
async def create(request: Request, body: AuthorCreate) -> object:
    query = f"INSERT INTO authors (name, bio, born) VALUES ($1, $2, $3) RETURNING {COLUMNS}"
    return dict(await request.app.state.pool.fetchrow(query, body.name, body.bio, body.born))


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
