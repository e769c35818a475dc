/* SPDX-License-Identifier: Apache-2.0 */
/* What core.c needs of worker.c and excl.c, and who watches pins. */
#ifndef VS_WORKER_H
#define VS_WORKER_H

#include "core.h"

enum { VS_WATCH_PYTHON = 1, VS_WATCH_RANGES = 2 };
enum { VS_SCRATCH = 1 << 20 };
/* What vs_worker_look adds to the wake-up eventfd; all else adds 1. */
#define VS_WAKE_LOOK (UINT64_C(1) << 32)

int vs_worker_init(struct vs_worker *w, struct vs_core *c, uint32_t index);
int vs_worker_start(struct vs_worker *w);
void vs_worker_stop(struct vs_worker *w); /* returns when its loop has ended; the thread may still be looked at */
void vs_worker_join(struct vs_worker *w);
void vs_worker_fini(struct vs_worker *w);
/* One turn of the loop: messages, rings, completions, flush. How much it did. The in-process tests call it without a thread. */
int vs_worker_turn(struct vs_worker *w);

/* watchdog.c */
#define VS_WATCHDOG_SIGNAL (SIGRTMIN + 7)
int vs_watchdog_start(struct vs_core *c);
void vs_watchdog_stop(struct vs_core *c);
void vs_watchdog_free(struct vs_core *c); /* no worker runs any more */
void vs_watchdog_awake(struct vs_core *c); /* a worker is not asleep any more */

int vs_ranges_init(struct vs_core *c);
void vs_ranges_fini(struct vs_core *c);

#endif
