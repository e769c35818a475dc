// SPDX-License-Identifier: Apache-2.0
/*
 * Memory order of a ring of either layout, between a device and a driver on two CPUs. Two things that test_vring.c sees only by luck: release and acquire
 * around the indices (split) or flags (packed), which ThreadSanitizer judges (on x86 the hardware does it anyway), and the two fences between a store and a load, which
 * only a race that is run very often shows. On one CPU it passes without showing anything.
 */
#include <sched.h>

#include "check.h"
#include "driver.h"

enum { SIZE = 8, INLINE = 4, BYTES = 16, CHAINS = 20000, BALLAST = 32 };
/* A race that is on shows a lost fence about once in a hundred; where others want both CPUs most rounds are none. */
enum { ROUNDS = 200000, SECONDS_MAX = 10 };

struct sides {
	vs_core *core;
	struct vs_worker *w; /* only its iovec lists are used */
	struct vs_guest g;
	vs_memmap *map;
	uint64_t data;
	/* What one side writes lies in no line that the other one reads beside the rings: it would be waited for. */
	_Alignas(VS_CACHE_LINE) struct vs_driver d;
	_Alignas(VS_CACHE_LINE) struct vs_vring r;
	bool device_says;
	_Alignas(VS_CACHE_LINE) _Atomic uint32_t go, answered, stop;
	_Alignas(VS_CACHE_LINE) _Atomic uint32_t done;
	struct { _Alignas(VS_CACHE_LINE) volatile uint32_t word; } ballast[BALLAST];
};

static void open_sides(struct sides *s, uint32_t features)
{
	struct vs_config config = { .nworkers = 1, .io_threads = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER };
	struct vs_queue_params p;

	memset(s, 0, sizeof(*s));
	s->w = aligned_alloc(VS_CACHE_LINE, sizeof(*s->w));
	CHECK(s->w);
	memset(s->w, 0, sizeof(*s->w));
	CHECK_EQ(vs_core_create(&config, &s->core), 0);
	CHECK_EQ(vs_guest_create(1 << 20, 1, &s->g), 0);
	CHECK_EQ(vs_driver_create(&s->g, SIZE, features, 0, &s->d), 0);
	s->data = vs_guest_alloc(&s->g, SIZE * BYTES, 4096);
	CHECK(s->data);
	CHECK_EQ(vs_memmap_create(s->core, s->g.regions, 1, NULL, 0, &s->map), 0);
	/* Both sides at the same address: in two mappings ThreadSanitizer would see two memories. */
	s->map->mappings[0]->host = s->g.base;
	vs_driver_params(&s->d, &p);
	CHECK_EQ(vs_vring_init(&s->r, s->map, &p), 0);
}

static void close_sides(struct sides *s)
{
	free(s->w);
	vs_memmap_destroy(s->map);
	vs_driver_destroy(&s->d);
	vs_guest_destroy(&s->g);
	vs_core_destroy(s->core);
}

static void take_and_return(struct sides *s, uint8_t add)
{
	struct iovec iov[INLINE];
	struct vs_chain c = { .iov = iov, .capacity = INLINE };

	CHECK_EQ(vs_vring_pop(&s->r, s->w, &c), 0);
	CHECK_EQ(c.nin, 1);
	for (uint32_t i = 0; i < BYTES; i++)
		((uint8_t *)c.iov[0].iov_base)[i] += add;
	vs_vring_push(&s->r, c.head, c.span, BYTES);
}

/* ---- release and acquire ------------------------------------------------------------------------------------------------------------- */

/* Notifications are never asked for: only indices order the two, as between polling sides. */
static void *polling_device(void *arg)
{
	struct sides *s = arg;

	for (uint32_t done = 0; done < CHAINS;) {
		int n = vs_vring_available(&s->r);

		CHECK(n >= 0);
		if (!n) {
			sched_yield();
			continue;
		}
		for (; n; n--, done++)
			take_and_return(s, 1);
		vs_vring_publish(&s->r);
	}
	return NULL;
}

/* Each chain's bytes are written before it is published, changed by the device, and read when it has come back. */
static void what_is_published_comes_first(uint32_t features)
{
	uint32_t sent = 0, back = 0, head, written;
	struct sides s;
	pthread_t device;

	open_sides(&s, features);
	CHECK(pthread_create(&device, NULL, polling_device, &s) == 0);
	while (back < CHAINS) {
		bool idle = true;

		while (sent < CHAINS && s.d.nfree) {
			struct vs_driver_buffer buffer = { s.data + BYTES * s.d.free_head, BYTES };

			memset(vs_guest_ptr(&s.g, buffer.addr), (int)s.d.free_head, BYTES);
			CHECK(vs_driver_add(&s.d, &buffer, 0, 1, false) >= 0);
			sent++;
			idle = false;
		}
		vs_driver_publish(&s.d);
		while (vs_driver_collect(&s.d, &head, &written) == 1) {
			const uint8_t *p = vs_guest_ptr(&s.g, s.data + BYTES * head);

			for (uint32_t i = 0; i < BYTES; i++)
				CHECK_EQ(p[i], head + 1);
			back++;
			idle = false;
		}
		if (idle)
			sched_yield();
	}
	CHECK(pthread_join(device, NULL) == 0);
	close_sides(&s);
}

/* ---- a store and then a load ------------------------------------------------------------------------------------------------------------ */

static void wait_for(_Atomic uint32_t *word, uint32_t value, _Atomic uint32_t *stop)
{
	for (uint32_t spins = 0; atomic_load_explicit(word, memory_order_acquire) != value; spins++) {
		if (atomic_load_explicit(stop, memory_order_relaxed))
			return;
		if (spins > 4000)
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

/* Stores leave a CPU in their order: these, to lines that the other side has just written, keep the one that follows back for a while, and
 * the load behind it does not wait for them. */
static void write_ballast(struct sides *s, uint32_t value)
{
	for (uint32_t i = 0; i < BALLAST; i++)
		s->ballast[i].word = value;
}

/* Odd rounds: the driver publishes a request while we ask for kicks. Even rounds: we publish its answer while the driver asks for interrupts. */
static void *racing_device(void *arg)
{
	struct sides *s = arg;

	for (uint32_t round = 1;; round++) {
		wait_for(&s->go, round, &s->stop);
		if (atomic_load(&s->stop))
			return NULL;
		dawdle(round * 7 % 61);
		write_ballast(s, round);
		s->device_says = round & 1 ? vs_vring_kicks_on(&s->r) : vs_vring_publish(&s->r);
		if (round & 1) {
			wait_for(&s->answered, round, &s->stop);
			CHECK_EQ(vs_vring_available(&s->r), 1);
			take_and_return(s, 0);
			vs_vring_kicks_off(&s->r);
		}
		atomic_store_explicit(&s->done, round, memory_order_release);
	}
}

static void one_of_both_sees_the_other(uint32_t features)
{
	uint64_t end = vs_now_ns() + SECONDS_MAX * UINT64_C(1000000000);
	uint32_t head, written, round = 1;
	struct sides s;
	pthread_t device;

	open_sides(&s, features);
	CHECK(pthread_create(&device, NULL, racing_device, &s) == 0);
	for (; round & 1 || (round < ROUNDS && vs_now_ns() < end); round++) {
		struct vs_driver_buffer buffer = { s.data, BYTES };
		bool driver_says;

		if (round & 1)
			CHECK(vs_driver_add(&s.d, &buffer, 0, 1, false) >= 0);
		write_ballast(&s, round);
		atomic_store_explicit(&s.go, round, memory_order_release);
		/* The device hears of the round later than we do: how much later is what the race is about. */
		dawdle(round * 11 % 601);
		driver_says = round & 1 ? vs_driver_publish(&s.d) : vs_driver_interrupts_on(&s.d);
		atomic_store_explicit(&s.answered, round, memory_order_release);
		wait_for(&s.done, round, &s.stop);
		CHECK(driver_says || s.device_says);
		if (!(round & 1)) {
			CHECK_EQ(vs_driver_collect(&s.d, &head, &written), 1);
			vs_driver_interrupts_off(&s.d);
		}
	}
	atomic_store(&s.stop, 1);
	CHECK(pthread_join(device, NULL) == 0);
	printf("  %u races\n", round);
	close_sides(&s);
}

int main(void)
{
	what_is_published_comes_first(0);
	what_is_published_comes_first(VS_RING_PACKED);
	one_of_both_sees_the_other(0);
	one_of_both_sees_the_other(VS_RING_EVENT_IDX);
	one_of_both_sees_the_other(VS_RING_PACKED);
	one_of_both_sees_the_other(VS_RING_PACKED | VS_RING_EVENT_IDX);
	return 0;
}
