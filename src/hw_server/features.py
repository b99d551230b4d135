"""What this server can do. A new resource adds its line here."""

from hw_server import audit, authors, sessions

FEATURES = (
    authors.feature,
    audit.feature,
    sessions.feature,
)
