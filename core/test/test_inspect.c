// SPDX-License-Identifier: Apache-2.0
/*
 * Looking at what stands in the workers: a look at one that sleeps takes nothing from a ring, so that a kick that was lost stays lost; what is
 * counted of a queue adds up; and the data segments of a task are those that the initiator posted. Both engines.
 */
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "check.h"
#include "vdev_rig.h"
#include "worker.h"

enum { Q = VS_QUEUE_REQUEST, LOOKS = 200, REQUESTS = 30 };

static struct machine m;

static void open_machine(uint32_t engine)
{
	machine_open(&m, &(struct machine_options){ .unit = { .threads = true, .engine = engine, .poll_mode = VS_POLL_NEVER },
						    .features = VS_RING_EVENT_IDX | VS_RING_INDIRECT | VS_RING_VERSION_1, .kicks = true });
}

static void until_asleep(uint32_t worker)
{
	struct vs_worker_stats stats;

	do {
		sched_yield();
		vs_worker_stats(m.unit->core, worker, &stats);
	} while (!stats.sleeping);
}

static uint64_t look(uint32_t worker, struct vs_task_info *infos, uint32_t max, uint64_t min_age_ns)
{
	uint64_t cookie = ++m.unit->cookie;

	CHECK_EQ(vs_worker_look_tasks(m.unit->core, worker, infos, max, min_age_ns, cookie), 0);
	return unit_wait(m.unit, VS_UP_DONE, cookie, NULL).aux;
}

static void read_one(struct request *r)
{
	*r = (struct request){ .tag = 7, .in_length = 512 };
	cdb_read10(r->cdb, 0, 1);
}

static void a_lost_kick_stays_lost(uint32_t engine)
{
	struct vs_worker_stats before, after;
	struct vs_task_info info, infos[1];
	struct response response;
	uint32_t worker;
	struct request r;

	open_machine(engine);
	worker = m.queues[Q].worker;
	read_one(&r);
	machine_do(&m, Q, &r, &response);
	until_asleep(worker);
	vs_worker_stats(m.unit->core, worker, &before);
	r.unseen = true;
	machine_send(&m, Q, &r);
	CHECK(vs_driver_publish(&m.queues[Q].driver)); /* and nobody is told */
	for (int i = 0; i < LOOKS; i++) {
		uint64_t more = ++m.unit->cookie;

		CHECK_EQ(vs_worker_look_tasks(m.unit->core, worker, infos, 1, 0, more), 0); /* two at once */
		CHECK_EQ(look(worker, &info, 1, 0), 0);
		unit_wait(m.unit, VS_UP_DONE, more, NULL);
	}
	vs_worker_stats(m.unit->core, worker, &after);
	CHECK_EQ(after.loops, before.loops);
	CHECK_EQ(after.wakes, before.wakes);
	CHECK_EQ(machine_info(&m, Q).requests, 1);
	CHECK_EQ(eventfd_write(m.queues[Q].kick_fd, 1), 0);
	machine_receive(&m, Q, &response);
	CHECK_EQ(response.status, VS_STATUS_GOOD);
	machine_close(&m);
}

static void what_is_counted_adds_up(uint32_t engine)
{
	struct vs_queue_info info;
	uint64_t answered = 0, taken = 0, turns = 0;
	struct response response;
	struct request r;

	open_machine(engine);
	vs_queue_tell_busy(m.vdev, Q);
	read_one(&r);
	for (int i = 0; i < REQUESTS; i++)
		machine_do(&m, Q, &r, &response);
	CHECK_EQ(unit_wait(m.unit, VS_UP_BUSY, m.cookie, NULL).aux, Q);
	CHECK(!unit_has(m.unit, VS_UP_BUSY));
	/* What the last turn answered, the next one counts. */
	until_asleep(m.queues[Q].worker);
	info = machine_info(&m, Q);
	for (int i = 0; i < VS_QLATENCY_BUCKETS; i++)
		answered += info.latency[i];
	for (int i = 0; i < VS_QBATCH_BUCKETS; i++) {
		turns += info.batch_sizes[i];
		taken += info.batch_sizes[i] << i;
	}
	CHECK_EQ(info.requests, REQUESTS);
	CHECK_EQ(answered, REQUESTS);
	CHECK_EQ(turns, info.batches);
	CHECK(taken <= REQUESTS && taken > REQUESTS / 2);
	machine_close(&m);
}

static void segments_are_the_initiators_own(uint32_t engine)
{
	struct vs_segment segments[4] = { 0 };
	struct vs_task_info info;
	struct response response;
	struct vs_upcall up;
	uint64_t cookie, slot;
	uint32_t worker;
	struct request r;
	int head;

	open_machine(engine);
	worker = m.queues[Q].worker;
	medium_hold(m.unit->medium, true);
	read_one(&r);
	r.in_length = 1024;
	cdb_read10(r.cdb, 0, 2);
	r.data_pieces = 2;
	head = machine_send(&m, Q, &r);
	while (!medium_held(m.unit->medium))
		sched_yield();
	CHECK_EQ(look(worker, &info, 1, 0), 1);
	CHECK_EQ(info.head, head);
	CHECK_EQ(info.layer, VS_LAYER_STORE);
	CHECK_EQ(look(worker, &info, 1, UINT64_C(3600) * 1000000000), 0); /* it is younger than an hour */
	cookie = ++m.unit->cookie;
	CHECK_EQ(vs_worker_look_segments(m.unit->core, worker, m.cookie, Q, (uint32_t)head, segments, 4, cookie), 0);
	up = unit_wait(m.unit, VS_UP_DONE, cookie, NULL);
	CHECK_EQ(up.err, 0);
	CHECK_EQ(up.aux, info.in_segments);
	slot = m.queues[Q].slots + (uint64_t)m.queues[Q].slot_of[head] * SLOT_BYTES;
	CHECK(segments[0].known && segments[0].writable);
	CHECK(segments[0].address >= slot && segments[0].address < slot + SLOT_BYTES);
	cookie = ++m.unit->cookie;
	CHECK_EQ(vs_worker_look_segments(m.unit->core, worker, m.cookie, Q, (uint32_t)head + 1, segments, 4, cookie), 0);
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, cookie, NULL).err, -ENOENT);
	CHECK_EQ(vs_worker_look_segments(m.unit->core, 99, m.cookie, Q, 0, segments, 4, 1), -EINVAL);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	machine_receive(&m, Q, &response);
	CHECK_EQ(response.status, VS_STATUS_GOOD);
	machine_close(&m);
}

int main(void)
{
	static const uint32_t engines[] = { VS_ENGINE_EPOLL, VS_ENGINE_URING };

	for (uint32_t i = 0; i < 2; i++) {
		if (engines[i] == VS_ENGINE_URING && vs_engine_why_not(VS_ENGINE_URING))
			continue;
		a_lost_kick_stays_lost(engines[i]);
		what_is_counted_adds_up(engines[i]);
		segments_are_the_initiators_own(engines[i]);
	}
	return 0;
}
