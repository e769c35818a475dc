// SPDX-License-Identifier: Apache-2.0
/*
 * Signals a peer's eventfd or pipe. write() hangs on an eventfd whose counter is at its end once the peer has taken O_NONBLOCK off the file that
 * we share; there is no flag for one write (RWF_NOWAIT is refused), and to look first leaves a window. A peer that did it once is signalled
 * by the kernel from then on: an io_uring of its own, with the eventfd registered, signals each completion, and that signal stops at the end of
 * the counter instead of waiting. It is not used for everybody because it takes about 1.5 times as long as a write.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <unistd.h>

#include "bell.h"
#include "core.h"

struct vs_bell_ring { struct io_uring uring; };

static void ring_free(struct vs_bell *b)
{
	if (b->ring) {
		io_uring_queue_exit(&b->ring->uring);
		free(b->ring);
	}
	b->ring = NULL;
	b->tried = false;
}

/* NULL: no memory, no io_uring, or not an eventfd. */
static struct vs_bell_ring *ring_new(int fd)
{
	struct vs_bell_ring *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	if (io_uring_queue_init(1, &r->uring, 0))
		goto free_ring;
	if (io_uring_register_eventfd(&r->uring, fd)) {
		io_uring_queue_exit(&r->uring);
		goto free_ring;
	}
	return r;
free_ring:
	free(r);
	return NULL;
}

void vs_bell_set(struct vs_bell *b, int fd)
{
	ring_free(b);
	if (b->fd >= 0)
		close(b->fd);
	b->fd = fd;
}

bool vs_bell_signal(const struct vs_bell *b)
{
	uint64_t one = 1;

	/* A full counter is a pending interrupt. */
	return b->fd < 0 || write(b->fd, &one, sizeof(one)) >= 0 || errno != EINTR;
}

bool vs_bell_signal_safely(struct vs_bell *b, bool uring)
{
	int flags;

	if (b->fd < 0)
		return true;
	if (!b->tried && uring) {
		b->ring = ring_new(b->fd);
		b->tried = true;
	}
	if (b->ring) {
		/* The one entry is free again: a submission that did not fail was taken, and a no-op has ended by then. */
		struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring->uring);

		if (sqe)
			io_uring_prep_nop(sqe);
		if (io_uring_submit(&b->ring->uring) >= 0)
			io_uring_cq_advance(&b->ring->uring, io_uring_cq_ready(&b->ring->uring));
		return true;
	}
	/* What is left is a small window, and the watchdog behind it. */
	flags = fcntl(b->fd, F_GETFL);
	return flags >= 0 && (flags & O_NONBLOCK) && vs_bell_signal(b);
}
