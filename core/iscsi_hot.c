// SPDX-License-Identifier: Apache-2.0
/*
 * How a connection of iSCSI learns that something is there. Where bytes have just come more will come: while it is hot, it looks into its socket
 * in each turn, and nobody needs to be told. That saves the sender a wake-up for each segment and us an entry into the kernel for each event.
 * Each look costs a system call, so only a few connections of a worker may be hot. Others are told of once, and ask again.
 */
#include <sys/epoll.h>

#include "iscsi.h"

enum { HOT_MAX = 4, HOT_MIN_NS = 20000 };

void vs_iconn_heard(struct vs_iconn *c)
{
	const struct vs_config *config = &c->w->core->config;

	if (config->poll_mode == VS_POLL_NEVER)
		return;
	c->hot_until_ns = c->w->now_ns + vs_max(config->spin_us * UINT64_C(1000), (uint64_t)HOT_MIN_NS);
	if (!c->hot && c->w->hot < HOT_MAX) {
		c->hot = true;
		c->w->hot++;
	}
}

void vs_iconn_cool(struct vs_iconn *c)
{
	if (!c->hot)
		return;
	c->hot = false;
	c->w->hot--;
}

void vs_iconn_look(struct vs_iconn *c)
{
	if (c->hot && (c->dead || c->w->now_ns >= c->hot_until_ns))
		vs_iconn_cool(c);
	if (c->hot)
		c->readable = true;
}

/* Of what is waited for, and of nothing else: what is there and left there would be told at once, again and again. */
void vs_iconn_ask(struct vs_iconn *c)
{
	struct vs_source *s = &c->source;
	uint32_t events = (c->readable || c->hot ? 0 : EPOLLIN | EPOLLRDHUP) | (c->blocked ? EPOLLOUT : 0);

	if (c->dead || c->closing || c->removed || !events || (s->armed && !(events & ~s->events)))
		return;
	events |= EPOLLET | (s->armed ? s->events : 0);
	c->w->engine->source_events(c->w, s, events);
	c->w->engine->source_arm(c->w, s);
}
