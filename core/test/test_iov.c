// SPDX-License-Identifier: Apache-2.0
/* Walks over iovecs: each function against a flat buffer, with empty iovecs, skips at borders, and lengths beyond the end. */
#include "check.h"
#include "core.h"

static uint8_t flat[64];

/* 5 + 0 + 1 + 10 + 0 + 7 = 23 bytes with gaps between. */
static int scatter(struct iovec *iov)
{
	static const struct { int at, len; } pieces[] = { { 2, 5 }, { 9, 0 }, { 11, 1 }, { 20, 10 }, { 31, 0 }, { 40, 7 } };

	for (int i = 0; i < 6; i++)
		iov[i] = (struct iovec){ flat + pieces[i].at, (size_t)pieces[i].len };
	return 6;
}

static uint8_t *byte_at(const struct iovec *iov, int niov, uint64_t i)
{
	for (int k = 0; k < niov; k++) {
		if (i < iov[k].iov_len)
			return (uint8_t *)iov[k].iov_base + i;
		i -= iov[k].iov_len;
	}
	return NULL;
}

static void copies_every_range(void)
{
	struct iovec iov[6];
	int n = scatter(iov);

	CHECK_EQ(vs_iov_length(iov, n), 23);
	for (uint64_t skip = 0; skip < 26; skip++) {
		for (uint64_t len = 0; len < 30; len++) {
			uint64_t want = skip >= 23 ? 0 : vs_min(len, 23 - skip);
			uint8_t in[32], out[32];

			for (int i = 0; i < 32; i++)
				in[i] = (uint8_t)(i + 1);
			memset(flat, 0xee, sizeof(flat));
			memset(out, 0xdd, sizeof(out));
			CHECK_EQ(vs_iov_from_buffer(iov, n, skip, in, len), want);
			for (uint64_t i = 0; i < 23; i++)
				CHECK_EQ(*byte_at(iov, n, i), i >= skip && i < skip + want ? i - skip + 1 : 0xee);
			CHECK_EQ(vs_iov_to_buffer(iov, n, skip, out, len), want);
			CHECK(memcmp(in, out, want) == 0);
			CHECK_EQ(out[want], 0xdd);
			/* What lies between the pieces is untouched. */
			CHECK(flat[1] == 0xee && flat[7] == 0xee && flat[12] == 0xee && flat[30] == 0xee && flat[47] == 0xee);
		}
	}
}

static void fills_every_range(void)
{
	struct iovec iov[6];
	int n = scatter(iov);

	for (uint64_t skip = 0; skip < 26; skip++) {
		for (uint64_t len = 0; len < 30; len++) {
			uint64_t want = skip >= 23 ? 0 : vs_min(len, 23 - skip), set = 0;

			memset(flat, 0, sizeof(flat));
			CHECK_EQ(vs_iov_fill(iov, n, skip, 0x5a, len), want);
			for (uint64_t i = 0; i < 23; i++)
				CHECK_EQ(*byte_at(iov, n, i), i >= skip && i < skip + want ? 0x5a : 0);
			for (size_t i = 0; i < sizeof(flat); i++)
				set += flat[i] == 0x5a;
			CHECK_EQ(set, want);
		}
	}
}

static void slices_every_range(void)
{
	struct iovec iov[6], out[8];
	int n = scatter(iov);

	for (uint64_t skip = 0; skip < 26; skip++) {
		for (uint64_t len = 0; len < 30; len++) {
			uint64_t want = skip >= 23 ? 0 : vs_min(len, 23 - skip);
			int got = vs_iov_slice(iov, n, skip, len, out, 8);

			CHECK(got >= 0 && got <= 4);
			CHECK_EQ(vs_iov_length(out, got), want);
			for (uint64_t i = 0; i < want; i++)
				CHECK(byte_at(out, got, i) == byte_at(iov, n, skip + i));
			for (int i = 0; i < got; i++)
				CHECK(out[i].iov_len > 0);
			/* Exactly as many as needed suffice; one fewer does not. */
			CHECK_EQ(vs_iov_slice(iov, n, skip, len, out, got), got);
			if (got)
				CHECK_EQ(vs_iov_slice(iov, n, skip, len, out, got - 1), -ENOBUFS);
		}
	}
}

static void nothing_is_nothing(void)
{
	uint8_t b[4] = { 1, 2, 3, 4 };
	struct iovec out[1];

	CHECK_EQ(vs_iov_length(NULL, 0), 0);
	CHECK_EQ(vs_iov_to_buffer(NULL, 0, 0, b, 4), 0);
	CHECK_EQ(vs_iov_from_buffer(NULL, 0, 7, b, 4), 0);
	CHECK_EQ(vs_iov_fill(NULL, 0, 0, 1, 4), 0);
	CHECK_EQ(vs_iov_slice(NULL, 0, 0, 4, out, 1), 0);
	CHECK_EQ(b[0], 1);
}

int main(void)
{
	copies_every_range();
	fills_every_range();
	slices_every_range();
	nothing_is_nothing();
	return 0;
}
