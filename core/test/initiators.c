// SPDX-License-Identifier: Apache-2.0
/* See initiators.h. */
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "initiators.h"
#include "task.h"
#include "gen/tables.h"

/* ---- what is sent ------------------------------------------------------------------------------------------------------------------------ */

static void fill(uint8_t *p, uint64_t word, uint32_t blocks)
{
	for (uint32_t i = 0; i < blocks * WORDS; i++)
		memcpy(p + 8 * i, &word, 8);
}

static void cdb10(struct command *c, uint8_t opcode)
{
	c->cdb[0] = opcode;
	c->cdb[5] = (uint8_t)c->block;
	c->cdb[8] = (uint8_t)c->blocks;
}

static void make_read(struct initiator *i, struct command *c)
{
	(void)i;
	c->blocks = 1 + (uint32_t)random_below(4);
	c->block = (uint32_t)random_below(BLOCKS - c->blocks + 1);
	c->in_length = c->blocks * BLOCK;
	cdb10(c, 0x28);
	c->cdb[1] = one_in(16) ? 8 : 0; /* FUA */
}

static void make_write(struct initiator *i, struct command *c)
{
	if (one_in(3) && !i->mixed_open) {
		c->block = MIXED + i->index;
		c->blocks = 1;
		i->mixed_open = true;
	} else {
		c->blocks = 1 + (uint32_t)random_below(4);
		c->block = SCRATCH + (uint32_t)random_below(BLOCKS - SCRATCH - c->blocks + 1);
	}
	c->out_length = c->blocks * BLOCK;
	fill(c->out, c->tag, c->blocks);
	cdb10(c, 0x2a);
	c->cdb[1] = one_in(16) ? 8 : 0;
}

static void make_sequence_write(struct initiator *i, struct command *c)
{
	c->block = SEQUENCE + i->index;
	c->blocks = 1;
	c->out_length = BLOCK;
	fill(c->out, c->tag, 1);
	cdb10(c, 0x2a);
}

static void make_caw(struct initiator *i, struct command *c)
{
	c->block = (uint32_t)random_below(COUNTERS + MIXED);
	c->blocks = 1;
	if (c->block == MIXED + i->index)
		c->block = 0;
	c->expected = i->counters[c->block];
	c->out_length = 2 * BLOCK;
	fill(c->out, c->expected, 1);
	fill(c->out + BLOCK, c->expected + 1, 1);
	c->cdb[0] = 0x89;
	c->cdb[9] = (uint8_t)c->block;
	c->cdb[13] = 1;
}

static void make_unmap(struct initiator *i, struct command *c)
{
	uint32_t n = 1 + (uint32_t)random_below(2);

	(void)i;
	c->out_length = 8 + 16 * n;
	memset(c->out, 0, c->out_length);
	c->out[1] = (uint8_t)(6 + 16 * n);
	c->out[3] = (uint8_t)(16 * n);
	for (uint32_t d = 0; d < n; d++) {
		c->out[8 + 16 * d + 7] = (uint8_t)(SCRATCH + random_below(BLOCKS - SCRATCH - 4));
		c->out[8 + 16 * d + 11] = (uint8_t)random_below(5);
	}
	c->cdb[0] = 0x42;
	c->cdb[8] = (uint8_t)c->out_length;
}

static void make_write_same(struct initiator *i, struct command *c)
{
	(void)i;
	c->blocks = 1 + (uint32_t)random_below(8);
	c->block = SCRATCH + (uint32_t)random_below(BLOCKS - SCRATCH - 8);
	c->out_length = BLOCK;
	fill(c->out, one_in(2) ? 0 : c->tag, 1);
	c->cdb[0] = 0x93;
	c->cdb[9] = (uint8_t)c->block;
	c->cdb[13] = (uint8_t)c->blocks;
}

static const struct { enum command_kind kind; uint32_t weight; } mix[] = {
	{ READ, 20 }, { WRITE, 15 }, { SEQUENCE_WRITE, 30 }, { CAW, 8 }, { SYNC, 3 }, { UNMAP, 4 }, { WRITE_SAME, 4 }, { TUR, 8 }, { INQUIRY, 4 }, { UNKNOWN, 4 },
};

static enum command_kind draw(void)
{
	uint32_t n = (uint32_t)random_below(100), i = 0;

	while (n >= mix[i].weight)
		n -= mix[i++].weight;
	return mix[i].kind;
}

static void make(struct initiator *i, struct command *c)
{
	c->tag = ++i->tag;
	c->kind = draw();
	c->block = c->blocks = c->out_length = c->in_length = 0;
	c->attribute = one_in(60) ? VS_ATTR_ORDERED : one_in(60) ? VS_ATTR_HEAD_OF_QUEUE : VS_ATTR_SIMPLE;
	memset(c->cdb, 0, sizeof(c->cdb));
	switch (c->kind) {
	case READ: make_read(i, c); break;
	case WRITE: make_write(i, c); break;
	case SEQUENCE_WRITE: make_sequence_write(i, c); break;
	case CAW: make_caw(i, c); break;
	case SYNC: c->cdb[0] = 0x35; c->cdb[1] = one_in(4) ? 2 : 0; break;
	case UNMAP: make_unmap(i, c); break;
	case WRITE_SAME: make_write_same(i, c); break;
	case INQUIRY: c->cdb[0] = 0x12; c->cdb[4] = 96; c->in_length = 96; break;
	case UNKNOWN: c->cdb[0] = 0xc9; break;
	default: break; /* TEST UNIT READY is all zeroes */
	}
	if (c->kind == CAW && one_in(3))
		c->cdb[15] = 4; /* NACA: should it fail, the others are stopped before */
}

/* ---- what comes back ----------------------------------------------------------------------------------------------------------------------- */

static void judge_read(const struct initiator *i, const struct command *c)
{
	CHECK_EQ(c->residual, 0);
	for (uint32_t b = 0; b < c->blocks; b++) {
		uint64_t first, word;

		if (c->block + b >= SEQUENCE)
			continue; /* plain writes may tear reads */
		/* Of the mixed blocks a plain write may tear this plain read, too. */
		if (c->block + b >= MIXED)
			continue;
		memcpy(&first, c->in + b * BLOCK, 8);
		for (uint32_t w = 1; w < WORDS; w++) {
			memcpy(&word, c->in + b * BLOCK + 8 * w, 8);
			CHECK_EQ(word, first);
		}
		(void)i;
	}
}

static void judge_caw(struct initiator *i, struct command *c, bool ran)
{
	bool counter = c->block < COUNTERS;

	if (!ran) {
		if (counter)
			i->maybe[c->block]++;
		i->counters[c->block] = UINT64_MAX; /* who knows: read it by failing */
		return;
	}
	if (c->status == VS_STATUS_GOOD) {
		CHECK_EQ(c->residual, 0);
		i->won++;
		if (counter)
			i->wins[c->block]++;
		i->counters[c->block] = c->expected + 1;
	} else {
		CHECK_EQ(c->status, VS_STATUS_CHECK_CONDITION);
		i->lost++;
	}
}

/* The counters as others have moved them on. */
static void learn(struct initiator *i, const struct command *c)
{
	for (uint32_t b = 0; b < c->blocks; b++)
		if (c->block + b < COUNTERS + MIXED)
			memcpy(&i->counters[c->block + b], c->in + b * BLOCK, 8);
}

static void judge(struct initiator *i, struct command *c)
{
	bool ran = c->response == VS_RESP_OK && c->status != VS_STATUS_TASK_SET_FULL;

	CHECK(c->kind != NONE);
	i->ended++;
	if (c->kind == WRITE && c->block == MIXED + i->index)
		i->mixed_open = false;
	if (c->response != VS_RESP_OK) {
		CHECK(c->response == VS_RESP_ABORTED || c->response == VS_RESP_RESET);
		i->aborted++;
	} else if (c->status == VS_STATUS_TASK_SET_FULL) {
		i->full++;
		usleep((useconds_t)random_below(300)); /* what the status asks for */
	} else if (c->kind == UNKNOWN) {
		CHECK_EQ(c->status, VS_STATUS_CHECK_CONDITION);
	} else if (c->kind != CAW) {
		CHECK_EQ(c->status, VS_STATUS_GOOD);
	}
	if (c->kind == CAW)
		judge_caw(i, c, ran);
	if (c->kind == READ && ran) {
		judge_read(i, c);
		learn(i, c);
	}
	if (c->kind == INQUIRY && ran) {
		CHECK_EQ(c->residual, 96 - 36);
		CHECK_EQ(c->in[8], 'v');
	}
	c->kind = NONE;
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------------------ */

static void note_oldest(struct initiator *i)
{
	uint64_t oldest = UINT64_MAX;

	for (int n = 0; n < DEPTH; n++)
		if (i->commands[n].kind != NONE)
			oldest = vs_min(oldest, i->commands[n].tag);
	atomic_store(&i->oldest, oldest);
}

static bool send_one(struct initiator *i)
{
	for (int n = 0; n < DEPTH; n++) {
		struct command *c = &i->commands[n];

		if (c->kind != NONE)
			continue;
		make(i, c);
		CHECK(i->wiring->send(i, c)); /* DEPTH fits everywhere */
		i->open++;
		i->sent++;
		note_oldest(i);
		atomic_store(&i->sent_tag, c->tag);
		return true;
	}
	return false;
}

static bool receive_one(struct initiator *i)
{
	struct command *c = i->wiring->receive(i);

	if (!c)
		return false;
	judge(i, c);
	i->open--;
	note_oldest(i);
	return true;
}

static void *run(void *arg)
{
	struct initiator *i = arg;

	random_state = i->seed;
	while (!atomic_load(&i->stop) || i->open) {
		bool did = false;

		while (receive_one(i))
			did = true;
		for (uint64_t n = random_below(DEPTH); n && !atomic_load(&i->stop); n--)
			did |= send_one(i);
		if (!did)
			usleep(20);
		else if (one_in(50))
			usleep((useconds_t)random_below(500));
	}
	atomic_store(&i->finished, true);
	return NULL;
}

void initiator_start(struct initiator *i)
{
	i->tag = (uint64_t)i->index << TAG_INITIATOR_SHIFT;
	CHECK_EQ(pthread_create(&i->thread, NULL, run, i), 0);
}

void initiator_join(struct initiator *i) { CHECK_EQ(pthread_join(i->thread, NULL), 0); }

/* ---- a virtio ring ----------------------------------------------------------------------------------------------------------------------------- */

static bool ring_send(struct initiator *i, struct command *c)
{
	struct vs_driver_buffer buffers[6];
	uint8_t *request = vs_guest_ptr(i->guest, c->request_addr);
	uint32_t nout = 0, nin = 0;
	int head;

	memset(request, 0, REQUEST_BYTES);
	request[0] = 1;
	memcpy(request + 8, &c->tag, 8);
	request[16] = c->attribute;
	memcpy(request + 19, c->cdb, sizeof(c->cdb));
	buffers[nout++] = (struct vs_driver_buffer){ c->request_addr, REQUEST_BYTES };
	if (c->out_length > BLOCK) { /* in two pieces */
		buffers[nout++] = (struct vs_driver_buffer){ c->out_addr, BLOCK };
		buffers[nout++] = (struct vs_driver_buffer){ c->out_addr + BLOCK, c->out_length - BLOCK };
	} else if (c->out_length) {
		buffers[nout++] = (struct vs_driver_buffer){ c->out_addr, c->out_length };
	}
	buffers[nout + nin++] = (struct vs_driver_buffer){ c->response_addr, RESPONSE_BYTES };
	if (c->in_length)
		buffers[nout + nin++] = (struct vs_driver_buffer){ c->in_addr, c->in_length };
	head = vs_driver_add(&i->driver, buffers, nout, nin, false);
	if (head < 0)
		return false;
	i->head_to_command[head] = (uint32_t)(c - i->commands);
	if (vs_driver_publish(&i->driver)) {
		uint64_t one = 1;
		int fd = atomic_load(&i->kick_fd);

		if (fd >= 0)
			CHECK_EQ(write(fd, &one, sizeof(one)), sizeof(one));
	}
	return true;
}

static struct command *ring_receive(struct initiator *i)
{
	uint32_t head, written;
	int err = vs_driver_collect(&i->driver, &head, &written);
	struct command *c;
	const uint8_t *r;

	CHECK(err >= 0);
	if (!err)
		return NULL;
	c = &i->commands[i->head_to_command[head]];
	r = vs_guest_ptr(i->guest, c->response_addr);
	CHECK(written >= RESPONSE_BYTES);
	memcpy(&c->residual, r + 4, 4);
	c->status = r[10];
	c->response = r[11];
	return c;
}

const struct wiring ring_wiring = { .send = ring_send, .receive = ring_receive };

/* ---- the socket -------------------------------------------------------------------------------------------------------------------------------- */

static bool socket_wire(struct initiator *i, struct command *c)
{
	struct wire_command w = { .tag = c->tag, .out_length = c->out_length, .in_length = c->in_length, .attribute = c->attribute, .truncate = 1 };
	size_t n = offsetof(struct wire_command, data) + c->out_length;

	memcpy(w.cdb, c->cdb, sizeof(w.cdb));
	memcpy(w.data, c->out, c->out_length);
	return send(i->fd, &w, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static struct command *socket_unwire(struct initiator *i)
{
	struct wire_status s;
	ssize_t n = recv(i->fd, &s, sizeof(s), MSG_DONTWAIT);

	if (n < 0)
		return NULL;
	CHECK_EQ(n, offsetof(struct wire_status, data) + s.in_length);
	for (int k = 0; k < DEPTH; k++) {
		struct command *c = &i->commands[k];

		if (c->kind == NONE || c->tag != s.tag)
			continue;
		c->status = s.status;
		c->response = s.response;
		c->residual = s.residual;
		CHECK(s.in_length <= c->in_length);
		memcpy(c->in, s.data, s.in_length);
		return c;
	}
	CHECK(!"a status for a command that is not open");
	return NULL;
}

const struct wiring socket_wiring = { .send = socket_wire, .receive = socket_unwire };

/* ---- the chip ----------------------------------------------------------------------------------------------------------------------------------- */

static bool chip_ring_bell(struct initiator *i, struct command *c)
{
	uint32_t n = (uint32_t)(c - i->commands), at = i->chip->producer;
	struct chip_block *b = &i->chip->blocks[n];
	uint64_t addr = c->out_length ? c->out_addr : c->in_addr, length = c->out_length + c->in_length, one = 1;

	*b = (struct chip_block){ .tag = c->tag, .attribute = c->attribute, .out_length = c->out_length, .in_length = c->in_length };
	memcpy(b->cdb, c->cdb, sizeof(b->cdb));
	if (length) {
		uint64_t first = length > BLOCK ? BLOCK : length;

		b->segments[b->nsegments].addr = addr;
		b->segments[b->nsegments++].length = first;
		if (length > first) {
			b->segments[b->nsegments].addr = addr + first;
			b->segments[b->nsegments++].length = length - first;
		}
	}
	i->chip->ring[at % PORT_SLOTS] = n;
	vs_shared_release(&i->chip->producer);
	__atomic_store_n(&i->chip->producer, at + 1, __ATOMIC_RELEASE);
	CHECK_EQ(write(i->fd, &one, sizeof(one)), sizeof(one));
	return true;
}

static struct command *chip_look(struct initiator *i)
{
	for (int n = 0; n < DEPTH; n++) {
		struct command *c = &i->commands[n];
		struct chip_block *b = &i->chip->blocks[n];

		if (c->kind == NONE || !__atomic_load_n(&b->done, __ATOMIC_ACQUIRE))
			continue;
		vs_shared_acquire(&b->done);
		CHECK_EQ(b->tag, c->tag);
		c->status = (uint8_t)b->status;
		c->response = (uint8_t)b->response;
		c->residual = b->residual;
		b->done = 0;
		return c;
	}
	return NULL;
}

const struct wiring chip_wiring = { .send = chip_ring_bell, .receive = chip_look };
