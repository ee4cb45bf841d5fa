"""Responses of peers: twenty valid ones of different shapes, and any number of fuzzed ones."""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass

YES = b'{"success": true, "message": "ok", "data": {"id": "abcdefghij0123456789", "agentId": "agent-1"}}'


@dataclass(frozen=True, slots=True)
class Answer:
    """The peer's response to one request of `kind`, and how it leaves the connection.

    `ending`: "keep" leaves it open, "fin" closes it in order, "reset" resets it. `late` is sent when the next
    request arrives on the same connection, or a moment later.
    """

    kind: str
    data: bytes
    ending: str
    late: bytes = b""


def _plain(head: bytes, body: bytes = YES) -> bytes:
    return b"HTTP/1.1 " + head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, *sizes: int, last: bytes = b"0\r\n\r\n", extension: bytes = b"") -> bytes:
    """A body in chunks of these sizes; one more chunk holds the rest."""
    parts = []
    for size in (*sizes, len(body)):
        piece, body = body[:size], body[size:]
        if piece:
            parts.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
    return b"".join(parts) + last


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

GOOD: dict[str, tuple[bytes, str]] = {
    "with a length": (_plain(b"200 OK\r\nContent-Type: application/json"), "keep"),
    "created": (_plain(b"201 Created\r\nLocation: /v1/models/x"), "keep"),
    "without a reason": (_plain(b"200 "), "keep"),
    "many fields": (_plain(b"200 OK" + b"".join(b"\r\nX-%d: %d" % (n, n) for n in range(20))), "keep"),
    "odd case and blanks": (b"HTTP/1.1 200 OK\r\ncOnTeNt-LeNgTh:\t %d \t\r\n\r\n" % len(YES) + YES, "keep"),
    "zeros before the length": (b"HTTP/1.1 200 OK\r\nContent-Length: 000%d\r\n\r\n" % len(YES) + YES, "keep"),
    "announced as kept alive": (_plain(b"200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5"), "keep"),
    "announced as closed": (_plain(b"200 OK\r\nConnection: close"), "fin"),
    "closed unsaid": (_plain(b"200 OK"), "fin"),
    "as HTTP/1.0 with a length": (_plain(b"200 OK").replace(b"1.1", b"1.0", 1), "fin"),
    "as HTTP/1.0 up to the end": (b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + YES, "fin"),
    "up to the end": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + YES, "fin"),
    "one chunk": (_CHUNKED + chunked(YES), "keep"),
    "many chunks": (_CHUNKED + chunked(YES, *[7] * 12), "keep"),
    "chunks with extensions": (_CHUNKED + chunked(YES, 10, extension=b';a=1;b="x"'), "keep"),
    "chunks with trailers": (_CHUNKED + chunked(YES, 40, last=b"0\r\nX-Sum: 1\r\nX-End: 2\r\n\r\n"), "keep"),
    "chunks then closed": (_CHUNKED + chunked(YES, 1, last=b"000\r\n\r\n"), "fin"),
    "after a 100": (b"HTTP/1.1 100 Continue\r\n\r\n" + _plain(b"200 OK"), "keep"),
    "after a 102 and a 103": (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + _plain(b"200 OK"),
        "keep",
    ),
    "spread out JSON": (_plain(b"200 OK", b" \r\n" + YES.replace(b" ", b"\n\t") + b"\n\n"), "keep"),
}

_STATUS = [
    *[b"HTTP/1.1 200 OK"] * 30,
    *[b"HTTP/1.1 201 Created", b"HTTP/1.0 200 OK"] * 3,
    *[b"HTTP/1.1 %d X" % code for code in (100, 101, 102, 103, 199, 202, 203, 204, 205, 206, 207, 226, 299)],
    *[b"HTTP/1.1 %d X" % code for code in (300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 409, 410)],
    *[b"HTTP/1.1 %d X" % code for code in (413, 422, 425, 429, 451, 500, 501, 502, 503, 504, 599, 600, 999)],
    *[b"HTTP/1.1 200", b"HTTP/1.1  200  OK", b" HTTP/1.1 200 OK", b"HTTP/1.1\t200\tOK", b"HTTP/1.2 200 OK"],
    *[b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.x 200 OK", b"HTTP/11 200 OK", b"http/1.1 200 OK"],
    *[b"HTTP/1.1 +200 OK", b"HTTP/1.1 2_00 OK", b"HTTP/1.1 0200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2OO OK"],
    *[b"ICY 200 OK", b"200 OK", b"", b"HTTP/1.1", b"HTTP/1.1 200 \xff\x00\x1b[2J", b"HTTP/1.1 -200 OK"],
]
_FIELDS = [
    *[b"Content-Type: application/json", b"Content-Type: text/html", b"Connection: close", b"Connection: keep-alive"],
    *[b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Content-Encoding: br", b"Content-Encoding: "],
    *[b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity"],
    *[b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding:\tCHUNKED"],
    *[b"Content-Length: 5", b"Content-Length: abc", b"Content-Length: -1", b"Content-Length: +97", b"Content-Length: "],
    *[b"Content-Length: 9_7", b"Content-Length: 97, 97", b"Content-Length: 97;x", b"Content-Length: 99999999999999999999"],
    *[b"Content-Length : 97", b" Content-Length: 97", b"Content-Length\t: 5", b"Content-Length: 0x61", b"Content-Length: 97.0"],
    *[b"Location: http://other.invalid/", b"Set-Cookie: a=b", b"Retry-After: 7", b"Retry-After: -7", b"Date: soon"],
    *[b"no colon in this line", b": no name", b"X(bad): 1", b"X-Fold: a\r\n  b", b"X-Cr: a\rContent-Length: 5", b"X: \x00"],
    *[b"X: \xff\xfe", b"X-Long: " + b"a" * 3000, b"X-Ctl: \x1b[31m\x7f", b"\xc3\xa9: 1", b"X: a\x0bb\x0cc\x1cd\x85e"],
    *[b"Transfer-Encoding: chunked\r\nContent-Length: 97", b"Content-Range: bytes 0-96/200", b"Trailer: X", b"Upgrade: h2c"],
]  # fmt: skip
_BODIES = [
    *[YES] * 12,
    *[b"", b"null", b"[]", b"{}", b'"ok"', b"true", b"1", b'{"success": false}', b'{"success": "true"}'],
    *[b'{"success": 1}', b'{"success": true}', b'{"success": true', b'{"success": true}}', b'{"success": true} x'],
    *[b'{"success": false, "success": true}', b'{"success": true, "success": false}', b'{"Success": true}'],
    *[b'{"success": true, "x": NaN}', b'{"success": true, "x": 1e999}', b'{"success": true,}', b"{'success': true}"],
    *[b'{"data": {"success": true}}', b'[{"success": true}]', b'{"success": [true]}', b'{"success": null}'],
    *[b'{"success": true, "data": {"id": "../../x"}}', b'{"success": true, "data": {"id": 7}}', b"<html>ok</html>"],
    *[b"\xef\xbb\xbf" + YES, YES.decode().encode("utf-16"), YES.decode().encode("utf-32"), b"\xff" + YES],
    *[gzip.compress(YES, mtime=0), b"[" * 20_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b'{"success": true, "n": ' + b"9" * 5_000 + b"}"],
    *[b'{"success": true, "s": "' + b"x" * 70_000 + b'"}', b'{"success": true, "s": "\\ud800"}', b'{"success": true, "\x00": 1}'],
]  # fmt: skip
_BITS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b":",
    b" ",
    b"\t",
    b"\x00",
    b"\xff",
    b";",
    b"+",
    b"-",
    b"_",
    b"0x",
    b"0",
    b"{",
    b"}",
    b'"',
]


def good(kind: str, name: str) -> Answer:
    """One of the twenty, whole."""
    data, ending = GOOD[name]
    return Answer(kind, data, ending)


def fuzzed(dice: random.Random) -> Answer:
    """A random response: status × fields × body, often with a few bytes changed."""
    kind = dice.choices(("metrics", "registration", "heartbeat"), (6, 2, 1))[0]
    data = dice.choice(list(GOOD.values()))[0] if dice.random() < 0.3 else _composed(dice)
    if dice.random() < 0.5:
        for _ in range(dice.randint(1, 3)):
            data = _changed(data, dice)
    ending = dice.choices(("keep", "fin", "reset"), (10, 10, 1))[0]
    late = b""
    if ending == "keep" and dice.random() < 0.15:
        if dice.random() < 0.5:
            data += _plain(b"200 OK")  # a response without a request; it must not count for the next request
        else:
            cut = dice.randrange(len(data) + 1)
            data, late = data[:cut], data[cut:]
    return Answer(kind, data, ending, late)


def _composed(dice: random.Random) -> bytes:
    body = dice.choice(_BODIES)
    fields = [dice.choice(_FIELDS) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
    framing = dice.choice(("length", "length", "chunks", "none", "wrong"))
    if framing == "length":
        fields.append(b"Content-Length: %d" % len(body))
    elif framing == "wrong":
        fields.append(b"Content-Length: %d" % max(0, len(body) + dice.choice((-40, -2, -1, 1, 2, 40))))
    elif framing == "chunks":
        fields.append(b"Transfer-Encoding: chunked")
        body = chunked(body, *(dice.randint(1, 60) for _ in range(dice.randint(0, 3))))
    dice.shuffle(fields)
    head = b"\r\n".join((dice.choice(_STATUS), *fields))
    if dice.random() < 0.1:
        head = b"HTTP/1.1 %d Early\r\n\r\n" % dice.choice((100, 102, 103, 150)) + head
    end = dice.choices((b"\r\n\r\n", b"\n\n", b"\r\n \r\n", b"\r\r"), (30, 2, 1, 1))[0]
    return head + end + body


def _changed(data: bytes, dice: random.Random) -> bytes:
    """Make one small change, more often in the first bytes than in the body."""
    at = min(dice.randrange(len(data) + 1), dice.randrange(len(data) + 1))
    match dice.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + dice.choice((1, 1, 2, 5, 30)) :]
        case 2:
            return data[:at] + dice.choice(_BITS) + data[at:]
        case 3:
            return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        case 4:
            return data[:at] + data[max(0, at - dice.choice((1, 2, 10, 50))) :]
        case _:
            return data.replace(
                b"\r\n", dice.choice((b"\n", b"\r", b"\n\r", b"\r\n\r\n")), dice.randint(1, 3)
            )
