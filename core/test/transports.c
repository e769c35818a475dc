// SPDX-License-Identifier: Apache-2.0
/* See transports.h. Everything but open, set_map and close runs on the port's worker. */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "transports.h"
#include "gen/tables.h"

/* A transport that takes its time, one command in 32. */
static void dawdle(struct vs_worker *w, uint64_t tag)
{
	if ((tag * 0x9e3779b97f4a7c15ull >> 59) == 0)
		for (uint64_t end = vs_now_ns() + (w->now_ns & 0x3fff); vs_now_ns() < end; )
			vs_pause();
}

/* ---- the socket ------------------------------------------------------------------------------------------------------------------------- */

static void socket_send(struct socket_port *p, const struct wire_status *s)
{
	size_t n = offsetof(struct wire_status, data) + s->in_length;

	/* The initiator has at most PORT_SLOTS commands open, which the socket's buffer holds. */
	CHECK_EQ(send(p->source.fd, s, n, MSG_DONTWAIT | MSG_NOSIGNAL), n);
}

static void socket_complete(struct vs_task *t)
{
	struct socket_slot *s = vs_container_of(t, struct socket_slot, task);
	struct wire_status *a = s->answer;
	uint64_t expected = t->in_length ? t->in_length : t->out_length;

	CHECK(s->busy);
	a->tag = t->tag;
	a->status = t->status;
	a->response = t->response;
	a->sense_length = (uint8_t)vs_min((uint32_t)t->sense_len, (uint32_t)PORT_SENSE);
	memcpy(a->sense, t->sense, a->sense_length);
	a->residual = (uint32_t)(expected - vs_min(expected, t->transferred));
	a->in_length = t->in_length ? (uint32_t)vs_min(t->transferred, t->in_length) : 0;
	s->busy = false;
	socket_send(s->port, a);
}

static const struct vs_task_ops socket_ops = { .name = "test socket", .complete = socket_complete };

static void socket_start(struct socket_port *p, struct socket_slot *s)
{
	struct wire_command *c = s->command;
	struct vs_task *t = &s->task;

	CHECK(c->out_length <= PORT_DATA && c->in_length <= PORT_DATA);
	s->out = (struct iovec){ c->data, c->out_length };
	s->in = (struct iovec){ s->answer->data, c->in_length };
	*t = (struct vs_task){ .ops = &socket_ops, .w = p->w, .nexus = p->nexus, .credit = &p->credit, .port_cookie = p->cookie, .tag = c->tag,
			       .out = &s->out, .in = &s->in, .nout = c->out_length != 0, .nin = c->in_length != 0, .out_length = c->out_length,
			       .in_length = c->in_length, .attribute = c->attribute, .cdb_len = PORT_CDB,
			       .flags = c->truncate ? VS_TASK_TRUNCATE : 0 };
	memcpy(t->cdb, c->cdb, PORT_CDB);
	s->busy = true;
	dawdle(p->w, t->tag);
	if (vs_task_submit(t)) {
		/* A socket has no ring to leave the command in. */
		atomic_fetch_add(&p->refused, 1);
		t->status = VS_STATUS_TASK_SET_FULL;
		t->transferred = 0;
		socket_complete(t);
	}
}

static void socket_ready(struct vs_worker *w, struct vs_source *source, uint32_t events)
{
	struct socket_port *p = vs_container_of(source, struct socket_port, source);

	(void)w;
	(void)events;
	for (;;) {
		struct socket_slot *s = p->slots;
		ssize_t n;

		while (s < p->slots + PORT_SLOTS && s->busy)
			s++;
		CHECK(s < p->slots + PORT_SLOTS);
		n = recv(source->fd, s->command, sizeof(*s->command), MSG_DONTWAIT);
		if (n <= 0)
			return;
		CHECK_EQ(n, offsetof(struct wire_command, data) + s->command->out_length);
		socket_start(p, s);
		atomic_store(&p->taken, s->command->tag);
	}
}

static void socket_removed(struct vs_worker *w, struct vs_source *source)
{
	struct socket_port *p = vs_container_of(source, struct socket_port, source);

	close(source->fd);
	for (int i = 0; i < PORT_SLOTS; i++) {
		CHECK(!p->slots[i].busy);
		free(p->slots[i].command);
		free(p->slots[i].answer);
	}
	vs_upcall_after_flush(w, VS_UP_DONE, p->msg_cookie, 0, 0);
}

static void socket_open_run(struct vs_worker *w, struct vs_msg *m)
{
	struct socket_port *p = vs_container_of(m, struct socket_port, msg);

	vs_upcall_after_flush(w, VS_UP_DONE, p->msg_cookie, 0, w->engine->source_add(w, &p->source));
}

static void socket_close_run(struct vs_worker *w, struct vs_msg *m)
{
	w->engine->source_del(w, &vs_container_of(m, struct socket_port, msg)->source);
}

int socket_port_open(struct socket_port *p, vs_core *core, uint32_t worker, vs_nexus *nexus, uint64_t port_cookie, int32_t credit, int fd, uint64_t cookie)
{
	*p = (struct socket_port){ .w = &core->workers[worker], .nexus = nexus, .cookie = port_cookie, .msg_cookie = cookie };
	for (int i = 0; i < PORT_SLOTS; i++) {
		p->slots[i].port = p;
		p->slots[i].command = malloc(sizeof(struct wire_command));
		p->slots[i].answer = calloc(1, sizeof(struct wire_status));
		if (!p->slots[i].command || !p->slots[i].answer)
			return -ENOMEM;
	}
	vs_credit_init(&p->credit, core, credit);
	p->source = (struct vs_source){ .fd = fd, .events = EPOLLIN, .ready = socket_ready, .removed = socket_removed };
	p->msg.run = socket_open_run;
	vs_worker_send(p->w, &p->msg);
	return 0;
}

void socket_port_close(struct socket_port *p, uint64_t cookie)
{
	p->msg_cookie = cookie;
	p->msg.run = socket_close_run;
	vs_worker_send(p->w, &p->msg);
}

/* ---- the chip ---------------------------------------------------------------------------------------------------------------------------- */

enum { CHIP_RETRY_NS = 50000, CHIP_FETCH_NS = 30000 };

static void chip_complete(struct vs_task *t)
{
	struct chip_slot *s = vs_container_of(t, struct chip_slot, task);
	struct chip_block *b = s->block;
	uint64_t expected = t->in_length ? t->in_length : t->out_length;

	CHECK(s->busy);
	s->busy = false;
	dawdle(t->w, ~t->tag);
	b->status = t->status;
	b->response = t->response;
	b->residual = (uint32_t)(expected - vs_min(expected, t->transferred));
	vs_shared_release(&b->done);
	__atomic_store_n(&b->done, 1, __ATOMIC_RELEASE);
	vs_unpin(t->w, &s->map->pins);
}

static void chip_next(struct chip *c, uint64_t in_ns)
{
	CHECK_EQ(vs_timer_set(c->w, &c->step, vs_now_ns() + in_ns), 0);
}

/* Aborted between fetch and submit: there is nothing of it in the core but the list. */
static void chip_withdraw(struct vs_task *t)
{
	struct chip *c = vs_container_of(t, struct chip_slot, task)->chip;

	CHECK(c->state == CHIP_FETCHED && &c->fetched->task == t);
	c->state = CHIP_IDLE;
	atomic_fetch_add(&c->withdrawn, 1);
	chip_next(c, 0);
	vs_task_finish(t);
}

static const struct vs_task_ops chip_ops = { .name = "test chip", .complete = chip_complete, .withdraw = chip_withdraw };

/* The data's addresses as the map has them: a segment across two regions has two. */
static uint32_t chip_dma(struct chip *c, const struct chip_block *b, struct iovec *iov)
{
	uint32_t n = 0;

	CHECK(b->nsegments <= CHIP_SEGMENTS);
	for (uint32_t i = 0; i < b->nsegments; i++) {
		uint64_t at = b->segments[i].addr, left = b->segments[i].length;

		while (left) {
			uint64_t got;
			void *p = vs_memmap_guest_part(c->map, at, left, &got, NULL);

			CHECK(p && n < 2 * CHIP_SEGMENTS);
			iov[n++] = (struct iovec){ p, got };
			at += got;
			left -= got;
		}
	}
	return n;
}

static bool chip_fetch(struct chip *c)
{
	struct chip_memory *m = vs_memmap_guest(c->map, c->memory, sizeof(*m), NULL);
	struct chip_block copy;
	struct chip_slot *s;
	uint32_t i, n;

	CHECK(m);
	if (__atomic_load_n(&m->producer, __ATOMIC_ACQUIRE) == c->consumer)
		return false;
	vs_shared_acquire(&m->producer);
	i = m->ring[c->consumer++ % PORT_SLOTS];
	CHECK(i < PORT_SLOTS && !c->slots[i].busy);
	s = &c->slots[i];
	memcpy(&copy, &m->blocks[i], sizeof(copy));
	n = chip_dma(c, &copy, s->iov);
	s->chip = c;
	s->block = &m->blocks[i];
	s->map = c->map;
	s->busy = true;
	vs_pin(c->w, &s->map->pins);
	s->task = (struct vs_task){ .ops = &chip_ops, .w = c->w, .nexus = c->nexus, .lu = c->nexus->lu, .credit = &c->credit, .port_cookie = c->cookie,
				    .tag = copy.tag, .out = s->iov, .in = s->iov, .nout = copy.out_length ? n : 0, .nin = copy.in_length ? n : 0,
				    .out_length = copy.out_length, .in_length = copy.in_length, .attribute = (uint8_t)copy.attribute,
				    .cdb_len = PORT_CDB };
	memcpy(s->task.cdb, copy.cdb, PORT_CDB);
	vs_task_layer(&s->task, VS_LAYER_RING);
	vs_task_list(&s->task);
	c->fetched = s;
	c->state = CHIP_FETCHED;
	atomic_store(&c->taken, copy.tag);
	return true;
}

static void chip_run(struct chip *c, bool rested)
{
	for (;;) {
		if (c->state == CHIP_IDLE) {
			if (!chip_fetch(c))
				return;
			c->random = c->random * 6364136223846793005ull + 1442695040888963407ull;
			if (!rested && (c->random >> 60) == 0) { /* it looks at the command for a while */
				chip_next(c, CHIP_FETCH_NS);
				return;
			}
		}
		dawdle(c->w, c->fetched->task.tag);
		if (vs_task_submit(&c->fetched->task)) {
			atomic_fetch_add(&c->starved, 1);
			vs_task_layer(&c->fetched->task, VS_LAYER_RING);
			chip_next(c, CHIP_RETRY_NS);
			return;
		}
		c->state = CHIP_IDLE;
		rested = false;
	}
}

static void chip_step(struct vs_worker *w, struct vs_timer *t)
{
	(void)w;
	chip_run(vs_container_of(t, struct chip, step), true);
}

static void chip_rung(struct vs_worker *w, struct vs_source *source, uint32_t events)
{
	struct chip *c = vs_container_of(source, struct chip, bell);
	uint64_t ignored;
	ssize_t r = read(source->fd, &ignored, sizeof(ignored));

	(void)w;
	(void)r;
	(void)events;
	if (c->state == CHIP_IDLE) /* else the timer goes on */
		chip_run(c, false);
}

static void chip_removed(struct vs_worker *w, struct vs_source *source)
{
	struct chip *c = vs_container_of(source, struct chip, bell);

	close(source->fd);
	CHECK_EQ(c->state, CHIP_IDLE);
	for (int i = 0; i < PORT_SLOTS; i++)
		CHECK(!c->slots[i].busy);
	vs_timer_cancel(w, &c->step);
	vs_upcall_after_flush(w, VS_UP_DONE, c->msg_cookie, 0, 0);
}

static void chip_open_run(struct vs_worker *w, struct vs_msg *m)
{
	struct chip *c = vs_container_of(m, struct chip, msg);

	vs_upcall_after_flush(w, VS_UP_DONE, c->msg_cookie, 0, w->engine->source_add(w, &c->bell));
}

static void chip_map_run(struct vs_worker *w, struct vs_msg *m)
{
	struct chip *c = vs_container_of(m, struct chip, msg);

	c->map = c->next_map;
	vs_upcall_after_flush(w, VS_UP_DONE, c->msg_cookie, 0, 0);
}

static void chip_close_run(struct vs_worker *w, struct vs_msg *m)
{
	w->engine->source_del(w, &vs_container_of(m, struct chip, msg)->bell);
}

static void chip_order(struct chip *c, void (*run)(struct vs_worker *, struct vs_msg *), uint64_t cookie)
{
	c->msg_cookie = cookie;
	c->msg.run = run;
	vs_worker_send(c->w, &c->msg);
}

int chip_open(struct chip *c, vs_core *core, uint32_t worker, vs_nexus *nexus, vs_memmap *map, uint64_t memory, uint64_t port_cookie, int32_t credit, int bell_fd, uint64_t cookie)
{
	*c = (struct chip){ .w = &core->workers[worker], .nexus = nexus, .map = map, .memory = memory, .cookie = port_cookie, .random = cookie };
	vs_credit_init(&c->credit, core, credit);
	vs_timer_init(&c->step, chip_step);
	c->bell = (struct vs_source){ .fd = bell_fd, .events = EPOLLIN, .ready = chip_rung, .removed = chip_removed };
	chip_order(c, chip_open_run, cookie);
	return 0;
}

void chip_set_map(struct chip *c, vs_memmap *map, uint64_t cookie)
{
	c->next_map = map;
	chip_order(c, chip_map_run, cookie);
}

void chip_close(struct chip *c, uint64_t cookie) { chip_order(c, chip_close_run, cookie); }
