/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The traffic of the stress of the gate: initiators, each a thread that sends random commands through one transport and judges what comes
 * back. What is true of the medium they share stands in model.h.
 */
#ifndef VS_TEST_INITIATORS_H
#define VS_TEST_INITIATORS_H

#include "driver.h"
#include "model.h"
#include "transports.h"

enum { DEPTH = 12, DATA_MAX = 4 * BLOCK, REQUEST_BYTES = 19 + 32, RESPONSE_BYTES = 12 + 96 };

enum command_kind { NONE, READ, WRITE, SEQUENCE_WRITE, CAW, SYNC, UNMAP, WRITE_SAME, TUR, INQUIRY, UNKNOWN };

struct command {
	uint64_t tag;
	enum command_kind kind; /* NONE: free */
	uint32_t block, blocks, out_length, in_length, residual;
	uint64_t expected;      /* CAW */
	uint8_t attribute, status, response;
	uint8_t cdb[16];
	uint8_t *out, *in;
	uint64_t out_addr, in_addr, request_addr, response_addr; /* in guest memory, where the transport wants that */
};

struct initiator;
struct wiring {
	bool (*send)(struct initiator *i, struct command *c); /* false: not now */
	struct command *(*receive)(struct initiator *i);      /* ended: status, response, residual are set; data-in is there */
};

struct initiator {
	const struct wiring *wiring;
	uint32_t index;
	uint64_t seed;
	pthread_t thread;
	_Atomic bool stop, finished;
	_Atomic uint64_t sent_tag;           /* everything up to here has been sent */
	_Atomic uint64_t oldest;             /* of those that have not ended, UINT64_MAX: none */
	struct command commands[DEPTH];
	uint32_t open;
	uint64_t tag;
	uint64_t counters[COUNTERS + MIXED]; /* as last seen */
	uint64_t wins[COUNTERS], maybe[COUNTERS];
	bool mixed_open;
	uint64_t sent, ended, failed, aborted, full, won, lost;
	/* by transport */
	struct vs_driver driver;
	uint32_t head_to_command[64];
	_Atomic int kick_fd;
	int fd;
	struct chip_memory *chip;
	struct vs_guest *guest;
};
extern const struct wiring ring_wiring, socket_wiring, chip_wiring;

void initiator_start(struct initiator *i);
void initiator_join(struct initiator *i); /* it ends when it was told to stop and its last command has ended */

#endif
