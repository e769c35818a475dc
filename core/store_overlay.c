/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copy-on-write: the store below is only read; what is written goes to an upper store, memory or a sparse file, at the same offsets. One
 * bit for each block says which of the two has it. The bits live in memory alone: an overlay ends with its process. Bits are only ever set,
 * and only once the data are in.
 *
 * An io runs one child io after the other, so there is one thing to cancel and one error to report. A write to blocks that are all in the
 * upper store goes straight on. Any other first takes its blocks for itself (store_span.c), copies up what it leaves untouched of its first
 * and last block, writes, and sets the bits.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

enum { BLOCK_MIN = 512, BLOCK_MAX = 1 << 20, BUFFER_BYTES = 16 << 20 };
enum overlay_step { STEP_READ, STEP_HEAD_READ, STEP_HEAD_WRITE, STEP_TAIL_READ, STEP_TAIL_WRITE, STEP_DATA, STEP_DONE };
enum { CHILD_FLIES = 1u << 8 };

struct overlay_store {
	struct vs_store store;
	struct vs_store *upper;
	_Atomic uint64_t *written; /* one bit a block */
	uint64_t written_bytes;
	uint32_t shift;
	struct vs_spans spans;
	struct vs_buffers buffers;
};

static inline struct overlay_store *overlay_of(struct vs_store *s)
{
	return vs_container_of(s, struct overlay_store, store);
}

/* ---- the bits ---------------------------------------------------------------------------------------------------------------------- */

static bool is_written(const struct overlay_store *o, uint64_t block)
{
	/* Acquire: who sees the bit sees the data. */
	return atomic_load_explicit(&o->written[block / 64], memory_order_acquire) >> block % 64 & 1;
}

/* How many bytes from offset, at most length, are in the same of the two stores. */
static uint64_t run_of(const struct overlay_store *o, uint64_t offset, uint64_t length, bool *written)
{
	uint64_t block = offset >> o->shift, last = (offset + length - 1) >> o->shift, end;

	*written = is_written(o, block);
	while (block < last) {
		uint64_t word;

		if (++block % 64 == 0) {
			word = atomic_load_explicit(&o->written[block / 64], memory_order_acquire);
			if (last - block >= 63 && word == (*written ? UINT64_MAX : 0)) {
				block += 63;
				continue;
			}
		}
		if (is_written(o, block) != *written) {
			end = block << o->shift;
			return end - offset;
		}
	}
	return length;
}

static bool all_written(const struct overlay_store *o, uint64_t offset, uint64_t length)
{
	bool written;

	return run_of(o, offset, length, &written) == length && written;
}

static void set_written(struct overlay_store *o, uint64_t offset, uint64_t length)
{
	uint64_t block = offset >> o->shift, last = (offset + length - 1) >> o->shift;

	while (block <= last) {
		uint64_t n = vs_min(64 - block % 64, last - block + 1);
		uint64_t bits = (n == 64 ? UINT64_MAX : (1ull << n) - 1) << block % 64;

		atomic_fetch_or_explicit(&o->written[block / 64], bits, memory_order_release);
		block += n;
	}
}

/* ---- one child after the other ------------------------------------------------------------------------------------------------------- */

/* What a write leaves untouched of its first and of its last block: nothing when the block is in the upper store already. */
static uint64_t head_of(const struct overlay_store *o, const struct vs_io *io)
{
	return is_written(o, io->offset >> o->shift) ? 0 : io->offset & ((1ull << o->shift) - 1);
}

static uint64_t tail_of(const struct overlay_store *o, const struct vs_io *io)
{
	uint64_t end = io->offset + io->length, block = (end - 1) >> o->shift;
	uint64_t block_end = vs_min((block + 1) << o->shift, vs_store_size(&o->store));

	return is_written(o, block) ? 0 : block_end - end;
}

/* The step is in io->pending, with a bit that says that the child is under way; io->state belongs to the spans. */
static void step_to(struct vs_io *io, enum overlay_step step)
{
	io->pending = step;
}

static enum overlay_step step_of(const struct vs_io *io)
{
	return io->pending & ~(uint32_t)CHILD_FLIES;
}

static void aim(struct vs_io *child, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length)
{
	child->op = op;
	child->flags = flags;
	child->offset = offset;
	child->length = length;
}

/* A piece of at most one block between the stores, through io->buffer. */
static void aim_copy(struct vs_io *io, uint8_t op, uint64_t offset, uint64_t length)
{
	struct vs_buffer *buffer = io->buffer;
	struct vs_io *child = io->priv;

	buffer->iov = (struct iovec){ buffer->data, length };
	child->iov = &buffer->iov;
	child->niov = 1;
	aim(child, op, 0, offset, length);
}

/* The next run of a read. Only a read that is spread over both stores needs iovecs of its own. */
static int32_t aim_read(struct overlay_store *o, struct vs_io *io, struct vs_store **to)
{
	struct vs_io *child = io->priv;
	uint64_t offset = io->offset + io->progress, length;
	bool written;

	length = run_of(o, offset, io->length - io->progress, &written);
	*to = written ? o->upper : o->store.lower;
	aim(child, VS_IO_READ, io->flags, offset, length);
	if (length == io->length)
		return VS_ERR_NONE;
	if (child->iov == io->iov) {
		child->iov = vs_iovec_get(io->w, (uint32_t)io->niov);
		if (!child->iov) {
			child->iov = io->iov;
			return VS_ERR_BUSY;
		}
	}
	child->niov = vs_iov_slice(io->iov, io->niov, io->progress, length, child->iov, io->niov);
	return VS_ERR_NONE;
}

/* Aims the child at what the step asks for; steps with nothing to do are passed over. */
static int32_t prepare(struct overlay_store *o, struct vs_io *io, struct vs_store **to)
{
	struct vs_io *child = io->priv;
	uint64_t end = io->offset + io->length, n;

	for (;;) {
		switch (step_of(io)) {
		case STEP_READ:
			return aim_read(o, io, to);
		case STEP_HEAD_READ:
		case STEP_HEAD_WRITE:
			n = head_of(o, io);
			*to = step_of(io) == STEP_HEAD_READ ? o->store.lower : o->upper;
			if (n) {
				aim_copy(io, step_of(io) == STEP_HEAD_READ ? VS_IO_READ : VS_IO_WRITE, io->offset - n, n);
				return VS_ERR_NONE;
			}
			step_to(io, STEP_TAIL_READ);
			break;
		case STEP_TAIL_READ:
		case STEP_TAIL_WRITE:
			n = tail_of(o, io);
			*to = step_of(io) == STEP_TAIL_READ ? o->store.lower : o->upper;
			if (n) {
				aim_copy(io, step_of(io) == STEP_TAIL_READ ? VS_IO_READ : VS_IO_WRITE, end, n);
				return VS_ERR_NONE;
			}
			step_to(io, STEP_DATA);
			break;
		default:
			*to = o->upper;
			child->iov = io->iov;
			child->niov = io->niov;
			aim(child, io->op, io->flags, io->offset, io->length);
			return VS_ERR_NONE;
		}
	}
}

/* The child has ended well: what is next. */
static void advance(struct overlay_store *o, struct vs_io *io)
{
	switch (step_of(io)) {
	case STEP_READ:
		io->progress += ((struct vs_io *)io->priv)->length;
		if (io->progress == io->length)
			step_to(io, STEP_DONE);
		break;
	case STEP_DATA:
		/* Before the blocks are let go: the next writer must see them as written. */
		if (io->state & VS_IO_STATE_HELD)
			set_written(o, io->offset, io->length);
		step_to(io, STEP_DONE);
		break;
	default:
		step_to(io, step_of(io) + 1);
		break;
	}
}

static void let_go(struct overlay_store *o, struct vs_io *io)
{
	struct vs_io *child = io->priv;

	if (io->op == VS_IO_READ && child->iov != io->iov)
		vs_iovec_put(io->w, child->iov, (uint32_t)io->niov);
	vs_io_put(io->w, child);
	if (io->buffer)
		vs_buffers_put(&o->buffers, io);
	if (io->state & VS_IO_STATE_HELD)
		vs_spans_leave(&o->spans, io);
}

/* Until a child is pending, or all is done and io->err says how. */
static enum vs_submit run(struct overlay_store *o, struct vs_io *io)
{
	struct vs_io *child = io->priv;
	struct vs_store *to;

	while (!io->err && step_of(io) != STEP_DONE) {
		io->err = prepare(o, io, &to);
		if (io->err)
			break;
		if (vs_store_submit(to, child) == VS_SUBMIT_PENDING) {
			io->pending |= CHILD_FLIES;
			return VS_SUBMIT_PENDING;
		}
		io->err = child->err;
		if (!io->err)
			advance(o, io);
	}
	let_go(o, io);
	return VS_SUBMIT_DONE;
}

static void child_done(struct vs_io *child)
{
	struct vs_io *io = child->owner;
	struct overlay_store *o = overlay_of(io->store);

	io->pending &= ~(uint32_t)CHILD_FLIES;
	io->err = child->err;
	if (!io->err)
		advance(o, io);
	if (run(o, io) == VS_SUBMIT_DONE)
		vs_io_end(io, io->err);
}

static void have_buffer(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	if (run(overlay_of(io->store), io) == VS_SUBMIT_DONE)
		vs_io_end(io, io->err);
}

/* The blocks are ours. Somebody else may have copied them up while we waited. */
static enum vs_submit start_write(struct overlay_store *o, struct vs_io *io)
{
	step_to(io, STEP_HEAD_READ);
	io->msg.run = have_buffer;
	if ((head_of(o, io) || tail_of(o, io)) && !vs_buffers_get(&o->buffers, io))
		return VS_SUBMIT_PENDING;
	return run(o, io);
}

static void have_blocks(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	if (start_write(overlay_of(io->store), io) == VS_SUBMIT_DONE)
		vs_io_end(io, io->err);
}

static enum vs_submit overlay_submit(struct vs_store *s, struct vs_io *io)
{
	struct overlay_store *o = overlay_of(s);
	struct vs_io *child = vs_io_get(io->w);

	if (!child) {
		io->err = VS_ERR_BUSY;
		return VS_SUBMIT_DONE;
	}
	child->owner = io;
	child->done = child_done;
	child->iov = io->iov;
	child->niov = io->niov;
	io->priv = child;
	io->buffer = NULL;
	io->progress = 0;
	io->state = 0;
	step_to(io, STEP_READ);
	if (io->op == VS_IO_READ)
		return run(o, io);
	if (io->op == VS_IO_FLUSH || all_written(o, io->offset, io->length)) {
		step_to(io, STEP_DATA);
		return run(o, io);
	}
	io->msg.run = have_blocks;
	if (!vs_spans_enter(&o->spans, io, true))
		return VS_SUBMIT_PENDING;
	return start_write(o, io);
}

/* An io that waits for blocks or a buffer has no child yet, and ends when it has had its turn. */
static void overlay_cancel(struct vs_store *s, struct vs_io *io)
{
	struct vs_io *child = io->priv;

	(void)s;
	if (io->pending & CHILD_FLIES)
		vs_store_cancel(child->store, child);
}

/* ---- the rest -------------------------------------------------------------------------------------------------------------------------- */

static int overlay_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	struct overlay_store *o = overlay_of(s);
	bool written;
	int err;

	/* What was unmapped hides what is below as well, and nothing is there: only the upper store knows that. */
	*run = run_of(o, offset, length, &written);
	err = vs_store_map(written ? o->upper : s->lower, offset, *run, mapped, run);
	if (err == -ENOTSUP) { /* taken as allocated */
		*mapped = 1;
		return 0;
	}
	return err;
}

/* What is below is there whatever happens here; room is needed, and given back, above. */
static int overlay_usage(struct vs_store *s, struct vs_store_usage *out)
{
	return vs_store_usage(overlay_of(s)->upper, out);
}

static int overlay_limit(struct vs_store *s, uint64_t bytes)
{
	return vs_store_limit(overlay_of(s)->upper, bytes);
}

static void overlay_destroy(struct vs_store *s)
{
	struct overlay_store *o = overlay_of(s);

	if (o->upper)
		vs_store_destroy(o->upper);
	if (o->written)
		munmap(o->written, o->written_bytes);
	if (o->buffers.slots)
		vs_buffers_fini(&o->buffers);
	vs_spans_fini(&o->spans);
	vs_store_fini(s);
	free(o);
}

static const struct vs_store_ops overlay_ops = {
	.kind = "overlay",
	.submit = overlay_submit,
	.destroy = overlay_destroy,
	.map = overlay_map,
	.usage = overlay_usage,
	.limit = overlay_limit,
	.cancel = overlay_cancel,
};

/* A file that nobody has used: an old one would bring data that no bit knows of. */
static int make_upper(struct overlay_store *o, const char *path, uint64_t size, char *why, uint32_t why_size)
{
	vs_core *core = o->store.core;
	int fd, err;

	if (!path)
		return vs_store_memory(core, size, 0, &o->upper, why, why_size);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return vs_store_why(why, why_size, errno, errno == EEXIST ? "%s: exists already; an overlay starts with a new file" : "%s: %s",
				    path, strerror(errno));
	err = ftruncate(fd, (off_t)size) ? errno : 0;
	close(fd);
	if (err) {
		unlink(path);
		return vs_store_why(why, why_size, err, "%s: %s", path, strerror(err));
	}
	err = vs_store_file(core, path, 0, &o->upper, why, why_size);
	if (err)
		unlink(path);
	return err;
}

int vs_store_overlay(vs_core *core, vs_store *lower, const char *path, uint32_t block, vs_store **out, char *why, uint32_t why_size)
{
	uint64_t size = vs_store_size(lower), blocks;
	struct overlay_store *o;
	void *bits;
	int err;

	if (block < BLOCK_MIN || block > BLOCK_MAX || (block & (block - 1)))
		return vs_store_why(why, why_size, EINVAL, "overlay: a block of %u bytes is not a power of two from %d to %d", block, BLOCK_MIN,
				    BLOCK_MAX);
	o = calloc(1, sizeof(*o));
	if (!o || vs_store_init(&o->store, core, &overlay_ops, lower)) {
		free(o);
		return vs_store_why(why, why_size, ENOMEM, "overlay: out of memory");
	}
	vs_spans_init(&o->spans, block);
	o->shift = (uint32_t)__builtin_ctz(block);
	blocks = (size + block - 1) >> o->shift;
	/* Untouched pages of the map cost nothing, however large the store below is. */
	o->written_bytes = (blocks + 63) / 64 * 8;
	bits = mmap(NULL, o->written_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bits != MAP_FAILED)
		o->written = bits;
	if (!o->written || vs_buffers_init(&o->buffers, core, block, BUFFER_BYTES / block)) {
		overlay_destroy(&o->store);
		return vs_store_why(why, why_size, ENOMEM, "overlay: out of memory");
	}
	err = make_upper(o, path, size, why, why_size);
	if (err) {
		overlay_destroy(&o->store);
		return err;
	}
	vs_store_info(o->upper, &o->store.info);
	o->store.info.size = size;
	o->store.info.atomic_unit = 0; /* a head or tail that is copied up makes two writes of one */
	o->store.info.io_align = 1; /* what is read below is bounced there */
	o->store.info.optimal_io = vs_max(lower->info.optimal_io, block);
	/* Written zeroes hide what is below; nothing more can be given back than the upper store can. */
	o->store.info.discard_granularity = vs_max(o->store.info.discard_granularity, block);
	*out = &o->store;
	return 0;
}
