// SPDX-License-Identifier: Apache-2.0
/*
 * What a new process makes of the in-flight region that a dead one left (vhost-user, "Inflight I/O tracking"), the mapping of such a region, and the
 * packed half of keeping it. The region is the front end's memory: each field is loaded once, a list in it is followed as far as the queue is long, and
 * what does not fit the ring is forgotten as a whole. A process may be killed in here, too: each step leaves what the next process can begin with.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "inflight.h"

enum { VERSION = 1, ALIGN = 64, PAGE = 4096 };

#define load(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)

/* ---- where things lie ------------------------------------------------------------------------------------------------------------------ */

static uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }

static uint64_t stride(uint32_t queue_size, bool packed)
{
	uint64_t state = packed ? sizeof(struct vs_packed_state) : sizeof(struct vs_split_state);

	return align_up((packed ? offsetof(struct vs_packed_region, desc) : sizeof(struct vs_split_region)) + state * queue_size, ALIGN);
}

/* The larger layout has room: QEMU keeps one region while firmware and driver take turns with different ones. */
uint64_t vs_inflight_own_offset(uint32_t num_queues, uint32_t queue_size)
{
	return align_up(num_queues * stride(queue_size, true), PAGE);
}

uint64_t vs_inflight_size(uint32_t num_queues, uint32_t queue_size)
{
	uint64_t own = sizeof(struct vs_inflight_own) + (uint64_t)num_queues * queue_size * sizeof(struct vs_once);

	return align_up(vs_inflight_own_offset(num_queues, queue_size) + own, PAGE);
}

uint64_t vs_inflight_magic(void) { return VS_INFLIGHT_MAGIC; }

int vs_inflight_open(vs_core *core, int fd, uint64_t size, uint64_t offset, uint32_t num_queues, uint32_t queue_size, vs_inflight **out)
{
	uint64_t skip = offset % PAGE, length = skip + size;
	struct vs_inflight *f;
	struct stat st;
	void *map;

	if (!num_queues || !queue_size || queue_size > VS_QUEUE_MAX || !size || size > INT64_MAX - PAGE || offset > INT64_MAX - PAGE - size)
		return -EINVAL;
	if (size < num_queues * stride(queue_size, false))
		return -EINVAL;
	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < offset + size)
		return -EINVAL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(offset - skip));
	if (map == MAP_FAILED) {
		int err = -errno;

		free(f);
		return err;
	}
	*f = (struct vs_inflight){ .core = core, .map = map, .queues = (uint8_t *)map + skip, .map_length = length, .length = size,
				   .num_queues = num_queues, .queue_size = queue_size };
	f->slot = vs_sigbus_register(map, length, PAGE, &f->broken);
	if (f->slot < 0) {
		int err = f->slot;

		munmap(map, length);
		free(f);
		return err;
	}
	if (size >= vs_inflight_size(num_queues, queue_size) && !(skip % 8)) {
		struct vs_inflight_own *own = (void *)(f->queues + vs_inflight_own_offset(num_queues, queue_size));

		if (load(own->magic) == VS_INFLIGHT_MAGIC)
			f->own = own;
	}
	*out = f;
	return 0;
}

void vs_inflight_close(vs_inflight *f)
{
	vs_sigbus_unregister(f->slot);
	munmap(f->map, f->map_length);
	free(f);
}

uint64_t vs_inflight_id(const vs_inflight *f) { return f->own ? load(f->own->id) : 0; }

static void *queue_region(const struct vs_inflight *f, uint32_t queue, bool packed)
{
	uint64_t n = stride(f->queue_size, packed);

	return queue < f->num_queues && (queue + 1) * n <= f->length ? f->queues + queue * n : NULL;
}

/* Both layouts begin alike. */
int vs_inflight_left(const vs_inflight *f, uint32_t queue, uint32_t features)
{
	bool packed = features & VS_RING_PACKED;
	uint8_t *region = queue_region(f, queue, packed);
	uint64_t first = packed ? offsetof(struct vs_packed_region, desc) : sizeof(struct vs_split_region);
	uint64_t state = packed ? sizeof(struct vs_packed_state) : sizeof(struct vs_split_state);
	int n = 0;

	if (!region || load(((struct vs_split_region *)region)->version) != VERSION)
		return 0;
	for (uint32_t i = 0; i < f->queue_size; i++)
		n += load(region[first + i * state]) == 1;
	return n;
}

void vs_inflight_forget(vs_inflight *f, uint32_t features)
{
	for (uint32_t i = 0; i < f->num_queues; i++) {
		struct vs_split_region *g = queue_region(f, i, features & VS_RING_PACKED);

		if (g)
			vs_keep(g->version, 0);
	}
}

/* ---- from nothing ------------------------------------------------------------------------------------------------------------------------ */

static void format_split(struct vs_track *t, const struct vs_vring *r)
{
	struct vs_split_region *g = t->split;

	vs_keep(g->version, 0);
	for (uint32_t i = 0; i < t->of->queue_size; i++)
		if (load(g->desc[i].inflight))
			vs_keep(g->desc[i].inflight, 0);
	vs_keep(g->features, 0);
	vs_keep(g->desc_num, t->of->queue_size);
	vs_keep(g->last_batch_head, 0);
	vs_keep(g->used_idx, r->used_idx);
	VS_STEP(RECOVER);
	vs_keep(g->version, VERSION);
}

static void format_packed(struct vs_track *t, const struct vs_vring *r)
{
	struct vs_packed_region *g = t->packed;
	uint32_t n = t->of->queue_size;

	vs_keep(g->version, 0);
	for (uint32_t i = 0; i < n; i++) {
		t->next[i] = (uint16_t)(i + 1);
		vs_keep(g->desc[i].inflight, 0);
		vs_keep(g->desc[i].next, i + 1);
	}
	t->free_head = 0;
	vs_keep(g->features, 0);
	vs_keep(g->desc_num, n);
	vs_keep(g->free_head, 0);
	vs_keep(g->old_free_head, 0);
	vs_keep(g->used_idx, vs_packed_index(r->used_idx));
	vs_keep(g->old_used_idx, vs_packed_index(r->used_idx));
	vs_keep(g->used_wrap_counter, !!(r->used_idx & VS_PACKED_WRAP));
	vs_keep(g->old_used_wrap_counter, !!(r->used_idx & VS_PACKED_WRAP));
	VS_STEP(RECOVER);
	vs_keep(g->version, VERSION);
}

/* ---- what a dead process left ------------------------------------------------------------------------------------------------------------ */

struct left { uint64_t counter; uint32_t entry; };

static int by_counter(const void *a, const void *b)
{
	uint64_t x = ((const struct left *)a)->counter, y = ((const struct left *)b)->counter;

	return x < y ? -1 : x > y;
}

static int set_replay(struct vs_track *t, struct left *left, uint32_t n)
{
	if (!n)
		return 0;
	t->replay = malloc(n * sizeof(*t->replay));
	if (!t->replay)
		return -ENOMEM;
	qsort(left, n, sizeof(*left), by_counter);
	for (uint32_t i = 0; i < n; i++)
		t->replay[i] = (uint16_t)left[i].entry;
	/* What a front end wrote there may be at its end: then the order of what comes is lost, and no more. */
	t->counter = left[n - 1].counter;
	t->held = t->replays = n;
	return (int)n;
}

static int recover_split(struct vs_track *t, struct vs_vring *r, struct left *left)
{
	struct vs_split_region *g = t->split;
	uint16_t used = load(r->used->idx), head = load(g->last_batch_head), n = (uint16_t)(used - load(g->used_idx)), waits;
	uint32_t found = 0;

	if (load(g->desc_num) != t->of->queue_size || n > r->size || head >= t->of->queue_size)
		return -ESTALE;
	t->batch_head = head;
	VS_STEP(RECOVER);
	/* The driver saw this batch; whether all of its entries were cleared is not known. */
	for (; n; n--) {
		if (head >= r->size)
			return -ESTALE;
		vs_keep(g->desc[head].inflight, 0);
		VS_STEP(RECOVER_BATCH);
		head = load(g->desc[head].next);
	}
	vs_keep(g->used_idx, used);
	VS_STEP(RECOVER_INDEX);
	for (uint32_t i = 0; i < t->of->queue_size; i++) {
		if (load(g->desc[i].inflight) != 1)
			continue;
		if (i >= r->size)
			return -ESTALE;
		left[found++] = (struct left){ load(g->desc[i].counter), i };
	}
	/* Whatever was taken is used or in flight, so what waits begins there. */
	waits = (uint16_t)(load(r->avail->idx) - used);
	if (waits > r->size || found > waits)
		return -ESTALE;
	r->used_idx = r->published = r->signalled_used = used;
	r->last_avail = r->shadow_avail = (uint16_t)(used + found);
	return set_replay(t, left, found);
}

/* The entries of one request, in `mine`: as many as it says, the last one being the one that it names. */
static bool chain_is_whole(const struct vs_track *t, uint32_t head, uint8_t *mine, uint32_t *num)
{
	uint32_t n = load(t->packed->desc[head].num), at = head;

	for (uint32_t i = 0; i < n; i++) {
		if (at >= t->of->queue_size || mine[at]++)
			return false;
		if (i + 1 < n)
			at = t->next[at];
	}
	t->last[head] = (uint16_t)at;
	*num = n;
	return n && at == load(t->packed->desc[head].last);
}

/* used_idx and its wrap counter as one place; old_ the same. */
static uint16_t place(uint16_t index, uint8_t wrap) { return (uint16_t)((index & (VS_PACKED_WRAP - 1)) | (wrap ? VS_PACKED_WRAP : 0)); }

/* What the last batch was: seen by the driver, then it is completed; or not, then it is undone. False: no place of this ring. */
static bool settle_packed(struct vs_packed_region *g, const struct vs_vring *r, uint16_t *used)
{
	uint16_t now = place(load(g->used_idx), load(g->used_wrap_counter)), old = place(load(g->old_used_idx), load(g->old_used_wrap_counter)), flags;
	const uint16_t both = VS_PACKED_AVAIL | VS_PACKED_USED;

	if (vs_packed_index(now) >= r->size || vs_packed_index(old) >= r->size)
		return false;
	VS_STEP(RECOVER);
	flags = load(r->ring[vs_packed_index(old)].flags);
	if (now != old && (flags & both) != vs_packed_avail_flags(old)) {
		vs_keep(g->old_free_head, load(g->free_head));
		VS_STEP(RECOVER_FREE);
		vs_keep(g->old_used_idx, vs_packed_index(now));
		VS_STEP(RECOVER_INDEX);
		vs_keep(g->old_used_wrap_counter, !!(now & VS_PACKED_WRAP));
		*used = now;
		return true;
	}
	vs_keep(g->free_head, load(g->old_free_head));
	VS_STEP(RECOVER_FREE);
	vs_keep(g->used_idx, vs_packed_index(old));
	VS_STEP(RECOVER_INDEX);
	vs_keep(g->used_wrap_counter, !!(old & VS_PACKED_WRAP));
	*used = old;
	return true;
}

/* The free list: what is in it is not in flight, half taken as it may be. How long it is, or -ESTALE. */
static int free_entries(struct vs_track *t, uint8_t *mine)
{
	struct vs_packed_region *g = t->packed;
	uint32_t n = 0, at = t->free_head;

	for (; at < t->of->queue_size; at = t->next[at], n++) {
		if (mine[at]++)
			return -ESTALE;
		vs_keep(g->desc[at].inflight, 0);
		VS_STEP(RECOVER_BATCH);
	}
	return (int)n;
}

/* Used descriptors behind the first one of a batch that was not published: the driver never looked so far, and may not find them now. */
static void take_flags_back(struct vs_vring *r)
{
	const uint16_t both = VS_PACKED_AVAIL | VS_PACKED_USED;
	uint16_t at = r->used_idx;

	for (uint32_t i = 0; i < r->held; i++, at = vs_packed_forward(at, 1, r->size)) {
		uint16_t *flags = &r->ring[vs_packed_index(at)].flags, now = load(*flags);

		if ((now & both) == vs_packed_used_flags(at)) {
			vs_keep(*flags, vs_packed_avail_flags(at));
			VS_STEP(RECOVER_FLAGS);
		}
	}
}

static int recover_packed(struct vs_track *t, struct vs_vring *r, struct left *left)
{
	struct vs_packed_region *g = t->packed;
	uint32_t n = t->of->queue_size, found = 0, held = 0, num;
	uint8_t *mine;
	uint16_t used;
	int is_free;

	if (load(g->desc_num) != n || !settle_packed(g, r, &used))
		return -ESTALE;
	t->free_head = load(g->free_head);
	for (uint32_t i = 0; i < n; i++)
		t->next[i] = load(g->desc[i].next);
	mine = calloc(1, n);
	if (!mine)
		return -ENOMEM;
	is_free = free_entries(t, mine);
	for (uint32_t i = 0; i < n && is_free >= 0; i++) {
		if (load(g->desc[i].inflight) != 1)
			continue;
		if (!chain_is_whole(t, i, mine, &num)) {
			is_free = -ESTALE;
			break;
		}
		held += num;
		left[found++] = (struct left){ load(g->desc[i].counter), i };
	}
	free(mine);
	if (is_free < 0 || (uint32_t)is_free + held != n || held > r->size)
		return -ESTALE;
	r->held = held;
	r->used_idx = r->published = r->signalled_used = used;
	r->last_avail = vs_packed_forward(used, held, r->size);
	take_flags_back(r);
	return set_replay(t, left, found);
}

/* ---- life of a queue ----------------------------------------------------------------------------------------------------------------------- */

void vs_track_end(struct vs_track *t)
{
	if (!t->of)
		return;
	/* The next start may be that of another driver, with another layout: there is nothing in it that it would have to know. */
	if (!t->held)
		vs_keep(t->split->version, 0);
	free(t->next);
	free(t->replay);
	memset(t, 0, sizeof(*t));
}

static int begin(struct vs_track *t, struct vs_vring *r)
{
	struct left *left;
	int found = -ESTALE;
	uint16_t version = load(t->split->version);

	if (version == VERSION) {
		left = malloc(t->of->queue_size * sizeof(*left));
		if (!left)
			return -ENOMEM;
		found = t->is_packed ? recover_packed(t, r, left) : recover_split(t, r, left);
		free(left);
		if (found != -ESTALE)
			return found;
	} else if (version) {
		return -EINVAL;
	}
	if (t->is_packed)
		format_packed(t, r);
	else
		format_split(t, r);
	t->batch_head = 0;
	t->counter = 0;
	t->held = 0;
	return version ? -ESTALE : 0;
}

int vs_track_begin(struct vs_track *t, struct vs_inflight *of, uint32_t queue, struct vs_vring *r)
{
	int found;

	memset(t, 0, sizeof(*t));
	/* Used in order, what is in flight is what stands behind the used ones: nobody has to keep it. */
	if (!of || r->features & VS_RING_IN_ORDER)
		return 0;
	t->is_packed = vs_vring_packed(r);
	t->split = queue_region(of, queue, t->is_packed);
	if (!t->split || r->size > of->queue_size || ((uintptr_t)t->split & 7))
		return -EINVAL;
	t->of = of;
	if (of->own)
		t->once = (struct vs_once *)(of->own + 1) + (uint64_t)queue * of->queue_size;
	if (t->is_packed) {
		t->next = calloc(2 * (size_t)of->queue_size, sizeof(*t->next));
		if (!t->next) {
			memset(t, 0, sizeof(*t));
			return -ENOMEM;
		}
		t->last = t->next + of->queue_size;
	}
	found = begin(t, r);
	if (found < 0 && found != -ESTALE) {
		free(t->next);
		memset(t, 0, sizeof(*t));
	}
	VS_STEP(RECOVERED);
	return found;
}

int vs_track_replay(struct vs_track *t, struct vs_vring *r, struct vs_worker *w, struct vs_chain *c, uint32_t *entry)
{
	struct vs_packed_desc saved[VS_SAVED_MAX], *descs = saved;
	uint32_t n, at;
	int err;

	*entry = at = t->replay[t->replayed];
	VS_STEP(REPLAY);
	if (!t->is_packed) {
		c->head = at;
		return vs_split_walk(r, w, c);
	}
	n = load(t->packed->desc[at].num);
	if (!n || n > r->size)
		return -VS_RULE_INFLIGHT;
	if (n > VS_SAVED_MAX) {
		descs = malloc(n * sizeof(*descs));
		if (!descs)
			return -VS_RULE_NO_MEMORY;
	}
	for (uint32_t i = 0; i < n; i++, at = t->next[at]) {
		const struct vs_packed_state *s = &t->packed->desc[at];

		descs[i] = (struct vs_packed_desc){ load(s->addr), load(s->len), load(s->id), load(s->flags) };
	}
	err = vs_packed_walk_saved(r, w, c, descs, n);
	if (descs != saved)
		free(descs);
	return err;
}

void vs_track_untake(struct vs_track *t, uint32_t entry)
{
	struct vs_packed_region *g = t->packed;

	t->held--;
	if (!t->is_packed) {
		vs_keep(t->split->desc[entry].inflight, 0);
		return;
	}
	/* In the free list first: an entry that is in neither would be lost. */
	t->next[t->last[entry]] = t->free_head;
	vs_keep(g->desc[t->last[entry]].next, t->free_head);
	t->free_head = (uint16_t)entry;
	vs_keep(g->old_free_head, entry);
	vs_keep(g->free_head, entry);
	vs_keep(g->desc[entry].inflight, 0);
}

/* ---- packed: take, publish ------------------------------------------------------------------------------------------------------------------- */

uint32_t vs_track_take_packed(struct vs_track *t, const struct vs_vring *r, uint32_t span)
{
	struct vs_packed_region *g = t->packed;
	uint32_t head = t->free_head;
	uint16_t at = vs_packed_forward(r->last_avail, r->size - span, r->size) ^ VS_PACKED_WRAP;

	VS_STEP(TAKE);
	vs_keep(g->desc[head].num, 0);
	vs_keep(g->desc[head].counter, t->counter);
	VS_STEP(TAKE_COUNTED);
	vs_keep(g->desc[head].inflight, 1);
	for (uint32_t i = 0; i < span; i++, at = vs_packed_forward(at, 1, r->size)) {
		const struct vs_packed_desc *d = &r->ring[vs_packed_index(at)];
		struct vs_packed_state *s = &g->desc[t->free_head];

		VS_STEP(TAKE_ENTRY);
		if (i + 1 == span) {
			t->last[head] = t->free_head;
			vs_keep(g->desc[head].last, t->free_head);
		}
		vs_keep(g->desc[head].num, i + 1);
		vs_keep(s->addr, __atomic_load_n(&d->addr, __ATOMIC_RELAXED));
		vs_keep(s->len, __atomic_load_n(&d->len, __ATOMIC_RELAXED));
		vs_keep(s->flags, __atomic_load_n(&d->flags, __ATOMIC_RELAXED));
		vs_keep(s->id, __atomic_load_n(&d->id, __ATOMIC_RELAXED));
		VS_STEP(TAKE_COPIED);
		t->free_head = t->next[t->free_head];
		vs_keep(g->free_head, t->free_head);
	}
	VS_STEP(TAKE_LAST);
	vs_keep(g->old_free_head, t->free_head);
	VS_STEP(TAKEN);
	return head;
}

void vs_track_publish_packed(struct vs_track *t, const struct vs_vring *r)
{
	struct vs_packed_region *g = t->packed;

	for (uint32_t i = 0; i < t->nbatch; i++) {
		uint16_t entry = t->batch[i].entry, last = t->last[entry];

		VS_STEP(PUBLISH);
		t->next[last] = t->free_head;
		vs_keep(g->desc[last].next, t->free_head);
		VS_STEP(PUBLISH_FREED);
		t->free_head = entry;
		vs_keep(g->free_head, entry);
	}
	VS_STEP(PUBLISH_INDEX);
	vs_keep(g->used_idx, vs_packed_index(r->used_idx));
	VS_STEP(PUBLISH_WRAP);
	vs_keep(g->used_wrap_counter, !!(r->used_idx & VS_PACKED_WRAP));
}

void vs_track_published_packed(struct vs_track *t, const struct vs_vring *r)
{
	struct vs_packed_region *g = t->packed;

	for (uint32_t i = 0; i < t->nbatch; i++) {
		VS_STEP(CLEAR);
		vs_keep(g->desc[t->batch[i].entry].inflight, 0);
	}
	VS_STEP(CLEARED);
	vs_keep(g->old_free_head, t->free_head);
	VS_STEP(CLEAR_FREE);
	vs_keep(g->old_used_idx, vs_packed_index(r->published));
	VS_STEP(CLEAR_INDEX);
	vs_keep(g->old_used_wrap_counter, !!(r->published & VS_PACKED_WRAP));
	VS_STEP(SETTLED);
}
