/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store whose byte operations are carried out in Python: each io crosses to the control thread as VS_UP_STORE_IO and comes back through
 * the worker's inbox. While it is there it is the control thread's alone; buffers are the initiator's, and copied by this file.
 */
#include <stdlib.h>

#include "store.h"

_Static_assert(sizeof(struct vs_io_segment) == sizeof(struct iovec) && offsetof(struct vs_io_segment, base) == offsetof(struct iovec, iov_base) &&
		       offsetof(struct vs_io_segment, length) == offsetof(struct iovec, iov_len),
	       "Python reads iovecs as segments");

struct python_store {
	struct vs_store store;
	uint64_t cookie;
};

static inline struct python_store *python_of(struct vs_store *s)
{
	return vs_container_of(s, struct python_store, store);
}

static enum vs_submit python_submit(struct vs_store *s, struct vs_io *io)
{
	io->up.kind = VS_UP_STORE_IO;
	io->up.worker = io->w->index;
	io->up.cookie = python_of(s)->cookie;
	io->up.aux = 0;
	io->up.err = 0;
	io->up.allocated = false;
	io->up.object = io;
	vs_upcall(s->core, &io->up);
	return VS_SUBMIT_PENDING;
}

void vs_io_info(const vs_io *io, struct vs_io_info *out)
{
	bool has_data = io->op == VS_IO_READ || io->op == VS_IO_WRITE;

	*out = (struct vs_io_info){
		.offset = io->offset,
		.length = io->op == VS_IO_FLUSH ? 0 : io->length,
		.op = io->op,
		.flags = io->flags,
		.nsegments = has_data ? (uint32_t)io->niov : 0,
		.segments = has_data ? (const struct vs_io_segment *)io->iov : NULL,
	};
}

uint64_t vs_io_gather(const vs_io *io, uint8_t *buffer, uint64_t size)
{
	if (io->op != VS_IO_WRITE)
		return 0;
	return vs_iov_to_buffer(io->iov, io->niov, 0, buffer, vs_min(size, io->length));
}

static void python_answered(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	vs_io_end(io, (int32_t)io->state);
}

/* What Python answers is checked as well: a read that brings another length than was asked for is the store's own fault. */
static int32_t take_answer(struct vs_io *io, const struct vs_io_result *r, const uint8_t *blob, uint64_t blob_length)
{
	if (r->error < VS_ERR_NONE || r->error >= VS_ERR_KINDS)
		return VS_ERR_INTERNAL;
	if (r->error || io->op != VS_IO_READ)
		return r->error;
	if (r->data_length != io->length || r->data_offset > blob_length || r->data_length > blob_length - r->data_offset)
		return VS_ERR_INTERNAL;
	vs_iov_from_buffer(io->iov, io->niov, 0, blob + r->data_offset, r->data_length);
	return VS_ERR_NONE;
}

void vs_core_post_io(vs_core *core, const struct vs_io_result *results, int n, const uint8_t *blob, uint64_t blob_length)
{
	uint64_t touched = 0; /* VS_MAX_WORKERS bits */
	uint32_t i;

	for (i = 0; (int)i < n; i++) {
		struct vs_io *io = results[i].io;
		struct vs_worker *w = io->w;

		io->state = (uint32_t)take_answer(io, &results[i], blob, blob_length);
		io->msg.run = python_answered;
		touched |= 1ull << w->index;
		vs_worker_push(w, &io->msg);
	}
	for (i = 0; i < core->config.nworkers; i++)
		if (touched >> i & 1)
			vs_worker_wake(&core->workers[i]);
}

static void python_destroy(struct vs_store *s)
{
	vs_store_fini(s);
	free(python_of(s));
}

/* Python has already resized what it keeps. */
static int python_resize(struct vs_store *s, uint64_t size)
{
	if (size == 0 || size > INT64_MAX)
		return -EINVAL;
	__atomic_store_n(&s->info.size, size, __ATOMIC_RELAXED);
	return 0;
}

static const struct vs_store_ops python_ops = {
	.kind = "python",
	.submit = python_submit,
	.destroy = python_destroy,
	.resize = python_resize,
};

int vs_store_python(vs_core *core, const struct vs_store_info *info, uint64_t cookie, vs_store **out, char *why, uint32_t why_size)
{
	struct python_store *p;

	if (info->size == 0 || info->size > INT64_MAX || (info->io_align & (info->io_align - 1)))
		return vs_store_why(why, why_size, EINVAL, "python: a size of %llu bytes in units of %u cannot be had",
				    (unsigned long long)info->size, info->io_align);
	p = calloc(1, sizeof(*p));
	if (!p || vs_store_init(&p->store, core, &python_ops, NULL)) {
		free(p);
		return vs_store_why(why, why_size, ENOMEM, "python: out of memory");
	}
	p->store.info = *info;
	p->store.info.io_align = vs_max(info->io_align, 1u);
	p->store.info.failed = 0;
	p->cookie = cookie;
	*out = &p->store;
	return 0;
}
