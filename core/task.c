// SPDX-License-Identifier: Apache-2.0
/*
 * The life of a task: taken from a transport, tested at the gate, run here or sent to Python, ended exactly once; and task management on what
 * the workers hold. What a media command does stands in media.c.
 */
#include <stdlib.h>

#include "task.h"
#include "gen/tables.h"

/* ---- the command table ------------------------------------------------------------------------------------------------------------------ */

static int16_t row_index[256]; /* first row of an opcode, -1: none */
static bool is_once[256];

__attribute__((constructor)) static void build_row_index(void)
{
	memset(row_index, 0xff, sizeof(row_index));
	for (int i = VS_NROWS - 1; i >= 0; i--) {
		row_index[vs_rows[i].opcode] = (int16_t)i;
		is_once[vs_rows[i].opcode] |= vs_rows[i].once;
	}
}

bool vs_opcode_is_once(uint8_t opcode) { return is_once[opcode]; }

const struct vs_row *vs_row_of(const uint8_t *cdb, uint32_t cdb_len)
{
	int i = row_index[cdb[0]];

	if (i < 0)
		return NULL;
	if (!vs_rows[i].has_sa)
		return cdb_len >= vs_rows[i].cdb_len ? &vs_rows[i] : NULL;
	for (; i < VS_NROWS; i++) {
		const struct vs_row *row = &vs_rows[i];
		uint16_t action;

		if (row->opcode != cdb[0] || cdb_len < row->cdb_len)
			continue;
		action = cdb[0] == 0x7f ? vs_be16(cdb + 8) : cdb[1] & 0x1f;
		if (row->service_action == action)
			return row;
	}
	return NULL;
}

/* SPC-5 4.2.5: the group code in the top three bits gives the length. */
uint32_t vs_cdb_length(const uint8_t *cdb)
{
	static const uint8_t length[8] = { 6, 10, 10, 0, 16, 12, 0, 0 };

	if (cdb[0] == 0x7f)
		return vs_min(8u + cdb[7], (uint32_t)VS_CDB_MAX);
	return length[cdb[0] >> 5];
}

/* SAM-5 5.2: NACA is bit 2 of CONTROL, the last byte, or byte 1 of a variable-length CDB. */
static bool naca(const struct vs_task *t)
{
	uint32_t n = vs_cdb_length(t->cdb);

	if (t->cdb[0] == 0x7f)
		return t->cdb[1] & 4;
	return n && n <= t->cdb_len && (t->cdb[n - 1] & 4);
}

/* ---- credit -------------------------------------------------------------------------------------------------------------------------------- */

void vs_credit_init(struct vs_credit *c, struct vs_core *core, int32_t n)
{
	atomic_store(&c->left, n);
	atomic_store(&c->starved, 0);
	c->core = core;
}

static bool credit_take(struct vs_credit *c, bool anyway)
{
	do {
		if (atomic_fetch_sub(&c->left, 1) > 0 || anyway)
			return true;
		atomic_fetch_add(&c->left, 1);
		atomic_store(&c->starved, 1);
		/* A return may have come before it could see that we starve: then try again. */
	} while (atomic_load(&c->left) > 0);
	return false;
}

void vs_credit_return(struct vs_credit *c)
{
	atomic_fetch_add(&c->left, 1);
	if (atomic_exchange(&c->starved, 0))
		for (uint32_t i = 0; i < c->core->config.nworkers; i++)
			vs_worker_wake(&c->core->workers[i]);
}

/* ---- being findable --------------------------------------------------------------------------------------------------------------------------- */

void vs_task_layer(struct vs_task *t, enum vs_layer layer)
{
	t->layer = (uint8_t)layer;
	t->layer_ns = t->w->now_ns;
}

void vs_task_list(struct vs_task *t)
{
	if (!t->listed) {
		t->listed = true;
		vs_list_add_tail(&t->w->tasks, &t->link);
	}
}

/* ---- to Python and back ------------------------------------------------------------------------------------------------------------------------ */

static void end_with_status(struct vs_task *t, uint8_t status)
{
	t->status = status;
	vs_task_finish(t);
}

/* PARAMETER LIST LENGTH, a field of the CDB: what lies behind it in the buffer is not taken. A list may say its own length instead. */
static uint64_t list_length(const struct vs_task *t)
{
	uint64_t n = 0;

	if (!t->row->param_bytes)
		return UINT64_MAX;
	for (uint32_t i = 0; i < t->row->param_bytes; i++)
		n = n << 8 | t->cdb[t->row->param_at + i];
	return n;
}

/* What Python will read of the data-out buffer, copied before anybody looks at it. */
static bool copy_param(struct vs_task *t)
{
	uint64_t n;

	if (t->param || !t->row || !t->row->param_max)
		return true;
	n = vs_min(vs_min(t->out_length, (uint64_t)t->row->param_max), list_length(t));
	if (!n)
		return true;
	t->param = malloc(n);
	if (!t->param)
		return false;
	t->param_length = (uint32_t)vs_iov_to_buffer(t->out, (int)t->nout, 0, t->param, n);
	return true;
}

/* Counts the task as sent to Python: from here until Python has received it, vs_gate_open fails. False: what `why` says of the gate was
 * cleared before the count, so that nothing would hold younger tasks back; then the task is not sent. */
static bool count_sent(struct vs_task *t, uint64_t why)
{
	const uint64_t one = UINT64_C(1) << VS_GATE_COUNT_SHIFT;
	uint64_t seen = atomic_fetch_add(&t->nexus->gate, one) | atomic_fetch_add(&t->lu->gate, one);

	if (vs_likely(!why || (seen & why)))
		return true;
	atomic_fetch_sub(&t->nexus->gate, one);
	atomic_fetch_sub(&t->lu->gate, one);
	return false;
}

static void held_by_python(struct vs_task *t, uint32_t by)
{
	atomic_fetch_add(&t->nexus->in_python, by);
	atomic_fetch_add(&t->lu->in_python, by);
}

enum { SENT = 0, OPENED = 1 };

/* SENT (or ended for want of memory), -EAGAIN without credit, OPENED: the gate is not closed any more by what is in why.
 * set: bits for the LU's gate. They come after the count, so that vs_gate_open cannot take them back before Python has seen the task. */
static int to_python(struct vs_task *t, uint64_t why, uint64_t set)
{
	if (t->nexus && !t->w->redoing) {
		uint8_t status = vs_outstanding_check(t);

		if (vs_unlikely(status)) {
			end_with_status(t, status);
			return SENT;
		}
	}
	if (t->credit && !credit_take(t->credit, t->w->popping_for_tmf || t->w->redoing))
		return -EAGAIN;
	if (!copy_param(t)) {
		if (t->credit)
			vs_credit_return(t->credit);
		end_with_status(t, VS_STATUS_BUSY);
		return SENT;
	}
	if (t->nexus && !count_sent(t, set ? 0 : why)) {
		if (t->credit)
			vs_credit_return(t->credit);
		return OPENED;
	}
	t->gate_why = why;
	vs_task_layer(t, VS_LAYER_PYTHON);
	vs_task_list(t);
	if (t->nexus) {
		vs_count(&t->lu->stats[t->w->index].escalated, 1);
		held_by_python(t, 1);
		if (vs_unlikely(set))
			atomic_fetch_or(&t->lu->gate, set);
	}
	t->up = (struct vs_upnode){ .kind = VS_UP_TASK, .worker = t->w->index, .object = t };
	vs_upcall(t->w->core, &t->up);
	return SENT;
}

static void result_run(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_task *t = vs_container_of(m, struct vs_task, msg);

	(void)w;
	if (t->credit)
		vs_credit_return(t->credit);
	if (t->nexus)
		held_by_python(t, UINT32_MAX);
	/* It runs among others that Python holds, and what comes after it may not wait for an epoch. */
	t->flags &= (uint8_t)~VS_TASK_LEND;
	switch (t->verdict) {
	case VS_VERDICT_EXECUTE_NOTIFY:
		t->notify = true;
		/* fall through */
	case VS_VERDICT_EXECUTE:
		vs_task_execute(t);
		break;
	default:
		vs_task_finish(t);
		break;
	}
}

static void take_result(const struct vs_result *r, const uint8_t *blob, uint64_t blob_length)
{
	struct vs_task *t = r->task;

	t->verdict = r->verdict;
	if (r->verdict == VS_VERDICT_TELL) {
		t->decided = true;
		return;
	}
	t->response = VS_RESP_OK;
	if (r->verdict == VS_VERDICT_EXECUTE || r->verdict == VS_VERDICT_EXECUTE_NOTIFY) {
		t->notify_cookie = r->cookie;
		return;
	}
	t->decided = true;
	t->response = r->verdict == VS_VERDICT_ABORTED ? (uint8_t)(r->response ? r->response : VS_RESP_ABORTED) : r->response;
	t->status = r->status;
	t->sense_len = (uint8_t)vs_min((uint32_t)r->sense_length, (uint32_t)VS_SENSE_MAX);
	memcpy(t->sense, r->sense, t->sense_len);
	t->required = r->data_length;
	if (r->data_length && r->data_offset <= blob_length && r->data_length <= blob_length - r->data_offset)
		t->transferred = vs_iov_from_buffer(t->in, (int)t->nin, 0, blob + r->data_offset, vs_min((uint64_t)r->data_length, t->in_length));
	if (!t->in_length || t->param) {
		/* Parameter data went the other way: what Python was given has been taken. */
		t->transferred = t->param_length;
		t->required = t->param_length;
	}
}

void vs_core_post(vs_core *c, const struct vs_result *results, int n, const uint8_t *blob, uint64_t blob_length)
{
	uint64_t touched = 0;

	for (int i = 0; i < n; i++) {
		struct vs_task *t = results[i].task;

		take_result(&results[i], blob, blob_length);
		touched |= UINT64_C(1) << t->w->index;
		t->msg.run = result_run;
		vs_worker_push(t->w, &t->msg);
	}
	for (uint32_t i = 0; i < c->config.nworkers; i++)
		if (touched & (UINT64_C(1) << i))
			vs_worker_wake(&c->workers[i]);
}

/* ---- the gate --------------------------------------------------------------------------------------------------------------------------------------- */

void vs_task_execute(struct vs_task *t)
{
	struct vs_worker *w = t->w;

	if (!t->row || t->row->media == VS_MEDIA_NONE || !t->nexus) {
		/* Only a media command can be executed: the verdict is Python's mistake, the initiator gets an honest failure. */
		t->response = VS_RESP_TARGET_FAILURE;
		vs_task_finish(t);
		return;
	}
	vs_task_layer(t, VS_LAYER_CORE);
	vs_pin(w, &t->lu->pins);
	vs_pin(w, &t->nexus->pins);
	t->started = true;
	if (vs_media_start(t)) {
		vs_media_end(t);
		return;
	}
	vs_task_list(t);
	if (vs_unlikely(w->watch.index == UINT32_MAX) && atomic_load_explicit(&t->lu->timeout_ms, memory_order_relaxed))
		vs_media_watch(w, &w->watch);
}

static void redo_later(struct vs_task *t)
{
	vs_task_layer(t, VS_LAYER_GATE);
	vs_task_list(t);
	t->next = NULL;
	*t->w->redo_tail = t;
	t->w->redo_tail = &t->next;
}

/* 0, or -EAGAIN when Python's credit is used up. */
static int pass_gate(struct vs_task *t)
{
	uint64_t why;

	if (vs_unlikely(!t->nexus))
		return to_python(t, 0, 0);
	if (vs_unlikely(t->w->redo_head != NULL)) {
		/* It may not pass those that wait already. */
		redo_later(t);
		return 0;
	}
	if (vs_unlikely(t->flags & VS_TASK_OVERLAPPED))
		return to_python(t, 0, 0);
	if (vs_unlikely(t->attribute != VS_ATTR_SIMPLE))
		return to_python(t, VS_GATE_ORDERED, VS_GATE_ORDERED); /* before the next command of this LU is tested: SAM-5 8.6 */
	if (vs_unlikely(!t->row || t->row->media == VS_MEDIA_NONE))
		return to_python(t, 0, 0);
	why = atomic_load_explicit(&t->lu->gate, memory_order_acquire) | atomic_load_explicit(&t->nexus->gate, memory_order_acquire);
	why &= t->row->gate_mask & ~VS_GATE_EXCLUSIVE;
	if (vs_unlikely(why)) {
		int err = to_python(t, why, 0);

		if (err != OPENED)
			return err;
	}
	if (vs_unlikely(vs_worker_should_yield(t->w) || t->w->popping_for_tmf)) {
		/* The gate may have opened after tasks were handed back that are still in the inbox, or come behind the TMF in the
		 * batch that it was taken out with: they go first. */
		redo_later(t);
		return 0;
	}
	vs_task_execute(t);
	return 0;
}

int vs_task_submit(struct vs_task *t)
{
	t->layer = VS_LAYER_GATE;
	t->born_ns = t->layer_ns = t->w->now_ns;
	t->started = t->aborted = false;
	t->fault = t->decided = t->timed_out = false;
	t->gate_why = 0;
	t->notify = false;
	t->tmf = NULL;
	t->param = NULL;
	t->param_length = 0;
	t->status = VS_STATUS_GOOD;
	t->medium_error = false;
	t->sense_len = 0;
	t->response = VS_RESP_OK;
	t->transferred = t->required = 0;
	t->lent = NULL;
	t->range.held = t->range.waiting = t->range.granted = false;
	t->lu = t->nexus ? t->nexus->lu : NULL;
	t->row = vs_row_of(t->cdb, t->cdb_len);
	if (vs_unlikely(t->lu && atomic_load_explicit(&t->lu->pins.slots[t->w->index].count, memory_order_relaxed) >=
					 atomic_load_explicit(&t->lu->share, memory_order_relaxed))) {
		uint8_t status = vs_outstanding_check(t);

		if (status) {
			end_with_status(t, status);
			return 0;
		}
	}
	return pass_gate(t);
}

/* These were taken from their transports: they go on with or without credit, lest one port without any holds up the others. */
int vs_task_run_redo(struct vs_worker *w)
{
	struct vs_task *t = w->redo_head;
	int n = 0;

	w->redo_head = NULL; /* whoever has to wait again is put at the end, and so are all behind it */
	w->redo_tail = &w->redo_head;
	w->redoing = true;
	while (t) {
		struct vs_task *next = t->next;

		n++;
		if (t->aborted)
			vs_task_finish(t);
		else
			pass_gate(t);
		t = next;
	}
	w->redoing = false;
	return n;
}

/* ---- faults -------------------------------------------------------------------------------------------------------------------------------------------- */

/* SAM-5 5.9, SPC-5 7.5.10 QERR: whether a CHECK CONDITION is the business of other commands, too; or, UA_INTLCK_CTRL, a status that of those
 * to come. */
static bool is_fault(const struct vs_task *t)
{
	if (!t->nexus || t->decided || t->aborted || t->response != VS_RESP_OK)
		return false;
	if (t->status != VS_STATUS_CHECK_CONDITION)
		return (t->status == VS_STATUS_BUSY || t->status == VS_STATUS_TASK_SET_FULL) && atomic_load(&t->lu->tell_full);
	return atomic_load_explicit(&t->lu->queue_error, memory_order_relaxed) || naca(t) || t->attribute == VS_ATTR_ACA;
}

/*
 * No command may end between this CHECK CONDITION and what becomes of the others, so Python has it before the initiator does. The gate is closed
 * before the next command of the LU is tested. The count comes before the bit, as in to_python.
 */
static void hold_fault(struct vs_task *t)
{
	t->fault = true;
	if (t->lent) { /* who fences the LU does not wait for it */
		vs_iov_from_buffer(t->in, (int)t->nin, 0, t->lent, t->transferred);
		t->lent = NULL;
	}
	if (t->credit)
		credit_take(t->credit, true);
	count_sent(t, 0);
	held_by_python(t, 1);
	if (t->status == VS_STATUS_CHECK_CONDITION)
		atomic_fetch_or(&t->lu->gate, VS_GATE_ACA);
	vs_task_layer(t, VS_LAYER_PYTHON);
	vs_task_list(t);
	t->up = (struct vs_upnode){ .kind = VS_UP_TASK, .worker = t->w->index, .object = t };
	vs_upcall(t->w->core, &t->up);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------------------------------------- */

struct vs_tmf_run { struct vs_msg msg; struct vs_tmf tmf; uint32_t pending, matched; };

static void tmf_task_ended(struct vs_worker *w, struct vs_tmf_run *run)
{
	if (--run->pending)
		return;
	vs_upcall_after_flush(w, VS_UP_DONE, run->tmf.cookie, run->matched, 0);
	free(run);
}

void vs_task_finish(struct vs_task *t)
{
	struct vs_worker *w = t->w;
	struct vs_tmf_run *run = t->tmf;

	if (vs_unlikely(t->status != VS_STATUS_GOOD) && is_fault(t)) {
		hold_fault(t);
		return;
	}
	if (t->aborted && run) {
		t->response = (uint8_t)(run->tmf.status ? VS_RESP_OK : run->tmf.response);
		if (run->tmf.status) {
			t->status = (uint8_t)run->tmf.status;
			t->sense_len = 0;
		}
	}
	if (t->listed) {
		t->listed = false;
		vs_list_del(&t->link);
	}
	if (vs_unlikely(t->param != NULL)) {
		free(t->param);
		t->param = NULL;
	}
	if (t->lu && t->status != VS_STATUS_GOOD)
		vs_count(&t->lu->stats[w->index].failed, 1);
	if (vs_unlikely(t->notify))
		vs_upcall_after_flush(w, VS_UP_TASK_DONE, t->notify_cookie, t->status, 0);
	t->layer = VS_LAYER_COMPLETION;
	t->ops->complete(t); /* t may be used anew from here */
	if (vs_unlikely(run != NULL))
		tmf_task_ended(w, run);
}

/* ---- task management --------------------------------------------------------------------------------------------------------------------------------------- */

static bool matches(const struct vs_tmf *f, const struct vs_task *t)
{
	if (!t->nexus && (f->match & (VS_TMF_LU | VS_TMF_NEXUS)))
		return false;
	return (!(f->match & VS_TMF_LU) || t->lu == f->lu) && (!(f->match & VS_TMF_NEXUS) || t->nexus == f->nexus) &&
	       (!(f->match & VS_TMF_PORT) || t->port_cookie == f->port_cookie) && (!(f->match & VS_TMF_TAG) || t->tag == f->tag) &&
	       (!(f->match & VS_TMF_BEFORE) || t->order < f->before);
}

static void abort_task(struct vs_task *t, struct vs_tmf_run *run)
{
	t->aborted = true;
	t->tmf = run;
	run->pending++;
	if (t->started)
		vs_media_cancel(t);
	else if (t->layer == VS_LAYER_RING)
		t->ops->withdraw(t);
}

/* Commands that the initiator placed before the TMF count, popped or not (SAM-5 7.1): take what the rings hold. */
static void pop_everything(struct vs_worker *w)
{
	int budget = 2 * VS_QUEUE_MAX;

	w->popping_for_tmf = true;
	for (struct vs_list *l = w->pollers.next; l != &w->pollers;) {
		struct vs_poller *p = vs_container_of(l, struct vs_poller, link);
		int n;

		l = l->next;
		do {
			n = p->poll(w, p);
			budget -= n;
		} while (n > 0 && budget > 0);
	}
	w->popping_for_tmf = false;
}

static void tmf_run(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_tmf_run *run = vs_container_of(m, struct vs_tmf_run, msg);

	pop_everything(w);
	run->pending = 1; /* until the scan is over */
	for (struct vs_list *l = w->tasks.next; l != &w->tasks;) {
		struct vs_task *t = vs_container_of(l, struct vs_task, link);

		l = l->next;
		/* What Python holds, Python ends: it has seen each of them before our answer. */
		if (t->layer == VS_LAYER_PYTHON || t->tmf || !matches(&run->tmf, t))
			continue;
		run->matched++;
		if (run->tmf.action == VS_TMF_ABORT)
			abort_task(t, run);
	}
	tmf_task_ended(w, run);
}

void vs_tmf_post(vs_core *c, const struct vs_tmf *tmf)
{
	for (uint32_t i = 0; i < c->config.nworkers; i++) {
		struct vs_tmf_run *run = calloc(1, sizeof(*run));

		if (!run)
			abort();
		run->msg.run = tmf_run;
		run->tmf = *tmf;
		vs_worker_send(&c->workers[i], &run->msg);
	}
}

/* ---- inspection -------------------------------------------------------------------------------------------------------------------------------------------- */

void vs_task_info(const vs_task *t, struct vs_task_info *out)
{
	uint64_t now = vs_now_ns();

	memset(out, 0, sizeof(*out));
	out->task = (vs_task *)t;
	out->nexus_cookie = t->nexus ? t->nexus->cookie : 0;
	out->port_cookie = t->port_cookie;
	out->tag = t->tag;
	out->age_ns = now - t->born_ns;
	out->layer_ns = now - t->layer_ns;
	out->out_length = t->out_length;
	out->in_length = t->in_length;
	out->param = t->param;
	out->param_length = t->param_length;
	out->target = t->target;
	out->lun = t->lun;
	out->lun_kind = t->lun_kind;
	out->order = t->order;
	out->attribute = t->attribute;
	out->cdb_length = (uint8_t)vs_min((uint32_t)t->cdb_len, (uint32_t)UINT8_MAX);
	out->layer = t->layer;
	out->aborted = t->aborted;
	out->fault = t->fault;
	out->status = t->status;
	out->overlapped = (t->flags & VS_TASK_OVERLAPPED) != 0;
	out->notify = t->notify ? t->notify_cookie : 0;
	memcpy(out->cdb, t->cdb, t->cdb_len);
	out->gate = t->gate_why;
	out->in_segments = t->nin;
	out->out_segments = t->nout;
	out->worker = t->w->index;
	if (t->ops->describe)
		t->ops->describe(t, out);
}

struct snapshot {
	struct vs_msg msg;
	union { struct vs_task_info *tasks; struct vs_segment *segments; } out;
	uint32_t max, queue, head;
	uint64_t min_age_ns, port_cookie, cookie;
};

static void snapshot_run(struct vs_worker *w, struct vs_msg *m)
{
	struct snapshot *s = vs_container_of(m, struct snapshot, msg);
	uint64_t latest = s->min_age_ns ? vs_now_ns() - s->min_age_ns : UINT64_MAX;
	uint32_t n = 0;

	for (struct vs_list *l = w->tasks.next; l != &w->tasks && n < s->max; l = l->next) {
		const struct vs_task *t = vs_container_of(l, struct vs_task, link);

		if (t->born_ns <= latest)
			vs_task_info(t, &s->out.tasks[n++]);
	}
	vs_upcall_after_flush(w, VS_UP_DONE, s->cookie, n, 0);
	free(s);
}

static uint32_t put_segments(const struct vs_task *t, const struct iovec *iov, uint32_t niov, bool writable, const struct snapshot *s, uint32_t n)
{
	for (uint32_t i = 0; i < niov; i++, n++) {
		if (n >= s->max)
			continue;
		s->out.segments[n] = (struct vs_segment){ .length = iov[i].iov_len, .writable = writable };
		if (t->ops->address)
			s->out.segments[n].address = t->ops->address(t, iov[i].iov_base);
		s->out.segments[n].known = s->out.segments[n].address != 0;
	}
	return n;
}

static void segments_run(struct vs_worker *w, struct vs_msg *m)
{
	struct snapshot *s = vs_container_of(m, struct snapshot, msg);
	uint32_t n = 0;
	int err = -ENOENT;

	for (struct vs_list *l = w->tasks.next; l != &w->tasks; l = l->next) {
		const struct vs_task *t = vs_container_of(l, struct vs_task, link);
		struct vs_task_info where = { 0 };

		if (t->port_cookie != s->port_cookie || !t->ops->describe)
			continue;
		t->ops->describe(t, &where);
		if (where.queue != s->queue || where.head != s->head)
			continue;
		n = put_segments(t, t->out, t->nout, false, s, 0);
		n = put_segments(t, t->in, t->nin, true, s, n);
		err = 0;
		break;
	}
	vs_upcall_after_flush(w, VS_UP_DONE, s->cookie, n, err);
	free(s);
}

static int ask(vs_core *c, uint32_t worker, const struct snapshot *wanted, bool look)
{
	struct snapshot *s;

	if (worker >= c->config.nworkers)
		return -EINVAL;
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	*s = *wanted;
	if (look)
		vs_worker_look(&c->workers[worker], &s->msg);
	else
		vs_worker_send(&c->workers[worker], &s->msg);
	return 0;
}

int vs_worker_snapshot(vs_core *c, uint32_t worker, struct vs_task_info *buffer, uint32_t max, uint64_t cookie)
{
	return ask(c, worker, &(struct snapshot){ .msg.run = snapshot_run, .out.tasks = buffer, .max = max, .cookie = cookie }, false);
}

int vs_worker_look_tasks(vs_core *c, uint32_t worker, struct vs_task_info *buffer, uint32_t max, uint64_t min_age_ns, uint64_t cookie)
{
	return ask(c, worker, &(struct snapshot){ .msg.run = snapshot_run, .out.tasks = buffer, .max = max, .min_age_ns = min_age_ns, .cookie = cookie }, true);
}

int vs_worker_look_segments(vs_core *c, uint32_t worker, uint64_t port_cookie, uint32_t queue, uint32_t head, struct vs_segment *buffer, uint32_t max,
			    uint64_t cookie)
{
	return ask(c, worker, &(struct snapshot){ .msg.run = segments_run, .out.segments = buffer, .max = max, .port_cookie = port_cookie, .queue = queue,
						  .head = head, .cookie = cookie }, true);
}
