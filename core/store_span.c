/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges that ios of one store hold against each other (copy-up in an overlay, read-modify-write below the direct-I/O unit). Only those
 * paths come here; plain reads never do. It knows nothing of logical blocks: range locks of commands are excl.c.
 */
#include "store.h"

void vs_spans_init(struct vs_spans *r, uint64_t granule)
{
	pthread_mutex_init(&r->lock, NULL);
	r->held = NULL;
	r->wait_head = NULL;
	r->wait_tail = &r->wait_head;
	r->granule = granule;
}

void vs_spans_fini(struct vs_spans *r)
{
	pthread_mutex_destroy(&r->lock);
}

static bool overlaps(const struct vs_spans *r, const struct vs_io *a, const struct vs_io *b)
{
	uint64_t mask = ~(r->granule - 1);
	uint64_t a_last = (a->offset + a->length - 1) & mask, b_last = (b->offset + b->length - 1) & mask;

	return (a->offset & mask) <= b_last && (b->offset & mask) <= a_last;
}

static bool conflicts(const struct vs_spans *r, const struct vs_io *a, const struct vs_io *b)
{
	return ((a->state | b->state) & VS_IO_STATE_EXCLUSIVE) && overlaps(r, a, b);
}

/* Against those who hold, and those who came before and wait: so nobody is passed over for ever. */
static bool may_hold(const struct vs_spans *r, const struct vs_io *io)
{
	const struct vs_io *other;

	for (other = r->held; other; other = other->next)
		if (conflicts(r, io, other))
			return false;
	for (other = r->wait_head; other && other != io; other = other->next)
		if (conflicts(r, io, other))
			return false;
	return true;
}

static void hold(struct vs_spans *r, struct vs_io *io)
{
	io->state |= VS_IO_STATE_HELD;
	io->next = r->held;
	r->held = io;
}

bool vs_spans_enter(struct vs_spans *r, struct vs_io *io, bool exclusive)
{
	bool held;

	io->state &= ~(uint32_t)(VS_IO_STATE_HELD | VS_IO_STATE_EXCLUSIVE);
	if (exclusive)
		io->state |= VS_IO_STATE_EXCLUSIVE;
	pthread_mutex_lock(&r->lock);
	held = may_hold(r, io);
	if (held) {
		hold(r, io);
	} else {
		io->next = NULL;
		*r->wait_tail = io;
		r->wait_tail = &io->next;
	}
	pthread_mutex_unlock(&r->lock);
	return held;
}

void vs_spans_leave(struct vs_spans *r, struct vs_io *io)
{
	struct vs_io **link, *waiter;

	pthread_mutex_lock(&r->lock);
	for (link = &r->held; *link != io; link = &(*link)->next)
		;
	*link = io->next;
	io->state &= ~(uint32_t)VS_IO_STATE_HELD;
	/* Only whoever overlaps the one that left can have become free. */
	for (link = &r->wait_head; (waiter = *link) != NULL;) {
		if (!overlaps(r, waiter, io) || !may_hold(r, waiter)) {
			link = &waiter->next;
			continue;
		}
		*link = waiter->next;
		if (!waiter->next)
			r->wait_tail = link;
		hold(r, waiter);
		/* Sent under the lock: once out of it the waiter may already have ended. */
		vs_worker_send(waiter->w, &waiter->msg);
	}
	pthread_mutex_unlock(&r->lock);
}
