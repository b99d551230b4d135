"""The features that this server serves. A new resource adds its line here. Services start in this order and stop in reverse: the audit
trail last, after everything that writes to it."""

from hw_server import audit, authors, sessions

FEATURES = (
    audit.feature,
    sessions.feature,
    authors.feature,
)
