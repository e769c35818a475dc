/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract that every store keeps, checked over each of them and over compositions, with both engines: bytes against a model, one io at
 * a time and 32 at once from two workers, ranges, read-only. What only one kind of store does is in test_store_kinds.c.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "store_rig.h"

enum { SIZE = (1 << 20) + 3 * 4096, LONGEST = 600 << 10, SLOTS = 32 };

static char folder[] = "/var/tmp/vhost-scsi-store-XXXXXX";
static struct rig_python python_side;

/* ---- subjects --------------------------------------------------------------------------------------------------------------------- */

static char why[300];

static void image(char *path, size_t size, const char *name)
{
	int fd;

	snprintf(path, size, "%s/%s", folder, name);
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	close(fd);
}

static struct vs_store *memory(struct rig *r)
{
	struct vs_store *s = NULL;

	CHECK(vs_store_memory(r->core, SIZE, 0, &s, why, sizeof(why)) == 0);
	return s;
}

static struct vs_store *huge(struct rig *r)
{
	struct vs_store *s = NULL;

	CHECK(vs_store_memory(r->core, SIZE, 1, &s, why, sizeof(why)) == 0);
	return s;
}

static struct vs_store *file(struct rig *r, uint32_t flags)
{
	struct vs_store *s = NULL;
	char path[200];

	image(path, sizeof(path), "disk");
	if (vs_store_file(r->core, path, flags, &s, why, sizeof(why)) != 0) {
		fprintf(stderr, "%s\n", why);
		CHECK(!"the file store cannot be opened");
	}
	return s;
}

static struct vs_store *buffered(struct rig *r) { return file(r, 0); }
static struct vs_store *direct(struct rig *r) { return file(r, VS_FILE_DIRECT); }

static struct vs_store *delay(struct rig *r, struct vs_store *lower)
{
	struct vs_store *s = NULL;

	CHECK(vs_store_delay(r->core, lower, 20, 50, 20, &s, why, sizeof(why)) == 0);
	return s;
}

static struct vs_store *delay_memory(struct rig *r) { return delay(r, memory(r)); }

static struct vs_store *no_faults(struct rig *r, struct vs_store *lower)
{
	/* A rule that never matches: everything must go by unchanged. */
	struct vs_fault_rule rule = { .ops = 1u << VS_IO_WRITE, .kind = VS_FAULT_ERROR, .error = VS_ERR_WRITE, .skip = UINT64_MAX };
	struct vs_store *s = NULL;

	CHECK(vs_store_faulty(r->core, lower, &rule, 1, &s, why, sizeof(why)) == 0);
	return s;
}

static struct vs_store *faulty_file(struct rig *r) { return no_faults(r, buffered(r)); }

static struct vs_store *overlay(struct rig *r, struct vs_store *lower, const char *name, uint32_t block)
{
	struct vs_store *s = NULL;
	char path[200];

	if (name) {
		snprintf(path, sizeof(path), "%s/%s", folder, name);
		unlink(path);
	}
	if (vs_store_overlay(r->core, lower, name ? path : NULL, block, &s, why, sizeof(why)) != 0) {
		fprintf(stderr, "%s\n", why);
		CHECK(!"the overlay cannot be opened");
	}
	return s;
}

static struct vs_store *overlay_memory(struct rig *r) { return overlay(r, memory(r), NULL, 4096); }
static struct vs_store *overlay_file(struct rig *r) { return overlay(r, buffered(r), "upper", 65536); }
static struct vs_store *overlay_direct(struct rig *r) { return overlay(r, direct(r), NULL, 512); }
static struct vs_store *overlay_twice(struct rig *r) { return overlay(r, overlay(r, memory(r), NULL, 16384), "upper", 4096); }
static struct vs_store *overlay_delay(struct rig *r) { return overlay(r, delay(r, memory(r)), NULL, 4096); }

static struct vs_store *python(struct rig *r)
{
	free(python_side.data);
	python_side = (struct rig_python){ .data = calloc(1, SIZE), .size = SIZE };
	CHECK(python_side.data);
	return rig_python_open(r, &python_side);
}

static struct vs_store *faulty_python(struct rig *r) { return no_faults(r, python(r)); }

struct subject { const char *name; struct vs_store *(*open)(struct rig *); int rounds; };
static const struct subject subjects[] = {
	{ "memory", memory, 2000 },
	{ "memory with huge pages", huge, 1000 },
	{ "file", buffered, 2000 },
	{ "file, direct", direct, 1500 },
	{ "python", python, 1000 },
	{ "delay(memory)", delay_memory, 500 },
	{ "faulty(file)", faulty_file, 800 },
	{ "faulty(python)", faulty_python, 500 },
	{ "overlay(memory)", overlay_memory, 2000 },
	{ "overlay(file) in a file", overlay_file, 1000 },
	{ "overlay(direct file)", overlay_direct, 800 },
	{ "overlay(overlay(memory)) in a file", overlay_twice, 1000 },
	{ "overlay(delay(memory))", overlay_delay, 500 },
};

/* ---- bytes against a model --------------------------------------------------------------------------------------------------------- */

static uint8_t model[SIZE];
static uint8_t *buffers[SLOTS];

static void fill(uint8_t *data, uint64_t n)
{
	uint64_t i;

	for (i = 0; i + 8 <= n; i += 8) {
		uint64_t r = rig_random();

		memcpy(data + i, &r, 8);
	}
	for (; i < n; i++)
		data[i] = (uint8_t)rig_random();
}

/* Odd bytes, sectors, pages; mostly short, now and then longer than any buffer inside a store. */
static void random_range(uint64_t *offset, uint64_t *length)
{
	static const uint64_t units[] = { 1, 1, 512, 4096 };
	uint64_t unit = units[rig_between(0, 3)], longest = rig_between(0, 19) ? 12000 : LONGEST;

	*length = rig_between(1, longest / unit) * unit;
	*offset = rig_between(0, (SIZE - *length) / unit) * unit;
}

static uint8_t random_op(void)
{
	static const uint8_t ops[] = { VS_IO_READ, VS_IO_READ, VS_IO_READ, VS_IO_WRITE, VS_IO_WRITE, VS_IO_WRITE, VS_IO_ZERO, VS_IO_UNMAP, VS_IO_FLUSH };

	return ops[rig_between(0, sizeof(ops) - 1)];
}

static uint8_t random_flags(uint8_t op)
{
	uint8_t flags = 0;

	if (op != VS_IO_READ && op != VS_IO_FLUSH && rig_between(0, 9) == 0)
		flags |= VS_IO_FUA;
	if (op == VS_IO_ZERO && rig_between(0, 1))
		flags |= VS_IO_MAY_UNMAP;
	return flags;
}

/* Prepares a random io in the slot; what it writes is put into the model at once. */
static void prepare(struct shot *s, struct vs_store *store, uint8_t op, uint64_t offset, uint64_t length, uint8_t *data)
{
	uint64_t sectors = (offset | length) % 512 ? 1 : 512, unit = rig_between(0, 2) ? sectors : 1;

	shot_set(s, store, op, random_flags(op), offset, length, data + (unit == 1 ? rig_between(0, 3) : 0));
	shot_cut(s, s->inline_iov, (int)rig_between(1, SHOT_IOVECS), unit);
	if (op == VS_IO_WRITE) {
		fill(s->data, length);
		memcpy(model + offset, s->data, length);
	} else if (op == VS_IO_ZERO || op == VS_IO_UNMAP) {
		memset(model + offset, 0, length);
	} else if (op == VS_IO_READ) {
		memset(s->data, 0xee, length);
	}
}

static void judge(const struct shot *s)
{
	if (s->io.err)
		fprintf(stderr, "op %u offset %llu length %llu: error %d\n", s->io.op, (unsigned long long)s->io.offset,
			(unsigned long long)s->io.length, s->io.err);
	CHECK(s->io.err == VS_ERR_NONE);
	if (s->io.op == VS_IO_READ)
		CHECK(memcmp(s->data, model + s->io.offset, s->io.length) == 0);
}

static void one_at_a_time(struct rig *rig, struct vs_store *store, int rounds)
{
	struct shot s;
	int i;

	for (i = 0; i < rounds; i++) {
		uint64_t offset, length;

		random_range(&offset, &length);
		prepare(&s, store, random_op(), offset, length, buffers[0]);
		shot_send(rig, &s, (uint32_t)rig_between(0, RIG_WORKERS - 1));
		shot_wait(rig, &s);
		judge(&s);
	}
}

static bool free_of_others(const struct shot *shots, const bool *busy, uint64_t offset, uint64_t length)
{
	int i;

	for (i = 0; i < SLOTS; i++)
		if (busy[i] && shots[i].io.op != VS_IO_FLUSH && offset < shots[i].io.offset + shots[i].io.length &&
		    shots[i].io.offset < offset + length)
			return false;
	return true;
}

/* No two overlap in a byte, but many are in one unit, block or page: within 64 KiB of each other. */
static void many_at_once(struct rig *rig, struct vs_store *store, int rounds)
{
	static struct shot shots[SLOTS];
	bool busy[SLOTS] = { false };
	int i, sent = 0, flying = 0;

	while (sent < rounds || flying) {
		for (i = 0; i < SLOTS && sent < rounds; i++) {
			uint64_t window = (uint64_t)(sent / 200 % 8) * 65536, length = rig_between(1, 3000), offset = window + rig_between(0, 60000);

			if (busy[i] || !free_of_others(shots, busy, offset, length))
				continue;
			prepare(&shots[i], store, random_op(), offset, length, buffers[i]);
			busy[i] = true;
			shot_send(rig, &shots[i], (uint32_t)i % RIG_WORKERS);
			sent++;
			flying++;
		}
		rig_pump(rig, 20000);
		for (i = 0; i < SLOTS; i++) {
			if (!busy[i] || !shots[i].ended)
				continue;
			judge(&shots[i]);
			busy[i] = false;
			flying--;
		}
	}
}

static void all_of_it(struct rig *rig, struct vs_store *store)
{
	uint8_t *all = malloc(SIZE);

	CHECK(all && rig_io(rig, store, VS_IO_READ, 0, 0, SIZE, all) == VS_ERR_NONE);
	CHECK(memcmp(all, model, SIZE) == 0);
	free(all);
}

/* ---- limits ------------------------------------------------------------------------------------------------------------------------ */

static void limits(struct rig *rig, struct vs_store *store)
{
	static const uint8_t ops[] = { VS_IO_READ, VS_IO_WRITE, VS_IO_UNMAP, VS_IO_ZERO };
	struct vs_store_stats before, after;
	struct vs_store_info info;
	uint8_t *data = buffers[0];
	size_t i;

	vs_store_info(store, &info);
	CHECK(info.size == SIZE && !info.failed && !info.read_only && info.io_align && !(info.io_align & (info.io_align - 1)));
	vs_store_stats(store, &before);
	for (i = 0; i < sizeof(ops); i++) {
		CHECK(rig_io(rig, store, ops[i], 0, SIZE, 1, data) == VS_ERR_RANGE);
		CHECK(rig_io(rig, store, ops[i], 0, SIZE - 511, 512, data) == VS_ERR_RANGE);
		CHECK(rig_io(rig, store, ops[i], 0, UINT64_MAX - 511, 1024, data) == VS_ERR_RANGE);
		CHECK(rig_io(rig, store, ops[i], 0, 4096, UINT64_MAX - 2048, data) == VS_ERR_RANGE);
		CHECK(rig_io(rig, store, ops[i], 0, SIZE, 0, data) == VS_ERR_NONE);
	}
	vs_store_stats(store, &after);
	CHECK(after.errors[VS_IO_READ] - before.errors[VS_IO_READ] == 4 && after.errors[VS_IO_ZERO] - before.errors[VS_IO_ZERO] == 4);
	CHECK(after.ops[VS_IO_WRITE] - before.ops[VS_IO_WRITE] == 1 && after.bytes[VS_IO_WRITE] == before.bytes[VS_IO_WRITE]);
	CHECK(rig_io(rig, store, VS_IO_OPS, 0, 0, 1, data) == VS_ERR_UNSUPPORTED);
	all_of_it(rig, store);
}

static void contract(struct rig *rig, const struct subject *subject)
{
	struct vs_store *store = subject->open(rig);

	printf("  %s\n", subject->name);
	fflush(stdout);
	memset(model, 0, sizeof(model));
	all_of_it(rig, store); /* new: zeroes */
	one_at_a_time(rig, store, subject->rounds);
	all_of_it(rig, store);
	many_at_once(rig, store, subject->rounds);
	all_of_it(rig, store);
	limits(rig, store);
	vs_store_destroy(store);
}

static void with_engine(uint32_t engine)
{
	struct rig rig;
	size_t i;

	rig_start(&rig, engine);
	printf(" %s\n", vs_core_engine_name(rig.core));
	for (i = 0; i < sizeof(subjects) / sizeof(subjects[0]); i++)
		contract(&rig, &subjects[i]);
	/* Once more with transfers that the kernel carries out in part, or is interrupted in. */
	rig_engine.shorten = true;
	rig_engine.interrupt = 300;
	contract(&rig, &subjects[2]);
	contract(&rig, &subjects[3]);
	rig_engine.shorten = false;
	CHECK(rig_engine.interrupt == 0);
	rig_stop(&rig);
}

int main(void)
{
	char command[300];
	int i;

	CHECK(mkdtemp(folder));
	for (i = 0; i < SLOTS; i++)
		CHECK(posix_memalign((void **)&buffers[i], 4096, LONGEST + 4096) == 0);
	with_engine(VS_ENGINE_EPOLL);
	if (vs_engine_why_not(VS_ENGINE_URING))
		printf(" io_uring left out: %s\n", vs_engine_why_not(VS_ENGINE_URING));
	else
		with_engine(VS_ENGINE_URING);
	for (i = 0; i < SLOTS; i++)
		free(buffers[i]);
	free(python_side.data);
	snprintf(command, sizeof(command), "rm -r %s", folder);
	CHECK(system(command) == 0);
	return 0;
}
