"""Sessions: who is signed in where, ending them, and the provider's back-channel logout."""

from hw_server.auth.authentication import Authentication
from hw_server.auth.revocations import Revocations
from hw_server.auth.sessions import SessionStore
from hw_server.observability.metrics import Metrics
from hw_server.operations import Feature
from hw_server.redis import AuthRedis, Keys
from hw_server.runtime.parts import Parts
from hw_server.sessions.backchannel import PATH, router
from hw_server.sessions.operations import operations
from hw_server.settings import Settings


def _session_store(parts: Parts) -> SessionStore:
    store = SessionStore(parts[Settings].oidc, parts[AuthRedis], parts[Keys], parts[Revocations], parts[Metrics])
    parts[Authentication].listeners.append(store.touch)
    return store


# The provider reports the logouts of all its users from one address, so no rate limit counts them.
feature = Feature(
    "sessions",
    operations,
    router,
    provides={SessionStore: _session_store},
    services=(lambda parts: parts[SessionStore],),
    exempt=(PATH,),
)
