# SPDX-License-Identifier: Apache-2.0
"""The iSCSI part of the configuration: the page's own example, places in either spelling, what is made of it all."""

from __future__ import annotations

import ipaddress
import textwrap
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.daemon import grammar
from vhost_scsi.daemon.config import DaemonConfig, build, known_keys
from vhost_scsi.daemon.config_file import ConfigText, locator
from vhost_scsi.daemon.iscsi_config import make_discovery, make_limits, make_portal, make_target
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.chap import Algorithm
from vhost_scsi.iscsi.targets import Limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "iscsi.md"
IQN = "iqn.2026-11.org.example:a:1"
MEMORY = {"d": {"url": "memory:1M"}}


def config(iscsi: dict[str, Any], **more: Any) -> DaemonConfig:
    portal = {"portal": [{"listen": "127.0.0.1:0"}]}
    return build({"lu": MEMORY, "iscsi": {**portal, **iscsi}, **more})


def target(**fields: Any) -> dict[str, Any]:
    return {"target": [{"name": IQN, "luns": {"0": "d"}, **fields}]}


def test_the_example_of_the_page_is_good(tmp_path: Path) -> None:
    section = PAGE.read_text().split("## The configuration file\n", 1)[1]
    lines = section[: section.index("\n`[map]`")]
    secrets = {name: tmp_path / name for name in ("target.secret", "host1.secret")}
    for name, path in secrets.items():
        path.write_text(f"a secret of enough bytes, of {name}\n")
        path.chmod(0o600)
    text = ConfigText("page", textwrap.dedent(lines).replace("/etc/vhost-scsi", str(tmp_path)))
    made = build(text.values, locator(text))
    iscsi = made.iscsi
    assert iscsi is not None
    assert make_limits(iscsi.limits) == Limits(), "the page says that these are the defaults"
    disk, gone = (make_target(each, made.iscsi_luns()[each.name], iscsi) for each in iscsi.target)
    assert (disk.luns, disk.alias, disk.offer.header_digest) == ({0: "root"}, "the disk", ("CRC32C",))
    assert [user.name for user in disk.auth.users] == ["host1"]
    assert disk.auth.mutual is not None
    assert disk.auth.algorithms == (Algorithm.SHA3_256, Algorithm.SHA_256, Algorithm.SHA_1)
    assert disk.entry_for("iqn.1993-08.org.debian:x", ipaddress.ip_address("192.0.2.5")) is not None
    assert disk.entry_for("iqn.1993-08.org.debian:x", ipaddress.ip_address("198.51.100.5")) is None
    assert gone.redirect is not None
    assert gone.redirect.permanent
    assert make_portal(iscsi.portal[0]).announced == ("192.0.2.7:3260",)
    assert make_discovery(iscsi).enabled


@pytest.mark.parametrize("place", ["5", f"{IQN}:5", f"{IQN.upper()}:5"])
def test_a_place_in_a_target(place: str) -> None:
    made = config(target(), map={place: "d"})
    assert made.iscsi_luns() == {IQN: {0: "d", 5: "d"}}
    assert made.places() == ()


def test_places_of_both_transports_in_one_map() -> None:
    made = config(target(), port={"p": {"socket": "/x"}}, map={"3:4": "d", "p:0:0": "d", "9": "d"})
    assert [(place.port, place.target, place.lun) for place in made.places()] == [("p", 3, 4), ("p", 0, 0)]
    assert sorted(made.iscsi_luns()[IQN]) == [0, 9]


@pytest.mark.parametrize(
    ("iscsi", "more", "words"),
    [
        (target(), {"map": {"0": "d"}}, "is given twice, here and in the target's own table"),
        (target(), {"map": {"1": "d", f"{IQN}:1": "d"}}, f"LUN 1 of target {IQN} is given twice"),
        (target(), {"map": {"99999": "d"}}, "LUNs go to 16383"),
        (target(luns={"0": "d", "00": "d"}), {}, "a LUN is given twice"),
        (target(luns={"16384": "d"}), {}, "is not a LUN"),
        (target(acl=[{"luns": {"0": "e"}}]), {}, "there is no logical unit 'e'"),
        (target(acl=[{"luns": {"x": "d"}}]), {}, "'x' is not a LUN"),
        (target(chap=[{"name": "a"}]), {}, "exactly one of secret_file and secret_env"),
        (target(require_mutual_chap=True), {}, "mutual CHAP needs a CHAP name"),
        (target(keys={"max_burst_length": 1}), {}, "greater than or equal to 512"),
        (target(keys={"header_digest": ["MD5"]}), {}, "header_digest"),
        (target(acl=[{"initiator": []}]), {}, "unknown key 'initiator', did you mean 'initiators'?"),
        ({"portal": [{"listen": "127.0.0.1:0,1", "group": 1}], **target()}, {}, "given twice, in listen and as group"),
        ({"target": [{"name": IQN, "luns": {"0": "d"}}] * 2}, {}, "is given twice"),
        (
            target(),
            {"port": {"iqn.x": {"socket": "/x"}}, "map": {"iqn.x:0:0": "d"}},
            "is the name of an iSCSI target, not",
        ),
    ],
)
def test_what_makes_no_sense(iscsi: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(iscsi, **more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_short_secret_and_an_entry_without_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "tiny!7")
    wanted = target(chap=[{"name": "a", "secret_env": "SECRET"}], acl=[{"chap": []}, {"initiators": ["iqn.x"]}])
    with pytest.raises(
        ConfigError, match="SECRET: the secret has fewer than 96 bits: 12 characters at least"
    ) as caught:
        config(wanted)
    assert "tiny!7" not in str(caught.value)
    made = config({**wanted, "allow_short_secrets": True})
    assert made.iscsi is not None
    (policy,) = (make_target(each, {}, made.iscsi) for each in made.iscsi.target)
    assert policy.auth.required
    assert len(policy.auth.warnings) == 1
    assert [entry.auth and entry.auth.required for entry in policy.acl] == [False, None]
    assert "tiny!7" not in repr(made) + repr(policy)


def test_known_keys_of_tables_in_tables() -> None:
    assert "secret_file" in known_keys(("iscsi", "target", 0, "chap", 0))
    assert "secret_file" in known_keys(("iscsi", "target", 0, "mutual_chap"))
    assert "listen" in known_keys(("iscsi", "portal", 3))
    assert "url" in known_keys(("lu", "a"))
    assert known_keys(("lu", "a", "url", "x")) == []


def test_the_command_line_makes_the_same_tables_and_adds_to_a_file() -> None:
    made = grammar.tables(luns=["0=memory:1M"], portals=["*:3260"], targets=[IQN])
    assert made["iscsi"] == {"portal": [{"listen": "*:3260"}], "target": [{"name": IQN}]}
    assert made["map"] == {"0": "lun-0"}
    merged = grammar.merge({"iscsi": {"target": [{"name": "iqn.2026-11.x:f"}], "limits": {"sessions": 1}}}, made)
    assert [each["name"] for each in merged["iscsi"]["target"]] == ["iqn.2026-11.x:f", IQN]
    assert merged["iscsi"]["limits"] == {"sessions": 1}


def test_what_the_command_line_adds_to_a_list_is_not_blamed_on_the_file() -> None:
    text = ConfigText("f.toml", f'[[iscsi.target]]\nname = "{IQN}"\nluns = {{ 0 = "d" }}\n[lu.d]\nurl = "memory:1M"\n')
    merged = grammar.merge(text.values, grammar.tables(portals=["nowhere:1"]))
    with pytest.raises(ConfigError) as caught:
        build(merged, locator(text))
    assert str(caught.value).startswith("iscsi portal 0 listen: portal 'nowhere'")
