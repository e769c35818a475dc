/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PCI function over vfio-user: what its socket (hba_rx.c, hba_tx.c), its messages (hba_command.c), its interrupts (hba_irq.c), the client's memory
 * (hba_dma.c), its life (hba.c) and the function itself (struct vs_hba_ops) say to each other. Facts of the protocol: QEMU's
 * docs/interop/vfio-user.rst. Everything is the worker's unless it says otherwise.
 */
#ifndef VS_HBA_H
#define VS_HBA_H

#include "bell.h"
#include "core.h"

enum vs_hba_command {
	VS_HC_VERSION = 1, VS_HC_DMA_MAP = 2, VS_HC_DMA_UNMAP = 3, VS_HC_REGION_READ = 9, VS_HC_REGION_WRITE = 10, VS_HC_DMA_READ = 11,
	VS_HC_DMA_WRITE = 12, VS_HC_SET_IRQS = 8, VS_HC_DEVICE_RESET = 13, VS_HC_REGION_WRITE_MULTI = 15,
};
enum { VS_HF_TYPE = 0xf, VS_HF_COMMAND = 0, VS_HF_REPLY = 1, VS_HF_NO_REPLY = 1 << 4, VS_HF_ERROR = 1 << 5 };
/* VFIO_USER_DEVICE_SET_IRQS, flags. */
enum { VS_HI_NONE = 1, VS_HI_BOOL = 2, VS_HI_EVENTFD = 4, VS_HI_DATA = 7, VS_HI_MASK = 8, VS_HI_UNMASK = 16, VS_HI_TRIGGER = 32, VS_HI_ACTION = 56 };
enum { VS_HI_FIELDS = 20 }; /* bytes before the booleans */
enum { VS_HR_FIELDS = 16 /* of a region access */, VS_HW_BYTES = 24 /* one write of REGION_WRITE_MULTI */ };
enum { VS_HBA_PAYLOAD_MAX = VS_HR_FIELDS + VS_HBA_XFER_MAX };
/* Behind a message that Python answers; then the socket is not read any more. */
enum { VS_HPARKED_MAX = 64, VS_HPARKED_BYTES = 1 << 19, VS_HTX_BYTES = 1 << 19 };
/* VFIO_PCI_*_IRQ_INDEX, VFIO_PCI_*_REGION_INDEX of linux/vfio.h. */
enum { VS_HIRQ_INTX = 0, VS_HREGION_CONFIG = 7 };

struct vs_hba_header { uint16_t id, command; uint32_t size, flags, error; };
_Static_assert(sizeof(struct vs_hba_header) == 16, "vfio-user.rst, Header");

struct vs_hmsg {
	struct vs_hba *hba;
	uint64_t conn_cookie;
	struct vs_list link;       /* while it is parked */
	struct vs_upnode up;
	struct vs_msg msg;
	struct vs_hba_header h;
	uint32_t length, nfds;
	int fds[VS_HBA_MSG_FDS];
	struct vs_htx *answer;     /* NULL: none is wanted, or there was no memory for it */
	bool no_memory;
	uint8_t data[];
};

struct vs_htx {
	struct vs_list link;
	uint32_t length, sent, nfds;
	int fds[VS_HBA_MSG_FDS];
	uint8_t bytes[];           /* header and payload */
};

struct vs_hba_irq { struct vs_bell bell; bool masked, level /* as the function drives it */, pending; };

struct vs_hba_table { uint32_t n; struct vs_hba_window windows[]; };

/* A copy between the client's memory and a buffer of ours. */
struct vs_hba_dma {
	struct vs_list link;
	struct vs_timer timer;
	struct vs_hba *hba;
	void (*done)(struct vs_hba_dma *d); /* never from within vs_hba_dma_start; may start it again */
	uint64_t addr, length, moved;
	uint8_t *buffer;
	bool write;                /* to the client's memory */
	int err;
	/* hba_dma.c */
	bool busy;
	uint16_t id;
	uint32_t chunk;
	struct vs_memmap *pinned;
};

struct vs_hba_ops {
	const char *name;
	/* The range lies within the region, and the region may be read or written. 0 or -errno. */
	int (*read)(struct vs_hba *h, uint32_t region, uint64_t offset, uint8_t *data, uint32_t count);
	int (*write)(struct vs_hba *h, uint32_t region, uint64_t offset, const uint8_t *data, uint32_t count);
	void (*reset)(struct vs_hba *h); /* vs_hba_reset_done() when nothing of it is under way any more, also from here */
	void (*destroy)(struct vs_hba *h); /* nothing fires afterwards; frees what `function` is */
};

struct vs_hba {
	struct vs_core *core;
	struct vs_worker *w;
	uint64_t cookie, conn_cookie, detach_cookie, reset_cookie;
	const struct vs_hba_ops *ops;
	void *function;
	struct vs_hba_region_info regions[VS_HBA_REGIONS];
	uint32_t irq_counts[VS_HBA_IRQS];
	struct vs_hba_irq irqs[VS_HBA_IRQS]; /* one each: none of the functions has more */
	/* the client */
	struct vs_source source;
	struct vs_poller poller;
	bool attached, open, dead, closing, removed, readable, blocked, asked /* Python has a message */, resetting, bell_unsafe, mute /* it left one of our messages unanswered */;
	_Atomic bool taken;        /* between attach and the end of detach */
	uint32_t max_xfer;
	struct vs_hba_header h;    /* of the message that is being read */
	uint32_t h_got, got, nfds;
	int fds[VS_HBA_MSG_FDS];
	uint8_t *rx, *scratch;     /* payloads: of the message, of its answer */
	struct vs_list parked, txq;
	uint32_t nparked, parked_bytes, tx_bytes;
	/* its memory */
	struct vs_hba_table *table;
	struct vs_list dma;        /* those that wait for an answer */
	uint16_t next_id;
	struct { vs_counter reads, writes, interrupts, interrupts_masked, messages, dma_messages, dma_faults, stray_replies, refused; } stats;
};

/* hba.c */
void vs_hba_event(struct vs_hba *h, enum vs_hba_event event);
void vs_hba_reset_done(struct vs_hba *h);
void vs_hmsg_up(struct vs_hmsg *m);
void vs_hmsg_free(struct vs_hmsg *m);
struct vs_hmsg *vs_hmsg_new(struct vs_hba *h, const uint8_t *data); /* of the message that was read, with its descriptors; NULL: an event was sent */
/* hba_rx.c */
int vs_hrx_poll(struct vs_hba *h);
bool vs_hrx_has_work(const struct vs_hba *h);
void vs_hrx_ask(struct vs_hba *h);
void vs_hrx_drop(struct vs_hba *h);
/* hba_tx.c. Payload n bytes after the header; fds are taken. */
struct vs_htx *vs_htx_new(const struct vs_hba_header *h, const void *payload, uint32_t n);
void vs_htx_free(struct vs_htx *t);
void vs_htx_queue(struct vs_hba *h, struct vs_htx *t);
void vs_htx_answer(struct vs_hba *h, const struct vs_hba_header *to, const void *payload, uint32_t n);
void vs_htx_refuse(struct vs_hba *h, const struct vs_hba_header *to, int err); /* err: -errno */
void vs_htx_push(struct vs_hba *h);
void vs_htx_drop(struct vs_hba *h);
/* hba_command.c. False: it is a message for Python. */
bool vs_hba_run(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length);
/* hba_irq.c */
void vs_hba_irq_level(struct vs_hba *h, uint32_t index, bool level); /* INTx: on while the function has a reason */
bool vs_hba_irq_exists(const struct vs_hba *h, uint32_t index, uint32_t start, uint32_t count);
void vs_hba_irq_mask(struct vs_hba *h, uint32_t index, bool masked);
void vs_hba_irq_trigger(struct vs_hba *h, uint32_t index);
void vs_hba_irqs_drop(struct vs_hba *h);
/* hba_dma.c. 0: it is done; -EINPROGRESS: done() will run; -EFAULT: d->moved bytes were moved, and the next one cannot be. */
int vs_hba_dma_start(struct vs_hba *h, struct vs_hba_dma *d);
void vs_hba_dma_cancel(struct vs_hba_dma *d);
/* The range as iovecs into the client's memory, each with the map that it pins: how many; -EFAULT; -EREMOTE: a part must be copied by messages;
 * -ENOBUFS: more than max. */
int vs_hba_dma_direct(struct vs_hba *h, uint64_t addr, uint64_t length, bool write, struct iovec *iov, struct vs_memmap **pinned, int max);
void vs_hba_dma_reply(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length);
void vs_hba_dma_drop(struct vs_hba *h); /* the client is gone */
/* the functions: set regions, irq_counts, ops and function. 0 or -errno. */
int vs_hba_exerciser_init(struct vs_hba *h);
int vs_hba_lsi_init(struct vs_hba *h);

#endif
