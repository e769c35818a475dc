// SPDX-License-Identifier: Apache-2.0
/*
 * The device side of a split ring against the driver side: every rule broken once, event indices at their edges, buffers across regions.
 */
#include <unistd.h>

#include "vring_rig.h"

static struct vs_vring_desc *table_of(struct bench *b, uint32_t head)
{
	return vs_guest_ptr(&b->g, b->d.desc[head].addr);
}

/* ---- every rule once ------------------------------------------------------------------------------------------------------------------------ */

enum shape { DIRECT, IN_TABLE };

/* One posted chain of 2 readable and 2 writable buffers on a ring of 8, spoilt: it must break just this rule, and take nothing. */
static void breaks(int rule, enum shape shape, void (*spoil)(struct bench *b))
{
	struct bench b;

	bench_open(&b, 8, EVENT | INDIRECT);
	bench_post(&b, 2, 2, shape == IN_TABLE);
	spoil(&b);
	CHECK_EQ(bench_take(&b), -rule);
	CHECK_EQ(b.r.last_avail, 0);
	CHECK(rule == VS_RULE_AVAIL_JUMP || (b.c.iov == b.inline_iov && b.c.capacity == INLINE));
	bench_close(&b);
}

static void avail_runs_ahead(struct bench *b) { b->d.avail->idx = 9; }
static void avail_runs_back(struct bench *b) { b->d.avail->idx = 0xffff; }
static void head_beyond(struct bench *b) { b->d.avail->ring[0] = 8; }
static void next_beyond(struct bench *b) { b->d.desc[1].next = 8; }
static void next_of_last_beyond(struct bench *b) { b->d.desc[3].flags |= VS_DESC_NEXT; b->d.desc[3].next = 0xffff; }
static void loop_to_itself(struct bench *b) { b->d.desc[1].next = 1; }
static void loop_of_writable(struct bench *b) { b->d.desc[3].flags |= VS_DESC_NEXT; b->d.desc[3].next = 2; }
static void wrong_order(struct bench *b) { b->d.desc[0].flags |= VS_DESC_WRITE; }
static void unmapped_low(struct bench *b) { b->d.desc[0].addr = VS_GUEST_ADDR - 1; }
static void unmapped_end(struct bench *b) { b->d.desc[3].addr = VS_GUEST_ADDR + b->g.size - 511; }
static void unmapped_far(struct bench *b) { b->d.desc[2].addr = 1ull << 63; }
static void wraps_by_one(struct bench *b) { b->d.desc[2].addr = 0ull - 511; }
static void wraps_far(struct bench *b) { b->d.desc[0].addr = UINT64_MAX; }
static void ends_at_the_end(struct bench *b) { b->d.desc[0].addr = 0ull - 512; }
static void too_many_bytes(struct bench *b) { b->d.desc[0].len = 512 + 1; b->d.desc[1].len = UINT32_MAX - 512; }
static void all_empty(struct bench *b)
{
	for (int i = 0; i < 4; i++)
		b->d.desc[i].len = 0;
}
static void indirect_and_next(struct bench *b) { b->d.desc[0].flags |= VS_DESC_NEXT; }
static void indirect_empty(struct bench *b) { b->d.desc[0].len = 0; }
static void indirect_odd(struct bench *b) { b->d.desc[0].len = 4 * 16 + 8; }
static void indirect_unmapped(struct bench *b) { b->d.desc[0].addr = 0x1000; }
static void indirect_half_unmapped(struct bench *b)
{
	/* The last descriptor of the table lies half beyond the end of memory. */
	uint64_t addr = VS_GUEST_ADDR + b->g.size - 56;

	memcpy(vs_guest_ptr(&b->g, addr), table_of(b, 0), 56);
	b->d.desc[0].addr = addr;
}
static void indirect_wraps(struct bench *b) { b->d.desc[0].addr = 0ull - 32; }
static void indirect_nested(struct bench *b) { table_of(b, 0)[1].flags |= VS_DESC_INDIRECT; }
static void indirect_not_asked(struct bench *b) { b->r.features &= ~(uint32_t)INDIRECT; }
static void table_next_beyond(struct bench *b) { table_of(b, 0)[1].next = 4; }
static void table_loop(struct bench *b) { table_of(b, 0)[3].flags |= VS_DESC_NEXT; table_of(b, 0)[3].next = 3; }
static void table_wrong_order(struct bench *b) { table_of(b, 0)[0].flags |= VS_DESC_WRITE; }
static void table_unmapped(struct bench *b) { table_of(b, 0)[2].addr = 4096; }
static void table_all_empty(struct bench *b)
{
	for (int i = 0; i < 4; i++)
		table_of(b, 0)[i].len = 0;
}
static void loop_through_indirect(struct bench *b)
{
	/* The ring's own descriptors come first: 2.7.5.3.2. Here they never end. */
	b->d.desc[0] = (struct vs_vring_desc){ b->data, 16, VS_DESC_NEXT, 1 };
	b->d.desc[1] = (struct vs_vring_desc){ b->data, 16, VS_DESC_NEXT, 0 };
}
/* A table of 2048 entries, all in one chain: more than we take on a ring of 8. */
static void very_long(struct bench *b)
{
	struct vs_vring_desc *t = vs_guest_ptr(&b->g, b->data + 65536);

	for (uint32_t i = 0; i < 2048; i++)
		t[i] = (struct vs_vring_desc){ b->data, 1, i < 2047 ? VS_DESC_NEXT : 0, (uint16_t)(i + 1) };
	b->d.desc[0] = (struct vs_vring_desc){ b->data + 65536, 2048 * 16, VS_DESC_INDIRECT, 0 };
}

static void every_rule_of_chains(void)
{
	breaks(VS_RULE_AVAIL_JUMP, DIRECT, avail_runs_ahead);
	breaks(VS_RULE_AVAIL_JUMP, DIRECT, avail_runs_back);
	breaks(VS_RULE_HEAD_RANGE, DIRECT, head_beyond);
	breaks(VS_RULE_NEXT_RANGE, DIRECT, next_beyond);
	breaks(VS_RULE_NEXT_RANGE, DIRECT, next_of_last_beyond);
	breaks(VS_RULE_LOOP, DIRECT, loop_to_itself);
	breaks(VS_RULE_LOOP, DIRECT, loop_of_writable);
	breaks(VS_RULE_LOOP, DIRECT, loop_through_indirect);
	breaks(VS_RULE_READABLE_AFTER_WRITABLE, DIRECT, wrong_order);
	breaks(VS_RULE_UNMAPPED, DIRECT, unmapped_low);
	breaks(VS_RULE_UNMAPPED, DIRECT, unmapped_end);
	breaks(VS_RULE_UNMAPPED, DIRECT, unmapped_far);
	breaks(VS_RULE_ADDRESS_OVERFLOW, DIRECT, wraps_by_one);
	breaks(VS_RULE_ADDRESS_OVERFLOW, DIRECT, wraps_far);
	breaks(VS_RULE_UNMAPPED, DIRECT, ends_at_the_end);
	breaks(VS_RULE_ZERO_LENGTH, DIRECT, all_empty);
	breaks(VS_RULE_INDIRECT_AND_NEXT, IN_TABLE, indirect_and_next);
	breaks(VS_RULE_INDIRECT_LENGTH, IN_TABLE, indirect_empty);
	breaks(VS_RULE_INDIRECT_LENGTH, IN_TABLE, indirect_odd);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, indirect_unmapped);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, indirect_half_unmapped);
	breaks(VS_RULE_ADDRESS_OVERFLOW, IN_TABLE, indirect_wraps);
	breaks(VS_RULE_INDIRECT_NESTED, IN_TABLE, indirect_nested);
	breaks(VS_RULE_INDIRECT_NOT_NEGOTIATED, IN_TABLE, indirect_not_asked);
	breaks(VS_RULE_NEXT_RANGE, IN_TABLE, table_next_beyond);
	breaks(VS_RULE_LOOP, IN_TABLE, table_loop);
	breaks(VS_RULE_READABLE_AFTER_WRITABLE, IN_TABLE, table_wrong_order);
	breaks(VS_RULE_UNMAPPED, IN_TABLE, table_unmapped);
	breaks(VS_RULE_ZERO_LENGTH, IN_TABLE, table_all_empty);
	breaks(VS_RULE_TOO_LONG, IN_TABLE, very_long);
}

/* Lengths up to 2^32 - 1 are added without wrapping: a memory as large as that, most of it never touched. */
static void chain_bytes(void)
{
	struct bench b;
	struct vs_region r;
	vs_memmap *large;

	bench_open(&b, 8, 0);
	CHECK(ftruncate(b.g.fd, 5ll << 30) == 0);
	r = b.g.regions[0];
	r.size = 5ull << 30;
	CHECK_EQ(vs_memmap_create(b.core, &r, 1, NULL, 0, &large), 0);
	CHECK_EQ(vs_vring_remap(&b.r, large), 0);
	bench_post(&b, 2, 2, false);
	too_many_bytes(&b);
	CHECK_EQ(bench_take(&b), -VS_RULE_CHAIN_BYTES);
	b.d.desc[1].len = UINT32_MAX - 512 - 1025;
	b.d.desc[2].len = 1024;
	b.d.desc[3].len = 1;
	CHECK_EQ(bench_take(&b), -VS_RULE_CHAIN_BYTES);
	b.d.desc[3].len = 0;
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.c.out_length + b.c.in_length, UINT32_MAX);
	vs_memmap_destroy(large);
	bench_close(&b);
}

static int init_with(struct bench *b, struct vs_queue_params p)
{
	struct vs_vring r;

	return vs_vring_init(&r, b->map, &p);
}

static void every_rule_of_rings(void)
{
	static const uint32_t bad_sizes[] = { 0, 3, 65536, 32769, 0x80000000, UINT32_MAX };
	struct vs_queue_params good, p;
	uint64_t end;
	struct bench b;

	bench_open(&b, 8, EVENT);
	vs_driver_params(&b.d, &good);
	end = VS_GUEST_USER_ADDR + b.g.size;
	for (size_t i = 0; i < sizeof(bad_sizes) / sizeof(*bad_sizes); i++) {
		p = good;
		p.size = bad_sizes[i];
		CHECK_EQ(init_with(&b, p), -VS_RULE_RING_SIZE);
	}
	p = good, p.desc += 8;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_ALIGN);
	p = good, p.avail += 1;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_ALIGN);
	p = good, p.used += 2;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_ALIGN);
	p = good, p.desc = end - 7 * 16;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	p = good, p.avail = end - 20; /* without the event word it would fit */
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	p.features = 0;
	CHECK_EQ(init_with(&b, p), 0);
	p = good, p.used = end - 68;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	p.features = 0;
	CHECK_EQ(init_with(&b, p), 0);
	p = good, p.desc = 0;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	p = good, p.used = 0ull - 4;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	/* A ring may not lie across two regions. */
	bench_close(&b);
	bench_open_at(&b, 8, 0, 2, 0);
	vs_driver_params(&b.d, &p);
	p.desc = b.g.regions[1].user_addr - 16;
	CHECK_EQ(init_with(&b, p), -VS_RULE_RING_UNMAPPED);
	bench_close(&b);
}

static void rules_have_names(void)
{
	for (int i = 0; i < VS_RULES; i++) {
		CHECK(vs_ring_rule_name(i) && *vs_ring_rule_name(i));
		for (int k = 0; k < i; k++)
			CHECK(strcmp(vs_ring_rule_name(i), vs_ring_rule_name(k)));
	}
	CHECK(strcmp(vs_ring_rule_name(VS_RULE_INDIRECT_NESTED), "INDIRECT_NESTED") == 0);
	CHECK(strcmp(vs_ring_rule_name(-1), vs_ring_rule_name(VS_RULES)) == 0);
}

/* ---- chains become iovecs ------------------------------------------------------------------------------------------------------------------- */

static void shapes_of_chains(void)
{
	struct bench b;

	bench_open(&b, 8, INDIRECT);
	bench_post(&b, 1, 2, false);
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.head == 0 && b.c.nout == 1 && b.c.nin == 2 && b.c.out_length == 512 && b.c.in_length == 1024);
	CHECK(b.c.iov[0].iov_base == bench_host(&b, b.data) && b.c.iov[2].iov_base == bench_host(&b, b.data + 2048));
	CHECK_EQ(bench_take(&b), 1);
	vs_vring_unpop(&b.r);
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.c.head, 0);
	bench_close(&b);

	/* Empty buffers are left out; neighbours become one; a readable and a writable neighbour do not. */
	bench_open(&b, 8, INDIRECT);
	bench_post(&b, 3, 3, true);
	table_of(&b, 0)[0] = (struct vs_vring_desc){ b.data, 10, VS_DESC_NEXT, 1 };
	table_of(&b, 0)[1] = (struct vs_vring_desc){ 12345, 0, VS_DESC_NEXT, 2 };
	table_of(&b, 0)[2] = (struct vs_vring_desc){ b.data + 10, 20, VS_DESC_NEXT, 3 };
	table_of(&b, 0)[3] = (struct vs_vring_desc){ b.data + 30, 5, VS_DESC_NEXT | VS_DESC_WRITE, 4 };
	table_of(&b, 0)[4] = (struct vs_vring_desc){ b.data + 35, 6, VS_DESC_NEXT | VS_DESC_WRITE, 5 };
	table_of(&b, 0)[5] = (struct vs_vring_desc){ 0, 0, VS_DESC_WRITE, 0 };
	b.d.desc[0].flags |= VS_DESC_WRITE; /* means nothing here: 2.7.5.3.2 */
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.nout == 1 && b.c.nin == 1 && b.c.out_length == 30 && b.c.in_length == 11);
	CHECK(b.c.iov[0].iov_len == 30 && b.c.iov[1].iov_base == bench_host(&b, b.data + 30) && b.c.iov[1].iov_len == 11);
	bench_close(&b);

	/* Direct descriptors, then a table at an odd address. */
	bench_open(&b, 8, INDIRECT);
	bench_post(&b, 1, 2, false);
	struct vs_vring_desc in[2] = { { b.data + 3000, 7, VS_DESC_NEXT, 1 }, { b.data + 4000, 8, VS_DESC_WRITE, 0 } };
	memcpy(vs_guest_ptr(&b.g, b.data + 8193), in, sizeof(in));
	b.d.desc[1] = (struct vs_vring_desc){ b.data + 8193, 32, VS_DESC_INDIRECT, 0 };
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.nout == 2 && b.c.nin == 1 && b.c.out_length == 519 && b.c.in_length == 8);
	bench_close(&b);
}

/* Longer than the caller's array, and as Linux makes them on a small ring: 128 buffers in a table on a ring of 8. */
static void long_chains(void)
{
	struct bench b;
	uint32_t n;

	bench_open(&b, 8, INDIRECT);
	for (n = INLINE - 1; n <= 1024; n = n < 20 ? n + 1 : 2 * n) {
		struct vs_vring_desc *t = vs_guest_ptr(&b.g, b.data + 65536);

		n = vs_min(n, 1024u);
		vs_driver_reset(&b.d, b.r.last_avail);
		b.r.used_idx = b.r.published = b.r.last_avail;
		bench_post(&b, 1, 1, true);
		for (uint32_t i = 0; i < n; i++)
			t[i] = (struct vs_vring_desc){ b.data + 2 * i, 1, (uint16_t)((i + 1 < n ? VS_DESC_NEXT : 0) | (i < 3 ? 0 : VS_DESC_WRITE)), (uint16_t)(i + 1) };
		b.d.desc[0] = (struct vs_vring_desc){ b.data + 65536, 16 * n, VS_DESC_INDIRECT, 0 };
		CHECK_EQ(bench_take(&b), 0);
		CHECK(b.c.nout == 3 && b.c.nin == n - 3 && b.c.in_length == n - 3);
		CHECK_EQ(b.c.iov == b.inline_iov, n <= INLINE);
		CHECK(b.c.capacity >= n);
		for (uint32_t i = 0; i < n; i++)
			CHECK(b.c.iov[i].iov_base == bench_host(&b, b.data + 2 * i) && b.c.iov[i].iov_len == 1);
		bench_give_iov_back(&b);
		/* The same, broken at its end: the array goes back. */
		vs_vring_unpop(&b.r);
		t[n - 1].addr = 0;
		CHECK_EQ(bench_take(&b), -VS_RULE_UNMAPPED);
		CHECK(b.c.iov == b.inline_iov && b.c.capacity == INLINE);
	}
	bench_close(&b);

	/* The longest direct chain there is. */
	bench_open(&b, 32768, 0);
	struct vs_driver_buffer *bufs = calloc(32768, sizeof(*bufs));
	CHECK(bufs);
	for (uint32_t i = 0; i < 32768; i++)
		bufs[i] = (struct vs_driver_buffer){ b.data + 16 * i, 1 };
	CHECK_EQ(vs_driver_add(&b.d, bufs, 16384, 16384, false), 0);
	CHECK_EQ(vs_driver_add(&b.d, bufs, 1, 0, false), -ENOSPC);
	CHECK_EQ(vs_driver_add(&b.d, bufs, 32768, 1, false), -EINVAL);
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), 0);
	CHECK(b.c.nout == 16384 && b.c.nin == 16384);
	bench_give_iov_back(&b);
	b.d.desc[32767].flags |= VS_DESC_NEXT;
	vs_vring_unpop(&b.r);
	CHECK_EQ(bench_take(&b), -VS_RULE_LOOP);
	free(bufs);
	bench_close(&b);
}

static void buffers_across_regions(void)
{
	struct vs_driver_buffer buf[2];
	uint64_t border, other;
	struct bench b;

	bench_open_at(&b, 8, INDIRECT, 4, 0);
	border = b.g.regions[2].guest_addr;
	other = b.g.regions[3].guest_addr;
	for (uint64_t i = 0; i < other + 50 - (border - 100); i++)
		*(uint8_t *)vs_guest_ptr(&b.g, border - 100 + i) = (uint8_t)(i * 7);
	buf[0] = (struct vs_driver_buffer){ border - 100, (uint32_t)(other + 50 - (border - 100)) }; /* three regions */
	buf[1] = (struct vs_driver_buffer){ border - 1, 2 };
	CHECK_EQ(vs_driver_add(&b.d, buf, 1, 1, true), 0);
	/* And a table across the border, a descriptor of which lies across, too. */
	memcpy(vs_guest_ptr(&b.g, border - 24), table_of(&b, 0), 32);
	b.d.desc[0].addr = border - 24;
	buf[0].addr = border - 100;
	vs_driver_publish(&b.d);
	CHECK_EQ(bench_take(&b), 0);
	/* The regions' mappings may happen to be neighbours here: then the pieces are one. The bytes say it all. */
	CHECK(b.c.nout >= 1 && b.c.nout <= 3 && b.c.nin >= 1 && b.c.nin <= 2);
	CHECK_EQ(b.c.out_length, buf[0].length);
	CHECK_EQ(vs_iov_length(b.c.iov, (int)b.c.nout), buf[0].length);
	CHECK_EQ(vs_iov_length(b.c.iov + b.c.nout, (int)b.c.nin), 2);
	uint8_t *copy = malloc(buf[0].length);
	CHECK(copy && vs_iov_to_buffer(b.c.iov, (int)b.c.nout, 0, copy, buf[0].length) == buf[0].length);
	CHECK(memcmp(copy, vs_guest_ptr(&b.g, buf[0].addr), buf[0].length) == 0);
	free(copy);
	CHECK_EQ(vs_iov_from_buffer(b.c.iov + b.c.nout, (int)b.c.nin, 0, "AB", 2), 2);
	CHECK(memcmp(vs_guest_ptr(&b.g, border - 1), "AB", 2) == 0);
	bench_close(&b);
}

static void remap_keeps_the_place(void)
{
	struct vs_region moved;
	vs_memmap *anew, *other;
	struct bench b;

	bench_open(&b, 4, 0);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(bench_take(&b), 0);
	vs_vring_push(&b.r, 0, 0, 3);
	vs_vring_publish(&b.r);
	moved = b.g.regions[0];
	moved.user_addr += 1ull << 30;
	CHECK_EQ(vs_memmap_create(b.core, &moved, 1, b.map, 0, &other), 0);
	CHECK_EQ(vs_vring_remap(&b.r, other), -VS_RULE_RING_UNMAPPED);
	CHECK(b.r.map == b.map); /* as it was */
	moved.user_addr -= 1ull << 30;
	moved.size -= 4096;
	CHECK_EQ(vs_memmap_create(b.core, &moved, 1, b.map, 0, &anew), 0);
	CHECK_EQ(vs_vring_remap(&b.r, anew), 0);
	vs_memmap_destroy(b.map);
	vs_memmap_destroy(other);
	b.map = anew;
	uint32_t head, written;
	CHECK(vs_driver_collect(&b.d, &head, &written) == 1 && head == 0 && written == 3);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(bench_take(&b), 0);
	CHECK_EQ(b.r.last_avail, 2);
	vs_vring_push(&b.r, b.c.head, 0, 4);
	vs_vring_publish(&b.r);
	CHECK(vs_driver_collect(&b.d, &head, &written) == 1 && written == 4);
	bench_close(&b);
}

/* ---- notifications ------------------------------------------------------------------------------------------------------------------------ */

static void need_event_arithmetic(void)
{
	/* Every distance near the wrap: the event must lie in [old, new). */
	for (int old = 65530; old < 65545; old++)
		for (int n = 0; n < 12; n++)
			for (int event = old - 5; event < old + 20; event++)
				CHECK_EQ(vs_vring_need_event((uint16_t)event, (uint16_t)(old + n), (uint16_t)old), event >= old && event < old + n);
	CHECK(vs_vring_need_event(5, 4, 5)); /* 65535 entries: all but one value */
	CHECK(!vs_vring_need_event(4, 4, 5));
}

static void flags_without_event_idx(void)
{
	struct bench b;

	bench_open(&b, 8, 0);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(bench_take(&b), 0);
	vs_vring_push(&b.r, 0, 0, 1);
	CHECK_EQ(b.d.used->idx, 0); /* not visible yet */
	CHECK(vs_vring_publish(&b.r));
	CHECK_EQ(b.d.used->idx, 1);
	CHECK(!vs_vring_publish(&b.r)); /* nothing new */
	b.d.avail->flags = VS_AVAIL_NO_INTERRUPT;
	vs_vring_push(&b.r, 0, 0, 1);
	CHECK(!vs_vring_publish(&b.r));
	b.d.avail->flags = 0;
	vs_vring_push(&b.r, 0, 0, 1);
	CHECK(vs_vring_publish(&b.r));
	/* A fresh ring is kicked until told otherwise, at once. */
	vs_vring_kicks_off(&b.r);
	CHECK_EQ(b.d.used->flags, VS_USED_NO_NOTIFY);
	CHECK(!vs_vring_kicks_on(&b.r));
	CHECK_EQ(b.d.used->flags, 0);
	b.d.avail->idx = 2;
	CHECK(vs_vring_kicks_on(&b.r));
	bench_close(&b);
}

static void events_at_their_edges(void)
{
	struct bench b;

	bench_open_at(&b, 8, EVENT, 1, 65534);
	CHECK_EQ(b.r.used_idx, 65534);
	vs_vring_push(&b.r, 0, 0, 1);
	b.d.avail->ring[8] = 5;
	CHECK(vs_vring_publish(&b.r)); /* the first one: nobody knows what was signalled before */
	vs_vring_push(&b.r, 0, 0, 1);
	b.d.avail->ring[8] = 65534;
	CHECK(!vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 0, 1);
	b.d.avail->ring[8] = 0;
	CHECK(vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 0, 1);
	b.d.avail->ring[8] = 2;
	b.d.avail->flags = VS_AVAIL_NO_INTERRUPT; /* means nothing with event indices: 2.7.7.2 */
	CHECK(!vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 0, 1);
	vs_vring_push(&b.r, 0, 0, 1);
	CHECK(vs_vring_publish(&b.r)); /* 2 and 3 */
	/* avail_event is what the device has seen last; the flag stays 0. */
	CHECK(!vs_vring_kicks_on(&b.r));
	uint16_t event;
	memcpy(&event, &b.d.used->ring[8], 2);
	CHECK_EQ(event, 65534);
	b.d.avail->ring[0] = 0;
	b.d.avail->idx = 65535;
	CHECK(vs_vring_kicks_on(&b.r));
	CHECK_EQ(vs_vring_available(&b.r), 1);
	CHECK(vs_vring_kicks_on(&b.r));
	memcpy(&event, &b.d.used->ring[8], 2);
	CHECK_EQ(event, 65535);
	vs_vring_kicks_off(&b.r);
	CHECK_EQ(b.d.used->flags, 0);
	bench_close(&b);
}

/* ---- the driver side refuses what a device may not do ------------------------------------------------------------------------------------------- */

static void a_wrong_device_is_noticed(void)
{
	uint32_t head, written;
	struct bench b;

	bench_open(&b, 8, 0);
	bench_post(&b, 1, 1, false);
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), 0);
	b.d.used->idx = 2; /* more than are in flight */
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), -EPROTO);
	vs_driver_reset(&b.d, 0);
	bench_post(&b, 1, 1, false);
	b.d.used->ring[0].id = 1; /* inside the chain, not its head */
	b.d.used->idx = 1;
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), -EPROTO);
	b.d.used->ring[0].id = 8;
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), -EPROTO);
	b.d.used->ring[0].id = 0;
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), 1);
	bench_close(&b);
}

int main(void)
{
	every_rule_of_chains();
	chain_bytes();
	every_rule_of_rings();
	rules_have_names();
	shapes_of_chains();
	long_chains();
	buffers_across_regions();
	remap_keeps_the_place();
	need_event_arithmetic();
	flags_without_event_idx();
	events_at_their_edges();
	a_wrong_device_is_noticed();
	return 0;
}
