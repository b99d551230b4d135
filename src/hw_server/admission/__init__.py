"""Authentication, rate limit, metrics and log line of a call: the same for HTTP requests, handshakes and socket calls."""

from hw_server.admission.accounting import Accounting
from hw_server.admission.admission import Admission

__all__ = ["Accounting", "Admission"]
