// SPDX-License-Identifier: Apache-2.0
/*
 * LBA-range locks for commands that read, compare and write as one (COMPARE AND WRITE ...). While an exclusive command waits or runs, the LU's
 * gate has the EXCLUSIVE bit; plain commands that see it enter their ranges here too. A plain command that started before the bit was seen is
 * not known by range, so an exclusive one waits until every worker has seen the epoch and all such commands have ended: per worker, the pins
 * of the LU then equal the commands that are known here. Nothing here runs while no exclusive command is about.
 */
#include <stdlib.h>

#include "task.h"
#include "worker.h"
#include "gen/tables.h"

struct vs_range_registry {
	pthread_mutex_t lock; /* guards everything below and every vs_ranges */
	struct vs_list waiting; /* LUs with something to grant */
	_Atomic uint32_t waiters;
};

struct vs_ranges {
	struct vs_list link; /* in registry->waiting */
	struct vs_lu *lu;
	struct vs_list wait, held;
	uint32_t exclusive;  /* commands that wait or hold exclusively */
	uint32_t *known;     /* by worker: pinned commands that stand in wait or held */
};

int vs_ranges_init(struct vs_core *c)
{
	struct vs_range_registry *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	pthread_mutex_init(&r->lock, NULL);
	vs_list_init(&r->waiting);
	c->range_registry = r;
	return 0;
}

void vs_ranges_fini(struct vs_core *c)
{
	pthread_mutex_destroy(&c->range_registry->lock);
	free(c->range_registry);
}

int vs_lu_ranges_init(struct vs_lu *lu)
{
	struct vs_ranges *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->known = calloc(lu->core->config.nworkers, sizeof(*r->known));
	if (!r->known) {
		free(r);
		return -ENOMEM;
	}
	r->lu = lu;
	vs_list_init(&r->link);
	vs_list_init(&r->wait);
	vs_list_init(&r->held);
	lu->ranges = r;
	return 0;
}

void vs_lu_ranges_fini(struct vs_lu *lu)
{
	free(lu->ranges->known);
	free(lu->ranges);
}

static bool overlap(const struct vs_range *a, const struct vs_range *b)
{
	return a->first <= b->last && b->first <= a->last && (a->exclusive || b->exclusive);
}

static bool conflicts(const struct vs_list *list, const struct vs_list *end, const struct vs_range *e)
{
	for (const struct vs_list *l = list->next; l != end; l = l->next)
		if (overlap(vs_container_of(l, struct vs_range, link), e))
			return true;
	return false;
}

/* No command that started without a range is left on any worker. */
static bool strangers_gone(const struct vs_ranges *r)
{
	const struct vs_pins *p = &r->lu->pins;

	for (uint32_t i = 0; i < p->n; i++)
		if (atomic_load_explicit(&p->slots[i].count, memory_order_acquire) != r->known[i])
			return false;
	return true;
}

static void granted_run(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_task *t = vs_container_of(m, struct vs_task, range.msg);

	(void)w;
	if (vs_media_start(t))
		vs_media_end(t);
}

static void grant(struct vs_ranges *r, struct vs_range_registry *g, struct vs_range *e)
{
	struct vs_task *t = vs_container_of(e, struct vs_task, range);

	vs_list_del(&e->link);
	vs_list_add_tail(&r->held, &e->link);
	e->waiting = false;
	e->held = e->granted = true;
	atomic_fetch_sub(&g->waiters, 1);
	e->msg.run = granted_run;
	vs_worker_send(t->w, &e->msg);
}

static void progress(struct vs_ranges *r, struct vs_range_registry *g, uint64_t reached)
{
	bool alone = strangers_gone(r);

	for (struct vs_list *l = r->wait.next; l != &r->wait;) {
		struct vs_range *e = vs_container_of(l, struct vs_range, link);

		l = l->next;
		if (e->exclusive && (reached < e->epoch || !alone))
			continue;
		if (conflicts(&r->wait, &e->link, e) || conflicts(&r->held, &r->held, e))
			continue;
		grant(r, g, e);
	}
	if (vs_list_empty(&r->wait) && !vs_list_empty(&r->link))
		vs_list_del(&r->link);
}

void vs_range_progress(struct vs_core *c)
{
	struct vs_range_registry *g = c->range_registry;
	uint64_t reached;

	if (!atomic_load(&g->waiters))
		return;
	reached = vs_epoch_reached(c);
	pthread_mutex_lock(&g->lock);
	for (struct vs_list *l = g->waiting.next; l != &g->waiting;) {
		struct vs_ranges *r = vs_container_of(l, struct vs_ranges, link);

		l = l->next;
		progress(r, g, reached);
	}
	pthread_mutex_unlock(&g->lock);
}

static void wait_for_grant(struct vs_ranges *r, struct vs_range_registry *g, struct vs_range *e)
{
	e->waiting = true;
	vs_list_add_tail(&r->wait, &e->link);
	if (vs_list_empty(&r->link))
		vs_list_add_tail(&g->waiting, &r->link);
	atomic_fetch_add(&g->waiters, 1);
}

bool vs_range_enter(struct vs_task *t, uint64_t lba, uint64_t blocks, bool exclusive)
{
	struct vs_range *e = &t->range;
	struct vs_ranges *r = t->lu->ranges;
	struct vs_range_registry *g = t->w->core->range_registry;
	bool go;

	e->first = lba;
	e->last = lba + blocks - 1;
	e->exclusive = exclusive;
	pthread_mutex_lock(&g->lock);
	if (!exclusive && !r->exclusive) {
		/* The bit was on its way out. An exclusive command that comes from here on waits for our pin. */
		pthread_mutex_unlock(&g->lock);
		return true;
	}
	r->known[t->w->index]++;
	/* Until now we were a stranger to whoever waits exclusively, and may have been the last one. */
	t->w->ranges_moved = true;
	if (exclusive) {
		if (!r->exclusive++) {
			atomic_fetch_or(&t->lu->gate, VS_GATE_EXCLUSIVE);
			atomic_fetch_or(&t->lu->pins.watched, VS_WATCH_RANGES);
		}
		e->epoch = vs_epoch_bump(t->w->core);
		wait_for_grant(r, g, e);
		go = false;
	} else if (conflicts(&r->wait, &r->wait, e) || conflicts(&r->held, &r->held, e)) {
		wait_for_grant(r, g, e);
		go = false;
	} else {
		e->held = true;
		vs_list_add_tail(&r->held, &e->link);
		go = true;
	}
	pthread_mutex_unlock(&g->lock);
	return go;
}

/* Locked. The command is still pinned: its worker's count is above `known` for a moment, which only delays a grant. */
static void forget(struct vs_task *t, struct vs_ranges *r)
{
	vs_list_del(&t->range.link);
	t->range.held = t->range.waiting = false;
	r->known[t->w->index]--;
	if (t->range.exclusive && !--r->exclusive) {
		atomic_fetch_and(&t->lu->gate, ~VS_GATE_EXCLUSIVE);
		atomic_fetch_and(&t->lu->pins.watched, ~(uint32_t)VS_WATCH_RANGES);
	}
	t->w->ranges_moved = true;
}

void vs_range_leave(struct vs_task *t)
{
	struct vs_range_registry *g = t->w->core->range_registry;

	if (!t->range.held)
		return;
	pthread_mutex_lock(&g->lock);
	forget(t, t->lu->ranges);
	pthread_mutex_unlock(&g->lock);
}

bool vs_range_cancel(struct vs_task *t)
{
	struct vs_range_registry *g = t->w->core->range_registry;
	bool waited;

	pthread_mutex_lock(&g->lock);
	waited = t->range.waiting;
	if (waited) {
		atomic_fetch_sub(&g->waiters, 1);
		forget(t, t->lu->ranges);
	}
	pthread_mutex_unlock(&g->lock);
	return waited;
}
