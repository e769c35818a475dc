/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every store has in common: the checks before an io reaches it, counting, how an io ends, the latch of failed flushes, child ios for
 * stores over stores, byte I/O by the control plane, and the one map from errno to the closed set of store errors. No store lives here.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "store.h"

/* ---- the way in ------------------------------------------------------------------------------------------------------------------- */

static bool modifies(uint8_t op)
{
	return op == VS_IO_WRITE || op == VS_IO_UNMAP || op == VS_IO_ZERO;
}

/* FLUSH and FUA promise durability; after a failed flush nobody knows what reached the medium (the kernel drops the pages and says so once). */
static bool promises(const struct vs_io *io)
{
	return io->op == VS_IO_FLUSH || (modifies(io->op) && (io->flags & VS_IO_FUA));
}

static int32_t check(const struct vs_store *s, const struct vs_io *io)
{
	if (vs_unlikely(io->op >= VS_IO_OPS))
		return VS_ERR_UNSUPPORTED;
	if (io->op != VS_IO_FLUSH) {
		uint64_t size = vs_store_size(s);

		if (vs_unlikely(io->offset > size || io->length > size - io->offset))
			return VS_ERR_RANGE;
	}
	if (vs_unlikely(s->info.read_only && modifies(io->op)))
		return VS_ERR_READ_ONLY;
	if (vs_unlikely((io->op == VS_IO_UNMAP && s->info.unmap == VS_CAP_NONE) || (io->op == VS_IO_ZERO && s->info.zero == VS_CAP_NONE)))
		return VS_ERR_UNSUPPORTED;
	if (vs_unlikely(atomic_load_explicit(&s->flush_failed, memory_order_acquire) && promises(io)))
		return VS_ERR_FLUSH_LATCHED;
	return VS_ERR_NONE;
}

/* An io that never got to the medium says nothing about what is on it. */
static bool latches(const struct vs_io *io, int32_t err)
{
	return io->op == VS_IO_FLUSH && err != VS_ERR_ABORTED && err != VS_ERR_BUSY && err != VS_ERR_FLUSH_LATCHED;
}

static void failed(struct vs_io *io, int32_t err)
{
	struct vs_store *s = io->store;

	if (io->op < VS_IO_OPS)
		vs_count(&s->stats[io->w->index].errors[io->op], 1);
	if (latches(io, err))
		atomic_store_explicit(&s->flush_failed, 1, memory_order_release);
}

enum vs_submit vs_store_submit(struct vs_store *s, struct vs_io *io)
{
	io->store = s;
	io->err = check(s, io);
	if (vs_unlikely(io->err)) {
		failed(io, io->err);
		return VS_SUBMIT_DONE;
	}
	vs_count(&s->stats[io->w->index].ops[io->op], 1);
	if (io->op != VS_IO_FLUSH) {
		if (vs_unlikely(io->length == 0))
			return VS_SUBMIT_DONE;
		vs_count(&s->stats[io->w->index].bytes[io->op], io->length);
	}
	if (s->ops->submit(s, io) == VS_SUBMIT_PENDING)
		return VS_SUBMIT_PENDING;
	if (vs_unlikely(io->err))
		failed(io, io->err);
	return VS_SUBMIT_DONE;
}

/* The last that a store does with an io: done() may give the io, and behind a fence the store, away. */
void vs_io_end(struct vs_io *io, int32_t err)
{
	io->err = err;
	if (vs_unlikely(err))
		failed(io, err);
	io->done(io);
}

void vs_store_cancel(struct vs_store *s, struct vs_io *io)
{
	if (s->ops->cancel)
		s->ops->cancel(s, io);
}

/* ---- child ios -------------------------------------------------------------------------------------------------------------------- */

/* Kept once made, as many as the worker once had in flight; worker.c frees them. */
struct vs_io *vs_io_get(struct vs_worker *w)
{
	struct vs_io *io = w->io_free;

	if (vs_likely(io != NULL)) {
		w->io_free = io->next;
	} else {
		io = calloc(1, sizeof(*io));
		if (!io)
			return NULL;
	}
	io->w = w;
	io->buffer = NULL;
	return io;
}

void vs_io_put(struct vs_worker *w, struct vs_io *io)
{
	io->next = w->io_free;
	w->io_free = io;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------- */

int vs_store_init(struct vs_store *s, vs_core *core, const struct vs_store_ops *ops, struct vs_store *lower)
{
	s->ops = ops;
	s->core = core;
	s->lower = lower;
	atomic_init(&s->flush_failed, 0);
	s->stats = aligned_alloc(VS_CACHE_LINE, core->config.nworkers * sizeof(*s->stats));
	if (!s->stats)
		return -ENOMEM;
	memset(s->stats, 0, core->config.nworkers * sizeof(*s->stats));
	return 0;
}

void vs_store_fini(struct vs_store *s)
{
	free(s->stats);
	s->stats = NULL;
}

void vs_store_destroy(vs_store *store)
{
	while (store) {
		vs_store *lower = store->lower;

		store->ops->destroy(store);
		store = lower;
	}
}

void vs_store_info(const vs_store *store, struct vs_store_info *out)
{
	*out = store->info;
	out->size = vs_store_size(store);
	out->failed = atomic_load_explicit((_Atomic uint32_t *)&store->flush_failed, memory_order_acquire) != 0;
}

void vs_store_stats(const vs_store *store, struct vs_store_stats *out)
{
	uint32_t worker, op;

	memset(out, 0, sizeof(*out));
	for (worker = 0; worker < store->core->config.nworkers; worker++) {
		for (op = 0; op < VS_IO_OPS; op++) {
			out->ops[op] += vs_counted(&store->stats[worker].ops[op]);
			out->bytes[op] += vs_counted(&store->stats[worker].bytes[op]);
			out->errors[op] += vs_counted(&store->stats[worker].errors[op]);
		}
	}
}

const char *vs_store_kind(const vs_store *store)
{
	return store->ops->kind;
}

vs_store *vs_store_lower(const vs_store *store)
{
	return store->lower;
}

int vs_store_resize(vs_store *store, uint64_t size)
{
	return store->ops->resize ? store->ops->resize(store, size) : -ENOTSUP;
}

int vs_store_map(vs_store *store, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	uint64_t size = vs_store_size(store);

	if (length == 0 || offset > size || length > size - offset)
		return -EINVAL;
	return store->ops->map ? store->ops->map(store, offset, length, mapped, run) : -ENOTSUP;
}

int vs_store_usage(vs_store *store, struct vs_store_usage *out)
{
	uint64_t size = vs_store_size(store);
	int err;

	memset(out, 0, sizeof(*out));
	if (!store->ops->usage)
		return -ENOTSUP;
	err = store->ops->usage(store, out);
	if (err)
		return err;
	/* A store may take more than it shows (whole pages, a file system's own blocks), and others may hold less than it has left to show. */
	out->used = vs_min(out->used, size);
	out->available = vs_min(out->available, size - out->used);
	return 0;
}

int vs_store_limit(vs_store *store, uint64_t bytes)
{
	return store->ops->limit ? store->ops->limit(store, bytes) : -ENOTSUP;
}

int vs_store_why(char *why, uint32_t why_size, int err, const char *format, ...)
{
	va_list args;

	if (why && why_size) {
		va_start(args, format);
		vsnprintf(why, why_size, format, args);
		va_end(args);
	}
	return -err;
}

/* ---- byte I/O by the control plane -------------------------------------------------------------------------------------------------- */

struct control_io {
	struct vs_msg msg;
	struct vs_store *store;
	struct vs_io io;
	struct iovec iov;
	uint64_t cookie;
};

static void control_done(struct vs_io *io)
{
	struct control_io *c = vs_container_of(io, struct control_io, io);

	vs_upcall_new(io->w->core, VS_UP_DONE, io->w->index, c->cookie, 0, -io->err, NULL);
	free(c);
}

static void control_run(struct vs_worker *w, struct vs_msg *m)
{
	struct control_io *c = vs_container_of(m, struct control_io, msg);

	c->io.w = w;
	if (vs_store_submit(c->store, &c->io) == VS_SUBMIT_DONE)
		control_done(&c->io);
}

int vs_store_submit_control(vs_core *core, vs_store *store, uint32_t worker, uint32_t op, uint32_t flags, uint64_t offset, uint64_t length,
			    uint8_t *buffer, uint64_t cookie)
{
	struct control_io *c;

	if (worker >= core->config.nworkers || op >= VS_IO_OPS || (!buffer && length && (op == VS_IO_READ || op == VS_IO_WRITE)))
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->msg.run = control_run;
	c->store = store;
	c->cookie = cookie;
	c->iov.iov_base = buffer;
	c->iov.iov_len = length;
	c->io.op = (uint8_t)op;
	c->io.flags = (uint8_t)flags;
	c->io.offset = offset;
	c->io.length = length;
	c->io.iov = &c->iov;
	c->io.niov = 1;
	c->io.done = control_done;
	vs_worker_send(&core->workers[worker], &c->msg);
	return 0;
}

/* ---- errno ------------------------------------------------------------------------------------------------------------------------ */

int32_t vs_store_error_of_errno(int err, uint8_t op)
{
	switch (err) {
	case 0:
		return VS_ERR_NONE;
	case ENOSPC:
	case EDQUOT:
	case EFBIG: /* RLIMIT_FSIZE, or what the file system can hold in one file */
		return op == VS_IO_READ ? VS_ERR_READ : VS_ERR_NO_SPACE;
	case EROFS:
	case EPERM: /* sealed or immutable */
	case EACCES:
		return op == VS_IO_READ ? VS_ERR_READ : VS_ERR_READ_ONLY;
	case EAGAIN:
	case EINTR:
	case EBUSY:
	case ENOMEM:
	case ENOBUFS:
		return VS_ERR_BUSY;
	case ENOMEDIUM:
	case ETIMEDOUT:
	case ENOLINK:
	case ENOTCONN:
	case ECONNRESET:
	case ECONNREFUSED:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETDOWN:
	case ENETUNREACH:
		return VS_ERR_NOT_READY;
	case ENODEV:
	case ENXIO:
	case ESTALE:
		return VS_ERR_GONE;
	case EOPNOTSUPP:
	case ENOSYS:
	case ENOTTY:
		return VS_ERR_UNSUPPORTED;
	case ECANCELED:
		return VS_ERR_ABORTED;
	case EINVAL:
	case EFAULT:
	case EBADF:
		return VS_ERR_INTERNAL;
	default: /* EIO, EILSEQ, ENODATA, EREMOTEIO, EUCLEAN, ...: the medium */
		return op == VS_IO_READ ? VS_ERR_READ : VS_ERR_WRITE;
	}
}
