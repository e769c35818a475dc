// SPDX-License-Identifier: Apache-2.0
/*
 * The client's memory as a function sees it: windows that are mapped here, and windows whose bytes are asked for by VFIO_USER_DMA_READ and sent by
 * VFIO_USER_DMA_WRITE. What uses a window pins its map; taking the window away waits for that. A client may have windows without a descriptor (QEMU
 * has: ROMs) and never answer for them: after one message that is not answered no other is sent to that client.
 */
#include <stdlib.h>

#include "hba.h"

/* QEMU itself gives up on an answer after 5 s, so a register access that waits for memory must have ended before. */
#define ANSWER_NS 2000000000ull

enum { FIELDS = 16 };

/* The window with the byte at addr. The table is sorted. */
static const struct vs_hba_window *find(const struct vs_hba *h, uint64_t addr)
{
	uint32_t low = 0, high = h->table->n;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		const struct vs_hba_window *w = &h->table->windows[middle];

		if (addr < w->addr)
			high = middle;
		else if (addr - w->addr >= w->size)
			low = middle + 1;
		else
			return w;
	}
	return NULL;
}

static const struct vs_hba_window *usable(const struct vs_hba *h, uint64_t addr, bool write)
{
	const struct vs_hba_window *w = find(h, addr);

	return w && (w->flags & (write ? VS_HBA_DMA_WRITE : VS_HBA_DMA_READ)) ? w : NULL;
}

static int fault(struct vs_hba *h)
{
	vs_count(&h->stats.dma_faults, 1);
	return -EFAULT;
}

/* ---- copies ------------------------------------------------------------------------------------------------------------------------------ */

static void let_go(struct vs_hba_dma *d)
{
	vs_timer_cancel(d->hba->w, &d->timer);
	vs_list_del(&d->link);
	vs_unpin(d->hba->w, &d->pinned->pins);
	d->pinned = NULL;
	d->busy = false;
}

static void end(struct vs_hba_dma *d, int err)
{
	d->err = err;
	d->done(d); /* d may be gone */
}

static void unanswered(struct vs_worker *w, struct vs_timer *t)
{
	struct vs_hba_dma *d = vs_container_of(t, struct vs_hba_dma, timer);

	(void)w;
	d->hba->mute = true;
	let_go(d);
	end(d, fault(d->hba));
}

static int ask(struct vs_hba *h, struct vs_hba_dma *d, const struct vs_hba_window *w, uint64_t n)
{
	struct vs_hba_header m = { .id = h->next_id++, .command = d->write ? VS_HC_DMA_WRITE : VS_HC_DMA_READ };
	uint64_t fields[2] = { d->addr + d->moved };
	struct vs_htx *t;

	if (!h->attached || !h->open || h->dead || h->closing || h->mute)
		return fault(h);
	d->id = m.id;
	d->chunk = (uint32_t)vs_min(n, (uint64_t)h->max_xfer);
	fields[1] = d->chunk;
	memcpy(h->scratch, fields, FIELDS);
	if (d->write)
		memcpy(h->scratch + FIELDS, d->buffer + d->moved, d->chunk);
	t = vs_htx_new(&m, h->scratch, FIELDS + (d->write ? d->chunk : 0));
	if (!t)
		return fault(h);
	if (vs_timer_set(h->w, &d->timer, vs_now_ns() + ANSWER_NS)) {
		vs_htx_free(t);
		return fault(h);
	}
	d->busy = true;
	d->pinned = w->map;
	vs_pin(h->w, &w->map->pins);
	vs_list_add_tail(&h->dma, &d->link);
	vs_count(&h->stats.dma_messages, 1);
	vs_htx_queue(h, t);
	return -EINPROGRESS;
}

static int advance(struct vs_hba *h, struct vs_hba_dma *d)
{
	while (d->moved < d->length) {
		uint64_t at = d->addr + d->moved, n;
		const struct vs_hba_window *w = usable(h, at, d->write);
		uint8_t *p;

		if (!w)
			return fault(h);
		n = vs_min(d->length - d->moved, w->size - (at - w->addr));
		if (!(w->flags & VS_HBA_DIRECT))
			return ask(h, d, w, n);
		p = vs_memmap_guest(w->map, at, n, NULL);
		if (!p)
			return fault(h);
		if (d->write)
			memcpy(p, d->buffer + d->moved, n);
		else
			memcpy(d->buffer + d->moved, p, n);
		d->moved += n;
	}
	return 0;
}

int vs_hba_dma_start(struct vs_hba *h, struct vs_hba_dma *d)
{
	d->hba = h;
	d->moved = 0;
	d->err = 0;
	d->busy = false;
	vs_timer_init(&d->timer, unanswered);
	vs_list_init(&d->link);
	if (d->length && d->length - 1 > UINT64_MAX - d->addr)
		return fault(h);
	return advance(h, d);
}

void vs_hba_dma_cancel(struct vs_hba_dma *d)
{
	if (d->busy)
		let_go(d);
}

/* ---- answers ----------------------------------------------------------------------------------------------------------------------------------- */

/* The specification's picture has a count of 4 bytes in the answer to a write, and its structure elsewhere one of 8: both are met. */
static bool fits(const struct vs_hba_dma *d, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	uint64_t addr, count = 0;
	uint32_t room = d->write ? vs_min(length, (uint32_t)FIELDS) : FIELDS;

	if (m->flags & VS_HF_ERROR || length < (d->write ? 12u : FIELDS) || (d->write && length != 12 && length != FIELDS))
		return false;
	memcpy(&addr, data, sizeof(addr));
	memcpy(&count, data + sizeof(addr), room - sizeof(addr));
	return addr == d->addr + d->moved && count == d->chunk && (d->write || length == FIELDS + d->chunk);
}

void vs_hba_dma_reply(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	for (struct vs_list *l = h->dma.next; l != &h->dma; l = l->next) {
		struct vs_hba_dma *d = vs_container_of(l, struct vs_hba_dma, link);
		int err;

		if (d->id != m->id || m->command != (d->write ? VS_HC_DMA_WRITE : VS_HC_DMA_READ))
			continue;
		let_go(d);
		if (!fits(d, m, data, length)) {
			end(d, fault(h));
			return;
		}
		if (!d->write)
			memcpy(d->buffer + d->moved, data + FIELDS, d->chunk);
		d->moved += d->chunk;
		err = advance(h, d);
		if (err != -EINPROGRESS)
			end(d, err);
		return;
	}
	/* Too late, or never asked for. */
	vs_count(&h->stats.stray_replies, 1);
}

void vs_hba_dma_drop(struct vs_hba *h)
{
	while (!vs_list_empty(&h->dma)) {
		struct vs_hba_dma *d = vs_container_of(h->dma.next, struct vs_hba_dma, link);

		let_go(d);
		end(d, fault(h));
	}
}

/* ---- in place ------------------------------------------------------------------------------------------------------------------------------------ */

int vs_hba_dma_direct(struct vs_hba *h, uint64_t addr, uint64_t length, bool write, struct iovec *iov, struct vs_memmap **pinned, int max)
{
	int n = 0, err = 0;

	if (length && length - 1 > UINT64_MAX - addr)
		return fault(h);
	while (length) {
		const struct vs_hba_window *w = usable(h, addr, write);
		uint64_t part;

		if (!w)
			err = fault(h);
		else if (!(w->flags & VS_HBA_DIRECT))
			err = -EREMOTE;
		else if (n == max)
			err = -ENOBUFS;
		if (err)
			break;
		part = vs_min(length, w->size - (addr - w->addr));
		iov[n] = (struct iovec){ vs_memmap_guest(w->map, addr, part, NULL), part };
		pinned[n++] = w->map;
		vs_pin(h->w, &w->map->pins);
		addr += part;
		length -= part;
	}
	while (err && n)
		vs_unpin(h->w, &pinned[--n]->pins);
	return err ? err : n;
}
