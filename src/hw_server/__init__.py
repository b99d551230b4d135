"""hw-server: a real-time API server whose operations speak REST and JSON-RPC from one declaration."""

__version__ = "0.1.0"
