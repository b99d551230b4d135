"""The HTTP protocol against RFC 9112: which requests are answered, and which end the connection."""

from collections.abc import Callable

import pytest

from tests.conftest import Running
from tests.raw import RawClient
from tests.traefik import traefik

__all__ = ["traefik"]

Token = Callable[[str], str]
END = b"Connection: close\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
NEXT = LIVE + END  # a request after the one of the case: what it gets tells where the server thinks that one ended
POST = b"POST /api/notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
# Name: what is sent, the statuses that come back until the server closes.
CASES: dict[str, tuple[bytes, list[int]]] = {
    # 2.2: messages
    "a request": (NEXT, [200]),
    "an empty line before it": (b"\r\n" + NEXT, [200]),
    "two empty lines before it": (b"\r\n\r\n" + NEXT, [200]),
    "a bare line feed": (NEXT.replace(b"\r\n", b"\n"), [400]),
    "a bare line feed after a field": (LIVE + b"X: 1\n" + END, [400]),
    "a bare carriage return in a value": (LIVE + b"X: 1\r2\r\n" + END, [400]),
    "a space before the first field": (b"GET /health/live HTTP/1.1\r\n Host: x\r\n" + END, [400]),
    # 3: request line
    "a method in lower case": (NEXT.replace(b"GET", b"get"), [400]),
    "an unknown method": (NEXT.replace(b"GET", b"BREW"), [400]),
    "no method": (NEXT.replace(b"GET ", b""), [400]),
    "no version": (NEXT.replace(b" HTTP/1.1", b""), [505]),
    "two spaces, which a server may take": (NEXT.replace(b"GET ", b"GET  "), [200]),
    "a tab for a space": (NEXT.replace(b"GET ", b"GET\t"), [400]),
    "a space in the target": (NEXT.replace(b"/live", b"/ live"), [400]),
    "256 parameters": (NEXT.replace(b"/live", b"/live?" + b"a&" * 255), [200]),
    "257 parameters": (NEXT.replace(b"/live", b"/live?" + b"a&" * 256), [431]),
    "bytes beyond ASCII in the target": (NEXT.replace(b"/live", b"/\xc3\xa4"), [400]),
    "NUL in the target": (NEXT.replace(b"/live", b"/\x00"), [400]),
    "a target of 8,000 bytes": (NEXT.replace(b"/live", b"/live?" + b"x" * 8_000), [200]),
    "a target without end": (NEXT.replace(b"/live", b"/live?" + b"x" * 70_000), [431]),
    "HTTP/1.2": (NEXT.replace(b"1.1", b"1.2"), [400]),
    "HTTP/2.0": (NEXT.replace(b"1.1", b"2.0"), [505]),
    "HTTP/0.9": (b"GET /health/live\r\n\r\n", [505]),
    "HTTP/9": (NEXT.replace(b"1.1", b"9"), [400]),
    "a version in lower case": (NEXT.replace(b"HTTP", b"http"), [400]),
    "another protocol": (NEXT.replace(b"HTTP", b"SIP"), [400]),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    # 3.2: target and Host
    "no Host": (b"GET /health/live HTTP/1.1\r\n" + END, [400]),
    "two Hosts": (LIVE + b"Host: y\r\n" + END, [400]),
    "the same Host twice": (LIVE + b"Host: x\r\n" + END, [400]),
    "an empty Host": (NEXT.replace(b"Host: x", b"Host:"), [200]),
    "a Host with a port": (NEXT.replace(b"Host: x", b"Host: x:80"), [200]),
    "a Host of IPv6": (NEXT.replace(b"Host: x", b"Host: [::1]:80"), [200]),
    "a Host with a space": (NEXT.replace(b"Host: x", b"Host: x y"), [400]),
    "a Host with a slash": (NEXT.replace(b"Host: x", b"Host: x/y"), [400]),
    "a Host with a user": (NEXT.replace(b"Host: x", b"Host: a@x"), [400]),
    "a list of Hosts": (NEXT.replace(b"Host: x", b"Host: x, y"), [400]),
    "absolute-form": (NEXT.replace(b"/health", b"http://x/health"), [200]),
    "absolute-form of another host than Host": (NEXT.replace(b"/health", b"http://y:80/health"), [200]),
    "absolute-form without a path": (NEXT.replace(b"/health/live", b"http://x"), [200]),
    "absolute-form without Host": (NEXT.replace(b"/health", b"http://x/health").replace(b"Host: x\r\n", b""), [400]),
    "absolute-form with a user": (NEXT.replace(b"/health", b"http://a@x/health"), [400]),
    "absolute-form of another scheme": (NEXT.replace(b"/health", b"ftp://x/health"), [400]),
    "authority-form of a GET": (NEXT.replace(b"/health/live", b"x:80"), [400]),
    "CONNECT": (NEXT.replace(b"GET /health/live", b"CONNECT x:80"), [400]),
    "asterisk-form": (NEXT.replace(b"GET /health/live", b"OPTIONS *"), [404]),
    "asterisk-form of a GET": (NEXT.replace(b"/health/live", b"*"), [400]),
    # 5: fields
    "a space before the colon": (LIVE + b"X : 1\r\n" + END, [400]),
    "a tab before the colon": (LIVE + b"X\t: 1\r\n" + END, [400]),
    "no colon": (LIVE + b"X\r\n" + END, [400]),
    "no name": (LIVE + b": 1\r\n" + END, [400]),
    "no value": (LIVE + b"X:\r\n" + END, [200]),
    "spaces and tabs around a value": (LIVE + b"X:\t 1 \t\r\n" + END, [200]),
    "a name with a bracket": (LIVE + b"X(: 1\r\n" + END, [400]),
    "a name beyond ASCII": (LIVE + b"X\xe4: 1\r\n" + END, [400]),
    "NUL in a name": (LIVE + b"X\x00: 1\r\n" + END, [400]),
    "NUL in a value": (LIVE + b"X: 1\x002\r\n" + END, [400]),
    "two callers": (LIVE + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n" + END, [400]),
    "two callers, one after the other": (
        LIVE + b"Authorization: Bearer a\r\n\r\n" + LIVE + b"Authorization: Bearer b\r\n" + END,
        [200, 200],
    ),
    "a value beyond ASCII": (LIVE + b"X: \xe4\r\n" + END, [200]),
    "a folded line": (LIVE + b"X: 1\r\n 2\r\n" + END, [400]),
    "a line folded with a tab": (LIVE + b"X: 1\r\n\t2\r\n" + END, [400]),
    "128 fields": (LIVE + b"X: 1\r\n" * 126 + END, [200]),
    "129 fields": (LIVE + b"X: 1\r\n" * 127 + END, [431]),
    "fields without end": (LIVE + b"X: " + b"1" * 70_000 + b"\r\n" + END, [431]),
    # 6.1 and 6.2: one length, and one way to say it (request smuggling)
    "a length": (POST + b"Content-Length: 2\r\n\r\n{}" + NEXT, [401, 200]),
    "no body": (POST + b"\r\n" + NEXT, [401, 200]),
    "a length with leading zeros": (POST + b"Content-Length: " + b"0" * 5_000 + b"2\r\n\r\n{}" + NEXT, [401, 200]),
    "a length of zero": (POST + b"Content-Length: 0\r\n\r\n" + NEXT, [401, 200]),
    "the same length twice": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + NEXT, [400]),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + NEXT, [400]),
    "a list of lengths": (POST + b"Content-Length: 2, 2\r\n\r\n{}" + NEXT, [400]),
    **{
        f"a length of {text.decode()!r}": (POST + b"Content-Length: " + text + b"\r\n\r\n{}" + NEXT, [400])
        for text in (b"+2", b"-2", b"0x2", b"2.0", b"2 2", b"two", b"", b"1_0", b"9" * 30)
    },
    "a length and chunks": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT, [400]),
    "chunks and a length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT, [400]),
    "chunks": (CHUNKED + b"2\r\n{}\r\n0\r\n\r\n" + NEXT, [401, 200]),
    "chunks in capitals": (CHUNKED.replace(b"chunked", b"CHUNKED") + b"2\r\n{}\r\n0\r\n\r\n" + NEXT, [401, 200]),
    **{
        f"a coding {text.decode()!r}": (
            POST + b"Transfer-Encoding: " + text + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + NEXT,
            [400],
        )
        for text in (b"identity", b"chunked, identity", b"xchunked", b"chunkedx", b'"chunked"', b"chunked;q=1", b"")
    },
    "a coding twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + NEXT,
        [400],
    ),
    "a coding folded": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + NEXT, [400]),
    "a coding with a space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + NEXT, [400]),
    "a GET with a body": (LIVE + b"Content-Length: 2\r\n\r\n{}" + NEXT, [200, 200]),
    # 7.1: chunks
    "a chunk in capital digits": (CHUNKED + b"A\r\n" + b"x" * 10 + b"\r\n0\r\n\r\n" + NEXT, [401, 200]),
    "leading zeros": (CHUNKED + b"0002\r\n{}\r\n000\r\n\r\n" + NEXT, [401, 200]),
    "a chunk extension": (CHUNKED + b'2;name="value"\r\n{}\r\n0\r\n\r\n' + NEXT, [401, 200]),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\nX: 1\r\nY: 2\r\n\r\n" + NEXT, [401, 200]),
    "many chunks": (CHUNKED + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n" + NEXT, [401, 200]),
    **{
        f"a chunk of {text.decode()!r}": (CHUNKED + text + b"\r\n{}\r\n0\r\n\r\n" + NEXT, [400])
        for text in (b"0x2", b"-2", b"+2", b"2g", b"", b" 2", b"f" * 17)
    },
    "a chunk longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n" + NEXT, [400]),
    "a chunk without its line end": (CHUNKED + b"2\r\n{}0\r\n\r\n" + NEXT, [400]),
    "a chunk size ended by a line feed": (CHUNKED + b"2\n{}\r\n0\r\n\r\n" + NEXT, [400]),
    "a chunk ended by a line feed": (CHUNKED + b"2\r\n{}\n0\r\n\r\n" + NEXT, [400]),
    "a line feed in an extension": (CHUNKED + b"2;x\n\r\n{}\r\n0\r\n\r\n" + NEXT, [400]),
    "an extension without end": (CHUNKED + b"2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n" + NEXT, [431]),
    "a trailer with a space before the colon": (CHUNKED + b"0\r\nX : 1\r\n\r\n" + NEXT, [400]),
    # 9.3: connections
    "three requests": (LIVE + b"\r\n" + LIVE + b"\r\n" + NEXT, [200] * 3),
    "a request after the last": (NEXT + NEXT, [200]),
    "nonsense after a request": (LIVE + b"\r\n" + b"nonsense\r\n\r\n", [200, 400]),
    "nonsense after two": (LIVE + b"\r\n" + LIVE + b"\r\n" + b"nonsense\r\n\r\n", [200, 200, 400]),
    "HTTP/1.0": (b"GET /health/live HTTP/1.0\r\n\r\n" + NEXT, [200]),
    "HTTP/1.0 with Host": (b"GET /health/live HTTP/1.0\r\nHost: x\r\n\r\n" + NEXT, [200]),
    "HTTP/1.0 with two Hosts": (b"GET /health/live HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", [400]),
    "HTTP/1.0 that would stay": (b"GET /health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + NEXT, [200]),
    "Connection: close in a list": (LIVE + b"Connection: x, Close\r\n\r\n" + NEXT, [200]),
    "HEAD": (NEXT.replace(b"GET", b"HEAD"), [200]),
    # 9.8 and RFC 9110, sections 7.8 and 10.1.1
    "an upgrade to what is not spoken": (LIVE + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + NEXT, [200]),
    "an upgrade with a body": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}" + NEXT,
        [400],
    ),
    "Upgrade without Connection": (LIVE + b"Upgrade: websocket\r\n" + END, [200]),
    "an expectation that is refused": (POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", [401]),
    "a websocket in HTTP/1.0": (
        b"GET /web HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        [400],
    ),
}

# Where Go's server in front decides otherwise: by answer, the cases. None of them is answered more often than it is sent.
THROUGH_TRAEFIK: dict[str, list[int]] = {
    name: statuses
    for statuses, names in [
        (
            [400],
            [
                "an empty line before it",
                "two empty lines before it",
                "no version",
                "two spaces, which a server may take",
                "HTTP/0.9",
            ],
        ),
        (
            [200],
            [
                "a bare line feed",
                "a bare line feed after a field",
                "HTTP/1.2",
                "absolute-form with a user",
                "absolute-form of another scheme",
                "asterisk-form",
                "a folded line",
                "a line folded with a tab",
            ],
        ),
        ([404], ["bytes beyond ASCII in the target", "asterisk-form of a GET"]),
        ([], ["HTTP/2's preface"]),
        (
            [501],
            [
                "CONNECT",
                "a coding 'identity'",
                "a coding 'chunked, identity'",
                "a coding 'xchunked'",
                "a coding 'chunkedx'",
                "a coding '\"chunked\"'",
                "a coding 'chunked;q=1'",
                "a coding ''",
                "a coding twice",
            ],
        ),
        ([431], ["128 fields"]),
        (
            [401, 200],
            [
                "the same length twice",
                "a length and chunks",
                "chunks and a length",
                "a coding folded",
                "an upgrade with a body",
            ],
        ),
        (
            [500],
            [
                "a trailer with a space before the colon",
                "a chunk of '0x2'",
                "a chunk of '-2'",
                "a chunk of '+2'",
                "a chunk of '2g'",
                "a chunk of ''",
                "a chunk of ' 2'",
                "a chunk of 'fffffffffffffffff'",
                "a chunk longer than it says",
                "a chunk without its line end",
                "a chunk size ended by a line feed",
                "a chunk ended by a line feed",
                "a line feed in an extension",
                "an extension without end",
            ],
        ),
        ([200, 200], ["HTTP/1.0 that would stay", "an upgrade to what is not spoken"]),
        ([101], ["a websocket in HTTP/1.0"]),
    ]
    for name in names
}
NOT_THROUGH_TRAEFIK = {"an expectation that is refused"}  # it waits for a body that the client need not send


@pytest.mark.parametrize("case", sorted(CASES.keys() - NOT_THROUGH_TRAEFIK))
def test_answers_through_traefik(traefik: str, case: str) -> None:
    sent, statuses = CASES[case]
    with RawClient(traefik, timeout=10) as client:
        client.send(sent)
        received, expected = client.statuses(head_only="HEAD" in case), THROUGH_TRAEFIK.get(case, statuses)
    if expected == [500]:
        # A broken body is passed on until it breaks: the server's 401 and Traefik's own error race. Where the error comes while the
        # 401 is being copied, Traefik closes without an answer.
        assert received in ([], [500], [400], [401], [401, 200], [401, 400])
    else:
        assert received == expected


@pytest.mark.parametrize("case", CASES)
def test_answers(server: Running, case: str) -> None:
    sent, statuses = CASES[case]
    with RawClient(server.url, timeout=10) as client:
        client.send(sent)
        assert client.statuses(head_only="HEAD" in case) == statuses


@pytest.mark.parametrize("case", CASES)
def test_answers_byte_by_byte(server: Running, case: str) -> None:
    sent, statuses = CASES[case]
    if len(sent) > 2_000:
        return
    with RawClient(server.url, timeout=10) as client:
        for byte in sent:
            client.send(bytes((byte,)))
        answered = client.statuses(head_only="HEAD" in case)
    # The request may be refused for its headers before the rest of it turns out to be broken.
    refused_before = sent.startswith(CHUNKED) and statuses == [400] and answered == [401]
    assert answered == statuses or refused_before
