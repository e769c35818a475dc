/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-exact walks over iovecs: copying, filling and cutting. The iovecs point into memory that others may write meanwhile; nothing here
 * looks at the bytes. It does not translate addresses: that is mem.c.
 */
#include "core.h"

/* One step of a walk: the next piece behind `skip` bytes, at most n long; NULL at the end. Empty iovecs are passed over. */
struct walk { const struct iovec *iov, *end; uint64_t skip; };

static inline void *walk_next(struct walk *k, uint64_t n, uint64_t *got)
{
	for (; k->iov < k->end; k->iov++) {
		uint64_t len = k->iov->iov_len;
		uint8_t *p;

		if (k->skip >= len) {
			k->skip -= len;
			continue;
		}
		p = (uint8_t *)k->iov->iov_base + k->skip;
		*got = vs_min(len - k->skip, n);
		k->skip += *got;
		return p;
	}
	return NULL;
}

static inline struct walk walk_start(const struct iovec *iov, int niov, uint64_t skip)
{
	return (struct walk){ iov, iov + (niov > 0 ? niov : 0), skip };
}

uint64_t vs_iov_length(const struct iovec *iov, int niov)
{
	uint64_t sum = 0;

	for (int i = 0; i < niov; i++)
		sum += iov[i].iov_len;
	return sum;
}

uint64_t vs_iov_to_buffer(const struct iovec *iov, int niov, uint64_t skip, void *buffer, uint64_t n)
{
	struct walk k = walk_start(iov, niov, skip);
	uint64_t done = 0, got;
	void *p;

	while (done < n && (p = walk_next(&k, n - done, &got))) {
		memcpy((uint8_t *)buffer + done, p, got);
		done += got;
	}
	return done;
}

uint64_t vs_iov_from_buffer(const struct iovec *iov, int niov, uint64_t skip, const void *buffer, uint64_t n)
{
	struct walk k = walk_start(iov, niov, skip);
	uint64_t done = 0, got;
	void *p;

	while (done < n && (p = walk_next(&k, n - done, &got))) {
		memcpy(p, (const uint8_t *)buffer + done, got);
		done += got;
	}
	return done;
}

uint64_t vs_iov_fill(const struct iovec *iov, int niov, uint64_t skip, int byte, uint64_t n)
{
	struct walk k = walk_start(iov, niov, skip);
	uint64_t done = 0, got;
	void *p;

	while (done < n && (p = walk_next(&k, n - done, &got))) {
		memset(p, byte, got);
		done += got;
	}
	return done;
}

int vs_iov_slice(const struct iovec *iov, int niov, uint64_t skip, uint64_t n, struct iovec *out, int max)
{
	struct walk k = walk_start(iov, niov, skip);
	uint64_t got;
	int count = 0;
	void *p;

	while (n && (p = walk_next(&k, n, &got))) {
		if (count == max)
			return -ENOBUFS;
		out[count++] = (struct iovec){ p, got };
		n -= got;
	}
	return count;
}
