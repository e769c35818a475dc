/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one kind of store does and the others do not: refusals when a file is opened, locks, durability, truncation, holes, delays and their
 * end, made faults, the latch of failed flushes, resizing. The contract that all of them share is in test_store.c.
 */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "store_rig.h"

enum { SIZE = 1 << 20 };

static char folder[] = "/var/tmp/vhost-scsi-kinds-XXXXXX";
static char path[200], why[300];
static uint8_t *data;
static struct rig rig;

static void name_it(const char *name)
{
	snprintf(path, sizeof(path), "%s/%s", folder, name);
}

static void image(const char *name, uint64_t size)
{
	int fd;

	name_it(name);
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
	close(fd);
}

static int open_file(uint32_t flags, struct vs_store **store)
{
	return vs_store_file(rig.core, path, flags, store, why, sizeof(why));
}

static struct vs_store *file(uint32_t flags)
{
	struct vs_store *s = NULL;

	CHECK_EQ(open_file(flags, &s), 0);
	return s;
}

static struct vs_store *memory(uint64_t size)
{
	struct vs_store *s = NULL;

	CHECK_EQ(vs_store_memory(rig.core, size, 0, &s, why, sizeof(why)), 0);
	return s;
}

static int32_t io(struct vs_store *s, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length)
{
	return rig_io(&rig, s, op, flags, offset, length, data);
}

static void reads_as(struct vs_store *s, uint64_t offset, uint64_t length, int byte)
{
	uint8_t *got = malloc(length);
	uint64_t i;

	CHECK(got && rig_io(&rig, s, VS_IO_READ, 0, offset, length, got) == VS_ERR_NONE);
	for (i = 0; i < length; i++)
		CHECK_EQ(got[i], byte);
	free(got);
}

/* ---- file: opening -------------------------------------------------------------------------------------------------------------------- */

static void refuses(int error, uint32_t flags, const char *says)
{
	struct vs_store *s = NULL;

	why[0] = 0;
	CHECK_EQ(open_file(flags, &s), -error);
	CHECK(s == NULL && strstr(why, path) && strstr(why, says) && !strchr(why, '\n'));
}

static void test_file_refusals(void)
{
	name_it("missing");
	refuses(ENOENT, 0, "no such file");
	snprintf(path, sizeof(path), "%s", folder);
	refuses(EISDIR, 0, "is a directory");
	snprintf(path, sizeof(path), "/dev/zero");
	refuses(ENOTBLK, 0, "not a file or block device");
	name_it("fifo");
	CHECK(mkfifo(path, 0600) == 0);
	refuses(ENOTBLK, VS_FILE_READ_ONLY, "not a file or block device");
	image("empty", 0);
	refuses(EINVAL, 0, "is empty");
	image("odd", 4097);
	refuses(EINVAL, VS_FILE_DIRECT, "cache=buffered");
	if (geteuid() != 0) { /* root is let in everywhere */
		image("secret", 4096);
		CHECK(chmod(path, 0) == 0);
		refuses(EACCES, VS_FILE_READ_ONLY, "permission denied (opening it for reading)");
		CHECK(chmod(path, 0400) == 0);
		refuses(EACCES, 0, "permission denied (opening it for reading and writing)");
	}
}

static void test_file_lock(void)
{
	struct vs_store *first, *second = NULL;

	image("locked", SIZE);
	first = file(0);
	refuses(EWOULDBLOCK, 0, "in use");
	refuses(EWOULDBLOCK, VS_FILE_READ_ONLY, "in use");
	second = file(VS_FILE_NO_LOCK);
	vs_store_destroy(second);
	vs_store_destroy(first);
	first = file(VS_FILE_READ_ONLY);
	second = file(VS_FILE_READ_ONLY); /* readers share */
	refuses(EWOULDBLOCK, 0, "in use");
	vs_store_destroy(first);
	vs_store_destroy(second);
	vs_store_destroy(file(0));
}

static void test_file_read_only(void)
{
	struct vs_store_info info;
	struct vs_store *s;

	image("read-only", SIZE);
	CHECK(chmod(path, 0400) == 0);
	s = file(VS_FILE_READ_ONLY);
	vs_store_info(s, &info);
	CHECK(info.read_only);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 512), VS_ERR_READ_ONLY);
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, 0, 512), VS_ERR_READ_ONLY);
	CHECK_EQ(io(s, VS_IO_ZERO, 0, 0, 512), VS_ERR_READ_ONLY);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	CHECK_EQ(vs_store_resize(s, 2 * SIZE), -EROFS);
	reads_as(s, 0, SIZE, 0);
	vs_store_destroy(s);
}

/* ---- file: what is durable, and what was lost ---------------------------------------------------------------------------------------- */

static void test_file_durability(uint32_t flags)
{
	struct vs_store *s;
	uint64_t syncs, dsync;

	image("durable", SIZE);
	s = file(flags);
	memset(data, 7, 8192);
	syncs = rig_engine.syncs;
	dsync = rig_engine.dsync_writes;
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 4096), VS_ERR_NONE);
	CHECK(rig_engine.syncs == syncs && rig_engine.dsync_writes == dsync);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, 0, 4096), VS_ERR_NONE);
	CHECK(rig_engine.syncs == syncs && rig_engine.dsync_writes == dsync + 1);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, 5, 700), VS_ERR_NONE);
	CHECK_EQ(rig_engine.dsync_writes, dsync + 2);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	CHECK_EQ(rig_engine.syncs, syncs + 1);
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_FUA, 0, 4096), VS_ERR_NONE);
	CHECK_EQ(rig_engine.syncs, syncs + 2);
	CHECK_EQ(io(s, VS_IO_UNMAP, VS_IO_FUA, 0, 4096), VS_ERR_NONE);
	CHECK_EQ(rig_engine.syncs, syncs + 3);
	/* Interrupted is not failed: it is asked for again. */
	rig_engine.interrupt = 1;
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	CHECK_EQ(rig_engine.syncs, syncs + 4);
	rig_engine.interrupt = 1;
	CHECK_EQ(io(s, VS_IO_ZERO, 0, 0, 4096), VS_ERR_NONE);
	CHECK_EQ(rig_engine.interrupt, 0);
	vs_store_destroy(s);
}

static void is_latched(struct vs_store *s)
{
	struct vs_store_info info;

	vs_store_info(s, &info);
	CHECK(info.failed);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_FLUSH_LATCHED);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, 0, 512), VS_ERR_FLUSH_LATCHED);
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_FUA, 0, 512), VS_ERR_FLUSH_LATCHED);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 512), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_READ, VS_IO_FUA, 0, 512), VS_ERR_NONE);
}

static void test_file_latch(void)
{
	struct vs_store_info info;
	struct vs_store *s;

	image("latch", SIZE);
	s = file(0);
	rig_engine.fail_sync = 1;
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_WRITE);
	is_latched(s);
	vs_store_destroy(s);
	s = file(0); /* opened anew */
	vs_store_info(s, &info);
	CHECK(!info.failed);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	rig_engine.fail_dsync_write = 1;
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, 0, 4096), VS_ERR_WRITE);
	is_latched(s);
	vs_store_destroy(s);
	s = file(0);
	rig_engine.fail_sync = 1;
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_FUA, 0, 4096), VS_ERR_WRITE);
	is_latched(s);
	vs_store_destroy(s);
}

static void test_file_truncated(uint32_t flags)
{
	struct vs_store *s;

	image("cut", SIZE);
	s = file(flags);
	CHECK(truncate(path, SIZE / 2) == 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, SIZE / 2), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE - 4096, 4096), VS_ERR_GONE);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE / 2 - 4096, 8192), VS_ERR_GONE);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE / 2 - 5, 700), VS_ERR_GONE);
	CHECK_EQ(vs_store_resize(s, 0), 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE - 4096, 4096), VS_ERR_RANGE);
	CHECK_EQ(vs_store_resize(s, SIZE), 0);
	reads_as(s, 0, SIZE, 0);
	vs_store_destroy(s);
}

static uint64_t size_on_disk(void)
{
	struct stat st;

	CHECK(stat(path, &st) == 0);
	return (uint64_t)st.st_size;
}

/* One read behind the end, and what was cut off stays away: no write may turn it into zeroes. */
static void test_file_cut_off_for_good(uint32_t flags)
{
	struct vs_store *s;

	image("cut", SIZE);
	s = file(flags);
	CHECK(truncate(path, SIZE / 4) == 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE / 2, 4096), VS_ERR_GONE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, SIZE - 4096, 4096), VS_ERR_GONE);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, SIZE / 4 - 512, 1024), VS_ERR_GONE);
	CHECK_EQ(io(s, VS_IO_ZERO, 0, SIZE / 4, 4096), VS_ERR_GONE);
	if (s->info.unmap)
		CHECK_EQ(io(s, VS_IO_UNMAP, 0, SIZE / 4, 4096), VS_ERR_GONE);
	CHECK_EQ(size_on_disk(), SIZE / 4);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE / 4, 512), VS_ERR_GONE);
	/* What is left is as good as ever, and nothing that was promised is lost. */
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, SIZE / 4 - 4096, 4096), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, SIZE / 4), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	CHECK(truncate(path, SIZE) == 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE / 2, 4096), VS_ERR_GONE);
	CHECK_EQ(vs_store_resize(s, 0), 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, SIZE - 4096, 4096), VS_ERR_NONE);
	/* The size that it has in our books already: that, too, makes it whole. */
	CHECK(truncate(path, SIZE / 2) == 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, SIZE - 4096, 4096), VS_ERR_GONE);
	CHECK_EQ(vs_store_resize(s, SIZE), 0);
	reads_as(s, SIZE / 2, SIZE / 2, 0);
	vs_store_destroy(s);
}

static void test_file_no_space(void)
{
	struct rlimit old, small = { SIZE / 2, RLIM_INFINITY };
	struct vs_store *s;

	image("full", SIZE);
	s = file(0);
	CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
	signal(SIGXFSZ, SIG_IGN);
	small.rlim_max = old.rlim_max;
	CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, SIZE - 4096, 4096), VS_ERR_NO_SPACE);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, SIZE - 4096, 4096), VS_ERR_NO_SPACE);
	CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, SIZE - 4096, 4096), VS_ERR_NONE); /* nothing latched */
	vs_store_destroy(s);
}

/* ---- file: holes, zeroes, long iovecs --------------------------------------------------------------------------------------------------- */

static long blocks_of(void)
{
	struct stat st;

	CHECK(stat(path, &st) == 0);
	return (long)st.st_blocks;
}

static void test_file_holes(uint32_t flags)
{
	struct vs_store *s;
	uint64_t run;
	long full;
	int mapped;

	image("holes", SIZE);
	s = file(flags);
	memset(data, 3, SIZE);
	CHECK_EQ(vs_store_map(s, 0, SIZE, &mapped, &run), 0);
	CHECK(!mapped && run == SIZE);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, 0, SIZE), VS_ERR_NONE);
	full = blocks_of();
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, SIZE / 4, SIZE / 4), VS_ERR_NONE);
	CHECK(blocks_of() <= full - SIZE / 4 / 512);
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_MAY_UNMAP, SIZE / 2, SIZE / 4), VS_ERR_NONE);
	CHECK(blocks_of() <= full - SIZE / 2 / 512);
	CHECK_EQ(vs_store_map(s, 0, SIZE, &mapped, &run), 0);
	CHECK(mapped && run == SIZE / 4);
	CHECK_EQ(vs_store_map(s, SIZE / 4, SIZE / 4 * 3, &mapped, &run), 0);
	CHECK(!mapped && run == SIZE / 2);
	CHECK_EQ(vs_store_map(s, SIZE, 1, &mapped, &run), -EINVAL);
	reads_as(s, SIZE / 4, SIZE / 2, 0);
	reads_as(s, SIZE / 4 * 3, SIZE / 4, 3);
	full = blocks_of();
	CHECK_EQ(io(s, VS_IO_ZERO, 0, SIZE / 4 * 3, SIZE / 4), VS_ERR_NONE); /* without leave to unmap: stays allocated */
	CHECK_EQ(blocks_of(), full);
	reads_as(s, 0, SIZE / 4, 3);
	reads_as(s, SIZE / 4, SIZE / 4 * 3, 0);
	vs_store_destroy(s);
}

static void test_file_refused_fallocate(uint32_t flags)
{
	struct vs_store *s;
	uint64_t asked;

	image("refused", SIZE);
	s = file(flags);
	memset(data, 9, SIZE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, SIZE), VS_ERR_NONE);
	rig_engine.refuse_fallocate = true;
	asked = rig_engine.fallocates;
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_MAY_UNMAP, 700, 600000), VS_ERR_NONE);
	CHECK_EQ(rig_engine.fallocates, asked + 2); /* a hole, then zeroes; then it writes */
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_FUA, SIZE - 100, 100), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, 0, 4096), VS_ERR_UNSUPPORTED);
	CHECK_EQ(rig_engine.fallocates, asked + 2); /* remembered */
	rig_engine.refuse_fallocate = false;
	reads_as(s, 0, 700, 9);
	reads_as(s, 700, 600000, 0);
	reads_as(s, 600700, SIZE - 100 - 600700, 9);
	reads_as(s, SIZE - 100, 100, 0);
	vs_store_destroy(s);
}

static void test_file_long_iovecs(uint32_t flags, uint64_t unit)
{
	enum { N = 2500 };
	static struct iovec iov[N];
	uint64_t length = N * unit, i;
	uint8_t *back = NULL;
	struct vs_store *s;
	struct shot shot;

	CHECK(posix_memalign((void **)&back, 4096, length) == 0);
	image("long", 2 << 20);
	s = file(flags);
	for (i = 0; i < length; i++)
		data[i] = (uint8_t)rig_random();
	for (i = 0; i < N; i++)
		iov[i] = (struct iovec){ data + i * unit, unit };
	shot_set(&shot, s, VS_IO_WRITE, 0, 4096, length, data);
	shot.io.iov = iov;
	shot.io.niov = N;
	shot_send(&rig, &shot, 1);
	CHECK_EQ(shot_wait(&rig, &shot), VS_ERR_NONE);
	for (i = 0; i < N; i++)
		iov[i].iov_base = back + i * unit;
	shot_set(&shot, s, VS_IO_READ, 0, 4096, length, back);
	shot.io.iov = iov;
	shot.io.niov = N;
	shot_send(&rig, &shot, 0);
	CHECK_EQ(shot_wait(&rig, &shot), VS_ERR_NONE);
	CHECK(memcmp(data, back, length) == 0);
	free(back);
	vs_store_destroy(s);
}

/* More ios than there are buffers: the rest waits and comes through. */
static void test_file_buffers_run_out(void)
{
	enum { N = 300 };
	static struct shot shots[N];
	struct vs_store *s;
	int i;

	image("crowd", SIZE);
	s = file(VS_FILE_DIRECT);
	memset(data, 0x55, SIZE);
	for (i = 0; i < N; i++) {
		shot_set(&shots[i], s, VS_IO_WRITE, 0, (uint64_t)i * 3000 + 1, 2999, data + 1);
		shot_send(&rig, &shots[i], (uint32_t)i % RIG_WORKERS);
	}
	for (i = 0; i < N; i++)
		CHECK_EQ(shot_wait(&rig, &shots[i]), VS_ERR_NONE);
	for (i = 0; i < N; i++) {
		reads_as(s, (uint64_t)i * 3000, 1, 0);
		reads_as(s, (uint64_t)i * 3000 + 1, 2999, 0x55);
	}
	vs_store_destroy(s);
}

/* ---- memory, null --------------------------------------------------------------------------------------------------------------------- */

static void test_memory(void)
{
	struct vs_store *s = memory(100000);

	memset(data, 1, SIZE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 100000), VS_ERR_NONE);
	CHECK_EQ(vs_store_resize(s, 50001), 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, 50001, 1), VS_ERR_RANGE);
	CHECK_EQ(vs_store_resize(s, 1ull << 30), 0);
	reads_as(s, 0, 50001, 1);
	reads_as(s, 50001, 100000, 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, (1ull << 30) - SIZE, SIZE), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, 3, (1ull << 30) - 5), VS_ERR_NONE); /* long: by a helper thread */
	reads_as(s, 0, 3, 1);
	reads_as(s, 3, SIZE, 0);
	reads_as(s, (1ull << 30) - SIZE, SIZE - 2, 0);
	reads_as(s, (1ull << 30) - 2, 2, 1);
	CHECK_EQ(vs_store_resize(s, 1ull << 60), -ENOMEM);
	CHECK_EQ(vs_store_resize(s, 0), -EINVAL);
	vs_store_destroy(s);
	s = NULL;
	CHECK_EQ(vs_store_memory(rig.core, 0, 0, &s, why, sizeof(why)), -EINVAL);
	CHECK(s == NULL && strstr(why, "memory"));
}

static void uses(struct vs_store *s, uint64_t used, uint64_t available)
{
	struct vs_store_usage usage;

	CHECK_EQ(vs_store_usage(s, &usage), 0);
	CHECK_EQ(usage.used, used);
	CHECK_EQ(usage.available, available);
}

static void fill_limited(struct vs_store *s)
{
	CHECK_EQ(vs_store_limit(s, 3 * 4096 + 17), 0); /* whole pages */
	uses(s, 0, 3 * 4096);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 100, 4096), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 4096, 3 * 4096), VS_ERR_NO_SPACE);
	reads_as(s, 8192, 8192, 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 4096, 2 * 4096), VS_ERR_NONE);
	uses(s, 3 * 4096, 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 64 * 4096, 1), VS_ERR_NO_SPACE);
	CHECK_EQ(io(s, VS_IO_ZERO, VS_IO_MAY_UNMAP, 4096, 4096), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 64 * 4096, 1), VS_ERR_NONE);
	uses(s, 3 * 4096, 0);
	vs_store_destroy(s);
}

static void test_usage(void)
{
	struct vs_store *s = memory(1 << 20), *over = NULL;
	struct vs_store_usage usage;

	fill_limited(s);
	CHECK_EQ(vs_store_overlay(rig.core, memory(1 << 20), NULL, 4096, &over, why, sizeof(why)), 0);
	fill_limited(over);
	CHECK_EQ(vs_store_delay(rig.core, memory(1 << 20), 0, 0, 0, &s, why, sizeof(why)), 0);
	uses(s, 0, 1 << 20);
	CHECK_EQ(vs_store_limit(s, 4096), -ENOTSUP);
	vs_store_destroy(s);
	CHECK_EQ(vs_store_null(rig.core, 4096, &s, why, sizeof(why)), 0);
	uses(s, 0, 4096);
	vs_store_destroy(s);
	image("image", 1 << 20);
	s = file(0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 65536), VS_ERR_NONE);
	CHECK_EQ(vs_store_usage(s, &usage), 0);
	CHECK(usage.shared && usage.used >= 65536 && usage.used + usage.available <= 1 << 20);
	vs_store_destroy(s);
}

static void test_null(void)
{
	struct vs_store *s = NULL;
	uint64_t run;
	int mapped;

	CHECK_EQ(vs_store_null(rig.core, 3ull << 40, &s, why, sizeof(why)), 0);
	memset(data, 1, 4096);
	CHECK_EQ(io(s, VS_IO_WRITE, VS_IO_FUA, (3ull << 40) - 4096, 4096), VS_ERR_NONE);
	reads_as(s, (3ull << 40) - 4096, 4096, 0);
	CHECK_EQ(io(s, VS_IO_READ, 0, (3ull << 40) - 4095, 4096), VS_ERR_RANGE);
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, 0, 3ull << 40), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	CHECK(vs_store_map(s, 0, 1 << 20, &mapped, &run) == 0 && !mapped && run == 1 << 20);
	vs_store_destroy(s);
}

/* ---- delay ---------------------------------------------------------------------------------------------------------------------------- */

static struct vs_store *delayed(struct vs_store *lower, uint64_t ms)
{
	struct vs_store *s = NULL;

	CHECK_EQ(vs_store_delay(rig.core, lower, ms * 1000, ms * 1000, ms * 1000, &s, why, sizeof(why)), 0);
	return s;
}

static void test_delay(void)
{
	static const uint8_t ops[] = { VS_IO_READ, VS_IO_WRITE, VS_IO_ZERO, VS_IO_UNMAP, VS_IO_FLUSH };
	struct vs_store *lower = memory(SIZE), *s = delayed(lower, 30);
	struct vs_store_stats stats;
	struct vs_store_info info;
	struct shot shot;
	uint64_t start;
	size_t i;

	for (i = 0; i < sizeof(ops); i++) {
		start = vs_now_ns();
		CHECK_EQ(io(s, ops[i], 0, 0, 4096), VS_ERR_NONE);
		CHECK(vs_now_ns() - start >= 30000000);
	}
	CHECK(vs_store_lower(s) == lower && strcmp(vs_store_kind(s), "delay") == 0 && strcmp(vs_store_kind(lower), "memory") == 0);
	vs_store_destroy(s);

	/* Cut short, the io never gets below, and a flush that was not made has not failed. */
	lower = memory(SIZE);
	s = delayed(lower, 60000);
	for (i = 0; i < sizeof(ops); i++) {
		start = vs_now_ns();
		shot_set(&shot, s, ops[i], 0, 0, 4096, data);
		shot.cancel = i % 2 == 0;
		shot_send(&rig, &shot, 1);
		if (!shot.cancel) {
			usleep(2000);
			CHECK(!shot.ended);
			shot_cancel(&rig, &shot, 1);
		}
		CHECK_EQ(shot_wait(&rig, &shot), VS_ERR_ABORTED);
		CHECK(vs_now_ns() - start < 20000000000ull);
	}
	vs_store_stats(lower, &stats);
	for (i = 0; i < VS_IO_OPS; i++)
		CHECK_EQ(stats.ops[i], 0);
	vs_store_info(s, &info);
	CHECK(!info.failed);
	vs_store_destroy(s);

	/* Through other wrappers. */
	CHECK_EQ(vs_store_overlay(rig.core, delayed(memory(SIZE), 60000), NULL, 4096, &s, why, sizeof(why)), 0);
	shot_set(&shot, s, VS_IO_WRITE, 0, 100, 100, data);
	shot.cancel = true;
	shot_send(&rig, &shot, 0);
	CHECK_EQ(shot_wait(&rig, &shot), VS_ERR_ABORTED);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 4096), VS_ERR_NONE); /* its block was let go */
	vs_store_destroy(s);
	CHECK_EQ(vs_store_delay(rig.core, NULL, UINT64_MAX, 0, 0, &s, why, sizeof(why)), -EINVAL);
}

/* ---- faulty ----------------------------------------------------------------------------------------------------------------------------- */

static struct vs_store *faulty(struct vs_store *lower, struct vs_fault_rule rule)
{
	struct vs_store *s = NULL;

	CHECK_EQ(vs_store_faulty(rig.core, lower, &rule, 1, &s, why, sizeof(why)), 0);
	return s;
}

static void test_faulty(void)
{
	struct vs_fault_rule rule = { .offset = 4096, .length = 4096, .skip = 1, .count = 2, .ops = 1u << VS_IO_READ, .error = VS_ERR_READ };
	struct vs_store *lower = memory(SIZE), *s = faulty(lower, rule);
	struct vs_store_stats stats;

	memset(data, 0, SIZE);
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, 4096), VS_ERR_NONE); /* just below, just above: no match */
	CHECK_EQ(io(s, VS_IO_READ, 0, 8192, 4096), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 4096, 4096), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_READ, 0, 4095, 2), VS_ERR_NONE); /* the first is let by */
	CHECK_EQ(io(s, VS_IO_READ, 0, 8191, 2), VS_ERR_READ);
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, SIZE), VS_ERR_READ);
	CHECK_EQ(io(s, VS_IO_READ, 0, 4096, 1), VS_ERR_NONE); /* two have failed */
	vs_store_stats(lower, &stats);
	CHECK_EQ(stats.ops[VS_IO_READ], 4);
	vs_store_stats(s, &stats);
	CHECK_EQ(stats.errors[VS_IO_READ], 2);
	vs_store_destroy(s);

	/* SHORT: half is transferred, then it fails. */
	rule = (struct vs_fault_rule){ .ops = 1u << VS_IO_WRITE | 1u << VS_IO_READ, .kind = VS_FAULT_SHORT, .error = VS_ERR_NO_SPACE, .count = 2 };
	s = faulty(memory(SIZE), rule);
	memset(data, 5, 8192);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 8192), VS_ERR_NO_SPACE);
	memset(data, 6, 8192);
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, 4096), VS_ERR_NO_SPACE);
	CHECK(data[0] == 5 && data[2047] == 5 && data[2048] == 6);
	reads_as(s, 0, 4096, 5);
	reads_as(s, 4096, 4096, 0);
	vs_store_destroy(s);

	/* TORN: half is written and it says that all is well. */
	rule = (struct vs_fault_rule){ .ops = 1u << VS_IO_WRITE, .kind = VS_FAULT_TORN, .count = 1 };
	s = faulty(memory(SIZE), rule);
	memset(data, 5, 8192);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 3 * 512), VS_ERR_NONE);
	reads_as(s, 0, 512, 5);
	reads_as(s, 512, 4096, 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 3 * 512), VS_ERR_NONE);
	reads_as(s, 0, 3 * 512, 5);
	vs_store_destroy(s);

	/* A failed flush is latched, one that was only busy or aborted is not. */
	rule = (struct vs_fault_rule){ .ops = 1u << VS_IO_FLUSH, .error = VS_ERR_WRITE, .count = 1 };
	s = faulty(memory(SIZE), rule);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_WRITE);
	is_latched(s);
	vs_store_destroy(s);
	rule.error = VS_ERR_BUSY;
	s = faulty(memory(SIZE), rule);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_BUSY);
	CHECK_EQ(io(s, VS_IO_FLUSH, 0, 0, 0), VS_ERR_NONE);
	vs_store_destroy(s);
}

static void test_faulty_rules(void)
{
	static const struct vs_fault_rule wrong[] = {
		{ .ops = 0, .error = VS_ERR_READ },
		{ .ops = 1u << VS_IO_OPS, .error = VS_ERR_READ },
		{ .ops = 1u << VS_IO_READ, .error = VS_ERR_NONE },
		{ .ops = 1u << VS_IO_READ, .error = VS_ERR_KINDS },
		{ .ops = 1u << VS_IO_READ, .kind = VS_FAULT_TORN },
		{ .ops = 1u << VS_IO_WRITE, .kind = 3, .error = VS_ERR_WRITE },
		{ .ops = 1u << VS_IO_WRITE, .error = VS_ERR_WRITE, .offset = UINT64_MAX, .length = 2 },
	};
	struct vs_store *lower = memory(SIZE), *s = NULL;
	size_t i;

	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		CHECK_EQ(vs_store_faulty(rig.core, lower, &wrong[i], 1, &s, why, sizeof(why)), -EINVAL);
		CHECK(s == NULL && strstr(why, "rule 1"));
	}
	vs_store_destroy(lower);
}

/* ---- overlay, Python -------------------------------------------------------------------------------------------------------------------- */

static void test_overlay(void)
{
	struct vs_store *lower, *s = NULL;
	struct vs_store_stats stats;
	uint64_t run;
	int mapped;

	image("lower", SIZE);
	lower = file(0);
	memset(data, 1, SIZE);
	CHECK_EQ(io(lower, VS_IO_WRITE, 0, 0, SIZE / 2), VS_ERR_NONE);
	vs_store_destroy(lower);
	CHECK(chmod(path, 0400) == 0);
	lower = file(VS_FILE_READ_ONLY);
	name_it("overlay");
	CHECK_EQ(vs_store_overlay(rig.core, lower, path, 4096, &s, why, sizeof(why)), 0);
	memset(data, 2, SIZE);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 5000, 10), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_ZERO, 0, 10000, 10), VS_ERR_NONE);
	CHECK_EQ(io(s, VS_IO_UNMAP, 0, 3 * 4096, 4096), VS_ERR_NONE);
	reads_as(s, 0, 5000, 1);
	reads_as(s, 5000, 10, 2);
	reads_as(s, 5010, 10000 - 5010, 1);
	reads_as(s, 10000, 10, 0);
	reads_as(s, 10010, 3 * 4096 - 10010, 1);
	reads_as(s, 3 * 4096, 4096, 0);
	reads_as(s, 4 * 4096, SIZE / 2 - 4 * 4096, 1);
	vs_store_stats(lower, &stats);
	CHECK(stats.ops[VS_IO_WRITE] == 0 && stats.ops[VS_IO_UNMAP] == 0 && stats.ops[VS_IO_ZERO] == 0 && stats.ops[VS_IO_FLUSH] == 0);
	CHECK(vs_store_map(s, 4096, 8192, &mapped, &run) == 0 && mapped && run == 8192);
	CHECK(vs_store_map(s, SIZE / 2, SIZE / 2, &mapped, &run) == 0 && !mapped && run == SIZE / 2);
	CHECK_EQ(vs_store_resize(s, 2 * SIZE), -ENOTSUP);
	CHECK(vs_store_lower(s) == lower);
	vs_store_destroy(s);
	lower = memory(SIZE);
	CHECK_EQ(vs_store_overlay(rig.core, lower, path, 4096, &s, why, sizeof(why)), -EEXIST);
	CHECK(strstr(why, "exists already"));
	CHECK_EQ(vs_store_overlay(rig.core, lower, NULL, 4095, &s, why, sizeof(why)), -EINVAL);
	CHECK_EQ(vs_store_overlay(rig.core, lower, NULL, 256, &s, why, sizeof(why)), -EINVAL);
	vs_store_destroy(lower);
}

/* A block that could not be copied up stays as it was, and is let go. */
static void test_overlay_errors(void)
{
	struct vs_fault_rule rule = { .ops = 1u << VS_IO_READ, .error = VS_ERR_READ, .count = 1 };
	struct vs_store *s = NULL;

	CHECK_EQ(vs_store_overlay(rig.core, faulty(memory(SIZE), rule), NULL, 4096, &s, why, sizeof(why)), 0);
	memset(data, 2, 4096);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 10, 10), VS_ERR_READ);
	reads_as(s, 0, 4096, 0);
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 10, 10), VS_ERR_NONE);
	reads_as(s, 10, 10, 2);
	vs_store_destroy(s);
}

/* Many small writes into the same block at once, before it is in the upper store: none is lost. */
static void test_overlay_one_block(void)
{
	enum { N = 400 };
	static struct shot shots[N];
	struct vs_store *s = NULL;
	int i;

	CHECK_EQ(vs_store_overlay(rig.core, memory(SIZE), NULL, 65536, &s, why, sizeof(why)), 0);
	memset(data, 4, N * 100);
	for (i = 0; i < N; i++) {
		shot_set(&shots[i], s, VS_IO_WRITE, 0, (uint64_t)i * 100, 99, data);
		shot_send(&rig, &shots[i], (uint32_t)i % RIG_WORKERS);
	}
	for (i = 0; i < N; i++)
		CHECK_EQ(shot_wait(&rig, &shots[i]), VS_ERR_NONE);
	for (i = 0; i < N; i++) {
		reads_as(s, (uint64_t)i * 100, 99, 4);
		reads_as(s, (uint64_t)i * 100 + 99, 1, 0);
	}
	vs_store_destroy(s);
}

/* Who waits for two blocks is not overtaken by somebody who came later and wants one of them. */
static void test_overlay_order(void)
{
	static const uint64_t offsets[] = { 100, 4000, 4096 }, lengths[] = { 10, 200, 10 };
	struct vs_store *s = NULL;
	struct shot shots[3];
	int i;

	CHECK_EQ(vs_store_overlay(rig.core, delayed(memory(SIZE), 20), NULL, 4096, &s, why, sizeof(why)), 0);
	for (i = 0; i < 3; i++) {
		shot_set(&shots[i], s, VS_IO_WRITE, 0, offsets[i], lengths[i], data);
		shot_send(&rig, &shots[i], 0);
	}
	/* Alone, the third would be through in half of the time that the first takes. */
	CHECK_EQ(shot_wait(&rig, &shots[0]), VS_ERR_NONE);
	CHECK(!shots[2].ended);
	CHECK_EQ(shot_wait(&rig, &shots[2]), VS_ERR_NONE);
	CHECK(shots[1].ended);
	vs_store_destroy(s);
}

static void test_python(void)
{
	struct rig_python side = { .data = calloc(1, SIZE), .size = SIZE };
	struct vs_store *s = rig_python_open(&rig, &side);
	struct vs_store_info info = { .size = 0 };

	side.cheat = true; /* fewer bytes than were asked for */
	CHECK_EQ(io(s, VS_IO_READ, 0, 0, 4096), VS_ERR_INTERNAL);
	side.cheat = false;
	side.fail = VS_ERR_NOT_READY;
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 4096), VS_ERR_NOT_READY);
	side.fail = 77; /* no such error */
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 4096), VS_ERR_INTERNAL);
	side.fail = 0;
	CHECK_EQ(io(s, VS_IO_WRITE, 0, 0, 4096), VS_ERR_NONE);
	vs_store_destroy(s);
	CHECK_EQ(vs_store_python(rig.core, &info, 1, &s, why, sizeof(why)), -EINVAL);
	free(side.data);
}

/* ---- control plane, errno ------------------------------------------------------------------------------------------------------------ */

static int32_t control(struct vs_store *s, uint32_t worker, uint32_t op, uint64_t offset, uint64_t length)
{
	struct vs_task_info info;
	struct vs_upcall up;

	CHECK_EQ(vs_store_submit_control(rig.core, s, worker, op, 0, offset, length, data, 4711), 0);
	while (!vs_core_drain(rig.core, &up, &info, 1))
		usleep(100);
	CHECK(up.kind == VS_UP_DONE && up.cookie == 4711 && up.worker == worker);
	return up.err;
}

static void test_control(void)
{
	struct vs_store *s = memory(SIZE);

	memset(data, 8, 512);
	CHECK_EQ(control(s, 1, VS_IO_WRITE, 100, 512), 0);
	reads_as(s, 100, 512, 8);
	memset(data, 0, 512);
	CHECK_EQ(control(s, 0, VS_IO_READ, 100, 512), 0);
	CHECK(data[0] == 8 && data[511] == 8);
	CHECK_EQ(control(s, 0, VS_IO_FLUSH, 0, 0), 0);
	CHECK_EQ(control(s, 0, VS_IO_READ, SIZE, 1), -VS_ERR_RANGE);
	CHECK_EQ(vs_store_submit_control(rig.core, s, RIG_WORKERS, VS_IO_READ, 0, 0, 1, data, 1), -EINVAL);
	CHECK_EQ(vs_store_submit_control(rig.core, s, 0, VS_IO_OPS, 0, 0, 1, data, 1), -EINVAL);
	CHECK_EQ(vs_store_submit_control(rig.core, s, 0, VS_IO_READ, 0, 0, 1, NULL, 1), -EINVAL);
	vs_store_destroy(s);
}

static void test_errno(void)
{
	static const struct { int err; int32_t read, write; } map[] = {
		{ 0, VS_ERR_NONE, VS_ERR_NONE },
		{ EIO, VS_ERR_READ, VS_ERR_WRITE },
		{ ENOSPC, VS_ERR_READ, VS_ERR_NO_SPACE },
		{ EDQUOT, VS_ERR_READ, VS_ERR_NO_SPACE },
		{ EROFS, VS_ERR_READ, VS_ERR_READ_ONLY },
		{ EAGAIN, VS_ERR_BUSY, VS_ERR_BUSY },
		{ ETIMEDOUT, VS_ERR_NOT_READY, VS_ERR_NOT_READY },
		{ ENODEV, VS_ERR_GONE, VS_ERR_GONE },
		{ EOPNOTSUPP, VS_ERR_UNSUPPORTED, VS_ERR_UNSUPPORTED },
		{ EFAULT, VS_ERR_INTERNAL, VS_ERR_INTERNAL },
		{ ECANCELED, VS_ERR_ABORTED, VS_ERR_ABORTED },
	};
	size_t i;

	for (i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
		CHECK_EQ(vs_store_error_of_errno(map[i].err, VS_IO_READ), map[i].read);
		CHECK_EQ(vs_store_error_of_errno(map[i].err, VS_IO_WRITE), map[i].write);
	}
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------------ */

static void with_engine(uint32_t engine)
{
	static const uint32_t caches[] = { 0, VS_FILE_DIRECT };
	size_t i;

	rig_start(&rig, engine);
	printf(" %s\n", vs_core_engine_name(rig.core));
	test_file_refusals();
	test_file_lock();
	test_file_read_only();
	for (i = 0; i < 2; i++) {
		test_file_durability(caches[i]);
		test_file_truncated(caches[i]);
		test_file_cut_off_for_good(caches[i]);
		test_file_holes(caches[i]);
		test_file_refused_fallocate(caches[i]);
		test_file_long_iovecs(caches[i], caches[i] ? 512 : 37);
	}
	test_file_latch();
	test_file_no_space();
	test_file_buffers_run_out();
	test_memory();
	test_usage();
	test_null();
	test_delay();
	test_faulty();
	test_faulty_rules();
	test_overlay();
	test_overlay_errors();
	test_overlay_one_block();
	test_overlay_order();
	test_python();
	test_control();
	test_errno();
	rig_stop(&rig);
}

int main(void)
{
	char command[300];

	CHECK(mkdtemp(folder));
	CHECK(posix_memalign((void **)&data, 4096, 2 << 20) == 0);
	with_engine(VS_ENGINE_EPOLL);
	snprintf(command, sizeof(command), "rm -r %s", folder);
	CHECK(system(command) == 0);
	if (vs_engine_why_not(VS_ENGINE_URING)) {
		printf(" io_uring left out: %s\n", vs_engine_why_not(VS_ENGINE_URING));
	} else {
		CHECK(mkdir(folder, 0700) == 0);
		with_engine(VS_ENGINE_URING);
		CHECK(system(command) == 0);
	}
	free(data);
	return 0;
}
