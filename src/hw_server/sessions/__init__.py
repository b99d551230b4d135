"""Sessions: who is signed in where, ending them, and the provider's back-channel logout."""

from hw_server.operations import Feature
from hw_server.sessions.backchannel import router
from hw_server.sessions.operations import operations

feature = Feature("sessions", operations, router)
