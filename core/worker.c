// SPDX-License-Identifier: Apache-2.0
/*
 * A worker: one thread, one engine, the rings and sockets it owns. Its loop takes messages, polls rings, reaps completions, makes results
 * visible once a turn, and sleeps when there was nothing to do for a while. It never enters the interpreter and shares no lock with control.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "task.h"
#include "worker.h"

/* ---- what a turn consists of -------------------------------------------------------------------------------------------------------- */

static int run_inbox(struct vs_worker *w)
{
	struct vs_msg *m = atomic_exchange_explicit(&w->inbox, NULL, memory_order_acquire);
	struct vs_msg *reversed = NULL;
	int n = 0;

	while (m) {
		struct vs_msg *next = m->next;

		m->next = reversed;
		reversed = m;
		m = next;
	}
	while (reversed) {
		struct vs_msg *next = reversed->next;

		reversed->run(w, reversed);
		reversed = next;
		n++;
	}
	return n;
}

static void run_looks(struct vs_worker *w)
{
	struct vs_msg *m = atomic_exchange_explicit(&w->looks, NULL, memory_order_acquire);

	while (m) {
		struct vs_msg *next = m->next;

		m->run(w, m);
		m = next;
	}
}

static void flush(struct vs_worker *w)
{
	while (!vs_list_empty(&w->dirty)) {
		struct vs_poller *p = vs_container_of(w->dirty.next, struct vs_poller, dirty);

		vs_list_del(&p->dirty);
		p->flush(w, p);
	}
}

static void send_deferred(struct vs_worker *w)
{
	struct vs_upnode *n = w->deferred_head;

	w->deferred_head = NULL;
	w->deferred_tail = &w->deferred_head;
	while (n) {
		struct vs_upnode *next = n->next;

		vs_upcall(w->core, n);
		n = next;
	}
}

/*
 * The epoch is read first and told after the messages have run. Everything this worker started before is in the pins then, and so are the
 * tasks that were handed back for execution before the epoch was bumped: they do not see the gate. Everything it starts from here on sees
 * the gate bits that were set before the bump (acquire).
 */
static uint64_t read_epoch(const struct vs_worker *w)
{
	return atomic_load_explicit(&w->core->epoch, memory_order_acquire);
}

static bool tell_epoch(struct vs_worker *w, uint64_t e)
{
	if (vs_likely(e == atomic_load_explicit(&w->epoch_seen, memory_order_relaxed)))
		return false;
	atomic_store_explicit(&w->epoch_seen, e, memory_order_seq_cst);
	return true;
}

static void announce_epoch(struct vs_worker *w)
{
	if (!atomic_exchange(&w->epoch_sent, 1)) {
		w->epoch_node = (struct vs_upnode){ .kind = VS_UP_EPOCH, .worker = w->index };
		vs_upcall(w->core, &w->epoch_node);
	}
}

int vs_worker_turn(struct vs_worker *w)
{
	uint64_t epoch = read_epoch(w);
	bool epoch_moved;
	int did = 0;

	w->now_ns = vs_now_ns();
	vs_count(&w->stats.loops, 1);
	if (vs_worker_should_yield(w))
		did += run_inbox(w);
	epoch_moved = tell_epoch(w, epoch);
	if (vs_unlikely(w->redo_head != NULL))
		did += vs_task_run_redo(w);
	for (struct vs_list *l = w->pollers.next; l != &w->pollers;) {
		struct vs_poller *p = vs_container_of(l, struct vs_poller, link);

		l = l->next; /* a poller may take itself off */
		did += p->poll(w, p);
	}
	if (w->engine->pending(w))
		did += w->engine->reap(w);
	if (vs_unlikely(w->ntimers))
		did += vs_timers_run(w, w->now_ns);
	if (!vs_list_empty(&w->dirty))
		flush(w);
	if (vs_unlikely(atomic_load_explicit(&w->looks, memory_order_relaxed) != NULL))
		run_looks(w);
	if (vs_unlikely(w->deferred_head != NULL))
		send_deferred(w);
	if (vs_unlikely(epoch_moved))
		announce_epoch(w);
	if (vs_unlikely(w->ranges_moved || epoch_moved)) {
		w->ranges_moved = false;
		vs_range_progress(w);
	}
	return did;
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------------------------ */

static void kicks_off(struct vs_worker *w)
{
	for (struct vs_list *l = w->pollers.next; l != &w->pollers; l = l->next) {
		struct vs_poller *p = vs_container_of(l, struct vs_poller, link);

		if (p->disarm)
			p->disarm(w, p);
	}
}

static bool kicks_on(struct vs_worker *w)
{
	bool work = false;

	for (struct vs_list *l = w->pollers.next; l != &w->pollers; l = l->next) {
		struct vs_poller *p = vs_container_of(l, struct vs_poller, link);

		if (p->arm)
			work |= p->arm(w, p);
	}
	return work;
}

static int64_t sleep_ns(struct vs_worker *w)
{
	uint64_t next = vs_timers_next(w), now;

	if (next == UINT64_MAX)
		return -1;
	now = vs_now_ns();
	return next <= now ? 0 : (int64_t)(next - now);
}

static bool nothing_to_do(struct vs_worker *w)
{
	return !atomic_load(&w->inbox) && !w->redo_head && !atomic_load(&w->stop) && atomic_load(&w->core->epoch) == atomic_load(&w->epoch_seen);
}

/* Until there is something to do. Who only wants to look at what stands here is shown it in between: a turn would take what lies in a ring, and
 * the kick that was lost would never be seen. */
static void sleep_on(struct vs_worker *w)
{
	bool first = true, looked = false;

	for (;;) {
		if (atomic_load(&w->looks)) {
			looked = true;
			w->now_ns = vs_now_ns();
			run_looks(w);
			send_deferred(w);
		}
		/* What the engine has to submit for itself after a look, wait submits. */
		if (!nothing_to_do(w) || (first && w->engine->pending(w)))
			return;
		if (first)
			vs_count(&w->stats.sleeps, 1);
		first = false;
		w->look_events = 0;
		w->engine->wait(w, sleep_ns(w));
		if (!looked && !atomic_load(&w->looks))
			return;
		w->now_ns = vs_now_ns();
		if (w->engine->reap(w) != w->look_events || !w->look_events)
			return;
	}
}

static void go_to_sleep(struct vs_worker *w)
{
	if (kicks_on(w)) {
		kicks_off(w);
		return;
	}
	atomic_store_explicit(&w->sleeping, 1, memory_order_seq_cst);
	/* Pairs with the fence in vs_worker_wake: either we see the message (or the epoch), or its sender sees that we sleep. */
	vs_fence();
	sleep_on(w);
	atomic_store_explicit(&w->sleeping, 0, memory_order_seq_cst);
	vs_watchdog_awake(w->core);
	kicks_off(w);
}

static void *loop(void *arg)
{
	struct vs_worker *w = arg;
	const struct vs_config *config = &w->core->config;
	uint64_t spin_ns = config->poll_mode == VS_POLL_NEVER ? 0 : (uint64_t)config->spin_us * 1000;
	uint64_t last_work = 0;

	atomic_store(&w->stats.thread_id, (int64_t)syscall(SYS_gettid));
	while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		if (vs_worker_turn(w)) {
			last_work = w->now_ns;
			continue;
		}
		if (config->poll_mode == VS_POLL_ALWAYS && !vs_list_empty(&w->pollers)) {
			vs_pause();
			continue;
		}
		if (w->now_ns - last_work < spin_ns) {
			vs_count(&w->stats.spins, 1);
			vs_pause();
			continue;
		}
		go_to_sleep(w);
	}
	return NULL;
}

static void wake_ready(struct vs_worker *w, struct vs_source *s, uint32_t events)
{
	uint64_t value = 0;
	ssize_t r = read(s->fd, &value, sizeof(value));

	(void)events;
	/* One read may take what two events were for. */
	if (r < 0 || !(value % VS_WAKE_LOOK))
		w->look_events++;
	else
		vs_count(&w->stats.wakes, 1);
}

static void wake_removed(struct vs_worker *w, struct vs_source *s)
{
	(void)w;
	s->fd = -1; /* whoever stops us may still write to it: vs_worker_fini closes it */
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------------- */

int vs_worker_init(struct vs_worker *w, struct vs_core *c, uint32_t index)
{
	int fd;

	w->core = c;
	w->index = index;
	w->engine = c->engine;
	vs_list_init(&w->pollers);
	vs_list_init(&w->dirty);
	vs_list_init(&w->tasks);
	vs_list_init(&w->ibuffers.waiting);
	vs_timer_init(&w->watch, vs_media_watch);
	w->redo_tail = &w->redo_head;
	w->deferred_tail = &w->deferred_head;
	/* An epoch that no worker has seen yet: a worker that has not started holds nobody up. */
	atomic_store(&w->epoch_seen, atomic_load(&c->epoch));
	w->scratch = aligned_alloc(4096, VS_SCRATCH);
	if (!w->scratch)
		return -ENOMEM;
	fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0) {
		free(w->scratch);
		return -errno;
	}
	w->wake_fd = fd;
	w->wake_source = (struct vs_source){ .fd = fd, .events = EPOLLIN, .ready = wake_ready, .removed = wake_removed };
	return 0;
}

struct start { struct vs_worker *w; int err; _Atomic int ready; };

static void *entry(void *arg)
{
	struct start *s = arg;
	struct vs_worker *w = s->w;
	int err = w->engine->init(w);

	if (!err) {
		err = w->engine->source_add(w, &w->wake_source);
		if (err)
			w->engine->fini(w);
	}
	s->err = err;
	atomic_store(&s->ready, 1); /* s is gone from here */
	if (err)
		return NULL;
	loop(w);
	w->engine->source_del(w, &w->wake_source);
	while (w->wake_source.fd >= 0) {
		w->engine->reap(w);
		if (w->wake_source.fd >= 0)
			w->engine->wait(w, 1000000);
	}
	w->engine->fini(w);
	sem_post(&w->over);
	return NULL;
}

int vs_worker_start(struct vs_worker *w)
{
	struct start s = { .w = w };
	sigset_t all, old;
	char name[16];
	int err;

	/* Signals are the control thread's; a fault is handled where it happens. */
	sem_init(&w->over, 0, 0);
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigdelset(&all, VS_WATCHDOG_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&w->thread, NULL, entry, &s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return -err;
	while (!atomic_load(&s.ready))
		sched_yield();
	if (s.err) {
		pthread_join(w->thread, NULL);
		return s.err;
	}
	snprintf(name, sizeof(name), "vs-worker-%u", w->index);
	pthread_setname_np(w->thread, name);
	w->started = true;
	return 0;
}

void vs_worker_stop(struct vs_worker *w)
{
	if (!w->started)
		return;
	atomic_store(&w->stop, true);
	vs_worker_wake(w);
	while (sem_wait(&w->over))
		;
}

void vs_worker_join(struct vs_worker *w)
{
	if (!w->started)
		return;
	pthread_join(w->thread, NULL);
	sem_destroy(&w->over);
	w->started = false;
}

void vs_worker_fini(struct vs_worker *w)
{
	for (uint32_t i = 0; i < VS_IOV_CLASSES; i++)
		while (w->iov_free[i]) {
			struct vs_iovec_block *b = w->iov_free[i];

			w->iov_free[i] = b->next;
			free(b);
		}
	while (w->io_free) {
		struct vs_io *io = w->io_free;

		w->io_free = io->next;
		free(io);
	}
	free(w->timers);
	free(w->scratch);
	if (w->wake_fd >= 0)
		close(w->wake_fd);
}

/* ---- iovec blocks ------------------------------------------------------------------------------------------------------------------------------- */

static const uint32_t iov_class_size[VS_IOV_CLASSES] = { 32, 128, 512, 2048, 8192, 65536 };
/* Who takes blocks has a quota of its own (vqueue.c); this bounds the mistakes. */
enum { IOV_BYTES_MAX = 1 << 30 };

static int iov_class(uint32_t n)
{
	for (int i = 0; i < VS_IOV_CLASSES; i++)
		if (n <= iov_class_size[i])
			return i;
	return -1;
}

struct iovec *vs_iovec_get(struct vs_worker *w, uint32_t n)
{
	int class = iov_class(n);
	struct vs_iovec_block *b;
	size_t size;

	if (class < 0)
		return NULL;
	b = w->iov_free[class];
	if (b) {
		w->iov_free[class] = b->next;
		return (struct iovec *)b;
	}
	size = iov_class_size[class] * sizeof(struct iovec);
	if (w->iov_bytes + size > IOV_BYTES_MAX)
		return NULL;
	/* Only until the free lists have grown to what the load needs. */
	b = malloc(size);
	if (b)
		w->iov_bytes += size;
	return (struct iovec *)b;
}

void vs_iovec_put(struct vs_worker *w, struct iovec *iov, uint32_t n)
{
	int class = iov_class(n);
	struct vs_iovec_block *b = (struct vs_iovec_block *)iov;

	b->next = w->iov_free[class];
	w->iov_free[class] = b;
}

/* ---- statistics ------------------------------------------------------------------------------------------------------------------------------------ */

void vs_worker_stats(const vs_core *c, uint32_t worker, struct vs_worker_stats *out)
{
	const struct vs_worker *w;

	memset(out, 0, sizeof(*out));
	if (worker >= c->config.nworkers)
		return;
	w = &c->workers[worker];
	out->loops = vs_counted(&w->stats.loops);
	out->sleeps = vs_counted(&w->stats.sleeps);
	out->wakes = vs_counted(&w->stats.wakes);
	out->kicks = vs_counted(&w->stats.kicks);
	out->interrupts = vs_counted(&w->stats.interrupts);
	out->interrupts_suppressed = vs_counted(&w->stats.interrupts_suppressed);
	out->requests = vs_counted(&w->stats.requests);
	out->batches = vs_counted(&w->stats.batches);
	out->spins = vs_counted(&w->stats.spins);
	out->sleeping = atomic_load((_Atomic uint32_t *)&w->sleeping);
	out->thread_id = atomic_load((_Atomic int64_t *)&w->stats.thread_id);
}
