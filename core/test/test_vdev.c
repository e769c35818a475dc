// SPDX-License-Identifier: Apache-2.0
/*
 * A virtio-scsi device from the driver's side: requests in every shape, addresses, residuals, the control and event queues, and what is done to
 * queues while they run: stopped, replaced, starved, broken, their memory taken away. Without threads where moments matter, with them where
 * descriptors and sleep do. What single commands do is test_media.c.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "vdev_rig.h"

enum { BLOCK = 512, Q = VS_QUEUE_REQUEST, OTHER = VS_QUEUE_REQUEST + 1 };
/* The layout of the rings in this run, and everything that is negotiated with it. */
static uint32_t layout;
#define all_features (VS_RING_EVENT_IDX | VS_RING_INDIRECT | VS_RING_VERSION_1 | layout)

static struct machine m, beside;

static void open_machine(uint32_t features)
{
	machine_open(&m, &(struct machine_options){ .unit.lu.write_cache = 1, .features = features });
}

static struct request reading(uint32_t lba, uint16_t blocks)
{
	struct request r = { .in_length = blocks * BLOCK };

	cdb_read10(r.cdb, lba, blocks);
	return r;
}

static struct request writing(uint32_t lba, uint16_t blocks, const uint8_t *from)
{
	struct request r = { .out = from, .out_length = blocks * BLOCK };

	cdb_write10(r.cdb, lba, blocks);
	return r;
}

static void is_good(const struct response *a, uint32_t moved_in, uint32_t residual)
{
	CHECK_EQ(a->response, VS_RESP_OK);
	CHECK_EQ(a->status, VS_STATUS_GOOD);
	CHECK_EQ(a->sense_len, 0);
	CHECK_EQ(a->status_qualifier, 0);
	CHECK_EQ(a->residual, residual);
	CHECK_EQ(a->written, RESPONSE_BYTES + moved_in);
	/* virtio 1.3, 2.7.8.2: nothing within the used length is left as it was. */
	for (int i = 0; i < SENSE_SIZE; i++)
		CHECK_EQ(a->sense[i], 0);
}

static void works(struct machine *d, uint32_t queue)
{
	struct request r = reading(3, 1);
	struct response a;

	machine_do(d, queue, &r, &a);
	is_good(&a, BLOCK, 0);
}

/* The queue said once that it stopped, and why. */
static void broke(struct machine *d, uint32_t queue, int rule)
{
	struct vs_upcall up = unit_wait(d->unit, VS_UP_QUEUE_ERROR, d->cookie, NULL);
	struct vs_queue_info info = machine_info(d, queue);

	CHECK_EQ(up.aux, queue);
	CHECK_EQ(-up.err, rule);
	CHECK(info.broken && -info.error == rule && info.errors > 0);
	unit_settle(d->unit);
	CHECK(!unit_has(d->unit, VS_UP_QUEUE_ERROR));
}

/* A driver that resets its ring and starts it anew. */
static void revive(struct machine *d, uint32_t queue)
{
	struct machine_queue *q = &d->queues[queue];

	machine_stop(d, queue);
	vs_driver_reset(&q->driver, 0);
	q->free_slots = ~UINT64_C(0);
	CHECK_EQ(machine_start(d, queue, q->kick_fd >= 0), 0);
	if (queue >= Q)
		works(d, queue);
}

/* ---- requests ---------------------------------------------------------------------------------------------------------------------------- */

static void every_shape_of_a_request(uint32_t features, uint32_t regions)
{
	static const uint32_t cuts[] = { 1, 2, 3, 9, 13, 108 };
	uint8_t pattern[8 * BLOCK];
	struct response a;

	machine_open(&m, &(struct machine_options){ .unit.lu.write_cache = 1, .features = features, .regions = regions });
	for (uint32_t i = 0; i < 6; i++) {
		for (uint32_t k = 0; k < 6; k++) {
			struct request w = writing(8, 8, pattern), r = reading(8, 8);

			memset(pattern, (int)(i * 16 + k), sizeof(pattern));
			w.response_pieces = r.response_pieces = cuts[i];
			w.data_pieces = r.data_pieces = cuts[k];
			/* A ring of 256 descriptors takes them directly, too. */
			w.indirect = r.indirect = (features & VS_RING_INDIRECT) && ((i ^ k) & 1);
			machine_do(&m, Q, &w, &a);
			is_good(&a, 0, 0);
			machine_do(&m, OTHER, &r, &a);
			is_good(&a, 8 * BLOCK, 0);
			CHECK(!memcmp(a.data, pattern, sizeof(pattern)));
			r.cdb[2] = 0xff; /* out of range: the sense data cross the pieces, too */
			machine_do(&m, Q, &r, &a);
			CHECK_EQ(a.status, VS_STATUS_CHECK_CONDITION);
			CHECK_EQ(a.sense_len, 18);
			CHECK(a.sense[0] == 0xf0 && a.sense[2] == VS_SK_ILLEGAL_REQUEST && a.sense[12] == 0x21 && !a.sense[18]);
			CHECK_EQ(a.residual, 8 * BLOCK);
			CHECK_EQ(a.written, RESPONSE_BYTES);
		}
	}
	machine_close(&m);
}

/* virtio 1.3, 2.7.4: a device may rely on no framing: the header lies in three pieces, of which the last goes on with the data. */
static void a_header_in_pieces(void)
{
	struct machine_queue *q = &m.queues[Q];
	struct vs_driver_buffer b[5];
	uint8_t header[REQUEST_BYTES] = { 1 }, *p;
	uint32_t head, written;

	open_machine(all_features);
	cdb_write10(header + 19, 5, 2);
	p = vs_guest_ptr(&m.guest, q->slots);
	memcpy(p, header, 3);
	memcpy(p + 100, header + 3, 20);
	memcpy(p + 200, header + 23, REQUEST_BYTES - 23);
	memset(p + 200 + REQUEST_BYTES - 23, 'h', 600);
	memset(p + 2000, 'h', 2 * BLOCK - 600);
	b[0] = (struct vs_driver_buffer){ q->slots, 3 };
	b[1] = (struct vs_driver_buffer){ q->slots + 100, 20 };
	b[2] = (struct vs_driver_buffer){ q->slots + 200, REQUEST_BYTES - 23 + 600 };
	b[3] = (struct vs_driver_buffer){ q->slots + 2000, 2 * BLOCK - 600 };
	b[4] = (struct vs_driver_buffer){ q->slots + 4096, RESPONSE_BYTES };
	CHECK(vs_driver_add(&q->driver, b, 4, 1, false) >= 0);
	machine_kick(&m, Q);
	unit_settle(m.unit);
	CHECK_EQ(vs_driver_collect(&q->driver, &head, &written), 1);
	CHECK_EQ(written, RESPONSE_BYTES);
	CHECK(p[4096 + 10] == VS_STATUS_GOOD && p[4096 + 11] == VS_RESP_OK);
	p = m.unit->medium->data + 5 * BLOCK;
	CHECK(p[0] == 'h' && !memcmp(p, p + 1, 2 * BLOCK - 1) && p[2 * BLOCK] == 0);
	machine_close(&m);
}

static void residuals(void)
{
	struct request r = reading(3, 2), w = writing(3, 2, NULL);
	struct response a;

	open_machine(all_features);
	r.in_length = 5 * BLOCK;
	machine_do(&m, Q, &r, &a);
	is_good(&a, 2 * BLOCK, 3 * BLOCK);
	CHECK_EQ(a.data[2 * BLOCK], 0xee);
	w.out_length = 3 * BLOCK;
	machine_do(&m, Q, &w, &a);
	is_good(&a, 0, BLOCK);
	r.in_length = BLOCK;
	machine_do(&m, Q, &r, &a);
	CHECK_EQ(a.response, VS_RESP_OVERRUN);
	CHECK_EQ(a.status, 0);
	CHECK_EQ(a.residual, BLOCK);
	r = (struct request){ .cdb = { 0x89, [13] = 1 }, .out_length = 2 * BLOCK };
	medium_forget(m.unit->medium);
	machine_do(&m, Q, &r, &a);
	CHECK_EQ(a.status, VS_STATUS_CHECK_CONDITION); /* slots are not zeroed */
	memset(m.unit->medium->data, 0xab, BLOCK);
	uint8_t same[2 * BLOCK];

	memset(same, 0xab, sizeof(same));
	r.out = same;
	machine_do(&m, Q, &r, &a);
	is_good(&a, 0, 0);
	machine_close(&m);
}

/* More requests than a batch, and completions between two looks: each head comes back once, in any order. */
static void many_at_once(uint32_t features, bool threads, bool kicks)
{
	struct machine_options o = { .unit.lu.write_cache = 1, .features = features, .kicks = kicks };
	uint32_t done = 0, sent = 0;
	struct response a;

	o.unit.threads = threads;
	o.unit.spin_us = 20;
	machine_open(&m, &o);
	while (done < 2000) {
		for (uint32_t i = 0; i < 40 && sent < 2000 && sent - done < 60; i++, sent++) {
			struct request r = reading(sent % 100, 1);

			r.indirect = features & VS_RING_INDIRECT && sent % 3;
			machine_send(&m, Q + sent % 2, &r);
		}
		for (uint32_t q = Q; q <= OTHER; q++)
			while (machine_poll(&m, q, &a) >= 0) {
				is_good(&a, BLOCK, 0);
				done++;
			}
		unit_settle(m.unit);
	}
	CHECK_EQ(machine_info(&m, Q).requests + machine_info(&m, OTHER).requests, 2000);
	machine_close(&m);
}

/* ---- addresses ----------------------------------------------------------------------------------------------------------------------------- */

enum found { UNIT, NOWHERE, TO_PYTHON };

static void address(const uint8_t *lun, enum found want, uint16_t target, uint16_t number, uint8_t kind)
{
	struct request r = { .lun_given = true };
	struct vs_task_info info;
	struct response a;

	memcpy(r.lun, lun, 8);
	if (want == TO_PYTHON) {
		vs_task *t;

		machine_send(&m, Q, &r);
		t = unit_wait(m.unit, VS_UP_TASK, 0, &info).task;
		CHECK_EQ(info.target, target);
		CHECK_EQ(info.lun, number);
		CHECK_EQ(info.lun_kind, kind);
		CHECK_EQ(info.nexus_cookie, 0);
		unit_post(m.unit, t, VS_VERDICT_COMPLETE, VS_STATUS_BUSY);
		machine_receive(&m, Q, &a);
		CHECK(a.response == VS_RESP_OK && a.status == VS_STATUS_BUSY);
		return;
	}
	machine_do(&m, Q, &r, &a); /* TEST UNIT READY */
	if (want == UNIT)
		is_good(&a, 0, 0);
	else
		CHECK(a.response == VS_RESP_BAD_TARGET && a.written == RESPONSE_BYTES);
}

static void addresses(void)
{
	struct vs_lun_entry e[3];

	open_machine(all_features);
	e[0] = (struct vs_lun_entry){ .nexus = m.unit->nexus, .target = 0, .lun = 0 };
	e[1] = (struct vs_lun_entry){ .nexus = m.unit->nexus, .target = 255, .lun = 16383 };
	e[2] = (struct vs_lun_entry){ .nexus = m.unit->nexus, .target = 0, .lun = 5 };
	machine_luns(&m, e, 3);
	/* 5.6.6.1 of virtio 1.3; SAM-5 4.7: peripheral device and flat space addressing. */
	address((const uint8_t[8]){ 1, 0, 0, 0 }, UNIT, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0x40, 0 }, UNIT, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0, 5 }, UNIT, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0x40, 5 }, UNIT, 0, 0, 0);
	address((const uint8_t[8]){ 1, 255, 0x7f, 0xff }, UNIT, 0, 0, 0);
	address((const uint8_t[8]){ 1, 255, 0x7f, 0xfe }, TO_PYTHON, 255, 16382, VS_LUN_ABSENT);
	address((const uint8_t[8]){ 1, 0, 0x40, 4 }, TO_PYTHON, 0, 4, VS_LUN_ABSENT);
	address((const uint8_t[8]){ 1, 0, 0x41, 0 }, TO_PYTHON, 0, 256, VS_LUN_ABSENT);
	address((const uint8_t[8]){ 1, 0, 0xc1, 1 }, TO_PYTHON, 0, 0, VS_LUN_REPORT_LUNS);
	address((const uint8_t[8]){ 0xc1, 1 }, TO_PYTHON, 0, 0, VS_LUN_REPORT_LUNS);
	address((const uint8_t[8]){ 0xc1, 2 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 0xc1, 1, 0, 0, 0, 0, 0, 1 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 1, 7 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 0, 0 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 2, 0 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0x80, 0 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0xc0, 0 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0x01, 0 }, NOWHERE, 0, 0, 0); /* another bus */
	address((const uint8_t[8]){ 1, 0, 0, 0, 0x40, 0 }, NOWHERE, 0, 0, 0);
	address((const uint8_t[8]){ 1, 0, 0, 0, 0, 0, 0, 1 }, NOWHERE, 0, 0, 0);
	CHECK_EQ(vs_vdev_set_luns(m.vdev, &(struct vs_lun_entry){ .target = 256 }, 1, 1), -EINVAL);
	CHECK_EQ(vs_vdev_set_luns(m.vdev, &(struct vs_lun_entry){ .lun = 16384 }, 1, 1), -EINVAL);
	machine_luns(&m, NULL, 0);
	address((const uint8_t[8]){ 1, 0, 0, 0 }, NOWHERE, 0, 0, 0);
	machine_close(&m);
}

static void an_attribute_that_does_not_exist(void)
{
	struct request r = reading(0, 1);
	struct response a;

	open_machine(all_features);
	r.attribute = VS_ATTR_ACA + 1;
	machine_do(&m, Q, &r, &a);
	CHECK_EQ(a.response, VS_RESP_FAILURE);
	machine_close(&m);
}

/* SAM-5 5.11: of one nexus, while the first has not ended; whatever else hangs in the same chain of tags. */
static void a_tag_that_is_in_use(void)
{
	struct vs_lun_entry e[2];
	struct vs_task_info info;
	struct request r = reading(0, 1);
	struct response a;
	vs_nexus *other;
	vs_task *t;

	open_machine(all_features);
	CHECK_EQ(vs_nexus_create(m.unit->core, m.unit->lu, 77, &other), 0);
	e[0] = (struct vs_lun_entry){ .nexus = m.unit->nexus, .target = 0, .lun = 0 };
	e[1] = (struct vs_lun_entry){ .nexus = other, .target = 0, .lun = 1 };
	machine_luns(&m, e, 2);
	medium_hold(m.unit->medium, true);
	for (r.tag = 1; r.tag <= 12; r.tag++)
		machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(medium_held(m.unit->medium), 12);
	r.tag = 7;
	r.lun_given = true;
	memcpy(r.lun, (const uint8_t[8]){ 1, 0, 0, 1 }, 8); /* another nexus: another task */
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(medium_held(m.unit->medium), 13);
	r.lun[3] = 0;
	machine_send(&m, Q, &r);
	t = unit_wait(m.unit, VS_UP_TASK, 0, &info).task;
	CHECK(info.overlapped && info.tag == 7 && info.nexus_cookie == 2);
	CHECK_EQ(medium_held(m.unit->medium), 13);
	unit_post(m.unit, t, VS_VERDICT_COMPLETE, VS_STATUS_BUSY);
	machine_receive(&m, Q, &a);
	CHECK_EQ(a.status, VS_STATUS_BUSY);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	for (int i = 0; i < 13; i++) {
		machine_receive(&m, Q, &a);
		CHECK(a.response == VS_RESP_OK && a.status == VS_STATUS_GOOD);
	}
	machine_do(&m, Q, &r, &a); /* it is free again */
	CHECK_EQ(a.status, VS_STATUS_GOOD);
	machine_luns(&m, e, 1);
	unit_settle(m.unit);
	vs_nexus_destroy(other);
	machine_close(&m);
}

/* ---- Python's part -------------------------------------------------------------------------------------------------------------------------- */

static void what_python_sees_and_answers(void)
{
	struct request r = { .cdb = { 0x12, [4] = 36 }, .in_length = 60, .tag = 0xfedcba9876543210ull };
	uint8_t blob[100], list[40];
	struct vs_result result = { .verdict = VS_VERDICT_COMPLETE, .data_offset = 10 };
	struct vs_task_info info;
	struct response a;

	open_machine(all_features);
	for (int i = 0; i < 100; i++)
		blob[i] = (uint8_t)i;
	machine_send(&m, OTHER, &r);
	result.task = unit_wait(m.unit, VS_UP_TASK, 0, &info).task;
	CHECK_EQ(info.nexus_cookie, 2);
	CHECK_EQ(info.port_cookie, m.cookie);
	CHECK_EQ(info.tag, (long long)0xfedcba9876543210ull);
	CHECK_EQ(info.queue, OTHER);
	CHECK_EQ(info.in_length, 60);
	CHECK_EQ(info.out_length, 0);
	CHECK_EQ(info.cdb[0], 0x12);
	CHECK_EQ(info.layer, VS_LAYER_PYTHON);
	CHECK_EQ(machine_info(&m, OTHER).in_flight, 1);
	result.data_length = 36;
	vs_core_post(m.unit->core, &result, 1, blob, sizeof(blob));
	machine_receive(&m, OTHER, &a);
	is_good(&a, 36, 24);
	CHECK(a.data[0] == 10 && a.data[35] == 45 && a.data[36] == 0xee);
	/* More than there is room for is cut. */
	machine_send(&m, OTHER, &r);
	result.task = unit_wait(m.unit, VS_UP_TASK, 0, NULL).task;
	result.data_length = 90;
	vs_core_post(m.unit->core, &result, 1, blob, sizeof(blob));
	machine_receive(&m, OTHER, &a);
	is_good(&a, 60, 0);
	/* Beyond the blob there is nothing. */
	machine_send(&m, OTHER, &r);
	result.task = unit_wait(m.unit, VS_UP_TASK, 0, NULL).task;
	result.data_length = 91;
	vs_core_post(m.unit->core, &result, 1, blob, sizeof(blob));
	machine_receive(&m, OTHER, &a);
	is_good(&a, 0, 60);
	/* Parameter data are a copy. */
	memset(list, 'p', sizeof(list));
	r = (struct request){ .cdb = { 0x15, 0x10, [4] = 40 }, .out = list, .out_length = 40 };
	machine_send(&m, Q, &r);
	result = (struct vs_result){ .task = unit_wait(m.unit, VS_UP_TASK, 0, &info).task, .status = VS_STATUS_CHECK_CONDITION, .sense_length = 200 };
	CHECK(info.param_length == 40 && info.param[0] == 'p' && info.param[39] == 'p');
	memset(result.sense, 's', sizeof(result.sense));
	vs_core_post(m.unit->core, &result, 1, NULL, 0);
	machine_receive(&m, Q, &a);
	CHECK(a.status == VS_STATUS_CHECK_CONDITION && a.sense_len == SENSE_SIZE && a.sense[SENSE_SIZE - 1] == 's' && a.residual == 0);
	/* An abort has no status. */
	machine_send(&m, Q, &r);
	unit_post(m.unit, unit_wait(m.unit, VS_UP_TASK, 0, NULL).task, VS_VERDICT_ABORTED, 0);
	machine_receive(&m, Q, &a);
	CHECK(a.response == VS_RESP_ABORTED && a.status == 0 && a.sense_len == 0);
	/* Told when it has ended. */
	vs_gate_close(m.unit->core, m.unit->lu, NULL, VS_GATE_HOLD);
	r = reading(3, 1);
	machine_send(&m, Q, &r);
	result = (struct vs_result){ .task = unit_wait(m.unit, VS_UP_TASK, 0, &info).task, .verdict = VS_VERDICT_EXECUTE_NOTIFY, .cookie = 4711 };
	CHECK_EQ(info.gate, VS_GATE_HOLD);
	vs_core_post(m.unit->core, &result, 1, NULL, 0);
	CHECK_EQ(unit_wait(m.unit, VS_UP_TASK_DONE, 4711, NULL).aux, VS_STATUS_GOOD);
	CHECK(machine_poll(&m, Q, &a) >= 0);
	is_good(&a, BLOCK, 0);
	CHECK_EQ(vs_gate_open(m.unit->core, m.unit->lu, NULL, VS_GATE_HOLD), 0);
	machine_close(&m);
}

static void tasks_can_be_looked_at(void)
{
	struct vs_task_info infos[4];
	struct request r = reading(9, 1);
	struct response a;
	int head;

	open_machine(all_features);
	r.tag = 0x1122334455667788ull;
	medium_hold(m.unit->medium, true);
	head = machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(vs_worker_snapshot(m.unit->core, m.queues[Q].worker, infos, 4, 900), 0);
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 900, NULL).aux, 1);
	CHECK(infos[0].queue == Q && infos[0].head == (uint32_t)head && infos[0].layer == VS_LAYER_STORE && infos[0].tag == r.tag);
	CHECK_EQ(vs_worker_snapshot(m.unit->core, UNIT_WORKERS, infos, 4, 901), -EINVAL);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	machine_receive(&m, Q, &a);
	is_good(&a, BLOCK, 0);
	machine_close(&m);
}

/* What stands in a ring when the TMF arrives was sent before it: it is taken, and ends with it. */
static void an_abort_takes_what_the_ring_holds(void)
{
	struct vs_tmf tmf = { .port_cookie = 77, .match = VS_TMF_PORT | VS_TMF_LU, .action = VS_TMF_ABORT, .response = VS_RESP_RESET, .cookie = 910 };
	struct request r = reading(9, 1);
	struct response a;
	uint64_t matched = 0;

	open_machine(all_features);
	tmf.lu = m.unit->lu;
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &r);
	machine_send(&m, OTHER, &r);
	medium_forget(m.unit->medium);
	vs_tmf_post(m.unit->core, &tmf);
	for (int i = 0; i < UNIT_WORKERS; i++)
		matched += unit_wait(m.unit, VS_UP_DONE, 910, NULL).aux;
	CHECK_EQ(matched, 2);
	CHECK_EQ(m.unit->medium->nlog, 0);
	medium_hold(m.unit->medium, false);
	for (uint32_t q = Q; q <= OTHER; q++) {
		CHECK(machine_poll(&m, q, &a) >= 0);
		CHECK(a.response == VS_RESP_RESET && a.status == 0);
		works(&m, q);
	}
	machine_close(&m);
}

static struct request unmapping(uint8_t *list, uint32_t first, uint32_t blocks, uint32_t other)
{
	struct request r = { .cdb = { 0x42, [8] = 56 }, .out = list, .out_length = 56 };

	memset(list, 0, 56);
	list[3] = 48;
	vs_put_be64(list + 8, first);
	vs_put_be32(list + 16, blocks);
	vs_put_be64(list + 24, 5000); /* of no blocks: touches nothing */
	vs_put_be64(list + 40, other);
	vs_put_be32(list + 48, blocks);
	return r;
}

/* UNMAP is locked from its first block to its last; who waits for a lock can be aborted. */
static void an_unmap_waits_for_an_exclusive_command(void)
{
	struct request caw = { .cdb = { 0x89, [9] = 20, [13] = 1 }, .out_length = 2 * BLOCK }, r;
	struct vs_tmf tmf = { .match = VS_TMF_TAG | VS_TMF_NEXUS, .action = VS_TMF_ABORT, .response = VS_RESP_ABORTED, .tag = 99, .cookie = 920 };
	static const uint8_t zeroes[2 * BLOCK];
	uint8_t list[56];
	struct response a;

	machine_open(&m, &(struct machine_options){ .unit.lu.unmap = 1, .unit.info = { .unmap = VS_CAP_NATIVE }, .features = all_features });
	tmf.nexus = m.unit->nexus;
	caw.out = zeroes;
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &caw);
	unit_settle(m.unit);
	CHECK_EQ(medium_held(m.unit->medium), 1);
	r = unmapping(list, 10, 5, 19); /* 10..23 */
	r.tag = 98;
	machine_send(&m, OTHER, &r);
	r.tag = 99;
	machine_send(&m, OTHER, &r);
	unit_settle(m.unit);
	CHECK_EQ(medium_held(m.unit->medium), 1);
	r = unmapping(list, 21, 0, 0);
	machine_do(&m, OTHER, &r, &a);
	CHECK_EQ(a.status, VS_STATUS_GOOD);
	vs_tmf_post(m.unit->core, &tmf);
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 920, NULL).err + unit_wait(m.unit, VS_UP_DONE, 920, NULL).err, 0);
	CHECK(machine_poll(&m, OTHER, &a) >= 0);
	CHECK_EQ(a.response, VS_RESP_ABORTED);
	r = unmapping(list, 21, 2, 24); /* beyond */
	machine_send(&m, OTHER, &r);
	unit_settle(m.unit);
	CHECK_EQ(medium_held(m.unit->medium), 2);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	machine_receive(&m, Q, &a);
	is_good(&a, 0, 0);
	for (int i = 0; i < 2; i++) {
		machine_receive(&m, OTHER, &a);
		is_good(&a, 0, 0);
	}
	unit_settle(m.unit);
	CHECK_EQ(vs_gate_read(m.unit->lu, NULL), 0);
	machine_close(&m);
}

/* ---- control and event queues ---------------------------------------------------------------------------------------------------------------- */

/* A chain of one readable and one writable buffer: its head. */
static int raw(uint32_t queue, uint64_t at, uint32_t out, uint32_t in)
{
	struct vs_driver_buffer b[2] = { { at, out }, { at + 2048, in } };
	int head = vs_driver_add(&m.queues[queue].driver, out ? b : b + 1, out ? 1 : 0, in ? 1 : 0, false);

	CHECK(head >= 0);
	machine_kick(&m, queue);
	return head;
}

static int collect(uint32_t queue, uint32_t *written)
{
	uint32_t head;
	int n;

	for (int i = 0; i < 1000; i++) {
		n = vs_driver_collect(&m.queues[queue].driver, &head, written);
		CHECK(n >= 0);
		if (n)
			return (int)head;
		unit_settle(m.unit);
	}
	return -1;
}

static void the_control_queue(void)
{
	uint64_t at;
	uint8_t *p, answer[100];
	struct vs_ctrl_info info;
	uint32_t written;
	vs_ctrl *first, *second;
	int a, b;

	open_machine(all_features);
	at = m.queues[VS_QUEUE_CONTROL].slots;
	p = vs_guest_ptr(&m.guest, at);
	memset(p, 't', 4096);
	memset(answer, 'A', sizeof(answer));
	a = raw(VS_QUEUE_CONTROL, at, 24, 1);
	first = unit_wait(m.unit, VS_UP_CTRL, m.cookie, NULL).ctrl;
	vs_ctrl_info(first, &info);
	CHECK(info.port_cookie == m.cookie && info.queue == VS_QUEUE_CONTROL && info.out_length == 24 && info.in_length == 1 && info.out[23] == 't');
	/* More than anybody sends is cut, and the second may be answered first. */
	b = raw(VS_QUEUE_CONTROL, at + 8192, 100, 200);
	second = unit_wait(m.unit, VS_UP_CTRL, m.cookie, NULL).ctrl;
	vs_ctrl_info(second, &info);
	CHECK(info.out_length == VS_CTRL_BYTES && info.in_length == VS_CTRL_BYTES);
	vs_ctrl_reply(m.unit->core, second, answer, sizeof(answer));
	CHECK_EQ(collect(VS_QUEUE_CONTROL, &written), b);
	CHECK_EQ(written, VS_CTRL_BYTES);
	/* A stop waits for the other. */
	CHECK_EQ(vs_queue_stop(m.vdev, VS_QUEUE_CONTROL, 333), 0);
	unit_settle(m.unit);
	CHECK(!unit_has(m.unit, VS_UP_DONE));
	vs_ctrl_reply(m.unit->core, first, answer, sizeof(answer));
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 333, NULL).aux, layout ? 0x80048004 : 2);
	CHECK_EQ(collect(VS_QUEUE_CONTROL, &written), a);
	CHECK_EQ(written, 1);
	CHECK(p[2048] == 'A' && p[2049] == 't');
	CHECK_EQ(machine_start(&m, VS_QUEUE_CONTROL, false), 0);
	machine_close(&m);
}

static int post_event(const uint8_t *event)
{
	CHECK_EQ(vs_vdev_event(m.vdev, event, 444), 0);
	return unit_wait(m.unit, VS_UP_DONE, 444, NULL).err;
}

/* Buffers that wait, or a negative code. */
static int event_room(void)
{
	struct vs_upcall up;

	CHECK_EQ(vs_vdev_event_room(m.vdev, 445), 0);
	up = unit_wait(m.unit, VS_UP_DONE, 445, NULL);
	return up.err ? up.err : (int)up.aux;
}

/* The next buffer that comes back has this in it. */
static void got_event(int head, uint64_t at, const uint8_t *event)
{
	uint32_t written;

	CHECK_EQ(collect(VS_QUEUE_EVENT, &written), head);
	CHECK_EQ(written, VS_EVENT_BYTES);
	CHECK(!memcmp(vs_guest_ptr(&m.guest, at + 2048), event, VS_EVENT_BYTES));
}

static void events_that_were_missed(void)
{
	const uint8_t event[VS_EVENT_BYTES] = { 1, 0, 0, 0, 1, 7 }, late[VS_EVENT_BYTES] = { 1, 0, 0, 0x80, 1, 7 }, nothing[VS_EVENT_BYTES] = { [3] = 0x80 };
	uint64_t at;
	int a, b;

	machine_open(&m, &(struct machine_options){ .unit.lu.write_cache = 1, .features = all_features, .kicks = true });
	at = m.queues[VS_QUEUE_EVENT].slots;
	/* A driver that posts late hears of it at once, and only once. */
	CHECK_EQ(post_event(event), -ENOBUFS);
	CHECK_EQ(post_event(event), -ENOBUFS);
	a = raw(VS_QUEUE_EVENT, at, 0, VS_EVENT_BYTES);
	got_event(a, at, nothing);
	b = raw(VS_QUEUE_EVENT, at + 4096, 0, VS_EVENT_BYTES);
	CHECK_EQ(post_event(event), 0);
	got_event(b, at + 4096, event);
	/* What was dropped while the ring stood still is told when it runs, buffers being there. */
	a = raw(VS_QUEUE_EVENT, at, 0, VS_EVENT_BYTES);
	CHECK_EQ(vs_queue_enable(m.vdev, VS_QUEUE_EVENT, 0, 446), 0);
	unit_wait(m.unit, VS_UP_DONE, 446, NULL);
	CHECK_EQ(event_room(), -ENOBUFS);
	CHECK_EQ(post_event(event), -ENOBUFS);
	CHECK_EQ(vs_queue_enable(m.vdev, VS_QUEUE_EVENT, 1, 446), 0);
	unit_wait(m.unit, VS_UP_DONE, 446, NULL);
	got_event(a, at, nothing);
	/* A driver that came anew has missed nothing. */
	CHECK_EQ(post_event(event), -ENOBUFS);
	CHECK_EQ(vs_vdev_events_forget(m.vdev, 447), 0);
	unit_wait(m.unit, VS_UP_DONE, 447, NULL);
	b = raw(VS_QUEUE_EVENT, at + 4096, 0, VS_EVENT_BYTES);
	unit_settle(m.unit);
	CHECK_EQ(event_room(), 1);
	CHECK_EQ(post_event(event), 0);
	got_event(b, at + 4096, event);
	/* Not kicked for, and there before the next event: it says both. */
	CHECK_EQ(post_event(event), -ENOBUFS);
	machine_stop(&m, VS_QUEUE_EVENT);
	CHECK_EQ(post_event(event), -ENOBUFS);
	CHECK_EQ(machine_start(&m, VS_QUEUE_EVENT, false), 0);
	a = vs_driver_add(&m.queues[VS_QUEUE_EVENT].driver, &(struct vs_driver_buffer){ at + 2048, VS_EVENT_BYTES }, 0, 1, false);
	CHECK(a >= 0);
	vs_driver_publish(&m.queues[VS_QUEUE_EVENT].driver);
	CHECK_EQ(post_event(event), 0);
	got_event(a, at, late);
	machine_close(&m);
}

static void the_event_queue(void)
{
	const uint8_t event[VS_EVENT_BYTES] = "0123456789abcde";
	struct vs_vdev_params params = { .num_queues = 3, .cdb_size = 32, .sense_size = 96, .credit = 1 };
	uint32_t written;
	uint64_t at;
	vs_vdev *never;
	int a, b;

	open_machine(all_features);
	CHECK_EQ(vs_vdev_create(m.unit->core, &params, &never), 0);
	CHECK_EQ(vs_vdev_event(never, event, 1), -ENOBUFS);
	a = eventfd(0, EFD_CLOEXEC);
	CHECK_EQ(vs_queue_set_kick(never, Q, a, 1), -EINVAL);
	CHECK(fcntl(a, F_GETFD) < 0); /* it owns what it is given, whatever it says */
	vs_vdev_destroy(never);
	at = m.queues[VS_QUEUE_EVENT].slots;
	a = raw(VS_QUEUE_EVENT, at, 0, 16);
	b = raw(VS_QUEUE_EVENT, at + 4096, 0, 7);
	unit_settle(m.unit);
	CHECK_EQ(machine_info(&m, VS_QUEUE_EVENT).in_flight, 0);
	CHECK_EQ(event_room(), 2);
	CHECK_EQ(post_event(event), 0);
	CHECK_EQ(collect(VS_QUEUE_EVENT, &written), a);
	CHECK_EQ(written, 16);
	CHECK(!memcmp(vs_guest_ptr(&m.guest, at + 2048), event, 16));
	CHECK_EQ(post_event(event), 0);
	CHECK_EQ(collect(VS_QUEUE_EVENT, &written), b);
	CHECK_EQ(written, 7);
	CHECK_EQ(event_room(), 0);
	CHECK_EQ(post_event(event), -ENOBUFS);
	CHECK_EQ(vs_vdev_events_forget(m.vdev, 446), 0);
	unit_wait(m.unit, VS_UP_DONE, 446, NULL);
	/* A broken event queue is no reason to fail anybody else. */
	a = raw(VS_QUEUE_EVENT, 1, 0, 16);
	CHECK_EQ(post_event(event), -EIO);
	broke(&m, VS_QUEUE_EVENT, VS_RULE_UNMAPPED);
	CHECK_EQ(post_event(event), -ENOBUFS);
	works(&m, Q);
	machine_stop(&m, VS_QUEUE_EVENT);
	CHECK_EQ(post_event(event), -ENOBUFS);
	machine_close(&m);
}

/* ---- credit ------------------------------------------------------------------------------------------------------------------------------------ */

static void a_device_without_credit_waits(void)
{
	struct request r = { .cdb = { 0x12 } };
	struct response a;
	vs_task *first;

	machine_open(&m, &(struct machine_options){ .credit = 1, .features = all_features });
	machine_open(&beside, &(struct machine_options){ .credit = 1, .features = all_features, .beside = &m });
	machine_send(&m, Q, &r);
	machine_send(&m, Q, &r);
	machine_send(&m, OTHER, &r);
	first = unit_wait(m.unit, VS_UP_TASK, 0, NULL).task;
	unit_settle(m.unit);
	CHECK(!unit_has(m.unit, VS_UP_TASK));
	CHECK(machine_info(&m, Q).stalled && machine_info(&m, OTHER).stalled);
	/* Nobody else is held up. */
	works(&beside, Q);
	machine_send(&beside, Q, &r);
	unit_post(m.unit, unit_wait(m.unit, VS_UP_TASK, 0, NULL).task, VS_VERDICT_COMPLETE, 0);
	machine_receive(&beside, Q, &a);
	for (int i = 0; i < 2; i++) {
		unit_post(m.unit, first, VS_VERDICT_COMPLETE, 0);
		first = unit_wait(m.unit, VS_UP_TASK, 0, NULL).task;
	}
	unit_post(m.unit, first, VS_VERDICT_COMPLETE, 0);
	machine_receive(&m, OTHER, &a);
	machine_receive(&m, Q, &a);
	machine_receive(&m, Q, &a);
	unit_settle(m.unit);
	CHECK(!machine_info(&m, Q).stalled && !machine_info(&m, OTHER).stalled);
	machine_close(&beside);
	machine_close(&m);
}

/* What was popped and had no credit goes back: whoever starts the ring next takes it again. */
static void a_stop_gives_back_what_is_stalled(void)
{
	struct request r = { .cdb = { 0x12 }, .response_pieces = 50 };
	struct response a;
	vs_task *first;
	uint32_t base;

	machine_open(&m, &(struct machine_options){ .credit = 1, .features = all_features });
	for (int i = 0; i < 3; i++)
		machine_send(&m, Q, &r);
	first = unit_wait(m.unit, VS_UP_TASK, 0, NULL).task;
	unit_settle(m.unit);
	CHECK_EQ(vs_queue_stop(m.vdev, Q, 555), 0);
	unit_settle(m.unit);
	CHECK(!unit_has(m.unit, VS_UP_DONE));
	unit_post(m.unit, first, VS_VERDICT_COMPLETE, 0);
	base = (uint32_t)unit_wait(m.unit, VS_UP_DONE, 555, NULL).aux;
	/* One was taken and used. Packed: of as many descriptors as its list has, and both sides' places are there. */
	if (layout)
		CHECK(base != 0x80008000 && base >> 16 == (base & 0xffff));
	else
		CHECK_EQ(base, 1);
	CHECK(!unit_has(m.unit, VS_UP_TASK));
	machine_receive(&m, Q, &a);
	{
		struct vs_queue_params params;

		vs_driver_params(&m.queues[Q].driver, &params);
		params.base = base;
		params.enabled = 1;
		CHECK_EQ(vs_queue_start(m.vdev, Q, &params, m.map, 556), 0);
		CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 556, NULL).err, 0);
	}
	for (int i = 0; i < 2; i++) {
		unit_post(m.unit, unit_wait(m.unit, VS_UP_TASK, 0, NULL).task, VS_VERDICT_COMPLETE, 0);
		machine_receive(&m, Q, &a);
		CHECK_EQ(a.response, VS_RESP_OK);
	}
	machine_close(&m);
}

/* ---- drivers that break rules ------------------------------------------------------------------------------------------------------------------- */

static void put_avail(struct machine *d, uint32_t queue, uint16_t head, uint16_t ahead)
{
	struct vs_driver *r = &d->queues[queue].driver;

	if (vs_driver_packed(r)) {
		struct vs_packed_desc *desc = &r->ring[vs_packed_index(r->avail_idx)];

		/* More than one: a list, of which no more stands there. */
		*desc = (struct vs_packed_desc){ d->queues[queue].slots, 512, head, desc->flags };
		vs_shared_store(&desc->flags, (uint16_t)(vs_packed_avail_flags(r->avail_idx) | (ahead > 1 ? VS_DESC_NEXT : 0)), __ATOMIC_RELEASE);
		return;
	}
	r->avail->ring[r->avail_idx & (r->size - 1)] = head;
	__atomic_store_n(&r->avail->idx, (uint16_t)(r->avail_idx + ahead), __ATOMIC_RELEASE);
}

static void short_chain(uint32_t out, uint32_t in)
{
	raw(Q, m.queues[Q].slots, out, in);
	broke(&m, Q, VS_RULE_REQUEST_SHORT);
	works(&m, OTHER);
	revive(&m, Q);
}

static void broken_rings(void)
{
	struct request r = reading(3, 1);
	struct response a;
	int head;

	open_machine(all_features);
	short_chain(REQUEST_BYTES - 1, RESPONSE_BYTES);
	short_chain(REQUEST_BYTES, RESPONSE_BYTES - 1);
	short_chain(REQUEST_BYTES, 0);
	short_chain(0, RESPONSE_BYTES);
	put_avail(&m, Q, 0, 257);
	broke(&m, Q, layout ? VS_RULE_AVAIL_FLAGS : VS_RULE_AVAIL_JUMP);
	revive(&m, Q);
	put_avail(&m, Q, 256, 1);
	broke(&m, Q, VS_RULE_HEAD_RANGE);
	revive(&m, Q);
	raw(Q, VS_GUEST_ADDR + m.guest.size - 10, 24, 0);
	broke(&m, Q, VS_RULE_UNMAPPED);
	revive(&m, Q);
	/* A head that is still in flight; what is in flight ends all the same. */
	medium_hold(m.unit->medium, true);
	head = machine_send(&m, Q, &r);
	unit_settle(m.unit);
	put_avail(&m, Q, (uint16_t)head, 1);
	broke(&m, Q, VS_RULE_HEAD_BUSY);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	CHECK_EQ(machine_receive(&m, Q, &a), head);
	is_good(&a, BLOCK, 0);
	works(&m, OTHER);
	revive(&m, Q);
	machine_close(&m);
}

static void an_error_descriptor_is_signalled(void)
{
	int err = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	eventfd_t n;

	open_machine(all_features);
	CHECK_EQ(vs_queue_set_err(m.vdev, Q, dup(err), 600), 0);
	unit_wait(m.unit, VS_UP_DONE, 600, NULL);
	put_avail(&m, Q, 0, 300);
	broke(&m, Q, layout ? VS_RULE_AVAIL_FLAGS : VS_RULE_AVAIL_JUMP);
	CHECK_EQ(eventfd_read(err, &n), 0);
	close(err);
	machine_close(&m);
}

/* Long chains wait for room of their own queue's; they break nothing and hold up nobody. */
static void a_quota_of_segments(void)
{
	enum { PIECES = 600, CHAINS = 150 };
	struct vs_driver_buffer b[PIECES + 2];
	struct machine_queue *q = &m.queues[Q];
	uint32_t written, ended = 0;
	uint8_t *h;

	machine_open(&m, &(struct machine_options){ .unit.lu.write_cache = 1, .features = all_features, .indirect_entries = 1024 });
	h = vs_guest_ptr(&m.guest, q->slots + SLOT_BYTES);
	memset(h, 0, CHAINS * 64);
	medium_hold(m.unit->medium, true);
	b[1] = (struct vs_driver_buffer){ q->slots + 1024, RESPONSE_BYTES };
	for (uint32_t i = 0; i < PIECES; i++)
		b[2 + i] = (struct vs_driver_buffer){ q->slots + SLOT_DATA + 2 * i, 1 };
	for (int i = 0; i < CHAINS; i++) {
		h[i * 64] = 1;
		h[i * 64 + 8] = (uint8_t)i; /* the tag */
		cdb_read10(h + i * 64 + 19, 3, 1);
		b[0] = (struct vs_driver_buffer){ q->slots + SLOT_BYTES + (uint64_t)i * 64, REQUEST_BYTES };
		CHECK(vs_driver_add(&q->driver, b, 1, 1 + PIECES, true) >= 0);
	}
	machine_kick(&m, Q);
	unit_settle(m.unit);
	CHECK(medium_held(m.unit->medium) > 32 && medium_held(m.unit->medium) < CHAINS);
	CHECK(!machine_info(&m, Q).broken);
	for (int i = 0; i < 100 && ended < CHAINS; i++) {
		uint32_t head;

		medium_release(m.unit->medium);
		unit_settle(m.unit);
		for (; vs_driver_collect(&q->driver, &head, &written) == 1; ended++)
			CHECK_EQ(written, RESPONSE_BYTES + BLOCK);
	}
	CHECK_EQ(ended, CHAINS);
	medium_hold(m.unit->medium, false);
	works(&m, Q);
	machine_close(&m);
}

/* ---- what is done to running queues -------------------------------------------------------------------------------------------------------------- */

static void a_stop_waits_for_what_is_in_flight(bool kicks)
{
	struct request r = reading(3, 1);
	struct response a;

	machine_open(&m, &(struct machine_options){ .features = all_features, .kicks = kicks });
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &r);
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(vs_queue_stop(m.vdev, Q, 700), 0);
	machine_send(&m, Q, &r); /* comes too late */
	unit_settle(m.unit);
	CHECK(!unit_has(m.unit, VS_UP_DONE));
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 700, NULL).aux, layout ? 0x80068006 : 2);
	CHECK(machine_poll(&m, Q, &a) >= 0 && machine_poll(&m, Q, &a) >= 0 && machine_poll(&m, Q, &a) < 0);
	CHECK(!machine_info(&m, Q).started);
	/* Stopped once more: the same answer. */
	CHECK_EQ(machine_stop(&m, Q), layout ? 0x80068006 : 2);
	works(&m, OTHER);
	machine_close(&m);
}

static void a_disabled_queue_waits(void)
{
	struct request r = reading(3, 1);
	struct response a;

	open_machine(all_features);
	CHECK_EQ(vs_queue_enable(m.vdev, Q, 0, 710), 0);
	unit_wait(m.unit, VS_UP_DONE, 710, NULL);
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK(machine_poll(&m, Q, &a) < 0 && !machine_info(&m, Q).enabled);
	CHECK_EQ(vs_queue_enable(m.vdev, Q, 1, 711), 0);
	machine_receive(&m, Q, &a);
	is_good(&a, BLOCK, 0);
	machine_close(&m);
}

static int new_eventfd(int *ours)
{
	if (*ours >= 0)
		close(*ours);
	*ours = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(*ours >= 0);
	return dup(*ours);
}

static bool interrupted(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

/* Under load, on sleeping and on busy workers: no request is lost, and the new call descriptor hears of what the old one was told. */
static void descriptors_are_replaced_while_running(uint32_t engine)
{
	struct machine_options o = { .unit.threads = true, .unit.engine = engine, .features = all_features, .kicks = true };
	struct machine_queue *q = &m.queues[Q];
	struct response a;

	machine_open(&m, &o);
	for (int i = 0; i < 60; i++) {
		struct request r = reading(3, 1);
		int sent = 4;

		for (int k = 0; k < sent; k++)
			machine_send(&m, Q, &r);
		if (i % 3 != 1) {
			CHECK_EQ(vs_queue_set_kick(m.vdev, Q, new_eventfd(&q->kick_fd), 800), 0);
			CHECK_EQ(eventfd_write(q->kick_fd, 1), 0); /* as a driver does that does not know which one was heard */
		}
		if (i % 3 == 2) { /* two in a row */
			unit_settle(m.unit);
			CHECK_EQ(vs_queue_set_kick(m.vdev, Q, dup(q->kick_fd), 801), 0);
			CHECK_EQ(vs_queue_set_kick(m.vdev, Q, dup(q->kick_fd), 802), 0);
		}
		if (i % 3 != 0) {
			CHECK_EQ(vs_queue_set_call(m.vdev, Q, new_eventfd(&q->call_fd), 803), 0);
			CHECK(interrupted(q->call_fd, 5000));
		}
		while (sent--) {
			machine_receive(&m, Q, &a);
			is_good(&a, BLOCK, 0);
		}
		unit_settle(m.unit);
		m.unit->nups = 0;
	}
	/* Without one the ring is polled, and heard again with one. */
	CHECK_EQ(vs_queue_set_kick(m.vdev, Q, -1, 804), 0);
	unit_settle(m.unit);
	works(&m, Q);
	CHECK_EQ(vs_queue_set_kick(m.vdev, Q, new_eventfd(&q->kick_fd), 805), 0);
	unit_settle(m.unit);
	works(&m, Q);
	CHECK(interrupted(q->call_fd, 5000));
	machine_close(&m);
}

/* The kick descriptor changes while the stop waits: nothing of the queue may go before the last request has ended. */
static void a_kick_is_replaced_during_a_stop(bool before)
{
	struct request r = reading(3, 1);
	int first = -1, fds[2];
	struct response a;
	char c;

	machine_open(&m, &(struct machine_options){ .features = all_features, .kicks = true });
	CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(machine_info(&m, Q).in_flight, 1);
	if (before)
		CHECK_EQ(vs_queue_set_kick(m.vdev, Q, fds[0], 720), 0);
	CHECK_EQ(vs_queue_stop(m.vdev, Q, 721), 0);
	if (!before)
		CHECK_EQ(vs_queue_set_kick(m.vdev, Q, fds[0], 720), 0);
	CHECK_EQ(vs_queue_set_call(m.vdev, Q, new_eventfd(&first), 722), 0);
	unit_settle(m.unit);
	unit_wait(m.unit, VS_UP_DONE, 720, NULL);
	unit_wait(m.unit, VS_UP_DONE, 722, NULL);
	CHECK(!unit_has(m.unit, VS_UP_DONE));
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	CHECK_EQ(unit_wait(m.unit, VS_UP_DONE, 721, NULL).aux, layout ? 0x80038003 : 1);
	CHECK(machine_poll(&m, Q, &a) >= 0);
	is_good(&a, BLOCK, 0);
	unit_settle(m.unit);
	/* Nobody kept it: the other end of the pipe notices. */
	c = 0;
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(fds[1], &c, 1) < 0 && errno == EPIPE);
	close(fds[1]);
	close(first);
	/* As little as what comes after the stop. */
	CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	CHECK_EQ(vs_queue_set_kick(m.vdev, Q, fds[0], 723), 0);
	unit_wait(m.unit, VS_UP_DONE, 723, NULL);
	CHECK(write(fds[1], &c, 1) < 0 && errno == EPIPE);
	close(fds[1]);
	machine_close(&m);
}

static void a_kick_that_cannot_be_waited_for(void)
{
	char path[] = "/tmp/test-vdev-XXXXXX";
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	unlink(path);
	open_machine(all_features);
	CHECK_EQ(vs_queue_set_kick(m.vdev, Q, fd, 730), 0);
	broke(&m, Q, VS_RULE_KICK);
	works(&m, OTHER);
	machine_close(&m);
}

static void starts_that_fail(void)
{
	struct vs_queue_params good, p;
	struct vs_queue_info info;

	open_machine(all_features);
	vs_driver_params(&m.queues[Q].driver, &good);
	CHECK_EQ(vs_queue_start(m.vdev, Q, &good, m.map, 1), -EBUSY);
	machine_stop(&m, Q);
	for (int i = 0; i < 4; i++) {
		p = good;
		p.kick_fd = eventfd(0, 0);
		p.call_fd = eventfd(0, 0);
		p.err_fd = eventfd(0, 0);
		if (i == 0)
			p.size = 0;
		if (i == 1)
			p.size = layout ? VS_QUEUE_MAX + 1 : 100; /* 100 is as good as any for a packed ring */
		if (i == 2)
			p.size = 2 * VS_QUEUE_MAX;
		if (i == 3)
			p.worker = UNIT_WORKERS;
		CHECK_EQ(vs_queue_start(m.vdev, Q, &p, m.map, 1), -EINVAL);
		CHECK(fcntl(p.kick_fd, F_GETFD) < 0 && fcntl(p.call_fd, F_GETFD) < 0 && fcntl(p.err_fd, F_GETFD) < 0);
	}
	for (int i = 0; i < 4; i++) {
		static const int rule[] = { VS_RULE_RING_UNMAPPED, VS_RULE_RING_UNMAPPED, VS_RULE_RING_UNMAPPED, VS_RULE_RING_ALIGN };

		p = good;
		p.kick_fd = eventfd(0, 0);
		p.call_fd = eventfd(0, 0);
		*(i == 0 ? &p.desc : i == 1 ? &p.avail : &p.used) = i == 3 ? p.used + 2 : VS_GUEST_USER_ADDR + m.guest.size;
		CHECK_EQ(vs_queue_start(m.vdev, Q, &p, m.map, 740), 0);
		CHECK_EQ(-unit_wait(m.unit, VS_UP_DONE, 740, NULL).err, rule[i]);
		CHECK(fcntl(p.kick_fd, F_GETFD) < 0 && fcntl(p.call_fd, F_GETFD) < 0);
		CHECK(!machine_info(&m, Q).started);
	}
	CHECK_EQ(vs_queue_start(m.vdev, MACHINE_QUEUES, &good, m.map, 1), -EINVAL);
	CHECK_EQ(vs_queue_stop(m.vdev, MACHINE_QUEUES, 1), -EINVAL);
	CHECK_EQ(vs_queue_set_map(m.vdev, MACHINE_QUEUES, m.map, 1), -EINVAL);
	CHECK_EQ(vs_queue_info(m.vdev, MACHINE_QUEUES, &info), -EINVAL);
	CHECK_EQ(machine_start(&m, Q, false), 0);
	works(&m, Q);
	machine_close(&m);
}

static void devices_that_cannot_be(void)
{
	const struct vs_vdev_params good = { .num_queues = 3, .cdb_size = 32, .sense_size = 96, .credit = 1 };
	vs_vdev *d;

	open_machine(0);
	for (int i = 0; i < 7; i++) {
		struct vs_vdev_params p = good;

		*(i < 2 ? &p.num_queues : i < 4 ? &p.cdb_size : i < 6 ? &p.sense_size : &p.credit) = (const uint32_t[]){ 2, 1025, 15, 256, 17, 253, 0 }[i];
		CHECK_EQ(vs_vdev_create(m.unit->core, &p, &d), -EINVAL);
	}
	machine_close(&m);
}

/* ---- memory that changes ---------------------------------------------------------------------------------------------------------------------------- */

static int set_map(vs_memmap *map)
{
	int err = 0;

	for (uint32_t i = 0; i < MACHINE_QUEUES; i++) {
		CHECK_EQ(vs_queue_set_map(m.vdev, i, map, 750), 0);
		err = vs_min(err, unit_wait(m.unit, VS_UP_DONE, 750, NULL).err);
	}
	return err;
}

/* Requests of the old table go on in it; it is let go with the last of them. */
static void a_new_table_while_requests_are_in_flight(void)
{
	struct request r = reading(3, 1);
	struct response a;
	vs_memmap *old;

	open_machine(all_features);
	old = m.map;
	CHECK_EQ(vs_memmap_create(m.unit->core, m.guest.regions, m.guest.nregions, NULL, 89, &m.map), 0);
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	vs_pins_watch(vs_memmap_pins(old), 760, 1);
	CHECK_EQ(set_map(m.map), 0);
	CHECK(vs_pins_busy(vs_memmap_pins(old)));
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	machine_receive(&m, Q, &a);
	is_good(&a, BLOCK, 0);
	unit_wait(m.unit, VS_UP_DRAINED, 760, NULL);
	CHECK(!vs_pins_busy(vs_memmap_pins(old)));
	vs_memmap_destroy(old);
	works(&m, Q);
	works(&m, OTHER);
	machine_close(&m);
}

/* The ring itself is not in the new table: what is in flight ends, and nobody writes to where the ring was. */
static void a_new_table_without_the_rings(void)
{
	struct request r = reading(3, 1);
	struct vs_region far = { 0 };
	struct response a;
	vs_memmap *map;

	open_machine(all_features);
	far = m.guest.regions[0];
	far.user_addr += 1ull << 40;
	CHECK_EQ(vs_memmap_create(m.unit->core, &far, 1, NULL, 90, &map), 0);
	medium_hold(m.unit->medium, true);
	machine_send(&m, Q, &r);
	unit_settle(m.unit);
	CHECK_EQ(-set_map(map), VS_RULE_RING_UNMAPPED);
	for (uint32_t i = 0; i < MACHINE_QUEUES; i++)
		CHECK_EQ(-unit_wait(m.unit, VS_UP_QUEUE_ERROR, m.cookie, NULL).err, VS_RULE_RING_UNMAPPED);
	medium_hold(m.unit->medium, false);
	medium_release(m.unit->medium);
	unit_settle(m.unit);
	CHECK(machine_poll(&m, Q, &a) < 0);
	CHECK_EQ(machine_info(&m, Q).broken, 1);
	for (uint32_t i = 0; i < MACHINE_QUEUES; i++)
		machine_stop(&m, i);
	CHECK(!vs_pins_busy(vs_memmap_pins(map)) && !vs_pins_busy(vs_memmap_pins(m.map)));
	vs_memmap_destroy(map);
	vs_driver_reset(&m.queues[Q].driver, 0);
	m.queues[Q].free_slots = ~UINT64_C(0);
	CHECK_EQ(machine_start(&m, Q, false), 0);
	works(&m, Q);
	machine_close(&m);
}

/* The file behind guest memory gets shorter under requests that name what is gone: that device stops, the other does not notice. */
static void memory_is_truncated_under_load(uint32_t engine)
{
	struct machine_options o = { .unit.threads = true, .unit.engine = engine, .features = all_features, .kicks = true };
	struct machine_queue *victim = &m.queues[MACHINE_QUEUES - 1];

	machine_open(&m, &o);
	o.beside = &m;
	machine_open(&beside, &o);
	for (int i = 0; i < 20; i++) {
		struct request r = reading(3, 1), w = writing(4, 1, NULL);

		r.unseen = w.unseen = true;
		machine_send(&m, MACHINE_QUEUES - 1, i % 2 ? &r : &w);
	}
	CHECK_EQ(ftruncate(m.guest.fd, (off_t)(victim->slots - VS_GUEST_ADDR)), 0);
	machine_kick(&m, MACHINE_QUEUES - 1);
	for (int i = 0; i < 50; i++) {
		works(&beside, Q);
		works(&beside, OTHER);
	}
	/* The rule names who is to blame, not the zeroes that were read. */
	CHECK_EQ(unit_wait(m.unit, VS_UP_QUEUE_ERROR, m.cookie, NULL).err, -VS_RULE_MEMORY_GONE);
	CHECK_EQ(machine_info(&m, MACHINE_QUEUES - 1).error, -VS_RULE_MEMORY_GONE);
	CHECK(vs_memmap_broken(m.map) && !vs_memmap_broken(beside.map));
	CHECK(!machine_info(&beside, Q).broken);
	/* Its stop ends like any other. */
	machine_close(&beside);
	machine_close(&m);
}

/* ---- sleep --------------------------------------------------------------------------------------------------------------------------------------------- */

static void workers_that_sleep_and_spin(uint32_t engine)
{
	static const struct { uint32_t mode, spin_us; bool kicks; } ways[] = {
		{ VS_POLL_ADAPTIVE, 0, true }, { VS_POLL_ADAPTIVE, 50, true }, { VS_POLL_NEVER, 0, true }, { VS_POLL_ALWAYS, 0, true },
		{ VS_POLL_ADAPTIVE, 0, false }, { VS_POLL_NEVER, 0, false }, { VS_POLL_ALWAYS, 0, false },
	};
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct machine_options o = { .features = i % 2 ? all_features : layout, .kicks = ways[i].kicks };

		o.unit = (struct unit_options){ .threads = true, .engine = engine, .poll_mode = ways[i].mode, .spin_us = ways[i].spin_us };
		machine_open(&m, &o);
		for (int k = 0; k < 60; k++) {
			works(&m, Q + k % 2);
			if (k % 20 == 0)
				usleep(3000);
		}
		if (ways[i].kicks)
			CHECK(interrupted(m.queues[Q].call_fd, 5000));
		machine_close(&m);
	}
}

static void with_rings(uint32_t kind)
{
	layout = kind;
	every_shape_of_a_request(layout, 1);
	every_shape_of_a_request(layout | VS_RING_EVENT_IDX, 3);
	every_shape_of_a_request(all_features, 8);
	a_header_in_pieces();
	residuals();
	many_at_once(layout, false, false);
	many_at_once(all_features, false, true);
	many_at_once(all_features, true, true);
	many_at_once(layout | VS_RING_INDIRECT, true, false);
	addresses();
	an_attribute_that_does_not_exist();
	a_tag_that_is_in_use();
	what_python_sees_and_answers();
	tasks_can_be_looked_at();
	an_abort_takes_what_the_ring_holds();
	an_unmap_waits_for_an_exclusive_command();
	the_control_queue();
	the_event_queue();
	events_that_were_missed();
	a_device_without_credit_waits();
	a_stop_gives_back_what_is_stalled();
	broken_rings();
	an_error_descriptor_is_signalled();
	a_quota_of_segments();
	a_stop_waits_for_what_is_in_flight(false);
	a_stop_waits_for_what_is_in_flight(true);
	a_disabled_queue_waits();
	a_kick_is_replaced_during_a_stop(true);
	a_kick_is_replaced_during_a_stop(false);
	a_kick_that_cannot_be_waited_for();
	starts_that_fail();
	devices_that_cannot_be();
	a_new_table_while_requests_are_in_flight();
	a_new_table_without_the_rings();
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		if (vs_engine_why_not(engine)) {
			printf("test_vdev: without %s\n", vs_engine_why_not(engine));
			continue;
		}
		descriptors_are_replaced_while_running(engine);
		memory_is_truncated_under_load(engine);
		workers_that_sleep_and_spin(engine);
	}
}

int main(void)
{
	with_rings(0);
	with_rings(VS_RING_PACKED);
	return 0;
}
