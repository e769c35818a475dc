// SPDX-License-Identifier: Apache-2.0
/*
 * Sending: what is queued becomes PDUs only when there is room for them, so that a large read costs a few slots and not a header a segment.
 * StatSN is given out here, in the order of sending. RFC 7143 11.4, 11.7, 11.8.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "crc32c.h"
#include "iscsi.h"
#include "gen/tables.h"
#include "task.h"

enum { BYTES_A_TURN = 2 << 20 };

static uint32_t used(const struct vs_iconn *c) { return c->slot_tail - c->slot_head; }

void vs_itx_queue(struct vs_iconn *c, struct vs_iitem *item, enum vs_ikind kind)
{
	item->kind = kind;
	vs_list_add_tail(&c->txq, &item->link);
	vs_poller_dirty(c->w, &c->poller);
}

struct vs_iready *vs_iready_new(struct vs_iconn *c, uint32_t length)
{
	struct vs_iready *r = malloc(sizeof(*r) + length);

	if (!r) {
		vs_iconn_event(c, VS_ICONN_NO_MEMORY);
		return NULL;
	}
	memset(r->bhs, 0, VS_BHS);
	r->length = length;
	r->flags = 0;
	r->size = (uint32_t)sizeof(*r) + length;
	c->kept += r->size;
	return r;
}

void vs_iready_free(struct vs_iconn *c, struct vs_iready *r)
{
	c->kept -= r->size;
	free(r);
}

void vs_itx_reject(struct vs_iconn *c, uint8_t reason)
{
	struct vs_iready *r = vs_iready_new(c, VS_BHS);

	if (!r)
		return;
	vs_irefused_pdu(c, reason);
	r->bhs[0] = VS_I_REJECT;
	r->bhs[1] = VS_I_FINAL;
	r->bhs[2] = reason;
	memset(r->bhs + 16, 0xff, 4);
	r->flags = VS_ISEND_STATUS;
	memcpy(r->data, c->bhs, VS_BHS);
	vs_itx_queue(c, &r->item, VS_IT_READY);
}

/* ---- PDUs ----------------------------------------------------------------------------------------------------------------------------------- */

static struct vs_islot *slot_new(struct vs_iconn *c, uint8_t opcode, uint8_t flags, uint32_t itt)
{
	struct vs_islot *s = &c->slots[c->slot_tail++ % VS_ITX_SLOTS];

	memset(s->header, 0, VS_BHS);
	s->header[0] = opcode;
	s->header[1] = flags;
	vs_put_be32(s->header + 16, itt);
	s->cmd = NULL;
	s->ready = NULL;
	s->niov = 0;
	return s;
}

/* Sequence numbers, lengths, digests: the header is complete after this. */
static void slot_seal(struct vs_iconn *c, struct vs_islot *s, const void *data, uint32_t length, bool status)
{
	uint32_t header = VS_BHS, pad = -length & 3, tail = 0;

	if (status)
		vs_put_be32(s->header + 24, c->stat_sn++);
	vs_put_be32(s->header + 28, c->session->exp_cmd_sn);
	vs_put_be32(s->header + 32, c->session->max_cmd_sn);
	s->header[5] = (uint8_t)(length >> 16);
	s->header[6] = (uint8_t)(length >> 8);
	s->header[7] = (uint8_t)length;
	if (c->header_digest) {
		uint32_t crc = htole32(vs_crc32c(0, s->header, VS_BHS));

		memcpy(s->header + VS_BHS, &crc, 4);
		header += 4;
	}
	s->iov[s->niov++] = (struct iovec){ s->header, header };
	if (length) {
		s->iov[s->niov++] = (struct iovec){ (void *)data, length };
		memset(s->trailer, 0, 4);
		tail = pad;
		if (c->data_digest) {
			uint32_t crc = htole32(vs_crc32c(vs_crc32c(0, data, length), s->trailer, pad));

			memcpy(s->trailer + pad, &crc, 4);
			tail += 4;
		}
		if (tail)
			s->iov[s->niov++] = (struct iovec){ s->trailer, tail };
	}
	vs_count(&c->view.tx_pdus, 1);
	atomic_store_explicit(&c->view.stat_sn, c->stat_sn, memory_order_relaxed);
}

static uint8_t residual_flags(const struct vs_icmd *x) { return (x->overflow ? 4 : 0) | (x->underflow ? 2 : 0); }

/* One Data-In; the last one of a read that ended well carries the status. True: that was all of the command. */
static bool data_in(struct vs_iconn *c, struct vs_icmd *x)
{
	uint32_t left = x->data_length - x->sent, n = vs_min(left, c->max_send);
	uint32_t burst = c->session->p.max_burst, in_burst = burst - x->sent % burst;
	bool last, status;
	struct vs_islot *s;

	n = vs_min(n, in_burst);
	last = n == left;
	status = last && x->status == VS_STATUS_GOOD;
	s = slot_new(c, VS_I_DATA_IN, (uint8_t)((last || n == in_burst ? VS_I_FINAL : 0) | (status ? 1 | residual_flags(x) : 0)), x->itt);
	vs_put_be32(s->header + 20, VS_I_NO_TAG);
	vs_put_be32(s->header + 36, x->data_sn++);
	vs_put_be32(s->header + 40, x->sent);
	if (status) {
		vs_icmd_answered(x);
		vs_iconn_measure(c, x);
		s->header[3] = x->status;
		vs_put_be32(s->header + 44, x->residual);
		s->cmd = x;
	}
	slot_seal(c, s, x->data + x->sent, n, status);
	x->sent += n;
	return status;
}

static void response(struct vs_iconn *c, struct vs_icmd *x)
{
	struct vs_islot *s = slot_new(c, VS_I_RESPONSE, (uint8_t)(VS_I_FINAL | residual_flags(x)), x->itt);
	uint8_t *sense = x->task.sense;
	uint32_t length = 0;

	vs_icmd_answered(x);
	vs_iconn_measure(c, x);
	s->header[2] = x->response;
	s->header[3] = x->status;
	/* 11.4.8: ExpDataSN is the number of Data-In PDUs (or R2Ts) of the command. */
	vs_put_be32(s->header + 36, x->read ? x->data_sn : x->r2t_sn);
	vs_put_be32(s->header + 44, x->residual);
	if (x->status == VS_STATUS_CHECK_CONDITION && x->task.sense_len) {
		length = x->task.sense_len + 2u;
		memmove(sense + 2, sense, vs_min(x->task.sense_len + 0u, VS_SENSE_MAX - 2u));
		length = vs_min(length, (uint32_t)VS_SENSE_MAX);
		sense[0] = (uint8_t)((length - 2) >> 8);
		sense[1] = (uint8_t)(length - 2);
	}
	s->cmd = x;
	slot_seal(c, s, sense, length, true);
}

/* 11.8: asks for the next parts of the data. True: nothing more can be asked for now. */
static bool r2t(struct vs_iconn *c, struct vs_icmd *x)
{
	struct vs_isession *ss = c->session;
	uint32_t total = vs_min(x->edtl, x->buffer_size), n;
	struct vs_islot *s;
	uint32_t i;

	if (x->asked >= total || x->r2t_open >= ss->p.max_outstanding_r2t)
		return true;
	for (i = 0; i < VS_IR2T_MAX && x->r2t[i].open; i++)
		;
	if (i == VS_IR2T_MAX)
		return true;
	n = vs_min(total - x->asked, ss->p.max_burst);
	x->r2t[i] = (struct vs_ir2t){ .offset = x->asked, .length = n, .open = true };
	x->r2t_open++;
	x->asked += n;
	s = slot_new(c, VS_I_R2T, VS_I_FINAL, x->itt);
	memcpy(s->header + 8, x->lun, 8);
	vs_put_be32(s->header + 20, x->index << 8 | i);
	/* StatSN is the next one, and is not taken: 11.8.3 */
	vs_put_be32(s->header + 24, c->stat_sn);
	vs_put_be32(s->header + 36, x->r2t_sn++);
	vs_put_be32(s->header + 40, x->r2t[i].offset);
	vs_put_be32(s->header + 44, n);
	slot_seal(c, s, NULL, 0, false);
	vs_count(&c->view.r2ts, 1);
	return false;
}

static void ready(struct vs_iconn *c, struct vs_iready *r)
{
	struct vs_islot *s = slot_new(c, r->bhs[0], r->bhs[1], vs_be32(r->bhs + 16));
	bool status = r->flags & VS_ISEND_STATUS;

	memcpy(s->header, r->bhs, VS_BHS);
	if (!status)
		vs_put_be32(s->header + 24, c->stat_sn);
	s->ready = r;
	slot_seal(c, s, r->data, r->length, status);
}

/* Turns queued items into slots while there is room. */
static void fill(struct vs_iconn *c)
{
	while (used(c) < VS_ITX_SLOTS && !vs_list_empty(&c->txq)) {
		struct vs_iitem *item = vs_container_of(c->txq.next, struct vs_iitem, link);
		bool done = true;

		if (item->kind == VS_IT_READY) {
			vs_list_del(&item->link);
			ready(c, vs_container_of(item, struct vs_iready, item));
			continue;
		}
		if (item->kind == VS_IT_R2T) {
			done = r2t(c, vs_container_of(item, struct vs_icmd, r2t_item));
		} else {
			struct vs_icmd *x = vs_container_of(item, struct vs_icmd, result);

			if (x->sent < x->data_length)
				done = data_in(c, x);
			else
				response(c, x);
		}
		if (done)
			vs_list_del(&item->link);
	}
}

/* ---- the socket --------------------------------------------------------------------------------------------------------------------------------- */

static void slot_sent(struct vs_iconn *c, struct vs_islot *s)
{
	if (s->cmd)
		vs_icmd_release(s->cmd);
	if (s->ready) {
		bool last = s->ready->flags & VS_ISEND_CLOSE;

		vs_iready_free(c, s->ready);
		if (last) {
			shutdown(c->source.fd, SHUT_WR);
			vs_iconn_event(c, VS_ICONN_SENT_LAST);
		}
	}
}

static void consume(struct vs_iconn *c, size_t n)
{
	while (n && used(c)) {
		struct vs_islot *s = &c->slots[c->slot_head % VS_ITX_SLOTS];
		uint32_t i = 0;

		while (i < s->niov && n >= s->iov[i].iov_len)
			n -= s->iov[i++].iov_len;
		if (i < s->niov) {
			s->iov[i].iov_base = (char *)s->iov[i].iov_base + n;
			s->iov[i].iov_len -= n;
			memmove(s->iov, s->iov + i, (s->niov - i) * sizeof(s->iov[0]));
			s->niov -= i;
			return;
		}
		c->slot_head++;
		slot_sent(c, s);
	}
}

void vs_itx_moved(struct vs_iconn *c, const uint8_t *from, uint32_t length, uint8_t *to)
{
	for (uint32_t k = c->slot_head; k != c->slot_tail; k++) {
		struct vs_islot *s = &c->slots[k % VS_ITX_SLOTS];

		for (uint32_t i = 0; i < s->niov; i++) {
			uint64_t at = (uintptr_t)s->iov[i].iov_base - (uintptr_t)from;

			if (at < length)
				s->iov[i].iov_base = to + at;
		}
	}
}

/* Until the socket is full, or it is the turn of other connections. */
void vs_itx_push(struct vs_iconn *c)
{
	uint64_t stop = vs_counted(&c->view.tx_bytes) + BYTES_A_TURN;

	c->push_ns = vs_now_ns();
	while (!c->dead && !c->blocked) {
		struct iovec iov[3 * VS_ITX_SLOTS];
		struct msghdr m = { .msg_iov = iov };
		ssize_t n;

		fill(c);
		if (!used(c))
			return;
		if (vs_counted(&c->view.tx_bytes) >= stop) {
			c->tx_more = true;
			return;
		}
		for (uint32_t k = c->slot_head; k != c->slot_tail; k++) {
			struct vs_islot *s = &c->slots[k % VS_ITX_SLOTS];

			memcpy(iov + m.msg_iovlen, s->iov, s->niov * sizeof(iov[0]));
			m.msg_iovlen += s->niov;
		}
		n = sendmsg(c->source.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			c->blocked = true; /* until conn_ready says otherwise */
			return;
		}
		if (n < 0) {
			vs_iconn_event(c, VS_ICONN_SOCKET_ERROR);
			return;
		}
		vs_count(&c->view.tx_bytes, (uint64_t)n);
		consume(c, (size_t)n);
		/* What waited for this to be sent is read at once: otherwise each turn would move no more than may be lent. */
		if (c->session->wake && !vs_list_empty(&c->wait_lent))
			vs_icmd_wake(c->session);
	}
}

/* The connection is closed: nothing more goes out. Commands are let go by vs_icmd_conn_gone. */
void vs_itx_drop(struct vs_iconn *c)
{
	for (; c->slot_head != c->slot_tail; c->slot_head++)
		free(c->slots[c->slot_head % VS_ITX_SLOTS].ready);
	while (!vs_list_empty(&c->txq)) {
		struct vs_iitem *item = vs_container_of(c->txq.next, struct vs_iitem, link);

		vs_list_del(&item->link);
		if (item->kind == VS_IT_READY)
			free(vs_container_of(item, struct vs_iready, item));
	}
}
