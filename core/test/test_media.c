// SPDX-License-Identifier: Apache-2.0
/*
 * Every media command at its edges: what it asks of the store, what it answers, and where its sense data point. One worker without a thread,
 * over a medium that writes down what it is asked for. Reserved bits are test_reserved_bits.c, moments of the gate test_gate_windows.c.
 */
#include "check.h"
#include "vdev_rig.h"

enum { BLOCK = 512, BLOCKS = 8192, CHUNK_BLOCKS = 2048, DATA = BLOCKS * BLOCK, PIECES = 8 };

/* One command and its outcome. */
struct command {
	struct vs_task task;
	struct iovec out[PIECES], in[PIECES];
	bool ended;
};

static struct unit u;
static uint8_t *data; /* the initiator's, for both ways */

static void completed(struct vs_task *t)
{
	vs_container_of(t, struct command, task)->ended = true;
}

static const struct vs_task_ops ops = { .name = "test", .complete = completed };

static struct command c; /* the last one */

/* `length` bytes of data, in so many pieces; some of them empty, as no transport makes them but any may. */
static uint32_t pieces(struct iovec *iov, uint64_t length, uint32_t n)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t take = i + 1 == n ? length - at : vs_min(length - at, length / n + i);

		iov[i] = (struct iovec){ data + at, take };
		at += take;
	}
	return n;
}

static void start(const uint8_t *cdb, uint64_t out_length, uint64_t in_length, uint8_t flags)
{
	memset(&c, 0, sizeof(c));
	c.task = (struct vs_task){ .ops = &ops, .w = &u.core->workers[0], .nexus = u.nexus, .cdb_len = CDB_SIZE, .flags = flags };
	memcpy(c.task.cdb, cdb, 16);
	if (out_length)
		c.task.nout = pieces(c.out, out_length, 3);
	if (in_length)
		c.task.nin = pieces(c.in, in_length, 3);
	c.task.out = c.out;
	c.task.in = c.in;
	c.task.out_length = out_length;
	c.task.in_length = in_length;
	medium_forget(u.medium);
	CHECK_EQ(vs_task_submit(&c.task), 0);
}

static void finish(void)
{
	for (int i = 0; !c.ended && i < 1000; i++)
		unit_settle(&u);
	CHECK(c.ended);
	CHECK(!vs_pins_busy(vs_lu_pins(u.lu)) && !vs_pins_busy(vs_nexus_pins(u.nexus)));
	CHECK_EQ(vs_gate_read(u.lu, NULL) & VS_GATE_EXCLUSIVE, 0);
}

static void run(const uint8_t *cdb, uint64_t out_length, uint64_t in_length)
{
	start(cdb, out_length, in_length, 0);
	finish();
}

#define GOOD(moved) good(__LINE__, moved)
static void good(int line, uint64_t moved)
{
	if (c.task.status != VS_STATUS_GOOD || c.task.response != VS_RESP_OK || c.task.transferred != moved) {
		fprintf(stderr, "%s:%d: status %02x response %u, moved %llu, sense %02x %02x/%02x\n", __FILE__, line, c.task.status, c.task.response,
			(unsigned long long)c.task.transferred, c.task.sense[2] & 0xf, c.task.sense[12], c.task.sense[13]);
		exit(1);
	}
}

/* In fixed format, which is the default here. */
#define FAILED(key, asc) failed(__LINE__, key, asc)
static void failed(int line, uint8_t key, uint16_t asc)
{
	const uint8_t *s = c.task.sense;

	if (c.task.response != VS_RESP_OK || c.task.status != VS_STATUS_CHECK_CONDITION || c.task.sense_len != 18 || (s[0] & 0x7f) != 0x70 || s[2] != key ||
	    vs_be16(s + 12) != asc) {
		fprintf(stderr, "%s:%d: status %02x response %u, sense %02x: %02x %02x/%02x\n", __FILE__, line, c.task.status, c.task.response, s[0],
			s[2], s[12], s[13]);
		exit(1);
	}
	CHECK_EQ(c.task.transferred, 0);
}

static void points_at_cdb(uint32_t byte, uint32_t bit)
{
	CHECK_EQ(c.task.sense[15], 0xc8 | bit);
	CHECK_EQ(vs_be16(c.task.sense + 16), byte);
}

static void points_at_parameter(uint32_t byte)
{
	CHECK_EQ(c.task.sense[15] & 0xc0, 0x80);
	CHECK_EQ(vs_be16(c.task.sense + 16), byte);
}

/* The store was asked for these, and nothing else. */
static void asked(uint32_t n, const struct medium_op *ops_wanted)
{
	CHECK_EQ(u.medium->nlog, n);
	for (uint32_t i = 0; i < n; i++) {
		CHECK_EQ(u.medium->log[i].op, ops_wanted[i].op);
		CHECK_EQ(u.medium->log[i].flags, ops_wanted[i].flags);
		CHECK_EQ(u.medium->log[i].offset, ops_wanted[i].offset);
		CHECK_EQ(u.medium->log[i].length, ops_wanted[i].length);
	}
}
#define ASKED(...) asked(sizeof((struct medium_op[]){ __VA_ARGS__ }) / sizeof(struct medium_op), (struct medium_op[]){ __VA_ARGS__ })
#define ASKED_NOTHING() asked(0, NULL)

static const uint8_t *cdb6(uint8_t opcode, uint32_t lba, uint8_t blocks)
{
	static uint8_t cdb[16];

	memset(cdb, 0, sizeof(cdb));
	cdb[0] = opcode;
	cdb[1] = (uint8_t)(lba >> 16);
	cdb[2] = (uint8_t)(lba >> 8);
	cdb[3] = (uint8_t)lba;
	cdb[4] = blocks;
	return cdb;
}

static const uint8_t *cdb10(uint8_t opcode, uint8_t byte1, uint32_t lba, uint32_t blocks)
{
	static uint8_t cdb[16];

	memset(cdb, 0, sizeof(cdb));
	cdb[0] = opcode;
	cdb[1] = byte1;
	vs_put_be32(cdb + 2, lba);
	cdb[7] = (uint8_t)(blocks >> 8);
	cdb[8] = (uint8_t)blocks;
	return cdb;
}

static const uint8_t *cdb12(uint8_t opcode, uint8_t byte1, uint32_t lba, uint32_t blocks)
{
	static uint8_t cdb[16];

	memset(cdb, 0, sizeof(cdb));
	cdb[0] = opcode;
	cdb[1] = byte1;
	vs_put_be32(cdb + 2, lba);
	vs_put_be32(cdb + 6, blocks);
	return cdb;
}

static const uint8_t *cdb16(uint8_t opcode, uint8_t byte1, uint64_t lba, uint32_t blocks)
{
	static uint8_t cdb[16];

	memset(cdb, 0, sizeof(cdb));
	cdb[0] = opcode;
	cdb[1] = byte1;
	vs_put_be64(cdb + 2, lba);
	vs_put_be32(cdb + 10, blocks);
	return cdb;
}

enum { FUA = 0x08, DPO = 0x10, IMMED = 0x02, UNMAP_BIT = 0x08, NDOB = 0x01 };

static void open_over(const struct vs_store_info *info, const struct vs_lu_params *params)
{
	struct unit_options o = { 0 };

	if (info)
		o.info = *info;
	if (params)
		o.lu = *params;
	unit_open(&u, &o);
	for (uint32_t i = 0; i < BLOCKS; i++)
		memset(u.medium->data + i * BLOCK, (int)(i * 7 + 1), BLOCK);
}

static const struct vs_lu_params cached = { .write_cache = 1, .unmap = 1 };
static const struct vs_store_info plain = { .unmap = VS_CAP_NATIVE, .zero = VS_CAP_NATIVE, .unmapped_reads_zero = 1 };

/* ---- READ and WRITE -------------------------------------------------------------------------------------------------------------------- */

static void every_length_of_read_and_write(void)
{
	open_over(&plain, &cached);
	run(cdb6(0x08, 5, 2), 0, 2 * BLOCK);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_READ, 0, 5 * BLOCK, 2 * BLOCK });
	CHECK(!memcmp(data, u.medium->data + 5 * BLOCK, 2 * BLOCK));
	run(cdb10(0x28, DPO, 6, 2), 0, 2 * BLOCK);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_READ, 0, 6 * BLOCK, 2 * BLOCK });
	run(cdb12(0xa8, 0, 7, 2), 0, 2 * BLOCK);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_READ, 0, 7 * BLOCK, 2 * BLOCK });
	run(cdb16(0x88, 0, 8, 2), 0, 2 * BLOCK);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_READ, 0, 8 * BLOCK, 2 * BLOCK });
	memset(data, 'w', DATA);
	run(cdb6(0x0a, 5, 2), 2 * BLOCK, 0);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 5 * BLOCK, 2 * BLOCK });
	CHECK(u.medium->data[5 * BLOCK] == 'w' && u.medium->data[7 * BLOCK - 1] == 'w' && u.medium->data[7 * BLOCK] != 'w');
	run(cdb10(0x2a, 0, 6, 2), 2 * BLOCK, 0);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 6 * BLOCK, 2 * BLOCK });
	run(cdb12(0xaa, 0, 7, 2), 2 * BLOCK, 0);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 7 * BLOCK, 2 * BLOCK });
	run(cdb16(0x8a, 0, 8, 2), 2 * BLOCK, 0);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 8 * BLOCK, 2 * BLOCK });
	unit_close(&u);
}

/* SBC-4 5.10, 5.11: zero means 256 with six bytes, and nothing elsewhere. */
static void a_length_of_zero(void)
{
	open_over(&plain, &cached);
	run(cdb6(0x08, 1, 0), 0, 256 * BLOCK);
	GOOD(256 * BLOCK);
	ASKED({ VS_IO_READ, 0, BLOCK, 256 * BLOCK });
	run(cdb6(0x0a, 1, 0), 256 * BLOCK, 0);
	GOOD(256 * BLOCK);
	run(cdb10(0x28, 0, 1, 0), 0, BLOCK);
	GOOD(0);
	ASKED_NOTHING();
	run(cdb10(0x2a, 0, 1, 0), 0, 0);
	GOOD(0);
	run(cdb16(0x88, 0, BLOCKS, 0), 0, 0);
	GOOD(0);
	run(cdb16(0x8a, FUA, 1, 0), 0, 0);
	GOOD(0);
	ASKED_NOTHING();
	unit_close(&u);
}

/* INFORMATION is the first block that is not there; in fixed format only where it fits. */
static void blocks_that_are_not_there(void)
{
	open_over(&plain, &cached);
	run(cdb10(0x28, 0, BLOCKS - 1, 1), 0, BLOCK);
	GOOD(BLOCK);
	run(cdb10(0x28, 0, BLOCKS - 1, 2), 0, 2 * BLOCK);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	CHECK_EQ(c.task.sense[0], 0xf0);
	CHECK_EQ(vs_be32(c.task.sense + 3), BLOCKS);
	ASKED_NOTHING();
	run(cdb10(0x2a, 0, BLOCKS + 5, 1), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	CHECK_EQ(vs_be32(c.task.sense + 3), BLOCKS + 5);
	run(cdb10(0x28, 0, BLOCKS + 1, 0), 0, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	/* The sum of both wraps. */
	run(cdb16(0x88, 0, UINT64_MAX, 2), 0, 2 * BLOCK);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	CHECK_EQ(c.task.sense[0], 0x70);
	run(cdb16(0x8a, 0, 1, UINT32_MAX), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	run(cdb6(0x08, BLOCKS - 255, 0), 0, 256 * BLOCK);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	run(cdb16(0x8f, 0, BLOCKS, 1), 0, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	run(cdb10(0x35, 0, BLOCKS, 1), 0, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	ASKED_NOTHING();
	unit_close(&u);
}

/* What the initiator supplied is longer or shorter than what the CDB moves. */
static void buffers_that_do_not_fit(void)
{
	open_over(&plain, &cached);
	memset(data, 'r', DATA);
	run(cdb10(0x28, 0, 3, 2), 0, 5 * BLOCK);
	GOOD(2 * BLOCK);
	CHECK_EQ(c.task.required, 2 * BLOCK);
	CHECK_EQ(data[2 * BLOCK], 'r');
	run(cdb10(0x2a, 0, 3, 2), 5 * BLOCK, 0);
	GOOD(2 * BLOCK);
	ASKED({ VS_IO_WRITE, 0, 3 * BLOCK, 2 * BLOCK });
	run(cdb10(0x28, 0, 3, 2), 0, 2 * BLOCK - 1);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	CHECK_EQ(c.task.transferred, 0);
	ASKED_NOTHING();
	run(cdb10(0x2a, 0, 3, 2), BLOCK, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb10(0x2a, 0, 3, 1), 0, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb10(0x2f, 0x02, 3, 2), BLOCK, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb10(0x2f, 0x06, 3, 2), BLOCK - 1, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb10(0x41, 0, 3, 2), BLOCK - 1, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	ASKED_NOTHING();
	unit_close(&u);
}

/* Transports that say so get what fits (iSCSI residuals). */
static void buffers_that_cut_the_transfer(void)
{
	open_over(&plain, &cached);
	start(cdb10(0x28, 0, 3, 4), 0, 2 * BLOCK + 10, VS_TASK_TRUNCATE);
	finish();
	GOOD(2 * BLOCK + 10);
	CHECK_EQ(c.task.required, 4 * BLOCK);
	ASKED({ VS_IO_READ, 0, 3 * BLOCK, 2 * BLOCK + 10 });
	start(cdb10(0x2a, 0, 3, 4), BLOCK, 0, VS_TASK_TRUNCATE);
	finish();
	GOOD(BLOCK);
	start(cdb10(0x28, 0, 3, 4), 0, 0, VS_TASK_TRUNCATE);
	finish();
	GOOD(0);
	ASKED_NOTHING();
	unit_close(&u);
}

/* ---- durability ------------------------------------------------------------------------------------------------------------------------ */

static struct vs_store_info volatile_with(uint8_t fua)
{
	struct vs_store_info info = plain;

	info.volatile_cache = 1;
	info.fua = fua;
	return info;
}

static void fua_on_a_store(uint8_t capability)
{
	struct vs_store_info info = volatile_with(capability);
	bool native = capability == VS_CAP_NATIVE;
	uint8_t flag = native ? VS_IO_FUA : 0;

	open_over(&info, &cached);
	run(cdb10(0x2a, 0, 3, 1), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ VS_IO_WRITE, 0, 3 * BLOCK, BLOCK });
	for (int wce = 1; wce >= 0; wce--) {
		u.params.write_cache = (uint8_t)wce;
		unit_update(&u);
		/* WRITE(6) has no FUA. */
		run(wce ? cdb16(0x8a, FUA, 3, 1) : cdb6(0x0a, 3, 1), BLOCK, 0);
		GOOD(BLOCK);
		if (native)
			ASKED({ VS_IO_WRITE, flag, 3 * BLOCK, BLOCK });
		else
			ASKED({ VS_IO_WRITE, 0, 3 * BLOCK, BLOCK }, { VS_IO_FLUSH, 0, 0, 0 });
	}
	run(cdb12(0xa8, FUA, 3, 1), 0, BLOCK);
	GOOD(BLOCK);
	ASKED({ VS_IO_FLUSH, 0, 0, 0 }, { VS_IO_READ, 0, 3 * BLOCK, BLOCK });
	/* WCE is off: what writes without data of the initiator's is flushed, too. */
	run(cdb16(0x93, NDOB, 4, 1), 0, 0);
	GOOD(0);
	ASKED({ VS_IO_ZERO, 0, 4 * BLOCK, BLOCK }, { VS_IO_FLUSH, 0, 0, 0 });
	memset(data, 0, 2 * BLOCK);
	run((const uint8_t[16]){ 0x89, FUA, [9] = 4, [13] = 1 }, 2 * BLOCK, 0);
	GOOD(2 * BLOCK);
	if (native)
		ASKED({ VS_IO_READ, 0, 4 * BLOCK, BLOCK }, { VS_IO_WRITE, flag, 4 * BLOCK, BLOCK });
	else
		ASKED({ VS_IO_READ, 0, 4 * BLOCK, BLOCK }, { VS_IO_WRITE, 0, 4 * BLOCK, BLOCK }, { VS_IO_FLUSH, 0, 0, 0 });
	unit_close(&u);
}

/* Without a cache that forgets there is nothing to write through. */
static void fua_needs_a_volatile_cache(void)
{
	struct vs_store_info info = volatile_with(VS_CAP_NATIVE);

	info.volatile_cache = 0;
	open_over(&info, NULL);
	run(cdb10(0x2a, FUA, 3, 1), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ VS_IO_WRITE, 0, 3 * BLOCK, BLOCK });
	run(cdb10(0x28, FUA, 3, 1), 0, BLOCK);
	ASKED({ VS_IO_READ, 0, 3 * BLOCK, BLOCK });
	unit_close(&u);
}

static void synchronize_cache(void)
{
	struct vs_store_info info = volatile_with(VS_CAP_NONE);

	open_over(&info, &cached);
	run(cdb10(0x35, 0, 0, 0), 0, 0);
	GOOD(0);
	ASKED({ VS_IO_FLUSH, 0, 0, 0 });
	run(cdb16(0x91, 0, 5, 3), 0, 0);
	GOOD(0);
	ASKED({ VS_IO_FLUSH, 0, 0, 0 });
	/* SBC-4 5.22: IMMED is answered before the flush has ended, which holds the unit all the same. */
	medium_hold(u.medium, true);
	start(cdb10(0x35, IMMED, 0, 0), 0, 0, 0);
	CHECK(c.ended);
	GOOD(0);
	CHECK_EQ(medium_held(u.medium), 1);
	CHECK(vs_pins_busy(vs_lu_pins(u.lu)));
	medium_release(u.medium);
	unit_settle(&u);
	CHECK(!vs_pins_busy(vs_lu_pins(u.lu)));
	medium_hold(u.medium, false);
	/* Nobody waits for its error: it closes the gate, and Python is told. */
	u.medium->fail[VS_IO_FLUSH] = VS_ERR_WRITE;
	run(cdb10(0x35, IMMED, 0, 0), 0, 0);
	GOOD(0);
	CHECK(vs_gate_read(u.lu, NULL) & VS_GATE_STORE_FAILED);
	CHECK_EQ(unit_wait(&u, VS_UP_STORE_FAILED, 1, NULL).worker, 0);
	unit_close(&u);
}

/* ---- errors of the store ----------------------------------------------------------------------------------------------------------------- */

static void every_store_error_becomes_sense(void)
{
	static const struct { uint8_t key; uint16_t asc; } sense[VS_ERR_KINDS] = {
		[VS_ERR_READ] = { 0x03, 0x1100 }, [VS_ERR_WRITE] = { 0x03, 0x0c00 }, [VS_ERR_NO_SPACE] = { 0x07, 0x2707 },
		[VS_ERR_READ_ONLY] = { 0x07, 0x2700 }, [VS_ERR_NOT_READY] = { 0x02, 0x0400 }, [VS_ERR_GONE] = { 0x04, 0x4400 },
		[VS_ERR_RANGE] = { 0x05, 0x2100 }, [VS_ERR_UNSUPPORTED] = { 0x04, 0x4400 }, [VS_ERR_FLUSH_LATCHED] = { 0x03, 0x0c00 },
		[VS_ERR_INTERNAL] = { 0x04, 0x4400 }, [VS_ERR_ABORTED] = { 0x0b, 0x0000 },
	};
	open_over(&plain, &cached);
	for (int32_t e = 1; e < VS_ERR_KINDS; e++) {
		for (int op = 0; op < VS_IO_OPS; op++)
			u.medium->fail[op] = op == VS_IO_FLUSH ? 0 : e;
		for (int i = 0; i < 6; i++) {
			static const uint8_t unmap[16] = { 0x42, [8] = 24 };

			memset(data, 0, BLOCK * 2);
			data[3] = 16;
			data[19] = 1;
			run(i == 0 ? cdb10(0x28, 0, 3, 1) : i == 1 ? cdb10(0x2a, 0, 3, 1) : i == 2 ? cdb10(0x2f, 0, 3, 1) : i == 3 ? cdb16(0x93, NDOB, 3, 1) :
			    i == 4 ? unmap : (const uint8_t[16]){ 0x89, [13] = 1 },
			    i == 1 ? BLOCK : i == 4 ? 24 : i == 5 ? 2 * BLOCK : 0, i == 0 ? BLOCK : 0);
			if (e == VS_ERR_BUSY) {
				CHECK_EQ(c.task.status, VS_STATUS_BUSY);
				CHECK_EQ(c.task.sense_len, 0);
			} else {
				FAILED(sense[e].key, sense[e].asc);
			}
		}
	}
	/* A number that no store may use is the store's own fault. */
	u.medium->fail[VS_IO_READ] = 1000;
	run(cdb10(0x28, 0, 3, 1), 0, BLOCK);
	FAILED(VS_SK_HARDWARE_ERROR, VS_ASC_INTERNAL_TARGET_FAILURE);
	u.medium->fail[VS_IO_READ] = -5;
	run(cdb10(0x28, 0, 3, 1), 0, BLOCK);
	FAILED(VS_SK_HARDWARE_ERROR, VS_ASC_INTERNAL_TARGET_FAILURE);
	unit_close(&u);
}

/* SPC-5 4.4: the same with descriptors, and all 64 bits of INFORMATION. */
static void descriptor_sense(void)
{
	struct vs_lu_params params = cached;
	const uint8_t *s = c.task.sense;

	params.descriptor_sense = 1;
	open_over(&plain, &params);
	run(cdb16(0x88, 0, 0x123456789abcull, 1), 0, BLOCK);
	CHECK_EQ(c.task.status, VS_STATUS_CHECK_CONDITION);
	CHECK_EQ(c.task.sense_len, 20);
	CHECK(s[0] == 0x72 && s[1] == VS_SK_ILLEGAL_REQUEST && vs_be16(s + 2) == VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE && s[7] == 12);
	CHECK(s[8] == 0 && s[9] == 0x0a && s[10] == 0x80 && vs_be64(s + 12) == 0x123456789abcull);
	run(cdb10(0x2f, 0x04, 0, 1), 0, 0);
	CHECK_EQ(c.task.sense_len, 16);
	CHECK(s[0] == 0x72 && s[7] == 8 && s[8] == 2 && s[9] == 6 && s[12] == 0xca && vs_be16(s + 13) == 1);
	unit_close(&u);
}

/* ---- UNMAP ------------------------------------------------------------------------------------------------------------------------------- */

static void put_list(uint32_t n, const uint64_t (*ranges)[2])
{
	memset(data, 0, 8 + 16 * n);
	data[0] = (uint8_t)((6 + 16 * n) >> 8);
	data[1] = (uint8_t)(6 + 16 * n);
	data[2] = (uint8_t)(16 * n >> 8);
	data[3] = (uint8_t)(16 * n);
	for (uint32_t i = 0; i < n; i++) {
		vs_put_be64(data + 8 + 16 * i, ranges[i][0]);
		vs_put_be32(data + 16 + 16 * i, (uint32_t)ranges[i][1]);
	}
}

static const uint8_t *cdb_unmap(uint16_t list)
{
	static uint8_t cdb[16] = { 0x42 };

	cdb[7] = (uint8_t)(list >> 8);
	cdb[8] = (uint8_t)list;
	return cdb;
}

static void unmap(uint32_t n, const uint64_t (*ranges)[2])
{
	put_list(n, ranges);
	run(cdb_unmap((uint16_t)(8 + 16 * n)), 8 + 16 * n, 0);
}

static void unmap_lists(void)
{
	struct vs_lu_params params = cached;

	params.max_unmap_descriptors = 3;
	params.max_unmap_blocks = 100;
	open_over(&plain, &params);
	unmap(3, (const uint64_t[][2]){ { 3, 2 }, { 100, 0 }, { BLOCKS - 1, 1 } });
	GOOD(8 + 48);
	ASKED({ VS_IO_UNMAP, 0, 3 * BLOCK, 2 * BLOCK }, { VS_IO_UNMAP, 0, (BLOCKS - 1) * BLOCK, BLOCK });
	run(cdb_unmap(0), 0, 0);
	GOOD(0);
	ASKED_NOTHING();
	unmap(0, NULL);
	GOOD(8);
	ASKED_NOTHING();
	/* All are looked at before the first is carried out. */
	unmap(2, (const uint64_t[][2]){ { 3, 2 }, { BLOCKS - 1, 2 } });
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	ASKED_NOTHING();
	unmap(1, (const uint64_t[][2]){ { UINT64_MAX, 1 } });
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	unmap(4, (const uint64_t[][2]){ { 1, 1 }, { 2, 1 }, { 3, 1 }, { 4, 1 } });
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST);
	points_at_parameter(2);
	unmap(2, (const uint64_t[][2]){ { 1, 60 }, { 100, 60 } });
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST);
	points_at_parameter(16);
	ASKED_NOTHING();
	unit_close(&u);
}

static void unmap_lists_that_are_wrong(void)
{
	static const uint64_t one[][2] = { { 3, 2 } };

	open_over(&plain, &cached);
	put_list(1, one);
	for (uint16_t list = 1; list < 8; list++) {
		run(cdb_unmap(list), 24, 0);
		FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_PARAMETER_LIST_LENGTH_ERROR);
	}
	run(cdb_unmap(24), 23, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb_unmap(24), 0, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	put_list(1, one);
	data[3] = 15;
	run(cdb_unmap(24), 24, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST);
	/* SBC-4 5.35: what the list says beyond its end is not there; what comes behind the list is not looked at. */
	put_list(2, (const uint64_t[][2]){ { 3, 2 }, { 9, 1 } });
	run(cdb_unmap(24), 40, 0);
	GOOD(24);
	ASKED({ VS_IO_UNMAP, 0, 3 * BLOCK, 2 * BLOCK });
	run(cdb_unmap(39), 40, 0);
	GOOD(39);
	ASKED({ VS_IO_UNMAP, 0, 3 * BLOCK, 2 * BLOCK });
	data[3] = 16;
	run(cdb_unmap(40), 40, 0);
	GOOD(40);
	ASKED({ VS_IO_UNMAP, 0, 3 * BLOCK, 2 * BLOCK });
	u.params.unmap = 0;
	unit_update(&u);
	unmap(1, one);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_COMMAND_OPERATION_CODE);
	run(cdb16(0x93, UNMAP_BIT, 3, 1), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(1, 3);
	ASKED_NOTHING();
	unit_close(&u);
}

/* ---- WRITE SAME -------------------------------------------------------------------------------------------------------------------------- */

static void write_same(uint8_t zero_capability)
{
	struct vs_store_info info = plain;
	bool can = zero_capability != VS_CAP_NONE;

	info.zero = zero_capability;
	open_over(&info, &cached);
	for (uint32_t i = 0; i < BLOCK; i++)
		data[i] = (uint8_t)i;
	/* More than one chunk, and the last is not a whole one. */
	run(cdb16(0x93, 0, 5, CHUNK_BLOCKS + 3), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ VS_IO_WRITE, 0, 5 * BLOCK, CHUNK_BLOCKS * BLOCK }, { VS_IO_WRITE, 0, (5 + CHUNK_BLOCKS) * BLOCK, 3 * BLOCK });
	for (uint32_t i = 5; i < 5 + CHUNK_BLOCKS + 3; i++)
		CHECK(!memcmp(u.medium->data + i * BLOCK, data, BLOCK));
	CHECK(u.medium->data[4 * BLOCK] == 4 * 7 + 1 && u.medium->data[(5 + CHUNK_BLOCKS + 3) * BLOCK + 1] == (uint8_t)((5 + CHUNK_BLOCKS + 3) * 7 + 1));
	/* A block of zeroes, and none at all. */
	memset(data, 0, BLOCK);
	run(cdb10(0x41, 0, 5, 3), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ can ? VS_IO_ZERO : VS_IO_WRITE, 0, 5 * BLOCK, 3 * BLOCK });
	memset(u.medium->data + 5 * BLOCK, 'x', 3 * BLOCK);
	run(cdb16(0x93, NDOB | UNMAP_BIT, 5, 3), 0, 0);
	GOOD(0);
	ASKED({ can ? VS_IO_ZERO : VS_IO_WRITE, can ? VS_IO_MAY_UNMAP : 0, 5 * BLOCK, 3 * BLOCK });
	CHECK(u.medium->data[5 * BLOCK] == 0 && !memcmp(u.medium->data + 5 * BLOCK, u.medium->data + 5 * BLOCK + 1, 3 * BLOCK - 1));
	/* UNMAP with other data: they are written. */
	data[BLOCK - 1] = 1;
	run(cdb10(0x41, UNMAP_BIT, 5, 1), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ VS_IO_WRITE, 0, 5 * BLOCK, BLOCK });
	/* No number of blocks: to the end of the medium. */
	run(cdb10(0x41, 0, BLOCKS - 2, 0), BLOCK, 0);
	GOOD(BLOCK);
	ASKED({ VS_IO_WRITE, 0, (BLOCKS - 2) * BLOCK, 2 * BLOCK });
	run(cdb16(0x93, 0, BLOCKS, 0), BLOCK, 0);
	GOOD(0);
	ASKED_NOTHING();
	u.params.wsnz = 1;
	unit_update(&u);
	run(cdb10(0x41, 0, 5, 0), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(7, 7);
	run(cdb16(0x93, 0, 5, 0), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(10, 7);
	u.params.max_write_same_blocks = 10;
	unit_update(&u);
	run(cdb16(0x93, NDOB, 5, 11), 0, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	ASKED_NOTHING();
	run(cdb16(0x93, NDOB, 5, 10), 0, 0);
	GOOD(0);
	/* SBC-4 5.51: NDOB is a bit of the 16-byte command only. */
	run(cdb10(0x41, NDOB, 5, 1), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(1, 0);
	unit_close(&u);
}

/* ---- VERIFY ------------------------------------------------------------------------------------------------------------------------------ */

static void verify(void)
{
	const uint32_t n = CHUNK_BLOCKS + 10;

	open_over(&plain, &cached);
	run(cdb10(0x2f, 0, 7, 3), 0, 0);
	GOOD(0);
	ASKED({ VS_IO_READ, 0, 7 * BLOCK, 3 * BLOCK });
	run(cdb16(0x8f, 0, 7, 0), 0, 0);
	GOOD(0);
	ASKED_NOTHING();
	/* BYTCHK 1: byte by byte. */
	memcpy(data, u.medium->data + 7 * BLOCK, n * BLOCK);
	run(cdb16(0x8f, 0x02, 7, n), n * BLOCK, 0);
	GOOD(n * BLOCK);
	ASKED({ VS_IO_READ, 0, 7 * BLOCK, CHUNK_BLOCKS * BLOCK }, { VS_IO_READ, 0, (7 + CHUNK_BLOCKS) * BLOCK, 10 * BLOCK });
	data[CHUNK_BLOCKS * BLOCK + 5]++;
	data[CHUNK_BLOCKS * BLOCK + 9]++;
	run(cdb16(0x8f, 0x02, 7, n), n * BLOCK, 0);
	FAILED(VS_SK_MISCOMPARE, VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
	CHECK_EQ(c.task.sense[0], 0xf0);
	CHECK_EQ(vs_be32(c.task.sense + 3), CHUNK_BLOCKS * BLOCK + 5);
	/* BYTCHK 3: each block against one. */
	for (uint32_t i = 7; i < 7 + n; i++)
		memcpy(u.medium->data + i * BLOCK, data, BLOCK);
	run(cdb16(0x8f, 0x06, 7, n), BLOCK, 0);
	GOOD(BLOCK);
	u.medium->data[(7 + CHUNK_BLOCKS + 2) * BLOCK + 11]++;
	run(cdb16(0x8f, 0x06, 7, n), BLOCK, 0);
	FAILED(VS_SK_MISCOMPARE, VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
	run(cdb10(0x2f, 0x04, 7, 1), BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(1, 2);
	unit_close(&u);
}

/* ---- COMPARE AND WRITE --------------------------------------------------------------------------------------------------------------------- */

static const uint8_t *cdb_caw(uint64_t lba, uint8_t blocks)
{
	static uint8_t cdb[16] = { 0x89 };

	vs_put_be64(cdb + 2, lba);
	cdb[13] = blocks;
	return cdb;
}

static void compare_and_write(void)
{
	open_over(&plain, &cached);
	memcpy(data, u.medium->data + 9 * BLOCK, 2 * BLOCK);
	memset(data + 2 * BLOCK, 'n', 2 * BLOCK);
	run(cdb_caw(9, 2), 4 * BLOCK, 0);
	GOOD(4 * BLOCK);
	ASKED({ VS_IO_READ, 0, 9 * BLOCK, 2 * BLOCK }, { VS_IO_WRITE, 0, 9 * BLOCK, 2 * BLOCK });
	CHECK(u.medium->data[9 * BLOCK] == 'n' && u.medium->data[11 * BLOCK - 1] == 'n' && u.medium->data[11 * BLOCK] != 'n');
	/* SBC-4 5.3: INFORMATION is the offset of the first byte that differs; nothing is written. */
	memset(data, 'n', 2 * BLOCK);
	data[BLOCK + 77] = 'm';
	run(cdb_caw(9, 2), 4 * BLOCK, 0);
	FAILED(VS_SK_MISCOMPARE, VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
	CHECK_EQ(vs_be32(c.task.sense + 3), BLOCK + 77);
	ASKED({ VS_IO_READ, 0, 9 * BLOCK, 2 * BLOCK });
	run(cdb_caw(9, 0), 0, 0);
	GOOD(0);
	run(cdb_caw(9, 0), 2 * BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(13, 7);
	run(cdb_caw(9, 2), 2 * BLOCK, 0);
	CHECK_EQ(c.task.response, VS_RESP_OVERRUN);
	run(cdb_caw(9, 1), 3 * BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	points_at_cdb(13, 7);
	start(cdb_caw(9, 2), 3 * BLOCK, 0, VS_TASK_TRUNCATE);
	finish();
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_INVALID_FIELD_IN_CDB);
	run(cdb_caw(BLOCKS - 1, 2), 4 * BLOCK, 0);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	run(cdb_caw(0, 255), 510 * BLOCK, 0);
	FAILED(VS_SK_MISCOMPARE, VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
	unit_close(&u);
}

/* ---- others ------------------------------------------------------------------------------------------------------------------------------- */

static void test_unit_ready(void)
{
	open_over(&plain, &cached);
	run(cdb6(0x00, 0, 0), 0, 0);
	GOOD(0);
	ASKED_NOTHING();
	unit_close(&u);
}

/* A medium that does not take writes. */
static void read_only(void)
{
	struct vs_store_info info = plain;

	info.read_only = 1;
	open_over(&info, &cached);
	run(cdb10(0x2a, 0, 3, 1), BLOCK, 0);
	FAILED(VS_SK_DATA_PROTECT, VS_ASC_WRITE_PROTECTED);
	run(cdb10(0x28, 0, 3, 1), 0, BLOCK);
	GOOD(BLOCK);
	unit_close(&u);
}

/* Blocks of 4096 bytes: everything above counts in blocks. */
static void larger_blocks(void)
{
	struct vs_lu_params params = { .block_size = 4096, .num_blocks = BLOCKS / 8, .write_cache = 1, .unmap = 1 };

	open_over(&plain, &params);
	run(cdb10(0x28, 0, BLOCKS / 8 - 1, 1), 0, 4096);
	GOOD(4096);
	ASKED({ VS_IO_READ, 0, BLOCKS * BLOCK - 4096, 4096 });
	run(cdb10(0x28, 0, BLOCKS / 8, 1), 0, 4096);
	FAILED(VS_SK_ILLEGAL_REQUEST, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	unit_close(&u);
}

/* An abort while the store has the command: it ends when the store lets go, and what follows is left out. */
static void an_aborted_command_does_nothing_more(void)
{
	struct vs_tmf tmf = { .lu = NULL, .match = VS_TMF_LU, .action = VS_TMF_ABORT, .response = VS_RESP_ABORTED, .cookie = 5 };

	open_over(&plain, &cached);
	tmf.lu = u.lu;
	medium_hold(u.medium, true);
	memcpy(data, u.medium->data, BLOCK);
	start(cdb_caw(0, 1), 2 * BLOCK, 0, 0);
	unit_settle(&u);
	CHECK_EQ(medium_held(u.medium), 1);
	vs_tmf_post(u.core, &tmf);
	unit_settle(&u);
	CHECK(!c.ended);
	CHECK_EQ(u.medium->cancelled, 1);
	medium_release(u.medium);
	finish();
	CHECK_EQ(c.task.response, VS_RESP_ABORTED);
	ASKED({ VS_IO_READ, 0, 0, BLOCK });
	medium_hold(u.medium, false);
	CHECK_EQ(unit_wait(&u, VS_UP_DONE, 5, NULL).err, 0);
	CHECK_EQ(unit_wait(&u, VS_UP_DONE, 5, NULL).err, 0);
	unit_close(&u);
}

/* A task that Python hands back to be executed, though it is no media command: the initiator gets an honest failure. */
static void only_media_commands_can_be_executed(void)
{
	struct vs_task_info info;

	open_over(&plain, &cached);
	start((const uint8_t[16]){ 0x12, [4] = 36 }, 0, 36, 0);
	unit_post(&u, unit_wait(&u, VS_UP_TASK, 0, &info).task, VS_VERDICT_EXECUTE, 0);
	finish();
	CHECK_EQ(info.cdb[0], 0x12);
	CHECK_EQ(c.task.response, VS_RESP_TARGET_FAILURE);
	unit_close(&u);
}

static void counters(void)
{
	struct vs_lu_stats stats;

	open_over(&plain, &cached);
	run(cdb10(0x28, 0, 3, 2), 0, 2 * BLOCK);
	run(cdb10(0x2a, 0, 3, 1), BLOCK, 0);
	run(cdb10(0x35, 0, 0, 0), 0, 0);
	unmap(1, (const uint64_t[][2]){ { 3, 2 } });
	run(cdb6(0x00, 0, 0), 0, 0);
	run(cdb10(0x28, 0, BLOCKS, 2), 0, 2 * BLOCK);
	vs_lu_stats(u.lu, &stats);
	CHECK_EQ(stats.reads, 2);
	CHECK_EQ(stats.read_bytes, 2 * BLOCK);
	CHECK_EQ(stats.writes, 1);
	CHECK_EQ(stats.write_bytes, BLOCK);
	CHECK_EQ(stats.flushes, 1);
	CHECK_EQ(stats.unmaps, 1);
	CHECK_EQ(stats.others, 1);
	CHECK_EQ(stats.failed, 1);
	CHECK_EQ(stats.escalated, 0);
	unit_close(&u);
}

int main(void)
{
	data = malloc(DATA);
	CHECK(data != NULL);
	every_length_of_read_and_write();
	a_length_of_zero();
	blocks_that_are_not_there();
	buffers_that_do_not_fit();
	buffers_that_cut_the_transfer();
	fua_on_a_store(VS_CAP_NONE);
	fua_on_a_store(VS_CAP_EMULATED);
	fua_on_a_store(VS_CAP_NATIVE);
	fua_needs_a_volatile_cache();
	synchronize_cache();
	every_store_error_becomes_sense();
	descriptor_sense();
	unmap_lists();
	unmap_lists_that_are_wrong();
	write_same(VS_CAP_NONE);
	write_same(VS_CAP_NATIVE);
	verify();
	compare_and_write();
	test_unit_ready();
	read_only();
	larger_blocks();
	an_aborted_command_does_nothing_more();
	only_media_commands_can_be_executed();
	counters();
	free(data);
	return 0;
}
