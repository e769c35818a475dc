// SPDX-License-Identifier: Apache-2.0
/* Commands of iSCSI in each state they can be in, and what then comes across them: task management, the end of their connection, a budget that is
 * used up, an initiator that does not read, an ORDERED command. */
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { BYTES = 1 << 20, WRITE_FINAL = 0xa1, WRITE_MORE = 0x21, READ = 0xc1, ORDERED = 2 };
static uint8_t out[BYTES], in[BYTES];

static bool good(struct outcome o) { return o.response == 0 && o.status == VS_STATUS_GOOD && !(o.flags & 6); }

/* ---- a command in each state -------------------------------------------------------------------------------------------------------------- */

enum state { HELD, HALF_HELD, IMMEDIATE_HALF, UNSOLICITED, ASKED, DATA_HALF, NO_BUFFER, TURN, IN_STORE, IN_PYTHON, STATES };
static const char *const names[STATES] = { "held", "half held", "half of the immediate data", "unsolicited data to come", "asked for data", "half of the data",
					   "no buffer", "waits for its turn", "in the store", "in Python" };

/* Brings command 40 into the state; 41 and up are others that are needed for it, and are still there. */
static void bring(struct irig *r, struct initiator *i, enum state state)
{
	uint8_t write[16], read[16], inquiry[16] = { 0x12, 0, 0, 0, 36 }, h[48];
	uint32_t sn = r->cmd_sn;
	struct rig_pdu p;

	cdb_rw(write, true, 0, 2);
	cdb_rw(read, false, 0, 2);
	switch (state) {
	case HELD:
		bhs_command(h, READ, 40, 1024, sn + 1, read, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		break;
	case HALF_HELD:
	case IMMEDIATE_HALF:
		bhs_command(h, WRITE_FINAL, 40, 1024, sn + (state == HALF_HELD), write, 10);
		h[6] = 4;
		ini_bytes(i, h, 48);
		ini_bytes(i, out, 300);
		break;
	case UNSOLICITED:
		bhs_command(h, WRITE_MORE, 40, 1024, sn, write, 10);
		ini_send(i, h, NULL, 0, out, 4);
		bhs_data_out(h, 0, 40, 0xffffffff, 0, 4);
		ini_send(i, h, NULL, 0, out, 4);
		break;
	case ASKED:
	case DATA_HALF:
		bhs_command(h, WRITE_FINAL, 40, 1024, sn, write, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		ini_recv(i, &p);
		CHECK_EQ(p.bhs[0], 0x31);
		if (state == DATA_HALF) {
			bhs_data_out(h, 0x80, 40, get32(p.bhs + 20), 0, 0);
			h[6] = 4;
			ini_bytes(i, h, 48);
			ini_bytes(i, out, 300);
		}
		break;
	case NO_BUFFER:
		/* One has the whole budget and waits for its data. */
		bhs_command(h, WRITE_FINAL, 41, 1024, sn, write, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		ini_recv(i, &p);
		CHECK_EQ(p.bhs[0], 0x31);
		for (uint32_t k = 0; k < 4; k++) { /* the first of several */
			bhs_command(h, READ, k ? 41 + k : 40, 1024, sn + 1 + k, read, 10);
			ini_send(i, h, NULL, 0, NULL, 0);
		}
		break;
	case TURN:
		bhs_command(h, WRITE_FINAL, 41, 512, sn, write, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		ini_recv(i, &p);
		bhs_command(h, 0xc0 | ORDERED, 40, 0, sn + 1, read, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		break;
	case IN_STORE:
		bhs_command(h, READ, 40, 1024, sn, read, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
		break;
	default:
		r->hold_tasks = true;
		bhs_command(h, READ, 40, 36, sn, inquiry, 6);
		ini_send(i, h, NULL, 0, NULL, 0);
		while (!r->ntasks)
			irig_pump(r, -1, 10);
		break;
	}
	irig_settle(r, 10);
}

static void open_for(struct irig *r, uint32_t engine, enum state state)
{
	irig_open(r, engine, state == IN_STORE ? 500000 : 0, 0);
	r->params.initial_r2t = state != UNSOLICITED;
	if (state == NO_BUFFER)
		r->params.buffer_limit = 1024;
	irig_session(r);
}

static bool without_unit(struct outcome o) { return o.status == VS_STATUS_CHECK_CONDITION && o.key == 5 && o.asc == 0x2500; }

/* An aborted command: no answer, what is still to come of it is thrown away, its number counts, and the session goes on. One whose unit is
 * taken away gets an answer. */
enum whom { ONE, ALL, LOST };
static void aborted(uint32_t engine, enum state state, enum whom whom)
{
	struct initiator *i, *other;
	uint8_t cdb[16], h[48], rest[1024] = { 0 };
	struct rig_pdu p;
	struct irig r;
	uint64_t matched;
	bool all = whom == ALL;

	open_for(&r, engine, state);
	i = irig_connect(&r, false, false);
	other = irig_connect(&r, false, false);
	bring(&r, i, state);
	r.tmf_response = whom == LOST ? VS_RESP_BAD_TARGET : 0;
	matched = irig_tmf(&r, VS_TMF_ABORT, all ? 0 : 40);
	r.tmf_response = 0;
	/* What Python has, Python ends. */
	CHECK_EQ(matched, state == IN_PYTHON ? 0 : !all ? 1 : state == NO_BUFFER ? 5 : state == TURN ? 2 : 1);
	if (state == IN_PYTHON) {
		struct vs_result result = { .task = r.tasks[0].task, .verdict = VS_VERDICT_ABORTED, .response = whom == LOST ? VS_RESP_BAD_TARGET : 0 };

		vs_core_post(r.core, &result, 1, NULL, 0);
		r.ntasks = 0;
		r.hold_tasks = false;
	}
	if (whom == LOST)
		CHECK(without_unit(ini_finish(i, 40, in, NULL, 0)));
	if (state == HALF_HELD || state == IMMEDIATE_HALF || state == DATA_HALF)
		ini_bytes(i, rest, 724);
	if (state == UNSOLICITED) {
		bhs_data_out(h, 0x80, 40, 0xffffffff, 1, 8);
		ini_send(i, h, NULL, 0, out, 4);
	}
	if (state == HELD || state == HALF_HELD) {
		bhs_plain(h, 0x00, 0x80, 60, r.cmd_sn);
		ini_send(other, h, NULL, 0, NULL, 0);
		ini_recv(other, &p);
		r.cmd_sn += 2;
	} else {
		r.cmd_sn += state == NO_BUFFER ? 5 : state == TURN ? 2 : 1;
	}
	if (state == NO_BUFFER && !all)
		CHECK_EQ(irig_tmf(&r, VS_TMF_ABORT, 41), 1); /* now the others have their turn */
	if (state == NO_BUFFER && !all)
		for (uint32_t k = 42; k <= 44; k++)
			CHECK(good(ini_finish(i, k, in, NULL, 0)));
	cdb_rw(cdb, false, 0, 2);
	bhs_command(h, READ, 40, 1024, r.cmd_sn++, cdb, 10); /* the tag is free again */
	ini_send(i, h, NULL, 0, NULL, 0);
	CHECK(good(ini_finish(i, 40, in, NULL, 0)));
	CHECK(!ini_recv_within(i, &p, 5));
	if (state != NO_BUFFER && state != TURN) { /* there another command is still waiting for its data */
		bhs_plain(h, 0x40, 0x80, 61, r.cmd_sn);
		ini_send(i, h, NULL, 0, NULL, 0);
		ini_recv(i, &p);
		CHECK_EQ(get32(p.bhs + 32), r.cmd_sn + r.params.queue_depth - 1);
	}
	irig_close(&r);
}

/* The connection goes. how: 0 from above, 1 after the initiator has closed, 2 half closed */
static void closed(uint32_t engine, enum state state, int how)
{
	struct initiator *i, *other;
	uint8_t h[48];
	struct rig_pdu p;
	struct irig r;
	uint64_t cookie;

	open_for(&r, engine, state);
	i = irig_connect(&r, false, false);
	other = irig_connect(&r, false, false);
	bring(&r, i, state);
	if (how) {
		shutdown(i->fd, how == 1 ? SHUT_RDWR : SHUT_WR);
		CHECK_EQ(ini_event(i), VS_ICONN_PEER_CLOSED);
	}
	cookie = irig_cookie(&r);
	CHECK_EQ(vs_iconn_close(i->conn, cookie), 0);
	i->conn = NULL;
	if (state == IN_PYTHON) {
		irig_settle(&r, 10);
		irig_answer_tasks(&r);
		r.hold_tasks = false;
	}
	irig_wait(&r, cookie);
	close(i->fd);
	/* The session goes on with the other one. */
	r.cmd_sn += state <= IMMEDIATE_HALF ? 0 : state == NO_BUFFER ? 5 : state == TURN ? 2 : 1;
	bhs_plain(h, 0x00, 0x80, 60, r.cmd_sn++);
	ini_send(other, h, NULL, 0, NULL, 0);
	ini_recv(other, &p);
	CHECK_EQ(get32(p.bhs + 32), r.cmd_sn + r.params.queue_depth - 1);
	CHECK(good(ini_read(other, 0, 2, 1024, in)));
	irig_close(&r);
}

/* A result that waits for a socket which is full. */
static void sending(uint32_t engine, bool tcp, bool close_it)
{
	struct initiator *i;
	struct irig r;
	struct rig_pdu p;
	uint8_t cdb[16];
	uint32_t first;

	irig_open(&r, engine, 0, 0);
	r.params.buffer_limit = 4 << 20;
	irig_session(&r);
	i = tcp ? irig_connect_tcp(&r) : irig_connect(&r, false, false);
	cdb_rw(cdb, false, 0, 2048);
	first = r.itt;
	for (int k = 0; k < 32; k++)
		ini_start(i, cdb, 10, READ, BYTES, NULL, 0);
	while (!irig_tmf(&r, VS_TMF_QUERY, first + 31)) /* it is not read: one is, and waits for the socket */
		irig_settle(&r, 5);
	if (close_it) {
		irig_disconnect(i);
		irig_close(&r);
		return;
	}
	for (uint32_t k = 0; k < 32; k++)
		CHECK(good(ini_finish(i, first + k, in, NULL, 0)));
	CHECK(!ini_recv_within(i, &p, 5));
	irig_close(&r);
}

/* ---- limits ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Many commands, hardly any budget: all of them end, whatever they hold while they wait. */
static void little_budget(uint32_t engine, bool unsolicited, uint64_t limit)
{
	struct initiator *i;
	struct irig r;
	struct rig_pdu p;
	uint8_t cdb[16], h[48];
	uint32_t first, left = 24;

	irig_open(&r, engine, 0, 0);
	r.params.initial_r2t = !unsolicited;
	r.params.buffer_limit = limit;
	irig_session(&r);
	i = irig_connect(&r, false, true);
	first = r.itt;
	for (uint32_t k = 0; k < left; k++) {
		bool write = k % 3 != 2, more = unsolicited && k % 2;
		uint32_t blocks = k % 5 == 4 ? 512 : 128;
		uint32_t itt;

		cdb_rw(cdb, write, k * 512, blocks);
		itt = ini_start(i, cdb, 10, write ? (more ? WRITE_MORE : WRITE_FINAL) : READ, blocks * 512, out, write ? 4096 : 0);
		if (write && more) {
			bhs_data_out(h, 0, itt, 0xffffffff, 0, 4096);
			ini_send(i, h, NULL, 0, out + 4096, 8192);
			bhs_data_out(h, 0x80, itt, 0xffffffff, 1, 12288);
			ini_send(i, h, NULL, 0, out + 12288, 4096);
		}
	}
	while (left) {
		ini_recv(i, &p);
		CHECK(get32(p.bhs + 16) - first < 24);
		if (p.bhs[0] == 0x31) {
			uint32_t offset = get32(p.bhs + 40), n = get32(p.bhs + 44);

			bhs_data_out(h, 0x80, get32(p.bhs + 16), get32(p.bhs + 20), 0, offset);
			ini_send(i, h, NULL, 0, out + offset, n);
		} else if (p.bhs[0] == 0x21 || p.bhs[1] & 1) {
			CHECK_EQ(p.bhs[3], VS_STATUS_GOOD);
			left--;
		}
	}
	for (uint32_t k = 0; k < 24; k++)
		if (k % 3 != 2) {
			uint32_t n = (k % 5 == 4 ? 512 : 128) * 512;

			CHECK(good(ini_read(i, k * 512, n / 512, n, in)));
			CHECK(!memcmp(in, out, n));
		}
	irig_close(&r);
}

/* Somebody who asks and asks and never reads: after a while nobody reads what he sends, and nothing is lost when he does. */
static void never_reads(uint32_t engine, bool tcp)
{
	uint8_t h[48], data[8192] = { 0 };
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint32_t sent = 0, at = 0;
	struct vs_worker_stats before, after;
	uint8_t pdu[48 + sizeof(data)];

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = tcp ? irig_connect_tcp(&r) : irig_connect(&r, false, false);
	for (int idle = 0; idle < 50;) {
		ssize_t n;

		if (!at) {
			bhs_plain(h, 0x40, 0x80, sent, 0);
			h[6] = sizeof(data) >> 8;
			memcpy(pdu, h, 48);
			memset(pdu + 48, (int)sent, sizeof(data));
		}
		n = send(i->fd, pdu + at, sizeof(pdu) - at, MSG_DONTWAIT);
		if (n < 0) {
			irig_settle(&r, 2);
			idle++;
			continue;
		}
		idle = 0;
		at += (uint32_t)n;
		if (at == sizeof(pdu)) {
			at = 0;
			sent++;
		}
		CHECK(sent < 4000); /* 32 MB */
	}
	/* It costs no time either. */
	vs_worker_stats(r.core, 0, &before);
	usleep(50000);
	vs_worker_stats(r.core, 0, &after);
	CHECK(after.loops - before.loops < 10);
	for (uint32_t k = 0; k < sent; k++) {
		ini_recv(i, &p);
		CHECK(get32(p.bhs + 16) == k && p.length == sizeof(data) && p.data[0] == (uint8_t)k);
	}
	ini_bytes(i, pdu + at, at ? sizeof(pdu) - at : 0);
	if (at)
		ini_recv(i, &p);
	CHECK(good(ini_read(i, 0, 1, 512, in)));
	irig_close(&r);
}

/* No more than 16 PDUs of a connection in Python's hands; another connection goes on, and the rest comes later. */
static void many_for_python(uint32_t engine)
{
	struct initiator *i, *other;
	struct vs_worker_stats before, after;
	struct irig r;
	uint8_t h[48];

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	other = irig_connect(&r, false, false);
	r.hold_pdus = true;
	for (uint32_t k = 0; k < 50; k++) {
		bhs_plain(h, 0x44, 0x80, k, 0);
		ini_send(i, h, NULL, 0, "abc", 3);
	}
	while (r.pdus_seen < 16)
		irig_pump(&r, -1, 10);
	irig_settle(&r, 20);
	CHECK_EQ(r.pdus_seen, 16);
	CHECK(good(ini_read(other, 0, 1, 512, in)));
	shutdown(i->fd, SHUT_WR);
	vs_worker_stats(r.core, 0, &before);
	usleep(50000);
	vs_worker_stats(r.core, 0, &after);
	CHECK(after.loops - before.loops < 10);
	irig_answer_pdus(&r);
	while (r.pdus_seen < 32)
		irig_pump(&r, -1, 10);
	irig_settle(&r, 20);
	CHECK_EQ(r.pdus_seen, 32);
	r.hold_pdus = false;
	while (r.pdus_seen < 50)
		irig_pump(&r, -1, 10);
	for (uint32_t k = 0; k < 50; k++)
		CHECK_EQ(r.pdu_tags[k], k);
	CHECK_EQ(ini_event(i), VS_ICONN_PEER_CLOSED);
	/* Closed while Python still has some. */
	r.hold_pdus = true;
	for (uint32_t k = 0; k < 5; k++) {
		bhs_plain(h, 0x44, 0x80, k, 0);
		ini_send(other, h, NULL, 0, NULL, 0);
	}
	while (r.npdus < 5)
		irig_pump(&r, -1, 10);
	{
		uint64_t cookie = irig_cookie(&r);

		CHECK_EQ(vs_iconn_close(other->conn, cookie), 0);
		other->conn = NULL;
		irig_settle(&r, 10);
		irig_answer_pdus(&r);
		irig_wait(&r, cookie);
		close(other->fd);
	}
	irig_close(&r);
}

/* Immediate commands are beside the window, but not without end. */
static void many_immediate(uint32_t engine)
{
	uint8_t cdb[16], h[48];
	uint32_t rejected = 0, ended = 0;
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;

	irig_open(&r, engine, 30000, 0);
	r.params.queue_depth = 2;
	irig_session(&r);
	i = irig_connect(&r, false, false);
	cdb_rw(cdb, false, 0, 1);
	for (uint32_t k = 0; k < 30; k++) {
		bhs_command(h, READ, k, 512, r.cmd_sn, cdb, 10);
		h[0] |= 0x40;
		ini_send(i, h, NULL, 0, NULL, 0);
	}
	for (uint32_t k = 0; k < 2; k++) /* the window is not touched by them */
		ini_start(i, cdb, 10, READ, 512, NULL, 0);
	for (uint32_t k = 0; k < 32; k++) {
		ini_recv(i, &p);
		rejected += p.bhs[0] == 0x3f && p.bhs[2] == 0x06;
		ended += p.bhs[0] == 0x25;
	}
	CHECK(rejected == 14 && ended == 18);
	irig_close(&r);
}

/* As many tasks in Python's hands as the session has credit; more get TASK SET FULL. */
static void credit(uint32_t engine)
{
	uint8_t cdb[16] = { 0x12, 0, 0, 0, 36 };
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	r.params.credit = 4;
	irig_session(&r);
	i = irig_connect(&r, false, false);
	r.hold_tasks = true;
	for (int k = 0; k < 6; k++)
		ini_start(i, cdb, 6, READ, 36, NULL, 0);
	for (int k = 0; k < 2; k++) {
		ini_recv(i, &p);
		CHECK(p.bhs[0] == 0x21 && p.bhs[3] == VS_STATUS_TASK_SET_FULL);
	}
	while (r.ntasks < 4)
		irig_pump(&r, -1, 10);
	irig_settle(&r, 10);
	CHECK_EQ(r.ntasks, 4);
	r.hold_tasks = false;
	for (int k = 0; k < 4; k++) {
		ini_recv(i, &p);
		CHECK(p.bhs[0] == 0x25 && p.length == 36);
	}
	irig_close(&r);
}

/* What Python sends goes out in order, numbered here; the last one ends the connection behind it. */
static void said_by_python(uint32_t engine)
{
	uint8_t h[48] = { 0x24, 0x80 }, cdb[16];
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint8_t byte;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, true, true);
	CHECK_EQ(vs_iconn_send(i->conn, h, out, 8193, VS_ISEND_STATUS), -EINVAL); /* more than the initiator takes */
	put32(h + 16, 1);
	CHECK_EQ(vs_iconn_send(i->conn, h, (const uint8_t *)"text", 4, VS_ISEND_STATUS), 0);
	ini_recv(i, &p);
	CHECK(p.bhs[0] == 0x24 && get32(p.bhs + 16) == 1 && p.length == 4 && !memcmp(p.data, "text", 4));
	CHECK(get32(p.bhs + 28) == r.cmd_sn && get32(p.bhs + 32) == r.cmd_sn + 31);
	/* A ping of ours tells the next StatSN and does not take it: 11.19.4. */
	h[0] = 0x20;
	CHECK_EQ(vs_iconn_send(i->conn, h, NULL, 0, 0), 0);
	{
		uint32_t next = i->stat_sn;

		ini_recv(i, &p);
		CHECK_EQ(get32(p.bhs + 24), next);
		i->stat_sn = next;
	}
	/* A shorter segment holds from now on. */
	CHECK_EQ(vs_iconn_set_max_send(i->conn, 511), -EINVAL);
	CHECK_EQ(vs_iconn_set_max_send(i->conn, 512), 0);
	i->max_send = 512;
	CHECK(good(ini_read(i, 0, 8, 4096, in)));
	/* Nothing comes behind the last one, whatever is asked. */
	h[0] = 0x26;
	CHECK_EQ(vs_iconn_send(i->conn, h, NULL, 0, VS_ISEND_STATUS | VS_ISEND_CLOSE), 0);
	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x26);
	CHECK_EQ(ini_event(i), VS_ICONN_SENT_LAST);
	cdb_rw(cdb, false, 0, 1);
	ini_start(i, cdb, 10, READ, 512, NULL, 0);
	CHECK_EQ(vs_iconn_send(i->conn, h, NULL, 0, VS_ISEND_STATUS), 0);
	CHECK_EQ(recv(i->fd, &byte, 1, 0), 0);
	irig_close(&r);
}

/* ---- order ---------------------------------------------------------------------------------------------------------------------------------------------- */

/* write 0 (its data are late) | ORDERED read | read | HEAD OF QUEUE read: only the last may overtake. */
static void ordered(uint32_t engine, bool no_budget)
{
	uint8_t write[16], read[16], h[48];
	struct initiator *i;
	struct rig_pdu r2t, p;
	struct irig r;
	uint32_t ttt;

	irig_open(&r, engine, 0, 0);
	if (no_budget)
		r.params.buffer_limit = 512;
	irig_session(&r);
	i = irig_connect(&r, false, false);
	memset(out, 0x77, 512);
	cdb_rw(write, true, 0, 1);
	cdb_rw(read, false, 0, 1);
	bhs_command(h, WRITE_FINAL, 10, 512, r.cmd_sn++, write, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	ini_recv(i, &r2t);
	ttt = get32(r2t.bhs + 20);
	for (uint32_t k = 11; k < 14; k++) {
		bhs_command(h, k == 11 ? 0xc0 | ORDERED : READ, k, 512, r.cmd_sn++, read, 10);
		ini_send(i, h, NULL, 0, NULL, 0);
	}
	bhs_command(h, 0xc3, 14, 0, r.cmd_sn++, read, 10); /* HEAD OF QUEUE, and it needs no buffer */
	ini_send(i, h, NULL, 0, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(get32(p.bhs + 16), 14);
	CHECK(!ini_recv_within(i, &p, 20));
	bhs_data_out(h, 0x80, 10, ttt, 0, 0);
	ini_send(i, h, NULL, 0, out, 512);
	ini_recv(i, &p);
	CHECK(p.bhs[0] == 0x21 && get32(p.bhs + 16) == 10);
	for (uint32_t k = 11; k < 14; k++) {
		ini_recv(i, &p);
		CHECK(p.bhs[0] == 0x25 && p.data[0] == 0x77);
		if (k == 11)
			CHECK_EQ(get32(p.bhs + 16), 11);
	}
	irig_close(&r);
}

/* Each of several busy connections is served while the others are. */
static void fair(uint32_t engine)
{
	struct initiator *i[4];
	struct irig r;
	uint8_t cdb[16];
	uint32_t served[4] = { 0 };
	struct rig_pdu p;

	irig_open(&r, engine, 0, 0);
	r.params.queue_depth = 128;
	irig_session(&r);
	for (int k = 0; k < 4; k++)
		i[k] = irig_connect(&r, false, false);
	cdb_rw(cdb, false, 0, 256);
	for (int n = 0; n < 20; n++)
		for (int k = 0; k < 4; k++)
			ini_start(i[k], cdb, 10, READ, 131072, NULL, 0);
	/* One reads much more slowly than the others: it holds up nobody but itself. */
	for (int turn = 0; served[1] + served[2] + served[3] < 60; turn++) {
		CHECK(turn < 1000000);
		for (int k = turn % 64 ? 1 : 0; k < 4; k++)
			if (ini_recv_within(i[k], &p, 0) && p.bhs[1] & 1)
				served[k]++;
	}
	CHECK(served[0] < 20);
	while (served[0] < 20) {
		ini_recv(i[0], &p);
		served[0] += p.bhs[1] & 1;
	}
	irig_close(&r);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		for (int s = 0; s < STATES; s++) {
			alarm(60);
			if (getenv("STATES_VERBOSE"))
				fprintf(stderr, "%s\n", names[s]);
			for (int whom = ONE; whom <= LOST; whom++)
				aborted(engine, (enum state)s, (enum whom)whom);
			for (int how = 0; how < 3; how++)
				closed(engine, (enum state)s, how);
		}
		alarm(300);
		for (int k = 0; k < 4; k++)
			sending(engine, k & 1, k & 2);
		little_budget(engine, false, 1 << 20);
		little_budget(engine, true, 1 << 20);
		little_budget(engine, true, 65536);
		little_budget(engine, true, 1);
		never_reads(engine, false);
		never_reads(engine, true);
		many_for_python(engine);
		many_immediate(engine);
		credit(engine);
		ordered(engine, false);
		ordered(engine, true);
		fair(engine);
		said_by_python(engine);
	}
	return 0;
}
