// SPDX-License-Identifier: Apache-2.0
/* READ and WRITE in all their lengths, WRITE ATOMIC, PRE-FETCH and SYNCHRONIZE CACHE: store operations in a row. */
#include <stdlib.h>

#include "media.h"

uint32_t vs_media_clip(struct iovec *iov, uint32_t niov, uint64_t have, uint64_t n)
{
	if (vs_likely(have == n))
		return niov;
	for (uint32_t i = 0; i < niov; i++) {
		if (iov[i].iov_len >= n) {
			iov[i].iov_len = n;
			return n ? i + 1 : i;
		}
		n -= iov[i].iov_len;
	}
	return niov;
}

/* ---- READ, WRITE ------------------------------------------------------------------------------------------------------------------------------- */

/* COMPARE AND WRITE took both halves of its data: without this the initiator would be told of a residual. */
bool vs_media_moved(struct vs_task *t)
{
	t->transferred = vs_likely(t->row->media != VS_MEDIA_COMPARE_AND_WRITE) ? t->m.length : t->required;
	return ENDED;
}

static bool read_moved(struct vs_task *t)
{
	t->lent = t->io.lent;
	return vs_media_moved(t);
}

static bool read_now(struct vs_task *t)
{
	prepare(t, VS_IO_READ, 0, t->m.offset, t->m.length, t->in, (int)t->nin, read_moved);
	/* An exclusive command waits for who has a range, and that ends here. */
	t->io.lend = (t->flags & VS_TASK_LEND) && t->io.store->ops->lends && !t->range.held;
	return SUBMIT;
}

bool vs_media_read(struct vs_task *t)
{
	t->nin = vs_media_clip(t->in, t->nin, t->in_length, t->m.length);
	/* SBC-4 5.11 FUA: what a volatile cache holds of these blocks goes to the medium before it is read. */
	if (vs_unlikely(t->m.fua) && t->io.store->info.volatile_cache)
		return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, read_now);
	return read_now(t);
}

/* After a write that must be durable: a store that cannot write through is flushed instead. */
static bool flush_written(struct vs_task *t)
{
	return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, t->m.after);
}

bool vs_media_write_out(struct vs_task *t, struct iovec *iov, int niov, bool (*after)(struct vs_task *))
{
	const struct vs_store_info *info = &t->io.store->info;
	bool through = (t->m.fua || !atomic_load_explicit(&t->lu->wce, memory_order_relaxed)) && info->volatile_cache;
	bool native = info->fua == VS_CAP_NATIVE;

	if (through && !native) {
		t->m.after = after;
		after = flush_written;
	}
	return prepare(t, VS_IO_WRITE, through && native ? VS_IO_FUA : 0, t->m.offset, t->m.length, iov, niov, after);
}

bool vs_media_write(struct vs_task *t)
{
	t->nout = vs_media_clip(t->out, t->nout, t->out_length, t->m.length);
	return vs_media_write_out(t, t->out, (int)t->nout, vs_media_moved);
}

static bool good(struct vs_task *t)
{
	(void)t;
	return ENDED;
}

/* ---- PRE-FETCH -------------------------------------------------------------------------------------------------------------------------- */

static void prefetch_detached_done(struct vs_io *io)
{
	struct vs_lu *lu = io->owner;

	free(io->iov);
	vs_range_detached_done(io->w, lu);
	vs_io_put(io->w, io);
}

/* SBC-4 5.12 IMMED: the read goes on by itself; what it finds wrong is nobody's to hear. Buffer and iovec are one piece of memory. */
static bool prefetch_detached(struct vs_task *t)
{
	struct vs_io *io = vs_io_get(t->w);
	/* C11 7.22.3.1: the size is a multiple of the alignment. */
	struct iovec *iov = io ? aligned_alloc(4096, 4096 + ((t->m.chunk + 4095) & ~UINT64_C(4095))) : NULL;

	if (!iov) {
		if (io)
			vs_io_put(t->w, io);
		vs_range_detached_done(t->w, t->lu);
		t->status = VS_STATUS_BUSY;
		return ENDED;
	}
	*iov = (struct iovec){ .iov_base = (uint8_t *)iov + 4096, .iov_len = t->m.chunk };
	io->store = t->io.store;
	io->op = VS_IO_READ;
	io->flags = 0;
	io->err = VS_ERR_NONE;
	io->offset = t->m.offset;
	io->length = t->m.chunk;
	io->iov = iov;
	io->niov = 1;
	io->owner = t->lu;
	io->done = prefetch_detached_done;
	if (vs_store_submit(io->store, io) == VS_SUBMIT_DONE)
		prefetch_detached_done(io);
	return ENDED;
}

/* SBC-4 5.12: as many blocks as the cache takes, which is a megabyte at a time here; GOOD says no more than that. CONDITION MET would promise
 * that all of them stay in a cache, and the cache is the kernel's. */
bool vs_media_prefetch(struct vs_task *t)
{
	t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
	if ((t->cdb[1] & 2) && vs_range_detach(t->w, t->lu))
		return prefetch_detached(t);
	if (!vs_media_bounce(t, t->m.chunk))
		return ENDED;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = t->m.chunk };
	return prepare(t, VS_IO_READ, 0, t->m.offset, t->m.chunk, &t->m.iov, 1, good);
}

/* ---- SYNCHRONIZE CACHE ---------------------------------------------------------------------------------------------------------------------------- */

static void detached_done(struct vs_io *io)
{
	struct vs_lu *lu = io->owner;

	if (io->err)
		vs_media_tell_failed(lu, io->store, io->w);
	vs_range_detached_done(io->w, lu);
	vs_io_put(io->w, io);
}

/* SBC-4 5.22 IMMED: status as soon as the CDB is known to be good; the flush goes on by itself and still pins the LU. */
static bool flush_detached(struct vs_task *t)
{
	struct vs_io *io = vs_io_get(t->w);

	if (!io) {
		vs_range_detached_done(t->w, t->lu);
		t->status = VS_STATUS_BUSY;
		return ENDED;
	}
	io->store = t->io.store;
	io->w = t->w;
	io->op = VS_IO_FLUSH;
	io->flags = 0;
	io->err = VS_ERR_NONE;
	io->offset = io->length = 0;
	io->iov = NULL;
	io->niov = 0;
	io->owner = t->lu;
	io->done = detached_done;
	if (vs_store_submit(io->store, io) == VS_SUBMIT_DONE)
		detached_done(io);
	return ENDED;
}

bool vs_media_sync(struct vs_task *t)
{
	if ((t->cdb[1] & 2) && vs_range_detach(t->w, t->lu))
		return flush_detached(t);
	return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, good);
}
