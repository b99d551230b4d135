"""One socket: calls and their answers. It knows nothing of reconnects."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from hw_client.errors import ConnectionLost, HwError, NotCarriedOut, RpcError

Token = str | Callable[[], str | Awaitable[str]]
Settle = Callable[[Any], None]  # takes a result or an error


async def token_of(token: Token) -> str:
    if isinstance(token, str):
        return token
    given = token()
    return await given if inspect.isawaitable(given) else given


GOING_AWAY = (1001, "going_away")  # every call that the server took is answered


class Connection:
    def __init__(self, socket: ClientConnection, on_notification: Callable[[str, dict[str, Any]], None]) -> None:
        self._socket = socket
        self._on_notification = on_notification
        self._waiting: dict[int, Settle] = {}
        self._last_id = 0
        self._batches = asyncio.Lock()
        self._batch: list[Settle] = []

    async def run(self) -> tuple[int | None, str]:
        """Reads until the end: its close code and reason, None where no close frame came."""
        lost = ConnectionLost("the connection was lost during the call")
        try:
            while True:
                self._receive(json.loads(await self._socket.recv()))
        except ConnectionClosed as closed:
            lost = _lost(closed, "the connection was lost during the call")
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (None, "")
        finally:
            for settle in list(self._waiting.values()):
                settle(lost)

    async def close(self) -> None:
        await self._socket.close()

    async def call(self, method: str, params: Mapping[str, Any], then: Callable[[Any], None] | None = None) -> Any:
        """The result. `then` takes it before anything that the server sends after it is read."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(outcome: Any) -> None:
            if then is not None and not isinstance(outcome, HwError):
                then(outcome)
            _settle(answer, outcome)

        number, request = self._request(method, params, settle)
        try:
            await self._send(request)
            return await answer
        finally:
            self._forget(number, answer)

    async def batch(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        # One at a time: the refusal of a whole batch carries no id.
        async with self._batches:
            loop = asyncio.get_running_loop()
            answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in calls]
            settles = [_settler(answer) for answer in answers]
            requests = [self._request(*call, settle) for call, settle in zip(calls, settles, strict=True)]
            self._batch = settles
            try:
                await self._send([request for _, request in requests])
                return await asyncio.gather(*answers, return_exceptions=True)
            finally:
                self._batch = []
                for (number, _), answer in zip(requests, answers, strict=True):
                    self._forget(number, answer)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def _request(self, method: str, params: Mapping[str, Any], settle: Settle) -> tuple[int, dict[str, Any]]:
        self._last_id += 1
        self._waiting[self._last_id] = settle
        return self._last_id, {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}

    def _forget(self, number: int, answer: asyncio.Future[Any]) -> None:
        self._waiting.pop(number, None)
        if not answer.cancelled() and answer.done():
            answer.exception()  # told to the caller, or nobody waits for it any more
        answer.cancel()

    async def _send(self, message: Any) -> None:
        try:
            await self._socket.send(json.dumps(message, separators=(",", ":"), allow_nan=False))
        except ConnectionClosed as closed:
            raise _lost(closed, "the connection was lost before the call") from None

    def _receive(self, message: Any) -> None:
        if isinstance(message, list):
            for part in message:
                self._receive(part)
        elif "method" in message:
            self._on_notification(message["method"], message.get("params") or {})
        else:
            outcome = _outcome(message)
            settle = self._waiting.pop(message["id"], None) if message["id"] is not None else None
            for waiting in [settle] if settle is not None else self._batch if message["id"] is None else ():
                waiting(outcome)


def _lost(closed: ConnectionClosed, text: str) -> ConnectionLost:
    # The reason tells the server's own close frame from one of a proxy.
    drained = closed.rcvd is not None and (closed.rcvd.code, closed.rcvd.reason) == GOING_AWAY
    return NotCarriedOut(text) if drained else ConnectionLost(text)


def _outcome(message: dict[str, Any]) -> Any:
    error = message.get("error")
    if error is None:
        return message.get("result")
    return RpcError(error["code"], error["message"], error.get("data") or {})


def _settle(answer: asyncio.Future[Any], outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, HwError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _settler(answer: asyncio.Future[Any]) -> Settle:
    return lambda outcome: _settle(answer, outcome)
