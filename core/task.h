/* SPDX-License-Identifier: Apache-2.0 */
/* What worker.c and the transports need of task.c beside core.h. */
#ifndef VS_TASK_H
#define VS_TASK_H

#include "core.h"

int vs_task_run_redo(struct vs_worker *w); /* tasks that waited for the inbox; how many ran */
void vs_credit_return(struct vs_credit *c);

static inline uint16_t vs_be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t vs_be32(const uint8_t *p) { return (uint32_t)vs_be16(p) << 16 | vs_be16(p + 2); }
static inline uint64_t vs_be64(const uint8_t *p) { return (uint64_t)vs_be32(p) << 32 | vs_be32(p + 4); }
static inline void vs_put_be32(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 24); p[1] = (uint8_t)(v >> 16); p[2] = (uint8_t)(v >> 8); p[3] = (uint8_t)v; }
static inline void vs_put_be64(uint8_t *p, uint64_t v) { vs_put_be32(p, (uint32_t)(v >> 32)); vs_put_be32(p + 4, (uint32_t)v); }

#endif
