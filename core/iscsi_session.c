// SPDX-License-Identifier: Apache-2.0
/*
 * Sessions and connections of iSCSI as the control plane sees them: creation, the command window, PDUs that go up to Python and come
 * back, closing. RFC 7143 4.2.2 (numbering), 6 (states) as far as the full-feature phase goes.
 */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "crc32c.h"
#include "iscsi.h"

/* Beside the window: answers on their way out, and immediate commands. */
enum { SPARE_COMMANDS = VS_ITX_SLOTS + 16 };

uint32_t vs_crc32c_of(uint32_t crc, const uint8_t *data, uint64_t length) { return vs_crc32c(crc, data, length); }

/* ---- the window ---------------------------------------------------------------------------------------------------------------------- */

/* 4.2.2.1: MaxCmdSN never goes back. What is counted is commands whose status has not been put into a PDU. */
void vs_isession_window(struct vs_isession *s)
{
	uint32_t max = s->exp_cmd_sn + (s->p.queue_depth - vs_min(s->active, s->p.queue_depth)) - 1;

	if ((int32_t)(max - s->max_cmd_sn) > 0)
		s->max_cmd_sn = max;
}

bool vs_isession_single(const struct vs_isession *s)
{
	return s->conns.next == s->conns.prev;
}

/* ---- sessions -------------------------------------------------------------------------------------------------------------------------------- */

int vs_isession_create(vs_core *core, const struct vs_isession_params *p, vs_isession **out)
{
	struct vs_isession *s;
	uint32_t sns = 1;

	if (p->worker >= core->config.nworkers || !p->queue_depth || p->queue_depth > 4096 || !p->max_burst || !p->first_burst ||
	    p->first_burst > p->max_burst || !p->max_outstanding_r2t || !p->credit || !p->max_transfer || p->max_transfer < p->first_burst)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->core = core;
	s->w = &core->workers[p->worker];
	s->p = *p;
	s->p.max_outstanding_r2t = vs_min(p->max_outstanding_r2t, (uint32_t)VS_IR2T_MAX);
	s->exp_cmd_sn = p->exp_cmd_sn;
	s->long_sn = (UINT64_C(1) << 32) + p->exp_cmd_sn;
	s->max_cmd_sn = p->exp_cmd_sn + p->queue_depth - 1;
	s->ncmds = p->queue_depth + SPARE_COMMANDS;
	while (sns < p->queue_depth)
		sns *= 2;
	s->sn_mask = sns - 1;
	s->sns = calloc(sns, sizeof(*s->sns));
	s->cmds = calloc(s->ncmds, sizeof(*s->cmds));
	s->refused = vs_irefused_new();
	if (!s->cmds || !s->sns || !s->refused) {
		vs_irefused_put(s->refused);
		free(s->cmds);
		free(s->sns);
		free(s);
		return -ENOMEM;
	}
	vs_credit_init(&s->credit, core, (int32_t)p->credit);
	vs_list_init(&s->free);
	vs_list_init(&s->order);
	vs_list_init(&s->wait_buffer);
	vs_list_init(&s->conns);
	vs_list_init(&s->lent);
	vs_list_init(&s->buffer_wait);
	atomic_fetch_add(&s->w->ibuffers.sessions, 1);
	for (uint32_t i = 0; i < s->ncmds; i++) {
		struct vs_icmd *x = &s->cmds[i];

		x->index = i;
		vs_list_init(&x->on_conn);
		vs_list_init(&x->order);
		vs_list_init(&x->lent_link);
		vs_list_init(&x->result.link);
		vs_list_init(&x->r2t_item.link);
		vs_list_add_tail(&s->free, &x->link);
	}
	*out = s;
	return 0;
}

int vs_isession_set_luns(vs_isession *s, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie)
{
	for (uint32_t i = 0; i < n; i++)
		if (entries[i].target)
			return -EINVAL;
	return vs_lunmap_replace(s->core, &s->luns, entries, n, cookie);
}

struct session_msg { struct vs_msg msg; struct vs_isession *s; uint64_t cookie; };

static void session_free(struct vs_worker *w, struct vs_msg *m)
{
	struct session_msg *o = vs_container_of(m, struct session_msg, msg);
	struct vs_isession *s = o->s;

	vs_ibuffers_free(s);
	vs_lunmap_free(&s->luns);
	vs_irefused_put(s->refused);
	free(s->cmds);
	free(s->sns);
	free(s);
	vs_upcall_after_flush(w, VS_UP_DONE, o->cookie, 0, 0);
	free(o);
}

int vs_isession_destroy(vs_isession *s, uint64_t cookie)
{
	struct session_msg *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->msg.run = session_free;
	o->s = s;
	o->cookie = cookie;
	vs_worker_send(s->w, &o->msg);
	return 0;
}

struct plug_msg { struct vs_msg msg; struct vs_isession *s; uint32_t first, end; uint64_t cookie; };

static void plug_run(struct vs_worker *w, struct vs_msg *m)
{
	struct plug_msg *o = vs_container_of(m, struct plug_msg, msg);
	uint32_t n = vs_isn_plug(o->s, o->first, o->end);

	for (struct vs_list *l = o->s->conns.next; l != &o->s->conns; l = l->next)
		vs_iconn_view(vs_container_of(l, struct vs_iconn, link));
	vs_upcall_after_flush(w, VS_UP_DONE, o->cookie, n, 0);
	free(o);
}

int vs_isession_plug(vs_isession *s, uint32_t first, uint32_t end, uint64_t cookie)
{
	struct plug_msg *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	*o = (struct plug_msg){ .msg.run = plug_run, .s = s, .first = first, .end = end, .cookie = cookie };
	vs_worker_send(s->w, &o->msg);
	return 0;
}

/* ---- connections on their worker -------------------------------------------------------------------------------------------------------------- */

void vs_iconn_event(struct vs_iconn *c, enum vs_iconn_event event)
{
	if (c->dead || c->closing)
		return;
	c->dead = true;
	vs_upcall_new(c->w->core, VS_UP_ICONN, c->w->index, c->cookie, event, 0, NULL);
}

void vs_iconn_view(struct vs_iconn *c)
{
	const struct vs_isession *s = c->session;

	atomic_store_explicit(&c->view.exp_cmd_sn, s->exp_cmd_sn, memory_order_relaxed);
	atomic_store_explicit(&c->view.max_cmd_sn, s->max_cmd_sn, memory_order_relaxed);
	atomic_store_explicit(&c->view.active, s->active, memory_order_relaxed);
	atomic_store_explicit(&c->view.waiting_buffer, !vs_list_empty(&s->wait_buffer) || !vs_list_empty(&c->wait_lent), memory_order_relaxed);
}

void vs_iconn_measure(struct vs_iconn *c, const struct vs_icmd *x)
{
	struct vs_ilatency *l = &c->latency[x->read ? 0 : x->write ? 1 : 2];
	uint64_t ns = c->push_ns - x->arrived_ns, us = ns / 1000;
	uint32_t k = us ? 64 - (uint32_t)__builtin_clzll(us) : 0;

	if (!vs_counted(&l->count) || ns < vs_counted(&l->min_ns))
		atomic_store_explicit(&l->min_ns, ns, memory_order_relaxed);
	if (ns > vs_counted(&l->max_ns))
		atomic_store_explicit(&l->max_ns, ns, memory_order_relaxed);
	vs_count(&l->total_ns, ns);
	vs_count(&l->buckets[vs_min(k, (uint32_t)VS_ILATENCY_BUCKETS - 1)], 1);
	vs_count(&l->count, 1);
}

static int conn_poll(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_iconn *c = vs_container_of(p, struct vs_iconn, poller);
	int n = 0;

	(void)w;
	if (vs_unlikely(vs_icmd_owes(c->session))) {
		vs_icmd_give_back_some(c->session);
		n++;
	}
	vs_iconn_look(c);
	if (vs_unlikely(c->session->wake))
		n += vs_icmd_wake(c->session);
	if (vs_unlikely(c->tx_more)) {
		c->tx_more = false;
		vs_poller_dirty(c->w, &c->poller);
		n++;
	}
	if (vs_irx_has_work(c))
		n += vs_irx_poll(c);
	vs_iconn_ask(c);
	if (n)
		vs_iconn_view(c);
	return n;
}

static void conn_flush(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_iconn *c = vs_container_of(p, struct vs_iconn, poller);

	(void)w;
	vs_itx_push(c);
	vs_iconn_view(c);
}

static bool conn_arm(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_iconn *c = vs_container_of(p, struct vs_iconn, poller);

	(void)w;
	vs_iconn_cool(c);
	vs_iconn_ask(c);
	return vs_irx_has_work(c) || c->session->wake || c->tx_more || vs_icmd_owes(c->session);
}

static void conn_ready(struct vs_worker *w, struct vs_source *source, uint32_t events)
{
	struct vs_iconn *c = vs_container_of(source, struct vs_iconn, source);

	(void)w;
	if (c->closing)
		return;
	if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		c->ended = true;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		c->readable = true;
	if (c->blocked && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
		c->blocked = false;
		vs_poller_dirty(c->w, &c->poller);
	}
}

static void conn_removed(struct vs_worker *w, struct vs_source *source)
{
	struct vs_iconn *c = vs_container_of(source, struct vs_iconn, source);

	(void)w;
	close(source->fd);
	source->fd = -1;
	c->removed = true;
	vs_iconn_maybe_gone(c);
}

/* The last of: the engine has let go, no command names it, Python has given its PDUs back. */
void vs_iconn_maybe_gone(struct vs_iconn *c)
{
	if (!c->closing || !c->removed || c->upcalls || !vs_list_empty(&c->cmds))
		return;
	vs_iconn_cool(c);
	vs_list_del(&c->link);
	vs_list_del(&c->poller.link);
	vs_list_del(&c->poller.dirty);
	vs_upcall_after_flush(c->w, VS_UP_DONE, c->close_cookie, 0, 0);
	free(c->rx);
	free(c);
}

struct conn_msg { struct vs_msg msg; struct vs_iconn *c; uint64_t cookie; struct vs_iready *ready; };

static struct conn_msg *conn_msg(struct vs_iconn *c, void (*run)(struct vs_worker *, struct vs_msg *), uint64_t cookie)
{
	struct conn_msg *o = calloc(1, sizeof(*o));

	if (o) {
		o->msg.run = run;
		o->c = c;
		o->cookie = cookie;
	}
	return o;
}

static void start_run(struct vs_worker *w, struct vs_msg *m)
{
	struct conn_msg *o = vs_container_of(m, struct conn_msg, msg);
	struct vs_iconn *c = o->c;

	free(o);
	vs_list_add_tail(&c->session->conns, &c->link);
	vs_list_add_tail(&w->pollers, &c->poller.link);
	c->readable = true;
	if (w->engine->source_add(w, &c->source)) {
		c->removed = true;
		vs_iconn_event(c, VS_ICONN_SOCKET_ERROR);
	}
	vs_iconn_view(c);
}

static void drop_partial(struct vs_iconn *c)
{
	free(c->data_pdu);
	free(c->data_echo);
	c->data_pdu = NULL;
	c->data_echo = NULL;
	c->data_cmd = NULL;
	c->data_to = NULL;
}

static void close_run(struct vs_worker *w, struct vs_msg *m)
{
	struct conn_msg *o = vs_container_of(m, struct conn_msg, msg);
	struct vs_iconn *c = o->c;

	c->close_cookie = o->cookie;
	free(o);
	/* What was queued before goes out as far as the socket takes it: the answer to a logout, the last message. */
	if (!c->dead)
		vs_itx_push(c);
	c->dead = true;
	drop_partial(c);
	vs_itx_drop(c);
	vs_isn_conn_gone(c);
	/* closing is set last: until then nothing here frees the connection. */
	vs_icmd_conn_gone(c);
	c->closing = true;
	if (!c->removed) {
		shutdown(c->source.fd, SHUT_RDWR);
		w->engine->source_del(w, &c->source);
		return;
	}
	if (c->source.fd >= 0)
		close(c->source.fd);
	c->source.fd = -1;
	vs_iconn_maybe_gone(c);
}

static void send_run(struct vs_worker *w, struct vs_msg *m)
{
	struct conn_msg *o = vs_container_of(m, struct conn_msg, msg);

	(void)w;
	if (o->c->dead || o->c->closing) {
		free(o->ready);
	} else {
		o->c->kept += o->ready->size;
		vs_itx_queue(o->c, &o->ready->item, VS_IT_READY);
	}
	free(o);
}

static void max_send_run(struct vs_worker *w, struct vs_msg *m)
{
	struct conn_msg *o = vs_container_of(m, struct conn_msg, msg);

	(void)w;
	o->c->max_send = (uint32_t)o->cookie;
	free(o);
}

/* ---- what the control plane calls ------------------------------------------------------------------------------------------------------------------- */

int vs_iconn_start(vs_isession *s, const struct vs_iconn_params *p, vs_iconn **out)
{
	struct conn_msg *o;
	struct vs_iconn *c;

	if (p->leftover_length > VS_IRX_BYTES || p->max_send_segment < 512 || p->max_recv_segment < 512) {
		close(p->fd);
		return -EINVAL;
	}
	c = calloc(1, sizeof(*c));
	o = c ? conn_msg(c, start_run, 0) : NULL;
	if (o)
		c->rx = malloc(VS_IRX_BYTES);
	if (!o || !c->rx) {
		free(o);
		free(c);
		close(p->fd);
		return -ENOMEM;
	}
	c->session = s;
	c->w = s->w;
	c->cookie = p->cookie;
	c->cid = p->cid;
	c->header_digest = p->header_digest;
	c->data_digest = p->data_digest;
	c->max_send = p->max_send_segment;
	c->max_recv = p->max_recv_segment;
	c->stat_sn = p->stat_sn;
	/* Once, or edges: a connection that is held up, dead or has nothing to send must not be told again and again. */
	c->source = (struct vs_source){ .fd = p->fd, .events = EPOLLIN | EPOLLRDHUP | EPOLLET, .once = true, .ready = conn_ready, .removed = conn_removed };
	c->poller = (struct vs_poller){ .poll = conn_poll, .flush = conn_flush, .arm = conn_arm };
	vs_list_init(&c->poller.link);
	vs_list_init(&c->poller.dirty);
	vs_list_init(&c->link);
	vs_list_init(&c->cmds);
	vs_list_init(&c->wait_lent);
	vs_list_init(&c->txq);
	if (p->leftover_length)
		memcpy(c->rx, p->leftover, p->leftover_length);
	c->rx_tail = p->leftover_length;
	*out = c;
	vs_worker_send(s->w, &o->msg);
	return 0;
}

int vs_iconn_set_max_send(vs_iconn *c, uint32_t length)
{
	struct conn_msg *o = length < 512 ? NULL : conn_msg(c, max_send_run, length);

	if (!o)
		return length < 512 ? -EINVAL : -ENOMEM;
	vs_worker_send(c->w, &o->msg);
	return 0;
}

int vs_iconn_close(vs_iconn *c, uint64_t cookie)
{
	struct conn_msg *o = conn_msg(c, close_run, cookie);

	if (!o)
		return -ENOMEM;
	vs_worker_send(c->w, &o->msg);
	return 0;
}

int vs_iconn_send(vs_iconn *c, const uint8_t *bhs, const uint8_t *data, uint32_t length, uint32_t flags)
{
	struct vs_iready *r;
	struct conn_msg *o;

	if (length > c->max_send)
		return -EINVAL;
	r = malloc(sizeof(*r) + length);
	o = r ? conn_msg(c, send_run, 0) : NULL;
	if (!o) {
		free(r);
		return -ENOMEM;
	}
	memcpy(r->bhs, bhs, VS_BHS);
	if (length)
		memcpy(r->data, data, length);
	r->length = length;
	r->size = (uint32_t)sizeof(*r) + length;
	r->flags = flags;
	o->ready = r;
	vs_worker_send(c->w, &o->msg);
	return 0;
}

void vs_ipdu_info(const vs_ipdu *p, struct vs_ipdu_info *out)
{
	*out = (struct vs_ipdu_info){ .session_cookie = p->conn->session->p.cookie, .conn_cookie = p->conn->cookie, .bhs = p->bhs, .ahs = p->bytes,
				      .data = p->bytes + p->ahs_length, .ahs_length = p->ahs_length, .data_length = p->data_length, .order = p->order };
}

static void pdu_done_run(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_ipdu *p = vs_container_of(m, struct vs_ipdu, msg);
	struct vs_iconn *c = p->conn;

	(void)w;
	free(p);
	c->upcalls--;
	vs_iconn_maybe_gone(c);
}

void vs_ipdu_done(vs_core *core, vs_ipdu *p)
{
	(void)core;
	p->msg.run = pdu_done_run;
	vs_worker_send(p->conn->w, &p->msg);
}

void vs_iconn_info(const vs_iconn *c, struct vs_iconn_info *out)
{
	memset(out, 0, sizeof(*out));
	for (int i = 0; i < VS_ILATENCY_KINDS; i++) {
		const struct vs_ilatency *l = &c->latency[i];
		struct vs_ilatency_info *to = &out->latency[i];

		to->count = vs_counted(&l->count);
		to->total_ns = vs_counted(&l->total_ns);
		to->min_ns = vs_counted(&l->min_ns);
		to->max_ns = vs_counted(&l->max_ns);
		for (int k = 0; k < VS_ILATENCY_BUCKETS; k++)
			to->buckets[k] = vs_counted(&l->buckets[k]);
	}
	out->rx_bytes = vs_counted(&c->view.rx_bytes);
	out->tx_bytes = vs_counted(&c->view.tx_bytes);
	out->rx_pdus = vs_counted(&c->view.rx_pdus);
	out->tx_pdus = vs_counted(&c->view.tx_pdus);
	out->commands = vs_counted(&c->view.commands);
	out->r2ts = vs_counted(&c->view.r2ts);
	out->last_heard_ns = vs_counted(&c->view.last_heard_ns);
	out->stat_sn = atomic_load((_Atomic uint32_t *)&c->view.stat_sn);
	out->exp_cmd_sn = atomic_load((_Atomic uint32_t *)&c->view.exp_cmd_sn);
	out->max_cmd_sn = atomic_load((_Atomic uint32_t *)&c->view.max_cmd_sn);
	out->active = atomic_load((_Atomic uint32_t *)&c->view.active);
	out->digest_errors = atomic_load((_Atomic uint32_t *)&c->view.digest_errors);
	out->waiting_buffer = atomic_load((_Atomic uint32_t *)&c->view.waiting_buffer);
}
