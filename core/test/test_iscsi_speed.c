// SPDX-License-Identifier: Apache-2.0
/*
 * What makes iSCSI fast stays right: data that is sent straight from a store's memory, and sockets that are looked at without being told of.
 * How fast it is, nobody asks here.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { READ = 0xc1, WRITE_FINAL = 0xa1, READS = 31, BLOCKS = 512, BYTES = BLOCKS * 512, PART = 65536, SMALL = 8192 };
enum { LENT = (1 << 20) / BYTES }; /* so many are read before the first is taken */
enum how { FENCED, OVERWRITTEN, CLOSED, FAILED, HOWS };

static uint8_t was[READS][BYTES], in[BYTES], now_is[SMALL];

static bool good(struct outcome o) { return o.status == VS_STATUS_GOOD && !o.response; }

static void write_all(struct initiator *i)
{
	uint32_t x = 1;

	for (uint8_t *p = was[0]; p < was[0] + sizeof(was); p++) {
		x = x * 1664525 + 1013904223;
		*p = (uint8_t)(x >> 24);
	}
	memset(now_is, 0x5c, sizeof(now_is));
	for (uint32_t at = 0; at < sizeof(was); at += PART)
		CHECK(good(ini_write(i, at / 512, PART / 512, PART, was[0] + at, 0)));
}

static void wait_pins(struct irig *r, bool busy)
{
	uint64_t stop = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);

	while ((vs_pins_busy(vs_lu_pins(r->lu)) != 0) != busy) {
		CHECK(vs_now_ns() < stop);
		irig_settle(r, 1);
	}
}

/* All have arrived when it returns: a number that got lost with its connection would hold up the others. */
static uint32_t read_all(struct initiator *i)
{
	uint64_t stop = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);
	uint32_t first = i->rig->itt;
	struct vs_iconn_info before, info;
	uint8_t cdb[16];

	vs_iconn_info(i->conn, &before);
	for (uint32_t k = 0; k < READS; k++) {
		cdb_rw(cdb, false, k * BLOCKS, BLOCKS);
		ini_start(i, cdb, 10, READ, BYTES, NULL, 0);
	}
	for (vs_iconn_info(i->conn, &info); info.commands - before.commands < READS; vs_iconn_info(i->conn, &info)) {
		CHECK(vs_now_ns() < stop);
		irig_settle(i->rig, 1);
	}
	return first;
}

static void finish_all(struct initiator *i, uint32_t first)
{
	for (uint32_t k = 0; k < READS; k++) {
		CHECK(good(ini_finish(i, first + k, in, NULL, 0)));
		CHECK(!memcmp(in, was[k], BYTES));
	}
}

/* Reads wait for an initiator that takes nothing: their data is the store's memory, and the unit is held for it, until somebody needs it. */
static void lent(uint32_t engine, bool tcp, enum how how)
{
	struct initiator *i, *other;
	struct irig r;
	uint8_t cdb[16];
	uint32_t first, itt;
	int little = 65536;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = tcp ? irig_connect_tcp(&r) : irig_connect(&r, false, false);
	other = irig_connect(&r, false, false);
	write_all(other);
	if (tcp)
		CHECK_EQ(setsockopt(i->fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof(little)), 0);
	first = read_all(i);
	wait_pins(&r, true);
	cdb_rw(cdb, true, READS * BLOCKS - SMALL / 512, SMALL / 512);
	switch (how) {
	case FENCED: /* as whoever waits for the unit does, and is not kept waiting */
		vs_epoch_bump(r.core);
		wait_pins(&r, false);
		for (uint32_t k = 0; k < LENT; k++) /* the end of each, for one of them is on its way */
			CHECK(good(ini_write(other, (k + 1) * BLOCKS - SMALL / 512, SMALL / 512, SMALL, now_is, SMALL)));
		finish_all(i, first);
		break;
	case OVERWRITTEN: /* what was asked for first is read first */
		itt = ini_start(i, cdb, 10, WRITE_FINAL, SMALL, now_is, SMALL);
		finish_all(i, first);
		CHECK(good(ini_finish(i, itt, NULL, now_is, SMALL)));
		break;
	case CLOSED:
		irig_disconnect(i);
		break;
	default:
		shutdown(i->fd, SHUT_RDWR);
		CHECK(ini_event(i));
		vs_epoch_bump(r.core);
		wait_pins(&r, false);
		break;
	}
	CHECK(!vs_pins_busy(vs_lu_pins(r.lu)));
	CHECK(good(ini_read(other, READS * BLOCKS - SMALL / 512, SMALL / 512, SMALL, in)));
	CHECK(!memcmp(in, how == OVERWRITTEN ? now_is : was[READS - 1] + BYTES - SMALL, SMALL));
	irig_close(&r);
}

/* What a digest was made of does not change: it is copied, and so is what a store does not lend. */
static void not_lent(uint32_t engine, bool digest)
{
	struct initiator *i;
	struct irig r;
	uint32_t first;

	irig_open(&r, engine, digest ? 0 : 1, 0);
	irig_session(&r);
	i = irig_connect(&r, false, digest);
	write_all(i);
	first = read_all(i);
	irig_settle(&r, 100);
	wait_pins(&r, false);
	finish_all(i, first);
	irig_close(&r);
}

/* More connections than are looked at in each turn, busy and idle in turns; then silence costs nothing, and an end is noticed. */
static void hot(uint32_t engine, uint32_t mode, uint32_t spin_us)
{
	struct vs_worker_stats before, after;
	struct initiator *i[6];
	struct irig r;

	irig_poll_mode = mode;
	irig_spin_us = spin_us;
	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	for (int k = 0; k < 6; k++)
		i[k] = irig_connect(&r, k & 1, k & 2);
	for (uint32_t n = 0; n < 240; n++) {
		uint32_t lba = n * 16, k = n % 7 % 6;

		memset(now_is, (int)n, sizeof(now_is));
		CHECK(good(ini_write(i[k], lba, SMALL / 512, SMALL, now_is, n & 1 ? SMALL : 0)));
		CHECK(good(ini_read(i[(k + n) % 6], lba, SMALL / 512, SMALL, in)));
		CHECK(!memcmp(in, now_is, SMALL));
		if (n % 40 == 0)
			irig_settle(&r, 2);
	}
	if (mode != VS_POLL_ALWAYS) {
		usleep(20000);
		vs_worker_stats(r.core, 0, &before);
		usleep(100000);
		vs_worker_stats(r.core, 0, &after);
		CHECK(after.loops - before.loops < 10);
	}
	for (int k = 0; k < 6; k++) {
		shutdown(i[k]->fd, SHUT_WR);
		CHECK_EQ(ini_event(i[k]), VS_ICONN_PEER_CLOSED);
	}
	irig_close(&r);
	irig_poll_mode = VS_POLL_ADAPTIVE;
	irig_spin_us = 0;
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		alarm(120);
		for (int how = 0; how < HOWS; how++) {
			lent(engine, false, (enum how)how);
			lent(engine, true, (enum how)how);
		}
		not_lent(engine, true);
		not_lent(engine, false);
		hot(engine, VS_POLL_ADAPTIVE, 0);
		hot(engine, VS_POLL_ADAPTIVE, 300);
		hot(engine, VS_POLL_NEVER, 0);
		hot(engine, VS_POLL_ALWAYS, 50);
	}
	return 0;
}
