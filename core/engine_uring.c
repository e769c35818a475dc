/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring engine: one ring a worker, through which descriptors (multishot polls), file operations and the helper threads' results
 * arrive. Submitting fills a queue entry, nothing more; reap enters the kernel once for all of them. It does not resubmit short reads and
 * writes: stores do.
 *
 * DEFER_TASKRUN fits a worker that spins, although the kernel then posts completions only while we are inside: with TASKRUN_FLAG it raises a
 * flag in the mapped ring when there are any to post, so that pending() remains a few plain loads, and the kernel neither interrupts the
 * worker nor runs its work in the middle of an unrelated system call. Where it is refused (before 6.1) COOP_TASKRUN with the same flag
 * (5.19) does nearly the same, and without that (5.15) the kernel interrupts us and the completion is simply there.
 */
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"

/* When the completion queue is full the kernel keeps what does not fit (FEAT_NODROP): 4096 only makes that rare. */
enum { SQ_ENTRIES = 256, CQ_ENTRIES = 4096 };
/* The low bits of user_data. An op is its address; the others are generation << 32 | slot << 2 | tag. */
enum { TAG_OP = 0, TAG_SOURCE = 1, TAG_CANCEL = 2, TAG_MASK = 3 };

struct uring {
	struct io_uring ring;
	struct vs_slots slots;
	struct vs_slot *todo_head, **todo_tail; /* want an entry that the full queue did not have */
	struct vs_op *backlog_head, **backlog_tail;
	uint32_t in_flight;
	struct vs_io_pool pool; /* started by the first VS_OP_CALL */
};

static const uint32_t needed_features = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;

/* ---- can we have it? ----------------------------------------------------------------------------------------------------------------------- */

static const struct { uint8_t code; const char *name; } needed_ops[] = {
	{ IORING_OP_READV, "READV" }, { IORING_OP_WRITEV, "WRITEV" }, { IORING_OP_READ, "READ" }, { IORING_OP_WRITE, "WRITE" },
	{ IORING_OP_FSYNC, "FSYNC" }, { IORING_OP_FALLOCATE, "FALLOCATE" }, { IORING_OP_POLL_ADD, "POLL_ADD" },
	{ IORING_OP_ASYNC_CANCEL, "ASYNC_CANCEL" },
};

static char why_not[128];

static int ring_open(struct io_uring *ring, unsigned entries, struct io_uring_params *out);

static void find_why_not(void)
{
	struct io_uring_params params;
	struct io_uring_probe *probe;
	struct io_uring ring;
	int err = ring_open(&ring, 2, &params);

	if (err) {
		snprintf(why_not, sizeof(why_not), "io_uring_setup: %s", strerror(-err));
		return;
	}
	probe = io_uring_get_probe_ring(&ring);
	if (!probe)
		snprintf(why_not, sizeof(why_not), "io_uring_register: the kernel cannot say which operations it has (Linux 5.15 or later is needed)");
	/* Multishot polls have no bit of their own; they came with RSRC_TAGS (5.13). */
	else if ((params.features & needed_features) != needed_features)
		snprintf(why_not, sizeof(why_not), "io_uring: the kernel lacks features %#x (Linux 5.15 or later is needed)",
			 needed_features & ~params.features);
	for (size_t i = 0; probe && !why_not[0] && i < sizeof(needed_ops) / sizeof(needed_ops[0]); i++)
		if (!io_uring_opcode_supported(probe, needed_ops[i].code))
			snprintf(why_not, sizeof(why_not), "io_uring: the kernel lacks %s (Linux 5.15 or later is needed)", needed_ops[i].name);
	if (probe)
		io_uring_free_probe(probe);
	io_uring_queue_exit(&ring);
}

const char *vs_uring_why_not(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_why_not);
	return why_not[0] ? why_not : NULL;
}

/* ---- entering the kernel -------------------------------------------------------------------------------------------------------------------- */

static int ring_open(struct io_uring *ring, unsigned entries, struct io_uring_params *out)
{
	/* From the newest kernel's flags to the oldest's. The ring's descriptor is close-on-exec by itself. */
	static const unsigned flags[] = {
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	int err = -EINVAL;

	for (size_t i = 0; err == -EINVAL && i < sizeof(flags) / sizeof(flags[0]); i++) {
		memset(out, 0, sizeof(*out));
		out->flags = flags[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
		out->cq_entries = vs_max((unsigned)CQ_ENTRIES * entries / SQ_ENTRIES, 2 * entries);
		err = io_uring_queue_init_params(entries, ring, out);
	}
	return err;
}

static struct uring *uring_of(const struct vs_worker *w)
{
	return w->engine_data;
}

static bool kernel_has_news(const struct uring *e)
{
	return IO_URING_READ_ONCE(*e->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Submits, and lets the kernel post what it deferred. What it refuses (-EAGAIN, -EBUSY: out of memory, completions first) stays queued. */
static void enter(struct uring *e)
{
	while (io_uring_submit_and_get_events(&e->ring) == -EINTR)
		;
}

/* An entry, submitting what is queued when there is none; NULL when the kernel takes nothing now. */
static struct io_uring_sqe *entry(struct uring *e)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);

	if (vs_unlikely(!sqe)) {
		while (io_uring_submit(&e->ring) == -EINTR)
			;
		sqe = io_uring_get_sqe(&e->ring);
	}
	return sqe;
}

/* ---- sources ----------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t slot_data(const struct vs_slot *slot, uint64_t tag)
{
	return (uint64_t)slot->generation << 32 | (uint64_t)slot->index << 2 | tag;
}

/* The next step of a slot towards what its source wants: armed with its events, or gone. False: the queue is full. */
static bool slot_step(struct uring *e, struct vs_slot *slot)
{
	struct vs_source *s = slot->source;
	struct io_uring_sqe *sqe;

	if (s->removing && !s->armed) {
		if (!slot->gone)
			vs_slots_gone(&e->slots, slot);
		return true;
	}
	sqe = entry(e);
	if (!sqe)
		return false;
	if (s->armed) {
		/*
		 * Not POLL_REMOVE: that gives up with -EALREADY while an event waits to be posted, so that whoever kicks fast enough decides
		 * how long a removal takes. This marks the poll, which then ends whatever else it has to say.
		 */
		io_uring_prep_cancel64(sqe, slot_data(slot, TAG_SOURCE), 0);
		sqe->user_data = slot_data(slot, TAG_CANCEL);
		slot->cancelling = true;
		return true;
	}
	s->generation = ++slot->generation;
	if (s->once)
		io_uring_prep_poll_add(sqe, s->fd, s->events);
	else
		io_uring_prep_poll_multishot(sqe, s->fd, s->events);
	sqe->user_data = slot_data(slot, TAG_SOURCE);
	s->armed = true;
	return true;
}

static void slot_advance(struct uring *e, struct vs_slot *slot)
{
	if (slot->queued || slot_step(e, slot))
		return;
	slot->queued = true;
	slot->next = NULL;
	*e->todo_tail = slot;
	e->todo_tail = &slot->next;
}

/*
 * io_uring finds a bad descriptor only later, and takes a file that cannot be polled (a regular one, /dev/zero) for always ready: a front end
 * that sends one as its kick would keep the worker busy. epoll refuses both at once, so ask it.
 */
static int pollable(int fd)
{
	struct epoll_event event = { .events = 0 };
	int epoll = epoll_create1(EPOLL_CLOEXEC), err;

	if (epoll < 0)
		return -errno;
	err = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
	close(epoll);
	return err;
}

static int uring_source_add(struct vs_worker *w, struct vs_source *s)
{
	struct uring *e = uring_of(w);
	int err = s->slot ? -EBUSY : pollable(s->fd);

	if (!err)
		err = vs_slots_take(&e->slots, s);
	if (!err)
		slot_advance(e, s->slot);
	return err;
}

static void uring_source_del(struct vs_worker *w, struct vs_source *s)
{
	struct uring *e = uring_of(w);

	if (!s->slot || s->removing)
		return;
	s->removing = true;
	if (!s->slot->cancelling)
		slot_advance(e, s->slot);
}

static void uring_source_events(struct vs_worker *w, struct vs_source *s, uint32_t events)
{
	struct uring *e = uring_of(w);

	if (!s->slot || s->removing || s->events == events)
		return;
	s->events = events;
	/* The old poll is cancelled; its end arms the new one. One that was not armed yet takes the new events by itself. */
	if (s->armed && !s->slot->cancelling)
		slot_advance(e, s->slot);
}

static void uring_source_arm(struct vs_worker *w, struct vs_source *s)
{
	if (s->slot && !s->removing && !s->armed)
		slot_advance(uring_of(w), s->slot);
}

static void source_completed(struct vs_worker *w, struct uring *e, const struct io_uring_cqe *cqe)
{
	struct vs_slot *slot = vs_slots_find(&e->slots, (uint32_t)cqe->user_data >> 2, (uint32_t)(cqe->user_data >> 32));
	bool ended = !(cqe->flags & IORING_CQE_F_MORE);
	uint32_t events, generation;
	struct vs_source *s;

	if (!slot)
		return;
	s = slot->source;
	generation = slot->generation;
	if (ended) {
		s->armed = false;
		slot->cancelling = false;
	}
	if (!s->removing) {
		/* A descriptor that cannot be polled (any more) is its owner's affair, and is not polled again. */
		bool broken = cqe->res < 0 && cqe->res != -ECANCELED && cqe->res != -ENOMEM && cqe->res != -EAGAIN && cqe->res != -EINTR;

		events = cqe->res > 0 ? (uint32_t)cqe->res & (s->events | EPOLL_ERRORS) : 0;
		if (broken)
			events = EPOLL_ERRORS;
		if (events)
			s->ready(w, s, events);
		if ((broken || (s->once && events)) && !s->removing)
			return;
	}
	/* ready() may have removed the source or changed its events, but it runs outside slot_step: the slot is still this one's. */
	if (ended && slot->source == s && slot->generation == generation && !s->armed && !slot->gone)
		slot_advance(e, slot);
}

static void cancel_completed(struct uring *e, const struct io_uring_cqe *cqe)
{
	struct vs_slot *slot = vs_slots_find(&e->slots, (uint32_t)cqe->user_data >> 2, (uint32_t)(cqe->user_data >> 32));

	/* 0, or -ENOENT because the poll had ended: its last completion tells. Else nothing was cancelled: once more. */
	if (!slot || !slot->cancelling || cqe->res == 0 || cqe->res == -ENOENT)
		return;
	slot->cancelling = false;
	slot_advance(e, slot);
}

/* ---- operations ---------------------------------------------------------------------------------------------------------------------------------- */

static bool op_is_native(const struct vs_op *op)
{
	return op->kind == VS_OP_READV || op->kind == VS_OP_WRITEV || op->kind == VS_OP_FDATASYNC || op->kind == VS_OP_FALLOCATE;
}

static void fill(struct io_uring_sqe *sqe, const struct vs_op *op)
{
	uint64_t offset = (uint64_t)vs_op_offset(op);
	/* One buffer needs no array copied; its length must fit 31 bits as the kernel cuts it there anyway. */
	bool single = op->niov == 1 && op->iov[0].iov_len <= INT32_MAX;

	switch (op->kind) {
	case VS_OP_READV:
		if (single)
			io_uring_prep_read(sqe, op->fd, op->iov[0].iov_base, (unsigned)op->iov[0].iov_len, offset);
		else
			io_uring_prep_readv(sqe, op->fd, op->iov, (unsigned)op->niov, offset);
		sqe->rw_flags = (__kernel_rwf_t)op->rw_flags;
		break;
	case VS_OP_WRITEV:
		if (single)
			io_uring_prep_write(sqe, op->fd, op->iov[0].iov_base, (unsigned)op->iov[0].iov_len, offset);
		else
			io_uring_prep_writev(sqe, op->fd, op->iov, (unsigned)op->niov, offset);
		sqe->rw_flags = (__kernel_rwf_t)op->rw_flags;
		break;
	case VS_OP_FDATASYNC:
		io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
		break;
	default:
		io_uring_prep_fallocate(sqe, op->fd, op->mode, (off_t)offset, (off_t)op->length);
		break;
	}
	sqe->user_data = (uintptr_t)op | TAG_OP;
}

/* The helper threads, and their eventfd in the ring. */
static int pool_start(struct vs_worker *w, struct uring *e)
{
	int err;

	if (e->pool.ready)
		return 0;
	err = vs_io_pool_init(&e->pool, w);
	if (err)
		return err;
	err = uring_source_add(w, &e->pool.source);
	if (err)
		vs_io_pool_fini(&e->pool);
	return err;
}

static void submit_call(struct vs_worker *w, struct uring *e, struct vs_op *op)
{
	int err = pool_start(w, e);

	op->next = NULL;
	if (!err) {
		vs_io_pool_push(&e->pool, op, &op->next, 1);
		return;
	}
	op->result = err;
	vs_io_pool_end(&e->pool, op);
}

static void submit_native(struct uring *e, struct vs_op *op)
{
	struct io_uring_sqe *sqe = e->backlog_head ? NULL : entry(e);

	if (vs_likely(sqe != NULL)) {
		fill(sqe, op);
		return;
	}
	op->next = NULL;
	*e->backlog_tail = op;
	e->backlog_tail = &op->next;
}

static void uring_submit(struct vs_worker *w, struct vs_op *op)
{
	struct uring *e = uring_of(w);

	e->in_flight++;
	if (vs_likely(op_is_native(op)))
		submit_native(e, op);
	else
		submit_call(w, e, op);
}

static void op_completed(struct vs_worker *w, struct uring *e, struct vs_op *op, ssize_t result)
{
	if (vs_unlikely(result == -EINTR)) {
		submit_native(e, op);
		return;
	}
	op->result = result;
	e->in_flight--;
	op->done(w, op);
}

/* ---- turns ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Moves to the queue what did not fit earlier, oldest first. False: some is left. */
static bool catch_up(struct uring *e)
{
	while (e->todo_head) {
		struct vs_slot *slot = e->todo_head, *next = slot->next;

		/* Off the list first: a slot that is gone goes on that list by the same link. */
		e->todo_head = next;
		if (!next)
			e->todo_tail = &e->todo_head;
		slot->queued = false;
		if (slot_step(e, slot))
			continue;
		slot->queued = true;
		slot->next = next;
		e->todo_head = slot;
		if (!next)
			e->todo_tail = &slot->next;
		return false;
	}
	while (e->backlog_head) {
		struct vs_op *op = e->backlog_head;
		struct io_uring_sqe *sqe = entry(e);

		if (!sqe)
			return false;
		e->backlog_head = op->next;
		if (!e->backlog_head)
			e->backlog_tail = &e->backlog_head;
		fill(sqe, op);
	}
	return true;
}

static int consume(struct vs_worker *w, struct uring *e)
{
	/* What arrives meanwhile waits for the next turn: rings want to be looked at, too. */
	unsigned n = io_uring_cq_ready(&e->ring);

	for (unsigned i = 0; i < n; i++) {
		/* By value, and given back before its callback: callbacks submit, and the kernel may want the room. */
		struct io_uring_cqe cqe = e->ring.cq.cqes[*e->ring.cq.khead & e->ring.cq.ring_mask];

		io_uring_cq_advance(&e->ring, 1);
		switch (cqe.user_data & TAG_MASK) {
		case TAG_OP:
			op_completed(w, e, (struct vs_op *)(uintptr_t)cqe.user_data, cqe.res);
			break;
		case TAG_SOURCE:
			source_completed(w, e, &cqe);
			break;
		default:
			cancel_completed(e, &cqe);
			break;
		}
	}
	return (int)n;
}

static int uring_reap(struct vs_worker *w)
{
	struct uring *e = uring_of(w);
	struct vs_op *op;
	int n = 0;

	if (vs_unlikely(e->slots.gone_head != NULL))
		n += vs_slots_run_gone(&e->slots, w);
	if (vs_unlikely(e->todo_head || e->backlog_head))
		catch_up(e);
	if (io_uring_sq_ready(&e->ring) || kernel_has_news(e))
		enter(e);
	n += consume(w, e);
	for (op = vs_io_pool_take(&e->pool); op; n++) {
		struct vs_op *next = op->next;

		e->in_flight--;
		op->done(w, op);
		op = next;
	}
	return n;
}

static bool uring_pending(struct vs_worker *w)
{
	struct uring *e = uring_of(w);

	return io_uring_sq_ready(&e->ring) || io_uring_cq_ready(&e->ring) || kernel_has_news(e) || vs_io_pool_has(&e->pool) ||
	       e->slots.gone_head || e->backlog_head || e->todo_head;
}

static void uring_wait(struct vs_worker *w, int64_t timeout_ns)
{
	struct uring *e = uring_of(w);
	uint64_t deadline = timeout_ns > 0 ? vs_now_ns() + (uint64_t)timeout_ns : 0;
	struct io_uring_cqe *cqe;
	int err;

	if (!catch_up(e) || e->slots.gone_head || !vs_io_pool_sleep(&e->pool)) {
		enter(e);
		return;
	}
	do {
		struct __kernel_timespec ts = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };

		err = io_uring_submit_and_wait_timeout(&e->ring, &cqe, 1, timeout_ns < 0 ? NULL : &ts, NULL);
		if (err == -EINTR && timeout_ns > 0) {
			uint64_t now = vs_now_ns();

			timeout_ns = now < deadline ? (int64_t)(deadline - now) : 0;
		}
	} while (err == -EINTR);
	vs_io_pool_awake(&e->pool);
}

static uint32_t uring_in_flight(struct vs_worker *w)
{
	return uring_of(w)->in_flight;
}

/* ---- life --------------------------------------------------------------------------------------------------------------------------------------------- */

static int uring_init(struct vs_worker *w)
{
	struct io_uring_params params;
	struct uring *e = aligned_alloc(VS_CACHE_LINE, sizeof(*e));
	int err;

	if (!e)
		return -ENOMEM;
	memset(e, 0, sizeof(*e));
	vs_slots_init(&e->slots);
	e->todo_tail = &e->todo_head;
	e->backlog_tail = &e->backlog_head;
	err = ring_open(&e->ring, SQ_ENTRIES, &params);
	if (err) {
		free(e);
		return err;
	}
	if ((params.features & needed_features) != needed_features) {
		io_uring_queue_exit(&e->ring);
		free(e);
		return -ENOSYS;
	}
	/* Both only make things cheaper (5.18; fork copies no ring), so a refusal is no error. */
	io_uring_register_ring_fd(&e->ring);
	io_uring_ring_dontfork(&e->ring);
	w->engine_data = e;
	return 0;
}

static void settle(struct vs_worker *w, struct uring *e, uint32_t slots)
{
	for (;;) {
		uring_reap(w);
		if (!e->in_flight && e->slots.used <= slots)
			return;
		uring_wait(w, -1);
	}
}

/* Ops that are in flight end first. Sources that are still there are let go without removed(): their owners keep the descriptors. */
static void uring_fini(struct vs_worker *w)
{
	struct uring *e = uring_of(w);

	settle(w, e, UINT32_MAX);
	for (uint32_t i = 0; i < e->slots.n; i++) {
		struct vs_source *s = e->slots.table[i]->source;

		/* Not yet the helpers' eventfd: a removed() may still start a call. */
		if (!s || s->removing || s == &e->pool.source)
			continue;
		s->removed = NULL;
		uring_source_del(w, s);
	}
	settle(w, e, e->pool.ready ? 1 : 0);
	if (e->pool.ready)
		uring_source_del(w, &e->pool.source);
	settle(w, e, 0);
	vs_io_pool_fini(&e->pool);
	io_uring_queue_exit(&e->ring);
	vs_slots_fini(&e->slots);
	free(e);
	w->engine_data = NULL;
}

const struct vs_engine_ops vs_engine_uring = {
	.name = "io_uring",
	.init = uring_init,
	.fini = uring_fini,
	.source_add = uring_source_add,
	.source_del = uring_source_del,
	.source_events = uring_source_events,
	.source_arm = uring_source_arm,
	.submit = uring_submit,
	.reap = uring_reap,
	.pending = uring_pending,
	.wait = uring_wait,
	.in_flight = uring_in_flight,
};
