# SPDX-License-Identifier: Apache-2.0
"""Names of stores: what they mean, that they come back as text, and what is said about those that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.stores import KINDS, StoreConfigError, StoreSpec, parse_store, store_from_table, values

DISK = StoreSpec("file", "disk.img", ({},))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("disk.img", DISK),
        ("file:disk.img", DISK),
        ("/a/b:c.img", StoreSpec("file", "/a/b:c.img", ({},))),
        ("./overlay:x", StoreSpec("file", "./overlay:x", ({},))),
        ("copy(1).img", StoreSpec("file", "copy(1).img", ({},))),
        ("a=b.img", StoreSpec("file", "a=b.img", ({},))),
        ("file:memory:1G", StoreSpec("file", "memory:1G", ({},))),
        ("a,,b.img,cache=direct", StoreSpec("file", "a,b.img", ({"cache": "direct"},))),
        ("disk.img,readonly", StoreSpec("file", "disk.img", ({"readonly": "on"},))),
        ("memory:1G,huge-pages=on", StoreSpec("memory", "1G", ({"huge-pages": "on"},))),
        ("overlay:disk.img", StoreSpec("overlay", "", ({},), DISK)),
        ("overlay():disk.img", StoreSpec("overlay", "", ({},), DISK)),
        (
            "delay(read=10ms,write=5ms):overlay(file=/tmp/a,,b):disk.img,cache=direct",
            StoreSpec(
                "delay",
                "",
                ({"read": "10ms", "write": "5ms"},),
                StoreSpec(
                    "overlay", "", ({"file": "/tmp/a,b"},), StoreSpec("file", "disk.img", ({"cache": "direct"},))
                ),
            ),
        ),
        (
            "faulty(op=read,lba=8-15;op=flush,count=1):disk.img",
            StoreSpec("faulty", "", ({"op": "read", "lba": "8-15"}, {"op": "flush", "count": "1"}), DISK),
        ),
        ("python:my.stores:Ram,size=1M", StoreSpec("python", "my.stores:Ram", ({"size": "1M"},))),
    ],
)
def test_names(text: str, spec: StoreSpec) -> None:
    assert parse_store(text) == (spec, {})
    assert parse_store(str(spec)) == (spec, {})


def test_options_of_the_caller() -> None:
    spec, others = parse_store("overlay:disk.img,block-size=4096,cache=direct", {"block-size", "name"})
    assert str(spec) == "overlay:file:disk.img,cache=direct"
    assert others == {"block-size": "4096"}


def test_what_the_caller_and_the_store_both_know_is_told_once() -> None:
    with pytest.raises(StoreConfigError) as caught:
        parse_store("disk.img,foo=1", {"readonly", "block-size"})
    assert str(caught.value).count("readonly") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no name"),
        ("memry:1G", "unknown store 'memry'.*did you mean memory"),
        ("nbd:x", "unknown store 'nbd'.*there are delay, faulty"),
        ("nbd:x", "a file of that name is file:nbd:x"),
        ("dely(read=1s):disk.img", "did you mean delay"),
        ("disk.img,cahce=direct", "file: unknown option 'cahce'; did you mean cache?"),
        ("null:1G,x=1", "null: unknown option 'x'; it has none"),
        ("disk.img,cache=slow", "file: cache=slow: direct or buffered"),
        ("disk.img,cache=direct,cache=buffered", "given twice"),
        ("disk.img,,,cache=direct,", "without a name"),
        ("disk.img,readonly=perhaps", "on or off"),
        ("delay(read=10):disk.img", "read=10: a duration"),
        ("delay(read=10ms)", "no such|unknown|disk|delay"),
        ("delay(read=1ms:memory:1M", r"delay: the parenthesis in 'delay\(read=1ms:memory:1M' is not closed"),
        ("delay:", "no store behind its colon"),
        ("delay(read=1s;write=1s):disk.img", "one set of options"),
        ("memory(huge-pages=on):1G", "memory wraps nothing"),
        ("memory:", "size is missing"),
        ("file:", "path is missing"),
        ("faulty(op=reed):disk.img", "op=reed"),
        ("faulty(lba=9-8):disk.img", "ends before it starts"),
        ("faulty(lba=x):disk.img", "block address"),
        ("faulty(count=-1):disk.img", "whole number"),
        ("faulty(error=none):disk.img", "error=none"),
        ("disk\0.img", "control character"),
        ("overlay(file=a\nb):disk.img", "control character"),
        ("delay:" * 18 + "disk.img", "more than 16"),
    ],
)
def test_names_that_mean_nothing(text: str, says: str) -> None:
    if text == "delay(read=10ms)":
        # Without a colon it is the name of a file.
        assert parse_store(text)[0].kind == "file"
        return
    with pytest.raises(StoreConfigError, match=says) as raised:
        parse_store(text)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"path": "disk.img"}, "file:disk.img"),
        ({"type": "file", "path": "a,b", "readonly": True, "lock": False}, "file:a,,b,readonly=on,lock=off"),
        ({"type": "memory", "size": 4096}, "memory:4096"),
        ({"type": "overlay", "lower": "disk.img", "block": "64K"}, "overlay(block=64K):file:disk.img"),
        (
            {"type": "delay", "read": "1ms", "lower": {"type": "overlay", "lower": {"path": "x"}}},
            "delay(read=1ms):overlay():file:x",
        ),
        ({"type": "faulty", "op": "read", "lba": 8, "lower": "x"}, "faulty(op=read,lba=8):file:x"),
        (
            {"type": "faulty", "rules": [{"op": "read"}, {"op": "flush", "count": 2}], "lower": "x"},
            "faulty(op=read;op=flush,count=2):file:x",
        ),
        ({"type": "python", "object": "m:C", "depth": 3}, "python:m:C,depth=3"),
    ],
)
def test_tables(table: dict[str, Any], text: str) -> None:
    spec = store_from_table(table)
    assert spec == parse_store(text)[0]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"type": "fiel", "path": "x"}, "did you mean file"),
        ({"type": "file"}, "path is missing"),
        ({"type": "delay"}, "lower is missing"),
        ({"type": "delay", "lower": 3}, "a table or a text"),
        ({"path": "x", "cahce": "direct"}, "did you mean cache"),
        ({"path": "x", "cache": ["direct"]}, "a list makes no sense"),
        ({"path": "x", "rules": []}, "rules"),
        ({"type": "faulty", "rules": "op=read", "lower": "x"}, "list of tables"),
    ],
)
def test_tables_that_mean_nothing(table: dict[str, Any], says: str) -> None:
    with pytest.raises(StoreConfigError, match=says):
        store_from_table(table)


def test_deep_tables_are_refused() -> None:
    table: dict[str, Any] = {"path": "x"}
    for _ in range(2000):
        table = {"type": "delay", "lower": table}
    with pytest.raises(StoreConfigError, match="more than 16"):
        store_from_table(table)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused_in_one_way(text: str) -> None:
    try:
        spec, _ = parse_store(text)
    except StoreConfigError:
        return
    assert parse_store(str(spec))[0] == spec


@given(st.text(alphabet="delayfut(),;:=om1K-\n ", max_size=40))
def test_near_names_are_names_or_refused_in_one_way(text: str) -> None:
    test_any_text_is_a_name_or_refused_in_one_way.hypothesis.inner_test(text)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("512", 512), ("64K", 65536), ("1GiB", 2**30), ("3t", 3 * 2**40), ("1MB", 2**20)]
)
def test_sizes(text: str, value: int) -> None:
    assert values.size(text) == value


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1X", "0x10", "1 G", "１", "1\u212a"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="a size is"):
        values.size(text)


def test_sizes_that_c_has_no_number_for() -> None:
    with pytest.raises(ValueError, match="larger than any"):
        values.size("9999999P")


def test_durations_in_microseconds() -> None:
    assert [values.duration(text) for text in ("0", "7us", "10ms", "2s")] == [0, 7, 10_000, 2_000_000]


def test_every_kind_has_its_page_section() -> None:
    from pathlib import Path

    page = (Path(__file__).resolve().parents[2] / "docs" / "stores.md").read_text()
    for name, kind in KINDS.items():
        assert f"\n## {name}\n" in page
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in kind.options or {}:
            assert f"`{option}=" in section, f"{name}: {option} is not explained"
        assert "survives" in section
