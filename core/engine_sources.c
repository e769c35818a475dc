/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots of event sources: an engine hands the kernel a slot's index and generation instead of a pointer, so that an event which was already on
 * its way when a source was removed finds nothing. Slots are never freed before the engine ends. It is not an engine: it does no I/O.
 */
#include <stdlib.h>

#include "engine.h"

void vs_slots_init(struct vs_slots *slots)
{
	memset(slots, 0, sizeof(*slots));
	slots->gone_tail = &slots->gone_head;
}

void vs_slots_fini(struct vs_slots *slots)
{
	for (uint32_t i = 0; i < slots->n; i++)
		free(slots->table[i]);
	free(slots->table);
	vs_slots_init(slots);
}

static struct vs_slot *slot_new(struct vs_slots *slots)
{
	struct vs_slot *slot;

	if (slots->n == slots->size) {
		uint32_t size = slots->size ? slots->size * 2 : 16;
		struct vs_slot **table = realloc(slots->table, size * sizeof(struct vs_slot *));

		if (!table)
			return NULL;
		slots->table = table;
		slots->size = size;
	}
	slot = calloc(1, sizeof(*slot));
	if (!slot)
		return NULL;
	slot->index = slots->n;
	slots->table[slots->n++] = slot;
	return slot;
}

int vs_slots_take(struct vs_slots *slots, struct vs_source *s)
{
	struct vs_slot *slot = slots->free;

	if (s->slot)
		return -EBUSY;
	if (slot)
		slots->free = slot->next;
	else if (!(slot = slot_new(slots)))
		return -ENOMEM;
	slot->next = NULL;
	slot->source = s;
	slot->generation++;
	slot->queued = slot->cancelling = slot->gone = false;
	s->slot = slot;
	s->generation = slot->generation;
	s->armed = s->removing = false;
	slots->used++;
	return 0;
}

void vs_slots_release(struct vs_slots *slots, struct vs_slot *slot)
{
	struct vs_source *s = slot->source;

	slot->source = NULL;
	slot->generation++;
	slot->gone = false;
	slot->next = slots->free;
	slots->free = slot;
	slots->used--;
	s->slot = NULL;
	s->armed = s->removing = false;
}

struct vs_slot *vs_slots_find(const struct vs_slots *slots, uint32_t index, uint32_t generation)
{
	struct vs_slot *slot = index < slots->n ? slots->table[index] : NULL;

	return slot && slot->source && slot->generation == generation ? slot : NULL;
}

void vs_slots_gone(struct vs_slots *slots, struct vs_slot *slot)
{
	slot->gone = true;
	slot->next = NULL;
	*slots->gone_tail = slot;
	slots->gone_tail = &slot->next;
}

int vs_slots_run_gone(struct vs_slots *slots, struct vs_worker *w)
{
	struct vs_slot *slot = slots->gone_head;
	int n = 0;

	slots->gone_head = NULL;
	slots->gone_tail = &slots->gone_head;
	while (slot) {
		struct vs_slot *next = slot->next;
		struct vs_source *s = slot->source;

		/* Released first: removed() may free the source, or add it again. */
		vs_slots_release(slots, slot);
		if (s->removed)
			s->removed(w, s);
		slot = next;
		n++;
	}
	return n;
}
