/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Survives the truncation of a file that we have mapped: guest memory and images belong to others. A touched page that is gone is replaced
 * by zeroes, the owner's flag is set, and the thread goes on. The handler takes no lock and allocates nothing: it reads a fixed table, whose
 * slots carry a sequence number. What it does not do: faults inside the kernel, which end as EFAULT there, and telling anybody: owners
 * look at their flag.
 *
 * It holds for every thread that has not blocked SIGBUS; a thread that has is killed by the kernel. A handler that somebody installs after
 * ours is in charge instead.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

enum { SLOTS = 4096 };
/* Each page that is replaced by itself makes up to two mappings more, and a process may have 65530 (vm.max_map_count): at that limit mmap(2)
 * fails whatever it replaces. So a region that lost this many becomes one mapping of zeroes. It is broken anyway. */
enum { PAGES_MAX = 8 };

/* sequence: bit 0 = in use. It moves on with each change, so that a reader that met a change reads again. Fields are stored with release and
 * loaded with acquire: who sees a new field sees that the sequence had moved before. */
struct slot {
	_Atomic uint32_t claimed;
	_Atomic uint32_t sequence;
	_Atomic uint32_t replaced; /* pages, since it was registered */
	_Atomic uintptr_t base;
	_Atomic uint64_t length, page;
	_Atomic(_Atomic uint32_t *) broken;
};

static struct slot slots[SLOTS];
static _Atomic int slots_end; /* slots beyond were never used */
static struct sigaction previous;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_err;

static _Atomic uint32_t faults; /* a mapping somewhere became broken */
struct found { uintptr_t base; uint64_t length, page; _Atomic uint32_t *broken; };

static bool slot_find(struct slot *s, uintptr_t addr, struct found *f)
{
	uint32_t before;

	do {
		before = atomic_load_explicit(&s->sequence, memory_order_acquire);
		if (!(before & 1))
			return false;
		f->base = atomic_load_explicit(&s->base, memory_order_acquire);
		f->length = atomic_load_explicit(&s->length, memory_order_acquire);
		f->page = atomic_load_explicit(&s->page, memory_order_acquire);
		f->broken = atomic_load_explicit(&s->broken, memory_order_acquire);
	} while (atomic_load_explicit(&s->sequence, memory_order_relaxed) != before);
	return addr - f->base < f->length;
}

/* The system call itself: mmap(2) is not on the list of async-signal-safe functions, and sanitizers wrap it. */
static bool map_zeroes(uintptr_t at, uint64_t length)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;

	return syscall(SYS_mmap, at, length, PROT_READ | PROT_WRITE, flags, -1, 0L) == (long)at;
}

static bool repair(uintptr_t addr)
{
	int end = atomic_load_explicit(&slots_end, memory_order_acquire);

	for (int i = 0; i < end; i++) {
		struct found f;
		uintptr_t page;
		bool done;

		if (!slot_find(&slots[i], addr, &f))
			continue;
		page = addr & ~(uintptr_t)(f.page - 1);
		if (atomic_fetch_add_explicit(&slots[i].replaced, 1, memory_order_relaxed) < PAGES_MAX)
			done = map_zeroes(page, f.page) || map_zeroes(f.base, f.length);
		else
			done = map_zeroes(f.base, f.length) || map_zeroes(page, f.page);
		if (!done)
			return false;
		atomic_store_explicit(f.broken, 1, memory_order_release);
		atomic_fetch_add(&faults, 1);
		return true;
	}
	return false;
}

uint32_t vs_sigbus_count(void)
{
	return atomic_load_explicit(&faults, memory_order_acquire);
}

static void chain(int signo, siginfo_t *info, void *context)
{
	bool sent = info->si_code <= 0; /* by kill(2): no instruction will fault again */

	if (previous.sa_flags & SA_SIGINFO) {
		previous.sa_sigaction(signo, info, context);
	} else if (previous.sa_handler == SIG_IGN && sent) {
		return;
	} else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
		/* The default action follows: the instruction faults again on return, or the signal waits until we are out of the handler. */
		signal(signo, SIG_DFL);
		if (sent)
			raise(signo);
	} else {
		previous.sa_handler(signo);
	}
}

static void handler(int signo, siginfo_t *info, void *context)
{
	int saved_errno = errno;
	/* An access that is not aligned (BUS_ADRALN) would fault on fresh zeroes too. */
	bool memory = info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR || info->si_code == BUS_MCEERR_AR;

	if (!memory || !repair((uintptr_t)info->si_addr))
		chain(signo, info, context);
	errno = saved_errno;
}

static void install(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK };

	sigemptyset(&action.sa_mask);
	/* In two steps: `previous` is complete before the handler can run. */
	if (sigaction(SIGBUS, NULL, &previous) || sigaction(SIGBUS, &action, NULL))
		install_err = -errno;
}

int vs_sigbus_install(void)
{
	pthread_once(&once, install);
	return install_err;
}

int vs_sigbus_register(void *base, uint64_t length, uint64_t page, _Atomic uint32_t *broken)
{
	int err = vs_sigbus_install();

	if (err)
		return err;
	if (!length || !page || (page & (page - 1)) || ((uintptr_t)base & (page - 1)))
		return -EINVAL;
	for (int i = 0; i < SLOTS; i++) {
		struct slot *s = &slots[i];
		uint32_t free_slot = 0;
		int end = atomic_load_explicit(&slots_end, memory_order_relaxed);

		if (!atomic_compare_exchange_strong_explicit(&s->claimed, &free_slot, 1, memory_order_acquire, memory_order_relaxed))
			continue;
		atomic_store_explicit(&s->base, (uintptr_t)base, memory_order_release);
		atomic_store_explicit(&s->length, length, memory_order_release);
		atomic_store_explicit(&s->page, page, memory_order_release);
		atomic_store_explicit(&s->broken, broken, memory_order_release);
		atomic_store_explicit(&s->replaced, 0, memory_order_release);
		atomic_fetch_add_explicit(&s->sequence, 1, memory_order_release);
		while (end <= i && !atomic_compare_exchange_weak(&slots_end, &end, i + 1))
			;
		return i;
	}
	return -ENOSPC;
}

void vs_sigbus_unregister(int slot)
{
	if (slot < 0 || slot >= SLOTS)
		return;
	atomic_fetch_add_explicit(&slots[slot].sequence, 1, memory_order_acq_rel);
	atomic_store_explicit(&slots[slot].claimed, 0, memory_order_release);
}
