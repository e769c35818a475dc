# SPDX-License-Identifier: Apache-2.0
"""A small SCRIPTS assembler: each function gives the words of one instruction, `program` the bytes of many.

Bits as Linux's sym53c8xx_2 driver has them. It knows no labels; addresses are the caller's.
"""

from __future__ import annotations

import struct

IF, IF_NOT = 1 << 19, 0
CARRY, FLY = 1 << 21, 1 << 20
MOVE, SHL, OR, XOR, AND, SHR, ADD, ADC = range(8)
ATN, ACK, TARGET, SET_CARRY = 1 << 3, 1 << 6, 1 << 9, 1 << 10


def program(*instructions: list[int]) -> bytes:
    words = [word & 0xFFFFFFFF for instruction in instructions for word in instruction]
    return struct.pack(f"<{len(words)}I", *words)


def data(byte: int, mask: int = 0) -> int:
    """A condition: SFBR is `byte`, where bits of `mask` do not count."""
    return 1 << 18 | mask << 8 | byte


def jump(to: int, condition: int = IF, *, relative: bool = False) -> list[int]:
    return [0x80000000 | condition | relative << 23, to]


def call(to: int, condition: int = IF) -> list[int]:
    return [0x88000000 | condition, to]


def returns(condition: int = IF) -> list[int]:
    return [0x90000000 | condition, 0]


def interrupt(code: int, condition: int = IF) -> list[int]:
    return [0x98000000 | condition, code]


def to_sfbr(register: int, operator: int = OR, value: int = 0) -> list[int]:
    return [0x70000000 | operator << 24 | (register & 0x7F) << 16 | value << 8 | register & 0x80, 0]


def from_sfbr(register: int, operator: int = OR, value: int = 0) -> list[int]:
    return [0x68000000 | operator << 24 | (register & 0x7F) << 16 | value << 8 | register & 0x80, 0]


def modify(register: int, operator: int, value: int = 0, *, sfbr: bool = False) -> list[int]:
    return [0x78000000 | operator << 24 | sfbr << 23 | (register & 0x7F) << 16 | value << 8 | register & 0x80, 0]


def move(source: int, target: int, count: int) -> list[int]:
    return [0xC0000000 | count, source, target]


def load(register: int, address: int, count: int, *, dsa: bool = False) -> list[int]:
    return [0xE1000000 | dsa << 28 | register << 16 | count, address]


def store(register: int, address: int, count: int, *, dsa: bool = False) -> list[int]:
    return [0xE0000000 | dsa << 28 | register << 16 | count, address]


def select(target: int, otherwise: int) -> list[int]:
    return [0x40000000 | target << 16, otherwise]


def select_from(offset: int, otherwise: int) -> list[int]:
    return [0x42000000 | offset & 0xFFFFFF, otherwise]


def wait_reselect(otherwise: int) -> list[int]:
    return [0x50000000, otherwise]


def sets(what: int) -> list[int]:
    return [0x58000000 | what, 0]


def clears(what: int) -> list[int]:
    return [0x60000000 | what, 0]


def block_move(phase: int, count: int, address: int) -> list[int]:
    return [phase << 24 | count, address]
