// SPDX-License-Identifier: Apache-2.0
/*
 * Peers that ask for much and read nothing: what they make the target copy for an epoch and hold in buffers is counted, and others go on. Bytes
 * are counted, no time.
 */
#include <unistd.h>

#include "check.h"
#include "iscsi.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { READ = 0xc1, PEERS = 6, READS = 32, LONGEST = RIG_BLOCKS * 512, MIB = 1 << 20 };

struct peer { vs_isession *session; struct initiator *i; uint32_t first, blocks, n; };

static uint8_t was[LONGEST], in[LONGEST];

static bool good(struct outcome o) { return o.status == VS_STATUS_GOOD && !o.response; }

/* A session of its own, which asks for `blocks` blocks n times. */
static struct peer asks(struct irig *r, uint32_t blocks, uint32_t n)
{
	struct vs_iconn_info info = { 0 };
	struct peer p = { .blocks = blocks, .n = n };
	uint8_t cdb[16];

	irig_session(r);
	p.session = r->session;
	p.i = irig_connect(r, false, false);
	p.first = r->itt;
	for (uint32_t k = 0; k < n; k++) {
		cdb_rw(cdb, false, k * blocks % RIG_BLOCKS, blocks);
		ini_start(p.i, cdb, 10, READ, blocks * 512, NULL, 0);
	}
	while (info.commands < n) {
		irig_settle(r, 1);
		vs_iconn_info(p.i->conn, &info);
	}
	irig_settle(r, 20); /* stores with threads answer later */
	return p;
}

static void takes(struct peer *p)
{
	for (uint32_t k = 0; k < p->n; k++) {
		CHECK(good(ini_finish(p->i, p->first + k, in, NULL, 0)));
		CHECK(!memcmp(in, was + (size_t)(k * p->blocks % RIG_BLOCKS) * 512, p->blocks * 512));
	}
}

static void leaves(struct irig *r, struct peer *p)
{
	uint64_t cookie = irig_cookie(r);

	irig_disconnect(p->i);
	CHECK_EQ(vs_isession_destroy(p->session, cookie), 0);
	irig_wait(r, cookie);
	r->session = NULL;
}

static void open_with_data(struct irig *r, uint32_t engine, uint64_t read_us)
{
	uint32_t x = 1;
	struct peer p;

	irig_open(r, engine, read_us, 0);
	p = asks(r, 1, 1);
	for (uint8_t *b = was; b < was + sizeof(was); b++) {
		x = x * 1664525 + 1013904223;
		*b = (uint8_t)(x >> 24);
	}
	ini_finish(p.i, p.first, in, NULL, 0);
	for (uint32_t lba = 0; lba < RIG_BLOCKS; lba += 128)
		CHECK(good(ini_write(p.i, lba, 128, 65536, was + lba * 512, 0)));
	leaves(r, &p);
	r->nconns = 0;
}

/* Somebody who reads, in the session made last. */
static void goes_on(struct irig *r, struct initiator *i)
{
	for (uint32_t lba = 0; lba < 512; lba += 8) {
		CHECK(good(ini_read(i, lba, 8, 4096, in)));
		CHECK(!memcmp(in, was + lba * 512, 4096));
		CHECK(good(ini_write(i, lba, 8, 4096, was + lba * 512, lba & 8 ? 4096 : 0)));
	}
	CHECK(vs_counted(&r->core->workers[0].ibuffers.peak) > 0);
}

/* An epoch makes the target copy what is lent: a megabyte of a connection, and no more for the next one. */
static void epochs(uint32_t engine)
{
	struct vs_worker *w;
	struct peer p[PEERS];
	struct initiator *i;
	struct irig r;
	uint64_t copied;

	open_with_data(&r, engine, 0);
	w = &r.core->workers[0];
	for (int k = 0; k < PEERS; k++)
		p[k] = asks(&r, k % 2 ? 512 : 2048, READS);
	CHECK(vs_pins_busy(vs_lu_pins(r.lu)));
	CHECK_EQ(vs_counted(&w->ibuffers.given_back), 0);
	CHECK(vs_counted(&w->ibuffers.peak) <= (PEERS + 1) * MIB);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	vs_epoch_bump(r.core);
	while (vs_pins_busy(vs_lu_pins(r.lu)))
		irig_settle(&r, 1);
	copied = vs_counted(&w->ibuffers.given_back);
	CHECK(copied > 0 && copied <= PEERS * VS_ILENT_MAX);
	for (int k = 0; k < 4; k++) {
		vs_epoch_bump(r.core);
		irig_settle(&r, 5);
		goes_on(&r, i);
	}
	CHECK_EQ(vs_counted(&w->ibuffers.given_back), copied);
	CHECK(vs_counted(&w->ibuffers.peak) <= (PEERS + 1) * MIB);
	for (int k = 0; k < PEERS; k++)
		takes(&p[k]);
	irig_disconnect(i);
	for (int k = 0; k < PEERS; k++) {
		vs_isession *last = r.session;

		leaves(&r, &p[k]);
		r.session = last;
	}
	irig_close(&r);
}

/* What has to be copied has a limit for all of them, and each has a part that nobody takes away. */
static void limited(uint32_t engine, uint32_t blocks, uint32_t n, uint64_t most)
{
	struct peer p[PEERS];
	struct initiator *i;
	struct irig r;
	vs_isession *last;

	irig_buffer_limit = 16 * MIB;
	open_with_data(&r, engine, 1);
	irig_buffer_limit = 0;
	for (int k = 0; k < PEERS; k++)
		p[k] = asks(&r, blocks, n);
	CHECK(vs_counted(&r.core->workers[0].ibuffers.peak) <= most);
	CHECK(vs_counted(&r.core->workers[0].ibuffers.common) > 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	goes_on(&r, i);
	for (int k = 0; k < PEERS; k++) /* those who had no part in it get theirs when others take what they asked for */
		takes(&p[k]);
	irig_disconnect(i);
	last = r.session;
	for (int k = 0; k < PEERS; k++)
		leaves(&r, &p[k]);
	r.session = last;
	CHECK(vs_counted(&r.core->workers[0].ibuffers.peak) <= most);
	CHECK_EQ(vs_counted(&r.core->workers[0].ibuffers.used) + vs_counted(&r.core->workers[0].ibuffers.common), 0);
	irig_close(&r);
}

/* A peer with much unread leaves: who waited for what it held has it. */
static void left(uint32_t engine)
{
	struct peer a, b;
	struct irig r;

	irig_buffer_limit = 16 * MIB;
	open_with_data(&r, engine, 1);
	irig_buffer_limit = 0;
	a = asks(&r, RIG_BLOCKS, 2);
	b = asks(&r, RIG_BLOCKS, 1);
	CHECK_EQ(vs_counted(&r.core->workers[0].ibuffers.used), LONGEST);
	leaves(&r, &a);
	takes(&b);
	leaves(&r, &b);
	irig_close(&r);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		alarm(120);
		epochs(engine);
		limited(engine, 512, READS, 12 * MIB); /* 256 KiB is more than a thirty-second of 6 MiB */
		limited(engine, 128, READS, 12 * MIB);
		limited(engine, RIG_BLOCKS, 3, LONGEST + 6 * MIB);
		left(engine);
	}
	return 0;
}
