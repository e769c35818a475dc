/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver side of a split virtqueue (virtio 1.3, 2.7.13 and 2.7.14) over memory of its own, and what it shares with that of a packed one
 * (driver_packed.c); see driver.h. It is part of no device: nothing
 * that serves a guest calls it.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

/* ---- guest memory -------------------------------------------------------------------------------------------------------------------- */

int vs_guest_create(uint64_t size, uint32_t nregions, struct vs_guest *out)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), piece;
	int err;

	if (!nregions || nregions > VS_GUEST_REGIONS || !size)
		return -EINVAL;
	*out = (struct vs_guest){ .size = (size + page - 1) & ~(page - 1), .nregions = nregions };
	piece = (out->size / nregions) & ~(page - 1);
	if (!piece)
		return -EINVAL;
	out->fd = memfd_create("guest", MFD_CLOEXEC);
	if (out->fd < 0)
		return -errno;
	if (ftruncate(out->fd, (off_t)out->size))
		goto fail;
	out->base = mmap(NULL, out->size, PROT_READ | PROT_WRITE, MAP_SHARED, out->fd, 0);
	if (out->base == MAP_FAILED)
		goto fail;
	for (uint32_t i = 0; i < nregions; i++)
		out->regions[i] = (struct vs_region){
			.guest_addr = VS_GUEST_ADDR + i * piece,
			.user_addr = VS_GUEST_USER_ADDR + i * piece,
			.mmap_offset = i * piece,
			.size = i + 1 < nregions ? piece : out->size - i * piece,
			.fd = out->fd,
		};
	return 0;
fail:
	err = -errno;
	close(out->fd);
	return err;
}

void vs_guest_destroy(struct vs_guest *g)
{
	munmap(g->base, g->size);
	close(g->fd);
}

uint64_t vs_guest_alloc(struct vs_guest *g, uint64_t size, uint64_t align)
{
	uint64_t at = (g->taken + align - 1) & ~(align - 1);

	if (at > g->size || size > g->size - at)
		return 0;
	g->taken = at + size;
	return VS_GUEST_ADDR + at;
}

/* ---- the ring ------------------------------------------------------------------------------------------------------------------------- */

int vs_driver_create(struct vs_guest *g, uint32_t size, uint32_t features, uint32_t indirect_entries, struct vs_driver *out)
{
	uint64_t tables = 16 * (uint64_t)indirect_entries * size;

	if (!vs_vring_size_ok(size, features) || indirect_entries > 65536)
		return -EINVAL;
	*out = (struct vs_driver){ .guest = g, .size = size, .features = features, .indirect_entries = indirect_entries };
	/* Each part on cache lines of its own: two CPUs write here. The split rings are longer than what a packed one has in their places. */
	out->desc_addr = vs_guest_alloc(g, vs_vring_desc_bytes(size), VS_CACHE_LINE);
	out->avail_addr = vs_guest_alloc(g, vs_vring_avail_bytes(size, true), VS_CACHE_LINE);
	out->used_addr = vs_guest_alloc(g, vs_vring_used_bytes(size, true), VS_CACHE_LINE);
	out->tables_addr = tables ? vs_guest_alloc(g, tables, VS_CACHE_LINE) : 0;
	if (!out->desc_addr || !out->avail_addr || !out->used_addr || (tables && !out->tables_addr))
		return -ENOMEM;
	out->next = calloc(size, sizeof(*out->next));
	out->chain = calloc(size, sizeof(*out->chain));
	out->order = calloc(size, sizeof(*out->order));
	if (!out->next || !out->chain || !out->order) {
		vs_driver_destroy(out);
		return -ENOMEM;
	}
	out->desc = vs_guest_ptr(g, out->desc_addr);
	out->avail = vs_guest_ptr(g, out->avail_addr);
	out->used = vs_guest_ptr(g, out->used_addr);
	vs_driver_reset(out, 0);
	return 0;
}

void vs_driver_destroy(struct vs_driver *d)
{
	free(d->next);
	free(d->chain);
	free(d->order);
	d->next = d->chain = NULL;
	d->order = NULL;
}

void vs_driver_params(const struct vs_driver *d, struct vs_queue_params *out)
{
	const uint64_t to_user = VS_GUEST_USER_ADDR - VS_GUEST_ADDR;

	*out = (struct vs_queue_params){
		.desc = d->desc_addr + to_user,
		.avail = d->avail_addr + to_user,
		.used = d->used_addr + to_user,
		.size = d->size,
		.base = vs_driver_packed(d) ? d->published | (uint32_t)d->published << 16 : d->published,
		.features = d->features,
		.kick_fd = -1,
		.call_fd = -1,
		.err_fd = -1,
	};
}

void vs_driver_reset(struct vs_driver *d, uint16_t idx)
{
	memset(d->desc, 0, vs_vring_desc_bytes(d->size));
	memset(d->avail, 0, vs_vring_avail_bytes(d->size, true));
	memset(d->used, 0, vs_vring_used_bytes(d->size, true));
	memset(d->chain, 0, d->size * sizeof(*d->chain));
	for (uint32_t i = 0; i < d->size; i++)
		d->next[i] = (uint16_t)(i + 1 < d->size ? i + 1 : 0);
	d->free_head = d->in_flight = d->order_first = d->order_n = 0;
	d->batch = false;
	d->nfree = d->size;
	if (vs_driver_packed(d)) {
		vs_packed_driver_reset(d, idx);
		return;
	}
	d->avail_idx = d->published = d->last_used = d->shadow_used = idx;
	d->avail->idx = d->used->idx = idx;
	/* Both events on the first index: the first publish of either side notifies. */
	d->avail->ring[d->size] = idx;
	memcpy(&d->used->ring[d->size], &idx, sizeof(idx));
}

static inline struct vs_vring_desc desc_of(const struct vs_driver_buffer *b, uint32_t i, uint32_t nout, uint32_t n, uint32_t next)
{
	uint16_t flags = (uint16_t)((i < nout ? 0 : VS_DESC_WRITE) | (i + 1 < n ? VS_DESC_NEXT : 0));

	return (struct vs_vring_desc){ b->addr, b->length, flags, (uint16_t)(i + 1 < n ? next : 0) };
}

static void add_direct(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t n)
{
	uint32_t at = d->free_head;

	for (uint32_t i = 0; i < n; i++) {
		d->desc[at] = desc_of(&buffers[i], i, nout, n, d->next[at]);
		at = d->next[at];
	}
	d->chain[d->free_head] = (uint16_t)n;
	d->free_head = at;
	d->nfree -= n;
}

static void add_indirect(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t n)
{
	uint32_t head = d->free_head;
	uint64_t addr = d->tables_addr + 16 * (uint64_t)d->indirect_entries * head;
	struct vs_vring_desc *table = vs_guest_ptr(d->guest, addr);

	for (uint32_t i = 0; i < n; i++)
		table[i] = desc_of(&buffers[i], i, nout, n, i + 1);
	d->desc[head] = (struct vs_vring_desc){ addr, 16 * n, VS_DESC_INDIRECT, 0 };
	d->chain[head] = 1;
	d->free_head = d->next[head];
	d->nfree--;
}

int vs_driver_add(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t nin, bool indirect)
{
	uint32_t n = nout + nin, head = d->free_head;

	if (!n || n > (indirect ? d->indirect_entries : d->size))
		return -EINVAL;
	if (d->nfree < (indirect ? 1 : n))
		return -ENOSPC;
	d->in_flight++;
	if (d->features & VS_RING_IN_ORDER) {
		struct vs_driver_order *o = &d->order[(d->order_first + d->order_n++) % d->size];

		*o = (struct vs_driver_order){ .head = head };
		for (uint32_t i = nout; i < n; i++)
			o->room += buffers[i].length;
	}
	if (vs_driver_packed(d)) {
		vs_packed_driver_add(d, buffers, nout, n, indirect);
		return (int)head;
	}
	if (indirect)
		add_indirect(d, buffers, nout, n);
	else
		add_direct(d, buffers, nout, n);
	__atomic_store_n(&d->avail->ring[d->avail_idx++ & (d->size - 1)], (uint16_t)head, __ATOMIC_RELAXED);
	return (int)head;
}

static inline uint16_t *avail_event(struct vs_driver *d)
{
	return (uint16_t *)&d->used->ring[d->size];
}

bool vs_driver_publish(struct vs_driver *d)
{
	uint16_t old = d->published;

	if (old == d->avail_idx)
		return false;
	if (vs_driver_packed(d))
		return vs_packed_driver_publish(d);
	/* 2.7.13.3: descriptors and entries before the idx that counts them. */
	vs_shared_store(&d->avail->idx, d->avail_idx, __ATOMIC_RELEASE);
	d->published = d->avail_idx;
	/* 2.7.13.4: idx is stored before the device's wish is loaded; the device does it the other way round. */
	vs_fence();
	if (d->features & VS_RING_EVENT_IDX) /* 2.7.10.1 */
		return vs_vring_need_event(__atomic_load_n(avail_event(d), __ATOMIC_RELAXED), d->avail_idx, old);
	return !(__atomic_load_n(&d->used->flags, __ATOMIC_RELAXED) & VS_USED_NO_NOTIFY);
}

static int split_used(struct vs_driver *d, uint32_t *head, uint32_t *written)
{
	const struct vs_vring_used_elem *e = &d->used->ring[d->last_used & (d->size - 1)];

	if (d->shadow_used == d->last_used) {
		/* 2.7.14: acquire, before the entries that idx counts and what the device wrote into the buffers. */
		d->shadow_used = vs_shared_load(&d->used->idx, __ATOMIC_ACQUIRE);
		if (d->shadow_used == d->last_used)
			return 0;
		if ((uint16_t)(d->shadow_used - d->last_used) > (uint16_t)(d->published - d->last_used))
			return -EPROTO;
	}
	*head = __atomic_load_n(&e->id, __ATOMIC_RELAXED);
	*written = __atomic_load_n(&e->len, __ATOMIC_RELAXED);
	return 1;
}

static void split_take_back(struct vs_driver *d, uint32_t head)
{
	uint32_t n = d->chain[head];

	d->nfree += n;
	/* In order they come back as they lie in the ring, and next[] stays as it is. Else the chain of next[] is whole: its last descriptor now leads
	 * to the free ones. */
	for (uint32_t at = head; !(d->features & VS_RING_IN_ORDER); at = d->next[at]) {
		if (--n == 0) {
			d->next[at] = (uint16_t)d->free_head;
			d->free_head = head;
			break;
		}
	}
	d->last_used++;
}

/* 2.7.9, 2.8.8: one element may stand for all chains up to the one that it names. The device has used the others completely. */
static void oldest_of(struct vs_driver *d, uint32_t *head, uint32_t *written)
{
	const struct vs_driver_order *o = &d->order[d->order_first];

	d->order_first = (d->order_first + 1) % d->size;
	d->order_n--;
	d->batch = o->head != *head;
	if (!d->batch)
		return;
	d->batch_head = *head;
	d->batch_written = *written;
	*head = o->head;
	*written = o->room;
}

int vs_driver_collect(struct vs_driver *d, uint32_t *head, uint32_t *written)
{
	int n = 1;

	if (!d->batch) {
		n = vs_driver_packed(d) ? vs_packed_driver_used(d, head, written) : split_used(d, head, written);
	} else if (!vs_driver_packed(d) && d->shadow_used == d->last_used) {
		return -EPROTO; /* a batch that is longer than what was used */
	} else {
		*head = d->batch_head;
		*written = d->batch_written;
	}
	if (n != 1)
		return n;
	if (*head >= d->size || !d->chain[*head])
		return -EPROTO;
	if (d->features & VS_RING_IN_ORDER)
		oldest_of(d, head, written);
	if (vs_driver_packed(d))
		vs_packed_driver_take_back(d, *head);
	else
		split_take_back(d, *head);
	d->chain[*head] = 0;
	d->in_flight--;
	return 1;
}

void vs_driver_interrupts_off(struct vs_driver *d)
{
	if (vs_driver_packed(d))
		vs_packed_driver_interrupts_off(d);
	/* 2.7.7.1: flags stay 0 with event indices; an event that lies behind is far away. */
	else if (d->features & VS_RING_EVENT_IDX)
		__atomic_store_n(&d->avail->ring[d->size], (uint16_t)(d->last_used - 1), __ATOMIC_RELAXED);
	else
		__atomic_store_n(&d->avail->flags, VS_AVAIL_NO_INTERRUPT, __ATOMIC_RELAXED);
}

bool vs_driver_interrupts_on(struct vs_driver *d)
{
	if (vs_driver_packed(d))
		return vs_packed_driver_interrupts_on(d);
	if (d->features & VS_RING_EVENT_IDX)
		__atomic_store_n(&d->avail->ring[d->size], d->last_used, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&d->avail->flags, 0, __ATOMIC_RELAXED);
	/* The wish is stored before idx is loaded again (2.7.14). */
	vs_fence();
	return vs_driver_pending(d);
}

bool vs_driver_pending(const struct vs_driver *d)
{
	if (d->batch)
		return true;
	if (vs_driver_packed(d))
		return vs_packed_driver_pending(d);
	return __atomic_load_n(&d->used->idx, __ATOMIC_ACQUIRE) != d->last_used;
}
