/* SPDX-License-Identifier: Apache-2.0 */
/* LUN tables of transports: snapshots that are replaced as a whole; the old one is freed when no worker can still look at it. */
#ifndef VS_LUNMAP_H
#define VS_LUNMAP_H

#include "core.h"

struct vs_target_luns { uint32_t n; struct vs_nexus *nexus[]; };
struct vs_lunmap { struct vs_target_luns *targets[256]; };
struct vs_lunmap_ref { _Atomic(struct vs_lunmap *) map; };

/* control: VS_UP_DONE(cookie) when every worker has begun a turn since. */
int vs_lunmap_replace(struct vs_core *core, struct vs_lunmap_ref *ref, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie);
void vs_lunmap_free(struct vs_lunmap_ref *ref);
/* worker: the target's LUNs, NULL when there is no such target. */
static inline const struct vs_target_luns *vs_lunmap_target(const struct vs_lunmap_ref *ref, uint8_t target)
{
	const struct vs_lunmap *map = atomic_load_explicit(&((struct vs_lunmap_ref *)ref)->map, memory_order_acquire);

	return map ? map->targets[target] : NULL;
}
/* SAM-5 4.7: the first two bytes of a single-level LUN: peripheral device addressing with bus 0 or flat space; -1: neither. */
static inline int vs_lun_decode(const uint8_t *a)
{
	if (a[0] != 0 && (a[0] & 0xc0) != 0x40)
		return -1;
	return (a[0] & 0x3f) << 8 | a[1];
}

#endif
