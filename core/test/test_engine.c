/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One suite over both engines: what is promised in core.h holds for each. Every case starts a fresh engine and ends it, and no case may leave
 * a descriptor. The worker here is only the struct: no loop runs, the cases reap and wait by themselves.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "check.h"

#define MS 1000000ull

extern const struct vs_engine_ops vs_engine_uring_refusing; /* uring_refusing.c */

static const struct vs_engine_ops *engine;
static struct vs_worker *w;

static void start(void)
{
	w = aligned_alloc(_Alignof(struct vs_worker), sizeof(*w));
	CHECK(w);
	memset(w, 0, sizeof(*w));
	CHECK(engine->init(w) == 0);
}

static void stop(void)
{
	engine->fini(w);
	free(w->timers);
	free(w);
	w = NULL;
}

/* inherited: counts only those that a child would inherit. */
static int open_descriptors(bool inherited)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	int n = 0;

	CHECK(dir);
	while ((entry = readdir(dir))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.')
			continue;
		if (!inherited || !(fcntl(fd, F_GETFD) & FD_CLOEXEC))
			n++;
	}
	closedir(dir);
	return n;
}

/* One turn. Nothing here takes seconds: a wait that lasts until its timeout has missed its wake-up. */
static void turn(void)
{
	uint64_t began = vs_now_ns();

	if (!engine->pending(w))
		engine->wait(w, 10000 * (int64_t)MS);
	CHECK(vs_now_ns() - began < 9000 * MS);
	engine->reap(w);
}

#define UNTIL(cond)                                              \
	do {                                                     \
		uint64_t until_ = vs_now_ns() + 20000 * MS;      \
		while (!(cond)) {                                \
			CHECK(vs_now_ns() < until_);             \
			turn();                                  \
		}                                                \
	} while (0)

/* Runs what is there and a little more, to show that nothing else comes. */
static void settle(void)
{
	for (int i = 0; i < 10; i++) {
		engine->wait(w, 1 * (int64_t)MS);
		engine->reap(w);
	}
}

/* ---- sources ---------------------------------------------------------------------------------------------------------------------- */

struct kick {
	struct vs_source source; /* first: cast back */
	uint64_t total;
	uint32_t calls, removed, events;
	bool remove_self, add_again;
	struct kick *remove_other;
};

static void kick_ready(struct vs_worker *worker, struct vs_source *s, uint32_t events)
{
	struct kick *k = (struct kick *)s;
	uint64_t n = 0;

	CHECK(worker == w && !k->removed);
	k->calls++;
	k->events |= events;
	if (read(s->fd, &n, sizeof(n)) == sizeof(n))
		k->total += n;
	if (k->remove_self)
		engine->source_del(w, s);
	if (k->remove_other)
		engine->source_del(w, &k->remove_other->source);
	CHECK(!k->removed && !(k->remove_other && k->remove_other->removed));
}

static void kick_removed(struct vs_worker *worker, struct vs_source *s)
{
	struct kick *k = (struct kick *)s;

	CHECK(worker == w && !s->slot);
	k->removed++;
	if (k->add_again) {
		k->add_again = false;
		k->removed = 0;
		CHECK(engine->source_add(w, s) == 0);
		return;
	}
	close(s->fd);
	s->fd = -1;
}

static void kick_add(struct kick *k)
{
	memset(k, 0, sizeof(*k));
	k->source.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(k->source.fd >= 0);
	k->source.events = EPOLLIN;
	k->source.ready = kick_ready;
	k->source.removed = kick_removed;
	CHECK(engine->source_add(w, &k->source) == 0);
}

static void kick(struct kick *k, uint64_t n)
{
	CHECK(write(k->source.fd, &n, sizeof(n)) == sizeof(n));
}

static void kick_remove(struct kick *k)
{
	engine->source_del(w, &k->source);
	CHECK(!k->removed);
	UNTIL(k->removed);
	settle();
	CHECK(k->removed == 1);
}

static void kicks_arrive(void)
{
	struct kick k;

	kick_add(&k);
	for (uint64_t i = 1; i <= 1000; i++) {
		kick(&k, 3);
		UNTIL(k.total == 3 * i);
	}
	CHECK(k.calls >= 1000 && k.events == EPOLLIN);
	kick(&k, 5);
	kick(&k, 6);
	UNTIL(k.total == 3011);
	kick_remove(&k);
}

static void kick_before_add_is_seen(void)
{
	struct kick k = { .source = { .fd = eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC), .events = EPOLLIN, .ready = kick_ready, .removed = kick_removed } };

	CHECK(engine->source_add(w, &k.source) == 0);
	CHECK(engine->source_add(w, &k.source) == -EBUSY);
	UNTIL(k.total == 7);
	kick_remove(&k);
}

/* More than the submission queue has entries. */
static void many_sources(void)
{
	enum { N = 600 };
	static struct kick k[N];

	for (int i = 0; i < N; i++)
		kick_add(&k[i]);
	for (int round = 1; round <= 3; round++) {
		for (int i = 0; i < N; i++)
			kick(&k[i], 1);
		for (int i = 0; i < N; i++)
			UNTIL(k[i].total == (uint64_t)round);
	}
	for (int i = 0; i < N; i++)
		engine->source_del(w, &k[i].source);
	for (int i = 0; i < N; i++)
		UNTIL(k[i].removed == 1);
	settle();
	for (int i = 0; i < N; i++)
		CHECK(k[i].removed == 1);
}

static void removal_inside_ready(void)
{
	struct kick self, a, b;

	kick_add(&self);
	self.remove_self = true;
	kick(&self, 1);
	UNTIL(self.removed);
	CHECK(self.calls == 1);

	/* Both are ready at once, and whichever comes first removes the other. */
	kick_add(&a);
	kick_add(&b);
	settle();
	a.remove_other = &b;
	b.remove_other = &a;
	kick(&a, 1);
	kick(&b, 1);
	UNTIL(a.removed || b.removed);
	settle();
	CHECK(a.removed + b.removed == 1 && a.calls + b.calls == 1);
	if (!a.removed)
		kick_remove(&a);
	if (!b.removed)
		kick_remove(&b);
}

static void no_call_after_removal(void)
{
	struct kick k;

	/* Not even one reap between. */
	kick_add(&k);
	kick(&k, 1);
	engine->source_del(w, &k.source);
	engine->source_del(w, &k.source);
	kick(&k, 1);
	UNTIL(k.removed);
	settle();
	CHECK(k.calls == 0 && k.removed == 1);

	kick_add(&k);
	settle();
	kick(&k, 1);
	engine->source_del(w, &k.source);
	UNTIL(k.removed);
	settle();
	CHECK(k.calls == 0 && k.removed == 1);
}

static void re_add(void)
{
	struct kick k;

	kick_add(&k);
	for (int i = 0; i < 200; i++) {
		k.add_again = true;
		engine->source_del(w, &k.source);
		UNTIL(!k.add_again);
		kick(&k, 1);
		UNTIL(k.total == (uint64_t)i + 1);
	}
	kick_remove(&k);
}

static _Atomic bool storm_over;

static void *storm(void *arg)
{
	uint64_t one = 1;

	while (!atomic_load(&storm_over))
		if (write(*(int *)arg, &one, sizeof(one)) < 0)
			CHECK(errno == EAGAIN);
	return NULL;
}

/* A guest that kicks without pause cannot put off a removal. */
static void removal_in_a_storm(void)
{
	struct kick k, unused;
	pthread_t thread;
	int fd;

	kick_add(&unused);
	for (int i = 0; i < 20; i++) {
		kick_add(&k);
		fd = fcntl(k.source.fd, F_DUPFD_CLOEXEC, 0);
		atomic_store(&storm_over, false);
		CHECK(pthread_create(&thread, NULL, storm, &fd) == 0);
		UNTIL(k.calls >= 10);
		engine->source_del(w, &k.source);
		for (int turns = 0; !k.removed; turns++) {
			CHECK(turns < 1000);
			turn();
		}
		atomic_store(&storm_over, true);
		pthread_join(thread, NULL);
		close(fd);
	}
	kick_remove(&unused);
}

static void socket_ready(struct vs_worker *worker, struct vs_source *s, uint32_t events)
{
	struct kick *k = (struct kick *)s;
	char buffer[256];
	ssize_t n;

	(void)worker;
	k->calls++;
	k->events |= events;
	while ((n = read(s->fd, buffer, sizeof(buffer))) > 0)
		k->total += (uint64_t)n;
}

static void sockets_and_changed_events(void)
{
	struct kick k = { .source = { .events = EPOLLIN, .ready = socket_ready, .removed = kick_removed } };
	int fds[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
	k.source.fd = fds[0];
	CHECK(engine->source_add(w, &k.source) == 0);
	settle();
	CHECK(k.calls == 0);
	for (int i = 0; i < 50; i++) {
		k.events = 0;
		engine->source_events(w, &k.source, EPOLLIN | EPOLLOUT);
		UNTIL(k.events & EPOLLOUT);
		engine->source_events(w, &k.source, EPOLLIN);
		settle();
		k.events = 0;
		settle();
		CHECK(!(k.events & EPOLLOUT));
		CHECK(write(fds[1], "hello", 5) == 5);
		UNTIL(k.total == 5 * ((uint64_t)i + 1));
	}
	/* To and fro without a turn between. */
	engine->source_events(w, &k.source, EPOLLOUT);
	engine->source_events(w, &k.source, EPOLLIN);
	CHECK(write(fds[1], "x", 1) == 1);
	UNTIL(k.total == 251);
	close(fds[1]);
	UNTIL(k.events & (EPOLLHUP | EPOLLIN));
	engine->source_del(w, &k.source);
	UNTIL(k.removed);
}

static void once_ready(struct vs_worker *worker, struct vs_source *s, uint32_t events)
{
	struct kick *k = (struct kick *)s;

	(void)worker;
	k->calls++;
	k->events |= events;
}

static void once_add(struct kick *k, int fds[2])
{
	*k = (struct kick){ .source = { .events = EPOLLIN | EPOLLET, .once = true, .ready = once_ready, .removed = kick_removed } };
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
	k->source.fd = fds[0];
	CHECK(engine->source_add(w, &k->source) == 0);
}

/* What arrives after an arming is told, once is enough, and what nobody reads is not told again and again. */
static void told_once(void)
{
	for (int i = 0; i < 20; i++) {
		uint32_t calls;
		struct kick k;
		int fds[2];

		once_add(&k, fds);
		for (int n = 0; n < 5; n++) {
			k.events = 0;
			engine->source_arm(w, &k.source);
			engine->source_arm(w, &k.source);
			CHECK(write(fds[1], "hello", 5) == 5);
			UNTIL(k.events & EPOLLIN);
			CHECK(!(k.events & EPOLLOUT));
			settle();
			calls = k.calls;
			settle();
			CHECK(k.calls == calls);
		}
		engine->source_del(w, &k.source);
		engine->source_arm(w, &k.source);
		UNTIL(k.removed);
		close(fds[1]);
	}
}

/* More to be told of, asked for when it is armed and when it was told. */
static void told_once_of_more(void)
{
	for (int armed = 0; armed < 2; armed++) {
		struct kick k;
		int fds[2];

		once_add(&k, fds);
		settle();
		CHECK(k.calls == 0);
		if (!armed) {
			CHECK(write(fds[1], "x", 1) == 1);
			UNTIL(k.events & EPOLLIN);
		}
		engine->source_events(w, &k.source, EPOLLIN | EPOLLOUT | EPOLLET);
		engine->source_arm(w, &k.source);
		UNTIL(k.events & EPOLLOUT);
		engine->source_events(w, &k.source, EPOLLIN | EPOLLET);
		engine->source_del(w, &k.source);
		UNTIL(k.removed);
		close(fds[1]);
	}
}

static void bad_sources(void)
{
	struct vs_source s = { .fd = 1000000, .events = EPOLLIN, .ready = kick_ready, .removed = kick_removed };
	int fd = memfd_create("file", MFD_CLOEXEC);

	CHECK(engine->source_add(w, &s) == -EBADF);
	CHECK(!s.slot);
	s.fd = fd;
	CHECK(engine->source_add(w, &s) == -EPERM);
	CHECK(!s.slot);
	close(fd);
	/* Always readable: it would keep the worker busy for ever. */
	s.fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	CHECK(s.fd >= 0);
	CHECK(engine->source_add(w, &s) == -EPERM);
	CHECK(!s.slot);
	close(s.fd);
}

static void fini_lets_go_of_sources(void)
{
	struct kick k[3];

	for (int i = 0; i < 3; i++)
		kick_add(&k[i]);
	settle();
	engine->source_del(w, &k[0].source);
	engine->fini(w);
	CHECK(k[0].removed == 1 && k[1].removed == 0 && k[2].removed == 0);
	CHECK(!k[1].source.slot);
	kick(&k[1], 1); /* still ours */
	close(k[1].source.fd);
	close(k[2].source.fd);
	CHECK(engine->init(w) == 0);
}

/* ---- file operations -------------------------------------------------------------------------------------------------------------------- */

enum { BLOCK = 4096 };

static int temporary_file(void)
{
	char path[] = "/tmp/vs-test-engine-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	CHECK(fd >= 0);
	unlink(path);
	return fd;
}

struct file_op {
	struct vs_op op; /* first: cast back */
	struct iovec iov[3];
	uint8_t *buffer;
	uint64_t block;
	bool ended, submitting;
};

static uint32_t ended_ops;

static void op_done(struct vs_worker *worker, struct vs_op *op)
{
	struct file_op *f = (struct file_op *)op;

	CHECK(worker == w && !f->ended && !f->submitting);
	f->ended = true;
	ended_ops++;
}

static void submit(struct file_op *f)
{
	f->ended = false;
	f->op.done = op_done;
	f->submitting = true;
	engine->submit(w, &f->op);
	f->submitting = false;
	CHECK(!f->ended);
}

static ssize_t run_op(struct vs_op op)
{
	struct file_op f = { .op = op };

	submit(&f);
	CHECK(engine->in_flight(w) == 1 && engine->pending(w) | (op.kind == VS_OP_CALL));
	UNTIL(f.ended);
	CHECK(engine->in_flight(w) == 0);
	return f.op.result;
}

static void stamp(uint8_t *buffer, uint64_t block, uint32_t version)
{
	for (uint32_t i = 0; i < BLOCK; i++)
		buffer[i] = (uint8_t)(block * 31 + version * 7 + i * (block % 13 + 1));
}

static void aim(struct file_op *f, uint8_t kind, int fd)
{
	/* Odd pieces; every third op has a single buffer. */
	uint32_t first = 1 + (uint32_t)(f->block * 97 % 2000), second = f->block % 512;
	bool single = f->block % 3 == 0;

	f->iov[0] = (struct iovec){ f->buffer, single ? BLOCK : first };
	f->iov[1] = (struct iovec){ f->buffer + first, second };
	f->iov[2] = (struct iovec){ f->buffer + first + second, BLOCK - first - second };
	f->op = (struct vs_op){ .kind = kind, .fd = fd, .iov = f->iov, .niov = single ? 1 : 3, .offset = f->block * BLOCK };
}

static void file_integrity(void)
{
	enum { OPS = 10000, DEPTH = 64, BLOCKS = 1024 };
	static struct file_op ops[DEPTH];
	static uint32_t version[BLOCKS];
	static bool busy[BLOCKS];
	uint8_t expected[BLOCK];
	int fd = temporary_file(), started = 0, in_flight = 0;

	memset(version, 0, sizeof(version));
	memset(ops, 0, sizeof(ops));
	CHECK(ftruncate(fd, BLOCKS * BLOCK) == 0);
	srand(11);
	for (int i = 0; i < DEPTH; i++)
		CHECK((ops[i].buffer = malloc(BLOCK)));
	while (started < OPS || in_flight) {
		for (int i = 0; i < DEPTH; i++) {
			struct file_op *f = &ops[i];

			if (f->ended) {
				CHECK(f->op.result == BLOCK);
				if (f->op.kind == VS_OP_READV) {
					if (version[f->block])
						stamp(expected, f->block, version[f->block]);
					else
						memset(expected, 0, BLOCK);
					CHECK(memcmp(f->buffer, expected, BLOCK) == 0);
				}
				busy[f->block] = f->ended = false;
				f->op.kind = VS_OP_CALL;
				in_flight--;
				f->op.done = NULL;
			}
			if (started == OPS || f->op.done)
				continue;
			do {
				f->block = (uint64_t)rand() % BLOCKS;
			} while (busy[f->block]);
			busy[f->block] = true;
			if (rand() % 2) {
				stamp(f->buffer, f->block, ++version[f->block]);
				aim(f, VS_OP_WRITEV, fd);
				f->op.rw_flags = rand() % 64 ? 0 : RWF_DSYNC;
			} else {
				memset(f->buffer, 0xee, BLOCK);
				aim(f, VS_OP_READV, fd);
			}
			submit(f);
			started++;
			in_flight++;
		}
		CHECK(engine->in_flight(w) == (uint32_t)in_flight);
		if (in_flight)
			turn();
	}
	for (int i = 0; i < DEPTH; i++)
		free(ops[i].buffer);
	close(fd);
}

/* Far more than any queue takes; every one ends, once. */
static void more_than_the_queue_holds(void)
{
	enum { N = 20000 };
	struct file_op *ops = calloc(N, sizeof(*ops));
	uint8_t *buffers = calloc(N, 16), expected[16];
	int fd = temporary_file();

	CHECK(ops && buffers);
	for (int i = 0; i < 16; i++)
		expected[i] = (uint8_t)(i * 3 + 1);
	CHECK(pwrite(fd, expected, 16, 0) == 16);
	ended_ops = 0;
	for (int i = 0; i < N; i++) {
		ops[i].iov[0] = (struct iovec){ buffers + 16 * i, 16 };
		ops[i].op = (struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = ops[i].iov, .niov = 1 };
		submit(&ops[i]);
	}
	CHECK(engine->in_flight(w) == N);
	UNTIL(ended_ops == N);
	for (int i = 0; i < N; i++)
		CHECK(ops[i].ended && ops[i].op.result == 16 && memcmp(buffers + 16 * i, expected, 16) == 0);
	CHECK(engine->in_flight(w) == 0);
	free(ops);
	free(buffers);
	close(fd);
}

static void ends_and_errors(void)
{
	uint8_t buffer[BLOCK];
	struct iovec one = { buffer, BLOCK }, none = { NULL, BLOCK };
	int fd = temporary_file(), pipes[2];

	memset(buffer, 1, BLOCK);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_WRITEV, .fd = fd, .iov = &one, .niov = 1 }) == BLOCK);
	/* Short at the end of the file, nothing behind it. */
	CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = &one, .niov = 1, .offset = 4000 }) == 96);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = &one, .niov = 1, .offset = 1 << 20 }) == 0);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = -1, .iov = &one, .niov = 1 }) == -EBADF);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FDATASYNC, .fd = -1 }) == -EBADF);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FALLOCATE, .fd = -1, .length = 1 }) == -EBADF);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_WRITEV, .fd = fd, .iov = &none, .niov = 1 }) == -EFAULT);
	/* -1 is no address: it must not mean the file position. */
	CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = &one, .niov = 1, .offset = UINT64_MAX }) == -EINVAL);
	CHECK(run_op((struct vs_op){ .kind = 99, .fd = fd }) == -EINVAL);
	CHECK(pipe2(pipes, O_CLOEXEC) == 0);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FDATASYNC, .fd = pipes[0] }) == -EINVAL);
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
}

/* An op that the kernel refuses at once must not hold up its neighbours. */
static void errors_between_good_ones(void)
{
	enum { N = 200 };
	static struct file_op ops[N];
	uint8_t buffer[16];
	int fd = temporary_file();

	CHECK(pwrite(fd, "0123456789abcdef", 16, 0) == 16);
	memset(ops, 0, sizeof(ops));
	ended_ops = 0;
	for (int i = 0; i < N; i++) {
		ops[i].iov[0] = (struct iovec){ buffer, 16 };
		ops[i].op = (struct vs_op){ .kind = VS_OP_READV, .fd = i % 3 ? fd : -1, .iov = ops[i].iov, .niov = 1 };
		if (i % 7 == 3)
			ops[i].op.rw_flags = 0x40000000;
		submit(&ops[i]);
	}
	UNTIL(ended_ops == N);
	for (int i = 0; i < N; i++)
		CHECK(i % 3 == 0 ? ops[i].op.result == -EBADF : i % 7 == 3 ? ops[i].op.result < 0 : ops[i].op.result == 16);
	close(fd);
}

static void sync_and_fallocate(void)
{
	uint8_t buffer[3 * BLOCK], zeroes[BLOCK] = { 0 };
	struct iovec iov = { buffer, sizeof(buffer) };
	int fd = temporary_file();
	struct stat st;

	memset(buffer, 0xab, sizeof(buffer));
	CHECK(run_op((struct vs_op){ .kind = VS_OP_WRITEV, .fd = fd, .iov = &iov, .niov = 1 }) == sizeof(buffer));
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FDATASYNC, .fd = fd }) == 0);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FALLOCATE, .fd = fd, .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, .offset = BLOCK,
				     .length = BLOCK }) == 0);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = &iov, .niov = 1 }) == sizeof(buffer));
	CHECK(buffer[0] == 0xab && buffer[BLOCK - 1] == 0xab && buffer[2 * BLOCK] == 0xab);
	CHECK(memcmp(buffer + BLOCK, zeroes, BLOCK) == 0);
	/* Not every file system knows ZERO_RANGE: what it says must be what the system call says. */
	int plain = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 2 * BLOCK, 100) < 0 ? -errno : 0;

	CHECK(run_op((struct vs_op){ .kind = VS_OP_FALLOCATE, .fd = fd, .mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, .offset = 0,
				     .length = 100 }) == plain);
	if (plain == 0) {
		CHECK(run_op((struct vs_op){ .kind = VS_OP_READV, .fd = fd, .iov = &iov, .niov = 1 }) == sizeof(buffer));
		CHECK(memcmp(buffer, zeroes, 100) == 0 && buffer[100] == 0xab);
	}
	CHECK(run_op((struct vs_op){ .kind = VS_OP_FALLOCATE, .fd = fd, .offset = 0, .length = 10 * BLOCK }) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 10 * BLOCK);
	close(fd);
}

static pthread_t worker_thread;
static _Atomic uint32_t calls_running, calls_at_once;

static void blocking_call(struct vs_op *op)
{
	sigset_t mask;
	uint32_t now = atomic_fetch_add(&calls_running, 1) + 1, most = atomic_load(&calls_at_once);

	while (now > most && !atomic_compare_exchange_weak(&calls_at_once, &most, now))
		;
	CHECK(!pthread_equal(pthread_self(), worker_thread));
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	CHECK(sigismember(&mask, SIGTERM) && sigismember(&mask, SIGINT) && sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGBUS));
	usleep(op->length ? (useconds_t)op->length : 1);
	op->result = (ssize_t)op->offset;
	atomic_fetch_sub(&calls_running, 1);
}

static void calls(void)
{
	enum { N = 500 };
	static struct file_op ops[N];

	worker_thread = pthread_self();
	CHECK(run_op((struct vs_op){ .kind = VS_OP_CALL, .call = blocking_call, .offset = 42 }) == 42);
	memset(ops, 0, sizeof(ops));
	ended_ops = 0;
	atomic_store(&calls_at_once, 0);
	for (int i = 0; i < N; i++) {
		ops[i].op = (struct vs_op){ .kind = VS_OP_CALL, .call = blocking_call, .offset = (uint64_t)i, .length = i < 8 ? 20000 : 0 };
		submit(&ops[i]);
	}
	UNTIL(ended_ops == N);
	for (int i = 0; i < N; i++)
		CHECK(ops[i].op.result == i);
	CHECK(atomic_load(&calls_at_once) > 1);
}

/* A worker that sleeps without a timeout hears of each call that ends. */
static void calls_wake_the_sleeper(void)
{
	for (int i = 0; i < 300; i++) {
		struct file_op f = { .op = { .kind = VS_OP_CALL, .call = blocking_call, .offset = 1, .length = i % 3 ? 0 : 200 } };

		worker_thread = pthread_self();
		submit(&f);
		while (!f.ended) {
			engine->wait(w, -1);
			engine->reap(w);
		}
	}
}

/* fini waits for what is in flight. */
static void fini_ends_ops(void)
{
	static struct file_op ops[20];
	uint8_t buffer[16];
	int fd = temporary_file();

	worker_thread = pthread_self();
	CHECK(pwrite(fd, "0123456789abcdef", 16, 0) == 16);
	memset(ops, 0, sizeof(ops));
	ended_ops = 0;
	for (int i = 0; i < 20; i++) {
		ops[i].iov[0] = (struct iovec){ buffer, 16 };
		ops[i].op = (struct vs_op){ .kind = i % 2 ? VS_OP_CALL : VS_OP_READV, .call = blocking_call, .fd = fd, .iov = ops[i].iov, .niov = 1,
					    .offset = 0, .length = 5000 };
		submit(&ops[i]);
	}
	engine->fini(w);
	CHECK(ended_ops == 20);
	CHECK(engine->init(w) == 0);
	close(fd);
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------------------------- */

static void waits_as_long_as_told(void)
{
	static const uint64_t times[] = { 0, 100000, 5 * MS, 60 * MS };

	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		uint64_t began = vs_now_ns(), took;

		engine->wait(w, (int64_t)times[i]);
		took = vs_now_ns() - began;
		CHECK(took >= times[i] && took < times[i] + 1000 * MS);
		CHECK(engine->reap(w) == 0);
	}
}

static _Atomic int timer_fired;

static void timer_fires(struct vs_worker *worker, struct vs_timer *t)
{
	CHECK(worker == w && vs_now_ns() >= t->deadline_ns);
	timer_fired++;
}

static void timers_bound_the_wait(void)
{
	struct vs_timer t[3];

	timer_fired = 0;
	for (int i = 0; i < 3; i++) {
		vs_timer_init(&t[i], timer_fires);
		CHECK(vs_timer_set(w, &t[i], vs_now_ns() + (uint64_t)(30 - 10 * i) * MS) == 0);
	}
	while (timer_fired < 3) {
		uint64_t now = vs_now_ns(), next = vs_timers_next(w);

		engine->wait(w, next > now ? (int64_t)(next - now) : 0);
		engine->reap(w);
		vs_timers_run(w, vs_now_ns());
	}
	CHECK(vs_timers_next(w) == UINT64_MAX);
}

static _Atomic int signals_seen;

static void on_signal(int number)
{
	(void)number;
	signals_seen++;
}

static void *interrupt(void *arg)
{
	for (int i = 0; i < 10; i++) {
		usleep(5000);
		pthread_kill(*(pthread_t *)arg, SIGUSR1);
	}
	return NULL;
}

static void signals_do_not_shorten_a_wait(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t self = pthread_self(), thread;
	uint64_t began;

	sigaction(SIGUSR1, &action, NULL);
	signals_seen = 0;
	CHECK(pthread_create(&thread, NULL, interrupt, &self) == 0);
	began = vs_now_ns();
	engine->wait(w, 150 * (int64_t)MS);
	CHECK(vs_now_ns() - began >= 150 * MS);
	pthread_join(thread, NULL);
	CHECK(signals_seen > 0);
}

static void *kick_later(void *arg)
{
	uint64_t one = 1;

	usleep(1500000);
	CHECK(write(*(int *)arg, &one, sizeof(one)) == sizeof(one));
	return NULL;
}

/* With sources, helpers and an earlier load, a wait without end sleeps once, until the kick. */
static void idle_costs_nothing(void)
{
	struct kick k[8];
	struct rusage before, after;
	pthread_t thread;

	worker_thread = pthread_self();
	for (int i = 0; i < 8; i++)
		kick_add(&k[i]);
	CHECK(run_op((struct vs_op){ .kind = VS_OP_CALL, .call = blocking_call, .offset = 1 }) == 1);
	settle();
	CHECK(pthread_create(&thread, NULL, kick_later, &k[5].source.fd) == 0);
	usleep(50000);
	getrusage(RUSAGE_THREAD, &before);
	engine->wait(w, -1);
	getrusage(RUSAGE_THREAD, &after);
	engine->reap(w);
	/* One wait is one sleep; the second is for whatever the machine does beside. */
	CHECK(after.ru_nvcsw - before.ru_nvcsw <= 2);
	CHECK(after.ru_utime.tv_sec == before.ru_utime.tv_sec || after.ru_utime.tv_sec == before.ru_utime.tv_sec + 1);
	CHECK((after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 + after.ru_utime.tv_usec - before.ru_utime.tv_usec < 20000);
	CHECK(k[5].total == 1);
	pthread_join(thread, NULL);
	for (int i = 0; i < 8; i++)
		kick_remove(&k[i]);
}

/* A worker that spins sees a kick by pending() alone, without ever waiting. */
static void spinning_sees_kicks(void)
{
	struct kick k;
	uint64_t until = vs_now_ns() + 5000 * MS;

	kick_add(&k);
	settle();
	for (uint64_t i = 1; i <= 100; i++) {
		kick(&k, 1);
		while (k.total < i) {
			CHECK(vs_now_ns() < until);
			if (engine->pending(w))
				engine->reap(w);
		}
	}
	kick_remove(&k);
}

static void nothing_is_pending_when_idle(void)
{
	struct kick k;
	int pending = 0;

	kick_add(&k);
	settle();
	/* epoll has to look now and then. */
	for (int i = 0; i < 32; i++)
		pending += engine->pending(w);
	CHECK(pending == 0);
	kick_remove(&k);
}

/* ---- why not ----------------------------------------------------------------------------------------------------------------------------------- */

static void deny_io_uring(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* In a child, because a filter is for life and the answer is kept. */
static void denial_is_named(void)
{
	int status;
	pid_t child;

	fflush(NULL);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int before = open_descriptors(false);

		deny_io_uring();
		CHECK(vs_uring_why_not() && strcmp(vs_uring_why_not(), "io_uring_setup: Operation not permitted") == 0);
		CHECK(vs_uring_why_not() == vs_uring_why_not());
		w = aligned_alloc(_Alignof(struct vs_worker), sizeof(*w));
		CHECK(w);
		memset(w, 0, sizeof(*w));
		CHECK(vs_engine_uring.init(w) == -EPERM);
		CHECK(vs_engine_epoll.init(w) == 0);
		vs_engine_epoll.fini(w);
		free(w);
		CHECK(open_descriptors(false) == before);
		exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- the suite ------------------------------------------------------------------------------------------------------------------------------------ */

#define CASE(name) { #name, name }
static const struct { const char *name; void (*run)(void); } cases[] = {
	CASE(kicks_arrive), CASE(kick_before_add_is_seen), CASE(many_sources), CASE(removal_inside_ready), CASE(no_call_after_removal), CASE(re_add),
	CASE(removal_in_a_storm), CASE(sockets_and_changed_events), CASE(told_once), CASE(told_once_of_more), CASE(bad_sources),
	CASE(fini_lets_go_of_sources), CASE(file_integrity),
	CASE(more_than_the_queue_holds), CASE(ends_and_errors), CASE(errors_between_good_ones), CASE(sync_and_fallocate), CASE(calls),
	CASE(calls_wake_the_sleeper), CASE(fini_ends_ops), CASE(waits_as_long_as_told), CASE(timers_bound_the_wait),
	CASE(signals_do_not_shorten_a_wait), CASE(idle_costs_nothing), CASE(spinning_sees_kicks), CASE(nothing_is_pending_when_idle),
};

static void suite(const struct vs_engine_ops *which)
{
	int before = open_descriptors(false), inherited = open_descriptors(true);

	engine = which;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		printf("  %s: %s\n", engine->name, cases[i].name);
		fflush(stdout);
		start();
		cases[i].run();
		CHECK(open_descriptors(true) == inherited);
		stop();
		CHECK(open_descriptors(false) == before);
	}
}

static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

int main(void)
{
	int before;

	raise_descriptor_limit();
	denial_is_named();
	suite(&vs_engine_epoll);
	before = open_descriptors(false);
	if (vs_uring_why_not()) {
		/* Where io_uring is forbidden the product uses epoll, and so do we; the kernel being too old is a failure. */
		CHECK(strstr(vs_uring_why_not(), "Operation not permitted") || strstr(vs_uring_why_not(), "Function not implemented"));
		printf("SKIPPED io_uring: %s\n", vs_uring_why_not());
		return 0;
	}
	CHECK(open_descriptors(false) == before);
	suite(&vs_engine_uring);
	printf("  and over a kernel that refuses\n");
	suite(&vs_engine_uring_refusing);
	return 0;
}
