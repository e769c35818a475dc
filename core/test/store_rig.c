/* SPDX-License-Identifier: Apache-2.0 */
/* The rig of store_rig.h. Everything that ends, ends as an upcall, so the test's thread waits in one place. */
#include <poll.h>
#include <stdlib.h>

#include "check.h"
#include "store_rig.h"

struct rig_engine rig_engine;

/* ---- the engine --------------------------------------------------------------------------------------------------------------------- */

static const struct vs_engine_ops *real_engine;
static struct vs_engine_ops spy;

static void answer_eintr(struct vs_op *op) { op->result = -EINTR; }
static void answer_eio(struct vs_op *op) { op->result = -EIO; }
static void answer_eopnotsupp(struct vs_op *op) { op->result = -EOPNOTSUPP; }

static bool take(_Atomic int *left)
{
	return atomic_load(left) > 0 && atomic_fetch_sub(left, 1) > 0;
}

static void spy_submit(struct vs_worker *w, struct vs_op *op)
{
	bool transfer = op->kind == VS_OP_READV || op->kind == VS_OP_WRITEV;
	void (*answer)(struct vs_op *) = NULL;

	if (op->kind == VS_OP_CALL) {
		real_engine->submit(w, op);
		return;
	}
	if (take(&rig_engine.interrupt)) {
		answer = answer_eintr;
	} else if (op->kind == VS_OP_FDATASYNC) {
		atomic_fetch_add(&rig_engine.syncs, 1);
		if (take(&rig_engine.fail_sync))
			answer = answer_eio;
	} else if (op->kind == VS_OP_FALLOCATE) {
		atomic_fetch_add(&rig_engine.fallocates, 1);
		if (rig_engine.refuse_fallocate)
			answer = answer_eopnotsupp;
	} else if (op->kind == VS_OP_WRITEV) {
		atomic_fetch_add(&rig_engine.writes, 1);
		if (op->rw_flags) {
			atomic_fetch_add(&rig_engine.dsync_writes, 1);
			if (take(&rig_engine.fail_dsync_write))
				answer = answer_eio;
		}
	} else {
		atomic_fetch_add(&rig_engine.reads, 1);
	}
	if (answer) {
		op->kind = VS_OP_CALL;
		op->call = answer;
	} else if (transfer && rig_engine.shorten && op->niov > 1 && vs_iov_length(op->iov, op->niov / 2)) {
		op->niov /= 2;
	}
	real_engine->submit(w, op);
}

void rig_start(struct rig *rig, uint32_t engine)
{
	struct vs_config config = { .nworkers = RIG_WORKERS, .engine = engine, .poll_mode = VS_POLL_ADAPTIVE, .spin_us = 20, .io_threads = 2 };
	uint32_t i;

	rig->engine = engine;
	CHECK(vs_core_create(&config, &rig->core) == 0);
	real_engine = rig->core->engine;
	spy = *real_engine;
	spy.submit = spy_submit;
	for (i = 0; i < RIG_WORKERS; i++)
		rig->core->workers[i].engine = &spy;
	CHECK(vs_core_start(rig->core) == 0);
}

void rig_stop(struct rig *rig)
{
	vs_core_destroy(rig->core);
	rig->core = NULL;
}

/* ---- shots -------------------------------------------------------------------------------------------------------------------------- */

static void shot_done(struct vs_io *io)
{
	struct shot *s = io->owner;

	vs_upcall_new(io->w->core, VS_UP_DONE, io->w->index, (uintptr_t)s, 0, 0, NULL);
}

static void shot_run(struct vs_worker *w, struct vs_msg *m)
{
	struct shot *s = vs_container_of(m, struct shot, msg);

	s->io.w = w;
	if (vs_store_submit(s->store, &s->io) == VS_SUBMIT_DONE)
		shot_done(&s->io);
	else if (s->cancel)
		vs_store_cancel(s->store, &s->io);
}

static void shot_cancel_run(struct vs_worker *w, struct vs_msg *m)
{
	struct shot *s = vs_container_of(m, struct shot, cancel_msg);

	(void)w;
	vs_store_cancel(s->store, &s->io);
}

void shot_set(struct shot *s, struct vs_store *store, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, uint8_t *data)
{
	bool has_data = op == VS_IO_READ || op == VS_IO_WRITE;

	memset(s, 0, sizeof(*s));
	s->msg.run = shot_run;
	s->store = store;
	s->data = data;
	s->iov = s->inline_iov;
	s->iov[0] = (struct iovec){ data, length };
	s->io.op = op;
	s->io.flags = flags;
	s->io.offset = offset;
	s->io.length = length;
	s->io.iov = s->iov;
	s->io.niov = has_data;
	s->io.done = shot_done;
	s->io.owner = s;
}

void shot_cut(struct shot *s, struct iovec *iov, int n, uint64_t unit)
{
	uint64_t at = 0, length = s->io.length;
	int i;

	if (s->io.niov == 0)
		return;
	for (i = 0; i < n; i++) {
		uint64_t left = length - at, piece = i == n - 1 ? left : rig_between(0, vs_min(left, 2 * length / (uint64_t)n)) / unit * unit;

		iov[i] = (struct iovec){ s->data + at, piece };
		at += piece;
	}
	s->iov = iov;
	s->io.iov = iov;
	s->io.niov = n;
}

void shot_send(struct rig *rig, struct shot *s, uint32_t worker)
{
	s->ended = false;
	vs_worker_send(&rig->core->workers[worker], &s->msg);
}

void shot_cancel(struct rig *rig, struct shot *s, uint32_t worker)
{
	s->cancel_msg.run = shot_cancel_run;
	vs_worker_send(&rig->core->workers[worker], &s->cancel_msg);
}

int32_t shot_wait(struct rig *rig, struct shot *s)
{
	int rounds = 0;

	while (!s->ended) {
		CHECK(rounds++ < 1000000);
		rig_pump(rig, 20000);
	}
	return s->io.err;
}

int32_t rig_io(struct rig *rig, struct vs_store *store, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, uint8_t *data)
{
	struct shot s;

	shot_set(&s, store, op, flags, offset, length, data);
	shot_send(rig, &s, 0);
	return shot_wait(rig, &s);
}

/* ---- the Python side ---------------------------------------------------------------------------------------------------------------- */

static void serve(struct rig *rig, struct rig_python *side, vs_io *io)
{
	struct vs_io_result result = { .io = io, .error = side->fail };
	struct vs_io_info info;

	vs_io_info(io, &info);
	CHECK(info.op == VS_IO_FLUSH || info.offset + info.length <= side->size);
	if (info.op == VS_IO_READ) {
		result.data_offset = info.offset;
		result.data_length = side->cheat ? info.length - 1 : info.length;
	} else if (info.op == VS_IO_WRITE) {
		CHECK(vs_io_gather(io, side->data + info.offset, info.length) == info.length);
	} else if (info.op != VS_IO_FLUSH) {
		memset(side->data + info.offset, 0, info.length);
	}
	vs_core_post_io(rig->core, &result, 1, side->data, side->size);
}

void rig_pump(struct rig *rig, int timeout_ms)
{
	struct pollfd fd = { .fd = vs_core_upcall_fd(rig->core), .events = POLLIN };
	struct vs_task_info infos[16];
	struct vs_upcall up[16];
	int i, n;

	while ((n = vs_core_drain(rig->core, up, infos, 16)) == 0)
		CHECK(poll(&fd, 1, timeout_ms) > 0); /* an io that never ends is a failed test */
	for (i = 0; i < n; i++) {
		if (up[i].kind == VS_UP_DONE)
			((struct shot *)(uintptr_t)up[i].cookie)->ended = true;
		else if (up[i].kind == VS_UP_STORE_IO)
			serve(rig, (struct rig_python *)(uintptr_t)up[i].cookie, up[i].io);
	}
}

struct vs_store *rig_python_open(struct rig *rig, struct rig_python *side)
{
	struct vs_store_info info = {
		.size = side->size, .io_align = 1, .fua = VS_CAP_NATIVE, .unmap = VS_CAP_NATIVE, .zero = VS_CAP_NATIVE, .unmapped_reads_zero = 1,
	};
	struct vs_store *store = NULL;
	char why[200];

	CHECK(vs_store_python(rig->core, &info, (uintptr_t)side, &store, why, sizeof(why)) == 0);
	return store;
}

/* ---- chance ------------------------------------------------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252ull;

uint64_t rig_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

uint64_t rig_between(uint64_t low, uint64_t high)
{
	return low + rig_random() % (high - low + 1);
}
