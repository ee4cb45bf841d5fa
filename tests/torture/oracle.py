"""Which responses prove a delivery: judged only by RFC 9112 and the shapes of the protocol.

Shares no line with the package or any HTTP library, so that it can contradict them. `MUST` is a certain proof.
`MAY` needs a leniency that the RFC grants to a recipient, or exceeds a limit that a recipient may set. `NO` is no
proof: a delivery reported for it is false.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum


class Proof(IntEnum):
    """How well a response proves that the hub has the batch."""

    NO = 0
    MAY = 1
    MUST = 2


@dataclass(slots=True)
class Message:
    """A complete response. `strict` is False if reading it needed a leniency."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    strict: bool

    def values(self, name: str) -> list[str]:
        """The members of a comma-separated field, from all of its lines."""
        lines = [value for found, value in self.fields if found == name]
        return [part.strip(" \t") for part in ",".join(lines).split(",")] if lines else []


class Broken(Exception):
    """The bytes are not a complete message."""


_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) [\t -~\x80-\xff]*")
# Section 4: a recipient may split the line at any white space and ignore white space around it.
_LOOSE_STATUS = re.compile(
    rb"[ \t\v\f\r]*HTTP/1\.([0-9])[ \t\v\f\r]+([0-9]{3})(?:[ \t\v\f\r]+[^\n]*)?", re.DOTALL
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)([ \t]*):([^\n]*)", re.DOTALL)
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)([^\r\n]*)\r\n")
_EXTENSION = re.compile(
    rb"""([ \t]*;[ \t]*[!#$%&'*+.^_`|~\w-]+([ \t]*=[ \t]*([!#$%&'*+.^_`|~\w-]+|"[^"]*"))?)*"""
)
_MOST_FIELDS, _MOST_BODY = 100, 64 * 1024


def read(stream: bytes, *, closed: bool) -> Message:
    """The first final message of a stream; `closed`: the peer ended it in order. Raises `Broken`."""
    strict = True
    while True:
        line, stream, ended = _line(stream)
        found = _STATUS.fullmatch(line)
        strict &= ended and found is not None
        found = found or _LOOSE_STATUS.fullmatch(line)
        if found is None:
            raise Broken("no status line")
        minor, status = int(found[1]), int(found[2])
        fields, stream, kept = _fields(stream)
        strict &= kept
        if status == 101 or status < 100:
            raise Broken("a switch of protocols that was not requested")
        if status >= 200:
            break
    message = Message(status, fields, b"", strict and len(fields) < _MOST_FIELDS)
    codings, lengths = message.values("transfer-encoding"), message.values("content-length")
    if status in (204, 304):
        return message
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise Broken("a transfer coding that was not requested")
        message.strict &= not lengths and minor > 0
        message.body, kept = _chunks(stream)
        message.strict &= kept
    elif lengths:
        if (
            any(not re.fullmatch("[0-9]+", each) for each in lengths)
            or len({int(each) for each in lengths}) > 1
        ):
            raise Broken("invalid length")
        if len(stream) < int(lengths[0]):
            raise Broken("cut in the body")
        message.strict &= len(lengths) == 1
        message.body = stream[: int(lengths[0])]
    elif closed:
        message.body = stream
    else:
        raise Broken("it has not ended")
    return message


def proof(kind: str, stream: bytes, *, closed: bool) -> Proof:
    """Whether these bytes prove a delivery of `kind`: metrics, ckpt, registration or heartbeat."""
    try:
        message = read(stream, closed=closed)
        payload, strict = _object(message.body)
    except (Broken, ValueError, RecursionError):
        return Proof.NO
    strict &= message.strict and message.status in (200, 201) and len(message.body) <= _MOST_BODY
    if not 200 <= message.status < 300 or not isinstance(payload, dict):
        return Proof.NO
    if any(coding.lower() not in ("", "identity") for coding in message.values("content-encoding")):
        return Proof.NO
    strict &= not message.values("content-encoding")
    if payload.get("success", kind == "heartbeat") is not True:
        return Proof.NO
    if kind == "registration":
        data = payload.get("data")
        found = data.get("id") if isinstance(data, dict) else None
        if not isinstance(found, str) or not re.fullmatch("[A-Za-z0-9_-]{1,64}", found):
            return Proof.NO
        strict &= re.fullmatch("[A-Za-z0-9]{20}", found) is not None
    return Proof.MUST if strict else Proof.MAY


def _line(stream: bytes) -> tuple[bytes, bytes, bool]:
    """A line without its end, the rest, and whether it ended in CRLF (section 2.2 allows a bare LF)."""
    line, end, rest = stream.partition(b"\n")
    if not end:
        raise Broken("cut in the head")
    return line.removesuffix(b"\r"), rest, line.endswith(b"\r")


def _fields(stream: bytes) -> tuple[list[tuple[str, str]], bytes, bool]:
    fields: list[tuple[str, str]] = []
    strict, first = True, True
    while True:
        line, stream, ended = _line(stream)
        strict &= ended and len(line) < 65000
        if not line:
            return fields, stream, strict
        if b"\r" in line or re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", line):
            # Section 2.2 and RFC 9110, 5.5: invalid, or replaced by a blank.
            line, strict = re.sub(rb"[\r\x00]", b" ", line), False
        if line[:1] in (b" ", b"\t"):
            strict = False
            if not first:  # a folded line; it is ignored before the first field
                name, value = fields[-1]
                fields[-1] = (name, (value + " " + line.decode("latin-1").strip()).strip())
            continue
        found = _FIELD.fullmatch(line)
        if found is None:
            raise Broken("a line that is not a field")
        strict &= not found[2]
        fields.append((found[1].decode("latin-1").lower(), found[3].decode("latin-1").strip(" \t")))
        first = False


def _chunks(stream: bytes) -> tuple[bytes, bool]:
    body, strict = [], True
    while True:
        found = _CHUNK.match(stream)
        if found is None:
            raise Broken("invalid chunk size")
        strict &= _EXTENSION.fullmatch(found[2]) is not None and len(found[1]) <= 8
        if found[2].strip(b" \t")[:1] not in (b"", b";"):
            raise Broken("invalid chunk size")
        size, stream = int(found[1], 16), stream[found.end() :]
        if not size:
            break
        if stream[size : size + 2] != b"\r\n":
            raise Broken("a chunk does not end where it should")
        body.append(stream[:size])
        stream = stream[size + 2 :]
    while True:  # trailers are not used; any may be discarded
        line, stream, ended = _line(stream)
        strict &= ended and (not line or _FIELD.fullmatch(line) is not None)
        if not line:
            return b"".join(body), strict


def _object(body: bytes) -> tuple[object, bool]:
    """The JSON of a body, and whether it conforms to RFC 8259. Raises ValueError."""
    strict = True

    def number(_text: str) -> float:
        nonlocal strict
        strict = False
        return 0.0

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        payload = dict(found)
        nonlocal strict
        strict &= len(payload) == len(found)
        if any(payload[name] != value for name, value in found):
            raise ValueError("a name has two different values")
        return payload

    def integer(text: str) -> int:
        if len(text) > 4000:
            number(text)
        return len(text) + 2  # never 0 or 1, which Python treats as equal to False and True

    try:
        text = body.decode()
    except UnicodeDecodeError:
        strict, text = False, body.decode(json.detect_encoding(body))
    if text.startswith("\ufeff"):
        strict, text = False, text[1:]
    return json.loads(text, parse_constant=number, parse_int=integer, object_pairs_hook=pairs), strict
