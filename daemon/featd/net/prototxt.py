"""Reads net definitions in protobuf's text format into our schema.

Read as bytes, as Caffe does: comments and names may have any encoding. Every error names the file and the line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from featd.errors import ModelError, where_to_look
from featd.net import schema
from featd.net.caffemodel import name_of
from featd.net.encoding import is_text, unmarked
from featd.net.unused import LAYERS, PRECISIONS, SOLVERS, is_unused
from featd.net.v0 import is_v0
from featd.paths import read_regular

MAX_BYTES: Final = 8 << 20
"""Far more than any definition has; a larger file is probably a .caffemodel."""
MAX_DEPTH: Final = 50

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n\f\v]+|\#[^\n]*)
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?
          |[iI]nf(?:inity)?|[nN]a[nN])(?!\w))
      | (?P<word>[A-Za-z_][\w.]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<mark>[-{}<>\[\]:;,])""",
    re.VERBOSE | re.ASCII,
)
_SUFFIXED = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?[fF]")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPED: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_TRUE: Final = ("true", "True", "t", "1")
_FALSE: Final = ("false", "False", "f", "0")
_RANGES: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1)}


_OTHERS: Final = frozenset(
    f"{name}_param"
    for name in (
        "accuracy", "contrastive_loss", "data", "hdf5_data", "hdf5_output", "hinge_loss", "image_data", "infogain_loss",
        "python", "recurrent", "transform", "window_data",
    )
)  # fmt: skip
"""Blocks of Caffe's own that only layers of other types read."""
_HINTS: Final = {
    "scale_bias": ": a BatchNorm of NVIDIA's Caffe, which scales and shifts too: write a BatchNorm and a Scale layer"
}
_CLOSING: Final = {"{": "}", "<": ">", "[": "]"}


@dataclass(frozen=True, slots=True)
class Definition:
    """A net definition as it was read. Layers are counted as in the file."""

    message: schema.Message
    """The NetParameter."""
    texts: tuple[str, ...]
    """The fields of each layer, without comments and without settings of training that this schema does not know."""
    problems: dict[int, str]
    """Layer -> what cannot be read in it: an error if the layer is needed."""
    blocks: dict[int, str]
    """Layer -> its first `..._param` that neither this schema nor Caffe knows."""
    precisions: dict[int, str]
    """Layer, or -1 for the whole net, -> a setting of NVIDIA's Caffe that asks for other numbers than float32."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def read(path: Path) -> tuple[bytes, Definition]:
    """The bytes of a definition and what is in them. ModelError names the path and the reason."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(
                f"{path}: too large for a net definition: is this the .caffemodel? It belongs to `weights`"
            )
        raw = read_regular(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot read the net definition: {error.strerror}{where_to_look(error)}"
        ) from None
    if b"\0" in raw and not is_text(raw):
        raise ModelError(
            f"{path}: not a net definition in text form (.prototxt): a .caffemodel belongs to `weights`"
        )
    return raw, define(raw, str(path))


def parse(text: str, source: str) -> schema.Message:
    """The NetParameter in `text`. `source` names it in errors."""
    definition = define(text.encode(), source)
    for problem in definition.problems.values():
        raise ModelError(problem)
    return definition.message


def define(raw: bytes, source: str) -> Definition:
    """What is in a definition's bytes. ModelError for what is not text format, or unknown outside the layers."""
    net = schema.new("NetParameter")
    # As Latin-1 each byte is one character.
    reader = _Reader(unmarked(raw, source).decode("latin-1"), source)
    reader.fill(net, "NetParameter", None, 0)
    if not net.layer and not net.layers:
        raise ModelError(f"{source}: holds no layers: not a net definition (a solver?)")
    if reader.problems and is_v0(net):
        # Its padding layers vanish, and with them the count of the others.
        raise ModelError(next(iter(reader.problems.values())))
    return Definition(net, tuple(reader.texts), reader.problems, reader.blocks, reader.precisions)


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens = list(self._split(text))
        self._at = 0
        self._unused: set[int] = set()
        self._in_block = False
        self.texts: list[str] = []
        self.problems: dict[int, str] = {}
        self.blocks: dict[int, str] = {}
        self.precisions: dict[int, str] = {}

    def _split(self, text: str) -> Iterator[_Token]:
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                found = name_of(text[at : at + 20].encode("latin-1"))
                raise self._error(line, f"cannot read {found!r} (not a .prototxt?)")
            kind = match.lastgroup or ""
            if kind != "blank":
                yield _Token(kind, match[0], line)
            line += match[0].count("\n")
            at = match.end()
        yield _Token("end", "end of file", line)

    def _error(self, line: int, problem: str) -> ModelError:
        return ModelError(f"{self._source}, line {line}: {problem}")

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _took(self, *marks: str) -> str | None:
        text = self._tokens[self._at].text
        if self._tokens[self._at].kind == "mark" and text in marks:
            self._at += 1
            return text
        return None

    def _signed(self) -> _Token:
        """The next value. A blank may stand between a minus and its number."""
        token = self._take()
        if token.kind == "mark" and token.text == "-":
            number = self._take()
            if number.text[0] in "+-" or number.kind not in ("number", "word"):
                raise self._error(number.line, f"expected a number after '-', found {number.text[:40]!r}")
            return _Token("number", f"-{number.text}", number.line)
        return token

    def fill(self, message: schema.Message, type_name: str, closing: str | None, depth: int) -> None:
        """Read fields into `message` up to the mark `closing`, or to the end of the file."""
        if depth > MAX_DEPTH:
            raise self._error(self._tokens[self._at].line, "nested too deep")
        fields = schema.FIELDS[type_name]
        while True:
            token = self._take()
            if token.kind == "end" and closing is None:
                return
            if token.kind == "mark" and token.text == closing:
                return
            if token.kind != "word":
                raise self._error(token.line, f"expected a field's name, found {token.text[:40]!r}")
            spec, start = fields.get(token.text), self._at - 1
            unused = is_unused(token.text, type_name)
            if spec is None:
                self._unknown(token, type_name, depth, unused)
                if unused:
                    self._unused.update(range(start, self._at))
            else:
                self._field(message, spec, token.line, depth)
            self._took(";", ",")

    def _unknown(self, name: _Token, type_name: str, depth: int, unused: bool) -> None:
        if type_name == "NetParameter" and name.text in SOLVERS:
            raise self._error(
                name.line,
                f"unknown field {name.text!r} in a net: this is a solver, which says how a net is trained: take the"
                " deploy.prototxt of its net",
            )
        if unused:
            self._note_precision(name, type_name)
        elif type_name in LAYERS and name.text.endswith("_param"):
            if name.text not in _OTHERS:
                self.blocks.setdefault(len(self.texts), name.text)
        elif self._in_block:
            hint = _HINTS.get(name.text, "")
            self._problem(name.line, f"unknown field {name.text!r} in {type_name}{hint}")
        else:
            where = "a net" if type_name == "NetParameter" else type_name
            raise self._error(name.line, f"unknown field {name.text!r} in {where}")
        self._skip_field(name, depth)

    def _note_precision(self, name: _Token, type_name: str) -> None:
        colon, value = self._tokens[self._at : self._at + 2] if name.text in PRECISIONS else (name, name)
        if colon.text == ":" and value.text not in ("FLOAT", "0"):
            layer = -1 if type_name == "NetParameter" else len(self.texts)
            self.precisions.setdefault(layer, f"{name.text}: {value.text}")

    def _problem(self, line: int, problem: str) -> None:
        """Something in a block of a layer that is an error only if the layer is needed. Elsewhere it may be a misspelt
        `top`, without which the layer would seem to be unneeded."""
        self.problems.setdefault(len(self.texts), str(self._error(line, problem)))

    def _skip_field(self, name: _Token, depth: int) -> None:
        """What follows the name of a field that is not read: only its form counts, as protobuf has it."""
        colon = self._took(":")
        opening = self._took("{", "<", "[")
        if opening is not None:
            self._skip(opening, depth + 1)
        elif colon is None:
            raise self._error(name.line, f"expected ':' or '{{' after {name.text!r}")
        else:
            self._skip_value(name)

    def _skip_value(self, name: _Token) -> None:
        if self._signed().kind in ("mark", "end"):
            raise self._error(name.line, f"expected a value of {name.text!r}")
        while self._tokens[self._at].kind == "string":
            self._take()

    def _skip(self, opening: str, depth: int) -> None:
        closing = _CLOSING[opening]
        if depth > MAX_DEPTH:
            raise self._error(self._tokens[self._at].line, "nested too deep")
        while self._took(closing) is None:
            token = self._tokens[self._at]
            if token.kind == "end":
                raise self._error(token.line, f"the file ends before {closing!r}")
            if opening == "[":
                if (inner := self._took("{", "<")) is not None:
                    self._skip(inner, depth + 1)
                else:
                    self._skip_value(token)
                self._took(",")
            elif self._take().kind == "word":
                self._skip_field(token, depth)
                self._took(";", ",")
            else:
                raise self._error(token.line, f"unexpected {token.text[:40]!r}")

    def _text(self, start: int, end: int) -> str:
        """Some tokens as protobuf's own reader in Python takes them: names in UTF-8, no blank after a minus."""
        text = ""
        for at, token in enumerate(self._tokens[start:end], start):
            if at not in self._unused:
                text += _quoted(token.text) if token.kind == "string" else token.text
                text += "" if token.text == "-" else " "
        return text

    def _field(self, message: schema.Message, spec: schema.FieldSpec, line: int, depth: int) -> None:
        colon = self._took(":")
        if not schema.is_message(spec.type) and colon is None:
            raise self._error(line, f"expected ':' after {spec.name!r}")
        if self._took("[") is not None:
            if not spec.repeated:
                raise self._error(line, f"{spec.name!r} takes one value, not a list")
            while self._took("]") is None:
                self._value(message, spec, line, depth)
                self._took(",")
            return
        self._value(message, spec, line, depth)

    def _value(self, message: schema.Message, spec: schema.FieldSpec, line: int, depth: int) -> None:
        if not spec.repeated and message.HasField(spec.name):
            raise self._error(line, f"{spec.name!r} is set twice")
        if schema.is_message(spec.type):
            opening = self._took("{", "<")
            if opening is None:
                raise self._error(self._tokens[self._at].line, f"expected '{{' after {spec.name!r}")
            below = getattr(message, spec.name)
            if spec.repeated:
                below = below.add()
            else:
                below.SetInParent()
            start, outer = self._at, self._in_block
            self._in_block |= spec.name.endswith("_param")
            self.fill(below, spec.type, _CLOSING[opening], depth + 1)
            self._in_block = outer
            if spec.type in LAYERS:
                self.texts.append(self._text(start, self._at - 1))
            return
        value = self._scalar(spec)
        if spec.repeated:
            getattr(message, spec.name).append(value)
        else:
            setattr(message, spec.name, value)

    def _scalar(self, spec: schema.FieldSpec) -> bool | int | float | str:
        token = self._signed()
        if token.kind in ("mark", "end"):
            raise self._error(token.line, f"expected a value of {spec.name!r}, found {token.text!r}")
        if spec.type == "string":
            if token.kind != "string":
                raise self._error(token.line, _wrong(spec, token.text))
            text = _unquote(token.text)
            while self._tokens[self._at].kind == "string":
                text += _unquote(self._take().text)
            return name_of(text)
        if spec.type in schema.ENUMS:
            names = schema.ENUMS[spec.type]
            if token.text in names:
                return names[token.text]
            if token.text.isdecimal() and int(token.text) in names.values():
                return int(token.text)
            if not (self._in_block or spec.name == "type") or token.kind not in ("word", "number"):
                raise self._error(token.line, _wrong(spec, token.text))
            self._problem(token.line, _wrong(spec, token.text))
            return next(iter(names.values()))
        if spec.type == "bool":
            if token.text not in _TRUE + _FALSE:
                raise self._error(token.line, _wrong(spec, token.text))
            return token.text in _TRUE
        try:
            if spec.type in ("float", "double"):
                # C's suffix, as in 0.5f; not the f of inf.
                return float(token.text[:-1] if _SUFFIXED.fullmatch(token.text) else token.text)
            value = int(token.text, 16 if "x" in token.text.lower() else 8 if _octal(token.text) else 10)
        except ValueError:
            raise self._error(token.line, _wrong(spec, token.text)) from None
        low, high = _RANGES[spec.type]
        if not low <= value <= high:
            raise self._error(token.line, _wrong(spec, token.text))
        return value


def _octal(text: str) -> bool:
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0"


@lru_cache(maxsize=64)
def _wrong(spec: schema.FieldSpec, found: str) -> str:
    """What is said of a value that a field cannot have."""
    found = found[:40]
    if spec.type in schema.ENUMS:
        near = difflib.get_close_matches(found.upper(), schema.ENUMS[spec.type], 1)
        meant = f"did you mean {near[0]}?" if near else "it is one of " + ", ".join(schema.ENUMS[spec.type])
    else:
        words = {"string": "a string", "bool": "true or false", "float": "a number", "double": "a number"}
        meant = f"it is {words.get(spec.type, f'a whole number ({spec.type})')}"
    return f"{spec.name!r} cannot be {found!r}: {meant}"


def _unquote(text: str) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([int(match[1], 8) & 0xFF])
        if match[2]:
            return bytes([int(match[2], 16)])
        return _ESCAPED.get(match[3], match[3])

    return _ESCAPE.sub(replace, text[1:-1].encode("latin-1"))


def _quoted(text: str) -> str:
    name = name_of(_unquote(text))
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
