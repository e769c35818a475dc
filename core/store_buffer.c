/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page-aligned buffers for stores that must put data through memory of their own: direct I/O with buffers that the kernel refuses, copy-up.
 * Each worker keeps its own, at most `limit`: a guest can make ios wait, but cannot make us allocate without bound.
 */
#include <stdlib.h>

#include "store.h"

enum { BUFFER_PAGE = 4096 };

static struct vs_buffer *buffer_make(const struct vs_buffers *b)
{
	struct vs_buffer *buffer;
	void *memory;

	if (posix_memalign(&memory, BUFFER_PAGE, BUFFER_PAGE + b->size))
		return NULL;
	buffer = memory;
	memset(buffer, 0, sizeof(*buffer));
	buffer->data = (uint8_t *)memory + BUFFER_PAGE;
	return buffer;
}

int vs_buffers_init(struct vs_buffers *b, vs_core *core, uint64_t size, uint32_t limit)
{
	uint32_t i;

	b->size = size;
	b->limit = vs_max(limit, 1u);
	b->nslots = core->config.nworkers;
	b->slots = aligned_alloc(VS_CACHE_LINE, b->nslots * sizeof(*b->slots));
	if (!b->slots)
		return -ENOMEM;
	memset(b->slots, 0, b->nslots * sizeof(*b->slots));
	/* One from the start, so that an io that waits always waits for somebody. */
	for (i = 0; i < b->nslots; i++) {
		b->slots[i].wait_tail = &b->slots[i].wait_head;
		b->slots[i].free = buffer_make(b);
		if (!b->slots[i].free) {
			vs_buffers_fini(b);
			return -ENOMEM;
		}
		b->slots[i].made = 1;
	}
	return 0;
}

void vs_buffers_fini(struct vs_buffers *b)
{
	struct vs_buffer *buffer;
	uint32_t i;

	for (i = 0; b->slots && i < b->nslots; i++) {
		while ((buffer = b->slots[i].free) != NULL) {
			b->slots[i].free = buffer->next;
			free(buffer);
		}
	}
	free(b->slots);
	b->slots = NULL;
}

bool vs_buffers_get(struct vs_buffers *b, struct vs_io *io)
{
	struct vs_buffers_slot *slot = &b->slots[io->w->index];
	struct vs_buffer *buffer = slot->free;

	if (buffer) {
		slot->free = buffer->next;
	} else if (slot->made < b->limit && (buffer = buffer_make(b)) != NULL) {
		slot->made++;
	} else {
		io->parent = NULL;
		*slot->wait_tail = io;
		slot->wait_tail = &io->parent;
		return false;
	}
	io->buffer = buffer;
	return true;
}

void vs_buffers_put(struct vs_buffers *b, struct vs_io *io)
{
	struct vs_buffers_slot *slot = &b->slots[io->w->index];
	struct vs_buffer *buffer = io->buffer;
	struct vs_io *waiter = slot->wait_head;

	io->buffer = NULL;
	if (!waiter) {
		buffer->next = slot->free;
		slot->free = buffer;
		return;
	}
	slot->wait_head = waiter->parent;
	if (!slot->wait_head)
		slot->wait_tail = &slot->wait_head;
	waiter->buffer = buffer;
	vs_worker_send(waiter->w, &waiter->msg);
}
