/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which requests of a queue are in flight, kept in memory that the front end holds for us (vhost-user, "Inflight I/O tracking"), so that a process
 * that was killed is survived by it: the layouts, and what a queue does to them as it takes and uses chains. What a new process makes of them is in
 * inflight.c. One process stands behind the other, never beside it, and a killed one has done its stores in their order; so every store here is a
 * release, for the compiler's sake, and costs nothing more. Nothing that stands there is believed: a queue reads it when it starts and never again.
 */
#ifndef VS_INFLIGHT_H
#define VS_INFLIGHT_H

#include "core.h"
#include "vring.h"

/* Completions between two writes of the used index: a polling driver goes on meanwhile. As many are in one batch of the region at most. */
enum { VS_PUBLISH_EVERY = 8 };

struct vs_split_state { uint8_t inflight, padding[5]; uint16_t next; uint64_t counter; };
struct vs_split_region { uint64_t features; uint16_t version, desc_num, last_batch_head, used_idx; struct vs_split_state desc[]; };
_Static_assert(sizeof(struct vs_split_state) == 16 && sizeof(struct vs_split_region) == 16, "vhost-user: DescStateSplit, QueueRegionSplit");
struct vs_packed_state { uint8_t inflight, padding; uint16_t next, last, num; uint64_t counter; uint16_t id, flags; uint32_t len; uint64_t addr; };
struct vs_packed_region {
	uint64_t features;
	uint16_t version, desc_num, free_head, old_free_head, used_idx, old_used_idx;
	uint8_t used_wrap_counter, old_used_wrap_counter, padding[7];
	struct vs_packed_state desc[];
};
_Static_assert(sizeof(struct vs_packed_state) == 32 && offsetof(struct vs_packed_region, desc) == 32, "vhost-user: DescStatePacked, QueueRegionPacked");

/* Behind the regions of all queues, where it is ours alone: who made it, and what became of each command that may not run twice. */
struct vs_inflight_own { uint64_t magic, id; uint64_t reserved[6]; };
#define VS_INFLIGHT_MAGIC UINT64_C(0x3146492d53432d56)
enum { VS_ONCE_SENSE = 96 };
struct vs_once {
	uint64_t counter;   /* of the request that it is about */
	uint32_t state;     /* enum vs_once_state */
	uint32_t residual, written;
	uint8_t status, response, sense_len, padding;
	uint8_t sense[VS_ONCE_SENSE];
};
_Static_assert(sizeof(struct vs_once) == 120, "no holes");

struct vs_inflight {
	struct vs_core *core;
	uint8_t *map, *queues;    /* map: of whole pages; queues: the regions in it */
	uint64_t map_length, length;
	uint32_t num_queues, queue_size;
	struct vs_inflight_own *own; /* NULL: somebody else made it */
	int slot;
	_Atomic uint32_t broken;  /* truncated under us */
};

/* One queue's part, on its worker. Copies of what is in the region are here, and only these are read. */
struct vs_track {
	struct vs_inflight *of;   /* NULL: nothing is kept */
	union { struct vs_split_region *split; struct vs_packed_region *packed; };
	struct vs_once *once;     /* NULL: no room for them */
	bool is_packed;
	uint64_t counter;
	uint32_t held;            /* in flight */
	uint32_t nbatch;
	uint16_t batch_head;      /* split: last_batch_head */
	uint16_t free_head;       /* packed; next and last by entry */
	uint16_t *next, *last;
	struct { uint16_t entry, span; } batch[VS_PUBLISH_EVERY]; /* pushed, not yet published */
	uint16_t *replay;         /* entries that a dead process left, oldest first */
	uint32_t replays, replayed;
};

#define vs_keep(field, value) __atomic_store_n(&(field), (__typeof__(field))(value), __ATOMIC_RELEASE)

static inline bool vs_track_replays(const struct vs_track *t) { return t->replayed < t->replays; }

/* A chain was taken: its entry. Before anything is done for it. */
uint32_t vs_track_take_packed(struct vs_track *t, const struct vs_vring *r, uint32_t span);
static inline uint32_t vs_track_take(struct vs_track *t, const struct vs_vring *r, uint32_t head, uint32_t span)
{
	t->counter++;
	t->held++;
	if (vs_unlikely(t->is_packed))
		return vs_track_take_packed(t, r, span);
	VS_STEP(TAKE);
	vs_keep(t->split->desc[head].counter, t->counter);
	VS_STEP(TAKE_COUNTED);
	vs_keep(t->split->desc[head].inflight, 1);
	VS_STEP(TAKEN);
	return head;
}

/* Its used entry is written, and not visible yet. */
static inline void vs_track_pushed(struct vs_track *t, uint32_t entry, uint32_t span)
{
	t->batch[t->nbatch].entry = (uint16_t)entry;
	t->batch[t->nbatch++].span = (uint16_t)span;
	if (vs_unlikely(t->is_packed))
		return;
	VS_STEP(PUSHED);
	vs_keep(t->split->desc[entry].next, t->batch_head);
	VS_STEP(PUSHED_LINKED);
	vs_keep(t->split->last_batch_head, entry);
	VS_STEP(PUSHED_BATCHED);
	t->batch_head = (uint16_t)entry;
}

/* Around vs_vring_publish. */
void vs_track_publish_packed(struct vs_track *t, const struct vs_vring *r);
void vs_track_published_packed(struct vs_track *t, const struct vs_vring *r);
static inline void vs_track_publish(struct vs_track *t, const struct vs_vring *r)
{
	if (vs_unlikely(t->is_packed) && t->nbatch)
		vs_track_publish_packed(t, r);
}
static inline void vs_track_published(struct vs_track *t, const struct vs_vring *r)
{
	uint32_t n = t->nbatch;

	if (vs_unlikely(!n))
		return;
	t->nbatch = 0;
	t->held -= n;
	if (vs_unlikely(t->is_packed)) {
		t->nbatch = n;
		vs_track_published_packed(t, r);
		t->nbatch = 0;
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		VS_STEP(CLEAR);
		vs_keep(t->split->desc[t->batch[i].entry].inflight, 0);
	}
	VS_STEP(CLEARED);
	vs_keep(t->split->used_idx, r->published);
	VS_STEP(SETTLED);
}

/* The chain that was taken last was not taken after all. */
void vs_track_untake(struct vs_track *t, uint32_t entry);

/*
 * A queue starts; the ring is set up, and is moved to where the region says that it stands. > 0: so many requests are to be executed again;
 * -ESTALE: it did not fit the ring and was forgotten; other errors: nothing can be kept, and the queue must not start.
 */
int vs_track_begin(struct vs_track *t, struct vs_inflight *of, uint32_t queue, struct vs_vring *r);
/* The next of those, which the caller counts in `replayed` when it has it: as vs_vring_pop. */
int vs_track_replay(struct vs_track *t, struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, uint32_t *entry);
/* The queue has stopped. What is still in flight stays so. */
void vs_track_end(struct vs_track *t);

#endif
