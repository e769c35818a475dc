// SPDX-License-Identifier: Apache-2.0
/* What is rare on the way from descriptors to iovecs (vchain.h): long chains, tables across regions, chains that are refused. */
#include "vchain.h"

/* iovecs of one chain; buffers that cross memory regions take more than one. */
enum { SEGMENTS_MAX = 65536, SEGMENTS_FIRST = 32 };

bool vs_desc_copy(struct vs_vring *r, uint64_t addr, uint8_t copy[16])
{
	for (uint64_t done = 0, got; done < 16; done += got) {
		const void *p = vs_memmap_guest_part(r->map, addr + done, 16 - done, &got, &r->hint);

		if (!p)
			return false;
		memcpy(copy + done, p, got);
	}
	return true;
}

/* Room for more iovecs. The first array is the caller's. */
int vs_chain_grow(struct vs_worker *w, struct vs_chain *c, const struct iovec *first)
{
	uint32_t n = c->nout + c->nin;
	uint32_t capacity = SEGMENTS_FIRST;
	struct iovec *iov;

	if (n >= SEGMENTS_MAX)
		return -VS_RULE_NO_MEMORY;
	while (capacity <= n)
		capacity = vs_min(4 * capacity, (uint32_t)SEGMENTS_MAX);
	iov = vs_iovec_get(w, capacity);
	if (!iov)
		return -VS_RULE_NO_MEMORY;
	memcpy(iov, c->iov, n * sizeof(*iov));
	if (c->iov != first)
		vs_iovec_put(w, c->iov, c->capacity);
	c->iov = iov;
	c->capacity = capacity;
	return 0;
}

void vs_chain_refuse(struct vs_worker *w, struct vs_chain *c, struct iovec *first, uint32_t capacity)
{
	if (c->iov != first)
		vs_iovec_put(w, c->iov, c->capacity);
	c->iov = first;
	c->capacity = capacity;
	c->nout = c->nin = 0;
}
