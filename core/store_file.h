/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of the file store know of each other: opening and asking (store_file.c), and carrying out ios (store_file_io.c). */
#ifndef VS_STORE_FILE_H
#define VS_STORE_FILE_H

#include "store.h"

enum { FILE_BUFFER = 256 << 10, FILE_BUFFERS = 64 };

struct file_store {
	struct vs_store store;
	int fd;
	bool block_device, direct;
	/* Learnt while running, by any worker: what the file system refused is not asked again. */
	_Atomic bool no_zero_range, no_punch;
	/* Where somebody cut the file off, as far as we know; UINT64_MAX: nowhere. What lies behind is gone even when the file grows again. */
	_Atomic uint64_t cut_off;
	uint32_t unit;       /* of direct I/O: offsets and lengths; 1 when buffered */
	uint32_t memory_unit; /* of direct I/O: addresses */
	uint32_t sector;     /* of a block device: what fallocate takes there; 1 for a file */
	struct vs_spans spans;
	struct vs_buffers buffers;
};

static inline struct file_store *file_of(struct vs_store *s)
{
	return vs_container_of(s, struct file_store, store);
}

enum vs_submit vs_file_submit(struct vs_store *s, struct vs_io *io);

#endif
