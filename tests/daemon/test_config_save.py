# SPDX-License-Identifier: Apache-2.0
"""A configuration written whole: what it says does not depend on where it is read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vhost_scsi.daemon.config import build
from vhost_scsi.daemon.config_save import whole_text


def test_paths_are_absolute_and_all_else_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("a secret of enough bytes")
    (tmp_path / "secret").chmod(0o600)
    iqn = "iqn.2026-11.org.example:disk"
    chap = [{"name": "bob", "secret_file": "secret"}]
    raw = {
        "control": "run/control",
        "lu": {
            "plain": {"url": "disk.img,cache=direct", "readonly": True},
            "wrapped": {"url": "overlay(file=top.img):delay(read=1ms):base.img"},
            "table": {"store": {"type": "file", "path": "table.img"}},
            "memory": {"url": "memory:1M"},
        },
        "port": {"vm": {"socket": "vm.sock"}},
        "map": {"0:0": "plain", "0:1": "wrapped", "0:2": "table", "0:3": "memory"},
        "iscsi": {
            "portal": [{"listen": "127.0.0.1:0"}],
            "target": [{"name": iqn, "luns": {"0": "memory"}, "chap": chap, "acl": [{"chap": chap}]}],
        },
    }
    here = str(tmp_path)
    saved = tomllib.loads(whole_text(build(raw)))
    assert saved["control"] == f"{here}/run/control"
    assert saved["port"]["vm"]["socket"] == f"{here}/vm.sock"
    assert saved["lu"]["plain"] == {"url": f"file:{here}/disk.img,cache=direct", "readonly": True}
    assert saved["lu"]["wrapped"]["url"] == f"overlay(file={here}/top.img):delay(read=1ms):file:{here}/base.img"
    assert saved["lu"]["table"] == {"url": f"file:{here}/table.img"}
    assert saved["lu"]["memory"] == {"url": "memory:1M"}
    target = saved["iscsi"]["target"][0]
    assert target["chap"][0]["secret_file"] == target["acl"][0]["chap"][0]["secret_file"] == f"{here}/secret"
    assert saved["map"] == raw["map"]
    # It is a configuration, and writing that one changes nothing more.
    assert tomllib.loads(whole_text(build(saved))) == saved
