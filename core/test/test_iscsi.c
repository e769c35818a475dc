// SPDX-License-Identifier: Apache-2.0
/* The full-feature phase as an initiator sees it: numbers, data in both directions, residuals, digests, several connections, what is refused. */
#include <stdlib.h>

#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum { BYTES = 1 << 20 };
static uint8_t out[BYTES], in[BYTES];

static void fill(uint8_t seed)
{
	for (uint32_t i = 0; i < BYTES; i++)
		out[i] = (uint8_t)(i * 31 + i / 251 + seed);
}

static void good(struct outcome o)
{
	CHECK_EQ(o.response, 0);
	CHECK_EQ(o.status, VS_STATUS_GOOD);
	CHECK_EQ(o.flags & 6, 0);
	CHECK_EQ(o.residual, 0);
}

static void sense(struct outcome o, uint32_t key, uint32_t asc)
{
	CHECK_EQ(o.status, VS_STATUS_CHECK_CONDITION);
	CHECK_EQ(o.key, key);
	CHECK_EQ(o.asc, asc);
}

static void expect_reject(struct initiator *i, uint8_t reason, const uint8_t *bhs)
{
	struct rig_pdu p;

	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x3f);
	CHECK_EQ(p.bhs[2], reason);
	CHECK_EQ(get32(p.bhs + 16), 0xffffffff);
	CHECK_EQ(p.length, 48);
	CHECK(!memcmp(p.data + 8, bhs + 8, 40));
}

/* ---- reads and writes ------------------------------------------------------------------------------------------------------------------- */

static void transfers(uint32_t engine, bool header_digest, bool data_digest, bool tcp)
{
	struct initiator *i;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = tcp ? irig_connect_tcp(&r) : irig_connect(&r, header_digest, data_digest);
	for (uint32_t immediate = 0; immediate <= 16384; immediate += 8192) {
		fill((uint8_t)immediate);
		good(ini_write(i, 3, 2048, BYTES, out, immediate)); /* many R2Ts, and a last one */
		good(ini_read(i, 3, 2048, BYTES, in));
		CHECK(!memcmp(in, out, BYTES));
	}
	good(ini_write(i, 9, 1, 512, out + 77, 512)); /* all of it immediate */
	good(ini_read(i, 9, 1, 512, in));
	CHECK(!memcmp(in, out + 77, 512));
	good(ini_write(i, 9, 0, 0, out, 0)); /* nothing at all */
	good(ini_read(i, 9, 0, 0, in));
	irig_close(&r);
}

/* A byte at a time, and many PDUs at once: where reads of the socket end is nobody's business. */
static void cuts(uint32_t engine)
{
	uint8_t cdb[16], h[48], block[512];
	struct initiator *i;
	struct irig r;
	uint32_t first;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	fill(1);
	cdb_rw(cdb, true, 5, 1);
	bhs_command(h, 0xa1, 1, 512, r.cmd_sn++, cdb, 10);
	h[6] = 2; /* 512 immediate bytes */
	memcpy(block, out, sizeof(block));
	for (int k = 0; k < 48; k++, irig_pump(&r, -1, 0))
		ini_bytes(i, h + k, 1);
	for (int k = 0; k < 512; k++)
		ini_bytes(i, block + k, 1);
	good(ini_finish(i, 1, NULL, NULL, 0));
	cdb_rw(cdb, false, 5, 1);
	first = r.itt;
	for (int k = 0; k < 30; k++)
		ini_start(i, cdb, 10, 0xc1, 512, NULL, 0);
	for (uint32_t k = 0; k < 30; k++) {
		good(ini_finish(i, first + k, in, NULL, 0));
		CHECK(!memcmp(in, out, 512));
	}
	irig_close(&r);
}

/* InitialR2T=No: the first burst comes by itself, the rest is asked for. */
static void unsolicited(uint32_t engine, bool digests)
{
	struct initiator *i;
	struct irig r;
	uint8_t cdb[16], h[48];

	irig_open(&r, engine, 0, 0);
	r.params.initial_r2t = 0;
	irig_session(&r);
	i = irig_connect(&r, digests, digests);
	fill(2);
	cdb_rw(cdb, true, 0, 64);
	for (uint32_t immediate = 0; immediate <= 4096; immediate += 4096) {
		uint32_t itt = ini_start(i, cdb, 10, 0x21, 32768, out, immediate), sn = 0;

		for (uint32_t at = immediate; at < 16384; at += 4096, sn++) {
			bhs_data_out(h, at + 4096 == 16384 ? 0x80 : 0, itt, 0xffffffff, sn, at);
			ini_send(i, h, NULL, 0, out + at, 4096);
		}
		good(ini_finish(i, itt, NULL, out, 32768));
		good(ini_read(i, 0, 64, 32768, in));
		CHECK(!memcmp(in, out, 32768));
	}
	/* Less than the first burst, ended by an empty PDU: the rest is asked for. */
	{
		uint32_t itt = ini_start(i, cdb, 10, 0x21, 32768, out, 512);

		bhs_data_out(h, 0x80, itt, 0xffffffff, 0, 512);
		ini_send(i, h, NULL, 0, NULL, 0);
		good(ini_finish(i, itt, NULL, out, 32768));
	}
	irig_close(&r);
}

static void residuals(uint32_t engine)
{
	uint8_t cdb[16] = { 0x12, 0, 0, 0, 96 }, h[48];
	struct initiator *i;
	struct outcome o;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	fill(3);
	o = ini_read(i, 0, 1, 4096, in);
	CHECK(o.status == 0 && (o.flags & 6) == 2 && o.residual == 3584 && o.data_length == 512);
	o = ini_read(i, 0, 4, 512, in);
	CHECK(o.status == 0 && (o.flags & 6) == 4 && o.residual == 1536 && o.data_length == 512);
	o = ini_write(i, 0, 1, 4096, out, 1024);
	CHECK(o.status == 0 && (o.flags & 6) == 2 && o.residual == 3584);
	o = ini_write(i, 0, 4, 512, out, 0);
	CHECK(o.status == 0 && (o.flags & 6) == 4 && o.residual == 1536);
	o = ini_read(i, RIG_BLOCKS, 4, 2048, in);
	sense(o, VS_SK_ILLEGAL_REQUEST, 0x2100);
	CHECK((o.flags & 6) == 2 && o.residual == 2048 && o.data_length == 0);
	o = ini_finish(i, ini_start(i, cdb, 6, 0xc1, 96, NULL, 0), in, NULL, 0); /* Python's answer is shorter */
	CHECK(o.status == 0 && (o.flags & 6) == 2 && o.residual == 60 && o.data_length == 36);
	o = ini_finish(i, ini_start(i, cdb, 6, 0xc1, 5, NULL, 0), in, NULL, 0); /* and longer */
	CHECK(o.status == 0 && (o.flags & 6) == 4 && o.residual == 31 && o.data_length == 5 && in[4] == 31);
	/* More than one command may move: only what the CDB asks for counts. */
	o = ini_read(i, 0, 1, 0xffffffff, in);
	CHECK(o.status == 0 && (o.flags & 6) == 2 && o.residual == 0xffffffff - 512 && o.data_length == 512);
	/* Both directions at once is refused, and its number counts. */
	cdb_rw(cdb, false, 0, 1);
	bhs_command(h, 0xe1, 900, 512, r.cmd_sn++, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	expect_reject(i, 0x05, h);
	good(ini_read(i, 0, 1, 512, in));
	irig_close(&r);
}

static void too_large(uint32_t engine)
{
	struct initiator *i;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	r.params.max_transfer = 65536;
	irig_session(&r);
	i = irig_connect(&r, false, false);
	sense(ini_read(i, 0, 256, 131072, in), VS_SK_ILLEGAL_REQUEST, 0x2400);
	sense(ini_write(i, 0, 256, 131072, out, 0), VS_SK_ILLEGAL_REQUEST, 0x2400);
	good(ini_read(i, 0, 128, 65536, in));
	irig_close(&r);
}

/* ---- numbers --------------------------------------------------------------------------------------------------------------------------------- */

static void window(uint32_t engine)
{
	uint8_t cdb[16], h[48];
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint32_t max = 0, base;

	irig_open(&r, engine, 1000, 0); /* all four are taken before the first is answered */
	r.params.queue_depth = 4;
	irig_session(&r);
	i = irig_connect(&r, false, false);
	cdb_rw(cdb, false, 0, 1);
	base = r.cmd_sn;
	for (int round = 0; round < 10; round++) {
		i->corked = true;
		for (int k = 0; k < 4; k++)
			ini_start(i, cdb, 10, 0xc1, 512, NULL, 0);
		ini_uncork(i);
		for (int k = 0; k < 4; k++) {
			ini_recv(i, &p);
			CHECK_EQ(get32(p.bhs + 28), r.cmd_sn);
			CHECK((int32_t)(get32(p.bhs + 32) - max) >= 0 || (!round && !k));
			max = get32(p.bhs + 32);
			/* Honest: never more than the depth beside what has no status. */
			CHECK_EQ(max, r.cmd_sn - 1 + (uint32_t)k + 1);
		}
	}
	/* What is outside of the window, and what was there, is dropped without a word. */
	bhs_command(h, 0xc1, 9000, 512, base, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	bhs_command(h, 0xc1, 9001, 512, r.cmd_sn + 4, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	bhs_plain(h, 0x00, 0x80, 9002, r.cmd_sn - 1);
	ini_send(i, h, NULL, 0, "abc", 3);
	CHECK(!ini_recv_within(i, &p, 30));
	good(ini_read(i, 0, 1, 512, in));
	/* A number twice while the one before it is missing: the first counts. */
	bhs_command(h, 0xc1, 9100, 512, r.cmd_sn + 1, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	bhs_command(h, 0xc1, 9101, 512, r.cmd_sn + 1, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	CHECK(!ini_recv_within(i, &p, 30));
	bhs_command(h, 0xc1, 9102, 512, r.cmd_sn, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(get32(p.bhs + 16), 9102);
	ini_recv(i, &p);
	CHECK_EQ(get32(p.bhs + 16), 9100);
	r.cmd_sn += 2;
	CHECK(!ini_recv_within(i, &p, 30));
	good(ini_read(i, 0, 1, 512, in));
	irig_close(&r);
}

/* Two connections: what comes early waits, of every kind, and goes on in order. */
static void out_of_order(uint32_t engine, bool digests)
{
	struct initiator *a, *b;
	uint8_t cdb[16], h[48];
	struct rig_pdu p;
	struct irig r;
	uint32_t sn;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	a = irig_connect(&r, digests, digests);
	b = irig_connect(&r, digests, digests);
	sn = r.cmd_sn;
	fill(4);
	bhs_plain(h, 0x04, 0x80, 70, sn + 4); /* Text */
	ini_send(a, h, NULL, 0, "k=v", 4);
	bhs_plain(h, 0x00, 0x80, 71, sn + 3); /* NOP-Out */
	ini_send(a, h, NULL, 0, "ping", 4);
	cdb_rw(cdb, true, 1, 1);
	bhs_command(h, 0xa1, 72, 512, sn + 2, cdb, 10); /* with all its data */
	ini_send(b, h, NULL, 0, out, 512);
	cdb_rw(cdb, false, 1, 1);
	bhs_command(h, 0xc1, 74, 512, sn + 5, cdb, 10);
	ini_send(b, h, NULL, 0, NULL, 0);
	bhs_plain(h, 0x04, 0x80, 73, sn + 1);
	ini_send(b, h, NULL, 0, "a=b", 4);
	CHECK(!ini_recv_within(a, &p, 30));
	CHECK(!ini_recv_within(b, &p, 0));
	CHECK_EQ(r.pdus_seen, 0);
	/* Immediate ones do not wait, and say what was acknowledged. */
	bhs_plain(h, 0x40, 0x80, 75, sn);
	ini_send(a, h, NULL, 0, "x", 1);
	ini_recv(a, &p);
	CHECK(get32(p.bhs + 16) == 75 && get32(p.bhs + 28) == sn && p.length == 1 && p.data[0] == 'x');
	/* The gap closes. */
	bhs_plain(h, 0x00, 0x80, 76, sn);
	ini_send(b, h, NULL, 0, NULL, 0);
	ini_recv(b, &p);
	CHECK(p.bhs[0] == 0x20 && get32(p.bhs + 16) == 76);
	ini_recv(b, &p);
	CHECK(p.bhs[0] == 0x21 && get32(p.bhs + 16) == 72 && get32(p.bhs + 28) == sn + 6);
	ini_recv(b, &p);
	CHECK(p.bhs[0] == 0x25 && get32(p.bhs + 16) == 74);
	CHECK(!memcmp(p.data, out, 512)); /* the read came after the write */
	ini_recv(a, &p);
	CHECK(p.bhs[0] == 0x20 && get32(p.bhs + 16) == 71 && p.length == 4);
	irig_settle(&r, 5);
	CHECK_EQ(r.pdus_seen, 2);
	CHECK(r.pdu_tags[0] == 73 && r.pdu_tags[1] == 74 - 4);
	r.cmd_sn = sn + 6;
	/* A connection goes with what was not acknowledged; the numbers are sent again on the other one. */
	bhs_command(h, 0xc1, 80, 512, r.cmd_sn + 1, cdb, 10);
	ini_send(a, h, NULL, 0, NULL, 0);
	bhs_plain(h, 0x00, 0x80, 81, r.cmd_sn + 2);
	ini_send(a, h, NULL, 0, "gone", 4);
	bhs_plain(h, 0x04, 0x80, 82, r.cmd_sn + 3);
	ini_send(a, h, NULL, 0, "gone", 4);
	irig_settle(&r, 20);
	irig_disconnect(a);
	bhs_command(h, 0xc1, 80, 512, r.cmd_sn + 1, cdb, 10);
	ini_send(b, h, NULL, 0, NULL, 0);
	CHECK(!ini_recv_within(b, &p, 20));
	bhs_command(h, 0xc1, 79, 512, r.cmd_sn, cdb, 10);
	ini_send(b, h, NULL, 0, NULL, 0);
	good(ini_finish(b, 79, in, NULL, 0));
	good(ini_finish(b, 80, in, NULL, 0));
	r.cmd_sn += 2;
	good(ini_read(b, 0, 1, 512, in));
	CHECK_EQ(r.pdus_seen, 2);
	irig_close(&r);
}

/* A PDU that is half there when its connection goes: its number is free again. */
static void half_a_pdu(uint32_t engine)
{
	struct initiator *a, *b;
	uint8_t cdb[16], h[48];
	struct rig_pdu p;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	a = irig_connect(&r, false, false);
	b = irig_connect(&r, false, false);
	cdb_rw(cdb, true, 0, 1);
	for (int kind = 0; kind < 3; kind++) {
		if (kind == 0)
			bhs_command(h, 0xa1, 10, 512, r.cmd_sn, cdb, 10);
		else
			bhs_plain(h, kind == 1 ? 0x00 : 0x04, 0x80, 10, r.cmd_sn);
		h[6] = 2;
		ini_bytes(a, h, 48);
		ini_bytes(a, out, 100);
		irig_settle(&r, 10);
		/* The next one waits: before it is whole nobody knows whether this one is. */
		bhs_plain(h, 0x00, 0x80, 11, r.cmd_sn + 1);
		ini_send(b, h, NULL, 0, NULL, 0);
		CHECK(!ini_recv_within(b, &p, 10));
		irig_disconnect(a);
		bhs_plain(h, 0x00, 0x80, 12, r.cmd_sn);
		ini_send(b, h, NULL, 0, NULL, 0);
		ini_recv(b, &p);
		CHECK_EQ(get32(p.bhs + 16), 12);
		ini_recv(b, &p);
		CHECK_EQ(get32(p.bhs + 16), 11);
		r.cmd_sn += 2;
		a = irig_connect(&r, false, false);
	}
	good(ini_read(a, 0, 1, 512, in));
	CHECK_EQ(r.pdus_seen, 0);
	irig_close(&r);
}

/* ---- digests -------------------------------------------------------------------------------------------------------------------------------------- */

static void digests(uint32_t engine)
{
	struct vs_iconn_info info;
	struct initiator *i;
	uint8_t cdb[16], h[48];
	struct rig_pdu p;
	struct irig r;
	uint32_t itt;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, true, true);
	fill(5);
	good(ini_write(i, 0, 1, 512, out, 512));
	cdb_rw(cdb, true, 0, 1);
	/* Immediate data: rejected, and the command ends; the medium keeps what it had. */
	r.break_data_digest = true;
	bhs_command(h, 0xa1, 50, 512, r.cmd_sn++, cdb, 10);
	ini_send(i, h, NULL, 0, out + 9999, 512);
	r.break_data_digest = false;
	expect_reject(i, 0x02, h);
	sense(ini_finish(i, 50, NULL, NULL, 0), 0x0b, 0x4705);
	/* Data that were asked for: all of them come first. */
	itt = ini_start(i, cdb, 10, 0xa1, 512, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x31);
	bhs_data_out(h, 0, itt, get32(p.bhs + 20), 0, 0);
	r.break_data_digest = true;
	ini_send(i, h, NULL, 0, out + 9999, 256);
	r.break_data_digest = false;
	expect_reject(i, 0x02, h);
	CHECK(!ini_recv_within(i, &p, 20));
	bhs_data_out(h, 0x80, itt, get32(h + 20), 1, 256);
	ini_send(i, h, NULL, 0, out + 9999, 256);
	sense(ini_finish(i, itt, NULL, NULL, 0), 0x0b, 0x4705);
	/* Pings and texts: rejected; their numbers count. */
	r.break_data_digest = true;
	bhs_plain(h, 0x00, 0x80, 51, r.cmd_sn++);
	ini_send(i, h, NULL, 0, "ping", 4);
	expect_reject(i, 0x02, h);
	bhs_plain(h, 0x04, 0x80, 52, r.cmd_sn++);
	ini_send(i, h, NULL, 0, "a=b", 3);
	expect_reject(i, 0x02, h);
	r.break_data_digest = false;
	CHECK_EQ(r.pdus_seen, 0);
	good(ini_read(i, 0, 1, 512, in));
	CHECK(!memcmp(in, out, 512));
	vs_iconn_info(i->conn, &info);
	CHECK_EQ(info.digest_errors, 4);
	/* A header that cannot be trusted ends the connection. */
	r.break_header_digest = true;
	bhs_plain(h, 0x40, 0x80, 53, r.cmd_sn);
	ini_send(i, h, NULL, 0, NULL, 0);
	r.break_header_digest = false;
	CHECK_EQ(ini_event(i), VS_ICONN_HEADER_DIGEST);
	irig_close(&r);
}

/* ---- what is refused ------------------------------------------------------------------------------------------------------------------------------ */

static void tags_and_ahs(uint32_t engine)
{
	uint8_t cdb[16], h[48], ahs[64] = { 0, 17, 1 }; /* extended CDB: 16 more bytes */
	struct initiator *i;
	struct rig_pdu p;
	struct irig r;
	uint32_t itt;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, true, false);
	fill(6);
	cdb_rw(cdb, true, 0, 1);
	itt = ini_start(i, cdb, 10, 0xa1, 512, NULL, 0);
	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x31);
	bhs_command(h, 0xc1, itt, 512, r.cmd_sn++, cdb, 10);
	ini_send(i, h, NULL, 0, NULL, 0);
	put32(cdb + 2, get32(p.bhs + 20)); /* p.data goes, the header too */
	/* SAM-5 5.11: an overlapped command, which Python ends with those that it finds here; here it leaves the first alone. */
	r.hold_tasks = true;
	while (!r.ntasks)
		irig_pump(&r, -1, 10);
	CHECK(r.tasks[0].overlapped);
	CHECK_EQ(r.tasks[0].tag, itt);
	r.hold_tasks = false;
	sense(ini_finish(i, itt, NULL, NULL, 0), VS_SK_ILLEGAL_REQUEST, 0x2400); /* the rig has it executed, without its data */
	/* Of another unit it is none, and would be two tasks of one name. */
	bhs_command(h, 0xc1, itt, 512, r.cmd_sn++, cdb, 10);
	h[9] = 1;
	ini_send(i, h, NULL, 0, NULL, 0);
	expect_reject(i, 0x09, h);
	bhs_data_out(h, 0x80, itt, get32(cdb + 2), 0, 0);
	ini_send(i, h, NULL, 0, out, 512);
	good(ini_finish(i, itt, NULL, NULL, 0));
	/* A long CDB reaches Python whole. */
	r.hold_tasks = true;
	memset(cdb, 0x7f, 1);
	memset(cdb + 1, 0, 15);
	cdb[7] = 24;
	ahs[4] = 0xaa;
	ahs[19] = 0xbb;
	bhs_command(h, 0x81, 60, 0, r.cmd_sn++, cdb, 16);
	ini_send(i, h, ahs, 20, NULL, 0);
	while (!r.ntasks)
		irig_pump(&r, -1, 10);
	CHECK_EQ(r.tasks[0].cdb_length, 32);
	CHECK(r.tasks[0].cdb[16] == 0xaa && r.tasks[0].cdb[31] == 0xbb);
	r.hold_tasks = false;
	sense(ini_finish(i, 60, NULL, NULL, 0), VS_SK_ILLEGAL_REQUEST, 0x2000);
	/* Additional headers that nobody knows, or that lie. */
	for (int k = 0; k < 4; k++) {
		ahs[0] = k == 1 ? 0xff : 0;
		ahs[1] = k == 2 ? 0 : 17;
		ahs[2] = k == 3 ? 1 : k == 0 ? 2 : 1;
		bhs_command(h, 0x81, 61, 0, r.cmd_sn++, cdb, 16);
		ini_send(i, h, ahs, k == 3 ? 16 : 20, NULL, 0);
		expect_reject(i, 0x05, h);
	}
	good(ini_read(i, 0, 1, 512, in));
	irig_close(&r);
}

static void luns(uint32_t engine)
{
	static const struct { uint8_t lun[8]; bool there; } cases[] = {
		{ { 0 }, true }, { { 0x40, 0 }, true }, { { 0, 1 }, false }, { { 0x41, 0 }, false }, { { 0x80, 0 }, false }, { { 0xc1, 2 }, false },
		{ { 0, 0, 0, 1 }, false }, { { 0, 0, 0, 0, 0, 0, 0, 9 }, false }, { { 1, 0 }, false }, { { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, false },
	};
	struct initiator *i;
	uint8_t cdb[16], h[48];
	struct irig r;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, false);
	cdb_rw(cdb, false, 0, 1);
	for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
		bhs_command(h, 0xc1, 70, 512, r.cmd_sn++, cdb, 10);
		memcpy(h + 8, cases[k].lun, 8);
		ini_send(i, h, NULL, 0, NULL, 0);
		if (cases[k].there)
			good(ini_finish(i, 70, in, NULL, 0));
		else
			sense(ini_finish(i, 70, in, NULL, 0), VS_SK_ILLEGAL_REQUEST, 0x2500);
	}
	irig_close(&r);
}

/* Data-out that breaks a rule. 0: the command ends with DATA PHASE ERROR and the connection goes on; else the event that ends it. */
static void broken_sequences(uint32_t engine)
{
	static const struct { uint32_t length, data_sn, offset, ttt_xor; uint8_t flags; int event; } cases[] = {
		{ 513, 0, 0, 0, 0x80, VS_ICONN_BURST },  { 512, 1, 0, 0, 0x80, 0 }, { 256, 0, 256, 0, 0x80, 0 }, { 256, 0, 0xffffff00, 0, 0x80, 0 },
		{ 256, 0, 0, 0, 0x80, VS_ICONN_BURST },  { 512, 0, 0, 0, 0, VS_ICONN_BURST }, { 512, 0, 0, 1, 0x80, VS_ICONN_BURST },
		{ 512, 0, 0, 0x40000000, 0x80, VS_ICONN_BURST }, { 512, 0, 0, 0x80, 0x80, VS_ICONN_BURST },
	};
	uint8_t cdb[16], h[48];
	struct rig_pdu p;
	struct irig r;

	cdb_rw(cdb, true, 0, 1);
	for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
		struct initiator *i;
		uint32_t itt;

		irig_open(&r, engine, 0, 0);
		irig_session(&r);
		i = irig_connect(&r, false, false);
		itt = ini_start(i, cdb, 10, 0xa1, 512, NULL, 0);
		ini_recv(i, &p);
		bhs_data_out(h, cases[k].flags, itt, get32(p.bhs + 20) ^ cases[k].ttt_xor, cases[k].data_sn, cases[k].offset);
		ini_send(i, h, NULL, 0, out, cases[k].length);
		if (cases[k].event) {
			CHECK_EQ(ini_event(i), cases[k].event);
		} else {
			sense(ini_finish(i, itt, NULL, NULL, 0), 0x0b, 0x4b00);
			good(ini_read(i, 0, 1, 512, in));
		}
		irig_close(&r);
	}
}

/* The first PDU of a connection that may not be. */
static void broken_firsts(uint32_t engine)
{
	static const struct { uint8_t byte0, flags, initial_r2t, immediate_data; uint32_t edtl, length; int event; } cases[] = {
		{ 0x01, 0xa1, 1, 0, 512, 512, VS_ICONN_PROTOCOL },    /* ImmediateData=No */
		{ 0x01, 0xa1, 1, 1, 256, 512, VS_ICONN_PROTOCOL },    /* more than the command has */
		{ 0x01, 0xa1, 1, 1, 65536, 16388, VS_ICONN_PROTOCOL }, /* more than the first burst */
		{ 0x01, 0xc1, 1, 1, 512, 512, VS_ICONN_PROTOCOL },    /* on a read */
		{ 0x01, 0x21, 1, 1, 512, 0, VS_ICONN_PROTOCOL },      /* announces unsolicited data with InitialR2T=Yes */
		{ 0x00, 0x80, 1, 1, 0, RIG_SEGMENT + 4, VS_ICONN_SEGMENT_TOO_LONG },
		{ 0x44, 0x80, 1, 1, 0, 65540, VS_ICONN_SEGMENT_TOO_LONG }, /* no text is that long */
	};
	static uint8_t big[RIG_SEGMENT + 8];
	uint8_t cdb[16], h[48];
	struct irig r;

	cdb_rw(cdb, true, 0, 1);
	for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
		struct initiator *i;

		irig_open(&r, engine, 0, 0);
		r.params.initial_r2t = cases[k].initial_r2t;
		r.params.immediate_data = cases[k].immediate_data;
		irig_session(&r);
		i = irig_connect(&r, false, false);
		bhs_command(h, cases[k].flags, 5, cases[k].edtl, r.cmd_sn, cdb, 10);
		h[0] = cases[k].byte0;
		ini_send(i, h, NULL, 0, big, cases[k].length);
		CHECK_EQ(ini_event(i), cases[k].event);
		irig_close(&r);
	}
}

/* Opcodes: to Python, in order, whatever they mean; a target's own are nothing else. */
static void opcodes(uint32_t engine)
{
	struct initiator *i;
	uint8_t h[48];
	struct irig r;
	uint32_t sn;

	irig_open(&r, engine, 0, 0);
	irig_session(&r);
	i = irig_connect(&r, false, true);
	sn = r.cmd_sn;
	for (uint8_t op = 2; op < 0x40; op++) {
		uint32_t seen = r.pdus_seen;
		bool numbered = op == 0x02 || op == 0x04 || op == 0x06;

		if (op == 0x05)
			continue;
		bhs_plain(h, op, 0x80, op, sn);
		sn += numbered;
		ini_send(i, h, NULL, 0, "abcde", 5);
		while (r.pdus_seen == seen)
			irig_pump(&r, -1, 10);
		CHECK_EQ(r.pdu_tags[seen], op);
	}
	r.cmd_sn = sn;
	good(ini_read(i, 0, 1, 512, in));
	irig_close(&r);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		for (int d = 0; d < 4; d++)
			transfers(engine, d & 1, d & 2, false);
		transfers(engine, false, false, true);
		cuts(engine);
		unsolicited(engine, false);
		unsolicited(engine, true);
		residuals(engine);
		too_large(engine);
		window(engine);
		out_of_order(engine, false);
		out_of_order(engine, true);
		half_a_pdu(engine);
		digests(engine);
		tags_and_ahs(engine);
		luns(engine);
		broken_sequences(engine);
		broken_firsts(engine);
		opcodes(engine);
	}
	return 0;
}
