/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of commands and of virtio-scsi queues stand on: a medium that writes down what it is asked for, fails or waits when told; a
 * logical unit over it; and a device with rings in guest memory, driven by workers without threads (whose turns the test takes) or with them.
 * It judges nothing: the tests do.
 */
#ifndef VS_TEST_VDEV_RIG_H
#define VS_TEST_VDEV_RIG_H

#include "driver.h"
#include "gen/tables.h"
#include "task.h"
#include "vdev.h"
#include "worker.h"

/* ---- the medium ---------------------------------------------------------------------------------------------------------------------- */

enum { MEDIUM_LOG = 64 };
struct medium_op { uint8_t op, flags; uint64_t offset, length; };
struct medium {
	struct vs_store store;
	uint8_t *data;
	struct medium_op log[MEDIUM_LOG]; /* the first ones */
	uint32_t nlog;
	int32_t fail[VS_IO_OPS];          /* enum vs_store_error by operation */
	pthread_mutex_t lock;             /* of all that stands below */
	bool hold;                        /* what comes waits for medium_release */
	struct vs_io *held, **held_tail;
	uint32_t nheld, cancelled;
};
struct medium *medium_open(vs_core *core, const struct vs_store_info *info);
void medium_forget(struct medium *m);  /* the log */
void medium_hold(struct medium *m, bool on);
uint32_t medium_held(struct medium *m);
void medium_release(struct medium *m); /* what waits, in its order; what comes later waits again */

/* ---- a logical unit, and the control side ----------------------------------------------------------------------------------------------- */

enum { UNIT_WORKERS = 2, UNIT_UPCALLS = 128 };
struct unit_options {
	struct vs_store_info info;   /* size and block size are set when 0 */
	struct vs_lu_params lu;
	uint32_t engine, poll_mode, spin_us;
	bool threads;
};
struct unit {
	vs_core *core;
	bool threads;
	struct medium *medium;
	struct vs_lu_params params;
	vs_lu *lu;
	vs_nexus *nexus;
	struct vs_upcall ups[UNIT_UPCALLS]; /* all that came and was not looked for yet */
	struct vs_task_info infos[UNIT_UPCALLS];
	uint32_t nups;
	uint64_t cookie;
};
void unit_open(struct unit *u, const struct unit_options *o);
void unit_close(struct unit *u);
void unit_update(struct unit *u); /* u->params changed */
/* Some turns of the workers, or some time, and takes what they said. */
void unit_settle(struct unit *u);
/* Until a message of this kind (and cookie, where it is not 0) has come: removes it. Fails after seconds. */
struct vs_upcall unit_wait(struct unit *u, uint32_t kind, uint64_t cookie, struct vs_task_info *info);
bool unit_has(const struct unit *u, uint32_t kind);
void unit_post(struct unit *u, vs_task *t, enum vs_verdict verdict, uint8_t status);

/* ---- a device and its driver -------------------------------------------------------------------------------------------------------------- */

enum { MACHINE_QUEUES = 4, MACHINE_SLOTS = 64, SLOT_BYTES = 16384, SLOT_RESPONSE = 512, SLOT_DATA = 4096 };
enum { CDB_SIZE = 32, SENSE_SIZE = 96, REQUEST_BYTES = 19 + CDB_SIZE, RESPONSE_BYTES = 12 + SENSE_SIZE };

struct machine_options {
	struct unit_options unit;
	uint32_t credit, queue_size, features, regions;
	uint32_t indirect_entries; /* of each table; 0: 256 */
	bool kicks;               /* kick and call eventfds; else the rings are polled */
	struct machine *beside;   /* another device, with memory of its own, at the same unit */
};
/* A queue's driver, and one slot of guest memory for each head. */
struct machine_queue {
	struct vs_driver driver;
	uint64_t slots;           /* guest address */
	uint8_t slot_of[1024], pieces_of[1024]; /* by head */
	uint64_t free_slots;      /* bits */
	int kick_fd, call_fd;     /* ours, -1: polled */
	uint32_t worker;
};
struct machine {
	struct unit *unit, own;
	uint64_t cookie;          /* of the device */
	struct vs_guest guest;
	vs_memmap *map;
	vs_vdev *vdev;
	struct machine_queue queues[MACHINE_QUEUES];
	uint64_t tags;            /* given to requests that have none */
};
void machine_open(struct machine *m, const struct machine_options *o);
void machine_close(struct machine *m); /* stops what runs */
uint64_t machine_start(struct machine *m, uint32_t queue, bool kicks);  /* waits */
uint32_t machine_stop(struct machine *m, uint32_t queue);               /* waits; the base to go on from */
void machine_luns(struct machine *m, const struct vs_lun_entry *entries, uint32_t n);

/* What a request says. Absent parts are 0: LUN 0 of target 0, SIMPLE, no data. */
struct request {
	uint8_t lun[8];
	bool lun_given;
	uint64_t tag;             /* 0: one of its own */
	uint8_t attribute;
	uint8_t cdb[CDB_SIZE];
	const uint8_t *out;
	uint32_t out_length, in_length;
	uint32_t response_pieces; /* 0 and 1: one */
	uint32_t data_pieces;
	bool indirect;
	bool unseen;              /* not shown to the device: machine_kick does */
};
struct response {
	uint32_t sense_len, residual;
	uint16_t status_qualifier;
	uint8_t status, response;
	uint8_t sense[SENSE_SIZE];
	uint32_t written;         /* as the used ring says */
	const uint8_t *data;      /* in the slot, until the next request */
};
int machine_send(struct machine *m, uint32_t queue, const struct request *r); /* the head */
void machine_kick(struct machine *m, uint32_t queue);
/* The next that ended: its head, or -1. */
int machine_poll(struct machine *m, uint32_t queue, struct response *out);
int machine_receive(struct machine *m, uint32_t queue, struct response *out); /* waits for it */
void machine_do(struct machine *m, uint32_t queue, const struct request *r, struct response *out);
struct vs_queue_info machine_info(const struct machine *m, uint32_t queue);

/* READ(10) and WRITE(10). */
void cdb_read10(uint8_t *cdb, uint32_t lba, uint16_t blocks);
void cdb_write10(uint8_t *cdb, uint32_t lba, uint16_t blocks);

#endif
