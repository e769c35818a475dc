/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data plane's public interface: what Python (through cffi, which parses this very file) and C programs call. Only declarations in the
 * subset that cffi reads: no includes, no conditionals, no function-like macros. Everything the parts of the data plane say to each
 * other stands in core.h. Functions return 0 or a negative errno, unless they say otherwise. All of them are called from the one control
 * thread (the asyncio loop) unless they say otherwise; none of them blocks.
 */

typedef struct vs_core vs_core;
typedef struct vs_store vs_store;
typedef struct vs_lu vs_lu;
typedef struct vs_nexus vs_nexus;
typedef struct vs_task vs_task;
typedef struct vs_memmap vs_memmap;
typedef struct vs_vdev vs_vdev;
typedef struct vs_inflight vs_inflight;
typedef struct vs_pins vs_pins;
typedef struct vs_io vs_io;
typedef struct vs_ctrl vs_ctrl;
typedef struct vs_ipdu vs_ipdu;
typedef struct vs_irefusal vs_irefusal;
typedef struct vs_hba vs_hba;
typedef struct vs_hmsg vs_hmsg;

/* ---- life cycle ---------------------------------------------------------------------------------------------------------------- */

enum vs_engine_kind { VS_ENGINE_AUTO = 0, VS_ENGINE_URING = 1, VS_ENGINE_EPOLL = 2 };
enum vs_poll_mode { VS_POLL_ADAPTIVE = 0, VS_POLL_ALWAYS = 1, VS_POLL_NEVER = 2 };

struct vs_config {
	uint32_t nworkers;   /* 1..VS_MAX_WORKERS */
	uint32_t engine;     /* enum vs_engine_kind */
	uint32_t poll_mode;  /* enum vs_poll_mode */
	uint32_t spin_us;    /* adaptive: how long a worker spins after its last work */
	uint32_t io_threads; /* epoll engine: helper threads a worker */
	uint64_t iscsi_buffer_limit; /* bytes of data buffers of all iSCSI sessions, 0: 256 MiB */
};

enum { VS_MAX_WORKERS = 64, VS_CDB_MAX = 260, VS_SENSE_MAX = 252, VS_QUEUE_MAX = 32768, VS_GATE_COUNT_SHIFT = 44 };

int vs_core_create(const struct vs_config *config, vs_core **out);
int vs_core_start(vs_core *core);    /* starts the workers */
void vs_core_destroy(vs_core *core); /* joins the workers; every device, LU and store must be gone */
int vs_core_upcall_fd(vs_core *core);
const char *vs_core_engine_name(vs_core *core);
/* Names why an engine cannot be had here, NULL when it can: "io_uring_setup: Operation not permitted". */
const char *vs_engine_why_not(uint32_t kind);

/* ---- from the data plane to Python ------------------------------------------------------------------------------------------------ */

enum vs_upcall_kind {
	VS_UP_TASK = 1,      /* a task for Python: task */
	VS_UP_TASK_DONE = 2, /* a task that was executed with notify has ended: cookie = the result's cookie; aux = SCSI status */
	VS_UP_EPOCH = 3,     /* worker `worker` has seen epoch aux */
	VS_UP_DRAINED = 4,   /* watched pins with this cookie fell to zero on `worker` (check vs_pins_busy) */
	VS_UP_DONE = 5,      /* a message posted with this cookie was carried out; err; aux depends on the message */
	VS_UP_CTRL = 6,      /* a request on a virtio-scsi control queue: ctrl */
	VS_UP_QUEUE_ERROR = 7, /* queue aux of device cookie stopped: err = -enum vs_ring_rule */
	VS_UP_STORE_IO = 8,  /* a store written in Python has work: io; cookie = the store's */
	VS_UP_BROKEN = 9,    /* memory under a map or a store was truncated: cookie = the owner's */
	VS_UP_IPDU = 11,     /* an iSCSI PDU for Python: pdu; cookie = the connection's */
	VS_UP_ICONN = 12,    /* something happened to the iSCSI connection cookie: aux = enum vs_iconn_event */
	VS_UP_STORE_FAILED = 10, /* a flush failed for the first time: cookie = the LU's */
	VS_UP_BUSY = 20,     /* vs_queue_tell_busy */
	VS_UP_IREFUSED = 13, /* an iSCSI initiator was refused something: refusal; cookie = the connection's */
	VS_UP_HMSG = 14,     /* a vfio-user message for Python: hmsg; cookie = the connection's */
	VS_UP_HCONN = 15,    /* something happened to the vfio-user connection cookie: aux = enum vs_hba_event */
};

struct vs_upcall {
	uint32_t kind;
	uint32_t worker;
	uint64_t cookie;
	uint64_t aux;
	int32_t err;
	uint32_t reserved;
	vs_task *task;
	vs_ctrl *ctrl;
	vs_io *io;
	vs_ipdu *pdu;
	vs_irefusal *refusal;
	vs_hmsg *hmsg;
};

enum vs_layer { VS_LAYER_RING = 0, VS_LAYER_GATE = 1, VS_LAYER_CORE = 2, VS_LAYER_PYTHON = 3, VS_LAYER_STORE = 4, VS_LAYER_COMPLETION = 5 };

/* What Python reads of a task, by value. Pointers live as long as the task is Python's. */
struct vs_task_info {
	vs_task *task;
	uint64_t nexus_cookie; /* of the I_T_L nexus; 0: no such LUN (then target and lun tell which) */
	uint64_t port_cookie;  /* of the transport's device or session */
	uint64_t tag;
	uint64_t age_ns;
	uint64_t layer_ns;     /* since it entered the layer */
	uint64_t out_length;   /* expected data-out bytes */
	uint64_t in_length;    /* expected data-in bytes */
	const uint8_t *param;  /* data-out copied for Python, param_length bytes */
	uint32_t param_length;
	uint32_t queue;
	uint32_t head;
	uint16_t target;
	uint16_t lun;
	uint8_t attribute;     /* VS_ATTR_* */
	uint8_t cdb_length;
	uint8_t layer;         /* enum vs_layer */
	uint8_t aborted;
	uint8_t fault;         /* C has ended it with a status that waits for a verdict before anybody is told */
	uint8_t status;        /* that status */
	uint8_t overlapped;    /* its tag is that of a command that has not ended */
	uint8_t cdb[VS_CDB_MAX];
	uint64_t gate;         /* the gate bits that sent it to Python */
	uint32_t in_segments;
	uint32_t out_segments;
	uint32_t worker;
	uint32_t lun_kind;     /* enum vs_lun_kind */
	uint64_t order;        /* where it stands among what its nexus sent; 0 where the transport has no such order */
	uint64_t notify;       /* the cookie with which its end is told; 0: it is not */
	uint64_t once;         /* of a command that must not run twice: tells it from every other, and is the same when it comes again; else 0 */
};

void vs_task_info(const vs_task *task, struct vs_task_info *out);

/* Takes at most max messages, oldest first; returns how many; infos[i] is filled where out[i] is a VS_UP_TASK. Clears the eventfd when it takes
 * the last one. */
int vs_core_drain(vs_core *core, struct vs_upcall *out, struct vs_task_info *infos, int max);

enum vs_verdict {
	VS_VERDICT_COMPLETE = 0, VS_VERDICT_EXECUTE = 1, VS_VERDICT_EXECUTE_NOTIFY = 2, VS_VERDICT_ABORTED = 3,
	VS_VERDICT_TELL = 4, /* of a fault: it ends as C has it */
};
enum vs_response { VS_RESP_OK = 0, VS_RESP_OVERRUN = 1, VS_RESP_ABORTED = 2, VS_RESP_BAD_TARGET = 3, VS_RESP_RESET = 4, VS_RESP_BUSY = 5, VS_RESP_TRANSPORT_FAILURE = 6, VS_RESP_TARGET_FAILURE = 7, VS_RESP_NEXUS_FAILURE = 8, VS_RESP_FAILURE = 9 };

struct vs_result {
	vs_task *task;
	uint64_t cookie;       /* for VS_UP_TASK_DONE */
	uint64_t data_offset;  /* data-in, in the blob of vs_core_post */
	uint32_t data_length;
	uint8_t verdict;       /* enum vs_verdict */
	uint8_t status;        /* VS_STATUS_* */
	uint8_t sense_length;
	uint8_t response;      /* enum vs_response */
	uint8_t sense[VS_SENSE_MAX];
};

/* Hands n results back; data-in is copied to the initiator's buffers (truncated to them) before this returns. */
void vs_core_post(vs_core *core, const struct vs_result *results, int n, const uint8_t *blob, uint64_t blob_length);

/* ---- gate, epochs, pins ------------------------------------------------------------------------------------------------------------ */

/* Sets bits on the LU's gate, or on the nexus's where nexus is not NULL; bumps the epoch, wakes the workers; returns the new epoch. */
uint64_t vs_gate_close(vs_core *core, vs_lu *lu, vs_nexus *nexus, uint64_t bits);
/* Clears bits. -EAGAIN: a task that saw them is still on its way to Python; drain, hand it back, try again. */
int vs_gate_open(vs_core *core, vs_lu *lu, vs_nexus *nexus, uint64_t bits);
uint64_t vs_gate_read(const vs_lu *lu, const vs_nexus *nexus);
uint64_t vs_epoch_bump(vs_core *core);
uint64_t vs_epoch_reached(const vs_core *core); /* the lowest epoch that any worker has seen */
/* Watched pins send VS_UP_DRAINED when a worker's count falls to zero. Watch first, then bump the epoch, wait for it, then look. */
void vs_pins_watch(vs_pins *pins, uint64_t cookie, int on);
int vs_pins_busy(const vs_pins *pins); /* 0: nothing pins it */
vs_pins *vs_lu_pins(vs_lu *lu);
vs_pins *vs_nexus_pins(vs_nexus *nexus);
vs_pins *vs_memmap_pins(vs_memmap *map);

/* ---- stores ---------------------------------------------------------------------------------------------------------------------------- */

enum vs_io_op { VS_IO_READ = 0, VS_IO_WRITE = 1, VS_IO_FLUSH = 2, VS_IO_UNMAP = 3, VS_IO_ZERO = 4, VS_IO_OPS = 5 };
enum vs_io_flag { VS_IO_FUA = 1, VS_IO_MAY_UNMAP = 2 };
/* The closed set of store errors; the one map to sense is a table of scsi/sense.py. */
enum vs_store_error {
	VS_ERR_NONE = 0,
	VS_ERR_READ = 1,        /* the medium could not be read */
	VS_ERR_WRITE = 2,       /* the medium could not be written */
	VS_ERR_NO_SPACE = 3,    /* thin provisioning ran out */
	VS_ERR_READ_ONLY = 4,
	VS_ERR_NOT_READY = 5,   /* not reachable now; may come back */
	VS_ERR_BUSY = 6,        /* try again */
	VS_ERR_GONE = 7,        /* will not come back (truncated, removed) */
	VS_ERR_RANGE = 8,       /* beyond the end of the store */
	VS_ERR_UNSUPPORTED = 9,
	VS_ERR_FLUSH_LATCHED = 10, /* an earlier flush failed: nothing since is promised */
	VS_ERR_INTERNAL = 11,   /* the store's own fault */
	VS_ERR_ABORTED = 12,
	VS_ERR_KINDS = 13,
};
enum vs_capability { VS_CAP_NONE = 0, VS_CAP_EMULATED = 1, VS_CAP_NATIVE = 2 };

struct vs_store_info {
	uint64_t size;          /* bytes */
	uint32_t io_align;      /* smallest direct-I/O unit in bytes, 1 when any */
	uint32_t optimal_io;    /* bytes, 0 unknown */
	uint32_t discard_granularity; /* bytes, 0 unknown */
	uint32_t atomic_unit;   /* bytes that one write moves as a whole or not at all; 0: it promises nothing */
	uint8_t read_only;
	uint8_t fua;            /* enum vs_capability */
	uint8_t unmap;
	uint8_t zero;
	uint8_t unmapped_reads_zero;
	uint8_t rotational;
	uint8_t volatile_cache; /* writes need a flush to be durable */
	uint8_t failed;         /* a flush failed: latched */
};

struct vs_store_stats {
	uint64_t ops[VS_IO_OPS];
	uint64_t bytes[VS_IO_OPS];
	uint64_t errors[VS_IO_OPS];
};

/* A store owns its lower store(s): destroying the top destroys all. why is a buffer of why_size bytes for one clear line. */
int vs_store_memory(vs_core *core, uint64_t size, int huge_pages, vs_store **out, char *why, uint32_t why_size);
int vs_store_null(vs_core *core, uint64_t size, vs_store **out, char *why, uint32_t why_size);

enum vs_file_flag { VS_FILE_READ_ONLY = 1, VS_FILE_DIRECT = 2, VS_FILE_NO_LOCK = 4 };
/* Locks path with flock on the descriptor that I/O uses; -EWOULDBLOCK when another process holds it (the caller may try again). */
int vs_store_file(vs_core *core, const char *path, uint32_t flags, vs_store **out, char *why, uint32_t why_size);
/* Copy-on-write over lower: into memory (path NULL) or into a new sparse file. block is the granule in bytes, a power of two >= 512. */
int vs_store_overlay(vs_core *core, vs_store *lower, const char *path, uint32_t block, vs_store **out, char *why, uint32_t why_size);
int vs_store_delay(vs_core *core, vs_store *lower, uint64_t read_us, uint64_t write_us, uint64_t flush_us, vs_store **out, char *why, uint32_t why_size);

enum vs_fault_kind { VS_FAULT_ERROR = 0, VS_FAULT_SHORT = 1, VS_FAULT_TORN = 2 };
struct vs_fault_rule {
	uint64_t offset; /* bytes */
	uint64_t length; /* bytes, 0: to the end */
	uint64_t skip;   /* so many matches pass first */
	uint64_t count;  /* then so many fail; 0: for ever */
	uint32_t ops;    /* bit mask of 1 << enum vs_io_op */
	uint32_t kind;   /* enum vs_fault_kind: SHORT transfers half and fails; TORN writes half and says success */
	int32_t error;   /* enum vs_store_error */
	uint32_t reserved;
};
int vs_store_faulty(vs_core *core, vs_store *lower, const struct vs_fault_rule *rules, uint32_t nrules, vs_store **out, char *why, uint32_t why_size);
/* Work arrives as VS_UP_STORE_IO with this cookie. */
int vs_store_python(vs_core *core, const struct vs_store_info *info, uint64_t cookie, vs_store **out, char *why, uint32_t why_size);

void vs_store_info(const vs_store *store, struct vs_store_info *out);
void vs_store_stats(const vs_store *store, struct vs_store_stats *out);
const char *vs_store_kind(const vs_store *store);
vs_store *vs_store_lower(const vs_store *store); /* NULL at the bottom */
int vs_store_resize(vs_store *store, uint64_t size); /* reads the size of a file anew when size is 0 */
void vs_store_destroy(vs_store *store);          /* no LU uses it any more */
/* Allocated bytes in [offset, offset+length): -ENOTSUP, or *mapped (0/1) and *run, how far that state reaches. */
int vs_store_map(vs_store *store, uint64_t offset, uint64_t length, int *mapped, uint64_t *run);
/* Bytes, estimated and cheap: no walk through a map. -ENOTSUP where the store does not know. shared: others take from what is available, too. */
struct vs_store_usage { uint64_t used; uint64_t available; uint32_t shared; uint32_t reserved; };
int vs_store_usage(vs_store *store, struct vs_store_usage *out);
/* The store takes no more bytes than that, and fails with VS_ERR_NO_SPACE what would need more. -ENOTSUP where something else limits it. */
int vs_store_limit(vs_store *store, uint64_t bytes);

/* What a store written in Python reads of an io, and how it answers. The segments are the initiator's buffers or the plane's. */
struct vs_io_segment { uint8_t *base; uint64_t length; };
struct vs_io_info {
	uint64_t offset;
	uint64_t length;
	uint32_t op;
	uint32_t flags;
	uint32_t nsegments;
	uint32_t reserved;
	const struct vs_io_segment *segments;
};
void vs_io_info(const vs_io *io, struct vs_io_info *out);
struct vs_io_result { vs_io *io; uint64_t data_offset; uint64_t data_length; int32_t error; uint32_t reserved; };
/* Answers n ios; bytes read are copied from the blob. */
void vs_core_post_io(vs_core *core, const struct vs_io_result *results, int n, const uint8_t *blob, uint64_t blob_length);
/* Copies the data of a write into buffer (at most size bytes); returns the bytes copied. */
uint64_t vs_io_gather(const vs_io *io, uint8_t *buffer, uint64_t size);

/* Byte I/O by the control plane (contract suite, flush before WCE changes): buffer must live until VS_UP_DONE(cookie, err = -vs_store_error). */
int vs_store_submit_control(vs_core *core, vs_store *store, uint32_t worker, uint32_t op, uint32_t flags, uint64_t offset, uint64_t length, uint8_t *buffer, uint64_t cookie);

/* ---- logical units and nexuses --------------------------------------------------------------------------------------------------------- */

struct vs_lu_params {
	uint64_t num_blocks;
	uint64_t cookie;
	uint32_t block_size;           /* bytes, a power of two >= 512 */
	uint32_t max_unmap_blocks;     /* 0: no limit */
	uint32_t max_unmap_descriptors;
	uint32_t max_write_same_blocks; /* 0: no limit */
	uint32_t max_transfer_blocks;  /* 0: no limit */
	uint32_t max_atomic_blocks;    /* 0: no atomic writes */
	uint8_t write_cache;           /* WCE: 0 makes each write FUA */
	uint8_t descriptor_sense;      /* D_SENSE */
	uint8_t unmap;                 /* LBPU: UNMAP and WRITE SAME with UNMAP are served */
	uint8_t lenient;               /* reserved bits of a CDB are ignored */
	uint8_t wsnz;                  /* WRITE SAME of zero blocks is refused; else it goes to the end of the medium */
	uint8_t cdb32;                 /* READ(32) and its like are served */
	uint8_t queue_error;           /* QERR is not 00b: a CHECK CONDITION ends other commands */
	uint8_t tell_full;             /* UA_INTLCK_CTRL is 11b: Python hears of BUSY and TASK SET FULL before the initiator */
	uint32_t max_outstanding;      /* commands of all nexuses at once, 0: no limit */
	uint32_t queue_depth;          /* of one nexus, 0: no limit */
	uint32_t timeout_ms;           /* how long a store operation may take, 0: as long as it likes */
	uint32_t retries;              /* how often a store operation is tried again that has failed */
};

int vs_lu_create(vs_core *core, const struct vs_lu_params *params, vs_store *store, vs_lu **out);
void vs_lu_update(vs_lu *lu, const struct vs_lu_params *params); /* between a fence and its open */
/* Another medium: between a fence and its open, before vs_lu_update. The old store is the caller's again, and no block is marked bad any more. */
void vs_lu_set_store(vs_lu *lu, vs_store *store);
void vs_lu_destroy(vs_lu *lu); /* no nexus left, nothing in flight */

enum { VS_SAMPLE = 64 };
struct vs_lu_stats {
	uint64_t reads, writes, flushes, unmaps, others;
	uint64_t read_bytes, write_bytes;
	uint64_t escalated; /* tasks that went to Python */
	uint64_t failed;    /* tasks that ended in other than GOOD */
	uint64_t verifies, verify_bytes;
	uint64_t read_errors, write_errors, verify_errors; /* commands that the medium failed */
	uint64_t read_ns, write_ns; /* time that commands took here, from one in VS_SAMPLE of each kind */
};
void vs_lu_stats(const vs_lu *lu, struct vs_lu_stats *out);

/* Blocks marked bad by an initiator; writing one makes it good again. -ENOSPC when VS_BAD_MAX are marked. */
enum { VS_BAD_MAX = 1024 };
int vs_lu_mark_bad(vs_lu *lu, uint64_t lba);
uint32_t vs_lu_bad(const vs_lu *lu, uint64_t *out, uint32_t max); /* in no order */
void vs_lu_clear_bad(vs_lu *lu, uint64_t lba, uint64_t blocks);

/* An I_T_L nexus. cookie is not 0. */
int vs_nexus_create(vs_core *core, vs_lu *lu, uint64_t cookie, vs_nexus **out);
void vs_nexus_destroy(vs_nexus *nexus); /* unmapped, nothing in flight */

/* Task management on what C holds: every worker first pops what its rings hold, then marks what matches. */
enum vs_tmf_match { VS_TMF_TAG = 1, VS_TMF_NEXUS = 2, VS_TMF_LU = 4, VS_TMF_PORT = 8, VS_TMF_BEFORE = 16 };
enum vs_tmf_action { VS_TMF_QUERY = 0, VS_TMF_ABORT = 1 };
struct vs_tmf {
	vs_lu *lu;
	vs_nexus *nexus;
	uint64_t port_cookie;
	uint64_t tag;
	uint64_t cookie;
	uint32_t match;    /* enum vs_tmf_match, all that are set must agree */
	uint32_t action;   /* enum vs_tmf_action */
	uint32_t response; /* enum vs_response that the aborted tasks end with */
	uint32_t status;   /* not 0: they end with this SCSI status instead (SAM-5 5.3.1: TASK ABORTED) */
	uint64_t before;   /* VS_TMF_BEFORE: tasks whose order is lower */
};
/* One VS_UP_DONE(cookie, aux = tasks matched) a worker, after the matched tasks of that worker have ended and their completions are visible. */
void vs_tmf_post(vs_core *core, const struct vs_tmf *tmf);

/* Tasks in flight: fills buffer (max entries) on each worker in turn, one VS_UP_DONE(cookie, aux = entries written) a worker. */
int vs_worker_snapshot(vs_core *core, uint32_t worker, struct vs_task_info *buffer, uint32_t max, uint64_t cookie);

/* The same for inspection: a worker that sleeps answers without looking at its rings. Tasks that are min_age_ns old or older; in no order with
 * other messages. */
int vs_worker_look_tasks(vs_core *core, uint32_t worker, struct vs_task_info *buffer, uint32_t max, uint64_t min_age_ns, uint64_t cookie);
/* The data segments of the task of that port, queue and head: VS_UP_DONE, aux = how many there are (max are written), err -ENOENT. */
struct vs_segment { uint64_t address; uint64_t length; uint32_t writable; uint32_t known; }; /* known: address is the initiator's own */
int vs_worker_look_segments(vs_core *core, uint32_t worker, uint64_t port_cookie, uint32_t queue, uint32_t head, struct vs_segment *buffer, uint32_t max,
			    uint64_t cookie);

struct vs_worker_stats {
	uint64_t loops, sleeps, wakes, kicks, interrupts, interrupts_suppressed, requests, batches, spins;
	int64_t thread_id;
	uint32_t sleeping;  /* 1: until a kick, a completion or a message comes */
	uint32_t reserved;
};
void vs_worker_stats(const vs_core *core, uint32_t worker, struct vs_worker_stats *out);

/* ---- guest memory ------------------------------------------------------------------------------------------------------------------------ */

struct vs_region { uint64_t guest_addr; uint64_t size; uint64_t user_addr; uint64_t mmap_offset; int32_t fd; uint32_t reserved; };

/* Maps the regions (fds are duplicated). A map is a snapshot: to change one, build a new one; equal regions of base share its mappings. */
int vs_memmap_create(vs_core *core, const struct vs_region *regions, uint32_t n, vs_memmap *base, uint64_t cookie, vs_memmap **out);
void vs_memmap_destroy(vs_memmap *map); /* nothing pins it */
int vs_memmap_broken(const vs_memmap *map);
/* Bounds of a user address in the map: 0 when [addr, addr+length) lies in one region. */
int vs_memmap_check_user(const vs_memmap *map, uint64_t addr, uint64_t length, uint64_t align);

/* ---- virtio-scsi devices -------------------------------------------------------------------------------------------------------------------- */

struct vs_vdev_params {
	uint64_t cookie;
	uint32_t num_queues;  /* control and event queue included */
	uint32_t cdb_size;    /* 32 by default */
	uint32_t sense_size;  /* 96 by default */
	uint32_t credit;      /* tasks of this device in Python at once */
};
int vs_vdev_create(vs_core *core, const struct vs_vdev_params *params, vs_vdev **out);
void vs_vdev_destroy(vs_vdev *vdev); /* every queue stopped */

enum vs_lun_kind { VS_LUN_UNIT = 0, VS_LUN_ABSENT = 1, VS_LUN_REPORT_LUNS = 2 };
/* The LUN map is a snapshot too: build with these, then commit. Absent LUNs of a target that exists go to Python. */
struct vs_lun_entry { vs_nexus *nexus; uint16_t target; uint16_t lun; uint32_t reserved; };
int vs_vdev_set_luns(vs_vdev *vdev, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie); /* VS_UP_DONE when no worker uses the old one */

enum vs_ring_feature { VS_RING_EVENT_IDX = 1, VS_RING_INDIRECT = 2, VS_RING_PACKED = 4, VS_RING_VERSION_1 = 8, VS_RING_IN_ORDER = 16 };
struct vs_queue_params {
	uint64_t desc;      /* user addresses */
	uint64_t avail;
	uint64_t used;
	uint32_t size;
	uint32_t base;      /* next avail index; packed: places with wrap counters, avail in bits 0..15, used in 16..31 */
	uint32_t features;  /* enum vs_ring_feature */
	uint32_t worker;
	int32_t kick_fd;    /* -1: polled. The queue owns these descriptors from here, whatever it returns */
	int32_t call_fd;    /* -1: the driver polls */
	int32_t err_fd;
	uint32_t enabled;
	uint32_t wait_kick; /* take nothing before the first kick; means nothing without a kick descriptor */
	vs_inflight *inflight; /* NULL: nobody keeps what is in flight. Outlives the queue's run. A dead process's share decides where the ring begins */
};
/*
 * Memory of the front end's in which queues keep what they have in flight (vhost-user, GET_INFLIGHT_FD and SET_INFLIGHT_FD): core/inflight.h. Who makes one
 * writes the magic number, and 8 bytes that tell it from every other one, at own_offset of zeroes of this size.
 */
uint64_t vs_inflight_size(uint32_t num_queues, uint32_t queue_size);
uint64_t vs_inflight_own_offset(uint32_t num_queues, uint32_t queue_size);
uint64_t vs_inflight_magic(void);
/* Maps it; fd stays the caller's. -EINVAL: too small, or not a file. */
int vs_inflight_open(vs_core *core, int fd, uint64_t size, uint64_t offset, uint32_t num_queues, uint32_t queue_size, vs_inflight **out);
void vs_inflight_close(vs_inflight *inflight); /* no queue runs with it */
uint64_t vs_inflight_id(const vs_inflight *inflight); /* 0: somebody else made it */
void vs_inflight_forget(vs_inflight *inflight, uint32_t features); /* the device was reset: what was in flight is nobody's. No queue runs */
int vs_inflight_left(const vs_inflight *inflight, uint32_t queue, uint32_t features); /* how many requests a dead process left there, as it says */

/* VS_UP_DONE(aux = requests that are executed again; bit 32: what was kept did not fit the ring, and was forgotten). */
int vs_queue_start(vs_vdev *vdev, uint32_t index, const struct vs_queue_params *params, vs_memmap *map, uint64_t cookie);
int vs_queue_stop(vs_vdev *vdev, uint32_t index, uint64_t cookie);              /* VS_UP_DONE(aux = base to go on from) after all in flight ended */
int vs_queue_enable(vs_vdev *vdev, uint32_t index, int enabled, uint64_t cookie);
int vs_queue_set_call(vs_vdev *vdev, uint32_t index, int fd, uint64_t cookie);  /* takes fd */
int vs_queue_set_err(vs_vdev *vdev, uint32_t index, int fd, uint64_t cookie);   /* takes fd */
int vs_queue_set_kick(vs_vdev *vdev, uint32_t index, int fd, uint64_t cookie);  /* takes fd */
int vs_queue_set_map(vs_vdev *vdev, uint32_t index, vs_memmap *map, uint64_t cookie);

enum { VS_QLATENCY_BUCKETS = 32, VS_QLATENCY_SHIFT = 8, VS_QBATCH_BUCKETS = 9 };
struct vs_queue_info {
	uint64_t requests, kicks, interrupts, interrupts_suppressed, batches, errors;
	uint64_t desc, avail, used; /* user addresses */
	uint32_t size, features, worker, in_flight;
	uint16_t last_avail, used_idx;
	uint8_t started, enabled, broken, stalled;
	uint8_t begun;              /* since it was started it was kicked, or something was taken from it */
	int32_t error;
	uint32_t max_batch;
	uint8_t stopping;
	uint8_t waiting;            /* takes nothing until a request ends: long chains use up the queue's share of memory */
	uint8_t await_kick;         /* takes nothing before the first kick */
	uint8_t reserved;
	/* Of requests that ended: from the turn in which the worker took them to the one after the answer was visible. Bucket k holds what took less
	 * than 2^(k + VS_QLATENCY_SHIFT) ns, the last one the rest. */
	uint64_t latency[VS_QLATENCY_BUCKETS];
	uint64_t batch_sizes[VS_QBATCH_BUCKETS]; /* bucket k: turns that took 2^k requests or more, but less than twice as many */
};
int vs_queue_info(const vs_vdev *vdev, uint32_t index, struct vs_queue_info *out);
/* One VS_UP_BUSY(cookie = the device's, aux = index) when the queue takes requests next. */
void vs_queue_tell_busy(vs_vdev *vdev, uint32_t index);

struct vs_ctrl_info { uint64_t port_cookie; uint32_t queue; uint32_t in_length; uint32_t out_length; uint32_t reserved; const uint8_t *out; };
void vs_ctrl_info(const vs_ctrl *ctrl, struct vs_ctrl_info *out);
void vs_ctrl_reply(vs_core *core, vs_ctrl *ctrl, const uint8_t *data, uint32_t length);
/*
 * Puts one event (16 bytes) into the next buffer of the event queue: VS_UP_DONE, err -ENOBUFS when the driver has posted none. That some
 * were dropped is said by the next event, or by one of no other meaning as soon as there is a buffer (virtio 1.3, 5.6.6.3).
 */
int vs_vdev_event(vs_vdev *vdev, const uint8_t *event, uint64_t cookie);
int vs_vdev_event_room(vs_vdev *vdev, uint64_t cookie);     /* VS_UP_DONE(aux = buffers that wait for events; err -ENOBUFS: it is not running) */
int vs_vdev_events_forget(vs_vdev *vdev, uint64_t cookie);  /* whoever comes next has missed nothing */

const char *vs_ring_rule_name(int rule);

/* ---- iSCSI: the full-feature phase ---------------------------------------------------------------------------------------------------------- */

typedef struct vs_isession vs_isession;
typedef struct vs_iconn vs_iconn;

/* A session and all its connections live on one worker. Keys as negotiated (RFC 7143 13). */
struct vs_isession_params {
	uint64_t cookie;
	uint32_t worker;
	uint32_t exp_cmd_sn;        /* the next command to be taken */
	uint32_t queue_depth;       /* commands at once: the command window */
	uint32_t max_burst;         /* MaxBurstLength, bytes */
	uint32_t first_burst;       /* FirstBurstLength */
	uint32_t max_outstanding_r2t;
	uint32_t credit;            /* tasks of this session in Python at once */
	uint32_t max_transfer;      /* bytes that one command may move */
	uint64_t buffer_limit;      /* bytes of data buffers at once; what needs more waits */
	uint8_t initial_r2t;
	uint8_t immediate_data;
	uint8_t discovery;          /* every SCSI command goes up as a PDU */
	uint8_t reserved[5];
};
int vs_isession_create(vs_core *core, const struct vs_isession_params *params, vs_isession **out);
int vs_isession_set_luns(vs_isession *session, const struct vs_lun_entry *entries, uint32_t n, uint64_t cookie); /* VS_UP_DONE; target must be 0 */
int vs_isession_destroy(vs_isession *session, uint64_t cookie); /* VS_UP_DONE; every connection is closed, every task has ended */
/* Takes the numbers from `first` on, up to but not `end`, as received as far as they are in the window and have not come: what comes with them
 * later is dropped. VS_UP_DONE, aux = how many had not come. */
int vs_isession_plug(vs_isession *session, uint32_t first, uint32_t end, uint64_t cookie);

struct vs_iconn_params {
	uint64_t cookie;
	int32_t fd;                 /* the connection owns it from here; non-blocking */
	uint32_t stat_sn;           /* of the next response */
	uint32_t max_send_segment;  /* the initiator's MaxRecvDataSegmentLength, bytes */
	uint32_t max_recv_segment;  /* ours */
	uint8_t header_digest;      /* CRC32C */
	uint8_t data_digest;
	uint16_t cid;
	uint32_t leftover_length;
	const uint8_t *leftover;    /* what was read beyond the login */
};
int vs_iconn_start(vs_isession *session, const struct vs_iconn_params *params, vs_iconn **out);
int vs_iconn_set_max_send(vs_iconn *conn, uint32_t length);
/* Ends the connection and its commands; VS_UP_DONE when the last has ended and *conn is gone. */
int vs_iconn_close(vs_iconn *conn, uint64_t cookie);

enum vs_isend_flag { VS_ISEND_STATUS = 1 /* carries and advances StatSN */, VS_ISEND_CLOSE = 2 /* close the socket after it */ };
/* Queues a PDU of Python's: StatSN, ExpCmdSN, MaxCmdSN, lengths and digests are filled in here. */
int vs_iconn_send(vs_iconn *conn, const uint8_t *bhs, const uint8_t *data, uint32_t length, uint32_t flags);

enum vs_iconn_event {
	VS_ICONN_PEER_CLOSED = 1, VS_ICONN_SOCKET_ERROR = 2, VS_ICONN_HEADER_DIGEST = 3, VS_ICONN_SEGMENT_TOO_LONG = 5,
	VS_ICONN_BURST = 6 /* more data than was asked for, or at another offset */, VS_ICONN_NO_MEMORY = 7, VS_ICONN_SENT_LAST = 8, VS_ICONN_PROTOCOL = 9,
};
/* VS_UP_ICONN: aux = enum vs_iconn_event. Nothing more is read; the connection waits for vs_iconn_close. A wrong data digest is no event: the
 * PDU is rejected, its command ends, and the connection goes on (7.8). */
/* VS_UP_IPDU: a PDU for Python: pdu. */
struct vs_ipdu_info {
	uint64_t session_cookie;
	uint64_t conn_cookie;
	const uint8_t *bhs;         /* 48 bytes */
	const uint8_t *ahs;
	const uint8_t *data;
	uint32_t ahs_length;
	uint32_t data_length;
	uint64_t order;             /* as of a task: what came before it has a lower one */
};
void vs_ipdu_info(const vs_ipdu *pdu, struct vs_ipdu_info *out);
void vs_ipdu_done(vs_core *core, vs_ipdu *pdu);

/* VS_UP_IREFUSED: a command that ended for its operation code, or for a field of its CDB or parameter list, or a PDU that was rejected by us (then
 * `reject` is the reason, and bhs its header). It is told and no more. When too many are on
 * their way others are not sent: `missed` of the session before this one. */
struct vs_irefusal_info {
	uint64_t missed;
	uint8_t reject;             /* RFC 7143 11.17.1; 0: a command */
	uint8_t cdb_length;
	uint8_t sense_length;
	uint8_t lun[8];             /* as it came */
	uint8_t cdb[32];            /* the first bytes */
	uint8_t sense[32];
	uint8_t bhs[48];
};
void vs_irefusal_take(vs_irefusal *refusal, struct vs_irefusal_info *out); /* it is gone afterwards */

/* From the arrival of a command's header until its status is on its way. Bucket k holds what took less than 2^k us, the last one the rest. */
struct vs_ilatency_info { uint64_t count, total_ns, min_ns, max_ns, buckets[24]; };
struct vs_iconn_info {
	struct vs_ilatency_info latency[3]; /* of reads, of writes, of commands without data */
	uint64_t rx_bytes, tx_bytes, rx_pdus, tx_pdus, commands, r2ts, last_heard_ns;
	uint32_t stat_sn, exp_cmd_sn, max_cmd_sn, active, digest_errors, waiting_buffer;
};
void vs_iconn_info(const vs_iconn *conn, struct vs_iconn_info *out);
uint32_t vs_crc32c_of(uint32_t crc, const uint8_t *data, uint64_t length);

/* ---- host adapters: PCI functions over vfio-user ------------------------------------------------------------------------------------------- */

/* A function lives on one worker, which owns the socket of its client. What is rare goes up to Python as VS_UP_HMSG, one message at a time: the
 * client's later messages wait until it is answered, answers to messages of our own do not. */
enum vs_hba_chip {
	VS_HBA_EXERCISER = 1, /* copies memory and raises its interrupt when told: for whoever tests the protocol */
	VS_HBA_LSI53C895A = 2, /* without a device on its SCSI bus */
};
enum { VS_HBA_REGIONS = 9, VS_HBA_IRQS = 5, VS_HBA_MSG_FDS = 8, VS_HBA_XFER_MAX = 65536, VS_HBA_WINDOWS_MAX = 1024 };
struct vs_hba_params { uint64_t cookie; uint32_t worker; uint32_t chip; /* enum vs_hba_chip */ };
int vs_hba_create(vs_core *core, const struct vs_hba_params *params, vs_hba **out);
/* VS_UP_DONE. No client, no windows. */
int vs_hba_destroy(vs_hba *hba, uint64_t cookie);

enum vs_hba_region_flag { VS_HBA_REGION_READ = 1, VS_HBA_REGION_WRITE = 2, VS_HBA_REGION_MMAP = 4 };
struct vs_hba_region_info { uint64_t size; uint32_t flags; int32_t fd; /* -1: cannot be mapped */ };
int vs_hba_region_info(const vs_hba *hba, uint32_t index, struct vs_hba_region_info *out);
uint32_t vs_hba_irq_count(const vs_hba *hba, uint32_t index);

/* The hba owns fd from here, whatever it returns. One client at a time. */
int vs_hba_attach(vs_hba *hba, int fd, uint64_t conn_cookie);
/* The version is agreed upon: region accesses are served from here on. max_xfer: bytes that the client takes in one message, max_fds: descriptors. */
int vs_hba_open(vs_hba *hba, uint32_t max_xfer, uint64_t cookie);
/* VS_UP_DONE when the client is gone: its socket and interrupts are closed, every message was answered. The windows stay: take them away next. */
int vs_hba_detach(vs_hba *hba, uint64_t cookie);

enum vs_hba_event {
	VS_HBA_PEER_CLOSED = 1, VS_HBA_SOCKET_ERROR = 2, VS_HBA_BAD_SIZE = 3 /* of a message */, VS_HBA_BAD_TYPE = 4 /* neither command nor reply */,
	VS_HBA_FDS_LOST = 5 /* more descriptors than a message may have */, VS_HBA_NO_MEMORY = 6, VS_HBA_TRUNCATED = 7 /* ended within a message */,
};
/* VS_UP_HCONN: aux = enum vs_hba_event; nothing more is read, the client waits for vs_hba_detach. */
struct vs_hmsg_info {
	uint64_t conn_cookie;
	const uint8_t *data;        /* what follows the header */
	uint32_t length;
	uint32_t nfds;
	uint16_t id;
	uint16_t command;
	uint32_t flags;
};
void vs_hmsg_info(const vs_hmsg *msg, struct vs_hmsg_info *out);
int vs_hmsg_take_fd(vs_hmsg *msg, uint32_t index); /* the caller's from here; -1: there is none. What is left is closed with the answer */
/* Answers, unless the client wants none; error: an errno, then there is no data. fds are duplicated. The message is gone, also on -ENOMEM, which
 * the client sees as its error. */
int vs_hmsg_reply(vs_core *core, vs_hmsg *msg, uint32_t error, const uint8_t *data, uint32_t length, const int32_t *fds, uint32_t nfds);

/* Windows of the client's memory, in any order, none over another. A window with VS_HBA_DIRECT is what map maps there, else map is an empty one, and its
 * bytes are asked for by messages. Each has its own map, for the pins of what uses it. VS_UP_DONE: nothing new uses what is not in the table. */
enum vs_hba_window_flag { VS_HBA_DMA_READ = 1, VS_HBA_DMA_WRITE = 2, VS_HBA_DIRECT = 4 };
struct vs_hba_window { uint64_t addr; uint64_t size; uint32_t flags; uint32_t reserved; vs_memmap *map; };
int vs_hba_set_windows(vs_hba *hba, const struct vs_hba_window *windows, uint32_t n, uint64_t cookie);
/* Takes the descriptors (-1: none) as what signals irqs start... of index; VS_UP_DONE. They are closed where this fails, too. */
int vs_hba_set_irq_fds(vs_hba *hba, uint32_t index, uint32_t start, uint32_t count, const int32_t *fds, uint64_t cookie);
int vs_hba_reset(vs_hba *hba, uint64_t cookie); /* VS_UP_DONE when what the function did has ended */

struct vs_hba_stats {
	uint64_t reads, writes;     /* region accesses; each write of a multiple one counts */
	uint64_t interrupts, interrupts_masked;
	uint64_t messages;          /* of the client, all */
	uint64_t dma_messages;      /* of ours */
	uint64_t dma_faults;        /* accesses to memory that is not there, or that the client did not answer */
	uint64_t stray_replies;     /* to nothing that we asked */
	uint64_t refused;           /* messages that were answered with an error here */
};
void vs_hba_stats(const vs_hba *hba, struct vs_hba_stats *out);

/* ---- barriers for the Python side of a ring ------------------------------------------------------------------------------------------------ */

uint16_t vs_load_acquire_u16(const void *p);
void vs_store_release_u16(void *p, uint16_t v);
void vs_mb(void);
