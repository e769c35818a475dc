/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The full-feature phase of iSCSI (RFC 7143): what the session (iscsi_session.c), receiving (iscsi_rx.c), the order of CmdSN (iscsi_sn.c),
 * commands and their data (iscsi_cmd.c), sending (iscsi_tx.c) and telling of refusals (iscsi_refused.c) share. Everything runs on the session's worker. Login and whatever is rare is Python's.
 */
#ifndef VS_ISCSI_H
#define VS_ISCSI_H

#include "core.h"
#include "lunmap.h"

enum { VS_BHS = 48, VS_AHS_MAX = 255 * 4, VS_IRX_BYTES = 64 << 10, VS_ITX_SLOTS = 32, VS_IR2T_MAX = 16, VS_IHASH = 256 };
enum { VS_IBUFFER_CLASSES = 9 }; /* 4 KiB to 1 MiB */
enum { VS_IBUFFER_LIMIT = 256 << 20 }; /* bytes of data buffers of all sessions, unless the core is told another */
enum { VS_ILENT_MAX = 1 << 20 }; /* bytes that a connection has lent and not sent; more is not read before, and a longer read is copied */
enum { VS_IGIVE_BACK_A_TURN = 4 << 20 }; /* bytes that a worker copies in one turn because an epoch has moved; one command more at most */
enum { VS_IPDU_MAX_WAITING = 16 }; /* PDUs of one connection in Python's hands; no more is read beyond */
enum { VS_IKEPT_MAX = 1 << 20 };   /* bytes of PDUs kept for a connection (unsent answers, held ones); no more is read beyond */

/* Opcodes, RFC 7143 11.2.1.2 */
enum {
	VS_I_NOP_OUT = 0x00, VS_I_COMMAND = 0x01, VS_I_TMF = 0x02, VS_I_LOGIN = 0x03, VS_I_TEXT = 0x04, VS_I_DATA_OUT = 0x05, VS_I_LOGOUT = 0x06,
	VS_I_SNACK = 0x10, VS_I_NOP_IN = 0x20, VS_I_RESPONSE = 0x21, VS_I_DATA_IN = 0x25, VS_I_R2T = 0x31, VS_I_REJECT = 0x3f,
	VS_I_IMMEDIATE = 0x40, VS_I_FINAL = 0x80,
};
/* Reasons of a Reject, 11.17.1 */
enum { VS_I_REJECT_DATA_DIGEST = 0x02, VS_I_REJECT_NOT_SUPPORTED = 0x05, VS_I_REJECT_TOO_MANY_IMMEDIATE = 0x06, VS_I_REJECT_BAD_FIELD = 0x09 };
#define VS_I_NO_TAG 0xffffffffu

struct vs_iconn;
struct vs_irefused;
struct vs_isession;

/* One thing to send, in the order of the queue: a command's R2Ts, its data and status, or a PDU that stands ready. */
enum vs_ikind { VS_IT_R2T, VS_IT_RESULT, VS_IT_READY };
struct vs_iitem { struct vs_list link; enum vs_ikind kind; };

struct vs_iready { struct vs_iitem item; uint32_t length, flags, size; uint8_t bhs[VS_BHS]; uint8_t data[]; };

/* R2Ts that wait for their data. */
struct vs_ir2t { uint32_t offset, length, received, data_sn; bool open; };

/* One CmdSN of the window: taken by a PDU's header, passed on when the PDU is whole and every earlier one was. */
enum vs_isn_kind { VS_ISN_EMPTY, VS_ISN_COMMAND, VS_ISN_PDU, VS_ISN_ECHO, VS_ISN_NOTHING /* refused or aborted: only the number counts */ };
struct vs_isn { enum vs_isn_kind kind; bool whole; struct vs_iconn *conn; void *object; };

enum vs_icmd_state {
	VS_IC_FREE,
	VS_IC_HELD,   /* its PDU, or one with an earlier CmdSN, is still to come */
	VS_IC_BUFFER, /* waits for a buffer */
	VS_IC_DATA,   /* waits for data-out */
	VS_IC_TURN,   /* ready, but an ORDERED command stands between */
	VS_IC_RUNS,
	VS_IC_SENDS,
};
struct vs_icmd {
	struct vs_task task;
	struct vs_iconn *conn;      /* NULL: it has gone, nothing is sent */
	struct vs_icmd *hash_next;
	struct vs_list link;        /* session: free or waiting for a buffer; connection: waiting for what is lent to be sent */
	struct vs_list order;       /* session: taken and not yet handed to the core, in the order of CmdSN */
	struct vs_list on_conn;
	struct vs_list lent_link;   /* session->lent while data is not NULL and not buffer */
	struct vs_iitem result, r2t_item;
	enum vs_icmd_state state;
	uint32_t itt, cmd_sn, edtl, index;
	bool immediate, write, read, final_seen, data_failed, overlapped, counted /* in active or immediates */;
	uint8_t lun[8];
	uint8_t *buffer;
	const uint8_t *data;        /* data-in: the buffer, or what the store lends */
	uint32_t buffer_size;
	uint32_t charged;           /* what of the session's budget it has: 0 for what unsolicited data came into */
	bool common;                /* and it is not of the session's own */
	uint32_t lent_bytes;        /* what it has of its connection's, until it is sent */
	uint32_t received;          /* data-out bytes that came */
	uint32_t asked;             /* data-out bytes that came unsolicited or were asked for */
	uint32_t unsolicited_sn;
	uint32_t r2t_sn, r2t_open;
	struct vs_ir2t r2t[VS_IR2T_MAX];
	struct iovec iov;
	uint32_t data_length, sent, data_sn; /* data-in */
	uint8_t status, response;
	uint32_t residual;
	uint64_t arrived_ns;
	bool overflow, underflow;
};

/* One writer, the worker; control reads it. */
enum { VS_ILATENCY_KINDS = 3, VS_ILATENCY_BUCKETS = 24 };
struct vs_ilatency { vs_counter count, total_ns, min_ns, max_ns, buckets[VS_ILATENCY_BUCKETS]; };

struct vs_isession {
	struct vs_core *core;
	struct vs_worker *w;
	struct vs_isession_params p;
	struct vs_credit credit;
	struct vs_lunmap_ref luns;
	uint32_t exp_cmd_sn, max_cmd_sn;
	uint64_t long_sn;            /* exp_cmd_sn in 64 bits: does not wrap */
	uint32_t immediates_here;    /* that came while exp_cmd_sn stood where it stands */
	uint32_t active, immediates; /* commands without a status yet: of the window, and beside it */
	uint32_t ncmds;
	struct vs_icmd *cmds;
	struct vs_isn *sns;         /* by CmdSN modulo their number, which is not below the window */
	uint32_t sn_mask;
	struct vs_list free, wait_buffer, order, conns;
	struct vs_list lent;        /* commands whose data stands in a store; given back when the epoch moves and before anything is written */
	uint64_t lent_epoch;        /* of the oldest of them */
	uint32_t ordered;           /* ORDERED commands in order */
	bool wake;                  /* something in wait_buffer or order may be able to go on: at the next turn */
	struct vs_icmd *hash[VS_IHASH];
	uint64_t buffer_bytes;      /* of whole buffers */
	uint64_t buffer_common;     /* of them, what is not the session's own */
	struct vs_list buffer_wait; /* w->ibuffers.waiting */
	void *buffers[VS_IBUFFER_CLASSES]; /* free ones, by size */
	uint64_t buffers_kept;
	struct vs_irefused *refused; /* refusals on their way to Python */
	uint64_t refusals_missed;    /* those that were not sent since */
};

struct vs_ipdu { struct vs_iconn *conn; struct vs_upnode up; struct vs_msg msg; uint64_t order; uint32_t ahs_length, data_length, size; uint8_t bhs[VS_BHS], bytes[]; };

/* One slot of what is being sent: header, data, trailer (padding and digest). */
struct vs_islot {
	uint8_t header[VS_BHS + 4], trailer[8];
	struct iovec iov[3];
	uint32_t niov;
	struct vs_icmd *cmd;        /* done when this has been sent */
	struct vs_iready *ready;
};

enum vs_irx { VS_IRX_HEADER, VS_IRX_DATA };
struct vs_iconn {
	struct vs_poller poller;
	struct vs_isession *session;
	struct vs_worker *w;
	struct vs_source source;
	struct vs_list link;        /* session->conns */
	struct vs_list cmds;
	struct vs_list wait_lent;   /* commands, the oldest first: a read that may be lent its data is at the head, and nothing overtakes it */
	uint32_t lent_bytes;        /* lent to commands whose data is not sent, given back or not */
	uint64_t cookie, close_cookie;
	uint16_t cid;
	bool header_digest, data_digest;
	uint32_t max_send, max_recv;
	bool readable /* until the socket is found empty */, hot /* it is looked at in each turn, nobody tells */, ended /* the peer closes, or an error: read on until it shows */, dead /* nothing more is read or sent */;
	bool closing, removed, blocked /* the socket is full */, rx_more /* rx may hold whole PDUs */, tx_more, starved /* of a place for the command whose header stands in rx */;
	uint64_t hot_until_ns;
	uint32_t upcalls;           /* PDUs in Python's hands */
	uint32_t kept;              /* bytes of PDUs that stand in txq or are held */
	/* receiving */
	uint8_t *rx;
	uint32_t rx_head, rx_tail;
	enum vs_irx rx_state;
	uint8_t bhs[VS_BHS];
	uint8_t ahs[VS_AHS_MAX];
	uint32_t ahs_length;
	uint8_t *data_to;           /* NULL: thrown away */
	uint32_t data_length, data_got, tail_got; /* of the current segment; then padding and digest in tail */
	uint8_t tail[8];
	struct vs_isn *sn;          /* the CmdSN that the current PDU has taken */
	struct vs_icmd *data_cmd;
	struct vs_ir2t *data_r2t;
	struct vs_ipdu *data_pdu;
	struct vs_iready *data_echo;
	/* sending */
	struct vs_list txq;         /* of vs_iitem */
	struct vs_islot slots[VS_ITX_SLOTS];
	uint32_t slot_head, slot_tail; /* head: next to be sent; tail: next free; modulo slots */
	uint32_t stat_sn;
	uint64_t push_ns;           /* the clock, read once for what is pushed together */
	struct vs_ilatency latency[VS_ILATENCY_KINDS];
	struct { vs_counter rx_bytes, tx_bytes, rx_pdus, tx_pdus, commands, r2ts, last_heard_ns; _Atomic uint32_t stat_sn, exp_cmd_sn, max_cmd_sn, active, digest_errors, waiting_buffer; } view;
};

/* iscsi_buffer.c */
uint8_t *vs_ibuffer_get(struct vs_isession *s, uint32_t n);
void vs_ibuffer_put(struct vs_isession *s, uint8_t *buffer, uint32_t n);
void vs_ibuffers_free(struct vs_isession *s); /* the session ends */
bool vs_ibuffer_charge(struct vs_icmd *x, uint32_t n); /* false: n bytes are not to be had now; s->wake is set when it may be otherwise */
void vs_ibuffer_discharge(struct vs_isession *s, struct vs_icmd *x);
/* iscsi_session.c */
void vs_iconn_event(struct vs_iconn *c, enum vs_iconn_event event); /* tells Python; the connection is dead after it */
void vs_isession_window(struct vs_isession *s);
bool vs_isession_single(const struct vs_isession *s); /* it has one connection */
void vs_iconn_maybe_gone(struct vs_iconn *c);
void vs_iconn_measure(struct vs_iconn *c, const struct vs_icmd *x); /* its status goes out at c->push_ns */
void vs_iconn_view(struct vs_iconn *c); /* shows control how things stand */
/* iscsi_hot.c */
void vs_iconn_heard(struct vs_iconn *c); /* bytes came */
void vs_iconn_look(struct vs_iconn *c);  /* at the beginning of a turn: a hot connection may have something */
void vs_iconn_cool(struct vs_iconn *c);
void vs_iconn_ask(struct vs_iconn *c);   /* to be told of what is waited for */
/* iscsi_rx.c */
int vs_irx_poll(struct vs_iconn *c);
bool vs_irx_has_work(const struct vs_iconn *c);
void vs_irx_upcall(struct vs_ipdu *p);
/* iscsi_sn.c */
struct vs_isn *vs_isn_take(struct vs_iconn *c, uint32_t sn); /* NULL: outside the window, or there already */
void vs_isn_whole(struct vs_iconn *c); /* the PDU that took c->sn is whole: passes on what may go on */
void vs_isn_forget(struct vs_isession *s, struct vs_icmd *x); /* aborted: its number still counts */
void vs_isn_conn_gone(struct vs_iconn *c);
uint32_t vs_isn_plug(struct vs_isession *s, uint32_t first, uint32_t end);
uint64_t vs_isn_order(struct vs_iconn *c); /* of the PDU in c->bhs */
/* iscsi_cmd.c */
void vs_icmd_arrive(struct vs_iconn *c); /* c->bhs and c->ahs are a SCSI command; sets c->data_to for immediate data */
void vs_icmd_immediate_done(struct vs_iconn *c, bool digest_ok);
bool vs_icmd_data_out(struct vs_iconn *c); /* where the data of c->bhs goes; false: the connection is dead */
void vs_icmd_data_done(struct vs_iconn *c, bool digest_ok);
void vs_icmd_accept(struct vs_icmd *x);    /* all before it have been passed on */
void vs_icmd_answered(struct vs_icmd *x);  /* its status is about to be put into a PDU: it leaves the window */
void vs_icmd_release(struct vs_icmd *x);   /* sent, or nobody to send it to */
int vs_icmd_wake(struct vs_isession *s);   /* who waits for a buffer or for its turn; not while a list of tasks or commands is walked */
void vs_icmd_conn_gone(struct vs_iconn *c);
void vs_icmd_give_back(struct vs_isession *s); /* copies what stores lend, and lets them go */
bool vs_icmd_owes(const struct vs_isession *s);    /* something is lent since before the epoch */
void vs_icmd_give_back_some(struct vs_isession *s); /* as much as a turn may take */
/* iscsi_refused.c */
struct vs_irefused *vs_irefused_new(void);
void vs_irefused_put(struct vs_irefused *r);
void vs_irefused_command(struct vs_icmd *x);               /* it has ended with CHECK CONDITION */
void vs_irefused_pdu(struct vs_iconn *c, uint8_t reason);  /* the PDU in c->bhs */
/* iscsi_tx.c */
void vs_itx_queue(struct vs_iconn *c, struct vs_iitem *item, enum vs_ikind kind);
void vs_itx_push(struct vs_iconn *c); /* fills slots and sends what the socket takes */
void vs_itx_drop(struct vs_iconn *c);
void vs_itx_moved(struct vs_iconn *c, const uint8_t *from, uint32_t length, uint8_t *to); /* data that waits to be sent stands elsewhere now */
struct vs_iready *vs_iready_new(struct vs_iconn *c, uint32_t length); /* header of zeroes; NULL: the connection is dead */
void vs_iready_free(struct vs_iconn *c, struct vs_iready *r);
void vs_itx_reject(struct vs_iconn *c, uint8_t reason); /* of the PDU in c->bhs, RFC 7143 11.17 */

#endif
