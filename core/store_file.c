/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A regular file or a block device as a store: opening and locking it, finding out what it can do, its size and its holes. How ios are
 * carried out stands in store_file_io.c. Nothing here runs per request.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "store_file.h"

/* ---- opening --------------------------------------------------------------------------------------------------------------------------- */

static int wrong_type(const char *path, mode_t mode, char *why, uint32_t why_size)
{
	if (S_ISREG(mode) || S_ISBLK(mode))
		return 0;
	if (S_ISDIR(mode))
		return vs_store_why(why, why_size, EISDIR, "%s: is a directory, not a file or block device", path);
	return vs_store_why(why, why_size, ENOTBLK, "%s: is not a file or block device", path);
}

static int open_errno(const char *path, uint32_t flags, char *why, uint32_t why_size)
{
	int err = errno;

	if (err == ENOENT)
		return vs_store_why(why, why_size, err, "%s: no such file", path);
	if (err == EACCES || err == EPERM)
		return vs_store_why(why, why_size, err, "%s: permission denied (opening it for %s)", path,
				    flags & VS_FILE_READ_ONLY ? "reading" : "reading and writing");
	if (err == EROFS)
		return vs_store_why(why, why_size, err, "%s: the file system is read-only", path);
	if (err == EINVAL && (flags & VS_FILE_DIRECT))
		return vs_store_why(why, why_size, err, "%s: its file system has no direct I/O; use cache=buffered", path);
	return vs_store_why(why, why_size, err, "%s: %s", path, strerror(err));
}

/* Looks before it opens, because opening a device or a FIFO can do things; and looks again at what was opened. */
static int open_file(const char *path, uint32_t flags, int *fd, char *why, uint32_t why_size)
{
	int mode = flags & VS_FILE_READ_ONLY ? O_RDONLY : O_RDWR, err;
	struct stat st;

	if (stat(path, &st))
		return open_errno(path, flags, why, why_size);
	err = wrong_type(path, st.st_mode, why, why_size);
	if (err)
		return err;
	*fd = open(path, mode | O_CLOEXEC | O_NONBLOCK | (flags & VS_FILE_DIRECT ? O_DIRECT : 0));
	if (*fd < 0)
		return open_errno(path, flags, why, why_size);
	/* io_uring would not wait for a descriptor that says O_NONBLOCK. */
	if (fstat(*fd, &st) || fcntl(*fd, F_SETFL, flags & VS_FILE_DIRECT ? O_DIRECT : 0)) {
		err = open_errno(path, flags, why, why_size);
		close(*fd);
		return err;
	}
	err = wrong_type(path, st.st_mode, why, why_size);
	if (err)
		close(*fd);
	return err;
}

/* flock belongs to the open file description that the ios use: the lock lasts as long as the last of them, even after kill -9. */
static int lock_file(int fd, const char *path, uint32_t flags, char *why, uint32_t why_size)
{
	int err;

	if (flags & VS_FILE_NO_LOCK || !flock(fd, (flags & VS_FILE_READ_ONLY ? LOCK_SH : LOCK_EX) | LOCK_NB))
		return 0;
	err = errno;
	if (err == EWOULDBLOCK)
		return vs_store_why(why, why_size, err, "%s: in use: another process holds a lock on it", path);
	return vs_store_why(why, why_size, err, "%s: cannot be locked: %s", path, strerror(err));
}

static int size_of(const struct file_store *f, uint64_t *size)
{
	struct stat st;

	if (f->block_device)
		return ioctl(f->fd, BLKGETSIZE64, size) ? -errno : 0;
	if (fstat(f->fd, &st))
		return -errno;
	*size = (uint64_t)st.st_size;
	return 0;
}

/* ---- what it can do ------------------------------------------------------------------------------------------------------------------ */

/* Kernels before 6.1 do not say: then a read finds out. */
static bool try_unit(int fd, uint32_t unit)
{
	void *memory;
	ssize_t n;

	if (posix_memalign(&memory, unit, unit))
		return false;
	n = pread(fd, memory, unit, unit);
	free(memory);
	return n >= 0 || errno != EINVAL;
}

static int find_units(struct file_store *f, const char *path, char *why, uint32_t why_size)
{
	struct statx stx = { 0 };
	uint32_t unit;

	if (!statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && (stx.stx_mask & STATX_DIOALIGN)) {
		f->unit = stx.stx_dio_offset_align;
		f->memory_unit = stx.stx_dio_mem_align;
		if (f->unit && f->memory_unit && f->unit <= FILE_BUFFER / 2 && f->memory_unit <= 4096)
			return 0;
		return vs_store_why(why, why_size, EINVAL, "%s: its file system has no direct I/O; use cache=buffered", path);
	}
	for (unit = 512; unit <= 4096; unit *= 2) {
		if (try_unit(f->fd, unit)) {
			f->unit = f->memory_unit = unit;
			return 0;
		}
	}
	return vs_store_why(why, why_size, EINVAL, "%s: the unit of direct I/O cannot be found; use cache=buffered", path);
}

/* A hole punched beyond the end changes nothing and tells whether holes can be. */
static bool can_punch(const struct file_store *f, uint64_t size)
{
	return !fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((size + 4095) & ~4095ull), 4096) || errno != EOPNOTSUPP;
}

static uint64_t queue_value(dev_t dev, const char *name)
{
	static const char *const folders[] = { "", "../" }; /* a partition has its disk's queue */
	unsigned long long value = 0;
	char path[128];
	size_t i;

	for (i = 0; i < 2; i++) {
		FILE *file;
		int n;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev), folders[i], name);
		file = fopen(path, "re");
		if (!file)
			continue;
		n = fscanf(file, "%llu", &value);
		fclose(file);
		if (n == 1)
			return value;
	}
	return 0;
}

static void describe_device(struct file_store *f, const struct stat *st)
{
	struct vs_store_info *info = &f->store.info;
	int sector = 512;
	unsigned int optimal = 0;

	ioctl(f->fd, BLKSSZGET, &sector);
	ioctl(f->fd, BLKIOOPT, &optimal);
	f->sector = (uint32_t)sector;
	info->optimal_io = optimal;
	info->discard_granularity = (uint32_t)queue_value(st->st_rdev, "discard_granularity");
	info->rotational = queue_value(st->st_rdev, "rotational") != 0;
	info->unmap = queue_value(st->st_rdev, "discard_max_bytes") ? VS_CAP_NATIVE : VS_CAP_NONE;
	info->unmapped_reads_zero = 0; /* BLKDISCARD promises nothing */
	atomic_init(&f->no_punch, queue_value(st->st_rdev, "write_zeroes_max_bytes") == 0);
}

static void describe_file(struct file_store *f, const struct stat *st, uint64_t size)
{
	struct vs_store_info *info = &f->store.info;

	info->discard_granularity = (uint32_t)st->st_blksize;
	atomic_init(&f->no_punch, info->read_only || !can_punch(f, size));
	info->unmap = f->no_punch ? VS_CAP_NONE : VS_CAP_NATIVE;
	info->unmapped_reads_zero = 1;
}

static int describe(struct file_store *f, const char *path, uint32_t flags, char *why, uint32_t why_size)
{
	struct stat st;
	uint64_t size = 0;
	int err;

	if (fstat(f->fd, &st))
		return open_errno(path, flags, why, why_size);
	f->block_device = S_ISBLK(st.st_mode);
	err = size_of(f, &size);
	if (err)
		return vs_store_why(why, why_size, -err, "%s: its size cannot be read: %s", path, strerror(-err));
	if (size == 0)
		return vs_store_why(why, why_size, EINVAL, "%s: is empty", path);
	f->unit = f->memory_unit = f->sector = 1;
	f->direct = flags & VS_FILE_DIRECT;
	if (f->direct) {
		err = find_units(f, path, why, why_size);
		if (err)
			return err;
		if (size % f->unit)
			return vs_store_why(why, why_size, EINVAL,
					    "%s: its size of %llu bytes is not a multiple of the direct-I/O unit of %u; use cache=buffered",
					    path, (unsigned long long)size, f->unit);
	}
	f->store.info = (struct vs_store_info){
		.size = size,
		.io_align = f->unit,
		.read_only = (flags & VS_FILE_READ_ONLY) != 0,
		.fua = VS_CAP_NATIVE,
		.zero = VS_CAP_NATIVE,
		.volatile_cache = 1,
	};
	if (f->block_device)
		describe_device(f, &st);
	else
		describe_file(f, &st, size);
	return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------ */

/* 0: what it is by now, because somebody else has changed it. Only a file can be made longer or shorter from here. */
static int file_resize(struct vs_store *s, uint64_t size)
{
	struct file_store *f = file_of(s);
	int err;

	if (size == 0) {
		err = size_of(f, &size);
		if (err)
			return err;
		if (size == 0 || size % f->unit)
			return -EINVAL;
	} else if (size != vs_store_size(s) || atomic_load_explicit(&f->cut_off, memory_order_relaxed) < size) {
		if (f->block_device)
			return -ENOTSUP;
		if (s->info.read_only)
			return -EROFS;
		if (size > INT64_MAX || size % f->unit)
			return -EINVAL;
		if (ftruncate(f->fd, (off_t)size))
			return -errno;
	}
	__atomic_store_n(&s->info.size, size, __ATOMIC_RELAXED);
	/* Whoever resizes knows what the file holds by now. */
	atomic_store_explicit(&f->cut_off, UINT64_MAX, memory_order_relaxed);
	return 0;
}

static int file_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	struct file_store *f = file_of(s);
	off_t next;

	if (f->block_device)
		return -ENOTSUP;
	next = lseek(f->fd, (off_t)offset, SEEK_DATA);
	if (next < 0 && errno != ENXIO) /* ENXIO: a hole to the end */
		return errno == EINVAL ? -ENOTSUP : -errno;
	*mapped = next == (off_t)offset;
	if (*mapped) {
		next = lseek(f->fd, (off_t)offset, SEEK_HOLE);
		if (next < 0)
			return -errno;
	}
	*run = next < 0 ? length : vs_min((uint64_t)next - offset, length);
	return 0;
}

/* The file system counts; what it has left is everybody's. A device tells nobody. */
static int file_usage(struct vs_store *s, struct vs_store_usage *out)
{
	struct file_store *f = file_of(s);
	struct statvfs fs;
	struct stat st;

	if (f->block_device)
		return -ENOTSUP;
	if (fstat(f->fd, &st) || fstatvfs(f->fd, &fs))
		return -errno;
	out->used = (uint64_t)st.st_blocks * 512;
	out->available = (uint64_t)fs.f_bavail * fs.f_frsize;
	out->shared = 1;
	return 0;
}

static void file_destroy(struct vs_store *s)
{
	struct file_store *f = file_of(s);

	if (f->fd >= 0)
		close(f->fd);
	vs_buffers_fini(&f->buffers);
	vs_spans_fini(&f->spans);
	vs_store_fini(s);
	free(f);
}

static const struct vs_store_ops file_ops = {
	.kind = "file",
	.submit = vs_file_submit,
	.destroy = file_destroy,
	.resize = file_resize,
	.map = file_map,
	.usage = file_usage,
};

int vs_store_file(vs_core *core, const char *path, uint32_t flags, vs_store **out, char *why, uint32_t why_size)
{
	struct file_store *f;
	int err;

	f = calloc(1, sizeof(*f));
	if (!f || vs_store_init(&f->store, core, &file_ops, NULL)) {
		free(f);
		return vs_store_why(why, why_size, ENOMEM, "file: out of memory");
	}
	f->fd = -1;
	atomic_init(&f->cut_off, UINT64_MAX);
	vs_spans_init(&f->spans, 1);
	err = open_file(path, flags, &f->fd, why, why_size);
	if (err) {
		f->fd = -1;
		goto destroy;
	}
	err = lock_file(f->fd, path, flags, why, why_size);
	if (err)
		goto destroy;
	err = describe(f, path, flags, why, why_size);
	if (err)
		goto destroy;
	f->spans.granule = f->unit;
	if (vs_buffers_init(&f->buffers, core, FILE_BUFFER, FILE_BUFFERS)) {
		err = vs_store_why(why, why_size, ENOMEM, "file: out of memory");
		goto destroy;
	}
	*out = &f->store;
	return 0;
destroy:
	file_destroy(&f->store);
	return err;
}
