/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two transports that exist only here, to show that the core does not lean on virtio: a socket whose buffers are its own, and a chip that
 * fetches its commands from guest memory by itself when its doorbell rings. Both live on one worker. They speak no real protocol.
 */
#ifndef VS_TEST_TRANSPORTS_H
#define VS_TEST_TRANSPORTS_H

#include "core.h"

enum { PORT_SLOTS = 16, PORT_DATA = 4096, PORT_SENSE = 32, PORT_CDB = 16, CHIP_SEGMENTS = 3 };

/* ---- the socket: one SOCK_SEQPACKET record a command or status ------------------------------------------------------------------------- */

struct wire_command {
	uint64_t tag;
	uint32_t out_length, in_length;
	uint8_t attribute, truncate, cdb[PORT_CDB];
	uint8_t data[PORT_DATA]; /* out_length bytes of it */
};
struct wire_status {
	uint64_t tag;
	uint32_t residual, in_length;
	uint8_t status, response, sense_length, sense[PORT_SENSE];
	uint8_t data[PORT_DATA]; /* in_length bytes of it */
};

struct socket_slot {
	struct vs_task task;
	struct socket_port *port;
	struct wire_command *command;
	struct wire_status *answer;
	struct iovec out, in;
	bool busy;
};
struct socket_port {
	struct vs_worker *w;
	struct vs_nexus *nexus;
	struct vs_credit credit;
	uint64_t cookie;
	struct vs_source source;
	struct vs_msg msg;
	uint64_t msg_cookie;
	_Atomic uint64_t taken;     /* the last tag that is a task, or was refused */
	_Atomic uint64_t refused;   /* TASK SET FULL */
	struct socket_slot slots[PORT_SLOTS];
};
/* Control: VS_UP_DONE(cookie) when the worker listens, or has let go. The port owns fd. */
int socket_port_open(struct socket_port *p, vs_core *core, uint32_t worker, vs_nexus *nexus, uint64_t port_cookie, int32_t credit, int fd, uint64_t cookie);
void socket_port_close(struct socket_port *p, uint64_t cookie); /* nothing in flight */

/* ---- the chip: commands in guest memory ------------------------------------------------------------------------------------------------- */

/* One command block; the host writes all but the last line, then puts its index into the doorbell ring. */
struct chip_block {
	uint64_t tag;
	uint8_t cdb[PORT_CDB];
	uint32_t attribute, out_length, in_length, nsegments;
	struct { uint64_t addr; uint64_t length; } segments[CHIP_SEGMENTS]; /* of the one direction that has data */
	uint32_t done, status, response, residual; /* done: written last, with release */
};
struct chip_memory {
	uint32_t producer; /* doorbells so far, written with release */
	uint32_t ring[PORT_SLOTS];
	struct chip_block blocks[PORT_SLOTS];
};

struct chip_slot {
	struct vs_task task;
	struct chip *chip;
	struct chip_block *block; /* in guest memory */
	struct vs_memmap *map;    /* pinned */
	struct iovec iov[2 * CHIP_SEGMENTS];
	bool busy;
};
enum chip_state { CHIP_IDLE, CHIP_FETCHED };
struct chip {
	struct vs_worker *w;
	struct vs_nexus *nexus;
	struct vs_memmap *map;
	struct vs_credit credit;
	uint64_t cookie, memory; /* guest address of the chip_memory */
	struct vs_source bell;
	struct vs_timer step;
	enum chip_state state;
	struct chip_slot *fetched;
	uint32_t consumer;
	uint64_t random;
	struct vs_msg msg;
	struct vs_memmap *next_map;
	uint64_t msg_cookie;
	_Atomic uint64_t taken;     /* the last tag that is a task */
	_Atomic uint64_t starved;   /* times that there was no credit */
	_Atomic uint64_t withdrawn; /* aborted before they were submitted */
	struct chip_slot slots[PORT_SLOTS];
};
int chip_open(struct chip *c, vs_core *core, uint32_t worker, vs_nexus *nexus, vs_memmap *map, uint64_t memory, uint64_t port_cookie, int32_t credit, int bell_fd, uint64_t cookie);
void chip_set_map(struct chip *c, vs_memmap *map, uint64_t cookie); /* VS_UP_DONE: nothing new is fetched through the old one */
void chip_close(struct chip *c, uint64_t cookie);                   /* nothing in flight */

#endif
