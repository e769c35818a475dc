/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store that keeps nothing: reads give zeroes, writes vanish. It measures everything above it, and stands in for disks larger than any.
 */
#include <stdlib.h>

#include "store.h"

static enum vs_submit null_submit(struct vs_store *s, struct vs_io *io)
{
	const struct iovec *v = io->iov, *end = io->iov + io->niov;

	(void)s;
	if (io->op == VS_IO_READ)
		for (; v < end; v++)
			memset(v->iov_base, 0, v->iov_len);
	return VS_SUBMIT_DONE;
}

static int null_resize(struct vs_store *s, uint64_t size)
{
	if (size == 0 || size > INT64_MAX)
		return -EINVAL;
	__atomic_store_n(&s->info.size, size, __ATOMIC_RELAXED);
	return 0;
}

static int null_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	(void)s;
	(void)offset;
	*mapped = 0;
	*run = length;
	return 0;
}

static int null_usage(struct vs_store *s, struct vs_store_usage *out)
{
	(void)s;
	out->used = 0;
	out->available = UINT64_MAX;
	return 0;
}

static void null_destroy(struct vs_store *s)
{
	vs_store_fini(s);
	free(s);
}

static const struct vs_store_ops null_ops = {
	.kind = "null",
	.submit = null_submit,
	.destroy = null_destroy,
	.resize = null_resize,
	.map = null_map,
	.usage = null_usage,
};

int vs_store_null(vs_core *core, uint64_t size, vs_store **out, char *why, uint32_t why_size)
{
	struct vs_store *s;

	if (size == 0 || size > INT64_MAX)
		return vs_store_why(why, why_size, EINVAL, "null: a size of %llu bytes cannot be had", (unsigned long long)size);
	s = calloc(1, sizeof(*s));
	if (!s || vs_store_init(s, core, &null_ops, NULL)) {
		free(s);
		return vs_store_why(why, why_size, ENOMEM, "null: out of memory");
	}
	s->info = (struct vs_store_info){
		.size = size,
		.io_align = 1,
		.fua = VS_CAP_NATIVE,
		.unmap = VS_CAP_NATIVE,
		.zero = VS_CAP_NATIVE,
		.unmapped_reads_zero = 1,
	};
	*out = s;
	return 0;
}
