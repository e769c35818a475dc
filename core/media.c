// SPDX-License-Identifier: Apache-2.0
/*
 * The media commands of SBC-4, once: from the gate to the end. A command is a few store operations in a row; between them stands a step
 * function. The gate was passed before; nothing here looks at reservations, unit attentions or readiness.
 */
#include <stdlib.h>

#include "media.h"

enum {
	OPS_A_TURN = 16,      /* store operations of one task in a row before others run */
	WATCH_NS = 250000000, /* between looks for store operations that take too long */
};

/* ---- store operations in a row ---------------------------------------------------------------------------------------------------------- */

/* What may be otherwise the next time. */
static bool try_again(struct vs_task *t)
{
	int32_t err = t->io.err;
	bool passes = err == VS_ERR_READ || err == VS_ERR_WRITE || err == VS_ERR_BUSY || err == VS_ERR_NOT_READY;

	if (!passes || t->aborted || t->timed_out || t->m.tried >= atomic_load_explicit(&t->lu->retries, memory_order_relaxed))
		return false;
	t->m.tried++;
	return true;
}

static bool settle(struct vs_task *t)
{
	if (vs_unlikely(t->io.err)) {
		if (try_again(t))
			return SUBMIT; /* the io is as it was */
		return vs_media_store_error(t, t->io.err);
	}
	if (vs_unlikely(t->aborted))
		return ENDED;
	return t->m.step(t);
}

static void drive_on(struct vs_worker *w, struct vs_msg *m);

/* Submits until something is pending (false) or the task has its outcome (true): a loop, for stores that answer at once. A long row of
 * operations lets others run in between. */
static bool drive(struct vs_task *t)
{
	for (int turns = 0;; turns++) {
		if (vs_unlikely(turns == OPS_A_TURN)) {
			vs_task_layer(t, VS_LAYER_STORE);
			t->msg.run = drive_on;
			vs_worker_push(t->w, &t->msg);
			return false;
		}
		t->io.err = VS_ERR_NONE;
		if (vs_store_submit(t->io.store, &t->io) == VS_SUBMIT_PENDING) {
			vs_task_layer(t, VS_LAYER_STORE);
			t->m.in_store = true;
			return false;
		}
		if (settle(t) == ENDED)
			return true;
	}
}

static void drive_on(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_task *t = vs_container_of(m, struct vs_task, msg);

	(void)w;
	if (t->aborted || drive(t))
		vs_media_end(t);
}

static void io_done(struct vs_io *io)
{
	struct vs_task *t = io->owner;

	t->m.in_store = false;
	if (settle(t) == ENDED || drive(t))
		vs_media_end(t);
}

bool vs_media_bounce(struct vs_task *t, uint64_t n)
{
	t->m.bounce = aligned_alloc(4096, (n + 4095) & ~UINT64_C(4095));
	if (!t->m.bounce) {
		t->status = VS_STATUS_BUSY;
		return false;
	}
	return true;
}

/* ---- start and end ------------------------------------------------------------------------------------------------------------------------------------------------ */

static bool copy_unmap_list(struct vs_task *t)
{
	uint64_t n = vs_min(t->out_length, (uint64_t)t->row->param_max);

	if (t->param || !n)
		return true;
	t->param = malloc(n);
	if (!t->param) {
		t->status = VS_STATUS_BUSY;
		return false;
	}
	t->param_length = (uint32_t)vs_iov_to_buffer(t->out, (int)t->nout, 0, t->param, n);
	return true;
}

static bool (*const start[])(struct vs_task *) = {
	[VS_MEDIA_READ] = vs_media_read,
	[VS_MEDIA_WRITE] = vs_media_write,
	[VS_MEDIA_SYNCHRONIZE_CACHE] = vs_media_sync,
	[VS_MEDIA_UNMAP] = vs_media_unmap,
	[VS_MEDIA_WRITE_SAME] = vs_media_write_same,
	[VS_MEDIA_VERIFY] = vs_media_verify,
	[VS_MEDIA_COMPARE_AND_WRITE] = vs_media_compare_and_write,
	[VS_MEDIA_WRITE_AND_VERIFY] = vs_media_write_and_verify,
	[VS_MEDIA_ORWRITE] = vs_media_orwrite,
	[VS_MEDIA_PRE_FETCH] = vs_media_prefetch,
	[VS_MEDIA_WRITE_ATOMIC] = vs_media_write,
};

/* Those of which nobody may see a half. */
static bool is_exclusive(uint8_t op)
{
	return op == VS_MEDIA_COMPARE_AND_WRITE || op == VS_MEDIA_ORWRITE || op == VS_MEDIA_WRITE_ATOMIC;
}

static bool run(struct vs_task *t)
{
	if (start[t->row->media](t) == ENDED)
		return true;
	return drive(t);
}

bool vs_media_start(struct vs_task *t)
{
	uint8_t op = t->row->media;
	bool exclusive = is_exclusive(op);

	if (t->range.granted) {
		t->range.granted = false;
		return t->aborted ? true : run(t);
	}
	if (op == VS_MEDIA_TEST_UNIT_READY) {
		vs_media_check_reserved(t);
		return true;
	}
	t->m.bounce = NULL;
	t->m.in_store = false;
	t->m.tried = 0;
	t->timed_ns = vs_unlikely(t->lu->stats[t->w->index].begun[t->row->dir]++ % VS_SAMPLE == 0) ? vs_now_ns() : 0;
	t->io.store = atomic_load_explicit(&t->lu->store, memory_order_acquire);
	t->io.w = t->w;
	t->io.owner = t;
	t->io.done = io_done;
	if (op == VS_MEDIA_UNMAP && !copy_unmap_list(t))
		return true;
	if (vs_media_check(t) == ENDED)
		return true;
	if (vs_unlikely(exclusive || (atomic_load_explicit(&t->lu->gate, memory_order_acquire) & VS_GATE_EXCLUSIVE))) {
		uint64_t lba, blocks;

		vs_media_extent(t, &lba, &blocks);
		if (!vs_range_enter(t, lba, blocks, exclusive))
			return false;
	}
	return run(t);
}

/* What one in VS_SAMPLE took stands for the others: a clock read twice for each would cost more than some commands do. */
static void count_time(const struct vs_task *t, vs_counter *counter)
{
	if (vs_unlikely(t->timed_ns != 0))
		vs_count(counter, (vs_now_ns() - t->timed_ns) * VS_SAMPLE);
}

static void account(struct vs_task *t)
{
	__typeof__(*t->lu->stats) *s = &t->lu->stats[t->w->index];
	bool good = vs_likely(t->status == VS_STATUS_GOOD);

	switch (t->row->media) {
	case VS_MEDIA_READ:
		vs_count(&s->reads, 1);
		count_time(t, &s->read_ns);
		vs_count(&s->read_bytes, t->transferred);
		if (vs_unlikely(t->medium_error))
			vs_count(&s->read_errors, 1);
		break;
	case VS_MEDIA_WRITE_AND_VERIFY:
		vs_count(&s->verifies, 1);
		vs_count(&s->verify_bytes, good ? t->m.length : 0);
		/* fall through */
	case VS_MEDIA_WRITE:
	case VS_MEDIA_WRITE_ATOMIC:
	case VS_MEDIA_ORWRITE:
		vs_count(&s->writes, 1);
		count_time(t, &s->write_ns);
		vs_count(&s->write_bytes, t->transferred);
		if (vs_unlikely(t->medium_error))
			vs_count(&s->write_errors, 1);
		break;
	case VS_MEDIA_VERIFY:
		vs_count(&s->verifies, 1);
		vs_count(&s->verify_bytes, good ? t->m.length : 0);
		if (vs_unlikely(t->medium_error))
			vs_count(&s->verify_errors, 1);
		break;
	case VS_MEDIA_SYNCHRONIZE_CACHE:
		vs_count(&s->flushes, 1);
		break;
	case VS_MEDIA_UNMAP:
		vs_count(&s->unmaps, 1);
		break;
	default:
		vs_count(&s->others, 1);
		break;
	}
}

/* SBC-4 4.7.7: what was written is readable again, marked bad or not. */
static void forget_bad(struct vs_task *t)
{
	uint8_t op = t->row->media;
	uint64_t blocks = t->m.length >> t->lu->block_shift;

	if (t->status != VS_STATUS_GOOD || t->response != VS_RESP_OK || t->aborted)
		return;
	if (op == VS_MEDIA_WRITE || op == VS_MEDIA_WRITE_SAME || op == VS_MEDIA_WRITE_AND_VERIFY || op == VS_MEDIA_WRITE_ATOMIC) {
		if (blocks && t->m.offset >> t->lu->block_shift == t->m.lba)
			vs_bad_clear(t->lu, t->m.lba, blocks);
	} else if (op == VS_MEDIA_UNMAP) {
		for (uint32_t i = 8; i + 16 <= t->param_length; i += 16)
			vs_bad_clear(t->lu, vs_be64(t->param + i), vs_be32(t->param + i + 8));
	}
}

void vs_media_end(struct vs_task *t)
{
	struct vs_worker *w = t->w;
	struct vs_lu *lu = t->lu;
	struct vs_nexus *nexus = t->nexus;

	if (t->row->media != VS_MEDIA_TEST_UNIT_READY && vs_unlikely(t->m.bounce != NULL)) {
		free(t->m.bounce);
		t->m.bounce = NULL;
	}
	if (vs_unlikely(t->timed_out) && t->status == VS_STATUS_CHECK_CONDITION)
		vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ABORTED_COMMAND, .asc_ascq = VS_ASC_COMMAND_TIMEOUT_DURING_PROCESSING });
	if (vs_unlikely(t->range.held))
		vs_range_leave(t);
	if (vs_unlikely(atomic_load_explicit(&lu->bad_blocks, memory_order_relaxed)))
		forget_bad(t);
	account(t);
	t->started = false;
	vs_task_finish(t);
	vs_unpin(w, &nexus->pins);
	vs_unpin(w, &lu->pins);
}

void vs_media_cancel(struct vs_task *t)
{
	/* Whether it waits for its range is for other workers to change, so it is asked under the lock. */
	if (t->m.in_store)
		vs_store_cancel(t->io.store, &t->io);
	else if (vs_range_cancel(t))
		vs_media_end(t);
}

/* ---- what takes too long ------------------------------------------------------------------------------------------------------------------ */

/* Every now and then, while a task is with a store: what is there for too long is cancelled. A store that cannot do that ends it when it does. */
void vs_media_watch(struct vs_worker *w, struct vs_timer *timer)
{
	uint64_t now = vs_now_ns();
	bool any = false;

	for (struct vs_list *l = w->tasks.next; l != &w->tasks;) {
		struct vs_task *t = vs_container_of(l, struct vs_task, link);
		uint64_t limit;

		l = l->next;
		limit = t->lu ? atomic_load_explicit(&t->lu->timeout_ms, memory_order_relaxed) * UINT64_C(1000000) : 0;
		if (!t->started || !limit)
			continue;
		any = true;
		if (!t->m.in_store || t->timed_out || t->aborted || now - t->layer_ns < limit)
			continue;
		t->timed_out = true;
		vs_media_cancel(t);
	}
	if (any)
		vs_timer_set(w, timer, now + WATCH_NS);
}
