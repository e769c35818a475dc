/* SPDX-License-Identifier: Apache-2.0 */
/* Signals on descriptors that a peer shares with us, and can make blocking under us at any time. */
#ifndef VS_BELL_H
#define VS_BELL_H

#include <stdbool.h>

struct vs_bell_ring;
struct vs_bell {
	int fd;                    /* -1: nobody wants to hear */
	bool tried;                /* there is a ring, or there cannot be one */
	struct vs_bell_ring *ring;
};

/* Takes fd and closes the one before. */
void vs_bell_set(struct vs_bell *b, int fd);
/* Worker. False: the call hung until watchdog.c interrupted it, because somebody made the descriptor blocking. */
bool vs_bell_signal(const struct vs_bell *b);
/* The same for a peer that did so before: never hangs where there is io_uring (`uring`), in exchange for a few hundred ns. False: the
 * descriptor is blocking, and cannot be signalled otherwise. */
bool vs_bell_signal_safely(struct vs_bell *b, bool uring);

#endif
