/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A wrapper that lets each io wait before it goes on to the store below, by class of operation: so that commands are in flight long enough
 * to be looked at and aborted. Nothing is reordered on purpose; equal delays keep the order only as timers do.
 */
#include <stdlib.h>

#include "store.h"

enum { DELAY_WAITING = 1, DELAY_CUT = 2, DELAY_BELOW = 3 };

struct delay_store {
	struct vs_store store;
	uint64_t wait_ns[VS_IO_OPS];
};

static inline struct delay_store *delay_of(struct vs_store *s)
{
	return vs_container_of(s, struct delay_store, store);
}

static void delay_child_done(struct vs_io *child)
{
	struct vs_io *io = child->owner;
	int32_t err = child->err;

	vs_io_put(io->w, child);
	vs_io_end(io, err);
}

static enum vs_submit delay_pass(struct vs_store *s, struct vs_io *io)
{
	struct vs_io *child = vs_io_get(io->w);

	if (!child) {
		io->err = VS_ERR_BUSY;
		return VS_SUBMIT_DONE;
	}
	child->op = io->op;
	child->flags = io->flags;
	child->offset = io->offset;
	child->length = io->length;
	child->iov = io->iov;
	child->niov = io->niov;
	child->done = delay_child_done;
	child->owner = io;
	io->priv = child;
	io->state = DELAY_BELOW;
	if (vs_store_submit(s->lower, child) == VS_SUBMIT_PENDING)
		return VS_SUBMIT_PENDING;
	io->err = child->err;
	vs_io_put(io->w, child);
	return VS_SUBMIT_DONE;
}

static void delay_fire(struct vs_worker *w, struct vs_timer *t)
{
	struct vs_io *io = vs_container_of(t, struct vs_io, timer);

	(void)w;
	if (io->state == DELAY_CUT)
		vs_io_end(io, VS_ERR_ABORTED);
	else if (delay_pass(io->store, io) == VS_SUBMIT_DONE)
		vs_io_end(io, io->err);
}

static enum vs_submit delay_submit(struct vs_store *s, struct vs_io *io)
{
	uint64_t wait_ns = delay_of(s)->wait_ns[io->op];

	if (wait_ns == 0)
		return delay_pass(s, io);
	io->state = DELAY_WAITING;
	vs_timer_init(&io->timer, delay_fire);
	/* Not w->now_ns, which may be as old as the turn: a delay is never shorter than was asked for. */
	if (vs_timer_set(io->w, &io->timer, vs_now_ns() + wait_ns)) {
		io->err = VS_ERR_BUSY;
		return VS_SUBMIT_DONE;
	}
	return VS_SUBMIT_PENDING;
}

/* The io ends from the next run of the timers, not from here: whoever cancels may be walking the list that done() changes. */
static void delay_cancel(struct vs_store *s, struct vs_io *io)
{
	if (io->state == DELAY_BELOW) {
		vs_store_cancel(s->lower, io->priv);
	} else if (io->state == DELAY_WAITING) {
		io->state = DELAY_CUT;
		vs_timer_set(io->w, &io->timer, 0); /* moves a timer that is set: needs no memory */
	}
}

static int delay_resize(struct vs_store *s, uint64_t size)
{
	int err = vs_store_resize(s->lower, size);

	if (!err)
		__atomic_store_n(&s->info.size, vs_store_size(s->lower), __ATOMIC_RELAXED);
	return err;
}

static int delay_map(struct vs_store *s, uint64_t offset, uint64_t length, int *mapped, uint64_t *run)
{
	return vs_store_map(s->lower, offset, length, mapped, run);
}

static int delay_usage(struct vs_store *s, struct vs_store_usage *out)
{
	return vs_store_usage(s->lower, out);
}

static void delay_destroy(struct vs_store *s)
{
	vs_store_fini(s);
	free(delay_of(s));
}

static const struct vs_store_ops delay_ops = {
	.kind = "delay",
	.submit = delay_submit,
	.destroy = delay_destroy,
	.resize = delay_resize,
	.map = delay_map,
	.usage = delay_usage,
	.cancel = delay_cancel,
};

int vs_store_delay(vs_core *core, vs_store *lower, uint64_t read_us, uint64_t write_us, uint64_t flush_us, vs_store **out, char *why,
		   uint32_t why_size)
{
	const uint64_t hour = 3600ull * 1000 * 1000;
	struct delay_store *d;

	if (read_us > hour || write_us > hour || flush_us > hour)
		return vs_store_why(why, why_size, EINVAL, "delay: longer than an hour");
	d = calloc(1, sizeof(*d));
	if (!d || vs_store_init(&d->store, core, &delay_ops, lower)) {
		free(d);
		return vs_store_why(why, why_size, ENOMEM, "delay: out of memory");
	}
	vs_store_info(lower, &d->store.info);
	d->wait_ns[VS_IO_READ] = read_us * 1000;
	d->wait_ns[VS_IO_WRITE] = d->wait_ns[VS_IO_UNMAP] = d->wait_ns[VS_IO_ZERO] = write_us * 1000;
	d->wait_ns[VS_IO_FLUSH] = flush_us * 1000;
	*out = &d->store;
	return 0;
}
