// SPDX-License-Identifier: Apache-2.0
/*
 * Both sides of a ring for long, split and packed alike: through the wrap of indices and counters at all kinds of sizes, two threads that sleep
 * and wake each other, and the race between asking to be notified and publishing.
 */
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vring_rig.h"

/* ---- both sides, for long --------------------------------------------------------------------------------------------------------------------- */

struct pending { uint32_t head, span, written; uint8_t mark; };

/* Random batches on both sides, completions out of order, through the wrap of both indices. A side that sleeps must be woken. */
static void both_sides(uint32_t size, uint32_t features, uint32_t requests)
{
	struct pending *held = calloc(size, sizeof(*held));
	uint8_t *marks = calloc(size, 1);
	uint32_t *order = calloc(size, sizeof(*order)); /* heads as they were sent, by number modulo size */
	uint32_t nheld = 0, sent = 0, back = 0;
	bool device_sleeps = false, driver_sleeps = false;
	struct bench b;

	CHECK(held && marks && order);
	bench_open_at(&b, size, features, 3, (uint16_t)(65536 - requests / 2));
	if (features & VS_RING_IN_ORDER)
		CHECK((b.r.order = calloc(size, sizeof(*b.r.order))) != NULL);
	while (back < requests) {
		uint32_t batch = bench_rnd(2 * size) + 1;
		int n;

		/* The driver sends. */
		while (batch-- && sent < requests) {
			uint32_t at = bench_rnd(DATA - 256);
			struct vs_driver_buffer bufs[4] = { { b.data + at, 1 }, { b.data + at + 1, bench_rnd(100) }, { b.data + at + 128, 1 + bench_rnd(50) }, { b.data + at + 200, bench_rnd(40) } };
			bool table = (features & INDIRECT) && bench_rnd(2);
			int head = vs_driver_add(&b.d, bufs, 2, 2, table);

			if (head < 0) {
				CHECK_EQ(head, size < 4 && !table ? -EINVAL : -ENOSPC);
				if (head == -ENOSPC)
					break;
				head = vs_driver_add(&b.d, &bufs[2], 0, 1, false); /* one descriptor is all that it has */
				if (head < 0)
					break;
			} else if (size < 4) {
				CHECK(table);
			}
			marks[head] = (uint8_t)bench_rnd(256);
			order[sent++ % size] = (uint32_t)head;
		}
		if (vs_driver_publish(&b.d))
			device_sleeps = false;
		CHECK(!(device_sleeps && b.d.published != b.r.last_avail)); /* a kick was lost */
		/* The device takes some. */
		n = device_sleeps ? 0 : vs_vring_available(&b.r);
		CHECK(n >= 0 && n <= (int)size);
		for (uint32_t most = bench_rnd(size) + 1; n > 0 && most; n--, most--) {
			b.c = (struct vs_chain){ .iov = b.inline_iov, .capacity = INLINE };
			CHECK_EQ(vs_vring_pop(&b.r, b.w, &b.c), 0);
			held[nheld++] = (struct pending){ b.c.head, b.c.span, (uint32_t)b.c.in_length, marks[b.c.head] };
			if (bench_rnd(8) == 0) {
				vs_vring_unpop(&b.r);
				nheld--;
			}
			bench_give_iov_back(&b);
		}
		if (!device_sleeps && bench_rnd(2))
			vs_vring_kicks_off(&b.r);
		else if (!device_sleeps && vs_vring_available(&b.r) == 0)
			device_sleeps = !vs_vring_kicks_on(&b.r);
		/* It gives some back, in any order. */
		for (uint32_t give = bench_rnd(size + 1); give && nheld; give--) {
			uint32_t i = bench_rnd(nheld);

			vs_vring_push(&b.r, held[i].head, held[i].span, held[i].written << 8 | held[i].mark);
			held[i] = held[--nheld];
		}
		if (vs_vring_publish(&b.r))
			driver_sleeps = false;
		/* The driver looks. */
		if (!driver_sleeps) {
			uint32_t head, written;

			while (vs_driver_collect(&b.d, &head, &written) == 1) {
				CHECK_EQ(written & 0xff, marks[head]);
				CHECK(written >> 8);
				if (features & VS_RING_IN_ORDER)
					CHECK_EQ(head, order[back % size]);
				back++;
			}
			if (bench_rnd(2))
				vs_driver_interrupts_off(&b.d);
			else
				driver_sleeps = !vs_driver_interrupts_on(&b.d);
		} else {
			CHECK(!vs_driver_pending(&b.d)); /* an interrupt was lost */
		}
	}
	CHECK_EQ(back, requests);
	if (!(features & PACKED))
		CHECK_EQ(b.d.last_used, (uint16_t)(requests - requests / 2));
	CHECK_EQ(vs_driver_in_flight(&b.d), 0);
	CHECK_EQ(vs_vring_base(&b.r), features & PACKED ? b.d.published * 0x10001u : b.d.published);
	CHECK_EQ(b.d.nfree, size);
	free(b.r.order);
	bench_close(&b);
	free(order);
	free(held);
	free(marks);
}

/* ---- two threads ---------------------------------------------------------------------------------------------------------------------------- */

enum { THREADED = 60000 };

struct pair { struct bench b; int kick, call; };

static void sleep_on(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t n;

	CHECK_EQ(poll(&p, 1, 20000), 1); /* else a notification was lost */
	CHECK(read(fd, &n, sizeof(n)) == sizeof(n));
}

static void notify(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void *device_thread(void *arg)
{
	struct pair *p = arg;
	struct bench *b = &p->b;

	for (uint32_t done = 0; done < THREADED;) {
		int n = vs_vring_available(&b->r);

		CHECK(n >= 0);
		if (!n) {
			if (!vs_vring_kicks_on(&b->r))
				sleep_on(p->kick);
			vs_vring_kicks_off(&b->r);
			continue;
		}
		for (; n; n--, done++) {
			uint8_t in[8];

			CHECK_EQ(bench_take(b), 0);
			/* The answer is the request, each byte plus one: descriptors and data were visible when idx, or the flags, were. */
			CHECK_EQ(vs_iov_to_buffer(b->c.iov, (int)b->c.nout, 0, in, 8), 8);
			for (int i = 0; i < 8; i++)
				in[i]++;
			CHECK_EQ(vs_iov_from_buffer(b->c.iov + b->c.nout, (int)b->c.nin, 0, in, 8), 8);
			vs_vring_push(&b->r, b->c.head, b->c.span, 8);
		}
		if (vs_vring_publish(&b->r))
			notify(p->call);
	}
	return NULL;
}

static void threads_wake_each_other(uint32_t size, uint32_t features)
{
	struct pair p = { .kick = eventfd(0, EFD_CLOEXEC), .call = eventfd(0, EFD_CLOEXEC) };
	uint32_t sent = 0, back = 0;
	pthread_t device;

	CHECK(p.kick >= 0 && p.call >= 0);
	bench_open(&p.b, size, features);
	CHECK(pthread_create(&device, NULL, device_thread, &p) == 0);
	while (back < THREADED) {
		uint32_t head, written, batch = bench_rnd(size) + 1;
		uint8_t want[8];

		while (batch-- && sent < THREADED) {
			uint32_t slot = p.b.d.free_head;
			uint64_t at = p.b.data + 32 * slot;
			struct vs_driver_buffer bufs[2] = { { at, 8 }, { at + 16, 8 } };

			if (p.b.d.nfree < 2)
				break;
			memset(vs_guest_ptr(&p.b.g, at), (int)(slot * 3 + 1), 8);
			CHECK_EQ(vs_driver_add(&p.b.d, bufs, 1, 1, features & INDIRECT), slot);
			sent++;
		}
		if (vs_driver_publish(&p.b.d))
			notify(p.kick);
		while (vs_driver_collect(&p.b.d, &head, &written) == 1) {
			memset(want, (int)(head * 3 + 2), 8);
			CHECK(written == 8 && memcmp(vs_guest_ptr(&p.b.g, p.b.data + 32 * head + 16), want, 8) == 0);
			back++;
		}
		if (back < THREADED && (p.b.d.nfree < 2 || sent == THREADED)) {
			if (!vs_driver_interrupts_on(&p.b.d))
				sleep_on(p.call);
			vs_driver_interrupts_off(&p.b.d);
		}
	}
	CHECK(pthread_join(device, NULL) == 0);
	bench_close(&p.b);
	close(p.kick);
	close(p.call);
}

/* ---- who stores and then loads ----------------------------------------------------------------------------------------------------------------- */

/* One side asks to be notified at the very moment the other publishes: each stores, then loads what the other stored. Without the fence
 * between, both loads may come first, and nobody wakes anybody. Rounds are started together, a few cycles apart. */
enum { ROUNDS = 30000 };

struct race {
	struct bench b;
	_Atomic uint32_t go, answered, done;
	bool device_says;
};

static void wait_for(_Atomic uint32_t *word, uint32_t value)
{
	for (uint32_t spins = 0; atomic_load_explicit(word, memory_order_acquire) != value; spins++) {
		if (spins > 2000)
			sched_yield();
		else
			vs_pause();
	}
}

static void dawdle(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		__asm__ volatile("" : : : "memory");
}

/* Odd rounds: the driver publishes a request, we ask for kicks. Even rounds: we publish the answer, the driver asks for interrupts. */
static void *racing_device(void *arg)
{
	struct race *x = arg;

	for (uint32_t round = 1; round <= ROUNDS; round++) {
		wait_for(&x->go, round);
		dawdle(round * 7 % 31);
		x->device_says = round & 1 ? vs_vring_kicks_on(&x->b.r) : vs_vring_publish(&x->b.r);
		if (round & 1) {
			wait_for(&x->answered, round); /* or kicks_off might come before its look */
			CHECK_EQ(bench_take(&x->b), 0);
			vs_vring_push(&x->b.r, x->b.c.head, x->b.c.span, 1);
			vs_vring_kicks_off(&x->b.r);
		}
		atomic_store_explicit(&x->done, round, memory_order_release);
	}
	return NULL;
}

static void neither_side_misses_the_other(uint32_t features)
{
	struct race x = { .go = 0 };
	pthread_t device;
	uint32_t head, written;

	bench_open(&x.b, 4, features);
	CHECK(pthread_create(&device, NULL, racing_device, &x) == 0);
	for (uint32_t round = 1; round <= ROUNDS; round++) {
		struct vs_driver_buffer buf = { x.b.data, 8 };
		bool driver_says;

		if (round & 1)
			CHECK(vs_driver_add(&x.b.d, &buf, 1, 0, false) >= 0);
		atomic_store_explicit(&x.go, round, memory_order_release);
		dawdle(round * 11 % 397); /* the device hears of the round later than we do */
		driver_says = round & 1 ? vs_driver_publish(&x.b.d) : vs_driver_interrupts_on(&x.b.d);
		atomic_store_explicit(&x.answered, round, memory_order_release);
		wait_for(&x.done, round);
		CHECK(driver_says || x.device_says);
		if (!(round & 1)) {
			CHECK_EQ(vs_driver_collect(&x.b.d, &head, &written), 1);
			vs_driver_interrupts_off(&x.b.d);
		}
	}
	CHECK(pthread_join(device, NULL) == 0);
	bench_close(&x.b);
}

int main(void)
{
	static const uint32_t sizes[] = { 1, 2, 4, 64, 256, 32768 }, packed_sizes[] = { 1, 2, 3, 7, 100, 256, 32767, 32768 };

	for (uint32_t features = 0; features < 4; features++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
			both_sides(sizes[i], features, 140000);
		for (size_t i = 0; i < sizeof(packed_sizes) / sizeof(*packed_sizes); i++)
			both_sides(packed_sizes[i], features | PACKED, 140000);
		both_sides(64, features | VS_RING_IN_ORDER, 140000);
		both_sides(100, features | PACKED | VS_RING_IN_ORDER, 140000);
		threads_wake_each_other(features & 1 ? 16 : 256, features);
		threads_wake_each_other(features & 1 ? 13 : 250, features | PACKED);
	}
	neither_side_misses_the_other(0);
	neither_side_misses_the_other(EVENT);
	neither_side_misses_the_other(PACKED);
	neither_side_misses_the_other(PACKED | EVENT);
	return 0;
}
