from tests.shipped import server, token

__all__ = ["server", "token"]
