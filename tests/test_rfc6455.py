"""The frame reader against RFC 6455: what a client may send, and the close code of what it may not."""

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.conftest import Running
from tests.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, frame
from tests.traefik import traefik

__all__ = ["traefik"]

Token = Callable[[str], str]
CALL = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":"pong"}'
PARSE_ERROR = b"-32700"
LIMIT = 262_144  # ws.max_frame_bytes


def padded(size: int) -> bytes:
    """The call, `size` bytes long."""
    return CALL + b" " * (size - len(CALL))


def sized(kind: int, payload: bytes, form: str) -> bytes:
    """A frame whose length is written in another form than the shortest (section 5.2)."""
    length = b"\xfe" + struct.pack("!H", len(payload)) if form == "16" else b"\xff" + struct.pack("!Q", len(payload))
    return bytes((0x80 | kind,)) + length + bytes(4) + payload


def reason(code: int, text: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + text)


def in_pieces(payload: bytes, *cuts: int) -> bytes:
    edges = [0, *cuts, len(payload)]
    parts = [payload[start:end] for start, end in pairwise(edges)]
    kinds = [TEXT, *[CONTINUATION] * (len(parts) - 1)]
    return b"".join(
        frame(kind, part, fin=index == len(parts) - 1)
        for index, (kind, part) in enumerate(zip(kinds, parts, strict=True))
    )


UMLAUT = '{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"x":"ä€😀"}'.encode()
# What is sent, and what comes back: frames as (opcode, part of the payload), or the code of the close frame.
TAKEN: dict[str, tuple[bytes, list[tuple[int, bytes]]]] = {
    # 5.2: lengths
    "a text": (frame(TEXT, CALL), [(TEXT, ANSWER)]),
    "an empty text": (frame(TEXT), [(TEXT, PARSE_ERROR)]),
    "125 bytes": (frame(TEXT, padded(125)), [(TEXT, ANSWER)]),
    "126 bytes": (frame(TEXT, padded(126)), [(TEXT, ANSWER)]),
    "127 bytes": (frame(TEXT, padded(127)), [(TEXT, ANSWER)]),
    "65,535 bytes": (frame(TEXT, padded(65_535)), [(TEXT, ANSWER)]),
    "65,536 bytes": (frame(TEXT, padded(65_536)), [(TEXT, ANSWER)]),
    "as long as allowed": (frame(TEXT, padded(LIMIT)), [(TEXT, ANSWER)]),
    # 5.3: masks
    "a mask of zeros": (frame(TEXT, CALL, mask=bytes(4)), [(TEXT, ANSWER)]),
    "a mask of ones": (frame(TEXT, CALL, mask=b"\xff" * 4), [(TEXT, ANSWER)]),
    # 5.4: fragments
    "two fragments": (in_pieces(CALL, 7), [(TEXT, ANSWER)]),
    "three fragments": (in_pieces(CALL, 7, 20), [(TEXT, ANSWER)]),
    "a fragment for each byte": (in_pieces(CALL, *range(1, len(CALL))), [(TEXT, ANSWER)]),
    "an empty first fragment": (in_pieces(CALL, 0), [(TEXT, ANSWER)]),
    "an empty last fragment": (in_pieces(CALL, len(CALL)), [(TEXT, ANSWER)]),
    "empty fragments": (
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION),
        [(TEXT, PARSE_ERROR)],
    ),
    "fragments as long as allowed": (in_pieces(padded(LIMIT), 1, 70_000), [(TEXT, ANSWER)]),
    "a message after fragments": (in_pieces(CALL, 9) + frame(TEXT, CALL), [(TEXT, ANSWER)] * 2),
    "fragmented messages one after the other": (in_pieces(CALL, 9) + in_pieces(CALL, 30), [(TEXT, ANSWER)] * 2),
    "a ping between fragments": (
        frame(TEXT, CALL[:9], fin=False) + frame(PING, b"x") + frame(CONTINUATION, CALL[9:]),
        [(PONG, b"x"), (TEXT, ANSWER)],
    ),
    "a pong between fragments": (
        frame(TEXT, CALL[:9], fin=False) + frame(PONG, b"x") + frame(CONTINUATION, CALL[9:]),
        [(TEXT, ANSWER)],
    ),
    # 5.5: control frames
    "an empty ping": (frame(PING), [(PONG, b"")]),
    "a ping": (frame(PING, b"hello"), [(PONG, b"hello")]),
    "the longest ping": (frame(PING, b"x" * 125), [(PONG, b"x" * 125)]),
    "a ping of binary data": (frame(PING, b"\xff\0\xfe"), [(PONG, b"\xff\0\xfe")]),
    "pings in order": (
        frame(PING, b"1") + frame(PING, b"2") + frame(PING, b"3"),
        [(PONG, b"1"), (PONG, b"2"), (PONG, b"3")],
    ),
    "a pong nobody asked for": (frame(PONG, b"x") + frame(TEXT, CALL), [(TEXT, ANSWER)]),
    "the longest pong": (frame(PONG, b"x" * 125) + frame(TEXT, CALL), [(TEXT, ANSWER)]),
    # 8.1: UTF-8
    "text beyond ASCII": (frame(TEXT, UMLAUT), [(TEXT, b'"id":1')]),
    **{f"a character cut after {cut} bytes": (in_pieces(UMLAUT, cut), [(TEXT, b'"id":1')]) for cut in range(57, 65)},
    "a byte order mark": (frame(TEXT, b"\xef\xbb\xbf" + CALL), [(TEXT, PARSE_ERROR)]),
    "a noncharacter": (frame(TEXT, b'"\xef\xbf\xbf"'), [(TEXT, b"-32600")]),
}
PROTOCOL_ERROR, BINARY_FRAME, INVALID_DATA, TOO_BIG = 1002, 1003, 1007, 1009
ENDED: dict[str, tuple[bytes, int]] = {
    # 5.2: lengths
    **{
        f"{size} bytes in {form} bits": (sized(TEXT, padded(size) if size > 40 else b"x" * size, form), PROTOCOL_ERROR)
        for size, form in [(0, "16"), (1, "16"), (125, "16"), (0, "64"), (125, "64"), (126, "64"), (65_535, "64")]
    },
    "a ping in 16 bits": (sized(PING, b"x", "16"), PROTOCOL_ERROR),
    "a length with its highest bit": (b"\x81\xff" + b"\x80" + bytes(7) + bytes(4), PROTOCOL_ERROR),
    "a byte too long": (frame(TEXT, padded(LIMIT + 1)), TOO_BIG),
    "a length without end": (b"\x81\xff" + struct.pack("!Q", 2**62) + bytes(4), TOO_BIG),
    # 5.2: reserved bits and opcodes
    **{
        f"reserved bits {bits:#x} of opcode {kind}": (frame(kind, b"", bits=bits), PROTOCOL_ERROR)
        for bits in (0x40, 0x20, 0x10)
        for kind in (TEXT, BINARY, CLOSE, PING, PONG)
    },
    "reserved bits of a continuation": (
        frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b"}", bits=0x40),
        PROTOCOL_ERROR,
    ),
    **{f"opcode {kind}": (frame(kind), PROTOCOL_ERROR) for kind in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "opcode 3 in fragments": (frame(3, fin=False), PROTOCOL_ERROR),
    # 5.1: masks
    "a text without mask": (frame(TEXT, CALL, mask=None), PROTOCOL_ERROR),
    "a ping without mask": (frame(PING, b"x", mask=None), PROTOCOL_ERROR),
    "a close frame without mask": (frame(CLOSE, b"\x03\xe8", mask=None), PROTOCOL_ERROR),
    # 5.4: fragments
    "a continuation of nothing": (frame(CONTINUATION, b"x"), PROTOCOL_ERROR),
    "an unfinished continuation of nothing": (frame(CONTINUATION, b"x", fin=False), PROTOCOL_ERROR),
    "a continuation after the end": (in_pieces(CALL, 9) + frame(CONTINUATION, b"x"), PROTOCOL_ERROR),
    "a text between fragments": (frame(TEXT, b"{", fin=False) + frame(TEXT, CALL), PROTOCOL_ERROR),
    "a beginning between fragments": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"{", fin=False), PROTOCOL_ERROR),
    "a binary frame between fragments": (frame(TEXT, b"{", fin=False) + frame(BINARY, b"x"), PROTOCOL_ERROR),
    "fragments too long": (in_pieces(padded(LIMIT + 1), 100_000, 200_000), TOO_BIG),
    "fragments without end": (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 2_000, 4429),
    # 5.5: control frames
    "a long ping": (frame(PING, b"x" * 126), PROTOCOL_ERROR),
    "a long pong": (frame(PONG, b"x" * 126), PROTOCOL_ERROR),
    "a long close frame": (reason(1000, b"x" * 124), PROTOCOL_ERROR),
    "a ping in fragments": (frame(PING, b"x", fin=False), PROTOCOL_ERROR),
    "a pong in fragments": (frame(PONG, b"x", fin=False), PROTOCOL_ERROR),
    "a close frame in fragments": (frame(CLOSE, b"\x03\xe8", fin=False), PROTOCOL_ERROR),
    "a ping without end": (b"\x89\xff" + struct.pack("!Q", 2**40) + bytes(4), PROTOCOL_ERROR),
    # 5.6: only text is spoken
    "a binary frame": (frame(BINARY, b"x"), BINARY_FRAME),
    "an empty binary frame": (frame(BINARY), BINARY_FRAME),
    "a binary frame in fragments": (frame(BINARY, b"x", fin=False), BINARY_FRAME),
    # 8.1: UTF-8
    **{
        f"bytes {text.hex()}": (frame(TEXT, b'"' + text + b'"'), INVALID_DATA)
        for text in (
            b"\xff",
            b"\xc3",
            b"\xc3\x28",
            b"\xe2\x82",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\x80",
        )
    },
    "bad bytes in fragments": (in_pieces(b'"\xe2\x82\xff"', 2, 3), INVALID_DATA),
    "a character never finished": (frame(TEXT, b'"\xe2', fin=False) + frame(CONTINUATION, b"\x82"), INVALID_DATA),
    # 7.4: close codes, answered with the same
    **{
        f"close code {code}": (reason(code, b"bye"), code)
        for code in (1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"close code {code}": (reason(code), PROTOCOL_ERROR)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "no close code": (frame(CLOSE), 1005),
    "half a close code": (frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    "the longest reason": (reason(1000, b"x" * 123), 1000),
    "a reason that is no UTF-8": (reason(1000, b"\xff"), INVALID_DATA),
    "a close frame between fragments": (frame(TEXT, b"{", fin=False) + reason(1000), 1000),
    "a broken frame after a close frame": (reason(1000) + frame(TEXT, b"x", bits=0x40), 1000),
    "a call after a close frame": (reason(1000) + frame(TEXT, CALL), 1000),
}
SPLIT = frame(PING, b"hello") + in_pieces(CALL, 9) + frame(TEXT, padded(300)) + frame(PONG) + frame(TEXT, CALL)


@pytest.fixture(scope="module", params=["directly", "through Traefik"])
def url(request: pytest.FixtureRequest, server: Running) -> str:
    """Traefik forwards the bytes after an upgrade as they are."""
    return server.url if request.param == "directly" else str(request.getfixturevalue("traefik"))


@pytest.mark.parametrize("case", TAKEN)
def test_takes(url: str, token: Token, case: str) -> None:
    sent, expected = TAKEN[case]
    with RawClient(url) as client:
        assert client.handshake(token("alice")) == 101
        client.send(sent)
        frames = client.frames()
        for kind, part in expected:
            opcode, payload = next(frames)
            assert (opcode, part in payload) == (kind, True), payload


@pytest.mark.parametrize("case", ENDED)
def test_ends(url: str, token: Token, case: str) -> None:
    sent, code = ENDED[case]
    with RawClient(url) as client:
        assert client.handshake(token("alice")) == 101
        client.send(sent + frame(PONG) * 50)  # more of the same, which is not read any more
        assert client.close_code() == code


@pytest.mark.parametrize("start", range(1, len(SPLIT), 40))
def test_a_frame_may_come_in_two_pieces(url: str, token: Token, start: int) -> None:
    """Cut at every byte; a connection for some cuts, as control frames have a limit."""
    with RawClient(url) as client:
        client.handshake(token("alice"))
        frames = client.frames()
        for cut in range(start, min(start + 40, len(SPLIT))):
            client.send(SPLIT[:cut])
            client.send(SPLIT[cut:])
            assert next(frames) == (PONG, b"hello")
            assert [next(frames) for _ in range(3)] == [(TEXT, ANSWER)] * 3


def test_a_frame_may_come_byte_by_byte(url: str, token: Token) -> None:
    with RawClient(url) as client:
        client.handshake(token("alice"))
        for byte in SPLIT:
            client.send(bytes((byte,)))
        frames = client.frames()
        assert next(frames) == (PONG, b"hello")
        assert [next(frames) for _ in range(3)] == [(TEXT, ANSWER)] * 3
