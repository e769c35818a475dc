/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: maps the regions that a front end gave, and turns guest physical and front-end user addresses into host pointers, checked.
 * A map never changes; a new table is a new map, which shares the mappings of the regions that stayed. It does not read what guests wrote:
 * that is the work of rings and devices.
 */
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core.h"

enum { REGIONS_MAX = 509 }; /* what CONFIGURE_MEM_SLOTS offers */

/* A mapping and the file that it shows: descriptors of the same file have other numbers each time a table arrives. */
struct file_mapping { struct vs_mapping m; dev_t dev; ino_t ino; };

/* ---- making mappings ---------------------------------------------------------------------------------------------------------------- */

static int region_check(const struct vs_region *r)
{
	if (!r->size || r->size > (uint64_t)PTRDIFF_MAX)
		return -EINVAL;
	if (r->size - 1 > UINT64_MAX - r->guest_addr || r->size - 1 > UINT64_MAX - r->user_addr)
		return -EINVAL;
	if (r->mmap_offset > (uint64_t)INT64_MAX - r->size)
		return -EINVAL;
	return 0;
}

static bool ranges_overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a <= b ? b - a < a_size : a - b < b_size;
}

static int regions_check(const struct vs_region *regions, uint32_t n)
{
	if (n > REGIONS_MAX)
		return -E2BIG;
	for (uint32_t i = 0; i < n; i++) {
		const struct vs_region *a = &regions[i];
		int err = region_check(a);

		if (err)
			return err;
		for (uint32_t k = 0; k < i; k++) {
			const struct vs_region *b = &regions[k];

			if (ranges_overlap(a->guest_addr, a->size, b->guest_addr, b->size) ||
			    ranges_overlap(a->user_addr, a->size, b->user_addr, b->size))
				return -EINVAL;
		}
	}
	return 0;
}

/* The unit of mmap offsets and of SIGBUS: the huge page where the file lies on hugetlbfs, else the page. */
static int page_of(int fd, uint64_t *page)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return -errno;
	*page = (uint64_t)(fs.f_type == HUGETLBFS_MAGIC ? fs.f_bsize : sysconf(_SC_PAGESIZE));
	return 0;
}

static void mapping_put(struct vs_mapping *m)
{
	if (atomic_fetch_sub(&m->refs, 1) != 1)
		return;
	vs_sigbus_unregister(m->slot);
	munmap(m->base, m->length);
	free(vs_container_of(m, struct file_mapping, m));
}

/* The file descriptor is not kept: the mapping holds the file. */
static int mapping_map(struct file_mapping *f, const struct vs_region *r)
{
	struct vs_mapping *m = &f->m;
	uint64_t page = 0, lead;
	int err = page_of(r->fd, &page);
	void *base;

	if (err)
		return err;
	/* Offsets may be anything; mmap wants pages. hugetlbfs wants the length in pages, too. */
	lead = r->mmap_offset & (page - 1);
	m->length = (lead + r->size + page - 1) & ~(page - 1);
	base = mmap(NULL, m->length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd, (off_t)(r->mmap_offset - lead));
	if (base == MAP_FAILED)
		return -errno;
	m->base = base;
	m->host = m->base + lead;
	m->region = *r;
	m->region.fd = -1;
	/* Guest memory belongs neither in a core dump of ours nor in a child. */
	if (madvise(base, m->length, MADV_DONTDUMP) || madvise(base, m->length, MADV_DONTFORK))
		err = -errno;
	else
		err = m->slot = vs_sigbus_register(base, m->length, page, &m->broken);
	if (err < 0)
		munmap(base, m->length);
	return err < 0 ? err : 0;
}

static int mapping_create(const struct vs_region *r, const struct stat *st, struct vs_mapping **out)
{
	struct file_mapping *f;
	int err;

	if (S_ISREG(st->st_mode)) {
		/* Whoever truncates it later meets sigbus.c; what lies beyond the end already is a mistake that we can name. */
		if (r->mmap_offset + r->size > (uint64_t)st->st_size)
			return -EINVAL;
	} else if (!S_ISCHR(st->st_mode)) {
		return -EINVAL;
	}
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->dev = st->st_dev;
	f->ino = st->st_ino;
	atomic_store(&f->m.refs, 1);
	err = mapping_map(f, r);
	if (err) {
		free(f);
		return err;
	}
	*out = &f->m;
	return 0;
}

/* The mapping of base that shows the same bytes at the same addresses, with one more reference. Not a broken one: its zeroes are ours. */
static struct vs_mapping *mapping_share(const vs_memmap *base, const struct vs_region *r, const struct stat *st)
{
	for (uint32_t i = 0; base && i < base->n; i++) {
		struct vs_mapping *m = base->mappings[i];
		struct file_mapping *f = vs_container_of(m, struct file_mapping, m);

		if (m->region.guest_addr == r->guest_addr && m->region.size == r->size && m->region.user_addr == r->user_addr &&
		    m->region.mmap_offset == r->mmap_offset && f->dev == st->st_dev && f->ino == st->st_ino &&
		    r->mmap_offset + r->size <= (uint64_t)st->st_size && !atomic_load(&m->broken)) {
			atomic_fetch_add(&m->refs, 1);
			return m;
		}
	}
	return NULL;
}

static int by_guest_addr(const void *a, const void *b)
{
	const struct vs_mapping *x = *(struct vs_mapping *const *)a, *y = *(struct vs_mapping *const *)b;

	return x->region.guest_addr < y->region.guest_addr ? -1 : 1;
}

/* ---- maps ----------------------------------------------------------------------------------------------------------------------------- */

int vs_memmap_create(vs_core *core, const struct vs_region *regions, uint32_t n, vs_memmap *base, uint64_t cookie, vs_memmap **out)
{
	int err = regions_check(regions, n);
	vs_memmap *map;

	if (err)
		return err;
	map = calloc(1, sizeof(*map));
	if (!map)
		return -ENOMEM;
	map->core = core;
	map->cookie = cookie;
	map->mappings = calloc(n + 1, sizeof(*map->mappings)); /* + 1: an empty map is a map */
	err = map->mappings ? vs_pins_init(&map->pins, core) : -ENOMEM;
	if (err) {
		free(map->mappings);
		free(map);
		return err;
	}
	for (; map->n < n; map->n++) {
		const struct vs_region *r = &regions[map->n];
		struct vs_mapping **m = &map->mappings[map->n];
		struct stat st;

		err = fstat(r->fd, &st) ? -errno : 0;
		if (!err && !(*m = mapping_share(base, r, &st)))
			err = mapping_create(r, &st, m);
		if (err) {
			vs_memmap_destroy(map);
			return err;
		}
	}
	qsort(map->mappings, n, sizeof(*map->mappings), by_guest_addr);
	*out = map;
	return 0;
}

void vs_memmap_destroy(vs_memmap *map)
{
	if (!map)
		return;
	for (uint32_t i = 0; i < map->n; i++)
		mapping_put(map->mappings[i]);
	vs_pins_fini(&map->pins);
	free(map->mappings);
	free(map);
}

int vs_memmap_broken(const vs_memmap *map)
{
	for (uint32_t i = 0; i < map->n; i++)
		if (atomic_load_explicit(&map->mappings[i]->broken, memory_order_acquire))
			return 1;
	return 0;
}

vs_pins *vs_memmap_pins(vs_memmap *map)
{
	return &map->pins;
}

/* ---- addresses ------------------------------------------------------------------------------------------------------------------------ */

/* The mapping with guest address addr. */
static struct vs_mapping *find_guest(const vs_memmap *m, uint64_t addr, uint32_t *hint)
{
	uint32_t low = 0, high = m->n;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		struct vs_mapping *p = m->mappings[middle];

		if (addr < p->region.guest_addr) {
			high = middle;
		} else if (addr - p->region.guest_addr >= p->region.size) {
			low = middle + 1;
		} else {
			if (hint)
				*hint = middle;
			return p;
		}
	}
	return NULL;
}

void *vs_memmap_guest_part(const vs_memmap *m, uint64_t addr, uint64_t len, uint64_t *got, uint32_t *hint)
{
	struct vs_mapping *p;
	uint64_t skip;

	if (hint && vs_likely(*hint < m->n)) {
		p = m->mappings[*hint];
		skip = addr - p->region.guest_addr; /* huge where addr lies before */
		if (vs_likely(skip < p->region.size))
			goto found;
	}
	p = find_guest(m, addr, hint);
	if (!p)
		return NULL;
	skip = addr - p->region.guest_addr;
found:
	*got = vs_min(len, p->region.size - skip);
	return p->host + skip;
}

void *vs_memmap_guest(const vs_memmap *m, uint64_t addr, uint64_t len, uint32_t *hint)
{
	uint64_t got;
	void *p = vs_memmap_guest_part(m, addr, len, &got, hint);

	return p && got == len ? p : NULL;
}

/* User addresses name rings, a few times in the life of a device: a walk will do. */
void *vs_memmap_user(const vs_memmap *m, uint64_t addr, uint64_t len)
{
	for (uint32_t i = 0; i < m->n; i++) {
		struct vs_mapping *p = m->mappings[i];
		uint64_t skip = addr - p->region.user_addr;

		if (skip < p->region.size)
			return len <= p->region.size - skip ? p->host + skip : NULL;
	}
	return NULL;
}

int vs_memmap_check_user(const vs_memmap *map, uint64_t addr, uint64_t length, uint64_t align)
{
	void *p;

	if (align && addr % align)
		return -EINVAL;
	p = vs_memmap_user(map, addr, length);
	if (!p)
		return -EFAULT;
	/* Offsets in the file may undo the alignment that the address has. */
	return align && (uintptr_t)p % align ? -EINVAL : 0;
}
