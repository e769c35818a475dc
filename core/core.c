// SPDX-License-Identifier: Apache-2.0
/*
 * The core's life, its messages in both directions, epochs and pins. What a worker does in its loop stands in worker.c, what a task is in
 * task.c. Nothing here runs per request except vs_worker_push, vs_worker_wake and vs_upcall.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core.h"
#include "worker.h"

#ifdef VS_TSAN
_Atomic uint32_t vs_tsan_fence;
_Atomic uint32_t vs_tsan_shared[VS_TSAN_PLACES];
#endif

uint64_t vs_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint16_t vs_load_acquire_u16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
void vs_store_release_u16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }
void vs_mb(void) { vs_fence(); }

/* ---- life cycle -------------------------------------------------------------------------------------------------------------------- */

static const struct vs_engine_ops *engine_of(uint32_t kind)
{
	switch (kind) {
	case VS_ENGINE_URING:
		return &vs_engine_uring;
	case VS_ENGINE_EPOLL:
		return &vs_engine_epoll;
	default:
		return vs_uring_why_not() ? &vs_engine_epoll : &vs_engine_uring;
	}
}

const char *vs_engine_why_not(uint32_t kind)
{
	return kind == VS_ENGINE_URING ? vs_uring_why_not() : NULL;
}

int vs_core_create(const struct vs_config *config, vs_core **out)
{
	struct vs_core *c;
	int err = -ENOMEM;

	if (config->nworkers < 1 || config->nworkers > VS_MAX_WORKERS || config->engine > VS_ENGINE_EPOLL || config->poll_mode > VS_POLL_NEVER)
		return -EINVAL;
	if (config->engine == VS_ENGINE_URING && vs_uring_why_not())
		return -ENOTSUP;
	err = vs_sigbus_install();
	if (err)
		return err;
	c = aligned_alloc(VS_CACHE_LINE, sizeof(*c));
	if (!c)
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	c->config = *config;
	c->engine = engine_of(config->engine);
	c->up_tail = &c->up_head;
	atomic_store(&c->epoch, 1);
	err = vs_ranges_init(c);
	if (err)
		goto free_core;
	c->up_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (c->up_fd < 0) {
		err = -errno;
		goto free_ranges;
	}
	c->workers = aligned_alloc(VS_CACHE_LINE, sizeof(*c->workers) * config->nworkers);
	if (!c->workers) {
		err = -ENOMEM;
		goto close_up;
	}
	memset(c->workers, 0, sizeof(*c->workers) * config->nworkers);
	for (uint32_t i = 0; i < config->nworkers; i++) {
		err = vs_worker_init(&c->workers[i], c, i);
		if (err) {
			while (i--)
				vs_worker_fini(&c->workers[i]);
			goto free_workers;
		}
	}
	*out = c;
	return 0;
free_workers:
	free(c->workers);
close_up:
	close(c->up_fd);
free_ranges:
	vs_ranges_fini(c);
free_core:
	free(c);
	return err;
}

int vs_core_start(vs_core *c)
{
	for (uint32_t i = 0; i < c->config.nworkers; i++) {
		int err = vs_worker_start(&c->workers[i]);

		if (err)
			return err;
	}
	c->started = true;
	return vs_watchdog_start(c);
}

void vs_core_destroy(vs_core *c)
{
	struct vs_irefusal_info refusal;
	struct vs_upcall up;
	struct vs_task_info info;

	/* The watchdog outlives the workers' loops: one may hang at this very moment. It may not look at a thread that was joined. */
	for (uint32_t i = 0; i < c->config.nworkers; i++)
		vs_worker_stop(&c->workers[i]);
	vs_watchdog_stop(c);
	for (uint32_t i = 0; i < c->config.nworkers; i++)
		vs_worker_join(&c->workers[i]);
	vs_watchdog_free(c);
	while (vs_core_drain(c, &up, &info, 1))
		if (up.kind == VS_UP_IREFUSED)
			vs_irefusal_take(up.refusal, &refusal);
	for (uint32_t i = 0; i < c->config.nworkers; i++)
		vs_worker_fini(&c->workers[i]);
	free(c->workers);
	close(c->up_fd);
	vs_ranges_fini(c);
	free(c);
}

int vs_core_upcall_fd(vs_core *c) { return c->up_fd; }
const char *vs_core_engine_name(vs_core *c) { return c->engine->name; }

/* ---- to Python ------------------------------------------------------------------------------------------------------------------------ */

void vs_upcall(struct vs_core *c, struct vs_upnode *n)
{
	struct vs_upnode *old = atomic_load_explicit(&c->up_stack, memory_order_relaxed);

	do {
		n->next = old;
	} while (!atomic_compare_exchange_weak_explicit(&c->up_stack, &old, n, memory_order_seq_cst, memory_order_relaxed));
	/* Who finds the stack empty wakes the loop: one write for a batch. */
	if (!old) {
		uint64_t one = 1;
		ssize_t r = write(c->up_fd, &one, sizeof(one));

		(void)r; /* the counter cannot overflow: at most one write per emptied stack */
	}
}

void vs_upcall_new(struct vs_core *c, uint32_t kind, uint32_t worker, uint64_t cookie, uint64_t aux, int32_t err, void *object)
{
	struct vs_upnode *n = malloc(sizeof(*n));

	if (!n)
		abort(); /* 64 bytes for an event that the control plane waits for: without it, it would wait for ever */
	*n = (struct vs_upnode){ .kind = kind, .worker = worker, .cookie = cookie, .aux = aux, .err = err, .allocated = true, .object = object };
	vs_upcall(c, n);
}

void vs_upcall_after_flush(struct vs_worker *w, uint32_t kind, uint64_t cookie, uint64_t aux, int32_t err)
{
	struct vs_upnode *n = malloc(sizeof(*n));

	if (!n)
		abort();
	*n = (struct vs_upnode){ .kind = kind, .worker = w->index, .cookie = cookie, .aux = aux, .err = err, .allocated = true };
	*w->deferred_tail = n;
	w->deferred_tail = &n->next;
}

/* Takes what the workers pushed (newest first) and appends it in the order of arrival. */
static void collect(struct vs_core *c)
{
	struct vs_upnode *n = atomic_exchange_explicit(&c->up_stack, NULL, memory_order_seq_cst);
	struct vs_upnode *reversed = NULL, *last = n;

	if (!n)
		return;
	while (n) {
		struct vs_upnode *next = n->next;

		n->next = reversed;
		reversed = n;
		n = next;
	}
	*c->up_tail = reversed;
	c->up_tail = &last->next;
}

static void hand_over(struct vs_core *c, struct vs_upnode *n, struct vs_upcall *up)
{
	*up = (struct vs_upcall){ .kind = n->kind, .worker = n->worker, .cookie = n->cookie, .aux = n->aux, .err = n->err };
	switch (n->kind) {
	case VS_UP_TASK: {
		struct vs_task *t = n->object;

		up->task = t;
		/* The other half of vs_task_escalate's count: see vs_gate_open. */
		if (t->nexus) {
			t->nexus->received++;
			t->lu->received++;
		}
		break;
	}
	case VS_UP_CTRL:
		up->ctrl = n->object;
		break;
	case VS_UP_STORE_IO:
		up->io = n->object;
		break;
	case VS_UP_IPDU:
		up->pdu = n->object;
		break;
	case VS_UP_IREFUSED:
		up->refusal = n->object;
		break;
	case VS_UP_HMSG:
		up->hmsg = n->object;
		break;
	case VS_UP_EPOCH:
		/* The node is the worker's again with this store: nothing may be read from it after. Read the newest epoch: the worker may have
		 * moved on before it could send again. */
		atomic_store(&c->workers[up->worker].epoch_sent, 0);
		up->aux = atomic_load(&c->workers[up->worker].epoch_seen);
		return;
	default:
		break;
	}
	if (n->allocated)
		free(n);
}

int vs_core_drain(vs_core *c, struct vs_upcall *out, struct vs_task_info *infos, int max)
{
	int n = 0;
	uint64_t ignored;
	bool cleared = !c->up_head;

	if (cleared) {
		/* Clear first, then look: a push in between leaves the eventfd readable. */
		ssize_t r = read(c->up_fd, &ignored, sizeof(ignored));

		(void)r;
		collect(c);
	}
	while (n < max && c->up_head) {
		struct vs_upnode *node = c->up_head;

		c->up_head = node->next;
		if (!c->up_head)
			c->up_tail = &c->up_head;
		hand_over(c, node, &out[n]);
		if (out[n].kind == VS_UP_TASK)
			vs_task_info(out[n].task, &infos[n]);
		n++;
		if (!c->up_head)
			collect(c);
	}
	if (vs_unlikely(cleared && c->up_head)) {
		uint64_t one = 1;
		ssize_t r = write(c->up_fd, &one, sizeof(one)); /* there is more than the caller took */

		(void)r;
	}
	return n;
}

/* ---- to a worker ------------------------------------------------------------------------------------------------------------------------- */

void vs_worker_push(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_msg *old = atomic_load_explicit(&w->inbox, memory_order_relaxed);

	do {
		m->next = old;
	} while (!atomic_compare_exchange_weak_explicit(&w->inbox, &old, m, memory_order_seq_cst, memory_order_relaxed));
}

void vs_worker_wake(struct vs_worker *w)
{
	/* Pairs with the fence between sleeping = 1 and the last look in worker.c. */
	vs_fence();
	if (atomic_load_explicit(&w->sleeping, memory_order_seq_cst)) {
		uint64_t one = 1;
		ssize_t r = write(w->wake_fd, &one, sizeof(one));

		(void)r;
	}
}

void vs_worker_look(struct vs_worker *w, struct vs_msg *m)
{
	m->next = atomic_load_explicit(&w->looks, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&w->looks, &m->next, m))
		;
	vs_fence(); /* as in vs_worker_wake */
	if (atomic_load_explicit(&w->sleeping, memory_order_seq_cst)) {
		uint64_t look = VS_WAKE_LOOK;
		ssize_t r = write(w->wake_fd, &look, sizeof(look));

		(void)r;
	}
}

/* ---- epochs ---------------------------------------------------------------------------------------------------------------------------------- */

uint64_t vs_epoch_bump(vs_core *c)
{
	uint64_t e = atomic_fetch_add(&c->epoch, 1) + 1;

	for (uint32_t i = 0; i < c->config.nworkers; i++)
		vs_worker_wake(&c->workers[i]);
	return e;
}

uint64_t vs_epoch_reached(const vs_core *c)
{
	uint64_t lowest = UINT64_MAX;

	for (uint32_t i = 0; i < c->config.nworkers; i++) {
		uint64_t e = atomic_load_explicit(&c->workers[i].epoch_seen, memory_order_acquire);

		lowest = vs_min(lowest, e);
	}
	return lowest;
}

/* ---- pins ------------------------------------------------------------------------------------------------------------------------------------ */

int vs_pins_init(struct vs_pins *p, struct vs_core *c)
{
	size_t size = sizeof(*p->slots) * c->config.nworkers;

	memset(p, 0, sizeof(*p));
	p->slots = aligned_alloc(VS_CACHE_LINE, size);
	if (!p->slots)
		return -ENOMEM;
	memset(p->slots, 0, size);
	p->core = c;
	p->n = c->config.nworkers;
	return 0;
}

void vs_pins_fini(struct vs_pins *p)
{
	free(p->slots);
	p->slots = NULL;
}

void vs_pins_moved(struct vs_worker *w, uint32_t watched, uint64_t cookie, uint64_t left)
{
	if ((watched & VS_WATCH_PYTHON) && !left)
		vs_upcall_after_flush(w, VS_UP_DRAINED, cookie, 0, 0);
	if (watched & VS_WATCH_RANGES)
		w->ranges_moved = true;
}

void vs_pins_watch(vs_pins *p, uint64_t cookie, int on)
{
	if (on) {
		p->cookie = cookie;
		atomic_fetch_or(&p->watched, VS_WATCH_PYTHON);
	} else {
		atomic_fetch_and(&p->watched, ~(uint32_t)VS_WATCH_PYTHON);
	}
}

int vs_pins_busy(const vs_pins *p)
{
	for (uint32_t i = 0; i < p->n; i++)
		if (atomic_load_explicit(&p->slots[i].count, memory_order_acquire))
			return 1;
	return 0;
}
