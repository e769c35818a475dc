/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver side of a split or packed virtqueue and a piece of guest memory to run it in: for benches, tests, stress and fuzz programs. It is what a
 * well-behaved guest does, and fast; a hostile one writes into the memory itself. One thread a queue. It knows nothing of virtio-scsi.
 */
#ifndef VS_DRIVER_H
#define VS_DRIVER_H

#include "core.h"
#include "vring.h"

/* Guest memory in a memfd. It is one piece for us; the device maps it as nregions regions that follow each other in guest addresses, so that
 * buffers across a border have two host addresses there. The regions' descriptors are the memfd, borrowed. */
enum { VS_GUEST_REGIONS = 8 };
struct vs_guest {
	int fd;
	uint8_t *base;
	uint64_t size;       /* bytes */
	uint64_t taken;      /* bytes handed out, from the start */
	uint32_t nregions;
	struct vs_region regions[VS_GUEST_REGIONS];
};
/* The guest and user addresses where the memory starts. */
#define VS_GUEST_ADDR 0x40000000ull
#define VS_GUEST_USER_ADDR 0x7f0000000000ull

int vs_guest_create(uint64_t size, uint32_t nregions, struct vs_guest *out); /* size is rounded up to pages */
void vs_guest_destroy(struct vs_guest *g);
/* Guest address of size fresh bytes, 0 when they do not fit. align is a power of two. Never given back. */
uint64_t vs_guest_alloc(struct vs_guest *g, uint64_t size, uint64_t align);
static inline void *vs_guest_ptr(const struct vs_guest *g, uint64_t addr)
{
	return g->base + (addr - VS_GUEST_ADDR);
}

struct vs_driver_buffer { uint64_t addr; uint32_t length; };

struct vs_driver {
	struct vs_guest *guest;
	union { struct vs_vring_desc *desc; struct vs_packed_desc *ring; };
	union { struct vs_vring_avail *avail; uint32_t *driver_event; };
	union { struct vs_vring_used *used; uint32_t *device_event; };
	uint64_t desc_addr, avail_addr, used_addr; /* guest addresses; of a packed ring descriptors, driver area, device area */
	uint32_t size, features;   /* enum vs_ring_feature */
	uint32_t indirect_entries; /* of the table that each head has, 0: none */
	uint64_t tables_addr;
	/* Heads are first descriptors of a split ring, and buffer ids of a packed one. */
	uint16_t *next;            /* free list, and the chain of a head: the ring's own next is the device's to read, not ours */
	uint16_t *chain;           /* descriptors that a head in flight holds, 0: not in flight */
	uint32_t free_head, nfree; /* the next head, and how many descriptors are free */
	uint32_t in_flight;        /* chains added and not collected */
	/* Split: 16-bit counters. Packed: places, see vring.h. */
	uint16_t avail_idx;        /* next entry to write */
	uint16_t published;        /* as the device sees it */
	uint16_t last_used;        /* next used entry to take */
	uint16_t shadow_used;      /* split: used idx as last read */
	uint16_t first_flags;      /* packed: of the descriptor at `published`, not written yet */
	/* In-order use: what was added, oldest first, and the used element that stands for several of them. */
	struct vs_driver_order { uint32_t head, room; } *order;
	uint32_t order_first, order_n, batch_head, batch_written;
	bool batch;
};
/* A ring in g, packed if features say so. indirect_entries: the longest chain that vs_driver_add may put into a table. */
int vs_driver_create(struct vs_guest *g, uint32_t size, uint32_t features, uint32_t indirect_entries, struct vs_driver *out);
void vs_driver_destroy(struct vs_driver *d);
/* Where the device finds the ring; base is where the driver stands, file descriptors are -1, the worker is 0. */
void vs_driver_params(const struct vs_driver *d, struct vs_queue_params *out);
/* As vs_driver_create left it, as if idx chains (packed: descriptors) had been through: for tests of the wrap, before the device starts. */
void vs_driver_reset(struct vs_driver *d, uint16_t idx);

/* nout device-readable buffers, then nin device-writable ones, as one chain: its head, or -ENOSPC when the ring is full, -EINVAL when it can
 * never fit. Not yet visible. */
int vs_driver_add(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t nin, bool indirect);
bool vs_driver_publish(struct vs_driver *d); /* with release; true: kick the device */
/* 1 and what the device gave back; 0: nothing; -EPROTO: a head that is not in flight, or an idx that ran ahead. */
int vs_driver_collect(struct vs_driver *d, uint32_t *head, uint32_t *written);
void vs_driver_interrupts_off(struct vs_driver *d);
bool vs_driver_interrupts_on(struct vs_driver *d); /* true: something came back meanwhile */
bool vs_driver_pending(const struct vs_driver *d);   /* something came back */
/* What a driver with NOTIFICATION_DATA writes to notify the device (2.9). */
static inline uint32_t vs_driver_notification(const struct vs_driver *d, uint16_t queue) { return vs_notification_data(queue, d->published); }

/* driver_packed.c, where the functions above end up with a packed ring. */
void vs_packed_driver_reset(struct vs_driver *d, uint16_t idx);
void vs_packed_driver_add(struct vs_driver *d, const struct vs_driver_buffer *buffers, uint32_t nout, uint32_t n, bool indirect);
bool vs_packed_driver_publish(struct vs_driver *d);
int vs_packed_driver_used(const struct vs_driver *d, uint32_t *id, uint32_t *written);
void vs_packed_driver_take_back(struct vs_driver *d, uint32_t id);
void vs_packed_driver_interrupts_off(struct vs_driver *d);
bool vs_packed_driver_interrupts_on(struct vs_driver *d);
bool vs_packed_driver_pending(const struct vs_driver *d);

static inline bool vs_driver_packed(const struct vs_driver *d) { return d->features & VS_RING_PACKED; }
static inline uint32_t vs_driver_in_flight(const struct vs_driver *d) { return d->in_flight; }

#endif
