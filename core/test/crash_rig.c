// SPDX-License-Identifier: Apache-2.0
/* See crash_rig.h. */
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "crash_rig.h"

enum { CDB = 32, HEADER = 19 + CDB, RESPONSE = 108, IDLE_TURNS = 6, SLOT = 4096, DATA = 1024 };

static struct crash_shared *shared; /* of the back end that this process is, or is about to be */
static uint32_t stop_at, steps_taken;

/* A back end leaves without the end of a program, and so without telling what it ran: some of those that live on do. */
#ifdef VS_COVER
enum { TELLS_EVERY = 16 };
void __gcov_dump(void);
static void tell_coverage(void)
{
	if (getpid() % TELLS_EVERY == 0)
		__gcov_dump();
}
#else
static void tell_coverage(void) {}
#endif

void vs_step(int step)
{
	if (!shared || ++steps_taken != stop_at)
		return;
	shared->stopped[step]++;
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

/* ---- the medium: in shared memory ---------------------------------------------------------------------------------------------------------- */

struct medium { struct vs_store store; bool slow; uint32_t ops; };

static void carry_out(struct vs_io *io)
{
	if (io->op == VS_IO_READ) {
		vs_iov_from_buffer(io->iov, io->niov, 0, shared->medium + io->offset, io->length);
	} else if (io->op == VS_IO_WRITE) {
		uint32_t block = (uint32_t)(io->offset / CRASH_BLOCK);

		vs_iov_to_buffer(io->iov, io->niov, 0, shared->medium + io->offset, io->length);
		shared->writes[block]++;
		if (shared->norder < 1024)
			shared->order[shared->norder++] = block;
	}
}

static void later(struct vs_worker *w, struct vs_msg *m)
{
	struct vs_io *io = vs_container_of(m, struct vs_io, msg);

	(void)w;
	carry_out(io);
	vs_io_end(io, VS_ERR_NONE);
}

static enum vs_submit submit(struct vs_store *s, struct vs_io *io)
{
	struct medium *m = vs_container_of(s, struct medium, store);

	if (m->slow && m->ops++ % 3 == 0) {
		io->msg.run = later;
		vs_worker_push(io->w, &io->msg);
		return VS_SUBMIT_PENDING;
	}
	carry_out(io);
	io->err = VS_ERR_NONE;
	return VS_SUBMIT_DONE;
}

static const struct vs_store_ops medium_ops = { .kind = "crash", .submit = submit };

/* ---- a back end ------------------------------------------------------------------------------------------------------------------------------ */

struct backend { vs_core *core; struct medium medium; vs_lu *lu; vs_nexus *nexus; vs_memmap *map; vs_vdev *vdev; vs_inflight *inflight; };

static struct vs_upcall wait_for(struct backend *b, uint64_t cookie)
{
	struct vs_task_info info;
	struct vs_upcall up;

	for (;;) {
		vs_worker_turn(&b->core->workers[0]);
		while (vs_core_drain(b->core, &up, &info, 1)) {
			CHECK_EQ(up.kind, VS_UP_DONE);
			if (up.cookie == cookie)
				return up;
		}
	}
}

static void backend_open(struct backend *b, struct crash *c, bool slow)
{
	struct vs_config config = { .nworkers = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER, .io_threads = 1 };
	struct vs_lu_params lu = { .num_blocks = CRASH_BLOCKS, .cookie = 1, .block_size = CRASH_BLOCK, .write_cache = 1, .max_transfer_blocks = 64 };
	struct vs_vdev_params device = { .cookie = 7, .num_queues = CRASH_QUEUES, .cdb_size = CDB, .sense_size = 96, .credit = 8 };
	struct vs_lun_entry lun = { 0 };

	CHECK_EQ(vs_core_create(&config, &b->core), 0);
	CHECK_EQ(b->core->engine->init(&b->core->workers[0]), 0);
	CHECK_EQ(vs_store_init(&b->medium.store, b->core, &medium_ops, NULL), 0);
	b->medium.store.info = (struct vs_store_info){ .size = CRASH_BLOCKS * CRASH_BLOCK, .io_align = 1 };
	b->medium.slow = slow;
	CHECK_EQ(vs_lu_create(b->core, &lu, &b->medium.store, &b->lu), 0);
	CHECK_EQ(vs_nexus_create(b->core, b->lu, 2, &b->nexus), 0);
	CHECK_EQ(vs_memmap_create(b->core, c->guest.regions, c->guest.nregions, NULL, 3, &b->map), 0);
	CHECK_EQ(vs_vdev_create(b->core, &device, &b->vdev), 0);
	lun.nexus = b->nexus;
	CHECK_EQ(vs_vdev_set_luns(b->vdev, &lun, 1, 10), 0);
	wait_for(b, 10);
	CHECK_EQ(vs_inflight_open(b->core, c->region_fd, c->region_size, 0, CRASH_QUEUES, c->queue_size, &b->inflight), 0);
}

/* As QEMU says where a ring begins when its back end has gone: where the used ring ends; of a packed ring, where it began once. */
static uint32_t told_base(const struct crash *c)
{
	return vs_driver_packed(&c->driver) ? c->base : __atomic_load_n(&c->driver.used->idx, __ATOMIC_ACQUIRE);
}

static void __attribute__((noreturn)) backend_main(struct crash *c, bool slow)
{
	struct backend b = { 0 };
	struct vs_queue_params params;
	struct vs_upcall up;

	shared = NULL;
	backend_open(&b, c, slow);
	shared = c->shared;
	steps_taken = 0;
	vs_driver_params(&c->driver, &params);
	params.enabled = 1;
	params.base = told_base(c);
	params.call_fd = dup(c->call_fd);
	params.inflight = b.inflight;
	CHECK_EQ(vs_queue_start(b.vdev, VS_QUEUE_REQUEST, &params, b.map, 11), 0);
	up = wait_for(&b, 11);
	shared->start_error = up.err;
	shared->replays = (uint32_t)up.aux;
	shared->forgotten = up.aux >> 32;
	for (int idle = 0; !up.err && idle < IDLE_TURNS;)
		idle = vs_worker_turn(&b.core->workers[0]) ? 0 : idle + 1;
	shared->steps = steps_taken;
	tell_coverage();
	/* Not _exit(), in which ThreadSanitizer would wait a second for threads to end. */
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

int crash_run(struct crash *c, uint32_t stop, bool slow)
{
	int status;
	pid_t pid;

	fflush(NULL);
	stop_at = stop;
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		backend_main(c, slow);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		CHECK_EQ(WTERMSIG(status), SIGKILL);
		return 1;
	}
	CHECK_EQ(WEXITSTATUS(status), 0);
	return 0;
}

/* ---- the guest -------------------------------------------------------------------------------------------------------------------------------- */

static void make_region(struct crash *c)
{
	struct vs_inflight_own *own;

	c->queue_size = CRASH_RING;
	c->region_size = vs_inflight_size(CRASH_QUEUES, c->queue_size);
	c->region_fd = memfd_create("inflight", MFD_CLOEXEC);
	CHECK(c->region_fd >= 0);
	CHECK_EQ(ftruncate(c->region_fd, (off_t)c->region_size), 0);
	c->region = mmap(NULL, c->region_size, PROT_READ | PROT_WRITE, MAP_SHARED, c->region_fd, 0);
	CHECK(c->region != MAP_FAILED);
	own = (void *)(c->region + vs_inflight_own_offset(CRASH_QUEUES, c->queue_size));
	own->magic = vs_inflight_magic();
	own->id = 4711;
}

void crash_open(struct crash *c, uint32_t features)
{
	struct vs_queue_params params;
	uint64_t at;

	memset(c, 0, sizeof(*c));
	c->shared = mmap(NULL, sizeof(*c->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(c->shared != MAP_FAILED);
	CHECK_EQ(vs_guest_create(1 << 20, 1, &c->guest), 0);
	CHECK_EQ(vs_driver_create(&c->guest, CRASH_RING, features, features & VS_RING_INDIRECT ? 4 : 0, &c->driver), 0);
	/* Near the end of a lap, and of the 16 bits of an index. */
	vs_driver_reset(&c->driver, features & VS_RING_PACKED ? CRASH_RING - 5 : UINT16_MAX - 2);
	vs_driver_params(&c->driver, &params);
	c->base = params.base;
	at = vs_guest_alloc(&c->guest, CRASH_SLOTS * SLOT, 4096);
	CHECK(at != 0);
	for (uint32_t i = 0; i < CRASH_SLOTS; i++, at += SLOT) {
		uint8_t *p = vs_guest_ptr(&c->guest, at);

		c->slots[i] = (struct crash_slot){ .header = p, .response = p + 256, .data = p + DATA, .at = at };
	}
	c->call_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(c->call_fd >= 0);
	make_region(c);
}

void crash_close(struct crash *c)
{
	vs_driver_destroy(&c->driver);
	vs_guest_destroy(&c->guest);
	munmap(c->region, c->region_size);
	munmap(c->shared, sizeof(*c->shared));
	close(c->region_fd);
	close(c->call_fd);
}

static uint32_t free_slot(const struct crash *c)
{
	for (uint32_t i = 0; i < CRASH_SLOTS; i++)
		if (!c->slots[i].busy)
			return i;
	CHECK(false);
	return 0;
}

int crash_write(struct crash *c, uint32_t lba, uint8_t value, bool compare, bool indirect)
{
	uint32_t i = free_slot(c), length = compare ? 2 * CRASH_BLOCK : CRASH_BLOCK;
	struct crash_slot *s = &c->slots[i];
	struct vs_driver_buffer buffers[3] = { { s->at, HEADER }, { s->at + DATA, length }, { s->at + 256, RESPONSE } };
	int head;

	memset(s->header, 0, HEADER);
	s->header[0] = 1;
	s->header[8] = (uint8_t)c->sent;
	s->header[19] = compare ? 0x89 : 0x2a;
	vs_put_be32(s->header + 19 + (compare ? 6 : 2), lba);
	s->header[19 + (compare ? 13 : 8)] = 1;
	memset(s->data, 0, CRASH_BLOCK);
	memset(s->data + (compare ? CRASH_BLOCK : 0), value, CRASH_BLOCK);
	memset(s->response, 0xee, RESPONSE);
	head = vs_driver_add(&c->driver, buffers, 2, 1, indirect);
	if (head < 0)
		return head;
	s->busy = true;
	s->lba = lba;
	s->compares = compare;
	c->slot_of[head] = i;
	c->sent++;
	vs_driver_publish(&c->driver);
	return head;
}

uint32_t crash_collect(struct crash *c, uint32_t *lbas)
{
	uint32_t head, written, n = 0;
	int r;

	while ((r = vs_driver_collect(&c->driver, &head, &written)) == 1) {
		struct crash_slot *s = &c->slots[c->slot_of[head]];

		CHECK(s->busy);
		CHECK_EQ(s->response[10], 0);
		CHECK_EQ(s->response[11], 0);
		CHECK_EQ(written, RESPONSE);
		s->busy = false;
		c->ended++;
		lbas[n++] = s->lba;
	}
	CHECK_EQ(r, 0);
	return n;
}
