// SPDX-License-Identifier: Apache-2.0
/*
 * The media commands of SBC-4, once: parse the CDB, check it, move bytes between the initiator's buffers and a store, map store errors to
 * sense. A command is a few store operations in a row; between them stands a step function. The gate was passed before; nothing here looks at
 * reservations, unit attentions or readiness.
 */
#include <endian.h>
#include <stdlib.h>

#include "task.h"
#include "gen/tables.h"

enum { CHUNK = 1 << 20 }; /* bounce buffers: how much is compared, verified or filled at a time */
enum { OPS_A_TURN = 16 }; /* store operations of one task in a row before others run */

/* What a step says: the task has its outcome, or t->io stands ready to be submitted. */
#define ENDED true
#define SUBMIT false

/* ---- outcomes -------------------------------------------------------------------------------------------------------------------------- */

static bool illegal(struct vs_task *t, uint16_t asc)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = asc });
	return ENDED;
}

static bool bad_field(struct vs_task *t, uint16_t byte, uint8_t bit)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_INVALID_FIELD_IN_CDB, .has_field = true,
					    .field_in_cdb = true, .field_byte = byte, .field_bit = bit });
	return ENDED;
}

static bool bad_parameter(struct vs_task *t, uint16_t byte)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST, .has_field = true,
					    .field_byte = byte, .field_bit = 7 });
	return ENDED;
}

static bool out_of_range(struct vs_task *t, uint64_t lba)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
					    .has_information = true, .information = lba });
	return ENDED;
}

static bool miscompare(struct vs_task *t, uint64_t offset)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_MISCOMPARE, .asc_ascq = VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION,
					    .has_information = true, .information = offset });
	return ENDED;
}

static const struct { uint8_t key; uint16_t asc_ascq; } sense_of_error[VS_ERR_KINDS] = {
	[VS_ERR_READ] = { VS_SK_MEDIUM_ERROR, VS_ASC_UNRECOVERED_READ_ERROR },
	[VS_ERR_WRITE] = { VS_SK_MEDIUM_ERROR, VS_ASC_WRITE_ERROR },
	[VS_ERR_NO_SPACE] = { VS_SK_DATA_PROTECT, VS_ASC_SPACE_ALLOCATION_FAILED_WRITE_PROTECT },
	[VS_ERR_READ_ONLY] = { VS_SK_DATA_PROTECT, VS_ASC_WRITE_PROTECTED },
	[VS_ERR_NOT_READY] = { VS_SK_NOT_READY, VS_ASC_LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE },
	[VS_ERR_GONE] = { VS_SK_HARDWARE_ERROR, VS_ASC_INTERNAL_TARGET_FAILURE },
	[VS_ERR_RANGE] = { VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE },
	[VS_ERR_UNSUPPORTED] = { VS_SK_HARDWARE_ERROR, VS_ASC_INTERNAL_TARGET_FAILURE },
	[VS_ERR_FLUSH_LATCHED] = { VS_SK_MEDIUM_ERROR, VS_ASC_WRITE_ERROR },
	[VS_ERR_INTERNAL] = { VS_SK_HARDWARE_ERROR, VS_ASC_INTERNAL_TARGET_FAILURE },
	[VS_ERR_ABORTED] = { VS_SK_ABORTED_COMMAND, VS_ASC_NO_ADDITIONAL_SENSE_INFORMATION },
};

/* A failed flush is latched by the store: from now on Python decides what may still be promised, and is told once. */
static void tell_failed(struct vs_lu *lu, struct vs_store *store, struct vs_worker *w)
{
	if (!atomic_load(&store->flush_failed) || (atomic_fetch_or(&lu->gate, VS_GATE_STORE_FAILED) & VS_GATE_STORE_FAILED))
		return;
	vs_upcall_new(w->core, VS_UP_STORE_FAILED, w->index, lu->cookie, 0, 0, NULL);
}

static bool store_error(struct vs_task *t, int32_t err)
{
	tell_failed(t->lu, t->io.store, t->w);
	if (err == VS_ERR_BUSY) {
		t->status = VS_STATUS_BUSY;
		return ENDED;
	}
	if (err < 0 || err >= VS_ERR_KINDS)
		err = VS_ERR_INTERNAL;
	vs_sense_set(t, &(struct vs_sense){ .key = sense_of_error[err].key, .asc_ascq = sense_of_error[err].asc_ascq });
	return ENDED;
}

/* ---- store operations in a row ------------------------------------------------------------------------------------------------------------ */

static bool prepare(struct vs_task *t, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, struct iovec *iov, int niov, bool (*step)(struct vs_task *))
{
	struct vs_io *io = &t->io;

	io->op = op;
	io->flags = flags;
	io->offset = offset;
	io->length = length;
	io->iov = iov;
	io->niov = niov;
	t->m.step = step;
	return SUBMIT;
}

static bool settle(struct vs_task *t)
{
	if (vs_unlikely(t->io.err))
		return store_error(t, t->io.err);
	if (vs_unlikely(t->aborted))
		return ENDED;
	return t->m.step(t);
}

static void drive_on(struct vs_worker *w, struct vs_msg *m);

/* Submits until something is pending (false) or the task has its outcome (true): a loop, for stores that answer at once. A long row of
 * operations lets others run in between. */
static bool drive(struct vs_task *t)
{
	for (int turns = 0;; turns++) {
		if (vs_unlikely(turns == OPS_A_TURN)) {
			vs_task_layer(t, VS_LAYER_STORE);
			t->msg.run = drive_on;
			vs_worker_push(t->w, &t->msg);
			return false;
		}
		t->io.err = VS_ERR_NONE;
		if (vs_store_submit(t->io.store, &t->io) == VS_SUBMIT_PENDING) {
			vs_task_layer(t, VS_LAYER_STORE);
			t->m.in_store = true;
			return false;
		}
		if (settle(t) == ENDED)
			return true;
	}
}

static void drive_on(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_task *t = vs_container_of(m, struct vs_task, msg);

	(void)w;
	if (t->aborted || drive(t))
		vs_media_end(t);
}

static void io_done(struct vs_io *io)
{
	struct vs_task *t = io->owner;

	t->m.in_store = false;
	if (settle(t) == ENDED || drive(t))
		vs_media_end(t);
}

static bool good(struct vs_task *t)
{
	(void)t;
	return ENDED;
}

static bool alloc_bounce(struct vs_task *t, uint64_t n)
{
	t->m.bounce = aligned_alloc(4096, (n + 4095) & ~UINT64_C(4095));
	if (!t->m.bounce) {
		t->status = VS_STATUS_BUSY;
		return false;
	}
	return true;
}

/* The task's iovecs cover exactly n bytes from here on: they are the task's own, nobody needs the rest. */
static uint32_t clip(struct iovec *iov, uint32_t niov, uint64_t have, uint64_t n)
{
	if (vs_likely(have == n))
		return niov;
	for (uint32_t i = 0; i < niov; i++) {
		if (iov[i].iov_len >= n) {
			iov[i].iov_len = n;
			return n ? i + 1 : i;
		}
		n -= iov[i].iov_len;
	}
	return niov;
}

/* ---- READ, WRITE ------------------------------------------------------------------------------------------------------------------------------- */

/* COMPARE AND WRITE took both halves of its data: without this the initiator would be told of a residual. */
static bool moved(struct vs_task *t)
{
	t->transferred = vs_likely(t->row->media != VS_MEDIA_COMPARE_AND_WRITE) ? t->m.length : t->required;
	return ENDED;
}

static bool read_now(struct vs_task *t)
{
	return prepare(t, VS_IO_READ, 0, t->m.offset, t->m.length, t->in, (int)t->nin, moved);
}

static bool start_read(struct vs_task *t)
{
	t->nin = clip(t->in, t->nin, t->in_length, t->m.length);
	/* SBC-4 5.11 FUA: what a volatile cache holds of these blocks goes to the medium before it is read. */
	if (vs_unlikely(t->m.fua) && t->io.store->info.volatile_cache)
		return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, read_now);
	return read_now(t);
}

static bool flush_written(struct vs_task *t)
{
	return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, moved);
}

/* After a write that must be durable: a store that cannot write through is flushed instead. */
static bool write_out(struct vs_task *t, struct iovec *iov, int niov)
{
	const struct vs_store_info *info = &t->io.store->info;
	bool through = (t->m.fua || !atomic_load_explicit(&t->lu->wce, memory_order_relaxed)) && info->volatile_cache;
	bool native = info->fua == VS_CAP_NATIVE;

	return prepare(t, VS_IO_WRITE, through && native ? VS_IO_FUA : 0, t->m.offset, t->m.length, iov, niov, through && !native ? flush_written : moved);
}

static bool start_write(struct vs_task *t)
{
	t->nout = clip(t->out, t->nout, t->out_length, t->m.length);
	return write_out(t, t->out, (int)t->nout);
}

/* ---- SYNCHRONIZE CACHE ---------------------------------------------------------------------------------------------------------------------------- */

static void detached_done(struct vs_io *io)
{
	struct vs_lu *lu = io->owner;

	if (io->err)
		tell_failed(lu, io->store, io->w);
	vs_unpin(io->w, &lu->pins);
	vs_io_put(io->w, io);
}

/* SBC-4 5.22 IMMED: status as soon as the CDB is known to be good; the flush goes on by itself and still pins the LU. */
static bool flush_detached(struct vs_task *t)
{
	struct vs_io *io = vs_io_get(t->w);

	if (!io) {
		t->status = VS_STATUS_BUSY;
		return ENDED;
	}
	io->store = t->io.store;
	io->w = t->w;
	io->op = VS_IO_FLUSH;
	io->flags = 0;
	io->err = VS_ERR_NONE;
	io->offset = io->length = 0;
	io->iov = NULL;
	io->niov = 0;
	io->owner = t->lu;
	io->done = detached_done;
	vs_pin(t->w, &t->lu->pins);
	if (vs_store_submit(io->store, io) == VS_SUBMIT_DONE)
		detached_done(io);
	return ENDED;
}

static bool start_sync(struct vs_task *t)
{
	if (t->cdb[1] & 2)
		return flush_detached(t);
	return prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, good);
}

/* ---- UNMAP ------------------------------------------------------------------------------------------------------------------------------------------ */

static bool unmap_next(struct vs_task *t)
{
	uint32_t n = (t->param_length - 8) / 16;

	while (t->m.index < n) {
		const uint8_t *d = t->param + 8 + 16 * t->m.index++;
		uint64_t lba = vs_be64(d), blocks = vs_be32(d + 8);

		if (blocks)
			return prepare(t, VS_IO_UNMAP, 0, lba << t->lu->block_shift, blocks << t->lu->block_shift, NULL, 0, unmap_next);
	}
	t->transferred = t->required;
	return ENDED;
}

/* SBC-4 5.35: all descriptors are looked at before the first one is carried out. */
static bool check_unmap(struct vs_task *t)
{
	uint64_t capacity = atomic_load_explicit(&t->lu->num_blocks, memory_order_relaxed), total = 0;
	uint32_t list = vs_be16(t->cdb + 7), n;

	if (!atomic_load_explicit(&t->lu->unmap, memory_order_relaxed))
		return illegal(t, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	t->required = list;
	if (!list)
		return ENDED;
	if (t->param_length < list) {
		/* Not all of it came, or the list is longer than any that we take. */
		if (t->out_length < list)
			t->response = VS_RESP_OVERRUN;
		else
			illegal(t, VS_ASC_PARAMETER_LIST_LENGTH_ERROR);
		return ENDED;
	}
	t->param_length = list;
	if (list < 8)
		return illegal(t, VS_ASC_PARAMETER_LIST_LENGTH_ERROR);
	n = vs_be16(t->param + 2);
	if (n % 16)
		return bad_parameter(t, 2);
	n = vs_min(n / 16, (list - 8) / 16);
	if (t->lu->max_unmap_descriptors && n > t->lu->max_unmap_descriptors)
		return bad_parameter(t, 2);
	t->param_length = 8 + n * 16;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t lba = vs_be64(t->param + 8 + 16 * i), blocks = vs_be32(t->param + 16 + 16 * i);

		if (lba > capacity || blocks > capacity - lba)
			return out_of_range(t, vs_max(lba, capacity));
		total += blocks;
	}
	if (t->lu->max_unmap_blocks && total > t->lu->max_unmap_blocks)
		return bad_parameter(t, 16);
	return SUBMIT;
}

static bool start_unmap(struct vs_task *t)
{
	t->m.index = 0;
	return unmap_next(t);
}

/* ---- WRITE SAME -------------------------------------------------------------------------------------------------------------------------------------- */

static bool same_done(struct vs_task *t)
{
	t->transferred = t->required;
	return ENDED;
}

static bool same_flush(struct vs_task *t)
{
	bool through = !atomic_load_explicit(&t->lu->wce, memory_order_relaxed) && t->io.store->info.volatile_cache;

	return through ? prepare(t, VS_IO_FLUSH, 0, 0, 0, NULL, 0, same_done) : same_done(t);
}

static bool same_next(struct vs_task *t)
{
	uint64_t n = vs_min(t->m.chunk, t->m.length - t->m.progress);
	uint64_t at = t->m.offset + t->m.progress;

	if (!n)
		return same_flush(t);
	t->m.progress += n;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return prepare(t, VS_IO_WRITE, 0, at, n, &t->m.iov, 1, same_next);
}

static bool all_zero(const uint8_t *p, uint64_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

static bool start_write_same(struct vs_task *t)
{
	uint64_t block = UINT64_C(1) << t->lu->block_shift;
	bool zero = t->m.no_data;

	t->m.progress = 0;
	if (!zero) {
		t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
		if (!alloc_bounce(t, t->m.chunk))
			return ENDED;
		vs_iov_to_buffer(t->out, (int)t->nout, 0, t->m.bounce, block);
		zero = all_zero(t->m.bounce, block);
	}
	/* SBC-4 5.52: with UNMAP set blocks may be deallocated only if they then read back as the data; ours read as zeroes. */
	if (zero && t->io.store->info.zero != VS_CAP_NONE)
		return prepare(t, VS_IO_ZERO, t->m.may_unmap ? VS_IO_MAY_UNMAP : 0, t->m.offset, t->m.length, NULL, 0, same_flush);
	if (!t->m.bounce) {
		t->m.chunk = vs_min((uint64_t)CHUNK, t->m.length);
		if (!alloc_bounce(t, t->m.chunk))
			return ENDED;
		memset(t->m.bounce, 0, t->m.chunk);
	}
	for (uint64_t at = block; at < t->m.chunk; at += block)
		memcpy(t->m.bounce + at, t->m.bounce, block);
	return same_next(t);
}

/* ---- VERIFY -------------------------------------------------------------------------------------------------------------------------------------------- */

/* The first byte that differs, or n. The initiator's bytes were copied first: it may change them under us. */
static uint64_t compare(const struct vs_task *t, uint64_t skip, const uint8_t *medium, uint8_t *copy, uint64_t n)
{
	vs_iov_to_buffer(t->out, (int)t->nout, skip, copy, n);
	if (!memcmp(medium, copy, n))
		return n;
	for (uint64_t i = 0; i < n; i++)
		if (medium[i] != copy[i])
			return i;
	return n;
}

static bool verify_next(struct vs_task *t);

static bool verify_chunk(struct vs_task *t)
{
	uint64_t n = t->m.iov.iov_len, at = t->m.progress - n, block = UINT64_C(1) << t->lu->block_shift;

	if (t->m.bytchk == 1) {
		uint64_t same = compare(t, at, t->m.bounce, t->m.bounce + t->m.chunk, n);

		if (same < n)
			return miscompare(t, at + same);
	} else if (t->m.bytchk == 3) {
		for (uint64_t i = 0; i < n; i += block) {
			uint64_t same = compare(t, 0, t->m.bounce + i, t->m.bounce + t->m.chunk, block);

			if (same < block)
				return miscompare(t, same);
		}
	}
	return verify_next(t);
}

static bool verify_next(struct vs_task *t)
{
	uint64_t n = vs_min(t->m.chunk, t->m.length - t->m.progress), at = t->m.offset + t->m.progress;

	if (!n) {
		t->transferred = t->required;
		return ENDED;
	}
	t->m.progress += n;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return prepare(t, VS_IO_READ, 0, at, n, &t->m.iov, 1, verify_chunk);
}

static bool start_verify(struct vs_task *t)
{
	uint64_t block = UINT64_C(1) << t->lu->block_shift;

	t->m.progress = 0;
	t->m.chunk = vs_min(vs_max((uint64_t)CHUNK, block), t->m.length);
	if (!alloc_bounce(t, t->m.bytchk ? 2 * t->m.chunk : t->m.chunk))
		return ENDED;
	return verify_next(t);
}

/* ---- COMPARE AND WRITE ------------------------------------------------------------------------------------------------------------------------------------- */

static bool caw_compared(struct vs_task *t)
{
	uint64_t n = t->m.length, same = compare(t, 0, t->m.bounce, t->m.bounce + n, n);

	if (same < n)
		return miscompare(t, same);
	vs_iov_to_buffer(t->out, (int)t->nout, n, t->m.bounce, n);
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = n };
	return write_out(t, &t->m.iov, 1);
}

static bool start_caw(struct vs_task *t)
{
	if (!alloc_bounce(t, 2 * t->m.length))
		return ENDED;
	t->m.iov = (struct iovec){ .iov_base = t->m.bounce, .iov_len = t->m.length };
	return prepare(t, VS_IO_READ, 0, t->m.offset, t->m.length, &t->m.iov, 1, caw_compared);
}

/* ---- parsing and checking ------------------------------------------------------------------------------------------------------------------------------------ */

static void parse_extent(struct vs_task *t)
{
	const uint8_t *c = t->cdb;

	switch (t->row->cdb_len) {
	case 6: /* SBC-4 5.10: zero means 256 */
		t->m.lba = (uint64_t)(c[1] & 0x1f) << 16 | vs_be16(c + 2);
		t->m.blocks = c[4] ? c[4] : 256;
		break;
	case 10:
		t->m.lba = vs_be32(c + 2);
		t->m.blocks = vs_be16(c + 7);
		break;
	case 12:
		t->m.lba = vs_be32(c + 2);
		t->m.blocks = vs_be32(c + 6);
		break;
	default:
		t->m.lba = vs_be64(c + 2);
		t->m.blocks = t->row->media == VS_MEDIA_COMPARE_AND_WRITE ? c[13] : vs_be32(c + 10);
		break;
	}
}

/* Of eight bytes of the CDB from byte `at`, the bits that the usage mask does not have. Byte 0 is the row's own. */
static uint64_t reserved_bits(const struct vs_task *t, uint32_t at)
{
	uint64_t cdb, usage;

	memcpy(&cdb, t->cdb + at, sizeof(cdb));
	memcpy(&usage, t->row->usage + at, sizeof(usage));
	return cdb & ~usage & (at ? UINT64_MAX : ~htole64(0xff));
}

/* Bits that the row's usage mask does not have are reserved: SPC-5 4.2.1. */
static bool check_reserved(struct vs_task *t)
{
	uint32_t length = t->row->cdb_len;

	/* Two words, which overlap, cover most commands. */
	if (vs_likely(length >= 8 && length <= 16 && !(reserved_bits(t, 0) | reserved_bits(t, length - 8))))
		return SUBMIT;
	for (uint32_t i = 1; i < length; i++) {
		uint8_t bad = (uint8_t)(t->cdb[i] & ~t->row->usage[i]);

		if (vs_unlikely(bad))
			return bad_field(t, (uint16_t)i, (uint8_t)(31 - __builtin_clz(bad)));
	}
	return SUBMIT;
}

/* How many bytes the CDB moves against what the initiator supplied. */
static bool check_length(struct vs_task *t, uint64_t need, uint64_t have)
{
	t->required = need;
	if (vs_likely(need <= have))
		return SUBMIT;
	if (t->flags & VS_TASK_TRUNCATE) {
		t->m.length = have;
		return have ? SUBMIT : ENDED;
	}
	t->response = VS_RESP_OVERRUN;
	return ENDED;
}

static bool check_same(struct vs_task *t, uint64_t capacity)
{
	uint64_t limit = t->lu->max_write_same_blocks;

	if (!t->m.blocks && VS_LIMIT_WRITE_SAME_NON_ZERO) /* SBC-4 5.52: WSNZ of the block limits page */
		return bad_field(t, t->row->cdb_len == 10 ? 7 : 10, 7);
	if (!t->m.blocks)
		t->m.blocks = capacity - t->m.lba;
	if (limit && t->m.blocks > limit)
		return bad_field(t, t->row->cdb_len == 10 ? 7 : 10, 7);
	t->m.may_unmap = (t->cdb[1] & 8) != 0;
	if (t->m.may_unmap && !atomic_load_explicit(&t->lu->unmap, memory_order_relaxed))
		return bad_field(t, 1, 3);
	t->m.no_data = t->row->cdb_len == 16 && (t->cdb[1] & 1);
	return SUBMIT;
}

static bool check_verify(struct vs_task *t)
{
	t->m.bytchk = (t->cdb[1] >> 1) & 3;
	if (t->m.bytchk == 2)
		return bad_field(t, 1, 2);
	return SUBMIT;
}

static bool check_transfer(struct vs_task *t)
{
	uint64_t block = UINT64_C(1) << t->lu->block_shift;

	switch (t->row->media) {
	case VS_MEDIA_READ:
		return check_length(t, t->m.length, t->in_length);
	case VS_MEDIA_WRITE:
		return check_length(t, t->m.length, t->out_length);
	case VS_MEDIA_WRITE_SAME:
		return t->m.no_data ? SUBMIT : (t->required = block) <= t->out_length ? SUBMIT : (t->response = VS_RESP_OVERRUN, ENDED);
	case VS_MEDIA_VERIFY:
		t->required = t->m.bytchk == 1 ? t->m.length : t->m.bytchk == 3 ? block : 0;
		break;
	case VS_MEDIA_COMPARE_AND_WRITE:
		t->required = 2 * t->m.length;
		/* SBC-4 5.3: neither half may be guessed. */
		if (t->out_length > t->required || (t->out_length < t->required && (t->flags & VS_TASK_TRUNCATE)))
			return bad_field(t, 13, 7);
		break;
	default:
		break;
	}
	if (t->required > t->out_length) {
		t->response = VS_RESP_OVERRUN;
		return ENDED;
	}
	return SUBMIT;
}

/* ENDED: refused, or nothing to do; SUBMIT: the medium will be touched. */
static bool check(struct vs_task *t)
{
	uint64_t capacity = atomic_load_explicit(&t->lu->num_blocks, memory_order_relaxed);
	uint8_t op = t->row->media;

	if (check_reserved(t) == ENDED)
		return ENDED;
	if (op == VS_MEDIA_UNMAP)
		return check_unmap(t);
	parse_extent(t);
	if (vs_unlikely(t->m.lba > capacity || t->m.blocks > capacity - t->m.lba))
		return out_of_range(t, vs_max(t->m.lba, capacity));
	t->m.fua = (op == VS_MEDIA_READ || op == VS_MEDIA_WRITE || op == VS_MEDIA_COMPARE_AND_WRITE) && t->row->cdb_len > 6 && (t->cdb[1] & 8);
	if (op == VS_MEDIA_SYNCHRONIZE_CACHE)
		return SUBMIT; /* zero blocks: to the end, SBC-4 5.22 */
	if (op == VS_MEDIA_WRITE_SAME && check_same(t, capacity) == ENDED)
		return ENDED;
	if (op == VS_MEDIA_VERIFY && check_verify(t) == ENDED)
		return ENDED;
	if (!t->m.blocks) {
		/* SBC-4: a transfer length of zero is not an error; data that comes with it is, where it would be compared. */
		if (op == VS_MEDIA_COMPARE_AND_WRITE && t->out_length)
			return bad_field(t, 13, 7);
		return ENDED;
	}
	t->m.offset = t->m.lba << t->lu->block_shift;
	t->m.length = t->m.blocks << t->lu->block_shift;
	return check_transfer(t);
}

static bool (*const start[])(struct vs_task *) = {
	[VS_MEDIA_READ] = start_read,
	[VS_MEDIA_WRITE] = start_write,
	[VS_MEDIA_SYNCHRONIZE_CACHE] = start_sync,
	[VS_MEDIA_UNMAP] = start_unmap,
	[VS_MEDIA_WRITE_SAME] = start_write_same,
	[VS_MEDIA_VERIFY] = start_verify,
	[VS_MEDIA_COMPARE_AND_WRITE] = start_caw,
};

/* ---- start and end ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* UNMAP touches several ranges: it is locked as one from the first block to the last. */
static void lock_extent(const struct vs_task *t, uint64_t *lba, uint64_t *blocks)
{
	uint64_t first = UINT64_MAX, last = 0;

	*lba = t->m.lba;
	*blocks = t->m.blocks;
	if (t->row->media != VS_MEDIA_UNMAP)
		return;
	for (uint32_t i = 8; i + 16 <= t->param_length; i += 16) {
		uint64_t at = vs_be64(t->param + i), n = vs_be32(t->param + i + 8);

		if (!n)
			continue;
		first = vs_min(first, at);
		last = vs_max(last, at + n - 1);
	}
	*lba = first <= last ? first : 0;
	*blocks = first <= last ? last - first + 1 : 1;
}

static bool copy_unmap_list(struct vs_task *t)
{
	uint64_t n = vs_min(t->out_length, (uint64_t)t->row->param_max);

	if (t->param || !n)
		return true;
	t->param = malloc(n);
	if (!t->param) {
		t->status = VS_STATUS_BUSY;
		return false;
	}
	t->param_length = (uint32_t)vs_iov_to_buffer(t->out, (int)t->nout, 0, t->param, n);
	return true;
}

static bool run(struct vs_task *t)
{
	if (start[t->row->media](t) == ENDED)
		return true;
	return drive(t);
}

bool vs_media_start(struct vs_task *t)
{
	uint8_t op = t->row->media;
	bool exclusive = op == VS_MEDIA_COMPARE_AND_WRITE;

	if (t->range.granted) {
		t->range.granted = false;
		return t->aborted ? true : run(t);
	}
	if (op == VS_MEDIA_TEST_UNIT_READY)
		return true;
	t->m.bounce = NULL;
	t->m.in_store = false;
	t->io.store = atomic_load_explicit(&t->lu->store, memory_order_acquire);
	t->io.w = t->w;
	t->io.owner = t;
	t->io.done = io_done;
	if (op == VS_MEDIA_UNMAP && !copy_unmap_list(t))
		return true;
	if (check(t) == ENDED)
		return true;
	if (vs_unlikely(exclusive || (atomic_load_explicit(&t->lu->gate, memory_order_acquire) & VS_GATE_EXCLUSIVE)) && op != VS_MEDIA_SYNCHRONIZE_CACHE) {
		uint64_t lba, blocks;

		lock_extent(t, &lba, &blocks);
		if (!vs_range_enter(t, lba, blocks, exclusive))
			return false;
	}
	return run(t);
}

static void account(struct vs_task *t)
{
	__typeof__(*t->lu->stats) *s = &t->lu->stats[t->w->index];

	switch (t->row->media) {
	case VS_MEDIA_READ:
		vs_count(&s->reads, 1);
		vs_count(&s->read_bytes, t->transferred);
		break;
	case VS_MEDIA_WRITE:
		vs_count(&s->writes, 1);
		vs_count(&s->write_bytes, t->transferred);
		break;
	case VS_MEDIA_SYNCHRONIZE_CACHE:
		vs_count(&s->flushes, 1);
		break;
	case VS_MEDIA_UNMAP:
		vs_count(&s->unmaps, 1);
		break;
	default:
		vs_count(&s->others, 1);
		break;
	}
}

void vs_media_end(struct vs_task *t)
{
	struct vs_worker *w = t->w;
	struct vs_lu *lu = t->lu;
	struct vs_nexus *nexus = t->nexus;

	if (t->row->media != VS_MEDIA_TEST_UNIT_READY && vs_unlikely(t->m.bounce != NULL)) {
		free(t->m.bounce);
		t->m.bounce = NULL;
	}
	if (vs_unlikely(t->range.held))
		vs_range_leave(t);
	account(t);
	t->started = false;
	vs_task_finish(t);
	vs_unpin(w, &nexus->pins);
	vs_unpin(w, &lu->pins);
}

void vs_media_cancel(struct vs_task *t)
{
	/* Whether it waits for its range is for other workers to change, so it is asked under the lock. */
	if (t->m.in_store)
		vs_store_cancel(t->io.store, &t->io);
	else if (vs_range_cancel(t))
		vs_media_end(t);
}
