# SPDX-License-Identifier: Apache-2.0
"""One gate word: an LU's or an I_T_L nexus's. Implements `scsi.gate.GatePort` without knowing what the bits mean.

C refuses to clear bits while a task that saw them is still on its way to Python; then the bits are cleared as soon as
that task has been handed back, unless somebody has closed them again meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhost_scsi._core import lib

if TYPE_CHECKING:
    from vhost_scsi._core import CData
    from vhost_scsi.dataplane.core import Core


class Gate:
    """`nexus` NULL: the LU's own gate."""

    def __init__(self, core: Core, lu: CData, nexus: CData | None, null: CData) -> None:
        self._core = core
        self._lu = lu
        self._nexus = null if nexus is None else nexus
        self._pins = lib.vs_lu_pins(lu) if nexus is None else lib.vs_nexus_pins(nexus)
        self._opening = 0
        self._fences = 0
        self._last_fence: asyncio.Event | None = None
        self.gone = False

    async def retire(self) -> None:
        """The word is about to be freed: nothing touches it any more when this returns. Nothing pins it by now, so
        whoever waits behind a fence waits for a moment only."""
        self.gone = True
        while self._fences:
            self._last_fence = asyncio.Event()
            await self._last_fence.wait()

    def close(self, bits: int) -> None:
        """Sets the bits at once; nobody waits."""
        if self.gone:
            return
        self._opening &= ~int(bits)
        lib.vs_gate_close(self._core.handle, self._lu, self._nexus, int(bits))

    async def fence(self, bits: int) -> None:
        """Sets the bits at once, then waits until what missed them has ended."""
        if self.gone:
            return
        self._opening &= ~int(bits)
        self._fences += 1
        lib.vs_pins_watch(self._pins, self._core.pins_cookie(self), 1)
        try:
            epoch = lib.vs_gate_close(self._core.handle, self._lu, self._nexus, int(bits))
            await self._core.epoch_reached(epoch)
            await self._core.drained(self._pins, self)
        finally:
            if self._core.pins_forget(self):
                lib.vs_pins_watch(self._pins, 0, 0)
            self._fences -= 1
            if not self._fences and self._last_fence is not None:
                self._last_fence.set()

    def open(self, bits: int) -> None:
        """Clears the bits once every task that was received has been handed back."""
        self._opening |= int(bits)
        self._core.open_later(self)

    def try_open(self) -> bool:
        """The core's call; False: a task is still under way."""
        if self.gone or not self._opening:
            return True
        if lib.vs_gate_open(self._core.handle, self._lu, self._nexus, self._opening):
            return False
        self._opening = 0
        return True

    def read(self) -> int:
        """The reasons that are set on the LU and, for a nexus's gate, on the nexus."""
        return lib.vs_gate_read(self._lu, self._nexus)
