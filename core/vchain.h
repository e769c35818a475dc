/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From descriptors to iovecs, for both layouts of a ring: the checks that a buffer must pass, and the list that a chain becomes. Where the
 * descriptors stand and how they are linked is in vring.c (split) and vring_packed.c.
 */
#ifndef VS_VCHAIN_H
#define VS_VCHAIN_H

#include "core.h"
#include "vring.h"

/* Chains with indirect tables may be this long on small queues, too: Linux cuts its requests by seg_max, which QEMU's vhost-user-scsi fixes at
 * 126 whatever the queue size is, so a stock guest breaks 2.7.5.3.1 and 2.8.17 on a queue of 64. */
enum { VS_INDIRECT_CHAIN_MIN = 1024 };

int vs_chain_grow(struct vs_worker *w, struct vs_chain *c, const struct iovec *first);
/* The descriptor's 16 bytes as they lie, of a table that crosses regions; it may cross itself. */
bool vs_desc_copy(struct vs_vring *r, uint64_t addr, uint8_t copy[16]);
/* A chain that is refused: what it took goes back, and the caller has its own array again. */
void vs_chain_refuse(struct vs_worker *w, struct vs_chain *c, struct iovec *first, uint32_t capacity);

/* Two loads of 8 bytes, each once: volatile, or the compiler may look at guest memory again. Indirect tables have no alignment to rely on. */
struct __attribute__((packed, may_alias)) word64 { uint64_t v; };

static inline struct vs_vring_desc vs_desc_load(const void *p)
{
	uint64_t addr = ((const volatile struct word64 *)p)[0].v;
	uint64_t rest = ((const volatile struct word64 *)p)[1].v;

	return (struct vs_vring_desc){ addr, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48) };
}

/* The usual case without a call: the region of the last address, and all of the buffer in it. */
static inline uint8_t *vs_ring_translate(struct vs_vring *r, uint64_t addr, uint64_t len, uint64_t *got)
{
	if (vs_likely(r->hint < r->map->n)) {
		const struct vs_mapping *m = r->map->mappings[r->hint];
		uint64_t skip = addr - m->region.guest_addr; /* huge where addr lies before */

		if (vs_likely(skip < m->region.size && len <= m->region.size - skip)) {
			*got = len;
			return m->host + skip;
		}
	}
	return vs_memmap_guest_part(r->map, addr, len, got, &r->hint);
}

static inline int vs_chain_append(struct vs_worker *w, struct vs_chain *c, const struct iovec *first, uint8_t *p, uint64_t len, bool writable)
{
	uint32_t n = c->nout + c->nin;

	if (writable ? c->nin : c->nout) {
		struct iovec *last = &c->iov[n - 1];

		if ((uint8_t *)last->iov_base + last->iov_len == p) {
			last->iov_len += len;
			return 0;
		}
	}
	if (vs_unlikely(n >= c->capacity)) {
		int err = vs_chain_grow(w, c, first);

		if (err)
			return err;
	}
	c->iov[n] = (struct iovec){ p, len };
	if (writable)
		c->nin++;
	else
		c->nout++;
	return 0;
}

static inline int vs_chain_add(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first, uint64_t addr, uint64_t left, bool writable)
{

	/* 2.7.4.2, 2.8.17: device-writable elements come after all device-readable ones. */
	if (vs_unlikely(!writable && c->nin))
		return -VS_RULE_READABLE_AFTER_WRITABLE;
	if (vs_unlikely(!left))
		return 0;
	if (vs_unlikely(left - 1 > UINT64_MAX - addr))
		return -VS_RULE_ADDRESS_OVERFLOW;
	if (vs_unlikely(c->out_length + c->in_length + left > UINT32_MAX))
		return -VS_RULE_CHAIN_BYTES;
	if (writable)
		c->in_length += left;
	else
		c->out_length += left;
	do {
		uint64_t got;
		uint8_t *p = vs_ring_translate(r, addr, left, &got);
		int err;

		if (vs_unlikely(!p))
			return -VS_RULE_UNMAPPED;
		err = vs_chain_append(w, c, first, p, got, writable);
		if (vs_unlikely(err))
			return err;
		addr += got;
		left -= got;
	} while (vs_unlikely(left));
	return 0;
}

#endif
