"""The native stack: real servers that come as wheels, started in the background, with their state in one folder."""

from hw_server.embedded.process import EmbeddedError, Process, ProcessSpec
from hw_server.embedded.stack import Ports, Stack

__all__ = ["EmbeddedError", "Ports", "Process", "ProcessSpec", "Stack"]
