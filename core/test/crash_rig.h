/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Back ends that die: each is a process of its own that serves one request queue of a guest whose memory, in-flight region and medium it shares with
 * this program, and ends at the step that it is told (core.h, VS_STEP_NAMES), by SIGKILL. This program is the guest. It judges nothing but that each
 * request comes back once; the tests do the rest.
 */
#ifndef VS_TEST_CRASH_RIG_H
#define VS_TEST_CRASH_RIG_H

#include "driver.h"
#include "inflight.h"
#include "task.h"
#include "vdev.h"
#include "worker.h"
#include "gen/tables.h"

enum { CRASH_BLOCK = 512, CRASH_BLOCKS = 256, CRASH_SLOTS = 64, CRASH_RING = 16, CRASH_QUEUES = 3 };

/* What outlives every back end. */
struct crash_shared {
	uint32_t steps;                        /* that the last back end took */
	uint32_t stopped[VS_STEP_COUNT];       /* back ends that ended there */
	uint32_t replays;                      /* requests that were executed again, as the last one said when it started */
	bool forgotten;                        /* it did not believe the region */
	int32_t start_error;                   /* -rule */
	uint32_t writes[CRASH_BLOCKS];         /* store operations, by first block */
	uint32_t order[1024], norder;          /* first blocks of all writes, in order */
	uint8_t medium[CRASH_BLOCKS * CRASH_BLOCK];
};
struct crash_slot { uint8_t *header, *response, *data; uint64_t at; uint32_t lba; bool busy, compares; };

struct crash {
	struct crash_shared *shared;
	struct vs_guest guest;
	struct vs_driver driver;
	int region_fd;
	uint64_t region_size;
	uint8_t *region;           /* mapped here, too */
	uint32_t queue_size;       /* of the region */
	struct crash_slot slots[CRASH_SLOTS];
	uint32_t slot_of[CRASH_RING];
	uint32_t sent, ended;
	uint32_t base;             /* where the ring began */
	int call_fd;
};

void crash_open(struct crash *c, uint32_t features);
void crash_close(struct crash *c);
/* One block is written with `value`, or compared with zeroes and written. The head; -ENOSPC. */
int crash_write(struct crash *c, uint32_t lba, uint8_t value, bool compare, bool indirect);
/* A back end runs until it has nothing to do (0), or to its step `stop_at` (1: it was killed there). slow: some ios of its store wait for a turn.
 * */
int crash_run(struct crash *c, uint32_t stop_at, bool slow);
/* What came back: each was GOOD. How many; their blocks in lbas. */
uint32_t crash_collect(struct crash *c, uint32_t *lbas);

#endif
