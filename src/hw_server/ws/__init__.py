"""The WebSocket side: JSON-RPC 2.0 over text frames."""
