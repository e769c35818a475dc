// SPDX-License-Identifier: Apache-2.0
/*
 * The device side of a packed ring against the driver side: every rule broken once, chains and tables, the arithmetic of places, used
 * descriptors as they lie, event suppression at its edges. What both layouts share is in test_vring_sides.c.
 */
#include "vring_rig.h"

static struct vs_packed_desc *table_of(struct bench *b) { return vs_guest_ptr(&b->g, b->d.ring[0].addr); }

/* Any descriptor where the device looks next, available in this lap. */
static void put(struct bench *b, uint32_t index, uint64_t addr, uint32_t length, uint16_t id, uint16_t flags)
{
	b->d.ring[index] = (struct vs_packed_desc){ addr, length, id, (uint16_t)(flags | VS_PACKED_AVAIL) };
}

/* ---- every rule once ------------------------------------------------------------------------------------------------------------------------ */

enum shape { DIRECT, IN_TABLE };

/* One posted chain of 2 readable and 2 writable buffers on a ring of 8, spoilt: it must break just this rule, and take nothing. */
static void breaks(int rule, enum shape shape, void (*spoil)(struct bench *b))
{
	struct bench b;

	bench_open(&b, 8, EVENT | INDIRECT | PACKED);
	bench_post(&b, 2, 2, shape == IN_TABLE);
	spoil(&b);
	CHECK_EQ(bench_take(&b), -rule);
	CHECK_EQ(b.r.last_avail, VS_PACKED_WRAP);
	CHECK_EQ(b.r.held, 0);
	CHECK(b.c.iov == b.inline_iov && b.c.capacity == INLINE);
	bench_close(&b);
}

static void id_beyond(struct bench *b) { b->d.ring[3].id = 8; }
static void id_far_beyond(struct bench *b) { b->d.ring[3].id = 0xffff; }
static void table_id_beyond(struct bench *b) { b->d.ring[0].id = 8; }
static void next_is_not_available(struct bench *b) { b->d.ring[3].flags |= VS_DESC_NEXT; }
static void second_not_available(struct bench *b) { b->d.ring[1].flags = VS_DESC_NEXT; }
static void third_looks_used(struct bench *b) { b->d.ring[2].flags |= VS_PACKED_USED; }
static void second_of_other_lap(struct bench *b) { b->d.ring[1].flags ^= VS_PACKED_AVAIL | VS_PACKED_USED; }
static void never_ends(struct bench *b)
{
	for (uint32_t i = 0; i < 8; i++)
		put(b, i, b->data, 16, 0, VS_DESC_NEXT);
}
static void wrong_order(struct bench *b) { b->d.ring[0].flags |= VS_DESC_WRITE; }
static void unmapped_low(struct bench *b) { b->d.ring[0].addr = VS_GUEST_ADDR - 1; }
static void unmapped_end(struct bench *b) { b->d.ring[3].addr = VS_GUEST_ADDR + b->g.size - 511; }
static void wraps(struct bench *b) { b->d.ring[2].addr = 0ull - 511; }
static void all_empty(struct bench *b)
{
	for (int i = 0; i < 4; i++)
		b->d.ring[i].len = 0;
}
static void indirect_and_next(struct bench *b) { b->d.ring[0].flags |= VS_DESC_NEXT; }
static void indirect_after_direct(struct bench *b) { put(b, 1, b->data, 16, 0, VS_DESC_INDIRECT); }
static void indirect_empty(struct bench *b) { b->d.ring[0].len = 0; }
static void indirect_odd(struct bench *b) { b->d.ring[0].len = 4 * 16 + 8; }
static void indirect_unmapped(struct bench *b) { b->d.ring[0].addr = 0x1000; }
static void indirect_half_unmapped(struct bench *b)
{
	uint64_t addr = VS_GUEST_ADDR + b->g.size - 56;

	memcpy(vs_guest_ptr(&b->g, addr), table_of(b), 56);
	b->d.ring[0].addr = addr;
}
static void indirect_wraps(struct bench *b) { b->d.ring[0].addr = 0ull - 32; }
static void indirect_nested(struct bench *b) { table_of(b)[1].flags |= VS_DESC_INDIRECT; }
static void indirect_not_asked(struct bench *b) { b->r.features &= ~(uint32_t)INDIRECT; }
static void indirect_too_long(struct bench *b) { b->d.ring[0].addr = b->data; b->d.ring[0].len = 16 * 1025; }
static void table_wrong_order(struct bench *b) { table_of(b)[0].flags |= VS_DESC_WRITE; }
static void table_unmapped(struct bench *b) { table_of(b)[2].addr = 4096; }
static void table_all_empty(struct bench *b)
{
	for (int i = 0; i < 4; i++)
		table_of(b)[i].len = 0;
}

static void every_rule_of_chains(void)
{
	breaks(VS_RULE_HEAD_RANGE, DIRECT, id_beyond);
	breaks(VS_RULE_HEAD_RANGE, DIRECT, id_far_beyond);
	breaks(VS_RULE_HEAD_RANGE, IN_TABLE, table_id_beyond);
	breaks(VS_RULE_AVAIL_FLAGS, DIRECT, next_is_not_available);
	breaks(VS_RULE_AVAIL_FLAGS, DIRECT, second_not_available);
	breaks(VS_RULE_AVAIL_FLAGS, DIRECT, third_looks_used);
	breaks(VS_RULE_AVAIL_FLAGS, DIRECT, second_of_other_lap);
	breaks(VS_RULE_TOO_LONG, DIRECT, never_ends);
	breaks(VS_RULE_READABLE_AFTER_WRITABLE, DIRECT, wrong_order);
	breaks(VS_RULE_UNMAPPED, DIRECT, unmapped_low);
	breaks(VS_RULE_UNMAPPED, DIRECT, unmapped_end);
	breaks(VS_RULE_ADDRESS_OVERFLOW, DIRECT, wraps);
	breaks(VS_RULE_ZERO_LENGTH, DIRECT, all_empty);
	breaks(VS_RULE_INDIRECT_AND_NEXT, IN_TABLE, indirect_and_next);
	breaks(VS_RULE_INDIRECT_AND_NEXT, DIRECT, indirect_after_direct);
	breaks(VS_RULE_INDIRECT_LENGTH, IN_TABLE, indirect_empty);
	breaks(VS_RULE_INDIRECT_LENGTH, IN_TABLE, indirect_odd);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, indirect_unmapped);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, indirect_half_unmapped);
	breaks(VS_RULE_ADDRESS_OVERFLOW, IN_TABLE, indirect_wraps);
	breaks(VS_RULE_INDIRECT_NESTED, IN_TABLE, indirect_nested);
	breaks(VS_RULE_INDIRECT_NOT_NEGOTIATED, IN_TABLE, indirect_not_asked);
	breaks(VS_RULE_TOO_LONG, IN_TABLE, indirect_too_long);
	breaks(VS_RULE_READABLE_AFTER_WRITABLE, IN_TABLE, table_wrong_order);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, table_unmapped);
	breaks(VS_RULE_ZERO_LENGTH, IN_TABLE, table_all_empty);
}

/* What we hold is offered again: in the next lap, with flags that would be right there. */
static void what_is_held_is_not_taken_again(void)
{
	struct bench b;

	bench_open(&b, 4, PACKED);
	for (uint32_t i = 0; i < 4; i++)
		CHECK_EQ(vs_driver_add(&b.d, &(struct vs_driver_buffer){ b.data, 8 }, 1, 0, false), i);
	vs_driver_publish(&b.d);
	for (uint32_t i = 0; i < 4; i++)
		CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(bench_take(&b), 1);
	b.d.ring[0].flags = VS_PACKED_USED;
	CHECK_EQ(bench_take(&b), -VS_RULE_AVAIL_JUMP);
	/* One is given back: a chain of one is right again, one of two is not. */
	vs_vring_push(&b.r, 2, 1, 8);
	CHECK_EQ(bench_take(&b), 0);
	vs_vring_unpop(&b.r);
	b.d.ring[0].flags |= VS_DESC_NEXT;
	b.d.ring[1].flags = VS_PACKED_USED;
	CHECK_EQ(vs_vring_available(&b.r), 1);
	CHECK_EQ(bench_take(&b), -VS_RULE_TOO_LONG);
	bench_close(&b);
}

static int begin(struct bench *b, uint32_t size, uint32_t base, uint64_t desc, uint64_t avail, uint64_t used)
{
	struct vs_queue_params p;
	struct vs_vring r;
	int err;

	vs_driver_params(&b->d, &p);
	p.size = size;
	p.base = base;
	p.desc += desc;
	p.avail += avail;
	p.used += used;
	err = vs_vring_init(&r, b->map, &p);
	if (!err)
		CHECK_EQ(vs_vring_base(&r), base);
	return err;
}

static void every_rule_of_rings(void)
{
	struct bench b;
	uint64_t end;

	bench_open(&b, 100, EVENT | PACKED); /* 2.8.10.1: not a power of two */
	end = b.g.size;
	CHECK_EQ(begin(&b, 0, 0x80008000, 0, 0, 0), -VS_RULE_RING_SIZE);
	CHECK_EQ(begin(&b, 32769, 0x80008000, 0, 0, 0), -VS_RULE_RING_SIZE);
	CHECK_EQ(begin(&b, UINT32_MAX, 0x80008000, 0, 0, 0), -VS_RULE_RING_SIZE);
	CHECK_EQ(begin(&b, 100, 0x80008000, 8, 0, 0), -VS_RULE_RING_ALIGN);
	CHECK_EQ(begin(&b, 100, 0x80008000, 0, 2, 0), -VS_RULE_RING_ALIGN);
	CHECK_EQ(begin(&b, 100, 0x80008000, 0, 0, 2), -VS_RULE_RING_ALIGN);
	CHECK_EQ(begin(&b, 100, 0x80008000, end - 99 * 16, 0, 0), -VS_RULE_RING_UNMAPPED);
	CHECK_EQ(begin(&b, 100, 0x80008000, 0, end, 0), -VS_RULE_RING_UNMAPPED);
	CHECK_EQ(begin(&b, 100, 0x80008000, 0, 0, end), -VS_RULE_RING_UNMAPPED);
	/* Either half names a descriptor, and the device is at most a lap behind. */
	CHECK_EQ(begin(&b, 100, 0x80008000 | 100, 0, 0, 0), -VS_RULE_RING_BASE);
	CHECK_EQ(begin(&b, 100, 0x80008000 | 100 << 16, 0, 0, 0), -VS_RULE_RING_BASE);
	CHECK_EQ(begin(&b, 100, 0x0000ffff, 0, 0, 0), -VS_RULE_RING_BASE);
	CHECK_EQ(begin(&b, 100, 0x80010001, 0, 0, 0), 0);             /* exactly a lap: all is held */
	CHECK_EQ(begin(&b, 100, 0x80010002, 0, 0, 0), -VS_RULE_RING_BASE);
	CHECK_EQ(begin(&b, 100, 0x80028001, 0, 0, 0), -VS_RULE_RING_BASE); /* used ran ahead */
	CHECK_EQ(begin(&b, 100, 0x80028005, 0, 0, 0), 0);
	CHECK_EQ(begin(&b, 100, 0x00008000 | 99 | 99u << 16, 0, 0, 0), 0);
	bench_close(&b);
}

/* ---- chains become iovecs ------------------------------------------------------------------------------------------------------------------- */

static void shapes_of_chains(void)
{
	struct vs_packed_desc *t;
	struct bench b;

	/* Across the end of the ring: the flags of the two laps differ. */
	bench_open_at(&b, 5, PACKED, 1, 3);
	bench_post(&b, 1, 3, false);
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.head == 0 && b.c.span == 4 && b.c.nout == 1 && b.c.nin == 3 && b.c.out_length == 512 && b.c.in_length == 1536);
	CHECK(b.c.iov[0].iov_base == bench_host(&b, b.data) && b.c.iov[3].iov_base == bench_host(&b, b.data + 3072));
	CHECK_EQ(b.r.last_avail, 2); /* counter 0 */
	CHECK_EQ(bench_take(&b), 1);
	vs_vring_unpop(&b.r);
	CHECK_EQ(b.r.last_avail, VS_PACKED_WRAP | 3);
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.c.span, 4);
	bench_close(&b);

	/* In a table: empty ones left out, neighbours become one, flags that mean nothing there are not looked at, and all of it counts. */
	bench_open(&b, 8, INDIRECT | PACKED);
	bench_post(&b, 3, 3, true);
	t = table_of(&b);
	t[0] = (struct vs_packed_desc){ b.data, 10, 77, 0 };
	t[1] = (struct vs_packed_desc){ 12345, 0, 0, VS_DESC_NEXT };
	t[2] = (struct vs_packed_desc){ b.data + 10, 20, 0, VS_PACKED_USED };
	t[3] = (struct vs_packed_desc){ b.data + 30, 5, 0, VS_DESC_WRITE };
	t[4] = (struct vs_packed_desc){ b.data + 35, 6, 0, VS_DESC_WRITE | VS_DESC_NEXT };
	t[5] = (struct vs_packed_desc){ b.data + 100, 1, 0, VS_DESC_WRITE };
	b.d.ring[0].flags |= VS_DESC_WRITE; /* means nothing here: 2.8.7 */
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.head == 0 && b.c.span == 1 && b.c.nout == 1 && b.c.nin == 2 && b.c.out_length == 30 && b.c.in_length == 12);
	CHECK(b.c.iov[0].iov_len == 30 && b.c.iov[1].iov_base == bench_host(&b, b.data + 30) && b.c.iov[1].iov_len == 11);
	bench_close(&b);
}

static void long_chains(void)
{
	struct vs_driver_buffer *bufs = calloc(32768, sizeof(*bufs));
	struct bench b;

	/* A table of 1024 on a ring of 7, longer than the caller's array; broken at its end the array goes back. */
	bench_open(&b, 7, INDIRECT | PACKED);
	for (uint32_t n = INLINE; n <= 1024; n *= 2) {
		struct vs_packed_desc *t = vs_guest_ptr(&b.g, b.data + 65536);

		vs_driver_reset(&b.d, 0);
		bench_post(&b, 1, 1, true);
		for (uint32_t i = 0; i < n; i++)
			t[i] = (struct vs_packed_desc){ b.data + 2 * i, 1, 0, i < 3 ? 0 : VS_DESC_WRITE };
		put(&b, 0, b.data + 65536, 16 * n, 0, VS_DESC_INDIRECT);
		CHECK_EQ(bench_take(&b), 0);
		CHECK(b.c.nout == 3 && b.c.nin == n - 3 && b.c.capacity >= n);
		CHECK_EQ(b.c.iov == b.inline_iov, n <= INLINE);
		for (uint32_t i = 0; i < n; i++)
			CHECK(b.c.iov[i].iov_base == bench_host(&b, b.data + 2 * i) && b.c.iov[i].iov_len == 1);
		bench_give_iov_back(&b);
		vs_vring_unpop(&b.r);
		t[n - 1].addr = 0;
		CHECK_EQ(bench_take(&b), -VS_RULE_UNMAPPED);
		CHECK(b.c.iov == b.inline_iov && b.c.capacity == INLINE);
	}
	bench_close(&b);

	/* The longest direct chain there is. */
	bench_open_at(&b, 32768, PACKED, 1, 1);
	CHECK(bufs);
	for (uint32_t i = 0; i < 32768; i++)
		bufs[i] = (struct vs_driver_buffer){ b.data + 16 * i, 1 };
	CHECK_EQ(vs_driver_add(&b.d, bufs, 16384, 16384, false), 0);
	CHECK_EQ(vs_driver_add(&b.d, bufs, 1, 0, false), -ENOSPC);
	CHECK_EQ(vs_driver_add(&b.d, bufs, 32768, 1, false), -EINVAL);
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.nout == 16384 && b.c.nin == 16384 && b.c.span == 32768);
	CHECK_EQ(b.r.last_avail, 1); /* the same descriptor, a lap later */
	bench_give_iov_back(&b);
	vs_vring_unpop(&b.r);
	CHECK_EQ(b.r.last_avail, VS_PACKED_WRAP | 1);
	b.d.ring[0].flags |= VS_DESC_NEXT;
	CHECK_EQ(bench_take(&b), -VS_RULE_TOO_LONG);
	free(bufs);
	bench_close(&b);
}

static void a_table_across_regions(void)
{
	struct vs_driver_buffer buf[2];
	uint64_t border;
	struct bench b;

	bench_open_at(&b, 8, INDIRECT | PACKED, 4, 0);
	border = b.g.regions[2].guest_addr;
	buf[0] = (struct vs_driver_buffer){ b.data, 100 };
	buf[1] = (struct vs_driver_buffer){ border - 1, 2 };
	CHECK_EQ(vs_driver_add(&b.d, buf, 1, 1, true), 0);
	memcpy(vs_guest_ptr(&b.g, border - 24), table_of(&b), 32);
	b.d.ring[0].addr = border - 24;
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.c.out_length, 100);
	CHECK_EQ(vs_iov_from_buffer(b.c.iov + b.c.nout, (int)b.c.nin, 0, "AB", 2), 2);
	CHECK(memcmp(vs_guest_ptr(&b.g, border - 1), "AB", 2) == 0);
	bench_close(&b);
}

static void remap_keeps_the_place(void)
{
	struct vs_region moved;
	uint32_t id, written;
	struct bench b;
	vs_memmap *other;

	bench_open(&b, 3, PACKED);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(bench_take(&b), 0);
	vs_vring_push(&b.r, b.c.head, b.c.span, 3);
	moved = b.g.regions[0];
	moved.user_addr += 1ull << 30;
	CHECK_EQ(vs_memmap_create(b.core, &moved, 1, NULL, 0, &other), 0);
	CHECK_EQ(vs_vring_remap(&b.r, other), -VS_RULE_RING_UNMAPPED);
	CHECK(b.r.map == b.map);
	vs_memmap_destroy(other);
	CHECK_EQ(vs_memmap_create(b.core, b.g.regions, 1, NULL, 0, &other), 0); /* mapped anew, at another address */
	CHECK_EQ(vs_vring_remap(&b.r, other), 0);
	vs_memmap_destroy(b.map);
	b.map = other;
	/* What was pushed before the change is published after it. */
	CHECK(vs_vring_publish(&b.r));
	CHECK(vs_driver_collect(&b.d, &id, &written) == 1 && id == 0 && written == 3);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.r.last_avail, 1);
	bench_close(&b);
}

/* ---- giving back ---------------------------------------------------------------------------------------------------------------------------- */

/* Out of order, lists of different length: where each used descriptor stands, and what it says. */
static void used_descriptors_skip_the_list(void)
{
	struct vs_driver_buffer buf = { 0, 8 };
	uint32_t id, written;
	struct bench b;

	bench_open_at(&b, 7, PACKED, 1, 5);
	buf.addr = b.data;
	for (uint32_t n = 1; n <= 3; n++) {
		struct vs_driver_buffer list[3] = { buf, buf, buf };

		CHECK_EQ(vs_driver_add(&b.d, list, 0, n, false), n - 1);
	}
	CHECK_EQ(vs_vring_available(&b.r), 0); /* the first one is kept back, so nothing is there */
	CHECK(vs_driver_publish(&b.d));
	CHECK_EQ(vs_vring_available(&b.r), 3);
	for (uint32_t i = 0; i < 3; i++)
		CHECK_EQ(bench_take(&b), 0);
	vs_vring_push(&b.r, 2, 3, 24); /* at 5, the next one a lap later at 1 */
	vs_vring_push(&b.r, 0, 1, 0);
	CHECK(!vs_driver_pending(&b.d));
	CHECK_EQ(b.d.ring[1].flags, 0); /* used in a lap of counter 0, nothing written */
	CHECK(vs_vring_publish(&b.r));
	CHECK(b.d.ring[5].id == 2 && b.d.ring[5].len == 24 && b.d.ring[5].flags == (VS_PACKED_AVAIL | VS_PACKED_USED | VS_DESC_WRITE));
	CHECK(b.d.ring[1].id == 0 && b.d.ring[1].len == 0);
	CHECK(vs_driver_collect(&b.d, &id, &written) == 1 && id == 2 && written == 24);
	CHECK(vs_driver_collect(&b.d, &id, &written) == 1 && id == 0 && written == 0);
	CHECK_EQ(vs_driver_collect(&b.d, &id, &written), 0);
	CHECK_EQ(vs_vring_base(&b.r), 4u | 2u << 16);
	vs_vring_push(&b.r, 1, 2, 16);
	CHECK(vs_vring_publish(&b.r));
	CHECK(!vs_vring_publish(&b.r)); /* nothing new */
	CHECK(vs_driver_collect(&b.d, &id, &written) == 1 && id == 1 && written == 16);
	CHECK_EQ(vs_vring_base(&b.r), 4u | 4u << 16);
	CHECK_EQ(b.r.held, 0);
	bench_close(&b);
}

static void a_wrong_device_is_noticed(void)
{
	uint32_t id, written;
	struct bench b;

	bench_open(&b, 8, PACKED);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(vs_driver_collect(&b.d, &id, &written), 0);
	b.d.ring[0] = (struct vs_packed_desc){ 0, 5, 1, VS_PACKED_AVAIL | VS_PACKED_USED };
	CHECK_EQ(vs_driver_collect(&b.d, &id, &written), -EPROTO); /* not in flight */
	b.d.ring[0].id = 8;
	CHECK_EQ(vs_driver_collect(&b.d, &id, &written), -EPROTO);
	b.d.ring[0].id = 0;
	CHECK_EQ(vs_driver_collect(&b.d, &id, &written), 1);
	bench_close(&b);
}

/* ---- places and events -------------------------------------------------------------------------------------------------------------------------- */

/* Against plain counting of descriptors, for sizes that wrap often. */
static void places(void)
{
	for (uint32_t size = 1; size < 12; size++)
		for (uint32_t from = 0; from < 2 * size; from++) {
			uint16_t at = (uint16_t)(from % size | (from / size ? 0 : VS_PACKED_WRAP));

			for (uint32_t n = 0; n <= size; n++) {
				uint32_t to = (from + n) % (2 * size);
				uint16_t want = (uint16_t)(to % size | (to / size ? 0 : VS_PACKED_WRAP));

				CHECK_EQ(vs_packed_forward(at, n, size), want);
				CHECK_EQ(vs_packed_distance(at, want, size), n);
				for (uint32_t e = 0; e < 2 * size; e++) {
					uint32_t event = vs_packed_event(VS_PACKED_DESC, (uint16_t)(e % size | (e / size ? 0 : VS_PACKED_WRAP)));
					bool passed = (e + 2 * size - from) % (2 * size) < n;

					CHECK_EQ(vs_packed_need_event(event, want, at, size, true), passed);
					CHECK(vs_packed_need_event(event, want, at, size, false));
				}
			}
		}
	/* The largest ring: no bit is missing. */
	CHECK_EQ(vs_packed_forward(0xffff, 1, 32768), 0);
	CHECK_EQ(vs_packed_forward(0x7fff, 32768, 32768), 0xffff);
	CHECK_EQ(vs_packed_distance(0x7fff, 0xffff, 32768), 32768);
}

static void notify_flags(uint32_t features)
{
	struct bench b;

	bench_open(&b, 8, features | PACKED);
	b.r.held = 8;
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r));
	*b.d.driver_event = vs_packed_event(VS_PACKED_DISABLE, 0);
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(!vs_vring_publish(&b.r));
	*b.d.driver_event = vs_packed_event(3, 0); /* reserved */
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r));
	*b.d.driver_event = vs_packed_event(VS_PACKED_DESC, VS_PACKED_WRAP | 8); /* no such descriptor */
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r));
	*b.d.driver_event = vs_packed_event(VS_PACKED_DESC, VS_PACKED_WRAP | 6);
	vs_vring_push(&b.r, 0, 2, 1);
	CHECK_EQ(vs_vring_publish(&b.r), !(features & EVENT)); /* 4 and 5; without event index the mode means nothing */
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r));
	*b.d.driver_event = vs_packed_event(VS_PACKED_DESC, 0);
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK_EQ(vs_vring_publish(&b.r), !(features & EVENT)); /* 7 */
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r)); /* 0, in the next lap */
	bench_close(&b);
}

static void the_first_one_notifies(void)
{
	struct bench b;

	bench_open(&b, 8, EVENT | PACKED);
	b.r.held = 8;
	*b.d.driver_event = vs_packed_event(VS_PACKED_DESC, VS_PACKED_WRAP | 5);
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(vs_vring_publish(&b.r)); /* nobody knows what was signalled before */
	vs_vring_push(&b.r, 0, 1, 1);
	CHECK(!vs_vring_publish(&b.r));
	bench_close(&b);
}

static void kicks(uint32_t features)
{
	struct bench b;

	bench_open_at(&b, 3, features | PACKED, 1, 2);
	vs_vring_kicks_off(&b.r);
	CHECK_EQ(*b.d.device_event, vs_packed_event(VS_PACKED_DISABLE, 0));
	bench_post(&b, 1, 0, false);
	b.d.published = b.d.avail_idx;
	CHECK(vs_vring_kicks_on(&b.r)); /* there is something already */
	CHECK_EQ(bench_take(&b), 0);
	CHECK(!vs_vring_kicks_on(&b.r));
	CHECK_EQ(*b.d.device_event, features & EVENT ? vs_packed_event(VS_PACKED_DESC, 0) : 0);
	/* The driver kicks for it, and then not any more. */
	struct vs_driver_buffer buf = { b.data, 8 };
	CHECK_EQ(vs_driver_add(&b.d, &buf, 1, 0, false), 1);
	CHECK(vs_driver_publish(&b.d));
	CHECK_EQ(vs_driver_add(&b.d, &buf, 1, 0, false), 2);
	CHECK_EQ(vs_driver_publish(&b.d), !(features & EVENT));
	CHECK(!vs_driver_publish(&b.d)); /* nothing new */
	bench_close(&b);
}

int main(void)
{
	every_rule_of_chains();
	what_is_held_is_not_taken_again();
	every_rule_of_rings();
	shapes_of_chains();
	long_chains();
	a_table_across_regions();
	remap_keeps_the_place();
	used_descriptors_skip_the_list();
	a_wrong_device_is_noticed();
	places();
	notify_flags(0);
	notify_flags(EVENT);
	the_first_one_notifies();
	kicks(0);
	kicks(EVENT);
	return 0;
}
