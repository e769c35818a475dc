# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations against a model: any sequence of commands of four initiators over two transports."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.scsi.reservation_machine import STEPS, Reserving
from tests.scsi.reservation_model import CONFLICT
from tests.scsi.reserving import Cluster, basic
from vhost_scsi.scsi.task import Complete, Status


def test_any_sequence_ends_as_in_the_model(capsys):
    STEPS.clear()
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Reserving,
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=checks),
    )
    with capsys.disabled():
        print("\nreservations, steps: " + ", ".join(f"{name} {count}" for name, count in sorted(STEPS.items())))
    for wanted in ("register", "reserve", "release", "clear", "preempt", "move", "reserve_6", "release_6"):
        assert STEPS[f"{wanted}: GOOD"], wanted
    assert STEPS[f"preempt: {CONFLICT}"]


def test_the_model_is_not_the_thing_itself():
    """Negative twin: a model that forgets one rule does not agree."""

    class Forgetful(Reserving):
        def __init__(self):
            super().__init__()
            self.model.tell = lambda names, but, code: None

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Forgetful,
            settings=settings(
                max_examples=200, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate]
            ),
        )


def test_outcomes_are_complete():
    cluster = Cluster()
    assert cluster.out("a", "REGISTER", basic(0, 5)) == Complete(Status.GOOD)
    cluster.close()
