/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of PCI functions over vfio-user stand on: a core with one worker that is turned by hand, the control side played in C, and a client
 * that sends and takes messages one by one over a socket pair. It judges nothing.
 */
#ifndef VS_TEST_HBA_RIG_H
#define VS_TEST_HBA_RIG_H

#include "hba.h"

enum { HRIG_MSGS = 128, HRIG_WINDOWS = 8, HRIG_PATIENCE_S = 60 };
/* The exerciser's registers (hba_exerciser.c), in region 0; memory is region 2. */
enum { EX_ID = 0, EX_WORD = 4, EX_CONTROL = 8, EX_STATUS = 12, EX_SOURCE = 16, EX_TARGET = 24, EX_LENGTH = 32, EX_MOVED = 36, EX_ENABLE = 40 };
enum { EX_COPY = 1, EX_RAISE = 2, EX_LOWER = 4, EX_BUSY = 1, EX_DONE = 2, EX_FAULT = 3, EX_MEMORY = 2, EX_REGISTERS = 0 };

struct hrig {
	vs_core *core;
	struct vs_worker *w;
	vs_hba *hba;
	int fd;                  /* the client's end; -1: none */
	uint16_t next_id;
	vs_hmsg *msgs[HRIG_MSGS]; /* for Python, oldest first */
	uint32_t nmsgs, ndone;
	int event, err;          /* enum vs_hba_event, 0: none; of the last VS_UP_DONE */
	struct vs_hba_window windows[HRIG_WINDOWS];
	uint32_t nwindows;
};
struct hanswer { struct vs_hba_header h; uint32_t length; uint8_t data[VS_HBA_PAYLOAD_MAX]; int fds[8]; uint32_t nfds; };

extern uint32_t hrig_chip; /* enum vs_hba_chip of the functions that are opened next; the exerciser */
void hrig_open(struct hrig *r, uint32_t engine);
void hrig_close(struct hrig *r);
void hrig_turn(struct hrig *r);
void hrig_connect(struct hrig *r, bool agreed); /* agreed: the version is */
void hrig_disconnect(struct hrig *r);
void hrig_done(struct hrig *r, int order);      /* what the order gave; waits until it is carried out without an error */
uint16_t hrig_send(struct hrig *r, uint16_t command, uint32_t flags, const void *payload, uint32_t n, const int *fds, uint32_t nfds);
void hrig_receive(struct hrig *r, struct hanswer *a);
bool hrig_silent(struct hrig *r); /* nothing has come after some turns */
/* A message of ours, whole. */
uint32_t hrig_access(struct hrig *r, uint16_t command, uint32_t region, uint64_t offset, uint32_t count, const void *data, void *out); /* the error */
uint32_t hrig_read32(struct hrig *r, uint32_t region, uint64_t offset);
void hrig_write32(struct hrig *r, uint32_t region, uint64_t offset, uint32_t v);
uint32_t hrig_irqs(struct hrig *r, uint32_t flags, uint32_t index, uint32_t start, uint32_t count, const void *data, uint32_t n); /* the error */
/* A window: of a new memfd, mapped for the test, where direct; else NULL. */
uint8_t *hrig_window(struct hrig *r, uint64_t addr, uint64_t size, uint32_t flags);
void hrig_no_windows(struct hrig *r);
void hrig_copy(struct hrig *r, uint64_t from, uint64_t to, uint32_t length);

#endif
