// SPDX-License-Identifier: Apache-2.0
/*
 * The device side of a ring of either layout over memory that the input describes: two regions, the ring's parts anywhere in them, every byte of guest
 * memory from the input, and steps in which the "guest" writes while the device takes, gives back and asks for kicks. The regions are heap
 * blocks of their exact size, so ASan sees a byte read outside. What must hold whatever the input says is checked here, too.
 *
 * Input: 24 bytes of header, then an opcode stream and memory, as below. It is a byte string and not a structure, so that libFuzzer's
 * mutations stay meaningful; missing bytes read as 0.
 */
#include <stdlib.h>

#include "core.h"
#include "vring.h"

enum { PIECE = 4096, INLINE = 4, STEPS = 64, HEADER = 24, CODE = STEPS * 4, LATE = 8 };

/* Guest addresses: neighbours, or with a hole, or at the very end of the address space. */
static const uint64_t places[4][2] = { { 0, PIECE }, { 0x10000, 0x20000 }, { 0ull - 2 * PIECE, 0ull - PIECE }, { PIECE, 0 } };

struct input { const uint8_t *p; size_t n; };

static uint64_t get(struct input *in, int bytes)
{
	uint64_t v = 0;

	for (int i = 0; i < bytes; i++, in->n -= in->n > 0)
		v |= (uint64_t)(in->n ? *in->p++ : 0) << (8 * i);
	return v;
}

#define MUST(cond) \
	do { \
		if (!(cond)) \
			abort(); \
	} while (0)

struct machine {
	struct vs_mapping regions[2];
	struct vs_mapping *sorted[2];
	struct vs_memmap map;
	struct vs_vring ring;
	struct vs_worker *w;
	struct iovec inline_iov[INLINE];
	struct { uint32_t head, span, written; } late[LATE]; /* taken, and given back the last first */
	uint32_t nlate;
};

static bool inside(const struct machine *m, const struct iovec *v)
{
	for (int i = 0; i < 2; i++) {
		uint64_t skip = (uint64_t)((uint8_t *)v->iov_base - m->regions[i].host);

		if (skip < PIECE && v->iov_len <= PIECE - skip)
			return true;
	}
	return false;
}

/* A chain that was accepted: only bytes of guest memory, lengths that add up, and all of it can be touched. */
static void use_chain(struct machine *m, struct vs_chain *c)
{
	uint64_t sum[2] = { 0, 0 };
	uint8_t byte = 0;

	MUST(c->head < m->ring.size);
	MUST(!vs_vring_packed(&m->ring) || (c->span > 0 && c->span <= m->ring.held));
	MUST(c->nout + c->nin > 0 && c->nout + c->nin <= c->capacity);
	for (uint32_t i = 0; i < c->nout + c->nin; i++) {
		MUST(c->iov[i].iov_len > 0 && inside(m, &c->iov[i]));
		sum[i >= c->nout] += c->iov[i].iov_len;
	}
	MUST(sum[0] == c->out_length && sum[1] == c->in_length && sum[0] + sum[1] <= UINT32_MAX);
	if (c->out_length)
		MUST(vs_iov_to_buffer(c->iov, (int)c->nout, c->out_length - 1, &byte, 1) == 1);
	if (c->iov != m->inline_iov)
		vs_iovec_put(m->w, c->iov, c->capacity);
}

/* Places of a packed ring stay in the ring, and what lies between them is what we hold. */
static void check_places(const struct vs_vring *r)
{
	if (!vs_vring_packed(r))
		return;
	MUST(vs_packed_index(r->last_avail) < r->size && vs_packed_index(r->used_idx) < r->size);
	MUST(r->held <= r->size && vs_packed_distance(r->used_idx, r->last_avail, r->size) == r->held);
}

static void check_order(const struct vs_vring *r)
{
	MUST(r->order_n <= r->size && r->order_first < r->size);
}

static void give_late(struct machine *m)
{
	while (m->nlate) {
		m->nlate--;
		vs_vring_push(&m->ring, m->late[m->nlate].head, m->late[m->nlate].span, m->late[m->nlate].written);
		check_places(&m->ring);
		check_order(&m->ring);
	}
}

/* Takes what is there. 0 or the rule that broke. */
static int take_all(struct machine *m, bool write, bool unpop, bool late)
{
	int n = vs_vring_available(&m->ring);

	MUST(n <= (int)m->ring.size && n > -VS_RULES);
	for (; n > 0; n--) {
		struct vs_chain c = { .iov = m->inline_iov, .capacity = INLINE };
		uint16_t before = m->ring.last_avail;
		int err = vs_vring_pop(&m->ring, m->w, &c);

		if (err) {
			MUST(err < 0 && err > -VS_RULES && m->ring.last_avail == before);
			MUST(c.iov == m->inline_iov && c.capacity == INLINE);
			return err;
		}
		MUST(m->ring.last_avail == (vs_vring_packed(&m->ring) ? vs_packed_forward(before, c.span, m->ring.size) : (uint16_t)(before + 1)));
		check_places(&m->ring);
		if (unpop) {
			vs_vring_unpop(&m->ring);
			MUST(m->ring.last_avail == before);
			unpop = false;
			n++;
			if (c.iov != m->inline_iov)
				vs_iovec_put(m->w, c.iov, c.capacity);
			continue;
		}
		/* Into the first writable byte, which may well be the ring itself. */
		if (write && c.nin)
			vs_iov_fill(c.iov + c.nout, (int)c.nin, 0, 0xa5, 1);
		use_chain(m, &c);
		if (late && m->nlate < LATE) {
			m->late[m->nlate].head = c.head;
			m->late[m->nlate].span = c.span;
			m->late[m->nlate++].written = (uint32_t)c.in_length;
			continue;
		}
		vs_vring_push(&m->ring, c.head, c.span, (uint32_t)c.in_length);
		check_places(&m->ring);
	}
	if (!late)
		give_late(m);
	return n;
}

/* What stands in the next descriptors becomes available in this lap, the last first; their other flags stay. */
static void make_available(struct vs_vring *r, uint32_t n)
{
	for (n = vs_min(n, r->size); n-- > 0;) {
		uint16_t at = vs_packed_forward(r->last_avail, n, r->size);
		struct vs_packed_desc *d = &r->ring[vs_packed_index(at)];

		d->flags = (uint16_t)((d->flags & ~(VS_PACKED_AVAIL | VS_PACKED_USED)) | vs_packed_avail_flags(at));
	}
}

static void step(struct machine *m, uint32_t code, int *broken)
{
	uint16_t at = (uint16_t)(code >> 16);
	uint8_t value = (uint8_t)(code >> 8);

	switch (code & 7) {
	case 0: /* the guest writes a byte */
		m->regions[at >> 12 & 1].host[at & (PIECE - 1)] = value;
		break;
	case 1: /* the guest makes entries available */
		if (vs_vring_packed(&m->ring))
			make_available(&m->ring, value);
		else
			m->ring.avail->idx = (uint16_t)(m->ring.avail->idx + value);
		break;
	case 2:
		vs_vring_kicks_off(&m->ring);
		break;
	case 3:
		vs_vring_kicks_on(&m->ring);
		break;
	case 4: /* a memory table that is the same: the ring goes on */
		MUST(vs_vring_remap(&m->ring, &m->map) == 0);
		break;
	case 5:
		vs_vring_publish(&m->ring);
		MUST(m->ring.published == m->ring.used_idx);
		break;
	default:
		if (!*broken)
			*broken = take_all(m, code & 8, code & 16, code & 32);
	}
}

static void run(struct machine *m, struct input *header, struct input *code)
{
	struct vs_queue_params p = { 0 };
	uint64_t origin;
	int broken = 0, err;

	p.size = 1u << (get(header, 1) & 15);
	p.features = (uint32_t)get(header, 1) & (VS_RING_EVENT_IDX | VS_RING_INDIRECT | VS_RING_PACKED | VS_RING_IN_ORDER);
	p.base = (uint32_t)get(header, 2);
	if (p.features & VS_RING_PACKED) {
		/* No ring of this memory is so long that bit 14 is of a place. It says that all is still held. */
		uint32_t place = p.base & ~0x4000u;

		p.base = place | (p.base & 0x4000 ? place ^ VS_PACKED_WRAP : place) << 16;
	}
	/* User addresses are guest addresses with the top bit turned: the two spaces must not be mixed up. */
	p.desc = get(header, 2);
	p.avail = get(header, 2);
	p.used = get(header, 2);
	origin = m->regions[get(header, 1) & 1].region.user_addr;
	if (get(header, 1) & 1)
		p.size = (uint32_t)get(header, 4);
	p.desc += origin;
	p.avail += origin;
	p.used += origin;
	err = vs_vring_init(&m->ring, &m->map, &p);
	if (err) {
		MUST(err == -VS_RULE_RING_UNMAPPED || err == -VS_RULE_RING_ALIGN || err == -VS_RULE_RING_SIZE ||
		     err == -VS_RULE_RING_BASE);
		return;
	}
	if (p.features & VS_RING_IN_ORDER)
		MUST((m->ring.order = calloc(p.size, sizeof(*m->ring.order))) != NULL);
	for (int i = 0; i < STEPS && code->n; i++)
		step(m, (uint32_t)get(code, 4), &broken);
	give_late(m);
	if (p.features & VS_RING_IN_ORDER) {
		/* All that was taken has been given back, and nothing waits for its turn. */
		MUST(m->ring.order_n == 0);
		vs_vring_reset(&m->ring);
		free(m->ring.order);
	}
}

static void free_lists(struct vs_worker *w)
{
	for (int i = 0; i < VS_IOV_CLASSES; i++)
		while (w->iov_free[i]) {
			struct vs_iovec_block *b = w->iov_free[i];

			w->iov_free[i] = b->next;
			free(b);
		}
	w->iov_bytes = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t code_at = vs_min(size, (size_t)HEADER), memory_at = vs_min(size, (size_t)HEADER + CODE);
	struct input header = { data, code_at }, code = { data + code_at, memory_at - code_at }, memory = { data + memory_at, size - memory_at };
	static struct vs_worker *w; /* only its iovec lists are used */
	struct machine m = { .map = { .n = 2 } };
	const uint64_t *place = places[get(&header, 1) & 3];

	if (!w) {
		w = aligned_alloc(VS_CACHE_LINE, sizeof(*w));
		MUST(w);
		memset(w, 0, sizeof(*w));
	}
	m.w = w;
	for (int i = 0; i < 2; i++) {
		struct vs_mapping *r = &m.regions[i];
		size_t n = vs_min(memory.n, (size_t)PIECE);

		/* 64 bytes aligned, as pages are; ASan's red zones lie right behind. */
		r->host = r->base = aligned_alloc(64, PIECE);
		MUST(r->host);
		r->length = PIECE;
		if (n)
			memcpy(r->host, memory.p, n);
		memset(r->host + n, 0, PIECE - n);
		memory.p += n;
		memory.n -= n;
		r->region = (struct vs_region){ .guest_addr = place[i], .size = PIECE, .user_addr = place[i] ^ 1ull << 63, .fd = -1 };
	}
	m.sorted[0] = &m.regions[place[0] > place[1]];
	m.sorted[1] = &m.regions[place[0] <= place[1]];
	m.map.mappings = m.sorted;
	run(&m, &header, &code);
	free(m.regions[0].host);
	free(m.regions[1].host);
	free_lists(w);
	return 0;
}
