/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the data plane say to each other: workers and their inboxes, engines, timers, pins, stores and ios, tasks, rings and
 * guest memory. api.h is what the outside sees. Threads: "worker" = runs on the worker that owns the object; "control" = the one thread of
 * Python's loop; "any" = both.
 */
#ifndef VS_CORE_H
#define VS_CORE_H

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "api.h"

/* ---- small things ---------------------------------------------------------------------------------------------------------------- */

#define VS_CACHE_LINE 64
#define vs_likely(x) __builtin_expect(!!(x), 1)
#define vs_unlikely(x) __builtin_expect(!!(x), 0)
#define vs_container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define vs_min(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ < b_ ? a_ : b_; })
#define vs_max(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ > b_ ? a_ : b_; })

/* ThreadSanitizer does not model fences: there a sequentially consistent exchange on a private word stands in for one. */
#if defined(__SANITIZE_THREAD__)
#define VS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VS_TSAN 1
#endif
#endif
static inline void vs_fence(void)
{
#ifdef VS_TSAN
	extern _Atomic uint32_t vs_tsan_fence;
	atomic_fetch_add(&vs_tsan_fence, 1);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Nor does it see that a word which a driver of our own and the device reach through two mappings is one word: what its release and acquire order
 * is told through one private word for each place in a page, and only where the order is asked for: a store or load without it must stay a race. */
#ifdef VS_TSAN
enum { VS_TSAN_PLACES = 2048 };
extern _Atomic uint32_t vs_tsan_shared[VS_TSAN_PLACES];
static inline void vs_shared_release(const void *p) { atomic_fetch_add_explicit(&vs_tsan_shared[(uintptr_t)p / 2 % VS_TSAN_PLACES], 1, memory_order_release); }
static inline void vs_shared_acquire(const void *p) { (void)atomic_load_explicit(&vs_tsan_shared[(uintptr_t)p / 2 % VS_TSAN_PLACES], memory_order_acquire); }
#else
static inline void vs_shared_release(const void *p) { (void)p; }
static inline void vs_shared_acquire(const void *p) { (void)p; }
#endif

/* Where a process may be killed that keeps what is in flight (inflight.h): a build for tests stops at each of these, any other knows nothing of
 * them. */
#define VS_STEP_NAMES(X) \
	X(TAKE) X(TAKE_COUNTED) X(TAKEN) X(TAKE_ENTRY) X(TAKE_COPIED) X(TAKE_LAST) \
	X(USE) X(USE_ID) X(USE_LENGTH) X(PUSHED) X(PUSHED_LINKED) X(PUSHED_BATCHED) X(PUBLISH) X(PUBLISH_FREED) X(PUBLISH_INDEX) X(PUBLISH_WRAP) \
	X(PUBLISHED) X(SIGNAL) X(SIGNALLED) X(CLEAR) X(CLEARED) X(CLEAR_FREE) X(CLEAR_INDEX) X(SETTLED) \
	X(ONCE_INTENT) X(ONCE_WRITING) X(ONCE_WRITTEN) X(ONCE_ENDED) X(ONCE_KEPT) \
	X(RECOVER) X(RECOVER_BATCH) X(RECOVER_INDEX) X(RECOVER_FLAGS) X(RECOVER_FREE) X(RECOVERED) X(REPLAY)
#ifdef VS_STEPS
#define VS_STEP_ENUM(name) VS_STEP_##name,
enum { VS_STEP_NAMES(VS_STEP_ENUM) VS_STEP_COUNT };
void vs_step(int step);
#define VS_STEP(name) vs_step(VS_STEP_##name)
#else
#define VS_STEP(name) ((void)0)
#endif

static inline __attribute__((always_inline)) void vs_shared_store(uint16_t *p, uint16_t v, int order)
{
	if (order == __ATOMIC_RELEASE)
		vs_shared_release(p);
	__atomic_store_n(p, v, order);
}

static inline __attribute__((always_inline)) uint16_t vs_shared_load(const uint16_t *p, int order)
{
	uint16_t v = __atomic_load_n(p, order);

	if (order == __ATOMIC_ACQUIRE)
		vs_shared_acquire(p);
	return v;
}

static inline void vs_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

/* Counters that one thread writes and others read: no lock prefix, no data race. */
typedef _Atomic uint64_t vs_counter;
static inline void vs_count(vs_counter *c, uint64_t n)
{
	atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n, memory_order_relaxed);
}
static inline uint64_t vs_counted(const vs_counter *c)
{
	return atomic_load_explicit((vs_counter *)c, memory_order_relaxed);
}

struct vs_list { struct vs_list *next, *prev; };
static inline void vs_list_init(struct vs_list *l) { l->next = l->prev = l; }
static inline bool vs_list_empty(const struct vs_list *l) { return l->next == l; }
static inline void vs_list_add_tail(struct vs_list *head, struct vs_list *n)
{
	n->prev = head->prev; n->next = head; head->prev->next = n; head->prev = n;
}
static inline void vs_list_del(struct vs_list *n)
{
	n->prev->next = n->next; n->next->prev = n->prev; n->next = n->prev = n;
}

uint64_t vs_now_ns(void); /* CLOCK_MONOTONIC */

struct vs_worker;

/* ---- messages to a worker (any thread -> worker) ------------------------------------------------------------------------------------- */

struct vs_msg { struct vs_msg *next; void (*run)(struct vs_worker *w, struct vs_msg *m); };
/* Pushes without waking; the order of pushes of one thread is kept. */
void vs_worker_push(struct vs_worker *w, struct vs_msg *m);
/* After a push, a ring change, an epoch bump: costs a write(2) only when the worker sleeps. */
void vs_worker_wake(struct vs_worker *w);
static inline void vs_worker_send(struct vs_worker *w, struct vs_msg *m) { vs_worker_push(w, m); vs_worker_wake(w); }
/* For inspection. A worker that sleeps runs it and sleeps on: it takes nothing from a ring because somebody looked. In no order with vs_worker_send. */
void vs_worker_look(struct vs_worker *w, struct vs_msg *m);

/* ---- messages to Python (any thread -> control) --------------------------------------------------------------------------------------- */

struct vs_upnode { struct vs_upnode *next; uint32_t kind; uint32_t worker; uint64_t cookie; uint64_t aux; int32_t err; bool allocated; void *object; };
/* Pushes the node; it belongs to the control thread until drained. */
void vs_upcall(struct vs_core *core, struct vs_upnode *n);
/* The same from a node that is allocated here (control-plane events only, never per request). */
void vs_upcall_new(struct vs_core *core, uint32_t kind, uint32_t worker, uint64_t cookie, uint64_t aux, int32_t err, void *object);
/* Worker: like vs_upcall_new for VS_UP_DONE and VS_UP_DRAINED, but sent at the end of this loop turn, after completions were made visible. */
void vs_upcall_after_flush(struct vs_worker *w, uint32_t kind, uint64_t cookie, uint64_t aux, int32_t err);

/* ---- engines ------------------------------------------------------------------------------------------------------------------------------ */

/* A descriptor that tells when it is readable: kick eventfds, the wake-up eventfd, sockets. Worker only. ready() must read it empty. */
struct vs_source {
	int fd;
	uint32_t events; /* EPOLLIN and/or EPOLLOUT */
	bool once;       /* needs to be told once after each source_arm, and may be told more often; with EPOLLET in events */
	void (*ready)(struct vs_worker *w, struct vs_source *s, uint32_t events);
	void (*removed)(struct vs_worker *w, struct vs_source *s); /* the engine is through with it: close fd, free here */
	bool armed, removing; /* engine's */
	uint32_t generation;  /* engine's */
	struct vs_slot *slot; /* engine's; NULL before source_add and again when removed() runs: zero a new source */
};

/* A file operation. Worker only. done() runs on the worker, from reap, never from submit. */
enum vs_op_kind { VS_OP_READV, VS_OP_WRITEV, VS_OP_FDATASYNC, VS_OP_FALLOCATE, VS_OP_CALL };
struct vs_op {
	struct vs_op *next;      /* engine's */
	uint8_t kind;
	uint32_t rw_flags;       /* RWF_DSYNC */
	int fd;
	const struct iovec *iov; /* stays valid until done */
	int niov;                /* <= IOV_MAX (1024) */
	int mode;                /* fallocate */
	uint64_t offset, length;
	ssize_t result;          /* bytes or -errno */
	void (*call)(struct vs_op *op); /* VS_OP_CALL: runs on a helper thread, may block, sets result (ioctl, what the engine lacks) */
	void (*done)(struct vs_worker *w, struct vs_op *op);
};

struct vs_engine_ops {
	const char *name;
	int (*init)(struct vs_worker *w);   /* sets w->engine_data; on the worker's thread */
	void (*fini)(struct vs_worker *w);  /* nothing in flight */
	int (*source_add)(struct vs_worker *w, struct vs_source *s);
	void (*source_del)(struct vs_worker *w, struct vs_source *s); /* removed() follows from a later reap, never from here */
	void (*source_events)(struct vs_worker *w, struct vs_source *s, uint32_t events);
	/* Of a source that is told once: tell again, at once if there is something to tell. source_add arms, too. Nothing while it is armed. */
	void (*source_arm)(struct vs_worker *w, struct vs_source *s);
	void (*submit)(struct vs_worker *w, struct vs_op *op); /* never fails: errors arrive in result; kept when the ring is full */
	int (*reap)(struct vs_worker *w);   /* submits what is queued, runs what has ended, does not block; how many it ran */
	bool (*pending)(struct vs_worker *w); /* cheap: does reap have something to do (queued submissions or arrived completions)? */
	void (*wait)(struct vs_worker *w, int64_t timeout_ns); /* until something arrives (-1: for ever); reap follows */
	uint32_t (*in_flight)(struct vs_worker *w);
};
extern const struct vs_engine_ops vs_engine_uring, vs_engine_epoll;
/* NULL, or why io_uring cannot be had (a static text). */
const char *vs_uring_why_not(void);

/* ---- timers (worker only) -------------------------------------------------------------------------------------------------------------- */

struct vs_timer { uint64_t deadline_ns; uint32_t index; /* in the heap, UINT32_MAX: not set */ void (*fire)(struct vs_worker *w, struct vs_timer *t); };
void vs_timer_init(struct vs_timer *t, void (*fire)(struct vs_worker *, struct vs_timer *));
int vs_timer_set(struct vs_worker *w, struct vs_timer *t, uint64_t deadline_ns); /* -ENOMEM */
void vs_timer_cancel(struct vs_worker *w, struct vs_timer *t);
int vs_timers_run(struct vs_worker *w, uint64_t now_ns);          /* how many fired */
uint64_t vs_timers_next(const struct vs_worker *w);                /* deadline, UINT64_MAX when none */

/* ---- workers ---------------------------------------------------------------------------------------------------------------------------------- */

/* Something a worker looks at in each turn: a ring. poll() returns how much it did; arm() asks for kicks and returns true when work came in
 * meanwhile; disarm() says that kicks are not needed while we spin. */
struct vs_poller {
	struct vs_list link;
	int (*poll)(struct vs_worker *w, struct vs_poller *p);
	void (*flush)(struct vs_worker *w, struct vs_poller *p); /* make completions visible, notify once */
	bool (*arm)(struct vs_worker *w, struct vs_poller *p);
	void (*disarm)(struct vs_worker *w, struct vs_poller *p);
	struct vs_list dirty;    /* on w->dirty while it has completions to flush */
};
static inline void vs_poller_dirty(struct vs_worker *w, struct vs_poller *p);

struct vs_iovec_block { struct vs_iovec_block *next; };
enum { VS_IOV_CLASSES = 6 };

struct vs_worker {
	struct vs_core *core;
	uint32_t index;
	pthread_t thread;
	const struct vs_engine_ops *engine;
	void *engine_data;
	uint64_t now_ns;           /* read once a turn */
	struct vs_list pollers, dirty, tasks;
	struct vs_task *redo_head, **redo_tail; /* passed the gate while the inbox was not empty */
	struct vs_upnode *deferred_head, **deferred_tail;
	struct vs_timer **timers; uint32_t ntimers, timers_size;
	struct vs_io *io_free;
	struct vs_iovec_block *iov_free[VS_IOV_CLASSES];
	uint64_t iov_bytes;
	uint8_t *scratch;          /* VS_SCRATCH bytes, for one synchronous use */
	struct vs_source wake_source;
	struct vs_timer watch;     /* set while a task is with a store, which may take too long */
	struct vs_upnode epoch_node;
	bool started;
	sem_t over;                /* posted at the very end */
	bool ranges_moved;         /* pins that a range lock waits for have moved */
	bool popping_for_tmf;      /* take what the rings hold, credit or not */
	bool redoing;              /* what waited for the inbox goes on, credit or not */
	uint32_t hot;              /* sockets that are looked at in each turn instead of being waited for */
	struct {
		_Atomic uint32_t sessions;
		vs_counter used, common;     /* bytes that commands have, and those of them that are no session's own */
		uint64_t kept;               /* bytes that nobody uses */
		uint64_t turn, turn_bytes;   /* given back in this turn of the worker */
		struct vs_list waiting;      /* sessions that want what is common */
		vs_counter peak, given_back; /* the most that was used; bytes of lent data that were copied for an epoch */
	} ibuffers;                /* iscsi_buffer.c */
	struct {
		vs_counter loops, sleeps, wakes, kicks, interrupts, interrupts_suppressed, requests, batches, spins;
		_Atomic int64_t thread_id;
	} stats;
	int look_events;           /* of what was reaped, wake-ups that were for `looks` alone */
	_Alignas(VS_CACHE_LINE) _Atomic(struct vs_msg *) inbox; /* a stack; run reversed */
	_Atomic(struct vs_msg *) looks; /* inspection: run at the end of a turn, or in its sleep without a turn */
	_Atomic uint32_t sleeping;
	_Atomic uint32_t epoch_sent; /* epoch_node is on its way */
	_Atomic uint64_t epoch_seen;
	_Atomic bool stop;
	int wake_fd;
};
static inline void vs_poller_dirty(struct vs_worker *w, struct vs_poller *p)
{
	if (vs_list_empty(&p->dirty))
		vs_list_add_tail(&w->dirty, &p->dirty);
}
/* A transport asks this before it pops the next request: messages that were posted before a gate opened must run first. */
static inline bool vs_worker_should_yield(struct vs_worker *w)
{
	return atomic_load_explicit(&w->inbox, memory_order_acquire) != NULL;
}

struct vs_core {
	struct vs_config config;
	const struct vs_engine_ops *engine;
	struct vs_worker *workers;
	_Alignas(VS_CACHE_LINE) _Atomic uint64_t epoch;
	_Alignas(VS_CACHE_LINE) _Atomic(struct vs_upnode *) up_stack;
	struct vs_upnode *up_head, **up_tail; /* control only */
	int up_fd;
	struct vs_range_registry *range_registry; /* excl.c: LUs with exclusive ranges that wait */
	_Atomic(struct vs_watchdog *) watchdog; /* workers run before it and after it */
	bool started;
};

/* iovec arrays for chains longer than the inline ones: size classes, kept by the worker. NULL when the worker's limit is reached. */
struct iovec *vs_iovec_get(struct vs_worker *w, uint32_t n);
void vs_iovec_put(struct vs_worker *w, struct iovec *iov, uint32_t n);

/* ---- pins --------------------------------------------------------------------------------------------------------------------------------- */

struct vs_pin_slot { _Alignas(VS_CACHE_LINE) _Atomic uint64_t count; };
struct vs_pins { struct vs_core *core; struct vs_pin_slot *slots; _Atomic uint32_t watched; uint64_t cookie; uint32_t n; };
int vs_pins_init(struct vs_pins *p, struct vs_core *core);
void vs_pins_fini(struct vs_pins *p);
void vs_pins_moved(struct vs_worker *w, uint32_t watched, uint64_t cookie, uint64_t left); /* slow half of vs_unpin */
static inline void vs_pin(struct vs_worker *w, struct vs_pins *p)
{
	_Atomic uint64_t *c = &p->slots[w->index].count;
	atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + 1, memory_order_release);
}
/* Once the count is down, whoever waits for it may free what was pinned, and the pins with it: who watches is read before. Somebody who
 * begins to watch in between bumps the epoch next and looks when this turn is over. */
static inline void vs_unpin(struct vs_worker *w, struct vs_pins *p)
{
	_Atomic uint64_t *c = &p->slots[w->index].count;
	uint64_t v = atomic_load_explicit(c, memory_order_relaxed) - 1;
	uint32_t watched = atomic_load_explicit(&p->watched, memory_order_acquire);
	uint64_t cookie = vs_unlikely(watched) ? p->cookie : 0;

	atomic_store_explicit(c, v, memory_order_release);
	if (vs_unlikely(watched))
		vs_pins_moved(w, watched, cookie, v);
}

/* ---- stores and ios --------------------------------------------------------------------------------------------------------------------- */

/* One byte operation on a store. Worker only. Whoever submits owns it until done() runs (or submit said DONE). The iovecs cover exactly
 * length bytes for READ and WRITE; stores may not change them. */
struct vs_io {
	struct vs_store *store;
	struct vs_worker *w;
	uint8_t op;              /* enum vs_io_op */
	uint8_t flags;           /* enum vs_io_flag */
	int32_t err;             /* enum vs_store_error */
	uint64_t offset, length;
	struct iovec *iov;
	int niov;
	bool lend;               /* READ of a store that lends: nothing is copied, `lent` is set */
	const uint8_t *lent;
	void (*done)(struct vs_io *io);
	void *owner;             /* the submitter's */
	/* the store's, while it has the io */
	struct vs_op eng;
	struct vs_timer timer;
	struct vs_io *next, *parent;
	uint64_t progress;
	void *priv;
	void *buffer;            /* a struct vs_buffer */
	uint32_t state;
	uint32_t pending;
	struct vs_upnode up;     /* Python stores */
	struct vs_msg msg;
};
enum vs_submit { VS_SUBMIT_PENDING = 0, VS_SUBMIT_DONE = 1 };

struct vs_store_ops {
	const char *kind;
	bool lends;
	/* Range, read-only and latch are checked before. DONE: err is set, done() is not called. PENDING: done() will run on io->w. */
	enum vs_submit (*submit)(struct vs_store *s, struct vs_io *io);
	void (*destroy)(struct vs_store *s); /* frees s itself; not its lower store */
	int (*resize)(struct vs_store *s, uint64_t size); /* NULL: -ENOTSUP; sets info.size */
	int (*map)(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run); /* NULL: -ENOTSUP */
	int (*usage)(struct vs_store *s, struct vs_store_usage *out); /* NULL: -ENOTSUP */
	int (*limit)(struct vs_store *s, uint64_t bytes);             /* NULL: -ENOTSUP */
	/* Aborted: the io should end soon (a delay cuts its wait short). NULL: it ends when it ends. */
	void (*cancel)(struct vs_store *s, struct vs_io *io);
};
struct vs_store {
	const struct vs_store_ops *ops;
	struct vs_core *core;
	struct vs_store *lower;
	struct vs_store_info info;      /* size is read with __atomic: resize happens behind a fence */
	_Atomic uint32_t flush_failed;  /* latched until the store is opened anew */
	struct { _Alignas(VS_CACHE_LINE) vs_counter ops[VS_IO_OPS]; vs_counter bytes[VS_IO_OPS], errors[VS_IO_OPS]; } *stats; /* one a worker */
};
/* store.c: checks range, read-only and latch, counts, then ops->submit. */
enum vs_submit vs_store_submit(struct vs_store *s, struct vs_io *io);
/* store.c: for stores: end an io that was pending: counts errors, latches failed flushes, runs done(). */
void vs_io_end(struct vs_io *io, int32_t err);
void vs_store_cancel(struct vs_store *s, struct vs_io *io);
int vs_store_init(struct vs_store *s, vs_core *core, const struct vs_store_ops *ops, struct vs_store *lower);
void vs_store_fini(struct vs_store *s);
int32_t vs_store_error_of_errno(int err, uint8_t op); /* errno (positive) -> enum vs_store_error */
/* Child ios for wrappers, from the worker's free list; NULL when memory is out. */
struct vs_io *vs_io_get(struct vs_worker *w);
void vs_io_put(struct vs_worker *w, struct vs_io *io);
/* iov.c: byte-exact walks over iovecs. All return the bytes done. */
uint64_t vs_iov_length(const struct iovec *iov, int niov);
uint64_t vs_iov_to_buffer(const struct iovec *iov, int niov, uint64_t skip, void *buffer, uint64_t n);
uint64_t vs_iov_from_buffer(const struct iovec *iov, int niov, uint64_t skip, const void *buffer, uint64_t n);
uint64_t vs_iov_fill(const struct iovec *iov, int niov, uint64_t skip, int byte, uint64_t n);
/* The part [skip, skip+n) of iov as at most max iovecs in out; returns how many, -ENOBUFS when they do not suffice. */
int vs_iov_slice(const struct iovec *iov, int niov, uint64_t skip, uint64_t n, struct iovec *out, int max);

/* ---- guest memory ------------------------------------------------------------------------------------------------------------------------- */

struct vs_mapping { /* one mmap of one region, shared by the maps that have the region */
	_Atomic uint32_t refs;
	_Atomic uint32_t broken; /* SIGBUS put zeroes in */
	uint8_t *base;           /* of the mmap */
	uint64_t length;
	uint8_t *host;           /* of the region */
	struct vs_region region;
	int slot;                /* in the SIGBUS registry */
};
struct vs_memmap {
	struct vs_core *core;
	struct vs_pins pins;
	uint64_t cookie;
	uint32_t n;
	struct vs_mapping **mappings; /* sorted by guest_addr */
};
/* sigbus.c. Any thread. */
int vs_sigbus_register(void *base, uint64_t length, uint64_t page, _Atomic uint32_t *broken); /* slot or -errno */
void vs_sigbus_unregister(int slot);
int vs_sigbus_install(void);
uint32_t vs_sigbus_count(void); /* faults so far, process-wide: when it moves, look whether it was yours */
/* Contiguous host pointer for [addr, addr+len), NULL when it is not inside ONE region (or len wraps). hint: index of the last hit, may be NULL. */
void *vs_memmap_guest(const struct vs_memmap *m, uint64_t addr, uint64_t len, uint32_t *hint);
/* As much as is contiguous: returns the host pointer and sets *got <= len, NULL when addr itself is outside. */
void *vs_memmap_guest_part(const struct vs_memmap *m, uint64_t addr, uint64_t len, uint64_t *got, uint32_t *hint);
void *vs_memmap_user(const struct vs_memmap *m, uint64_t addr, uint64_t len);

/* ---- rings, device side ---------------------------------------------------------------------------------------------------------------- */

enum vs_ring_rule {
	VS_RULE_OK = 0,
	VS_RULE_AVAIL_JUMP = 1,           /* avail idx more than queue size ahead: 2.7.13.3; packed: a descriptor that we hold offered again: 2.8.16 */
	VS_RULE_HEAD_RANGE = 2,           /* head, or buffer id, >= queue size */
	VS_RULE_NEXT_RANGE = 3,           /* next >= table size */
	VS_RULE_LOOP = 4,                 /* chain visits more descriptors than the table has */
	VS_RULE_TOO_LONG = 5,             /* chain longer than the queue size: 2.7.5.3.1, 2.8.17 */
	VS_RULE_INDIRECT_NOT_NEGOTIATED = 6,
	VS_RULE_INDIRECT_NESTED = 7,      /* 2.7.5.3.1, 2.8.19 */
	VS_RULE_INDIRECT_AND_NEXT = 8,    /* 2.7.5.3.1, 2.8.19 */
	VS_RULE_INDIRECT_LENGTH = 9,      /* 0 or not a multiple of 16 */
	VS_RULE_READABLE_AFTER_WRITABLE = 10, /* 2.7.4.2 */
	VS_RULE_UNMAPPED = 11,            /* buffer or indirect table outside guest memory */
	VS_RULE_ADDRESS_OVERFLOW = 12,
	VS_RULE_ZERO_LENGTH = 13,         /* no buffer in the whole chain has a byte */
	VS_RULE_RING_UNMAPPED = 14,       /* descriptor table, avail or used ring outside guest memory */
	VS_RULE_RING_ALIGN = 15,
	VS_RULE_RING_SIZE = 16,
	VS_RULE_NO_MEMORY = 17,           /* our own limit on segments in flight */
	VS_RULE_HEAD_BUSY = 18,           /* the head is still in flight */
	VS_RULE_CHAIN_BYTES = 19,         /* lengths add up to more than 2^32 - 1: 2.7.4.2 */
	VS_RULE_REQUEST_SHORT = 20,       /* virtio-scsi: request or response header does not fit */
	VS_RULE_MEMORY_GONE = 21,         /* guest memory was truncated under us */
	VS_RULE_KICK = 22,                /* the kick descriptor cannot be waited for */
	VS_RULE_NOTIFIER_BLOCKS = 23,     /* a kick or call descriptor was made blocking under us */
	VS_RULE_AVAIL_FLAGS = 24,         /* packed: AVAIL and USED of a chain's descriptors disagree, or changed back: 2.8.6, 2.8.16 */
	VS_RULE_RING_BASE = 25,           /* packed: it was to begin at a place that the ring does not have */
	VS_RULE_INFLIGHT = 26,            /* the in-flight region is not one that this ring can be kept in */
	VS_RULES = 27,
};

struct vs_chain {
	uint32_t head;            /* what names it when it goes back: first descriptor (split), buffer id (packed) */
	uint32_t span;            /* packed: descriptors of the ring that it takes */
	uint32_t nout, nin;       /* iovecs: readable first, then writable, in iov */
	uint64_t out_length, in_length;
	struct iovec *iov;        /* inline_iov or from vs_iovec_get (then capacity > inline) */
	uint32_t capacity;        /* in: room in iov; out: what to give back */
};
struct vs_vring {
	const struct vs_memmap *map;
	union { struct vs_vring_desc *desc; struct vs_packed_desc *ring; };
	union { struct vs_vring_avail *avail; const uint32_t *driver_event; };
	union { struct vs_vring_used *used; uint32_t *device_event; };
	uint32_t size, features;  /* enum vs_ring_feature */
	/* Split: 16-bit counters. Packed: places, see vring.h. */
	uint16_t last_avail;      /* next avail entry to take */
	uint16_t shadow_avail;    /* split: avail idx as last read */
	uint16_t used_idx;        /* next used entry to write */
	uint16_t published;       /* used idx as the driver sees it */
	uint16_t signalled_used;  /* used idx at the last interrupt decision */
	uint16_t first_flags;     /* packed: of the used descriptor at `published`, not written yet */
	uint16_t last_span;       /* packed: of the chain that was taken last */
	bool signalled_valid, kicks_on;
	uint32_t held;            /* packed: descriptors taken and not used yet */
	uint32_t hint;
	uint64_t desc_addr, avail_addr, used_addr; /* user addresses; of a packed ring descriptors, driver area, device area */
	struct vs_order *order;   /* in-order use: size of them, the caller's, zeroed; NULL: in any order */
	uint32_t order_first, order_n;
};
/* In-order use. `head` is of what was taken as the nth since; the others are of this slot's own head. */
struct vs_order { uint32_t written; uint16_t head, span; uint8_t state; };
/* -enum vs_ring_rule on error. The rings are mapped anew by _remap (a new memory table). */
int vs_vring_init(struct vs_vring *r, const struct vs_memmap *map, const struct vs_queue_params *p);
int vs_vring_remap(struct vs_vring *r, const struct vs_memmap *map);

/* vring.c and vring_packed.c; callers take the vs_vring_ ones below. */
int vs_split_available(struct vs_vring *r);
int vs_split_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c);
void vs_split_push(struct vs_vring *r, uint32_t head, uint32_t written);
bool vs_split_publish(struct vs_vring *r);
void vs_split_kicks_off(struct vs_vring *r);
bool vs_split_kicks_on(struct vs_vring *r);
/* Chains that a process which was killed had taken (inflight.h): c->head is set; of a packed ring as it kept their descriptors. */
enum { VS_SAVED_MAX = 32 };
int vs_split_walk(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c);
int vs_packed_walk_saved(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, const struct vs_packed_desc *descs, uint32_t n);
int vs_packed_begin(struct vs_vring *r, uint32_t base);
int vs_packed_available(struct vs_vring *r);
int vs_packed_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c);
void vs_packed_unpop(struct vs_vring *r);
void vs_packed_push(struct vs_vring *r, uint32_t id, uint32_t span, uint32_t written);
bool vs_packed_publish(struct vs_vring *r);
void vs_packed_kicks_off(struct vs_vring *r);
bool vs_packed_kicks_on(struct vs_vring *r);

/* vring_order.c, where the functions below end up with a ring that is used in order. */
int vs_order_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c);
void vs_order_unpop(struct vs_vring *r);
void vs_order_push(struct vs_vring *r, uint32_t head, uint32_t written);

static inline bool vs_vring_packed(const struct vs_vring *r) { return r->features & VS_RING_PACKED; }
/* The layouts as they are, whatever the order. */
static inline void vs_ring_unpop(struct vs_vring *r)
{
	if (vs_vring_packed(r))
		vs_packed_unpop(r);
	else
		r->last_avail--;
}
static inline void vs_ring_push(struct vs_vring *r, uint32_t head, uint32_t span, uint32_t written)
{
	if (vs_vring_packed(r))
		vs_packed_push(r, head, span, written);
	else
		vs_split_push(r, head, written);
}
/* How many chains wait (reads what the driver made available with acquire): >= 0 or -rule. Of a packed ring it may be fewer than there are. */
static inline int vs_vring_available(struct vs_vring *r)
{
	return vs_vring_packed(r) ? vs_packed_available(r) : vs_split_available(r);
}
/* Takes the next chain (vs_vring_available said > 0): 0, -rule (the ring is broken, nothing more may be taken). c->iov and c->capacity are the
 * caller's inline array; longer chains come from vs_iovec_get(w). Every descriptor field is loaded once. Zero-length buffers are left out. */
static inline int vs_vring_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	if (vs_unlikely(r->order != NULL))
		return vs_order_pop(r, w, c);
	return vs_vring_packed(r) ? vs_packed_pop(r, w, c) : vs_split_pop(r, w, c);
}
/* The last chain was not taken after all. Once for each that was taken, and only for the last one. */
static inline void vs_vring_unpop(struct vs_vring *r)
{
	if (vs_unlikely(r->order != NULL))
		vs_order_unpop(r);
	else
		vs_ring_unpop(r);
}
/* Not yet visible. head and span are the chain's. */
static inline void vs_vring_push(struct vs_vring *r, uint32_t head, uint32_t span, uint32_t written)
{
	if (vs_unlikely(r->order != NULL))
		vs_order_push(r, head, written);
	else
		vs_ring_push(r, head, span, written);
}
/* Makes visible what was pushed, with release; true: notify the driver (event index or descriptor, flags). */
static inline bool vs_vring_publish(struct vs_vring *r)
{
	return vs_vring_packed(r) ? vs_packed_publish(r) : vs_split_publish(r);
}
static inline void vs_vring_kicks_off(struct vs_vring *r)
{
	if (vs_vring_packed(r))
		vs_packed_kicks_off(r);
	else
		vs_split_kicks_off(r);
}
/* Asks for kicks; true: more chains came in meanwhile (full fence between). */
static inline bool vs_vring_kicks_on(struct vs_vring *r)
{
	return vs_vring_packed(r) ? vs_packed_kicks_on(r) : vs_split_kicks_on(r);
}
/* Where the ring goes on if it is stopped now: vs_queue_params.base of the next start. */
static inline uint32_t vs_vring_base(const struct vs_vring *r)
{
	return vs_vring_packed(r) ? r->last_avail | (uint32_t)r->used_idx << 16 : r->last_avail;
}
/* RING_RESET (2.6.1): the ring as a driver begins it anew where it lies. What was taken is never given back. */
void vs_vring_reset(struct vs_vring *r);
/* NOTIFICATION_DATA (2.9): whether what the driver says of its place means that there is something to take. A hint, and the driver's. */
bool vs_vring_notified(const struct vs_vring *r, uint32_t data);

/* ---- logical units, nexuses, tasks ----------------------------------------------------------------------------------------------------------------- */

enum vs_dir { VS_DIR_NONE, VS_DIR_IN, VS_DIR_OUT }; /* vs_row.dir: Direction of scsi/command.py */
struct vs_row { const char *name; uint8_t opcode; uint8_t has_sa; uint16_t service_action; uint8_t cdb_len; uint8_t media; uint8_t dir; uint32_t param_max; uint8_t param_at, param_bytes, once; uint64_t gate_mask; uint8_t usage[32]; };
const struct vs_row *vs_row_of(const uint8_t *cdb, uint32_t cdb_len); /* NULL: no such command */
bool vs_opcode_is_once(uint8_t opcode);                                  /* some command of this opcode must not run twice */
uint32_t vs_cdb_length(const uint8_t *cdb);                              /* by opcode group; 0: vendor or reserved group */

/* A task's place among the range locks of its LU (excl.c). */
struct vs_range { struct vs_list link; uint64_t first, last; bool exclusive, granted, held, waiting; struct vs_msg msg; };

struct vs_lu {
	_Alignas(VS_CACHE_LINE) _Atomic uint64_t gate; /* bits 0..43 reasons, 44..63 tasks sent to Python */
	_Atomic uint64_t num_blocks;
	_Atomic(struct vs_store *) store;
	_Atomic uint32_t wce, d_sense, unmap;
	_Atomic uint32_t share;   /* commands that a worker may run without asking how many there are: outstanding.c */
	_Atomic uint32_t bad_blocks; /* how many are marked: bad.c */
	uint32_t block_shift;
	/* What every command looks at ends here, within the cache line of the gate. */
	uint32_t max_transfer_blocks;
	bool lenient;             /* reserved bits of a CDB are not looked at */
	bool cdb32;               /* CDBs of 32 bytes are served */
	bool wsnz;                /* a WRITE SAME of zero blocks is refused */
	uint32_t max_unmap_blocks, max_unmap_descriptors, max_write_same_blocks, max_atomic_blocks;
	_Atomic uint32_t queue_error, tell_full, timeout_ms, retries;
	uint32_t max_outstanding, queue_depth, whole_share;
	_Atomic uint32_t in_python; /* tasks */
	uint64_t cookie;
	struct vs_core *core;
	struct vs_pins pins;      /* tasks that C executes */
	struct {
		vs_counter reads, writes, flushes, unmaps, others, read_bytes, write_bytes, escalated, failed;
		vs_counter verifies, verify_bytes, read_errors, write_errors, verify_errors, read_ns, write_ns;
		uint32_t begun[VS_DIR_OUT + 1]; /* of the worker alone: media commands by direction, to time some */
		char pad[VS_CACHE_LINE];
	} *stats; /* one a worker */
	uint32_t received;        /* control: tasks drained, modulo 2^20 */
	struct vs_ranges *ranges; /* excl.c */
	struct vs_bad *bad;       /* NULL until a block is marked for the first time */
};
struct vs_nexus {
	_Alignas(VS_CACHE_LINE) _Atomic uint64_t gate;
	struct vs_lu *lu;
	uint64_t cookie;
	struct vs_pins pins;
	_Atomic uint32_t in_python; /* tasks */
	uint32_t received;
};

/* How far a command that must not run twice has got. */
enum vs_once_state { VS_ONCE_NONE, VS_ONCE_INTENT, VS_ONCE_WRITING, VS_ONCE_ENDED };
struct vs_task_ops {
	const char *name;
	void (*complete)(struct vs_task *t); /* worker: the task has ended; send status; the task may be used anew after this */
	void (*describe)(const struct vs_task *t, struct vs_task_info *out); /* queue, head, port */
	void (*keep)(struct vs_task *t, enum vs_once_state state); /* of VS_TASK_ONCE: survives the process from here on */
	uint64_t (*address)(const struct vs_task *t, const void *p); /* where the initiator has what we have at p; 0, and NULL: unknown */
	void (*withdraw)(struct vs_task *t); /* aborted while listed in layer RING, before vs_task_submit: finish it. Needed by who lists tasks early */
};

/* Tasks in Python at once, of one port (device, session): what is beyond is not popped (virtio) or gets TASK SET FULL. */
struct vs_credit { _Atomic int32_t left; _Atomic uint32_t starved; struct vs_core *core; };

enum vs_task_flag {
	VS_TASK_TRUNCATE = 1, /* a data buffer that is too short cuts the transfer instead of VS_RESP_OVERRUN */
	VS_TASK_LEND = 2,     /* a read may end with `lent` instead of data in `in` */
	VS_TASK_ONCE = 4,     /* must not run twice, and the transport keeps how far it got: ops->keep */
	VS_TASK_WRITING = 8,  /* of those: a process that was killed had found the medium as expected and began to write */
	VS_TASK_OVERLAPPED = 16, /* its tag is in use */
};

struct vs_task {
	/* the transport fills these before vs_task_submit */
	const struct vs_task_ops *ops;
	struct vs_worker *w;
	struct vs_nexus *nexus;   /* NULL: no logical unit there; Python answers */
	struct vs_credit *credit;
	uint64_t port_cookie, tag;
	uint64_t order;           /* among the tasks of the nexus; 0 where the transport has none */
	struct iovec *out, *in;
	uint32_t nout, nin;
	uint64_t out_length, in_length;
	uint8_t attribute, cdb_len, flags, lun_kind;
	uint16_t target, lun;
	/* the core's */
	uint8_t layer, started, aborted, verdict, listed;
	bool fault;               /* it has ended with CHECK CONDITION, and Python sees to others before that is told */
	bool decided;             /* Python has seen its end: it is told as it is */
	bool timed_out;           /* a store operation took too long, and was cancelled */
	struct vs_lu *lu;
	const struct vs_row *row;
	uint64_t gate_why;
	uint64_t born_ns, layer_ns;
	uint64_t timed_ns;        /* when it was begun, if it is one that is timed */
	struct vs_list link;      /* on w->tasks while it is not done within its turn */
	struct vs_msg msg;
	struct vs_upnode up;
	struct vs_task *next;
	struct vs_tmf_run *tmf;
	uint8_t *param;           /* data-out copied for Python or for parsing */
	uint32_t param_length;
	uint64_t notify_cookie;
	/* the outcome */
	uint8_t status, sense_len, response;
	bool notify;
	bool medium_error;        /* the sense key is MEDIUM ERROR or HARDWARE ERROR */
	/*
	 * Of VS_TASK_LEND: NULL, or where the data stands in the store's own memory. Who keeps it beyond complete() pins the LU before and
	 * lets go of both when the epoch moves, for a fence waits for that, and before it submits what may write.
	 */
	const uint8_t *lent;
	uint64_t transferred;     /* bytes of data-in or data-out really moved */
	uint64_t required;        /* bytes the CDB asks to move */
	/* media state */
	struct {
		uint64_t lba, blocks, offset, length, progress;
		uint8_t *bounce;
		struct iovec iov;
		bool (*step)(struct vs_task *t); /* after the io has ended well; true: the task has its outcome */
		bool (*after)(struct vs_task *t); /* after a flush that makes a write durable */
		uint64_t chunk;
		uint32_t index;
		uint8_t fua, bytchk, may_unmap, no_data, in_store;
		uint32_t tried;           /* store operations that were tried again */
	} m;
	struct vs_io io;
	struct vs_range range;
	uint8_t cdb[VS_CDB_MAX];
	uint8_t sense[VS_SENSE_MAX];
};

/* task.c. Worker only. 0: taken, complete() will run or has run; -EAGAIN: no credit for Python, nothing happened. */
int vs_task_submit(struct vs_task *t);
void vs_task_finish(struct vs_task *t);  /* status/sense/response are set */
void vs_task_layer(struct vs_task *t, enum vs_layer layer);
void vs_task_execute(struct vs_task *t); /* no gate test */
void vs_task_list(struct vs_task *t);    /* it outlives its turn: make it findable */
void vs_credit_init(struct vs_credit *c, struct vs_core *core, int32_t n);
/* media.c. vs_media_start: the LU and the nexus are pinned; true: the task has its outcome (vs_media_end is next), false: vs_media_end will run. */
bool vs_media_start(struct vs_task *t);
void vs_media_end(struct vs_task *t);
void vs_media_cancel(struct vs_task *t);
void vs_media_watch(struct vs_worker *w, struct vs_timer *timer); /* w->watch fires */
/* outstanding.c. The status of a command that is one too many. */
void vs_outstanding_limit(struct vs_lu *lu, uint32_t lu_limit, uint32_t nexus_limit);
uint8_t vs_outstanding_check(const struct vs_task *t);
/* bad.c, while bad_blocks is not 0. The lowest block in the range that is marked bad. */
bool vs_bad_first(const struct vs_lu *lu, uint64_t lba, uint64_t blocks, uint64_t *out);
void vs_bad_clear(struct vs_lu *lu, uint64_t lba, uint64_t blocks);
/* sense.c. field: VS_FIELD(byte, bit) of the CDB or of the parameter list. */
struct vs_sense { uint8_t key; uint16_t asc_ascq; bool has_information, has_field, field_in_cdb; uint64_t information; uint16_t field_byte; uint8_t field_bit; };
void vs_sense_set(struct vs_task *t, const struct vs_sense *s); /* CHECK CONDITION in the LU's format */
/* excl.c: LBA-range locks. true: go on now; false: vs_media_start is called again with t->range.granted when it may. blocks: 0 for a command
 * that neither reads nor changes any. */
bool vs_range_enter(struct vs_task *t, uint64_t lba, uint64_t blocks, bool exclusive);
void vs_range_leave(struct vs_task *t);
bool vs_range_cancel(struct vs_task *t); /* true: it waited and does no more */
void vs_range_progress(struct vs_worker *w); /* the worker's turn is over, and its epoch or pins moved */
/* Pins the LU for an operation that goes on without its task (IMMED) and changes nothing: no range lock waits for it. False: so many are under
 * way that this one has to keep its task. */
bool vs_range_detach(struct vs_worker *w, struct vs_lu *lu);
void vs_range_detached_done(struct vs_worker *w, struct vs_lu *lu);
int vs_lu_ranges_init(struct vs_lu *lu);
void vs_lu_ranges_fini(struct vs_lu *lu);

#endif
