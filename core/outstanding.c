// SPDX-License-Identifier: Apache-2.0
/*
 * How many commands a logical unit and a nexus have outstanding, and what is too many. Nobody counts them: what C runs is in the pins of each
 * worker, what Python has in a count of its own. A worker that has less than its share of half the limit need not look at the others, as long
 * as no worker has found the unit half full.
 */
#include "task.h"
#include "gen/tables.h"

void vs_outstanding_limit(struct vs_lu *lu, uint32_t lu_limit, uint32_t nexus_limit)
{
	uint32_t least = vs_min(lu_limit ? lu_limit : UINT32_MAX, nexus_limit ? nexus_limit : UINT32_MAX);

	lu->max_outstanding = lu_limit;
	lu->queue_depth = nexus_limit;
	lu->whole_share = least == UINT32_MAX ? UINT32_MAX : least / (2 * lu->core->config.nworkers);
	atomic_store(&lu->share, lu->whole_share);
}

static uint64_t outstanding(const struct vs_pins *p, const _Atomic uint32_t *in_python)
{
	uint64_t n = atomic_load_explicit((_Atomic uint32_t *)in_python, memory_order_relaxed);

	for (uint32_t i = 0; i < p->n; i++)
		n += atomic_load_explicit(&p->slots[i].count, memory_order_relaxed);
	return n;
}

/* SAM-5 5.3.1: TASK SET FULL says that one of the nexus's own commands will end and make room; who has none is told BUSY. */
uint8_t vs_outstanding_check(const struct vs_task *t)
{
	struct vs_lu *lu = t->lu;
	uint64_t all = outstanding(&lu->pins, &lu->in_python), own = outstanding(&t->nexus->pins, &t->nexus->in_python);
	bool full = (lu->max_outstanding && all >= lu->max_outstanding) || (lu->queue_depth && own >= lu->queue_depth);

	atomic_store_explicit(&lu->share, all >= (uint64_t)lu->whole_share * lu->core->config.nworkers ? 0 : lu->whole_share, memory_order_relaxed);
	if (vs_likely(!full))
		return VS_STATUS_GOOD;
	return own ? VS_STATUS_TASK_SET_FULL : VS_STATUS_BUSY;
}
