# SPDX-License-Identifier: Apache-2.0
"""The generated header says what the tables say, compiles, and needs nothing but the standard library."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhost_scsi.scsi import generate, sense
from vhost_scsi.scsi.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
#include <stdint.h>
#include <stdio.h>
struct vs_row { const char *name; uint8_t opcode; uint8_t has_sa; uint16_t service_action; uint8_t cdb_len;
        uint8_t media; uint8_t dir; uint32_t param_max; uint8_t param_at, param_bytes, once;
        uint64_t gate_mask; uint8_t usage[32]; };
#include "tables.h"
int main(void)
{
        for (int i = 0; i < VS_NROWS; i++) {
                const struct vs_row *r = &vs_rows[i];
                printf("%s|%d|%d|%d|%d|%d|%d|%u|%llu|", r->name, r->opcode, r->has_sa, r->service_action, r->cdb_len,
                       r->media, r->dir, r->param_max, (unsigned long long)r->gate_mask);
                for (int b = 0; b < r->cdb_len; b++)
                        printf("%02x", r->usage[b]);
                printf("\\n");
        }
        printf("%d %d %d\\n", VS_ASC_INVALID_FIELD_IN_CDB, VS_SK_ILLEGAL_REQUEST, VS_STATUS_CHECK_CONDITION);
        return VS_GATE_HOLD != 1u << 12 || VS_ATTR_ACA != 3;
}
"""


def test_c_reads_back_every_row(tmp_path):
    assert generate.main([str(tmp_path / "gen" / "tables.h")]) == 0
    (tmp_path / "p.c").write_text(PROGRAM)
    subprocess.run(
        [
            "gcc",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
            tmp_path / "gen",
            tmp_path / "p.c",
            "-o",
            tmp_path / "p",
        ],
        check=True,
    )
    out = subprocess.run([tmp_path / "p"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(out) == len(COMMANDS) + 1
    for line, row in zip(out, COMMANDS, strict=False):
        assert line == (
            f"{row.name}|{row.opcode}|{int(row.service_action is not None)}|{row.service_action or 0}|{row.cdb_length}|"
            f"{row.media.value}|{row.direction.value}|{row.parameter_list_max}|{row.gate_mask.value}|{row.usage.hex()}"
        )
    assert out[-1] == f"{0x2400} 5 2"


def test_it_runs_without_third_party_packages(tmp_path):
    # -S: no site-packages at all, as in a checkout before anything is installed.
    command = [sys.executable, "-S", "-m", "vhost_scsi.scsi.generate", str(tmp_path / "t.h")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "t.h").read_text() == generate.tables()
    assert list(tmp_path.iterdir()) == [tmp_path / "t.h"]


def test_wrong_arguments_are_refused(capsys):
    assert generate.main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("code", sense.SENSE_CODES, ids=lambda code: code.name)
def test_a_sense_code_is_a_constant_of_its_own_name(code):
    assert getattr(sense, code.name) is code
    assert sense.BY_WORD[code.word] is code
    assert f"#define VS_ASC_{code.name} 0x{code.word:04x}\n" in generate.tables()


def test_sense_codes_are_unique():
    assert len(sense.BY_WORD) == len(sense.SENSE_CODES)
