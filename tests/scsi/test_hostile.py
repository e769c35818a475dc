# SPDX-License-Identifier: Apache-2.0
"""Whatever an initiator sends, the answer is one that a transport can send, and our own fault is never the answer."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.commands import COMMANDS
from vhost_scsi.scsi.dispatch import HANDLERS
from vhost_scsi.scsi.mode_pages import PAGES
from vhost_scsi.scsi.null_unit import absent_unit, report_luns_unit
from vhost_scsi.scsi.task import Complete, Status, TaskAttribute


def sprinkled(row):
    """A CDB of the row with some of the bits that it uses, and now and then any bit."""

    def mix(noise, stray):
        rest = zip(row.usage[1:], noise, stray, strict=True)
        return bytes([row.opcode, *(bits & used | extra for used, bits, extra in rest)])

    size = row.cdb_length - 1
    nothing, anything = st.just(bytes(size)), st.binary(min_size=size, max_size=size)
    return st.builds(mix, anything, st.one_of(nothing, nothing, nothing, anything))


cdbs = st.one_of(st.binary(max_size=34), *[sprinkled(row) for row in COMMANDS])
attributes = st.sampled_from([TaskAttribute.SIMPLE] * 8 + list(TaskAttribute))
pages = st.sampled_from([page.default for page in PAGES] + [page.mask for page in PAGES])
lists = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda head, parts, tail: head + b"".join(parts) + tail,
        st.sampled_from([bytes(4), bytes(8)]),
        st.lists(pages | st.binary(max_size=24), max_size=4),
        st.binary(max_size=3),
    ),
)


# The examples of one test share one unit on purpose: what one leaves behind must not break the next.
shared = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared
@given(cdb=cdbs, attribute=attributes, data_out=lists)
def test_random_commands_always_get_a_proper_outcome(lu, is_proper, cdb, attribute, data_out):
    task = lu.task(cdb, attribute=attribute, data_out=data_out)

    async def submit():
        future = lu.loop.create_future()
        lu.unit.submit(task, future.set_result)
        return await future

    outcome = lu.run(submit())
    assert is_proper(outcome)
    lu.unit.finished(task)
    assert not lu.unit.tasks()
    lu.run(lu.unit.clear_aca(lu.itl))


@shared
@given(data=lists, command=st.sampled_from(["MODE SELECT(6)", "MODE SELECT(10)"]), off=st.integers(-2, 2))
def test_random_mode_parameters_always_get_a_proper_outcome(lu, is_proper, data, command, off):
    length = max(0, min(len(data) + off, 255))
    assert is_proper(lu.outcome(command, pf=1, parameter_list_length=length, data_out=data))
    for page in lu.unit.mode_pages():  # a code that a disk and a drive have is two rows of PAGES
        current = lu.unit.mode.current(page)
        assert len(current) == len(page.default)
        assert all((new ^ old) & ~mask == 0 for new, old, mask in zip(current, page.default, page.mask, strict=True))


@shared
@given(cdb=cdbs)
def test_random_commands_where_no_unit_is(lu, cdb):
    for answer in (absent_unit, report_luns_unit):
        outcome = answer(cdb, lu.itl.nexus)
        assert isinstance(outcome, Complete)
        assert outcome.status is Status.GOOD or sense_data.parse(outcome.sense)


def test_every_handler_of_the_table_exists_and_none_is_left_over():
    assert {row.handler for row in COMMANDS if row.handler} == set(HANDLERS)
