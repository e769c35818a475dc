// SPDX-License-Identifier: Apache-2.0
/*
 * In-order use of both layouts (2.7.9, 2.8.8), the driver's part of batches that our device does not make, a ring that is reset (2.6.1), and what a
 * notification says of the driver's place (2.9).
 */
#include <stdlib.h>

#include "vring_rig.h"

enum { IN_ORDER = VS_RING_IN_ORDER, SIZE = 8 };

static void open_in_order(struct bench *b, uint32_t features)
{
	bench_open(b, SIZE, features | IN_ORDER);
	b->r.order = calloc(SIZE, sizeof(*b->r.order));
	CHECK(b->r.order);
}

static void close_in_order(struct bench *b)
{
	free(b->r.order);
	bench_close(b);
}

static int post(struct bench *b, uint32_t nin)
{
	struct vs_driver_buffer bufs[2] = { { b->data, 16 }, { b->data + 64, 100 } };

	return vs_driver_add(&b->d, bufs, 1, nin, false);
}

static void collect(struct bench *b, int head, uint32_t written)
{
	uint32_t got, length;

	CHECK_EQ(vs_driver_collect(&b->d, &got, &length), 1);
	CHECK_EQ(got, head);
	CHECK_EQ(length, written);
}

static void collect_nothing(struct bench *b)
{
	uint32_t got, length;

	CHECK_EQ(vs_driver_collect(&b->d, &got, &length), 0);
}

/* What ends early waits for what was taken before it; through several laps. */
static void what_ends_early_waits(uint32_t features)
{
	struct bench b;

	open_in_order(&b, features);
	for (int turn = 0; turn < 9; turn++) {
		int heads[3];
		uint32_t spans[3];

		for (int i = 0; i < 3; i++) {
			heads[i] = post(&b, i != 1);
			CHECK(heads[i] >= 0);
			vs_driver_publish(&b.d);
			CHECK_EQ(bench_take(&b), 0);
			CHECK_EQ(b.c.head, heads[i]);
			spans[i] = b.c.span;
		}
		vs_vring_push(&b.r, (uint32_t)heads[2], spans[2], 3);
		vs_vring_publish(&b.r);
		collect_nothing(&b);
		vs_vring_push(&b.r, (uint32_t)heads[1], spans[1], 0);
		vs_vring_publish(&b.r);
		collect_nothing(&b);
		vs_vring_push(&b.r, (uint32_t)heads[0], spans[0], 1);
		vs_vring_publish(&b.r);
		collect(&b, heads[0], 1);
		collect(&b, heads[1], 0);
		collect(&b, heads[2], 3);
		collect_nothing(&b);
		CHECK_EQ(b.d.nfree, SIZE);
	}
	close_in_order(&b);
}

/* 2.7.9.1: descriptors are used from 0 on and around. */
static void split_descriptors_lie_in_ring_order(void)
{
	struct bench b;

	open_in_order(&b, 0);
	for (int i = 0; i < 3 * SIZE; i++) {
		CHECK_EQ(post(&b, 1), 2 * i % SIZE);
		CHECK_EQ(b.d.desc[2 * i % SIZE].next, 2 * i % SIZE + 1);
		vs_driver_publish(&b.d);
		CHECK_EQ(bench_take(&b), 0);
		vs_vring_push(&b.r, b.c.head, b.c.span, 7);
		vs_vring_publish(&b.r);
		collect(&b, 2 * i % SIZE, 7);
	}
	close_in_order(&b);
}

/* Taken back, it is taken again as the same; and one that waits here cannot be offered again. */
static void unpop_and_a_head_that_waits(uint32_t features)
{
	struct bench b;
	int first, second;
	uint32_t spans[2];

	open_in_order(&b, features);
	first = post(&b, 1);
	second = post(&b, 1);
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), 0);
	spans[0] = b.c.span;
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(bench_take(&b), 0);
		CHECK_EQ(b.c.head, second);
		spans[1] = b.c.span;
		if (i < 2)
			vs_vring_unpop(&b.r);
	}
	vs_vring_push(&b.r, (uint32_t)second, spans[1], 2); /* waits for the first */
	CHECK_EQ(post(&b, 1) >= 0, true);
	if (features & PACKED) {
		b.d.ring[4].id = b.d.ring[5].id = (uint16_t)second;
	} else {
		b.d.avail->ring[2] = (uint16_t)second;
	}
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), -VS_RULE_HEAD_BUSY);
	CHECK_EQ(bench_take(&b), -VS_RULE_HEAD_BUSY); /* it was not taken, and is there as before */
	vs_vring_push(&b.r, (uint32_t)first, spans[0], 1);
	vs_vring_publish(&b.r);
	collect(&b, first, 1);
	collect(&b, second, 2);
	close_in_order(&b);
}

/* One used element for three chains: those that it skips were used completely. Our device makes none, others do. */
static void a_batch_is_taken_apart(uint32_t features)
{
	struct bench b;
	int heads[4];
	uint32_t spans = 0;

	bench_open(&b, SIZE, features | IN_ORDER);
	for (int turn = 0; turn < 5; turn++) {
		for (int i = 0; i < 4; i++) {
			heads[i] = post(&b, i != 1);
			CHECK(heads[i] >= 0);
		}
		vs_driver_publish(&b.d);
		spans = 0;
		for (int i = 0; i < 4; i++) {
			CHECK_EQ(bench_take(&b), 0);
			spans += i < 3 ? b.c.span : 0;
		}
		if (features & PACKED) {
			vs_packed_push(&b.r, (uint32_t)heads[2], spans, 50);
		} else {
			vs_split_push(&b.r, (uint32_t)heads[2], 50);
			b.r.used_idx = (uint16_t)(b.r.used_idx + 2);
		}
		vs_vring_publish(&b.r);
		collect(&b, heads[0], 100);
		CHECK(vs_driver_pending(&b.d));
		collect(&b, heads[1], 0);
		collect(&b, heads[2], 50);
		collect_nothing(&b);
		vs_ring_push(&b.r, (uint32_t)heads[3], b.c.span, 9);
		vs_vring_publish(&b.r);
		collect(&b, heads[3], 9);
	}
	bench_close(&b);
}

/* The index counts one, the element stands for two. */
static void a_batch_longer_than_the_index_says(void)
{
	struct bench b;
	uint32_t head, written;
	int first, second;

	bench_open(&b, SIZE, IN_ORDER);
	first = post(&b, 1);
	second = post(&b, 1);
	vs_driver_publish(&b.d);
	vs_split_push(&b.r, (uint32_t)second, 1);
	vs_vring_publish(&b.r);
	collect(&b, first, 100);
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), -EPROTO);
	bench_close(&b);
}

/* ---- reset, and notifications with data --------------------------------------------------------------------------------------------------- */

static void a_ring_is_reset_and_begins_anew(uint32_t features)
{
	struct bench b;

	open_in_order(&b, features);
	if (!(features & IN_ORDER)) {
		free(b.r.order);
		b.r.order = NULL;
		b.d.features &= ~(uint32_t)IN_ORDER;
		b.r.features &= ~(uint32_t)IN_ORDER;
	}
	for (int turn = 0; turn < 4; turn++) {
		for (int i = 0; i <= turn; i++) {
			int head = post(&b, 1);

			CHECK(head >= 0);
			vs_driver_publish(&b.d);
			CHECK_EQ(bench_take(&b), 0);
			CHECK_EQ(b.c.head, head);
		}
		vs_vring_push(&b.r, b.c.head, b.c.span, 1); /* one came back, and is not seen any more */
		vs_vring_reset(&b.r);
		vs_driver_reset(&b.d, 0);
		CHECK_EQ(vs_vring_available(&b.r), 0);
		CHECK_EQ(b.r.held, 0);
		CHECK_EQ(vs_vring_base(&b.r), features & PACKED ? 0x80008000u : 0u);
		collect_nothing(&b);
	}
	close_in_order(&b);
}

static void notifications_say_where_the_driver_stands(uint32_t features)
{
	struct bench b;

	bench_open(&b, SIZE, features);
	CHECK_EQ(vs_driver_notification(&b.d, 5), features & PACKED ? 0x80000005u : 5u);
	for (int i = 0; i < 2 * SIZE; i++) {
		CHECK(!vs_vring_notified(&b.r, vs_driver_notification(&b.d, 5)));
		CHECK(post(&b, 1) >= 0);
		vs_driver_publish(&b.d);
		CHECK(vs_vring_notified(&b.r, vs_driver_notification(&b.d, 5)));
		CHECK_EQ(bench_take(&b), 0);
		CHECK(!vs_vring_notified(&b.r, vs_driver_notification(&b.d, 5)));
		vs_vring_push(&b.r, b.c.head, b.c.span, 1);
		vs_vring_publish(&b.r);
		collect(&b, (int)b.c.head, 1);
	}
	if (features & PACKED)
		CHECK(vs_vring_notified(&b.r, 0x7fff0005u)); /* no place of this ring: better look once too often */
	bench_close(&b);
}

int main(void)
{
	for (uint32_t packed = 0; packed <= PACKED; packed += PACKED) {
		what_ends_early_waits(packed);
		what_ends_early_waits(packed | EVENT);
		unpop_and_a_head_that_waits(packed);
		a_batch_is_taken_apart(packed);
		a_ring_is_reset_and_begins_anew(packed);
		a_ring_is_reset_and_begins_anew(packed | IN_ORDER);
		notifications_say_where_the_driver_stands(packed);
	}
	split_descriptors_lie_in_ring_order();
	a_batch_longer_than_the_index_says();
	return 0;
}
