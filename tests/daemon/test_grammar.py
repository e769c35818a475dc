# SPDX-License-Identifier: Apache-2.0
"""The command line's grammar for units, ports and places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.daemon.config import build
from vhost_scsi.daemon.grammar import LU_OPTIONS, merge, tables
from vhost_scsi.errors import ConfigError


def test_lun_is_short_for_a_unit_and_its_place() -> None:
    made = tables(luns=["0:1=disk.img"])
    assert made["lu"] == {"lun-0-1": {"url": "file:disk.img"}}
    assert made["map"] == {"0:1": "lun-0-1"}


def test_options_of_the_unit_and_of_the_store_stand_together() -> None:
    made = tables(lus=["a=disk.img,block_size=4k,cache=direct,wce=off,rotational=on"])
    assert made["lu"]["a"] == {
        "url": "file:disk.img,cache=direct",
        "block_size": 4096,
        "wce": False,
        "rotational": True,
    }


def test_options_of_the_unit_stand_behind_a_wrapped_store() -> None:
    made = tables(lus=["a=delay(read=10ms,write=1ms):disk.img,readonly"])
    assert made["lu"]["a"] == {"url": "delay(read=10ms,write=1ms):file:disk.img", "readonly": True}


def test_a_port_has_options() -> None:
    made = tables(ports=["vm0=/run/s,num_queues=4,workers=0+1"])
    assert made["port"] == {"vm0": {"socket": "/run/s", "num_queues": 4, "workers": [0, 1]}}


def test_everything_together_is_a_configuration() -> None:
    made = tables(lus=["a=x,uuid=3c4d7b0a-6d0f-5b43-9a55-0f5f6e2f1b7c"], maps=["p:0:0=a"], ports=["p=/run/s"])
    assert build(made).places()[0].lu == "a"


@pytest.mark.parametrize(
    ("given_options", "words"),
    [
        ({"luns": ["disk.img"]}, "--lun disk.img: not T:L=URL"),
        ({"luns": ["x=disk.img"]}, "'x' is not T:L"),
        ({"luns": ["0:0="]}, "not T:L=URL"),
        ({"luns": ["0:0=a", "0:0=b"]}, "LUN 0:0 is given twice"),
        ({"luns": ["0:0=a", "00:0=b"]}, "is given twice"),
        ({"luns": ["0:0=a,block_size=many"]}, "block_size=many: not a number"),
        ({"luns": ["0:0=a,wce=maybe"]}, "wce=maybe: must be on or off"),
        ({"luns": ["0:0=a,block_size=512,block_size=512"]}, "is given twice"),
        ({"luns": ["0:0=memroy:1G"]}, "did you mean memory?"),
        ({"luns": ["0:0=disk.img,chache=direct"]}, "did you mean cache?"),
        ({"luns": ["0:0=disk.img,blok_size=512"]}, "did you mean block_size?"),
        ({"lus": ["a"]}, "not NAME=URL"),
        ({"lus": ["a=x", "a=y"]}, "logical unit a is given twice"),
        ({"maps": ["0:0"]}, "not PORT:T:L=NAME"),
        ({"maps": ["p:0:0=a", "p:0:0=b"]}, "LUN p:0:0 is given twice"),
        ({"ports": ["p=/x,speed=9"]}, "unknown option 'speed'"),
        ({"ports": ["p=/x,num_queues=two"]}, "num_queues=two: not a number"),
        ({"ports": ["p=/x", "p=/y"]}, "port p is given twice"),
    ],
)
def test_a_mistake_is_one_line(given_options: dict[str, list[str]], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tables(**given_options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_single_values_on_top_win_and_tables_are_joined() -> None:
    merged = merge({"workers": 1, "lu": {"a": 1}}, {"workers": 2, "lu": {"b": 2}})
    assert merged == {"workers": 2, "lu": {"a": 1, "b": 2}}


def test_the_same_name_on_both_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="lu a is given twice, on the command line and in the file"):
        merge({"lu": {"a": 1}}, {"lu": {"a": 2}})


def test_every_option_of_a_unit_can_be_written_on_the_command_line() -> None:
    values = {"uuid": "3c4d7b0a-6d0f-5b43-9a55-0f5f6e2f1b7c", "block_size": "4096", "physical_block_size": "8192"}
    values |= {"overwrite_rate": "1", "type": "disk", "outstanding": "64", "queue_depth": "8"}
    values |= {"command_timeout": "5", "retries": "2", "naa": "5000c50012345678", "eui64": "001b44113ab71234"}
    values |= {"mode_pages": "20:00+3e.01:00/ff", "vpd_pages": "c0:00"}
    options = ",".join(f"{name}={values.get(name, 'on')}" for name in LU_OPTIONS)
    assert build(tables(luns=[f"0:0=x,{options}"], ports=["p=/run/s"]))


@given(st.lists(st.text(alphabet="0:=,()abmemory.k ;", max_size=24), max_size=3))
def test_any_words_are_tables_or_one_line(words: list[str]) -> None:
    said = ""
    try:
        build(tables(luns=words, ports=["p=/run/s"]))
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
