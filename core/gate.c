// SPDX-License-Identifier: Apache-2.0
/*
 * The gate's control side, logical units and I_T_L nexuses. The test of the gate stands in task.c.
 *
 * A gate word carries reasons in bits 0..43 and, above, how many tasks were ever sent to Python because of this LU or nexus. Opening compares
 * that count with the tasks that Python has received: while one is under way it fails, so no later task can pass one that Python has yet to
 * hand back. Handing back goes through the worker's inbox, and task.c looks at the inbox after it looked at the gate.
 */
#include <stdlib.h>

#include "core.h"
#include "gen/tables.h"

enum { COUNT_MASK = (1 << (64 - VS_GATE_COUNT_SHIFT)) - 1 };

uint64_t vs_gate_close(vs_core *c, vs_lu *lu, vs_nexus *nexus, uint64_t bits)
{
	atomic_fetch_or(nexus ? &nexus->gate : &lu->gate, bits & ((UINT64_C(1) << VS_GATE_COUNT_SHIFT) - 1));
	return vs_epoch_bump(c);
}

int vs_gate_open(vs_core *c, vs_lu *lu, vs_nexus *nexus, uint64_t bits)
{
	_Atomic uint64_t *gate = nexus ? &nexus->gate : &lu->gate;
	uint32_t received = nexus ? nexus->received : lu->received;
	uint64_t word = atomic_load(gate);

	(void)c;
	bits &= (UINT64_C(1) << VS_GATE_COUNT_SHIFT) - 1;
	do {
		if ((word >> VS_GATE_COUNT_SHIFT) != (received & COUNT_MASK))
			return -EAGAIN;
	} while (!atomic_compare_exchange_weak(gate, &word, word & ~bits));
	return 0;
}

uint64_t vs_gate_read(const vs_lu *lu, const vs_nexus *nexus)
{
	uint64_t word = 0;

	if (lu)
		word |= atomic_load((_Atomic uint64_t *)&lu->gate);
	if (nexus)
		word |= atomic_load((_Atomic uint64_t *)&nexus->gate);
	return word & ((UINT64_C(1) << VS_GATE_COUNT_SHIFT) - 1);
}

/* ---- logical units --------------------------------------------------------------------------------------------------------------------- */

static void apply(struct vs_lu *lu, const struct vs_lu_params *p)
{
	atomic_store(&lu->num_blocks, p->num_blocks);
	atomic_store(&lu->wce, p->write_cache);
	atomic_store(&lu->d_sense, p->descriptor_sense);
	atomic_store(&lu->unmap, p->unmap);
	atomic_store(&lu->queue_error, p->queue_error);
	atomic_store(&lu->tell_full, p->tell_full);
	atomic_store(&lu->timeout_ms, p->timeout_ms);
	atomic_store(&lu->retries, p->retries);
	vs_outstanding_limit(lu, p->max_outstanding, p->queue_depth);
	lu->max_unmap_blocks = p->max_unmap_blocks;
	lu->max_unmap_descriptors = p->max_unmap_descriptors;
	lu->max_write_same_blocks = p->max_write_same_blocks;
	lu->max_transfer_blocks = p->max_transfer_blocks;
	lu->max_atomic_blocks = p->max_atomic_blocks;
	lu->lenient = p->lenient != 0;
	lu->wsnz = p->wsnz != 0;
	lu->cdb32 = p->cdb32 != 0;
}

int vs_lu_create(vs_core *c, const struct vs_lu_params *p, vs_store *store, vs_lu **out)
{
	size_t stats = sizeof(*((struct vs_lu *)0)->stats) * c->config.nworkers;
	struct vs_lu *lu;
	int err;

	if (p->block_size < 512 || p->block_size > (1 << 20) || (p->block_size & (p->block_size - 1)))
		return -EINVAL;
	if (p->num_blocks > store->info.size / p->block_size)
		return -ERANGE;
	lu = aligned_alloc(VS_CACHE_LINE, (sizeof(*lu) + VS_CACHE_LINE - 1) / VS_CACHE_LINE * VS_CACHE_LINE);
	if (!lu)
		return -ENOMEM;
	memset(lu, 0, sizeof(*lu));
	lu->core = c;
	lu->cookie = p->cookie;
	lu->block_shift = (uint32_t)__builtin_ctz(p->block_size);
	atomic_store(&lu->store, store);
	apply(lu, p);
	err = vs_pins_init(&lu->pins, c);
	if (err)
		goto free_lu;
	err = vs_lu_ranges_init(lu);
	if (err)
		goto fini_pins;
	lu->stats = aligned_alloc(VS_CACHE_LINE, (stats + VS_CACHE_LINE - 1) / VS_CACHE_LINE * VS_CACHE_LINE);
	if (!lu->stats) {
		err = -ENOMEM;
		goto fini_ranges;
	}
	memset(lu->stats, 0, stats);
	*out = lu;
	return 0;
fini_ranges:
	vs_lu_ranges_fini(lu);
fini_pins:
	vs_pins_fini(&lu->pins);
free_lu:
	free(lu);
	return err;
}

void vs_lu_update(vs_lu *lu, const struct vs_lu_params *p)
{
	apply(lu, p);
}

void vs_lu_set_store(vs_lu *lu, vs_store *store)
{
	if (atomic_load(&lu->bad_blocks))
		vs_bad_clear(lu, 0, UINT64_MAX);
	atomic_store(&lu->store, store);
}

void vs_lu_destroy(vs_lu *lu)
{
	vs_lu_ranges_fini(lu);
	vs_pins_fini(&lu->pins);
	free(lu->stats);
	free(lu->bad);
	free(lu);
}

vs_pins *vs_lu_pins(vs_lu *lu) { return &lu->pins; }

void vs_lu_stats(const vs_lu *lu, struct vs_lu_stats *out)
{
	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; i < lu->core->config.nworkers; i++) {
		out->reads += vs_counted(&lu->stats[i].reads);
		out->writes += vs_counted(&lu->stats[i].writes);
		out->flushes += vs_counted(&lu->stats[i].flushes);
		out->unmaps += vs_counted(&lu->stats[i].unmaps);
		out->others += vs_counted(&lu->stats[i].others);
		out->read_bytes += vs_counted(&lu->stats[i].read_bytes);
		out->write_bytes += vs_counted(&lu->stats[i].write_bytes);
		out->escalated += vs_counted(&lu->stats[i].escalated);
		out->failed += vs_counted(&lu->stats[i].failed);
		out->verifies += vs_counted(&lu->stats[i].verifies);
		out->verify_bytes += vs_counted(&lu->stats[i].verify_bytes);
		out->read_errors += vs_counted(&lu->stats[i].read_errors);
		out->write_errors += vs_counted(&lu->stats[i].write_errors);
		out->verify_errors += vs_counted(&lu->stats[i].verify_errors);
		out->read_ns += vs_counted(&lu->stats[i].read_ns);
		out->write_ns += vs_counted(&lu->stats[i].write_ns);
	}
}

/* ---- nexuses ------------------------------------------------------------------------------------------------------------------------------- */

int vs_nexus_create(vs_core *c, vs_lu *lu, uint64_t cookie, vs_nexus **out)
{
	struct vs_nexus *n = aligned_alloc(VS_CACHE_LINE, (sizeof(*n) + VS_CACHE_LINE - 1) / VS_CACHE_LINE * VS_CACHE_LINE);
	int err;

	if (!n)
		return -ENOMEM;
	memset(n, 0, sizeof(*n));
	n->lu = lu;
	n->cookie = cookie;
	err = vs_pins_init(&n->pins, c);
	if (err) {
		free(n);
		return err;
	}
	*out = n;
	return 0;
}

void vs_nexus_destroy(vs_nexus *n)
{
	vs_pins_fini(&n->pins);
	free(n);
}

vs_pins *vs_nexus_pins(vs_nexus *n) { return &n->pins; }
