/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The split ring as it lies in guest memory (virtio 1.3, 2.7): layouts, flags and the arithmetic that both sides share. What a side does with
 * it is in vring.c (device) and driver.c (driver). All fields are little-endian: so are the machines we build for.
 */
#ifndef VS_VRING_H
#define VS_VRING_H

#include <stdbool.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ring fields are read as they lie");

enum { VS_DESC_NEXT = 1, VS_DESC_WRITE = 2, VS_DESC_INDIRECT = 4 }; /* 2.7.5 */
enum { VS_AVAIL_NO_INTERRUPT = 1 };                                 /* 2.7.6 */
enum { VS_USED_NO_NOTIFY = 1 };                                     /* 2.7.8 */

struct vs_vring_desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct vs_vring_avail { uint16_t flags, idx, ring[]; };     /* behind ring[size]: used_event */
struct vs_vring_used_elem { uint32_t id, len; };
struct vs_vring_used { uint16_t flags, idx; struct vs_vring_used_elem ring[]; }; /* behind ring[size]: avail_event */

_Static_assert(sizeof(struct vs_vring_desc) == 16 && sizeof(struct vs_vring_used_elem) == 8, "2.7.5, 2.7.8");

/* Lengths in bytes with the event word that VIRTIO_F_EVENT_IDX puts behind the ring (2.7.6, 2.7.8). */
static inline uint64_t vs_vring_desc_bytes(uint32_t size) { return 16 * (uint64_t)size; }
static inline uint64_t vs_vring_avail_bytes(uint32_t size, bool event) { return 4 + 2 * (uint64_t)size + (event ? 2 : 0); }
static inline uint64_t vs_vring_used_bytes(uint32_t size, bool event) { return 4 + 8 * (uint64_t)size + (event ? 2 : 0); }

/* Where a side that wrote old..new-1 must notify: the event index lies among them, modulo 2^16 (2.7.7.1, 2.7.10.1). */
static inline bool vs_vring_need_event(uint16_t event, uint16_t new_idx, uint16_t old_idx)
{
	return (uint16_t)(new_idx - event - 1) < (uint16_t)(new_idx - old_idx);
}

#endif
