/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side of a split virtqueue (virtio 1.3, 2.7): takes chains, gives them back, decides about notifications. The driver is hostile:
 * every field that it can write is loaded once and checked before use; addresses become iovecs only through the memory map. It does
 * not know what a chain means, and not which heads are in flight: both belong to the device (vdev.c).
 */
#include "core.h"
#include "vring.h"

/* Chains with indirect tables may be this long on small queues, too: Linux cuts its requests by seg_max, which QEMU's vhost-user-scsi fixes at
 * 126 whatever the queue size is, so a stock guest breaks 2.7.5.3.1 on a queue of 64. */
enum { INDIRECT_CHAIN_MIN = 1024 };
/* iovecs of one chain; buffers that cross memory regions take more than one. */
enum { SEGMENTS_MAX = 65536, SEGMENTS_FIRST = 32 };

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
	bool event = r->features & VS_RING_EVENT_IDX;
	void *desc, *avail, *used;
	int err;

	/* Alignments: the table in 2.7. */
	err = ring_part(map, r->desc_addr, vs_vring_desc_bytes(r->size), 16, &desc);
	if (!err)
		err = ring_part(map, r->avail_addr, vs_vring_avail_bytes(r->size, event), 2, &avail);
	if (!err)
		err = ring_part(map, r->used_addr, vs_vring_used_bytes(r->size, event), 4, &used);
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
	/* 2.7: a power of 2, at most 32768. */
	if (!p->size || p->size > VS_QUEUE_MAX || (p->size & (p->size - 1)))
		return -VS_RULE_RING_SIZE;
	err = vs_vring_remap(r, map);
	if (err)
		return err;
	r->last_avail = r->shadow_avail = (uint16_t)p->base;
	/* The used index is ours and lies in the ring: whoever ran it before us left it there. */
	r->used_idx = r->published = r->signalled_used = __atomic_load_n(&r->used->idx, __ATOMIC_RELAXED);
	r->kicks_on = true; /* a driver kicks until told otherwise */
	return 0;
}

/* ---- chains --------------------------------------------------------------------------------------------------------------------------- */

/* Two loads of 8 bytes, each once: volatile, or the compiler may look at guest memory again. Indirect tables have no alignment to rely on. */
struct __attribute__((packed, may_alias)) word64 { uint64_t v; };

static inline struct vs_vring_desc load_desc(const void *p)
{
	uint64_t addr = ((const volatile struct word64 *)p)[0].v;
	uint64_t rest = ((const volatile struct word64 *)p)[1].v;

	return (struct vs_vring_desc){ addr, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48) };
}

/* A descriptor of a table that crosses regions; it may cross itself. */
static bool load_desc_split(struct vs_vring *r, uint64_t addr, struct vs_vring_desc *out)
{
	uint8_t copy[sizeof(*out)];

	for (uint64_t done = 0, got; done < sizeof(copy); done += got) {
		const void *p = vs_memmap_guest_part(r->map, addr + done, sizeof(copy) - done, &got, &r->hint);

		if (!p)
			return false;
		memcpy(copy + done, p, got);
	}
	*out = load_desc(copy);
	return true;
}

/* The usual case without a call: the region of the last address, and all of the buffer in it. */
static inline uint8_t *translate(struct vs_vring *r, uint64_t addr, uint64_t len, uint64_t *got)
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

/* Room for more iovecs. The first array is the caller's. */
static int __attribute__((noinline)) chain_grow(struct vs_worker *w, struct vs_chain *c, const struct iovec *first)
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

static inline int chain_append(struct vs_worker *w, struct vs_chain *c, const struct iovec *first, uint8_t *p, uint64_t len, bool writable)
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
		int err = chain_grow(w, c, first);

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

static inline int chain_add(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first, const struct vs_vring_desc *d)
{
	bool writable = d->flags & VS_DESC_WRITE;
	uint64_t addr = d->addr, left = d->len;

	/* 2.7.4.2: device-writable elements come after all device-readable ones. */
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
		uint8_t *p = translate(r, addr, left, &got);
		int err;

		if (vs_unlikely(!p))
			return -VS_RULE_UNMAPPED;
		err = chain_append(w, c, first, p, got, writable);
		if (vs_unlikely(err))
			return err;
		addr += got;
		left -= got;
	} while (vs_unlikely(left));
	return 0;
}

static int __attribute__((noinline)) walk_indirect(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct iovec *first,
						   const struct vs_vring_desc *indirect, uint32_t visited)
{
	uint32_t entries = indirect->len / 16, limit = vs_max(r->size, (uint32_t)INDIRECT_CHAIN_MIN);
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
	table = translate(r, indirect->addr, indirect->len, &got);
	if (vs_unlikely(!table || got < indirect->len))
		table = NULL; /* not in one piece: descriptor by descriptor */
	for (uint32_t i = 0, seen = 1;; seen++) {
		struct vs_vring_desc d;
		int err;

		if (vs_likely(table))
			d = load_desc(table + 16 * (uint64_t)i);
		else if (!load_desc_split(r, indirect->addr + 16 * (uint64_t)i, &d))
			return -VS_RULE_UNMAPPED;
		if (d.flags & VS_DESC_INDIRECT) /* 2.7.5.3.1 */
			return -VS_RULE_INDIRECT_NESTED;
		err = chain_add(r, w, c, first, &d);
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
		struct vs_vring_desc d = load_desc(&r->desc[i]);
		int err;

		/* 2.7.5.3.2: descriptors of the ring may come before an indirect one. Its WRITE flag means nothing. */
		if (d.flags & VS_DESC_INDIRECT)
			return walk_indirect(r, w, c, first, &d, seen - 1);
		err = chain_add(r, w, c, first, &d);
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

int vs_vring_available(struct vs_vring *r)
{
	/* 2.7.13.3: the driver writes idx after the entries that it counts; acquire, or we might read older ones. */
	uint16_t idx = vs_shared_load(&r->avail->idx, __ATOMIC_ACQUIRE);
	uint16_t n = (uint16_t)(idx - r->last_avail);

	if (vs_unlikely(n > r->size))
		return -VS_RULE_AVAIL_JUMP;
	r->shadow_avail = idx;
	return n;
}

int vs_vring_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	uint32_t mask = r->size - 1, capacity = c->capacity;
	struct iovec *first = c->iov;
	uint16_t next = (uint16_t)(r->last_avail + 1);
	int err;

	c->nout = c->nin = 0;
	c->out_length = c->in_length = 0;
	/* Ordered by the acquire of vs_vring_available. */
	c->head = __atomic_load_n(&r->avail->ring[r->last_avail & mask], __ATOMIC_RELAXED);
	if (next != r->shadow_avail)
		__builtin_prefetch(&r->desc[__atomic_load_n(&r->avail->ring[next & mask], __ATOMIC_RELAXED) & mask]);
	if (vs_unlikely(c->head >= r->size))
		return -VS_RULE_HEAD_RANGE;
	err = walk(r, w, c, first);
	if (vs_likely(!err) && vs_unlikely(!(c->nout + c->nin)))
		err = -VS_RULE_ZERO_LENGTH;
	if (vs_unlikely(err)) {
		if (c->iov != first)
			vs_iovec_put(w, c->iov, c->capacity);
		c->iov = first;
		c->capacity = capacity;
		c->nout = c->nin = 0;
		return err;
	}
	r->last_avail = next;
	return 0;
}

void vs_vring_unpop(struct vs_vring *r)
{
	r->last_avail--;
}

/* ---- giving back, notifications --------------------------------------------------------------------------------------------------------- */

void vs_vring_push(struct vs_vring *r, uint32_t head, uint32_t written)
{
	struct vs_vring_used_elem *e = &r->used->ring[r->used_idx++ & (r->size - 1)];

	__atomic_store_n(&e->id, head, __ATOMIC_RELAXED);
	__atomic_store_n(&e->len, written, __ATOMIC_RELAXED);
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

bool vs_vring_publish(struct vs_vring *r)
{
	uint16_t old = r->signalled_used;
	bool first = !r->signalled_valid;

	if (r->published == r->used_idx)
		return false;
	/* 2.7.8.2: the entries are visible before the idx that counts them. */
	vs_shared_store(&r->used->idx, r->used_idx, __ATOMIC_RELEASE);
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

void vs_vring_kicks_off(struct vs_vring *r)
{
	if (!r->kicks_on)
		return;
	r->kicks_on = false;
	/* 2.7.10.1: with event indices flags stay 0, and avail_event lies behind the driver as soon as it moves on. */
	if (!(r->features & VS_RING_EVENT_IDX))
		__atomic_store_n(&r->used->flags, VS_USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool vs_vring_kicks_on(struct vs_vring *r)
{
	r->kicks_on = true;
	__atomic_store_n(&r->used->flags, 0, __ATOMIC_RELAXED);
	if (r->features & VS_RING_EVENT_IDX) /* 2.7.10.1: kick when entry avail_event becomes available */
		__atomic_store_n(avail_event(r), r->shadow_avail, __ATOMIC_RELAXED);
	/* The wish is stored before idx is loaded again: a driver that did not see the wish has its entry seen here. */
	vs_fence();
	/* 2.7.13.3: acquire, as in vs_vring_available. */
	return __atomic_load_n(&r->avail->idx, __ATOMIC_ACQUIRE) != r->last_avail;
}
