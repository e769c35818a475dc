/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wrapper that makes ios fail by rule: with an error, after half of the transfer, or after half of it while it says success. Rules are
 * looked at in their order; each one that matches counts the io, and the first that says "fail" decides. They cannot be changed later:
 * who wants others opens another wrapper.
 */
#include <stdlib.h>

#include "store.h"

enum { MAX_RULES = 1024, SECTOR = 512 };

struct fault {
	struct vs_fault_rule rule;
	_Atomic uint64_t matched;
};
struct faulty_store {
	struct vs_store store;
	uint32_t nrules;
	struct fault faults[];
};

static inline struct faulty_store *faulty_of(struct vs_store *s)
{
	return vs_container_of(s, struct faulty_store, store);
}

/* FLUSH has no range: the operation alone matches. */
static bool matches(const struct vs_fault_rule *r, const struct vs_io *io)
{
	if (!(r->ops & 1u << io->op))
		return false;
	if (io->op == VS_IO_FLUSH)
		return true;
	return io->offset + io->length > r->offset && (r->length == 0 || io->offset < r->offset + r->length);
}

static const struct vs_fault_rule *fault_of(struct faulty_store *f, const struct vs_io *io)
{
	uint32_t i;

	for (i = 0; i < f->nrules; i++) {
		const struct vs_fault_rule *r = &f->faults[i].rule;
		uint64_t n;

		if (!matches(r, io))
			continue;
		n = atomic_fetch_add_explicit(&f->faults[i].matched, 1, memory_order_relaxed);
		if (n >= r->skip && (r->count == 0 || n - r->skip < r->count))
			return r;
	}
	return NULL;
}

static int32_t faulty_child_end(struct vs_io *io, struct vs_io *child)
{
	const struct vs_fault_rule *r = io->buffer;
	int32_t err = child->err;

	if (child->iov != io->iov)
		vs_iovec_put(io->w, child->iov, (uint32_t)io->niov);
	vs_io_put(io->w, child);
	/* A real error goes before a made one. */
	return !err && r && r->kind == VS_FAULT_SHORT ? r->error : err;
}

static void faulty_child_done(struct vs_io *child)
{
	struct vs_io *io = child->owner;

	vs_io_end(io, faulty_child_end(io, child));
}

/* Half in whole sectors, as a medium tears; below two sectors in bytes. */
static uint64_t half_of(uint64_t length)
{
	return length >= 2 * SECTOR ? length / 2 & ~(uint64_t)(SECTOR - 1) : length / 2;
}

static enum vs_submit faulty_submit(struct vs_store *s, struct vs_io *io)
{
	const struct vs_fault_rule *r = fault_of(faulty_of(s), io);
	struct vs_io *child;

	if (r && (r->kind == VS_FAULT_ERROR || io->op == VS_IO_FLUSH)) {
		io->err = r->error;
		return VS_SUBMIT_DONE;
	}
	child = vs_io_get(io->w);
	if (!child) {
		io->err = VS_ERR_BUSY;
		return VS_SUBMIT_DONE;
	}
	io->priv = child;
	io->buffer = (void *)r;
	child->op = io->op;
	child->flags = io->flags;
	child->offset = io->offset;
	child->length = io->length;
	child->iov = io->iov;
	child->niov = io->niov;
	child->done = faulty_child_done;
	child->owner = io;
	if (r) {
		child->length = half_of(io->length);
		if (io->op == VS_IO_READ || io->op == VS_IO_WRITE) {
			child->iov = vs_iovec_get(io->w, (uint32_t)io->niov);
			if (!child->iov) {
				vs_io_put(io->w, child);
				io->err = VS_ERR_BUSY;
				return VS_SUBMIT_DONE;
			}
			child->niov = vs_iov_slice(io->iov, io->niov, 0, child->length, child->iov, io->niov);
		}
	}
	if (vs_store_submit(s->lower, child) == VS_SUBMIT_PENDING)
		return VS_SUBMIT_PENDING;
	io->err = faulty_child_end(io, child);
	return VS_SUBMIT_DONE;
}

static void faulty_cancel(struct vs_store *s, struct vs_io *io)
{
	vs_store_cancel(s->lower, io->priv);
}

static int faulty_resize(struct vs_store *s, uint64_t size)
{
	int err = vs_store_resize(s->lower, size);

	if (!err)
		__atomic_store_n(&s->info.size, vs_store_size(s->lower), __ATOMIC_RELAXED);
	return err;
}

static int faulty_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	return vs_store_map(s->lower, offset, length, mapped, run);
}

static int faulty_usage(struct vs_store *s, struct vs_store_usage *out)
{
	return vs_store_usage(s->lower, out);
}

static void faulty_destroy(struct vs_store *s)
{
	vs_store_fini(s);
	free(faulty_of(s));
}

static const struct vs_store_ops faulty_ops = {
	.kind = "faulty",
	.submit = faulty_submit,
	.destroy = faulty_destroy,
	.resize = faulty_resize,
	.map = faulty_map,
	.usage = faulty_usage,
	.cancel = faulty_cancel,
};

static const char *wrong_with(const struct vs_fault_rule *r)
{
	const uint32_t written = 1u << VS_IO_WRITE | 1u << VS_IO_UNMAP | 1u << VS_IO_ZERO;

	if (r->ops == 0 || r->ops >> VS_IO_OPS)
		return "no such operation";
	if (r->kind > VS_FAULT_TORN)
		return "no such kind of fault";
	if (r->length && r->offset > UINT64_MAX - r->length)
		return "the range does not end";
	if (r->kind == VS_FAULT_TORN && (r->ops & ~written))
		return "only a write, unmap or zero can be torn";
	if (r->kind != VS_FAULT_TORN && (r->error <= VS_ERR_NONE || r->error >= VS_ERR_KINDS))
		return "no such error";
	return NULL;
}

int vs_store_faulty(vs_core *core, vs_store *lower, const struct vs_fault_rule *rules, uint32_t nrules, vs_store **out, char *why,
		    uint32_t why_size)
{
	struct faulty_store *f;
	uint32_t i;

	if (nrules > MAX_RULES)
		return vs_store_why(why, why_size, EINVAL, "faulty: more than %d rules", MAX_RULES);
	for (i = 0; i < nrules; i++)
		if (wrong_with(&rules[i]))
			return vs_store_why(why, why_size, EINVAL, "faulty: rule %u: %s", i + 1, wrong_with(&rules[i]));
	f = calloc(1, sizeof(*f) + nrules * sizeof(f->faults[0]));
	if (!f || vs_store_init(&f->store, core, &faulty_ops, lower)) {
		free(f);
		return vs_store_why(why, why_size, ENOMEM, "faulty: out of memory");
	}
	for (i = 0; i < nrules; i++)
		f->faults[i].rule = rules[i];
	f->nrules = nrules;
	vs_store_info(lower, &f->store.info);
	f->store.info.atomic_unit = 0; /* it may tear any of them */
	*out = &f->store;
	return 0;
}
