// SPDX-License-Identifier: Apache-2.0
/*
 * A PCI function over vfio-user as the control plane sees it: its life, its client's coming and going, the messages that Python answers, the windows of
 * memory and the interrupts that Python sets up. What is done without Python stands in the other hba_*.c.
 */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hba.h"

/* ---- on the worker ----------------------------------------------------------------------------------------------------------------------- */

void vs_hba_event(struct vs_hba *h, enum vs_hba_event event)
{
	if (h->dead || h->closing)
		return;
	h->dead = true;
	vs_upcall_new(h->core, VS_UP_HCONN, h->w->index, h->conn_cookie, event, 0, NULL);
}

void vs_hba_reset_done(struct vs_hba *h)
{
	if (!h->resetting)
		return;
	h->resetting = false;
	vs_upcall_after_flush(h->w, VS_UP_DONE, h->reset_cookie, 0, 0);
}

static int conn_poll(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_hba *h = vs_container_of(p, struct vs_hba, poller);
	int n;

	(void)w;
	n = vs_hrx_poll(h);
	vs_hrx_ask(h);
	return n;
}

static void conn_flush(struct vs_worker *w, struct vs_poller *p)
{
	(void)w;
	vs_htx_push(vs_container_of(p, struct vs_hba, poller));
}

static bool conn_arm(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_hba *h = vs_container_of(p, struct vs_hba, poller);

	(void)w;
	vs_hrx_ask(h);
	return vs_hrx_has_work(h);
}

static void conn_ready(struct vs_worker *w, struct vs_source *source, uint32_t events)
{
	struct vs_hba *h = vs_container_of(source, struct vs_hba, source);

	(void)w;
	if (h->closing)
		return;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		h->readable = true;
	if (h->blocked && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
		h->blocked = false;
		vs_poller_dirty(h->w, &h->poller);
	}
}

/* The last of: the engine has let go, Python has answered what it has. */
static void maybe_gone(struct vs_hba *h)
{
	if (!h->closing || !h->removed || h->asked)
		return;
	vs_list_del(&h->poller.link);
	vs_list_del(&h->poller.dirty);
	h->attached = h->closing = false;
	atomic_store(&h->taken, false);
	vs_upcall_after_flush(h->w, VS_UP_DONE, h->detach_cookie, 0, 0);
}

static void conn_removed(struct vs_worker *w, struct vs_source *source)
{
	struct vs_hba *h = vs_container_of(source, struct vs_hba, source);

	(void)w;
	close(source->fd);
	source->fd = -1;
	h->removed = true;
	maybe_gone(h);
}

/* ---- messages for Python -------------------------------------------------------------------------------------------------------------------- */

struct vs_hmsg *vs_hmsg_new(struct vs_hba *h, const uint8_t *data)
{
	uint32_t length = h->h.size - (uint32_t)sizeof(h->h);
	struct vs_hmsg *m = malloc(sizeof(*m) + length);

	if (!m) {
		vs_hba_event(h, VS_HBA_NO_MEMORY);
		return NULL;
	}
	m->hba = h;
	m->conn_cookie = h->conn_cookie;
	m->h = h->h;
	m->length = length;
	m->nfds = h->nfds;
	m->answer = NULL;
	m->no_memory = false;
	vs_list_init(&m->link);
	memcpy(m->fds, h->fds, sizeof(m->fds));
	memcpy(m->data, data, length);
	h->nfds = 0;
	return m;
}

void vs_hmsg_free(struct vs_hmsg *m)
{
	for (uint32_t i = 0; i < m->nfds; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
	vs_htx_free(m->answer);
	free(m);
}

void vs_hmsg_up(struct vs_hmsg *m)
{
	struct vs_hba *h = m->hba;

	h->asked = true;
	m->up = (struct vs_upnode){ .kind = VS_UP_HMSG, .worker = h->w->index, .cookie = h->conn_cookie, .object = m };
	vs_upcall(h->core, &m->up);
}

static void answer_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct vs_hmsg *m = vs_container_of(msg, struct vs_hmsg, msg);
	struct vs_hba *h = m->hba;

	(void)w;
	h->asked = false;
	if (m->no_memory)
		vs_hba_event(h, VS_HBA_NO_MEMORY);
	if (m->answer && !h->closing) {
		vs_htx_queue(h, m->answer);
		m->answer = NULL;
	}
	vs_hmsg_free(m);
	maybe_gone(h);
}

void vs_hmsg_info(const vs_hmsg *m, struct vs_hmsg_info *out)
{
	*out = (struct vs_hmsg_info){ .conn_cookie = m->conn_cookie, .data = m->data, .length = m->length, .nfds = m->nfds, .id = m->h.id,
				      .command = m->h.command, .flags = m->h.flags };
}

int vs_hmsg_take_fd(vs_hmsg *m, uint32_t index)
{
	int fd = index < m->nfds ? m->fds[index] : -1;

	if (fd >= 0)
		m->fds[index] = -1;
	return fd;
}

static struct vs_htx *build_answer(const struct vs_hmsg *m, uint32_t error, const uint8_t *data, uint32_t length, const int32_t *fds, uint32_t nfds)
{
	struct vs_hba_header own = { .id = m->h.id, .command = m->h.command, .flags = VS_HF_REPLY | (error ? VS_HF_ERROR : 0), .error = error };
	struct vs_htx *t = vs_htx_new(&own, data, error ? 0 : length);

	for (; t && t->nfds < nfds; t->nfds++) {
		t->fds[t->nfds] = dup(fds[t->nfds]);
		if (t->fds[t->nfds] < 0) {
			vs_htx_free(t);
			return NULL;
		}
	}
	return t;
}

int vs_hmsg_reply(vs_core *core, vs_hmsg *m, uint32_t error, const uint8_t *data, uint32_t length, const int32_t *fds, uint32_t nfds)
{
	(void)core;
	if (!(m->h.flags & VS_HF_NO_REPLY)) {
		m->answer = length <= VS_HBA_PAYLOAD_MAX && nfds <= VS_HBA_MSG_FDS ? build_answer(m, error, data, length, fds, nfds) : NULL;
		m->no_memory = !m->answer;
	}
	error = m->no_memory;
	m->msg.run = answer_run;
	vs_worker_send(m->hba->w, &m->msg);
	return error ? -ENOMEM : 0;
}

/* ---- orders of the control plane ---------------------------------------------------------------------------------------------------------- */

struct order {
	struct vs_msg msg;
	struct vs_hba *h;
	uint64_t cookie;
	int fd;
	uint32_t max_xfer, index, count;
	int fds[VS_HBA_MSG_FDS];
	struct vs_hba_table *table;
};

static struct order *order_new(struct vs_hba *h, void (*run)(struct vs_worker *, struct vs_msg *), uint64_t cookie)
{
	struct order *o = calloc(1, sizeof(*o));

	if (o) {
		o->msg.run = run;
		o->h = h;
		o->cookie = cookie;
	}
	return o;
}

static int give(struct order *o)
{
	if (!o)
		return -ENOMEM;
	vs_worker_send(o->h->w, &o->msg);
	return 0;
}

static void carried_out(struct order *o, int err)
{
	vs_upcall_after_flush(o->h->w, VS_UP_DONE, o->cookie, 0, err);
	free(o);
}

static void attach_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);
	struct vs_hba *h = o->h;

	h->conn_cookie = o->cookie;
	h->attached = h->readable = true;
	h->open = h->dead = h->closing = h->removed = h->blocked = h->asked = h->mute = false;
	h->source = (struct vs_source){ .fd = o->fd, .events = EPOLLIN | EPOLLRDHUP | EPOLLET, .once = true, .ready = conn_ready, .removed = conn_removed };
	free(o);
	vs_list_add_tail(&w->pollers, &h->poller.link);
	if (w->engine->source_add(w, &h->source)) {
		h->removed = true;
		vs_hba_event(h, VS_HBA_SOCKET_ERROR);
	}
}

int vs_hba_attach(vs_hba *h, int fd, uint64_t conn_cookie)
{
	struct order *o = order_new(h, attach_run, conn_cookie);

	if (!o || atomic_exchange(&h->taken, true)) {
		free(o);
		close(fd);
		return o ? -EBUSY : -ENOMEM;
	}
	o->fd = fd;
	return give(o);
}

static void open_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);

	(void)w;
	o->h->open = true;
	o->h->max_xfer = o->max_xfer;
	carried_out(o, 0);
}

int vs_hba_open(vs_hba *h, uint32_t max_xfer, uint64_t cookie)
{
	struct order *o;

	if (!max_xfer)
		return -EINVAL;
	o = order_new(h, open_run, cookie);
	if (o)
		o->max_xfer = vs_min(max_xfer, (uint32_t)VS_HBA_XFER_MAX);
	return give(o);
}

static void detach_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);
	struct vs_hba *h = o->h;

	if (!h->attached || h->closing) {
		carried_out(o, -ENOTCONN);
		return;
	}
	h->detach_cookie = o->cookie;
	free(o);
	if (!h->dead)
		vs_htx_push(h);
	h->dead = true;
	vs_hrx_drop(h);
	vs_htx_drop(h);
	vs_hba_dma_drop(h);
	vs_hba_irqs_drop(h);
	h->closing = true;
	if (!h->removed) {
		shutdown(h->source.fd, SHUT_RDWR);
		w->engine->source_del(w, &h->source);
		return;
	}
	if (h->source.fd >= 0)
		close(h->source.fd);
	h->source.fd = -1;
	maybe_gone(h);
}

int vs_hba_detach(vs_hba *h, uint64_t cookie) { return give(order_new(h, detach_run, cookie)); }

static void reset_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);
	struct vs_hba *h = o->h;

	(void)w;
	if (h->resetting) {
		carried_out(o, -EBUSY);
		return;
	}
	h->resetting = true;
	h->reset_cookie = o->cookie;
	free(o);
	h->ops->reset(h);
}

int vs_hba_reset(vs_hba *h, uint64_t cookie) { return give(order_new(h, reset_run, cookie)); }

static void windows_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);

	(void)w;
	free(o->h->table);
	o->h->table = o->table;
	carried_out(o, 0);
}

static int by_addr(const void *a, const void *b)
{
	return ((const struct vs_hba_window *)a)->addr < ((const struct vs_hba_window *)b)->addr ? -1 : 1;
}

static bool windows_fit(const struct vs_hba_table *t)
{
	for (uint32_t i = 0; i < t->n; i++) {
		const struct vs_hba_window *w = &t->windows[i];

		if (!w->size || w->size - 1 > UINT64_MAX - w->addr || !w->map || (i && w->addr - w[-1].addr < w[-1].size))
			return false;
		if ((w->flags & VS_HBA_DIRECT) && !vs_memmap_guest(w->map, w->addr, w->size, NULL))
			return false;
	}
	return true;
}

int vs_hba_set_windows(vs_hba *h, const struct vs_hba_window *windows, uint32_t n, uint64_t cookie)
{
	struct vs_hba_table *t;
	struct order *o;

	if (n > VS_HBA_WINDOWS_MAX)
		return -E2BIG;
	t = malloc(sizeof(*t) + n * sizeof(*windows));
	if (!t)
		return -ENOMEM;
	t->n = n;
	if (n)
		memcpy(t->windows, windows, n * sizeof(*windows));
	qsort(t->windows, n, sizeof(*windows), by_addr);
	o = windows_fit(t) ? order_new(h, windows_run, cookie) : NULL;
	if (!o) {
		int err = windows_fit(t) ? -ENOMEM : -EINVAL;

		free(t);
		return err;
	}
	o->table = t;
	return give(o);
}

static void irqs_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);
	struct vs_hba *h = o->h;
	struct vs_hba_irq *irq = &h->irqs[o->index];

	(void)w;
	/* The client that they are for has gone meanwhile: vs_hba_irqs_drop was before this. */
	vs_bell_set(&irq->bell, h->attached && !h->closing ? o->fds[0] : -1);
	if (irq->bell.fd < 0 && o->fds[0] >= 0)
		close(o->fds[0]);
	irq->masked = irq->pending = false;
	if (irq->level)
		vs_hba_irq_trigger(h, o->index);
	carried_out(o, 0);
}

int vs_hba_set_irq_fds(vs_hba *h, uint32_t index, uint32_t start, uint32_t count, const int32_t *fds, uint64_t cookie)
{
	/* count is 1 where it is anything: no type has more. */
	bool exists = vs_hba_irq_exists(h, index, start, count);
	struct order *o = exists ? order_new(h, irqs_run, cookie) : NULL;

	if (!o) {
		for (uint32_t i = 0; i < count; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		return exists ? -ENOMEM : -EINVAL;
	}
	o->index = index;
	o->fds[0] = fds[0];
	return give(o);
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------------- */

static void hba_free(struct vs_hba *h)
{
	for (int i = 0; i < VS_HBA_REGIONS; i++)
		if (h->regions[i].fd >= 0)
			close(h->regions[i].fd);
	free(h->table);
	free(h->rx);
	free(h->scratch);
	free(h);
}

static int function_init(struct vs_hba *h, uint32_t chip)
{
	switch (chip) {
	case VS_HBA_EXERCISER:
		return vs_hba_exerciser_init(h);
	case VS_HBA_LSI53C895A:
		return vs_hba_lsi_init(h);
	default:
		return -EINVAL;
	}
}

int vs_hba_create(vs_core *core, const struct vs_hba_params *p, vs_hba **out)
{
	struct vs_hba *h;
	int err = -ENOMEM;

	if (p->worker >= core->config.nworkers)
		return -EINVAL;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->core = core;
	h->w = &core->workers[p->worker];
	h->cookie = p->cookie;
	h->poller = (struct vs_poller){ .poll = conn_poll, .flush = conn_flush, .arm = conn_arm };
	vs_list_init(&h->poller.link);
	vs_list_init(&h->poller.dirty);
	vs_list_init(&h->parked);
	vs_list_init(&h->txq);
	vs_list_init(&h->dma);
	h->source.fd = -1;
	for (int i = 0; i < VS_HBA_REGIONS; i++)
		h->regions[i].fd = -1;
	for (int i = 0; i < VS_HBA_IRQS; i++)
		h->irqs[i].bell.fd = -1;
	h->rx = malloc(VS_HBA_PAYLOAD_MAX);
	h->scratch = malloc(VS_HBA_PAYLOAD_MAX);
	h->table = calloc(1, sizeof(*h->table));
	if (h->rx && h->scratch && h->table)
		err = function_init(h, p->chip);
	if (err) {
		hba_free(h);
		return err;
	}
	*out = h;
	return 0;
}

static void destroy_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct order *o = vs_container_of(msg, struct order, msg);
	struct vs_hba *h = o->h;

	h->ops->destroy(h);
	vs_upcall_after_flush(w, VS_UP_DONE, o->cookie, 0, 0);
	hba_free(h);
	free(o);
}

int vs_hba_destroy(vs_hba *h, uint64_t cookie)
{
	return atomic_load(&h->taken) ? -EBUSY : give(order_new(h, destroy_run, cookie));
}

int vs_hba_region_info(const vs_hba *h, uint32_t index, struct vs_hba_region_info *out)
{
	if (index >= VS_HBA_REGIONS)
		return -EINVAL;
	*out = h->regions[index];
	return 0;
}

uint32_t vs_hba_irq_count(const vs_hba *h, uint32_t index) { return index < VS_HBA_IRQS ? h->irq_counts[index] : 0; }

void vs_hba_stats(const vs_hba *h, struct vs_hba_stats *out)
{
	*out = (struct vs_hba_stats){
		.reads = vs_counted(&h->stats.reads), .writes = vs_counted(&h->stats.writes), .interrupts = vs_counted(&h->stats.interrupts),
		.interrupts_masked = vs_counted(&h->stats.interrupts_masked), .messages = vs_counted(&h->stats.messages),
		.dma_messages = vs_counted(&h->stats.dma_messages), .dma_faults = vs_counted(&h->stats.dma_faults),
		.stray_replies = vs_counted(&h->stats.stray_replies), .refused = vs_counted(&h->stats.refused),
	};
}
