// SPDX-License-Identifier: Apache-2.0
/* See iscsi_rig.h. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "crc32c.h"
#include "iscsi_rig.h"
#include "gen/tables.h"

/* ---- the control side -------------------------------------------------------------------------------------------------------------------- */

static void answer(struct irig *r, const struct vs_task_info *t)
{
	struct vs_result result = { .task = t->task, .verdict = VS_VERDICT_EXECUTE };
	uint8_t blob[64] = { 0 };

	if (t->cdb[0] == 0x12) { /* INQUIRY */
		result.verdict = VS_VERDICT_COMPLETE;
		result.data_length = 36;
		blob[4] = 31;
	} else if (!t->nexus_cookie || t->cdb[0] == 0xa3 || t->cdb[0] == 0x7f) {
		result.verdict = VS_VERDICT_COMPLETE;
		result.status = VS_STATUS_CHECK_CONDITION;
		result.sense_length = 18;
		result.sense[0] = 0x70;
		result.sense[2] = VS_SK_ILLEGAL_REQUEST;
		result.sense[7] = 10;
		result.sense[12] = t->nexus_cookie ? 0x20 : 0x25;
	}
	vs_core_post(r->core, &result, 1, blob, sizeof(blob));
}

void irig_answer_tasks(struct irig *r)
{
	for (uint32_t i = 0; i < r->ntasks; i++)
		answer(r, &r->tasks[i]);
	r->ntasks = 0;
	/* Fails while others are on their way up; then they bring us here again. */
	vs_gate_open(r->core, r->lu, NULL, VS_GATE_ORDERED);
}

void irig_answer_pdus(struct irig *r)
{
	for (uint32_t i = 0; i < r->npdus; i++)
		vs_ipdu_done(r->core, r->pdus[i]);
	r->npdus = 0;
}

static void take(struct irig *r, const struct vs_upcall *up, const struct vs_task_info *info)
{
	struct vs_ipdu_info pdu;

	switch (up->kind) {
	case VS_UP_TASK:
		CHECK(r->ntasks < RIG_TASKS);
		r->tasks[r->ntasks++] = *info;
		break;
	case VS_UP_IPDU:
		vs_ipdu_info(up->pdu, &pdu);
		r->pdu_tags[r->pdus_seen++ % RIG_PDUS] = get32(pdu.bhs + 16);
		CHECK(r->npdus < RIG_PDUS);
		r->pdus[r->npdus++] = up->pdu;
		break;
	case VS_UP_IREFUSED:
		vs_irefusal_take(up->refusal, &r->refused[r->nrefused++ % RIG_REFUSED]);
		break;
	case VS_UP_ICONN:
		for (uint32_t i = 0; i < r->nconns; i++)
			if (r->conns[i].cookie == up->cookie)
				r->conns[i].event = (int)up->aux;
		break;
	case VS_UP_DONE:
		r->done[r->ndone++ % 1024] = up->cookie;
		r->matched += up->aux;
		break;
	default:
		break;
	}
}

void irig_pump(struct irig *r, int fd, int timeout_ms)
{
	struct pollfd p[2] = { { .fd = vs_core_upcall_fd(r->core), .events = POLLIN }, { .fd = fd, .events = POLLIN } };
	static struct vs_task_info infos[16];
	struct vs_upcall ups[16];
	int n;

	poll(p, fd >= 0 ? 2 : 1, timeout_ms);
	do {
		n = vs_core_drain(r->core, ups, infos, 16);
		for (int i = 0; i < n; i++)
			take(r, &ups[i], &infos[i]);
	} while (n);
	if (!r->hold_tasks && r->ntasks)
		irig_answer_tasks(r);
	if (!r->hold_pdus && r->npdus)
		irig_answer_pdus(r);
}

uint64_t irig_cookie(struct irig *r)
{
	return 1000 + r->replies++;
}

void irig_wait(struct irig *r, uint64_t cookie)
{
	uint64_t stop = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);

	for (;;) {
		for (uint32_t i = 0; i < 1024; i++)
			if (r->done[i] == cookie)
				return;
		CHECK(vs_now_ns() < stop);
		irig_pump(r, -1, 10);
	}
}

void irig_settle(struct irig *r, int ms)
{
	uint64_t stop = vs_now_ns() + (uint64_t)ms * 1000000;

	while (vs_now_ns() < stop)
		irig_pump(r, -1, 1);
}

uint64_t irig_tmf(struct irig *r, uint32_t action, uint32_t tag)
{
	struct vs_tmf f = { .nexus = r->nexus, .match = VS_TMF_NEXUS | (tag ? VS_TMF_TAG : 0) | (r->tmf_before ? VS_TMF_BEFORE : 0), .tag = tag,
			    .before = r->tmf_before, .action = action, .response = r->tmf_response ? r->tmf_response : VS_RESP_ABORTED };

	f.cookie = irig_cookie(r);
	r->matched = 0;
	vs_tmf_post(r->core, &f);
	irig_wait(r, f.cookie);
	return r->matched;
}

/* ---- life -------------------------------------------------------------------------------------------------------------------------------- */

uint32_t irig_spin_us, irig_poll_mode = VS_POLL_ADAPTIVE;
uint64_t irig_buffer_limit;

void irig_open(struct irig *r, uint32_t engine, uint64_t read_us, uint64_t write_us)
{
	struct vs_config config = { .nworkers = 1, .engine = engine, .poll_mode = irig_poll_mode, .spin_us = irig_spin_us, .io_threads = 1,
				    .iscsi_buffer_limit = irig_buffer_limit };
	struct vs_lu_params lu = { .num_blocks = RIG_BLOCKS, .block_size = 512, .cookie = 7, .write_cache = 1 };
	char why[128];

	memset(r, 0, sizeof(*r));
	CHECK_EQ(vs_core_create(&config, &r->core), 0);
	CHECK_EQ(vs_core_start(r->core), 0);
	CHECK_EQ(vs_store_memory(r->core, RIG_BLOCKS * 512ull, 0, &r->memory, why, sizeof(why)), 0);
	r->store = r->memory;
	if (read_us || write_us)
		CHECK_EQ(vs_store_delay(r->core, r->memory, read_us, write_us, 0, &r->store, why, sizeof(why)), 0);
	CHECK_EQ(vs_lu_create(r->core, &lu, r->store, &r->lu), 0);
	CHECK_EQ(vs_nexus_create(r->core, r->lu, 9, &r->nexus), 0);
	r->params = (struct vs_isession_params){ .cookie = 5, .exp_cmd_sn = 0xfffffffd /* it wraps early */, .queue_depth = 32, .max_burst = 65536,
						 .first_burst = 16384, .max_outstanding_r2t = 2, .credit = 32, .max_transfer = 16 << 20,
						 .buffer_limit = 64 << 20, .initial_r2t = 1, .immediate_data = 1 };
}

void irig_session(struct irig *r)
{
	struct vs_lun_entry entry = { .nexus = r->nexus };
	uint64_t cookie = irig_cookie(r);

	CHECK_EQ(vs_isession_create(r->core, &r->params, &r->session), 0);
	CHECK_EQ(vs_isession_set_luns(r->session, &entry, 1, cookie), 0);
	irig_wait(r, cookie);
	r->cmd_sn = r->params.exp_cmd_sn;
	r->itt = 100;
}

static struct initiator *connect_over(struct irig *r, int ours, int theirs, bool header_digest, bool data_digest)
{
	struct initiator *i = &r->conns[r->nconns++];
	struct vs_iconn_params p = { .fd = theirs, .stat_sn = 0xffffffff, .max_send_segment = 8192, .max_recv_segment = RIG_SEGMENT,
				     .header_digest = header_digest, .data_digest = data_digest, .cid = (uint16_t)r->nconns };

	CHECK(r->nconns <= RIG_CONNS);
	*i = (struct initiator){ .rig = r, .fd = ours, .cookie = 500 + r->nconns, .header_digest = header_digest, .data_digest = data_digest,
				 .max_send = p.max_send_segment, .stat_sn = p.stat_sn };
	p.cookie = i->cookie;
	CHECK_EQ(vs_iconn_start(r->session, &p, &i->conn), 0);
	return i;
}

struct initiator *irig_connect(struct irig *r, bool header_digest, bool data_digest)
{
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	return connect_over(r, pair[0], pair[1], header_digest, data_digest);
}

struct initiator *irig_connect_tcp(struct irig *r)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), ours = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), theirs;

	CHECK(l >= 0 && ours >= 0);
	CHECK_EQ(bind(l, (struct sockaddr *)&a, n), 0);
	CHECK_EQ(listen(l, 1), 0);
	CHECK_EQ(getsockname(l, (struct sockaddr *)&a, &n), 0);
	CHECK_EQ(connect(ours, (struct sockaddr *)&a, n), 0);
	theirs = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	CHECK(theirs >= 0);
	close(l);
	return connect_over(r, ours, theirs, false, false);
}

void irig_disconnect(struct initiator *i)
{
	uint64_t cookie = irig_cookie(i->rig);

	if (!i->conn)
		return;
	CHECK_EQ(vs_iconn_close(i->conn, cookie), 0);
	irig_wait(i->rig, cookie);
	i->conn = NULL;
	close(i->fd);
}

void irig_close(struct irig *r)
{
	uint64_t cookie;

	r->hold_tasks = r->hold_pdus = false;
	for (uint32_t i = 0; i < r->nconns; i++)
		irig_disconnect(&r->conns[i]);
	if (r->session) {
		cookie = irig_cookie(r);
		CHECK_EQ(vs_isession_destroy(r->session, cookie), 0);
		irig_wait(r, cookie);
	}
	CHECK(!vs_pins_busy(vs_lu_pins(r->lu)));
	vs_nexus_destroy(r->nexus);
	vs_lu_destroy(r->lu);
	vs_store_destroy(r->store);
	vs_core_destroy(r->core);
}

/* ---- PDUs --------------------------------------------------------------------------------------------------------------------------------- */

void bhs_plain(uint8_t *h, uint8_t opcode, uint8_t flags, uint32_t itt, uint32_t cmd_sn)
{
	memset(h, 0, 48);
	h[0] = opcode;
	h[1] = flags;
	put32(h + 16, itt);
	put32(h + 20, 0xffffffff);
	put32(h + 24, cmd_sn);
}

void bhs_command(uint8_t *h, uint8_t flags, uint32_t itt, uint32_t edtl, uint32_t cmd_sn, const uint8_t *cdb, uint32_t cdb_len)
{
	bhs_plain(h, 0x01, flags, itt, cmd_sn);
	put32(h + 20, edtl);
	memcpy(h + 32, cdb, cdb_len < 16 ? cdb_len : 16);
}

void bhs_data_out(uint8_t *h, uint8_t flags, uint32_t itt, uint32_t ttt, uint32_t data_sn, uint32_t offset)
{
	bhs_plain(h, 0x05, flags, itt, 0);
	put32(h + 20, ttt);
	put32(h + 36, data_sn);
	put32(h + 40, offset);
}

void cdb_rw(uint8_t *cdb, bool write, uint32_t lba, uint32_t blocks)
{
	memset(cdb, 0, 16);
	cdb[0] = write ? 0x2a : 0x28;
	put32(cdb + 2, lba);
	cdb[7] = (uint8_t)(blocks >> 8);
	cdb[8] = (uint8_t)blocks;
}

void ini_bytes(struct initiator *i, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	uint64_t stop = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);

	while (n) {
		ssize_t r = send(i->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (r < 0 && (errno == EPIPE || errno == ECONNRESET))
			return;
		if (r < 0) {
			if (i->event)
				return; /* nobody reads any more */
			CHECK(errno == EAGAIN && vs_now_ns() < stop);
			irig_pump(i->rig, -1, 1);
			continue;
		}
		p += r;
		n -= (size_t)r;
	}
}

void ini_send(struct initiator *i, const uint8_t *bhs, const void *ahs, uint32_t ahs_length, const void *data, uint32_t length)
{
	uint32_t at = 48 + ahs_length, pad = -length & 3, crc;
	uint8_t *b = calloc(1, at + 4 + length + pad + 4);

	CHECK(b != NULL);
	memcpy(b, bhs, 48);
	if (ahs_length)
		memcpy(b + 48, ahs, ahs_length);
	b[4] = (uint8_t)(ahs_length / 4);
	b[5] = (uint8_t)(length >> 16);
	b[6] = (uint8_t)(length >> 8);
	b[7] = (uint8_t)length;
	if (i->header_digest) {
		crc = htole32(vs_crc32c(0, b, at) ^ i->rig->break_header_digest);
		memcpy(b + at, &crc, 4);
		at += 4;
	}
	if (length) {
		memcpy(b + at, data, length);
		if (i->data_digest) {
			crc = htole32(vs_crc32c(0, b + at, length + pad) ^ i->rig->break_data_digest);
			memcpy(b + at + length + pad, &crc, 4);
		}
		at += length + pad + (i->data_digest ? 4 : 0);
	}
	if (i->corked) {
		CHECK(i->ncork + at <= sizeof(i->cork));
		memcpy(i->cork + i->ncork, b, at);
		i->ncork += at;
	} else {
		ini_bytes(i, b, at);
	}
	free(b);
}

void ini_uncork(struct initiator *i)
{
	ini_bytes(i, i->cork, i->ncork);
	i->corked = false;
	i->ncork = 0;
}

static bool take_bytes(struct initiator *i, void *to, size_t n, uint64_t stop)
{
	uint8_t *p = to;
	size_t got = 0;

	while (got < n) {
		ssize_t r = recv(i->fd, p + got, n - got, MSG_DONTWAIT);
		uint64_t now = vs_now_ns();

		if (r > 0) {
			got += (size_t)r;
			continue;
		}
		if (r == 0 || errno != EAGAIN)
			return false;
		if (got && now < stop + RIG_WAIT_MS * UINT64_C(1000000)) {
			irig_pump(i->rig, i->fd, 1);
			continue;
		}
		if (now >= stop) {
			CHECK_EQ(got, 0);
			return false;
		}
		irig_pump(i->rig, i->fd, 1);
	}
	return true;
}

bool ini_recv_within(struct initiator *i, struct rig_pdu *out, int ms)
{
	uint64_t stop = vs_now_ns() + (uint64_t)ms * 1000000, later = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);
	static uint8_t *last;
	uint32_t crc, pad;

	if (!take_bytes(i, out->bhs, 48, stop))
		return false;
	if (i->header_digest) {
		CHECK(take_bytes(i, &crc, 4, later));
		CHECK_EQ(le32toh(crc), vs_crc32c(0, out->bhs, 48));
	}
	out->length = get32(out->bhs + 4) & 0xffffff;
	CHECK(out->length <= i->max_send);
	pad = -out->length & 3;
	free(last);
	last = out->data = calloc(1, out->length + pad + 1);
	if (out->length) {
		CHECK(take_bytes(i, out->data, out->length + pad, later));
		for (uint32_t k = 0; k < pad; k++)
			CHECK_EQ(out->data[out->length + k], 0);
		if (i->data_digest) {
			CHECK(take_bytes(i, &crc, 4, later));
			CHECK_EQ(le32toh(crc), vs_crc32c(0, out->data, out->length + pad));
		}
	}
	/* StatSN: each answer has the next, R2Ts tell it, Data-In without status has none. */
	if (out->bhs[0] == 0x31)
		CHECK_EQ(get32(out->bhs + 24), i->stat_sn);
	else if (out->bhs[0] != 0x25 || out->bhs[1] & 1)
		CHECK_EQ(get32(out->bhs + 24), i->stat_sn++);
	return true;
}

void ini_recv(struct initiator *i, struct rig_pdu *out)
{
	CHECK(ini_recv_within(i, out, RIG_WAIT_MS));
}

int ini_event(struct initiator *i)
{
	uint64_t stop = vs_now_ns() + RIG_WAIT_MS * UINT64_C(1000000);

	while (!i->event) {
		CHECK(vs_now_ns() < stop);
		irig_pump(i->rig, -1, 10);
	}
	return i->event;
}

/* ---- commands ------------------------------------------------------------------------------------------------------------------------------ */

uint32_t ini_start(struct initiator *i, const uint8_t *cdb, uint32_t cdb_len, uint8_t flags, uint32_t edtl, const void *data, uint32_t immediate)
{
	uint32_t itt = i->rig->itt++;
	uint8_t h[48];

	bhs_command(h, flags, itt, edtl, i->rig->cmd_sn++, cdb, cdb_len);
	ini_send(i, h, NULL, 0, data, immediate);
	return itt;
}

static void serve_r2t(struct initiator *i, const struct rig_pdu *r2t, const uint8_t *out)
{
	uint32_t offset = get32(r2t->bhs + 40), left = get32(r2t->bhs + 44), sn = 0;
	uint8_t h[48];

	while (left) {
		uint32_t n = left < 20000 ? left : 20000;

		bhs_data_out(h, n == left ? 0x80 : 0, get32(r2t->bhs + 16), get32(r2t->bhs + 20), sn++, offset);
		ini_send(i, h, NULL, 0, out + offset, n);
		offset += n;
		left -= n;
	}
}

static void take_sense(struct outcome *o, const struct rig_pdu *p)
{
	if (p->length < 16)
		return;
	CHECK_EQ(p->data[0] << 8 | p->data[1], p->length - 2);
	o->key = p->data[4] & 15;
	o->asc = (uint32_t)p->data[14] << 8 | p->data[15];
}

struct outcome ini_finish(struct initiator *i, uint32_t itt, uint8_t *in, const uint8_t *out, uint32_t out_length)
{
	uint32_t data_sn = 0, burst = i->rig->params.max_burst, in_burst = 0, r2t_sn = 0;
	struct outcome o = { 0 };
	struct rig_pdu p;

	for (;;) {
		ini_recv(i, &p);
		CHECK_EQ(get32(p.bhs + 16), itt);
		if (p.bhs[0] == 0x31) {
			CHECK_EQ(get32(p.bhs + 36), r2t_sn++);
			CHECK(get32(p.bhs + 44) <= burst && get32(p.bhs + 40) + get32(p.bhs + 44) <= out_length);
			serve_r2t(i, &p, out);
			continue;
		}
		o.flags = p.bhs[1];
		if (p.bhs[0] == 0x25) {
			CHECK_EQ(get32(p.bhs + 36), data_sn++);
			CHECK_EQ(get32(p.bhs + 40), o.data_length);
			if (in)
				memcpy(in + o.data_length, p.data, p.length);
			o.data_length += p.length;
			in_burst += p.length;
			/* 11.7.1: the final bit ends a sequence, which is no longer than MaxBurstLength. */
			CHECK(in_burst <= burst);
			if (in_burst == burst)
				CHECK(p.bhs[1] & 0x80);
			if (p.bhs[1] & 0x80)
				in_burst = 0;
			if (!(p.bhs[1] & 1))
				continue;
			CHECK(p.bhs[1] & 0x80);
		} else {
			CHECK_EQ(p.bhs[0], 0x21);
			CHECK(p.bhs[1] & 0x80);
			CHECK_EQ(in_burst, 0);
			if (data_sn || r2t_sn) /* a test may have taken the R2Ts itself */
				CHECK_EQ(get32(p.bhs + 36), data_sn ? data_sn : r2t_sn);
			o.response = p.bhs[2];
			take_sense(&o, &p);
		}
		o.status = p.bhs[3];
		o.residual = get32(p.bhs + 44);
		return o;
	}
}

struct outcome ini_read(struct initiator *i, uint32_t lba, uint32_t blocks, uint32_t edtl, uint8_t *in)
{
	uint8_t cdb[16];

	cdb_rw(cdb, false, lba, blocks);
	return ini_finish(i, ini_start(i, cdb, 10, 0xc1, edtl, NULL, 0), in, NULL, 0);
}

struct outcome ini_write(struct initiator *i, uint32_t lba, uint32_t blocks, uint32_t edtl, const uint8_t *out, uint32_t immediate)
{
	uint8_t cdb[16];

	cdb_rw(cdb, true, lba, blocks);
	return ini_finish(i, ini_start(i, cdb, 10, 0xa1, edtl, out, immediate), NULL, out, edtl);
}
