// SPDX-License-Identifier: Apache-2.0
/*
 * PCI functions over vfio-user without Python: framing, region accesses, interrupts, the client's memory mapped and by messages, and clients that break
 * the protocol, stop reading, or go. What Python answers is answered here by hand. On both engines.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "hba_pci.h"
#include "hba_rig.h"

enum { ORDER = 8, CONFIG = VS_HREGION_CONFIG, RW = VS_HBA_DMA_READ | VS_HBA_DMA_WRITE, PAGE = 4096 };

static struct hrig r;
static struct hanswer a;

static void open_client(uint32_t engine)
{
	hrig_open(&r, engine);
	hrig_connect(&r, true);
}

static uint64_t rung(int fd)
{
	uint64_t n = 0;

	return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static struct vs_hba_stats stats(void)
{
	struct vs_hba_stats s;

	vs_hba_stats(r.hba, &s);
	return s;
}

static void master(void) { hrig_write32(&r, CONFIG, VS_PCI_COMMAND, VS_PCI_COMMAND_MASTER | VS_PCI_COMMAND_MEMORY); }

/* ---- regions --------------------------------------------------------------------------------------------------------------------------- */

static void regions_are_read_and_written(uint32_t engine)
{
	static const struct { uint32_t region, count; uint64_t offset; } wrong[] = {
		{ 0, 0, 0 }, { 0, 4, 256 }, { 0, 4, 254 }, { 0, 257, 0 }, { 0, 4, UINT64_MAX - 1 }, { 1, 4, 0 }, { 6, 4, 0 }, { 9, 4, 0 },
		{ UINT32_MAX, 4, 0 }, { 2, UINT32_MAX, 0 }, { 2, 8192, 1 },
	};
	static uint8_t all[8192], back[8192];

	open_client(engine);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_ID), 0x72657845);
	hrig_write32(&r, EX_REGISTERS, EX_WORD, 0xdeadbeef);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 0xdeadbeef);
	for (uint32_t i = 0; i < sizeof(all); i++)
		all[i] = (uint8_t)(i * 7);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_WRITE, EX_MEMORY, 0, sizeof(all), all, NULL), 0);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_READ, EX_MEMORY, 0, sizeof(back), NULL, back), 0);
	CHECK_EQ(memcmp(all, back, sizeof(all)), 0);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		CHECK_EQ(hrig_access(&r, VS_HC_REGION_READ, wrong[i].region, wrong[i].offset, wrong[i].count, NULL, NULL), EINVAL);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_WRITE, EX_REGISTERS, 256, 4, all, NULL), EINVAL);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_WRITE, EX_REGISTERS, 5, 4, all, NULL), EINVAL); /* the function's own refusal */
	/* Lengths that are not those of the message. */
	hrig_send(&r, VS_HC_REGION_READ, 0, all, 15, NULL, 0);
	hrig_receive(&r, &a);
	CHECK(a.h.flags & VS_HF_ERROR);
	hrig_send(&r, VS_HC_REGION_WRITE, 0, all, 15, NULL, 0);
	hrig_receive(&r, &a);
	CHECK(a.h.flags & VS_HF_ERROR);
	CHECK_EQ(stats().refused, sizeof(wrong) / sizeof(wrong[0]) + 4);
	hrig_close(&r);
}

static void write_fields(uint8_t *m, uint64_t offset, uint32_t region, uint32_t count, uint64_t data)
{
	memcpy(m, &offset, 8);
	memcpy(m + 8, &region, 4);
	memcpy(m + 12, &count, 4);
	memcpy(m + 16, &data, 8);
}

static void posted_writes_are_done_before_what_follows(uint32_t engine)
{
	uint8_t m[24];

	open_client(engine);
	for (uint32_t i = 1; i <= 100; i++) {
		write_fields(m, EX_WORD, EX_REGISTERS, 4, i);
		hrig_send(&r, VS_HC_REGION_WRITE, VS_HF_NO_REPLY, m, 20, NULL, 0);
	}
	write_fields(m, 300, EX_REGISTERS, 4, 0);
	hrig_send(&r, VS_HC_REGION_WRITE, VS_HF_NO_REPLY, m, 20, NULL, 0); /* refused, and not answered either */
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 100);
	CHECK_EQ(stats().writes, 100);
	CHECK_EQ(stats().refused, 1);
	hrig_close(&r);
}

static uint64_t multi(uint64_t claimed, uint32_t n, const uint8_t *writes)
{
	uint8_t m[8 + 24 * 8];
	uint64_t done;

	memcpy(m, &claimed, 8);
	memcpy(m + 8, writes, 24 * n);
	hrig_send(&r, VS_HC_REGION_WRITE_MULTI, 0, m, 8 + 24 * n, NULL, 0);
	hrig_receive(&r, &a);
	if (a.h.flags & VS_HF_ERROR)
		return UINT64_MAX;
	CHECK_EQ(a.length, 8);
	memcpy(&done, a.data, 8);
	return done;
}

static void many_writes_in_one_message(uint32_t engine)
{
	uint8_t w[3 * 24];

	open_client(engine);
	write_fields(w, EX_WORD, EX_REGISTERS, 4, 5);
	write_fields(w + 24, 16, EX_MEMORY, 8, 0x1122334455667788);
	write_fields(w + 48, EX_WORD, EX_REGISTERS, 4, 6);
	CHECK_EQ(multi(3, 3, w), 3);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 6);
	CHECK_EQ(hrig_read32(&r, EX_MEMORY, 20), 0x11223344);
	CHECK_EQ(multi(0, 0, w), 0);
	write_fields(w, EX_WORD, EX_REGISTERS, 4, 7);
	write_fields(w + 24, 16, EX_MEMORY, 9, 0); /* "writes of 8 bytes or less" */
	CHECK_EQ(multi(3, 3, w), 1);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 7);
	CHECK_EQ(multi(4, 3, w), UINT64_MAX);
	CHECK_EQ(multi(1ull << 61, 3, w), UINT64_MAX);
	hrig_close(&r);
}

static void configuration_space_is_that_of_a_pci_function(uint32_t engine)
{
	uint16_t two;

	open_client(engine);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0), 0x0001fffe);
	hrig_write32(&r, CONFIG, 0, 0);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0), 0x0001fffe);
	/* PCI 3.0 6.2.5.1: all ones show the size. */
	hrig_write32(&r, CONFIG, 0x10, UINT32_MAX);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0x10), 0xffffff00);
	hrig_write32(&r, CONFIG, 0x18, UINT32_MAX);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0x18), 0xffffe000);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0x14), 0);
	CHECK_EQ(hrig_read32(&r, CONFIG, 0x3c) >> 8 & 0xff, 1);
	/* The reason for INTx shows in the status register, driven or not. */
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_RAISE);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_READ, CONFIG, VS_PCI_STATUS, 2, NULL, &two), 0);
	CHECK(two & VS_PCI_STATUS_INTERRUPT);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_LOWER);
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_READ, CONFIG, VS_PCI_STATUS, 2, NULL, &two), 0);
	CHECK(!(two & VS_PCI_STATUS_INTERRUPT));
	CHECK_EQ(hrig_access(&r, VS_HC_REGION_READ, CONFIG, 254, 4, NULL, NULL), EINVAL);
	/* A reset gives the fresh one back. */
	hrig_done(&r, vs_hba_reset(r.hba, ORDER));
	CHECK_EQ(hrig_read32(&r, CONFIG, 0x10), 0);
	hrig_close(&r);
}

/* ---- framing --------------------------------------------------------------------------------------------------------------------------- */

static void a_message_may_come_byte_by_byte(uint32_t engine)
{
	uint8_t m[16 + 16] = { 0 };
	struct vs_hba_header h = { .id = 77, .command = VS_HC_REGION_READ, .size = sizeof(m) };
	uint32_t count = 4;

	open_client(engine);
	memcpy(m, &h, 16);
	memcpy(m + 28, &count, 4);
	for (size_t i = 0; i < sizeof(m); i++) {
		CHECK_EQ(send(r.fd, m + i, 1, 0), 1);
		hrig_turn(&r);
	}
	hrig_receive(&r, &a);
	CHECK(a.h.id == 77 && a.length == 20 && a.data[16] == 'E');
	hrig_close(&r);
}

static void expect_event(int event)
{
	while (!r.event)
		hrig_turn(&r);
	CHECK_EQ(r.event, event);
	hrig_close(&r);
}

static void a_broken_stream_ends_the_client(uint32_t engine)
{
	static const struct { struct vs_hba_header h; int event; } bad[] = {
		{ { .size = 15 }, VS_HBA_BAD_SIZE }, { { .size = 0 }, VS_HBA_BAD_SIZE }, { { .size = UINT32_MAX }, VS_HBA_BAD_SIZE },
		{ { .size = 16 + VS_HBA_PAYLOAD_MAX + 1 }, VS_HBA_BAD_SIZE }, { { .size = 16, .flags = 2 }, VS_HBA_BAD_TYPE },
	};
	int fds[VS_HBA_MSG_FDS + 2];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		open_client(engine);
		CHECK_EQ(send(r.fd, &bad[i].h, 16, 0), 16);
		expect_event(bad[i].event);
	}
	open_client(engine);
	for (int i = 0; i < VS_HBA_MSG_FDS + 2; i++)
		fds[i] = 0;
	hrig_send(&r, 99, 0, NULL, 0, fds, VS_HBA_MSG_FDS + 2);
	expect_event(VS_HBA_FDS_LOST);
	open_client(engine);
	CHECK_EQ(send(r.fd, &bad[0].h, 7, 0), 7);
	shutdown(r.fd, SHUT_WR);
	expect_event(VS_HBA_TRUNCATED);
	open_client(engine);
	shutdown(r.fd, SHUT_RDWR);
	expect_event(VS_HBA_PEER_CLOSED);
}

static vs_hmsg *next_msg(void)
{
	vs_hmsg *m;

	while (!r.nmsgs)
		hrig_turn(&r);
	m = r.msgs[0];
	memmove(r.msgs, r.msgs + 1, --r.nmsgs * sizeof(*r.msgs));
	return m;
}

static void what_python_answers_keeps_the_order(uint32_t engine)
{
	struct vs_hmsg_info info;
	uint16_t first, second;
	uint8_t m[24];
	int fds[2] = { eventfd(0, EFD_CLOEXEC), 0 }, fd;
	vs_hmsg *msg;

	hrig_open(&r, engine);
	hrig_connect(&r, false);
	/* Before the version is agreed upon everything is Python's, and one at a time. */
	write_fields(m, EX_WORD, EX_REGISTERS, 4, 1);
	first = hrig_send(&r, VS_HC_REGION_READ, 0, m, 16, fds, 1);
	second = hrig_send(&r, 4, 0, m, 3, NULL, 0);
	msg = next_msg();
	CHECK(hrig_silent(&r) && r.nmsgs == 0);
	vs_hmsg_info(msg, &info);
	CHECK(info.id == first && info.length == 16 && info.command == VS_HC_REGION_READ && info.nfds == 1 && info.conn_cookie == 7);
	fd = vs_hmsg_take_fd(msg, 0);
	CHECK(fd >= 0 && vs_hmsg_take_fd(msg, 0) == -1 && vs_hmsg_take_fd(msg, 1) == -1);
	hrig_done(&r, vs_hba_open(r.hba, 1 << 20, ORDER));
	CHECK_EQ(vs_hmsg_reply(r.core, msg, 0, m, 5, &fd, 1), 0);
	close(fd);
	hrig_receive(&r, &a);
	CHECK(a.h.id == first && a.length == 5 && a.nfds == 1);
	close(a.fds[0]);
	msg = next_msg();
	/* An access behind it waits, an access behind that, too. */
	write_fields(m, EX_WORD, EX_REGISTERS, 4, 2);
	hrig_send(&r, VS_HC_REGION_WRITE, 0, m, 20, fds, 1);
	CHECK(hrig_silent(&r));
	CHECK_EQ(vs_hmsg_reply(r.core, msg, ENOENT, m, 5, NULL, 0), 0);
	hrig_receive(&r, &a);
	CHECK(a.h.id == second && a.h.error == ENOENT && a.h.flags == (VS_HF_REPLY | VS_HF_ERROR) && a.length == 0);
	hrig_receive(&r, &a);
	CHECK(a.h.command == VS_HC_REGION_WRITE && !(a.h.flags & VS_HF_ERROR));
	/* Nobody wants an answer: none is sent. */
	hrig_send(&r, 13, VS_HF_NO_REPLY, NULL, 0, NULL, 0);
	CHECK_EQ(vs_hmsg_reply(r.core, next_msg(), EIO, NULL, 0, NULL, 0), 0);
	CHECK(hrig_silent(&r));
	close(fds[0]);
	hrig_close(&r);
}

/* More than may be parked: the rest stays in the socket, and comes when Python has answered. */
static void a_flood_behind_python_is_held_up(uint32_t engine)
{
	uint8_t m[24];
	vs_hmsg *msg;

	open_client(engine);
	hrig_send(&r, 4, 0, NULL, 0, NULL, 0);
	msg = next_msg();
	for (uint32_t i = 0; i < 2 * VS_HPARKED_MAX; i++) {
		write_fields(m, EX_WORD, EX_REGISTERS, 4, i);
		hrig_send(&r, VS_HC_REGION_WRITE, 0, m, 20, NULL, 0);
	}
	CHECK(hrig_silent(&r));
	CHECK_EQ(r.hba->nparked, VS_HPARKED_MAX);
	vs_hmsg_reply(r.core, msg, 0, NULL, 0, NULL, 0);
	for (uint32_t i = 0; i < 2 * VS_HPARKED_MAX + 1; i++)
		hrig_receive(&r, &a);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 2 * VS_HPARKED_MAX - 1);
	/* A client that goes with messages parked leaves nothing behind. */
	hrig_send(&r, 4, 0, NULL, 0, NULL, 0);
	hrig_send(&r, 4, 0, m, 4, NULL, 0);
	CHECK(hrig_silent(&r));
	hrig_close(&r);
}

static void a_client_that_does_not_read_holds_up_itself(uint32_t engine)
{
	uint8_t m[16];
	uint32_t sent = 0, n = 8192;
	struct vs_hba_header h = { .command = VS_HC_REGION_READ, .size = 32 };
	uint8_t whole[32];

	open_client(engine);
	memset(m, 0, sizeof(m));
	m[8] = EX_MEMORY;
	memcpy(m + 12, &n, 4);
	memcpy(whole, &h, 16);
	memcpy(whole + 16, m, 16);
	/* Until the socket is full: then it is not read any more. */
	for (int idle = 0; idle < 50; hrig_turn(&r))
		if (send(r.fd, whole, sizeof(whole), MSG_DONTWAIT) == sizeof(whole))
			idle = 0, sent++;
		else
			idle++;
	CHECK(r.hba->tx_bytes >= VS_HTX_BYTES && r.hba->tx_bytes < VS_HTX_BYTES + 2 * 8300);
	for (uint32_t i = 0; i < sent; i++) {
		hrig_receive(&r, &a);
		CHECK_EQ(a.length, 16 + 8192);
	}
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_ID), 0x72657845);
	hrig_close(&r);
}

/* ---- interrupts ------------------------------------------------------------------------------------------------------------------------ */

static void set_intx(int fd)
{
	int32_t own = fd >= 0 ? dup(fd) : -1;

	hrig_done(&r, vs_hba_set_irq_fds(r.hba, VS_HIRQ_INTX, 0, 1, &own, ORDER));
}

static void intx_masks_itself_and_is_told_again(uint32_t engine)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	uint8_t yes = 1, no = 0;

	open_client(engine);
	set_intx(fd);
	CHECK_EQ(rung(fd), 0);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_RAISE);
	CHECK_EQ(rung(fd), 1);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_RAISE);
	CHECK_EQ(rung(fd), 0);
	/* Unmasked while the reason stands: again. Unmasked without one: not. */
	CHECK_EQ(hrig_irqs(&r, VS_HI_NONE | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, NULL, 0), 0);
	CHECK_EQ(rung(fd), 1);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_LOWER);
	CHECK_EQ(hrig_irqs(&r, VS_HI_NONE | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, NULL, 0), 0);
	CHECK_EQ(rung(fd), 0);
	/* Masked by the client: a reason that has gone again is not told. */
	CHECK_EQ(hrig_irqs(&r, VS_HI_BOOL | VS_HI_MASK, VS_HIRQ_INTX, 0, 1, &yes, 1), 0);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_RAISE);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_LOWER);
	CHECK_EQ(hrig_irqs(&r, VS_HI_BOOL | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, &no, 1), 0);
	CHECK_EQ(hrig_irqs(&r, VS_HI_BOOL | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, &yes, 1), 0);
	CHECK_EQ(rung(fd), 0);
	/* The client may trigger it, and the guest may switch it off (PCI 3.0 6.2.2). */
	CHECK_EQ(hrig_irqs(&r, VS_HI_NONE | VS_HI_TRIGGER, VS_HIRQ_INTX, 0, 1, NULL, 0), 0);
	CHECK_EQ(rung(fd), 1);
	CHECK_EQ(hrig_irqs(&r, VS_HI_NONE | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, NULL, 0), 0);
	hrig_write32(&r, CONFIG, VS_PCI_COMMAND, VS_PCI_COMMAND_INTX_OFF);
	hrig_write32(&r, EX_REGISTERS, EX_CONTROL, EX_RAISE);
	CHECK_EQ(rung(fd), 0);
	hrig_write32(&r, CONFIG, VS_PCI_COMMAND, 0);
	CHECK_EQ(rung(fd), 1);
	/* A new eventfd is told what stands, no eventfd is nobody to tell. */
	set_intx(fd);
	CHECK_EQ(rung(fd), 1);
	set_intx(-1);
	CHECK_EQ(hrig_irqs(&r, VS_HI_NONE | VS_HI_UNMASK, VS_HIRQ_INTX, 0, 1, NULL, 0), 0);
	CHECK_EQ(rung(fd), 0);
	close(fd);
	hrig_close(&r);
}

static void interrupts_that_do_not_exist_are_refused(uint32_t engine)
{
	static const struct { uint32_t flags, index, start, count, bytes; } bad[] = {
		{ VS_HI_NONE | VS_HI_MASK, 5, 0, 1, 0 }, { VS_HI_NONE | VS_HI_MASK, 1, 0, 1, 0 }, { VS_HI_NONE | VS_HI_MASK, 0, 1, 1, 0 },
		{ VS_HI_NONE | VS_HI_MASK, 0, 0, 2, 0 }, { VS_HI_NONE | VS_HI_MASK, 0, UINT32_MAX, 2, 0 }, { VS_HI_NONE, 0, 0, 1, 0 },
		{ VS_HI_MASK, 0, 0, 1, 0 }, { VS_HI_NONE | VS_HI_BOOL | VS_HI_MASK, 0, 0, 1, 1 }, { VS_HI_NONE | VS_HI_MASK | VS_HI_UNMASK, 0, 0, 1, 0 },
		{ VS_HI_NONE | VS_HI_MASK | 64, 0, 0, 1, 0 }, { VS_HI_BOOL | VS_HI_MASK, 0, 0, 1, 0 }, { VS_HI_NONE | VS_HI_MASK, 0, 0, 1, 1 },
	};
	int32_t fd = eventfd(0, EFD_CLOEXEC);
	uint8_t one = 1;

	open_client(engine);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_EQ(hrig_irqs(&r, bad[i].flags, bad[i].index, bad[i].start, bad[i].count, &one, bad[i].bytes), EINVAL);
	CHECK_EQ(vs_hba_set_irq_fds(r.hba, 2, 0, 1, &fd, ORDER), -EINVAL);
	CHECK_EQ(fcntl(fd, F_GETFD), -1); /* it was closed */
	CHECK_EQ(vs_hba_irq_count(r.hba, 0), 1);
	CHECK_EQ(vs_hba_irq_count(r.hba, 9), 0);
	/* Eventfds, and "no interrupts at all", are set up by Python. */
	hrig_send(&r, VS_HC_SET_IRQS, 0, (uint32_t[5]){ 20, VS_HI_EVENTFD | VS_HI_TRIGGER, 0, 0, 1 }, 20, NULL, 0);
	vs_hmsg_reply(r.core, next_msg(), 0, NULL, 0, NULL, 0);
	hrig_receive(&r, &a);
	hrig_send(&r, VS_HC_SET_IRQS, 0, (uint32_t[5]){ 20, VS_HI_NONE | VS_HI_TRIGGER, 0, 0, 0 }, 20, NULL, 0);
	vs_hmsg_reply(r.core, next_msg(), 0, NULL, 0, NULL, 0);
	hrig_receive(&r, &a);
	hrig_send(&r, VS_HC_SET_IRQS, 0, &one, 1, NULL, 0);
	vs_hmsg_reply(r.core, next_msg(), EINVAL, NULL, 0, NULL, 0);
	hrig_receive(&r, &a);
	hrig_close(&r);
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------ */

static void fill(uint8_t *p, uint32_t n, uint32_t seed)
{
	for (uint32_t i = 0; i < n; i++)
		p[i] = (uint8_t)(i * 31 + seed);
}

static void mapped_memory_is_copied_in_place(uint32_t engine)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	struct vs_memmap *pins[4];
	struct iovec iov[4];
	uint8_t *low, *high;

	open_client(engine);
	high = hrig_window(&r, 0x100000000 + PAGE, PAGE, RW | VS_HBA_DIRECT);
	low = hrig_window(&r, 0x100000000, PAGE, RW | VS_HBA_DIRECT);
	hrig_window(&r, 0x200000000, PAGE, VS_HBA_DMA_READ | VS_HBA_DIRECT);
	set_intx(fd);
	hrig_write32(&r, EX_REGISTERS, EX_ENABLE, 1);
	fill(low, PAGE, 3);
	/* Not before the function may be a bus master (PCI 3.0 6.2.2). */
	hrig_copy(&r, 0x100000000, 0x100000000 + PAGE, 16);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	CHECK_EQ(rung(fd), 1);
	master();
	hrig_copy(&r, 0x100000000 + 100, 0x100000000 + PAGE - 10, 200);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_DONE);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_MOVED), 200);
	CHECK(!memcmp(low + PAGE - 10, low + 100, 10) && !memcmp(high, low + 110, 190) && high[190] == 0);
	/* Where nothing is, where only reading is allowed, and around the end of the address space. */
	hrig_copy(&r, 0x100000000, 0x100000000 + 2 * PAGE - 8, 16);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_MOVED), 8);
	hrig_copy(&r, 0x100000000, 0x200000000, 16);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	hrig_copy(&r, UINT64_MAX - 3, 0x100000000, 16);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	CHECK_EQ(stats().dma_faults, 3);
	/* As iovecs: the windows are pinned one by one. */
	CHECK_EQ(vs_hba_dma_direct(r.hba, 0x100000000 + PAGE - 1, 2, true, iov, pins, 4), 2);
	CHECK(iov[0].iov_len == 1 && iov[1].iov_len == 1 && pins[0] != pins[1]);
	CHECK(vs_pins_busy(&pins[0]->pins) && vs_pins_busy(&pins[1]->pins));
	vs_unpin(r.w, &pins[0]->pins);
	vs_unpin(r.w, &pins[1]->pins);
	CHECK_EQ(vs_hba_dma_direct(r.hba, 0x100000000 + PAGE - 1, 2, true, iov, pins, 1), -ENOBUFS);
	CHECK_EQ(vs_hba_dma_direct(r.hba, 0x100000000 + PAGE, PAGE + 1, true, iov, pins, 4), -EFAULT);
	CHECK_EQ(vs_hba_dma_direct(r.hba, UINT64_MAX, 2, true, iov, pins, 4), -EFAULT);
	hrig_window(&r, 0x300000000, PAGE, RW);
	CHECK_EQ(vs_hba_dma_direct(r.hba, 0x300000000, 2, true, iov, pins, 4), -EREMOTE);
	CHECK(!vs_pins_busy(&r.windows[0].map->pins) && !vs_pins_busy(&r.windows[1].map->pins));
	close(fd);
	hrig_close(&r);
}

static void windows_that_cannot_be_are_refused(uint32_t engine)
{
	struct vs_hba_window w[2] = { { .addr = 0x1000, .size = PAGE, .flags = RW }, { .addr = 0x1fff, .size = PAGE, .flags = RW } };

	open_client(engine);
	CHECK_EQ(vs_memmap_create(r.core, NULL, 0, NULL, 1, &w[0].map), 0);
	w[1].map = w[0].map;
	CHECK_EQ(vs_hba_set_windows(r.hba, w, 2, ORDER), -EINVAL); /* one over the other */
	w[1].addr = UINT64_MAX;
	CHECK_EQ(vs_hba_set_windows(r.hba, w, 2, ORDER), -EINVAL); /* over the end of the address space */
	w[1] = (struct vs_hba_window){ .addr = 0x8000, .size = PAGE, .flags = RW | VS_HBA_DIRECT, .map = w[0].map };
	CHECK_EQ(vs_hba_set_windows(r.hba, w, 2, ORDER), -EINVAL); /* not mapped */
	w[1].size = 0;
	CHECK_EQ(vs_hba_set_windows(r.hba, w, 2, ORDER), -EINVAL);
	CHECK_EQ(vs_hba_set_windows(r.hba, w, VS_HBA_WINDOWS_MAX + 1, ORDER), -E2BIG);
	vs_memmap_destroy(w[0].map);
	hrig_close(&r);
}

static void answer_read(const struct hanswer *m, uint32_t flags, int32_t skew)
{
	static uint8_t p[VS_HBA_PAYLOAD_MAX];
	uint64_t count;

	memcpy(&count, m->data + 8, 8);
	memcpy(p, m->data, 16);
	fill(p + 16, (uint32_t)count, 9);
	r.next_id = (uint16_t)(m->h.id - 1);
	hrig_send(&r, VS_HC_DMA_READ, VS_HF_REPLY | flags, p, (uint32_t)(16 + (flags & VS_HF_ERROR ? -16 : (int64_t)count + skew)), NULL, 0);
}

static void memory_without_a_descriptor_goes_by_messages(uint32_t engine)
{
	uint8_t want[64], *p;

	open_client(engine);
	master();
	hrig_window(&r, 0x1000, PAGE, RW);
	p = hrig_window(&r, 0x1000 + PAGE, PAGE, RW | VS_HBA_DIRECT);
	fill(p, PAGE, 5);
	hrig_copy(&r, 0x1000 + PAGE - 32, 0x1010, 64); /* half of the source is there, half is asked for */
	hrig_receive(&r, &a);
	CHECK(a.h.command == VS_HC_DMA_READ && a.h.flags == 0 && a.length == 16);
	/* Accesses go on meanwhile, and a message that Python has does not stop the answer. */
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_BUSY);
	CHECK(vs_pins_busy(&r.windows[0].map->pins));
	hrig_send(&r, 4, 0, NULL, 0, NULL, 0);
	CHECK(hrig_silent(&r));
	answer_read(&a, 0, 0);
	hrig_receive(&r, &a);
	CHECK(a.h.command == VS_HC_DMA_WRITE && a.length == 16 + 64);
	fill(want, 32, 9);
	CHECK(!memcmp(a.data + 16, want, 32) && !memcmp(a.data + 48, p, 32));
	r.next_id = (uint16_t)(a.h.id - 1);
	a.data[12] = 0;
	hrig_send(&r, VS_HC_DMA_WRITE, VS_HF_REPLY, a.data, 12, NULL, 0); /* the specification's 12 bytes; others send 16 */
	vs_hmsg_reply(r.core, next_msg(), 0, NULL, 0, NULL, 0);
	hrig_receive(&r, &a);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_DONE);
	CHECK(!vs_pins_busy(&r.windows[0].map->pins));
	/* Larger than the client takes at once: in pieces. */
	hrig_done(&r, vs_hba_open(r.hba, 48, ORDER));
	hrig_copy(&r, 0x1000, 0x1000 + PAGE, 64);
	hrig_receive(&r, &a);
	answer_read(&a, 0, 0);
	hrig_receive(&r, &a);
	CHECK(a.data[0] == 48 && a.data[8] == 16);
	answer_read(&a, 0, 0);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_DONE);
	CHECK_EQ(stats().dma_messages, 4);
	hrig_close(&r);
}

static void an_answer_that_is_none_is_a_fault(uint32_t engine)
{
	static const struct { uint32_t flags; int32_t skew; } bad[] = { { VS_HF_ERROR, 0 }, { 0, 1 }, { 0, -1 }, { 0, -16 - 8 } };

	open_client(engine);
	master();
	hrig_window(&r, 0x1000, PAGE, RW);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		hrig_copy(&r, 0x1000, 0x1100, 32);
		hrig_receive(&r, &a);
		answer_read(&a, bad[i].flags, bad[i].skew);
		CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	}
	/* To nothing that was asked, or with another command: passed over. */
	hrig_copy(&r, 0x1000, 0x1100, 32);
	hrig_receive(&r, &a);
	r.next_id = (uint16_t)(a.h.id - 1);
	hrig_send(&r, VS_HC_DMA_WRITE, VS_HF_REPLY, a.data, 16, NULL, 0);
	hrig_send(&r, VS_HC_DMA_READ, VS_HF_REPLY, a.data, 16, NULL, 0);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_BUSY);
	CHECK_EQ(stats().stray_replies, 2);
	/* A reset ends the copy, and the answer that comes after all is a stray. */
	hrig_done(&r, vs_hba_reset(r.hba, ORDER));
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), 0);
	CHECK(!vs_pins_busy(&r.windows[0].map->pins));
	answer_read(&a, 0, 0);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), 0);
	CHECK_EQ(stats().stray_replies, 3);
	hrig_close(&r);
}

static void a_client_that_never_answers_is_asked_once(uint32_t engine)
{
	open_client(engine);
	master();
	hrig_window(&r, 0x1000, PAGE, RW);
	hrig_copy(&r, 0x1000, 0x1100, 32);
	hrig_receive(&r, &a);
	CHECK_EQ(a.h.command, VS_HC_DMA_READ);
	CHECK_EQ(vs_timers_run(r.w, vs_now_ns() + 5000000000ull), 1); /* as if so much time had passed */
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	hrig_copy(&r, 0x1000, 0x1100, 32);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	CHECK_EQ(stats().dma_messages, 1);
	hrig_close(&r);
}

/* ---- coming and going ---------------------------------------------------------------------------------------------------------------------- */

static void a_client_comes_back_and_finds_the_function_as_it_was(uint32_t engine)
{
	int pair[2];

	open_client(engine);
	master();
	hrig_window(&r, 0x1000, PAGE, RW);
	hrig_write32(&r, EX_REGISTERS, EX_WORD, 42);
	hrig_copy(&r, 0x1000, 0x1100, 32); /* goes with a copy under way */
	/* One client at a time. */
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	CHECK_EQ(vs_hba_attach(r.hba, pair[1], 9), -EBUSY);
	close(pair[0]);
	CHECK_EQ(vs_hba_destroy(r.hba, ORDER), -EBUSY);
	hrig_disconnect(&r);
	CHECK(!vs_pins_busy(&r.windows[0].map->pins));
	CHECK_EQ(vs_hba_detach(r.hba, ORDER), 0);
	for (uint32_t want = r.ndone + 1; r.ndone < want; )
		hrig_turn(&r);
	CHECK_EQ(r.err, -ENOTCONN);
	hrig_connect(&r, true);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_WORD), 42);
	CHECK_EQ(hrig_read32(&r, EX_REGISTERS, EX_STATUS), EX_FAULT);
	hrig_close(&r);
}

static void what_cannot_be_made_is_refused(uint32_t engine)
{
	struct vs_hba_region_info info;
	vs_hba *other;

	hrig_open(&r, engine);
	CHECK_EQ(vs_hba_create(r.core, &(struct vs_hba_params){ .chip = 99 }, &other), -EINVAL);
	CHECK_EQ(vs_hba_create(r.core, &(struct vs_hba_params){ .chip = VS_HBA_EXERCISER, .worker = 1 }, &other), -EINVAL);
	CHECK_EQ(vs_hba_open(r.hba, 0, ORDER), -EINVAL);
	CHECK_EQ(vs_hba_region_info(r.hba, VS_HBA_REGIONS, &info), -EINVAL);
	CHECK_EQ(vs_hba_region_info(r.hba, EX_MEMORY, &info), 0);
	CHECK(info.size == 8192 && info.fd >= 0 && info.flags == (VS_HBA_REGION_READ | VS_HBA_REGION_WRITE | VS_HBA_REGION_MMAP));
	/* What can be mapped is the same memory, and cannot be taken from under us. */
	CHECK_EQ(ftruncate(info.fd, 0), -1);
	hrig_close(&r);
}

int main(void)
{
	static void (*const tests[])(uint32_t) = {
		regions_are_read_and_written, posted_writes_are_done_before_what_follows, many_writes_in_one_message,
		configuration_space_is_that_of_a_pci_function, a_message_may_come_byte_by_byte, a_broken_stream_ends_the_client,
		what_python_answers_keeps_the_order, a_flood_behind_python_is_held_up, a_client_that_does_not_read_holds_up_itself,
		intx_masks_itself_and_is_told_again, interrupts_that_do_not_exist_are_refused, mapped_memory_is_copied_in_place,
		windows_that_cannot_be_are_refused, memory_without_a_descriptor_goes_by_messages, an_answer_that_is_none_is_a_fault,
		a_client_that_never_answers_is_asked_once, a_client_comes_back_and_finds_the_function_as_it_was, what_cannot_be_made_is_refused,
	};

	alarm(600);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		tests[i](VS_ENGINE_EPOLL);
		if (!vs_engine_why_not(VS_ENGINE_URING))
			tests[i](VS_ENGINE_URING);
	}
	return 0;
}
