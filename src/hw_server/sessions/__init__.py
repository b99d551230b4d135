"""Sessions: who is signed in where, ending them, and the provider's back-channel logout."""

from hw_server.operations import Feature
from hw_server.sessions.backchannel import PATH, router
from hw_server.sessions.operations import operations

# The provider tells of all its users' logouts from one address.
feature = Feature("sessions", operations, router, exempt=(PATH,))
