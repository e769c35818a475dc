// SPDX-License-Identifier: Apache-2.0
/*
 * Where the data buffers of iSCSI come from. Each worker has its part of one limit, and of that three eighths are the sessions' own: what a
 * session holds there it keeps from nobody, and nobody keeps it from it. Three eighths are for who needs more, as long as somebody else has not
 * got them, and a quarter is for buffers that nobody uses now. A peer that does not read holds what its answers stand in for as long as it
 * likes: its session's own, and at most a quarter of what is common unless one command is larger than that.
 */
#include <stdlib.h>

#include "iscsi.h"

enum { KEPT_BYTES = 16 << 20, SMALLEST_SHIFT = 12, SESSIONS = 32 /* as many are expected at least */ };

/* ---- memory ---------------------------------------------------------------------------------------------------------------------------------- */

static int class_of(uint32_t n)
{
	for (int i = 0; i < VS_IBUFFER_CLASSES; i++)
		if (n <= UINT32_C(1) << (SMALLEST_SHIFT + i))
			return i;
	return -1;
}

static uint64_t limit(const struct vs_worker *w)
{
	uint64_t all = w->core->config.iscsi_buffer_limit;

	return (all ? all : VS_IBUFFER_LIMIT) / w->core->config.nworkers;
}

uint8_t *vs_ibuffer_get(struct vs_isession *s, uint32_t n)
{
	int class = class_of(n);
	void **b;

	if (class < 0)
		return aligned_alloc(4096, ((size_t)n + 4095) & ~(size_t)4095);
	b = s->buffers[class];
	if (!b)
		return aligned_alloc(4096, (size_t)1 << (SMALLEST_SHIFT + class));
	s->buffers[class] = *b;
	s->buffers_kept -= UINT64_C(1) << (SMALLEST_SHIFT + class);
	s->w->ibuffers.kept -= UINT64_C(1) << (SMALLEST_SHIFT + class);
	return (uint8_t *)b;
}

void vs_ibuffer_put(struct vs_isession *s, uint8_t *buffer, uint32_t n)
{
	int class = class_of(n);
	uint64_t size = class < 0 ? 0 : UINT64_C(1) << (SMALLEST_SHIFT + class);

	if (class < 0 || s->buffers_kept + size > KEPT_BYTES || s->w->ibuffers.kept + size > limit(s->w) / 4) {
		free(buffer);
		return;
	}
	*(void **)(void *)buffer = s->buffers[class];
	s->buffers[class] = buffer;
	s->buffers_kept += size;
	s->w->ibuffers.kept += size;
}

void vs_ibuffers_free(struct vs_isession *s)
{
	for (int i = 0; i < VS_IBUFFER_CLASSES; i++)
		while (s->buffers[i]) {
			void **b = s->buffers[i];

			s->buffers[i] = *b;
			free(b);
		}
	s->w->ibuffers.kept -= s->buffers_kept;
	vs_list_del(&s->buffer_wait);
	atomic_fetch_sub(&s->w->ibuffers.sessions, 1);
}

/* ---- the right to memory --------------------------------------------------------------------------------------------------------------------- */

static uint64_t own_part(const struct vs_worker *w)
{
	uint32_t workers = w->core->config.nworkers, sessions = atomic_load_explicit(&w->ibuffers.sessions, memory_order_relaxed);

	return limit(w) * 3 / 8 / vs_max(sessions, (SESSIONS + workers - 1) / workers);
}

/* One that is larger than everything goes alone. */
static bool common_room(const struct vs_isession *s, uint32_t n)
{
	uint64_t all = limit(s->w) * 3 / 8;

	if (s->buffer_common && s->buffer_common + n > all / 4)
		return false;
	return !vs_counted(&s->w->ibuffers.common) || vs_counted(&s->w->ibuffers.common) + n <= all;
}

static void use(struct vs_worker *w, uint32_t n)
{
	vs_count(&w->ibuffers.used, n);
	if (vs_counted(&w->ibuffers.used) > vs_counted(&w->ibuffers.peak))
		atomic_store_explicit(&w->ibuffers.peak, vs_counted(&w->ibuffers.used), memory_order_relaxed);
}

/* While the session holds nothing its own limit does not count: so its line always moves. */
bool vs_ibuffer_charge(struct vs_icmd *x, uint32_t n)
{
	struct vs_isession *s = x->conn->session;

	if (s->buffer_bytes && s->buffer_bytes + n > s->p.buffer_limit)
		return false;
	x->common = s->buffer_bytes - s->buffer_common + n > own_part(s->w);
	if (x->common) {
		if (!common_room(s, n)) {
			x->common = false;
			if (vs_list_empty(&s->buffer_wait))
				vs_list_add_tail(&s->w->ibuffers.waiting, &s->buffer_wait);
			return false;
		}
		s->buffer_common += n;
		vs_count(&s->w->ibuffers.common, n);
	}
	vs_list_del(&s->buffer_wait);
	x->charged = n;
	s->buffer_bytes += n;
	use(s->w, n);
	return true;
}

void vs_ibuffer_discharge(struct vs_isession *s, struct vs_icmd *x)
{
	struct vs_worker *w = s->w;

	s->buffer_bytes -= x->charged;
	vs_count(&w->ibuffers.used, -(uint64_t)x->charged);
	if (x->common) {
		s->buffer_common -= x->charged;
		vs_count(&w->ibuffers.common, -(uint64_t)x->charged);
		/* Those who wait for it look again at their next turns, who waits longest first. */
		while (!vs_list_empty(&w->ibuffers.waiting)) {
			struct vs_isession *other = vs_container_of(w->ibuffers.waiting.next, struct vs_isession, buffer_wait);

			vs_list_del(&other->buffer_wait);
			other->wake = true;
		}
	}
	x->common = false;
	x->charged = 0;
}
