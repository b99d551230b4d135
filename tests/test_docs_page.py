"""The API page in a real browser: sign-in by PKCE, then a request."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from hw_server.embedded import Stack
from tests.browser import sign_in_and_ask
from tests.conftest import Running, run_server


def test_signs_in_with_nanoidp(local: Running, browser: Browser) -> None:
    assert '"username": "alice"' in sign_in_and_ask(browser, local.environment["HW_HTTP__PUBLIC_URL"], "alice")


@pytest.fixture(scope="module")
def local(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """On the port whose pages the provider lets in."""
    with run_server(stack.environment(), tmp_path_factory.mktemp("log")) as running:
        yield running
