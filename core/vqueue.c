// SPDX-License-Identifier: Apache-2.0
/*
 * One virtio-scsi queue on its worker: chains become tasks (request queues) or messages to Python (control queue), completions become used
 * entries. Everything here runs on the worker that owns the queue. virtio 1.3, 5.6.6.
 */
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "task.h"
#include "vdev.h"
#include "gen/tables.h"

enum {
	POP_A_TURN = 256,      /* chains a queue may take before the others have their turn */
	HEADER_FIXED = 19,     /* lun, id, task_attr, prio, crn; then the CDB */
	CDB_USUAL = 32,        /* 5.6.4: the sizes that devices start with; copies of known size are a few moves */
	SENSE_USUAL = 96,
	RESPONSE_FIXED = 12,   /* sense_len, residual, status_qualifier, status, response; then the sense data */
	SEGMENT_QUOTA = 4 << 20, /* bytes of iovecs that one queue's long chains may hold; beyond it the next chain waits */
	EVENTS_MISSED_BYTE = 3, EVENTS_MISSED_BIT = 0x80, /* 5.6.6.3: bit 31 of the event */
	POLL_TIMER_NS = 50000, /* a ring without kick descriptor is looked at this often while its worker sleeps */
};

static void publish_view(struct vs_queue *q)
{
	uint32_t state = (q->started ? 1u : 0) | (q->enabled ? 2u : 0) | (q->broken ? 4u : 0) | (q->stalled ? 8u : 0) |
			 (q->begun ? 16u : 0) | (q->stopping ? 32u : 0) | (q->waiting ? 64u : 0) | (q->await_kick ? 128u : 0);

	atomic_store_explicit(&q->view.indices, (uint32_t)q->ring.last_avail << 16 | q->ring.used_idx, memory_order_relaxed);
	atomic_store_explicit(&q->view.in_flight, q->in_flight, memory_order_relaxed);
	atomic_store_explicit(&q->view.state, state, memory_order_relaxed);
	atomic_store_explicit(&q->view.error, q->error, memory_order_relaxed);
}

static inline void count_latency(struct vs_queue *q, uint64_t ns, uint64_t n)
{
	uint64_t units = ns >> VS_QLATENCY_SHIFT;
	uint32_t bucket = units ? 64 - (uint32_t)__builtin_clzll(units) : 0;

	vs_count(&q->view.latency[vs_min(bucket, (uint32_t)VS_QLATENCY_BUCKETS - 1)], n);
}

/* Most requests are answered in the turn that took them, and a clock of their own would cost more than they do: the next turn's tells it. */
static void count_fresh(struct vs_queue *q)
{
	count_latency(q, q->w->now_ns - q->fresh_ns, q->fresh);
	q->fresh = 0;
}

/* False: the descriptor is blocking. Costs the worker a second, but only once in the life of a device. */
static bool signal_call(struct vs_queue *q)
{
	struct vs_vdev *d = q->vdev;

	if (vs_unlikely(atomic_load_explicit(&d->suspect, memory_order_relaxed)))
		return vs_bell_signal_safely(&q->call, d->core->engine == &vs_engine_uring);
	if (vs_likely(vs_bell_signal(&q->call)))
		return true;
	atomic_store(&d->suspect, true);
	return false;
}

static void signal_err(struct vs_queue *q)
{
	/* Who blocked us once is told of errors by the interrupt that does not come. */
	if (!atomic_load(&q->vdev->suspect) && !vs_bell_signal(&q->err))
		atomic_store(&q->vdev->suspect, true);
}

/* The driver broke a rule, or its memory went away: nothing more is taken from this ring until it is started anew. */
static void queue_break(struct vs_queue *q, int32_t err)
{
	q->broken = true;
	q->error = err;
	vs_count(&q->view.errors, 1);
	publish_view(q);
	signal_err(q);
	vs_upcall_new(q->vdev->core, VS_UP_QUEUE_ERROR, q->w->index, q->vdev->cookie, q->index, err, NULL);
}

static bool memory_gone(struct vs_queue *q)
{
	uint32_t seen = vs_sigbus_count();

	if (vs_likely(seen == q->sigbus_seen))
		return false;
	q->sigbus_seen = seen;
	return vs_memmap_broken(q->map) || (q->track.of && atomic_load(&q->track.of->broken));
}

/* Memory that was truncated reads as zeroes: what looks like a broken rule then is none of the driver's doing. */
static int blame(struct vs_queue *q, int err)
{
	return memory_gone(q) ? -VS_RULE_MEMORY_GONE : err;
}

/* ---- chains and requests ------------------------------------------------------------------------------------------------------------- */

/* ---- tags in use --------------------------------------------------------------------------------------------------------------------- */

static uint16_t *tag_chain(struct vs_queue *q, uint64_t tag) { return &q->tags[tag * UINT64_C(0x9e3779b97f4a7c15) >> q->tag_shift]; }

/* False: the nexus has a command with this tag in this queue already. */
static bool tag_enter(struct vs_queue *q, struct vs_request *r)
{
	uint16_t *chain = tag_chain(q, r->task.tag);
	bool alone = true;

	for (uint16_t n = *chain; vs_unlikely(n); n = q->requests[n - 1].tag_next)
		alone &= q->requests[n - 1].task.tag != r->task.tag || q->requests[n - 1].task.nexus != r->task.nexus;
	r->tag_next = *chain;
	*chain = (uint16_t)(r->head + 1);
	r->tagged = true;
	return alone;
}

static void tag_leave(struct vs_queue *q, struct vs_request *r)
{
	uint16_t *at = tag_chain(q, r->task.tag);

	r->tagged = false;
	while (vs_unlikely(*at != r->head + 1))
		at = &q->requests[*at - 1].tag_next;
	*at = r->tag_next;
}

/* ---- the end of a request -------------------------------------------------------------------------------------------------------------- */

static void request_release(struct vs_queue *q, struct vs_request *r)
{
	struct vs_worker *w = q->w;

	if (vs_likely(r->tagged))
		tag_leave(q, r);
	if (vs_unlikely(r->iov != r->inline_iov)) {
		vs_iovec_put(w, r->iov, r->capacity);
		q->segment_bytes -= r->capacity * (uint32_t)sizeof(struct iovec);
	}
	q->waiting = false;
	if (vs_unlikely(r->resp != r->resp_inline))
		vs_iovec_put(w, r->resp, r->resp_capacity);
	r->resp = r->resp_inline;
	r->busy = false;
	vs_unpin(w, &r->map->pins);
	q->in_flight--;
}

static void queue_finish_stop(struct vs_queue *q);

static void publish(struct vs_queue *q)
{
	q->unpublished = 0;
	vs_track_publish(&q->track, &q->ring);
	q->notify |= vs_vring_publish(&q->ring);
	vs_track_published(&q->track, &q->ring);
}

/* The chain goes back to the driver with `written` bytes in its writable part. */
static void request_used(struct vs_queue *q, struct vs_request *r, uint32_t written)
{
	if (vs_likely(!q->ring_gone)) {
		vs_vring_push(&q->ring, r->head, r->span, written);
		if (q->track.of)
			vs_track_pushed(&q->track, r->entry, r->span);
		vs_poller_dirty(q->w, &q->poller);
		if (++q->unpublished == VS_PUBLISH_EVERY)
			publish(q);
	}
	request_release(q, r);
	if (vs_unlikely(q->stopping && !q->in_flight))
		vs_poller_dirty(q->w, &q->poller); /* flush ends the stop */
}

/* One device's long chains may not use up what others need: the chain goes back, and is taken when a request of this queue has ended. */
static bool over_quota(struct vs_queue *q, const struct vs_chain *chain)
{
	uint32_t bytes = chain->capacity * (uint32_t)sizeof(struct iovec);

	if (vs_likely(!q->in_flight || q->segment_bytes + bytes <= SEGMENT_QUOTA)) {
		q->segment_bytes += bytes;
		return false;
	}
	vs_iovec_put(q->w, chain->iov, chain->capacity);
	if (vs_likely(!vs_track_replays(&q->track)))
		vs_vring_unpop(&q->ring);
	q->waiting = true;
	return true;
}

/* Those that wait: what a dead process had taken goes first. */
static int chains_available(struct vs_queue *q)
{
	return vs_unlikely(vs_track_replays(&q->track)) ? (int)(q->track.replays - q->track.replayed) : vs_vring_available(&q->ring);
}

/* What is in flight from here on. */
static void request_taken(struct vs_queue *q, struct vs_request *r)
{
	r->again = vs_track_replays(&q->track);
	if (vs_unlikely(r->again))
		q->track.replayed++;
	else if (q->track.of)
		r->entry = vs_track_take(&q->track, &q->ring, r->head, r->span);
}

/* It waits for its first step, and shall not wait here any longer: whoever starts the ring next takes it again. */
static void request_untake(struct vs_queue *q, struct vs_request *r)
{
	if (r->again) {
		q->track.replayed--;
	} else {
		if (q->track.of)
			vs_track_untake(&q->track, r->entry);
		vs_vring_unpop(&q->ring);
	}
}

/* Takes one chain. NULL: the queue broke, or must wait. */
static struct vs_request *request_pop(struct vs_queue *q, struct vs_chain *chain)
{
	struct iovec first[VS_INLINE_SEGMENTS];
	struct vs_request *r;
	uint32_t entry = 0;
	int err;

	chain->iov = first;
	chain->capacity = VS_INLINE_SEGMENTS;
	if (vs_unlikely(vs_track_replays(&q->track)))
		err = vs_track_replay(&q->track, &q->ring, q->w, chain, &entry);
	else
		err = vs_vring_pop(&q->ring, q->w, chain);
	if (vs_unlikely(err)) {
		queue_break(q, blame(q, err));
		return NULL;
	}
	if (vs_unlikely(chain->iov != first) && over_quota(q, chain))
		return NULL;
	r = &q->requests[chain->head];
	if (vs_unlikely(r->busy)) {
		if (chain->iov != first) {
			vs_iovec_put(q->w, chain->iov, chain->capacity);
			q->segment_bytes -= chain->capacity * (uint32_t)sizeof(struct iovec);
		}
		if (!vs_track_replays(&q->track))
			vs_vring_unpop(&q->ring);
		queue_break(q, -VS_RULE_HEAD_BUSY);
		return NULL;
	}
	if (vs_likely(chain->iov == first)) {
		memcpy(r->inline_iov, first, (chain->nout + chain->nin) * sizeof(struct iovec));
		r->iov = r->inline_iov;
	} else {
		r->iov = chain->iov;
	}
	r->capacity = chain->capacity;
	r->queue = q;
	r->head = chain->head;
	r->span = chain->span;
	r->entry = entry;
	request_taken(q, r);
	r->map = q->map;
	r->busy = true;
	r->resp = r->resp_inline;
	r->nresp = 0;
	vs_pin(q->w, &q->map->pins);
	q->in_flight++;
	return r;
}

/* Takes the first n bytes off a list of segments. */
static void skip_bytes(struct iovec **iov, uint32_t *niov, uint64_t n)
{
	while (n) {
		if ((*iov)->iov_len > n) {
			(*iov)->iov_base = (char *)(*iov)->iov_base + n;
			(*iov)->iov_len -= n;
			return;
		}
		n -= (*iov)->iov_len;
		(*iov)++;
		(*niov)--;
	}
}

/* Notes where the response goes, and takes it off the writable segments. False: no memory for a response in many pieces. */
static bool split_response(struct vs_queue *q, struct vs_request *r, struct iovec **in, uint32_t *nin, uint32_t size)
{
	int n;

	if (vs_likely((*in)->iov_len >= size)) {
		r->resp_inline[0] = (struct iovec){ (*in)->iov_base, size };
		r->nresp = 1;
	} else {
		n = vs_iov_slice(*in, (int)*nin, 0, size, r->resp_inline, VS_RESP_INLINE);
		if (n < 0) {
			r->resp_capacity = vs_min(*nin, size);
			r->resp = vs_iovec_get(q->w, r->resp_capacity);
			if (!r->resp) {
				r->resp = r->resp_inline;
				return false;
			}
			n = vs_iov_slice(*in, (int)*nin, 0, size, r->resp, (int)r->resp_capacity);
		}
		r->nresp = (uint32_t)n;
	}
	skip_bytes(in, nin, size);
	return true;
}

/* ---- commands ---------------------------------------------------------------------------------------------------------------------------- */

static void put_le32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
	p[3] = (uint8_t)(v >> 24);
}

static void write_response(const struct vs_request *r, uint32_t size, uint32_t residual, uint8_t status, uint8_t response, const uint8_t *sense, uint32_t sense_len)
{
	uint8_t local[RESPONSE_FIXED + VS_SENSE_MAX], *p = vs_likely(r->nresp == 1) ? r->resp[0].iov_base : local;

	/* Every byte up to the used length is written: virtio 1.3, 2.7.8.2. */
	if (vs_likely(!sense_len && size == RESPONSE_FIXED + SENSE_USUAL))
		memset(p, 0, RESPONSE_FIXED + SENSE_USUAL);
	else
		memset(p + RESPONSE_FIXED + sense_len, 0, size - RESPONSE_FIXED - sense_len);
	put_le32(p, sense_len);
	put_le32(p + 4, residual);
	p[8] = p[9] = 0; /* status_qualifier */
	p[10] = status;
	p[11] = response;
	if (vs_unlikely(sense_len))
		memcpy(p + RESPONSE_FIXED, sense, sense_len);
	if (vs_unlikely(p == local))
		vs_iov_from_buffer(r->resp, (int)r->nresp, 0, local, size);
}

/* ---- commands that must not run twice ---------------------------------------------------------------------------------------------------- */

/* Of the request: as it stands in the region, where it is the same for the next process. */
static uint64_t once_counter(const struct vs_request *r)
{
	const struct vs_track *t = &r->queue->track;

	return __atomic_load_n(t->is_packed ? &t->packed->desc[r->entry].counter : &t->split->desc[r->entry].counter, __ATOMIC_RELAXED);
}

static struct vs_once *once_of(const struct vs_request *r)
{
	return &r->queue->track.once[r->entry];
}

static void command_keep(struct vs_task *t, enum vs_once_state state)
{
	vs_keep(once_of(vs_container_of(t, struct vs_request, task))->state, state);
}

/* The outcome, before the driver can see it: a process that finds it answers with it. */
static void keep_outcome(struct vs_request *r, uint32_t residual, uint32_t sense_len, uint32_t written)
{
	struct vs_once *o = once_of(r);

	sense_len = vs_min(sense_len, (uint32_t)VS_ONCE_SENSE);
	o->residual = residual;
	o->written = written;
	o->status = r->task.response == VS_RESP_OK ? r->task.status : 0;
	o->response = r->task.response;
	o->sense_len = (uint8_t)sense_len;
	memcpy(o->sense, r->task.sense, sense_len);
	command_keep(&r->task, VS_ONCE_ENDED);
}

/* Notes that such a command is about to start, or finds out how far it got before. True: it has its answer. */
static bool once_begin(struct vs_queue *q, struct vs_request *r)
{
	uint32_t size = RESPONSE_FIXED + q->vdev->sense_size;
	struct vs_once *o = once_of(r), was;

	r->task.flags |= VS_TASK_ONCE;
	if (!r->again || __atomic_load_n(&o->counter, __ATOMIC_ACQUIRE) != once_counter(r)) {
		vs_keep(o->state, VS_ONCE_NONE);
		vs_keep(o->counter, once_counter(r));
		vs_keep(o->state, VS_ONCE_INTENT);
		VS_STEP(ONCE_INTENT);
		return false;
	}
	memcpy(&was, o, sizeof(was));
	__asm__ volatile("" ::: "memory");
	if (was.state == VS_ONCE_WRITING)
		r->task.flags |= VS_TASK_WRITING;
	if (was.state != VS_ONCE_ENDED)
		return false;
	write_response(r, size, was.residual, was.status, was.response, was.sense, vs_min(vs_min((uint32_t)was.sense_len, (uint32_t)VS_ONCE_SENSE), q->vdev->sense_size));
	request_used(q, r, vs_min(was.written, size));
	return true;
}

static void command_complete(struct vs_task *t)
{
	struct vs_request *r = vs_container_of(t, struct vs_request, task);
	struct vs_queue *q = r->queue;
	uint32_t size = RESPONSE_FIXED + q->vdev->sense_size;
	/* With buffers of both kinds, the one that the command moves data through counts. */
	bool out = t->out_length && (!t->in_length || (t->row && t->row->dir == VS_DIR_OUT));
	uint64_t expected = out ? t->out_length : t->in_length;
	uint64_t residual = expected - vs_min(t->transferred, expected);
	uint32_t sense_len = vs_min((uint32_t)t->sense_len, q->vdev->sense_size);
	uint64_t written = size + (out ? 0 : vs_min(t->transferred, t->in_length));

	if (vs_unlikely(t->response != VS_RESP_OK))
		sense_len = 0;
	VS_STEP(ONCE_ENDED);
	if (vs_unlikely(t->flags & VS_TASK_ONCE))
		keep_outcome(r, (uint32_t)vs_min(residual, (uint64_t)UINT32_MAX), sense_len, (uint32_t)written);
	VS_STEP(ONCE_KEPT);
	write_response(r, size, (uint32_t)vs_min(residual, (uint64_t)UINT32_MAX), t->response == VS_RESP_OK ? t->status : 0, t->response, t->sense, sense_len);
	if (vs_likely(t->born_ns == q->w->now_ns)) {
		q->fresh_ns = t->born_ns;
		q->fresh++;
	} else {
		count_latency(q, q->w->now_ns - t->born_ns, 1);
	}
	request_used(q, r, (uint32_t)vs_min(written, (uint64_t)UINT32_MAX));
}

static void command_describe(const struct vs_task *t, struct vs_task_info *out)
{
	const struct vs_request *r = vs_container_of(t, struct vs_request, task);

	out->queue = r->queue->index;
	out->head = r->head;
	/* The region's number is random, and a counter never gets near the queue's bits. */
	if (vs_unlikely(t->flags & VS_TASK_ONCE))
		out->once = vs_inflight_id(r->queue->track.of) + ((uint64_t)r->queue->index << 52) + once_counter(r);
}

/* Where the initiator has it: 0 where that is not known any more. */
static uint64_t command_address(const struct vs_task *t, const void *p)
{
	const struct vs_request *r = vs_container_of(t, struct vs_request, task);

	for (uint32_t i = 0; i < r->map->n; i++) {
		const struct vs_mapping *m = r->map->mappings[i];

		if ((const uint8_t *)p >= m->host && (uint64_t)((const uint8_t *)p - m->host) < m->region.size)
			return m->region.guest_addr + (uint64_t)((const uint8_t *)p - m->host);
	}
	return 0;
}

static const struct vs_task_ops command_ops = {
	.name = "virtio-scsi", .complete = command_complete, .describe = command_describe, .keep = command_keep, .address = command_address,
};

/* 5.6.6.1: byte 0 is 1, then the target, then a single-level LUN; C1 01 is the REPORT LUNS well-known logical unit. False: no such address. */
static bool find_lun(const struct vs_vdev *d, const uint8_t *a, struct vs_task *t)
{
	const struct vs_target_luns *target;
	int lun;

	t->nexus = NULL;
	t->lun_kind = VS_LUN_ABSENT;
	t->target = a[1];
	t->lun = 0;
	if (vs_unlikely(a[0] == 0xc1)) {
		t->lun_kind = VS_LUN_REPORT_LUNS;
		t->target = 0;
		return a[1] == 0x01 && !(a[2] | a[3] | a[4] | a[5] | a[6] | a[7]);
	}
	if (vs_unlikely(a[0] != 1 || (a[4] | a[5] | a[6] | a[7])))
		return false;
	target = vs_lunmap_target(&d->luns, a[1]);
	if (!target)
		return false;
	if (vs_unlikely(a[2] == 0xc1 && a[3] == 0x01)) {
		t->lun_kind = VS_LUN_REPORT_LUNS;
		return true;
	}
	lun = vs_lun_decode(a + 2);
	if (lun < 0)
		return false;
	t->lun = (uint16_t)lun;
	if ((uint32_t)lun < target->n && target->nexus[lun]) {
		t->nexus = target->nexus[lun];
		t->lun_kind = VS_LUN_UNIT;
	}
	return true;
}

static uint64_t le64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return le64toh(v);
}

/* Copies the request header and takes it off the readable segments: nobody looks at the driver's own bytes. */
static void read_header(struct vs_task *t, uint32_t cdb_size, uint8_t *h)
{
	if (vs_likely(cdb_size == CDB_USUAL && t->out->iov_len >= HEADER_FIXED + CDB_USUAL)) {
		memcpy(h, t->out->iov_base, HEADER_FIXED + CDB_USUAL);
		/* The compiler sees through this copy: it may not go back to the driver's bytes for what it has in h. */
		__asm__ volatile("" ::: "memory");
		memcpy(t->cdb, h + HEADER_FIXED, CDB_USUAL);
	} else {
		vs_iov_to_buffer(t->out, (int)t->nout, 0, h, HEADER_FIXED + cdb_size);
		memcpy(t->cdb, h + HEADER_FIXED, cdb_size);
	}
	skip_bytes(&t->out, &t->nout, HEADER_FIXED + cdb_size);
}

static int command_start(struct vs_queue *q, struct vs_request *r, const struct vs_chain *chain)
{
	struct vs_vdev *d = q->vdev;
	struct vs_task *t = &r->task;
	uint32_t header = HEADER_FIXED + d->cdb_size, response = RESPONSE_FIXED + d->sense_size;
	uint8_t h[HEADER_FIXED + VS_CDB_MAX];

	if (vs_unlikely(chain->out_length < header || chain->in_length < response)) {
		queue_break(q, -VS_RULE_REQUEST_SHORT);
		request_release(q, r);
		return 0;
	}
	t->ops = &command_ops;
	t->w = q->w;
	t->credit = &d->credit;
	t->port_cookie = d->cookie;
	t->out = r->iov;
	t->nout = chain->nout;
	t->in = r->iov + chain->nout;
	t->nin = chain->nin;
	t->flags = 0;
	t->listed = false;
	t->out_length = chain->out_length - header;
	t->in_length = chain->in_length - response;
	read_header(t, d->cdb_size, h);
	if (vs_unlikely(!split_response(q, r, &t->in, &t->nin, response))) {
		queue_break(q, -VS_RULE_NO_MEMORY);
		request_release(q, r);
		return 0;
	}
	t->tag = le64(h + 8);
	t->attribute = h[16];
	t->cdb_len = (uint8_t)d->cdb_size;
	if (vs_unlikely(!find_lun(d, h, t) || t->attribute > VS_ATTR_ACA)) {
		write_response(r, response, 0, 0, t->attribute > VS_ATTR_ACA ? VS_RESP_FAILURE : VS_RESP_BAD_TARGET, NULL, 0);
		request_used(q, r, response);
		return 0;
	}
	if (vs_unlikely(t->nexus && !tag_enter(q, r)))
		t->flags |= VS_TASK_OVERLAPPED;
	else if (vs_unlikely(q->track.once && vs_opcode_is_once(t->cdb[0])) && once_begin(q, r))
		return 0;
	return vs_task_submit(t);
}

/* ---- the control queue -------------------------------------------------------------------------------------------------------------------- */

static void ctrl_start(struct vs_queue *q, struct vs_request *r, const struct vs_chain *chain)
{
	struct vs_ctrl *c = malloc(sizeof(*c));

	if (!c) {
		queue_break(q, -VS_RULE_NO_MEMORY);
		request_release(q, r);
		return;
	}
	c->request = r;
	c->out_length = (uint32_t)vs_iov_to_buffer(r->iov, (int)chain->nout, 0, c->out, vs_min(chain->out_length, (uint64_t)VS_CTRL_BYTES));
	c->in_length = (uint32_t)vs_min(chain->in_length, (uint64_t)VS_CTRL_BYTES);
	r->task.in = r->iov + chain->nout;
	r->task.nin = chain->nin;
	c->up = (struct vs_upnode){ .kind = VS_UP_CTRL, .worker = q->w->index, .cookie = q->vdev->cookie, .object = c };
	vs_upcall(q->vdev->core, &c->up);
}

static void ctrl_reply_run(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_ctrl *c = vs_container_of(m, struct vs_ctrl, msg);
	struct vs_request *r = c->request;
	uint64_t n = vs_iov_from_buffer(r->task.in, (int)r->task.nin, 0, c->reply, vs_min(c->reply_length, c->in_length));

	(void)w;
	request_used(r->queue, r, (uint32_t)n);
	free(c);
}

void vs_ctrl_info(const vs_ctrl *c, struct vs_ctrl_info *out)
{
	*out = (struct vs_ctrl_info){ .port_cookie = c->request->queue->vdev->cookie, .queue = c->request->queue->index,
				      .in_length = c->in_length, .out_length = c->out_length, .out = c->out };
}

void vs_ctrl_reply(vs_core *core, vs_ctrl *c, const uint8_t *data, uint32_t length)
{
	(void)core;
	c->reply_length = vs_min(length, (uint32_t)VS_CTRL_BYTES);
	memcpy(c->reply, data, c->reply_length);
	c->msg.run = ctrl_reply_run;
	vs_worker_send(c->request->queue->w, &c->msg);
}

/* ---- the poller --------------------------------------------------------------------------------------------------------------------------------- */

static bool retry_stalled(struct vs_queue *q)
{
	struct vs_request *r = q->stalled;

	q->stalled = NULL;
	if (vs_task_submit(&r->task)) {
		q->stalled = r;
		return false;
	}
	publish_view(q);
	return true;
}

static int take_one(struct vs_queue *q)
{
	struct vs_chain chain;
	struct vs_request *r = request_pop(q, &chain);

	if (!r)
		return -1;
	if (vs_unlikely(q->index == VS_QUEUE_CONTROL))
		ctrl_start(q, r, &chain);
	else if (vs_unlikely(command_start(q, r, &chain)))
		q->stalled = r;
	return q->broken || q->stalled ? -1 : 0;
}

static int queue_poll(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_queue *q = vs_container_of(p, struct vs_queue, poller);
	int n, did = 0;

	if (q->fresh)
		count_fresh(q);
	if (vs_unlikely(!q->enabled || q->broken || q->stopping || q->waiting || q->await_kick))
		return 0;
	if (vs_unlikely(q->stalled != NULL) && !retry_stalled(q))
		return 0;
	n = chains_available(q);
	if (vs_likely(n == 0))
		return 0;
	if (vs_unlikely(n < 0)) {
		queue_break(q, blame(q, n));
		return 0;
	}
	n = vs_min(n, POP_A_TURN);
	q->begun = true;
	while (did < n) {
		/* Messages first: they may hand back tasks that come before the next one. */
		if (vs_unlikely(vs_worker_should_yield(w)) && !w->popping_for_tmf)
			break;
		did++;
		if (take_one(q))
			break;
	}
	vs_count(&q->view.requests, (uint64_t)did);
	vs_count(&q->view.batches, 1);
	if (vs_likely(did))
		vs_count(&q->view.batch_sizes[31 - __builtin_clz((uint32_t)did)], 1);
	if (vs_unlikely(atomic_load_explicit(&q->view.tell_busy, memory_order_relaxed))) {
		atomic_store(&q->view.tell_busy, 0);
		vs_upcall_new(q->vdev->core, VS_UP_BUSY, w->index, q->vdev->cookie, q->index, 0, NULL);
	}
	vs_count(&w->stats.requests, (uint64_t)did);
	vs_count(&w->stats.batches, 1);
	if (vs_unlikely((uint32_t)did > atomic_load_explicit(&q->view.max_batch, memory_order_relaxed)))
		atomic_store_explicit(&q->view.max_batch, (uint32_t)did, memory_order_relaxed);
	publish_view(q);
	if (vs_unlikely(memory_gone(q)) && !q->broken)
		queue_break(q, -VS_RULE_MEMORY_GONE);
	return did;
}

static void queue_flush(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_queue *q = vs_container_of(p, struct vs_queue, poller);

	if (!q->started)
		return;
	if (vs_likely(!q->ring_gone))
		publish(q);
	VS_STEP(SIGNAL);
	if (q->notify && q->call.fd >= 0) {
		if (vs_unlikely(!signal_call(q)) && !q->broken)
			queue_break(q, -VS_RULE_NOTIFIER_BLOCKS);
		vs_count(&q->view.interrupts, 1);
		vs_count(&w->stats.interrupts, 1);
	} else {
		vs_count(&q->view.interrupts_suppressed, 1);
		vs_count(&w->stats.interrupts_suppressed, 1);
	}
	q->notify = false;
	VS_STEP(SIGNALLED);
	publish_view(q);
	if (q->stopping && !q->in_flight)
		queue_finish_stop(q);
}

static bool queue_arm(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_queue *q = vs_container_of(p, struct vs_queue, poller);

	if (!q->enabled || q->broken || q->stopping || q->stalled || q->waiting || q->await_kick)
		return false;
	if (q->kick.fd < 0)
		vs_timer_set(w, &q->poll_timer, vs_now_ns() + POLL_TIMER_NS);
	return vs_vring_kicks_on(&q->ring) || vs_track_replays(&q->track);
}

static void queue_disarm(struct vs_worker *w, struct vs_poller *p)
{
	struct vs_queue *q = vs_container_of(p, struct vs_queue, poller);

	(void)w;
	if (q->enabled && !q->broken && !q->stopping && !q->await_kick)
		vs_vring_kicks_off(&q->ring);
}

static void poll_timer_fired(struct vs_worker *w, struct vs_timer *t)
{
	(void)w; /* being awake is all that it is for */
	(void)t;
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------------------------------- */

static bool takes_events(const struct vs_queue *q)
{
	return q->started && !q->broken && !q->stopping && q->enabled && !q->await_kick;
}

/* One buffer of the driver's is used for it. -ENOBUFS: there is none, or none may be taken; else negative: the ring broke. */
static int event_put(struct vs_queue *q, const uint8_t *event)
{
	uint8_t bytes[VS_EVENT_BYTES];
	struct vs_chain chain;
	struct vs_request *r;
	int n;

	if (!takes_events(q))
		return -ENOBUFS;
	n = chains_available(q);
	if (n < 0) {
		queue_break(q, blame(q, n));
		return -EIO;
	}
	if (!n)
		return -ENOBUFS;
	q->begun = true;
	r = request_pop(q, &chain);
	if (!r)
		return -EIO;
	memcpy(bytes, event, sizeof(bytes));
	if (q->missed)
		bytes[EVENTS_MISSED_BYTE] |= EVENTS_MISSED_BIT;
	q->missed = false;
	request_used(q, r, (uint32_t)vs_iov_from_buffer(r->iov + chain.nout, (int)chain.nin, 0, bytes, sizeof(bytes)));
	return 0;
}

/* 5.6.6.3: a driver that lost events is told as soon as it makes a buffer available, by an event of no other meaning. */
static void tell_of_missed(struct vs_queue *q)
{
	static const uint8_t no_event[VS_EVENT_BYTES];

	if (vs_likely(!q->missed))
		return;
	if (event_put(q, no_event) != -ENOBUFS || !takes_events(q))
		return;
	/* Nobody looks at this ring by himself: its next buffer has to come with a kick, unless it has come meanwhile. */
	if (vs_vring_kicks_on(&q->ring))
		event_put(q, no_event);
}

int vs_queue_run_event(struct vs_queue *q, const uint8_t *event)
{
	int err = event_put(q, event);

	if (err) {
		q->missed = true;
		tell_of_missed(q);
	}
	return err;
}

int vs_queue_run_event_room(struct vs_queue *q)
{
	return takes_events(q) ? vs_max(chains_available(q), 0) : -ENOBUFS;
}

/* ---- descriptors ------------------------------------------------------------------------------------------------------------------------------------ */

static void kick_ready(struct vs_worker *w, struct vs_source *s, uint32_t events)
{
	struct vs_queue *q = vs_container_of(s, struct vs_queue, kick);
	uint64_t ignored;
	struct iovec iov = { &ignored, sizeof(ignored) };
	ssize_t r = preadv2(s->fd, &iov, 1, -1, RWF_NOWAIT);

	/* Kernels that do not take RWF_NOWAIT here leave the flag of the descriptor, which a peer can take away. */
	if (vs_unlikely(r < 0 && errno == EOPNOTSUPP))
		r = read(s->fd, &ignored, sizeof(ignored));
	if (vs_unlikely(r < 0 && errno == EINTR)) {
		atomic_store(&q->vdev->suspect, true);
		if (!q->broken)
			queue_break(q, -VS_RULE_NOTIFIER_BLOCKS);
	}
	(void)events;
	if (vs_unlikely(!q->begun)) {
		q->begun = true;
		q->await_kick = false;
		publish_view(q);
	}
	vs_count(&q->view.kicks, 1);
	vs_count(&w->stats.kicks, 1);
	tell_of_missed(q);
}

static void replace_fd(int *slot, int fd)
{
	if (*slot >= 0)
		close(*slot);
	*slot = fd;
}

static void queue_stopped(struct vs_queue *q)
{
	uint64_t cookie = q->stop_cookie;

	free(q->requests);
	free(q->ring.order);
	q->requests = NULL;
	q->ring.order = NULL;
	vs_track_end(&q->track);
	vs_upcall_after_flush(q->w, VS_UP_DONE, cookie, vs_vring_base(&q->ring), 0);
}

static void kick_removed(struct vs_worker *w, struct vs_source *s)
{
	struct vs_queue *q = vs_container_of(s, struct vs_queue, kick);

	(void)w;
	close(s->fd);
	s->fd = -1;
	q->kick_known = false;
	if (q->stopping) {
		replace_fd(&q->params.kick_fd, -1);
		if (q->started)
			return; /* it was to be replaced, and requests are still in flight: queue_finish_stop comes later */
		q->stopping = false;
		queue_stopped(q);
	} else if (q->params.kick_fd >= 0) {
		vs_queue_run_kick(q, q->params.kick_fd); /* the one that replaces it */
	}
}

/* A descriptor for a queue that has no use for it is nobody's: the next start brings its own. */
static bool refuse_fd(bool wanted, int fd)
{
	if (wanted)
		return false;
	if (fd >= 0)
		close(fd);
	return true;
}

void vs_queue_run_call(struct vs_queue *q, int fd)
{
	if (refuse_fd(q->started, fd))
		return;
	vs_bell_set(&q->call, fd);
	signal_call(q); /* what was signalled on the old one is not lost */
}

void vs_queue_run_err(struct vs_queue *q, int fd)
{
	if (!refuse_fd(q->started, fd))
		vs_bell_set(&q->err, fd);
}

void vs_queue_run_kick(struct vs_queue *q, int fd)
{
	if (refuse_fd(q->started && !q->stopping, fd))
		return;
	if (fd < 0)
		q->await_kick = false; /* polled from here on */
	if (q->kick_known) {
		/* The engine lets go of the old one first; kick_removed comes back here. */
		if (q->params.kick_fd >= 0 && q->params.kick_fd != q->kick.fd)
			close(q->params.kick_fd);
		q->params.kick_fd = fd;
		if (!q->kick.removing)
			q->w->engine->source_del(q->w, &q->kick);
		return;
	}
	q->params.kick_fd = -1;
	q->kick = (struct vs_source){ .fd = fd, .events = EPOLLIN, .ready = kick_ready, .removed = kick_removed };
	if (fd < 0)
		return;
	if (q->w->engine->source_add(q->w, &q->kick)) {
		/* Not something that can be waited for: the queue would never hear of a request. */
		close(fd);
		q->kick.fd = -1;
		queue_break(q, -VS_RULE_KICK);
		return;
	}
	q->kick_known = true;
}

/* ---- start, stop ------------------------------------------------------------------------------------------------------------------------------------------ */

void vs_queue_init(struct vs_queue *q, struct vs_vdev *d, uint32_t index)
{
	memset(q, 0, sizeof(*q));
	q->vdev = d;
	q->index = index;
	q->call.fd = q->err.fd = q->kick.fd = q->params.kick_fd = -1;
	vs_list_init(&q->poller.link);
	vs_list_init(&q->poller.dirty);
	vs_timer_init(&q->poll_timer, poll_timer_fired);
	q->poller.poll = queue_poll;
	q->poller.flush = queue_flush;
	q->poller.arm = queue_arm;
	q->poller.disarm = queue_disarm;
}

void vs_queue_run_start(struct vs_queue *q, struct vs_request *requests, struct vs_order *order, uint64_t cookie)
{
	int kick_fd = q->params.kick_fd;
	int err = vs_vring_init(&q->ring, q->map, &q->params), kept = 0;

	if (!err) {
		kept = vs_track_begin(&q->track, q->params.inflight, q->index, &q->ring);
		if (kept < 0 && kept != -ESTALE)
			err = -VS_RULE_INFLIGHT;
	}
	vs_bell_set(&q->call, q->params.call_fd);
	vs_bell_set(&q->err, q->params.err_fd);
	if (err) {
		q->error = err;
		free(requests);
		free(order);
		vs_bell_set(&q->call, -1);
		vs_bell_set(&q->err, -1);
		if (kick_fd >= 0)
			close(kick_fd);
		q->params.kick_fd = -1;
		publish_view(q);
		vs_upcall_after_flush(q->w, VS_UP_DONE, cookie, 0, err);
		return;
	}
	vs_pin(q->w, &q->map->pins);
	q->requests = requests;
	q->tags = (uint16_t *)(requests + q->params.size);
	q->tag_shift = 64 - vs_queue_tag_bits(q->params.size);
	q->ring.order = order;
	for (uint32_t i = 0; i < q->params.size; i++)
		requests[i].resp = requests[i].resp_inline;
	q->started = true;
	q->enabled = q->params.enabled;
	q->broken = q->ring_gone = q->stopping = q->notify = false;
	q->error = 0;
	q->in_flight = q->unpublished = q->segment_bytes = 0;
	q->waiting = q->begun = false;
	q->await_kick = q->params.wait_kick;
	q->stalled = NULL;
	q->sigbus_seen = vs_sigbus_count();
	vs_queue_run_kick(q, kick_fd);
	if (q->index != VS_QUEUE_EVENT) {
		vs_list_add_tail(&q->w->pollers, &q->poller.link);
		if (q->enabled && !q->await_kick)
			vs_vring_kicks_off(&q->ring);
	}
	if (kept > 0)
		q->await_kick = false; /* where the ring begins is known */
	if (q->track.of) {
		/* The process before us may have ended between a used index and its interrupt. */
		q->notify = true;
		vs_poller_dirty(q->w, &q->poller);
	}
	publish_view(q);
	tell_of_missed(q);
	vs_upcall_after_flush(q->w, VS_UP_DONE, cookie, kept > 0 ? (uint64_t)kept : kept ? UINT64_C(1) << 32 : 0, 0);
}

static void queue_finish_stop(struct vs_queue *q)
{
	q->started = q->enabled = false;
	vs_list_del(&q->poller.link);
	vs_list_del(&q->poller.dirty);
	vs_timer_cancel(q->w, &q->poll_timer);
	vs_bell_set(&q->call, -1);
	vs_bell_set(&q->err, -1);
	publish_view(q);
	vs_unpin(q->w, &q->map->pins);
	if (q->kick_known) {
		if (!q->kick.removing)
			q->w->engine->source_del(q->w, &q->kick); /* kick_removed goes on */
		return;
	}
	q->stopping = false;
	queue_stopped(q);
}

void vs_queue_run_stop(struct vs_queue *q, uint64_t cookie)
{
	q->stop_cookie = cookie;
	if (!q->started) {
		vs_upcall_after_flush(q->w, VS_UP_DONE, cookie, vs_vring_base(&q->ring), 0);
		return;
	}
	q->stopping = true;
	if (q->stalled) {
		request_release(q, q->stalled);
		request_untake(q, q->stalled);
		q->stalled = NULL;
	}
	if (!q->in_flight)
		vs_poller_dirty(q->w, &q->poller);
}

void vs_queue_run_enable(struct vs_queue *q, bool enabled)
{
	if (q->started && !q->stopping) {
		q->enabled = enabled;
		publish_view(q);
		tell_of_missed(q);
	}
}

int vs_queue_run_map(struct vs_queue *q, struct vs_memmap *map)
{
	struct vs_memmap *old = q->map;
	int err;

	if (!q->started || q->stopping)
		return 0;
	vs_pin(q->w, &map->pins);
	q->map = map;
	err = vs_vring_remap(&q->ring, map);
	vs_unpin(q->w, &old->pins);
	if (err) {
		/* The old mapping of the ring goes away: the ring may not be touched again, not even for completions. */
		q->ring_gone = true;
		queue_break(q, err);
	}
	return err;
}
