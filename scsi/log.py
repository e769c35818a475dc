# SPDX-License-Identifier: Apache-2.0
"""LOG SENSE and LOG SELECT (SPC-5 6.8, 6.9). The pages are `log_pages`.

Only cumulative values are kept; there are no thresholds and nothing is saved. LOG SELECT resets counters, and sets
none.
"""

from __future__ import annotations

from typing import Final

from construct import GreedyBytes, Int8ub, Int16ub, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.log_pages import LogPage, Parameter, find, pages_of

PAGE = Struct("code" / Int8ub, "subpage" / Int8ub, "data" / PrefixedBytes(Int16ub, GreedyBytes))
PARAMETER = Struct("code" / Int16ub, "control" / Int8ub, "value" / PrefixedBytes(Int8ub, GreedyBytes))
DS: Final = 0x80
"""nothing of the page is saved"""
SPF: Final = 0x40
CUMULATIVE, DEFAULT_CUMULATIVE = 0b01, 0b11
ALL_SUBPAGES: Final = 0xFF


def _listed(request: Request, page: LogPage) -> bytes:
    pages = pages_of(request.logical_unit)
    if page.subpage:
        return b"".join(bytes([each.code, each.subpage]) for each in pages)
    return bytes(each.code for each in pages if not each.subpage)


def _parameters(request: Request, page: LogPage) -> bytes:
    assert page.parameters is not None
    first, default = request["parameter_pointer"], request["pc"] == DEFAULT_CUMULATIVE
    found: list[Parameter] = [each for each in page.parameters(request.logical_unit) if each[0] >= first]
    if first and not found:
        # SPC-5 6.9: a pointer beyond the last parameter
        raise request.refuse("parameter_pointer")
    zeroes = default and page.counts
    return b"".join(
        PARAMETER.build({"code": code, "control": form, "value": bytes(len(value)) if zeroes else value})
        for code, form, value in found
    )


@handles("log_sense")
def log_sense(request: Request) -> bytes:
    if request["pc"] not in (CUMULATIVE, DEFAULT_CUMULATIVE):
        raise request.refuse("pc")
    page = find(request.logical_unit, request["page_code"], request["subpage_code"])
    if page is None:
        known = any(each.code == request["page_code"] for each in pages_of(request.logical_unit))
        raise request.refuse("subpage_code" if known else "page_code")
    data = _listed(request, page) if page.parameters is None else _parameters(request, page)
    code = page.code | DS | (SPF if page.subpage else 0)
    built: bytes = PAGE.build({"code": code, "subpage": page.subpage, "data": data})
    return built


@handles("log_select")
def log_select(request: Request) -> bytes:
    unit = request.logical_unit
    if request["parameter_list_length"]:
        # SPC-5 6.8: no parameter of ours can be set.
        raise request.refuse("parameter_list_length")
    if not request["pcr"]:
        return b""
    code, subpage = request["page_code"], request["subpage_code"]
    if (code or subpage) and (code or subpage != ALL_SUBPAGES):
        page = find(unit, code, subpage)
        if page is None:
            raise request.refuse("page_code")
        if not page.counts:
            return b""
    # The counters stand in several pages; all of them begin anew together.
    unit.reset_counters()
    unit.establish(sense.LOG_PARAMETERS_CHANGED, besides=request.itl)
    return b""
