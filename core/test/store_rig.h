/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of stores stand on: a core with an engine that can be listened to and disturbed, ios that are sent to a worker and waited for
 * ("shots"), and the Python side of a store played in C. It judges nothing: the tests do.
 */
#ifndef VS_TEST_STORE_RIG_H
#define VS_TEST_STORE_RIG_H

#include "core.h"

enum { RIG_WORKERS = 2, SHOT_IOVECS = 40 };

/* What the engine is told to do to the file operations that pass, and what it saw. */
struct rig_engine {
	_Atomic bool shorten;         /* a transfer of several iovecs is cut in half */
	_Atomic bool refuse_fallocate;
	_Atomic int interrupt;        /* so many operations end with EINTR first */
	_Atomic int fail_sync;        /* so many fdatasync end with EIO */
	_Atomic int fail_dsync_write; /* so many FUA writes end with EIO */
	_Atomic uint64_t syncs, dsync_writes, fallocates, writes, reads;
};
extern struct rig_engine rig_engine;

struct rig { vs_core *core; uint32_t engine; };
void rig_start(struct rig *rig, uint32_t engine);
void rig_stop(struct rig *rig);

/* One io with its buffer: length bytes in data, cut into iovecs. */
struct shot {
	struct vs_msg msg, cancel_msg;
	struct vs_store *store;
	struct vs_io io;
	struct iovec *iov;
	struct iovec inline_iov[SHOT_IOVECS];
	uint8_t *data;
	bool cancel, ended;
};
/* One iovec over data, which is the caller's. */
void shot_set(struct shot *s, struct vs_store *store, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, uint8_t *data);
/* Cuts the shot's one iovec at random into n, some of them empty; every piece a multiple of unit. */
void shot_cut(struct shot *s, struct iovec *iov, int n, uint64_t unit);
void shot_send(struct rig *rig, struct shot *s, uint32_t worker);
void shot_cancel(struct rig *rig, struct shot *s, uint32_t worker); /* the worker that it was sent to */
/* Until it has ended; takes care of every other shot and Python store meanwhile. */
int32_t shot_wait(struct rig *rig, struct shot *s);
/* Takes what has arrived, waits at most timeout_ms for something. */
void rig_pump(struct rig *rig, int timeout_ms);

int32_t rig_io(struct rig *rig, struct vs_store *store, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, uint8_t *data);

/* The Python side of a store, in C: its cookie is the address of this. */
struct rig_python { uint8_t *data; uint64_t size; int32_t fail; bool cheat; };
struct vs_store *rig_python_open(struct rig *rig, struct rig_python *side);

uint64_t rig_random(void);
/* In [low, high]. */
uint64_t rig_between(uint64_t low, uint64_t high);

#endif
