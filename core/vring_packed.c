// SPDX-License-Identifier: Apache-2.0
/*
 * The device side of a packed virtqueue (virtio 1.3, 2.8), beside the split one in vring.c and under the same names in core.h. The driver is
 * hostile here, too. There are no loops, for a chain is what stands side by side; what a hostile driver can do instead is to offer again what we
 * still hold, so it is counted.
 */
#include "vchain.h"

/* Chains that one look at the ring counts, at most: a queue takes no more in a turn. */
enum { COUNT_MAX = 256 };

int vs_packed_begin(struct vs_vring *r, uint32_t base)
{
	uint16_t avail = (uint16_t)base, used = (uint16_t)(base >> 16);

	if (vs_packed_index(avail) >= r->size || vs_packed_index(used) >= r->size)
		return -VS_RULE_RING_BASE;
	/* What lies between was taken by whoever served the ring before, and not used. */
	r->held = vs_packed_distance(used, avail, r->size);
	if (r->held > r->size)
		return -VS_RULE_RING_BASE;
	r->last_avail = avail;
	r->used_idx = r->published = r->signalled_used = used;
	return 0;
}

/* ---- chains --------------------------------------------------------------------------------------------------------------------------- */

/* 2.8.21.1: the driver writes the flags of a chain's first descriptor when all the rest of the chain stands there; acquire, or we might read what
 * stood there before. */
static inline uint16_t load_flags(const struct vs_vring *r, uint16_t at)
{
	return vs_shared_load(&r->ring[vs_packed_index(at)].flags, __ATOMIC_ACQUIRE);
}

int vs_packed_available(struct vs_vring *r)
{
	uint32_t room = r->size - r->held;
	uint16_t at = r->last_avail, flags = load_flags(r, at);
	int n = 0;

	if (vs_likely(!vs_packed_is_avail(flags, at)))
		return 0;
	if (vs_unlikely(!room))
		return -VS_RULE_AVAIL_JUMP;
	/* A count and no more: vs_packed_pop looks at everything anew, and may well find something else. */
	for (; n < COUNT_MAX && vs_packed_is_avail(flags, at); n++) {
		do {
			at = vs_packed_forward(at, 1, r->size);
			if (!--room)
				return n + 1;
			if (!(flags & VS_DESC_NEXT))
				break;
			flags = load_flags(r, at);
		} while (true);
		flags = load_flags(r, at);
	}
	return n;
}

static int __attribute__((noinline)) walk_table(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first, uint64_t addr,
						uint32_t length)
{
	uint32_t entries = length / 16;
	const uint8_t *table;
	uint64_t got;

	if (!(r->features & VS_RING_INDIRECT)) /* 2.8.19 */
		return -VS_RULE_INDIRECT_NOT_NEGOTIATED;
	if (!length || length % 16) /* 2.8.7: an array of descriptors */
		return -VS_RULE_INDIRECT_LENGTH;
	if (entries > vs_max(r->size, (uint32_t)VS_INDIRECT_CHAIN_MIN)) /* 2.8.17 */
		return -VS_RULE_TOO_LONG;
	if (length - 1 > UINT64_MAX - addr)
		return -VS_RULE_ADDRESS_OVERFLOW;
	table = vs_ring_translate(r, addr, length, &got);
	if (vs_unlikely(!table || got < length))
		table = NULL; /* not in one piece: descriptor by descriptor */
	for (uint32_t i = 0; i < entries; i++) {
		struct vs_vring_desc d; /* its last two fields are id and flags here */
		uint8_t copy[16];
		int err;

		if (vs_likely(table))
			d = vs_desc_load(table + 16 * (uint64_t)i);
		else if (vs_desc_copy(r, addr + 16 * (uint64_t)i, copy))
			d = vs_desc_load(copy);
		else
			return -VS_RULE_UNMAPPED;
		/* 2.8.7 has us ignore all flags but WRITE, as 2.8.19 has the driver set none. What says that it is a table is no buffer, though. */
		if (d.next & VS_DESC_INDIRECT)
			return -VS_RULE_INDIRECT_NESTED;
		err = vs_chain_add(r, w, c, first, d.addr, d.len, d.next & VS_DESC_WRITE);
		if (err)
			return err;
	}
	return 0;
}

/* From the place of the first descriptor on. Each is two loads of 8 bytes, once: of the first the one with the flags is the acquire. */
static inline int walk(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first)
{
	uint32_t room = r->size - r->held;
	uint16_t at = r->last_avail;

	for (c->span = 1;; c->span++, at = vs_packed_forward(at, 1, r->size)) {
		const struct vs_packed_desc *d = &r->ring[vs_packed_index(at)];
		uint64_t rest = __atomic_load_n((const uint64_t *)&d->len, __ATOMIC_ACQUIRE);
		uint64_t addr = __atomic_load_n(&d->addr, __ATOMIC_RELAXED);
		uint16_t flags = (uint16_t)(rest >> 48);
		int err;

		/* 2.8.6: set correctly in all descriptors of a list. 2.8.16: and not changed any more. */
		if (vs_unlikely(!vs_packed_is_avail(flags, at)))
			return -VS_RULE_AVAIL_FLAGS;
		c->head = (uint16_t)(rest >> 32); /* 2.8.6: that of the last one counts */
		if (flags & VS_DESC_INDIRECT) {
			/* 2.8.19: not in a list that is linked by NEXT. Its WRITE flag means nothing (2.8.7). */
			if (flags & VS_DESC_NEXT || c->span > 1)
				return -VS_RULE_INDIRECT_AND_NEXT;
			return walk_table(r, w, c, first, addr, (uint32_t)rest);
		}
		err = vs_chain_add(r, w, c, first, addr, (uint32_t)rest, flags & VS_DESC_WRITE);
		if (vs_unlikely(err))
			return err;
		if (!(flags & VS_DESC_NEXT))
			return 0;
		/* 2.8.17: no longer than the ring; and what follows is still ours. */
		if (vs_unlikely(c->span == room))
			return -VS_RULE_TOO_LONG;
	}
}

int vs_packed_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	uint32_t capacity = c->capacity;
	struct iovec *first = c->iov;
	int err;

	c->nout = c->nin = 0;
	c->out_length = c->in_length = 0;
	err = walk(r, w, c, first);
	/* Nothing says how large an id may be, but there is no use for more of them than there are descriptors. */
	if (vs_likely(!err) && vs_unlikely(c->head >= r->size))
		err = -VS_RULE_HEAD_RANGE;
	if (vs_likely(!err) && vs_unlikely(!(c->nout + c->nin)))
		err = -VS_RULE_ZERO_LENGTH;
	if (vs_unlikely(err)) {
		vs_chain_refuse(w, c, first, capacity);
		return err;
	}
	r->last_avail = vs_packed_forward(r->last_avail, c->span, r->size);
	r->last_span = (uint16_t)c->span;
	r->held += c->span;
	return 0;
}

int vs_packed_walk_saved(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct vs_packed_desc *descs, uint32_t n)
{
	uint32_t capacity = c->capacity;
	struct iovec *first = c->iov;
	int err = 0;

	c->nout = c->nin = 0;
	c->out_length = c->in_length = 0;
	c->span = n;
	for (uint32_t i = 0; i < n && !err; i++) {
		c->head = descs[i].id;
		if (descs[i].flags & VS_DESC_INDIRECT)
			err = n > 1 ? -VS_RULE_INDIRECT_AND_NEXT : walk_table(r, w, c, first, descs[i].addr, descs[i].len);
		else
			err = vs_chain_add(r, w, c, first, descs[i].addr, descs[i].len, descs[i].flags & VS_DESC_WRITE);
	}
	if (!err && c->head >= r->size)
		err = -VS_RULE_HEAD_RANGE;
	if (!err && !(c->nout + c->nin))
		err = -VS_RULE_ZERO_LENGTH;
	if (err)
		vs_chain_refuse(w, c, first, capacity);
	return err;
}

void vs_packed_unpop(struct vs_vring *r)
{
	/* Back by a span is forward by the rest of two laps. */
	r->last_avail = vs_packed_forward(r->last_avail, r->size - r->last_span, r->size) ^ VS_PACKED_WRAP;
	r->held -= r->last_span;
}

/* ---- giving back, notifications --------------------------------------------------------------------------------------------------------- */

void vs_packed_push(struct vs_vring *r, uint32_t id, uint32_t span, uint32_t written)
{
	struct vs_packed_desc *d = &r->ring[vs_packed_index(r->used_idx)];
	/* 2.8.3: whether anything was written. */
	uint16_t flags = (uint16_t)(vs_packed_used_flags(r->used_idx) | (written ? VS_DESC_WRITE : 0));

	VS_STEP(USE);
	__atomic_store_n(&d->id, (uint16_t)id, __ATOMIC_RELAXED);
	VS_STEP(USE_ID);
	__atomic_store_n(&d->len, written, __ATOMIC_RELAXED);
	VS_STEP(USE_LENGTH);
	/* 2.8.2: the driver looks at one place only, the next one. While the first is not used, it sees none of those behind. */
	if (r->used_idx == r->published)
		r->first_flags = flags;
	else
		__atomic_store_n(&d->flags, flags, __ATOMIC_RELAXED);
	r->used_idx = vs_packed_forward(r->used_idx, span, r->size);
	r->held -= span;
}

bool vs_packed_publish(struct vs_vring *r)
{
	uint16_t old = r->signalled_used;
	bool first = !r->signalled_valid;
	uint32_t event;

	if (r->published == r->used_idx)
		return false;
	/* 2.8.22: ids, lengths and buffers, and the flags of all others, are visible before the flags that the driver waits for. */
	VS_STEP(PUBLISH);
	vs_shared_store(&r->ring[vs_packed_index(r->published)].flags, r->first_flags, __ATOMIC_RELEASE);
	VS_STEP(PUBLISHED);
	r->published = r->signalled_used = r->used_idx;
	r->signalled_valid = true;
	/* Flags are stored before the driver's wish is loaded; the driver does it the other way round (2.8.22): one of us sees the other. */
	vs_fence();
	event = __atomic_load_n(r->driver_event, __ATOMIC_RELAXED);
	/* What an earlier device signalled is not known: once too often is allowed. */
	if (first && (event >> 16 & VS_PACKED_EVENT_MASK) == VS_PACKED_DESC)
		return true;
	return vs_packed_need_event(event, r->used_idx, old, r->size, r->features & VS_RING_EVENT_IDX);
}

void vs_packed_kicks_off(struct vs_vring *r)
{
	if (!r->kicks_on)
		return;
	r->kicks_on = false;
	__atomic_store_n(r->device_event, vs_packed_event(VS_PACKED_DISABLE, 0), __ATOMIC_RELAXED);
}

bool vs_packed_kicks_on(struct vs_vring *r)
{
	bool event_idx = r->features & VS_RING_EVENT_IDX;

	r->kicks_on = true;
	/* 2.8.10: kick when the descriptor that we look at next becomes available. */
	__atomic_store_n(r->device_event, event_idx ? vs_packed_event(VS_PACKED_DESC, r->last_avail) : vs_packed_event(VS_PACKED_ENABLE, 0), __ATOMIC_RELAXED);
	/* The wish is stored before the flags are loaded again (2.8.21.3.1): a driver that did not see the wish has its chain seen here. */
	vs_fence();
	return vs_packed_is_avail(load_flags(r, r->last_avail), r->last_avail);
}
