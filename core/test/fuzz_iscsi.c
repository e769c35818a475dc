// SPDX-License-Identifier: Apache-2.0
/*
 * The full-feature phase under PDUs that the input describes: several connections of a session, header fields that are right or not quite, digests,
 * raw bytes, an initiator that reads or does not, and a control side that is slow, aborts tasks and closes connections. The worker has no thread of
 * its own here: it is turned by hand, so that an input always does the same. What the target sends is taken apart and must make sense; at the
 * end everything must come to an end by itself.
 *
 * Input: 8 bytes of keys, then steps: a byte that says which, then what it needs; missing bytes read as 0.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "crc32c.h"
#include "iscsi_rig.h"
#include "iscsi.h"
#include "worker.h"
#include "gen/tables.h"

enum { CONNS = 3, STEPS = 200, BLOCKS = 128, MAX_RECV = 8192, TASKS = 256, R2TS = 16, STUCK = 100000 };

#define MUST(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			abort(); \
		} \
	} while (0)

struct input { const uint8_t *p; size_t n; };

static uint32_t get(struct input *in, int bytes)
{
	uint32_t v = 0;

	for (int i = 0; i < bytes; i++, in->n -= in->n > 0)
		v |= (uint32_t)(in->n ? *in->p++ : 0) << (8 * i);
	return v;
}

struct r2t { uint32_t itt, ttt, offset, length; };

struct peer {
	vs_iconn *conn;
	int fd;
	bool dead;
	uint32_t stat_sn, max_cmd_sn, got;
	bool any;
	uint8_t rx[65536];
	struct r2t r2ts[R2TS];
	uint32_t nr2ts;
};

/* One for all inputs: engines and stores have fuzzers of their own. */
static struct {
	vs_core *core;
	struct vs_worker *w;
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus;
} world;

static struct machine {
	vs_isession *session;
	struct vs_isession_params p;
	struct peer peers[CONNS];
	bool header_digest, data_digest, hold;
	uint32_t max_send, cmd_sn, dones, dones_wanted;
	struct vs_task_info tasks[TASKS];
	uint32_t ntasks;
	vs_ipdu *pdus[4096];
	uint32_t npdus;
} m;

/* ---- the control side ----------------------------------------------------------------------------------------------------------------------- */

static void answer_one(const struct vs_task_info *t)
{
	struct vs_result result = { .task = t->task, .verdict = VS_VERDICT_EXECUTE };
	static const uint8_t blob[300];

	/* The tag says how, so that mutations find each way. */
	if (t->cdb[0] == 0x12 || t->tag & 4) {
		result.verdict = VS_VERDICT_COMPLETE;
		result.data_length = (uint32_t)(t->tag & 3) * 100;
		result.status = t->tag & 1 ? VS_STATUS_CHECK_CONDITION : 0;
		result.sense_length = t->tag & 1 ? VS_SENSE_MAX : 0;
	} else if (t->tag & 2) {
		result.verdict = VS_VERDICT_ABORTED;
	}
	vs_core_post(world.core, &result, 1, blob, sizeof(blob));
}

static void answer_all(void)
{
	for (uint32_t i = 0; i < m.ntasks; i++)
		answer_one(&m.tasks[i]);
	m.ntasks = 0;
	for (uint32_t i = 0; i < m.npdus; i++)
		vs_ipdu_done(world.core, m.pdus[i]);
	m.npdus = 0;
	vs_gate_open(world.core, world.lu, NULL, VS_GATE_ORDERED);
}

static void drain(void)
{
	struct vs_task_info info;
	struct vs_upcall up;

	while (vs_core_drain(world.core, &up, &info, 1)) {
		if (up.kind == VS_UP_TASK) {
			MUST(m.ntasks < TASKS);
			m.tasks[m.ntasks++] = info;
		} else if (up.kind == VS_UP_IPDU) {
			struct vs_ipdu_info pdu;

			vs_ipdu_info(up.pdu, &pdu);
			MUST(pdu.ahs_length <= 1020 && pdu.data_length <= MAX_RECV);
			MUST(m.npdus < 4096);
			m.pdus[m.npdus++] = up.pdu;
		} else if (up.kind == VS_UP_IREFUSED) {
			struct vs_irefusal_info refusal;

			vs_irefusal_take(up.refusal, &refusal);
			MUST(refusal.reject || (refusal.cdb_length && refusal.sense_length));
		} else if (up.kind == VS_UP_ICONN) {
			m.peers[up.cookie].dead = true;
		} else if (up.kind == VS_UP_DONE) {
			m.dones++;
		}
	}
	if (!m.hold)
		answer_all();
}

static int turn(void)
{
	int did = world.w->engine->reap(world.w);

	did += vs_worker_turn(world.w);
	drain();
	return did;
}

static void turns(int n)
{
	while (n--)
		turn();
}

/* ---- what the target sends --------------------------------------------------------------------------------------------------------------------- */

static uint32_t crc_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return le32toh(v);
}

static void judge(struct peer *c, const uint8_t *h, uint32_t length)
{
	uint32_t max = get32(h + 32);
	bool status = h[0] != 0x25 || h[1] & 1;

	MUST(h[0] == 0x20 || h[0] == 0x21 || h[0] == 0x25 || h[0] == 0x31 || h[0] == 0x3f || h[0] == 0x24);
	MUST(h[1] & 0x80 || h[0] == 0x25);
	MUST(length <= m.max_send);
	MUST(!c->any || (int32_t)(max - c->max_cmd_sn) >= 0);
	MUST((int32_t)(max + 1 - get32(h + 28)) >= 0 && max + 1 - get32(h + 28) <= m.p.queue_depth);
	c->max_cmd_sn = max;
	c->any = true;
	if (h[0] == 0x31) {
		MUST(get32(h + 24) == c->stat_sn && get32(h + 44) && get32(h + 44) <= m.p.max_burst);
		MUST((uint64_t)get32(h + 40) + get32(h + 44) <= m.p.max_transfer);
		c->r2ts[c->nr2ts++ % R2TS] = (struct r2t){ get32(h + 16), get32(h + 20), get32(h + 40), get32(h + 44) };
	} else if (status) {
		MUST(get32(h + 24) == c->stat_sn);
		c->stat_sn++;
	}
	if (h[0] == 0x25)
		MUST((uint64_t)get32(h + 40) + length <= m.p.max_transfer);
	if ((h[0] == 0x25 && h[1] & 1) || h[0] == 0x21)
		MUST((h[1] & 6) != 6);
}

static void read_all(struct peer *c)
{
	for (;;) {
		ssize_t n = recv(c->fd, c->rx + c->got, sizeof(c->rx) - c->got, MSG_DONTWAIT);
		uint32_t at = 0;

		if (n <= 0)
			return;
		c->got += (uint32_t)n;
		while (c->got - at >= 48) {
			const uint8_t *h = c->rx + at;
			uint32_t length = get32(h + 4) & 0xffffff, pad = -length & 3, head = 48 + (m.header_digest ? 4 : 0);
			uint32_t whole = head + length + pad + (length && m.data_digest ? 4 : 0);

			MUST(h[4] == 0 && whole <= sizeof(c->rx));
			if (c->got - at < whole)
				break;
			if (m.header_digest)
				MUST(vs_crc32c(0, h, 48) == crc_at(h + 48));
			if (length && m.data_digest)
				MUST(vs_crc32c(0, h + head, length + pad) == crc_at(h + whole - 4));
			judge(c, h, length);
			at += whole;
		}
		memmove(c->rx, c->rx + at, c->got - at);
		c->got -= at;
	}
}

/* ---- what is sent to it --------------------------------------------------------------------------------------------------------------------------- */

/* What the socket does not take goes nowhere: a cut like any other. */
static void send_bytes(struct peer *c, const uint8_t *p, size_t n)
{
	ssize_t r = c->fd < 0 ? 0 : send(c->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);

	(void)r;
}

static void send_pdu(struct peer *c, struct input *in, uint8_t *h, uint32_t ahs_length, uint32_t length, uint32_t wrong)
{
	static uint8_t b[48 + 1024 + 4 + MAX_RECV + 64];
	uint32_t at = 48 + ahs_length, pad = -length & 3, crc;

	memcpy(b, h, 48);
	for (uint32_t i = 0; i < ahs_length; i++)
		b[48 + i] = (uint8_t)get(in, 1);
	b[4] = (uint8_t)(ahs_length / 4);
	b[5] = 0;
	b[6] = (uint8_t)(length >> 8);
	b[7] = (uint8_t)length;
	if (m.header_digest) {
		crc = htole32(vs_crc32c(0, b, at) ^ (wrong & 1));
		memcpy(b + at, &crc, 4);
		at += 4;
	}
	memset(b + at, h[19], length + pad);
	if (length && m.data_digest) {
		crc = htole32(vs_crc32c(0, b + at, length + pad) ^ (wrong >> 1 & 1));
		memcpy(b + at + length + pad, &crc, 4);
		length += 4;
	}
	send_bytes(c, b, at + length + pad);
}

static void put_sn(struct input *in, uint8_t *h)
{
	uint32_t how = get(in, 1);

	/* The next one, mostly; else near it. */
	if (how & 0x80)
		put32(h + 24, m.cmd_sn + (how & 0x1f) - 8);
	else
		put32(h + 24, h[0] & 0x40 ? m.cmd_sn : m.cmd_sn++);
}

static void send_command(struct peer *c, struct input *in)
{
	static const uint8_t opcodes[16] = { 0x28, 0x2a, 0x00, 0x12, 0x35, 0x89, 0x41, 0x42, 0x2f, 0x0a, 0x08, 0x88, 0x8a, 0xa0, 0x7f, 0x93 };
	uint8_t h[48] = { 0 };
	uint32_t first = get(in, 1), cdb = get(in, 2), sizes = get(in, 1), wrong = get(in, 1);

	h[0] = 0x01 | (first & 0x40);
	h[1] = (uint8_t)get(in, 1);
	h[9] = (uint8_t)(first >> 5 & 1);
	put32(h + 16, first & 15);
	put32(h + 20, sizes & 0x80 ? get(in, 4) : (cdb >> 8) * 512);
	put_sn(in, h);
	h[32] = opcodes[cdb & 15];
	if (h[32] >= 0x80) {
		h[41] = (uint8_t)get(in, 1);
		h[45] = (uint8_t)(cdb >> 8);
	} else {
		h[37] = (uint8_t)(cdb >> 4 & 15);
		h[40] = (uint8_t)(cdb >> 8);
	}
	send_pdu(c, in, h, wrong & 4 ? (wrong >> 3) * 4 : 0, (sizes & 0x7f) * 64, wrong & 0x80 ? wrong & 3 : 0);
}

static void send_data(struct peer *c, struct input *in)
{
	uint8_t h[48] = { 0x05 };
	uint32_t how = get(in, 1), size = get(in, 2), wrong = get(in, 1);
	const struct r2t *r = &c->r2ts[how & (R2TS - 1)];

	h[1] = (uint8_t)(how & 0x80);
	put32(h + 16, r->itt);
	put32(h + 20, r->ttt);
	put32(h + 36, wrong & 8 ? get(in, 1) : 0);
	put32(h + 40, wrong & 16 ? get(in, 2) : r->offset);
	if (how & 0x40)
		size = r->length;
	if (how & 0x20) { /* unsolicited */
		put32(h + 16, how & 15);
		put32(h + 20, 0xffffffff);
		put32(h + 40, get(in, 2));
	}
	send_pdu(c, in, h, 0, vs_min(size, (uint32_t)MAX_RECV + 4), wrong & 0x80 ? wrong & 3 : 0);
}

static void send_other(struct peer *c, struct input *in)
{
	uint8_t h[48] = { 0 };
	uint32_t size;

	h[0] = (uint8_t)get(in, 1) & 0x7f;
	h[1] = 0x80;
	put32(h + 16, h[0] & 0x40 && h[0] & 0x20 ? 0xffffffff : get(in, 1));
	put32(h + 20, 0xffffffff);
	put_sn(in, h);
	size = get(in, 2);
	send_pdu(c, in, h, size >> 15 ? (size >> 13 & 3) * 4 : 0, size & 0x3fff ? (size & 0x3fff) % (MAX_RECV + 8) : 0, size >> 14 & 1 ? get(in, 1) & 3 : 0);
}

static void send_raw(struct peer *c, struct input *in)
{
	uint8_t bytes[64];
	uint32_t n = get(in, 1) & 63;

	for (uint32_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)get(in, 1);
	send_bytes(c, bytes, n);
}

/* ---- life ----------------------------------------------------------------------------------------------------------------------------------------------- */

static void open_peer(uint32_t k)
{
	struct vs_iconn_params p = { .cookie = k, .stat_sn = 0xfffffffe, .max_send_segment = m.max_send, .max_recv_segment = MAX_RECV,
				     .header_digest = m.header_digest, .data_digest = m.data_digest, .cid = (uint16_t)k };
	struct peer *c = &m.peers[k];
	int pair[2];

	if (c->conn)
		return;
	MUST(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair));
	c->fd = pair[0];
	c->dead = c->any = false;
	c->got = c->nr2ts = 0;
	memset(c->r2ts, 0, sizeof(c->r2ts));
	c->stat_sn = p.stat_sn;
	p.fd = pair[1];
	MUST(!vs_iconn_start(m.session, &p, &c->conn));
}

static void until_done(void)
{
	for (int i = 0; m.dones < m.dones_wanted; i++) {
		MUST(i < STUCK);
		turn();
	}
}

static void close_peer(uint32_t k)
{
	struct peer *c = &m.peers[k];

	if (!c->conn)
		return;
	MUST(!vs_iconn_close(c->conn, 1));
	c->conn = NULL;
	m.dones_wanted++;
	close(c->fd);
	c->fd = -1;
}

static void say(struct peer *c, struct input *in)
{
	uint8_t h[48] = { 0x24, 0x80 }, data[600] = { 0 };
	uint32_t how = get(in, 1);

	if (c->conn)
		vs_iconn_send(c->conn, h, data, vs_min((how & 15) * 40, m.max_send), (how >> 4 & 1) | VS_ISEND_STATUS | (how == 0xff ? VS_ISEND_CLOSE : 0));
}

static void step(struct input *in)
{
	uint32_t what = get(in, 1), k = (what >> 4) % CONNS;
	struct peer *c = &m.peers[k];

	switch (what & 15) {
	case 0: case 1: case 2:
		send_command(c, in);
		break;
	case 3: case 4:
		if (c->fd >= 0)
			read_all(c);
		send_data(c, in);
		break;
	case 5: case 6:
		send_other(c, in);
		break;
	case 7:
		send_raw(c, in);
		break;
	case 8:
		say(c, in);
		break;
	case 9: {
		/* Tag 7 is nobody's: then it is about the unit that is taken away, or about numbers. */
		bool special = !(what & 0x80) && (what >> 4 & 7) == 7;
		uint32_t sn = special ? get(in, 1) : 0;
		struct vs_tmf f = { .nexus = world.nexus, .match = what & 0x80 || special ? VS_TMF_NEXUS : VS_TMF_TAG, .action = VS_TMF_ABORT,
				    .tag = what >> 4 & 7, .cookie = 1, .response = special ? VS_RESP_BAD_TARGET : VS_RESP_ABORTED };

		if (special && sn & 1) {
			vs_isession_plug(m.session, m.session->exp_cmd_sn + (sn >> 5), m.session->exp_cmd_sn + (sn >> 5) + (sn >> 1 & 15), 1);
			m.dones_wanted++;
			break;
		}
		if (special && sn & 2) {
			f.match |= VS_TMF_BEFORE;
			f.before = (m.session->long_sn + (sn >> 2)) << 16;
		}

		vs_tmf_post(world.core, &f);
		m.dones_wanted++;
		break;
	}
	case 10:
		m.hold = what & 16;
		break;
	case 11:
		/* What is still in Python's hands keeps it. */
		close_peer(k);
		if (!m.hold)
			until_done();
		break;
	case 12:
		open_peer(k);
		break;
	case 13:
		if (c->fd >= 0)
			shutdown(c->fd, what & 0x80 ? SHUT_WR : SHUT_RDWR);
		break;
	case 14:
		if (c->fd >= 0)
			read_all(c);
		break;
	default:
		turns((int)(what >> 4));
	}
	turns(2);
}

static void make_world(void)
{
	struct vs_config config = { .nworkers = 1, .engine = VS_ENGINE_EPOLL, .io_threads = 1 };
	struct vs_lu_params lu = { .num_blocks = BLOCKS, .block_size = 512, .cookie = 7, .write_cache = 1, .unmap = 1, .max_unmap_descriptors = 4 };
	vs_store *below;
	char why[128];

	MUST(!vs_core_create(&config, &world.core));
	world.w = &world.core->workers[0];
	MUST(!world.w->engine->init(world.w));
	MUST(!vs_store_memory(world.core, BLOCKS * 512, 0, &below, why, sizeof(why)));
	/* Reads take a while: they can be caught in the store. */
	MUST(!vs_store_delay(world.core, below, 20, 0, 0, &world.store, why, sizeof(why)));
	MUST(!vs_lu_create(world.core, &lu, world.store, &world.lu));
	MUST(!vs_nexus_create(world.core, world.lu, 9, &world.nexus));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct vs_lun_entry entry = { 0 };
	uint32_t keys = get(&in, 2);

	if (!world.core)
		make_world();
	memset(&m, 0, sizeof(m));
	entry.nexus = world.nexus;
	m.header_digest = keys & 1;
	m.data_digest = keys & 2;
	m.p = (struct vs_isession_params){ .cookie = 5, .initial_r2t = keys >> 2 & 1, .immediate_data = keys >> 3 & 1, .discovery = (keys >> 4 & 15) == 15,
					   .max_outstanding_r2t = 1 + (keys >> 8 & 7), .credit = 1 + (keys >> 11 & 31) };
	m.p.queue_depth = 1 + get(&in, 1) % 20;
	m.p.first_burst = 512 + get(&in, 1) * 16;
	m.p.max_burst = m.p.first_burst + get(&in, 1) * 16;
	m.p.max_transfer = m.p.first_burst + get(&in, 1) * 256;
	m.p.buffer_limit = 1 + get(&in, 1) * 512;
	m.max_send = 512 + get(&in, 1) * 12;
	m.cmd_sn = m.p.exp_cmd_sn = 0xfffffff8;
	MUST(!vs_isession_create(world.core, &m.p, &m.session));
	MUST(!vs_isession_set_luns(m.session, &entry, 1, 1));
	m.dones_wanted = 1;
	until_done();
	for (uint32_t k = 0; k < CONNS; k++)
		m.peers[k].fd = -1;
	open_peer(0);
	for (int i = 0; i < STEPS && in.n; i++)
		step(&in);
	m.hold = false;
	for (uint32_t k = 0; k < CONNS; k++)
		close_peer(k);
	until_done();
	MUST(!vs_isession_destroy(m.session, 1));
	m.dones_wanted++;
	until_done();
	MUST(m.dones == m.dones_wanted && !m.ntasks && !m.npdus);
	MUST(!vs_pins_busy(vs_lu_pins(world.lu)) && vs_list_empty(&world.w->tasks));
	return 0;
}
