/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two engines share: slots, which outlive the sources in them so that a late event never touches freed memory, and the helper threads
 * that run what blocks. Nothing outside engine_*.c includes this; the engines' interface stands in core.h.
 */
#ifndef VS_ENGINE_H
#define VS_ENGINE_H

#include <sys/epoll.h>

#include "core.h"

/* Told whether asked for or not. */
#define EPOLL_ERRORS ((uint32_t)(EPOLLERR | EPOLLHUP))

/* ---- slots (engine_sources.c), worker only ------------------------------------------------------------------------------------------ */

struct vs_slot {
	struct vs_slot *next;      /* on the free, gone or todo list */
	struct vs_source *source;  /* NULL: free */
	uint32_t index;
	uint32_t generation;       /* changes with each arming: events of an earlier one find nothing */
	bool queued;               /* io_uring: on the todo list */
	bool cancelling;           /* io_uring: a cancel for this arming is under way */
	bool gone;                 /* on the gone list */
};
struct vs_slots {
	struct vs_slot **table;
	uint32_t n, size, used;
	struct vs_slot *free;
	struct vs_slot *gone_head, **gone_tail; /* nothing arrives for these any more: removed() is due */
};
void vs_slots_init(struct vs_slots *slots);
void vs_slots_fini(struct vs_slots *slots);
/* -EBUSY (in an engine already), -ENOMEM. */
int vs_slots_take(struct vs_slots *slots, struct vs_source *s);
void vs_slots_release(struct vs_slots *slots, struct vs_slot *slot);
struct vs_slot *vs_slots_find(const struct vs_slots *slots, uint32_t index, uint32_t generation); /* NULL: stale */
void vs_slots_gone(struct vs_slots *slots, struct vs_slot *slot);
/* Calls removed() for what was gone before this call; what its callbacks remove waits for the next one. How many. */
int vs_slots_run_gone(struct vs_slots *slots, struct vs_worker *w);

/* ---- helper threads (engine_threads.c) ------------------------------------------------------------------------------------------------ */

enum { VS_IO_THREADS_DEFAULT = 4, VS_IO_THREADS_MAX = 64 };

struct vs_io_pool {
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct vs_op *head, **tail; /* under lock, like the next two */
	uint32_t idle;
	bool stop;
	bool ready;                 /* init was called: worker only, like the rest up to done */
	uint32_t nthreads;
	pthread_t threads[VS_IO_THREADS_MAX];
	struct vs_source source;    /* an eventfd, written only while the worker sleeps */
	_Alignas(VS_CACHE_LINE) _Atomic(struct vs_op *) done; /* a stack; taken whole */
	_Atomic uint32_t sleeping;
};
/* Makes the eventfd and the threads; source is not yet in an engine. The pool was zeroed once before. 0 or -errno. */
int vs_io_pool_init(struct vs_io_pool *pool, const struct vs_worker *w);
/* Nothing is in flight; the source is no longer in an engine. */
void vs_io_pool_fini(struct vs_io_pool *pool);
void vs_io_pool_push(struct vs_io_pool *pool, struct vs_op *head, struct vs_op **tail, uint32_t n);
/* Ends an op without a thread, with op->result as it is. Any thread. */
void vs_io_pool_end(struct vs_io_pool *pool, struct vs_op *op);
/* All that ended, oldest first. */
struct vs_op *vs_io_pool_take(struct vs_io_pool *pool);
static inline bool vs_io_pool_has(struct vs_io_pool *pool)
{
	return atomic_load_explicit(&pool->done, memory_order_relaxed) != NULL;
}
/* Before the worker sleeps: from here on helpers write the eventfd. False: something ended meanwhile, do not sleep. */
bool vs_io_pool_sleep(struct vs_io_pool *pool);
void vs_io_pool_awake(struct vs_io_pool *pool);

/* An offset of -1 means "the file position" to the kernel: no byte address may come out as that. */
static inline int64_t vs_op_offset(const struct vs_op *op)
{
	return op->offset > INT64_MAX ? INT64_MIN : (int64_t)op->offset;
}

#endif
