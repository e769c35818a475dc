/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The split and the packed ring as they lie in guest memory (virtio 1.3, 2.7 and 2.8): layouts, flags and the arithmetic that both sides share.
 * What a side does with them is in vring.c and vring_packed.c (device), driver.c and driver_packed.c (driver). All fields are little-endian: so are the machines we build for.
 */
#ifndef VS_VRING_H
#define VS_VRING_H

#include <stdbool.h>
#include <stdint.h>

#include "core.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ring fields are read as they lie");

enum { VS_DESC_NEXT = 1, VS_DESC_WRITE = 2, VS_DESC_INDIRECT = 4 }; /* 2.7.5 */
enum { VS_AVAIL_NO_INTERRUPT = 1 };                                 /* 2.7.6 */
enum { VS_USED_NO_NOTIFY = 1 };                                     /* 2.7.8 */

struct vs_vring_desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct vs_vring_avail { uint16_t flags, idx, ring[]; };     /* behind ring[size]: used_event */
struct vs_vring_used_elem { uint32_t id, len; };
struct vs_vring_used { uint16_t flags, idx; struct vs_vring_used_elem ring[]; }; /* behind ring[size]: avail_event */

_Static_assert(sizeof(struct vs_vring_desc) == 16 && sizeof(struct vs_vring_used_elem) == 8, "2.7.5, 2.7.8");

/* 2.7: a power of two; 2.8.10.1: any; both at most 32768. */
static inline bool vs_vring_size_ok(uint32_t size, uint32_t features)
{
	return size && size <= VS_QUEUE_MAX && (features & VS_RING_PACKED || !(size & (size - 1)));
}

/* Lengths in bytes with the event word that VIRTIO_F_EVENT_IDX puts behind the ring (2.7.6, 2.7.8). */
static inline uint64_t vs_vring_desc_bytes(uint32_t size) { return 16 * (uint64_t)size; }
static inline uint64_t vs_vring_avail_bytes(uint32_t size, bool event) { return 4 + 2 * (uint64_t)size + (event ? 2 : 0); }
static inline uint64_t vs_vring_used_bytes(uint32_t size, bool event) { return 4 + 8 * (uint64_t)size + (event ? 2 : 0); }

/* Where a side that wrote old..new-1 must notify: the event index lies among them, modulo 2^16 (2.7.7.1, 2.7.10.1). */
static inline bool vs_vring_need_event(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
	return (uint16_t)(new_idx - event - 1) < (uint16_t)(new_idx - old_idx);
}

/* NOTIFICATION_DATA (2.9): the queue, and where the driver stands: its index, or its place in a packed ring, as next_off and next_wrap. */
static inline uint32_t vs_notification_data(uint16_t queue, uint16_t at) { return queue | (uint32_t)at << 16; }

/* ---- packed ------------------------------------------------------------------------------------------------------------------------------- */

/* 2.8.1; NEXT, WRITE and INDIRECT are as above (2.8.3, 2.8.6, 2.8.7). */
enum { VS_PACKED_AVAIL = 1 << 7, VS_PACKED_USED = 1 << 15 };
enum { VS_PACKED_ENABLE = 0, VS_PACKED_DISABLE = 1, VS_PACKED_DESC = 2, VS_PACKED_EVENT_MASK = 3 }; /* 2.8.10 */
enum { VS_PACKED_WRAP = 0x8000, VS_PACKED_EVENT_BYTES = 4 };

struct vs_packed_desc { uint64_t addr; uint32_t len; uint16_t id, flags; }; /* 2.8.13 */
_Static_assert(sizeof(struct vs_packed_desc) == sizeof(struct vs_vring_desc), "2.8.10.1");

/* The event suppression structure (2.8.14) as one word, so that place and flags are always of one time: bits 0..14 the descriptor, 15 the wrap
 * counter, 16..17 the flags. */
static inline uint32_t vs_packed_event(uint32_t flags, uint16_t at) { return flags << 16 | at; }

/* A place in the ring with the wrap counter of the lap that it is in: bits 0..14 the descriptor, 15 the counter. As in event suppression
 * structures, and in vhost-user's VRING_BASE. */
static inline uint32_t vs_packed_index(uint16_t at) { return at & (VS_PACKED_WRAP - 1u); }
static inline uint16_t vs_packed_forward(uint16_t at, uint32_t n, uint32_t size) /* n <= size */
{
	uint32_t to = vs_packed_index(at) + n, wrap = at & VS_PACKED_WRAP;

	return (uint16_t)(to < size ? to | wrap : (to - size) | (wrap ^ VS_PACKED_WRAP));
}
/* Descriptors from one place on to another, less than two laps. */
static inline uint32_t vs_packed_distance(uint16_t from, uint16_t to, uint32_t size)
{
	uint32_t n = vs_packed_index(to) + 2 * size - vs_packed_index(from) + ((from ^ to) & VS_PACKED_WRAP ? size : 0);

	return n % (2 * size);
}
/* 2.8.1: made available in the lap of this place. */
static inline bool vs_packed_is_avail(uint16_t flags, uint16_t at)
{
	bool wrap = at & VS_PACKED_WRAP;

	return !!(flags & VS_PACKED_AVAIL) == wrap && !!(flags & VS_PACKED_USED) != wrap;
}
static inline bool vs_packed_is_used(uint16_t flags, uint16_t at)
{
	bool wrap = at & VS_PACKED_WRAP;

	return !!(flags & VS_PACKED_AVAIL) == wrap && !!(flags & VS_PACKED_USED) == wrap;
}
static inline uint16_t vs_packed_avail_flags(uint16_t at) { return at & VS_PACKED_WRAP ? VS_PACKED_AVAIL : VS_PACKED_USED; }
static inline uint16_t vs_packed_used_flags(uint16_t at) { return at & VS_PACKED_WRAP ? VS_PACKED_AVAIL | VS_PACKED_USED : 0; }
/* What a side that moved from old to new owes the one that wrote the event word (2.8.10). A place that no ring has names nothing: better once too
 * often than never. */
static inline bool vs_packed_need_event(uint32_t event, uint16_t new_at, uint16_t old_at, uint32_t size, bool event_idx)
{
	uint32_t flags = event >> 16 & VS_PACKED_EVENT_MASK;

	if (flags != VS_PACKED_DESC || !event_idx || vs_packed_index((uint16_t)event) >= size)
		return flags != VS_PACKED_DISABLE;
	return vs_packed_distance(old_at, (uint16_t)event, size) < vs_packed_distance(old_at, new_at, size);
}

#endif
