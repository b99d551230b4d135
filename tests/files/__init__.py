"""A feature whose routes only HTTP speaks, for the tests; no server ships it."""

from hw_server import audit, sessions
from hw_server.operations import Feature
from tests.files.router import router

feature = Feature("files", router=router)
FEATURES = (audit.feature, sessions.feature, feature)
SETTINGS = {"HW_FEATURES": "tests.files:FEATURES"}
