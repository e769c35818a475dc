// SPDX-License-Identifier: Apache-2.0
/*
 * The gate under load: four initiators on three transports share one LU while this thread, which stands for the control plane, closes, fences
 * and opens, answers what comes up, aborts, stops rings, moves them to other workers and replaces guest memory. model.c checks each byte
 * operation, initiators.c each answer, this file the counts. STRESS_SECONDS says how long, STRESS_SEED repeats the random choices (not the
 * interleaving).
 */
#include <dirent.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "initiators.h"
#include "task.h"
#include "vdev.h"
#include "gen/tables.h"

enum { HELD_MAX = 256, BATCH = 32, RING_SIZE = 64, RING_CREDIT = 4, SOCKET_CREDIT = 3, CHIP_CREDIT = 2, PORT = 100, LEAK_MAX = 8 << 20 };
enum { SCOPE_LU = NEXUSES, SCOPES };
enum cookie { C_SETUP = 1, C_TMF, C_STOP, C_START, C_MAP, C_ORDERED, C_FD };

enum fence { OPEN, CLOSING, FENCED, RELEASING };
struct scope {
	enum fence fence;
	uint64_t epoch, until_ns;
	uint64_t soft; /* bits that were closed without a fence */
};

enum fault { NO_FAULT, FAULT_FENCING, FAULT_FENCED };

struct held { struct vs_task *task; uint64_t tag; uint32_t nexus, who; uint8_t attribute, opcode; bool fault; uint64_t in_length; };

struct stress {
	vs_core *core;
	uint32_t nworkers;
	vs_store *store;
	vs_lu *lu;
	vs_nexus *nexus[NEXUSES];
	vs_vdev *vdev;
	struct vs_guest guest;
	vs_memmap *map, *retired;
	struct socket_port socket;
	struct chip chip;
	struct initiator initiators[INITIATORS];
	struct vs_queue_params rings[2];
	/* the control plane's mind */
	struct held held[HELD_MAX];
	int nheld;
	struct scope scopes[SCOPES];
	bool ordered_waits, ordered_runs;
	enum fault fault; /* of the oldest that is held */
	uint64_t fault_epoch, fault_until_ns, faults;
	uint64_t ordered_epoch;
	int tmf_pending;
	uint32_t tmf_nexus;
	bool tmf_by_tag;
	uint64_t tmf_tag, floor[INITIATORS];
	int queue_busy; /* request queue that is being stopped or started, -1: none */
	int map_pending;
	uint64_t map_epoch;
	int waiting[8]; /* for VS_UP_DONE, by cookie */
	uint64_t fences, opens, again, tmfs, held_total, aborted_held, stops, maps, ordered;
};

static const uint8_t inquiry[36] = { [2] = 7, [4] = 31, [8] = 'v' };

/* ---- what comes up ----------------------------------------------------------------------------------------------------------------------- */

static bool all_aborted_by_tmf(const struct stress *s, const struct held *h)
{
	return h->nexus == s->tmf_nexus && (s->tmf_by_tag ? h->tag == s->tmf_tag : h->tag <= s->floor[h->who]);
}

static void hold(struct stress *s, const struct vs_task_info *t)
{
	uint32_t who = initiator_of(t->tag);

	CHECK(s->nheld < HELD_MAX && who < INITIATORS);
	s->held[s->nheld++] = (struct held){ .task = t->task, .tag = t->tag, .who = who, .nexus = nexus_of(who), .attribute = t->attribute,
					     .opcode = t->cdb[0], .fault = t->fault, .in_length = t->in_length };
	CHECK_EQ(t->nexus_cookie, nexus_of(who) + 1);
	s->held_total++;
}

static void ring_params(struct stress *s, uint32_t ring, uint32_t worker, struct vs_queue_params *p)
{
	struct initiator *i = &s->initiators[ring];

	*p = s->rings[ring];
	p->worker = worker;
	p->enabled = 1;
	p->kick_fd = atomic_load(&i->kick_fd) >= 0 ? dup(i->kick_fd) : -1;
}

static void done(struct stress *s, const struct vs_upcall *up)
{
	struct vs_queue_params p;

	CHECK_EQ(up->err, 0);
	CHECK(s->waiting[up->cookie] > 0);
	s->waiting[up->cookie]--;
	switch (up->cookie) {
	case C_STOP: /* its next worker need not be the last one */
		ring_params(s, (uint32_t)s->queue_busy, (uint32_t)random_below(s->nworkers), &p);
		p.base = (uint32_t)up->aux;
		s->waiting[C_START]++;
		CHECK_EQ(vs_queue_start(s->vdev, 2 + (uint32_t)s->queue_busy, &p, s->map, C_START), 0);
		break;
	case C_START:
		s->queue_busy = -1;
		break;
	case C_TMF:
		s->tmf_pending--;
		break;
	default:
		break;
	}
}

static int drain(struct stress *s)
{
	static struct vs_upcall ups[BATCH];
	static struct vs_task_info infos[BATCH];
	int n = vs_core_drain(s->core, ups, infos, s->nheld + BATCH < HELD_MAX ? 1 + (int)random_below(BATCH) : 1);

	for (int i = 0; i < n; i++)
		switch (ups[i].kind) {
		case VS_UP_TASK:
			hold(s, &infos[i]);
			break;
		case VS_UP_TASK_DONE:
			CHECK_EQ(ups[i].cookie, C_ORDERED);
			CHECK(s->ordered_runs);
			s->ordered_runs = false;
			break;
		case VS_UP_DONE:
			done(s, &ups[i]);
			break;
		case VS_UP_EPOCH:
		case VS_UP_DRAINED:
			break;
		default:
			fprintf(stderr, "upcall %u cookie %llu err %d\n", ups[i].kind, (unsigned long long)ups[i].cookie, ups[i].err);
			exit(1);
		}
	return n;
}

/* ---- what goes back ------------------------------------------------------------------------------------------------------------------------ */

static void fault_over(struct stress *s)
{
	atomic_store(&model.faulted, 0);
	s->fault = NO_FAULT;
}

static bool is_media(uint8_t opcode) { return opcode != 0x12 && opcode != 0xc9; }

static void complete(const struct held *h, struct vs_result *r)
{
	r->verdict = VS_VERDICT_COMPLETE;
	if (h->opcode == 0x12) {
		r->data_length = sizeof(inquiry);
		return;
	}
	r->status = VS_STATUS_CHECK_CONDITION;
	r->sense_length = 18;
	r->sense[0] = 0x70;
	r->sense[2] = VS_SK_ILLEGAL_REQUEST;
	r->sense[7] = 10;
	r->sense[12] = 0x20;
}

/* An ORDERED command runs when all before it have ended, and all behind it wait for its end (SAM-5 8.6). True: it goes now. */
static bool ordered_turn(struct stress *s)
{
	if (!s->ordered_waits) {
		s->ordered_waits = true;
		s->ordered_epoch = vs_epoch_bump(s->core);
		return false;
	}
	if (vs_epoch_reached(s->core) < s->ordered_epoch || vs_pins_busy(vs_lu_pins(s->lu)))
		return false;
	s->ordered_waits = false;
	s->ordered_runs = true;
	s->ordered++;
	return true;
}

/* A command that has failed ends when nothing else is under way any more, and for a while nothing may be (SAM-5 5.9). True: it goes now. */
static bool fault_turn(struct stress *s)
{
	switch (s->fault) {
	case NO_FAULT:
		s->fault = FAULT_FENCING;
		s->fault_epoch = vs_epoch_bump(s->core);
		return false;
	case FAULT_FENCING:
		if (vs_epoch_reached(s->core) < s->fault_epoch || vs_pins_busy(vs_lu_pins(s->lu)))
			return false;
		CHECK_EQ(atomic_load(&model.in_flight), 0);
		atomic_store(&model.faulted, 1);
		s->fault = FAULT_FENCED;
		s->fault_until_ns = vs_now_ns() + random_below(500000);
		return false;
	default:
		if (vs_now_ns() < s->fault_until_ns)
			return false;
		fault_over(s);
		s->faults++;
		return true;
	}
}

static bool scope_shut(const struct scope *c) { return c->fence == CLOSING || c->fence == FENCED; }

/* Hands back what may go, in order of arrival. */
static int hand_back(struct stress *s)
{
	struct vs_result results[BATCH];
	bool blocked[NEXUSES] = { false }, set_blocked = s->ordered_runs;
	int n = 0, kept = 0, faults = 0, i;

	for (i = 0; i < s->nheld; i++) {
		struct held *h = &s->held[i];
		struct vs_result *r = &results[n];
		bool head = h->attribute == VS_ATTR_HEAD_OF_QUEUE;

		if (n == BATCH)
			break;
		blocked[h->nexus] |= scope_shut(&s->scopes[h->nexus]) || scope_shut(&s->scopes[SCOPE_LU]) || (s->tmf_pending && s->tmf_nexus == h->nexus);
		memset(r, 0, sizeof(*r));
		r->task = h->task;
		if (h->fault) {
			bool told = !faults++ && !n && !blocked[h->nexus] && fault_turn(s);

			set_blocked = true;
			if (!told) {
				s->held[kept++] = *h;
				continue;
			}
			r->verdict = VS_VERDICT_TELL;
			n++;
			continue;
		}
		if (s->fault == FAULT_FENCED) {
			s->held[kept++] = *h;
			continue;
		}
		if (blocked[h->nexus] || (set_blocked && !head)) {
			s->held[kept++] = *h;
			continue;
		}
		if (!is_media(h->opcode)) {
			complete(h, r);
		} else if (h->attribute == VS_ATTR_ORDERED) {
			/* What goes back in this batch must be on its way before the epoch is bumped. */
			if (n || !ordered_turn(s)) {
				set_blocked = true;
				s->held[kept++] = *h;
				continue;
			}
			set_blocked = true;
			r->verdict = VS_VERDICT_EXECUTE_NOTIFY;
			r->cookie = C_ORDERED;
		} else {
			r->verdict = VS_VERDICT_EXECUTE;
		}
		n++;
	}
	for (; i < s->nheld; i++)
		s->held[kept++] = s->held[i];
	s->nheld = kept;
	if (n && s->fault == FAULT_FENCING)
		s->fault = NO_FAULT; /* as below */
	if (n && !s->ordered_runs)
		s->ordered_waits = false; /* these may be among those that it waits for: its epoch comes after them */
	if (n)
		vs_core_post(s->core, results, n, inquiry, sizeof(inquiry));
	return n;
}

/* ---- closing, fencing, opening ---------------------------------------------------------------------------------------------------------------- */

static vs_nexus *scope_nexus(struct stress *s, int k) { return k == SCOPE_LU ? NULL : s->nexus[k]; }
static vs_pins *scope_pins(struct stress *s, int k) { return k == SCOPE_LU ? vs_lu_pins(s->lu) : vs_nexus_pins(s->nexus[k]); }

/* Everything that waits for this gate has been handed back. What waits for another one may stay. */
static bool may_open(const struct stress *s, int k)
{
	if (s->ordered_waits || s->ordered_runs || s->fault != NO_FAULT)
		return false;
	for (int i = 0; i < s->nheld; i++) {
		const struct held *h = &s->held[i];

		/* Whatever its nexus waits for: C closed the unit's gate for these, and it is open to all once it is open. */
		if ((h->attribute == VS_ATTR_ORDERED || h->fault) && k == SCOPE_LU)
			return false;
		if (k == SCOPE_LU ? !scope_shut(&s->scopes[h->nexus]) : (int)h->nexus == k && !scope_shut(&s->scopes[SCOPE_LU]))
			return false;
	}
	return true;
}

static void fence_step(struct stress *s, int k, uint64_t now)
{
	struct scope *c = &s->scopes[k];
	_Atomic uint32_t *flag = k == SCOPE_LU ? &model.fenced_lu : &model.fenced_nexus[k];

	switch (c->fence) {
	case OPEN:
		break;
	case CLOSING:
		if (vs_epoch_reached(s->core) < c->epoch || vs_pins_busy(scope_pins(s, k)))
			break;
		/* The fence has returned: the control plane may now say so to others. */
		CHECK_EQ(atomic_load(k == SCOPE_LU ? &model.in_flight : &model.in_flight_nexus[k]), 0);
		atomic_store(flag, 1);
		c->fence = FENCED;
		c->until_ns = now + random_below(2000000);
		s->fences++;
		break;
	case FENCED:
		if (now < c->until_ns)
			break;
		atomic_store(flag, 0);
		c->fence = RELEASING;
		break;
	case RELEASING:
		if (!may_open(s, k))
			break;
		if (vs_gate_open(s->core, s->lu, scope_nexus(s, k), VS_GATE_HOLD)) {
			s->again++;
			break;
		}
		c->fence = OPEN;
		break;
	}
}

static void soft_step(struct stress *s, int k)
{
	struct scope *c = &s->scopes[k];
	uint64_t bits = c->soft | (k == SCOPE_LU ? VS_GATE_ORDERED | VS_GATE_ACA : 0);

	if (!(vs_gate_read(k == SCOPE_LU ? s->lu : NULL, scope_nexus(s, k)) & bits) || c->fence != OPEN || !may_open(s, k))
		return;
	if (vs_gate_open(s->core, s->lu, scope_nexus(s, k), bits)) {
		s->again++;
		return;
	}
	c->soft = 0;
	s->opens++;
}

static void close_something(struct stress *s)
{
	int k = (int)random_below(SCOPES);
	struct scope *c = &s->scopes[k];

	if (c->fence != OPEN)
		return;
	if (one_in(10)) {
		c->fence = CLOSING;
		c->epoch = vs_gate_close(s->core, s->lu, scope_nexus(s, k), VS_GATE_HOLD);
	} else {
		uint64_t bit = one_in(2) ? VS_GATE_TRACE : VS_GATE_RESERVED_WRITE;

		c->soft |= bit;
		vs_gate_close(s->core, s->lu, scope_nexus(s, k), bit);
	}
}

/* ---- task management ------------------------------------------------------------------------------------------------------------------------------ */

/* Everything that an initiator had handed over when the function arrived: for a ring what it has published, for the others what they took. */
static uint64_t handed_over(struct stress *s, uint32_t who)
{
	return who < 2 ? atomic_load(&s->initiators[who].sent_tag) : who == 2 ? atomic_load(&s->socket.taken) : atomic_load(&s->chip.taken);
}

static void tmf_start(struct stress *s)
{
	struct vs_tmf f = { .lu = s->lu, .action = VS_TMF_ABORT, .response = VS_RESP_RESET, .cookie = C_TMF, .match = VS_TMF_NEXUS };
	uint32_t n = (uint32_t)random_below(NEXUSES);

	if (s->tmf_pending || (n == 0 && s->queue_busy >= 0))
		return;
	s->tmf_nexus = n;
	s->tmf_by_tag = one_in(2);
	for (uint32_t who = 0; who < INITIATORS; who++)
		s->floor[who] = handed_over(s, who);
	f.nexus = s->nexus[n];
	if (s->tmf_by_tag) {
		uint32_t who = n ? n + 1 : (uint32_t)random_below(2);

		f.tag = s->tmf_tag = atomic_load(&s->initiators[who].oldest);
		f.match |= VS_TMF_TAG | VS_TMF_PORT;
		f.port_cookie = PORT + n;
	}
	s->tmf_pending = (int)s->nworkers;
	s->waiting[C_TMF] += (int)s->nworkers;
	vs_tmf_post(s->core, &f);
	s->tmfs++;
}

/* All workers have answered: what Python holds of it is Python's to end. Then the initiator is told. */
static void tmf_finish(struct stress *s)
{
	int kept = 0;

	for (int i = 0; i < s->nheld; i++) {
		struct vs_result r = { .task = s->held[i].task, .verdict = VS_VERDICT_ABORTED, .response = VS_RESP_RESET };

		if (!all_aborted_by_tmf(s, &s->held[i])) {
			s->held[kept++] = s->held[i];
			continue;
		}
		if (s->held[i].attribute == VS_ATTR_ORDERED)
			s->ordered_waits = false;
		if (s->held[i].fault)
			fault_over(s); /* should another one be the oldest, it begins anew */
		s->aborted_held++;
		vs_core_post(s->core, &r, 1, NULL, 0);
	}
	s->nheld = kept;
	for (uint32_t who = 0; who < INITIATORS; who++)
		if (nexus_of(who) == s->tmf_nexus && !s->tmf_by_tag)
			atomic_store(&model.barred[who], s->floor[who]);
}

/* ---- rings and memory -------------------------------------------------------------------------------------------------------------------------------- */

static void stop_a_ring(struct stress *s)
{
	if (s->queue_busy >= 0 || s->map_pending || (s->tmf_pending && s->tmf_nexus == 0))
		return;
	s->queue_busy = (int)random_below(2);
	s->waiting[C_STOP]++;
	CHECK_EQ(vs_queue_stop(s->vdev, 2 + (uint32_t)s->queue_busy, C_STOP), 0);
	s->stops++;
}

static void replace_map(struct stress *s)
{
	if (s->queue_busy >= 0 || s->map_pending)
		return;
	s->retired = s->map;
	CHECK_EQ(vs_memmap_create(s->core, s->guest.regions, s->guest.nregions, one_in(2) ? s->map : NULL, 1, &s->map), 0);
	s->map_pending = 1;
	s->waiting[C_MAP] += 3;
	CHECK_EQ(vs_queue_set_map(s->vdev, 2, s->map, C_MAP), 0);
	CHECK_EQ(vs_queue_set_map(s->vdev, 3, s->map, C_MAP), 0);
	chip_set_map(&s->chip, s->map, C_MAP);
	s->maps++;
}

static void map_step(struct stress *s)
{
	if (!s->map_pending || s->waiting[C_MAP])
		return;
	if (!s->map_epoch)
		s->map_epoch = vs_epoch_bump(s->core);
	if (vs_epoch_reached(s->core) < s->map_epoch || vs_pins_busy(vs_memmap_pins(s->retired)))
		return;
	vs_memmap_destroy(s->retired);
	s->map_pending = 0;
	s->map_epoch = 0;
}

/* ---- delays --------------------------------------------------------------------------------------------------------------------------------------------- */

struct stall { struct vs_msg msg; uint64_t ns; };

static void stall_run(struct vs_worker *w, struct vs_msg *m)
{
	struct stall *st = vs_container_of(m, struct stall, msg);

	(void)w;
	for (uint64_t end = vs_now_ns() + st->ns; vs_now_ns() < end; )
		vs_pause();
	free(st);
}

/* A message that keeps a worker from what came with it, for no time or some: whoever reads the gate now finds messages waiting. */
static void stall_a_worker(struct stress *s)
{
	struct stall *st = malloc(sizeof(*st));

	CHECK(st);
	*st = (struct stall){ .msg.run = stall_run, .ns = one_in(4) ? random_below(300000) : 0 };
	vs_worker_send(&s->core->workers[random_below(s->nworkers)], &st->msg);
}

/* ---- one turn of the control plane -------------------------------------------------------------------------------------------------------------------- */

static void turn(struct stress *s, bool mischief)
{
	int did = drain(s);
	uint64_t now = vs_now_ns();

	if (!s->tmf_pending && s->tmf_nexus != UINT32_MAX) {
		tmf_finish(s);
		s->tmf_nexus = UINT32_MAX;
	}
	did += hand_back(s);
	for (int k = 0; k < SCOPES; k++) {
		fence_step(s, k, now);
		soft_step(s, k);
	}
	map_step(s);
	if (mischief) {
		if (one_in(3))
			stall_a_worker(s);
		if (one_in(6))
			close_something(s);
		if (one_in(150) && s->tmf_nexus == UINT32_MAX)
			tmf_start(s);
		if (one_in(300))
			stop_a_ring(s);
		if (one_in(400))
			replace_map(s);
	}
	if (!did)
		usleep((useconds_t)random_below(200));
}

/* ---- a round --------------------------------------------------------------------------------------------------------------------------------------------- */

static void wait_for(struct stress *s, enum cookie cookie)
{
	uint64_t end = vs_now_ns() + 20000000000ull;

	while (s->waiting[cookie]) {
		CHECK(vs_now_ns() < end);
		drain(s);
	}
}

static void guest_buffers(struct stress *s, struct initiator *i)
{
	for (int n = 0; n < DEPTH; n++) {
		struct command *c = &i->commands[n];

		c->out_addr = vs_guest_alloc(&s->guest, DATA_MAX, 64);
		c->in_addr = vs_guest_alloc(&s->guest, DATA_MAX, 64);
		c->request_addr = vs_guest_alloc(&s->guest, REQUEST_BYTES, 64);
		c->response_addr = vs_guest_alloc(&s->guest, RESPONSE_BYTES, 64);
		CHECK(c->response_addr);
		c->out = vs_guest_ptr(&s->guest, c->out_addr);
		c->in = vs_guest_ptr(&s->guest, c->in_addr);
	}
}

static void open_ring(struct stress *s, uint32_t ring)
{
	struct initiator *i = &s->initiators[ring];
	struct vs_queue_params p;

	i->wiring = &ring_wiring;
	CHECK_EQ(vs_driver_create(&s->guest, RING_SIZE, VS_RING_VERSION_1 | (ring ? VS_RING_EVENT_IDX : 0), 0, &i->driver), 0);
	vs_driver_interrupts_off(&i->driver);
	vs_driver_params(&i->driver, &s->rings[ring]);
	atomic_store(&i->kick_fd, ring ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : -1); /* one is kicked, one polled */
	ring_params(s, ring, ring % s->nworkers, &p);
	s->waiting[C_SETUP]++;
	CHECK_EQ(vs_queue_start(s->vdev, 2 + ring, &p, s->map, C_SETUP), 0);
}

static void open_transports(struct stress *s)
{
	struct vs_vdev_params params = { .cookie = PORT, .num_queues = 4, .cdb_size = 32, .sense_size = 96, .credit = RING_CREDIT };
	struct vs_lun_entry lun = { .nexus = s->nexus[0] };
	uint64_t memory = vs_guest_alloc(&s->guest, sizeof(struct chip_memory), 64);
	int pair[2];

	CHECK_EQ(vs_vdev_create(s->core, &params, &s->vdev), 0);
	s->waiting[C_SETUP] += 3;
	CHECK_EQ(vs_vdev_set_luns(s->vdev, &lun, 1, C_SETUP), 0);
	open_ring(s, 0);
	open_ring(s, 1);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	s->initiators[2].wiring = &socket_wiring;
	s->initiators[2].fd = pair[0];
	CHECK_EQ(socket_port_open(&s->socket, s->core, (s->nworkers - 1) % s->nworkers, s->nexus[1], PORT + 1, SOCKET_CREDIT, pair[1], C_SETUP), 0);
	s->initiators[3].wiring = &chip_wiring;
	s->initiators[3].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	s->initiators[3].chip = vs_guest_ptr(&s->guest, memory);
	memset(s->initiators[3].chip, 0, sizeof(struct chip_memory));
	CHECK_EQ(chip_open(&s->chip, s->core, 2 % s->nworkers, s->nexus[2], s->map, memory, PORT + 2, CHIP_CREDIT, dup(s->initiators[3].fd), C_SETUP), 0);
	wait_for(s, C_SETUP);
}

static void open_all(struct stress *s, uint32_t nworkers, uint32_t engine, uint64_t seed)
{
	struct vs_config config = { .nworkers = nworkers, .engine = engine, .poll_mode = VS_POLL_ADAPTIVE, .spin_us = 20, .io_threads = 1 };
	struct vs_lu_params lu = { .num_blocks = BLOCKS, .block_size = BLOCK, .write_cache = 1, .unmap = 1, .cookie = 1,
				   .queue_error = seed % 2 };

	memset(s, 0, sizeof(*s));
	memset(&model, 0, sizeof(model));
	s->nworkers = nworkers;
	s->queue_busy = -1;
	s->tmf_nexus = UINT32_MAX;
	CHECK_EQ(vs_core_create(&config, &s->core), 0);
	CHECK_EQ(vs_core_start(s->core), 0);
	CHECK_EQ(model_store(s->core, seed, &s->store), 0);
	CHECK_EQ(vs_lu_create(s->core, &lu, s->store, &s->lu), 0);
	for (uint32_t n = 0; n < NEXUSES; n++)
		CHECK_EQ(vs_nexus_create(s->core, s->lu, n + 1, &s->nexus[n]), 0);
	CHECK_EQ(vs_guest_create(4 << 20, 3, &s->guest), 0);
	CHECK_EQ(vs_memmap_create(s->core, s->guest.regions, s->guest.nregions, NULL, 1, &s->map), 0);
	for (uint32_t i = 0; i < INITIATORS; i++) {
		s->initiators[i].index = i;
		s->initiators[i].seed = seed * 31 + i + 1;
		s->initiators[i].guest = &s->guest;
		s->initiators[i].oldest = UINT64_MAX;
		guest_buffers(s, &s->initiators[i]);
	}
	open_transports(s);
}

static void complain(const struct stress *s)
{
	for (uint32_t i = 0; i < INITIATORS; i++)
		fprintf(stderr, "initiator %u: sent %llu ended %llu oldest %llx\n", i, (unsigned long long)s->initiators[i].sent,
			(unsigned long long)s->initiators[i].ended, (unsigned long long)s->initiators[i].oldest);
	fprintf(stderr, "held %d gate %llx ordered %d/%d tmf %d queue %d fences %d %d %d %d in flight %lld\n", s->nheld,
		(unsigned long long)vs_gate_read(s->lu, NULL), s->ordered_waits, s->ordered_runs, s->tmf_pending, s->queue_busy, s->scopes[0].fence,
		s->scopes[1].fence, s->scopes[2].fence, s->scopes[3].fence, (long long)model.in_flight);
	exit(1);
}

static bool at_rest(const struct stress *s)
{
	for (uint32_t i = 0; i < INITIATORS; i++)
		if (!atomic_load(&s->initiators[i].finished))
			return false;
	for (int k = 0; k < SCOPES; k++)
		if (s->scopes[k].fence != OPEN || s->scopes[k].soft)
			return false;
	return !s->nheld && !s->tmf_pending && s->tmf_nexus == UINT32_MAX && s->queue_busy < 0 && !s->map_pending && !s->ordered_runs && !s->ordered_waits &&
	       !vs_gate_read(s->lu, NULL) && !vs_pins_busy(vs_lu_pins(s->lu));
}

static void check_counts(struct stress *s)
{
	for (uint32_t n = 0; n < NEXUSES; n++)
		CHECK(!vs_pins_busy(vs_nexus_pins(s->nexus[n])));
	CHECK_EQ(model.in_flight, 0);
	CHECK_EQ(s->vdev->credit.left, RING_CREDIT);
	CHECK_EQ(s->socket.credit.left, SOCKET_CREDIT);
	CHECK_EQ(s->chip.credit.left, CHIP_CREDIT);
	for (uint32_t b = 0; b < COUNTERS; b++) {
		uint64_t wins = 0, maybe = 0, now = model_word(s->store, b);

		for (uint32_t i = 0; i < INITIATORS; i++) {
			wins += s->initiators[i].wins[b];
			maybe += s->initiators[i].maybe[b];
		}
		CHECK(now >= wins && now <= wins + maybe);
	}
	for (uint32_t b = 0; b < COUNTERS + MIXED; b++)
		CHECK(model_whole(s->store, b));
	for (uint32_t i = 0; i < INITIATORS; i++)
		CHECK_EQ(s->initiators[i].sent, s->initiators[i].ended);
}

static void close_all(struct stress *s)
{
	s->waiting[C_FD] = 2;
	socket_port_close(&s->socket, C_FD);
	chip_close(&s->chip, C_FD);
	wait_for(s, C_FD);
	for (uint32_t q = 0; q < 2; q++) {
		s->waiting[C_SETUP]++;
		CHECK_EQ(vs_queue_stop(s->vdev, 2 + q, C_SETUP), 0);
		wait_for(s, C_SETUP);
		vs_driver_destroy(&s->initiators[q].driver);
	}
	CHECK(!vs_pins_busy(vs_memmap_pins(s->map)));
	vs_vdev_destroy(s->vdev);
	for (uint32_t n = 0; n < NEXUSES; n++)
		vs_nexus_destroy(s->nexus[n]);
	vs_lu_destroy(s->lu);
	vs_store_destroy(s->store);
	vs_memmap_destroy(s->map);
	vs_core_destroy(s->core);
	vs_guest_destroy(&s->guest);
	close(s->initiators[1].kick_fd);
	close(s->initiators[2].fd);
	close(s->initiators[3].fd);
	for (int n = 0; n < DEPTH; n++) {
		free(s->initiators[2].commands[n].out);
		free(s->initiators[2].commands[n].in);
	}
}

static void report(const struct stress *s, const char *engine)
{
	uint64_t ended = 0, aborted = 0, full = 0, won = 0, lost = 0;

	for (uint32_t i = 0; i < INITIATORS; i++) {
		const struct initiator *n = &s->initiators[i];

		ended += n->ended;
		aborted += n->aborted;
		full += n->full;
		won += n->won;
		lost += n->lost;
	}
	printf("%u workers, %s: %llu commands, %llu aborted (%llu cut, %llu withdrawn), %llu in Python, %llu task set full, %llu+%llu compares, %llu fences, "
	       "%llu opens, %llu again, %llu TMFs, %llu ordered, %llu faults, %llu stops, %llu maps\n", s->nworkers, engine, (unsigned long long)ended,
	       (unsigned long long)aborted, (unsigned long long)model.cuts, (unsigned long long)s->chip.withdrawn, (unsigned long long)s->held_total,
	       (unsigned long long)full, (unsigned long long)won, (unsigned long long)lost, (unsigned long long)s->fences, (unsigned long long)s->opens,
	       (unsigned long long)s->again, (unsigned long long)s->tmfs, (unsigned long long)s->ordered, (unsigned long long)s->faults, (unsigned long long)s->stops,
	       (unsigned long long)s->maps);
	/* A round in which nothing of a kind happened has checked nothing of it. */
	CHECK(!lost || s->faults || s->tmfs);
	CHECK(ended > 100 && s->held_total && s->fences && s->opens && won);
}

static int open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static uint64_t resident(void)
{
	unsigned long long size, pages;
	FILE *f = fopen("/proc/self/statm", "r");

	CHECK(f && fscanf(f, "%llu %llu", &size, &pages) == 2);
	fclose(f);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void play(uint32_t nworkers, uint32_t engine, uint64_t ns, uint64_t seed)
{
	static struct stress s;
	uint64_t end;

	random_state = seed | 1;
	open_all(&s, nworkers, engine, seed);
	for (int n = 0; n < DEPTH; n++) { /* the socket's data are in nobody's guest memory */
		s.initiators[2].commands[n].out = malloc(DATA_MAX);
		s.initiators[2].commands[n].in = malloc(DATA_MAX);
	}
	for (uint32_t i = 0; i < INITIATORS; i++)
		initiator_start(&s.initiators[i]);
	end = vs_now_ns() + ns;
	while (vs_now_ns() < end)
		turn(&s, true);
	for (uint32_t i = 0; i < INITIATORS; i++)
		atomic_store(&s.initiators[i].stop, true);
	end = vs_now_ns() + 20000000000ull;
	while (!at_rest(&s)) {
		turn(&s, false);
		if (vs_now_ns() > end)
			complain(&s);
	}
	for (uint32_t i = 0; i < INITIATORS; i++)
		initiator_join(&s.initiators[i]);
	check_counts(&s);
	report(&s, vs_core_engine_name(s.core));
	close_all(&s);
}

int main(void)
{
	const char *seconds = getenv("STRESS_SECONDS"), *given = getenv("STRESS_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
	uint64_t ns = (seconds ? strtoull(seconds, NULL, 10) : 10) * 1000000000ull / 6;
	uint32_t engine = vs_engine_why_not(VS_ENGINE_URING) ? VS_ENGINE_EPOLL : VS_ENGINE_URING;
	uint64_t memory;
	int before;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("STRESS_SEED=%llu\n", (unsigned long long)seed);
	play(1, VS_ENGINE_EPOLL, ns, seed); /* also opens what is kept for good */
	play(4, engine, ns, seed + 9);
	before = open_descriptors();
	memory = resident();
	for (uint32_t n = 1; n <= 4; n++)
		play(n, n % 2 ? engine : VS_ENGINE_EPOLL, ns, seed + n);
	CHECK_EQ(open_descriptors(), before);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they keep what was freed; the one looks for leaks itself */
	CHECK(resident() < memory + LEAK_MAX);
#else
	(void)memory;
#endif
	return 0;
}
