"""The API page in a real browser: sign-in by PKCE, then a request."""

from playwright.sync_api import Browser

from tests.browser import sign_in_and_ask
from tests.conftest import Running


def test_signs_in_with_nanoidp(local: Running, browser: Browser) -> None:
    assert '"username": "alice"' in sign_in_and_ask(browser, local.environment["HW_HTTP__PUBLIC_URL"], "alice")
