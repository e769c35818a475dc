// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's side of a virtio-scsi request queue for a back end in another process: random reads at one depth, by polling. It prints where its
 * ring lies, as one JSON object, and then one object for each line "SECONDS" that it is given. Whoever starts it tells the back end of the ring;
 * what is measured with it is inspect.py's.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "driver.h"

enum { BLOCK = 512, LENGTH = 4096, HEADER = 51, RESPONSE = 108, DEPTH_MAX = 256, RING = 256, CLOCK_EVERY = 64 };

struct slot { uint8_t *header, *response; struct vs_driver_buffer buffers[3]; };

static struct vs_guest guest;
static struct vs_driver driver;
static struct slot slots[DEPTH_MAX];
static uint32_t slot_of[RING], depth;
static uint64_t blocks, state = 88172645463325252ull;
static bool warm; /* the unit attention of a new nexus ends reads of the first run */

static void die(const char *what)
{
	fprintf(stderr, "guest: %s\n", what);
	exit(1);
}

static void make_slots(void)
{
	uint64_t at = vs_guest_alloc(&guest, depth * (uint64_t)(256 + LENGTH), 4096);

	if (!at)
		die("no memory");
	for (uint32_t i = 0; i < depth; i++, at += 256 + LENGTH) {
		struct slot *s = &slots[i];

		s->buffers[0] = (struct vs_driver_buffer){ at, HEADER };
		s->buffers[1] = (struct vs_driver_buffer){ at + 128, RESPONSE };
		s->buffers[2] = (struct vs_driver_buffer){ at + 256, LENGTH };
		s->header = vs_guest_ptr(&guest, at);
		s->response = s->header + 128;
		/* virtio 1.3, 5.6.6.1: target 0, LUN 0; READ(10) of 8 blocks behind 19 bytes. */
		s->header[0] = 1;
		s->header[2] = 0x40;
		s->header[19] = 0x28;
		s->header[19 + 8] = LENGTH / BLOCK;
	}
}

static void submit(uint32_t i)
{
	uint32_t be;
	int head;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	be = __builtin_bswap32((uint32_t)(state % (blocks / (LENGTH / BLOCK)) * (LENGTH / BLOCK)));
	memcpy(slots[i].header + 19 + 2, &be, 4);
	slots[i].response[10] = slots[i].response[11] = 0xff;
	head = vs_driver_add(&driver, slots[i].buffers, 1, 2, true);
	if (head < 0)
		die("the ring is full");
	slot_of[head] = i;
}

static uint32_t collect(bool again)
{
	uint32_t head, written, n = 0;
	int r;

	while ((r = vs_driver_collect(&driver, &head, &written)) == 1) {
		const struct slot *s = &slots[slot_of[head]];

		if (warm && (s->response[10] || s->response[11] || written != RESPONSE + LENGTH))
			die("a read that did not end well");
		if (again)
			submit(slot_of[head]);
		n++;
	}
	if (r < 0)
		die("used ring");
	if (n && again)
		vs_driver_publish(&driver);
	return n;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run(double seconds)
{
	uint64_t done = 0, left = depth;
	double start = now(), end = start + seconds, at = start;

	for (uint32_t i = 0; i < depth; i++)
		submit(i);
	vs_driver_publish(&driver);
	for (uint32_t rounds = 1; at < end; rounds++) {
		uint32_t n = collect(true);

		done += n;
		if (!n)
			vs_pause();
		if (rounds % CLOCK_EVERY == 0)
			at = now();
	}
	while (left)
		left -= collect(false);
	printf("{\"iops\": %.0f, \"completed\": %llu}\n", (double)done / (at - start), (unsigned long long)done);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc != 4)
		die("usage: guest DEPTH BLOCKS CPU");
	depth = (uint32_t)atoi(argv[1]);
	blocks = strtoull(argv[2], NULL, 10);
	if (!depth || depth > DEPTH_MAX || blocks < LENGTH / BLOCK)
		die("depth or blocks");
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[3]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	if (vs_guest_create((4 << 20) + depth * (uint64_t)(256 + LENGTH), 1, &guest) ||
	    vs_driver_create(&guest, RING, VS_RING_VERSION_1 | VS_RING_INDIRECT | VS_RING_EVENT_IDX, 4, &driver))
		die("no memory");
	memset(guest.base, 0, 4096);
	make_slots();
	vs_driver_interrupts_off(&driver);
	printf("{\"fd\": %d, \"size\": %llu, \"guest_addr\": %llu, \"ring\": %d, \"desc\": %llu, \"avail\": %llu, \"used\": %llu}\n", guest.fd,
	       (unsigned long long)guest.size, VS_GUEST_ADDR, RING, (unsigned long long)driver.desc_addr, (unsigned long long)driver.avail_addr,
	       (unsigned long long)driver.used_addr);
	fflush(stdout);
	for (; fgets(line, sizeof(line), stdin); warm = true)
		run(atof(line));
	vs_driver_destroy(&driver);
	vs_guest_destroy(&guest);
	return 0;
}
