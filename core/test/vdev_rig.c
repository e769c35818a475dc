// SPDX-License-Identifier: Apache-2.0
/* See vdev_rig.h. */
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "vdev_rig.h"

enum { BLOCK = 512, BLOCKS = 8192, PATIENCE_MS = 20000, TURNS = 4 };

/* ---- the medium ---------------------------------------------------------------------------------------------------------------------- */

static struct medium *medium_of(struct vs_store *s)
{
	return vs_container_of(s, struct medium, store);
}

static int32_t carry_out(struct medium *m, struct vs_io *io)
{
	if (m->fail[io->op])
		return m->fail[io->op];
	switch (io->op) {
	case VS_IO_READ:
		CHECK_EQ(vs_iov_from_buffer(io->iov, io->niov, 0, m->data + io->offset, io->length), io->length);
		CHECK_EQ(vs_iov_length(io->iov, io->niov), io->length);
		break;
	case VS_IO_WRITE:
		CHECK_EQ(vs_iov_to_buffer(io->iov, io->niov, 0, m->data + io->offset, io->length), io->length);
		CHECK_EQ(vs_iov_length(io->iov, io->niov), io->length);
		break;
	case VS_IO_UNMAP:
	case VS_IO_ZERO:
		memset(m->data + io->offset, 0, io->length);
		break;
	default:
		break;
	}
	return VS_ERR_NONE;
}

static enum vs_submit medium_submit(struct vs_store *s, struct vs_io *io)
{
	struct medium *m = medium_of(s);
	bool held;

	pthread_mutex_lock(&m->lock);
	if (m->nlog < MEDIUM_LOG)
		m->log[m->nlog] = (struct medium_op){ io->op, io->flags, io->offset, io->op == VS_IO_FLUSH ? 0 : io->length };
	m->nlog++;
	held = m->hold;
	if (held) {
		io->next = NULL;
		*m->held_tail = io;
		m->held_tail = &io->next;
		m->nheld++;
	} else {
		io->err = carry_out(m, io);
	}
	pthread_mutex_unlock(&m->lock);
	return held ? VS_SUBMIT_PENDING : VS_SUBMIT_DONE;
}

static void released(struct vs_worker *w, struct vs_msg *msg)
{
	struct vs_io *io = vs_container_of(msg, struct vs_io, msg);
	struct medium *m = medium_of(io->store);
	int32_t err;

	(void)w;
	pthread_mutex_lock(&m->lock);
	err = carry_out(m, io);
	pthread_mutex_unlock(&m->lock);
	vs_io_end(io, err);
}

static void medium_cancel(struct vs_store *s, struct vs_io *io)
{
	(void)io;
	medium_of(s)->cancelled++;
}

static void medium_destroy(struct vs_store *s)
{
	struct medium *m = medium_of(s);

	pthread_mutex_destroy(&m->lock);
	vs_store_fini(s);
	free(m->data);
	free(m);
}

static const struct vs_store_ops medium_ops = { .kind = "medium", .submit = medium_submit, .destroy = medium_destroy, .cancel = medium_cancel };

struct medium *medium_open(vs_core *core, const struct vs_store_info *info)
{
	struct medium *m = calloc(1, sizeof(*m));

	CHECK(m != NULL);
	CHECK_EQ(vs_store_init(&m->store, core, &medium_ops, NULL), 0);
	m->store.info = *info;
	m->data = calloc(1, info->size);
	CHECK(m->data != NULL);
	m->held_tail = &m->held;
	pthread_mutex_init(&m->lock, NULL);
	return m;
}

void medium_forget(struct medium *m)
{
	pthread_mutex_lock(&m->lock);
	m->nlog = 0;
	memset(m->log, 0, sizeof(m->log));
	pthread_mutex_unlock(&m->lock);
}

void medium_hold(struct medium *m, bool on)
{
	pthread_mutex_lock(&m->lock);
	m->hold = on;
	pthread_mutex_unlock(&m->lock);
}

uint32_t medium_held(struct medium *m)
{
	uint32_t n;

	pthread_mutex_lock(&m->lock);
	n = m->nheld;
	pthread_mutex_unlock(&m->lock);
	return n;
}

void medium_release(struct medium *m)
{
	struct vs_io *io;

	pthread_mutex_lock(&m->lock);
	io = m->held;
	m->held = NULL;
	m->held_tail = &m->held;
	m->nheld = 0;
	pthread_mutex_unlock(&m->lock);
	while (io) {
		struct vs_io *next = io->next;

		io->msg.run = released;
		vs_worker_send(io->w, &io->msg);
		io = next;
	}
}

/* ---- a logical unit, and the control side ----------------------------------------------------------------------------------------------- */

void unit_open(struct unit *u, const struct unit_options *o)
{
	struct vs_config config = { .nworkers = UNIT_WORKERS, .engine = o->engine ? o->engine : VS_ENGINE_EPOLL, .poll_mode = o->poll_mode,
				    .spin_us = o->spin_us, .io_threads = 1 };
	struct vs_store_info info = o->info;

	memset(u, 0, sizeof(*u));
	u->threads = o->threads;
	u->cookie = 1000;
	u->params = o->lu;
	if (!u->params.block_size)
		u->params.block_size = BLOCK;
	if (!u->params.num_blocks)
		u->params.num_blocks = BLOCKS;
	u->params.cookie = 1;
	if (!info.size)
		info.size = u->params.num_blocks * u->params.block_size;
	if (!info.io_align)
		info.io_align = 1;
	CHECK_EQ(vs_core_create(&config, &u->core), 0);
	if (u->threads)
		CHECK_EQ(vs_core_start(u->core), 0);
	for (int i = 0; !u->threads && i < UNIT_WORKERS; i++)
		CHECK_EQ(u->core->engine->init(&u->core->workers[i]), 0);
	u->medium = medium_open(u->core, &info);
	CHECK_EQ(vs_lu_create(u->core, &u->params, &u->medium->store, &u->lu), 0);
	CHECK_EQ(vs_nexus_create(u->core, u->lu, 2, &u->nexus), 0);
}

void unit_close(struct unit *u)
{
	CHECK(!vs_pins_busy(vs_lu_pins(u->lu)) && !vs_pins_busy(vs_nexus_pins(u->nexus)));
	vs_nexus_destroy(u->nexus);
	vs_lu_destroy(u->lu);
	vs_store_destroy(&u->medium->store);
	for (int i = 0; !u->threads && i < UNIT_WORKERS; i++)
		u->core->engine->fini(&u->core->workers[i]);
	vs_core_destroy(u->core);
}

void unit_update(struct unit *u)
{
	vs_lu_update(u->lu, &u->params);
}

static void take_upcalls(struct unit *u)
{
	u->nups += (uint32_t)vs_core_drain(u->core, u->ups + u->nups, u->infos + u->nups, (int)(UNIT_UPCALLS - u->nups));
	CHECK(u->nups < UNIT_UPCALLS);
}

static void go_on(struct unit *u)
{
	if (u->threads) {
		usleep(500);
	} else {
		for (int i = 0; i < UNIT_WORKERS; i++) {
			struct vs_worker *w = &u->core->workers[i];

			w->engine->wait(w, 0);
			vs_worker_turn(w);
		}
	}
	take_upcalls(u);
}

void unit_settle(struct unit *u)
{
	for (int i = 0; i < (u->threads ? 3 * TURNS : TURNS); i++)
		go_on(u);
}

static bool is(const struct vs_upcall *up, uint32_t kind, uint64_t cookie)
{
	return up->kind == kind && (!cookie || up->cookie == cookie);
}

struct vs_upcall unit_wait(struct unit *u, uint32_t kind, uint64_t cookie, struct vs_task_info *info)
{
	uint64_t until = vs_now_ns() + PATIENCE_MS * 1000000ull;

	for (;;) {
		for (uint32_t i = 0; i < u->nups; i++) {
			struct vs_upcall up = u->ups[i];

			if (!is(&up, kind, cookie))
				continue;
			if (info)
				*info = u->infos[i];
			u->nups--;
			memmove(u->ups + i, u->ups + i + 1, (u->nups - i) * sizeof(*u->ups));
			memmove(u->infos + i, u->infos + i + 1, (u->nups - i) * sizeof(*u->infos));
			return up;
		}
		if (vs_now_ns() > until) {
			fprintf(stderr, "no message of kind %u, cookie %llu\n", kind, (unsigned long long)cookie);
			abort();
		}
		go_on(u);
	}
}

bool unit_has(const struct unit *u, uint32_t kind)
{
	for (uint32_t i = 0; i < u->nups; i++)
		if (u->ups[i].kind == kind)
			return true;
	return false;
}

void unit_post(struct unit *u, vs_task *t, enum vs_verdict verdict, uint8_t status)
{
	struct vs_result result = { .task = t, .verdict = (uint8_t)verdict, .status = status };

	vs_core_post(u->core, &result, 1, NULL, 0);
}

/* ---- a device and its driver -------------------------------------------------------------------------------------------------------------- */

static uint64_t next_cookie(struct machine *m)
{
	return ++m->unit->cookie;
}

void machine_luns(struct machine *m, const struct vs_lun_entry *entries, uint32_t n)
{
	uint64_t cookie = next_cookie(m);

	CHECK_EQ(vs_vdev_set_luns(m->vdev, entries, n, cookie), 0);
	unit_wait(m->unit, VS_UP_DONE, cookie, NULL);
}

static void queue_open(struct machine *m, const struct machine_options *o, uint32_t index)
{
	struct machine_queue *q = &m->queues[index];
	uint32_t entries = o->features & VS_RING_INDIRECT ? (o->indirect_entries ? o->indirect_entries : 256) : 0;

	q->kick_fd = q->call_fd = -1;
	q->free_slots = ~UINT64_C(0);
	q->worker = index % UNIT_WORKERS;
	CHECK_EQ(vs_driver_create(&m->guest, o->queue_size ? o->queue_size : 256, o->features, entries, &q->driver), 0);
	q->slots = vs_guest_alloc(&m->guest, (uint64_t)MACHINE_SLOTS * SLOT_BYTES, 4096);
	CHECK(q->slots != 0);
}

void machine_open(struct machine *m, const struct machine_options *o)
{
	struct vs_vdev_params params = { .num_queues = MACHINE_QUEUES, .cdb_size = CDB_SIZE, .sense_size = SENSE_SIZE,
					 .credit = o->credit ? o->credit : 32 };

	memset(m, 0, sizeof(*m));
	m->unit = o->beside ? o->beside->unit : &m->own;
	m->cookie = params.cookie = o->beside ? 78 : 77;
	if (!o->beside)
		unit_open(m->unit, &o->unit);
	CHECK_EQ(vs_guest_create(32 << 20, o->regions ? o->regions : 1, &m->guest), 0);
	CHECK_EQ(vs_memmap_create(m->unit->core, m->guest.regions, m->guest.nregions, NULL, 88, &m->map), 0);
	CHECK_EQ(vs_vdev_create(m->unit->core, &params, &m->vdev), 0);
	machine_luns(m, &(struct vs_lun_entry){ .nexus = m->unit->nexus }, 1);
	for (uint32_t i = 0; i < MACHINE_QUEUES; i++) {
		queue_open(m, o, i);
		CHECK_EQ(machine_start(m, i, o->kicks), 0);
	}
}

void machine_close(struct machine *m)
{
	for (uint32_t i = 0; i < MACHINE_QUEUES; i++) {
		struct machine_queue *q = &m->queues[i];

		machine_stop(m, i);
		vs_driver_destroy(&q->driver);
		if (q->kick_fd >= 0)
			close(q->kick_fd);
		if (q->call_fd >= 0)
			close(q->call_fd);
	}
	CHECK(!vs_pins_busy(vs_memmap_pins(m->map)));
	vs_vdev_destroy(m->vdev);
	vs_memmap_destroy(m->map);
	vs_guest_destroy(&m->guest);
	if (m->unit == &m->own)
		unit_close(m->unit);
}

static int event_fd(int *ours)
{
	if (*ours < 0)
		*ours = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(*ours >= 0);
	return dup(*ours);
}

uint64_t machine_start(struct machine *m, uint32_t index, bool kicks)
{
	struct machine_queue *q = &m->queues[index];
	struct vs_queue_params params;
	uint64_t cookie = next_cookie(m);
	struct vs_upcall up;

	vs_driver_params(&q->driver, &params);
	params.worker = q->worker;
	params.enabled = 1;
	if (kicks) {
		params.kick_fd = event_fd(&q->kick_fd);
		params.call_fd = event_fd(&q->call_fd);
	}
	CHECK_EQ(vs_queue_start(m->vdev, index, &params, m->map, cookie), 0);
	up = unit_wait(m->unit, VS_UP_DONE, cookie, NULL);
	return (uint64_t)-up.err;
}

uint32_t machine_stop(struct machine *m, uint32_t index)
{
	uint64_t cookie = next_cookie(m);

	CHECK_EQ(vs_queue_stop(m->vdev, index, cookie), 0);
	return (uint32_t)unit_wait(m->unit, VS_UP_DONE, cookie, NULL).aux;
}

static uint8_t take_slot(struct machine_queue *q)
{
	int slot = __builtin_ffsll((long long)q->free_slots) - 1;

	CHECK(slot >= 0);
	q->free_slots &= ~(UINT64_C(1) << slot);
	return (uint8_t)slot;
}

/* [addr, addr + length) as `pieces` buffers, of which the last takes what is left; two neighbours never touch. */
static uint32_t cut(struct vs_driver_buffer *b, uint64_t addr, uint32_t length, uint32_t pieces)
{
	uint32_t each, n = 0;

	if (!length)
		return 0;
	pieces = vs_max(pieces, 1u);
	each = vs_max(length / pieces, 1u);
	for (; length && n + 1 < pieces; n++) {
		b[n] = (struct vs_driver_buffer){ addr, vs_min(each, length) };
		addr += b[n].length;
		length -= b[n].length;
	}
	if (length)
		b[n++] = (struct vs_driver_buffer){ addr, length };
	return n;
}

/* Neighbouring buffers become one segment in the device: an order that nobody can join. */
static void shuffle_apart(struct machine *m, struct vs_driver_buffer *b, uint32_t n, uint64_t at)
{
	for (uint32_t i = 0; i < n; i++) {
		memmove(vs_guest_ptr(&m->guest, at), vs_guest_ptr(&m->guest, b[i].addr), b[i].length);
		b[i].addr = at;
		at += b[i].length + 1;
	}
}

int machine_send(struct machine *m, uint32_t index, const struct request *r)
{
	struct machine_queue *q = &m->queues[index];
	struct vs_driver_buffer buffers[256];
	uint8_t slot = take_slot(q), *header;
	uint64_t at = q->slots + (uint64_t)slot * SLOT_BYTES;
	uint64_t tag = r->tag ? r->tag : UINT64_C(1) << 62 | ++m->tags;
	uint32_t nout = 1, nin, n;
	int head;

	CHECK(r->out_length <= SLOT_BYTES - SLOT_DATA && r->in_length <= SLOT_BYTES - SLOT_DATA);
	header = vs_guest_ptr(&m->guest, at);
	memset(header, 0, REQUEST_BYTES);
	memcpy(header, r->lun, 8);
	if (!r->lun_given)
		header[0] = 1;
	memcpy(header + 8, &tag, 8);
	header[16] = r->attribute;
	memcpy(header + 19, r->cdb, CDB_SIZE);
	memset(header + SLOT_RESPONSE, 0xee, SLOT_DATA - SLOT_RESPONSE);
	buffers[0] = (struct vs_driver_buffer){ at, REQUEST_BYTES };
	if (r->out_length) {
		if (r->out)
			memcpy(header + SLOT_DATA, r->out, r->out_length);
		nout += cut(buffers + 1, at + SLOT_DATA, r->out_length, r->data_pieces);
	}
	nin = cut(buffers + nout, at + SLOT_RESPONSE, RESPONSE_BYTES, r->response_pieces);
	if (r->response_pieces > 1)
		shuffle_apart(m, buffers + nout, nin, at + SLOT_RESPONSE);
	n = nout + nin;
	if (r->in_length) {
		memset(header + SLOT_DATA, 0xee, r->in_length);
		n += cut(buffers + n, at + SLOT_DATA, r->in_length, r->data_pieces);
	}
	head = vs_driver_add(&q->driver, buffers, nout, n - nout, r->indirect);
	CHECK(head >= 0);
	q->slot_of[head] = slot;
	q->pieces_of[head] = (uint8_t)vs_max(r->response_pieces, 1u);
	if (!r->unseen)
		machine_kick(m, index);
	return head;
}

void machine_kick(struct machine *m, uint32_t index)
{
	struct machine_queue *q = &m->queues[index];

	if (vs_driver_publish(&q->driver) && q->kick_fd >= 0)
		CHECK_EQ(eventfd_write(q->kick_fd, 1), 0);
}

/* What cut() and shuffle_apart() made of the response. */
static void gather(const uint8_t *from, uint32_t pieces, uint8_t *to)
{
	uint32_t each = RESPONSE_BYTES / pieces;

	for (uint32_t i = 0; i < RESPONSE_BYTES; i++)
		to[i] = from[i + vs_min(i / each, pieces - 1)];
}

int machine_poll(struct machine *m, uint32_t index, struct response *out)
{
	struct machine_queue *q = &m->queues[index];
	uint8_t bytes[RESPONSE_BYTES], *slot;
	uint32_t head, written;
	int n = vs_driver_collect(&q->driver, &head, &written);

	CHECK(n >= 0);
	if (!n)
		return -1;
	slot = vs_guest_ptr(&m->guest, q->slots + (uint64_t)q->slot_of[head] * SLOT_BYTES);
	q->free_slots |= UINT64_C(1) << q->slot_of[head];
	gather(slot + SLOT_RESPONSE, q->pieces_of[head], bytes);
	memcpy(&out->sense_len, bytes, 4);
	memcpy(&out->residual, bytes + 4, 4);
	memcpy(&out->status_qualifier, bytes + 8, 2);
	out->status = bytes[10];
	out->response = bytes[11];
	memcpy(out->sense, bytes + 12, SENSE_SIZE);
	out->written = written;
	out->data = slot + SLOT_DATA;
	return (int)head;
}

int machine_receive(struct machine *m, uint32_t index, struct response *out)
{
	uint64_t until = vs_now_ns() + PATIENCE_MS * 1000000ull;
	int head;

	while ((head = machine_poll(m, index, out)) < 0) {
		if (vs_now_ns() > until) {
			struct vs_queue_info i = machine_info(m, index);

			fprintf(stderr, "queue %u answers nothing: in flight %u, broken %u, error %d\n", index, i.in_flight, i.broken, i.error);
			abort();
		}
		go_on(m->unit);
	}
	return head;
}

void machine_do(struct machine *m, uint32_t index, const struct request *r, struct response *out)
{
	int head = machine_send(m, index, r);

	CHECK_EQ(machine_receive(m, index, out), head);
}

struct vs_queue_info machine_info(const struct machine *m, uint32_t index)
{
	struct vs_queue_info info;

	CHECK_EQ(vs_queue_info(m->vdev, index, &info), 0);
	return info;
}

static void cdb10(uint8_t *cdb, uint8_t opcode, uint32_t lba, uint16_t blocks)
{
	memset(cdb, 0, CDB_SIZE);
	cdb[0] = opcode;
	vs_put_be32(cdb + 2, lba);
	cdb[7] = (uint8_t)(blocks >> 8);
	cdb[8] = (uint8_t)blocks;
}

void cdb_read10(uint8_t *cdb, uint32_t lba, uint16_t blocks) { cdb10(cdb, 0x28, lba, blocks); }
void cdb_write10(uint8_t *cdb, uint32_t lba, uint16_t blocks) { cdb10(cdb, 0x2a, lba, blocks); }
