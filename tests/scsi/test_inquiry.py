# SPDX-License-Identifier: Apache-2.0
"""INQUIRY: standard data, every VPD page, and what is refused."""

from uuid import UUID

import pytest

from vhost_scsi.scsi import sense, vpd
from vhost_scsi.scsi.medium import Capabilities, Support
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus, TargetPort
from vhost_scsi.scsi.null_unit import absent_unit


def page(ok, lu, code, **given):
    data = ok(lu, "INQUIRY", evpd=1, page_code=code, **given)
    assert data[:2] == bytes([0, code])
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data


def designators(data):
    at, found = 4, {}
    while at < len(data):
        body = data[at + 4 : at + 4 + data[at + 3]]
        found[data[at + 1] >> 4 & 3, data[at + 1] & 0xF] = (data[at] & 0xF, data[at] >> 4, data[at + 1] >> 7, body)
        at += 4 + data[at + 3]
    return found


def test_standard_data(lu, ok):
    data = ok(lu, "INQUIRY")
    assert len(data) == 96
    assert data[4] == 91
    assert data[0] == 0
    assert data[1] == 0
    assert data[3] & 0x0F == 2
    assert data[5] == 0x38, "TPGS: implicit and explicit; 3PC"
    assert data[6] == 0, "one port"
    assert data[8:36] == b"VHOST   SCSI DISK       0001"


def test_a_unit_at_several_ports_says_so(lu, ok):
    ports = [TargetPort(f"port{number}", UUID(int=number), number, tuple) for number in (1, 2)]
    lu.unit.target_ports = lambda: ports
    assert ok(lu, "INQUIRY")[6] == 0x10


def test_standard_data_names_the_standards(lu, ok):
    data = ok(lu, "INQUIRY")
    assert data[2] == 0x06
    assert data[58:64].hex() == "00a0046004c0"
    assert not any(data[64:74])


def test_tagged_queueing_is_claimed(lu, ok):
    assert ok(lu, "INQUIRY")[7] == 0x02


def test_aca_is_claimed_where_a_unit_is(lu, ok):
    assert ok(lu, "INQUIRY")[3] & 0x20
    assert not absent_unit(bytes([0x12, 0, 0, 0, 36, 0]), lu.itl.nexus).data_in[3] & 0x20


def test_names_that_are_too_long_are_cut(make_lu, ok):
    data = ok(make_lu(vendor="MUCH TOO LONG", product="Ü" * 20), "INQUIRY")
    assert data[8:32] == b"MUCH TOO" + b"?" * 16


@pytest.mark.parametrize("length", [0, 1, 5, 36, 95, 96, 0xFFFF])
def test_data_end_at_the_allocation_length(lu, ok, length):
    data = ok(lu, "INQUIRY", allocation_length=length)
    assert data == ok(lu, "INQUIRY")[:length]


def test_a_page_code_without_evpd_is_refused(lu, fails):
    fails(lu, "INQUIRY", sense.INVALID_FIELD_IN_CDB, page_code=0x80, at=(2, 7))


def test_an_unknown_page_is_refused(lu, fails):
    fails(lu, "INQUIRY", sense.INVALID_FIELD_IN_CDB, evpd=1, page_code=0x84, at=(2, 7))


def test_cmddt_is_refused(lu, fails):
    fails(lu, bytes.fromhex("120200006000"), sense.INVALID_FIELD_IN_CDB, at=(1, 1))


def test_page_00_lists_exactly_the_pages_that_answer(lu, ok, fails):
    listed = page(ok, lu, 0x00)[4:]
    assert list(listed) == sorted(listed)
    assert {0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8A, 0x8F, 0xB0, 0xB1, 0xB2, 0xB7} <= set(listed)
    for code in range(256):
        if code in listed:
            page(ok, lu, code)
        else:
            fails(lu, "INQUIRY", sense.INVALID_FIELD_IN_CDB, evpd=1, page_code=code)


def test_serial_number_is_the_uuid(lu, ok):
    assert page(ok, lu, 0x80)[4:] == lu.unit.definition.uuid.hex.encode()


def test_device_identification_names_the_unit_by_its_uuid(lu, ok):
    found = designators(page(ok, lu, 0x83))
    assert found[0, 0xA] == (1, 0, 0, bytes([0x10, 0]) + lu.unit.definition.uuid.bytes)
    assert found[0, 0x1] == (2, 0, 0, b"VHOST   " + lu.unit.definition.uuid.hex.encode())


def test_device_identification_has_a_locally_assigned_naa_name(lu, ok):
    code_set, _, _, name = designators(page(ok, lu, 0x83))[0, 0x3]
    assert code_set == 1
    assert len(name) == 8
    assert name[0] >> 4 == 0x3
    assert name == vpd.naa_locally_assigned(lu.unit.definition.uuid)


def test_device_identification_names_the_target_port(lu, ok):
    found = designators(page(ok, lu, 0x83))
    assert found[1, 0x4][3] == bytes([0, 0, 0, 1])
    assert found[1, 0x3][3] != found[0, 0x3][3]


def test_an_iscsi_port_is_named_by_its_iscsi_name(lu, ok):
    port = TargetPort("p", lu.port.uuid, 7, lambda: [0], iscsi_name="iqn.2026-01.example:d,t,0x0001")
    itl = lu.attach(Nexus(InitiatorPort("i"), port))
    code_set, protocol, piv, name = designators(page(ok, lu, 0x83, itl=itl))[1, 0x8]
    assert (code_set, protocol, piv) == (3, 5, 1)
    assert name.rstrip(b"\0") == b"iqn.2026-01.example:d,t,0x0001"
    assert len(name) % 4 == 0
    assert name.endswith(b"\0")


def test_extended_inquiry_claims_the_task_attributes_that_work(lu, ok):
    data = page(ok, lu, 0x86)
    assert len(data) == 64
    assert data[5] == 0x07
    assert data[6] == 0x01
    assert data[7] == 0x01


def test_block_limits(lu, ok):
    data = page(ok, lu, 0xB0)
    assert len(data) == 64
    assert data[4] == 1
    assert data[5] == 255
    assert int.from_bytes(data[6:8]) == 8
    assert int.from_bytes(data[8:12]) == (64 << 20) // 512
    assert int.from_bytes(data[12:16]) == 2048
    assert int.from_bytes(data[20:24]) == 0xFFFFFFFF
    assert int.from_bytes(data[24:28]) == 256
    assert int.from_bytes(data[28:32]) == 8
    assert int.from_bytes(data[32:36]) == 1 << 31
    assert int.from_bytes(data[36:44]) == (4 << 30) // 512
    assert int.from_bytes(data[44:48]) == 2048
    assert not any(data[48:])


def test_a_write_same_of_zero_blocks_may_be_allowed(make_lu, ok):
    assert page(ok, make_lu(wsnz=False), 0xB0)[4] == 0


def test_no_atomic_length_is_claimed_when_the_store_gives_none(make_lu, ok, fails):
    lu = make_lu(atomic_blocks=0)
    assert not any(page(ok, lu, 0xB0)[44:])
    fails(lu, "WRITE ATOMIC(16)", sense.INVALID_COMMAND_OPERATION_CODE)


def test_block_limits_count_in_blocks(make_lu, ok):
    data = page(ok, make_lu(block_size=4096, physical_block_exponent=0), 0xB0)
    assert int.from_bytes(data[6:8]) == 1
    assert int.from_bytes(data[12:16]) == 256
    assert int.from_bytes(data[36:44]) == (4 << 30) // 4096


def test_a_medium_without_unmap_claims_none(make_lu, ok):
    lu = make_lu(capabilities=Capabilities())
    assert not any(page(ok, lu, 0xB0)[20:36])
    assert page(ok, lu, 0xB2)[4:8].hex() == "00000000"


def test_a_thin_medium(lu, ok):
    assert page(ok, lu, 0xB2)[4:8].hex() == "0be40200"


def test_a_thin_medium_without_lbprz(make_lu, ok):
    assert page(ok, make_lu(lbprz=False), 0xB2)[5] == 0xE0


def test_no_granularity_is_claimed_when_the_store_gives_none(make_lu, ok):
    assert not any(page(ok, make_lu(unmap_granularity=0), 0xB0)[28:36])


@pytest.mark.parametrize(("rotational", "rate"), [(False, 1), (True, 0)])
def test_medium_rotation_rate(make_lu, ok, rotational, rate):
    data = page(ok, make_lu(rotational=rotational), 0xB1)
    assert len(data) == 64
    assert int.from_bytes(data[4:6]) == rate


def test_emulated_unmap_counts_as_unmap(make_lu, ok):
    lu = make_lu(capabilities=Capabilities(unmap=Support.EMULATED))
    assert page(ok, lu, 0xB2)[5] & 0x80


def test_a_unit_is_named_by_a_scsi_name_string_too(lu, ok):
    assert b"naa.3" in page(ok, lu, 0x83)


def test_pages_with_nothing_to_say_are_empty(lu, ok):
    assert page(ok, lu, 0x85)[4:] == b""
    assert page(ok, lu, 0xB7)[4:] == bytes(60)


def test_mode_pages_are_shared_by_all_nexuses(lu, ok):
    assert page(ok, lu, 0x87)[4:] == bytes([0x3F, 0xFF, 0, 0])


def test_scsi_ports_names_every_target_port(lu, ok):
    other = TargetPort("iscsi", UUID(int=5), 7, list, iscsi_name="iqn.2026-11.invalid.test:one,t,0x0001")
    lu.unit.target_ports = lambda: [other, lu.port]
    data, found = page(ok, lu, 0x88)[4:], {}
    while data:
        end = 12 + int.from_bytes(data[10:12])
        found[int.from_bytes(data[2:4])] = data[12:end]
        data = data[end:]
    assert set(found) == {1, 7}
    assert other.iscsi_name.encode() in found[7]
    assert found[1][0] == 1  # binary
    assert found[1][1] == 0x13  # association 01b, NAA


def test_power_conditions_that_a_command_may_ask_for(lu, ok):
    assert page(ok, lu, 0x8A)[4:] == bytes([0b11, 0b111]) + bytes(12)


def test_third_party_copy_lists_commands_and_bounds(lu, ok):
    data, found = page(ok, lu, 0x8F)[4:], {}
    while data:
        kind, length = int.from_bytes(data[:2]), int.from_bytes(data[2:4])
        assert length % 4 == 0
        found[kind] = data[4 : 4 + length]
        data = data[4 + length :]
    assert set(found) == {0x0001, 0x0004, 0x0008, 0x8001}
    assert found[1][:9] == bytes([8, 0x83, 1, 0, 0x84, 3, 0, 3, 4])
    assert found[8][:4] == bytes([3, 0x02, 0x0A, 0xE4])
    assert int.from_bytes(found[4][4:6]) == 16


@pytest.mark.parametrize(("unmap", "after_erase"), [(Support.NATIVE, 0x40), (Support.NONE, 0)])
def test_what_reads_do_after_a_block_erase(make_lu, ok, unmap, after_erase):
    assert page(ok, make_lu(capabilities=Capabilities(unmap=unmap)), 0xB1)[7] == after_erase
