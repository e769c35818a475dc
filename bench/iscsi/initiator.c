// SPDX-License-Identifier: Apache-2.0
/*
 * An initiator that costs little: it polls its socket, takes what is there with one recv, and sends all new commands with one send. So a target
 * is measured with less of the initiator in the figure than iscsi-perf puts there. It prints one JSON object, or numbers the pieces of a unit
 * (--fill). It has one connection, no digests, no error recovery.
 */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

enum { DEPTH_MAX = 128, RX = 4 << 20, CHECK_EVERY = 64, WINDOWS_MAX = 60000 };

struct options { const char *target; uint32_t port, lun, depth, length; double seconds; uint64_t requests; bool random, fill, check_all; };

struct initiator {
	struct options o;
	int fd;
	uint32_t cmd_sn, max_cmd_sn, stat_sn, segment; /* segment: the most that the target takes in a PDU */
	uint64_t size, random, position, submitted, completed, checked;
	uint64_t lba_of[DEPTH_MAX];
	uint32_t got_of[DEPTH_MAX];
	uint8_t tx[DEPTH_MAX][BHS];
	uint32_t ntx;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- one PDU after the other: login, and what is asked before the run ---------------------------------------------------------------- */

static uint32_t recv_pdu(struct initiator *i, uint8_t *h, uint8_t *data, uint32_t room)
{
	uint32_t n;

	if (!recv_all(i->fd, h, BHS))
		die("initiator: the target has closed the connection");
	n = segment_of(h);
	if (h[4] || padded(n) > room)
		die("initiator: a PDU (opcode %#x) of %u bytes", h[0], n);
	if (n && !recv_all(i->fd, data, padded(n)))
		die("initiator: the target has closed the connection");
	if ((h[0] & 0x3f) != NOP_IN && (h[0] & 0x3f) != DATA_IN)
		i->stat_sn = get32(h + 24) + 1;
	else if ((h[0] & 0x3f) == DATA_IN && h[1] & 1)
		i->stat_sn = get32(h + 24) + 1;
	i->max_cmd_sn = get32(h + 32);
	return n;
}

static void login(struct initiator *i)
{
	static uint8_t data[65536];
	char text[1024];
	int n = snprintf(text, sizeof(text), "InitiatorName=iqn.2026-11.org.example:bench%cTargetName=%s%cSessionType=Normal%cHeaderDigest=None%c"
			 "DataDigest=None%cInitialR2T=No%cImmediateData=Yes%cMaxBurstLength=262144%cFirstBurstLength=262144%c"
			 "MaxRecvDataSegmentLength=262144%cMaxConnections=1%cErrorRecoveryLevel=0%c", 0, i->o.target, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
	uint8_t h[BHS] = { IMMEDIATE | LOGIN, FINAL | 1 << 2 | 3 };

	if (n < 0 || n >= (int)sizeof(text))
		die("initiator: the target's name is too long");
	i->segment = 8192; /* RFC 7143 13.12 */
	h[8] = 0x80; /* a random ISID */
	put32(h + 8, 0x80000000 | ((uint32_t)getpid() & 0xffffff));
	put32(h + 24, 1);
	i->cmd_sn = 1;
	send_pdu(i->fd, h, text, (uint32_t)n);
	for (;;) {
		uint8_t r[BHS];
		uint32_t got = recv_pdu(i, r, data, sizeof(data));
		const char *segment = text_value((const char *)data, got, "MaxRecvDataSegmentLength");

		if ((r[0] & 0x3f) != LOGIN_RESPONSE || r[36])
			die("initiator: login refused: opcode %#x, status %02x%02x", r[0], r[36], r[37]);
		if (segment)
			i->segment = (uint32_t)strtoul(segment, NULL, 0);
		if ((r[1] & 0x83) == (FINAL | 3))
			return;
		memcpy(h + 14, r + 14, 2);
		put32(h + 28, i->stat_sn);
		send_pdu(i->fd, h, text, 0);
	}
}

static void command(struct initiator *i, uint8_t *h, uint8_t flags, uint32_t tag, uint32_t length)
{
	memset(h, 0, BHS);
	h[0] = COMMAND;
	h[1] = FINAL | flags | 1; /* SIMPLE */
	h[9] = (uint8_t)i->o.lun;
	put32(h + 16, tag);
	put32(h + 20, length);
	put32(h + 24, i->cmd_sn++);
	put32(h + 28, i->stat_sn);
}

/* True: GOOD. Data goes to where in points to, which has room for length bytes. */
static bool ask(struct initiator *i, uint8_t *h, uint8_t *in, uint32_t length)
{
	static uint8_t data[SEGMENT];

	send_all(i->fd, h, BHS);
	for (;;) {
		uint8_t r[BHS];
		uint32_t n = recv_pdu(i, r, data, sizeof(data));
		uint8_t opcode = r[0] & 0x3f;

		if (opcode == DATA_IN)
			memcpy(in, data, n < length ? n : length);
		if (opcode == RESPONSE || (opcode == DATA_IN && r[1] & 1))
			return r[3] == 0 && (opcode == DATA_IN || r[2] == 0);
	}
}

static void ready(struct initiator *i)
{
	uint8_t h[BHS], capacity[32];

	for (int tries = 0;; tries++) { /* unit attentions */
		command(i, h, 0, 0, 0);
		if (ask(i, h, NULL, 0))
			break;
		if (tries == 8)
			die("initiator: the unit is not ready");
	}
	command(i, h, 0x40, 0, sizeof(capacity));
	h[32] = 0x9e;
	h[33] = 0x10;
	put32(h + 32 + 10, sizeof(capacity));
	if (!ask(i, h, capacity, sizeof(capacity)))
		die("initiator: READ CAPACITY(16) failed");
	if (get32(capacity + 8) != BLOCK)
		die("initiator: blocks of %u bytes", get32(capacity + 8));
	i->size = (get64(capacity) + 1) * BLOCK;
	if (i->size < i->o.length)
		die("initiator: a unit of %llu bytes", (unsigned long long)i->size);
}

static void fill(struct initiator *i)
{
	uint32_t n = i->segment < SEGMENT ? i->segment / PIECE * PIECE : SEGMENT;
	uint8_t *data = malloc(SEGMENT), h[BHS];

	if (!data || !n)
		die("initiator: memory");
	for (uint64_t at = 0; at + PIECE <= i->size; at += n) {
		n = (uint32_t)(i->size - at < n ? (i->size - at) / PIECE * PIECE : n);
		number_pieces(data, at / PIECE, n / PIECE);
		command(i, h, 0x20, 0, n);
		h[32] = 0x8a;
		put64(h + 34, at / BLOCK);
		put32(h + 42, n / BLOCK);
		put_segment(h, n);
		send_all(i->fd, h, BHS);
		send_all(i->fd, data, n);
		if (!recv_all(i->fd, h, BHS) || (h[0] & 0x3f) != RESPONSE || h[2] || h[3])
			die("initiator: a write of %u bytes at %llu: opcode %#x, response %u, status %u", n, (unsigned long long)at, h[0], h[2], h[3]);
		i->stat_sn = get32(h + 24) + 1;
	}
	free(data);
}

/* ---- the run ------------------------------------------------------------------------------------------------------------------------------ */

static void submit(struct initiator *i, uint32_t tag)
{
	uint64_t units = i->size / i->o.length, x = i->random, unit;
	uint8_t *h = i->tx[i->ntx++];

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	i->random = x;
	unit = i->o.random ? (uint64_t)((unsigned __int128)x * units >> 64) : i->position++ % units;
	i->lba_of[tag] = unit * (i->o.length / BLOCK);
	i->got_of[tag] = 0;
	command(i, h, 0x40, tag, i->o.length);
	h[32] = 0x88;
	put64(h + 34, i->lba_of[tag]);
	put32(h + 42, i->o.length / BLOCK);
	i->submitted++;
}

static void push(struct initiator *i)
{
	if (i->ntx && (int32_t)(i->cmd_sn - 1 - i->max_cmd_sn) > 0)
		die("initiator: the target's window is smaller than the depth");
	send_all(i->fd, i->tx, i->ntx * (size_t)BHS);
	i->ntx = 0;
}

static void data_in(struct initiator *i, const uint8_t *h, const uint8_t *data, uint32_t n, uint32_t tag)
{
	uint64_t number;

	if (tag >= i->o.depth || get32(h + 40) != i->got_of[tag] || n > i->o.length - i->got_of[tag])
		die("initiator: data out of place");
	if (!i->got_of[tag] && (i->o.check_all || i->completed % CHECK_EVERY == 0)) {
		memcpy(&number, data, 8);
		if (n < 8 || number != i->lba_of[tag] * BLOCK / PIECE)
			die("initiator: other data than those of that block");
		i->checked++;
	}
	i->got_of[tag] += n;
}

/* A PDU that is whole. */
static void take(struct initiator *i, const uint8_t *h, const uint8_t *data, uint32_t n, bool again)
{
	uint8_t opcode = h[0] & 0x3f;
	uint32_t tag = get32(h + 16);

	i->max_cmd_sn = get32(h + 32);
	if (opcode == DATA_IN)
		data_in(i, h, data, n, tag);
	else if (opcode == NOP_IN && get32(h + 20) == 0xffffffff)
		return;
	else if (opcode != RESPONSE || h[2])
		die("initiator: opcode %#x, response %u", opcode, h[2]);
	if (opcode == DATA_IN && !(h[1] & 1))
		return;
	i->stat_sn = get32(h + 24) + 1;
	if (h[3] || tag >= i->o.depth || i->got_of[tag] != i->o.length)
		die("initiator: status %u after %u bytes", h[3], tag < i->o.depth ? i->got_of[tag] : 0);
	i->completed++;
	if (again)
		submit(i, tag);
}

/* Takes what has come, at most so much as the buffer has room for. */
static void poll_once(struct initiator *i, bool again)
{
	static uint8_t *rx;
	static size_t have;
	size_t at = 0;
	ssize_t n;

	if (!rx && !(rx = malloc(RX)))
		die("initiator: memory");
	n = recv(i->fd, rx + have, RX - have, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		wait_a_little();
		return;
	}
	if (n <= 0)
		die("initiator: the target has closed the connection");
	have += (size_t)n;
	while (have - at >= BHS) {
		uint32_t length = segment_of(rx + at), whole = BHS + rx[at + 4] * 4u + padded(length);

		if (whole > RX)
			die("initiator: a segment of %u bytes", length);
		if (have - at < whole)
			break;
		take(i, rx + at, rx + at + BHS + rx[at + 4] * 4u, length, again);
		at += whole;
	}
	push(i);
	memmove(rx, rx + at, have - at);
	have -= at;
}

static void run(struct initiator *i)
{
	double from = now(), wall;
	uint64_t completed;

	for (uint32_t tag = 0; tag < i->o.depth; tag++)
		submit(i, tag);
	push(i);
	while (i->o.requests ? i->completed < i->o.requests : now() - from < i->o.seconds)
		poll_once(i, true);
	wall = now() - from;
	completed = i->completed;
	while (i->completed < i->submitted)
		poll_once(i, false);
	printf("{\"iops\": %.0f, \"seconds\": %.4f, \"submitted\": %llu, \"completed\": %llu, \"checked\": %llu}\n", (double)completed / wall, wall,
	       (unsigned long long)i->submitted, (unsigned long long)i->completed, (unsigned long long)i->checked);
}

/* ---- options ------------------------------------------------------------------------------------------------------------------------------ */

static const struct option long_options[] = {
	{ "port", required_argument, NULL, 'p' }, { "target", required_argument, NULL, 't' }, { "lun", required_argument, NULL, 'u' },
	{ "depth", required_argument, NULL, 'd' }, { "length", required_argument, NULL, 'l' }, { "seconds", required_argument, NULL, 's' },
	{ "requests", required_argument, NULL, 'n' }, { "random", no_argument, NULL, 'r' }, { "fill", no_argument, NULL, 'f' },
	{ "check-all", no_argument, NULL, 'c' }, { 0 },
};

static struct options parse(int argc, char **argv)
{
	struct options o = { .target = "", .depth = 32, .length = 4096, .seconds = 1 };

	for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
		switch (c) {
		case 'p': o.port = (uint32_t)option_number(optarg); break;
		case 't': o.target = optarg; break;
		case 'u': o.lun = (uint32_t)option_number(optarg); break;
		case 'd': o.depth = (uint32_t)option_number(optarg); break;
		case 'l': o.length = (uint32_t)option_number(optarg); break;
		case 's': o.seconds = strtod(optarg, NULL); break;
		case 'n': o.requests = option_number(optarg); break;
		case 'r': o.random = true; break;
		case 'f': o.fill = true; break;
		case 'c': o.check_all = true; break;
		default: exit(2);
		}
	if (!o.depth || o.depth > DEPTH_MAX || !o.length || o.length % PIECE || o.length > (1 << 20) || o.lun > 255 || !o.port || o.port > 65535)
		die("initiator: options");
	return o;
}

int main(int argc, char **argv)
{
	static struct initiator i;
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int on = 1;

	i.o = parse(argc, argv);
	i.random = 88172645463325252ull;
	address.sin_port = htons((uint16_t)i.o.port);
	i.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (i.fd < 0 || connect(i.fd, (struct sockaddr *)&address, sizeof(address)))
		die("initiator: port %u: %s", i.o.port, strerror(errno));
	setsockopt(i.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	login(&i);
	ready(&i);
	if (i.o.fill)
		fill(&i);
	else
		run(&i);
	close(i.fd);
	return 0;
}
