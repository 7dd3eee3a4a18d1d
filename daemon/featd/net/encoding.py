"""The encoding of a definition: bytes in which all that counts is ASCII, or UTF-16 or UTF-32 by its byte order mark."""

from __future__ import annotations

import codecs

from featd.errors import ModelError


def is_text(raw: bytes) -> bool:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def unmarked(raw: bytes, source: str) -> bytes:
    """A text without its byte order mark, and in UTF-8 where the mark says UTF-16 or UTF-32."""
    if raw.startswith(codecs.BOM_UTF8):
        return raw.removeprefix(codecs.BOM_UTF8)
    # The mark of UTF-32 in little endian begins with that of UTF-16.
    for name, marks in (
        ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
        ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
    ):
        if raw.startswith(marks):
            try:
                return raw.decode(name).encode()
            except UnicodeError:
                raise ModelError(
                    f"{source}: its byte order mark says {name}, but it is not: save it as UTF-8"
                ) from None
    for name in ("UTF-16LE", "UTF-16BE"):
        if raw[:1000].count(b"\0") > len(raw[:1000]) // 4 and "layer" in raw[:100_000].decode(name, "ignore"):
            raise ModelError(
                f"{source}: {name} without a byte order mark: save it as UTF-8 (iconv -f {name} -t UTF-8)"
            )
    return raw
