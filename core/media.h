/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the media commands say to each other: media_check.c takes a CDB apart and refuses it, media_rw.c, media_fill.c and
 * media_verify.c are the commands as rows of store operations, media_sense.c is how they end, media.c drives them. Nobody else includes this.
 */
#ifndef VS_MEDIA_H
#define VS_MEDIA_H

#include "task.h"
#include "gen/tables.h"

enum { CHUNK = 1 << 20 }; /* bounce buffers: how much is compared, verified or filled at a time */

/* What a step says: the task has its outcome, or t->io stands ready to be submitted. */
#define ENDED true
#define SUBMIT false

/* ---- outcomes: each returns ENDED (media_sense.c) ----------------------------------------------------------------------------------------- */

bool vs_media_illegal(struct vs_task *t, uint16_t asc);
bool vs_media_bad_field(struct vs_task *t, uint16_t byte, uint8_t bit);
bool vs_media_bad_parameter(struct vs_task *t, uint16_t byte);
bool vs_media_out_of_range(struct vs_task *t, uint64_t lba);
bool vs_media_miscompare(struct vs_task *t, uint64_t offset);
bool vs_media_marked_bad(struct vs_task *t, uint64_t lba);
bool vs_media_store_error(struct vs_task *t, int32_t err);
/* A failed flush is latched by the store: from now on Python decides what may still be promised, and is told once. */
void vs_media_tell_failed(struct vs_lu *lu, struct vs_store *store, struct vs_worker *w);

/* ---- checking (media_check.c) ------------------------------------------------------------------------------------------------------------- */

/* ENDED: refused, or nothing to do; SUBMIT: the medium will be touched. t->m says how. */
bool vs_media_check(struct vs_task *t);
/* Its first part: ENDED when a bit is set that the row does not have. */
bool vs_media_check_reserved(struct vs_task *t);
/* The blocks that the command touches, for range locks. */
void vs_media_extent(const struct vs_task *t, uint64_t *lba, uint64_t *blocks);

/* ---- the commands ---------------------------------------------------------------------------------------------------------------------------- */

bool vs_media_read(struct vs_task *t);              /* media_rw.c */
bool vs_media_write(struct vs_task *t);
bool vs_media_prefetch(struct vs_task *t);
bool vs_media_sync(struct vs_task *t);
bool vs_media_unmap(struct vs_task *t);             /* media_fill.c */
bool vs_media_write_same(struct vs_task *t);
bool vs_media_verify(struct vs_task *t);            /* media_verify.c */
bool vs_media_write_and_verify(struct vs_task *t);
bool vs_media_compare_and_write(struct vs_task *t);
bool vs_media_orwrite(struct vs_task *t);

/* ---- what they share ---------------------------------------------------------------------------------------------------------------------------- */

/* The next store operation of a task: `step` runs after it has ended well. */
static inline bool prepare(struct vs_task *t, uint8_t op, uint8_t flags, uint64_t offset, uint64_t length, struct iovec *iov, int niov,
			   bool (*step)(struct vs_task *))
{
	struct vs_io *io = &t->io;

	io->op = op;
	io->flags = flags;
	io->offset = offset;
	io->length = length;
	io->iov = iov;
	io->niov = niov;
	io->lend = false;
	io->lent = NULL;
	t->m.step = step;
	return SUBMIT;
}

static inline uint64_t block_of(const struct vs_task *t)
{
	return UINT64_C(1) << t->lu->block_shift;
}

/* False: the task has ended with BUSY. */
bool vs_media_bounce(struct vs_task *t, uint64_t n);
/* Writes t->m.length bytes, durable when FUA or the lack of a write cache asks for it; then `after`. */
bool vs_media_write_out(struct vs_task *t, struct iovec *iov, int niov, bool (*after)(struct vs_task *));
/* All that the CDB asked for was moved. */
bool vs_media_moved(struct vs_task *t);
/* The task's iovecs cover exactly n bytes from here on: they are the task's own, nobody needs the rest. */
uint32_t vs_media_clip(struct iovec *iov, uint32_t niov, uint64_t have, uint64_t n);

#endif
