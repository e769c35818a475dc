// SPDX-License-Identifier: Apache-2.0
/*
 * Frees a worker that hangs in a system call on a descriptor that a peer shares with us. Kick and call eventfds are set non-blocking, but the
 * flag belongs to the open file, and who handed it over can take it away again while we read or write. This thread looks once a second whether an
 * awake worker still turns, and interrupts one that does not: the call ends with EINTR, vqueue.c breaks that queue, and signals the device with
 * care from then on (bell.c). While all workers sleep this thread sleeps too.
 */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core.h"
#include "worker.h"

enum { LOOK_EVERY_MS = 1000 };

struct vs_watchdog { struct vs_core *core; pthread_t thread; int fd; _Atomic bool stop; _Atomic uint32_t asleep; uint64_t *loops; };

static void nothing(int signo) { (void)signo; /* only to end a system call: installed without SA_RESTART */ }

static bool all_sleep(const struct vs_core *c)
{
	for (uint32_t i = 0; i < c->config.nworkers; i++)
		if (!atomic_load(&c->workers[i].sleeping))
			return false;
	return true;
}

static void look(struct vs_watchdog *d)
{
	for (uint32_t i = 0; i < d->core->config.nworkers; i++) {
		struct vs_worker *w = &d->core->workers[i];
		uint64_t loops = vs_counted(&w->stats.loops);

		if (loops == d->loops[i] && w->started && !atomic_load(&w->sleeping))
			pthread_kill(w->thread, VS_WATCHDOG_SIGNAL);
		d->loops[i] = loops;
	}
}

static void *watch(void *arg)
{
	struct vs_watchdog *d = arg;
	struct pollfd p = { .fd = d->fd, .events = POLLIN };
	uint64_t ignored;

	while (!atomic_load(&d->stop)) {
		if (all_sleep(d->core)) {
			atomic_store(&d->asleep, 1);
			vs_fence(); /* pairs with vs_watchdog_awake: it sees that we sleep, or we see that a worker does not */
			if (all_sleep(d->core) && !atomic_load(&d->stop))
				poll(&p, 1, -1);
			atomic_store(&d->asleep, 0);
		} else {
			poll(&p, 1, LOOK_EVERY_MS);
			if (!(p.revents & POLLIN))
				look(d);
		}
		if (p.revents & POLLIN) {
			ssize_t r = read(d->fd, &ignored, sizeof(ignored));

			(void)r;
		}
	}
	return NULL;
}

static void wake(struct vs_watchdog *d)
{
	uint64_t one = 1;
	ssize_t r = write(d->fd, &one, sizeof(one));

	(void)r;
}

void vs_watchdog_awake(struct vs_core *c)
{
	struct vs_watchdog *d = atomic_load_explicit(&c->watchdog, memory_order_acquire);

	if (d && vs_unlikely(atomic_load_explicit(&d->asleep, memory_order_seq_cst)) && atomic_exchange(&d->asleep, 0))
		wake(d);
}

int vs_watchdog_start(struct vs_core *c)
{
	struct sigaction action = { .sa_handler = nothing };
	struct vs_watchdog *d = calloc(1, sizeof(*d));
	sigset_t all, old;
	int err;

	if (!d)
		return -ENOMEM;
	d->core = c;
	d->loops = calloc(c->config.nworkers, sizeof(*d->loops));
	d->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!d->loops || d->fd < 0 || sigaction(VS_WATCHDOG_SIGNAL, &action, NULL)) {
		err = d->loops ? -errno : -ENOMEM;
		goto free_dog;
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&d->thread, NULL, watch, d);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		goto free_dog;
	pthread_setname_np(d->thread, "vs-watchdog");
	atomic_store_explicit(&c->watchdog, d, memory_order_release);
	return 0;
free_dog:
	if (d->fd >= 0)
		close(d->fd);
	free(d->loops);
	free(d);
	return err;
}

/* Workers may still wake it: what is left of it stays until they have ended. */
void vs_watchdog_stop(struct vs_core *c)
{
	struct vs_watchdog *d = atomic_load(&c->watchdog);

	if (!d)
		return;
	atomic_store(&d->stop, true);
	wake(d);
	pthread_join(d->thread, NULL);
}

void vs_watchdog_free(struct vs_core *c)
{
	struct vs_watchdog *d = atomic_exchange(&c->watchdog, NULL);

	if (!d)
		return;
	close(d->fd);
	free(d->loops);
	free(d);
}
