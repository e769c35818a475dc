// SPDX-License-Identifier: Apache-2.0
/* Commands that read what is there: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE. The initiator's bytes are copied before a look. */
#include "media.h"

/* ---- VERIFY -------------------------------------------------------------------------------------------------------------------------------------------- */

/* The first byte that differs, or n. The initiator's bytes were copied first: it may change them under us. */
static uint64_t compare(const struct vs_task *t, uint64_t skip, const uint8_t *medium, uint8_t *copy, uint64_t n)
{
	vs_iov_to_buffer(t->out, (int)t->nout, skip, copy, n);
	if (!memcmp(medium, copy, n))
		return n;
	for (uint64_t i = 0; i < n; i++)
		if (medium[i] != copy[i])
			return i;
	return n;
}

static bool verify_next(struct vs_task *t);

static bool verify_chunk(struct vs_task *t)
{
	uint64_t n = t->m.iov.iov_len, at = t->m.progress - n, block = block_of(t);

	if (t->m.bytchk == 1) {
		uint64_t same = compare(t, at, t->m.bounce, t->m.bounce + t->m.chunk, n);

		if (same < n)
			return vs_media_miscompare(t, at + same);
	} else if (t->m.bytchk == 3) {
		for (uint64_t i = 0; i < n; i += block) {
			uint64_t same = compare(t, 0, t->m.bounce + i, t->m.bounce + t->m.chunk, block);

			if (same < block)
				return vs_media_miscompare(t, same);
		}
	}
	return verify_next(t);
}

static bool verify_next(struct vs_task *t)
{
	uint64_t n = vs_min(t->m.chunk, t->m.length - t->m.progress), at = t->m.offset + t->m.progress;

	if (!n) {
		t->transferred = t->row->media == VS_MEDIA_VERIFY ? t->required : t->m.length;
		return ENDED;
	}
	t->m.progress += n;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return prepare(t, VS_IO_READ, 0, at, n, &t->m.iov, 1, verify_chunk);
}

bool vs_media_verify(struct vs_task *t)
{
	uint64_t block = block_of(t);

	t->m.progress = 0;
	t->m.chunk = vs_min(vs_max((uint64_t)CHUNK, block), t->m.length);
	if (!vs_media_bounce(t, t->m.bytchk ? 2 * t->m.chunk : t->m.chunk))
		return ENDED;
	return verify_next(t);
}

/* ---- COMPARE AND WRITE ------------------------------------------------------------------------------------------------------------------------------------- */

static bool caw_written(struct vs_task *t)
{
	VS_STEP(ONCE_WRITTEN);
	return vs_media_moved(t);
}

static bool caw_compared(struct vs_task *t)
{
	uint64_t n = t->m.length, same = compare(t, 0, t->m.bounce, t->m.bounce + n, n);

	if (same < n) {
		/* A process that was killed had found it as expected, and wrote: that counts, whatever was written here since. */
		if (vs_unlikely(t->flags & VS_TASK_WRITING))
			return vs_media_moved(t);
		return vs_media_miscompare(t, same);
	}
	vs_iov_to_buffer(t->out, (int)t->nout, n, t->m.bounce, n);
	if (vs_unlikely(t->flags & VS_TASK_ONCE))
		t->ops->keep(t, VS_ONCE_WRITING);
	VS_STEP(ONCE_WRITING);
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return vs_media_write_out(t, &t->m.iov, 1, caw_written);
}

bool vs_media_compare_and_write(struct vs_task *t)
{
	if (!vs_media_bounce(t, 2 * t->m.length))
		return ENDED;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = t->m.length };
	return prepare(t, VS_IO_READ, 0, t->m.offset, t->m.length, &t->m.iov, 1, caw_compared);
}

/* ---- WRITE AND VERIFY ---------------------------------------------------------------------------------------------------------------------- */

/* SBC-4 5.39: written to the medium first, whatever the cache would allow; then read back from it. */
bool vs_media_write_and_verify(struct vs_task *t)
{
	t->nout = vs_media_clip(t->out, t->nout, t->out_length, t->m.length);
	t->m.fua = 1;
	return vs_media_write_out(t, t->out, (int)t->nout, vs_media_verify);
}

/* ---- ORWRITE ---------------------------------------------------------------------------------------------------------------------------------- */

static bool orwrite_next(struct vs_task *t);

static bool orwrite_end(struct vs_task *t)
{
	bool through = t->m.fua || !atomic_load_explicit(&t->lu->wce, memory_order_relaxed);

	if (through && t->io.store->info.volatile_cache)
		return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, vs_media_moved);
	return vs_media_moved(t);
}

static bool orwrite_merged(struct vs_task *t)
{
	uint64_t n = t->m.iov.iov_len, at = t->m.progress - n;
	uint8_t *medium = t->m.bounce, *copy = t->m.bounce + t->m.chunk;

	vs_iov_to_buffer(t->out, (int)t->nout, at, copy, n);
	for (uint64_t i = 0; i < n; i++)
		medium[i] |= copy[i];
	return prepare(t, VS_IO_WRITE, 0, t->m.offset + at, n, &t->m.iov, 1, t->m.progress < t->m.length ? orwrite_next : orwrite_end);
}

static bool orwrite_next(struct vs_task *t)
{
	uint64_t n = vs_min(t->m.chunk, t->m.length - t->m.progress), at = t->m.offset + t->m.progress;

	t->m.progress += n;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return prepare(t, VS_IO_READ, 0, at, n, &t->m.iov, 1, orwrite_merged);
}

/* SBC-4 5.9. The range is ours alone, so that nobody's write is lost between the read and the write. */
bool vs_media_orwrite(struct vs_task *t)
{
	t->m.progress = 0;
	t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
	if (!vs_media_bounce(t, 2 * t->m.chunk))
		return ENDED;
	return orwrite_next(t);
}
