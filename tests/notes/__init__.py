"""The feature that the tests and the bench stand on; no server ships it. `environment.py` has what it needs."""

from hw_server import audit, sessions
from hw_server.operations import Feature
from tests.notes.operations import operations

feature = Feature("notes", operations, conflicts={"notes_title_key": "a note with this title exists"})
FEATURES = (audit.feature, sessions.feature, feature)
