# SPDX-License-Identifier: Apache-2.0
"""Writes `vhost_scsi/_core.pyi` from core/api.h: the names of the C interface are declared once and still typed.

Run by the build only. It reads the same restricted C that cffi reads: prototypes, enums, structs. Pointers and structs
are `CData` in Python; numbers are int; `const char *` results are CData too (`ffi.string` reads them).
"""

from __future__ import annotations

import re
from pathlib import Path

HEAD = '''"""Generated from core/api.h by vhost_scsi.dataplane.stub; do not edit."""

from collections.abc import Iterator
from typing import Any

class CData:
    """A C value: pointer, struct or array."""
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, index: int) -> Any: ...
    def __setitem__(self, index: int, value: Any) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def __add__(self, n: int) -> CData: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class FFI:
    NULL: CData
    def new(self, cdecl: str, init: Any = ...) -> CData: ...
    def new_allocator(self, alloc: Any = ..., free: Any = ..., should_clear_after_alloc: bool = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> CData: ...
    def buffer(self, cdata: CData, size: int = ...) -> Any: ...
    def from_buffer(self, buffer: Any, require_writable: bool = ...) -> CData: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def string(self, cdata: CData, maxlen: int = ...) -> bytes: ...
    def sizeof(self, cdecl: Any) -> int: ...
    def addressof(self, cdata: CData, *fields: Any) -> CData: ...
    def gc(self, cdata: CData, destructor: Any, size: int = ...) -> CData: ...

class Lib:
'''

PROTOTYPE = re.compile(r"^(?P<result>[\w ]+?[ *]+)(?P<name>vs_\w+)\((?P<args>[^;]*)\);", re.MULTILINE)
NUMBER = re.compile(r"^(?:const )?(?:u?int(?:8|16|32|64)_t|int|uint32_t|size_t)$")


def _type(c_type: str) -> str:
    c_type = c_type.strip()
    if c_type == "void":
        return "None"
    return "int" if NUMBER.match(c_type) else "CData"


def _argument(text: str) -> str:
    match = re.match(r"(?P<type>.*?[ *])(?P<name>\w+)$", text.strip())
    if match is None:
        raise ValueError(f"api.h: cannot read the argument {text!r}")
    kind = _type(match["type"].strip())
    return f"{match['name']}: {kind if kind == 'int' else 'Any'}"


def stub(api: str) -> str:
    """The stub's text for the text of api.h."""
    api = re.sub(r"/\*.*?\*/", "", api, flags=re.DOTALL)
    lines = []
    for body in re.findall(r"enum(?: \w+)? \{([^}]*)\}", api):
        lines += [f"    {name}: int" for name in re.findall(r"\b(VS_\w+)\s*=", body)]
    for found in PROTOTYPE.finditer(api):
        arguments = ["self"] + [_argument(part) for part in found["args"].split(",") if part.strip() != "void"]
        lines.append(f"    def {found['name']}({', '.join(arguments)}) -> {_type(found['result'])}: ...")
    return HEAD + "\n".join(lines) + "\n\nffi: FFI\nlib: Lib\n"


def write(api: Path, target: Path) -> None:
    """Writes the stub unless it is the same already."""
    text = stub(api.read_text())
    if not target.exists() or target.read_text() != text:
        target.write_text(text)
