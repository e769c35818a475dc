// SPDX-License-Identifier: Apache-2.0
/* Where a PDU of iSCSI stands among all of its session, numbers that are taken as received, and how long commands took. */
#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { BYTES = 1024, READ = 0xc1 };
static uint8_t out[BYTES], in[BYTES];

static bool good(struct outcome o) { return o.response == 0 && o.status == VS_STATUS_GOOD && !(o.flags & 6); }

/* ---- by number ------------------------------------------------------------------------------------------------------------------------------ */

static void read_at(struct initiator *i, uint32_t itt, uint32_t sn)
{
	uint8_t cdb[16], h[48];

	cdb_rw(cdb, false, 0, 2);
	bhs_command(h, READ, itt, 1024, sn, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
}

/* Of three reads the one whose number is below that of an immediate PDU, though all came before anybody looked. */
static void what_came_before(uint32_t engine)
{
	struct vs_ipdu_info info;
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint8_t h[48];

	irig_open(&r, engine, 50000, 0);
	r.params.exp_cmd_sn = r.cmd_sn = 0xffffffff; /* the next is 0 */
	irig_session(&r);
	i = irig_connect(&r, false, false);
	r.hold_pdus = true;
	bhs_plain(h, 0x42, 0x82, 60, 0);
	ini_send(i, h, NULL, 0, NULL, 0);
	read_at(i, 41, 0);
	read_at(i, 42, 1);
	read_at(i, 40, 0xffffffff);
	while (!r.npdus)
		irig_pump(&r, -1, 10);
	irig_settle(&r, 10);
	vs_ipdu_info(r.pdus[0], &info);
	r.tmf_before = info.order;
	CHECK_EQ(irig_tmf(&r, VS_TMF_QUERY, 0), 1);
	CHECK_EQ(irig_tmf(&r, VS_TMF_QUERY, 41), 0);
	CHECK_EQ(irig_tmf(&r, VS_TMF_ABORT, 0), 1);
	CHECK(good(ini_finish(i, 41, in, NULL, 0)));
	CHECK(good(ini_finish(i, 42, in, NULL, 0)));
	CHECK(!ini_recv_within(i, &p, 5));
	irig_answer_pdus(&r);
	irig_close(&r);
}

static uint64_t plug(struct irig *r, uint32_t first, uint32_t end)
{
	uint64_t cookie = irig_cookie(r);

	r->matched = 0;
	CHECK_EQ(vs_isession_plug(r->session, first, end, cookie), 0);
	irig_wait(r, cookie);
	return r->matched;
}

/* Numbers that are taken as received: what waits behind them goes on, what comes with them is dropped, what is outside the window is left. */
static void plugged(uint32_t engine)
{
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint8_t h[48];
	uint32_t sn;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	sn = r.cmd_sn;
	read_at(i, 41, sn + 2);
	CHECK(!ini_recv_within(i, &p, 5));
	CHECK_EQ(plug(&r, sn - 10, sn), 0);
	CHECK_EQ(plug(&r, sn + 1, sn + 3), 1); /* the other one has come */
	CHECK(!ini_recv_within(i, &p, 5));
	CHECK_EQ(plug(&r, sn - 1, sn + 3), 1);
	CHECK(good(ini_finish(i, 41, in, NULL, 0)));
	read_at(i, 42, sn);
	read_at(i, 43, sn + 1);
	bhs_plain(h, 0x40, 0x80, 61, sn + 3);
	ini_send(i, h, NULL, 0, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(get32(p.bhs + 16), 61);
	CHECK_EQ(get32(p.bhs + 28), sn + 3);
	CHECK_EQ(get32(p.bhs + 32), sn + 3 + r.params.queue_depth - 1);
	CHECK_EQ(plug(&r, sn + 3 + r.params.queue_depth, sn + 3 + 2 * r.params.queue_depth), 0);
	read_at(i, 44, sn + 3);
	CHECK(good(ini_finish(i, 44, in, NULL, 0)));
	irig_close(&r);
}

/* ---- what it took --------------------------------------------------------------------------------------------------------------------------- */

static void measured(uint32_t engine)
{
	struct vs_iconn_info info;
	struct initiator *i;
	struct irig r;

	irig_open(&r, engine, 3000, 20000);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	for (int k = 0; k < 5; k++)
		CHECK(good(ini_read(i, 0, 2, 1024, in)));
	CHECK(good(ini_write(i, 0, 2, 1024, out, 1024)));
	vs_iconn_info(i->conn, &info);
	CHECK_EQ(info.latency[0].count, 5);
	CHECK_EQ(info.latency[1].count, 1);
	CHECK_EQ(info.latency[2].count, 0);
	for (int k = 0; k < 2; k++) {
		const struct vs_ilatency_info *l = &info.latency[k];
		uint64_t least = k ? 20000000 : 3000000, sum = 0;

		CHECK(l->min_ns >= least && l->min_ns <= l->max_ns && l->total_ns >= l->count * l->min_ns && l->total_ns <= l->count * l->max_ns);
		for (int b = 0; b < 24; b++) {
			sum += l->buckets[b];
			/* less than 2^b us */
			CHECK(!l->buckets[b] || (l->min_ns / 1000 < UINT64_C(1) << b && (b == 0 || l->max_ns / 1000 >= UINT64_C(1) << (b - 1))));
		}
		CHECK_EQ(sum, l->count);
	}
	irig_close(&r);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		what_came_before(engine);
		plugged(engine);
		measured(engine);
	}
	return 0;
}
