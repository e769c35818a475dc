/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side of a split virtqueue (virtio 1.3, 2.7): takes chains, gives them back, decides about notifications; and what it shares with
 * a packed one (vring_packed.c): where a ring lies, and the rules by name. The driver is hostile:
 * every field that it can write is loaded once and checked before use; addresses become iovecs only through the memory map. It does
 * not know what a chain means, and not which heads are in flight: both belong to the device (vdev.c).
 */
#include "vchain.h"

static const char *const rule_names[VS_RULES] = {
	[VS_RULE_OK] = "OK",
	[VS_RULE_AVAIL_JUMP] = "AVAIL_JUMP",
	[VS_RULE_HEAD_RANGE] = "HEAD_RANGE",
	[VS_RULE_NEXT_RANGE] = "NEXT_RANGE",
	[VS_RULE_LOOP] = "LOOP",
	[VS_RULE_TOO_LONG] = "TOO_LONG",
	[VS_RULE_INDIRECT_NOT_NEGOTIATED] = "INDIRECT_NOT_NEGOTIATED",
	[VS_RULE_INDIRECT_NESTED] = "INDIRECT_NESTED",
	[VS_RULE_INDIRECT_AND_NEXT] = "INDIRECT_AND_NEXT",
	[VS_RULE_INDIRECT_LENGTH] = "INDIRECT_LENGTH",
	[VS_RULE_READABLE_AFTER_WRITABLE] = "READABLE_AFTER_WRITABLE",
	[VS_RULE_UNMAPPED] = "UNMAPPED",
	[VS_RULE_ADDRESS_OVERFLOW] = "ADDRESS_OVERFLOW",
	[VS_RULE_ZERO_LENGTH] = "ZERO_LENGTH",
	[VS_RULE_RING_UNMAPPED] = "RING_UNMAPPED",
	[VS_RULE_RING_ALIGN] = "RING_ALIGN",
	[VS_RULE_RING_SIZE] = "RING_SIZE",
	[VS_RULE_NO_MEMORY] = "NO_MEMORY",
	[VS_RULE_HEAD_BUSY] = "HEAD_BUSY",
	[VS_RULE_CHAIN_BYTES] = "CHAIN_BYTES",
	[VS_RULE_REQUEST_SHORT] = "REQUEST_SHORT",
	[VS_RULE_MEMORY_GONE] = "MEMORY_GONE",
	[VS_RULE_KICK] = "KICK",
	[VS_RULE_NOTIFIER_BLOCKS] = "NOTIFIER_BLOCKS",
	[VS_RULE_AVAIL_FLAGS] = "AVAIL_FLAGS",
	[VS_RULE_RING_BASE] = "RING_BASE",
	[VS_RULE_INFLIGHT] = "INFLIGHT",
};

const char *vs_ring_rule_name(int rule)
{
	return rule >= 0 && rule < VS_RULES ? rule_names[rule] : "UNKNOWN";
}

/* ---- setting up ----------------------------------------------------------------------------------------------------------------------- */

static int ring_part(const struct vs_memmap *map, uint64_t addr, uint64_t length, uint64_t align, void **out)
{
	switch (vs_memmap_check_user(map, addr, length, align)) {
	case 0:
		*out = vs_memmap_user(map, addr, length);
		return 0;
	case -EINVAL:
		return -VS_RULE_RING_ALIGN;
	default:
		return -VS_RULE_RING_UNMAPPED;
	}
}

int vs_vring_remap(struct vs_vring *r, const struct vs_memmap *map)
{
	bool event = r->features & VS_RING_EVENT_IDX, packed = r->features & VS_RING_PACKED;
	uint64_t avail_bytes = packed ? VS_PACKED_EVENT_BYTES : vs_vring_avail_bytes(r->size, event);
	uint64_t used_bytes = packed ? VS_PACKED_EVENT_BYTES : vs_vring_used_bytes(r->size, event);
	void *desc, *avail, *used;
	int err;

	/* Alignments: the tables in 2.7 and 2.8.10.1. The first part is as long in both layouts. */
	err = ring_part(map, r->desc_addr, vs_vring_desc_bytes(r->size), 16, &desc);
	if (!err)
		err = ring_part(map, r->avail_addr, avail_bytes, packed ? 4 : 2, &avail);
	if (!err)
		err = ring_part(map, r->used_addr, used_bytes, 4, &used);
	if (err)
		return err;
	r->map = map;
	r->desc = desc;
	r->avail = avail;
	r->used = used;
	r->hint = 0;
	return 0;
}

int vs_vring_init(struct vs_vring *r, const struct vs_memmap *map, const struct vs_queue_params *p)
{
	int err;

	*r = (struct vs_vring){ .size = p->size, .features = p->features, .desc_addr = p->desc, .avail_addr = p->avail, .used_addr = p->used };
	if (!vs_vring_size_ok(p->size, p->features))
		return -VS_RULE_RING_SIZE;
	err = vs_vring_remap(r, map);
	if (err)
		return err;
	r->kicks_on = true; /* a driver kicks until told otherwise */
	if (p->features & VS_RING_PACKED)
		return vs_packed_begin(r, p->base);
	r->last_avail = r->shadow_avail = (uint16_t)p->base;
	/* The used index is ours and lies in the ring: whoever ran it before us left it there. */
	r->used_idx = r->published = r->signalled_used = __atomic_load_n(&r->used->idx, __ATOMIC_RELAXED);
	return 0;
}

void vs_vring_reset(struct vs_vring *r)
{
	uint16_t first = vs_vring_packed(r) ? VS_PACKED_WRAP : 0; /* 2.8.1 */

	r->last_avail = r->shadow_avail = r->used_idx = r->published = r->signalled_used = first;
	r->signalled_valid = false;
	r->kicks_on = true;
	r->held = 0;
	if (r->order)
		memset(r->order, 0, r->size * sizeof(*r->order));
	r->order_first = r->order_n = 0;
}

bool vs_vring_notified(const struct vs_vring *r, uint32_t data)
{
	uint16_t at = (uint16_t)(data >> 16);

	if (vs_vring_packed(r) && vs_packed_index(at) >= r->size)
		return true; /* no place of this ring: it says nothing */
	return at != r->last_avail;
}

/* ---- chains --------------------------------------------------------------------------------------------------------------------------- */

static int __attribute__((noinline)) walk_indirect(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first,
						   const struct vs_vring_desc *indirect, uint32_t visited)
{
	uint32_t entries = indirect->len / 16, limit = vs_max(r->size, (uint32_t)VS_INDIRECT_CHAIN_MIN);
	const uint8_t *table;
	uint64_t got;

	if (!(r->features & VS_RING_INDIRECT))
		return -VS_RULE_INDIRECT_NOT_NEGOTIATED;
	if (indirect->flags & VS_DESC_NEXT) /* 2.7.5.3.1 */
		return -VS_RULE_INDIRECT_AND_NEXT;
	if (!indirect->len || indirect->len % 16) /* 2.7.5.3 */
		return -VS_RULE_INDIRECT_LENGTH;
	if (indirect->len - 1 > UINT64_MAX - indirect->addr)
		return -VS_RULE_ADDRESS_OVERFLOW;
	table = vs_ring_translate(r, indirect->addr, indirect->len, &got);
	if (vs_unlikely(!table || got < indirect->len))
		table = NULL; /* not in one piece: descriptor by descriptor */
	for (uint32_t i = 0, seen = 1;; seen++) {
		uint8_t copy[16];
		struct vs_vring_desc d;
		int err;

		if (vs_likely(table))
			d = vs_desc_load(table + 16 * (uint64_t)i);
		else if (vs_desc_copy(r, indirect->addr + 16 * (uint64_t)i, copy))
			d = vs_desc_load(copy);
		else
			return -VS_RULE_UNMAPPED;
		if (d.flags & VS_DESC_INDIRECT) /* 2.7.5.3.1 */
			return -VS_RULE_INDIRECT_NESTED;
		err = vs_chain_add(r, w, c, first, d.addr, d.len, d.flags & VS_DESC_WRITE);
		if (err)
			return err;
		if (!(d.flags & VS_DESC_NEXT))
			return 0;
		if (d.next >= entries)
			return -VS_RULE_NEXT_RANGE;
		if (seen == entries)
			return -VS_RULE_LOOP;
		if (visited + seen >= limit)
			return -VS_RULE_TOO_LONG;
		i = d.next;
	}
}

static inline int walk(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first)
{
	uint32_t i = c->head;

	for (uint32_t seen = 1;; seen++) {
		struct vs_vring_desc d = vs_desc_load(&r->desc[i]);
		int err;

		/* 2.7.5.3.2: descriptors of the ring may come before an indirect one. Its WRITE flag means nothing. */
		if (d.flags & VS_DESC_INDIRECT)
			return walk_indirect(r, w, c, first, &d, seen - 1);
		err = vs_chain_add(r, w, c, first, d.addr, d.len, d.flags & VS_DESC_WRITE);
		if (vs_unlikely(err))
			return err;
		if (!(d.flags & VS_DESC_NEXT))
			return 0;
		if (vs_unlikely(d.next >= r->size))
			return -VS_RULE_NEXT_RANGE;
		/* As many as the table has, and one more follows: some came twice. */
		if (vs_unlikely(seen == r->size))
			return -VS_RULE_LOOP;
		i = d.next;
	}
}

int vs_split_available(struct vs_vring *r)
{
	/* 2.7.13.3: the driver writes idx after the entries that it counts; acquire, or we might read older ones. */
	uint16_t idx = vs_shared_load(&r->avail->idx, __ATOMIC_ACQUIRE);
	uint16_t n = (uint16_t)(idx - r->last_avail);

	if (vs_unlikely(n > r->size))
		return -VS_RULE_AVAIL_JUMP;
	r->shadow_avail = idx;
	return n;
}

static inline __attribute__((always_inline)) int split_walk(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	uint32_t capacity = c->capacity;
	struct iovec *first = c->iov;
	int err;

	c->nout = c->nin = 0;
	c->out_length = c->in_length = 0;
	if (vs_unlikely(c->head >= r->size))
		return -VS_RULE_HEAD_RANGE;
	err = walk(r, w, c, first);
	if (vs_likely(!err) && vs_unlikely(!(c->nout + c->nin)))
		err = -VS_RULE_ZERO_LENGTH;
	if (vs_unlikely(err))
		vs_chain_refuse(w, c, first, capacity);
	return err;
}

int vs_split_walk(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c) { return split_walk(r, w, c); }

int vs_split_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	uint32_t mask = r->size - 1;
	uint16_t next = (uint16_t)(r->last_avail + 1);
	int err;

	/* Ordered by the acquire of vs_split_available. */
	c->head = __atomic_load_n(&r->avail->ring[r->last_avail & mask], __ATOMIC_RELAXED);
	if (next != r->shadow_avail)
		__builtin_prefetch(&r->desc[__atomic_load_n(&r->avail->ring[next & mask], __ATOMIC_RELAXED) & mask]);
	err = split_walk(r, w, c);
	if (vs_unlikely(err))
		return err;
	r->last_avail = next;
	return 0;
}

void vs_split_unpop(struct vs_vring *r)
{
	r->last_avail--;
}

/* ---- giving back, notifications --------------------------------------------------------------------------------------------------------- */

void vs_split_push(struct vs_vring *r, uint32_t head, uint32_t written)
{
	struct vs_vring_used_elem *e = &r->used->ring[r->used_idx++ & (r->size - 1)];

	VS_STEP(USE);
	__atomic_store_n(&e->id, head, __ATOMIC_RELAXED);
	VS_STEP(USE_ID);
	__atomic_store_n(&e->len, written, __ATOMIC_RELAXED);
	VS_STEP(USE_LENGTH);
}

/* The words behind the rings (2.7.6, 2.7.8). */
static inline uint16_t *used_event(struct vs_vring *r)
{
	return &r->avail->ring[r->size];
}

static inline uint16_t *avail_event(struct vs_vring *r)
{
	return (uint16_t *)&r->used->ring[r->size];
}

bool vs_split_publish(struct vs_vring *r)
{
	uint16_t old = r->signalled_used;
	bool first = !r->signalled_valid;

	if (r->published == r->used_idx)
		return false;
	/* 2.7.8.2: the entries are visible before the idx that counts them. */
	VS_STEP(PUBLISH);
	vs_shared_store(&r->used->idx, r->used_idx, __ATOMIC_RELEASE);
	VS_STEP(PUBLISHED);
	r->published = r->signalled_used = r->used_idx;
	r->signalled_valid = true;
	/* idx is stored before the driver's wish is loaded; the driver does it the other way round (2.7.14): one of us sees the other. */
	vs_fence();
	if (!(r->features & VS_RING_EVENT_IDX)) /* 2.7.7.2 */
		return !(__atomic_load_n(&r->avail->flags, __ATOMIC_RELAXED) & VS_AVAIL_NO_INTERRUPT);
	/* What an earlier device signalled is not known: once too often is allowed. */
	if (first)
		return true;
	return vs_vring_need_event(__atomic_load_n(used_event(r), __ATOMIC_RELAXED), r->used_idx, old);
}

void vs_split_kicks_off(struct vs_vring *r)
{
	if (!r->kicks_on)
		return;
	r->kicks_on = false;
	/* 2.7.10.1: with event indices flags stay 0, and avail_event lies behind the driver as soon as it moves on. */
	if (!(r->features & VS_RING_EVENT_IDX))
		__atomic_store_n(&r->used->flags, VS_USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool vs_split_kicks_on(struct vs_vring *r)
{
	r->kicks_on = true;
	__atomic_store_n(&r->used->flags, 0, __ATOMIC_RELAXED);
	if (r->features & VS_RING_EVENT_IDX) /* 2.7.10.1: kick when entry avail_event becomes available */
		__atomic_store_n(avail_event(r), r->shadow_avail, __ATOMIC_RELAXED);
	/* The wish is stored before idx is loaded again: a driver that did not see the wish has its entry seen here. */
	vs_fence();
	/* 2.7.13.3: acquire, as in vs_split_available. */
	return __atomic_load_n(&r->avail->idx, __ATOMIC_ACQUIRE) != r->last_avail;
}
