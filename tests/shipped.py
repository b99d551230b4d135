"""Fixtures for the tests of shipped features: a server that runs what `features.py` lists, and tokens with the roles of the
development users."""

from collections.abc import Callable, Iterator

import pytest

from hw_server.embedded.users import USERS
from tests.conftest import Running, Serve
from tests.provider import Provider


@pytest.fixture(scope="session")
def server(serve: Serve, provider: Provider) -> Iterator[Running]:
    with serve(**provider.settings(), HW_FEATURES="hw_server.features:FEATURES") as running:
        yield running


@pytest.fixture(scope="session")
def token(provider: Provider) -> Callable[[str], str]:
    def signed(user: str) -> str:
        return provider.token(sub=user, preferred_username=user, realm_access={"roles": USERS[user]})

    return signed
