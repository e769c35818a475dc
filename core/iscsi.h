/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The full-feature phase of iSCSI (RFC 7143): what the session (iscsi_session.c), receiving (iscsi_rx.c), commands and their data
 * (iscsi_cmd.c) and sending (iscsi_tx.c) share. Everything runs on the session's worker. Login and whatever is rare is Python's.
 */
#ifndef VS_ISCSI_H
#define VS_ISCSI_H

#include "core.h"
#include "lunmap.h"

enum { VS_BHS = 48, VS_AHS_MAX = 255 * 4, VS_IRX_BYTES = 64 << 10, VS_ITX_SLOTS = 32, VS_IR2T_MAX = 16, VS_IHASH = 256 };
enum { VS_IBUFFER_CLASSES = 9 }; /* 4 KiB to 1 MiB */
enum { VS_IPDU_MAX_WAITING = 16 }; /* PDUs of one connection in Python's hands; no more is read beyond */

/* Opcodes, RFC 7143 11.2.1.2 */
enum {
	VS_I_NOP_OUT = 0x00, VS_I_COMMAND = 0x01, VS_I_TMF = 0x02, VS_I_LOGIN = 0x03, VS_I_TEXT = 0x04, VS_I_DATA_OUT = 0x05, VS_I_LOGOUT = 0x06,
	VS_I_SNACK = 0x10, VS_I_NOP_IN = 0x20, VS_I_RESPONSE = 0x21, VS_I_DATA_IN = 0x25, VS_I_R2T = 0x31,
	VS_I_IMMEDIATE = 0x40, VS_I_FINAL = 0x80,
};
#define VS_I_NO_TAG 0xffffffffu

struct vs_iconn;
struct vs_isession;

/* One thing to send, in the order of the queue: a command's R2Ts, its data and status, or a PDU that stands ready. */
enum vs_ikind { VS_IT_R2T, VS_IT_RESULT, VS_IT_READY };
struct vs_iitem { struct vs_list link; enum vs_ikind kind; };

struct vs_iready { struct vs_iitem item; uint32_t length, flags; uint8_t bhs[VS_BHS]; uint8_t data[]; };

/* R2Ts that wait for their data. */
struct vs_ir2t { uint32_t offset, length, received, data_sn; bool open; };

enum vs_icmd_state { VS_IC_FREE, VS_IC_HELD /* CmdSN to come */, VS_IC_BUFFER /* waits for a buffer */, VS_IC_DATA /* waits for data-out */, VS_IC_RUNS, VS_IC_SENDS };
struct vs_icmd {
	struct vs_task task;
	struct vs_iconn *conn;      /* NULL: it has gone, nothing is sent */
	struct vs_icmd *hash_next;
	struct vs_list link;        /* session: free, held or waiting for a buffer */
	struct vs_list on_conn;
	struct vs_iitem result, r2t_item;
	enum vs_icmd_state state;
	uint32_t itt, cmd_sn, edtl, index;
	bool immediate, write, read, final_seen, data_failed, in_window;
	uint8_t lun[8];
	uint8_t *buffer;
	uint32_t buffer_size;       /* what the budget was charged */
	uint32_t received;          /* data-out bytes that came */
	uint32_t asked;             /* data-out bytes that came unsolicited or were asked for */
	uint32_t unsolicited_sn;
	uint32_t r2t_sn, r2t_open;
	struct vs_ir2t r2t[VS_IR2T_MAX];
	struct iovec iov;
	uint32_t data_length, sent, data_sn; /* data-in */
	uint8_t status, response;
	uint32_t residual;
	bool overflow, underflow;
};

struct vs_isession {
	struct vs_core *core;
	struct vs_worker *w;
	struct vs_isession_params p;
	struct vs_credit credit;
	struct vs_lunmap_ref luns;
	uint32_t exp_cmd_sn, max_cmd_sn, active; /* active: commands in the window */
	uint32_t ncmds;
	struct vs_icmd *cmds;
	struct vs_list free, held, wait_buffer, conns;
	struct vs_icmd *hash[VS_IHASH];
	uint64_t buffer_bytes;
	void *buffers[VS_IBUFFER_CLASSES]; /* free ones, by size */
	uint64_t buffers_kept;
};

struct vs_ipdu { struct vs_iconn *conn; struct vs_upnode up; struct vs_msg msg; uint32_t ahs_length, data_length; uint8_t bhs[VS_BHS], bytes[]; };

/* One slot of what is being sent: header, data, trailer (padding and digest). */
struct vs_islot {
	uint8_t header[VS_BHS + 4], trailer[8];
	struct iovec iov[3];
	uint32_t niov;
	struct vs_icmd *cmd;        /* done when this has been sent */
	struct vs_iready *ready;
};

enum vs_irx { VS_IRX_HEADER, VS_IRX_DATA, VS_IRX_SKIP };
struct vs_iconn {
	struct vs_poller poller;
	struct vs_isession *session;
	struct vs_worker *w;
	struct vs_source source;
	struct vs_list link;        /* session->conns */
	struct vs_list cmds;
	uint64_t cookie, close_cookie;
	uint16_t cid;
	bool header_digest, data_digest;
	uint32_t max_send, max_recv;
	bool readable, dead /* nothing more is read or sent */, closing, removed, want_out, last_sent, told;
	uint32_t upcalls;           /* PDUs in Python's hands */
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
	struct vs_icmd *data_cmd;
	struct vs_ir2t *data_r2t;
	struct vs_ipdu *data_pdu;
	struct vs_iready *data_echo;
	/* sending */
	struct vs_list txq;         /* of vs_iitem */
	struct vs_islot slots[VS_ITX_SLOTS];
	uint32_t slot_head, slot_tail; /* head: next to be sent; tail: next free; modulo slots */
	uint32_t stat_sn;
	struct { vs_counter rx_bytes, tx_bytes, rx_pdus, tx_pdus, commands, r2ts, last_heard_ns; _Atomic uint32_t stat_sn, exp_cmd_sn, max_cmd_sn, active, digest_errors, waiting_buffer; } view;
};

/* iscsi_session.c */
uint8_t *vs_ibuffer_get(struct vs_isession *s, uint32_t n);
void vs_ibuffer_put(struct vs_isession *s, uint8_t *buffer, uint32_t n);
void vs_iconn_event(struct vs_iconn *c, enum vs_iconn_event event); /* tells Python; the connection is dead after it */
void vs_isession_window(struct vs_isession *s);
void vs_iconn_maybe_gone(struct vs_iconn *c);
/* iscsi_rx.c */
int vs_irx_poll(struct vs_iconn *c);
bool vs_irx_has_work(const struct vs_iconn *c);
/* iscsi_cmd.c */
struct vs_icmd *vs_icmd_find(struct vs_isession *s, const struct vs_iconn *c, uint32_t itt);
void vs_icmd_arrive(struct vs_iconn *c); /* c->bhs and c->ahs are a SCSI command; sets c->data_to for immediate data */
void vs_icmd_immediate_done(struct vs_iconn *c, bool digest_ok);
bool vs_icmd_data_out(struct vs_iconn *c); /* where the data of c->bhs goes; false: the connection is dead */
void vs_icmd_data_done(struct vs_iconn *c, bool digest_ok);
void vs_icmd_release(struct vs_icmd *x);   /* sent, or nobody to send it to */
void vs_icmd_conn_gone(struct vs_iconn *c);
void vs_icmd_reject(struct vs_iconn *c, uint8_t reason); /* 11.17: c->bhs is refused */
bool vs_icmd_sn(struct vs_iconn *c, uint32_t sn, bool immediate); /* a PDU other than a command takes its CmdSN; false: drop it */
/* iscsi_tx.c */
void vs_itx_queue(struct vs_iconn *c, struct vs_iitem *item, enum vs_ikind kind);
void vs_itx_push(struct vs_iconn *c); /* fills slots and sends what the socket takes */
void vs_itx_drop(struct vs_iconn *c);

#endif
