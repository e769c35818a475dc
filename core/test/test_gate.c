// SPDX-License-Identifier: Apache-2.0
/*
 * Order at the gate when several things arrive at a worker in one turn, what a fence may be sure of, and what the control thread is told. Two
 * workers without threads, whose turns this program takes itself. Moments around opening, range locks and aborts: test_gate_windows.c.
 */
#include <poll.h>

#include "check.h"
#include "task.h"
#include "worker.h"
#include "gen/tables.h"

enum { BLOCK = 512, BLOCKS = 64, UPCALLS = 16, COMMANDS = 8 };

struct command {
	struct vs_task task;
	struct rig *rig;
	struct vs_poller poller; /* a ring that holds this one command, until it is polled */
	uint8_t data[BLOCK];
	struct iovec iov;
	uint32_t ended; /* as which of all; 0: not yet */
};

struct rig {
	vs_core *core;
	struct vs_worker *w[2];
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus;
	struct vs_credit credit;
	uint32_t ended;
	struct vs_upcall ups[UPCALLS];
	struct vs_task_info infos[UPCALLS];
	struct command commands[COMMANDS];
};

static void open_rig(struct rig *r)
{
	struct vs_config config = { .nworkers = 2, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_lu_params params = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .cookie = 1 };

	memset(r, 0, sizeof(*r));
	CHECK_EQ(vs_core_create(&config, &r->core), 0);
	for (int i = 0; i < 2; i++) {
		r->w[i] = &r->core->workers[i];
		CHECK_EQ(r->w[i]->engine->init(r->w[i]), 0);
	}
	CHECK_EQ(vs_store_memory(r->core, BLOCKS * BLOCK, 0, &r->store, NULL, 0), 0);
	CHECK_EQ(vs_lu_create(r->core, &params, r->store, &r->lu), 0);
	CHECK_EQ(vs_nexus_create(r->core, r->lu, 2, &r->nexus), 0);
	vs_credit_init(&r->credit, r->core, 1);
}

static void close_rig(struct rig *r)
{
	for (int i = 0; i < 2; i++) /* a worker that had nothing to do with the test has had messages, too */
		while (vs_worker_turn(r->w[i]))
			;
	CHECK(!vs_pins_busy(vs_lu_pins(r->lu)) && !vs_pins_busy(vs_nexus_pins(r->nexus)));
	CHECK_EQ(r->credit.left, 1);
	CHECK(!vs_gate_read(r->lu, r->nexus));
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

	CHECK(!c->ended);
	c->ended = ++c->rig->ended;
}

static const struct vs_task_ops ops = { .name = "test", .complete = completed };

/* A write of block n as this command's tag. */
static struct command *prepare(struct rig *r, int n, bool credit)
{
	struct command *c = &r->commands[n];

	c->rig = r;
	c->iov = (struct iovec){ c->data, BLOCK };
	c->task = (struct vs_task){ .ops = &ops, .w = r->w[0], .nexus = r->nexus, .cdb_len = 32, .tag = (uint64_t)n, .out = &c->iov, .nout = 1,
				    .out_length = BLOCK, .credit = credit ? &r->credit : NULL };
	c->task.cdb[0] = 0x2a;
	c->task.cdb[5] = (uint8_t)n;
	c->task.cdb[8] = 1;
	return c;
}

static struct command *submit(struct rig *r, int n, bool credit)
{
	struct command *c = prepare(r, n, credit);

	CHECK_EQ(vs_task_submit(&c->task), 0);
	return c;
}

static int polled(struct vs_worker *w, struct vs_poller *p)
{
	struct command *c = vs_container_of(p, struct command, poller);

	(void)w;
	if (vs_list_empty(&p->link))
		return 0; /* taken */
	vs_list_del(&p->link);
	CHECK_EQ(vs_task_submit(&c->task), 0);
	return 1;
}

/* It stands in a ring of worker 0. */
static struct command *in_ring(struct rig *r, int n, bool credit)
{
	struct command *c = prepare(r, n, credit);

	c->poller = (struct vs_poller){ .poll = polled };
	vs_list_add_tail(&r->w[0]->pollers, &c->poller.link);
	return c;
}

static int drain(struct rig *r) { return vs_core_drain(r->core, r->ups, r->infos, UPCALLS); }

static void hand_back(struct rig *r, struct command *c, uint8_t verdict)
{
	struct vs_result result = { .task = &c->task, .verdict = verdict };

	vs_core_post(r->core, &result, 1, NULL, 0);
}

static void query(struct rig *r)
{
	vs_tmf_post(r->core, &(struct vs_tmf){ .lu = r->lu, .match = VS_TMF_LU, .action = VS_TMF_QUERY, .cookie = 5 });
}

/* The TMF takes the young one from its ring, before the message behind the TMF hands back the old one: the gate is open already. */
static void what_a_tmf_takes_from_a_ring_does_not_pass_what_is_handed_back_behind_it(void)
{
	struct command *old, *young;
	struct rig r;

	open_rig(&r);
	vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	old = submit(&r, 0, false);
	CHECK_EQ(drain(&r), 1);
	young = in_ring(&r, 1, false);
	query(&r);
	hand_back(&r, old, VS_VERDICT_EXECUTE);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_HOLD), 0);
	vs_worker_turn(r.w[0]);
	CHECK_EQ(old->ended, 1);
	CHECK_EQ(young->ended, 2);
	close_rig(&r);
}

static void what_a_tmf_takes_from_a_ring_does_not_pass_what_waits_for_the_inbox(void)
{
	struct command *old, *young;
	struct rig r;

	open_rig(&r);
	query(&r);
	old = submit(&r, 0, false); /* there is a message: it waits */
	CHECK_EQ(old->ended, 0);
	young = in_ring(&r, 1, false);
	vs_worker_turn(r.w[0]);
	CHECK_EQ(old->ended, 1);
	CHECK_EQ(young->ended, 2);
	close_rig(&r);
}

/* And it is not late for its abort: nothing of it reaches the store. */
static void what_a_tmf_takes_from_a_ring_is_aborted_before_it_runs(void)
{
	struct vs_store_stats before, after;
	struct command *c;
	struct rig r;

	open_rig(&r);
	vs_store_stats(r.store, &before);
	c = in_ring(&r, 1, false);
	vs_tmf_post(r.core, &(struct vs_tmf){ .lu = r.lu, .match = VS_TMF_LU, .action = VS_TMF_ABORT, .response = VS_RESP_RESET, .cookie = 5 });
	vs_worker_turn(r.w[0]);
	CHECK_EQ(c->ended, 1);
	CHECK_EQ(c->task.response, VS_RESP_RESET);
	vs_store_stats(r.store, &after);
	CHECK_EQ(after.ops[VS_IO_WRITE], before.ops[VS_IO_WRITE]);
	CHECK_EQ(drain(&r), 1);
	CHECK(r.ups[0].kind == VS_UP_DONE && r.ups[0].aux == 1);
	close_rig(&r);
}

/* A port without credit holds up none that has some. */
static void what_waited_for_the_inbox_needs_no_credit(void)
{
	struct command *first, *second, *other;
	struct rig r;

	open_rig(&r);
	vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	first = submit(&r, 0, true);
	CHECK_EQ(vs_task_submit(&prepare(&r, 1, true)->task), -EAGAIN);
	CHECK_EQ(drain(&r), 1);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_HOLD), 0);
	query(&r);
	second = submit(&r, 1, true); /* waits for the inbox ... */
	other = submit(&r, 2, false);
	vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	vs_worker_turn(r.w[0]); /* ... and is held now */
	vs_worker_turn(r.w[1]);
	drain(&r);
	CHECK_EQ(second->task.layer, VS_LAYER_PYTHON);
	CHECK_EQ(other->task.layer, VS_LAYER_PYTHON);
	hand_back(&r, first, VS_VERDICT_EXECUTE);
	hand_back(&r, second, VS_VERDICT_EXECUTE);
	hand_back(&r, other, VS_VERDICT_EXECUTE);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_HOLD), 0);
	vs_worker_turn(r.w[0]);
	CHECK_EQ(first->ended, 1);
	CHECK_EQ(second->ended, 2);
	CHECK_EQ(other->ended, 3);
	close_rig(&r);
}

struct probe { struct vs_msg msg; uint64_t reached; vs_core *core; };

static void probe_run(struct vs_worker *w, struct vs_msg *m)
{
	struct probe *p = vs_container_of(m, struct probe, msg);

	(void)w;
	p->reached = vs_epoch_reached(p->core);
}

/* A task that was handed back before the close does not see the gate: no fence may be over while it has not begun. */
static void an_epoch_is_told_when_the_messages_before_it_have_run(void)
{
	struct probe probe;
	uint64_t epoch;
	struct rig r;

	open_rig(&r);
	probe = (struct probe){ .msg.run = probe_run, .core = r.core };
	vs_worker_push(r.w[0], &probe.msg);
	epoch = vs_gate_close(r.core, r.lu, NULL, VS_GATE_HOLD);
	vs_worker_turn(r.w[1]);
	vs_worker_turn(r.w[0]);
	CHECK(probe.reached < epoch);
	CHECK_EQ(vs_epoch_reached(r.core), epoch);
	CHECK_EQ(vs_gate_open(r.core, r.lu, NULL, VS_GATE_HOLD), 0);
	close_rig(&r);
}

static bool readable(struct rig *r)
{
	struct pollfd p = { .fd = vs_core_upcall_fd(r->core), .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void the_descriptor_stays_readable_while_there_is_more(void)
{
	struct rig r;

	open_rig(&r);
	query(&r);
	query(&r);
	vs_worker_turn(r.w[0]);
	vs_worker_turn(r.w[1]);
	CHECK_EQ(vs_core_drain(r.core, r.ups, r.infos, 1), 1);
	CHECK(readable(&r));
	CHECK_EQ(drain(&r), 3);
	CHECK_EQ(drain(&r), 0);
	CHECK(!readable(&r));
	close_rig(&r);
}

/* What is no media command cannot be executed, whatever the control plane says. */
static void only_media_commands_are_executed(void)
{
	struct command *c;
	struct rig r;

	open_rig(&r);
	c = prepare(&r, 0, true);
	c->task.cdb[0] = 0x12;
	CHECK_EQ(vs_task_submit(&c->task), 0);
	CHECK_EQ(drain(&r), 1);
	hand_back(&r, c, VS_VERDICT_EXECUTE_NOTIFY);
	vs_worker_turn(r.w[0]);
	CHECK_EQ(c->task.response, VS_RESP_TARGET_FAILURE);
	CHECK_EQ(drain(&r), 1);
	CHECK_EQ(r.ups[0].kind, VS_UP_TASK_DONE);
	close_rig(&r);
}

int main(void)
{
	what_a_tmf_takes_from_a_ring_does_not_pass_what_is_handed_back_behind_it();
	what_a_tmf_takes_from_a_ring_does_not_pass_what_waits_for_the_inbox();
	what_a_tmf_takes_from_a_ring_is_aborted_before_it_runs();
	what_waited_for_the_inbox_needs_no_credit();
	an_epoch_is_told_when_the_messages_before_it_have_run();
	the_descriptor_stays_readable_while_there_is_more();
	only_media_commands_are_executed();
	return 0;
}
