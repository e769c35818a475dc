# SPDX-License-Identifier: Apache-2.0
"""The configuration file: every mistake is told with the line and the column in which it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.daemon.config import build
from vhost_scsi.daemon.config_file import MAX_BYTES, ConfigText, locator
from vhost_scsi.daemon.errors import ConfigFileError
from vhost_scsi.errors import ConfigError

GOOD = """\
# block_size and root stand here too, and mean nothing
engine = "auto"

[lu.root]
url = "disk.img"   # not the block_size
block_size = 512

[lu.data.store]
type = "overlay"
lower = '''
memory:1G'''

[port.vm0]
socket = "/run/vm0.sock"

[map]
"vm0:0:0" = "root"
"vm0:0:1" = "data"
"""


def read(text: str) -> None:
    source = ConfigText("f.toml", text)
    build(source.values, locator(source))


def error_of(text: str) -> ConfigFileError:
    with pytest.raises(ConfigFileError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_good_file_is_read() -> None:
    read(GOOD)


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("block_size = 512", "blok_size = 512", (6, 1), "lu.root: unknown key 'blok_size', did you mean 'block_size'?"),
        ("block_size = 512", "  block_size = 500", (6, 3), "lu.root.block_size: 500 is not a power of two"),
        ("block_size = 512", "block_size = '4k'", (6, 1), "lu.root.block_size"),
        ("block_size = 512", "block_size = ", (6, 14), "invalid value"),
        ("block_size = 512", "block_size 512", (6, 12), "expected '=' after a key"),
        ('engine = "auto"', 'engine = "auto', (2, 15), ""),
        ('engine = "auto"', 'engine = "quick"', (2, 1), "engine: 'quick' is not one of"),
        ('"root"', '"rot"', (17, 1), "there is no logical unit 'rot', did you mean 'root'?"),
        ('"vm0:0:1"', '"vm1:0:1"', (18, 1), "there is no port 'vm1', did you mean 'vm0'?"),
        ('"vm0:0:1"', '"vm0:0:00"', (18, 1), "is given twice"),
        ('"vm0:0:1"', '"vm0:0:0"', (18, 19), ""),
        ("[port.vm0]", "[prot.vm0]", (13, 1), "unknown key 'prot', did you mean 'port'?"),
        ("[lu.data.store]", "[lu.root]", (8, 9), ""),
        ("[lu.data.store]", "[lu.root.store]", (4, 1), "exactly one of url and store"),
        ('"disk.img"', '"bad:disk.img"', (5, 1), "lu.root.url: unknown store 'bad' in 'bad:disk.img'"),
        ('"disk.img"', '"disk.img,cashe=direct"', (5, 1), "lu.root.url: file: unknown option 'cashe'; did you mean"),
        ('type = "overlay"', 'type = "overlya"', (8, 1), "lu.data.store: unknown store 'overlya'"),
        ('type = "overlay"', 'type = "delay"\nread = "xx"', (8, 1), "lu.data.store: delay: read=xx: "),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, place: tuple[int, int], words: str) -> None:
    error = error_of(GOOD.replace(old, new, 1) if old != '"root"' else GOOD.replace('= "root"', f"= {new}"))
    assert (error.line, error.column) == place, str(error)
    assert words in str(error)
    assert str(error).startswith(f"f.toml:{place[0]}:{place[1]}: ")


def test_an_unclosed_value_at_the_end_is_told_with_the_last_line() -> None:
    error = error_of("x = [1,\n2")
    assert error.line == 2


def test_a_text_that_is_nested_without_end_is_refused() -> None:
    assert "nested too deeply" in str(error_of("a = " + "[" * 5000 + "]" * 5000))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"nothing\.toml: No such file or directory"):
        ConfigText.read(str(tmp_path / "nothing.toml"))


def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(b'a = "x"\nb = "\xff"\n')
    with pytest.raises(ConfigFileError) as caught:
        ConfigText.read(str(path))
    assert (caught.value.line, caught.value.column) == (2, 6)


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigFileError, match="larger than"):
        ConfigText.read(str(path))


def test_what_came_from_the_command_line_is_not_looked_for_in_the_file() -> None:
    source = ConfigText("f.toml", 'engine = "auto"\n')
    error = locator(source)(("lu", "lun-0-0", "block_size"), "is odd")
    assert str(error) == "lu lun-0-0 block_size: is odd"


@given(st.text(alphabet='[]{}=."#\n abluport:0', max_size=60))
def test_any_text_is_a_configuration_or_one_line(text: str) -> None:
    said = ""
    try:
        read(text)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
