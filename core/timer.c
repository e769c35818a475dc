/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers of one worker: a binary heap by deadline. Each timer knows its place, so that cancelling costs a logarithm. It keeps no clock: the
 * worker says what time it is and asks when to wake up.
 */
#include <stdlib.h>

#include "core.h"

static void put(struct vs_worker *w, uint32_t i, struct vs_timer *t)
{
	w->timers[i] = t;
	t->index = i;
}

static void sift_up(struct vs_worker *w, uint32_t i, struct vs_timer *t)
{
	while (i > 0) {
		uint32_t parent = (i - 1) / 2;

		if (w->timers[parent]->deadline_ns <= t->deadline_ns)
			break;
		put(w, i, w->timers[parent]);
		i = parent;
	}
	put(w, i, t);
}

static void sift_down(struct vs_worker *w, uint32_t i, struct vs_timer *t)
{
	for (;;) {
		uint32_t child = 2 * i + 1;

		if (child >= w->ntimers)
			break;
		if (child + 1 < w->ntimers && w->timers[child + 1]->deadline_ns < w->timers[child]->deadline_ns)
			child++;
		if (t->deadline_ns <= w->timers[child]->deadline_ns)
			break;
		put(w, i, w->timers[child]);
		i = child;
	}
	put(w, i, t);
}

/* t belongs at i or, after its deadline changed, above or below. */
static void settle(struct vs_worker *w, uint32_t i, struct vs_timer *t)
{
	if (i > 0 && t->deadline_ns < w->timers[(i - 1) / 2]->deadline_ns)
		sift_up(w, i, t);
	else
		sift_down(w, i, t);
}

void vs_timer_init(struct vs_timer *t, void (*fire)(struct vs_worker *, struct vs_timer *))
{
	t->deadline_ns = 0;
	t->index = UINT32_MAX;
	t->fire = fire;
}

int vs_timer_set(struct vs_worker *w, struct vs_timer *t, uint64_t deadline_ns)
{
	if (t->index == UINT32_MAX) {
		if (w->ntimers == w->timers_size) {
			uint32_t size = w->timers_size ? w->timers_size * 2 : 64;
			struct vs_timer **timers = realloc(w->timers, size * sizeof(struct vs_timer *));

			if (!timers)
				return -ENOMEM;
			w->timers = timers;
			w->timers_size = size;
		}
		t->deadline_ns = deadline_ns;
		sift_up(w, w->ntimers++, t);
		return 0;
	}
	t->deadline_ns = deadline_ns;
	settle(w, t->index, t);
	return 0;
}

void vs_timer_cancel(struct vs_worker *w, struct vs_timer *t)
{
	uint32_t i = t->index;
	struct vs_timer *last;

	if (i == UINT32_MAX)
		return;
	t->index = UINT32_MAX;
	last = w->timers[--w->ntimers];
	if (last != t)
		settle(w, i, last);
}

int vs_timers_run(struct vs_worker *w, uint64_t now_ns)
{
	/* A timer that sets itself again in the past must not keep the worker here. */
	uint32_t most = w->ntimers;
	int fired = 0;

	while (most-- && w->ntimers && w->timers[0]->deadline_ns <= now_ns) {
		struct vs_timer *t = w->timers[0];

		vs_timer_cancel(w, t);
		t->fire(w, t); /* may free t */
		fired++;
	}
	return fired;
}

uint64_t vs_timers_next(const struct vs_worker *w)
{
	return w->ntimers ? w->timers[0]->deadline_ns : UINT64_MAX;
}
