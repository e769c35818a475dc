/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for where io_uring is forbidden: epoll for descriptors, helper threads for file operations. It behaves as the io_uring engine
 * does, only slower. It is level-triggered: a ready() that leaves something behind is called again, which the other engine does not promise.
 */
#include <limits.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

/* How often a worker that spins looks at its descriptors although nothing says that there is anything: epoll has no flag in our memory. */
enum { BATCH = 256, LOOKS_PER_SPIN = 64 };

struct epoller {
	int fd;
	int nevents;            /* found by wait, for the next reap */
	bool no_pwait2;
	uint32_t spins;
	uint32_t in_flight;
	struct vs_op *queue_head, **queue_tail; /* submitted, not yet with the helpers */
	uint32_t queued;
	struct vs_slots slots;
	struct vs_io_pool pool;
	struct epoll_event events[BATCH];
};

static struct epoller *epoller_of(const struct vs_worker *w)
{
	return w->engine_data;
}

/* ---- sources ----------------------------------------------------------------------------------------------------------------------------------- */

static int control(struct epoller *e, int what, struct vs_source *s)
{
	struct epoll_event event = { .events = s->events, .data.u64 = (uint64_t)s->slot->generation << 32 | s->slot->index };

	return epoll_ctl(e->fd, what, s->fd, &event) < 0 ? -errno : 0;
}

static int epoll_source_add(struct vs_worker *w, struct vs_source *s)
{
	struct epoller *e = epoller_of(w);
	int err = vs_slots_take(&e->slots, s);

	if (err)
		return err;
	err = control(e, EPOLL_CTL_ADD, s);
	if (err) {
		vs_slots_release(&e->slots, s->slot);
		return err;
	}
	s->armed = true;
	return 0;
}

static void epoll_source_del(struct vs_worker *w, struct vs_source *s)
{
	struct epoller *e = epoller_of(w);

	if (!s->slot || s->removing)
		return;
	s->removing = true;
	s->armed = false;
	/* Cannot fail for a descriptor that is still open, and there is nothing to do if it is not. */
	control(e, EPOLL_CTL_DEL, s);
	vs_slots_gone(&e->slots, s->slot);
}

static void epoll_source_events(struct vs_worker *w, struct vs_source *s, uint32_t events)
{
	if (!s->slot || s->removing || s->events == events)
		return;
	s->events = events;
	control(epoller_of(w), EPOLL_CTL_MOD, s);
}

/* An edge that is told needs no new arming. */
static void epoll_source_arm(struct vs_worker *w, struct vs_source *s)
{
	(void)w;
	(void)s;
}

/* ---- operations ---------------------------------------------------------------------------------------------------------------------------------- */

static void epoll_submit(struct vs_worker *w, struct vs_op *op)
{
	struct epoller *e = epoller_of(w);

	op->next = NULL;
	*e->queue_tail = op;
	e->queue_tail = &op->next;
	e->queued++;
	e->in_flight++;
}

static void hand_over(struct epoller *e)
{
	if (!e->queued)
		return;
	vs_io_pool_push(&e->pool, e->queue_head, e->queue_tail, e->queued);
	e->queue_head = NULL;
	e->queue_tail = &e->queue_head;
	e->queued = 0;
}

/* ---- turns ------------------------------------------------------------------------------------------------------------------------------------------ */

static int dispatch(struct vs_worker *w, struct epoller *e)
{
	int n = e->nevents;

	for (int i = 0; i < n; i++) {
		const struct epoll_event event = e->events[i];
		/* A callback before this one may have removed the source: then it is gone here, though its slot is not free yet. */
		struct vs_slot *slot = vs_slots_find(&e->slots, (uint32_t)event.data.u64, (uint32_t)(event.data.u64 >> 32));
		struct vs_source *s = slot ? slot->source : NULL;
		uint32_t events;

		if (!s || s->removing)
			continue;
		events = event.events & (s->events | EPOLL_ERRORS);
		if (events)
			s->ready(w, s, events);
	}
	e->nevents = 0;
	return n;
}

static int epoll_reap(struct vs_worker *w)
{
	struct epoller *e = epoller_of(w);
	struct vs_op *op;
	int n = 0;

	e->spins = 0;
	if (vs_unlikely(e->slots.gone_head != NULL))
		n += vs_slots_run_gone(&e->slots, w);
	hand_over(e);
	if (!e->nevents) {
		int found = epoll_wait(e->fd, e->events, BATCH, 0);

		e->nevents = vs_max(found, 0);
	}
	n += dispatch(w, e);
	for (op = vs_io_pool_take(&e->pool); op; n++) {
		struct vs_op *next = op->next;

		e->in_flight--;
		op->done(w, op);
		op = next;
	}
	return n;
}

static bool epoll_pending(struct vs_worker *w)
{
	struct epoller *e = epoller_of(w);

	return e->nevents || e->queued || vs_io_pool_has(&e->pool) || e->slots.gone_head || ++e->spins >= LOOKS_PER_SPIN;
}

/* epoll_pwait2 (Linux 5.11) knows nanoseconds; without it, or where a filter refuses it, we sleep up to a millisecond longer. */
static int wait_once(struct epoller *e, int64_t timeout_ns)
{
	int64_t ms;

	if (timeout_ns <= 0)
		return epoll_wait(e->fd, e->events, BATCH, timeout_ns < 0 ? -1 : 0);
#ifdef SYS_epoll_pwait2
	if (!e->no_pwait2) {
		struct { int64_t sec; int64_t nsec; } ts = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
		long n = syscall(SYS_epoll_pwait2, e->fd, e->events, BATCH, &ts, NULL, (size_t)0);

		if (n >= 0 || (errno != ENOSYS && errno != EPERM))
			return (int)n;
		e->no_pwait2 = true;
	}
#endif
	ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
	return epoll_wait(e->fd, e->events, BATCH, (int)vs_min(ms, (int64_t)INT_MAX));
}

static void epoll_wait_for(struct vs_worker *w, int64_t timeout_ns)
{
	struct epoller *e = epoller_of(w);
	uint64_t deadline = timeout_ns > 0 ? vs_now_ns() + (uint64_t)timeout_ns : 0;
	int found;

	hand_over(e);
	if (e->nevents || e->slots.gone_head || !vs_io_pool_sleep(&e->pool))
		return;
	for (;;) {
		found = wait_once(e, timeout_ns);
		if (found >= 0 || errno != EINTR)
			break;
		if (timeout_ns > 0) {
			uint64_t now = vs_now_ns();

			timeout_ns = now < deadline ? (int64_t)(deadline - now) : 0;
		}
	}
	vs_io_pool_awake(&e->pool);
	e->nevents = vs_max(found, 0);
}

static uint32_t epoll_in_flight(struct vs_worker *w)
{
	return epoller_of(w)->in_flight;
}

/* ---- life --------------------------------------------------------------------------------------------------------------------------------------------- */

static void let_go(struct epoller *e)
{
	vs_io_pool_fini(&e->pool);
	if (e->fd >= 0)
		close(e->fd);
	vs_slots_fini(&e->slots);
	free(e);
}

static int epoll_init(struct vs_worker *w)
{
	struct epoller *e = aligned_alloc(VS_CACHE_LINE, sizeof(*e));
	int err;

	if (!e)
		return -ENOMEM;
	memset(e, 0, sizeof(*e));
	vs_slots_init(&e->slots);
	e->queue_tail = &e->queue_head;
	w->engine_data = e;
	e->fd = epoll_create1(EPOLL_CLOEXEC);
	err = e->fd < 0 ? -errno : vs_io_pool_init(&e->pool, w);
	if (!err)
		err = epoll_source_add(w, &e->pool.source);
	if (err) {
		let_go(e);
		w->engine_data = NULL;
	}
	return err;
}

/* Ops that are in flight end first. Sources that are still there are let go without removed(): their owners keep the descriptors. */
static void epoll_fini(struct vs_worker *w)
{
	struct epoller *e = epoller_of(w);

	while (e->in_flight || e->slots.gone_head) {
		epoll_wait_for(w, -1);
		epoll_reap(w);
	}
	for (uint32_t i = 0; i < e->slots.n; i++)
		if (e->slots.table[i]->source)
			vs_slots_release(&e->slots, e->slots.table[i]);
	let_go(e);
	w->engine_data = NULL;
}

const struct vs_engine_ops vs_engine_epoll = {
	.name = "epoll",
	.init = epoll_init,
	.fini = epoll_fini,
	.source_add = epoll_source_add,
	.source_del = epoll_source_del,
	.source_events = epoll_source_events,
	.source_arm = epoll_source_arm,
	.submit = epoll_submit,
	.reap = epoll_reap,
	.pending = epoll_pending,
	.wait = epoll_wait_for,
	.in_flight = epoll_in_flight,
};
