// SPDX-License-Identifier: Apache-2.0
/*
 * Back ends that are killed at every step of taking a request, executing it, using it and telling so, and again at every step of coming back: each
 * request ends once and GOOD, what the guest has seen as written is not written again, and what must not run twice does not. Both layouts. It prints
 * where they were killed.
 */
#include <sys/eventfd.h>

#include "check.h"
#include "crash_rig.h"

/* ThreadSanitizer makes a fork expensive, and sees nothing in programs of one thread: there a few steps must do. */
#ifdef VS_TSAN
enum { STEP_BY = 24 };
#else
enum { STEP_BY = 1 };
#endif
enum { FIRST = 4, MORE = 2, POISON = 0x99 };

static uint32_t kills[VS_STEP_COUNT], all_kills;

static uint8_t value_of(uint32_t lba) { return (uint8_t)(lba + 1); }

/* Every third is a COMPARE AND WRITE, every other one has an indirect table where there are any. */
static void send(struct crash *c, uint32_t n)
{
	for (; n; n--) {
		uint32_t lba = c->sent;

		CHECK(crash_write(c, lba, value_of(lba), lba % 3 == 2, c->driver.features & VS_RING_INDIRECT && lba % 2) >= 0);
	}
}

/* The guest overwrites behind the device's back what it has seen completed: nobody may write there any more. */
static void collect(struct crash *c)
{
	uint32_t lbas[CRASH_RING], n = crash_collect(c, lbas);

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *block = c->shared->medium + lbas[i] * CRASH_BLOCK;

		for (uint32_t at = 0; at < CRASH_BLOCK; at++)
			CHECK_EQ(block[at], value_of(lbas[i]));
		memset(block, POISON, CRASH_BLOCK);
	}
}

static void check_end(struct crash *c)
{
	CHECK_EQ(c->ended, c->sent);
	for (uint32_t lba = 0; lba < c->sent; lba++)
		for (uint32_t at = 0; at < CRASH_BLOCK; at++)
			CHECK_EQ(c->shared->medium[lba * CRASH_BLOCK + at], POISON);
}

static void count_kills(struct crash *c)
{
	for (uint32_t i = 0; i < VS_STEP_COUNT; i++) {
		kills[i] += c->shared->stopped[i];
		all_kills += c->shared->stopped[i];
	}
}

/* Killed at step `first`, then at step `second` of the next one, then at `third`; 0: not at all. How many steps the last one took. */
static uint32_t run(uint32_t features, uint32_t first, uint32_t second, uint32_t third)
{
	uint32_t stops[3] = { first, second, third }, steps;
	struct crash c;

	crash_open(&c, features);
	send(&c, FIRST);
	for (int i = 0; i < 3 && stops[i]; i++) {
		crash_run(&c, stops[i], true);
		collect(&c);
		if (c.driver.nfree > MORE * 3)
			send(&c, MORE);
	}
	CHECK_EQ(crash_run(&c, 0, true), 0);
	CHECK(!c.shared->forgotten);
	CHECK_EQ(c.shared->start_error, 0);
	steps = c.shared->steps;
	collect(&c);
	check_end(&c);
	count_kills(&c);
	crash_close(&c);
	return steps;
}

static void test_killed_at_every_step(uint32_t features)
{
	uint32_t n = run(features, 0, 0, 0), middle = n * 2 / 3, again = run(features, middle, 0, 0);

	CHECK(n > 30 && again > 30);
	for (uint32_t first = 1; first <= n; first += STEP_BY)
		run(features, first, 0, 0);
	if (!(features & VS_RING_INDIRECT))
		return;
	/* Once more while it comes back, and once more after that. */
	for (uint32_t second = 1; second <= again; second += STEP_BY)
		run(features, middle, second, 1 + second * 7 % again);
	for (uint32_t first = 1; first <= n; first += 3 * STEP_BY)
		run(features, first, 1 + first * 5 % again, 0);
}

static void send_plain(struct crash *c, uint32_t n)
{
	for (; n; n--)
		CHECK(crash_write(c, c->sent, value_of(c->sent), false, false) >= 0);
}

/* Executed again in the order in which they were taken, and before what came later. */
static void test_order(uint32_t features)
{
	uint32_t replays, first;
	struct crash c;

	crash_open(&c, features);
	send_plain(&c, 3);
	/* Taken, and nothing else: the first store operation of each waits for a turn that does not come. */
	for (uint32_t stop = 1;; stop++) {
		CHECK_EQ(crash_run(&c, stop, true), 1);
		collect(&c);
		if (c.shared->norder || c.ended)
			break;
	}
	send_plain(&c, 2);
	replays = c.sent - c.ended;
	first = c.shared->norder;
	CHECK_EQ(crash_run(&c, 0, false), 0);
	CHECK(c.shared->replays >= 1 && c.shared->replays <= replays);
	collect(&c);
	check_end(&c);
	for (uint32_t i = first + 1; i < c.shared->norder; i++)
		CHECK(c.shared->order[i] > c.shared->order[i - 1]);
	crash_close(&c);
}

/* The guest is told again of what it may not have been told. */
static void test_interrupt(uint32_t features)
{
	eventfd_t count;
	struct crash c;

	crash_open(&c, features);
	send(&c, 1);
	CHECK_EQ(crash_run(&c, 0, false), 0);
	CHECK_EQ(eventfd_read(c.call_fd, &count), 0);
	CHECK_EQ(crash_run(&c, 0, false), 0);
	CHECK_EQ(eventfd_read(c.call_fd, &count), 0);
	collect(&c);
	check_end(&c);
	crash_close(&c);
}

/* What the front end does to the region is no more than its own harm: nothing is believed that does not fit the ring. */
static void test_region_of_another_ring(uint32_t features)
{
	bool packed = features & VS_RING_PACKED;
	struct crash c;

	for (uint64_t seed = 1; seed < 40; seed++) {
		struct vs_split_region *region;
		uint64_t x = seed * 0x9e3779b97f4a7c15ull, stride = packed ? 32 + 32 * CRASH_RING : 16 + 16 * CRASH_RING;
		uint32_t lbas[CRASH_RING];

		crash_open(&c, features);
		region = (void *)(c.region + VS_QUEUE_REQUEST * ((stride + 63) & ~UINT64_C(63)));
		for (uint64_t i = 0; i < stride; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			((uint8_t *)region)[i] = seed % 2 ? (uint8_t)(x >> 20) : (uint8_t)(x >> 20) % 2;
		}
		region->version = 1;
		region->desc_num = CRASH_RING;
		send(&c, 2);
		CHECK_EQ(crash_run(&c, 0, false), 0);
		/* Either it was forgotten, or the ring broke over what it said, or it fits by chance: the process lives. */
		if (c.shared->forgotten && !c.shared->start_error) {
			CHECK_EQ(crash_collect(&c, lbas), 2);
		}
		crash_close(&c);
	}
}

static void test_region_that_cannot_be(void)
{
	struct vs_config config = { .nworkers = 1, .engine = VS_ENGINE_EPOLL, .io_threads = 1 };
	uint64_t size = vs_inflight_size(3, 128);
	vs_inflight *f;
	struct crash c;
	vs_core *core;

	crash_open(&c, 0);
	CHECK_EQ(vs_core_create(&config, &core), 0);
	CHECK_EQ(vs_inflight_open(core, c.region_fd, size, 0, 3, 128, &f), -EINVAL);
	CHECK_EQ(vs_inflight_open(core, c.region_fd, 64, 0, CRASH_QUEUES, CRASH_RING, &f), -EINVAL);
	CHECK_EQ(vs_inflight_open(core, c.region_fd, c.region_size, UINT64_MAX - 8, CRASH_QUEUES, CRASH_RING, &f), -EINVAL);
	CHECK_EQ(vs_inflight_open(core, c.region_fd, c.region_size, 0, 0, CRASH_RING, &f), -EINVAL);
	CHECK_EQ(vs_inflight_open(core, c.call_fd, c.region_size, 0, CRASH_QUEUES, CRASH_RING, &f), -EINVAL);
	CHECK_EQ(vs_inflight_open(core, -1, c.region_size, 0, CRASH_QUEUES, CRASH_RING, &f), -EBADF);
	CHECK_EQ(vs_inflight_open(core, c.region_fd, c.region_size, 0, CRASH_QUEUES, CRASH_RING, &f), 0);
	CHECK_EQ(vs_inflight_id(f), 4711);
	CHECK_EQ(vs_inflight_left(f, VS_QUEUE_REQUEST, 0), 0);
	CHECK_EQ(vs_inflight_left(f, 99, 0), 0);
	vs_inflight_close(f);
	vs_core_destroy(core);
	/* Another version is not ours to read, and a region that is too small for the ring keeps nothing. */
	c.region[VS_QUEUE_REQUEST * ((16 + 16 * CRASH_RING + 63) & ~63) + 8] = 2;
	send(&c, 1);
	CHECK_EQ(crash_run(&c, 0, false), 0);
	CHECK_EQ(c.shared->start_error, -VS_RULE_INFLIGHT);
	crash_close(&c);
}

static void show(void)
{
	static const char *const names[] = {
#define NAME(name) #name,
		VS_STEP_NAMES(NAME)
	};

	printf("%u back ends killed:", all_kills);
	for (uint32_t i = 0; i < VS_STEP_COUNT; i++) {
		printf(" %s %u", names[i], kills[i]);
		CHECK(kills[i] || STEP_BY > 1); /* there is no step at which none was */
	}
	printf("\n");
}

int main(void)
{
	const uint32_t layouts[] = { 0, VS_RING_EVENT_IDX | VS_RING_INDIRECT, VS_RING_PACKED, VS_RING_PACKED | VS_RING_EVENT_IDX | VS_RING_INDIRECT };

	for (uint32_t i = 0; i < 4; i++) {
		test_order(layouts[i]);
		test_interrupt(layouts[i]);
		test_region_of_another_ring(layouts[i]);
	}
	test_region_that_cannot_be();
	for (uint32_t i = 0; i < 4; i++)
		test_killed_at_every_step(layouts[i]);
	show();
	return 0;
}
