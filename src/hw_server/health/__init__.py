"""What load balancers and people ask: is it alive, is it ready, what is wrong."""

from hw_server.health.checks import Health
from hw_server.health.router import router

__all__ = ["Health", "router"]
