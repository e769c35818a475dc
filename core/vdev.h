/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio-scsi device: what vdev.c (life, control messages) and vqueue.c (one queue on its worker) share. */
#ifndef VS_VDEV_H
#define VS_VDEV_H

#include "bell.h"
#include "core.h"
#include "inflight.h"
#include "lunmap.h"

enum { VS_CTRL_BYTES = 64, VS_INLINE_SEGMENTS = 12, VS_RESP_INLINE = 2, VS_EVENT_BYTES = 16 };
enum { VS_QUEUE_CONTROL = 0, VS_QUEUE_EVENT = 1, VS_QUEUE_REQUEST = 2 };

/* One place in a ring, by head: a command, or a request on the control queue. */
struct vs_request {
	struct vs_task task;
	struct vs_queue *queue;
	struct vs_memmap *map;   /* pinned */
	struct iovec *iov;       /* inline_iov or from vs_iovec_get */
	struct iovec *resp;      /* where the response header goes */
	uint32_t capacity, nresp, resp_capacity;
	uint32_t head, span;     /* as vs_vring_pop gave them */
	uint32_t entry;          /* in what is kept of those in flight */
	uint16_t tag_next;       /* in its chain of q->tags: head + 1, 0: the last one */
	bool busy, tagged, again; /* again: a process that was killed had it in flight */
	struct iovec resp_inline[VS_RESP_INLINE];
	struct iovec inline_iov[VS_INLINE_SEGMENTS];
};

struct vs_ctrl {
	struct vs_request *request;
	struct vs_msg msg;
	struct vs_upnode up;
	uint32_t out_length, in_length, reply_length;
	uint8_t out[VS_CTRL_BYTES], reply[VS_CTRL_BYTES];
};

struct vs_queue {
	struct vs_poller poller;
	struct vs_vdev *vdev;
	struct vs_worker *w;
	struct vs_vring ring;
	struct vs_memmap *map;       /* pinned while started */
	struct vs_request *requests; /* ring.size of them */
	uint16_t *tags;              /* chains of requests by tag, behind them; tag_shift gives their number */
	uint32_t tag_shift;
	struct vs_request *stalled;  /* popped, but Python has no credit left */
	struct vs_source kick;
	struct vs_timer poll_timer;  /* rings without a kick descriptor */
	uint32_t index, in_flight, unpublished, segment_bytes;
	struct vs_bell call, err;
	struct vs_track track;
	bool started, enabled, stopping, broken, ring_gone, notify, kick_known, waiting;
	bool await_kick;             /* the front end may still say where it begins: nothing of the ring is read or written */
	bool begun;
	bool missed;                 /* event queue: events were dropped, and nobody has been told */
	int32_t error;
	uint64_t stop_cookie;
	uint64_t fresh_ns;           /* the turn in which `fresh` requests were both taken and answered: their time is known in the next one */
	uint32_t fresh;
	uint32_t sigbus_seen;
	struct {
		vs_counter requests, kicks, interrupts, interrupts_suppressed, batches, errors;
		_Atomic uint32_t in_flight, max_batch, indices; /* last_avail << 16 | used_idx */
		_Atomic uint32_t state;                         /* 1 started 2 enabled 4 broken 8 stalled 16 begun 32 stopping 64 waiting 128 await_kick */
		_Atomic int32_t error;
		_Atomic uint32_t tell_busy;
		vs_counter latency[VS_QLATENCY_BUCKETS], batch_sizes[VS_QBATCH_BUCKETS];
	} view;                      /* what the control plane may read at any time */
	struct vs_queue_params params;
};

struct vs_vdev {
	struct vs_core *core;
	uint64_t cookie;
	uint32_t num_queues, cdb_size, sense_size;
	struct vs_credit credit;
	_Atomic bool suspect;        /* a notifier of its was made blocking once: they are signalled with care for good */
	struct vs_lunmap_ref luns;
	struct vs_queue *queues;
};

/* Chains for the tags of a ring with so many requests, as a power of two: few have more than one. */
static inline uint32_t vs_queue_tag_bits(uint32_t size) { return 33 - (uint32_t)__builtin_clz(size); }

void vs_queue_init(struct vs_queue *q, struct vs_vdev *d, uint32_t index);
/* Worker only. Each answers with VS_UP_DONE(cookie). */
void vs_queue_run_start(struct vs_queue *q, struct vs_request *requests, struct vs_order *order, uint64_t cookie);
void vs_queue_run_stop(struct vs_queue *q, uint64_t cookie);
void vs_queue_run_enable(struct vs_queue *q, bool enabled);
void vs_queue_run_call(struct vs_queue *q, int fd);
void vs_queue_run_err(struct vs_queue *q, int fd);
void vs_queue_run_kick(struct vs_queue *q, int fd);
int vs_queue_run_map(struct vs_queue *q, struct vs_memmap *map);
int vs_queue_run_event(struct vs_queue *q, const uint8_t *event);
int vs_queue_run_event_room(struct vs_queue *q);

#endif
