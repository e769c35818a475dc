// SPDX-License-Identifier: Apache-2.0
/* Connections that end at each byte of a PDU with data: immediate data, data that was asked for, data that comes by itself; with digests and
 * without. Nothing of it is written, nothing stays behind, and the same PDU as a whole does what it should. */
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

enum kind { IMMEDIATE, ASKED, UNASKED, KINDS };
enum { BLOCK = 512, TAG = 40, WRITE_FINAL = 0xa1, WRITE_MORE = 0x21, UNSOLICITED = -1 };

static uint8_t data[BLOCK], in[BLOCK];
static uint32_t part; /* what the PDU brings of the block: all of it, or nearly, with padding */

/* Puts the PDU with the first part of the data into i->cork; what has to come before it has been sent. The transfer tag of what follows. */
static uint32_t gather(struct irig *r, struct initiator *i, enum kind kind)
{
	uint32_t ttt = (uint32_t)UNSOLICITED;
	uint8_t cdb[16], h[48];
	struct rig_pdu p;

	cdb_rw(cdb, true, 0, 1);
	i->corked = kind == IMMEDIATE;
	bhs_command(h, kind == UNASKED ? WRITE_MORE : WRITE_FINAL, TAG, BLOCK, r->cmd_sn++, cdb, 10);
	ini_send(i, h, NULL, 0, data, kind == IMMEDIATE ? part : 0);
	if (kind == IMMEDIATE)
		return ttt;
	if (kind == ASKED) {
		ini_recv(i, &p);
		CHECK_EQ(p.bhs[0], 0x31);
		ttt = get32(p.bhs + 20);
	}
	i->corked = true;
	bhs_data_out(h, part == BLOCK ? 0x80 : 0, TAG, ttt, 0, 0);
	ini_send(i, h, NULL, 0, data, part);
	return ttt;
}

static void end_session(struct irig *r, struct initiator *i)
{
	uint64_t cookie;

	irig_disconnect(i);
	r->nconns = 0;
	cookie = irig_cookie(r);
	CHECK_EQ(vs_isession_destroy(r->session, cookie), 0);
	irig_wait(r, cookie);
	r->session = NULL;
	CHECK(!vs_pins_busy(vs_lu_pins(r->lu)));
}

/* How long the PDU is. */
static size_t drop_at(struct irig *r, enum kind kind, bool digests, size_t at)
{
	struct initiator *i;
	size_t whole;

	irig_session(r);
	i = irig_connect(r, digests, digests);
	gather(r, i, kind);
	whole = i->ncork;
	CHECK(at < whole);
	ini_bytes(i, i->cork, at);
	CHECK_EQ(shutdown(i->fd, SHUT_RDWR), 0);
	CHECK_EQ(ini_event(i), VS_ICONN_PEER_CLOSED);
	end_session(r, i);
	return whole;
}

static void no_drop(struct irig *r, enum kind kind, bool digests, uint8_t expected)
{
	struct initiator *i;
	struct rig_pdu p;
	struct outcome o;
	uint8_t h[48];
	uint32_t ttt;

	irig_session(r);
	i = irig_connect(r, digests, digests);
	o = ini_read(i, 0, 1, BLOCK, in);
	CHECK_EQ(o.status, VS_STATUS_GOOD);
	for (uint32_t k = 0; k < BLOCK; k++)
		CHECK_EQ(in[k], expected);
	ttt = gather(r, i, kind);
	ini_uncork(i);
	if (kind == IMMEDIATE && part < BLOCK) {
		ini_recv(i, &p);
		CHECK_EQ(p.bhs[0], 0x31);
		CHECK_EQ(get32(p.bhs + 40), part);
		ttt = get32(p.bhs + 20);
	}
	if (part < BLOCK) {
		bhs_data_out(h, 0x80, TAG, ttt, kind == IMMEDIATE ? 0 : 1, part);
		ini_send(i, h, NULL, 0, data + part, BLOCK - part);
	}
	ini_recv(i, &p);
	CHECK_EQ(p.bhs[0], 0x21);
	CHECK_EQ(p.bhs[3], VS_STATUS_GOOD);
	o = ini_read(i, 0, 1, BLOCK, in);
	CHECK_EQ(o.status, VS_STATUS_GOOD);
	CHECK(!memcmp(in, data, BLOCK));
	end_session(r, i);
}

static void each_byte(uint32_t engine, bool digests)
{
	uint8_t there = 0;
	struct irig r;

	irig_open(&r, engine, 0, 0);
	for (enum kind kind = 0; kind < KINDS; kind++) {
		size_t whole = 1;

		r.params.initial_r2t = kind != UNASKED;
		memset(data, 0xa0 + (int)kind, sizeof(data));
		for (size_t at = 0; at < whole; at++)
			whole = drop_at(&r, kind, digests, at);
		CHECK_EQ(whole, 48 + BLOCK + (digests ? 8 : 0));
		no_drop(&r, kind, digests, there);
		there = data[0];
	}
	irig_close(&r);
}

int main(void)
{
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		CHECK(!vs_engine_why_not(engine));
		for (int digests = 0; digests < 2; digests++) {
			alarm(120);
			for (part = BLOCK - 2; part <= BLOCK; part += 2)
				each_byte(engine, digests);
		}
	}
	return 0;
}
