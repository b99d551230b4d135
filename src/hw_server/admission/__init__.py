"""Who calls and which budget that counts against, and what is told of a finished call: one way for HTTP requests, handshakes
and calls of a socket."""

from hw_server.admission.accounting import Accounting
from hw_server.admission.admission import Admission

__all__ = ["Accounting", "Admission"]
