// SPDX-License-Identifier: Apache-2.0
/* See vring_rig.h. */
#include "vring_rig.h"

void bench_open_at(struct bench *b, uint32_t size, uint32_t features, uint32_t nregions, uint16_t idx)
{
	struct vs_config config = { .nworkers = 1, .io_threads = 1, .engine = VS_ENGINE_EPOLL, .poll_mode = VS_POLL_NEVER };
	struct vs_queue_params p;

	memset(b, 0, sizeof(*b));
	b->w = aligned_alloc(VS_CACHE_LINE, sizeof(*b->w)); /* only its iovec lists are used */
	CHECK(b->w);
	memset(b->w, 0, sizeof(*b->w));
	CHECK_EQ(vs_core_create(&config, &b->core), 0);
	CHECK_EQ(vs_guest_create((16 * TABLE + 64ull) * size + 2 * DATA, nregions, &b->g), 0);
	CHECK_EQ(vs_driver_create(&b->g, size, features, features & INDIRECT ? TABLE : 0, &b->d), 0);
	vs_driver_reset(&b->d, idx);
	b->data = vs_guest_alloc(&b->g, DATA, 4096);
	CHECK(b->data);
	CHECK_EQ(vs_memmap_create(b->core, b->g.regions, b->g.nregions, NULL, 0, &b->map), 0);
	vs_driver_params(&b->d, &p);
	if (!(features & PACKED))
		CHECK_EQ(p.base, idx);
	CHECK_EQ(vs_vring_init(&b->r, b->map, &p), 0);
}

void bench_open(struct bench *b, uint32_t size, uint32_t features)
{
	bench_open_at(b, size, features, 1, 0);
}

void bench_close(struct bench *b)
{
	for (int i = 0; i < VS_IOV_CLASSES; i++)
		for (struct vs_iovec_block *f = b->w->iov_free[i], *next; f; f = next) {
			next = f->next;
			free(f);
		}
	free(b->w);
	vs_memmap_destroy(b->map);
	vs_driver_destroy(&b->d);
	vs_guest_destroy(&b->g);
	vs_core_destroy(b->core);
}

int bench_take(struct bench *b)
{
	int n = vs_vring_available(&b->r);

	if (n <= 0)
		return n ? n : 1;
	b->c = (struct vs_chain){ .iov = b->inline_iov, .capacity = INLINE };
	return vs_vring_pop(&b->r, b->w, &b->c);
}

void bench_give_iov_back(struct bench *b)
{
	if (b->c.iov != b->inline_iov)
		vs_iovec_put(b->w, b->c.iov, b->c.capacity);
	b->c.iov = b->inline_iov;
}

void *bench_host(struct bench *b, uint64_t addr)
{
	return vs_memmap_guest(b->map, addr, 1, NULL);
}

void bench_post(struct bench *b, uint32_t nout, uint32_t nin, bool indirect)
{
	struct vs_driver_buffer bufs[TABLE];

	for (uint32_t i = 0; i < nout + nin; i++)
		bufs[i] = (struct vs_driver_buffer){ b->data + 1024 * i, 512 };
	CHECK_EQ(vs_driver_add(&b->d, bufs, nout, nin, indirect), 0);
	vs_driver_publish(&b->d);
}

static uint64_t seed = 88172645463325252ull;

uint32_t bench_rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 33) % below;
}
