/* SPDX-License-Identifier: Apache-2.0 */
/* A ring of either layout with both sides, in one process: the driver's in memory of its own, the device's over a map of that memory. */
#ifndef VS_VRING_RIG_H
#define VS_VRING_RIG_H

#include "check.h"
#include "driver.h"

enum { EVENT = VS_RING_EVENT_IDX, INDIRECT = VS_RING_INDIRECT, PACKED = VS_RING_PACKED, INLINE = 8, TABLE = 64 };

struct bench {
	vs_core *core;
	struct vs_worker *w;
	struct vs_guest g;
	struct vs_driver d;
	struct vs_vring r;
	vs_memmap *map;
	uint64_t data; /* guest address of 1 MiB */
	struct iovec inline_iov[INLINE];
	struct vs_chain c;
};

enum { DATA = 1 << 20 };

/* As if idx chains (packed: descriptors) had been through. */
void bench_open_at(struct bench *b, uint32_t size, uint32_t features, uint32_t nregions, uint16_t idx);
void bench_open(struct bench *b, uint32_t size, uint32_t features);
void bench_close(struct bench *b);
/* What a device does first: 0 and the chain in b->c, 1: nothing there, -rule. */
int bench_take(struct bench *b);
void bench_give_iov_back(struct bench *b);
void *bench_host(struct bench *b, uint64_t addr);
/* A chain that lies at descriptor 0 and on, 512 bytes a buffer with gaps between, then published. */
void bench_post(struct bench *b, uint32_t nout, uint32_t nin, bool indirect);

/* Both sides draw from it; the same numbers each time. */
uint32_t bench_rnd(uint32_t below);

#endif
