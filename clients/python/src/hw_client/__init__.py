"""Async client of hw-server: calls, topics that survive reconnects, event streams."""

from hw_client.client import Client, Notification
from hw_client.connection import Token
from hw_client.errors import (
    AlreadySubscribed,
    Closed,
    ConnectionLost,
    HistoryLost,
    HwError,
    Refused,
    RpcError,
    SignInFailed,
    SlowConsumer,
    Unreachable,
    Unsubscribed,
)
from hw_client.events import Event, Position, Reset
from hw_client.reconnect import Backoff
from hw_client.streams import EventStream
from hw_client.subscriptions import Subscription

__all__ = [
    "AlreadySubscribed",
    "Backoff",
    "Client",
    "Closed",
    "ConnectionLost",
    "Event",
    "EventStream",
    "HistoryLost",
    "HwError",
    "Notification",
    "Position",
    "Refused",
    "Reset",
    "RpcError",
    "SignInFailed",
    "SlowConsumer",
    "Subscription",
    "Token",
    "Unreachable",
    "Unsubscribed",
]
