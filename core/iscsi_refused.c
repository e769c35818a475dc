// SPDX-License-Identifier: Apache-2.0
/*
 * What an initiator asked for and does not get, told to Python for people to read: commands that end for want of the operation code or for a field
 * of the CDB or of its parameter list, whoever decided that, and PDUs that are rejected here. Nothing waits for it, and nothing is decided by it.
 */
#include <stdlib.h>

#include "iscsi.h"
#include "task.h"
#include "gen/tables.h"

/* On their way to Python at once, of a session; what comes on top is counted only. */
enum { TOLD_AT_ONCE = 16 };

/* Lives as long as the session and each refusal that is on its way: Python may take one when the session has gone. */
struct vs_irefused { _Atomic uint32_t users; };

struct vs_irefusal {
	struct vs_upnode up;
	struct vs_irefused *of;
	struct vs_irefusal_info info;
};

struct vs_irefused *vs_irefused_new(void)
{
	struct vs_irefused *r = calloc(1, sizeof(*r));

	if (r)
		atomic_init(&r->users, 1);
	return r;
}

void vs_irefused_put(struct vs_irefused *r)
{
	if (r && atomic_fetch_sub(&r->users, 1) == 1)
		free(r);
}

static struct vs_irefusal *refusal_new(struct vs_iconn *c)
{
	struct vs_isession *s = c->session;
	struct vs_irefusal *f = NULL;

	if (atomic_load(&s->refused->users) <= TOLD_AT_ONCE)
		f = calloc(1, sizeof(*f));
	if (!f) {
		s->refusals_missed++;
		return NULL;
	}
	atomic_fetch_add(&s->refused->users, 1);
	f->of = s->refused;
	f->info.missed = s->refusals_missed;
	s->refusals_missed = 0;
	return f;
}

static void tell(struct vs_iconn *c, struct vs_irefusal *f)
{
	f->up = (struct vs_upnode){ .kind = VS_UP_IREFUSED, .worker = c->w->index, .cookie = c->cookie, .object = f };
	vs_upcall(c->w->core, &f->up);
}

/* Sense key and additional sense code, SPC-5 4.4.2 and 4.4.3. */
static bool asks_in_vain(const struct vs_task *t)
{
	bool descriptor = t->sense_len >= 8 && t->sense[0] == 0x72;
	uint8_t key = t->sense[descriptor ? 1 : 2] & 0x0f;
	uint16_t asc_ascq = vs_be16(t->sense + (descriptor ? 2 : 12));

	if (!descriptor && (t->sense_len < 18 || t->sense[0] != 0x70))
		return false;
	return key == VS_SK_ILLEGAL_REQUEST && (asc_ascq == VS_ASC_INVALID_COMMAND_OPERATION_CODE || asc_ascq == VS_ASC_INVALID_FIELD_IN_CDB ||
						asc_ascq == VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST);
}

void vs_irefused_command(struct vs_icmd *x)
{
	const struct vs_task *t = &x->task;
	struct vs_irefusal *f;

	if (!asks_in_vain(t))
		return;
	f = refusal_new(x->conn);
	if (!f)
		return;
	memcpy(f->info.lun, x->lun, sizeof(f->info.lun));
	f->info.cdb_length = (uint8_t)vs_min((uint32_t)t->cdb_len, (uint32_t)sizeof(f->info.cdb));
	memcpy(f->info.cdb, t->cdb, f->info.cdb_length);
	f->info.sense_length = (uint8_t)vs_min((uint32_t)t->sense_len, (uint32_t)sizeof(f->info.sense));
	memcpy(f->info.sense, t->sense, f->info.sense_length);
	tell(x->conn, f);
}

void vs_irefused_pdu(struct vs_iconn *c, uint8_t reason)
{
	struct vs_irefusal *f = refusal_new(c);

	if (!f)
		return;
	f->info.reject = reason;
	memcpy(f->info.bhs, c->bhs, sizeof(f->info.bhs));
	tell(c, f);
}

/* ---- control -------------------------------------------------------------------------------------------------------------------------------- */

void vs_irefusal_take(vs_irefusal *f, struct vs_irefusal_info *out)
{
	*out = f->info;
	vs_irefused_put(f->of);
	free(f);
}
