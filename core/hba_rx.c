// SPDX-License-Identifier: Apache-2.0
/*
 * Receiving from a vfio-user client: bytes and descriptors become whole messages. A header is read alone and then what belongs to it, so that
 * descriptors are those of the message with whose bytes they came. While Python has a message, later ones are parked, up to a limit; answers to
 * messages of ours pass them, because what Python waits for may wait for one of those.
 */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hba.h"

enum { MESSAGES_A_TURN = 64 };

static void close_fds(struct vs_hba *h)
{
	for (uint32_t i = 0; i < h->nfds; i++)
		close(h->fds[i]);
	h->nfds = 0;
}

/* Takes the descriptors of one recvmsg. False: too many. */
static bool take_fds(struct vs_hba *h, struct msghdr *m)
{
	bool fits = !(m->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		const int *fds = (const int *)CMSG_DATA(c);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
			if (h->nfds < VS_HBA_MSG_FDS) {
				h->fds[h->nfds++] = fds[i];
			} else {
				close(fds[i]);
				fits = false;
			}
	}
	return fits;
}

/* > 0: bytes, 0: nothing now, -1: the client is dead. */
static int receive(struct vs_hba *h, void *to, uint32_t n)
{
	/* One more than a message may have, to see that there are too many. */
	union { char bytes[CMSG_SPACE(sizeof(int) * (VS_HBA_MSG_FDS + 1))]; struct cmsghdr align; } control;
	struct iovec iov = { .iov_base = to, .iov_len = n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t r;

	do {
		r = recvmsg(h->source.fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (r < 0 && errno == EINTR);
	if (r > 0) {
		if (take_fds(h, &m))
			return (int)r;
		vs_hba_event(h, VS_HBA_FDS_LOST);
		return -1;
	}
	if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		h->readable = false;
		return 0;
	}
	if (r < 0)
		vs_hba_event(h, VS_HBA_SOCKET_ERROR);
	else
		vs_hba_event(h, h->h_got ? VS_HBA_TRUNCATED : VS_HBA_PEER_CLOSED);
	return -1;
}

/* The message is whole: h->h, h->rx, h->fds. */
static void dispatch(struct vs_hba *h)
{
	uint32_t length = h->h.size - (uint32_t)sizeof(h->h), type = h->h.flags & VS_HF_TYPE;
	struct vs_hmsg *m;

	vs_count(&h->stats.messages, 1);
	if (type == VS_HF_REPLY) {
		vs_hba_dma_reply(h, &h->h, h->rx, length);
	} else if (type != VS_HF_COMMAND) {
		vs_hba_event(h, VS_HBA_BAD_TYPE);
	} else if (h->asked || !vs_list_empty(&h->parked) || !vs_hba_run(h, &h->h, h->rx, length)) {
		m = vs_hmsg_new(h, h->rx);
		if (!m)
			return;
		if (h->asked || !vs_list_empty(&h->parked)) {
			vs_list_add_tail(&h->parked, &m->link);
			h->nparked++;
			h->parked_bytes += m->length;
		} else {
			vs_hmsg_up(m);
		}
	}
	close_fds(h);
}

/* 1: a message was taken, 0: more must come, -1: dead. */
static int take(struct vs_hba *h)
{
	int r;

	while (h->h_got < sizeof(h->h)) {
		r = receive(h, (uint8_t *)&h->h + h->h_got, (uint32_t)sizeof(h->h) - h->h_got);
		if (r <= 0)
			return r;
		h->h_got += (uint32_t)r;
		if (h->h_got == sizeof(h->h) && (h->h.size < sizeof(h->h) || h->h.size - sizeof(h->h) > VS_HBA_PAYLOAD_MAX)) {
			vs_hba_event(h, VS_HBA_BAD_SIZE);
			return -1;
		}
	}
	while (h->got < h->h.size - sizeof(h->h)) {
		r = receive(h, h->rx + h->got, h->h.size - (uint32_t)sizeof(h->h) - h->got);
		if (r <= 0)
			return r;
		h->got += (uint32_t)r;
	}
	dispatch(h);
	h->h_got = h->got = 0;
	return h->dead ? -1 : 1;
}

/* Python has answered: those behind it have their turn. */
static int unpark(struct vs_hba *h)
{
	int did = 0;

	while (!h->dead && !h->asked && !vs_list_empty(&h->parked) && did < MESSAGES_A_TURN && h->tx_bytes < VS_HTX_BYTES) {
		struct vs_hmsg *m = vs_container_of(h->parked.next, struct vs_hmsg, link);

		vs_list_del(&m->link);
		h->nparked--;
		h->parked_bytes -= m->length;
		if (vs_hba_run(h, &m->h, m->data, m->length))
			vs_hmsg_free(m);
		else
			vs_hmsg_up(m);
		did++;
	}
	return did;
}

static bool held_up(const struct vs_hba *h)
{
	return h->dead || h->closing || h->nparked >= VS_HPARKED_MAX || h->parked_bytes >= VS_HPARKED_BYTES || h->tx_bytes >= VS_HTX_BYTES;
}

bool vs_hrx_has_work(const struct vs_hba *h)
{
	return (!held_up(h) && h->readable) || (!h->dead && !h->asked && !vs_list_empty(&h->parked) && h->tx_bytes < VS_HTX_BYTES);
}

int vs_hrx_poll(struct vs_hba *h)
{
	int did = unpark(h);

	while (did < MESSAGES_A_TURN && !held_up(h) && h->readable) {
		if (take(h) <= 0)
			break;
		did++;
	}
	return did;
}

/* Of what is waited for, and of nothing else: what is there and left there would be told at once, again and again. */
void vs_hrx_ask(struct vs_hba *h)
{
	struct vs_source *s = &h->source;
	uint32_t events = (h->readable ? 0 : EPOLLIN | EPOLLRDHUP) | (h->blocked ? EPOLLOUT : 0);

	if (h->dead || h->closing || h->removed || !events || (s->armed && !(events & ~s->events)))
		return;
	events |= EPOLLET | (s->armed ? s->events : 0);
	h->w->engine->source_events(h->w, s, events);
	h->w->engine->source_arm(h->w, s);
}

void vs_hrx_drop(struct vs_hba *h)
{
	close_fds(h);
	h->h_got = h->got = 0;
	while (!vs_list_empty(&h->parked)) {
		struct vs_hmsg *m = vs_container_of(h->parked.next, struct vs_hmsg, link);

		vs_list_del(&m->link);
		vs_hmsg_free(m);
	}
	h->nparked = h->parked_bytes = 0;
}
