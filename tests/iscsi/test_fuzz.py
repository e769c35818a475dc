# SPDX-License-Identifier: Apache-2.0
"""The corpora of logins and of text requests, replayed; the stories among the seeds end as they should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iscsi import fuzz
from tests.iscsi.seeds import LOGINS, TEXT_REQUESTS
from vhost_scsi.iscsi.login import State

CORPUS = Path(__file__).parents[1] / "corpus" / "iscsi_login"
TEXT_CORPUS = CORPUS.with_name("iscsi_text_requests")


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus(seed: Path) -> None:
    fuzz.one_input(seed.read_bytes())


@pytest.mark.parametrize("name", LOGINS)
def test_the_seeds_are_what_they_are_called(name: str) -> None:
    data, state = LOGINS[name]
    assert (CORPUS / name).read_bytes() == data
    assert fuzz.run(data) is state


@given(st.binary(max_size=400))
def test_noise(data: bytes) -> None:
    assert fuzz.run(data) in State


@pytest.mark.parametrize("seed", sorted(TEXT_CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus_of_text_requests(seed: Path) -> None:
    fuzz.run_text(seed.read_bytes())


@pytest.mark.parametrize("name", TEXT_REQUESTS)
def test_text_requests_are_what_they_are_called(name: str) -> None:
    data, counts = TEXT_REQUESTS[name]
    assert (TEXT_CORPUS / name).read_bytes() == data
    assert fuzz.run_text(data) == counts


@given(st.binary(max_size=400))
def test_noise_in_text_requests(data: bytes) -> None:
    assert sum(fuzz.run_text(data)) == len(fuzz.split(data))
