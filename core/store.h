/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the stores share among themselves and nobody else sees: ranges that ios hold against each other, buffers that are kept by worker,
 * and the one line that says why a store could not be opened. Contracts of stores and ios stand in core.h.
 */
#ifndef VS_STORE_H
#define VS_STORE_H

#include "core.h"

/* Writes one line into why and returns -err. */
int vs_store_why(char *why, uint32_t why_size, int err, const char *format, ...) __attribute__((format(printf, 4, 5)));

static inline uint64_t vs_store_size(const struct vs_store *s)
{
	return __atomic_load_n(&s->info.size, __ATOMIC_RELAXED);
}

/*
 * Byte ranges, rounded to a granule, that ios hold while they are in flight: exclusive against everybody, shared against exclusive only.
 * An io that must wait is queued in order of arrival, and its msg.run runs on its worker once it holds its range; no worker ever sleeps
 * here. Links through io->next; io->state is for its marks alone, because other workers read them.
 */
enum { VS_IO_STATE_HELD = 1u << 30, VS_IO_STATE_EXCLUSIVE = 1u << 29 };

struct vs_spans {
	pthread_mutex_t lock; /* among workers, for the length of a list walk */
	struct vs_io *held;
	struct vs_io *wait_head, **wait_tail;
	uint64_t granule;     /* a power of two */
};
void vs_spans_init(struct vs_spans *r, uint64_t granule);
void vs_spans_fini(struct vs_spans *r);
/* True: held now. False: io->msg.run, set before, is called on io->w when it is. */
bool vs_spans_enter(struct vs_spans *r, struct vs_io *io, bool exclusive);
void vs_spans_leave(struct vs_spans *r, struct vs_io *io);

/* Page-aligned buffers of one size, kept by worker and limited by worker. Waiters link through io->parent. */
struct vs_buffer {
	struct vs_buffer *next;
	struct iovec iov;
	uint64_t offset, length, done;
	uint8_t *data;
};
struct vs_buffers_slot {
	_Alignas(VS_CACHE_LINE) struct vs_buffer *free;
	struct vs_io *wait_head, **wait_tail;
	uint32_t made;
};
struct vs_buffers {
	struct vs_buffers_slot *slots;
	uint64_t size;
	uint32_t nslots, limit;
};
int vs_buffers_init(struct vs_buffers *b, vs_core *core, uint64_t size, uint32_t limit);
void vs_buffers_fini(struct vs_buffers *b);
/* True: io->buffer is set. False: it will be when io->msg.run, set before, is called on io->w. */
bool vs_buffers_get(struct vs_buffers *b, struct vs_io *io);
void vs_buffers_put(struct vs_buffers *b, struct vs_io *io);

#endif
