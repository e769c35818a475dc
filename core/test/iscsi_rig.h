/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of iSCSI stand on: a core with one logical unit, the control side played in C, and an initiator that sends and takes PDUs one by
 * one over a socket pair. Everything but the workers is one thread: whoever waits for bytes takes what comes up meanwhile. It judges nothing.
 */
#ifndef VS_TEST_ISCSI_RIG_H
#define VS_TEST_ISCSI_RIG_H

#include "core.h"

enum { RIG_CONNS = 8, RIG_PDUS = 256, RIG_TASKS = 256, RIG_BLOCKS = 16384, RIG_SEGMENT = 262144, RIG_WAIT_MS = 10000, RIG_REFUSED = 8 };

struct rig_pdu { uint8_t bhs[48]; uint32_t length; uint8_t *data; };

struct initiator {
	struct irig *rig;
	int fd;
	vs_iconn *conn;
	uint64_t cookie;
	bool header_digest, data_digest;
	int event;              /* enum vs_iconn_event, 0: none */
	uint32_t max_send, stat_sn; /* stat_sn: of the next answer */
	bool corked;                /* PDUs gather in cork until ini_uncork */
	uint8_t cork[1024];
	size_t ncork;
};

struct irig {
	vs_core *core;
	vs_store *memory, *store;
	vs_lu *lu;
	vs_nexus *nexus;
	vs_isession *session;
	struct vs_isession_params params;
	struct initiator conns[RIG_CONNS];
	uint32_t nconns, cmd_sn, itt;
	bool hold_tasks, hold_pdus, break_data_digest, break_header_digest;
	uint32_t tmf_response;  /* enum vs_response, 0: aborted */
	uint64_t tmf_before;    /* 0: all */
	struct vs_task_info tasks[RIG_TASKS]; /* in Python's hands, oldest first */
	uint32_t ntasks;
	vs_ipdu *pdus[RIG_PDUS];              /* the same */
	uint32_t npdus, pdus_seen;
	uint32_t pdu_tags[RIG_PDUS];          /* initiator task tags of the PDUs that came up, in order */
	struct vs_irefusal_info refused[RIG_REFUSED]; /* the newest of nrefused */
	uint32_t nrefused;
	uint64_t done[1024];                  /* cookies */
	uint32_t ndone, replies;
	uint64_t matched;
};

extern uint32_t irig_spin_us, irig_poll_mode; /* of the cores that are opened next; 0 and VS_POLL_ADAPTIVE */
extern uint64_t irig_buffer_limit;            /* the same; 0 */
/* The session is made by rig_session with rig->params, which rig_open fills with usual values. */
void irig_open(struct irig *r, uint32_t engine, uint64_t read_us, uint64_t write_us);
void irig_session(struct irig *r);
struct initiator *irig_connect(struct irig *r, bool header_digest, bool data_digest);
struct initiator *irig_connect_tcp(struct irig *r);
void irig_disconnect(struct initiator *i); /* vs_iconn_close, and waits for it */
void irig_close(struct irig *r);           /* everything that is left */
void irig_pump(struct irig *r, int fd, int timeout_ms);
uint64_t irig_cookie(struct irig *r);
void irig_wait(struct irig *r, uint64_t cookie);
void irig_settle(struct irig *r, int ms); /* pumps for so long */
void irig_answer_tasks(struct irig *r);    /* what is in Python's hands is executed, or answered, in order */
void irig_answer_pdus(struct irig *r);
uint64_t irig_tmf(struct irig *r, uint32_t action, uint32_t tag); /* of the nexus, or of one task (tag not 0); how many matched */

/* PDUs. Numbers in the header that are not given are 0. */
void bhs_command(uint8_t *h, uint8_t flags, uint32_t itt, uint32_t edtl, uint32_t cmd_sn, const uint8_t *cdb, uint32_t cdb_len);
void bhs_data_out(uint8_t *h, uint8_t flags, uint32_t itt, uint32_t ttt, uint32_t data_sn, uint32_t offset);
void bhs_plain(uint8_t *h, uint8_t opcode, uint8_t flags, uint32_t itt, uint32_t cmd_sn);
void cdb_rw(uint8_t *cdb, bool write, uint32_t lba, uint32_t blocks);
void ini_bytes(struct initiator *i, const void *bytes, size_t n);
void ini_send(struct initiator *i, const uint8_t *bhs, const void *ahs, uint32_t ahs_length, const void *data, uint32_t length);
void ini_uncork(struct initiator *i); /* what was gathered goes out in one piece */
bool ini_recv_within(struct initiator *i, struct rig_pdu *out, int ms); /* false: nothing came; out->data is freed by the next */
void ini_recv(struct initiator *i, struct rig_pdu *out);
int ini_event(struct initiator *i); /* waits for one */

/* Commands as a whole: the usual flags; data as the session's keys say. */
struct outcome { uint8_t status, response, flags; uint32_t residual, data_length, key, asc; };
uint32_t ini_start(struct initiator *i, const uint8_t *cdb, uint32_t cdb_len, uint8_t flags, uint32_t edtl, const void *data, uint32_t immediate);
struct outcome ini_finish(struct initiator *i, uint32_t itt, uint8_t *in, const uint8_t *out, uint32_t out_length);
struct outcome ini_read(struct initiator *i, uint32_t lba, uint32_t blocks, uint32_t edtl, uint8_t *in);
struct outcome ini_write(struct initiator *i, uint32_t lba, uint32_t blocks, uint32_t edtl, const uint8_t *out, uint32_t immediate);

static inline uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
static inline void put32(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 24); p[1] = (uint8_t)(v >> 16); p[2] = (uint8_t)(v >> 8); p[3] = (uint8_t)v; }

#endif
