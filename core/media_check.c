// SPDX-License-Identifier: Apache-2.0
/*
 * A media command's CDB and parameter list: taken apart, checked against the table, the capacity and the limits of the block limits page, and
 * refused with a pointer to what is wrong. Nothing is read or written here.
 */
#include <endian.h>

#include "media.h"

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
	case 16:
		t->m.lba = vs_be64(c + 2);
		if (vs_unlikely(t->row->media == VS_MEDIA_COMPARE_AND_WRITE))
			t->m.blocks = c[13];
		else if (vs_unlikely(t->row->media == VS_MEDIA_WRITE_ATOMIC))
			t->m.blocks = vs_be16(c + 12);
		else
			t->m.blocks = vs_be32(c + 10);
		break;
	default:
		t->m.lba = vs_be64(c + 12);
		t->m.blocks = vs_be32(c + 28);
		break;
	}
}

/* The byte with DPO, FUA, BYTCHK, UNMAP and NDOB. */
static uint32_t flags_at(const struct vs_task *t)
{
	return t->row->cdb_len == 32 ? 10 : 1;
}

/* NUMBER OF LOGICAL BLOCKS or TRANSFER LENGTH, for field pointers. */
static bool bad_blocks_field(struct vs_task *t)
{
	static const uint8_t at[33] = { [6] = 4, [10] = 7, [12] = 6, [16] = 10, [32] = 28 };

	switch (t->row->media) {
	case VS_MEDIA_COMPARE_AND_WRITE:
		return vs_media_bad_field(t, 13, 7);
	case VS_MEDIA_WRITE_ATOMIC:
		return vs_media_bad_field(t, 12, 7);
	default:
		return vs_media_bad_field(t, at[t->row->cdb_len], 7);
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
bool vs_media_check_reserved(struct vs_task *t)
{
	uint32_t length = t->row->cdb_len;

	/* Two words, which overlap, cover most commands. */
	if (vs_likely(length >= 8 && length <= 16 && !(reserved_bits(t, 0) | reserved_bits(t, length - 8))))
		return SUBMIT;
	if (vs_unlikely(length == 32 && !t->lu->cdb32))
		return vs_media_illegal(t, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	if (vs_unlikely(t->lu->lenient))
		return SUBMIT;
	for (uint32_t i = 1; i < length; i++) {
		uint8_t bad = (uint8_t)(t->cdb[i] & ~t->row->usage[i]);

		if (vs_unlikely(bad))
			return vs_media_bad_field(t, (uint16_t)i, (uint8_t)(31 - __builtin_clz(bad)));
	}
	/* SPC-5 4.2.3: ADDITIONAL CDB LENGTH */
	if (t->cdb[0] == 0x7f && t->cdb[7] != length - 8)
		return vs_media_bad_field(t, 7, 7);
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
	uint32_t at = flags_at(t);

	if (!t->m.blocks) {
		if (t->lu->wsnz) /* SBC-4 5.52: WSNZ of the block limits page */
			return bad_blocks_field(t);
		t->m.blocks = capacity - t->m.lba;
	}
	if (limit && t->m.blocks > limit)
		return bad_blocks_field(t);
	t->m.may_unmap = (t->cdb[at] & 8) != 0;
	if (t->m.may_unmap && !atomic_load_explicit(&t->lu->unmap, memory_order_relaxed))
		return vs_media_bad_field(t, (uint16_t)at, 3);
	t->m.no_data = t->row->cdb_len >= 16 && (t->cdb[at] & 1);
	return SUBMIT;
}

/* SBC-4 5.36, 5.39: BYTCHK 10b is reserved, and 11b is for VERIFY alone. */
static bool check_verify(struct vs_task *t)
{
	uint32_t at = flags_at(t);

	t->m.bytchk = (t->cdb[at] >> 1) & 3;
	if (t->m.bytchk == 2 || (t->m.bytchk == 3 && t->row->media != VS_MEDIA_VERIFY))
		return vs_media_bad_field(t, (uint16_t)at, 2);
	return SUBMIT;
}

/* SBC-4 6.6.4: MAXIMUM TRANSFER LENGTH and MAXIMUM ATOMIC TRANSFER LENGTH. */
static bool check_limit(struct vs_task *t)
{
	uint64_t limit = t->lu->max_transfer_blocks;

	switch (t->row->media) {
	case VS_MEDIA_WRITE_ATOMIC:
		limit = t->lu->max_atomic_blocks;
		if (!limit) /* the store cannot: then the command is not there, SPC-5 4.2.1 */
			return vs_media_illegal(t, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
		break;
	case VS_MEDIA_WRITE_AND_VERIFY:
	case VS_MEDIA_ORWRITE:
		break;
	case VS_MEDIA_VERIFY:
		if (t->m.bytchk == 1)
			break;
		return SUBMIT;
	default:
		return SUBMIT;
	}
	return limit && t->m.blocks > limit ? bad_blocks_field(t) : SUBMIT;
}

static bool check_transfer(struct vs_task *t)
{
	uint64_t block = block_of(t);

	switch (t->row->media) {
	case VS_MEDIA_WRITE_AND_VERIFY:
	case VS_MEDIA_ORWRITE:
		return check_length(t, t->m.length, t->out_length);
	case VS_MEDIA_WRITE_ATOMIC:
		t->required = t->m.length;
		/* A part of it would be no atomic write. */
		if (t->out_length < t->required && (t->flags & VS_TASK_TRUNCATE))
			return bad_blocks_field(t);
		break;
	case VS_MEDIA_WRITE_SAME:
		t->required = t->m.no_data ? 0 : block;
		/* One block is what it takes; who brings more means another command. */
		if (t->out_length > block && !t->lu->lenient)
			return bad_blocks_field(t);
		break;
	case VS_MEDIA_VERIFY:
		t->required = t->m.bytchk == 1 ? t->m.length : t->m.bytchk == 3 ? block : 0;
		break;
	case VS_MEDIA_COMPARE_AND_WRITE:
		t->required = 2 * t->m.length;
		/* SBC-4 5.3: neither half may be guessed. */
		if (t->out_length > t->required || (t->out_length < t->required && (t->flags & VS_TASK_TRUNCATE)))
			return bad_blocks_field(t);
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

/* SBC-4 5.35: all descriptors are looked at before the first one is carried out. */
static bool check_unmap(struct vs_task *t)
{
	uint64_t capacity = atomic_load_explicit(&t->lu->num_blocks, memory_order_relaxed), total = 0;
	uint32_t list = vs_be16(t->cdb + 7), n;

	if (!atomic_load_explicit(&t->lu->unmap, memory_order_relaxed))
		return vs_media_illegal(t, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	t->required = list;
	if (!list)
		return ENDED;
	if (t->param_length < list) {
		/* Not all of it came, or the list is longer than any that we take. */
		if (t->out_length < list)
			t->response = VS_RESP_OVERRUN;
		else
			vs_media_illegal(t, VS_ASC_PARAMETER_LIST_LENGTH_ERROR);
		return ENDED;
	}
	t->param_length = list;
	if (list < 8)
		return vs_media_illegal(t, VS_ASC_PARAMETER_LIST_LENGTH_ERROR);
	n = vs_be16(t->param + 2);
	if (n % 16)
		return vs_media_bad_parameter(t, 2);
	n = vs_min(n / 16, (list - 8) / 16);
	if (t->lu->max_unmap_descriptors && n > t->lu->max_unmap_descriptors)
		return vs_media_bad_parameter(t, 2);
	t->param_length = 8 + n * 16;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t lba = vs_be64(t->param + 8 + 16 * i), blocks = vs_be32(t->param + 16 + 16 * i);

		if (lba > capacity || blocks > capacity - lba)
			return vs_media_out_of_range(t, vs_max(lba, capacity));
		total += blocks;
	}
	if (t->lu->max_unmap_blocks && total > t->lu->max_unmap_blocks)
		return vs_media_bad_parameter(t, 16);
	return SUBMIT;
}

static bool reads(uint8_t op)
{
	return op == VS_MEDIA_READ || op == VS_MEDIA_VERIFY || op == VS_MEDIA_COMPARE_AND_WRITE || op == VS_MEDIA_ORWRITE;
}

/* What FUA, BYTCHK and the like ask for, and whether a length of zero leaves anything to do. */
static bool check_kind(struct vs_task *t, uint64_t capacity)
{
	switch (t->row->media) {
	case VS_MEDIA_WRITE_SAME:
		return check_same(t, capacity);
	case VS_MEDIA_VERIFY:
	case VS_MEDIA_WRITE_AND_VERIFY:
		return check_verify(t);
	case VS_MEDIA_PRE_FETCH: /* SBC-4 5.12: zero blocks: as many as the cache takes */
		if (!t->m.blocks)
			t->m.blocks = capacity - t->m.lba;
		return SUBMIT;
	default:
		t->m.fua = t->row->cdb_len > 6 && (t->cdb[flags_at(t)] & 8);
		return SUBMIT;
	}
}

/* Every other command that names a range. */
static bool check_other(struct vs_task *t, uint64_t capacity)
{
	uint8_t op = t->row->media;

	t->m.fua = 0;
	if (check_kind(t, capacity) == ENDED || check_limit(t) == ENDED)
		return ENDED;
	/* "To the end of the medium" is known by now. */
	t->m.length = t->m.blocks << t->lu->block_shift;
	if (!t->m.blocks) {
		/* SBC-4: a transfer length of zero is not an error; data that comes with it is, where it would be compared. */
		if (op == VS_MEDIA_COMPARE_AND_WRITE && t->out_length)
			return bad_blocks_field(t);
		return ENDED;
	}
	return check_transfer(t);
}

/* READ and WRITE, which is nearly everything: what stands below for all commands, without asking which one it is. */
static inline bool check_plain(struct vs_task *t, uint64_t have)
{
	uint32_t limit = t->lu->max_transfer_blocks;

	t->m.fua = t->row->cdb_len > 6 && (t->cdb[flags_at(t)] & 8);
	if (vs_unlikely(limit && t->m.blocks > limit))
		return bad_blocks_field(t);
	if (vs_unlikely(!t->m.blocks))
		return ENDED;
	return check_length(t, t->m.length, have);
}

bool vs_media_check(struct vs_task *t)
{
	uint64_t capacity = atomic_load_explicit(&t->lu->num_blocks, memory_order_relaxed);
	uint8_t op = t->row->media;
	uint64_t bad;

	if (vs_media_check_reserved(t) == ENDED)
		return ENDED;
	if (op == VS_MEDIA_UNMAP)
		return check_unmap(t);
	parse_extent(t);
	if (vs_unlikely(t->m.lba > capacity || t->m.blocks > capacity - t->m.lba))
		return vs_media_out_of_range(t, vs_max(t->m.lba, capacity));
	t->m.offset = t->m.lba << t->lu->block_shift;
	t->m.length = t->m.blocks << t->lu->block_shift;
	if (op == VS_MEDIA_SYNCHRONIZE_CACHE)
		return SUBMIT; /* zero blocks: to the end, SBC-4 5.22 */
	if (vs_likely(op == VS_MEDIA_READ || op == VS_MEDIA_WRITE)) {
		if (vs_unlikely(check_plain(t, op == VS_MEDIA_READ ? t->in_length : t->out_length) == ENDED))
			return ENDED;
	} else if (check_other(t, capacity) == ENDED) {
		return ENDED;
	}
	if (vs_unlikely(atomic_load_explicit(&t->lu->bad_blocks, memory_order_relaxed)) && reads(op) && vs_bad_first(t->lu, t->m.lba, t->m.blocks, &bad))
		return vs_media_marked_bad(t, bad);
	return SUBMIT;
}

/* UNMAP touches several ranges: it is locked as one from the first block to the last. */
void vs_media_extent(const struct vs_task *t, uint64_t *lba, uint64_t *blocks)
{
	uint64_t first = UINT64_MAX, last = 0;

	*lba = t->m.lba;
	*blocks = t->row->media == VS_MEDIA_SYNCHRONIZE_CACHE ? 0 : t->m.blocks; /* the whole cache, and no block of it changes */
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
