// SPDX-License-Identifier: Apache-2.0
/*
 * The least that a server can do: one connection at a time, every READ answered at once out of memory by a bare sendmsg loop that polls its
 * socket and checks nothing. What an initiator reaches here is the ceiling of the initiator and of the kernel's loopback. It is no target.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "wire.h"

enum { BATCH = 32, WINDOW = 128 };

struct server {
	uint8_t *memory;
	uint64_t size;
	int fd;
	uint32_t stat_sn, exp_cmd_sn, segment; /* segment: the most that the initiator takes in a PDU */
	uint8_t headers[BATCH][BHS], small[BATCH][64];
	struct iovec iov[2 * BATCH];
	int niov, npdus;
};

static void flush(struct server *s)
{
	struct msghdr m = { .msg_iov = s->iov, .msg_iovlen = (size_t)s->niov };

	while (m.msg_iovlen) {
		ssize_t n = sendmsg(s->fd, &m, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break; /* recv will tell */
		while (m.msg_iovlen && (size_t)n >= m.msg_iov->iov_len) {
			n -= (ssize_t)m.msg_iov->iov_len;
			m.msg_iov++;
			m.msg_iovlen--;
		}
		if (m.msg_iovlen) {
			m.msg_iov->iov_base = (char *)m.msg_iov->iov_base + n;
			m.msg_iov->iov_len -= (size_t)n;
		}
	}
	s->niov = s->npdus = 0;
}

static uint8_t *header(struct server *s, uint8_t opcode, uint8_t flags, const uint8_t *request)
{
	uint8_t *h;

	if (s->npdus == BATCH)
		flush(s);
	h = s->headers[s->npdus++];
	memset(h, 0, BHS);
	h[0] = opcode;
	h[1] = flags;
	memcpy(h + 16, request + 16, 4);
	return h;
}

static void push(struct server *s, uint8_t *h, const uint8_t *data, uint32_t n, bool status)
{
	put_segment(h, n);
	if (status)
		put32(h + 24, s->stat_sn++);
	put32(h + 28, s->exp_cmd_sn);
	put32(h + 32, s->exp_cmd_sn + WINDOW - 1);
	s->iov[s->niov++] = (struct iovec){ h, BHS };
	if (n)
		s->iov[s->niov++] = (struct iovec){ (void *)data, n };
}

static void answer_read(struct server *s, const uint8_t *request, uint64_t lba, uint32_t blocks)
{
	uint64_t at = lba * BLOCK;
	uint32_t length = blocks * BLOCK, sent = 0;

	if (lba > s->size / BLOCK || length > s->size - at)
		die("canned: a read behind the end");
	for (uint32_t sn = 0; sent < length; sn++) {
		uint32_t n = length - sent < s->segment ? length - sent : s->segment;
		bool last = sent + n == length;
		uint8_t *h = header(s, DATA_IN, last ? FINAL | 1 : 0, request);

		put32(h + 20, 0xffffffff);
		put32(h + 36, sn);
		put32(h + 40, sent);
		push(s, h, s->memory + at + sent, n, last);
		sent += n;
	}
}

static void answer_small(struct server *s, const uint8_t *request, const uint8_t *data, uint32_t n)
{
	uint8_t *h = header(s, DATA_IN, FINAL | 1, request), *copy = s->small[s->npdus - 1];
	uint32_t wanted = get32(request + 20);

	n = padded(n < wanted ? n : wanted);
	if (n < wanted) {
		h[1] |= 2; /* underflow */
		put32(h + 44, wanted - n);
	}
	memcpy(copy, data, n);
	put32(h + 20, 0xffffffff);
	push(s, h, copy, n, true);
}

static void command(struct server *s, const uint8_t *request)
{
	static const uint8_t inquiry[36] = { 0, 0, 6, 2, 31, 0, 0, 2, 'b', 'e', 'n', 'c', 'h' };
	const uint8_t *cdb = request + 32;
	uint8_t capacity[32] = { 0 };

	s->exp_cmd_sn = get32(request + 24) + 1;
	switch (cdb[0]) {
	case 0x88:
		answer_read(s, request, get64(cdb + 2), get32(cdb + 10));
		break;
	case 0x28:
		answer_read(s, request, get32(cdb + 2), (uint32_t)cdb[7] << 8 | cdb[8]);
		break;
	case 0x12:
		answer_small(s, request, inquiry, sizeof(inquiry));
		break;
	case 0x9e:
		put64(capacity, s->size / BLOCK - 1);
		put32(capacity + 8, BLOCK);
		answer_small(s, request, capacity, sizeof(capacity));
		break;
	default: /* TEST UNIT READY and whatever has no data */
		push(s, header(s, RESPONSE, FINAL, request), NULL, 0, true);
		break;
	}
}

static void login(struct server *s, const uint8_t *request, const char *text, uint32_t n)
{
	static const char security[] = "AuthMethod=None\0TargetPortalGroupTag=1";
	static const char operational[] = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=262144\0"
					  "FirstBurstLength=262144\0MaxRecvDataSegmentLength=262144\0TargetPortalGroupTag=1";
	uint8_t h[BHS] = { LOGIN_RESPONSE, request[1] };
	bool last_stage = (request[1] >> 2 & 3) != 0;
	const char *segment = text_value(text, n, "MaxRecvDataSegmentLength");

	if (segment)
		s->segment = (uint32_t)strtoul(segment, NULL, 0);
	memcpy(h + 8, request + 8, 6);
	h[15] = 1; /* TSIH */
	memcpy(h + 16, request + 16, 4);
	s->exp_cmd_sn = get32(request + 24);
	put32(h + 24, s->stat_sn++);
	put32(h + 28, s->exp_cmd_sn);
	put32(h + 32, s->exp_cmd_sn + WINDOW - 1);
	send_pdu(s->fd, h, last_stage ? operational : security, last_stage ? sizeof(operational) : sizeof(security));
}

/* False: the connection has ended. */
static bool pdu(struct server *s, const uint8_t *h, const uint8_t *data, uint32_t n)
{
	uint8_t *r;

	switch (h[0] & 0x3f) {
	case COMMAND:
		command(s, h);
		return true;
	case LOGIN:
		login(s, h, (const char *)data, n);
		return true;
	case NOP_OUT:
		r = header(s, NOP_IN, FINAL, h);
		put32(r + 20, 0xffffffff);
		push(s, r, NULL, 0, true);
		return true;
	case LOGOUT:
		push(s, header(s, LOGOUT_RESPONSE, FINAL, h), NULL, 0, true);
		flush(s);
		return false;
	default:
		die("canned: opcode %#x", h[0]);
	}
}

static void serve(struct server *s)
{
	static uint8_t rx[SEGMENT];
	size_t have = 0;

	s->stat_sn = 0;
	s->segment = 8192;
	s->niov = s->npdus = 0;
	for (;;) {
		ssize_t n = recv(s->fd, rx + have, sizeof(rx) - have, MSG_DONTWAIT);
		size_t at = 0;

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			wait_a_little();
			continue;
		}
		if (n <= 0)
			return;
		have += (size_t)n;
		while (have - at >= BHS) {
			uint32_t length = segment_of(rx + at), whole = BHS + padded(length);

			if (whole > sizeof(rx))
				die("canned: a segment of %u bytes", length);
			if (have - at < whole)
				break;
			if (!pdu(s, rx + at, rx + at + BHS, length))
				return;
			at += whole;
		}
		flush(s);
		memmove(rx, rx + at, have - at);
		have -= at;
	}
}

int main(int argc, char **argv)
{
	static struct server s = { .size = 1 << 30 };
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (argc == 2)
		s.size = option_number(argv[1]);
	if (argc > 2 || s.size < SEGMENT || s.size % (2 << 20))
		die("usage: canned [BYTES, a multiple of 2 MiB]");
	s.memory = mmap(NULL, s.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s.memory == MAP_FAILED)
		die("canned: memory: %s", strerror(errno));
	madvise(s.memory, s.size, MADV_HUGEPAGE);
	number_pieces(s.memory, 0, s.size / PIECE);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8) || getsockname(listener, (struct sockaddr *)&address, &size))
		die("canned: %s", strerror(errno));
	printf("%u\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		s.fd = accept(listener, NULL, NULL);
		if (s.fd < 0)
			die("canned: accept: %s", strerror(errno));
		setsockopt(s.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		serve(&s);
		close(s.fd);
	}
}
