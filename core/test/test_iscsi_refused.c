// SPDX-License-Identifier: Apache-2.0
/* What control is told of refusals: which commands and PDUs, whoever refused them; never more than so many at once, and none is forgotten. */
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { TOLD_AT_ONCE = 16, FLOOD = 30, READ = 0xc1, ANSWER = 48 + 20 /* SenseLength and fixed sense data */ };

static uint8_t in[512];

static void bad_read(uint8_t *cdb)
{
	cdb_rw(cdb, false, 0, 1);
	cdb[1] = 2; /* reserved */
}

static const struct vs_irefusal_info *newest(const struct irig *r, uint32_t count)
{
	CHECK_EQ(r->nrefused, count);
	return &r->refused[(count - 1) % RIG_REFUSED];
}

static void commands(uint32_t engine, bool descriptor)
{
	uint8_t cdb[16], maintenance[16] = { 0xa3, 0x0f }, h[48];
	const struct vs_irefusal_info *f;
	struct initiator *i;
	struct outcome o;
	struct rig_pdu p;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	atomic_store(&r.lu->d_sense, descriptor);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	bad_read(cdb);
	ini_finish(i, ini_start(i, cdb, 10, READ, 512, NULL, 0), in, NULL, 0);
	irig_pump(&r, -1, 0);
	f = newest(&r, 1);
	CHECK(!f->missed && !f->reject && f->cdb_length == 16 && !memcmp(f->cdb, cdb, 10));
	CHECK_EQ(f->sense[0], descriptor ? 0x72 : 0x70);
	CHECK(f->sense_length >= 16);
	/* What Python refuses. */
	ini_finish(i, ini_start(i, maintenance, 12, READ, 512, NULL, 0), in, NULL, 0);
	irig_pump(&r, -1, 0);
	f = newest(&r, 2);
	CHECK_EQ(f->cdb[0], 0xa3);
	CHECK_EQ(f->sense[12], 0x20);
	/* Other errors, and good ends, are nobody's business. */
	o = ini_read(i, RIG_BLOCKS, 1, 512, in);
	if (!descriptor)
		CHECK_EQ(o.asc, VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	CHECK_EQ(ini_read(i, 0, 1, 512, in).status, VS_STATUS_GOOD);
	irig_settle(&r, 5);
	newest(&r, 2);
	/* Data both ways. */
	bhs_command(h, 0xe1, 77, 512, r.cmd_sn++, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x3f);
	irig_pump(&r, -1, 0);
	f = newest(&r, 3);
	CHECK(f->reject == p.bhs[2] && f->reject == 5 && f->bhs[1] == 0xe1 && get32(f->bhs + 16) == 77);
	CHECK_EQ(f->cdb_length, 0);
	irig_close(&r);
}

/* Without a look at what comes up. */
static void take_raw(struct initiator *i, size_t n)
{
	uint8_t bytes[256];

	while (n) {
		struct pollfd wait = { .fd = i->fd, .events = POLLIN };
		ssize_t got;

		CHECK_EQ(poll(&wait, 1, RIG_WAIT_MS), 1);
		got = recv(i->fd, bytes, n < sizeof(bytes) ? n : sizeof(bytes), 0);
		CHECK(got > 0);
		n -= (size_t)got;
	}
}

static void flood(uint32_t engine)
{
	struct initiator *i;
	uint8_t cdb[16];
	struct irig r;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	bad_read(cdb);
	for (int k = 0; k < FLOOD; k++)
		ini_start(i, cdb, 10, READ, 512, NULL, 0);
	take_raw(i, FLOOD * ANSWER);
	i->stat_sn += FLOOD;
	irig_pump(&r, -1, 0);
	CHECK_EQ(newest(&r, TOLD_AT_ONCE)->missed, 0);
	ini_finish(i, ini_start(i, cdb, 10, READ, 512, NULL, 0), in, NULL, 0);
	irig_pump(&r, -1, 0);
	CHECK_EQ(newest(&r, TOLD_AT_ONCE + 1)->missed, FLOOD - TOLD_AT_ONCE);
	/* The session goes while some are on their way. */
	for (int k = 0; k < FLOOD; k++)
		ini_start(i, cdb, 10, READ, 512, NULL, 0);
	take_raw(i, FLOOD * ANSWER);
	irig_close(&r);
	newest(&r, 2 * TOLD_AT_ONCE + 1);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		alarm(60);
		commands(engine, false);
		commands(engine, true);
		flood(engine);
	}
	return 0;
}
