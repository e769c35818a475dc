// SPDX-License-Identifier: Apache-2.0
/*
 * In-order use of a ring of either layout (VIRTIO_F_IN_ORDER: virtio 1.3, 2.7.9 and 2.8.8): what comes back early waits until all that was taken
 * before it has come back. Each is given back by itself and never as a batch: a batch says nothing of how much was written into the skipped.
 */
#include "vchain.h"

enum { FREE, TAKEN, DONE };

static uint32_t place(const struct vs_vring *r, uint32_t n)
{
	uint32_t at = r->order_first + n;

	return at < r->size ? at : at - r->size;
}

int vs_order_pop(struct vs_vring *r, struct vs_worker *w, struct vs_chain *c)
{
	uint32_t capacity = c->capacity;
	struct iovec *first = c->iov;
	int err = vs_vring_packed(r) ? vs_packed_pop(r, w, c) : vs_split_pop(r, w, c);
	struct vs_order *o;

	if (vs_unlikely(err))
		return err;
	o = &r->order[c->head];
	/* Offered again while it waits here. So each head waits once at most, and there is always a place for it. */
	if (vs_unlikely(o->state != FREE)) {
		vs_ring_unpop(r);
		vs_chain_refuse(w, c, first, capacity);
		return -VS_RULE_HEAD_BUSY;
	}
	o->state = TAKEN;
	o->span = (uint16_t)c->span;
	r->order[place(r, r->order_n++)].head = (uint16_t)c->head;
	return 0;
}

void vs_order_unpop(struct vs_vring *r)
{
	r->order[r->order[place(r, --r->order_n)].head].state = FREE;
	vs_ring_unpop(r);
}

void vs_order_push(struct vs_vring *r, uint32_t head, uint32_t written)
{
	r->order[head].written = written;
	r->order[head].state = DONE;
	while (r->order_n) {
		uint32_t oldest = r->order[r->order_first].head;
		struct vs_order *o = &r->order[oldest];

		if (o->state != DONE)
			return;
		vs_ring_push(r, oldest, o->span, o->written);
		o->state = FREE;
		r->order_first = place(r, 1);
		r->order_n--;
	}
}
