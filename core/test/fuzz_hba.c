// SPDX-License-Identifier: Apache-2.0
/*
 * A hostile client of a PCI function over vfio-user: messages that are right or not quite, in pieces, with and without descriptors, answers that nobody
 * asked for, and a control side that opens, answers late, moves windows, resets and lets go. The worker is turned by hand, so that an input does the
 * same each time. What the function sends must be whole messages; at the end nothing may be pinned.
 *
 * Input: its last bit chooses the function; steps: a byte that says which, then what it needs; missing bytes read as 0.
 */
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "hba_rig.h"

enum { STEPS = 96, PAGE = 4096, ORDER = 8, MAX_SEND = 256 };

struct input { const uint8_t *p; size_t n; };

static struct hrig r;
static struct hanswer a;
static int event_fd;
static bool gone; /* the client was told that it is over */
static uint16_t asked[16];
static uint32_t nasked;

static uint64_t get(struct input *in, int bytes)
{
	uint64_t v = 0;

	for (int i = 0; i < bytes; i++, in->n -= in->n > 0)
		v |= (uint64_t)(in->n ? *in->p++ : 0) << (8 * i);
	return v;
}

/* All that has come, taken apart. */
static void look(void)
{
	struct vs_hba_header h;

	for (int i = 0; i < 3; i++)
		hrig_turn(&r);
	gone |= r.event != 0;
	while (!gone && recv(r.fd, &h, sizeof(h), MSG_PEEK | MSG_DONTWAIT) == sizeof(h)) {
		hrig_receive(&r, &a);
		for (uint32_t i = 0; i < a.nfds; i++)
			close(a.fds[i]);
		if ((a.h.flags & VS_HF_TYPE) == VS_HF_REPLY) {
			CHECK(!(a.h.flags & VS_HF_ERROR) || a.length == 0);
		} else {
			CHECK((a.h.command == VS_HC_DMA_READ && a.length == 16) || (a.h.command == VS_HC_DMA_WRITE && a.length > 16));
			if (nasked < 16)
				asked[nasked++] = a.h.id;
		}
		gone |= r.event != 0;
	}
}

/* Bytes as they are; a socket that is full or closed takes what it takes. */
static void put(const void *p, size_t n, int nfds)
{
	union { char bytes[CMSG_SPACE(sizeof(int) * 16)]; struct cmsghdr align; } control = { 0 };
	struct iovec iov = { (void *)p, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *c;

		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
		for (int i = 0; i < nfds; i++)
			memcpy(CMSG_DATA(c) + sizeof(int) * (size_t)i, &event_fd, sizeof(int));
	}
	if (n && sendmsg(r.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		gone |= errno == EPIPE || errno == ECONNRESET;
}

static void message(uint16_t id, uint16_t command, uint32_t flags, const uint8_t *payload, uint32_t n, uint32_t claimed, int nfds, uint32_t cut)
{
	uint8_t m[16 + MAX_SEND];
	struct vs_hba_header h = { .id = id, .command = command, .size = claimed, .flags = flags };

	memcpy(m, &h, 16);
	memcpy(m + 16, payload, n);
	n += 16;
	if (cut && cut < n) {
		put(m, cut, nfds);
		hrig_turn(&r);
		put(m + cut, n - cut, 0);
	} else {
		put(m, n, nfds);
	}
}

static const uint64_t places[] = { 0x1000, 0x1ff8, 0x2000, 0x2ffc, 0x3000, 0x100000, UINT64_MAX - 3, 0 };

/* An access that may well be right. */
static void access_step(struct input *in)
{
	uint8_t how = (uint8_t)get(in, 1), m[MAX_SEND] = { 0 };
	uint32_t region = how & 3 ? (uint32_t[]){ 0, 0, 2, 7 }[how & 3] : (uint32_t)get(in, 1), count = (uint32_t[]){ 4, 4, 1, 2 }[how >> 2 & 3], n;
	uint64_t offset = get(in, how & 0x10 ? 2 : 1), value;

	if (region == 0 && !(how & 0x20)) {
		offset &= 0x2c;
		count = 4;
	}
	value = how & 0x40 ? places[get(in, 1) & 7] : get(in, 4);
	memcpy(m, &offset, 8);
	memcpy(m + 8, &region, 4);
	memcpy(m + 12, &count, 4);
	memcpy(m + 16, &value, 8);
	n = how & 0x80 ? 16 + count : 16;
	message((uint16_t)get(in, 1), how & 0x80 ? VS_HC_REGION_WRITE : VS_HC_REGION_READ, 0, m, n, 16 + n, 0, 0);
}

static void multi_step(struct input *in)
{
	uint8_t m[MAX_SEND] = { 0 };
	uint64_t n = get(in, 1) % 10, claimed = get(in, 1) & 1 ? get(in, 8) : n;

	memcpy(m, &claimed, 8);
	for (uint64_t i = 0; i < n; i++) {
		m[8 + 24 * i] = (uint8_t)get(in, 1);
		m[16 + 24 * i] = (uint8_t)(get(in, 1) & 7);
		m[20 + 24 * i] = (uint8_t)(get(in, 1) % 10);
		m[24 + 24 * i] = (uint8_t)get(in, 1);
	}
	message(1, VS_HC_REGION_WRITE_MULTI, 0, m, (uint32_t)(8 + 24 * n), (uint32_t)(24 + 24 * n), 0, 0);
}

static void copy_step(struct input *in)
{
	static const uint32_t at[] = { EX_SOURCE, EX_SOURCE + 4, EX_TARGET, EX_TARGET + 4, EX_LENGTH, EX_ENABLE, EX_CONTROL };
	uint64_t from = places[get(in, 1) & 7] + get(in, 1), to = places[get(in, 1) & 7] + get(in, 1);
	uint32_t v[] = { (uint32_t)from, (uint32_t)(from >> 32), (uint32_t)to, (uint32_t)(to >> 32), (uint32_t)get(in, 2), (uint32_t)get(in, 1) & 1, EX_COPY };

	for (size_t i = 0; i < 7; i++) {
		uint8_t m[20] = { 0 };

		memcpy(m, &at[i], 4);
		m[12] = 4;
		memcpy(m + 16, &v[i], 4);
		message(2, VS_HC_REGION_WRITE, VS_HF_NO_REPLY, m, 20, 36, 0, 0);
	}
}

/* An answer to what was asked, or nearly. */
static void answer_step(struct input *in)
{
	uint8_t how = (uint8_t)get(in, 1), m[16 + 4096] = { 0 };
	uint16_t id = nasked ? asked[--nasked] : (uint16_t)get(in, 1);
	uint32_t n = a.h.command == VS_HC_DMA_WRITE ? 16 : 16 + (uint32_t)get(in, 2) % 200;

	memcpy(m, a.data, 16);
	if (how & 1)
		m[get(in, 1) & 15] ^= (uint8_t)get(in, 1);
	if (!(how & 2) && a.h.command == VS_HC_DMA_READ) {
		uint64_t count;

		memcpy(&count, a.data + 8, 8);
		n = 16 + (uint32_t)vs_min(count, (uint64_t)MAX_SEND - 32);
	}
	message(id, how & 4 ? (uint16_t)get(in, 1) : a.h.command, VS_HF_REPLY | (how & 8 ? VS_HF_ERROR : 0), m, n, 16 + n, 0, 0);
}

static void raw_step(struct input *in, uint8_t op)
{
	uint8_t m[MAX_SEND];
	uint32_t n = (uint32_t)get(in, 1) % 64, claimed = op & 0x10 ? (uint32_t)get(in, 4) : 16 + n;
	uint16_t command = (uint16_t)(get(in, 1) % 20);
	uint32_t flags = op & 0x20 ? (uint32_t)get(in, 1) : 0;
	int nfds = op & 0x40 ? (int)(get(in, 1) % 11) : 0;

	for (uint32_t i = 0; i < n; i++)
		m[i] = (uint8_t)get(in, 1);
	message((uint16_t)get(in, 1), command, flags, m, n, claimed, nfds, op & 0x80 ? (uint32_t)get(in, 1) : 0);
}

static void irqs_step(struct input *in)
{
	uint8_t how = (uint8_t)get(in, 1), m[24] = { 0 };
	uint32_t fields[5] = { 20, (uint32_t)(1u << (how & 1) | 8u << (how >> 1 & 3)), (uint32_t)get(in, 1) % 6, 0, (uint32_t)get(in, 1) % 3 };

	memcpy(m, fields, 20);
	m[20] = how >> 4 & 1;
	message(3, VS_HC_SET_IRQS, 0, m, 20 + (how & 1), 36 + (how & 1), 0, 0);
}

static void python_step(struct input *in)
{
	static const uint8_t some[64];
	uint8_t how = (uint8_t)get(in, 1);
	int32_t fd = event_fd;

	if (r.nmsgs)
		vs_hmsg_reply(r.core, r.msgs[--r.nmsgs], how & 1 ? 22 : 0, some, how >> 2, &fd, how >> 1 & 1);
}

static void control_step(struct input *in, uint8_t op)
{
	int32_t fd = dup(event_fd);

	switch (op >> 4 & 7) {
	case 0:
		hrig_done(&r, vs_hba_open(r.hba, 1 + (uint32_t)get(in, 1) * 16, ORDER));
		break;
	case 1:
		hrig_done(&r, vs_hba_reset(r.hba, ORDER));
		break;
	case 2:
		hrig_done(&r, vs_hba_set_windows(r.hba, r.windows, (uint32_t)get(in, 1) % (r.nwindows + 1), ORDER));
		break;
	case 3:
		hrig_done(&r, vs_hba_set_irq_fds(r.hba, VS_HIRQ_INTX, 0, 1, &fd, ORDER));
		return; /* taken */
	case 4: /* goes, and another comes */
		hrig_disconnect(&r);
		hrig_connect(&r, get(in, 1) & 1);
		gone = false;
		nasked = 0;
		break;
	case 5:
		vs_timers_run(r.w, vs_now_ns() + 10000000000ull);
		break;
	default:
		python_step(in);
		break;
	}
	close(fd);
}

static void step(struct input *in)
{
	uint8_t op = (uint8_t)get(in, 1);

	switch (op & 15) {
	default:
		access_step(in);
		break;
	case 8:
		multi_step(in);
		break;
	case 9:
	case 10:
		copy_step(in);
		break;
	case 11:
		answer_step(in);
		break;
	case 12:
	case 13:
		raw_step(in, op);
		break;
	case 14:
		irqs_step(in);
		break;
	case 15:
		control_step(in, op);
		break;
	}
	if (op & 0x80 && op & 8)
		return; /* more before anybody looks */
	look();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t *p;

	gone = false;
	nasked = 0;
	event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	hrig_chip = size && data[size - 1] & 1 ? VS_HBA_LSI53C895A : VS_HBA_EXERCISER;
	hrig_open(&r, VS_ENGINE_EPOLL);
	p = hrig_window(&r, 0x1000, PAGE, VS_HBA_DMA_READ | VS_HBA_DMA_WRITE | VS_HBA_DIRECT);
	hrig_window(&r, 0x2000, PAGE, VS_HBA_DMA_READ | VS_HBA_DMA_WRITE);
	hrig_connect(&r, true);
	for (int i = 0; i < STEPS && in.n; i++)
		step(&in);
	munmap(p, PAGE);
	hrig_close(&r);
	close(event_fd);
	return 0;
}
