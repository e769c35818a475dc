// SPDX-License-Identifier: Apache-2.0
/*
 * Sending to a vfio-user client: answers and messages of our own, whole and in order. What the socket does not take waits in a queue, and while that
 * is long nothing more is read, so a client that does not read its answers keeps only itself waiting.
 */
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hba.h"

struct vs_htx *vs_htx_new(const struct vs_hba_header *h, const void *payload, uint32_t n)
{
	struct vs_htx *t = malloc(sizeof(*t) + sizeof(*h) + n);
	struct vs_hba_header own = *h;

	if (!t)
		return NULL;
	own.size = (uint32_t)sizeof(own) + n;
	t->length = own.size;
	t->sent = t->nfds = 0;
	vs_list_init(&t->link);
	memcpy(t->bytes, &own, sizeof(own));
	if (n)
		memcpy(t->bytes + sizeof(own), payload, n);
	return t;
}

void vs_htx_free(struct vs_htx *t)
{
	if (!t)
		return;
	for (uint32_t i = 0; i < t->nfds; i++)
		close(t->fds[i]);
	free(t);
}

/* Bytes sent, -1: not now, or never (then the event was sent). Descriptors go with the first byte. */
static ssize_t send_some(struct vs_hba *h, const uint8_t *bytes, uint32_t n, const int *fds, uint32_t nfds)
{
	union { char bytes[CMSG_SPACE(sizeof(int) * VS_HBA_MSG_FDS)]; struct cmsghdr align; } control;
	struct iovec iov = { .iov_base = (void *)bytes, .iov_len = n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t r;

	if (nfds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	do {
		r = sendmsg(h->source.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (r < 0 && errno == EINTR);
	if (r >= 0)
		return r;
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		h->blocked = true;
	else
		vs_hba_event(h, VS_HBA_SOCKET_ERROR);
	return -1;
}

void vs_htx_push(struct vs_hba *h)
{
	while (!h->dead && !h->blocked && !vs_list_empty(&h->txq)) {
		struct vs_htx *t = vs_container_of(h->txq.next, struct vs_htx, link);
		ssize_t r = send_some(h, t->bytes + t->sent, t->length - t->sent, t->fds, t->nfds);

		if (r < 0)
			return;
		for (uint32_t i = 0; i < t->nfds; i++)
			close(t->fds[i]);
		t->nfds = 0;
		t->sent += (uint32_t)r;
		h->tx_bytes -= (uint32_t)r;
		if (t->sent < t->length)
			continue;
		vs_list_del(&t->link);
		vs_htx_free(t);
	}
}

void vs_htx_queue(struct vs_hba *h, struct vs_htx *t)
{
	if (h->dead || !h->attached) {
		vs_htx_free(t);
		return;
	}
	h->tx_bytes += t->length;
	vs_list_add_tail(&h->txq, &t->link);
	vs_htx_push(h);
}

static struct vs_hba_header answer_to(const struct vs_hba_header *to, int err)
{
	return (struct vs_hba_header){ .id = to->id, .command = to->command, .flags = VS_HF_REPLY | (err ? VS_HF_ERROR : 0), .error = (uint32_t)-err };
}

static void answer(struct vs_hba *h, const struct vs_hba_header *to, int err, const void *payload, uint32_t n)
{
	struct vs_hba_header own = answer_to(to, err);
	struct vs_htx *t;

	if (to->flags & VS_HF_NO_REPLY)
		return;
	t = vs_htx_new(&own, payload, n);
	if (t)
		vs_htx_queue(h, t);
	else
		vs_hba_event(h, VS_HBA_NO_MEMORY);
}

void vs_htx_answer(struct vs_hba *h, const struct vs_hba_header *to, const void *payload, uint32_t n) { answer(h, to, 0, payload, n); }

void vs_htx_refuse(struct vs_hba *h, const struct vs_hba_header *to, int err)
{
	vs_count(&h->stats.refused, 1);
	answer(h, to, err, NULL, 0);
}

void vs_htx_drop(struct vs_hba *h)
{
	while (!vs_list_empty(&h->txq)) {
		struct vs_htx *t = vs_container_of(h->txq.next, struct vs_htx, link);

		vs_list_del(&t->link);
		vs_htx_free(t);
	}
	h->tx_bytes = 0;
	h->blocked = false;
}
