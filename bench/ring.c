// SPDX-License-Identifier: Apache-2.0
/*
 * One measurement: a worker of the data plane serves random reads from a logical unit to a polled driver on another CPU, through a virtio-scsi
 * request queue as a guest would use it. It prints one JSON object. Which measurements are made, and how they are shown, is ring.py's.
 *
 * With --inline there is no second thread: driver and worker take turns, for callgrind and for counting instructions.
 */
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core.h"
#include "driver.h"
#include "vdev.h"
#include "worker.h"
#include "gen/tables.h"

enum { BLOCK = 512, HEADER = 51, RESPONSE = 108, CHECK_EVERY = 64, CLOCK_EVERY = 32, WINDOWS_MAX = 60000 };
static const double WINDOW = 1e-3, ON_CPU = 0.985; /* seconds; share */

struct options {
	bool memory, indirect, event_idx, packed, inflight, adaptive, huge_pages, inline_worker, check_all, misnumber;
	uint32_t depth, ring_size, length, driver_cpu, worker_cpu;
	uint64_t size, requests; /* bytes of the store; requests: stop after so many, 0: after seconds */
	double seconds;
};

struct slot { uint8_t *header, *response, *data; struct vs_driver_buffer buffers[3]; uint64_t lba; };

struct bench {
	struct options o;
	vs_core *core;
	struct vs_guest guest;
	struct vs_driver driver;
	vs_memmap *map;
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus;
	vs_vdev *vdev;
	vs_inflight *inflight;
	struct slot *slots;
	uint32_t *slot_of; /* by head */
	uint64_t random, submitted, completed, checked;
};

static void die(const char *what, int err)
{
	fprintf(stderr, "ring: %s: %s\n", what, err ? strerror(-err) : "wrong");
	exit(1);
}

static void must(const char *what, int err)
{
	if (err < 0)
		die(what, err);
}

static void pin_to(pid_t thread, uint32_t cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(thread, sizeof(set), &set))
		die("sched_setaffinity", -errno);
}

/* ---- what is measured ----------------------------------------------------------------------------------------------------------------- */

static void turn(struct bench *b)
{
	if (b->o.inline_worker)
		vs_worker_turn(&b->core->workers[0]);
}

static void wait_for(struct bench *b, uint64_t cookie)
{
	struct vs_upcall up;
	struct vs_task_info info;

	for (;;) {
		turn(b);
		while (vs_core_drain(b->core, &up, &info, 1)) {
			if (up.kind != VS_UP_DONE)
				die("an upcall that nobody asked for", 0);
			must("a message to the worker", up.err);
			if (up.cookie == cookie)
				return;
		}
	}
}

/* Every page is touched, and every 4096 bytes begin with their number. */
static void fill(struct bench *b)
{
	uint64_t chunk = 1 << 20;
	uint8_t *data = aligned_alloc(4096, chunk);

	if (!data)
		die("fill", -ENOMEM);
	memset(data, 0xa5, chunk);
	for (uint64_t at = 0; at < b->o.size; at += chunk) {
		struct iovec iov = { data, chunk };
		struct vs_io io = { .w = &b->core->workers[0], .op = VS_IO_WRITE, .offset = at, .length = chunk, .iov = &iov, .niov = 1 };

		for (uint64_t i = 0; i < chunk; i += 4096) {
			uint64_t number = (at + i) / 4096 + b->o.misnumber;

			memcpy(data + i, &number, 8);
		}
		/* No worker runs yet, so this thread may stand in for it. */
		if (vs_store_submit(b->store, &io) != VS_SUBMIT_DONE || io.err)
			die("fill", 0);
	}
	free(data);
}

static void make_unit(struct bench *b)
{
	struct vs_lu_params lu = { .num_blocks = b->o.size / BLOCK, .cookie = 1, .block_size = BLOCK, .write_cache = 1, .unmap = 1 };
	char why[200] = "";
	int err;

	if (b->o.memory)
		err = vs_store_memory(b->core, b->o.size, b->o.huge_pages, &b->store, why, sizeof(why));
	else
		err = vs_store_null(b->core, b->o.size, &b->store, why, sizeof(why));
	must(why, err);
	if (b->o.memory)
		fill(b);
	must("lu", vs_lu_create(b->core, &lu, b->store, &b->lu));
	must("nexus", vs_nexus_create(b->core, b->lu, 1, &b->nexus));
}

static void make_slots(struct bench *b)
{
	struct options *o = &b->o;
	uint64_t headers = vs_guest_alloc(&b->guest, 64 * (uint64_t)o->depth, 4096);
	uint64_t responses = vs_guest_alloc(&b->guest, 128 * (uint64_t)o->depth, 4096);
	uint64_t data = vs_guest_alloc(&b->guest, (uint64_t)o->length * o->depth, 4096);

	b->slots = calloc(o->depth, sizeof(*b->slots));
	b->slot_of = calloc(o->ring_size, sizeof(*b->slot_of));
	if (!headers || !responses || !data || !b->slots || !b->slot_of)
		die("guest memory", -ENOMEM);
	for (uint32_t i = 0; i < o->depth; i++) {
		struct slot *s = &b->slots[i];

		s->buffers[0] = (struct vs_driver_buffer){ headers + 64 * (uint64_t)i, HEADER };
		s->buffers[1] = (struct vs_driver_buffer){ responses + 128 * (uint64_t)i, RESPONSE };
		s->buffers[2] = (struct vs_driver_buffer){ data + (uint64_t)o->length * i, o->length };
		s->header = vs_guest_ptr(&b->guest, s->buffers[0].addr);
		s->response = vs_guest_ptr(&b->guest, s->buffers[1].addr);
		s->data = vs_guest_ptr(&b->guest, s->buffers[2].addr);
		memset(s->data, 0xee, o->length);
		/* virtio 1.3, 5.6.6.1: target 0, LUN 0; READ(10) behind 19 bytes. */
		s->header[0] = 1;
		s->header[2] = 0x40;
		s->header[19] = 0x28;
		s->header[19 + 7] = (uint8_t)(o->length / BLOCK >> 8);
		s->header[19 + 8] = (uint8_t)(o->length / BLOCK);
	}
}

/* Requests in flight are kept in memory that outlives the process, as QEMU has it. */
static void keep_inflight(struct bench *b)
{
	uint64_t size = vs_inflight_size(3, b->o.ring_size);
	int fd = memfd_create("inflight", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)size))
		die("in-flight memory", -errno);
	must("in-flight memory", vs_inflight_open(b->core, fd, size, 0, 3, b->o.ring_size, &b->inflight));
	close(fd);
}

static void make_device(struct bench *b)
{
	struct options *o = &b->o;
	struct vs_vdev_params device = { .cookie = 1, .num_queues = 3, .cdb_size = 32, .sense_size = 96, .credit = 32 };
	struct vs_lun_entry lun = { .nexus = b->nexus };
	struct vs_queue_params queue;
	uint32_t features = VS_RING_VERSION_1 | VS_RING_INDIRECT | (o->event_idx ? VS_RING_EVENT_IDX : 0) | (o->packed ? VS_RING_PACKED : 0);

	must("guest", vs_guest_create((4 << 20) + (uint64_t)o->length * o->depth, 1, &b->guest));
	memset(b->guest.base, 0, b->guest.size);
	must("driver", vs_driver_create(&b->guest, o->ring_size, features, 4, &b->driver));
	make_slots(b);
	must("memory map", vs_memmap_create(b->core, b->guest.regions, b->guest.nregions, NULL, 1, &b->map));
	must("device", vs_vdev_create(b->core, &device, &b->vdev));
	must("LUNs", vs_vdev_set_luns(b->vdev, &lun, 1, 10));
	wait_for(b, 10);
	vs_driver_params(&b->driver, &queue);
	queue.enabled = 1;
	if (o->inflight)
		keep_inflight(b);
	queue.inflight = b->inflight;
	must("queue", vs_queue_start(b->vdev, VS_QUEUE_REQUEST, &queue, b->map, 11));
	wait_for(b, 11);
	vs_driver_interrupts_off(&b->driver);
}

static void setup(struct bench *b)
{
	struct vs_config config = { .nworkers = 1, .poll_mode = b->o.adaptive ? VS_POLL_ADAPTIVE : VS_POLL_ALWAYS, .spin_us = 50, .io_threads = 1 };
	struct vs_worker_stats stats = { 0 };

	b->random = 88172645463325252ull;
	must("core", vs_core_create(&config, &b->core));
	pin_to(0, b->o.driver_cpu);
	make_unit(b);
	if (b->o.inline_worker) {
		must("engine", b->core->workers[0].engine->init(&b->core->workers[0]));
	} else {
		must("start", vs_core_start(b->core));
		while (!stats.thread_id)
			vs_worker_stats(b->core, 0, &stats);
		pin_to((pid_t)stats.thread_id, b->o.worker_cpu);
	}
	make_device(b);
}

static void teardown(struct bench *b)
{
	must("stop", vs_queue_stop(b->vdev, VS_QUEUE_REQUEST, 12));
	wait_for(b, 12);
	if (b->o.inline_worker)
		b->core->workers[0].engine->fini(&b->core->workers[0]);
	vs_vdev_destroy(b->vdev);
	if (b->inflight)
		vs_inflight_close(b->inflight);
	vs_nexus_destroy(b->nexus);
	vs_lu_destroy(b->lu);
	vs_store_destroy(b->store);
	vs_memmap_destroy(b->map);
	vs_driver_destroy(&b->driver);
	vs_core_destroy(b->core);
	vs_guest_destroy(&b->guest);
	free(b->slots);
	free(b->slot_of);
}

/* ---- the driver's loop ----------------------------------------------------------------------------------------------------------------- */

static inline void submit(struct bench *b, uint32_t slot)
{
	struct slot *s = &b->slots[slot];
	uint64_t units = b->o.size / b->o.length, x = b->random;
	uint32_t be;
	int head;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	b->random = x;
	s->lba = (uint64_t)((unsigned __int128)x * units >> 64) * (b->o.length / BLOCK);
	be = __builtin_bswap32((uint32_t)s->lba);
	memcpy(s->header + 8, &b->submitted, 8); /* the tag */
	memcpy(s->header + 19 + 2, &be, 4);
	s->response[10] = s->response[11] = 0xff; /* so that an old answer is not taken for a new one */
	head = vs_driver_add(&b->driver, s->buffers, 1, 2, b->o.indirect);
	if (head < 0)
		die("the ring is full", head);
	b->slot_of[head] = slot;
	b->submitted++;
}

/* What came back must be GOOD and whole; of the data a sample is looked at, because looking at all would measure the driver. */
static inline void look_at(struct bench *b, const struct slot *s, uint32_t written)
{
	if (s->response[10] != 0 || s->response[11] != 0 || written != RESPONSE + b->o.length) {
		fprintf(stderr, "ring: status %u, response %u, %u bytes written\n", s->response[10], s->response[11], written);
		exit(1);
	}
	if (b->o.check_all || b->completed % CHECK_EVERY == 0) {
		uint64_t number, want = b->o.memory ? s->lba * BLOCK / 4096 : 0;

		memcpy(&number, s->data, 8);
		if (number != want)
			die("other data than those of that block", 0);
		b->checked++;
	}
}

/* Takes what is there; resubmits unless the run is over. How many came back. */
static inline uint32_t collect(struct bench *b, bool again)
{
	uint32_t head, written, n = 0;
	int r;

	while ((r = vs_driver_collect(&b->driver, &head, &written)) == 1) {
		uint32_t slot = b->slot_of[head];

		look_at(b, &b->slots[slot], written);
		b->completed++;
		if (again)
			submit(b, slot);
		n++;
	}
	must("used ring", r);
	if (n && again)
		vs_driver_publish(&b->driver);
	return n;
}

static double seconds_now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct sample { double wall, driver, worker; uint64_t completed, requests, batches; };

static struct sample sample(const struct bench *b)
{
	struct vs_worker_stats stats;
	clockid_t clock = CLOCK_THREAD_CPUTIME_ID;
	struct sample s;

	vs_worker_stats(b->core, 0, &stats);
	if (!b->o.inline_worker && pthread_getcpuclockid(b->core->workers[0].thread, &clock))
		die("the worker's clock", 0);
	s = (struct sample){ .completed = b->completed, .requests = stats.requests, .batches = stats.batches };
	s.worker = seconds_now(clock);
	s.driver = seconds_now(CLOCK_THREAD_CPUTIME_ID);
	s.wall = seconds_now(CLOCK_MONOTONIC);
	return s;
}

/* ---- undisturbed windows -------------------------------------------------------------------------------------------------------------- */

/* Other programs run on these CPUs, too. A run is cut into windows, and those in which both threads had their CPU all the time tell what the
 * code does; the rest tells what the machine did. */
struct windows { double rate[WINDOWS_MAX]; uint32_t clean, all; };

static void windows_add(struct windows *w, const struct sample *from, const struct sample *to)
{
	double wall = to->wall - from->wall;

	if (w->all == WINDOWS_MAX)
		return;
	w->all++;
	if (to->driver - from->driver >= ON_CPU * wall && to->worker - from->worker >= ON_CPU * wall)
		w->rate[w->clean++] = (double)(to->completed - from->completed) / wall;
}

static int by_rate(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* What share of the clean windows was slower than this: 0.5 is the median. Sorted before. */
static double windows_at(const struct windows *w, double share)
{
	return w->clean ? w->rate[(uint32_t)(share * (w->clean - 1))] : 0;
}

static void loop(struct bench *b, struct windows *w)
{
	struct sample before = sample(b);
	double end = before.wall + b->o.seconds;

	for (uint32_t rounds = 1;; rounds++) {
		turn(b);
		if (!collect(b, true))
			vs_pause();
		if (b->o.requests ? b->completed >= b->o.requests : false)
			return;
		if (rounds % CLOCK_EVERY || seconds_now(CLOCK_MONOTONIC) < before.wall + WINDOW)
			continue;
		struct sample now = sample(b);

		windows_add(w, &before, &now);
		if (!b->o.requests && now.wall >= end)
			return;
		before = now;
	}
}

static void measure(struct bench *b)
{
	static struct windows windows;
	struct sample from, to;
	double wall;

	for (uint32_t i = 0; i < b->o.depth; i++)
		submit(b, i);
	vs_driver_publish(&b->driver);
	from = sample(b);
	loop(b, &windows);
	to = sample(b);
	wall = to.wall - from.wall;
	qsort(windows.rate, windows.clean, sizeof(windows.rate[0]), by_rate);
	while (b->completed < b->submitted) {
		turn(b);
		collect(b, false);
	}
	printf("{\"iops\": %.0f, \"clean_iops\": %.0f, \"top_iops\": %.0f, \"clean\": %.3f, \"seconds\": %.4f, ",
	       (double)(to.completed - from.completed) / wall, windows_at(&windows, 0.5), windows_at(&windows, 0.9), (double)windows.clean / (double)vs_max(windows.all, 1u), wall);
	printf("\"submitted\": %llu, \"completed\": %llu, \"checked\": %llu, \"served\": %llu, ", (unsigned long long)b->submitted,
	       (unsigned long long)b->completed, (unsigned long long)b->checked, (unsigned long long)sample(b).requests);
	printf("\"batch\": %.2f, \"driver_on_cpu\": %.3f, \"worker_on_cpu\": %.3f, \"engine\": \"%s\"}\n",
	       (double)(to.requests - from.requests) / (double)vs_max(to.batches - from.batches, UINT64_C(1)), (to.driver - from.driver) / wall,
	       (to.worker - from.worker) / wall, vs_core_engine_name(b->core));
}

/* ---- options ---------------------------------------------------------------------------------------------------------------------------- */

static const struct option long_options[] = {
	{ "memory", no_argument, NULL, 'm' }, { "indirect", no_argument, NULL, 'i' }, { "event-idx", no_argument, NULL, 'e' }, { "packed", no_argument, NULL, 'P' },
	{ "adaptive", no_argument, NULL, 'a' }, { "small-pages", no_argument, NULL, 'p' }, { "inline", no_argument, NULL, 'I' },
	{ "inflight", no_argument, NULL, 'f' }, { "check-all", no_argument, NULL, 'c' }, { "misnumber", no_argument, NULL, 'x' }, { "depth", required_argument, NULL, 'd' }, { "ring", required_argument, NULL, 'r' },
	{ "length", required_argument, NULL, 'l' }, { "size", required_argument, NULL, 's' }, { "requests", required_argument, NULL, 'n' },
	{ "seconds", required_argument, NULL, 't' }, { "driver-cpu", required_argument, NULL, 'D' }, { "worker-cpu", required_argument, NULL, 'W' },
	{ 0 },
};

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (!*text || *end)
		die(text, -EINVAL);
	return n;
}

static struct options parse(int argc, char **argv)
{
	struct options o = { .depth = 32, .ring_size = 256, .length = 4096, .size = 1 << 30, .seconds = 0.5, .worker_cpu = 1, .huge_pages = true };

	for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
		switch (c) {
		case 'm': o.memory = true; break;
		case 'i': o.indirect = true; break;
		case 'e': o.event_idx = true; break;
		case 'P': o.packed = true; break;
		case 'a': o.adaptive = true; break;
		case 'p': o.huge_pages = false; break;
		case 'I': o.inline_worker = true; break;
		case 'f': o.inflight = true; break;
		case 'c': o.check_all = true; break;
		case 'x': o.misnumber = true; break; /* so that a test sees the check fail */
		case 'd': o.depth = (uint32_t)number(optarg); break;
		case 'r': o.ring_size = (uint32_t)number(optarg); break;
		case 'l': o.length = (uint32_t)number(optarg); break;
		case 's': o.size = number(optarg); break;
		case 'n': o.requests = number(optarg); break;
		case 't': o.seconds = strtod(optarg, NULL); break;
		case 'D': o.driver_cpu = (uint32_t)number(optarg); break;
		case 'W': o.worker_cpu = (uint32_t)number(optarg); break;
		default: exit(2);
		}
	if (!o.depth || o.depth > 1024 || !o.length || o.length % BLOCK || o.length > (8 << 20) || o.size % (1 << 20) || o.size < o.length || o.size > UINT64_C(1) << 40)
		die("options", -EINVAL);
	return o;
}

int main(int argc, char **argv)
{
	struct bench b = { .o = parse(argc, argv) };

	setup(&b);
	measure(&b);
	teardown(&b);
	return 0;
}
