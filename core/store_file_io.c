/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the file store carries out an io. Four ways: straight from the initiator's buffers; through a buffer of ours, where direct I/O refuses
 * theirs or where zeroes must be written; by fallocate; and fdatasync. What the kernel does only in part is asked for again.
 *
 * With direct I/O a write that covers a unit in part is read, patched and written. It holds its units alone for that long, and every other
 * write holds its own shared: else the rest of the unit could go back in time.
 */
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store_file.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif

/* In io->pending: the buffer is being filled for the sake of what is not written, or what was asked for is done. */
enum file_step { STEP_FILL, STEP_MOVE };

static void bounce(struct file_store *f, struct vs_io *io);

static inline struct vs_io *io_of(struct vs_op *op)
{
	return vs_container_of(op, struct vs_io, eng);
}

static void submit(struct vs_io *io, uint8_t kind, void (*done)(struct vs_worker *, struct vs_op *))
{
	if (kind != VS_OP_READV && kind != VS_OP_WRITEV) {
		io->eng.iov = NULL;
		io->eng.niov = 0;
	}
	io->eng.kind = kind;
	io->eng.fd = file_of(io->store)->fd;
	io->eng.done = done;
	io->w->engine->submit(io->w, &io->eng);
}

/* A synchronous write reports what the kernel lost of earlier ones, and it does so once (errseq): a flush would then say that all is well.
 * Out of space is told when the write is made, not when it is written back. */
static bool loses_earlier_writes(const struct vs_io *io, int32_t err)
{
	return (io->flags & VS_IO_FUA) && io->op != VS_IO_READ && (err == VS_ERR_WRITE || err == VS_ERR_GONE || err == VS_ERR_NOT_READY);
}

static void end(struct file_store *f, struct vs_io *io, int32_t err)
{
	if (io->priv)
		vs_iovec_put(io->w, io->priv, (uint32_t)vs_min(io->niov, IOV_MAX));
	if (io->buffer)
		vs_buffers_put(&f->buffers, io);
	if (io->state & VS_IO_STATE_HELD)
		vs_spans_leave(&f->spans, io);
	if (vs_unlikely(loses_earlier_writes(io, err)))
		atomic_store_explicit(&f->store.flush_failed, 1, memory_order_release);
	vs_io_end(io, err);
}

static void ended_later(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	end(file_of(io->store), io, io->err);
}

/* From where the submitter may still be above us on the stack: done() must not run in there. */
static void end_later(struct vs_io *io, int32_t err)
{
	io->err = err;
	io->msg.run = ended_later;
	vs_worker_send(io->w, &io->msg);
}

/* ---- flush ----------------------------------------------------------------------------------------------------------------------------- */

static void synced(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	int32_t err = VS_ERR_NONE;

	(void)w;
	if (op->result == -EINTR) {
		submit(io, VS_OP_FDATASYNC, synced);
		return;
	}
	if (op->result < 0) {
		err = vs_store_error_of_errno((int)-op->result, io->op);
		/* "Try again" would be answered with success: the error is reported once. */
		if (err == VS_ERR_BUSY)
			err = VS_ERR_WRITE;
	}
	end(file_of(io->store), io, err);
}

/* Zeroing and unmapping have no flag that makes them durable. */
static void cleared(struct file_store *f, struct vs_io *io)
{
	if (io->flags & VS_IO_FUA)
		submit(io, VS_OP_FDATASYNC, synced);
	else
		end(f, io, VS_ERR_NONE);
}

/* ---- a file that was cut off ------------------------------------------------------------------------------------------------------------- */

static void measure_call(struct vs_op *op)
{
	struct stat st;

	op->result = fstat(op->fd, &st) ? -errno : st.st_size;
}

/* Never moves up: the next write behind the end would turn what is missing into zeroes. */
static void latch_cut_off(struct file_store *f, uint64_t at)
{
	uint64_t known = atomic_load_explicit(&f->cut_off, memory_order_relaxed);

	while (at < known && !atomic_compare_exchange_weak_explicit(&f->cut_off, &known, at, memory_order_release, memory_order_relaxed))
		;
}

static void measured(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	struct file_store *f = file_of(io->store);

	(void)w;
	if (op->result >= 0)
		latch_cut_off(f, (uint64_t)op->result);
	end(f, io, VS_ERR_GONE);
}

/* A read came to an end at op->offset + result. The file may be shorter still; a device grows by no write, and may be whole again. */
static void gone(struct file_store *f, struct vs_io *io)
{
	if (f->block_device) {
		end(f, io, VS_ERR_GONE);
		return;
	}
	latch_cut_off(f, io->eng.offset + (uint64_t)io->eng.result);
	io->eng.call = measure_call;
	submit(io, VS_OP_CALL, measured);
}

static bool behind_the_cut(const struct file_store *f, const struct vs_io *io)
{
	return io->offset + io->length > atomic_load_explicit(&f->cut_off, memory_order_acquire);
}

/* ---- straight -------------------------------------------------------------------------------------------------------------------------- */

static void moved(struct vs_worker *w, struct vs_op *op);

/* What one system call takes of [progress, length): at most IOV_MAX iovecs. */
static int cut(const struct vs_io *io, struct iovec *out, int max)
{
	uint64_t skip = io->progress;
	int i, n = 0;

	for (i = 0; i < io->niov && n < max; i++) {
		const struct iovec *v = &io->iov[i];

		if (skip >= v->iov_len) {
			skip -= v->iov_len;
			continue;
		}
		out[n].iov_base = (uint8_t *)v->iov_base + skip;
		out[n++].iov_len = v->iov_len - skip;
		skip = 0;
	}
	return n;
}

static void move(struct file_store *f, struct vs_io *io)
{
	io->eng.iov = io->iov;
	io->eng.niov = io->niov;
	if (io->progress || io->niov > IOV_MAX) {
		int max = vs_min(io->niov, IOV_MAX);

		if (!io->priv)
			io->priv = vs_iovec_get(io->w, (uint32_t)max);
		if (!io->priv) { /* the worker's limit: then our own buffer, which is slower and never lacks */
			bounce(f, io);
			return;
		}
		io->eng.iov = io->priv;
		io->eng.niov = cut(io, io->priv, max);
	}
	io->eng.offset = io->offset + io->progress;
	io->eng.rw_flags = io->op == VS_IO_WRITE && (io->flags & VS_IO_FUA) ? RWF_DSYNC : 0;
	submit(io, io->op == VS_IO_WRITE ? VS_OP_WRITEV : VS_OP_READV, moved);
}

/* Nothing where the store has bytes: somebody cut the file off. A part of a unit is the end of the file, too. */
static int32_t error_of(const struct file_store *f, const struct vs_io *io, ssize_t result, bool read)
{
	if (result < 0)
		return vs_store_error_of_errno((int)-result, io->op);
	if (result == 0 || (uint64_t)result % f->unit)
		return read ? VS_ERR_GONE : VS_ERR_WRITE;
	return VS_ERR_NONE;
}

static void failed(struct file_store *f, struct vs_io *io, int32_t err)
{
	if (err == VS_ERR_GONE && io->eng.result >= 0)
		gone(f, io);
	else
		end(f, io, err);
}

static void moved(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	struct file_store *f = file_of(io->store);
	int32_t err;

	(void)w;
	if (vs_likely(op->result == (ssize_t)io->length)) {
		end(f, io, VS_ERR_NONE);
		return;
	}
	if (op->result != -EINTR) {
		err = error_of(f, io, op->result, io->op == VS_IO_READ);
		if (err) {
			failed(f, io, err);
			return;
		}
		io->progress += (uint64_t)op->result;
	}
	if (io->progress >= io->length)
		end(f, io, VS_ERR_NONE);
	else
		move(f, io);
}

/* ---- through a buffer --------------------------------------------------------------------------------------------------------------------- */

static void bounced(struct vs_worker *w, struct vs_op *op);

static void bounce_submit(struct vs_io *io, bool write)
{
	struct vs_buffer *b = io->buffer;

	b->iov.iov_base = b->data + b->done;
	b->iov.iov_len = b->length - b->done;
	io->eng.iov = &b->iov;
	io->eng.niov = 1;
	io->eng.offset = b->offset + b->done;
	io->eng.rw_flags = write && (io->flags & VS_IO_FUA) ? RWF_DSYNC : 0;
	submit(io, write ? VS_OP_WRITEV : VS_OP_READV, bounced);
}

/* How much of the io the buffer holds, and where in the buffer it starts. */
static uint64_t bounce_part(const struct vs_io *io, uint64_t *at)
{
	const struct vs_buffer *b = io->buffer;
	uint64_t from = io->offset + io->progress;

	*at = from - b->offset;
	return vs_min(b->length - *at, io->length - io->progress);
}

static void bounce_write(struct vs_io *io)
{
	struct vs_buffer *b = io->buffer;
	uint64_t at, n = bounce_part(io, &at);

	if (io->op == VS_IO_WRITE)
		vs_iov_to_buffer(io->iov, io->niov, io->progress, b->data + at, n);
	else
		memset(b->data + at, 0, n);
	b->done = 0;
	io->pending = STEP_MOVE;
	bounce_submit(io, true);
}

static void bounce_next(struct file_store *f, struct vs_io *io)
{
	struct vs_buffer *b = io->buffer;
	uint64_t from = io->offset + io->progress, mask = f->unit - 1, n;
	bool whole;

	b->offset = from & ~mask;
	n = vs_min(io->length - io->progress, FILE_BUFFER - (from - b->offset));
	b->length = ((from + n + mask) & ~mask) - b->offset;
	b->done = 0;
	whole = !((from | (from + n)) & mask);
	if (io->op == VS_IO_READ) {
		io->pending = STEP_MOVE;
		bounce_submit(io, false);
	} else if (whole) {
		bounce_write(io);
	} else {
		io->pending = STEP_FILL;
		bounce_submit(io, false);
	}
}

static void bounced(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	struct file_store *f = file_of(io->store);
	struct vs_buffer *b = io->buffer;
	bool fill = io->pending == STEP_FILL, reads = fill || io->op == VS_IO_READ;
	uint64_t at, n;
	int32_t err;

	(void)w;
	if (op->result != -EINTR) {
		err = error_of(f, io, op->result, reads);
		if (err) {
			failed(f, io, err);
			return;
		}
		b->done += (uint64_t)op->result;
	}
	if (b->done < b->length) {
		bounce_submit(io, !reads);
		return;
	}
	if (fill) {
		bounce_write(io);
		return;
	}
	n = bounce_part(io, &at);
	if (io->op == VS_IO_READ)
		vs_iov_from_buffer(io->iov, io->niov, io->progress, b->data + at, n);
	io->progress += n;
	if (io->progress < io->length)
		bounce_next(f, io);
	else
		end(f, io, VS_ERR_NONE);
}

static void have_buffer(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	bounce_next(file_of(io->store), io);
}

static void bounce(struct file_store *f, struct vs_io *io)
{
	io->msg.run = have_buffer;
	if (vs_buffers_get(&f->buffers, io))
		bounce_next(f, io);
}

/* ---- fallocate ------------------------------------------------------------------------------------------------------------------------- */

static void discard_call(struct vs_op *op)
{
	uint64_t range[2] = { op->offset, op->length };

	op->result = ioctl(op->fd, BLKDISCARD, range) ? -errno : 0;
}

static void discarded(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	struct file_store *f = file_of(io->store);

	(void)w;
	if (op->result < 0)
		end(f, io, vs_store_error_of_errno((int)-op->result, io->op));
	else
		cleared(f, io);
}

static bool refused(ssize_t result)
{
	return result == -EOPNOTSUPP || result == -ENOSYS;
}

static void clear(struct file_store *f, struct vs_io *io);

static void allocated(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = io_of(op);
	struct file_store *f = file_of(io->store);

	(void)w;
	if (vs_likely(op->result >= 0)) {
		cleared(f, io);
	} else if (op->result == -EINTR) {
		submit(io, VS_OP_FALLOCATE, allocated);
	} else if (refused(op->result)) {
		/* Each refusal takes one way away: clear() ends where there is none left. */
		atomic_store_explicit(op->mode & FALLOC_FL_PUNCH_HOLE ? &f->no_punch : &f->no_zero_range, true, memory_order_relaxed);
		clear(f, io);
	} else {
		end(f, io, vs_store_error_of_errno((int)-op->result, io->op));
	}
}

/* A hint about less than a sector is no hint: unmapping is rounded inwards. */
static bool round_inwards(const struct file_store *f, struct vs_op *op)
{
	uint64_t mask = f->sector - 1, last = (op->offset + op->length) & ~mask;

	op->offset = (op->offset + mask) & ~mask;
	op->length = last > op->offset ? last - op->offset : 0;
	return op->length != 0;
}

static void clear(struct file_store *f, struct vs_io *io)
{
	bool no_punch = atomic_load_explicit(&f->no_punch, memory_order_relaxed);
	bool sectors = !((io->offset | io->length) & (f->sector - 1));

	io->eng.offset = io->offset;
	io->eng.length = io->length;
	if (io->op == VS_IO_UNMAP) {
		if (!round_inwards(f, &io->eng)) {
			end_later(io, VS_ERR_NONE);
		} else if (!no_punch) {
			io->eng.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
			submit(io, VS_OP_FALLOCATE, allocated);
		} else if (f->block_device) {
			io->eng.call = discard_call;
			submit(io, VS_OP_CALL, discarded);
		} else {
			end_later(io, VS_ERR_UNSUPPORTED);
		}
	} else if ((io->flags & VS_IO_MAY_UNMAP) && !no_punch && sectors) {
		io->eng.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		submit(io, VS_OP_FALLOCATE, allocated);
	} else if (!atomic_load_explicit(&f->no_zero_range, memory_order_relaxed) && sectors) {
		io->eng.mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
		submit(io, VS_OP_FALLOCATE, allocated);
	} else {
		bounce(f, io);
	}
}

/* ---- which way ------------------------------------------------------------------------------------------------------------------------- */

static bool fits_direct(const struct file_store *f, const struct vs_io *io)
{
	uintptr_t addresses = 0, lengths = io->offset;
	int i;

	for (i = 0; i < io->niov; i++) {
		addresses |= (uintptr_t)io->iov[i].iov_base;
		lengths |= io->iov[i].iov_len;
	}
	return !(addresses & (f->memory_unit - 1)) && !(lengths & (f->unit - 1));
}

/* The io holds its units, where it must. */
static void start(struct file_store *f, struct vs_io *io)
{
	if (io->op == VS_IO_UNMAP || io->op == VS_IO_ZERO)
		clear(f, io);
	else if (f->direct && !fits_direct(f, io))
		bounce(f, io);
	else
		move(f, io);
}

static void have_units(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	start(file_of(io->store), io);
}

/* Whatever is started in here ends through the engine or a message: done() never runs before this has returned. */
enum vs_submit vs_file_submit(struct vs_store *s, struct vs_io *io)
{
	struct file_store *f = file_of(s);

	io->progress = 0;
	io->priv = NULL;
	io->buffer = NULL;
	io->state = 0;
	if (io->op == VS_IO_FLUSH) {
		if (s->info.read_only)
			return VS_SUBMIT_DONE;
		submit(io, VS_OP_FDATASYNC, synced);
		return VS_SUBMIT_PENDING;
	}
	if (vs_unlikely(behind_the_cut(f, io))) {
		io->err = VS_ERR_GONE;
		return VS_SUBMIT_DONE;
	}
	if (f->direct && io->op != VS_IO_READ) {
		io->msg.run = have_units;
		if (!vs_spans_enter(&f->spans, io, ((io->offset | io->length) & (f->unit - 1)) != 0))
			return VS_SUBMIT_PENDING;
	}
	start(f, io);
	return VS_SUBMIT_PENDING;
}
