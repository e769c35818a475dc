# SPDX-License-Identifier: Apache-2.0
"""Runs a command in which io_uring_setup fails with EPERM, as under the seccomp profiles of container runtimes.

    python tests/ci/deny_io_uring.py COMMAND [ARGUMENT...]

The filter is inherited by everything that the command starts, and needs no privilege.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP: Final = 425
"""the same number on every architecture: linux/include/uapi/asm-generic/unistd.h"""


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny() -> None:
    """Installs the filter in this process. Raises OSError."""
    instructions = (
        (LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    program = Program(len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    filter_mode = (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), filter_mode):
        if libc.prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl: {os.strerror(number)}")


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if platform.system() != "Linux":
        sys.exit("seccomp is Linux's")
    deny()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
