// SPDX-License-Identifier: Apache-2.0
/* UNMAP and WRITE SAME: blocks that get no data of their own. */
#include "media.h"

/* ---- UNMAP ------------------------------------------------------------------------------------------------------------------------------------------ */

static bool unmap_next(struct vs_task *t)
{
	uint32_t n = (t->param_length - 8) / 16;

	while (t->m.index < n) {
		const uint8_t *d = t->param + 8 + 16 * t->m.index++;
		uint64_t lba = vs_be64(d), blocks = vs_be32(d + 8);

		if (blocks)
			return prepare(t, VS_IO_UNMAP, 0, lba << t->lu->block_shift, blocks << t->lu->block_shift, NULL, 0, unmap_next);
	}
	t->transferred = t->required;
	return ENDED;
}

bool vs_media_unmap(struct vs_task *t)
{
	t->m.index = 0;
	return unmap_next(t);
}

/* ---- WRITE SAME -------------------------------------------------------------------------------------------------------------------------------------- */

static bool same_done(struct vs_task *t)
{
	t->transferred = t->required;
	return ENDED;
}

static bool same_flush(struct vs_task *t)
{
	bool through = !atomic_load_explicit(&t->lu->wce, memory_order_relaxed) && t->io.store->info.volatile_cache;

	return through ? prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, same_done) : same_done(t);
}

static bool same_next(struct vs_task *t)
{
	uint64_t n = vs_min(t->m.chunk, t->m.length - t->m.progress);
	uint64_t at = t->m.offset + t->m.progress;

	if (!n)
		return same_flush(t);
	t->m.progress += n;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return prepare(t, VS_IO_WRITE, 0, at, n, &t->m.iov, 1, same_next);
}

static bool all_zero(const uint8_t *p, uint64_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

bool vs_media_write_same(struct vs_task *t)
{
	uint64_t block = block_of(t);
	bool zero = t->m.no_data;

	t->m.progress = 0;
	if (!zero) {
		t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
		if (!vs_media_bounce(t, t->m.chunk))
			return ENDED;
		vs_iov_to_buffer(t->out, (int)t->nout, 0, t->m.bounce, block);
		zero = all_zero(t->m.bounce, block);
	}
	/* SBC-4 5.52: with UNMAP set blocks may be deallocated only if they then read back as the data; ours read as zeroes. */
	if (zero && t->io.store->info.zero != VS_CAP_NONE)
		return prepare(t, VS_IO_ZERO, t->m.may_unmap ? VS_IO_MAY_UNMAP : 0, t->m.offset, t->m.length, NULL, 0, same_flush);
	if (!t->m.bounce) {
		t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
		if (!vs_media_bounce(t, t->m.chunk))
			return ENDED;
		memset(t->m.bounce, 0, t->m.chunk);
	}
	for (uint64_t at = block; at < t->m.chunk; at += block)
		memcpy(t->m.bounce + at, t->m.bounce, block);
	return same_next(t);
}
