// SPDX-License-Identifier: Apache-2.0
/*
 * Guest memory: what a table may say and what is refused, both translations at every border, sharing between maps, and the flags of
 * the mappings (not dumped, not forked).
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "core.h"

enum { PAGE = 4096 };

static vs_core *core;

static int memfd(uint64_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(ftruncate(fd, (off_t)size) == 0);
	return fd;
}

static struct vs_region region(uint64_t guest, uint64_t user, uint64_t size, uint64_t offset, int fd)
{
	return (struct vs_region){ .guest_addr = guest, .user_addr = user, .size = size, .mmap_offset = offset, .fd = fd };
}

static vs_memmap *map_of(const struct vs_region *r, uint32_t n, vs_memmap *base)
{
	vs_memmap *m = NULL;

	CHECK_EQ(vs_memmap_create(core, r, n, base, 77, &m), 0);
	return m;
}

static int refused(const struct vs_region *r, uint32_t n)
{
	vs_memmap *m = NULL;
	int err = vs_memmap_create(core, r, n, NULL, 0, &m);

	CHECK(err < 0 && !m);
	return err;
}

static void bad_tables_are_refused(void)
{
	int fd = memfd(16 * PAGE), read_only, dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), pipes[2];
	struct vs_region r[2], many[510];
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(read_only >= 0 && dir >= 0 && pipe(pipes) == 0);

	r[0] = region(0, 0, 0, 0, fd);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(UINT64_MAX - PAGE + 2, 0, PAGE, 0, fd); /* wraps by one byte */
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, UINT64_MAX - PAGE + 2, PAGE, 0, fd);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, PAGE, UINT64_MAX - 1, fd);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, UINT64_MAX, 0, fd);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, 16 * PAGE + 1, 0, fd); /* beyond the end */
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, 16 * PAGE, 1, fd);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, PAGE, 0, -1);
	CHECK_EQ(refused(r, 1), -EBADF);
	r[0] = region(0, 0, PAGE, 0, dir);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, PAGE, 0, pipes[0]);
	CHECK_EQ(refused(r, 1), -EINVAL);
	r[0] = region(0, 0, PAGE, 0, read_only);
	CHECK_EQ(refused(r, 1), -EACCES);

	/* Overlaps by one byte, in either space, in either order; neighbours are fine. */
	r[0] = region(0x10000, 0x90000, PAGE, 0, fd);
	r[1] = region(0x10000 + PAGE - 1, 0xa0000, PAGE, PAGE, fd);
	CHECK_EQ(refused(r, 2), -EINVAL);
	r[1] = region(0x10000 - PAGE + 1, 0xa0000, PAGE, PAGE, fd);
	CHECK_EQ(refused(r, 2), -EINVAL);
	r[1] = region(0x20000, 0x90000 + PAGE - 1, PAGE, PAGE, fd);
	CHECK_EQ(refused(r, 2), -EINVAL);
	r[1] = region(0x10000 + PAGE, 0x90000 - PAGE, PAGE, 0, fd);
	vs_memmap_destroy(map_of(r, 2, NULL));

	for (int i = 0; i < 510; i++)
		many[i] = region((uint64_t)i * PAGE, (uint64_t)i * PAGE, PAGE, 0, fd);
	CHECK_EQ(refused(many, 510), -E2BIG);
	/* A bad one at the end gives the good ones back. */
	many[508].size = 0;
	CHECK_EQ(refused(many, 509), -EINVAL);
	many[508].size = PAGE;
	many[508].fd = -1;
	CHECK_EQ(refused(many, 509), -EBADF);

	close(fd);
	close(read_only);
	close(dir);
	close(pipes[0]);
	close(pipes[1]);
}

/* 509 regions out of order, with a hole behind each: every border by hint, by search, and without either. */
static void every_region_is_found(void)
{
	enum { N = 509 };
	int fd = memfd(N * PAGE);
	struct vs_region r[N];
	uint32_t hint = 0;
	vs_memmap *m;

	for (uint64_t i = 0; i < N; i++) {
		uint64_t k = i * 211 % N; /* 211 and 509 have no common divisor */

		r[i] = region(0x100000 + 2 * PAGE * k, 0x70000000000 - 2 * PAGE * k, PAGE, PAGE * k, fd);
		CHECK(pwrite(fd, &k, sizeof(k), (off_t)(PAGE * k)) == sizeof(k));
	}
	m = map_of(r, N, NULL);
	close(fd);
	for (uint64_t k = 0; k < N; k++) {
		uint64_t guest = 0x100000 + 2 * PAGE * k, user = 0x70000000000 - 2 * PAGE * k, seen;
		uint8_t *p = vs_memmap_guest(m, guest, PAGE, k % 3 ? &hint : NULL);

		CHECK(p);
		memcpy(&seen, p, sizeof(seen));
		CHECK_EQ(seen, k);
		CHECK(vs_memmap_guest(m, guest + PAGE - 1, 1, &hint) == p + PAGE - 1);
		CHECK_EQ(hint, k);
		CHECK(!vs_memmap_guest(m, guest, PAGE + 1, &hint));
		CHECK(!vs_memmap_guest(m, guest + 1, PAGE, &hint));
		CHECK(!vs_memmap_guest(m, guest + PAGE, 1, &hint));
		CHECK(!vs_memmap_guest(m, guest - 1, 1, &hint));
		CHECK(!vs_memmap_guest(m, guest - 1, 2, &hint));
		CHECK(!vs_memmap_guest(m, guest, UINT64_MAX, &hint));
		CHECK(vs_memmap_user(m, user, PAGE) == p);
		CHECK(!vs_memmap_user(m, user, PAGE + 1));
		CHECK(!vs_memmap_user(m, user + PAGE, 1));
		CHECK(!vs_memmap_user(m, user - 1, 1));
		CHECK(!vs_memmap_user(m, user + 8, UINT64_MAX - 4));
	}
	hint = 100000; /* of a larger map that was here before */
	CHECK(vs_memmap_guest(m, 0x100000, 1, &hint));
	vs_memmap_destroy(m);
}

static void parts_end_at_borders(void)
{
	int fd = memfd(3 * PAGE);
	struct vs_region r[2] = { region(0x1000, 0x1000, PAGE, 0, fd), region(0x2000, 0x2000, PAGE, 2 * PAGE, fd) };
	vs_memmap *m = map_of(r, 2, NULL);
	uint32_t hint = 0;
	uint64_t got;

	CHECK(vs_memmap_guest_part(m, 0x1ff0, 0x40, &got, &hint) && got == 0x10);
	CHECK(vs_memmap_guest_part(m, 0x2000, 0x30, &got, &hint) && got == 0x30);
	CHECK(vs_memmap_guest_part(m, 0x2ff0, 0x40, &got, NULL) && got == 0x10);
	CHECK(!vs_memmap_guest_part(m, 0x3000, 1, &got, &hint));
	CHECK(!vs_memmap_guest(m, 0x1ff0, 0x40, &hint)); /* guest neighbours are not host neighbours */
	vs_memmap_destroy(m);
	close(fd);
}

static void the_ends_of_the_address_space(void)
{
	int fd = memfd(2 * PAGE);
	struct vs_region r[2] = { region(UINT64_MAX - PAGE + 1, 0, PAGE, 0, fd), region(0, UINT64_MAX - PAGE + 1, PAGE, PAGE, fd) };
	vs_memmap *m = map_of(r, 2, NULL);

	CHECK(vs_memmap_guest(m, UINT64_MAX, 1, NULL));
	CHECK(!vs_memmap_guest(m, UINT64_MAX, 2, NULL));
	CHECK(vs_memmap_guest(m, 0, PAGE, NULL));
	CHECK(vs_memmap_user(m, UINT64_MAX, 1));
	CHECK(!vs_memmap_user(m, UINT64_MAX, 2));
	vs_memmap_destroy(m);
	m = map_of(r, 0, NULL);
	CHECK(!vs_memmap_guest(m, 0, 1, NULL) && !vs_memmap_user(m, 0, 1) && !vs_memmap_broken(m));
	vs_memmap_destroy(m);
	close(fd);
}

static void odd_offsets_show_the_right_bytes(void)
{
	int fd = memfd(3 * PAGE);
	struct vs_region r = region(0x5000, 0x9000, PAGE + 10, PAGE + 6, fd);
	uint64_t mark = 0x1122334455667788, seen;
	vs_memmap *m;

	CHECK(pwrite(fd, &mark, 8, PAGE + 6 + 100) == 8);
	m = map_of(&r, 1, NULL);
	memcpy(&seen, vs_memmap_guest(m, 0x5000 + 100, 8, NULL), 8);
	CHECK(seen == mark);
	/* The addresses are aligned to 4, but what they show is not. */
	CHECK_EQ(vs_memmap_check_user(m, 0x9000, 8, 2), 0);
	CHECK_EQ(vs_memmap_check_user(m, 0x9000, 8, 4), -EINVAL);
	CHECK_EQ(vs_memmap_check_user(m, 0x9001, 8, 2), -EINVAL);
	CHECK_EQ(vs_memmap_check_user(m, 0x9000, PAGE + 10, 0), 0);
	CHECK_EQ(vs_memmap_check_user(m, 0x9000, PAGE + 11, 1), -EFAULT);
	CHECK_EQ(vs_memmap_check_user(m, 0x8fff, 1, 1), -EFAULT);
	vs_memmap_destroy(m);
	close(fd);
}

static void equal_regions_share_a_mapping(void)
{
	int fd = memfd(4 * PAGE), other = memfd(4 * PAGE), again = dup(fd);
	struct vs_region r[3] = { region(0, 0, PAGE, 0, fd), region(0x10000, 0x10000, PAGE, PAGE, fd), region(0x20000, 0x20000, PAGE, 0, other) };
	vs_memmap *a = map_of(r, 2, NULL), *b, *c;
	void *kept;

	r[0].fd = again; /* the same file under another number */
	r[1].mmap_offset = 2 * PAGE;
	b = map_of(r, 3, a);
	CHECK(a->mappings[0] == b->mappings[0]);
	CHECK(a->mappings[1] != b->mappings[1]);
	CHECK_EQ(atomic_load(&b->mappings[0]->refs), 2);
	r[0].fd = other; /* another file at the same place */
	c = map_of(r, 3, b);
	CHECK(c->mappings[0] != b->mappings[0]);
	CHECK(c->mappings[1] == b->mappings[1] && c->mappings[2] == b->mappings[2]);
	kept = vs_memmap_guest(b, 0, PAGE, NULL);
	vs_memmap_destroy(a);
	memset(kept, 1, PAGE); /* still there: b has it */
	vs_memmap_destroy(b);
	memset(vs_memmap_guest(c, 0x10000, PAGE, NULL), 1, PAGE);
	/* A broken mapping is made anew. */
	atomic_store(&c->mappings[1]->broken, 1);
	CHECK_EQ(vs_memmap_broken(c), 1);
	a = map_of(r, 3, c);
	CHECK(a->mappings[1] != c->mappings[1] && a->mappings[2] == c->mappings[2]);
	CHECK_EQ(vs_memmap_broken(a), 0);
	vs_memmap_destroy(c);
	vs_memmap_destroy(a);
	close(fd);
	close(other);
	close(again);
}

static void mappings_are_not_dumped_nor_forked(void)
{
	int fd = memfd(PAGE), found = 0;
	struct vs_region r = region(0, 0, PAGE, 0, fd);
	vs_memmap *m = map_of(&r, 1, NULL);
	FILE *smaps = fopen("/proc/self/smaps", "re");
	char line[512], start[32];
	bool here = false;

	CHECK(smaps);
	snprintf(start, sizeof(start), "%lx-", (unsigned long)m->mappings[0]->base);
	while (fgets(line, sizeof(line), smaps)) {
		if (strncmp(line, start, strlen(start)) == 0)
			here = true;
		if (here && strncmp(line, "VmFlags:", 8) == 0) {
			CHECK(strstr(line, " dd") && strstr(line, " dc") && strstr(line, " sh") && strstr(line, " nr"));
			found = 1;
			break;
		}
	}
	CHECK(found);
	fclose(smaps);
	CHECK(vs_memmap_pins(m) == &m->pins);
	vs_memmap_destroy(m);
	close(fd);
}

int main(void)
{
	struct vs_config config = { .nworkers = 1, .io_threads = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER };

	CHECK_EQ(vs_core_create(&config, &core), 0);
	bad_tables_are_refused();
	every_region_is_found();
	parts_end_at_borders();
	the_ends_of_the_address_space();
	odd_offsets_show_the_right_bytes();
	equal_regions_share_a_mapping();
	mappings_are_not_dumped_nor_forked();
	vs_core_destroy(core);
	return 0;
}
