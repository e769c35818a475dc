// SPDX-License-Identifier: Apache-2.0
/*
 * The device side of a split ring against the driver side: every rule broken once, both sides through the wrap of their 16-bit indices at
 * all kinds of sizes, event indices at their edges, buffers across regions, and two threads that sleep and wake each other.
 */
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

enum { EVENT = VS_RING_EVENT_IDX, INDIRECT = VS_RING_INDIRECT, INLINE = 8, TABLE = 64 };

struct bench {
	vs_core *core;
	struct vs_worker *w;
	struct vs_guest g;
	struct vs_driver d;
	struct vs_vring r;
	vs_memmap *map;
	uint64_t data; /* guest address of 1 MiB */
	struct iovec inline_iov[INLINE];
	struct vs_chain c;
};

enum { DATA = 1 << 20 };

static void bench_open_at(struct bench *b, uint32_t size, uint32_t features, uint32_t nregions, uint16_t idx)
{
	struct vs_config config = { .nworkers = 1, .io_threads = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER };
	struct vs_queue_params p;

	memset(b, 0, sizeof(*b));
	b->w = aligned_alloc(VS_CACHE_LINE, sizeof(*b->w)); /* only its iovec lists are used */
	CHECK(b->w);
	memset(b->w, 0, sizeof(*b->w));
	CHECK_EQ(vs_core_create(&config, &b->core), 0);
	CHECK_EQ(vs_guest_create((16 * TABLE + 64ull) * size + 2 * DATA, nregions, &b->g), 0);
	CHECK_EQ(vs_driver_create(&b->g, size, features, features & INDIRECT ? TABLE : 0, &b->d), 0);
	vs_driver_reset(&b->d, idx);
	b->data = vs_guest_alloc(&b->g, DATA, 4096);
	CHECK(b->data);
	CHECK_EQ(vs_memmap_create(b->core, b->g.regions, b->g.nregions, NULL, 0, &b->map), 0);
	vs_driver_params(&b->d, &p);
	CHECK_EQ(p.base, idx);
	CHECK_EQ(vs_vring_init(&b->r, b->map, &p), 0);
}

static void bench_open(struct bench *b, uint32_t size, uint32_t features)
{
	bench_open_at(b, size, features, 1, 0);
}

static void bench_close(struct bench *b)
{
	for (int i = 0; i < VS_IOV_CLASSES; i++)
		for (struct vs_iovec_block *f = b->w->iov_free[i], *next; f; f = next) {
			next = f->next;
			free(f);
		}
	free(b->w);
	vs_memmap_destroy(b->map);
	vs_driver_destroy(&b->d);
	vs_guest_destroy(&b->g);
	vs_core_destroy(b->core);
}

/* What a device does first: 0 and the chain in b->c, 1: nothing there, -rule. */
static int take(struct bench *b)
{
	int n = vs_vring_available(&b->r);

	if (n <= 0)
		return n ? n : 1;
	b->c = (struct vs_chain){ .iov = b->inline_iov, .capacity = INLINE };
	return vs_vring_pop(&b->r, b->w, &b->c);
}

static void give_iov_back(struct bench *b)
{
	if (b->c.iov != b->inline_iov)
		vs_iovec_put(b->w, b->c.iov, b->c.capacity);
	b->c.iov = b->inline_iov;
}

static void *host(struct bench *b, uint64_t addr)
{
	return vs_memmap_guest(b->map, addr, 1, NULL);
}

/* A chain that lies at descriptor 0 and on, 512 bytes a buffer with gaps between, then published. */
static void post(struct bench *b, uint32_t nout, uint32_t nin, bool indirect)
{
	struct vs_driver_buffer bufs[TABLE];

	for (uint32_t i = 0; i < nout + nin; i++)
		bufs[i] = (struct vs_driver_buffer){ b->data + 1024 * i, 512 };
	CHECK_EQ(vs_driver_add(&b->d, bufs, nout, nin, indirect), 0);
	vs_driver_publish(&b->d);
}

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
	post(&b, 2, 2, shape == IN_TABLE);
	spoil(&b);
	CHECK_EQ(take(&b), -rule);
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
	post(&b, 2, 2, false);
	too_many_bytes(&b);
	CHECK_EQ(take(&b), -VS_RULE_CHAIN_BYTES);
	b.d.desc[1].len = UINT32_MAX - 512 - 1025;
	b.d.desc[2].len = 1024;
	b.d.desc[3].len = 1;
	CHECK_EQ(take(&b), -VS_RULE_CHAIN_BYTES);
	b.d.desc[3].len = 0;
	CHECK_EQ(take(&b), 0);
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
	post(&b, 1, 2, false);
	CHECK_EQ(take(&b), 0);
	CHECK(b.c.head == 0 && b.c.nout == 1 && b.c.nin == 2 && b.c.out_length == 512 && b.c.in_length == 1024);
	CHECK(b.c.iov[0].iov_base == host(&b, b.data) && b.c.iov[2].iov_base == host(&b, b.data + 2048));
	CHECK_EQ(take(&b), 1);
	vs_vring_unpop(&b.r);
	CHECK_EQ(take(&b), 0);
	CHECK_EQ(b.c.head, 0);
	bench_close(&b);

	/* Empty buffers are left out; neighbours become one; a readable and a writable neighbour do not. */
	bench_open(&b, 8, INDIRECT);
	post(&b, 3, 3, true);
	table_of(&b, 0)[0] = (struct vs_vring_desc){ b.data, 10, VS_DESC_NEXT, 1 };
	table_of(&b, 0)[1] = (struct vs_vring_desc){ 12345, 0, VS_DESC_NEXT, 2 };
	table_of(&b, 0)[2] = (struct vs_vring_desc){ b.data + 10, 20, VS_DESC_NEXT, 3 };
	table_of(&b, 0)[3] = (struct vs_vring_desc){ b.data + 30, 5, VS_DESC_NEXT | VS_DESC_WRITE, 4 };
	table_of(&b, 0)[4] = (struct vs_vring_desc){ b.data + 35, 6, VS_DESC_NEXT | VS_DESC_WRITE, 5 };
	table_of(&b, 0)[5] = (struct vs_vring_desc){ 0, 0, VS_DESC_WRITE, 0 };
	b.d.desc[0].flags |= VS_DESC_WRITE; /* means nothing here: 2.7.5.3.2 */
	CHECK_EQ(take(&b), 0);
	CHECK(b.c.nout == 1 && b.c.nin == 1 && b.c.out_length == 30 && b.c.in_length == 11);
	CHECK(b.c.iov[0].iov_len == 30 && b.c.iov[1].iov_base == host(&b, b.data + 30) && b.c.iov[1].iov_len == 11);
	bench_close(&b);

	/* Direct descriptors, then a table at an odd address. */
	bench_open(&b, 8, INDIRECT);
	post(&b, 1, 2, false);
	struct vs_vring_desc in[2] = { { b.data + 3000, 7, VS_DESC_NEXT, 1 }, { b.data + 4000, 8, VS_DESC_WRITE, 0 } };
	memcpy(vs_guest_ptr(&b.g, b.data + 8193), in, sizeof(in));
	b.d.desc[1] = (struct vs_vring_desc){ b.data + 8193, 32, VS_DESC_INDIRECT, 0 };
	CHECK_EQ(take(&b), 0);
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
		post(&b, 1, 1, true);
		for (uint32_t i = 0; i < n; i++)
			t[i] = (struct vs_vring_desc){ b.data + 2 * i, 1, (uint16_t)((i + 1 < n ? VS_DESC_NEXT : 0) | (i < 3 ? 0 : VS_DESC_WRITE)), (uint16_t)(i + 1) };
		b.d.desc[0] = (struct vs_vring_desc){ b.data + 65536, 16 * n, VS_DESC_INDIRECT, 0 };
		CHECK_EQ(take(&b), 0);
		CHECK(b.c.nout == 3 && b.c.nin == n - 3 && b.c.in_length == n - 3);
		CHECK_EQ(b.c.iov == b.inline_iov, n <= INLINE);
		CHECK(b.c.capacity >= n);
		for (uint32_t i = 0; i < n; i++)
			CHECK(b.c.iov[i].iov_base == host(&b, b.data + 2 * i) && b.c.iov[i].iov_len == 1);
		give_iov_back(&b);
		/* The same, broken at its end: the array goes back. */
		vs_vring_unpop(&b.r);
		t[n - 1].addr = 0;
		CHECK_EQ(take(&b), -VS_RULE_UNMAPPED);
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
	CHECK_EQ(take(&b), 0);
	CHECK(b.c.nout == 16384 && b.c.nin == 16384);
	give_iov_back(&b);
	b.d.desc[32767].flags |= VS_DESC_NEXT;
	vs_vring_unpop(&b.r);
	CHECK_EQ(take(&b), -VS_RULE_LOOP);
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
	CHECK_EQ(take(&b), 0);
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
	post(&b, 1, 1, false);
	CHECK_EQ(take(&b), 0);
	vs_vring_push(&b.r, 0, 3);
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
	post(&b, 1, 1, false);
	CHECK_EQ(take(&b), 0);
	CHECK_EQ(b.r.last_avail, 2);
	vs_vring_push(&b.r, b.c.head, 4);
	vs_vring_publish(&b.r);
	CHECK(vs_driver_collect(&b.d, &head, &written) == 1 && written == 4);
	bench_close(&b);
}

/* ---- both sides, for long --------------------------------------------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252ull;

static uint32_t rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 33) % below;
}

struct pending { uint32_t head, written; uint8_t mark; };

/* Random batches on both sides, completions out of order, through the wrap of both indices. A side that sleeps must be woken. */
static void both_sides(uint32_t size, uint32_t features, uint32_t requests)
{
	struct pending *held = calloc(size, sizeof(*held));
	uint8_t *marks = calloc(size, 1);
	uint32_t nheld = 0, sent = 0, back = 0;
	bool device_sleeps = false, driver_sleeps = false;
	struct bench b;

	CHECK(held && marks);
	bench_open_at(&b, size, features, 3, (uint16_t)(65536 - requests / 2));
	while (back < requests) {
		uint32_t batch = rnd(2 * size) + 1;
		int n;

		/* The driver sends. */
		while (batch-- && sent < requests) {
			uint32_t at = rnd(DATA - 256);
			struct vs_driver_buffer bufs[4] = { { b.data + at, 1 }, { b.data + at + 1, rnd(100) }, { b.data + at + 128, 1 + rnd(50) }, { b.data + at + 200, rnd(40) } };
			bool table = (features & INDIRECT) && rnd(2);
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
			marks[head] = (uint8_t)rnd(256);
			sent++;
		}
		if (vs_driver_publish(&b.d))
			device_sleeps = false;
		CHECK(!(device_sleeps && b.d.published != b.r.last_avail)); /* a kick was lost */
		/* The device takes some. */
		n = device_sleeps ? 0 : vs_vring_available(&b.r);
		CHECK(n >= 0 && n <= (int)size);
		for (uint32_t most = rnd(size) + 1; n > 0 && most; n--, most--) {
			b.c = (struct vs_chain){ .iov = b.inline_iov, .capacity = INLINE };
			CHECK_EQ(vs_vring_pop(&b.r, b.w, &b.c), 0);
			held[nheld++] = (struct pending){ b.c.head, (uint32_t)b.c.in_length, marks[b.c.head] };
			if (rnd(8) == 0) {
				vs_vring_unpop(&b.r);
				nheld--;
			}
			give_iov_back(&b);
		}
		if (!device_sleeps && rnd(2))
			vs_vring_kicks_off(&b.r);
		else if (!device_sleeps && vs_vring_available(&b.r) == 0)
			device_sleeps = !vs_vring_kicks_on(&b.r);
		/* It gives some back, in any order. */
		for (uint32_t give = rnd(size + 1); give && nheld; give--) {
			uint32_t i = rnd(nheld);

			vs_vring_push(&b.r, held[i].head, held[i].written << 8 | held[i].mark);
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
				back++;
			}
			if (rnd(2))
				vs_driver_interrupts_off(&b.d);
			else
				driver_sleeps = !vs_driver_interrupts_on(&b.d);
		} else {
			CHECK_EQ(b.d.used->idx, b.d.last_used); /* an interrupt was lost */
		}
	}
	CHECK_EQ(back, requests);
	CHECK_EQ(b.d.last_used, (uint16_t)(requests - requests / 2));
	CHECK_EQ(b.d.nfree, size);
	bench_close(&b);
	free(held);
	free(marks);
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
	post(&b, 1, 1, false);
	CHECK_EQ(take(&b), 0);
	vs_vring_push(&b.r, 0, 1);
	CHECK_EQ(b.d.used->idx, 0); /* not visible yet */
	CHECK(vs_vring_publish(&b.r));
	CHECK_EQ(b.d.used->idx, 1);
	CHECK(!vs_vring_publish(&b.r)); /* nothing new */
	b.d.avail->flags = VS_AVAIL_NO_INTERRUPT;
	vs_vring_push(&b.r, 0, 1);
	CHECK(!vs_vring_publish(&b.r));
	b.d.avail->flags = 0;
	vs_vring_push(&b.r, 0, 1);
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
	vs_vring_push(&b.r, 0, 1);
	b.d.avail->ring[8] = 5;
	CHECK(vs_vring_publish(&b.r)); /* the first one: nobody knows what was signalled before */
	vs_vring_push(&b.r, 0, 1);
	b.d.avail->ring[8] = 65534;
	CHECK(!vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 1);
	b.d.avail->ring[8] = 0;
	CHECK(vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 1);
	b.d.avail->ring[8] = 2;
	b.d.avail->flags = VS_AVAIL_NO_INTERRUPT; /* means nothing with event indices: 2.7.7.2 */
	CHECK(!vs_vring_publish(&b.r));
	vs_vring_push(&b.r, 0, 1);
	vs_vring_push(&b.r, 0, 1);
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

			CHECK_EQ(take(b), 0);
			/* The answer is the request, each byte plus one: descriptors and data were visible when idx was. */
			CHECK_EQ(vs_iov_to_buffer(b->c.iov, (int)b->c.nout, 0, in, 8), 8);
			for (int i = 0; i < 8; i++)
				in[i]++;
			CHECK_EQ(vs_iov_from_buffer(b->c.iov + b->c.nout, (int)b->c.nin, 0, in, 8), 8);
			vs_vring_push(&b->r, b->c.head, 8);
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
		uint32_t head, written, batch = rnd(size) + 1;
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
			CHECK_EQ(take(&x->b), 0);
			vs_vring_push(&x->b.r, x->b.c.head, 1);
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

/* ---- the driver side refuses what a device may not do ------------------------------------------------------------------------------------------- */

static void a_wrong_device_is_noticed(void)
{
	uint32_t head, written;
	struct bench b;

	bench_open(&b, 8, 0);
	post(&b, 1, 1, false);
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), 0);
	b.d.used->idx = 2; /* more than are in flight */
	CHECK_EQ(vs_driver_collect(&b.d, &head, &written), -EPROTO);
	vs_driver_reset(&b.d, 0);
	post(&b, 1, 1, false);
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
	static const uint32_t sizes[] = { 1, 2, 4, 64, 256, 32768 };

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
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		for (uint32_t features = 0; features < 4; features++)
			both_sides(sizes[i], features, 140000);
	for (uint32_t features = 0; features < 4; features++)
		threads_wake_each_other(features & 1 ? 16 : 256, features);
	neither_side_misses_the_other(0);
	neither_side_misses_the_other(EVENT);
	return 0;
}
