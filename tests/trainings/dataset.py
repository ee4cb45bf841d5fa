"""A tiny data set for detection: white boxes on noise, in the layout that the ultralytics package reads."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

_SIDE = 64


def make(folder: Path, *, seed: int) -> Path:
    """Write eight images for training and four for validation. Returns the path of the description."""
    dice = random.Random(seed)
    for part, count in (("train", 8), ("val", 4)):
        for name in ("images", "labels"):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            left, top, wide, high = (dice.randrange(8, 24) for _ in range(4))
            pixels = bytearray(dice.randbytes(_SIDE * _SIDE * 3))
            for row in range(top, top + high):
                at = (row * _SIDE + left) * 3
                pixels[at : at + wide * 3] = b"\xff" * wide * 3
            (folder / "images" / part / f"{index}.png").write_bytes(_png(bytes(pixels)))
            box = ((left + wide / 2) / _SIDE, (top + high / 2) / _SIDE, wide / _SIDE, high / _SIDE)
            (folder / "labels" / part / f"{index}.txt").write_text("0 " + " ".join(map(str, box)) + "\n")
    about = folder / "data.yaml"
    about.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n  0: box\n")
    return about


def _png(pixels: bytes) -> bytes:
    rows = b"".join(b"\0" + pixels[at : at + _SIDE * 3] for at in range(0, len(pixels), _SIDE * 3))
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
