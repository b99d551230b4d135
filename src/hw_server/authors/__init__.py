"""The example feature: copy the folder, rename, write a migration, add a line to `features.py`."""

from hw_server.authors.operations import operations
from hw_server.operations import Feature

feature = Feature("authors", operations, conflicts={"authors_name_key": "an author with this name exists"})
