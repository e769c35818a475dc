// SPDX-License-Identifier: Apache-2.0
/*
 * LBA-range locks for commands that read, compare and write as one (COMPARE AND WRITE ...). While an exclusive command waits or runs, the LU's
 * gate has the EXCLUSIVE bit; plain commands that see it enter their ranges here too. A plain command that started before the bit was seen is
 * not known by range, a stranger: an exclusive one waits until every worker has seen the epoch and its strangers have ended. Each worker says
 * so for itself, when its pins of the LU equal the commands that it knows here, and that holds until the bit is taken away: whatever comes
 * later enters. So an exclusive command waits for what was there before it and for nothing else, however much comes behind it. Nothing here
 * runs while no exclusive command is about.
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
	uint64_t since;      /* the epoch that began with the EXCLUSIVE bit */
	uint32_t strangers;  /* workers that may have some */
	/* By worker, which alone counts: pinned commands that stand in wait or held, and operations without a task. alone: it has no
	 * stranger, and is not one of `strangers` any more. */
	struct vs_ranges_of_worker { uint32_t known, detached; bool alone; } *of;
};

enum { DETACHED_MAX = 16 }; /* a worker and LU; an initiator may send them faster than they end, and each holds memory */

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
	r->of = calloc(lu->core->config.nworkers, sizeof(*r->of));
	if (!r->of) {
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
	free(lu->ranges->of);
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

/* Is a command that started without a range left on this worker, whose turn is over? Only itself can tell: others may see it in the middle
 * of pinning and entering. */
static void look_for_strangers(struct vs_ranges *r, const struct vs_worker *w)
{
	struct vs_ranges_of_worker *of = &r->of[w->index];

	if (of->alone || !r->exclusive || atomic_load_explicit(&w->epoch_seen, memory_order_relaxed) < r->since)
		return;
	if (atomic_load_explicit(&r->lu->pins.slots[w->index].count, memory_order_relaxed) != of->known + of->detached)
		return;
	of->alone = true;
	r->strangers--;
}

static void begin_exclusive(struct vs_ranges *r)
{
	struct vs_core *c = r->lu->core;

	r->strangers = c->config.nworkers;
	for (uint32_t i = 0; i < r->strangers; i++)
		r->of[i].alone = false;
	atomic_fetch_or(&r->lu->gate, VS_GATE_EXCLUSIVE);
	atomic_fetch_or(&r->lu->pins.watched, VS_WATCH_RANGES);
	r->since = vs_epoch_bump(c);
}

static void end_exclusive(struct vs_ranges *r)
{
	atomic_fetch_and(&r->lu->gate, ~VS_GATE_EXCLUSIVE);
	atomic_fetch_and(&r->lu->pins.watched, ~(uint32_t)VS_WATCH_RANGES);
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

/* An LU without anything that waits may be destroyed. */
static void unlist(struct vs_ranges *r)
{
	if (vs_list_empty(&r->wait) && !vs_list_empty(&r->link))
		vs_list_del(&r->link);
}

static void progress(struct vs_ranges *r, struct vs_range_registry *g)
{
	for (struct vs_list *l = r->wait.next; l != &r->wait;) {
		struct vs_range *e = vs_container_of(l, struct vs_range, link);

		l = l->next;
		if (e->exclusive && r->strangers)
			continue;
		if (conflicts(&r->wait, &e->link, e) || conflicts(&r->held, &r->held, e))
			continue;
		grant(r, g, e);
	}
	unlist(r);
}

void vs_range_progress(struct vs_worker *w)
{
	struct vs_range_registry *g = w->core->range_registry;

	if (!atomic_load(&g->waiters))
		return;
	pthread_mutex_lock(&g->lock);
	for (struct vs_list *l = g->waiting.next; l != &g->waiting;) {
		struct vs_ranges *r = vs_container_of(l, struct vs_ranges, link);

		l = l->next;
		look_for_strangers(r, w);
		progress(r, g);
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

	/* What touches no block is in nobody's way, but it is no stranger either. */
	e->first = blocks ? lba : UINT64_MAX;
	e->last = blocks ? lba + blocks - 1 : 0;
	e->exclusive = exclusive;
	pthread_mutex_lock(&g->lock);
	if (!exclusive && !r->exclusive) {
		/* The bit was on its way out. An exclusive command that comes from here on waits for our pin. */
		pthread_mutex_unlock(&g->lock);
		return true;
	}
	r->of[t->w->index].known++;
	t->w->ranges_moved = true;
	if (exclusive) {
		/* In this order: who sees the epoch sees that somebody waits, and looks for strangers. It may have no other reason to. */
		wait_for_grant(r, g, e);
		if (!r->exclusive++)
			begin_exclusive(r);
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

/* Locked. */
static void forget(struct vs_task *t, struct vs_ranges *r)
{
	vs_list_del(&t->range.link);
	t->range.held = t->range.waiting = false;
	r->of[t->w->index].known--;
	if (t->range.exclusive && !--r->exclusive)
		end_exclusive(r);
	unlist(r);
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

bool vs_range_detach(struct vs_worker *w, struct vs_lu *lu)
{
	if (lu->ranges->of[w->index].detached == DETACHED_MAX)
		return false;
	vs_pin(w, &lu->pins);
	lu->ranges->of[w->index].detached++;
	return true;
}

void vs_range_detached_done(struct vs_worker *w, struct vs_lu *lu)
{
	lu->ranges->of[w->index].detached--;
	vs_unpin(w, &lu->pins);
}
