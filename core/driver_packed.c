// SPDX-License-Identifier: Apache-2.0
/*
 * The driver side of a packed virtqueue (virtio 1.3, 2.8.21 and 2.8.22): what driver.c does for a split one, and called from there. Buffer ids
 * are handed out from the free list that holds the heads of a split ring.
 */
#include "driver.h"

void vs_packed_driver_reset(struct vs_driver *d, uint16_t idx)
{
	uint32_t laps = idx / d->size, index = idx % d->size;
	uint16_t at = (uint16_t)(index | (laps & 1 ? 0 : VS_PACKED_WRAP)); /* 2.8.1: the counters begin with 1 */

	/* Each descriptor was used in the lap before its next one; in the first lap they are zero (2.8.13). */
	for (uint32_t i = 0; i < d->size; i++)
		d->ring[i].flags = vs_packed_used_flags((uint16_t)(i < index ? at : at ^ VS_PACKED_WRAP));
	d->avail_idx = d->published = d->last_used = at;
}

/* The flags of the first descriptor since the last publish are kept back: what follows cannot be seen before (2.8.21.1). */
static void put(struct vs_driver *d, uint64_t addr, uint32_t length, uint32_t id, uint32_t flags)
{
	struct vs_packed_desc *desc = &d->ring[vs_packed_index(d->avail_idx)];

	flags |= vs_packed_avail_flags(d->avail_idx);
	desc->addr = addr;
	desc->len = length;
	desc->id = (uint16_t)id;
	if (d->avail_idx == d->published)
		d->first_flags = (uint16_t)flags;
	else
		__atomic_store_n(&desc->flags, (uint16_t)flags, __ATOMIC_RELAXED);
	d->avail_idx = vs_packed_forward(d->avail_idx, 1, d->size);
	d->nfree--;
}

void vs_packed_driver_add(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t n, bool indirect)
{
	uint32_t id = d->free_head;

	if (indirect) {
		uint64_t addr = d->tables_addr + 16 * (uint64_t)d->indirect_entries * id;
		struct vs_packed_desc *table = vs_guest_ptr(d->guest, addr);

		for (uint32_t i = 0; i < n; i++) /* 2.8.19: no other flag, and all of the table is used */
			table[i] = (struct vs_packed_desc){ buffers[i].addr, buffers[i].length, 0, i < nout ? 0 : VS_DESC_WRITE };
		put(d, addr, 16 * n, id, VS_DESC_INDIRECT);
	} else {
		for (uint32_t i = 0; i < n; i++)
			put(d, buffers[i].addr, buffers[i].length, id, (i < nout ? 0 : VS_DESC_WRITE) | (i + 1 < n ? VS_DESC_NEXT : 0));
	}
	d->chain[id] = (uint16_t)(indirect ? 1 : n);
	d->free_head = d->next[id];
}

bool vs_packed_driver_publish(struct vs_driver *d)
{
	uint16_t old = d->published;

	/* 2.8.21.1.1: everything before the flags that the device waits for. */
	vs_shared_store(&d->ring[vs_packed_index(old)].flags, d->first_flags, __ATOMIC_RELEASE);
	d->published = d->avail_idx;
	/* 2.8.21.3.1: flags are stored before the device's wish is loaded; the device does it the other way round. */
	vs_fence();
	return vs_packed_need_event(__atomic_load_n(d->device_event, __ATOMIC_RELAXED), d->avail_idx, old, d->size, d->features & VS_RING_EVENT_IDX);
}

bool vs_packed_driver_pending(const struct vs_driver *d)
{
	/* 2.8.22: acquire, before the id and what the device wrote into the buffers. */
	return vs_packed_is_used(vs_shared_load(&d->ring[vs_packed_index(d->last_used)].flags, __ATOMIC_ACQUIRE), d->last_used);
}

int vs_packed_driver_used(const struct vs_driver *d, uint32_t *id, uint32_t *written)
{
	const struct vs_packed_desc *desc = &d->ring[vs_packed_index(d->last_used)];

	if (!vs_packed_driver_pending(d))
		return 0;
	*id = __atomic_load_n(&desc->id, __ATOMIC_RELAXED);
	*written = __atomic_load_n(&desc->len, __ATOMIC_RELAXED);
	return 1;
}

void vs_packed_driver_take_back(struct vs_driver *d, uint32_t id)
{
	/* 2.8.6: the device skips what the list held. */
	d->last_used = vs_packed_forward(d->last_used, d->chain[id], d->size);
	d->nfree += d->chain[id];
	d->next[id] = (uint16_t)d->free_head;
	d->free_head = id;
}

void vs_packed_driver_interrupts_off(struct vs_driver *d)
{
	__atomic_store_n(d->driver_event, vs_packed_event(VS_PACKED_DISABLE, 0), __ATOMIC_RELAXED);
}

bool vs_packed_driver_interrupts_on(struct vs_driver *d)
{
	uint32_t event = d->features & VS_RING_EVENT_IDX ? vs_packed_event(VS_PACKED_DESC, d->last_used) : vs_packed_event(VS_PACKED_ENABLE, 0);

	__atomic_store_n(d->driver_event, event, __ATOMIC_RELAXED);
	/* The wish is stored before the flags are loaded again (2.8.22). */
	vs_fence();
	return vs_packed_driver_pending(d);
}
