/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring engine once more, over a kernel that often refuses: no queue entry, nothing submitted for lack of memory, a call interrupted.
 * Real kernels do that too seldom to test what follows from it. Only the calls into liburing are replaced, the engine is the real one.
 */
#include <liburing.h>

static unsigned refusals = 1;

static int refuse(unsigned out_of)
{
	refusals = refusals * 1103515245u + 12345u;
	return (refusals >> 16) % out_of == 0;
}

static struct io_uring_sqe *sometimes_get_sqe(struct io_uring *ring)
{
	return refuse(3) ? NULL : io_uring_get_sqe(ring);
}

static int sometimes_submit(struct io_uring *ring)
{
	return refuse(4) ? -EBUSY : refuse(4) ? -EINTR : io_uring_submit(ring);
}

static int sometimes_submit_and_get_events(struct io_uring *ring)
{
	return refuse(4) ? -EAGAIN : refuse(4) ? -EINTR : io_uring_submit_and_get_events(ring);
}

/* A cancel that misses its poll... */
static void sometimes_prep_cancel64(struct io_uring_sqe *sqe, __u64 data, int flags)
{
	io_uring_prep_cancel64(sqe, refuse(2) ? data ^ (__u64)1 << 62 : data, flags);
}

/* ... says that it came too early; and an operation that the kernel gave up halfway. */
static unsigned sometimes_cq_ready(struct io_uring *ring)
{
	unsigned n = io_uring_cq_ready(ring);

	for (unsigned i = 0; i < n; i++) {
		struct io_uring_cqe *cqe = &ring->cq.cqes[(*ring->cq.khead + i) & ring->cq.ring_mask];

		if ((cqe->user_data & 3) == 2 && cqe->res == -ENOENT)
			cqe->res = -EALREADY;
		if ((cqe->user_data & 3) == 0 && refuse(10))
			cqe->res = -EINTR;
	}
	return n;
}

#define io_uring_get_sqe sometimes_get_sqe
#define io_uring_prep_cancel64 sometimes_prep_cancel64
#define io_uring_submit sometimes_submit
#define io_uring_submit_and_get_events sometimes_submit_and_get_events
#define io_uring_cq_ready sometimes_cq_ready
#define vs_engine_uring vs_engine_uring_refusing
#define vs_uring_why_not vs_uring_refusing_why_not
#include "../engine_uring.c"
