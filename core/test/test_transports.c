// SPDX-License-Identifier: Apache-2.0
/*
 * The core under three transports at once: virtio rings on two workers, a socket with buffers of its own, and a chip that fetches commands from
 * guest memory by itself. One LU, one nexus each. What happens to them under load is for the stress programs.
 */
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "initiators.h"
#include "task.h"
#include "vdev.h"
#include "gen/tables.h"

enum { WORKERS = 2, HELD = 16, CREDIT = 2, PORT = 100, SETUP = 1, TMF = 2, MAPPED = 3, CLOSED = 4, COOKIES = 5, RING_A = 0, RING_B = 1, SOCKET = 2, CHIP = 3 };

struct rig {
	vs_core *core;
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus[NEXUSES];
	vs_vdev *vdev;
	struct vs_guest guest;
	vs_memmap *map;
	struct socket_port socket;
	struct chip chip;
	struct initiator initiators[INITIATORS];
	uint8_t local[DEPTH][2][DATA_MAX]; /* the socket's data */
	vs_task *held[HELD];
	int nheld;
	int done[COOKIES];
	uint64_t matched;
};

static void pump(struct rig *r)
{
	struct vs_upcall ups[8];
	struct vs_task_info infos[8];
	int n = vs_core_drain(r->core, ups, infos, 8);

	for (int i = 0; i < n; i++)
		if (ups[i].kind == VS_UP_TASK) {
			CHECK(r->nheld < HELD);
			r->held[r->nheld++] = ups[i].task;
		} else if (ups[i].kind == VS_UP_DONE) {
			CHECK_EQ(ups[i].err, 0);
			r->done[ups[i].cookie]++;
			if (ups[i].cookie == TMF)
				r->matched += ups[i].aux;
		}
	if (!n)
		usleep(50);
}

static void until(struct rig *r, const int *count, int n)
{
	for (uint64_t end = vs_now_ns() + 10000000000ull; *count < n; pump(r))
		CHECK(vs_now_ns() < end);
	CHECK_EQ(*count, n);
}

static void open_initiator(struct rig *r, uint32_t who)
{
	struct initiator *i = &r->initiators[who];

	i->index = who;
	i->guest = &r->guest;
	i->tag = (uint64_t)who << TAG_INITIATOR_SHIFT;
	for (int n = 0; n < DEPTH; n++) {
		struct command *c = &i->commands[n];

		c->out_addr = vs_guest_alloc(&r->guest, DATA_MAX, 8);
		c->in_addr = vs_guest_alloc(&r->guest, DATA_MAX, 8);
		c->request_addr = vs_guest_alloc(&r->guest, REQUEST_BYTES, 8);
		c->response_addr = vs_guest_alloc(&r->guest, RESPONSE_BYTES, 8);
		CHECK(c->response_addr);
		c->out = who == SOCKET ? r->local[n][0] : vs_guest_ptr(&r->guest, c->out_addr);
		c->in = who == SOCKET ? r->local[n][1] : vs_guest_ptr(&r->guest, c->in_addr);
	}
}

static void open_ring(struct rig *r, uint32_t who)
{
	struct initiator *i = &r->initiators[who];
	struct vs_queue_params p;

	i->wiring = &ring_wiring;
	CHECK_EQ(vs_driver_create(&r->guest, 64, VS_RING_VERSION_1, 0, &i->driver), 0);
	atomic_store(&i->kick_fd, -1);
	vs_driver_params(&i->driver, &p);
	p.worker = who;
	p.enabled = 1;
	CHECK_EQ(vs_queue_start(r->vdev, VS_QUEUE_REQUEST + who, &p, r->map, SETUP), 0);
}

static void open_rig(struct rig *r)
{
	struct vs_config config = { .nworkers = WORKERS, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_lu_params lu = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .unmap = 1, .cookie = 1 };
	struct vs_vdev_params vdev = { .cookie = PORT, .num_queues = 4, .cdb_size = 32, .sense_size = 96, .credit = CREDIT };
	struct vs_lun_entry lun = { 0 };
	uint64_t memory;
	int pair[2];

	memset(r, 0, sizeof(*r));
	CHECK_EQ(vs_core_create(&config, &r->core), 0);
	CHECK_EQ(vs_core_start(r->core), 0);
	CHECK_EQ(vs_store_memory(r->core, BLOCKS * BLOCK, 0, &r->store, NULL, 0), 0);
	CHECK_EQ(vs_lu_create(r->core, &lu, r->store, &r->lu), 0);
	for (uint32_t n = 0; n < NEXUSES; n++)
		CHECK_EQ(vs_nexus_create(r->core, r->lu, n + 1, &r->nexus[n]), 0);
	CHECK_EQ(vs_guest_create(1 << 19, 8, &r->guest), 0);
	CHECK_EQ(vs_memmap_create(r->core, r->guest.regions, r->guest.nregions, NULL, 1, &r->map), 0);
	memory = vs_guest_alloc(&r->guest, sizeof(struct chip_memory), 64);
	for (uint32_t who = 0; who < INITIATORS; who++)
		open_initiator(r, who);
	CHECK_EQ(vs_vdev_create(r->core, &vdev, &r->vdev), 0);
	lun.nexus = r->nexus[0];
	CHECK_EQ(vs_vdev_set_luns(r->vdev, &lun, 1, SETUP), 0);
	open_ring(r, RING_A);
	open_ring(r, RING_B);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	r->initiators[SOCKET].wiring = &socket_wiring;
	r->initiators[SOCKET].fd = pair[0];
	CHECK_EQ(socket_port_open(&r->socket, r->core, 0, r->nexus[1], PORT + 1, CREDIT, pair[1], SETUP), 0);
	r->initiators[CHIP].wiring = &chip_wiring;
	r->initiators[CHIP].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	r->initiators[CHIP].chip = vs_guest_ptr(&r->guest, memory);
	CHECK_EQ(chip_open(&r->chip, r->core, 1, r->nexus[2], r->map, memory, PORT + 2, CREDIT, dup(r->initiators[CHIP].fd), SETUP), 0);
	until(r, &r->done[SETUP], 5);
}

static void close_rig(struct rig *r)
{
	CHECK_EQ(r->socket.credit.left, CREDIT);
	CHECK_EQ(r->chip.credit.left, CREDIT);
	CHECK_EQ(r->vdev->credit.left, CREDIT);
	socket_port_close(&r->socket, CLOSED);
	chip_close(&r->chip, CLOSED);
	vs_queue_stop(r->vdev, VS_QUEUE_REQUEST, CLOSED);
	vs_queue_stop(r->vdev, VS_QUEUE_REQUEST + 1, CLOSED);
	until(r, &r->done[CLOSED], 4);
	vs_driver_destroy(&r->initiators[RING_A].driver);
	vs_driver_destroy(&r->initiators[RING_B].driver);
	CHECK(!vs_pins_busy(vs_memmap_pins(r->map)) && !vs_pins_busy(vs_lu_pins(r->lu)));
	vs_vdev_destroy(r->vdev);
	for (uint32_t n = 0; n < NEXUSES; n++) {
		CHECK(!vs_pins_busy(vs_nexus_pins(r->nexus[n])));
		vs_nexus_destroy(r->nexus[n]);
	}
	vs_lu_destroy(r->lu);
	vs_store_destroy(r->store);
	vs_memmap_destroy(r->map);
	vs_core_destroy(r->core);
	vs_guest_destroy(&r->guest);
	close(r->initiators[SOCKET].fd);
	close(r->initiators[CHIP].fd);
}

static struct command *start(struct rig *r, uint32_t who, uint8_t opcode, uint32_t block, uint32_t blocks, uint32_t out, uint32_t in)
{
	struct initiator *i = &r->initiators[who];
	struct command *c = i->commands;

	while (c->kind != NONE)
		CHECK(++c < i->commands + DEPTH);
	c->kind = out ? WRITE : READ;
	c->tag = ++i->tag;
	c->out_length = out;
	c->in_length = in;
	memset(c->cdb, 0, sizeof(c->cdb));
	c->cdb[0] = opcode;
	c->cdb[5] = (uint8_t)block;
	c->cdb[8] = (uint8_t)blocks;
	CHECK(i->wiring->send(i, c));
	return c;
}

/* Of whichever command ends next. */
static struct command *end(struct rig *r, uint32_t who)
{
	struct initiator *i = &r->initiators[who];
	uint64_t late = vs_now_ns() + 10000000000ull;
	struct command *c;

	while (!(c = i->wiring->receive(i))) {
		CHECK(vs_now_ns() < late);
		pump(r);
	}
	c->kind = NONE;
	return c;
}

static void write_blocks(struct rig *r, uint32_t who, uint32_t block, uint32_t blocks, uint8_t fill)
{
	struct command *c = r->initiators[who].commands;

	memset(c->out, fill, blocks * BLOCK);
	c = start(r, who, 0x2a, block, blocks, blocks * BLOCK, 0);
	CHECK_EQ(end(r, who), c);
	CHECK(c->status == VS_STATUS_GOOD && c->response == VS_RESP_OK && c->residual == 0);
}

static void read_blocks(struct rig *r, uint32_t who, uint32_t block, uint32_t blocks, uint8_t want)
{
	struct command *c = start(r, who, 0x28, block, blocks, 0, blocks * BLOCK);

	CHECK_EQ(end(r, who), c);
	CHECK(c->status == VS_STATUS_GOOD && c->response == VS_RESP_OK && c->residual == 0);
	for (uint32_t n = 0; n < blocks * BLOCK; n++)
		CHECK_EQ(c->in[n], want);
}

static void hold(struct rig *r) { vs_gate_close(r->core, r->lu, NULL, VS_GATE_HOLD); }

static void hand_back(struct rig *r)
{
	for (int n = 0; n < r->nheld; n++) {
		struct vs_result result = { .task = r->held[n], .verdict = VS_VERDICT_EXECUTE };

		vs_core_post(r->core, &result, 1, NULL, 0);
	}
	r->nheld = 0;
}

/* What is handed back makes room for others to come up. */
static void release(struct rig *r)
{
	hand_back(r);
	while (vs_gate_open(r->core, r->lu, NULL, VS_GATE_HOLD)) {
		pump(r);
		hand_back(r);
	}
}

/* ---- the tests --------------------------------------------------------------------------------------------------------------------------- */

static void what_one_writes_all_read(void)
{
	struct rig r;

	open_rig(&r);
	for (uint32_t writer = 0; writer < INITIATORS; writer++) {
		write_blocks(&r, writer, 4 * writer, 4, (uint8_t)('a' + writer));
		for (uint32_t reader = 0; reader < INITIATORS; reader++)
			read_blocks(&r, reader, 4 * writer, 4, (uint8_t)('a' + writer));
	}
	close_rig(&r);
}

static void a_short_buffer_cuts_the_transfer_on_the_socket_only(void)
{
	struct command *c;
	struct rig r;

	open_rig(&r);
	write_blocks(&r, RING_A, 0, 2, 'x');
	memset(r.local, 0, sizeof(r.local));
	c = start(&r, SOCKET, 0x28, 0, 2, 0, 100);
	CHECK_EQ(end(&r, SOCKET), c);
	CHECK(c->status == VS_STATUS_GOOD && c->response == VS_RESP_OK);
	CHECK(c->in[99] == 'x' && c->in[100] == 0);
	c = start(&r, SOCKET, 0x28, 0, 1, 0, BLOCK + 24); /* a buffer that is too long is left over */
	CHECK_EQ(end(&r, SOCKET), c);
	CHECK_EQ(c->residual, 24);
	for (uint32_t who = 0; who < INITIATORS; who++) {
		if (who == SOCKET)
			continue;
		c = start(&r, who, 0x28, 0, 2, 0, 104);
		CHECK_EQ(end(&r, who), c);
		CHECK_EQ(c->response, VS_RESP_OVERRUN);
	}
	close_rig(&r);
}

static void without_credit_the_socket_says_task_set_full_and_the_others_wait(void)
{
	int full = 0, good = 0;
	struct rig r;

	open_rig(&r);
	hold(&r);
	for (uint32_t who = 0; who < INITIATORS; who++)
		for (int n = 0; n < CREDIT + 2; n++) /* each its own block: writes of one block at once are a race that they may have */
			start(&r, who, 0x2a, 8 + who, 1, BLOCK, 0);
	/* The rings are one device, and share its credit. */
	until(&r, &r.nheld, 3 * CREDIT);
	for (int n = 0; n < 2; n++)
		full += end(&r, SOCKET)->status == VS_STATUS_TASK_SET_FULL;
	CHECK_EQ(full, 2);
	for (int n = 0; n < 20; n++)
		pump(&r);
	CHECK_EQ(r.nheld, 3 * CREDIT);
	CHECK(atomic_load(&r.chip.starved));
	/* With the gate open they need no credit. */
	release(&r);
	for (uint32_t who = 0; who < INITIATORS; who++)
		for (int n = 0; n < CREDIT + (who == SOCKET ? 0 : 2); n++)
			good += end(&r, who)->status == VS_STATUS_GOOD;
	CHECK_EQ(good, 3 * (CREDIT + 2) + CREDIT);
	close_rig(&r);
}

/* The chip has fetched a third command and waits for credit with it; a fourth is still in its ring. */
static void an_abort_takes_back_what_the_chip_has_only_fetched(void)
{
	struct vs_tmf f = { .match = VS_TMF_NEXUS, .action = VS_TMF_ABORT, .response = VS_RESP_ABORTED, .cookie = TMF };
	struct command *third;
	struct rig r;

	open_rig(&r);
	hold(&r);
	start(&r, CHIP, 0x2a, 8, 1, BLOCK, 0);
	start(&r, CHIP, 0x2a, 8, 1, BLOCK, 0);
	until(&r, &r.nheld, CREDIT);
	third = start(&r, CHIP, 0x2a, 9, 1, BLOCK, 0);
	while (!atomic_load(&r.chip.starved))
		pump(&r);
	start(&r, CHIP, 0x2a, 10, 1, BLOCK, 0);
	f.nexus = r.nexus[2];
	f.lu = r.lu;
	vs_tmf_post(r.core, &f);
	until(&r, &r.done[TMF], WORKERS);
	CHECK_EQ(r.matched, 1); /* what the control plane holds is its own to end */
	CHECK_EQ(end(&r, CHIP), third);
	CHECK_EQ(third->response, VS_RESP_ABORTED);
	CHECK_EQ(atomic_load(&r.chip.withdrawn), 1);
	release(&r);
	for (int n = 0; n < 3; n++)
		CHECK_EQ(end(&r, CHIP)->status, VS_STATUS_GOOD);
	close_rig(&r);
}

static void commands_in_flight_keep_the_memory_that_they_were_fetched_from(void)
{
	vs_memmap *old;
	struct rig r;

	open_rig(&r);
	hold(&r);
	start(&r, RING_A, 0x2a, 8, 1, BLOCK, 0);
	start(&r, CHIP, 0x2a, 9, 1, BLOCK, 0);
	until(&r, &r.nheld, 2);
	old = r.map;
	CHECK_EQ(vs_memmap_create(r.core, r.guest.regions, r.guest.nregions, NULL, 2, &r.map), 0);
	CHECK_EQ(vs_queue_set_map(r.vdev, VS_QUEUE_REQUEST, r.map, MAPPED), 0);
	CHECK_EQ(vs_queue_set_map(r.vdev, VS_QUEUE_REQUEST + 1, r.map, MAPPED), 0);
	chip_set_map(&r.chip, r.map, MAPPED);
	until(&r, &r.done[MAPPED], 3);
	CHECK(vs_pins_busy(vs_memmap_pins(old)));
	release(&r);
	CHECK_EQ(end(&r, RING_A)->status, VS_STATUS_GOOD);
	CHECK_EQ(end(&r, CHIP)->status, VS_STATUS_GOOD);
	for (uint64_t late = vs_now_ns() + 10000000000ull; vs_pins_busy(vs_memmap_pins(old)); pump(&r))
		CHECK(vs_now_ns() < late);
	vs_memmap_destroy(old);
	write_blocks(&r, CHIP, 10, 2, 'n');
	read_blocks(&r, RING_B, 10, 2, 'n');
	close_rig(&r);
}

int main(void)
{
	what_one_writes_all_read();
	a_short_buffer_cuts_the_transfer_on_the_socket_only();
	without_credit_the_socket_says_task_set_full_and_the_others_wait();
	an_abort_takes_back_what_the_chip_has_only_fetched();
	commands_in_flight_keep_the_memory_that_they_were_fetched_from();
	return 0;
}
