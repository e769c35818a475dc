// SPDX-License-Identifier: Apache-2.0
/* LUN tables of transports: built by control, looked at by workers, replaced as a whole. */
#include <stdlib.h>

#include "lunmap.h"

static void map_free(struct vs_lunmap *map)
{
	if (!map)
		return;
	for (int i = 0; i < 256; i++)
		free(map->targets[i]);
	free(map);
}

void vs_lunmap_free(struct vs_lunmap_ref *ref)
{
	map_free(atomic_exchange(&ref->map, NULL));
}

static struct vs_lunmap *map_build(const struct vs_lun_entry *e, uint32_t n)
{
	struct vs_lunmap *map = calloc(1, sizeof(*map));
	uint32_t size[256] = { 0 };

	if (!map)
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		size[e[i].target] = vs_max(size[e[i].target], e[i].lun + 1u);
	for (int i = 0; i < 256; i++) {
		if (!size[i])
			continue;
		map->targets[i] = calloc(1, sizeof(struct vs_target_luns) + size[i] * sizeof(struct vs_nexus *));
		if (!map->targets[i]) {
			map_free(map);
			return NULL;
		}
		map->targets[i]->n = size[i];
	}
	for (uint32_t i = 0; i < n; i++)
		map->targets[e[i].target]->nexus[e[i].lun] = e[i].nexus;
	return map;
}

/* The old map is freed when each worker has begun a turn after the new one was put in its place. */
struct swap { struct swap_worker *each; struct vs_lunmap *old; uint64_t cookie; _Atomic uint32_t left; };
struct swap_worker { struct vs_msg msg; struct swap *swap; };

static void swap_seen(struct vs_worker *w, struct vs_msg *m)
{
	struct swap *s = vs_container_of(m, struct swap_worker, msg)->swap;

	if (atomic_fetch_sub(&s->left, 1) > 1)
		return;
	vs_upcall_after_flush(w, VS_UP_DONE, s->cookie, 0, 0);
	map_free(s->old);
	free(s->each);
	free(s);
}

int vs_lunmap_replace(struct vs_core *core, struct vs_lunmap_ref *ref, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie)
{
	uint32_t workers = core->config.nworkers;
	struct vs_lunmap *map;
	struct swap *s;

	for (uint32_t i = 0; i < n; i++)
		if (entries[i].target > 255 || entries[i].lun > 16383)
			return -EINVAL;
	map = map_build(entries, n);
	s = calloc(1, sizeof(*s));
	if (s)
		s->each = calloc(workers, sizeof(*s->each));
	if (!map || !s || !s->each) {
		map_free(map);
		if (s)
			free(s->each);
		free(s);
		return -ENOMEM;
	}
	s->cookie = cookie;
	atomic_store(&s->left, workers);
	s->old = atomic_exchange(&ref->map, map);
	for (uint32_t i = 0; i < workers; i++)
		s->each[i] = (struct swap_worker){ .msg.run = swap_seen, .swap = s };
	for (uint32_t i = 0; i < workers; i++)
		vs_worker_send(&core->workers[i], &s->each[i].msg);
	return 0;
}
