// SPDX-License-Identifier: Apache-2.0
/*
 * Each bit of a CDB that the table does not name is refused with a pointer to it, and each bit that it names is not: for every media command,
 * whatever way the check is made for its length. Through a worker without a thread, over a null store.
 */
#include <stdlib.h>

#include "check.h"
#include "task.h"
#include "worker.h"
#include "gen/tables.h"

static uint32_t ended;

static void complete(struct vs_task *t)
{
	(void)t;
	ended++;
}

static const struct vs_task_ops ops = { .name = "test", .complete = complete };

struct bench { vs_core *core; vs_store *store; vs_lu *lu; vs_nexus *nexus; struct vs_worker *w; uint8_t *data; };

enum { DATA = 1 << 20 };

/* Runs a CDB that stands between nothing and its check; its data may be of any length. */
static void submit(struct bench *b, struct vs_task *t, const struct vs_row *row, const uint8_t *cdb)
{
	struct iovec out = { b->data, DATA }, in = { b->data, DATA };
	uint32_t before = ended;

	memset(t, 0, sizeof(*t));
	t->ops = &ops;
	t->w = b->w;
	t->nexus = b->nexus;
	t->cdb_len = 32;
	memcpy(t->cdb, cdb, row->cdb_len);
	/* What lies behind a CDB is not looked at. */
	memset(t->cdb + row->cdb_len, 0xff, 32 - row->cdb_len);
	if (row->dir == 1) {
		t->in = &in;
		t->nin = 1;
		t->in_length = DATA;
	} else if (row->dir == 2) {
		t->out = &out;
		t->nout = 1;
		t->out_length = DATA;
	}
	CHECK_EQ(vs_task_submit(t), 0);
	for (int i = 0; ended == before && i < 1000; i++)
		vs_worker_turn(b->w);
	CHECK_EQ(ended, before + 1);
}

/* SPC-5 4.4.2.4: INVALID FIELD IN CDB with a field pointer, in fixed format. */
static bool refused_at(const struct vs_task *t, uint32_t byte, uint32_t bit)
{
	const uint8_t *s = t->sense;

	return t->status == VS_STATUS_CHECK_CONDITION && (s[2] & 0xf) == VS_SK_ILLEGAL_REQUEST &&
	       (s[12] << 8 | s[13]) == VS_ASC_INVALID_FIELD_IN_CDB && (s[15] & 0xc8) == 0xc8 && (s[15] & 7u) == bit &&
	       (uint32_t)vs_be16(s + 16) == byte;
}

static uint32_t every_bit(struct bench *b, struct vs_task *t, const struct vs_row *row)
{
	uint32_t reserved = 0;

	for (uint32_t at = 8; at < row->cdb_len * 8u; at++) {
		uint8_t cdb[VS_CDB_MAX] = { row->opcode }, bit = (uint8_t)(1 << at % 8);

		/* The service action tells which row it is; what fails with NACA waits for Python. */
		bool wide = row->opcode == 0x7f;

		if (wide) {
			cdb[7] = row->cdb_len - 8;
			cdb[9] = (uint8_t)row->service_action;
		} else if (row->has_sa) {
			cdb[1] = (uint8_t)row->service_action;
		}
		if (wide && (at / 8 == 8 || at / 8 == 9 || at == 10))
			continue;
		if (!wide && ((row->has_sa && at < 13) || (at / 8 == row->cdb_len - 1u && bit == 4)))
			continue;
		cdb[at / 8] |= bit;
		submit(b, t, row, cdb);
		if (row->usage[at / 8] & bit)
			continue;
		reserved++;
		if (!refused_at(t, at / 8, at % 8)) {
			fprintf(stderr, "%s: bit %u of byte %u was let through\n", row->name, at % 8, at / 8);
			exit(1);
		}
	}
	return reserved;
}

/* Of two, the first byte is named, and in it the highest bit: whatever word of the CDB they stand in. */
static void the_first_of_two(struct bench *b, struct vs_task *t)
{
	uint8_t cdb[16] = { 0x28, 0x01, 0, 0, 0, 0, 0x80, 0, 1, 0 };
	const struct vs_row *row = vs_row_of(cdb, 16);

	CHECK(row != NULL);
	CHECK(!(row->usage[1] & 0x01));
	submit(b, t, row, cdb);
	CHECK(refused_at(t, 1, 0));
}

/* SPC-5 4.2.3: a variable-length CDB that says another length than its service action has. */
static void another_length(struct bench *b, struct vs_task *t)
{
	uint8_t cdb[32] = { 0x7f, [7] = 0x10, [9] = 0x09, [31] = 1 };
	const struct vs_row *row = vs_row_of(cdb, 32);

	CHECK(row != NULL);
	submit(b, t, row, cdb);
	CHECK(refused_at(t, 7, 7));
}

static void nothing_is_reserved_where_nobody_is_strict(struct bench *b, struct vs_task *t, struct vs_lu_params *lu)
{
	uint8_t cdb[16] = { 0x28, 0xe0, 0, 0, 0, 0, 0x1f, 0, 1, 0 };

	lu->lenient = 1;
	vs_lu_update(b->lu, lu);
	submit(b, t, vs_row_of(cdb, 16), cdb);
	CHECK_EQ(t->status, VS_STATUS_GOOD);
	lu->lenient = 0;
	vs_lu_update(b->lu, lu);
}

int main(void)
{
	struct vs_config config = { .nworkers = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_lu_params lu = { .num_blocks = 1 << 20, .cookie = 1, .block_size = 512, .write_cache = 1, .unmap = 1, .max_atomic_blocks = 8, .cdb32 = 1 };
	struct vs_task *t = malloc(sizeof(*t));
	struct bench b = { .data = calloc(1, DATA) };
	uint32_t rows = 0, reserved = 0;
	char why[100];

	CHECK(t && b.data);
	CHECK_EQ(vs_core_create(&config, &b.core), 0);
	b.w = &b.core->workers[0];
	CHECK_EQ(b.w->engine->init(b.w), 0);
	CHECK_EQ(vs_store_null(b.core, 512ull << 20, &b.store, why, sizeof(why)), 0);
	CHECK_EQ(vs_lu_create(b.core, &lu, b.store, &b.lu), 0);
	CHECK_EQ(vs_nexus_create(b.core, b.lu, 1, &b.nexus), 0);
	for (int i = 0; i < VS_NROWS; i++) {
		if (vs_rows[i].media == VS_MEDIA_NONE)
			continue;
		rows++;
		reserved += every_bit(&b, t, &vs_rows[i]);
	}
	CHECK(rows >= 10);
	CHECK(reserved > rows);
	the_first_of_two(&b, t);
	another_length(&b, t);
	nothing_is_reserved_where_nobody_is_strict(&b, t, &lu);
	vs_nexus_destroy(b.nexus);
	vs_lu_destroy(b.lu);
	vs_store_destroy(b.store);
	b.w->engine->fini(b.w);
	vs_core_destroy(b.core);
	free(b.data);
	free(t);
	return 0;
}
