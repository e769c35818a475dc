// SPDX-License-Identifier: Apache-2.0
/*
 * The order of CmdSN (RFC 7143 4.2.2.1): a PDU that is not immediate takes its number when its header has come, and is passed on when it is
 * whole and everything before it was passed on. What is outside the window, or there already, takes nothing and is dropped in silence.
 */
#include <stdlib.h>

#include "iscsi.h"
#include "task.h"

struct vs_isn *vs_isn_take(struct vs_iconn *c, uint32_t sn)
{
	struct vs_isession *s = c->session;
	struct vs_isn *slot = &s->sns[sn & s->sn_mask];

	/* Serial numbers: the window is [exp, max], and empty when max is exp - 1. */
	if (sn - s->exp_cmd_sn >= s->max_cmd_sn + 1 - s->exp_cmd_sn || slot->kind != VS_ISN_EMPTY)
		return NULL;
	*slot = (struct vs_isn){ .kind = VS_ISN_NOTHING, .conn = c };
	return slot;
}

static void pass_on(const struct vs_isn *slot)
{
	switch (slot->kind) {
	case VS_ISN_COMMAND:
		vs_icmd_accept(slot->object);
		break;
	case VS_ISN_PDU:
		vs_irx_upcall(slot->object);
		break;
	case VS_ISN_ECHO: {
		struct vs_iready *r = slot->object;

		vs_itx_queue(slot->conn, &r->item, VS_IT_READY);
		break;
	}
	default:
		break;
	}
}

static void go_on(struct vs_isession *s)
{
	for (;;) {
		struct vs_isn *slot = &s->sns[s->exp_cmd_sn & s->sn_mask], now = *slot;

		if (now.kind == VS_ISN_EMPTY || !now.whole)
			break;
		slot->kind = VS_ISN_EMPTY;
		s->exp_cmd_sn++;
		s->long_sn++;
		s->immediates_here = 0;
		pass_on(&now);
	}
	vs_isession_window(s);
}

void vs_isn_whole(struct vs_iconn *c)
{
	c->sn->whole = true;
	c->sn = NULL;
	go_on(c->session);
}

/* RFC 7143 11.6.1: the target considers the number as received. Its command is dropped when it comes after all. */
uint32_t vs_isn_plug(struct vs_isession *s, uint32_t first, uint32_t end)
{
	uint32_t window = s->max_cmd_sn + 1 - s->exp_cmd_sn, n = 0;

	for (uint32_t i = 0; i < window; i++) {
		uint32_t sn = s->exp_cmd_sn + i;
		struct vs_isn *slot = &s->sns[sn & s->sn_mask];

		if (sn - first >= end - first || slot->kind != VS_ISN_EMPTY)
			continue;
		*slot = (struct vs_isn){ .kind = VS_ISN_NOTHING, .whole = true };
		n++;
	}
	go_on(s);
	return n;
}

/*
 * Numbers that can be compared: the CmdSN, and below it the place among the immediate PDUs, which carry the number of the next that is not
 * (4.2.2.1). What is immediate stands before what has the number itself.
 */
uint64_t vs_isn_order(struct vs_iconn *c)
{
	struct vs_isession *s = c->session;
	uint64_t sn = s->long_sn + (uint64_t)(int64_t)(int32_t)(vs_be32(c->bhs + 24) - s->exp_cmd_sn);
	uint32_t place = 0xffff;

	if (c->bhs[0] & VS_I_IMMEDIATE) {
		place = s->immediates_here;
		s->immediates_here = vs_min(place + 1, UINT32_C(0xfffe));
	}
	return sn << 16 | place;
}

void vs_isn_forget(struct vs_isession *s, struct vs_icmd *x)
{
	struct vs_isn *slot = &s->sns[x->cmd_sn & s->sn_mask];

	if (slot->kind == VS_ISN_COMMAND && slot->object == x) {
		slot->kind = VS_ISN_NOTHING;
		slot->object = NULL;
	}
}

/* What the connection brought and was not yet acknowledged by ExpCmdSN may be sent again on another one. */
void vs_isn_conn_gone(struct vs_iconn *c)
{
	struct vs_isession *s = c->session;

	for (uint32_t i = 0; i <= s->sn_mask; i++) {
		struct vs_isn *slot = &s->sns[i];

		if (slot->kind == VS_ISN_EMPTY || slot->conn != c)
			continue;
		if (slot->kind == VS_ISN_PDU || slot->kind == VS_ISN_ECHO)
			free(slot->object);
		if (slot->kind != VS_ISN_NOTHING || !slot->whole)
			slot->kind = VS_ISN_EMPTY;
		slot->conn = NULL;
	}
	c->sn = NULL;
}
