// SPDX-License-Identifier: Apache-2.0
/*
 * Requests of a hostile guest through a virtio-scsi device, from the ring to the store and back, with a control side that answers, closes and
 * opens gates, aborts and stops in between. Guest memory is heap blocks of their exact size, and so is the medium, so ASan sees a byte outside.
 * Workers have no threads: an input does the same each time. Rings themselves are fuzz_vring.c's; here they are well-formed, of either layout and
 * used in any order or in order as the input has it; chains may not be.
 *
 * Input: 4 bytes of configuration, then steps, as below; the same bytes from the end backwards fill the guest's data. Missing bytes read as 0.
 */
#include <stdlib.h>

#include "check.h"
#include "vdev_rig.h"
#include "vring.h"

enum { QUEUES = 4, SIZE = 64, SLOTS = 8, DIRECT = SIZE / SLOTS, INDIRECT = 24, STEPS = 32, FUZZ_BLOCKS = 64, TASKS = 64 };
enum { RING_BYTES = 4096, TABLES_BYTES = SLOTS * INDIRECT * 16, RINGS = QUEUES * (RING_BYTES + TABLES_BYTES), PIECE = 8192, REGIONS = 3 };
enum { AVAIL_AT = 1024, USED_AT = 2048 };
#define RINGS_ADDR 0x100000ull
#define DATA_ADDR 0x200000ull
#define USER_XOR (1ull << 46)

struct input { const uint8_t *p; size_t n; };

static uint64_t get(struct input *in, int bytes)
{
	uint64_t v = 0;

	for (int i = 0; i < bytes; i++, in->n -= in->n > 0)
		v |= (uint64_t)(in->n ? *in->p++ : 0) << (8 * i);
	return v;
}

struct ring {
	struct vs_vring_desc *desc;
	struct vs_vring_avail *avail;
	struct vs_vring_used *used;
	uint16_t avail_idx, used_idx; /* packed: places */
	bool busy[SLOTS], stopped;
	uint64_t in_length[SLOTS];
	uint32_t span[SLOTS];
	uint8_t order[SLOTS];         /* in-order use: slots as they were offered, the oldest first */
	uint32_t norder;
};

static struct unit u;
static struct {
	vs_vdev *vdev;
	uint32_t cdb_size, sense_size, features;
	struct vs_mapping regions[REGIONS], *sorted[REGIONS];
	struct vs_memmap map;
	struct ring rings[QUEUES];
	vs_task *tasks[TASKS];
	vs_ctrl *ctrls[TASKS];
	uint32_t ntasks, nctrls, done; /* messages that came back */
} f;

/* ---- the control side ------------------------------------------------------------------------------------------------------------------ */

static void drain(void)
{
	static struct vs_upcall ups[16];
	static struct vs_task_info infos[16];
	int n;

	while ((n = vs_core_drain(u.core, ups, infos, 16)))
		for (int i = 0; i < n; i++) {
			if (ups[i].kind == VS_UP_TASK) {
				CHECK(f.ntasks < TASKS);
				CHECK(infos[i].param_length <= infos[i].out_length);
				f.tasks[f.ntasks++] = ups[i].task;
			} else if (ups[i].kind == VS_UP_CTRL) {
				CHECK(f.nctrls < TASKS);
				f.ctrls[f.nctrls++] = ups[i].ctrl;
			} else if (ups[i].kind == VS_UP_DONE) {
				f.done++;
			}
		}
}

static void check_used(struct ring *r);

static void turns(int n)
{
	while (n--)
		for (int i = 0; i < UNIT_WORKERS; i++)
			vs_worker_turn(&u.core->workers[i]);
	drain();
	for (int i = 0; i < QUEUES; i++)
		check_used(&f.rings[i]);
}

/* Until so many messages have come. */
static void wait_done(uint32_t n)
{
	for (int i = 0; f.done < n; i++) {
		CHECK(i < 10000);
		for (int k = 0; k < UNIT_WORKERS; k++)
			u.core->engine->wait(&u.core->workers[k], 0);
		turns(1);
	}
}

static void answer_task(struct input *in, uint32_t verdict)
{
	static const uint8_t blob[4096];
	struct vs_result result = { .verdict = (uint8_t)verdict };

	if (!f.ntasks)
		return;
	result.task = f.tasks[0];
	memmove(f.tasks, f.tasks + 1, --f.ntasks * sizeof(*f.tasks));
	result.status = get(in, 1) & 1 ? VS_STATUS_CHECK_CONDITION : VS_STATUS_GOOD;
	result.sense_length = (uint8_t)(result.status ? get(in, 1) % (VS_SENSE_MAX + 1) : 0);
	result.data_length = (uint32_t)get(in, 2);
	result.data_offset = get(in, 1);
	vs_core_post(u.core, &result, 1, blob, sizeof(blob));
}

static void answer_ctrl(struct input *in)
{
	static const uint8_t zeroes[VS_CTRL_BYTES];

	if (f.nctrls)
		vs_ctrl_reply(u.core, f.ctrls[--f.nctrls], zeroes, (uint32_t)get(in, 1));
}

/* ---- the driver ---------------------------------------------------------------------------------------------------------------------------- */

static uint8_t *guest(uint64_t addr)
{
	for (int i = 0; i < REGIONS; i++)
		if (addr - f.regions[i].region.guest_addr < f.regions[i].region.size)
			return f.regions[i].host + (addr - f.regions[i].region.guest_addr);
	return NULL;
}

/* Each comes back once, with no more bytes written than it has room for, and in its turn. */
static void came_back(struct ring *r, uint32_t slot, uint32_t length)
{
	CHECK(slot < SLOTS && r->busy[slot]);
	CHECK(length <= r->in_length[slot]);
	r->busy[slot] = false;
	if (!(f.features & VS_RING_IN_ORDER))
		return;
	CHECK(r->norder && r->order[0] == slot);
	memmove(r->order, r->order + 1, --r->norder);
}

static void check_used_packed(struct ring *r)
{
	for (;;) {
		const struct vs_packed_desc *d = &((struct vs_packed_desc *)r->desc)[vs_packed_index(r->used_idx)];

		if (!vs_packed_is_used(d->flags, r->used_idx))
			return;
		CHECK(!!d->len == !!(d->flags & VS_DESC_WRITE));
		came_back(r, d->id, d->len);
		r->used_idx = vs_packed_forward(r->used_idx, r->span[d->id], SIZE);
	}
}

static void check_used(struct ring *r)
{
	if (r->stopped || !r->used)
		return;
	if (f.features & VS_RING_PACKED) {
		check_used_packed(r);
		return;
	}
	while (r->used_idx != r->used->idx) {
		struct vs_vring_used_elem *e = &r->used->ring[r->used_idx++ % SIZE];

		CHECK(e->id % DIRECT == 0);
		came_back(r, e->id / DIRECT, e->len);
	}
}

static void put_header(const struct vs_vring_desc *d, uint32_t n, const uint8_t *header, uint32_t length)
{
	for (uint32_t i = 0, at = 0; i < n && at < length; i++)
		for (uint32_t k = 0; k < d[i].len && at < length; k++) {
			uint8_t *p = guest(d[i].addr + k);

			if (p)
				*p = header[at];
			at++;
		}
}

/* The high bytes of LBA and length are 0, and reserved bits are: the command is small and in range, most of the time. */
static void tame(uint8_t *cdb)
{
	static const uint16_t high[8] = { [0] = 0x6, [1] = 0x9c, [2] = 0x9c, [4] = 0x1dfc, [5] = 0x1dc }; /* bits: bytes, by opcode group */
	const struct vs_row *row = vs_row_of(cdb, 16);

	for (int i = 1; i < 16; i++) {
		if (high[cdb[0] >> 5] & 1u << i)
			cdb[i] = 0;
		if (row)
			cdb[i] &= row->usage[i];
	}
}

static uint32_t make_header(struct input *in, uint8_t *h)
{
	static const uint8_t luns[][8] = { { 1, 0 }, { 1, 0, 0x40, 0 }, { 1, 0, 0, 7 }, { 1, 0, 0xc1, 1 }, { 0xc1, 1 }, { 1, 9 } };
	uint8_t how = (uint8_t)get(in, 1), *cdb = h + 19;
	uint32_t lun = how & 7;

	if (lun < 6)
		memcpy(h, luns[how & 0x40 ? lun : 0], 8);
	else
		for (int i = 0; i < 8; i++)
			h[i] = (uint8_t)get(in, 1);
	h[8] = (uint8_t)get(in, 1);
	h[16] = how & 0x80 ? (uint8_t)(get(in, 1) % 5) : 0;
	cdb[0] = (uint8_t)get(in, 1);
	if (how & 8)
		cdb[0] = vs_rows[cdb[0] % VS_NROWS].opcode;
	for (int i = 1; i < 16; i++)
		cdb[i] = (uint8_t)get(in, 1);
	if (how & 0x10)
		tame(cdb);
	return 19 + f.cdb_size;
}

static uint64_t any_address(struct input *in)
{
	/* Both pieces of the data, the border between them, and a little beyond. */
	return DATA_ADDR + get(in, 2) % (2 * PIECE + 16);
}

/* From the next descriptor on, the first one's flags last (2.8.21.1). */
static void offer_packed(struct ring *r, uint32_t slot, const struct vs_vring_desc *d, uint32_t n)
{
	struct vs_packed_desc *ring = (struct vs_packed_desc *)r->desc;

	for (uint32_t i = n; i-- > 0;) {
		uint16_t at = vs_packed_forward(r->avail_idx, i, SIZE);

		ring[vs_packed_index(at)] = (struct vs_packed_desc){ d[i].addr, d[i].len, (uint16_t)slot, (uint16_t)(d[i].flags | vs_packed_avail_flags(at)) };
	}
	r->avail_idx = vs_packed_forward(r->avail_idx, n, SIZE);
	r->span[slot] = n;
}

static void offer_packed_table(struct ring *r, uint32_t slot, uint64_t table, struct vs_vring_desc *d, uint32_t n)
{
	struct vs_vring_desc one = { table, 16 * n, VS_DESC_INDIRECT, 0 };

	for (uint32_t i = 0; i < n; i++) {
		d[i].next = d[i].flags & VS_DESC_WRITE; /* the flags stand where next is in a split ring */
		d[i].flags = 0;
	}
	memcpy(guest(table), d, 16 * n);
	offer_packed(r, slot, &one, 1);
}

/* One chain in its slot: well-formed as a ring has it; lengths, places and directions are the input's. */
static void request(struct input *in, uint32_t queue)
{
	struct ring *r = &f.rings[queue];
	struct vs_vring_desc d[INDIRECT] = { 0 };
	uint8_t header[19 + VS_CDB_MAX] = { 0 }, shape = (uint8_t)get(in, 1);
	uint32_t nout = 1 + (shape & 3), nin = (shape >> 2 & 3) + 1, n, slot = 0, max = shape & 0x80 ? INDIRECT : DIRECT;
	uint64_t tables = RINGS_ADDR + QUEUES * RING_BYTES + queue * TABLES_BYTES;

	while (slot < SLOTS && r->busy[slot])
		slot++;
	if (slot == SLOTS || r->stopped)
		return;
	if (shape & 0x80)
		nin += 12;
	n = vs_min(nout + nin, max);
	r->in_length[slot] = 0;
	for (uint32_t i = 0; i < n; i++) {
		d[i].addr = any_address(in);
		d[i].len = (uint32_t)get(in, 2) & 0x1fff;
		d[i].flags = (uint16_t)((i >= nout ? VS_DESC_WRITE : 0) | (i + 1 < n ? VS_DESC_NEXT : 0));
	}
	/* Headers of the right length, or of any. */
	if (!(shape & 0x10))
		d[0].len = 19 + f.cdb_size;
	if (!(shape & 0x20))
		d[nout].len = 12 + f.sense_size;
	else if (!(shape & 0x40))
		d[nout].len &= 31;
	if (queue >= VS_QUEUE_REQUEST)
		put_header(d, nout, header, make_header(in, header));
	for (uint32_t i = 0; i < n; i++)
		r->in_length[slot] += i >= nout ? d[i].len : 0;
	r->busy[slot] = true;
	if (f.features & VS_RING_IN_ORDER)
		r->order[r->norder++] = (uint8_t)slot;
	if (f.features & VS_RING_PACKED) {
		if (shape & 0x80)
			offer_packed_table(r, slot, tables + slot * INDIRECT * 16, d, n);
		else
			offer_packed(r, slot, d, n);
		return;
	}
	if (shape & 0x80) {
		uint64_t table = tables + slot * INDIRECT * 16;

		for (uint32_t i = 0; i < n; i++)
			d[i].next = (uint16_t)(i + 1);
		memcpy(guest(table), d, 16 * n);
		r->desc[slot * DIRECT] = (struct vs_vring_desc){ table, 16 * n, VS_DESC_INDIRECT, 0 };
	} else {
		for (uint32_t i = 0; i < n; i++) {
			d[i].next = (uint16_t)(slot * DIRECT + i + 1);
			r->desc[slot * DIRECT + i] = d[i];
		}
	}
	r->avail->ring[r->avail_idx++ % SIZE] = (uint16_t)(slot * DIRECT);
	r->avail->idx = r->avail_idx;
}

/* ---- a machine for one input ------------------------------------------------------------------------------------------------------------------ */

static void ring_start(uint32_t i)
{
	uint64_t at = RINGS_ADDR + i * RING_BYTES;
	struct vs_queue_params p = { .desc = at ^ USER_XOR, .avail = (at + AVAIL_AT) ^ USER_XOR, .used = (at + USED_AT) ^ USER_XOR, .size = SIZE,
				     .features = f.features, .worker = i % UNIT_WORKERS, .kick_fd = -1, .call_fd = -1,
				     .err_fd = -1, .enabled = 1 };
	uint32_t want = f.done + 1;

	if (f.features & VS_RING_PACKED)
		p.base = VS_PACKED_WRAP * 0x10001u;
	memset(guest(at), 0, RING_BYTES);
	f.rings[i] = (struct ring){ .desc = (void *)guest(at), .avail = (void *)guest(at + AVAIL_AT), .used = (void *)guest(at + USED_AT) };
	f.rings[i].avail_idx = f.rings[i].used_idx = (uint16_t)p.base;
	CHECK_EQ(vs_queue_start(f.vdev, i, &p, &f.map, 1), 0);
	wait_done(want);
}

static void region(int i, uint64_t addr, uint64_t size)
{
	struct vs_mapping *m = &f.regions[i];

	m->host = m->base = aligned_alloc(64, size);
	CHECK(m->host != NULL);
	memset(m->host, 0, size);
	m->length = size;
	m->region = (struct vs_region){ .guest_addr = addr, .size = size, .user_addr = addr ^ USER_XOR, .fd = -1 };
	f.sorted[i] = m;
}

static void machine_up(struct input *in, const uint8_t *data, size_t size)
{
	static const uint32_t cdb_sizes[4] = { 32, 32, 16, 255 }, sense_sizes[4] = { 96, 96, 18, 252 };
	uint8_t how = (uint8_t)get(in, 1), lu = (uint8_t)get(in, 1);
	struct vs_vdev_params params = { .cookie = 7, .num_queues = QUEUES, .credit = 1 + (uint32_t)(get(in, 1) & 7) };

	memset(&f, 0, sizeof(f));
	f.cdb_size = params.cdb_size = cdb_sizes[how & 3];
	f.sense_size = params.sense_size = sense_sizes[how >> 2 & 3];
	f.features = VS_RING_INDIRECT | VS_RING_VERSION_1 | (how & 16 ? VS_RING_PACKED : 0) | (how & 32 ? VS_RING_IN_ORDER : 0) |
		     (how & 64 ? VS_RING_EVENT_IDX : 0);
	region(0, RINGS_ADDR, RINGS);
	region(1, DATA_ADDR, PIECE);
	region(2, DATA_ADDR + PIECE, PIECE);
	for (size_t i = 0; i < 2 * PIECE && size; i++)
		f.regions[1 + i / PIECE].host[i % PIECE] = data[size - 1 - i % size];
	f.map = (struct vs_memmap){ .core = u.core, .n = REGIONS, .mappings = f.sorted };
	CHECK_EQ(vs_pins_init(&f.map.pins, u.core), 0);
	u.params.write_cache = lu & 1;
	u.params.descriptor_sense = lu >> 1 & 1;
	u.params.unmap = !(lu & 4);
	u.params.max_unmap_descriptors = lu & 8 ? 2 : 0;
	u.params.max_unmap_blocks = lu & 16 ? 10 : 0;
	u.params.max_write_same_blocks = lu & 32 ? 10 : 0;
	unit_update(&u);
	u.medium->store.info.volatile_cache = lu >> 6 & 1;
	u.medium->store.info.fua = lu & 128 ? VS_CAP_NATIVE : VS_CAP_NONE;
	u.medium->store.info.zero = u.medium->store.info.unmap = get(in, 1) & 1 ? VS_CAP_NONE : VS_CAP_NATIVE;
	memset(u.medium->data, 0, FUZZ_BLOCKS * 512);
	memset(u.medium->fail, 0, sizeof(u.medium->fail));
	medium_forget(u.medium);
	atomic_store(&u.medium->store.flush_failed, 0);
	CHECK_EQ(vs_vdev_create(u.core, &params, &f.vdev), 0);
	CHECK_EQ(vs_vdev_set_luns(f.vdev, &(struct vs_lun_entry){ .nexus = u.nexus }, 1, 1), 0);
	wait_done(1);
	for (uint32_t i = 0; i < QUEUES; i++)
		ring_start(i);
}

static uint32_t in_flight(void)
{
	uint32_t n = f.ntasks + f.nctrls + medium_held(u.medium);
	struct vs_queue_info info;

	for (uint32_t i = 0; i < QUEUES; i++) {
		CHECK_EQ(vs_queue_info(f.vdev, i, &info), 0);
		n += info.in_flight;
	}
	return n;
}

/* Everything ends: what Python holds, what the medium holds; then queues stop, and nothing is left anywhere. */
static void settle(void)
{
	struct input none = { NULL, 0 };

	medium_hold(u.medium, false);
	/* Each round lets go of all that is held; a chain, or what waits for its turn, may come behind it. */
	for (int idle = 0, i = 0; idle < 4 && i < 1000; i++) {
		while (f.ntasks)
			answer_task(&none, VS_VERDICT_COMPLETE);
		while (f.nctrls)
			answer_ctrl(&none);
		medium_release(u.medium);
		for (int k = 0; k < UNIT_WORKERS; k++)
			u.core->engine->wait(&u.core->workers[k], 0);
		turns(2);
		idle = in_flight() ? 0 : idle + 1;
	}
}

static void machine_down(void)
{
	bool broken[QUEUES];
	uint32_t want;

	settle();
	for (uint32_t i = 0; i < QUEUES; i++) {
		struct vs_queue_info info;

		CHECK_EQ(vs_queue_info(f.vdev, i, &info), 0);
		CHECK_EQ(info.in_flight, 0);
		broken[i] = info.broken;
		/* A ring that is not broken has given back all that it was given, except that nobody asked for events. */
		for (uint32_t k = 0; k < SLOTS && !broken[i] && i != VS_QUEUE_EVENT && !f.rings[i].stopped; k++)
			CHECK(!f.rings[i].busy[k]);
	}
	want = f.done + QUEUES;
	for (uint32_t i = 0; i < QUEUES; i++)
		CHECK_EQ(vs_queue_stop(f.vdev, i, 1), 0);
	wait_done(want);
	CHECK(!vs_pins_busy(&f.map.pins) && !vs_pins_busy(vs_lu_pins(u.lu)) && !vs_pins_busy(vs_nexus_pins(u.nexus)));
	CHECK_EQ(medium_held(u.medium), 0);
	CHECK(!(vs_gate_read(u.lu, u.nexus) & VS_GATE_EXCLUSIVE));
	CHECK_EQ(vs_gate_open(u.core, u.lu, NULL, UINT64_MAX), 0);
	CHECK_EQ(vs_gate_open(u.core, u.lu, u.nexus, UINT64_MAX), 0);
	vs_vdev_destroy(f.vdev);
	vs_pins_fini(&f.map.pins);
	for (int i = 0; i < REGIONS; i++)
		free(f.regions[i].host);
}

static void abort_some(struct input *in)
{
	uint8_t how = (uint8_t)get(in, 1);
	struct vs_tmf tmf = { .lu = u.lu, .nexus = u.nexus, .port_cookie = 7, .tag = get(in, 1), .match = how & 15, .action = how >> 4 & 1,
			      .response = VS_RESP_ABORTED, .cookie = 1 };

	vs_tmf_post(u.core, &tmf);
}

static void stop_or_start(struct input *in)
{
	uint32_t i = VS_QUEUE_REQUEST + (get(in, 1) & 1);
	struct vs_queue_info info;

	CHECK_EQ(vs_queue_info(f.vdev, i, &info), 0);
	if (!info.started) {
		/* Only when the stop was answered: nothing else is under way here. */
		turns(4);
		ring_start(i);
	} else if (!f.rings[i].stopped) {
		check_used(&f.rings[i]);
		f.rings[i].stopped = true;
		CHECK_EQ(vs_queue_stop(f.vdev, i, 1), 0);
	}
}

static void step(struct input *in)
{
	uint8_t op = (uint8_t)get(in, 1);

	switch (op & 15) {
	default: /* most of all */
		request(in, VS_QUEUE_REQUEST + (op >> 4 & 1));
		if (op & 0x80)
			return; /* more than one in a turn */
		break;
	case 8:
		answer_task(in, VS_VERDICT_COMPLETE + (op >> 4 & 3));
		break;
	case 9:
		medium_hold(u.medium, op & 16);
		medium_release(u.medium);
		break;
	case 10:
		u.medium->fail[get(in, 1) % VS_IO_OPS] = (int32_t)(get(in, 1) % VS_ERR_KINDS);
		break;
	case 11:
		if (op & 16)
			vs_gate_open(u.core, u.lu, op & 32 ? u.nexus : NULL, UINT64_MAX & ~VS_GATE_EXCLUSIVE);
		else
			vs_gate_close(u.core, u.lu, op & 32 ? u.nexus : NULL, get(in, 2) & ~VS_GATE_EXCLUSIVE);
		break;
	case 12:
		abort_some(in);
		break;
	case 13:
		stop_or_start(in);
		break;
	case 14:
		request(in, op & 16 ? VS_QUEUE_EVENT : VS_QUEUE_CONTROL);
		if (op & 32)
			answer_ctrl(in);
		break;
	case 15:
		vs_vdev_event(f.vdev, (const uint8_t[VS_EVENT_BYTES]){ 1 }, 1);
		break;
	}
	turns(1 + (op >> 6 & 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };

	if (!u.core) {
		struct unit_options o = { .lu = { .num_blocks = FUZZ_BLOCKS, .block_size = 512 } };

		o.info = (struct vs_store_info){ .unmap = VS_CAP_NATIVE, .zero = VS_CAP_NATIVE };
		unit_open(&u, &o);
	}
	machine_up(&in, data, size);
	for (int i = 0; i < STEPS && in.n; i++)
		step(&in);
	machine_down();
	return 0;
}
