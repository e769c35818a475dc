// SPDX-License-Identifier: Apache-2.0
/*
 * The moments in which gate, epochs, pins and range locks could be got round, each brought about on purpose: two workers without threads, whose
 * turns this program takes itself, and a store that answers when told. What threads make of it is for the stress programs.
 */
#include "check.h"
#include "task.h"
#include "worker.h"
#include "gen/tables.h"

enum { BLOCK = 512, BLOCKS = 64, UPCALLS = 16, CDB = 32 };

struct rig {
	vs_core *core;
	struct vs_worker *w[2];
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus;
	struct vs_upcall ups[UPCALLS];
	int nups;
	uint8_t medium[BLOCKS * BLOCK];
	uint32_t ended; /* commands, so far */
};

struct command {
	struct vs_task task;
	struct rig *rig;
	uint8_t data[2 * BLOCK];
	struct iovec iov;
	uint32_t ended; /* as which of all; 0: not yet */
};

static void open_rig(struct rig *r, bool answered_by_hand)
{
	struct vs_config config = { .nworkers = 2, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_store_info info = { .size = BLOCKS * BLOCK, .io_align = 1 };
	struct vs_lu_params params = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .cookie = 1 };

	memset(r, 0, sizeof(*r));
	CHECK_EQ(vs_core_create(&config, &r->core), 0);
	for (int i = 0; i < 2; i++) {
		r->w[i] = &r->core->workers[i];
		CHECK_EQ(r->w[i]->engine->init(r->w[i]), 0);
	}
	if (answered_by_hand)
		CHECK_EQ(vs_store_python(r->core, &info, 7, &r->store, NULL, 0), 0);
	else
		CHECK_EQ(vs_store_memory(r->core, BLOCKS * BLOCK, 0, &r->store, NULL, 0), 0);
	CHECK_EQ(vs_lu_create(r->core, &params, r->store, &r->lu), 0);
	CHECK_EQ(vs_nexus_create(r->core, r->lu, 2, &r->nexus), 0);
}

static void close_rig(struct rig *r)
{
	CHECK(!vs_pins_busy(vs_lu_pins(r->lu)) && !vs_pins_busy(vs_nexus_pins(r->nexus)));
	vs_nexus_destroy(r->nexus);
	vs_lu_destroy(r->lu);
	vs_store_destroy(r->store);
	for (int i = 0; i < 2; i++)
		r->w[i]->engine->fini(r->w[i]);
	vs_core_destroy(r->core);
}

static void completed(struct vs_task *t)
{
	struct command *c = vs_container_of(t, struct command, task);

	c->ended = ++c->rig->ended;
}

static const struct vs_task_ops ops = { .name = "test", .complete = completed };

/* What a transport on worker `w` does with a command: no look at the inbox before. */
static void submit(struct rig *r, int w, struct command *c, uint8_t attribute, const uint8_t *cdb)
{
	bool out = cdb[0] != 0x28;

	c->rig = r;
	c->ended = 0;
	c->iov = (struct iovec){ c->data, cdb[0] == 0x89 ? 2 * BLOCK : BLOCK };
	c->task = (struct vs_task){ .ops = &ops, .w = r->w[w], .nexus = r->nexus, .attribute = attribute, .cdb_len = CDB };
	if (out) {
		c->task.out = &c->iov;
		c->task.nout = 1;
		c->task.out_length = c->iov.iov_len;
	} else {
		c->task.in = &c->iov;
		c->task.nin = 1;
		c->task.in_length = c->iov.iov_len;
	}
	memcpy(c->task.cdb, cdb, 16);
	CHECK_EQ(vs_task_submit(&c->task), 0);
}

static void read_block(struct rig *r, int w, struct command *c, uint8_t lba, uint8_t attribute)
{
	submit(r, w, c, attribute, (const uint8_t[16]){ 0x28, 0, 0, 0, 0, lba, 0, 0, 1 });
}

static void write_block(struct rig *r, int w, struct command *c, uint8_t lba, uint8_t attribute, uint8_t fill)
{
	memset(c->data, fill, BLOCK);
	submit(r, w, c, attribute, (const uint8_t[16]){ 0x2a, 0, 0, 0, 0, lba, 0, 0, 1 });
}

static void turns(struct rig *r, int n)
{
	while (n--) {
		vs_worker_turn(r->w[0]);
		vs_worker_turn(r->w[1]);
	}
}

/* What the workers have sent since the last time. */
static int drain(struct rig *r)
{
	static struct vs_task_info infos[UPCALLS];

	r->nups = vs_core_drain(r->core, r->ups, infos, UPCALLS);
	return r->nups;
}

static const struct vs_upcall *upcall(const struct rig *r, uint32_t kind)
{
	for (int i = 0; i < r->nups; i++)
		if (r->ups[i].kind == kind)
			return &r->ups[i];
	return NULL;
}

static void hand_back(struct rig *r, struct command *c)
{
	struct vs_result result = { .task = &c->task, .verdict = VS_VERDICT_EXECUTE };

	vs_core_post(r->core, &result, 1, NULL, 0);
}

/* The store's next io, which stays open; NULL: there is none. */
static vs_io *next_io(struct rig *r)
{
	const struct vs_upcall *up;

	drain(r);
	up = upcall(r, VS_UP_STORE_IO);
	return up ? up->io : NULL;
}

static void answer(struct rig *r, vs_io *io)
{
	struct vs_io_result result = { .io = io };
	struct vs_io_info info;

	vs_io_info(io, &info);
	if (info.op == VS_IO_WRITE)
		vs_io_gather(io, r->medium + info.offset, info.length);
	result.data_offset = info.offset;
	result.data_length = info.op == VS_IO_READ ? info.length : 0;
	vs_core_post_io(r->core, &result, 1, r->medium, sizeof(r->medium));
}

/* ---- gate ---------------------------------------------------------------------------------------------------------------------------- */

/* The gate is open again, but who waited behind it is still in the inbox. */
static void a_task_that_was_handed_back_goes_first(void)
{
	struct command old, young;
	struct rig r;

	open_rig(&r, false);
	vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	write_block(&r, 0, &old, 3, VS_ATTR_SIMPLE, 'x');
	CHECK_EQ(drain(&r), 1);
	hand_back(&r, &old);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_HOLD), 0);
	read_block(&r, 0, &young, 3, VS_ATTR_SIMPLE);
	turns(&r, 2);
	CHECK_EQ(old.ended, 1);
	CHECK_EQ(young.ended, 2);
	CHECK_EQ(young.data[0], 'x');
	close_rig(&r);
}

static void a_gate_stays_closed_while_a_task_is_on_its_way_to_python(vs_nexus *(*of)(struct rig *))
{
	struct command c;
	struct rig r;

	open_rig(&r, false);
	vs_gate_close(r.core, r.lu, of(&r), VS_GATE_HOLD);
	write_block(&r, 0, &c, 3, VS_ATTR_SIMPLE, 'x');
	CHECK_EQ(vs_gate_open(r.core, r.lu, of(&r), VS_GATE_HOLD), -EAGAIN);
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), VS_GATE_HOLD);
	CHECK_EQ(drain(&r), 1);
	hand_back(&r, &c);
	CHECK_EQ(vs_gate_open(r.core, r.lu, of(&r), VS_GATE_HOLD), 0);
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), 0);
	turns(&r, 1);
	CHECK_EQ(c.ended, 1);
	close_rig(&r);
}

static vs_nexus *of_unit(struct rig *r) { (void)r; return NULL; }
static vs_nexus *of_nexus(struct rig *r) { return r->nexus; }

/* Before anything else of this LU is tested: the next command may stand right behind it in the ring. */
static void an_ordered_task_closes_the_gate(uint8_t attribute, uint8_t control)
{
	struct command ordered, young;
	struct rig r;

	open_rig(&r, false);
	memset(ordered.data, 'x', BLOCK);
	submit(&r, 0, &ordered, attribute, (const uint8_t[16]){ 0x2a, 0, 0, 0, 0, 3, 0, 0, 1, control });
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), VS_GATE_ORDERED);
	read_block(&r, 1, &young, 3, VS_ATTR_SIMPLE);
	CHECK_EQ(young.ended, 0);
	CHECK_EQ(drain(&r), 2);
	hand_back(&r, &ordered);
	turns(&r, 1);
	hand_back(&r, &young);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_ORDERED), 0);
	turns(&r, 1);
	CHECK_EQ(young.ended, 2);
	close_rig(&r);
}

/* ---- faults ------------------------------------------------------------------------------------------------------------------------- */

static void set_queue_error(struct rig *r, bool on)
{
	struct vs_lu_params params = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .cookie = 1, .queue_error = on };

	vs_lu_update(r->lu, &params);
}

/* A read beyond the end. */
static void submit_bad(struct rig *r, struct command *c, uint8_t control)
{
	submit(r, 0, c, VS_ATTR_SIMPLE, (const uint8_t[16]){ 0x28, 0, 0, 0, 0, BLOCKS, 0, 0, 1, control });
}

static void answer_fault(struct rig *r, struct command *c, struct vs_result result)
{
	result.task = &c->task;
	vs_core_post(r->core, &result, 1, NULL, 0);
	turns(r, 1);
}

/* Nobody hears of it, and the next command does not run, before Python has had both. */
static void a_fault_is_held_and_closes_the_gate(bool queue_error, uint8_t control)
{
	struct command bad, young;
	struct vs_task_info info;
	struct rig r;

	open_rig(&r, false);
	set_queue_error(&r, queue_error);
	submit_bad(&r, &bad, control);
	CHECK_EQ(bad.ended, 0);
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), VS_GATE_ACA);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_ACA), -EAGAIN); /* Python has not seen it */
	read_block(&r, 1, &young, 3, VS_ATTR_SIMPLE);
	CHECK_EQ(young.ended, 0);
	CHECK_EQ(drain(&r), 2);
	vs_task_info(&bad.task, &info);
	CHECK(info.fault && info.layer == VS_LAYER_PYTHON);
	vs_task_info(&young.task, &info);
	CHECK(!info.fault);
	answer_fault(&r, &bad, (struct vs_result){ .verdict = VS_VERDICT_TELL });
	CHECK_EQ(bad.ended, 1);
	CHECK_EQ(bad.task.status, VS_STATUS_CHECK_CONDITION);
	CHECK_EQ(vs_be16(bad.task.sense + 12), VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
	hand_back(&r, &young);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_ACA), 0);
	turns(&r, 1);
	CHECK_EQ(young.ended, 2);
	close_rig(&r);
}

static void a_check_condition_that_is_nobodys_business_ends_at_once(void)
{
	struct command bad;
	struct rig r;

	open_rig(&r, false);
	submit_bad(&r, &bad, 0);
	CHECK_EQ(bad.ended, 1);
	CHECK_EQ(bad.task.status, VS_STATUS_CHECK_CONDITION);
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), 0);
	close_rig(&r);
}

/* By another nexus, with TAS: no sense data are left of what C had. */
static void a_fault_that_was_aborted_ends_so(void)
{
	struct command bad;
	struct rig r;

	open_rig(&r, false);
	submit_bad(&r, &bad, 4);
	CHECK_EQ(drain(&r), 1);
	answer_fault(&r, &bad, (struct vs_result){ .verdict = VS_VERDICT_COMPLETE, .status = VS_STATUS_TASK_ABORTED });
	CHECK_EQ(bad.ended, 1);
	CHECK_EQ(bad.task.status, VS_STATUS_TASK_ABORTED);
	CHECK_EQ(bad.task.sense_len, 0);
	submit_bad(&r, &bad, 4);
	CHECK_EQ(drain(&r), 1);
	answer_fault(&r, &bad, (struct vs_result){ .verdict = VS_VERDICT_ABORTED });
	CHECK_EQ(bad.ended, 2);
	CHECK_EQ(bad.task.response, VS_RESP_ABORTED);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_ACA), 0);
	close_rig(&r);
}

/* Who sees to the others waits until nothing is in flight, and this is not. */
static void a_fault_holds_no_fence_up(void)
{
	struct command bad;
	struct rig r;

	open_rig(&r, false);
	submit_bad(&r, &bad, 4);
	turns(&r, 1);
	CHECK(!vs_pins_busy(vs_lu_pins(r.lu)) && !vs_pins_busy(vs_nexus_pins(r.nexus)));
	drain(&r);
	answer_fault(&r, &bad, (struct vs_result){ .verdict = VS_VERDICT_TELL });
	CHECK_EQ(bad.ended, 1);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_ACA), 0);
	close_rig(&r);
}

/* ---- epochs and pins ----------------------------------------------------------------------------------------------------------------- */

static void an_epoch_is_reached_by_the_slowest_worker(void)
{
	uint64_t epoch;
	struct rig r;

	open_rig(&r, false);
	epoch = vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	CHECK(vs_epoch_reached(r.core) < epoch);
	vs_worker_turn(r.w[0]);
	CHECK(vs_epoch_reached(r.core) < epoch);
	vs_worker_turn(r.w[1]);
	CHECK_EQ(vs_epoch_reached(r.core), epoch);
	close_rig(&r);
}

static void a_command_pins_unit_and_nexus_until_it_has_ended(void)
{
	struct command c;
	struct rig r;
	vs_io *io;

	open_rig(&r, true);
	vs_pins_watch(vs_lu_pins(r.lu), 9, 1);
	write_block(&r, 1, &c, 3, VS_ATTR_SIMPLE, 'x');
	io = next_io(&r);
	CHECK(io);
	CHECK(vs_pins_busy(vs_lu_pins(r.lu)) && vs_pins_busy(vs_nexus_pins(r.nexus)));
	answer(&r, io);
	turns(&r, 1);
	CHECK_EQ(c.ended, 1);
	drain(&r);
	CHECK(upcall(&r, VS_UP_DRAINED) && upcall(&r, VS_UP_DRAINED)->cookie == 9);
	close_rig(&r);
}

/* ---- task management ----------------------------------------------------------------------------------------------------------------- */

static void an_abort_is_answered_when_the_task_has_ended(void)
{
	struct command c;
	struct rig r;
	vs_io *io;

	open_rig(&r, true);
	write_block(&r, 0, &c, 3, VS_ATTR_SIMPLE, 'x');
	io = next_io(&r);
	CHECK(io);
	vs_tmf_post(r.core, &(struct vs_tmf){ .lu = r.lu, .match = VS_TMF_LU, .action = VS_TMF_ABORT, .response = VS_RESP_RESET, .cookie = 5 });
	turns(&r, 2);
	drain(&r); /* the worker that has nothing answers at once */
	CHECK_EQ(r.nups, 1);
	CHECK(r.ups[0].kind == VS_UP_DONE && r.ups[0].worker == 1 && r.ups[0].aux == 0);
	answer(&r, io);
	turns(&r, 1);
	CHECK_EQ(c.ended, 1);
	CHECK_EQ(c.task.response, VS_RESP_RESET);
	drain(&r);
	CHECK(upcall(&r, VS_UP_DONE) && upcall(&r, VS_UP_DONE)->worker == 0 && upcall(&r, VS_UP_DONE)->aux == 1);
	close_rig(&r);
}

/* ---- range locks ---------------------------------------------------------------------------------------------------------------------- */

static void compare_and_write(struct rig *r, int w, struct command *c, uint8_t lba, uint8_t expected, uint8_t fill)
{
	memset(c->data, expected, BLOCK);
	memset(c->data + BLOCK, fill, BLOCK);
	submit(r, w, c, VS_ATTR_SIMPLE, (const uint8_t[16]){ 0x89, [9] = lba, [13] = 1 });
}

/* A write that was under way before anybody locked, on another worker, and unknown to the locks. */
static void an_exclusive_command_waits_for_plain_ones(void)
{
	struct command plain, exclusive;
	struct rig r;
	vs_io *io;

	open_rig(&r, true);
	write_block(&r, 1, &plain, 3, VS_ATTR_SIMPLE, 'x');
	io = next_io(&r);
	CHECK(io);
	compare_and_write(&r, 0, &exclusive, 3, 'x', 'y');
	turns(&r, 3);
	CHECK(!next_io(&r));
	answer(&r, io);
	turns(&r, 3);
	CHECK_EQ(plain.ended, 1);
	io = next_io(&r);
	CHECK(io);
	answer(&r, io); /* its read */
	turns(&r, 1);
	io = next_io(&r);
	CHECK(io);
	answer(&r, io); /* its write */
	turns(&r, 2);
	CHECK_EQ(exclusive.ended, 2);
	CHECK_EQ(exclusive.task.status, VS_STATUS_GOOD);
	CHECK_EQ(r.medium[3 * BLOCK], 'y');
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), 0);
	close_rig(&r);
}

static void plain_commands_wait_for_an_exclusive_one_on_their_blocks(void)
{
	struct command exclusive, same, other;
	struct rig r;
	vs_io *read, *io;

	open_rig(&r, true);
	memset(r.medium, 'x', sizeof(r.medium));
	compare_and_write(&r, 0, &exclusive, 3, 'x', 'y');
	turns(&r, 3);
	read = next_io(&r);
	CHECK(read);
	write_block(&r, 1, &same, 3, VS_ATTR_SIMPLE, 'z');
	CHECK(!next_io(&r));
	write_block(&r, 1, &other, 4, VS_ATTR_SIMPLE, 'z');
	io = next_io(&r);
	CHECK(io);
	answer(&r, io);
	answer(&r, read);
	turns(&r, 2);
	CHECK_EQ(other.ended, 1);
	io = next_io(&r);
	CHECK(io);
	answer(&r, io);
	turns(&r, 3);
	CHECK_EQ(exclusive.ended, 2);
	CHECK_EQ(r.medium[3 * BLOCK], 'y');
	io = next_io(&r);
	CHECK(io);
	answer(&r, io);
	turns(&r, 2);
	CHECK_EQ(same.ended, 3);
	CHECK_EQ(r.medium[3 * BLOCK], 'z');
	close_rig(&r);
}

/* ---- range locks: what may hold up an exclusive command ------------------------------------------------------------------------------ */

enum { INITIATORS = 4, ROUNDS_BEFORE = 4, ROUNDS_MAX = 64, OTHERS_MAX = 24, DETACHED = 16 };

/* Initiators that send again whatever has ended, to a store that has always something to do for each worker. */
struct stream {
	struct rig *rig;
	const uint8_t (*cdbs)[16]; /* by initiator */
	struct command commands[INITIATORS];
	vs_io *kept[2]; /* by worker: the youngest, for one round */
};

static void stream_round(struct stream *s, bool on)
{
	struct rig *r = s->rig;
	vs_io *old[2] = { s->kept[0], s->kept[1] };

	for (int i = 0; i < INITIATORS && on; i++)
		if (!s->commands[i].rig || s->commands[i].ended)
			submit(r, i % 2, &s->commands[i], VS_ATTR_SIMPLE, s->cdbs[i]);
	turns(r, 1);
	s->kept[0] = s->kept[1] = NULL;
	while (drain(r))
		for (int i = 0; i < r->nups; i++) {
			vs_io **kept;

			if (r->ups[i].kind != VS_UP_STORE_IO)
				continue;
			kept = &s->kept[r->ups[i].io->w->index];
			if (*kept)
				answer(r, *kept);
			*kept = r->ups[i].io;
		}
	for (int w = 0; w < 2; w++)
		if (old[w])
			answer(r, old[w]);
}

static void no_stream_starves_an_exclusive_command(const uint8_t (*cdbs)[16])
{
	struct command exclusive;
	struct rig r;
	struct stream s = { .rig = &r, .cdbs = cdbs };
	uint32_t before;
	int rounds;

	open_rig(&r, true);
	for (rounds = 0; rounds < ROUNDS_BEFORE; rounds++)
		stream_round(&s, true);
	before = r.ended;
	compare_and_write(&r, 0, &exclusive, 3, 0, 'y');
	for (rounds = 0; rounds < ROUNDS_MAX && !exclusive.ended; rounds++)
		stream_round(&s, true);
	CHECK(exclusive.ended);
	CHECK(exclusive.ended - before <= OTHERS_MAX);
	CHECK_EQ(exclusive.task.status, VS_STATUS_GOOD);
	for (rounds = 0; rounds < ROUNDS_BEFORE; rounds++)
		stream_round(&s, false);
	for (int i = 0; i < INITIATORS; i++)
		CHECK(s.commands[i].ended);
	CHECK_EQ(vs_gate_read(r.lu, r.nexus), 0);
	close_rig(&r);
}

static void streams(void)
{
	static const uint8_t sync[16] = { 0x35 }, sync_immed[16] = { 0x35, 2 }, same[16] = { 0x28, [5] = 3, [8] = 1 };
	static const uint8_t written[16] = { 0x2a, [5] = 7, [8] = 1 }, prefetch_immed[16] = { 0x34, 2, [5] = 3, [8] = 1 };
	const uint8_t *kinds[] = { sync, sync_immed, same, written, prefetch_immed };
	uint8_t cdbs[INITIATORS][16];

	for (unsigned kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		for (int i = 0; i < INITIATORS; i++)
			memcpy(cdbs[i], kinds[kind], 16);
		no_stream_starves_an_exclusive_command(cdbs);
	}
	for (int i = 0; i < INITIATORS; i++)
		memcpy(cdbs[i], kinds[i], 16);
	no_stream_starves_an_exclusive_command(cdbs);
}

/* The other worker has pinned the unit for a command that will see the bit and enter: it is no stranger. */
static void a_command_that_is_about_to_enter_holds_nobody_up(void)
{
	struct command first, second;
	struct rig r;
	vs_io *io;

	open_rig(&r, true);
	compare_and_write(&r, 0, &first, 3, 0, 'x');
	turns(&r, 2);
	io = next_io(&r);
	CHECK(io);
	compare_and_write(&r, 0, &second, 3, 'x', 'y');
	vs_pin(r.w[1], vs_lu_pins(r.lu));
	for (int i = 0; i < 4; i++) { /* two reads, two writes */
		answer(&r, io);
		for (int n = 0; n < 3; n++)
			vs_worker_turn(r.w[0]);
		io = next_io(&r);
		CHECK(io || i == 3);
	}
	CHECK_EQ(second.ended, 2);
	CHECK_EQ(r.medium[3 * BLOCK], 'y');
	vs_unpin(r.w[1], vs_lu_pins(r.lu));
	close_rig(&r);
}

/* It was the only one to wait at its unit, which is removed then. Others may wait after that. */
static void an_exclusive_command_that_was_aborted_is_not_waited_for(void)
{
	struct vs_lu_params params = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .cookie = 3 };
	struct command plain, exclusive;
	struct rig r;
	vs_nexus *kept;
	vs_lu *removed;
	vs_io *io;

	open_rig(&r, true);
	kept = r.nexus;
	CHECK_EQ(vs_lu_create(r.core, &params, r.store, &removed), 0);
	CHECK_EQ(vs_nexus_create(r.core, removed, 4, &r.nexus), 0);
	write_block(&r, 1, &plain, 3, VS_ATTR_SIMPLE, 'x');
	io = next_io(&r);
	CHECK(io);
	compare_and_write(&r, 0, &exclusive, 3, 'x', 'y');
	turns(&r, 2);
	vs_tmf_post(r.core, &(struct vs_tmf){ .lu = removed, .nexus = r.nexus, .match = VS_TMF_NEXUS, .action = VS_TMF_ABORT, .response = VS_RESP_RESET,
					      .cookie = 5 });
	turns(&r, 2);
	CHECK_EQ(exclusive.ended, 1);
	CHECK_EQ(exclusive.task.response, VS_RESP_RESET);
	answer(&r, io);
	turns(&r, 2);
	CHECK_EQ(plain.ended, 2);
	CHECK_EQ(vs_gate_read(removed, r.nexus), 0);
	vs_nexus_destroy(r.nexus);
	vs_lu_destroy(removed);
	r.nexus = kept;
	drain(&r);
	compare_and_write(&r, 0, &exclusive, 3, 'z', 'y');
	turns(&r, 3);
	io = next_io(&r);
	CHECK(io);
	answer(&r, io);
	turns(&r, 2);
	CHECK_EQ(exclusive.ended, 3);
	CHECK_EQ(exclusive.task.status, VS_STATUS_CHECK_CONDITION);
	close_rig(&r);
}

/* IMMED: status at once, while the store works. An initiator that is faster than the store has to wait in the end. */
static void operations_without_a_task_are_bounded(const uint8_t *cdb)
{
	struct command commands[DETACHED + 1];
	vs_io *open[DETACHED + 1];
	struct rig r;

	open_rig(&r, true);
	for (int i = 0; i <= DETACHED; i++) {
		submit(&r, 0, &commands[i], VS_ATTR_SIMPLE, cdb);
		CHECK_EQ(commands[i].ended != 0, i < DETACHED);
		open[i] = next_io(&r);
		CHECK(open[i]);
	}
	answer(&r, open[DETACHED]);
	turns(&r, 1);
	CHECK_EQ(commands[DETACHED].ended, DETACHED + 1);
	for (int i = 0; i < DETACHED; i++)
		answer(&r, open[i]);
	turns(&r, 1);
	submit(&r, 0, &commands[0], VS_ATTR_SIMPLE, cdb);
	CHECK_EQ(commands[0].ended, DETACHED + 2);
	open[0] = next_io(&r);
	CHECK(open[0]);
	answer(&r, open[0]);
	turns(&r, 1);
	close_rig(&r);
}

int main(void)
{
	a_task_that_was_handed_back_goes_first();
	a_gate_stays_closed_while_a_task_is_on_its_way_to_python(of_unit);
	a_gate_stays_closed_while_a_task_is_on_its_way_to_python(of_nexus);
	an_ordered_task_closes_the_gate(VS_ATTR_ORDERED, 0);
	an_ordered_task_closes_the_gate(VS_ATTR_HEAD_OF_QUEUE, 0);
	an_ordered_task_closes_the_gate(VS_ATTR_ACA, 0);
	a_fault_is_held_and_closes_the_gate(true, 0);
	a_fault_is_held_and_closes_the_gate(false, 4); /* NACA */
	a_check_condition_that_is_nobodys_business_ends_at_once();
	a_fault_that_was_aborted_ends_so();
	a_fault_holds_no_fence_up();
	an_epoch_is_reached_by_the_slowest_worker();
	a_command_pins_unit_and_nexus_until_it_has_ended();
	an_abort_is_answered_when_the_task_has_ended();
	an_exclusive_command_waits_for_plain_ones();
	plain_commands_wait_for_an_exclusive_one_on_their_blocks();
	streams();
	a_command_that_is_about_to_enter_holds_nobody_up();
	an_exclusive_command_that_was_aborted_is_not_waited_for();
	operations_without_a_task_are_bounded((const uint8_t[16]){ 0x35, 2 });
	operations_without_a_task_are_bounded((const uint8_t[16]){ 0x34, 2, [8] = 1 });
	return 0;
}
