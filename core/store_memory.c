/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store in anonymous memory: sparse, gone with the process. Data are copied where the io is submitted; nothing waits, except that giving
 * back very many pages at once is left to a helper thread.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

enum { HUGE_PAGE = 2 << 20 };
/*
 * Address room kept free behind a store, so that it grows without moving: workers copy from base without a lock. Room costs nothing but
 * addresses, because it is PROT_NONE until the store grows into it.
 */
static const uint64_t ROOM = 64ull << 30;
/* Dropping pages costs some 0.1 us each: above this many bytes another thread does it. */
static const uint64_t DROP_INLINE = 8u << 20;

/* One write is one copy under a range lock: nobody sees a part of it, and no power loss leaves one behind. */
enum { ATOMIC_UNIT = 1 << 20 };

struct memory_store {
	struct vs_store store;
	uint8_t *base;
	uint64_t room, page;
	uint32_t page_shift;
	bool huge_pages;
	/* The allocation map: a bit for each page of the room that holds what somebody wrote. The kernel knows which pages exist, but tells
	 * nobody once one was swapped out. */
	_Atomic uint64_t *written;
	uint64_t written_bytes;
	/* How many bits are set, and how many may be: UINT64_MAX where there is no limit. */
	_Atomic uint64_t used;
	uint64_t limit;
};

static inline struct memory_store *memory_of(struct vs_store *s)
{
	return vs_container_of(s, struct memory_store, store);
}

static uint64_t round_up(uint64_t n, uint64_t unit)
{
	return (n + unit - 1) & ~(unit - 1);
}

static inline void count_used(struct memory_store *m, uint64_t n)
{
	if (vs_unlikely(n != 0)) /* negative in two's complement */
		atomic_fetch_add_explicit(&m->used, n, memory_order_relaxed);
}

/* After the bytes are there: whoever drops the page meanwhile clears its bit first, so that no bit is missing over data. How many were new. */
static inline uint64_t mark_written(struct memory_store *m, uint64_t offset, uint64_t length)
{
	uint64_t last = (offset + length - 1) >> m->page_shift, fresh = 0;

	for (uint64_t page = offset >> m->page_shift; page <= last; page++) {
		_Atomic uint64_t *word = &m->written[page / 64];
		uint64_t bit = UINT64_C(1) << page % 64;

		if (!(atomic_load_explicit(word, memory_order_relaxed) & bit) && !(atomic_fetch_or_explicit(word, bit, memory_order_relaxed) & bit))
			fresh++;
	}
	return fresh;
}

/* Pages that a write will be the first to use, taken before its bytes come, so that the limit holds; *taken goes back when they are marked. Two
 * that are first at the same page both take it: near the limit one of them may be told that there is no room. */
static bool take_room(struct memory_store *m, uint64_t offset, uint64_t length, uint64_t *taken)
{
	uint64_t last = (offset + length - 1) >> m->page_shift, n = 0;

	for (uint64_t page = offset >> m->page_shift; page <= last; page++)
		n += !(atomic_load_explicit(&m->written[page / 64], memory_order_relaxed) >> page % 64 & 1);
	*taken = n;
	if (!n || atomic_fetch_add_explicit(&m->used, n, memory_order_relaxed) + n <= m->limit)
		return true;
	count_used(m, -n);
	return false;
}

/* Pages [first, last). */
static void mark_dropped(struct memory_store *m, uint64_t first, uint64_t last)
{
	while (first < last) {
		uint64_t n = vs_min(64 - first % 64, last - first);
		uint64_t bits = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first % 64;

		if (atomic_load_explicit(&m->written[first / 64], memory_order_relaxed) & bits)
			bits &= atomic_fetch_and_explicit(&m->written[first / 64], ~bits, memory_order_relaxed);
		else
			bits = 0;
		count_used(m, -(uint64_t)__builtin_popcountll(bits));
		first += n;
	}
}

/* How many pages from `page` on, and before `end`, are as it is. */
static uint64_t same_pages(const struct memory_store *m, uint64_t page, uint64_t end, bool *mapped)
{
	uint64_t from = page;
	uint64_t flip = *mapped ? UINT64_MAX : 0;

	while (page < end) {
		uint64_t other = (atomic_load_explicit(&m->written[page / 64], memory_order_relaxed) ^ flip) >> page % 64;

		if (other)
			return vs_min(page + (uint64_t)__builtin_ctzll(other), end) - from;
		page += 64 - page % 64;
	}
	return end - from;
}

static int memory_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	struct memory_store *m = memory_of(s);
	uint64_t page = offset >> m->page_shift, end = ((offset + length - 1) >> m->page_shift) + 1;
	bool is = atomic_load_explicit(&m->written[page / 64], memory_order_relaxed) >> page % 64 & 1;

	*mapped = is;
	*run = vs_min(((page + same_pages(m, page, end, &is)) << m->page_shift) - offset, length);
	return 0;
}

/* Whole pages go back to the kernel and read as zeroes from then on; the edges are cleared by hand. */
static int memory_drop(struct memory_store *m, uint64_t offset, uint64_t length)
{
	uint64_t end = offset + length;
	uint64_t first = round_up(offset, m->page), last = end & ~(m->page - 1);

	if (first >= last) {
		memset(m->base + offset, 0, length);
		return 0;
	}
	memset(m->base + offset, 0, first - offset);
	memset(m->base + last, 0, end - last);
	mark_dropped(m, first >> m->page_shift, last >> m->page_shift);
	return madvise(m->base + first, last - first, MADV_DONTNEED) ? -errno : 0;
}

static void memory_drop_call(struct vs_op *op)
{
	struct vs_io *io = vs_container_of(op, struct vs_io, eng);

	op->result = memory_drop(memory_of(io->store), io->offset, io->length);
}

static void memory_dropped(struct vs_worker *w, struct vs_op *op)
{
	struct vs_io *io = vs_container_of(op, struct vs_io, eng);

	(void)w;
	vs_io_end(io, vs_store_error_of_errno((int)-op->result, io->op));
}

static enum vs_submit memory_clear(struct memory_store *m, struct vs_io *io)
{
	if (io->length <= DROP_INLINE) {
		io->err = vs_store_error_of_errno(-memory_drop(m, io->offset, io->length), io->op);
		return VS_SUBMIT_DONE;
	}
	io->eng.kind = VS_OP_CALL;
	io->eng.call = memory_drop_call;
	io->eng.done = memory_dropped;
	io->w->engine->submit(io->w, &io->eng);
	return VS_SUBMIT_PENDING;
}

static enum vs_submit memory_submit(struct vs_store *s, struct vs_io *io)
{
	struct memory_store *m = memory_of(s);
	uint8_t *data = m->base + io->offset;
	/* Without data there is no array either, and nothing is added to no pointer. */
	const struct iovec *v = io->iov, *end = io->niov ? v + io->niov : v;
	uint64_t taken = 0;

	switch (io->op) {
	case VS_IO_READ:
		if (io->lend) {
			io->lent = data;
			return VS_SUBMIT_DONE;
		}
		for (; v < end; data += v->iov_len, v++)
			memcpy(v->iov_base, data, v->iov_len);
		return VS_SUBMIT_DONE;
	case VS_IO_WRITE:
		if (vs_unlikely(m->limit != UINT64_MAX) && !take_room(m, io->offset, io->length, &taken)) {
			io->err = VS_ERR_NO_SPACE;
			return VS_SUBMIT_DONE;
		}
		for (; v < end; data += v->iov_len, v++)
			memcpy(data, v->iov_base, v->iov_len);
		count_used(m, mark_written(m, io->offset, io->length) - taken);
		return VS_SUBMIT_DONE;
	case VS_IO_UNMAP:
	case VS_IO_ZERO:
		return memory_clear(m, io);
	default: /* FLUSH: there is nothing below */
		return VS_SUBMIT_DONE;
	}
}

static int memory_usage(struct vs_store *s, struct vs_store_usage *out)
{
	struct memory_store *m = memory_of(s);
	uint64_t used = atomic_load_explicit(&m->used, memory_order_relaxed);

	out->used = used << m->page_shift;
	out->available = m->limit == UINT64_MAX ? UINT64_MAX : (m->limit - vs_min(used, m->limit)) << m->page_shift;
	return 0;
}

/* Before the first io. */
static int memory_limit(struct vs_store *s, uint64_t bytes)
{
	struct memory_store *m = memory_of(s);

	m->limit = bytes >> m->page_shift;
	return 0;
}

/* Behind a fence. What lies beyond the end is inaccessible, and zeroes when the store grows over it again. */
static int memory_resize(struct vs_store *s, uint64_t size)
{
	struct memory_store *m = memory_of(s);
	uint64_t old = vs_store_size(s), mapped = round_up(old, m->page), wanted = round_up(size, m->page);

	if (size == 0)
		return -EINVAL;
	if (size > m->room)
		return -ENOMEM;
	if (size < old) {
		memset(m->base + size, 0, vs_min(wanted, old) - size);
		mark_dropped(m, wanted >> m->page_shift, mapped >> m->page_shift);
		if (wanted < mapped &&
		    (madvise(m->base + wanted, mapped - wanted, MADV_DONTNEED) || mprotect(m->base + wanted, mapped - wanted, PROT_NONE)))
			return -errno;
	} else if (wanted > mapped) {
		if (mprotect(m->base + mapped, wanted - mapped, PROT_READ | PROT_WRITE))
			return -errno;
		if (m->huge_pages)
			madvise(m->base + mapped, wanted - mapped, MADV_HUGEPAGE);
	}
	__atomic_store_n(&s->info.size, size, __ATOMIC_RELAXED);
	return 0;
}

static void memory_destroy(struct vs_store *s)
{
	struct memory_store *m = memory_of(s);

	if (m->base)
		munmap(m->base, m->room);
	if (m->written)
		munmap(m->written, m->written_bytes);
	vs_store_fini(s);
	free(m);
}

static const struct vs_store_ops memory_ops = {
	.kind = "memory",
	.lends = true,
	.submit = memory_submit,
	.destroy = memory_destroy,
	.resize = memory_resize,
	.map = memory_map,
	.usage = memory_usage,
	.limit = memory_limit,
};

/* Pages of it that nobody touches cost nothing, however large the room is. */
static bool make_map(struct memory_store *m)
{
	void *bits;

	m->written_bytes = round_up((m->room >> m->page_shift) / 8 + 8, m->page);
	bits = mmap(NULL, m->written_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bits == MAP_FAILED)
		return false;
	m->written = bits;
	return true;
}

/* Starts at a huge page; NULL when there is no room of that size. */
static uint8_t *reserve(uint64_t room)
{
	uint8_t *raw, *base;

	if (room > UINT64_MAX / 2)
		return NULL;
	raw = mmap(NULL, room + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (raw == MAP_FAILED)
		return NULL;
	base = (uint8_t *)round_up((uintptr_t)raw, HUGE_PAGE);
	if (base > raw)
		munmap(raw, (size_t)(base - raw));
	munmap(base + room, (size_t)(raw + HUGE_PAGE - base));
	return base;
}

int vs_store_memory(vs_core *core, uint64_t size, int huge_pages, vs_store **out, char *why, uint32_t why_size)
{
	struct memory_store *m;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), least;

	if (size == 0 || size > INT64_MAX / 4)
		return vs_store_why(why, why_size, EINVAL, "memory: a size of %llu bytes cannot be had", (unsigned long long)size);
	m = calloc(1, sizeof(*m));
	if (!m || vs_store_init(&m->store, core, &memory_ops, NULL)) {
		free(m);
		return vs_store_why(why, why_size, ENOMEM, "memory: out of memory");
	}
	m->page = page;
	m->page_shift = (uint32_t)__builtin_ctzll(page);
	m->limit = UINT64_MAX;
	m->huge_pages = huge_pages != 0;
	least = round_up(size, page);
	m->room = round_up(vs_max(4 * size, ROOM), page);
	m->base = reserve(m->room);
	if (!m->base) { /* RLIMIT_AS: then it cannot grow */
		m->room = least;
		m->base = reserve(m->room);
	}
	if (!m->base || !make_map(m) || mprotect(m->base, least, PROT_READ | PROT_WRITE)) {
		int err = errno;

		memory_destroy(&m->store);
		return vs_store_why(why, why_size, err, "memory: %llu bytes cannot be had: %s", (unsigned long long)size, strerror(err));
	}
	/* Advice: a kernel without huge pages serves small ones. */
	if (huge_pages)
		madvise(m->base, least, MADV_HUGEPAGE);
	madvise(m->base, m->room, MADV_DONTDUMP);
	m->store.info = (struct vs_store_info){
		.size = size,
		.io_align = 1,
		.discard_granularity = (uint32_t)page,
		.atomic_unit = ATOMIC_UNIT,
		.fua = VS_CAP_NATIVE,
		.unmap = VS_CAP_NATIVE,
		.zero = VS_CAP_NATIVE,
		.unmapped_reads_zero = 1,
	};
	*out = &m->store;
	return 0;
}
