// SPDX-License-Identifier: Apache-2.0
/* See hba_rig.h. */
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "hba_rig.h"
#include "worker.h"

enum { CONN = 7, ORDER = 8 };

uint32_t hrig_chip = VS_HBA_EXERCISER;

void hrig_open(struct hrig *r, uint32_t engine)
{
	struct vs_config config = { .nworkers = 1, .engine = engine, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_hba_params params = { .cookie = 1, .chip = hrig_chip };

	*r = (struct hrig){ .fd = -1 };
	CHECK_EQ(vs_core_create(&config, &r->core), 0);
	r->w = &r->core->workers[0];
	CHECK_EQ(r->w->engine->init(r->w), 0);
	CHECK_EQ(vs_hba_create(r->core, &params, &r->hba), 0);
}

void hrig_close(struct hrig *r)
{
	if (r->fd >= 0)
		hrig_disconnect(r);
	hrig_no_windows(r);
	hrig_done(r, vs_hba_destroy(r->hba, ORDER));
	r->w->engine->fini(r->w);
	vs_core_destroy(r->core);
}

static void drain(struct hrig *r)
{
	struct vs_upcall ups[16];
	struct vs_task_info infos[16];
	int n;

	while ((n = vs_core_drain(r->core, ups, infos, 16)))
		for (int i = 0; i < n; i++)
			if (ups[i].kind == VS_UP_HMSG) {
				CHECK(r->nmsgs < HRIG_MSGS);
				r->msgs[r->nmsgs++] = ups[i].hmsg;
			} else if (ups[i].kind == VS_UP_HCONN) {
				CHECK_EQ(ups[i].cookie, CONN);
				r->event = (int)ups[i].aux;
			} else if (ups[i].kind == VS_UP_DONE) {
				CHECK_EQ(ups[i].cookie, ORDER);
				r->ndone++;
				r->err = ups[i].err;
			}
}

void hrig_turn(struct hrig *r)
{
	r->w->engine->wait(r->w, 0);
	vs_worker_turn(r->w);
	drain(r);
}

static void patience(uint64_t *end)
{
	if (!*end)
		*end = vs_now_ns() + HRIG_PATIENCE_S * 1000000000ull;
	CHECK(vs_now_ns() < *end);
}

void hrig_done(struct hrig *r, int order)
{
	uint32_t want = r->ndone + 1;
	uint64_t end = 0;

	CHECK_EQ(order, 0);
	while (r->ndone < want) {
		patience(&end);
		hrig_turn(r);
	}
	CHECK_EQ(r->err, 0);
}

void hrig_connect(struct hrig *r, bool agreed)
{
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	r->fd = pair[0];
	r->event = 0;
	CHECK_EQ(vs_hba_attach(r->hba, pair[1], CONN), 0);
	if (agreed)
		hrig_done(r, vs_hba_open(r->hba, 1 << 20, ORDER));
}

void hrig_disconnect(struct hrig *r)
{
	while (r->nmsgs)
		vs_hmsg_reply(r->core, r->msgs[--r->nmsgs], 5, NULL, 0, NULL, 0);
	hrig_done(r, vs_hba_detach(r->hba, ORDER));
	close(r->fd);
	r->fd = -1;
}

uint16_t hrig_send(struct hrig *r, uint16_t command, uint32_t flags, const void *payload, uint32_t n, const int *fds, uint32_t nfds)
{
	union { char bytes[CMSG_SPACE(sizeof(int) * 64)]; struct cmsghdr align; } control = { 0 };
	struct vs_hba_header h = { .id = ++r->next_id, .command = command, .size = (uint32_t)sizeof(h) + n, .flags = flags };
	struct iovec iov[2] = { { &h, sizeof(h) }, { (void *)payload, n } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

	if (nfds) {
		struct cmsghdr *c;

		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	CHECK_EQ(sendmsg(r->fd, &m, MSG_NOSIGNAL), h.size);
	return h.id;
}

static void read_whole(struct hrig *r, void *to, uint32_t n, struct hanswer *a)
{
	uint64_t end = 0;

	while (n) {
		union { char bytes[CMSG_SPACE(sizeof(int) * 8)]; struct cmsghdr align; } control;
		struct iovec iov = { to, n };
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t got = recvmsg(r->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		struct cmsghdr *c;

		if (got <= 0) {
			CHECK(got < 0 && errno == EAGAIN);
			patience(&end);
			hrig_turn(r);
			continue;
		}
		c = CMSG_FIRSTHDR(&m);
		if (c) {
			a->nfds = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(a->fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
		}
		to = (char *)to + got;
		n -= (uint32_t)got;
	}
}

void hrig_receive(struct hrig *r, struct hanswer *a)
{
	a->nfds = 0;
	read_whole(r, &a->h, sizeof(a->h), a);
	CHECK(a->h.size >= sizeof(a->h) && a->h.size - sizeof(a->h) <= sizeof(a->data));
	a->length = a->h.size - (uint32_t)sizeof(a->h);
	read_whole(r, a->data, a->length, a);
}

bool hrig_silent(struct hrig *r)
{
	struct pollfd p = { .fd = r->fd, .events = POLLIN };

	for (int i = 0; i < 20; i++)
		hrig_turn(r);
	return poll(&p, 1, 0) == 0;
}

static struct hanswer answer;

uint32_t hrig_access(struct hrig *r, uint16_t command, uint32_t region, uint64_t offset, uint32_t count, const void *data, void *out)
{
	static uint8_t m[VS_HBA_PAYLOAD_MAX];
	uint16_t id;

	memcpy(m, &offset, 8);
	memcpy(m + 8, &region, 4);
	memcpy(m + 12, &count, 4);
	if (data)
		memcpy(m + 16, data, count);
	id = hrig_send(r, command, 0, m, 16 + (data ? count : 0), NULL, 0);
	hrig_receive(r, &answer);
	CHECK(answer.h.id == id && answer.h.command == command && (answer.h.flags & VS_HF_TYPE) == VS_HF_REPLY);
	if (answer.h.flags & VS_HF_ERROR) {
		CHECK(answer.length == 0 && answer.h.error != 0);
		return answer.h.error;
	}
	CHECK_EQ(memcmp(answer.data, m, 16), 0);
	CHECK_EQ(answer.length, 16 + (out ? count : 0));
	if (out)
		memcpy(out, answer.data + 16, count);
	return 0;
}

uint32_t hrig_read32(struct hrig *r, uint32_t region, uint64_t offset)
{
	uint32_t v;

	CHECK_EQ(hrig_access(r, VS_HC_REGION_READ, region, offset, 4, NULL, &v), 0);
	return v;
}

void hrig_write32(struct hrig *r, uint32_t region, uint64_t offset, uint32_t v)
{
	CHECK_EQ(hrig_access(r, VS_HC_REGION_WRITE, region, offset, 4, &v, NULL), 0);
}

uint32_t hrig_irqs(struct hrig *r, uint32_t flags, uint32_t index, uint32_t start, uint32_t count, const void *data, uint32_t n)
{
	uint8_t m[VS_HI_FIELDS + 16];
	uint32_t fields[5] = { VS_HI_FIELDS + n, flags, index, start, count };

	memcpy(m, fields, VS_HI_FIELDS);
	if (n)
		memcpy(m + VS_HI_FIELDS, data, n);
	hrig_send(r, VS_HC_SET_IRQS, 0, m, VS_HI_FIELDS + n, NULL, 0);
	hrig_receive(r, &answer);
	return answer.h.error;
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------------------------- */

uint8_t *hrig_window(struct hrig *r, uint64_t addr, uint64_t size, uint32_t flags)
{
	struct vs_hba_window *w = &r->windows[r->nwindows++];
	uint8_t *p = NULL;
	int fd = -1;

	CHECK(r->nwindows <= HRIG_WINDOWS);
	*w = (struct vs_hba_window){ .addr = addr, .size = size, .flags = flags };
	if (flags & VS_HBA_DIRECT) {
		struct vs_region region = { .guest_addr = addr, .size = size, .user_addr = addr };

		fd = memfd_create("window", MFD_CLOEXEC);
		CHECK(fd >= 0 && !ftruncate(fd, (off_t)size));
		region.fd = fd;
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(p != MAP_FAILED);
		CHECK_EQ(vs_memmap_create(r->core, &region, 1, NULL, 1, &w->map), 0);
		close(fd);
	} else {
		CHECK_EQ(vs_memmap_create(r->core, NULL, 0, NULL, 1, &w->map), 0);
	}
	hrig_done(r, vs_hba_set_windows(r->hba, r->windows, r->nwindows, ORDER));
	return p;
}

void hrig_no_windows(struct hrig *r)
{
	hrig_done(r, vs_hba_set_windows(r->hba, NULL, 0, ORDER));
	while (r->nwindows) {
		struct vs_hba_window *w = &r->windows[--r->nwindows];

		CHECK(!vs_pins_busy(vs_memmap_pins(w->map)));
		vs_memmap_destroy(w->map);
	}
}

void hrig_copy(struct hrig *r, uint64_t from, uint64_t to, uint32_t length)
{
	uint64_t at = EX_CONTROL, end = 0;
	uint32_t count = 4, copy = EX_COPY;
	uint8_t start[20] = { 0 };

	hrig_write32(r, EX_REGISTERS, EX_SOURCE, (uint32_t)from);
	hrig_write32(r, EX_REGISTERS, EX_SOURCE + 4, (uint32_t)(from >> 32));
	hrig_write32(r, EX_REGISTERS, EX_TARGET, (uint32_t)to);
	hrig_write32(r, EX_REGISTERS, EX_TARGET + 4, (uint32_t)(to >> 32));
	hrig_write32(r, EX_REGISTERS, EX_LENGTH, length);
	/* Posted: the function's own messages come before an answer to this would. */
	memcpy(start, &at, 8);
	memcpy(start + 12, &count, 4);
	memcpy(start + 16, &copy, 4);
	hrig_send(r, VS_HC_REGION_WRITE, VS_HF_NO_REPLY, start, sizeof(start), NULL, 0);
	for (uint64_t writes = vs_counted(&r->hba->stats.writes); vs_counted(&r->hba->stats.writes) == writes; hrig_turn(r))
		patience(&end);
}
