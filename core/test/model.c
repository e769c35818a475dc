// SPDX-License-Identifier: Apache-2.0
/* See model.h. The medium is read and written by words, atomically: commands that overlap may tear each other, and only that. */
#include "check.h"
#include "model.h"
#include "gen/tables.h"

struct model model;
_Thread_local uint64_t random_state;

enum { WAIT_BEFORE = 1, WAIT_BETWEEN = 2, CUT = 3 };

struct model_store {
	struct vs_store store;
	uint64_t seed;
	_Atomic uint64_t words[BLOCKS * WORDS];
};

static struct vs_task *task_of(const struct vs_io *io)
{
	/* A flush that goes on by itself (SYNCHRONIZE CACHE with IMMED) belongs to the LU. */
	return io->owner == vs_container_of(io, struct vs_task, io) ? io->owner : NULL;
}

static void words_move(struct model_store *m, const struct vs_io *io, uint64_t from, uint64_t to)
{
	uint64_t word;

	for (uint64_t at = from; at < to; at += 8) {
		_Atomic uint64_t *w = &m->words[(io->offset + at) / 8];

		if (io->op == VS_IO_READ) {
			word = atomic_load_explicit(w, memory_order_relaxed);
			CHECK_EQ(vs_iov_from_buffer(io->iov, io->niov, at, &word, 8), 8);
		} else {
			word = 0;
			if (io->op == VS_IO_WRITE)
				CHECK_EQ(vs_iov_to_buffer(io->iov, io->niov, at, &word, 8), 8);
			atomic_store_explicit(w, word, memory_order_relaxed);
		}
	}
}

/* True of every moment in which a command has an operation in the store. */
static void must_be_allowed(const struct vs_task *t)
{
	uint32_t n = t ? nexus_of(initiator_of(t->tag)) : 0;

	CHECK(!atomic_load(&model.fenced_lu) && !atomic_load(&model.faulted));
	if (t)
		CHECK(!atomic_load(&model.fenced_nexus[n]));
}

static void enters(const struct vs_io *io, const struct vs_task *t)
{
	uint32_t who;

	atomic_fetch_add(&model.ios, 1);
	atomic_fetch_add(&model.in_flight, 1);
	if (!t)
		return;
	who = initiator_of(t->tag);
	CHECK(who < INITIATORS);
	atomic_fetch_add(&model.in_flight_nexus[nexus_of(who)], 1);
	CHECK(!t->aborted);
	CHECK(t->tag > atomic_load(&model.barred[who]));
	if (t->attribute != VS_ATTR_HEAD_OF_QUEUE) {
		int64_t others = atomic_fetch_add(&model.in_set, 1);

		if (t->attribute == VS_ATTR_ORDERED) {
			CHECK_EQ(others, 0);
			CHECK(!atomic_exchange(&model.ordered, 1));
		} else {
			CHECK(!atomic_load(&model.ordered));
		}
	}
	if (io->op == VS_IO_WRITE && io->offset == (SEQUENCE + who) * BLOCK && t->attribute != VS_ATTR_HEAD_OF_QUEUE)
		CHECK(atomic_exchange(&model.last_sequence[who], t->tag) < t->tag);
	must_be_allowed(t);
}

static void leaves(const struct vs_io *io, const struct vs_task *t)
{
	(void)io;
	must_be_allowed(t);
	if (t) {
		if (t->attribute != VS_ATTR_HEAD_OF_QUEUE) {
			if (t->attribute == VS_ATTR_ORDERED)
				atomic_store(&model.ordered, 0);
			atomic_fetch_sub(&model.in_set, 1);
		}
		atomic_fetch_sub(&model.in_flight_nexus[nexus_of(initiator_of(t->tag))], 1);
	}
	atomic_fetch_sub(&model.in_flight, 1);
}

/* Half now, half later, or all at once. True: it has ended. */
static bool first_half(struct model_store *m, struct vs_io *io)
{
	uint64_t half = io->length / 2 & ~UINT64_C(7);

	must_be_allowed(task_of(io));
	if (io->op == VS_IO_FLUSH)
		return true;
	words_move(m, io, 0, half);
	if (one_in(8)) {
		io->state = WAIT_BETWEEN;
		CHECK_EQ(vs_timer_set(io->w, &io->timer, vs_now_ns() + random_below(100000)), 0);
		return false;
	}
	words_move(m, io, half, io->length);
	return true;
}

static void model_fire(struct vs_worker *w, struct vs_timer *timer)
{
	struct vs_io *io = vs_container_of(timer, struct vs_io, timer);
	struct model_store *m = vs_container_of(io->store, struct model_store, store);
	int32_t err = VS_ERR_NONE;

	(void)w;
	if (io->state == CUT) {
		atomic_fetch_add(&model.cuts, 1);
		err = VS_ERR_ABORTED;
	} else if (io->state == WAIT_BEFORE) {
		if (!first_half(m, io))
			return;
	} else {
		words_move(m, io, io->length / 2 & ~UINT64_C(7), io->length);
	}
	leaves(io, task_of(io));
	vs_io_end(io, err);
}

static enum vs_submit model_submit(struct vs_store *s, struct vs_io *io)
{
	struct model_store *m = vs_container_of(s, struct model_store, store);

	if (!random_state)
		random_state = m->seed + 77 * (io->w->index + 1);
	enters(io, task_of(io));
	vs_timer_init(&io->timer, model_fire);
	io->state = 0;
	if (one_in(3)) {
		io->state = WAIT_BEFORE;
		CHECK_EQ(vs_timer_set(io->w, &io->timer, vs_now_ns() + random_below(one_in(20) ? 2000000 : 100000)), 0);
		return VS_SUBMIT_PENDING;
	}
	if (!first_half(m, io))
		return VS_SUBMIT_PENDING;
	leaves(io, task_of(io));
	return VS_SUBMIT_DONE;
}

/* Only what has not touched the medium yet can still be left out: an aborted command tears nothing. */
static void model_cancel(struct vs_store *s, struct vs_io *io)
{
	(void)s;
	if (io->state != WAIT_BEFORE)
		return;
	io->state = CUT;
	CHECK_EQ(vs_timer_set(io->w, &io->timer, 0), 0);
}

static void model_destroy(struct vs_store *s)
{
	vs_store_fini(s);
	free(vs_container_of(s, struct model_store, store));
}

static const struct vs_store_ops ops = { .kind = "model", .submit = model_submit, .destroy = model_destroy, .cancel = model_cancel };

int model_store(vs_core *core, uint64_t seed, vs_store **out)
{
	struct model_store *m = calloc(1, sizeof(*m));

	if (!m || vs_store_init(&m->store, core, &ops, NULL)) {
		free(m);
		return -ENOMEM;
	}
	m->seed = seed;
	m->store.info = (struct vs_store_info){ .size = sizeof(m->words), .io_align = 1, .unmap = VS_CAP_NATIVE, .zero = VS_CAP_NATIVE,
						.unmapped_reads_zero = 1, .volatile_cache = 1 };
	*out = &m->store;
	return 0;
}

uint64_t model_word(vs_store *s, uint32_t block)
{
	return atomic_load(&vs_container_of(s, struct model_store, store)->words[block * WORDS]);
}

bool model_whole(vs_store *s, uint32_t block)
{
	struct model_store *m = vs_container_of(s, struct model_store, store);

	for (uint32_t i = 1; i < WORDS; i++)
		if (atomic_load(&m->words[block * WORDS + i]) != model_word(s, block))
			return false;
	return true;
}
