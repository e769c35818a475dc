# SPDX-License-Identifier: Apache-2.0
"""The LSI 53C895A with nothing on its bus: registers, SCRIPTS, interrupts and their stack, timers, abort and reset,
driven by a client as a driver would, with programs in SCRIPTS RAM and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hba import scripts as s
from tests.hba.client import Client, SharedMemory
from tests.hba.conftest import Bench
from tests.waiting import wait_for
from vhost_scsi.hba.function import Chip

REGISTERS, RAM, CONFIG = 1, 2, 7
SCNTL1, SFBR, DSTAT, DSA, ISTAT0, ISTAT1, CTEST2, TEMP = 0x01, 0x08, 0x0C, 0x10, 0x14, 0x15, 0x1A, 0x1C
DSP, DSPS, SCRATCHA, DIEN, DCNTL = 0x2C, 0x30, 0x34, 0x39, 0x3B
SIEN0, SIST0, STIME0, STIME1, SCRATCHB = 0x40, 0x42, 0x48, 0x49, 0x5C
DIP, SIP, INTF, SIGP, SRST, ABRT = 1, 2, 4, 0x20, 0x40, 0x80
IID, SIR, SSI, ABORTED, BF, DFE = 1, 4, 8, 0x10, 0x20, 0x80
RST, GEN, STO = 0x0002, 0x0200, 0x0400
BASE = 0xF0000000  # of SCRIPTS RAM
MEMORY = 0x10000
DONE = 0xD0E


class Chip895:
    """What a driver does."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.write(CONFIG, 0x18, BASE.to_bytes(4, "little"))
        client.write(CONFIG, 4, b"\6\0")
        self.put(DIEN, 0x7D)

    def get(self, register: int, count: int = 1) -> int:
        return int.from_bytes(self.client.read(REGISTERS, register, count), "little")

    def put(self, register: int, value: int, count: int = 1) -> None:
        self.client.write(REGISTERS, register, value.to_bytes(count, "little"))

    def start(self, *instructions: list[int], at: int = 0) -> None:
        self.client.write(RAM, at, s.program(*instructions))
        self.put(DSP, BASE + at, 4)

    def run(self, *instructions: list[int]) -> int:
        """DSTAT at the end of the program."""
        self.start(*instructions, s.interrupt(DONE))
        wait_for(lambda: self.get(ISTAT0) & DIP, "the end of the script")
        return self.get(DSTAT) & ~DFE

    def pin(self) -> bool:
        return bool(self.client.read(CONFIG, 6, 1)[0] & 8)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    live = Bench(str(tmp_path / "s"), Chip.LSI53C895A)
    yield live
    live.close()


@pytest.fixture
def chip(bench: Bench) -> Iterator[Chip895]:
    client = bench.connect()
    client.negotiate()
    yield Chip895(client)
    client.close()


def test_it_says_that_it_is_a_53c895a(chip: Chip895) -> None:
    assert chip.client.read32(CONFIG, 0) == 0x00121000
    assert chip.client.read(CONFIG, 9, 3) == b"\0\0\1"
    assert [chip.client.region_info(index)[0].size for index in (0, 1, 2)] == [256, 1024, 8192]
    assert chip.client.read(CONFIG, 0x10, 1) == b"\1"


def test_registers_repeat_in_the_memory_bar_and_keep_what_they_may(chip: Chip895) -> None:
    chip.put(SCRATCHA, 0x12345678, 4)
    assert chip.client.read32(REGISTERS, 0x300 + SCRATCHA) == 0x12345678
    assert chip.client.read32(0, SCRATCHA) == 0x12345678
    chip.put(0x06, 0xFF)  # SDID
    assert chip.get(0x06) == 0x0F
    chip.put(SFBR, 9)  # the processor may not
    assert chip.get(SFBR) == 0
    assert chip.get(0x52) == 0xE0  # STEST4: LVD, clock locked


@pytest.mark.parametrize(
    ("operator", "before", "value", "after"),
    [
        (s.MOVE, 0x0F, 0xA5, 0xA5),
        (s.OR, 0x0F, 0xA0, 0xAF),
        (s.XOR, 0x0F, 0xFF, 0xF0),
        (s.AND, 0x3C, 0x0F, 0x0C),
        (s.ADD, 0xFF, 2, 1),
        (s.ADC, 0xF0, 0x0E, 0xFF),
        (s.SHL, 0x81, 0, 0x03),
        (s.SHR, 0x81, 0, 0xC0),
    ],
)
def test_register_operations(chip: Chip895, operator: int, before: int, value: int, after: int) -> None:
    chip.put(SCRATCHA, before)
    chip.put(SCRATCHB, before)
    chip.put(0xA0, before)
    modified = (s.sets(s.SET_CARRY), s.modify(SCRATCHA, operator, value))
    sfbr = (s.sets(s.SET_CARRY), s.to_sfbr(SCRATCHB, operator, value), s.from_sfbr(SCRATCHB + 1))
    high = (s.sets(s.SET_CARRY), s.modify(0xA0, operator, value))  # beyond 80h: bit 7 of the first byte
    assert chip.run(*modified, *sfbr, *high) == SIR
    assert [chip.get(SCRATCHA), chip.get(SCRATCHB + 1), chip.get(SFBR), chip.get(0xA0)] == [after] * 4
    assert chip.get(DSPS, 4) == DONE


def test_the_carry_of_an_addition_and_of_a_shift_is_kept(chip: Chip895) -> None:
    chip.put(SCRATCHA, 0x80FF, 4)
    carry = s.modify(SCRATCHA, s.ADD, 1), s.modify(SCRATCHA + 1, s.ADC, 0), s.modify(SCRATCHA + 1, s.SHL)
    assert chip.run(s.clears(s.SET_CARRY), *carry, s.modify(SCRATCHA + 2, s.ADC, 0)) == SIR
    assert chip.get(SCRATCHA, 4) == 0x010200


def test_sfbr_as_the_second_operand(chip: Chip895) -> None:
    chip.put(SCRATCHA, 0x1122, 2)
    assert chip.run(s.to_sfbr(SCRATCHA), s.modify(SCRATCHA + 1, s.ADD, 0x77, sfbr=True)) == SIR
    assert chip.get(SCRATCHA, 2) == 0x3322


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        (s.IF, True),
        (s.IF_NOT, False),
        (s.IF | s.data(0x42), True),
        (s.IF | s.data(0x43), False),
        (s.IF | s.data(0x43, 0x01), True),
        (s.IF_NOT | s.data(0x43), True),
        (s.IF_NOT | s.data(0x42), False),
        (s.IF | s.CARRY, True),
        (s.IF_NOT | s.CARRY, False),
        (s.IF | s.CARRY | s.data(0x42), True),
        (s.IF | s.CARRY | s.data(0x41), False),
    ],
)
def test_conditions(chip: Chip895, condition: int, taken: bool) -> None:
    setup = s.modify(SFBR, s.MOVE, 0x42), s.sets(s.SET_CARRY)
    assert chip.run(*setup, s.interrupt(0x7A, condition)) == SIR
    assert chip.get(DSPS, 4) == (0x7A if taken else DONE)


def test_jump_call_return_and_relative_jumps(chip: Chip895) -> None:
    chip.client.write(RAM, 0x100, s.program(s.modify(SCRATCHA, s.ADD, 5), s.returns()))
    relative = s.jump(8, relative=True), s.interrupt(0xBAD)
    assert chip.run(s.call(BASE + 0x100), s.call(BASE + 0x100), *relative, s.jump(-8 + 8, relative=True)) == SIR
    assert (chip.get(SCRATCHA), chip.get(DSPS, 4), chip.get(TEMP, 4)) == (10, DONE, BASE + 16)


def test_load_and_store_by_address_and_by_dsa(chip: Chip895, memory: SharedMemory) -> None:
    chip.client.dma_map(MEMORY, 0x1000, fd=memory.fd)
    memory.map[0x20:0x24] = bytes.fromhex("11223344")
    chip.put(DSA, MEMORY + 0x100, 4)
    by_dsa = s.store(SCRATCHA, -0x80, 4, dsa=True), s.load(SCRATCHB + 1, -0xDF, 1, dsa=True)
    assert chip.run(s.load(SCRATCHA, MEMORY + 0x20, 4), *by_dsa, s.store(SCRATCHA + 2, MEMORY + 0x32, 2)) == SIR
    assert (chip.get(SCRATCHA, 4), chip.get(SCRATCHB + 1)) == (0x44332211, 0x22)
    assert memory.map[0x80:0x84] == bytes.fromhex("11223344")
    assert memory.map[0x32:0x34] == bytes.fromhex("3344")


def test_memory_move_between_memory_and_its_own_ram(chip: Chip895, memory: SharedMemory) -> None:
    chip.client.dma_map(MEMORY, 0x10000, fd=memory.fd)
    memory.map[1:0x4001] = bytes(range(256)) * 64
    assert chip.run(s.move(MEMORY + 1, MEMORY + 0x8001, 0x4000), s.move(MEMORY + 4, BASE + 0x800, 16)) == SIR
    assert memory.map[0x8001:0xC001] == memory.map[1:0x4001]
    assert chip.client.read(RAM, 0x800, 16) == memory.map[4:20]


def test_a_script_in_memory_may_change_itself(chip: Chip895, memory: SharedMemory) -> None:
    chip.client.dma_map(MEMORY, 0x1000, fd=memory.fd)
    code = s.program(s.store(SCRATCHA, MEMORY + 12, 4), s.interrupt(0xBAD))
    memory.map[: len(code)] = code
    chip.put(SCRATCHA, 0x600D, 4)
    chip.put(DSP, MEMORY, 4)
    wait_for(lambda: chip.get(ISTAT0) & DIP, "the interrupt")
    assert (chip.get(DSPS, 4), chip.get(DSTAT) & SIR) == (0x600D, SIR)


@pytest.mark.parametrize(
    "wrong",
    [
        s.move(MEMORY, MEMORY + 1, 4),
        s.move(MEMORY, MEMORY + 4, 0),
        s.load(SCRATCHA, MEMORY, 0),
        s.load(SCRATCHA, MEMORY, 5),
        s.load(SCRATCHA + 1, MEMORY, 1),
        s.load(SCRATCHA + 2, MEMORY + 2, 4),
        s.block_move(0, 0, MEMORY),
        [0xA0080000, 0],
    ],
)
def test_illegal_instructions(chip: Chip895, wrong: list[int]) -> None:
    assert chip.run(wrong) == IID
    assert chip.get(ISTAT1) == 0


@pytest.mark.parametrize("lost", [s.load(SCRATCHA, 0x5000, 4), s.move(0x5000, BASE + 0x800, 4), s.jump(0x5000)])
def test_memory_that_is_not_there_is_a_bus_fault(chip: Chip895, lost: list[int]) -> None:
    assert chip.run(lost) == BF


def test_single_step(chip: Chip895) -> None:
    chip.put(DCNTL, 0x10)
    chip.start(s.modify(SCRATCHA, s.ADD, 1), s.modify(SCRATCHA, s.ADD, 1), s.interrupt(DONE))
    for count in (1, 2):
        assert (chip.get(DSTAT) & SSI, chip.get(SCRATCHA)) == (SSI, count)
        chip.put(DCNTL, 0x14)
    assert chip.get(DSTAT) & ~DFE == SIR


def test_an_endless_script_leaves_the_others_their_turn_and_is_aborted(chip: Chip895) -> None:
    chip.start(s.modify(SCRATCHA, s.ADD, 1), s.jump(BASE))
    for _ in range(20):
        assert chip.get(ISTAT1) == 2  # it runs, and its registers answer
    chip.put(ISTAT0, ABRT)
    assert chip.get(DSTAT) & ~DFE == ABORTED
    assert chip.get(ISTAT1) == 0


def test_interrupt_on_the_fly_goes_on_and_is_cleared_by_writing_it(chip: Chip895) -> None:
    assert chip.run(s.interrupt(1, s.IF | s.FLY), s.modify(SCRATCHA, s.MOVE, 3)) == SIR
    assert (chip.get(SCRATCHA), chip.get(ISTAT0)) == (3, INTF)
    assert chip.pin()
    chip.put(ISTAT0, INTF)
    assert (chip.get(ISTAT0), chip.pin()) == (0, False)


def test_a_masked_dma_interrupt_stops_and_is_not_told(chip: Chip895) -> None:
    chip.put(DIEN, 0)
    chip.start(s.interrupt(DONE))
    assert (chip.get(ISTAT0), chip.pin()) == (DIP, False)
    chip.put(DIEN, SIR)
    assert chip.pin()
    assert chip.get(DSTAT) == SIR | DFE
    assert (chip.get(ISTAT0), chip.pin()) == (0, False)


def test_a_second_interrupt_waits_behind_the_first(chip: Chip895) -> None:
    chip.put(SIEN0, RST, 2)
    chip.start(s.interrupt(DONE))
    chip.put(SCNTL1, 8)  # the bus's reset
    chip.put(SCNTL1, 0)
    assert chip.get(ISTAT0) == DIP
    assert chip.get(SIST0, 2) == 0
    assert chip.get(DSTAT) == SIR | DFE
    assert (chip.get(ISTAT0), chip.pin()) == (SIP, True)
    assert chip.get(SIST0, 2) == RST
    assert (chip.get(ISTAT0), chip.pin()) == (0, False)


def test_selecting_nobody_times_out(chip: Chip895, memory: SharedMemory) -> None:
    chip.client.dma_map(MEMORY, 0x1000, fd=memory.fd)
    memory.map[0x10:0x14] = bytes([0, 0x1F, 5, 0x33])
    chip.put(SIEN0, STO, 2)
    chip.put(STIME0, 3)
    chip.put(DSA, MEMORY, 4)
    chip.start(s.select_from(0x10, BASE), s.interrupt(DONE))
    wait_for(lambda: chip.get(ISTAT0) & SIP, "the timeout")
    assert chip.get(SIST0, 2) == STO
    assert [chip.get(register) for register in (0x03, 0x06, 0x05)] == [0x33, 5, 0x1F]
    chip.start(s.select(4, BASE), s.interrupt(DONE))
    wait_for(lambda: chip.get(ISTAT0) & SIP, "the second timeout")
    assert chip.get(0x06) == 4


def test_the_general_purpose_timer(chip: Chip895) -> None:
    chip.put(STIME1, 2)
    wait_for(lambda: chip.get(0x43) == GEN >> 8, "the masked timer")
    assert chip.get(ISTAT0) == 0  # masked, it only sets its bit
    chip.put(SIEN0, GEN, 2)
    chip.put(STIME1, 1)
    wait_for(chip.pin, "the timer's interrupt")
    assert (chip.get(ISTAT0), chip.get(SIST0, 2)) == (SIP, GEN)


def test_sigp_wakes_who_waits_for_a_reselection(chip: Chip895) -> None:
    chip.client.write(RAM, 0x100, s.program(s.to_sfbr(CTEST2), s.interrupt(0x516)))
    chip.start(s.wait_reselect(BASE + 0x100))
    assert chip.get(ISTAT0) == 0
    chip.put(ISTAT0, SIGP)
    assert (chip.get(DSTAT) & SIR, chip.get(DSPS, 4), chip.get(SFBR) & 0x40) == (SIR, 0x516, 0x40)
    assert chip.get(ISTAT0) == 0  # reading CTEST2 took it back
    chip.put(ISTAT0, SIGP)
    chip.start(s.wait_reselect(BASE + 0x100))
    assert chip.get(DSPS, 4) == 0x516


def test_what_waits_for_a_phase_is_aborted(chip: Chip895) -> None:
    chip.start(s.block_move(1, 16, MEMORY))
    assert chip.get(ISTAT0) == 0
    chip.put(ISTAT0, ABRT)
    assert chip.get(DSTAT) & ABORTED


def test_soft_reset_keeps_the_ram_and_nothing_else(chip: Chip895) -> None:
    chip.run(s.modify(SCRATCHA, s.MOVE, 7))
    chip.client.write(RAM, 0x1000, b"stays")
    chip.start(s.interrupt(DONE))
    chip.put(ISTAT0, SRST)
    assert (chip.get(ISTAT0), chip.pin()) == (SRST, False)
    chip.put(ISTAT0, 0)
    assert (chip.get(SCRATCHA), chip.get(ISTAT0), chip.get(DSTAT)) == (0, 0, DFE)
    assert chip.client.read(RAM, 0x1000, 5) == b"stays"


def test_the_pin_can_be_switched_off(chip: Chip895) -> None:
    chip.start(s.interrupt(DONE))
    assert chip.pin()
    chip.put(ISTAT1, 1)
    assert not chip.pin()
    chip.put(ISTAT1, 0)
    chip.put(DCNTL, 2)
    assert not chip.pin()
