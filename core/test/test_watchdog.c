// SPDX-License-Identifier: Apache-2.0
/*
 * Descriptors that a peer makes blocking under us: the first time costs a worker the watchdog's second, after that nothing hangs; and a worker
 * that hangs at the moment at which the core is taken down is freed, too. A hang ends the test by its alarm.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "vdev_rig.h"
#include "worker.h"

enum { Q = VS_QUEUE_REQUEST, PATIENCE_S = 60 };

static struct machine m;

/* A message that does what a hostile peer makes a worker do. */
struct hang { struct vs_msg msg; int fd; _Atomic bool begun; ssize_t result; int error; };

static void hang_run(struct vs_worker *w, struct vs_msg *msg)
{
	struct hang *h = vs_container_of(msg, struct hang, msg);
	uint64_t ignored;

	(void)w;
	atomic_store(&h->begun, true);
	h->result = read(h->fd, &ignored, sizeof(ignored));
	h->error = errno;
}

static void a_worker_that_hangs_is_stopped(uint32_t engine)
{
	struct vs_config config = { .nworkers = 2, .engine = engine, .io_threads = 1 };
	struct hang h = { .msg.run = hang_run, .fd = eventfd(0, EFD_CLOEXEC) };
	vs_core *core;

	CHECK(h.fd >= 0);
	CHECK_EQ(vs_core_create(&config, &core), 0);
	CHECK_EQ(vs_core_start(core), 0);
	vs_worker_send(&core->workers[1], &h.msg);
	while (!atomic_load(&h.begun))
		sched_yield();
	vs_core_destroy(core);
	CHECK_EQ(h.result, -1);
	CHECK_EQ(h.error, EINTR);
	close(h.fd);
}

/* The counter is at its end: a plain write waits for a reader. */
static void fill_and_block(int fd)
{
	uint64_t old;
	ssize_t r = read(fd, &old, sizeof(old));

	(void)r;
	CHECK_EQ(eventfd_write(fd, UINT64_MAX - 1), 0);
	CHECK_EQ(fcntl(fd, F_SETFL, 0), 0);
}

static void send_one(void)
{
	struct request r = { .in_length = 512 };
	struct response a;

	cdb_read10(r.cdb, 3, 1);
	machine_send(&m, Q, &r);
	machine_receive(&m, Q, &a);
	CHECK_EQ(a.response, VS_RESP_OK);
}

static void breaks(void)
{
	while (!machine_info(&m, Q).broken)
		sched_yield();
	CHECK_EQ(machine_info(&m, Q).error, -VS_RULE_NOTIFIER_BLOCKS);
	machine_stop(&m, Q);
	CHECK_EQ(fcntl(m.queues[Q].call_fd, F_SETFL, O_NONBLOCK), 0);
	CHECK_EQ(machine_start(&m, Q, true), 0);
}

/* Stopped again, so that every signal has been given. */
static void goes_on(void)
{
	for (int i = 0; i < 20; i++)
		send_one();
	machine_stop(&m, Q);
	CHECK_EQ(machine_info(&m, Q).error, 0);
	CHECK_EQ(machine_start(&m, Q, true), 0);
}

static void a_call_descriptor_hangs_a_worker_only_once(uint32_t engine)
{
	struct machine_options o = { .unit.threads = true, .unit.engine = engine, .features = VS_RING_VERSION_1, .kicks = true };
	uint64_t told = 0;
	int *call;

	machine_open(&m, &o);
	call = &m.queues[Q].call_fd;
	fill_and_block(*call);
	send_one();
	breaks();
	for (int i = 0; i < 3; i++) {
		fill_and_block(*call);
		if (engine == VS_ENGINE_URING) {
			goes_on();
			CHECK_EQ(fcntl(*call, F_SETFL, O_NONBLOCK), 0);
		} else { /* nothing else can signal it: it breaks before it hangs */
			send_one();
			breaks();
		}
	}
	/* Who behaves is heard and served like anybody else. */
	CHECK_EQ(read(*call, &told, sizeof(told)), (ssize_t)sizeof(told));
	send_one();
	machine_stop(&m, Q);
	CHECK_EQ(machine_info(&m, Q).error, 0);
	CHECK_EQ(read(*call, &told, sizeof(told)), (ssize_t)sizeof(told));
	CHECK(told >= 1 && told < 100);
	CHECK_EQ(machine_start(&m, Q, true), 0);
	machine_close(&m);
}

/* A pipe cannot be registered with an io_uring: what is left is to look before writing. */
static void a_full_pipe(uint32_t engine)
{
	struct machine_options o = { .unit.threads = true, .unit.engine = engine, .features = VS_RING_VERSION_1, .kicks = true };
	char page[4096] = { 0 };
	int fds[2];

	machine_open(&m, &o);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
		while (write(fds[1], page, sizeof(page)) > 0)
			;
		CHECK_EQ(vs_queue_set_call(m.vdev, Q, dup(fds[1]), 900), 0);
		unit_settle(m.unit);
		CHECK_EQ(fcntl(fds[1], F_SETFL, 0), 0);
		send_one();
		breaks();
		close(fds[0]);
		close(fds[1]);
	}
	machine_close(&m);
}

int main(void)
{
	alarm(PATIENCE_S);
	for (uint32_t engine = VS_ENGINE_URING; engine <= VS_ENGINE_EPOLL; engine++) {
		if (vs_engine_why_not(engine)) {
			printf("test_watchdog: without %s\n", vs_engine_why_not(engine));
			continue;
		}
		a_worker_that_hangs_is_stopped(engine);
		a_call_descriptor_hangs_a_worker_only_once(engine);
		a_full_pipe(engine);
	}
	return 0;
}
