// SPDX-License-Identifier: Apache-2.0
/*
 * Blocks that an initiator marked as bad (WRITE LONG with WR_UNCOR): few, rarely, and forgotten when they are written. Control marks, workers
 * look and clear; while none is marked a command reads one word. They are gone when the unit is opened anew.
 */
#include <stdlib.h>

#include "core.h"

struct vs_bad { _Atomic uint64_t block[VS_BAD_MAX]; }; /* LBA + 1; 0: free */

int vs_lu_mark_bad(vs_lu *lu, uint64_t lba)
{
	uint64_t bad;

	if (lba >= atomic_load(&lu->num_blocks))
		return -ERANGE;
	if (!lu->bad) {
		lu->bad = calloc(1, sizeof(*lu->bad));
		if (!lu->bad)
			return -ENOMEM;
	}
	if (atomic_load(&lu->bad_blocks) && vs_bad_first(lu, lba, 1, &bad))
		return 0;
	for (uint32_t i = 0; i < VS_BAD_MAX; i++) {
		uint64_t none = 0;

		/* The table stands before a worker sees that there is something in it. */
		if (atomic_compare_exchange_strong(&lu->bad->block[i], &none, lba + 1)) {
			atomic_fetch_add(&lu->bad_blocks, 1);
			return 0;
		}
	}
	return -ENOSPC;
}

uint32_t vs_lu_bad(const vs_lu *lu, uint64_t *out, uint32_t max)
{
	uint32_t n = 0;

	for (uint32_t i = 0; lu->bad && i < VS_BAD_MAX && n < max; i++) {
		uint64_t block = atomic_load(&lu->bad->block[i]);

		if (block)
			out[n++] = block - 1;
	}
	return n;
}

void vs_lu_clear_bad(vs_lu *lu, uint64_t lba, uint64_t blocks)
{
	if (atomic_load(&lu->bad_blocks))
		vs_bad_clear(lu, lba, blocks);
}

bool vs_bad_first(const struct vs_lu *lu, uint64_t lba, uint64_t blocks, uint64_t *out)
{
	bool found = false;

	for (uint32_t i = 0; i < VS_BAD_MAX; i++) {
		uint64_t block = atomic_load_explicit(&lu->bad->block[i], memory_order_relaxed);

		if (!block || block - 1 < lba || block - 1 - lba >= blocks || (found && block - 1 > *out))
			continue;
		*out = block - 1;
		found = true;
	}
	return found;
}

void vs_bad_clear(struct vs_lu *lu, uint64_t lba, uint64_t blocks)
{
	for (uint32_t i = 0; i < VS_BAD_MAX; i++) {
		uint64_t block = atomic_load(&lu->bad->block[i]);

		if (block && block - 1 >= lba && block - 1 - lba < blocks && atomic_compare_exchange_strong(&lu->bad->block[i], &block, 0))
			atomic_fetch_sub(&lu->bad_blocks, 1);
	}
}
