// SPDX-License-Identifier: Apache-2.0
/*
 * The media commands that read back what they wrote or write what they read, those of 32 bytes, and blocks marked bad: what each asks of the
 * store and what it answers. One worker without a thread. The rest of the media commands is test_media.c.
 */
#include "check.h"
#include "vdev_rig.h"

enum { BLOCK = 512, BLOCKS = 8192, CHUNK_BLOCKS = 2048, DATA = BLOCKS * BLOCK };

struct command {
	struct vs_task task;
	struct iovec out, in;
	bool ended;
};

static struct unit u;
static uint8_t *data;
static struct command c;

static void completed(struct vs_task *t)
{
	vs_container_of(t, struct command, task)->ended = true;
}

static const struct vs_task_ops ops = { .name = "test", .complete = completed };

static void run_with(const uint8_t *cdb, uint64_t out, uint64_t in, uint8_t flags)
{
	memset(&c, 0, sizeof(c));
	c.task = (struct vs_task){ .ops = &ops, .w = &u.core->workers[0], .nexus = u.nexus, .cdb_len = CDB_SIZE, .flags = flags };
	memcpy(c.task.cdb, cdb, CDB_SIZE);
	c.out = (struct iovec){ data, out };
	c.in = (struct iovec){ data, in };
	c.task.out = &c.out;
	c.task.in = &c.in;
	c.task.nout = out ? 1 : 0;
	c.task.nin = in ? 1 : 0;
	c.task.out_length = out;
	c.task.in_length = in;
	medium_forget(u.medium);
	CHECK_EQ(vs_task_submit(&c.task), 0);
	for (int i = 0; !c.ended && i < 1000; i++)
		unit_settle(&u);
	CHECK(c.ended);
	CHECK_EQ(vs_gate_read(u.lu, NULL) & VS_GATE_EXCLUSIVE, 0);
}

static void run(const uint8_t *cdb, uint64_t out, uint64_t in)
{
	run_with(cdb, out, in, 0);
}

static void good(uint64_t moved)
{
	CHECK_EQ(c.task.response, VS_RESP_OK);
	CHECK_EQ(c.task.status, VS_STATUS_GOOD);
	CHECK_EQ(c.task.transferred, moved);
}

static void failed(uint8_t key, uint16_t asc)
{
	CHECK_EQ(c.task.status, VS_STATUS_CHECK_CONDITION);
	CHECK_EQ(c.task.sense[2], key);
	CHECK_EQ(vs_be16(c.task.sense + 12), asc);
}

static void refused_at(uint32_t byte, uint32_t bit)
{
	failed(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	CHECK_EQ(c.task.sense[15], 0xc8 | bit);
	CHECK_EQ(vs_be16(c.task.sense + 16), byte);
}

static void asked(uint32_t n, const struct medium_op *wanted)
{
	CHECK_EQ(u.medium->nlog, n);
	for (uint32_t i = 0; i < n; i++) {
		CHECK_EQ(u.medium->log[i].op, wanted[i].op);
		CHECK_EQ(u.medium->log[i].offset, wanted[i].offset);
		CHECK_EQ(u.medium->log[i].length, wanted[i].length);
	}
}
#define ASKED(...) asked(sizeof((struct medium_op[]){ __VA_ARGS__ }) / sizeof(struct medium_op), (struct medium_op[]){ __VA_ARGS__ })

static const uint8_t *cdb(uint8_t opcode, uint8_t byte1, uint64_t lba, uint32_t blocks)
{
	static uint8_t b[CDB_SIZE];

	memset(b, 0, sizeof(b));
	b[0] = opcode;
	b[1] = byte1;
	switch (opcode >> 5) {
	case 1:
		vs_put_be32(b + 2, (uint32_t)lba);
		b[7] = (uint8_t)(blocks >> 8);
		b[8] = (uint8_t)blocks;
		break;
	case 5:
		vs_put_be32(b + 2, (uint32_t)lba);
		vs_put_be32(b + 6, blocks);
		break;
	default:
		vs_put_be64(b + 2, lba);
		vs_put_be32(b + 10, blocks);
		break;
	}
	return b;
}

static const uint8_t *cdb32(uint16_t action, uint8_t flags, uint64_t lba, uint32_t blocks)
{
	static uint8_t b[CDB_SIZE];

	memset(b, 0, sizeof(b));
	b[0] = 0x7f;
	b[7] = 0x18;
	b[9] = (uint8_t)action;
	b[10] = flags;
	vs_put_be64(b + 12, lba);
	vs_put_be32(b + 28, blocks);
	return b;
}

static void open_over(uint8_t volatile_cache)
{
	struct unit_options o = { .info = { .unmap = VS_CAP_NATIVE, .zero = VS_CAP_NATIVE, .volatile_cache = volatile_cache },
				  .lu = { .write_cache = 1, .unmap = 1, .max_transfer_blocks = 4096, .max_atomic_blocks = 16, .cdb32 = 1 } };

	unit_open(&u, &o);
	for (uint32_t i = 0; i < BLOCKS; i++)
		memset(u.medium->data + i * BLOCK, (int)(i * 7 + 1), BLOCK);
}

static void commands_of_32_bytes(void)
{
	open_over(0);
	run(cdb32(0x09, 0x18, 5, 2), 0, 2 * BLOCK);
	good(2 * BLOCK);
	CHECK(data[0] == 36 && data[BLOCK] == 43);
	memset(data, 'w', 2 * BLOCK);
	run(cdb32(0x0b, 0, 7, 2), 2 * BLOCK, 0);
	good(2 * BLOCK);
	CHECK(u.medium->data[7 * BLOCK] == 'w' && u.medium->data[9 * BLOCK - 1] == 'w');
	run(cdb32(0x0a, 0x02, 7, 2), 2 * BLOCK, 0);
	good(2 * BLOCK);
	run(cdb32(0x0a, 0x02, 8, 2), 2 * BLOCK, 0);
	failed(VS_SK_MISCOMPARE, VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
	run(cdb32(0x0a, 0x04, 8, 2), 2 * BLOCK, 0);
	refused_at(10, 2);
	run(cdb32(0x0d, 0x01, 20, 3), 0, 0);
	good(0);
	CHECK(!u.medium->data[20 * BLOCK] && !u.medium->data[23 * BLOCK - 1] && u.medium->data[23 * BLOCK]);
	run(cdb32(0x09, 0, BLOCKS, 1), 0, BLOCK);
	failed(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	run(cdb32(0x09, 0, 0, 4097), 0, BLOCK);
	refused_at(28, 7);
	u.params.cdb32 = 0;
	unit_update(&u);
	run(cdb32(0x09, 0, 0, 1), 0, BLOCK);
	failed(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	unit_close(&u);
}

static void lengths_beyond_the_limit(void)
{
	open_over(0);
	run(cdb(0x28, 0, 0, 4097), 0, BLOCK);
	refused_at(7, 7);
	run(cdb(0xa8, 0, 0, 4097), 0, BLOCK);
	refused_at(6, 7);
	run(cdb(0x8a, 0, 0, 4097), BLOCK, 0);
	refused_at(10, 7);
	run(cdb(0x2f, 0x02, 0, 4097), BLOCK, 0);
	refused_at(7, 7);
	run(cdb(0x2f, 0, 0, 4097), 0, 0); /* moves nothing to the initiator or from it */
	good(0);
	unit_close(&u);
}

static void write_and_verify(uint8_t volatile_cache)
{
	open_over(volatile_cache);
	for (int i = 0; i < 3; i++) {
		static const uint8_t opcode[3] = { 0x2e, 0xae, 0x8e };

		memset(data, 'a' + i, 2 * BLOCK);
		run(cdb(opcode[i], i ? 0x02 : 0, 9, 2), 2 * BLOCK, 0);
		good(2 * BLOCK);
		CHECK(u.medium->data[9 * BLOCK] == 'a' + i && u.medium->data[11 * BLOCK - 1] == 'a' + i);
		if (volatile_cache)
			ASKED({ VS_IO_WRITE, 0, 9 * BLOCK, 2 * BLOCK }, { VS_IO_FLUSH, 0, 0, 0 }, { VS_IO_READ, 0, 9 * BLOCK, 2 * BLOCK });
		else
			ASKED({ VS_IO_WRITE, 0, 9 * BLOCK, 2 * BLOCK }, { VS_IO_READ, 0, 9 * BLOCK, 2 * BLOCK });
	}
	run(cdb(0x2e, 0x06, 9, 2), 2 * BLOCK, 0);
	refused_at(1, 2);
	run(cdb(0x2e, 0x02, 9, 0), 0, 0);
	good(0);
	run_with(cdb(0x2e, 0x02, 9, 2), BLOCK, 0, VS_TASK_TRUNCATE);
	good(BLOCK);
	run(cdb(0x2e, 0x02, 9, 2), BLOCK, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	u.medium->fail[VS_IO_READ] = VS_ERR_READ;
	run(cdb(0x2e, 0, 9, 2), 2 * BLOCK, 0);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_UNRECOVERED_READ_ERROR);
	unit_close(&u);
}

static void orwrite(uint8_t volatile_cache)
{
	enum { N = CHUNK_BLOCKS + 1 };

	open_over(volatile_cache);
	for (uint32_t i = 0; i < N * BLOCK; i++)
		data[i] = (uint8_t)(i >> 3);
	run(cdb(0x8b, volatile_cache ? 0x08 : 0, 3, N), N * BLOCK, 0);
	good(N * BLOCK);
	for (uint32_t i = 0; i < N * BLOCK; i++)
		CHECK_EQ(u.medium->data[3 * BLOCK + i], (uint8_t)((uint8_t)((3 + i / BLOCK) * 7 + 1) | (uint8_t)(i >> 3)));
	CHECK_EQ(u.medium->data[(3 + N) * BLOCK], (uint8_t)((3 + N) * 7 + 1));
	CHECK_EQ(u.medium->nlog, volatile_cache ? 5 : 4);
	run(cdb(0x8b, 0, 3, 0), 0, 0);
	good(0);
	u.medium->fail[VS_IO_WRITE] = VS_ERR_WRITE;
	run(cdb(0x8b, 0, 3, 1), BLOCK, 0);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_WRITE_ERROR);
	unit_close(&u);
}

static void prefetch(void)
{
	open_over(0);
	run(cdb(0x34, 0, 3, 4), 0, 0);
	good(0);
	ASKED({ VS_IO_READ, 0, 3 * BLOCK, 4 * BLOCK });
	run(cdb(0x90, 0x02, 3, 4), 0, 0);
	good(0);
	ASKED({ VS_IO_READ, 0, 3 * BLOCK, 4 * BLOCK });
	run(cdb(0x90, 0, 0, 0), 0, 0); /* as many as the cache takes */
	good(0);
	ASKED({ VS_IO_READ, 0, 0, CHUNK_BLOCKS * BLOCK });
	unit_close(&u);
}

static void prefetch_of_nothing_and_errors(void)
{
	open_over(0);
	run(cdb(0x34, 0, BLOCKS, 0), 0, 0);
	good(0);
	CHECK_EQ(u.medium->nlog, 0);
	run(cdb(0x34, 0, BLOCKS, 1), 0, 0);
	failed(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	u.medium->fail[VS_IO_READ] = VS_ERR_READ;
	run(cdb(0x34, 0, 0, 1), 0, 0);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_UNRECOVERED_READ_ERROR);
	run(cdb(0x34, 0x02, 0, 1), 0, 0); /* nobody is there to hear of it */
	good(0);
	unit_close(&u);
}

static const uint8_t *cdb_atomic(uint64_t lba, uint16_t blocks)
{
	static uint8_t b[CDB_SIZE];

	memset(b, 0, sizeof(b));
	b[0] = 0x9c;
	vs_put_be64(b + 2, lba);
	b[12] = (uint8_t)(blocks >> 8);
	b[13] = (uint8_t)blocks;
	return b;
}

static void write_atomic(void)
{
	open_over(0);
	memset(data, 'x', 17 * BLOCK);
	run(cdb_atomic(4, 16), 16 * BLOCK, 0);
	good(16 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 4 * BLOCK, 16 * BLOCK });
	run(cdb_atomic(4, 17), 17 * BLOCK, 0);
	refused_at(12, 7);
	run_with(cdb_atomic(4, 2), BLOCK, 0, VS_TASK_TRUNCATE);
	refused_at(12, 7);
	run(cdb_atomic(4, 2), BLOCK, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	u.params.max_atomic_blocks = 0;
	unit_update(&u);
	run(cdb_atomic(4, 1), BLOCK, 0);
	failed(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	unit_close(&u);
}

/* A unit that has blocks beyond 32 bits tells of them in descriptors, whatever D_SENSE says. */
static void addresses_beyond_32_bits(void)
{
	open_over(0);
	run(cdb(0x88, 0, UINT64_C(1) << 40, 1), 0, BLOCK);
	CHECK_EQ(c.task.sense[0], 0x70);
	/* No command reaches the store here: only the capacity that is claimed counts. */
	u.params.num_blocks = UINT64_C(1) << 33;
	unit_update(&u);
	run(cdb(0x88, 0, UINT64_C(1) << 40, 1), 0, BLOCK);
	CHECK(c.task.sense[0] == 0x72 && vs_be64(c.task.sense + 12) == UINT64_C(1) << 40);
	run(cdb(0x28, 0x04, 0, 1), 0, BLOCK);
	CHECK_EQ(c.task.sense[0], 0x70);
	unit_close(&u);
}

/* A block marked bad fails what reads it, until it is written. */
static void bad_blocks(void)
{
	uint64_t found[4];
	struct vs_lu_stats stats;

	open_over(0);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 0);
	vs_lu_clear_bad(u.lu, 0, BLOCKS);
	CHECK_EQ(vs_lu_mark_bad(u.lu, BLOCKS), -ERANGE);
	CHECK_EQ(vs_lu_mark_bad(u.lu, 12), 0);
	CHECK_EQ(vs_lu_mark_bad(u.lu, 10), 0);
	CHECK_EQ(vs_lu_mark_bad(u.lu, 10), 0);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 2);
	CHECK(found[0] == 12 && found[1] == 10);
	run(cdb(0x28, 0, 8, 8), 0, 8 * BLOCK);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT);
	CHECK(c.task.sense[0] == 0xf0 && vs_be32(c.task.sense + 3) == 10);
	CHECK_EQ(u.medium->nlog, 0);
	run(cdb(0x28, 0, 11, 1), 0, BLOCK);
	good(BLOCK);
	run(cdb(0x8b, 0, 12, 1), BLOCK, 0);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT);
	u.medium->fail[VS_IO_WRITE] = VS_ERR_WRITE;
	run(cdb(0x2a, 0, 10, 1), BLOCK, 0);
	failed(VS_SK_MEDIUM_ERROR, VS_ASC_WRITE_ERROR);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 2);
	u.medium->fail[VS_IO_WRITE] = 0;
	run(cdb(0x2a, 0, 10, 1), BLOCK, 0);
	good(BLOCK);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 1);
	run(cdb(0x28, 0, 10, 1), 0, BLOCK);
	good(BLOCK);
	memset(data, 0, 24);
	data[3] = 16;
	vs_put_be64(data + 8, 11);
	vs_put_be32(data + 16, 4);
	run((const uint8_t[CDB_SIZE]){ 0x42, [8] = 24 }, 24, 0);
	good(24);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 0);
	for (uint64_t i = 0; i < VS_BAD_MAX; i++)
		CHECK_EQ(vs_lu_mark_bad(u.lu, i), 0);
	CHECK_EQ(vs_lu_mark_bad(u.lu, VS_BAD_MAX), -ENOSPC);
	vs_lu_clear_bad(u.lu, 0, BLOCKS);
	CHECK_EQ(vs_lu_bad(u.lu, found, 4), 0);
	vs_lu_stats(u.lu, &stats);
	CHECK_EQ(stats.read_errors, 1);
	CHECK_EQ(stats.write_errors, 2);
	unit_close(&u);
}

int main(void)
{
	data = calloc(1, DATA);
	CHECK(data != NULL);
	commands_of_32_bytes();
	lengths_beyond_the_limit();
	write_and_verify(0);
	write_and_verify(1);
	orwrite(0);
	orwrite(1);
	prefetch();
	prefetch_of_nothing_and_errors();
	write_atomic();
	bad_blocks();
	addresses_beyond_32_bits();
	free(data);
	return 0;
}
