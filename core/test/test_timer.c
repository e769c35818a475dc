/* SPDX-License-Identifier: Apache-2.0 */
/* The timer heap against a plain list that is searched from end to end; no clock and no worker loop. */
#include <stdlib.h>

#include "core.h"
#include "check.h"

enum { TIMERS = 300 };

static struct vs_worker *w;
static struct vs_timer timers[TIMERS];
static uint64_t wanted[TIMERS]; /* 0: not set */
static uint64_t now, last_deadline;
static int fired;

static uint64_t earliest(void)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TIMERS; i++)
		if (wanted[i] && wanted[i] < best)
			best = wanted[i];
	return best;
}

static void fires(struct vs_worker *worker, struct vs_timer *t)
{
	int i = (int)(t - timers);

	CHECK(worker == w);
	CHECK(t->index == UINT32_MAX);
	CHECK(wanted[i] && wanted[i] == t->deadline_ns && wanted[i] <= now);
	CHECK(t->deadline_ns >= last_deadline);
	last_deadline = t->deadline_ns;
	wanted[i] = 0;
	fired++;
}

static void random_walk(void)
{
	srand(7);
	for (int i = 0; i < TIMERS; i++)
		vs_timer_init(&timers[i], fires);
	for (int step = 0; step < 100000; step++) {
		int i = rand() % TIMERS;

		switch (rand() % 8) {
		case 0:
			vs_timer_cancel(w, &timers[i]); /* also when it is not set */
			wanted[i] = 0;
			break;
		case 1: {
			int due = 0;

			now += (uint64_t)(rand() % 50);
			for (int j = 0; j < TIMERS; j++)
				due += wanted[j] && wanted[j] <= now;
			fired = 0;
			last_deadline = 0;
			CHECK(vs_timers_run(w, now) == due);
			CHECK(fired == due);
			break;
		}
		default:
			wanted[i] = now + 1 + (uint64_t)(rand() % 400);
			CHECK(vs_timer_set(w, &timers[i], wanted[i]) == 0); /* also when it is set: it moves */
			break;
		}
		CHECK(vs_timers_next(w) == earliest());
	}
	for (int i = 0; i < TIMERS; i++) {
		vs_timer_cancel(w, &timers[i]);
		wanted[i] = 0;
	}
	CHECK(w->ntimers == 0 && vs_timers_next(w) == UINT64_MAX);
	CHECK(vs_timers_run(w, UINT64_MAX) == 0);
}

static int again;

static void sets_itself(struct vs_worker *worker, struct vs_timer *t)
{
	again++;
	CHECK(vs_timer_set(worker, t, 1) == 0);
}

/* A timer that is always due again must not keep the worker in one run. */
static void past_timer_does_not_hang(void)
{
	struct vs_timer t;

	vs_timer_init(&t, sets_itself);
	CHECK(vs_timer_set(w, &t, 1) == 0);
	CHECK(vs_timers_run(w, 100) == 1);
	CHECK(again == 1 && vs_timers_next(w) == 1);
	vs_timer_cancel(w, &t);
}

static void frees_itself(struct vs_worker *worker, struct vs_timer *t)
{
	(void)worker;
	free(t);
}

static struct vs_timer *other;

static void cancels_other(struct vs_worker *worker, struct vs_timer *t)
{
	(void)t;
	vs_timer_cancel(worker, other);
}

static void callbacks_may_free_and_cancel(void)
{
	struct vs_timer *heap = malloc(sizeof(*heap)), first;

	CHECK(heap);
	vs_timer_init(heap, frees_itself);
	CHECK(vs_timer_set(w, heap, 5) == 0);
	CHECK(vs_timers_run(w, 4) == 0);
	CHECK(vs_timers_run(w, 5) == 1);

	other = &timers[0];
	vs_timer_init(&first, cancels_other);
	vs_timer_init(other, fires);
	CHECK(vs_timer_set(w, &first, 10) == 0 && vs_timer_set(w, other, 11) == 0);
	CHECK(vs_timers_run(w, 20) == 1);
	CHECK(other->index == UINT32_MAX && vs_timers_next(w) == UINT64_MAX);
}

int main(void)
{
	w = aligned_alloc(_Alignof(struct vs_worker), sizeof(*w));
	CHECK(w);
	memset(w, 0, sizeof(*w));
	random_walk();
	past_timer_does_not_hang();
	callbacks_may_free_and_cancel();
	free(w->timers);
	free(w);
	return 0;
}
