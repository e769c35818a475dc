# SPDX-License-Identifier: Apache-2.0
"""The house stands: links, the guards on the short names, and what a wheel built from the sdist holds and does.

The package is built from a copy of the tree, so that a test run leaves nothing behind in the tree itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vhost_scsi import __version__

ROOT = Path(__file__).resolve().parents[1]
LINKED = ["cli", "daemon", "hba", "iscsi", "scsi", "stores", "virtqueue"]
# Only what builds need; the rest of a work tree may be gigabytes of images.
BUILD_INPUTS = ["core", "vhost_scsi", *LINKED, "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"]


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)


def succeed(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    result = run(*command, cwd=cwd, env=env)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_links_of_the_package_are_the_linked_folders() -> None:
    assert sorted(path.name for path in (ROOT / "vhost_scsi").iterdir() if path.is_symlink()) == LINKED


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_relative_and_leads_to_its_folder(name: str) -> None:
    link = ROOT / "vhost_scsi" / name
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("name", LINKED)
def test_a_linked_folder_refuses_its_short_name(name: str) -> None:
    result = run(sys.executable, "-c", f"import {name}")
    assert result.returncode == 1
    assert re.search(rf"^ImportError: .*vhost_scsi\.{name}\b", result.stderr, re.MULTILINE), result.stderr


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("statement", ["import {}", "from {} import x", "import {}.sub"])
def test_ruff_bans_the_short_name(name: str, statement: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select=TID251", "--stdin-filename=tests/x.py", "-"]
    source = statement.format(name) + "\n"
    result = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "TID251" in result.stdout


def test_ruff_lets_the_full_name_through() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select=TID251", "--stdin-filename=tests/x.py", "-"]
    source = "import vhost_scsi.scsi\nfrom vhost_scsi import scsi\n"
    assert subprocess.run(command, cwd=ROOT, input=source, text=True, check=False).returncode == 0


def top_level(names: list[str]) -> set[str]:
    """The first words of an archive's paths, without a wheel's metadata and what it installs outside of Python."""
    return {name.split("/")[0] for name in names if not name.split("/")[0].endswith((".dist-info", ".data"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the tree, and the wheel that was built from that sdist and not from the tree."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "gen", "*.so", "*.egg-info")
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree / name)
    # `build` without --wheel or --sdist does just this: the sdist first, then the wheel from it.
    succeed(sys.executable, "-m", "build", "--no-isolation", ".", cwd=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    (wheel,) = (tree / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_holds_the_sources_and_nothing_generated(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "core").glob("*.[ch]")} <= names
    assert {"core/api.h", "setup.py", "LICENSE", "vhost_scsi/scsi/generate.py"} <= names
    assert [name for name in names if name.startswith("core/gen/") or name.endswith((".so", ".o"))] == []
    # A link that leads out of the archive would be broken, and pip refuses it.
    assert [member.name for member in members if member.issym()] == []


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        assert top_level(archive.namelist()) == {"vhost_scsi"}


@pytest.mark.slow
def test_the_wheel_has_every_module_and_the_core(built: tuple[Path, Path]) -> None:
    sources = [*(ROOT / "vhost_scsi").glob("*.py"), *(ROOT / "vhost_scsi").glob("*/**/*.py")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        assert expected == {name for name in names if name.endswith(".py")}
        assert "vhost_scsi/py.typed" in names
        assert [name for name in names if name.endswith(".data/data/share/qemu/vhost-user/50-vhost-scsi.json")]
        assert [name for name in names if re.fullmatch(r"vhost_scsi/_core\..*so", name)]
        # Zip keeps a link as a tiny file with the link bit in its mode.
        assert [info.filename for info in archive.infolist() if (info.external_attr >> 28) == 0xA] == []


def test_top_level_sees_a_stray_folder() -> None:
    assert top_level(["vhost_scsi/a.py", "scsi/b.py", "vhost_scsi-1.dist-info/METADATA"]) == {"vhost_scsi", "scsi"}


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that holds the wheel and its dependencies, and no tree in sight."""
    venv = tmp_path_factory.mktemp("venv")
    succeed(sys.executable, "-m", "venv", venv)
    # --only-binary: a compiler that happens to be here must not be what makes it work.
    succeed(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", built[1], cwd=venv)
    return venv / "bin"


@pytest.mark.slow
def test_the_installed_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    # Only its own folder on PATH: no compiler, no pkg-config.
    env = {"PATH": str(installed), "HOME": str(tmp_path)}
    assert __version__ in succeed(installed / "vhost-scsi", "--version", cwd=tmp_path, env=env)


@pytest.mark.slow
def test_the_installed_core_loads_and_needs_no_liburing(installed: Path, tmp_path: Path) -> None:
    program = "import vhost_scsi._core as core; print(core.__file__)"
    module = succeed(installed / "python", "-c", program, cwd=tmp_path).strip()
    assert Path(module).is_relative_to(installed.parent)
    libraries = succeed("ldd", module)
    assert "libc.so" in libraries
    assert "liburing" not in libraries
