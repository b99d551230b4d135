"""The console in a real browser."""

import contextlib
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.browser import ask, open_console, subscribe
from tests.conftest import Running, Serve, free_port
from tests.provider import Provider

ROOMS = {"HW_FEATURES": "tests.rooms:FEATURES"}


@pytest.fixture(scope="module")
def url(local: Running) -> str:
    return local.environment["HW_HTTP__PUBLIC_URL"]


@pytest.fixture(scope="module")
def own() -> Iterator[Provider]:
    """Nobody else's, as these tests change what it replies. It lets everybody in without asking."""
    with Provider.running() as provider:
        yield provider


@pytest.fixture(scope="module")
def trusting(serve: Serve, own: Provider) -> Iterator[Running]:
    port = str(free_port())
    with serve(**own.settings(), HW_HTTP__PORT=port, HW_HTTP__PUBLIC_URL=f"http://127.0.0.1:{port}") as running:
        yield running


@pytest.fixture(scope="module")
def rooms(serve: Serve, own: Provider) -> Iterator[Running]:
    port = str(free_port())
    with serve(
        **ROOMS, **own.settings(), HW_HTTP__PORT=port, HW_HTTP__PUBLIC_URL=f"http://127.0.0.1:{port}"
    ) as running:
        yield running


def test_signs_in_and_calls(url: str, browser: Browser) -> None:
    page = open_console(browser, url, "alice")
    expect(page.locator("#account")).to_contain_text("alice notes:read, notes:write")
    expect(page.locator("#state")).to_have_text("Connected")
    assert page.url == f"{url}/"
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert '"per_page": 7' in ask(page, "notes.list", '{"per_page": 7}')


def test_shows_a_refusal(url: str, browser: Browser) -> None:
    page = open_console(browser, url, "carol")
    expect(page.locator("#methods label", has_text="notes.list")).to_contain_text("notes:read, not yours")
    assert '"code": -32003' in ask(page, "notes.list")


def test_params_that_are_no_object_are_not_sent(url: str, browser: Browser) -> None:
    page = open_console(browser, url, "alice")
    for params in ('{"per_page": 7', "[7]", "7"):
        page.fill("#params", params)
        page.press("#params", "Control+Enter")
        expect(page.locator("#problem")).to_contain_text("These are no params")
    expect(page.locator("#log li.out")).to_have_count(2)  # session.authenticate, rpc.discover


def test_only_declared_values_are_filled_in(url: str, browser: Browser) -> None:
    page = open_console(browser, url, "alice")
    page.check("input[value='notes.update']", force=True)
    expect(page.locator("#params")).to_have_value('{\n  "id": \n}')
    page.click("#declared button:has-text('title')")
    expect(page.locator("#params")).to_have_value('{\n  "id": ,\n  "title": \n}')
    for name, value in (("id", "9007199254740991"), ("title", '"a,}: {b"')):
        page.press("#params", "Control+Enter")
        expect(page.locator("#problem")).to_have_text(f"{name} has no value yet.")
        page.keyboard.type(value)  # where the caret was put
    expect(page.locator("#log li.out")).to_have_count(2)  # session.authenticate, rpc.discover
    page.click("#declared button:has-text('text')")
    assert '"title": "a,}: {b",\n  "text": \n' in page.input_value("#params")
    page.fill("#params", page.input_value("#params").replace(',\n  "text": ', ""))
    page.press("#params", "Control+Enter")
    expect(page.locator("#answer")).to_contain_text("there is no note 9007199254740991")
    page.check("input[value='notes.list']", force=True)
    page.click("#declared button:has-text('per_page')")
    expect(page.locator("#params")).to_have_value('{\n  "per_page": 20\n}')


def test_signs_out(url: str, browser: Browser) -> None:
    page = open_console(browser, url, "alice")
    with page.expect_request(re.compile("/logout")) as ending:
        page.click("#sign-out")
    assert "id_token_hint=" in ending.value.url
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("#account")).to_be_hidden()
    assert page.url == f"{url}/"
    assert "alice" not in page.content()


def test_needs_nobody_else(url: str, browser: Browser) -> None:
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(url)
    expect(page.locator("#sign-in")).to_be_visible()
    assert {address.removeprefix(url) for address in asked} >= {"/", "/console/console.js", "/console/console.css"}
    assert all(address.startswith(f"{url}/") for address in asked)
    assert said == []


def test_the_policy_is_strict(url: str) -> None:
    page = httpx.get(url)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    asset = httpx.get(f"{url}/console/console.js")
    again = httpx.get(f"{url}/console/console.js", headers={"If-None-Match": asset.headers["etag"]})
    assert (asset.headers["cache-control"], again.status_code) == ("no-cache", 304)
    assert httpx.get(f"{url}/console/nothing.js").status_code == 404


def test_names_the_provider_as_browsers_reach_it(serve: Serve, own: Provider) -> None:
    inside = own.issuer.replace("127.0.0.1", "localhost")
    with serve(**own.settings(), HW_OIDC__INTERNAL_URL=inside) as running:
        configuration = httpx.get(f"{running.url}/docs/openid-configuration").json()
        policy = httpx.get(running.url).headers["content-security-policy"]
    assert configuration["token_endpoint"] == f"{own.issuer}/token"
    assert f"http://127.0.0.1:{own.port};" in policy


def test_visitors_cost_the_provider_nothing(trusting: Running, own: Provider) -> None:
    before = own.descriptions
    for _ in range(50):
        assert httpx.get(f"{trusting.url}/docs/openid-configuration").status_code == 200
    assert own.descriptions - before < 10  # the health check's


def test_a_foreign_answer_is_refused(url: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(url)
    page.click("#sign-in")
    page.wait_for_selector("input[name=username]")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    page.goto(f"{url}/?code=stolen&state=wrong")
    expect(page.locator("#message")).to_contain_text("belongs to no sign-in that this page began")
    assert "POST" not in asked
    assert page.url == f"{url}/"
    page.goto(f"{url}/?error=access_denied&error_description=Call%20us&state=wrong")
    expect(page.locator("#message")).not_to_contain_text("Call us")


def test_shows_why_the_provider_refuses(trusting: Running, own: Provider, browser: Browser) -> None:
    own.denial = {"error": "access_denied", "error_description": "<b>Not</b> today"}
    page = browser.new_page()
    page.goto(trusting.url)
    page.click("#sign-in")
    expect(page.locator("#message")).to_contain_text("access_denied. <b>Not</b> today")
    own.denial = {}


def test_renews_the_token_before_it_expires(trusting: Running, own: Provider, browser: Browser) -> None:
    own.lifetime, own.granted = 6, []
    page = browser.new_page()
    page.goto(trusting.url)
    page.click("#sign-in")
    page.wait_for_selector("#methods label")
    own.lifetime = 300
    headers = {"Authorization": f"Bearer {own.granted[0]}"}
    with connect(trusting.ws_url, additional_headers=headers, proxy=None) as other:
        expect(page.locator("#log li.notice")).to_contain_text("session.expiring", timeout=10_000)
        expect(page.locator("#log li.in strong", has_text="session.refresh")).to_have_count(1)
        with contextlib.suppress(ConnectionClosedError):
            while True:
                other.recv(timeout=20)
        assert other.close_code == 4402
    ask(page, "ping")
    expect(page.locator("#state")).to_have_text("Connected")
    expect(page.locator("#log li.error")).to_have_count(0)
    assert len(own.granted) == 2


def test_says_that_the_session_was_ended(trusting: Running, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(trusting.url)
    page.click("#sign-in")
    page.wait_for_selector("#methods label")
    sid = re.findall(r'"session_id": "(\w+)"', ask(page, "me.get"))[0]
    page.check("input[value='sessions.end']", force=True)
    page.fill("#params", f'{{"sid": "{sid}"}}')
    page.press("#params", "Control+Enter")
    expect(page.locator("#message")).to_contain_text("The session was ended (4403 session_revoked)")


def test_connects_again_after_a_restart(serve: Serve, own: Provider, browser: Browser) -> None:
    port = str(free_port())
    settings = {**own.settings(), "HW_HTTP__PORT": port, "HW_HTTP__PUBLIC_URL": f"http://127.0.0.1:{port}"}
    page = browser.new_page()
    with serve(**settings) as running:
        page.goto(running.url)
        page.click("#sign-in")
        expect(page.locator("#state")).to_have_text("Connected")
    expect(page.locator("#log li.notice").first).to_contain_text("server.draining")
    expect(page.locator("#state")).to_contain_text(re.compile(r"Reconnecting in \d+ s"))
    expect(page.locator("#log li.error").last).to_contain_text("1001 going_away")
    with serve(**settings):
        expect(page.locator("#state")).to_have_text("Connected", timeout=40_000)
        assert '"username": "ann"' in ask(page, "me.get")


def signed_in(browser: Browser, running: Running) -> Page:
    """The console, where the provider lets everybody in without asking."""
    page = browser.new_page()
    page.goto(running.url)
    page.click("#sign-in")
    page.wait_for_selector("#methods label")
    return page


def say(running: Running, own: Provider, text: str, times: int = 1) -> None:
    headers = {"Authorization": f"Bearer {own.token()}"}
    query = {"times": str(times)}
    httpx.post(
        f"{running.url}/api/rooms/7/words", json={"text": text}, params=query, headers=headers
    ).raise_for_status()


def test_events_are_shown_as_they_come(rooms: Running, own: Provider, browser: Browser) -> None:
    page = signed_in(browser, rooms)
    expect(page.locator("#declared-topics option[value='rooms/{id}']")).to_have_count(1)
    subscribe(page, "rooms/7")
    start = offset(page)
    say(rooms, own, "hello")
    expect(page.locator("#log li.event")).to_contain_text('{"text":"hello","by":"ann"}')
    expect(page.locator("#subscriptions span")).to_have_text(f"1 event, offset {start + 1}")
    page.click("#subscriptions button")
    expect(page.locator("#subscriptions li")).to_have_count(0)
    say(rooms, own, "unheard")
    ask(page, "ping")
    expect(page.locator("#log li.event")).to_have_count(0)


def offset(page: Page) -> int:
    return int(re.findall(r"offset (\d+)", page.locator("#subscriptions li").inner_text())[0])


def test_a_topic_that_is_refused_is_told(rooms: Running, browser: Browser) -> None:
    page = signed_in(browser, rooms)
    for topic, problem in (("rooms/{id}", "in the place of {id}"), ("nothing", "no topic"), ("rooms/1001", "may not")):
        page.fill("#topic", topic)
        page.click("#subscribe button")
        expect(page.locator("#topic-problem")).to_contain_text(problem)
    expect(page.locator("#subscriptions li")).to_have_count(0)


def test_missed_events_come_back_after_a_restart(serve: Serve, own: Provider, rooms: Running, browser: Browser) -> None:
    port = str(free_port())
    settings = {**ROOMS, **own.settings(), "HW_HTTP__PORT": port, "HW_HTTP__PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with serve(**settings) as running:
        page = signed_in(browser, running)
        subscribe(page, "rooms/7")
    expect(page.locator("#state")).to_contain_text("Reconnecting")
    expect(page.locator("#subscriptions em")).to_have_text("away")
    say(rooms, own, "missed", times=3)
    page.click("#reconnect")  # too early: it goes on trying
    with serve(**settings) as running:
        expect(page.locator("#subscriptions em")).to_have_text("recovered", timeout=40_000)
        expect(page.locator("#subscriptions span")).to_contain_text("3 events")
        expect(page.locator("#log li.notice", has_text="recovered")).to_contain_text("3 missed events")
        say(running, own, "after")
        expect(page.locator("#log li.event code")).to_contain_text(["after", "missed 2", "missed 1", "missed 0"])


def test_methods_are_grouped_and_filtered(rooms: Running, browser: Browser) -> None:
    page = signed_in(browser, rooms)
    notes = page.get_by_role("group", name="notes", exact=True)
    expect(notes.locator("input[value='notes.list']")).to_have_count(1)
    page.keyboard.press("/")
    page.keyboard.type("create a note notes:write what")
    expect(page.locator("#methods label:visible strong")).to_have_text(["notes.announce"])
    expect(page.locator("#methods h3:visible")).to_have_text(["notes"])
    expect(page.locator("#shown")).to_have_text(re.compile(r"1 of \d+"))
    page.fill("#filter", "no such method")
    expect(page.locator("#methods label:visible")).to_have_count(0)


def test_everything_is_reached_by_keyboard(rooms: Running, browser: Browser) -> None:
    page = signed_in(browser, rooms)
    for name, target in (("Methods", "filter"), ("Params", "params"), ("Answer", "answer"), ("Topics", "topic"),
                         ("Log", "log")):  # fmt: skip
        page.get_by_role("navigation", name="Skip").get_by_role("link", name=name).press("Enter")
        assert page.evaluate("document.activeElement.id") == target
    expect(page.get_by_role("log", name="Log")).to_have_attribute("aria-live", "polite")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#log li").first.locator("pre")).to_be_visible()
    assert {"Methods", "Answer", "Topics", "Log"} == set(page.locator("section:visible h2").all_inner_texts())


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_answer_and_the_state_stay_in_view(rooms: Running, browser: Browser, width: int, height: int) -> None:
    page = signed_in(browser, rooms)
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [page.locator(name).bounding_box() for name in ("#params", "#answer")]
    assert boxes[0] is not None
    assert boxes[1] is not None
    beside = boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"]
    assert beside == (width > 1000)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#state")).to_be_in_viewport()
