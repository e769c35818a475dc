// SPDX-License-Identifier: Apache-2.0
/*
 * Receiving: bytes become PDUs. Headers are read into the connection's buffer; a data segment is copied from what is there and the rest is
 * received straight to where it belongs. Lengths are checked before anything is allocated or written.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "crc32c.h"
#include "iscsi.h"
#include "task.h"

enum { PDUS_A_TURN = 64, BYTES_A_TURN = 1 << 20, UPCALL_DATA_MAX = 64 << 10 };

static uint32_t available(const struct vs_iconn *c) { return c->rx_tail - c->rx_head; }

/* >0 bytes, 0 nothing now, -1 the connection is dead. */
static int receive(struct vs_iconn *c, void *to, size_t n)
{
	ssize_t r;

	do {
		r = recv(c->source.fd, to, n, MSG_DONTWAIT);
	} while (r < 0 && errno == EINTR);
	if (r > 0) {
		vs_count(&c->view.rx_bytes, (uint64_t)r);
		vs_iconn_heard(c);
		/* Less than asked for: nothing more is there now, and an event will tell of what comes. Only the end makes no more of them. */
		if ((size_t)r < n && !c->ended)
			c->readable = false;
		return (int)r;
	}
	if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		c->readable = false;
		return 0;
	}
	vs_iconn_event(c, r == 0 ? VS_ICONN_PEER_CLOSED : VS_ICONN_SOCKET_ERROR);
	return -1;
}

/* Makes room and reads once; 0: nothing came, -1: dead. */
static int fill(struct vs_iconn *c)
{
	int n;

	if (!c->readable)
		return 0;
	if (c->rx_head) {
		memmove(c->rx, c->rx + c->rx_head, available(c));
		c->rx_tail -= c->rx_head;
		c->rx_head = 0;
	}
	n = receive(c, c->rx + c->rx_tail, VS_IRX_BYTES - c->rx_tail);
	if (n > 0)
		c->rx_tail += (uint32_t)n;
	return n;
}

/* ---- the data segment ----------------------------------------------------------------------------------------------------------------- */

static uint32_t padding(uint32_t n) { return -n & 3; }
/* RFC 7143 11.2.3: a PDU without data has no data digest. */
static uint32_t tail_length(const struct vs_iconn *c) { return padding(c->data_length) + (c->data_digest && c->data_length ? 4 : 0); }

void vs_irx_upcall(struct vs_ipdu *p)
{
	struct vs_iconn *c = p->conn;

	c->kept -= p->size;
	c->upcalls++;
	vs_iconn_view(c); /* control looks at the window when it decides what the PDU means */
	p->up = (struct vs_upnode){ .kind = VS_UP_IPDU, .worker = c->w->index, .cookie = c->cookie, .object = p };
	vs_upcall(c->w->core, &p->up);
}

/* RFC 7143 7.8: a PDU with a bad data digest is rejected, and its data are not used. Its CmdSN counts: without recovery levels nobody sends it
 * again. */
static void bad_digest(struct vs_iconn *c)
{
	atomic_fetch_add(&c->view.digest_errors, 1);
	vs_itx_reject(c, VS_I_REJECT_DATA_DIGEST);
}

static void finish_pdu(struct vs_iconn *c, bool digest_ok)
{
	struct vs_ipdu *p = c->data_pdu;

	c->data_pdu = NULL;
	if (!digest_ok) {
		c->kept -= p->size;
		free(p);
	} else if (c->sn) {
		c->sn->kind = VS_ISN_PDU;
		c->sn->object = p;
	} else {
		vs_irx_upcall(p);
	}
}

static void finish_echo(struct vs_iconn *c, bool digest_ok)
{
	struct vs_iready *r = c->data_echo;

	c->data_echo = NULL;
	if (!digest_ok) {
		vs_iready_free(c, r);
	} else if (c->sn) {
		c->sn->kind = VS_ISN_ECHO;
		c->sn->object = r;
	} else {
		vs_itx_queue(c, &r->item, VS_IT_READY);
	}
}

/* The PDU is complete. */
static void finish(struct vs_iconn *c, bool digest_ok)
{
	c->rx_state = VS_IRX_HEADER;
	vs_count(&c->view.rx_pdus, 1);
	if (!digest_ok)
		bad_digest(c);
	if (c->data_pdu)
		finish_pdu(c, digest_ok);
	else if (c->data_echo)
		finish_echo(c, digest_ok);
	else if (c->data_cmd && (c->bhs[0] & 0x3f) == VS_I_COMMAND)
		vs_icmd_immediate_done(c, digest_ok);
	else if (c->data_cmd)
		vs_icmd_data_done(c, digest_ok);
	c->data_cmd = NULL;
	c->data_r2t = NULL;
	if (c->sn)
		vs_isn_whole(c);
}

static bool check_digest(struct vs_iconn *c)
{
	uint32_t pad = padding(c->data_length), crc, got;

	if (!c->data_digest || !c->data_length || !c->data_to)
		return true;
	crc = vs_crc32c(0, c->data_to, c->data_length);
	crc = vs_crc32c(crc, c->tail, pad);
	memcpy(&got, c->tail + pad, 4);
	return crc == le32toh(got);
}

/* 1: the segment is complete, 0: more must come, -1: dead. */
static int take_data(struct vs_iconn *c)
{
	while (c->data_got < c->data_length) {
		uint32_t want = c->data_length - c->data_got, n = vs_min(want, available(c));

		if (n) {
			if (c->data_to)
				memcpy(c->data_to + c->data_got, c->rx + c->rx_head, n);
			c->rx_head += n;
		} else if (!c->readable) {
			return 0;
		} else if (c->data_to) {
			int r = receive(c, c->data_to + c->data_got, want);

			if (r <= 0)
				return r;
			n = (uint32_t)r;
		} else {
			int r = fill(c);

			if (r <= 0)
				return r;
			continue;
		}
		c->data_got += n;
	}
	while (c->tail_got < tail_length(c)) {
		uint32_t n = vs_min(tail_length(c) - c->tail_got, available(c));

		if (!n) {
			int r = fill(c);

			if (r <= 0)
				return r;
			continue;
		}
		memcpy(c->tail + c->tail_got, c->rx + c->rx_head, n);
		c->rx_head += n;
		c->tail_got += n;
	}
	return 1;
}

/* ---- the header --------------------------------------------------------------------------------------------------------------------------- */

static bool to_python(struct vs_iconn *c)
{
	struct vs_ipdu *p;

	if (c->data_length > UPCALL_DATA_MAX) {
		vs_iconn_event(c, VS_ICONN_SEGMENT_TOO_LONG);
		return false;
	}
	p = malloc(sizeof(*p) + c->ahs_length + c->data_length);
	if (!p) {
		vs_iconn_event(c, VS_ICONN_NO_MEMORY);
		return false;
	}
	p->conn = c;
	p->size = (uint32_t)sizeof(*p) + c->ahs_length + c->data_length;
	p->order = vs_isn_order(c);
	c->kept += p->size;
	memcpy(p->bhs, c->bhs, VS_BHS);
	memcpy(p->bytes, c->ahs, c->ahs_length);
	p->ahs_length = c->ahs_length;
	p->data_length = c->data_length;
	c->data_pdu = p;
	c->data_to = p->bytes + c->ahs_length;
	return true;
}

/* RFC 7143 11.18: a ping is echoed; an answer to a ping of ours only says that the initiator is alive. */
static bool nop_out(struct vs_iconn *c)
{
	struct vs_iready *r;

	if (vs_be32(c->bhs + 16) == VS_I_NO_TAG)
		return true;
	r = vs_iready_new(c, c->data_length);
	if (!r)
		return false;
	r->bhs[0] = VS_I_NOP_IN;
	r->bhs[1] = VS_I_FINAL;
	memcpy(r->bhs + 16, c->bhs + 16, 4);
	memset(r->bhs + 20, 0xff, 4);
	r->length = vs_min(c->data_length, c->max_send);
	r->flags = VS_ISEND_STATUS;
	c->data_echo = r;
	c->data_to = r->data;
	return true;
}

/* Whether the PDU in c->bhs is one that carries a CmdSN as far as we know (11.2.1.2). */
static bool has_sn(uint8_t opcode)
{
	return opcode == VS_I_NOP_OUT || opcode == VS_I_COMMAND || opcode == VS_I_TMF || opcode == VS_I_TEXT || opcode == VS_I_LOGOUT;
}

/* Decides where the data segment goes. False: the connection is dead. */
static bool begin(struct vs_iconn *c)
{
	uint8_t opcode = c->bhs[0] & 0x3f;

	c->data_to = NULL;
	c->data_cmd = NULL;
	c->data_r2t = NULL;
	if (has_sn(opcode) && !(c->bhs[0] & VS_I_IMMEDIATE)) {
		c->sn = vs_isn_take(c, vs_be32(c->bhs + 24));
		if (!c->sn)
			return true; /* dropped */
	}
	switch (opcode) {
	case VS_I_COMMAND:
		if (c->session->p.discovery)
			return to_python(c);
		vs_icmd_arrive(c);
		return !c->dead;
	case VS_I_DATA_OUT:
		return vs_icmd_data_out(c);
	case VS_I_NOP_OUT:
		return nop_out(c);
	default:
		return to_python(c);
	}
}

/* 1: a header was taken, 0: more must come, -1: dead. */
static int take_header(struct vs_iconn *c)
{
	const uint8_t *h = c->rx + c->rx_head;
	uint32_t ahs, need, digest = c->header_digest ? 4 : 0;

	if (available(c) < VS_BHS)
		return 0;
	ahs = h[4] * 4u;
	need = VS_BHS + ahs + digest;
	if (available(c) < need)
		return 0;
	/* Answers that the initiators do not take may hold every place: then this one waits, as it would in the socket. */
	if (vs_unlikely(vs_list_empty(&c->session->free)) && (h[0] & (0x3f | VS_I_IMMEDIATE)) == VS_I_COMMAND) {
		c->starved = true;
		return 0;
	}
	c->data_length = (uint32_t)h[5] << 16 | vs_be16(h + 6);
	if (digest) {
		uint32_t got;

		memcpy(&got, h + VS_BHS + ahs, 4);
		if (vs_crc32c(0, h, VS_BHS + ahs) != le32toh(got)) {
			atomic_fetch_add(&c->view.digest_errors, 1);
			vs_iconn_event(c, VS_ICONN_HEADER_DIGEST);
			return -1;
		}
	}
	if (c->data_length > c->max_recv) {
		vs_iconn_event(c, VS_ICONN_SEGMENT_TOO_LONG);
		return -1;
	}
	memcpy(c->bhs, h, VS_BHS);
	memcpy(c->ahs, h + VS_BHS, ahs);
	c->ahs_length = ahs;
	c->rx_head += need;
	c->data_got = c->tail_got = 0;
	atomic_store_explicit(&c->view.last_heard_ns, c->w->now_ns, memory_order_relaxed);
	return begin(c) ? 1 : -1;
}

/* ---- a turn ---------------------------------------------------------------------------------------------------------------------------------- */

static bool held_up(const struct vs_iconn *c)
{
	return c->dead || c->upcalls >= VS_IPDU_MAX_WAITING || c->kept >= VS_IKEPT_MAX;
}

bool vs_irx_has_work(const struct vs_iconn *c)
{
	return !held_up(c) && (c->starved ? !vs_list_empty(&c->session->free) : c->readable || c->rx_more);
}

int vs_irx_poll(struct vs_iconn *c)
{
	uint64_t stop = vs_counted(&c->view.rx_bytes) + BYTES_A_TURN;
	int did = 0;

	c->starved = false;
	c->rx_more = true;
	while (did < PDUS_A_TURN && !held_up(c) && vs_counted(&c->view.rx_bytes) < stop) {
		int r;

		if (vs_unlikely(vs_worker_should_yield(c->w)) && !c->w->popping_for_tmf) {
			did++; /* not idle: the rest comes next turn */
			break;
		}
		if (c->rx_state == VS_IRX_DATA) {
			r = take_data(c);
			if (r > 0) {
				finish(c, check_digest(c));
				did++;
			}
		} else {
			r = take_header(c);
			if (r > 0)
				c->rx_state = VS_IRX_DATA;
			else if (r == 0 && !c->starved)
				r = fill(c);
		}
		if (r <= 0) {
			c->rx_more = false; /* more bytes must come first */
			break;
		}
	}
	return did;
}
