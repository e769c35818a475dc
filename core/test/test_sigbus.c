// SPDX-License-Identifier: Apache-2.0
/*
 * Files truncated under our mappings: zeroes and a flag for what is ours, while threads copy and slots come and go; the handler that was
 * there before for everything else. Cases that must die run in a child, which sets the handlers that it needs first.
 */
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "core.h"

enum { PAGE = 4096, HUGE = 2 << 20 };

struct file { int fd; uint8_t *base; uint64_t size; _Atomic uint64_t copies; };

static struct file file_mapped(uint64_t size)
{
	struct file f = { .fd = memfd_create("test", MFD_CLOEXEC), .size = size };

	CHECK(f.fd >= 0 && ftruncate(f.fd, (off_t)size) == 0);
	f.base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, f.fd, 0);
	CHECK(f.base != MAP_FAILED);
	return f;
}

static void file_close(struct file *f)
{
	munmap(f->base, f->size);
	close(f->fd);
}

static uint8_t peek(const uint8_t *p)
{
	return *(const volatile uint8_t *)p;
}

/* ---- in a child ------------------------------------------------------------------------------------------------------------------------- */

static int status_of(void (*run)(void))
{
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		run();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	return status;
}

static void touch_a_page_that_is_not_ours(void)
{
	struct file f = file_mapped(PAGE);

	signal(SIGBUS, SIG_DFL);
	CHECK_EQ(vs_sigbus_install(), 0);
	CHECK(ftruncate(f.fd, 0) == 0);
	peek(f.base);
}

static void touch_a_page_that_was_ours(void)
{
	struct file f = file_mapped(PAGE);
	_Atomic uint32_t broken = 0;
	int slot;

	signal(SIGBUS, SIG_DFL);
	slot = vs_sigbus_register(f.base, PAGE, PAGE, &broken);
	CHECK(slot >= 0);
	vs_sigbus_unregister(slot);
	CHECK(ftruncate(f.fd, 0) == 0);
	peek(f.base);
}

static void be_sent_sigbus(void)
{
	signal(SIGBUS, SIG_DFL);
	CHECK_EQ(vs_sigbus_install(), 0);
	kill(getpid(), SIGBUS);
}

static void be_sent_sigbus_ignored(void)
{
	signal(SIGBUS, SIG_IGN);
	CHECK_EQ(vs_sigbus_install(), 0);
	kill(getpid(), SIGBUS);
}

static sigjmp_buf back;
static void *seen_addr;

static void earlier_action(int signo, siginfo_t *info, void *context)
{
	(void)signo;
	(void)context;
	seen_addr = info->si_addr;
	siglongjmp(back, 1);
}

static void earlier_handler(int signo)
{
	siglongjmp(back, signo);
}

static void chain_to_an_action(void)
{
	struct sigaction action = { .sa_sigaction = earlier_action, .sa_flags = SA_SIGINFO };
	struct file f = file_mapped(PAGE);

	CHECK(sigaction(SIGBUS, &action, NULL) == 0);
	CHECK_EQ(vs_sigbus_install(), 0);
	CHECK(ftruncate(f.fd, 0) == 0);
	if (!sigsetjmp(back, 1)) {
		peek(f.base + 5);
		_exit(3);
	}
	CHECK(seen_addr == f.base + 5);
}

static void chain_to_a_handler(void)
{
	struct file f = file_mapped(PAGE);
	int got;

	signal(SIGBUS, earlier_handler);
	CHECK_EQ(vs_sigbus_install(), 0);
	CHECK(ftruncate(f.fd, 0) == 0);
	got = sigsetjmp(back, 1);
	if (!got) {
		peek(f.base);
		_exit(3);
	}
	CHECK_EQ(got, SIGBUS);
}

static void what_is_not_ours_goes_to_who_was_there(void)
{
	int status = status_of(touch_a_page_that_is_not_ours);

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	status = status_of(touch_a_page_that_was_ours);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	status = status_of(be_sent_sigbus);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	CHECK_EQ(status_of(be_sent_sigbus_ignored), 0);
	CHECK_EQ(status_of(chain_to_an_action), 0);
	CHECK_EQ(status_of(chain_to_a_handler), 0);
}

/* ---- here --------------------------------------------------------------------------------------------------------------------------------- */

static void a_lost_page_reads_as_zeroes(void)
{
	struct file a = file_mapped(4 * PAGE), b = file_mapped(PAGE);
	_Atomic uint32_t a_broken = 0, b_broken = 0;
	int a_slot = vs_sigbus_register(a.base, a.size, PAGE, &a_broken), b_slot = vs_sigbus_register(b.base, b.size, PAGE, &b_broken);
	uint32_t count = vs_sigbus_count();

	CHECK(a_slot >= 0 && b_slot >= 0 && a_slot != b_slot);
	memset(a.base, 0x11, a.size);
	memset(b.base, 0x22, b.size);
	CHECK(ftruncate(a.fd, 2 * PAGE) == 0);
	CHECK_EQ(peek(a.base + 2 * PAGE - 1), 0x11);
	CHECK_EQ(a_broken, 0);
	/* The kernel's own copies do not come to us: EFAULT, and no flag. */
	CHECK(pwrite(b.fd, a.base + 3 * PAGE, 1, 0) == -1 && errno == EFAULT);
	CHECK_EQ(a_broken, 0);
	CHECK_EQ(vs_sigbus_count(), count);
	errno = 1234;
	CHECK_EQ(peek(a.base + 3 * PAGE + 7), 0);
	CHECK_EQ(errno, 1234);
	CHECK_EQ(a_broken, 1);
	CHECK_EQ(vs_sigbus_count(), count + 1);
	*(volatile uint8_t *)(a.base + 2 * PAGE) = 9; /* stores, too */
	CHECK_EQ(peek(a.base + 2 * PAGE), 9);
	CHECK_EQ(peek(a.base), 0x11);
	CHECK_EQ(b_broken, 0);
	CHECK_EQ(peek(b.base), 0x22);
	vs_sigbus_unregister(a_slot);
	vs_sigbus_unregister(b_slot);
	file_close(&a);
	file_close(&b);
}

/* hugetlbfs loses whole huge pages: the unit given is the unit replaced. (Ordinary memory here, aligned like it.) */
static void a_huge_page_is_replaced_whole(void)
{
	struct file f = file_mapped(4 * HUGE);
	uint8_t *huge = (uint8_t *)(((uintptr_t)f.base + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
	_Atomic uint32_t broken = 0;
	int slot = vs_sigbus_register(huge, 2 * HUGE, HUGE, &broken);

	CHECK(slot >= 0);
	memset(f.base, 0x33, f.size);
	CHECK(ftruncate(f.fd, (huge - f.base) + HUGE + PAGE) == 0);
	CHECK_EQ(peek(huge + HUGE + PAGE), 0);
	CHECK_EQ(peek(huge + HUGE), 0);
	CHECK_EQ(peek(huge + HUGE - 1), 0x33);
	CHECK_EQ(broken, 1);
	vs_sigbus_unregister(slot);
	file_close(&f);
}

static void bad_registrations_are_refused(void)
{
	_Atomic uint32_t broken = 0;
	uint8_t *base = (uint8_t *)(16ull * PAGE);
	static int slots[5000];
	int n = 0;

	CHECK_EQ(vs_sigbus_register(base, 0, PAGE, &broken), -EINVAL);
	CHECK_EQ(vs_sigbus_register(base, PAGE, 0, &broken), -EINVAL);
	CHECK_EQ(vs_sigbus_register(base, PAGE, 3 * PAGE, &broken), -EINVAL);
	CHECK_EQ(vs_sigbus_register(base + 1, PAGE, PAGE, &broken), -EINVAL);
	vs_sigbus_unregister(-1);
	vs_sigbus_unregister(100000);
	while (n < 5000 && (slots[n] = vs_sigbus_register(base, PAGE, PAGE, &broken)) >= 0)
		n++;
	CHECK_EQ(n, 4096);
	CHECK_EQ(slots[n], -ENOSPC);
	vs_sigbus_unregister(slots[1000]);
	CHECK_EQ(vs_sigbus_register(base, PAGE, PAGE, &broken), slots[1000]);
	for (int i = 0; i < n; i++)
		vs_sigbus_unregister(slots[i]);
}

/* A page here and a page there: the first few one by one, then the whole region becomes one mapping, long before the system's limit. */
static void scattered_losses_cost_few_mappings(void)
{
	enum { PAGES = 400000, KEPT = 100 };
	struct file f = file_mapped((uint64_t)PAGES * PAGE);
	_Atomic uint32_t broken = 0;
	int slot = vs_sigbus_register(f.base, f.size, PAGE, &broken);

	CHECK(slot >= 0);
	memset(f.base, 0x44, KEPT * PAGE);
	CHECK(ftruncate(f.fd, KEPT * PAGE) == 0);
	CHECK_EQ(peek(f.base + (uint64_t)PAGE * (PAGES - 1)), 0);
	CHECK_EQ(peek(f.base), 0x44);
	for (uint64_t i = KEPT; i < PAGES; i += 2)
		CHECK_EQ(peek(f.base + i * PAGE), 0);
	CHECK_EQ(broken, 1);
	CHECK_EQ(peek(f.base), 0);
	vs_sigbus_unregister(slot);
	file_close(&f);
}

/* ---- under load ----------------------------------------------------------------------------------------------------------------------------- */

static _Atomic bool stop;

/* memcpy that is not left out, though nobody reads the copy; and the truncation is no race that ThreadSanitizer could see. */
static __attribute__((noinline)) void copy_once(uint8_t *to, const uint8_t *from, size_t n)
{
	memcpy(to, from, n);
	__asm__ volatile("" : : "r"(to) : "memory");
}

static void copied_again(struct file *f, uint64_t times)
{
	uint64_t seen = atomic_load(&f->copies);

	while (atomic_load(&f->copies) < seen + times)
		sched_yield();
}

/* Copies as a memory store does; without a lock, as there. */
static void *copy_all_the_time(void *arg)
{
	struct file *f = arg;
	static _Thread_local uint8_t buffer[8 * PAGE];

	while (!atomic_load(&stop)) {
		for (uint64_t at = 0; at < f->size; at += sizeof(buffer))
			copy_once(buffer, f->base + at, sizeof(buffer));
		atomic_fetch_add(&f->copies, 1);
	}
	return NULL;
}

static void *register_all_the_time(void *arg)
{
	static uint8_t place[16 * PAGE];
	uintptr_t base = ((uintptr_t)place + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
	_Atomic uint32_t *broken = arg;
	int slots[40];

	while (!atomic_load(&stop)) {
		for (int i = 0; i < 40; i++)
			CHECK((slots[i] = vs_sigbus_register((void *)(base + (uintptr_t)(i % 8) * PAGE), PAGE, PAGE, broken)) >= 0);
		for (int i = 0; i < 40; i++)
			vs_sigbus_unregister(slots[i]);
	}
	return NULL;
}

static void truncated_while_threads_copy(void)
{
	for (int round = 0; round < 20; round++) {
		struct file mine = file_mapped(64 * PAGE), other = file_mapped(64 * PAGE);
		_Atomic uint32_t broken = 0, other_broken = 0, never = 0;
		int other_slot = vs_sigbus_register(other.base, other.size, PAGE, &other_broken);
		int slot = vs_sigbus_register(mine.base, mine.size, PAGE, &broken);
		pthread_t threads[4];

		CHECK(slot >= 0 && other_slot >= 0);
		memset(mine.base, 1, mine.size);
		memset(other.base, 2, other.size);
		atomic_store(&stop, false);
		CHECK(pthread_create(&threads[0], NULL, copy_all_the_time, &mine) == 0);
		CHECK(pthread_create(&threads[1], NULL, copy_all_the_time, &mine) == 0);
		CHECK(pthread_create(&threads[2], NULL, copy_all_the_time, &other) == 0);
		CHECK(pthread_create(&threads[3], NULL, register_all_the_time, &never) == 0);
		copied_again(&mine, 10);
		CHECK(ftruncate(mine.fd, (off_t)(round % 4) * 16 * PAGE) == 0);
		copied_again(&mine, 10);
		copied_again(&other, 2);
		atomic_store(&stop, true);
		for (int i = 0; i < 4; i++)
			CHECK(pthread_join(threads[i], NULL) == 0);
		CHECK_EQ(broken, 1);
		CHECK_EQ(other_broken, 0);
		CHECK_EQ(never, 0);
		CHECK_EQ(peek(mine.base + mine.size - 1), 0);
		CHECK_EQ(peek(other.base + other.size - 1), 2);
		vs_sigbus_unregister(slot);
		vs_sigbus_unregister(other_slot);
		file_close(&mine);
		file_close(&other);
	}
}

/* The whole way: a map of two regions of two files; one file is cut. */
static void a_map_says_that_it_is_broken(void)
{
	struct vs_config config = { .nworkers = 1, .io_threads = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER };
	struct file a = file_mapped(2 * PAGE), b = file_mapped(2 * PAGE);
	struct vs_region r[2] = { { .guest_addr = 0, .user_addr = 0, .size = 2 * PAGE, .fd = a.fd },
				  { .guest_addr = 0x10000, .user_addr = 0x10000, .size = 2 * PAGE, .fd = b.fd } };
	vs_memmap *map, *anew;
	vs_core *core;

	CHECK_EQ(vs_core_create(&config, &core), 0);
	CHECK_EQ(vs_memmap_create(core, r, 2, NULL, 0, &map), 0);
	CHECK(ftruncate(b.fd, PAGE) == 0);
	CHECK_EQ(vs_memmap_broken(map), 0);
	CHECK_EQ(peek(vs_memmap_guest(map, 0x10000 + PAGE, 1, NULL)), 0);
	CHECK_EQ(vs_memmap_broken(map), 1);
	/* As long as the file is short, a new map is refused; when it has grown again, one works. */
	CHECK_EQ(vs_memmap_create(core, r, 2, map, 0, &anew), -EINVAL);
	CHECK(ftruncate(b.fd, 2 * PAGE) == 0);
	CHECK_EQ(vs_memmap_create(core, r, 2, map, 0, &anew), 0);
	*(volatile uint8_t *)vs_memmap_guest(anew, 0x10000 + PAGE, 1, NULL) = 5;
	CHECK_EQ(peek(b.base + PAGE), 5);
	CHECK_EQ(vs_memmap_broken(anew), 0);
	vs_memmap_destroy(map);
	vs_memmap_destroy(anew);
	vs_core_destroy(core);
	file_close(&a);
	file_close(&b);
}

int main(void)
{
	what_is_not_ours_goes_to_who_was_there(); /* first: the children install for themselves */
	a_lost_page_reads_as_zeroes();
	a_huge_page_is_replaced_whole();
	bad_registrations_are_refused();
	scattered_losses_cost_few_mappings();
	truncated_while_threads_copy();
	a_map_says_that_it_is_broken();
	return 0;
}
