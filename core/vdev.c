// SPDX-License-Identifier: Apache-2.0
/*
 * A virtio-scsi device as the control plane sees it: creation, and messages that have a queue's worker start, stop or change the
 * queue. What a queue does is in vqueue.c.
 */
#include <stdlib.h>
#include <unistd.h>

#include "vdev.h"
#include "vring.h"

int vs_vdev_create(vs_core *c, const struct vs_vdev_params *p, vs_vdev **out)
{
	struct vs_vdev *d;

	if (p->num_queues < 3 || p->num_queues > 1024 || p->cdb_size < 16 || p->cdb_size > 255 || p->sense_size < 18 || p->sense_size > VS_SENSE_MAX || !p->credit)
		return -EINVAL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->queues = calloc(p->num_queues, sizeof(*d->queues));
	if (!d->queues) {
		free(d);
		return -ENOMEM;
	}
	d->core = c;
	d->cookie = p->cookie;
	d->num_queues = p->num_queues;
	d->cdb_size = p->cdb_size;
	d->sense_size = p->sense_size;
	vs_credit_init(&d->credit, c, (int32_t)p->credit);
	for (uint32_t i = 0; i < p->num_queues; i++)
		vs_queue_init(&d->queues[i], d, i);
	*out = d;
	return 0;
}

void vs_vdev_destroy(vs_vdev *d)
{
	vs_lunmap_free(&d->luns);
	free(d->queues);
	free(d);
}

int vs_vdev_set_luns(vs_vdev *d, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie)
{
	return vs_lunmap_replace(d->core, &d->luns, entries, n, cookie);
}

/* ---- messages to a queue's worker ------------------------------------------------------------------------------------------------------------ */

enum order { START, STOP, ENABLE, CALL, ERR, KICK, MAP, EVENT, ROOM, FORGET };
struct queue_msg {
	struct vs_msg msg;
	struct vs_queue *q;
	enum order order;
	uint64_t cookie;
	int fd;
	struct vs_memmap *map;
	struct vs_request *requests;
	struct vs_order *in_order;
	uint8_t event[VS_EVENT_BYTES];
};

static void queue_msg_run(struct vs_worker *w, struct vs_msg *m)
{
	struct queue_msg *o = vs_container_of(m, struct queue_msg, msg);
	struct vs_queue *q = o->q;
	int err = 0, n = 0;

	switch (o->order) {
	case START:
		vs_queue_run_start(q, o->requests, o->in_order, o->cookie);
		break;
	case STOP:
		vs_queue_run_stop(q, o->cookie);
		break;
	case ENABLE:
		vs_queue_run_enable(q, o->fd);
		break;
	case CALL:
		vs_queue_run_call(q, o->fd);
		break;
	case ERR:
		vs_queue_run_err(q, o->fd);
		break;
	case KICK:
		vs_queue_run_kick(q, o->fd);
		break;
	case MAP:
		err = vs_queue_run_map(q, o->map);
		break;
	case EVENT:
		err = vs_queue_run_event(q, o->event);
		break;
	case ROOM:
		n = vs_queue_run_event_room(q);
		err = vs_min(n, 0);
		break;
	case FORGET:
		q->missed = false;
		break;
	}
	if (o->order != START && o->order != STOP)
		vs_upcall_after_flush(w, VS_UP_DONE, o->cookie, (uint32_t)vs_max(n, 0), err);
	free(o);
}

static struct queue_msg *order_new(vs_vdev *d, uint32_t index, enum order order, uint64_t cookie)
{
	struct queue_msg *o;

	if (index >= d->num_queues || !d->queues[index].w)
		return NULL;
	o = calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	o->msg.run = queue_msg_run;
	o->q = &d->queues[index];
	o->order = order;
	o->cookie = cookie;
	return o;
}

static int order_fd(vs_vdev *d, uint32_t index, enum order order, int fd, uint64_t cookie)
{
	struct queue_msg *o = order_new(d, index, order, cookie);

	if (!o) {
		if (fd >= 0 && order != ENABLE)
			close(fd);
		return -EINVAL;
	}
	o->fd = fd;
	vs_worker_send(o->q->w, &o->msg);
	return 0;
}

static void close_params(const struct vs_queue_params *p)
{
	if (p->kick_fd >= 0)
		close(p->kick_fd);
	if (p->call_fd >= 0)
		close(p->call_fd);
	if (p->err_fd >= 0)
		close(p->err_fd);
}

int vs_queue_start(vs_vdev *d, uint32_t index, const struct vs_queue_params *p, vs_memmap *map, uint64_t cookie)
{
	struct vs_order *in_order = NULL;
	struct vs_request *requests;
	struct queue_msg *o;
	struct vs_queue *q;

	if (index >= d->num_queues || p->worker >= d->core->config.nworkers || !vs_vring_size_ok(p->size, p->features)) {
		close_params(p);
		return -EINVAL;
	}
	q = &d->queues[index];
	if (atomic_load(&q->view.state) & 1) {
		close_params(p);
		return -EBUSY;
	}
	/* Pages of requests that a ring never uses are never touched. */
	requests = calloc(1, p->size * sizeof(*requests) + (sizeof(uint16_t) << vs_queue_tag_bits(p->size)));
	if (p->features & VS_RING_IN_ORDER)
		in_order = calloc(p->size, sizeof(*in_order));
	q->w = &d->core->workers[p->worker];
	o = requests && (in_order || !(p->features & VS_RING_IN_ORDER)) ? order_new(d, index, START, cookie) : NULL;
	if (!o) {
		free(requests);
		free(in_order);
		close_params(p);
		return -ENOMEM;
	}
	q->params = *p;
	q->map = map;
	o->requests = requests;
	o->in_order = in_order;
	vs_worker_send(q->w, &o->msg);
	return 0;
}

int vs_queue_stop(vs_vdev *d, uint32_t index, uint64_t cookie) { return order_fd(d, index, STOP, -1, cookie); }
int vs_queue_enable(vs_vdev *d, uint32_t index, int on, uint64_t cookie) { return order_fd(d, index, ENABLE, !!on, cookie); }
int vs_queue_set_call(vs_vdev *d, uint32_t index, int fd, uint64_t cookie) { return order_fd(d, index, CALL, fd, cookie); }
int vs_queue_set_err(vs_vdev *d, uint32_t index, int fd, uint64_t cookie) { return order_fd(d, index, ERR, fd, cookie); }
int vs_queue_set_kick(vs_vdev *d, uint32_t index, int fd, uint64_t cookie) { return order_fd(d, index, KICK, fd, cookie); }

int vs_queue_set_map(vs_vdev *d, uint32_t index, vs_memmap *map, uint64_t cookie)
{
	struct queue_msg *o = order_new(d, index, MAP, cookie);

	if (!o)
		return -EINVAL;
	o->map = map;
	vs_worker_send(o->q->w, &o->msg);
	return 0;
}

int vs_vdev_event(vs_vdev *d, const uint8_t *event, uint64_t cookie)
{
	struct queue_msg *o = order_new(d, VS_QUEUE_EVENT, EVENT, cookie);

	if (!o)
		return -ENOBUFS;
	memcpy(o->event, event, VS_EVENT_BYTES);
	vs_worker_send(o->q->w, &o->msg);
	return 0;
}

int vs_vdev_event_room(vs_vdev *d, uint64_t cookie) { return order_fd(d, VS_QUEUE_EVENT, ROOM, -1, cookie); }
int vs_vdev_events_forget(vs_vdev *d, uint64_t cookie) { return order_fd(d, VS_QUEUE_EVENT, FORGET, -1, cookie); }

int vs_queue_info(const vs_vdev *d, uint32_t index, struct vs_queue_info *out)
{
	const struct vs_queue *q;
	uint32_t indices, state;

	memset(out, 0, sizeof(*out));
	if (index >= d->num_queues)
		return -EINVAL;
	q = &d->queues[index];
	indices = atomic_load((_Atomic uint32_t *)&q->view.indices);
	state = atomic_load((_Atomic uint32_t *)&q->view.state);
	out->requests = vs_counted(&q->view.requests);
	out->kicks = vs_counted(&q->view.kicks);
	out->interrupts = vs_counted(&q->view.interrupts);
	out->interrupts_suppressed = vs_counted(&q->view.interrupts_suppressed);
	out->batches = vs_counted(&q->view.batches);
	out->errors = vs_counted(&q->view.errors);
	out->max_batch = atomic_load((_Atomic uint32_t *)&q->view.max_batch);
	out->desc = q->params.desc;
	out->avail = q->params.avail;
	out->used = q->params.used;
	out->size = q->params.size;
	out->features = q->params.features;
	out->worker = q->params.worker;
	out->in_flight = atomic_load((_Atomic uint32_t *)&q->view.in_flight);
	out->last_avail = (uint16_t)(indices >> 16);
	out->used_idx = (uint16_t)indices;
	out->started = state & 1;
	out->enabled = (state >> 1) & 1;
	out->broken = (state >> 2) & 1;
	out->stalled = (state >> 3) & 1;
	out->begun = (state >> 4) & 1;
	out->stopping = (state >> 5) & 1;
	out->waiting = (state >> 6) & 1;
	out->await_kick = (state >> 7) & 1;
	for (uint32_t i = 0; i < VS_QLATENCY_BUCKETS; i++)
		out->latency[i] = vs_counted(&q->view.latency[i]);
	for (uint32_t i = 0; i < VS_QBATCH_BUCKETS; i++)
		out->batch_sizes[i] = vs_counted(&q->view.batch_sizes[i]);
	out->error = atomic_load((_Atomic int32_t *)&q->view.error);
	return 0;
}

void vs_queue_tell_busy(vs_vdev *d, uint32_t index)
{
	if (index < d->num_queues)
		atomic_store(&d->queues[index].view.tell_busy, 1);
}
