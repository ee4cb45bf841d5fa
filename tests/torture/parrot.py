"""A hub that repeats the key it receives: in every part of a response, in every spelling, whole and in parts."""

from __future__ import annotations

import base64
import html
import json
import random
import re
import socket
import threading
from urllib.parse import quote, quote_plus

from peer import answer

_STEP, _WINDOW, _PART = 6, 12, 8


def spellings(key: str) -> dict[str, str]:
    """The forms in which a key is sent or printed."""
    octets = key.encode()
    forms = {
        "plain": key,
        "lower": key.lower(),
        "upper": key.upper(),
        "quoted": quote(key, safe=""),
        "quoted as a form": quote_plus(key),
        "quoted twice": quote(quote(key, safe=""), safe=""),
        "every character quoted": "".join(f"%{byte:02X}" for byte in octets),
        "every character quoted, lower case": "".join(f"%{byte:02x}" for byte in octets),
        "JSON": json.dumps(key)[1:-1],
        "JSON in escapes": "".join(f"\\u{byte:04x}" for byte in octets),
        "HTML": html.escape(key),
        "repr": repr(key)[1:-1],
        "repr of bytes": repr(octets)[2:-1],
        "hexadecimal": octets.hex(),
    }
    for shift in range(3):  # base64 has three forms, depending on the bytes before the key
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            forms[f"{name} after {shift}"] = encode(b"k:x"[:shift] + octets).decode()
    return forms


def needles(*keys: str) -> re.Pattern[bytes]:
    """A pattern that finds eight consecutive characters of any key, or eighteen of any other spelling."""
    parts = set()
    for key in keys:
        for form in (key, key.lower(), key.upper()):
            parts |= {form[at : at + _PART] for at in range(len(form) - _PART + 1)}
        for form in spellings(key).values():
            step, window = (_STEP, _WINDOW) if len(form) <= 2 * len(key) else (18, 36)
            parts |= {form[at : at + window] for at in range(0, len(form) - window + 1, step)}
    # Parts that occur in every text, such as the %3 of a quoted digit, prove nothing.
    return re.compile(b"|".join(re.escape(part.encode()) for part in sorted(parts)))


class Parrot:
    """The behaviour of a `Peer`: mostly repeat the key, sometimes respond correctly."""

    def __init__(self, seed: int, other: str, *, good: float = 0.4) -> None:
        self._dice, self._other, self._good = random.Random(seed), other, good
        self._models = 0
        self._lock = threading.Lock()

    def __call__(self, connection: socket.socket, request: bytes) -> None:
        found = re.search(rb"\r\nx-api-key: ([^\r]*)", request, re.IGNORECASE)
        key = found[1].decode("latin-1") if found else "none"
        with self._lock:
            data = self._response(key)
        connection.sendall(data)
        if not data.startswith(b"HTTP/1.1 ") or b"Content-Length" not in data:
            raise OSError

    def _response(self, key: str) -> bytes:
        dice = self._dice
        if dice.random() < self._good:
            self._models += 1
            data = {"id": f"{self._models:020d}", "agentId": "agent-1"}
            return answer(json.dumps({"success": True, "data": data}).encode())
        form = dice.choice(list(spellings(key).values()))
        if dice.random() < 0.3:
            # The key without its first or last character, or a part from its middle.
            form = dice.choice((key[:-1], key[1:], key[3 : 3 + max(8, dice.randrange(len(key)))]))
        status = dice.choice(
            ("200 OK", "200 OK", "400 Bad", "429 Slow", "500 Error", "503 Down", "302 Found")
        )
        if dice.random() < 0.05:
            status = dice.choice(("401 No", "403 No", "404 Gone"))
        pad = "x" * dice.randrange(90)
        payload = {"message": f"{pad} {form}", "error": form, "success": False, "data": None}
        if "\\u" not in form:
            raw = json.dumps(payload).encode()
        else:  # escapes that a parser decodes
            raw = json.dumps({**payload, "message": pad + " @", "error": "@"}).replace("@", form).encode()
        match dice.randrange(9):
            case 0 | 1:
                return answer(raw, status=status)
            case 2 | 3:
                return answer(f"{pad}{form} and more".encode(), status=status)
            case 4:
                body = {"success": True, "data": {"id": form, "agentId": form}}
                return answer(json.dumps(body).encode(), status="200 OK")
            case 5:
                target = dice.choice(
                    (f"{self._other}/{form}", f"http://{form}.invalid/", f"http://{form}@x.invalid/")
                )
                return answer(raw, status="302 Found", headers=f"Location: {target}\r\nX: {form}\r\n")
            case 6:
                return answer(raw, status=f"{status[:3]} {form}")
            case 7:
                return dice.choice(
                    (
                        f"{form} 200 OK\r\n\r\n",
                        f"HTTP/1.1 {form}\r\n\r\n",
                        f"HTTP/1.1 200 OK\r\n{form}\r\n{form}: 1\r\n\r\n",
                        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{form}\r\n",
                        f"HTTP/1.1 200 OK\r\nContent-Length: {form}\r\n\r\n",
                        f"HTTP/1.1 429 X\r\nRetry-After: {form}\r\nConnection: close\r\n\r\n",
                    )
                ).encode("latin-1", "replace")
            case _:
                return answer(json.dumps({"success": form, "x": pad}).encode(), status="200 OK")


def keys(dice: random.Random) -> tuple[str, str]:
    """Two canary keys: one in the HUB's form, and one with every character that some spelling changes."""
    plain = "".join(dice.choice("0123456789abcdef") for _ in range(42))
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
    loud = "".join(
        dice.choice(letters) + (dice.choice("+/=%&<>'~$!") if n % 4 == 3 else "") for n in range(36)
    )
    return plain, loud
