# SPDX-License-Identifier: Apache-2.0
"""The corpus of the vhost-user fuzzer as ordinary tests, so that it also runs where there is no fuzzer: under the
sanitizers, and on every change.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.seeds import CORPUS, STORIES
from tests.fuzz.vhost_user import Rig, decode

INPUTS = sorted(CORPUS.iterdir())


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
def test_input(rig: Rig, path: object) -> None:
    assert hasattr(path, "read_bytes")
    rig.run(path.read_bytes())


def test_the_corpus_holds_the_stories_as_they_are_told() -> None:
    """Else `python -m tests.fuzz.seeds` was forgotten."""
    for name, steps in STORIES.items():
        assert decode((CORPUS / name).read_bytes()) == list(steps), name


@pytest.mark.parametrize(
    ("story", "least"),
    [
        *[("requests", 3), ("all-queues", 6), ("rings-before-memory", 3), ("polled", 1), ("split-in-order", 3)],
        *[("packed", 4), ("packed-in-order", 8), ("packed-from-the-middle", 3), ("packed-next-lap", 5)],
    ],
)
def test_requests_are_taken_from_the_rings(rig: Rig, story: str, least: int) -> None:
    """If they were not, the inputs would prove little about what stands behind the protocol. A story does not wait for
    the worker, which may come late to a ring that goes: one run of many shows what it reaches."""
    taken = []
    for _ in range(50):
        before = rig.requests()
        rig.run((CORPUS / story).read_bytes())
        taken.append(rig.requests() - before)
        if taken[-1] >= least:
            return
    raise AssertionError(f"requests taken in each of {len(taken)} runs: {taken}")


def test_a_lost_descriptor_fails_the_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the checks: a device that keeps a call descriptor is found out."""
    kept: list[int | None] = []
    monkeypatch.setattr(rig.device, "set_vring_call", lambda _index, fd: kept.append(fd))
    with pytest.raises(AssertionError, match="descriptors"):
        rig.run((CORPUS / "requests").read_bytes())
