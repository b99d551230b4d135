"""A real browser for the API page and the console: Debian's Chromium, headless."""

from contextlib import suppress

from playwright.sync_api import Browser, Error, Locator, Page


def execute(
    browser: Browser, url: str, user: str, operation: str = "me.get", console: list[str] | None = None
) -> Locator:
    """Signs in on the API page, executes an operation there, and gives back the table of its responses. `console` takes what the
    browser has to say of the page, such as what its policy forbids."""
    page = browser.new_page()
    if console is not None:
        page.on("console", lambda message: console.append(message.text))
    page.goto(f"{url}/docs")
    page.wait_for_selector(".opblock")
    for _ in range(3):  # a click while the page is being built may be lost
        page.click("button.authorize")
        with suppress(Error):
            page.wait_for_selector(".modal-ux input[type=checkbox]", state="attached", timeout=5_000)
            break
    page.check(".modal-ux input[type=checkbox]", force=True)
    with page.expect_popup() as opening:
        page.click(".modal-ux button.authorize")
    with opening.value.expect_event("close"):
        log_in(opening.value, user)
    page.wait_for_selector(".modal-ux button:has-text('Logout')")
    page.click(".modal-ux button.btn-done")
    # Swagger UI escapes the id as a selector would want it.
    name = f"operations-{operation.partition('.')[0]}-{operation}".replace(".", r"\\.")
    block = page.locator(f"[id='{name}']")
    block.locator("button.opblock-summary-control").click()
    block.locator("button.execute").click()
    return block.locator(".live-responses-table .response")


def sign_in_and_ask(browser: Browser, url: str, user: str, console: list[str] | None = None) -> str:
    """What the API page shows as the answer to `me.get`."""
    return execute(browser, url, user, console=console).locator(".highlight-code, .microlight").first.inner_text()


def log_in(window: Page, user: str) -> None:
    window.fill("input[name=username]", user)
    window.fill("input[name=password]", user)
    with suppress(Error):  # a popup may be closed before the key is let go
        window.press("input[name=password]", "Enter")


def open_console(browser: Browser, url: str, user: str) -> Page:
    """The console, with `user` signed in and the methods listed."""
    page = browser.new_page()
    page.goto(url)
    page.click("#sign-in")
    log_in(page, user)
    page.wait_for_selector("#methods label")
    return page


def ask(page: Page, method: str, params: str = "{}") -> str:
    """Calls `method` on the console and gives back what stands beside the editor."""
    page.check(f"input[value='{method}']", force=True)
    page.fill("#params", params)
    page.click("#clear")
    page.press("#params", "Control+Enter")
    page.locator("#log li:is(.in, .error)", has_text=method).first.wait_for()
    return page.locator("#result").inner_text()


def subscribe(page: Page, topic: str) -> None:
    """Subscribes on the console, and waits until it stands in the list."""
    page.fill("#topic", topic)
    page.press("#topic", "Enter")
    page.locator("#subscriptions li", has_text=topic).wait_for()
