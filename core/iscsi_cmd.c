// SPDX-License-Identifier: Apache-2.0
/*
 * SCSI commands of a session: taken in CmdSN order, given a buffer, their data-out collected (immediate, unsolicited, asked for by R2T), handed
 * to the core as tasks, and their results queued. RFC 7143 4.2.2, 11.3, 11.7, 11.8.
 */
#include <stdlib.h>

#include "iscsi.h"
#include "task.h"
#include "gen/tables.h"

enum { IMMEDIATES = 16 }; /* immediate commands of a session at once */
/* SPC-5 table F.2: PROTOCOL SERVICE CRC ERROR, DATA PHASE ERROR */
enum { VS_ASC_SERVICE_CRC = 0x4705, VS_ASC_DATA_PHASE = 0x4b00 };

static const struct vs_task_ops command_ops;

static uint32_t bucket(uint32_t itt) { return (itt ^ itt >> 8 ^ itt >> 16) % VS_IHASH; }

/* A tag is unique in the session (11.2.1.8); what a connection that has gone leaves behind does not count. */
static struct vs_icmd *find(struct vs_isession *s, uint32_t itt)
{
	struct vs_icmd *x = s->hash[bucket(itt)];

	while (x && (x->itt != itt || x->conn->dead))
		x = x->hash_next;
	return x;
}

static void unhash(struct vs_isession *s, struct vs_icmd *x)
{
	struct vs_icmd **at = &s->hash[bucket(x->itt)];

	while (*at && *at != x)
		at = &(*at)->hash_next;
	if (*at)
		*at = x->hash_next;
}

/* ---- buffers ------------------------------------------------------------------------------------------------------------------------------ */

static void buffer_give(struct vs_isession *s, struct vs_icmd *x)
{
	if (!x->buffer)
		return;
	vs_ibuffer_put(s, x->buffer, x->buffer_size);
	vs_ibuffer_discharge(s, x);
	x->buffer = NULL;
	x->buffer_size = 0;
}

static uint32_t wanted(const struct vs_icmd *x) { return vs_min(x->edtl, x->conn->session->p.max_transfer); }

/*
 * The whole buffer of the command, if the session may have it. What unsolicited data came into is not counted, it is bounded by the window and
 * FirstBurstLength.
 */
static bool buffer_whole(struct vs_isession *s, struct vs_icmd *x)
{
	uint32_t n = wanted(x);
	uint8_t *b;

	if (x->conn->data_cmd == x)
		return false; /* bytes are being received into the small one; asked again when they are there */
	if (!vs_ibuffer_charge(x, n))
		return false;
	b = vs_ibuffer_get(s, n);
	if (!b) {
		vs_ibuffer_discharge(s, x);
		if (!s->buffer_bytes)
			vs_iconn_event(x->conn, VS_ICONN_NO_MEMORY);
		return false;
	}
	if (x->buffer) {
		memcpy(b, x->buffer, x->received);
		vs_ibuffer_put(s, x->buffer, x->buffer_size);
	}
	x->buffer = b;
	x->buffer_size = n;
	return true;
}

/* A place for unsolicited data, which nobody can make wait. */
static bool buffer_early(struct vs_isession *s, struct vs_icmd *x)
{
	uint32_t n = vs_min(x->edtl, s->p.first_burst);

	x->buffer = n ? vs_ibuffer_get(s, n) : NULL;
	x->buffer_size = x->buffer ? n : 0;
	return x->buffer || !n;
}

/* ---- data that a store lends ---------------------------------------------------------------------------------------------------------------- */

/* A digest is of data that nobody changes meanwhile: copied first. What is given back is copied in one go: it is never long. */
static bool may_borrow(const struct vs_icmd *x) { return x->read && !x->conn->data_digest && wanted(x) <= VS_ILENT_MAX; }

static bool lent_room(const struct vs_iconn *c, uint32_t n) { return !c->lent_bytes || c->lent_bytes + n <= VS_ILENT_MAX; }

/*
 * From here to its sending the LU is pinned: its memory stays, and whoever fences it waits for us to look at the epoch. It counts until it is
 * sent, copied or not: a peer that does not read is lent no more after each epoch.
 */
static void borrow(struct vs_isession *s, struct vs_icmd *x)
{
	if (vs_unlikely(!lent_room(x->conn, x->data_length))) {
		memcpy(x->buffer, x->task.lent, x->data_length); /* several were with the store at once */
		return;
	}
	x->lent_bytes = x->data_length;
	x->conn->lent_bytes += x->lent_bytes;
	if (vs_list_empty(&s->lent))
		s->lent_epoch = atomic_load_explicit(&s->w->epoch_seen, memory_order_relaxed);
	vs_list_add_tail(&s->lent, &x->lent_link);
	vs_pin(s->w, &x->task.lu->pins);
	x->data = x->task.lent;
}

static void let_go(struct vs_icmd *x)
{
	if (vs_list_empty(&x->lent_link))
		return;
	vs_list_del(&x->lent_link);
	x->data = NULL;
	vs_unpin(x->task.w, &x->task.lu->pins);
}

static uint32_t give_back_one(struct vs_isession *s)
{
	struct vs_icmd *x = vs_container_of(s->lent.next, struct vs_icmd, lent_link);
	const uint8_t *from = x->data;

	memcpy(x->buffer, from, x->data_length);
	vs_itx_moved(x->conn, from, x->data_length, x->buffer);
	let_go(x);
	x->data = x->buffer;
	return x->data_length;
}

void vs_icmd_give_back(struct vs_isession *s)
{
	while (!vs_list_empty(&s->lent))
		give_back_one(s);
}

bool vs_icmd_owes(const struct vs_isession *s)
{
	return !vs_list_empty(&s->lent) && s->lent_epoch != atomic_load_explicit(&s->w->epoch_seen, memory_order_relaxed);
}

/* The pins tell who waits that it is not all yet; the rest comes in the next turns. */
void vs_icmd_give_back_some(struct vs_isession *s)
{
	struct vs_worker *w = s->w;

	if (w->ibuffers.turn != vs_counted(&w->stats.loops)) {
		w->ibuffers.turn = vs_counted(&w->stats.loops);
		w->ibuffers.turn_bytes = 0;
	}
	while (!vs_list_empty(&s->lent) && w->ibuffers.turn_bytes < VS_IGIVE_BACK_A_TURN) {
		uint32_t n = give_back_one(s);

		w->ibuffers.turn_bytes += n;
		vs_count(&w->ibuffers.given_back, n);
	}
}

/* ---- the end of a command --------------------------------------------------------------------------------------------------------------------- */

/* It stands no longer between others; who waits behind an ORDERED command is looked at when nobody walks a list. */
static void leave_order(struct vs_isession *s, struct vs_icmd *x)
{
	if (vs_list_empty(&x->order))
		return;
	vs_list_del(&x->order);
	if (vs_unlikely(s->ordered)) {
		s->wake = true;
		s->ordered -= x->task.attribute == VS_ATTR_ORDERED;
	}
}

void vs_icmd_answered(struct vs_icmd *x)
{
	struct vs_isession *s = x->conn->session;

	if (!x->counted)
		return;
	x->counted = false;
	if (x->immediate)
		s->immediates--;
	else
		s->active--;
	vs_isession_window(s);
}

void vs_icmd_release(struct vs_icmd *x)
{
	struct vs_isession *s = vs_container_of(x->task.credit, struct vs_isession, credit);
	struct vs_iconn *c = x->conn;

	if (x->task.listed) {
		x->task.listed = false;
		vs_list_del(&x->task.link);
	}
	vs_list_del(&x->on_conn);
	vs_list_del(&x->link);
	vs_list_del(&x->result.link);
	vs_list_del(&x->r2t_item.link);
	unhash(s, x);
	leave_order(s, x);
	let_go(x);
	buffer_give(s, x);
	if (x->state == VS_IC_HELD && !x->immediate)
		vs_isn_forget(s, x);
	vs_icmd_answered(x);
	if (c && c->data_cmd == x) {
		/* What is still to come of this segment is thrown away. */
		c->data_cmd = NULL;
		c->data_to = NULL;
	}
	if (c)
		c->lent_bytes -= x->lent_bytes;
	x->lent_bytes = 0;
	if (!vs_list_empty(&s->wait_buffer) || (c && !vs_list_empty(&c->wait_lent)))
		s->wake = true;
	x->state = VS_IC_FREE;
	x->conn = NULL;
	vs_list_add_tail(&s->free, &x->link);
	if (c)
		vs_iconn_maybe_gone(c);
}

static void set_residual(struct vs_icmd *x)
{
	const struct vs_task *t = &x->task;
	uint64_t moved = vs_min(t->transferred, (uint64_t)x->edtl);

	x->overflow = x->underflow = false;
	x->residual = 0;
	if (t->required > x->edtl) {
		x->overflow = true;
		x->residual = (uint32_t)vs_min(t->required - x->edtl, (uint64_t)UINT32_MAX);
	} else if (moved < x->edtl) {
		x->underflow = true;
		x->residual = (uint32_t)(x->edtl - moved);
	}
}

/* Ends before its turn: data that still comes of it belongs to nobody, its number counts all the same. */
static void step_aside(struct vs_icmd *x)
{
	struct vs_isession *s = x->conn->session;
	struct vs_iconn *c = x->conn;

	if (x->state == VS_IC_HELD && !x->immediate)
		vs_isn_forget(s, x);
	leave_order(s, x);
	vs_list_del(&x->link);
	vs_list_del(&x->r2t_item.link);
	if (c->data_cmd == x) {
		c->data_cmd = NULL;
		c->data_to = NULL;
	}
}

/* SPC-5 5.5: the unit was taken away from this nexus while the command waited or ran. */
static void lost_unit(struct vs_icmd *x)
{
	struct vs_task *t = &x->task;

	t->status = VS_STATUS_CHECK_CONDITION;
	t->transferred = t->required = 0;
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_LOGICAL_UNIT_NOT_SUPPORTED });
}

static void complete(struct vs_task *t)
{
	struct vs_icmd *x = vs_container_of(t, struct vs_icmd, task);

	if (x->conn->dead || t->response == VS_RESP_ABORTED || t->response == VS_RESP_RESET) {
		vs_icmd_release(x); /* RFC 7143 4.2.3.3: an aborted task gets no response */
		return;
	}
	if (t->response == VS_RESP_BAD_TARGET)
		step_aside(x);
	x->state = VS_IC_SENDS;
	x->response = t->response == VS_RESP_OK || t->response == VS_RESP_OVERRUN || t->response == VS_RESP_BAD_TARGET ? 0 : 1;
	if (t->response == VS_RESP_BAD_TARGET)
		lost_unit(x);
	if (t->response == VS_RESP_OVERRUN && t->lu)
		vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_INVALID_FIELD_IN_CDB });
	if (vs_unlikely(t->status == VS_STATUS_CHECK_CONDITION))
		vs_irefused_command(x);
	x->status = t->status;
	set_residual(x);
	x->data_length = x->read ? (uint32_t)vs_min(t->transferred, (uint64_t)x->buffer_size) : 0;
	x->sent = x->data_sn = 0;
	x->data = x->buffer;
	if (t->lent && x->data_length)
		borrow(x->conn->session, x);
	vs_itx_queue(x->conn, &x->result, VS_IT_RESULT);
}

/* Task management found it before it was a task of the core's. */
static void withdraw(struct vs_task *t)
{
	t->response = VS_RESP_ABORTED;
	vs_task_finish(t);
}

static void describe(const struct vs_task *t, struct vs_task_info *out)
{
	const struct vs_icmd *x = vs_container_of(t, struct vs_icmd, task);

	out->queue = x->conn ? x->conn->cid : 0;
	out->head = x->index;
}

static const struct vs_task_ops command_ops = { .name = "iscsi", .complete = complete, .describe = describe, .withdraw = withdraw };

/* ---- running ------------------------------------------------------------------------------------------------------------------------------------ */

static void find_lun(struct vs_isession *s, struct vs_icmd *x)
{
	const struct vs_target_luns *luns = vs_lunmap_target(&s->luns, 0);
	struct vs_task *t = &x->task;
	int lun = vs_lun_decode(x->lun);

	t->nexus = NULL;
	t->lun_kind = VS_LUN_ABSENT;
	t->target = t->lun = 0;
	if (x->lun[0] == 0xc1 && x->lun[1] == 0x01) {
		t->lun_kind = VS_LUN_REPORT_LUNS;
		return;
	}
	if (lun < 0 || x->lun[2] | x->lun[3] | x->lun[4] | x->lun[5] | x->lun[6] | x->lun[7])
		return;
	t->lun = (uint16_t)lun;
	if (luns && (uint32_t)lun < luns->n && luns->nexus[lun]) {
		t->nexus = luns->nexus[lun];
		t->lun_kind = VS_LUN_UNIT;
	}
}

/* RFC 7143 11.4.7.2: data that did not arrive whole ends the command. */
static void fail_data(struct vs_icmd *x, uint16_t asc_ascq)
{
	struct vs_task *t = &x->task;

	x->state = VS_IC_RUNS; /* if others must be seen to first */
	t->status = VS_STATUS_CHECK_CONDITION;
	t->sense_len = 18;
	memset(t->sense, 0, 18);
	t->sense[0] = 0x70;
	t->sense[2] = VS_SK_ABORTED_COMMAND;
	t->sense[7] = 10;
	t->sense[12] = (uint8_t)(asc_ascq >> 8);
	t->sense[13] = (uint8_t)asc_ascq;
	vs_task_finish(t);
}

/*
 * SAM-5 8.6: an ORDERED command waits for all that came before it, and what comes after it waits for it. The core and Python see to that from
 * vs_task_submit on; here it is about commands of which data are still to come.
 */
static bool may_run(struct vs_isession *s, const struct vs_icmd *x)
{
	bool ordered = x->task.attribute == VS_ATTR_ORDERED;

	if (vs_likely(!s->ordered) || x->task.attribute == VS_ATTR_HEAD_OF_QUEUE)
		return true;
	for (const struct vs_list *l = s->order.next; l != &x->order; l = l->next) {
		const struct vs_icmd *y = vs_container_of(l, struct vs_icmd, order);

		if ((ordered || y->task.attribute == VS_ATTR_ORDERED) && !memcmp(x->lun, y->lun, sizeof(x->lun)))
			return false;
	}
	if (ordered && s->w->redo_head) {
		/* Earlier ones passed the gate but wait for messages: ORDERED commands go to Python at once, and would be there first. */
		s->wake = true;
		return false;
	}
	return true;
}

static void run(struct vs_icmd *x)
{
	struct vs_task *t = &x->task;

	if (vs_unlikely(!may_run(x->conn->session, x))) {
		x->state = VS_IC_TURN;
		return;
	}
	leave_order(x->conn->session, x);
	x->state = VS_IC_RUNS;
	if (x->data_failed) {
		fail_data(x, VS_ASC_SERVICE_CRC);
		return;
	}
	x->iov = (struct iovec){ x->buffer, x->buffer_size };
	t->out = t->in = &x->iov;
	t->nout = x->write && x->buffer_size ? 1 : 0;
	t->nin = x->read && x->buffer_size ? 1 : 0;
	t->out_length = x->write ? x->buffer_size : 0;
	t->in_length = x->read ? x->buffer_size : 0;
	t->flags = x->buffer_size >= x->edtl ? VS_TASK_TRUNCATE : 0;
	if (may_borrow(x))
		t->flags |= VS_TASK_LEND;
	if (vs_unlikely(x->overlapped))
		t->flags |= VS_TASK_OVERLAPPED;
	/* SIMPLE tasks may be reordered (SPC-5 7.5.10, and we say so), but what is written after a read is not what that read returns. */
	if (!x->read && !vs_list_empty(&x->conn->session->lent))
		vs_icmd_give_back(x->conn->session);
	if (vs_task_submit(t)) {
		/* As many tasks of this session as may be are in Python's hands. */
		t->status = VS_STATUS_TASK_SET_FULL;
		vs_task_finish(t);
	}
}

static bool lent_too_much(const struct vs_icmd *x) { return may_borrow(x) && !lent_room(x->conn, wanted(x)); }

/* Does what can be done next: waits for a buffer, asks for data, or runs. */
static void advance(struct vs_icmd *x, bool its_turn)
{
	struct vs_isession *s = x->conn->session;
	uint32_t total = wanted(x);

	if (vs_unlikely(x->overlapped)) {
		run(x); /* it is not carried out: its data are nobody's */
		return;
	}
	/* First come, first served: on a connection, where the peer takes what is lent or does not; then in the session. */
	if (total && !x->charged && !its_turn && (!vs_list_empty(&x->conn->wait_lent) || lent_too_much(x))) {
		x->state = VS_IC_BUFFER;
		vs_list_del(&x->link);
		vs_list_add_tail(&x->conn->wait_lent, &x->link);
		return;
	}
	if (total && !x->charged && (!vs_list_empty(&s->wait_buffer) || !buffer_whole(s, x))) {
		x->state = VS_IC_BUFFER;
		vs_list_del(&x->link);
		vs_list_add_tail(&s->wait_buffer, &x->link);
		return;
	}
	if (!x->write || x->received >= total) {
		if (!x->write || x->final_seen)
			run(x);
		return;
	}
	x->state = VS_IC_DATA;
	if (x->final_seen && vs_list_empty(&x->r2t_item.link))
		vs_itx_queue(x->conn, &x->r2t_item, VS_IT_R2T);
}

void vs_icmd_accept(struct vs_icmd *x)
{
	struct vs_isession *s = x->conn->session;

	x->state = VS_IC_DATA;
	vs_list_add_tail(&s->order, &x->order);
	s->ordered += x->task.attribute == VS_ATTR_ORDERED;
	if (!x->conn->dead)
		advance(x, false);
}

static bool wake_one_for_buffer(struct vs_isession *s)
{
	for (struct vs_list *l = s->wait_buffer.next; l != &s->wait_buffer; l = l->next) {
		struct vs_icmd *x = vs_container_of(l, struct vs_icmd, link);

		if (x->conn->dead)
			continue;
		if (!buffer_whole(s, x))
			return false;
		vs_list_del(&x->link);
		x->state = VS_IC_DATA;
		advance(x, true);
		return true;
	}
	return false;
}

static bool wake_one_for_lent(struct vs_isession *s)
{
	for (struct vs_list *l = s->conns.next; l != &s->conns; l = l->next) {
		struct vs_iconn *c = vs_container_of(l, struct vs_iconn, link);
		struct vs_icmd *x = vs_container_of(c->wait_lent.next, struct vs_icmd, link);

		if (c->dead || vs_list_empty(&c->wait_lent) || lent_too_much(x))
			continue;
		vs_list_del(&x->link);
		x->state = VS_IC_DATA;
		advance(x, true);
		return true;
	}
	return false;
}

static bool wake_one_for_turn(struct vs_isession *s)
{
	for (struct vs_list *l = s->order.next; l != &s->order; l = l->next) {
		struct vs_icmd *x = vs_container_of(l, struct vs_icmd, order);

		if (x->state == VS_IC_TURN && !x->conn->dead && may_run(s, x)) {
			run(x);
			return true;
		}
	}
	return false;
}

int vs_icmd_wake(struct vs_isession *s)
{
	int n = 0;

	s->wake = false;
	/* Each may end at once and change the lists: looked at anew after every one. */
	for (; wake_one_for_buffer(s) || wake_one_for_lent(s) || wake_one_for_turn(s); n++)
		;
	return n;
}

/* ---- arrival ------------------------------------------------------------------------------------------------------------------------------------------ */

/* The CDB, with what an extended-CDB AHS adds (11.2.2.3). False: an AHS that we do not serve. */
static bool take_cdb(struct vs_iconn *c, struct vs_icmd *x)
{
	struct vs_task *t = &x->task;
	uint32_t at = 0;

	memset(t->cdb, 0, 32);
	memcpy(t->cdb, c->bhs + 32, 16);
	t->cdb_len = 16;
	while (at + 4 <= c->ahs_length) {
		uint32_t n = vs_be16(c->ahs + at), whole = (3 + n + 3) & ~3u;

		if (c->ahs[at + 2] != 1 || n < 1 || at + 3 + n > c->ahs_length || t->cdb_len != 16 || 16 + n - 1 > 255)
			return false;
		memcpy(t->cdb + 16, c->ahs + at + 4, n - 1);
		t->cdb_len = (uint8_t)(16 + n - 1);
		at += whole;
	}
	return true;
}

static struct vs_icmd *cmd_new(struct vs_iconn *c)
{
	static const uint8_t attribute[8] = { VS_ATTR_SIMPLE, VS_ATTR_SIMPLE, VS_ATTR_ORDERED, VS_ATTR_HEAD_OF_QUEUE, VS_ATTR_ACA, VS_ATTR_SIMPLE, VS_ATTR_SIMPLE, VS_ATTR_SIMPLE };
	struct vs_isession *s = c->session;
	struct vs_icmd *x = vs_container_of(s->free.next, struct vs_icmd, link);
	struct vs_task *t = &x->task;

	vs_list_del(&x->link);
	x->conn = c;
	x->itt = vs_be32(c->bhs + 16);
	x->edtl = vs_be32(c->bhs + 20);
	x->cmd_sn = vs_be32(c->bhs + 24);
	x->immediate = c->bhs[0] & VS_I_IMMEDIATE;
	x->read = c->bhs[1] & 0x40;
	x->write = c->bhs[1] & 0x20;
	if (!x->read && !x->write)
		x->edtl = 0;
	x->final_seen = c->bhs[1] & VS_I_FINAL;
	x->data_failed = x->counted = x->overlapped = false;
	x->state = VS_IC_HELD;
	memcpy(x->lun, c->bhs + 8, 8);
	x->received = x->asked = x->unsolicited_sn = x->r2t_sn = x->r2t_open = 0;
	if (x->write)
		memset(x->r2t, 0, sizeof(x->r2t));
	x->data_length = x->sent = x->data_sn = 0;
	t->ops = &command_ops;
	t->w = c->w;
	t->credit = &s->credit;
	t->port_cookie = s->p.cookie;
	t->tag = x->itt;
	t->order = vs_isn_order(c);
	t->attribute = attribute[c->bhs[1] & 7];
	t->listed = t->aborted = t->started = t->notify = t->fault = t->decided = t->timed_out = false;
	t->lent = NULL;
	t->tmf = NULL;
	t->param = NULL;
	t->status = VS_STATUS_GOOD;
	t->sense_len = t->response = 0;
	t->transferred = t->required = 0;
	t->layer = VS_LAYER_RING;
	t->born_ns = t->layer_ns = x->arrived_ns = c->w->now_ns;
	find_lun(s, x);
	t->lu = t->nexus ? t->nexus->lu : NULL;
	vs_task_list(t);
	vs_list_add_tail(&c->cmds, &x->on_conn);
	x->hash_next = s->hash[bucket(x->itt)];
	s->hash[bucket(x->itt)] = x;
	return x;
}

/* Whether what the command in c->bhs says of unsolicited data is allowed: 11.3.1, 13.10, 13.11. */
static bool unsolicited_ok(const struct vs_iconn *c)
{
	const struct vs_isession_params *p = &c->session->p;
	bool write = c->bhs[1] & 0x20;

	if (write && !(c->bhs[1] & VS_I_FINAL) && p->initial_r2t)
		return false;
	if (!c->data_length)
		return true;
	return p->immediate_data && write && c->data_length <= vs_min(p->first_burst, vs_be32(c->bhs + 20));
}

/* SAM-5 5.11: the tag of a command of the same unit, which has not ended, makes an overlapped command. */
static bool overlaps(const struct vs_icmd *x, const uint8_t *lun)
{
	return x->task.nexus && x->state != VS_IC_SENDS && !memcmp(x->lun, lun, sizeof(x->lun));
}

static bool refused(struct vs_iconn *c, const struct vs_icmd *other)
{
	struct vs_isession *s = c->session;

	if ((c->bhs[1] & 0x60) == 0x60)
		vs_itx_reject(c, VS_I_REJECT_NOT_SUPPORTED); /* no command of ours moves data both ways */
	else if (vs_list_empty(&s->free) || (!c->sn && s->immediates >= IMMEDIATES))
		vs_itx_reject(c, VS_I_REJECT_TOO_MANY_IMMEDIATE); /* others are not read before there is room: vs_irx_poll */
	else if (other && !overlaps(other, c->bhs + 8))
		vs_itx_reject(c, VS_I_REJECT_BAD_FIELD); /* the task tag is in use */
	else
		return false;
	return true;
}

/* The number stands in c->sn unless the command is immediate. */
void vs_icmd_arrive(struct vs_iconn *c)
{
	struct vs_isession *s = c->session;
	struct vs_icmd *x, *other;

	vs_count(&c->view.commands, 1);
	if (!unsolicited_ok(c)) {
		vs_iconn_event(c, VS_ICONN_PROTOCOL);
		return;
	}
	other = find(s, vs_be32(c->bhs + 16));
	if (refused(c, other))
		return;
	x = cmd_new(c);
	x->overlapped = other != NULL;
	if (!take_cdb(c, x)) {
		vs_itx_reject(c, VS_I_REJECT_NOT_SUPPORTED);
		vs_icmd_release(x);
		return;
	}
	x->counted = true;
	if (c->sn) {
		c->sn->kind = VS_ISN_COMMAND;
		c->sn->object = x;
		s->active++;
	} else {
		s->immediates++;
	}
	if (x->write && (c->data_length || !x->final_seen)) {
		/* With one connection this is the next in order, and may have its buffer now: that saves a copy. */
		bool next = vs_isession_single(s) && (!c->sn || x->cmd_sn == s->exp_cmd_sn) && vs_list_empty(&s->wait_buffer) &&
			    vs_list_empty(&c->wait_lent);

		if (!(next && x->edtl && buffer_whole(s, x)) && !buffer_early(s, x)) {
			vs_iconn_event(c, VS_ICONN_NO_MEMORY);
			return;
		}
	}
	x->asked = c->data_length;
	c->data_cmd = x;
	c->data_to = x->buffer;
}

void vs_icmd_immediate_done(struct vs_iconn *c, bool digest_ok)
{
	struct vs_icmd *x = c->data_cmd;

	c->data_cmd = NULL;
	x->received += c->data_length;
	x->data_failed |= !digest_ok;
	if (x->immediate)
		vs_icmd_accept(x);
}

static struct vs_icmd *burst_error(struct vs_iconn *c)
{
	vs_iconn_event(c, VS_ICONN_BURST);
	return NULL;
}

/* 11.7.5, at recovery level 0: data that is out of sequence ends its command, and what else comes of it belongs to nobody. */
static struct vs_icmd *sequence_error(struct vs_icmd *x)
{
	step_aside(x);
	fail_data(x, VS_ASC_DATA_PHASE);
	return NULL;
}

/* NULL with the connection dead: a rule was broken; NULL otherwise: data of a command that is gone. */
static struct vs_icmd *unsolicited(struct vs_iconn *c, uint32_t offset, uint32_t data_sn)
{
	struct vs_isession *s = c->session;
	struct vs_icmd *x = find(s, vs_be32(c->bhs + 16));

	if (!x || x->conn != c || x->state == VS_IC_SENDS || x->state == VS_IC_RUNS)
		return NULL;
	if (s->p.initial_r2t || !x->write || x->final_seen)
		return burst_error(c);
	if (data_sn != x->unsolicited_sn || offset != x->asked)
		return sequence_error(x);
	if (c->data_length > vs_min(x->edtl, s->p.first_burst) - vs_min(offset, vs_min(x->edtl, s->p.first_burst)))
		return burst_error(c);
	x->unsolicited_sn++;
	x->asked += c->data_length;
	return x;
}

static struct vs_icmd *solicited(struct vs_iconn *c, uint32_t ttt, uint32_t offset, uint32_t data_sn)
{
	struct vs_isession *s = c->session;
	struct vs_icmd *x;
	struct vs_ir2t *r;

	if (ttt >> 8 >= s->ncmds || (ttt & 0xff) >= VS_IR2T_MAX)
		return burst_error(c);
	x = &s->cmds[ttt >> 8];
	if (x->conn != c || x->itt != vs_be32(c->bhs + 16) || x->state != VS_IC_DATA)
		return NULL;
	r = &x->r2t[ttt & 0xff];
	if (!r->open || c->data_length > r->length - r->received)
		return burst_error(c);
	if (data_sn != r->data_sn || offset != r->offset + r->received)
		return sequence_error(x);
	r->data_sn++;
	c->data_r2t = r;
	return x;
}

bool vs_icmd_data_out(struct vs_iconn *c)
{
	uint32_t ttt = vs_be32(c->bhs + 20), data_sn = vs_be32(c->bhs + 36), offset = vs_be32(c->bhs + 40);
	struct vs_icmd *x = ttt == VS_I_NO_TAG ? unsolicited(c, offset, data_sn) : solicited(c, ttt, offset, data_sn);

	if (c->dead)
		return false;
	c->data_cmd = x;
	if (x && x->buffer)
		c->data_to = x->buffer + offset;
	return true;
}

void vs_icmd_data_done(struct vs_iconn *c, bool digest_ok)
{
	struct vs_icmd *x = c->data_cmd;
	struct vs_ir2t *r = c->data_r2t;
	bool final = c->bhs[1] & VS_I_FINAL;

	c->data_cmd = NULL;
	x->received += c->data_length;
	x->data_failed |= !digest_ok;
	if (r) {
		r->received += c->data_length;
		if (final != (r->received == r->length)) {
			vs_iconn_event(c, VS_ICONN_BURST);
			return;
		}
		if (final) {
			r->open = false;
			x->r2t_open--;
		}
	} else if (final) {
		x->final_seen = true;
	}
	if (x->state == VS_IC_DATA)
		advance(x, false);
	else if (x->state == VS_IC_BUFFER)
		c->session->wake = true;
}

/* The connection is closed: its commands end, those that run as soon as they can. */
void vs_icmd_conn_gone(struct vs_iconn *c)
{
	for (struct vs_list *l = c->cmds.next; l != &c->cmds;) {
		struct vs_icmd *x = vs_container_of(l, struct vs_icmd, on_conn);

		l = l->next;
		if (x->state != VS_IC_RUNS) {
			vs_icmd_release(x);
			continue;
		}
		x->task.aborted = true;
		if (x->task.started)
			vs_media_cancel(&x->task);
	}
}
