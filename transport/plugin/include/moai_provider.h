/*
 * The provider ABI of MoAI Fabric, version 1.0.
 *
 * A shared object that exports `moai_provider_v1` can add ways of moving bytes (transports) and kinds of device memory
 * (domains) to a program that uses MoAI Fabric. The program that loads it is the host, the shared object the plug-in.
 * The functions mirror the contract of built-in providers; the chapter "Write a provider" of the book tells what each
 * must keep, and the conformance suite checks it.
 *
 * Rules, for every function here
 *
 * Versions    The name of the entry has the major version. Within a major version no field is removed, moved or given
 *             another meaning. A struct that begins with `size` may get fields at its end: whoever fills it in sets
 *             `size` to what it was compiled with, and whoever reads it takes fields beyond `size` as zero or NULL. So
 *             an older plug-in runs under a newer host, and a newer plug-in under an older host. A struct without
 *             `size` never changes. Numbers of statuses, kinds and flags are never reused.
 * Ownership   What a call is given is the caller's, and may be looked at until the call returns. What outlasts the call
 *             is copied; memory that outlasts it is retained (`moai_memory.retain`) and later released. Tables and the
 *             strings in them live as long as the process; a plug-in is never unloaded.
 * Threads     A transport's `probe`, `obstacle` and `open`, and all functions of a domain but those of a stream, may be
 *             called from several threads at once. An interface, and a stream, is used by one thread at a time, which
 *             need not always be the same. `retain` and `release` may be called by any thread at any time. The handler
 *             is called within `poll` only, on the thread that polls. Nothing but `poll` waits.
 * Errors      A status below zero is an error: the call did nothing. `moai_error` then has numbers as the status says,
 *             and may have a sentence for people. A status above zero is an answer that only some calls give.
 * Unwinding   No C++ exception and no panic leaves a function, in either direction.
 * Text        UTF-8 without a NUL in `moai_text`; NUL-terminated where it is a `const char *`. A plug-in writes at most
 *             `capacity` bytes, sets `length` to what the whole text has, and answers MOAI_E_BUFFER if that is more
 *             (in a `moai_error` it just cuts it off).
 * Trust       A plug-in runs inside of the host and can do whatever the host can. What the host checks is to find
 *             mistakes: sizes and NULL functions when it is loaded; unknown numbers, lengths, counts and addresses in
 *             every answer; completions for what is not in flight; peers that were never announced. A plug-in that is
 *             found to break a rule is used no more: its operations end as lost, its connections as closed, and calls
 *             fail with MOAI_E_FAILED's sentence. Memory that it may still write to is then kept for ever.
 */
#ifndef MOAI_PROVIDER_H
#define MOAI_PROVIDER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOAI_PROVIDER_MAJOR 1
#define MOAI_PROVIDER_MINOR 0

/* Statuses. Numbers in brackets are those of `moai_error.detail`, in order. */
typedef int32_t moai_status;
enum {
    MOAI_OK = 0,        /* done */
    MOAI_IN_FLIGHT = 1, /* accepted: a completion with the token follows */
    MOAI_BUSY = 2,      /* nothing was taken: a queue is full */
    MOAI_NONE = 3,      /* there is nothing to give */
    MOAI_E_NO_SUCH_PEER = -1,
    MOAI_E_FINISHING = -2,              /* `finish` was called for the peer */
    MOAI_E_TOO_LARGE = -3,              /* [bytes, limit] */
    MOAI_E_TOO_MANY_PEERS = -4,         /* [limit] */
    MOAI_E_TOO_MANY_REGISTRATIONS = -5, /* [limit] */
    MOAI_E_TOO_MANY_IMPORTS = -6,
    MOAI_E_NOT_REGISTERED = -7,
    MOAI_E_NOT_LENT = -8,      /* [number of the region] */
    MOAI_E_NOT_IMPORTED = -9,  /* [number of the remote region] */
    MOAI_E_KEY = -10,          /* the bytes are no key; text */
    MOAI_E_REFUSED = -11,      /* [a MOAI_REFUSAL_]: the key itself says so */
    MOAI_E_PIECES = -12,       /* [0 local, 1 remote; a MOAI_PIECES_; region; three numbers of that problem] */
    MOAI_E_UNEQUAL = -13,      /* [local bytes, remote bytes] */
    MOAI_E_UNSUPPORTED = -14,  /* [a MOAI_OPERATION_, a MOAI_KIND_]; text: the reason */
    MOAI_E_UNREACHABLE = -15,  /* text: the reason */
    MOAI_E_UNADVERTISED = -16, /* text: the address that stands for every address of a host */
    MOAI_E_ELSEWHERE = -17,    /* obstacle: this way does not lead there, as it should be; text: the reason */
    MOAI_E_OBSTACLE = -18,     /* obstacle: it leads there, and something is wrong; text: the reason */
    MOAI_E_SYSTEM = -19,       /* [errno]; text: the call */
    MOAI_E_OUT_OF_MEMORY = -20,
    MOAI_E_REJECTED = -21, /* of the handler: the frame is refused, end the connection as MOAI_CLOSED_REJECTED */
    MOAI_E_BUFFER = -22,   /* the text has `length` bytes, more than `capacity` */
    MOAI_E_FAILED = -23    /* anything else; text: a sentence */
};

/* What can be asked of an interface. */
enum { MOAI_OPERATION_PUT = 0, MOAI_OPERATION_GET = 1, MOAI_OPERATION_SEND = 2, MOAI_OPERATION_MAP = 3 };

/* Kinds of memory. The processor can load from the first three. Numbers travel between processes. */
enum { MOAI_KIND_HOST = 1, MOAI_KIND_PINNED = 2, MOAI_KIND_SHARED = 3, MOAI_KIND_SIM = 4 };

/* How an operation reaches memory of a kind. */
enum { MOAI_REACH_NO = 0, MOAI_REACH_STAGED = 1, MOAI_REACH_DIRECT = 2 };

/* What a peer may do with registered memory, summed. */
enum { MOAI_RIGHT_READ = 1, MOAI_RIGHT_WRITE = 2, MOAI_RIGHT_MAP = 4 };

/* Why the owner of memory refuses an operation on it. */
enum {
    MOAI_REFUSAL_EPOCH = 1,      /* the key is of another life of the process */
    MOAI_REFUSAL_GENERATION = 2, /* the registration is gone */
    MOAI_REFUSAL_BOUNDS = 3,
    MOAI_REFUSAL_RIGHTS = 4,
    MOAI_REFUSAL_MALFORMED = 5,
    MOAI_REFUSAL_BUSY = 6,
    MOAI_REFUSAL_COPY = 7
};

/* Problems of a list of pieces, with the three numbers behind the region. */
enum {
    MOAI_PIECES_EMPTY = 1,         /* [bytes, count] */
    MOAI_PIECES_OVERLAP = 2,       /* [bytes, stride] */
    MOAI_PIECES_OUT_OF_BOUNDS = 3, /* [offset, reach, length of the region] */
    MOAI_PIECES_TOO_LARGE = 4
};

/* A number that names a peer: index in the low 32 bits (less than 2^29), generation in the high ones. A generation of an
 * index is used once. */
typedef uint64_t moai_peer;
/* A registration: slot in the low 32 bits, generation (not 0) in the high ones. */
typedef uint64_t moai_registration;

typedef struct moai_text {
    char *data;
    uint64_t capacity;
    uint64_t length;
} moai_text;

typedef struct moai_error {
    uint32_t size;
    uint32_t reserved;
    uint64_t detail[6];
    moai_text text;
} moai_error;

struct moai_domain;

/* Memory, as one side tells the other. */
enum { MOAI_MEMORY_WRITABLE = 1 };
typedef struct moai_memory {
    uint32_t size;
    uint32_t kind;
    uint32_t flags;
    int32_t fd;         /* a memfd that another process can import, open while the memory is retained; or -1 */
    uint64_t fd_offset; /* where the memory begins in it */
    uint64_t bytes;
    void *address; /* of the first byte; of device memory a number that nobody follows */
    void *handle;  /* its giver's name for it, for the three below and for `moai_span` */
    void (*retain)(void *handle);
    void (*release)(void *handle);
    const struct moai_domain *domain; /* the device whose streams reach it, as long as it is retained; or NULL */
} moai_memory;

/* The regions that are lent for a call: pieces name them by index. */
typedef struct moai_regions {
    uint32_t size;
    uint32_t stride; /* bytes from one entry to the next */
    uint64_t version; /* the same as long as no entry has changed */
    uint64_t count;
    const moai_memory *at;
} moai_regions;

/* `count` pieces of `bytes` bytes, `stride` apart, at each of the offsets. */
typedef struct moai_pieces {
    uint32_t region; /* local: index among the regions; remote: what `import_key` gave */
    uint32_t bytes;
    uint32_t count;
    uint32_t reserved;
    uint64_t stride;
    const uint64_t *offsets;
    uint64_t offset_count;
} moai_pieces;

typedef struct moai_batch {
    uint64_t id;
    uint32_t bytes;
    uint32_t reserved;
} moai_batch;

/* One piece of a region, for the payload of a batch. */
typedef struct moai_piece {
    uint32_t region;
    uint32_t bytes;
    uint64_t offset;
} moai_piece;

/* How an operation ended. */
enum {
    MOAI_ENDED_WELL = 0,
    MOAI_ENDED_PEER_LOST = 1,
    MOAI_ENDED_REFUSED = 2, /* code: a MOAI_REFUSAL_ */
    MOAI_ENDED_COPY = 3,    /* a copy from or to device memory failed */
    MOAI_ENDED_ACCESS = 4   /* the system refused access; code: errno */
};
typedef struct moai_completion {
    uint64_t token;
    moai_peer peer;
    uint32_t outcome;
    int32_t code;
} moai_completion;

/* Why a connection ended. */
enum {
    MOAI_CLOSED_BY_PEER = 1,
    MOAI_CLOSED_TRUNCATED = 2, /* [received, expected]; text: "header", "message" or "batch" */
    MOAI_CLOSED_REJECTED = 3,  /* text: what the handler said */
    MOAI_CLOSED_IO = 4,        /* [errno, or 0]; text */
    MOAI_CLOSED_IDLE = 5,      /* [limit in milliseconds]: no whole frame came */
    MOAI_CLOSED_BY_US = 6,     /* after `finish`: everything has gone out */
    MOAI_CLOSED_OTHER = 7      /* text */
};
typedef struct moai_closed {
    uint32_t size;
    uint32_t reason;
    uint64_t detail[2];
    const char *text; /* or NULL */
} moai_closed;

/* What happens to the peers of an interface: called within `poll`, must not block. For every peer: `connected`, then
 * frames, then one `closed`; for a connection that could not be made, `closed` alone. After MOAI_E_REJECTED, `closed`
 * is the peer's next and last call. `reason` may be NULL. */
typedef struct moai_handler {
    uint32_t size;
    uint32_t reserved;
    void *context;
    void (*connected)(void *context, moai_peer peer, uint32_t incoming);
    moai_status (*message)(void *context, moai_peer peer, const uint8_t *data, uint64_t bytes, moai_text *reason);
    /* The header of a batch: sets `*direct` to 1 if the payload goes to pieces, 0 if it is handed over whole. */
    moai_status (*landing)(void *context, moai_peer peer, const moai_batch *batch, uint32_t *direct, moai_text *reason);
    /* The next pieces, at most `most`, of a direct payload from byte `from` on. Sets `*count` to how many there are,
     * which can be wrong: check count, bounds and sum, and end the connection if they are. */
    moai_status (*pieces)(void *context, moai_peer peer, const moai_batch *batch, uint32_t from, moai_piece *out,
                          uint64_t most, uint64_t *count, moai_text *reason);
    /* The regions that pieces name, lent until the call of this handler's owner returns or this is called again. */
    const moai_regions *(*regions)(void *context);
    /* The whole payload is there; `staged` has it if it was not direct, else NULL. */
    moai_status (*landed)(void *context, moai_peer peer, const moai_batch *batch, const uint8_t *staged,
                          moai_text *reason);
    void (*writable)(void *context, moai_peer peer);
    void (*closed)(void *context, moai_peer peer, const moai_closed *why);
} moai_handler;

/* Writes the payload of a batch: called once with room for exactly its bytes, or not at all if there is no room. */
typedef struct moai_fill {
    void *context;
    moai_status (*fill)(void *context, uint8_t *room, uint64_t bytes);
} moai_fill;

typedef struct moai_capabilities {
    uint32_t size;
    uint8_t one_sided; /* puts and gets cost the peer's process nothing */
    uint8_t encrypted; /* nobody on the way can read the payload */
    uint8_t reserved[2];
    uint32_t max_message; /* bytes */
    uint32_t max_batch;
    uint64_t max_operation;
    uint32_t lanes;
    uint32_t reserved2;
    uint8_t reach[4][16]; /* [MOAI_OPERATION_][MOAI_KIND_]: a MOAI_REACH_ */
} moai_capabilities;

/* How an interface is to be opened. Whatever else a plug-in wants to know it reads from variables of its own. */
typedef struct moai_options {
    uint32_t size;
    uint32_t listens;      /* 1: peers connect to it */
    const char *bind;      /* where the host's other transports listen, `ADDRESS:PORT`; or NULL */
    const char *advertise; /* and what they tell peers instead; or NULL */
} moai_options;

typedef struct moai_path {
    uint32_t size;
    uint32_t is_fallback; /* something faster was there and could not be had */
    moai_text local;      /* address of our end; empty if it is not known */
    moai_text peer;       /* and of the peer's */
    moai_text why;        /* for people: what this path does with the bytes */
} moai_path;

/* Who a peer has proved to be. */
enum { MOAI_IDENTITY_NONE = 0, MOAI_IDENTITY_SHARED_KEY = 1, MOAI_IDENTITY_CERTIFIED = 2 };

/* Counters since the interface was opened; the book's chapter on metrics tells what each counts. */
typedef struct moai_stats {
    uint32_t size;
    uint32_t reserved;
    uint64_t bytes_in, bytes_out, messages_in, messages_out, batches_in, batches_out;
    uint64_t direct_pieces, direct_bytes, staged_bytes, copied_bytes;
    uint64_t puts, gets, put_bytes, got_bytes, puts_in, gets_in, faults, refused, mapped_bytes, fallbacks, busy;
    uint64_t reads, writes, waits, connected, accepted, rejected, authenticated, distrusted, closed;
} moai_stats;

/* One way of moving bytes. Every function must be there. */
typedef struct moai_transport {
    uint32_t size;
    uint32_t reserved;
    const char *name; /* lower-case letters and digits, at most 32; addresses are `name:location` */
    void *context;
    /* Whether it can be opened here, and on what: MOAI_OK and a sentence, or MOAI_E_FAILED and one in `error`. */
    moai_status (*probe)(void *context, moai_text *sentence, moai_error *error);
    /* Why `address` cannot be reached, as far as is known without trying: MOAI_OK if nothing is known against it. */
    moai_status (*obstacle)(void *context, const char *address, moai_error *error);
    moai_status (*open)(void *context, const moai_options *options, void **interface, moai_capabilities *capabilities,
                        moai_error *error);

    /* Gives up the interface with all its connections. Nothing is written to any region afterwards. */
    void (*destroy)(void *interface);
    /* Where peers can connect, one address a line. */
    moai_status (*addresses)(void *interface, moai_text *out);
    /* Starts connecting; `connected` or `closed` follows. Frames can be queued before. */
    moai_status (*connect)(void *interface, const char *address, moai_peer *peer, moai_error *error);
    /* Queues a copy of a message: MOAI_OK or MOAI_BUSY, after which `writable` follows. */
    moai_status (*send)(void *interface, moai_peer peer, const uint8_t *data, uint64_t bytes, moai_error *error);
    /* Queues a batch likewise. */
    moai_status (*post)(void *interface, moai_peer peer, const moai_batch *batch, const moai_fill *fill,
                        moai_error *error);
    /* The same memory with the same rights again is the same registration, counted. Retains the memory. */
    moai_status (*register_memory)(void *interface, uint32_t index, const moai_memory *memory, uint32_t rights,
                                   moai_registration *registration, moai_error *error);
    /* After the last one no peer touches the memory any more when this returns. */
    moai_status (*deregister)(void *interface, moai_registration registration, moai_error *error);
    /* The 64 bytes by which the peer can address the memory. */
    moai_status (*remote_key)(void *interface, moai_peer peer, moai_registration registration, uint8_t key[64],
                              moai_error *error);
    /* Takes a key that the peer sent; believes nothing of it. */
    moai_status (*import_key)(void *interface, moai_peer peer, const uint8_t *key, uint64_t bytes, uint32_t *number,
                              moai_error *error);
    /* Between local pieces, which the host has checked against the regions, and remote ones of equally many bytes:
     * MOAI_OK, MOAI_IN_FLIGHT or MOAI_BUSY. The lists are copied if they are needed longer. */
    moai_status (*put)(void *interface, const moai_regions *regions, moai_peer peer, const moai_pieces *local,
                       uint64_t local_count, const moai_pieces *remote, uint64_t remote_count, uint64_t token,
                       moai_error *error);
    moai_status (*get)(void *interface, const moai_regions *regions, moai_peer peer, const moai_pieces *local,
                       uint64_t local_count, const moai_pieces *remote, uint64_t remote_count, uint64_t token,
                       moai_error *error);
    /* The peer's memory, for loading only, until it is released. It comes retained once. */
    moai_status (*map)(void *interface, moai_peer peer, uint32_t number, moai_memory *memory, moai_error *error);
    /* Completes when every put and get posted to the peer before has ended. */
    moai_status (*flush)(void *interface, moai_peer peer, uint64_t token, moai_error *error);
    /* The oldest completion that was not taken: MOAI_OK or MOAI_NONE. */
    moai_status (*completion)(void *interface, moai_completion *completion);
    /* Waits at most so many nanoseconds (below zero: until something happens), then calls the handler. May return early;
     * does not wait while there are completions to take. */
    moai_status (*poll)(void *interface, int64_t timeout_ns, const moai_handler *handler, moai_error *error);
    /* A descriptor that becomes readable when a poll has something to do, after `arm`. The interface's own, and the same
     * until it is destroyed. */
    int32_t (*wait_fd)(void *interface);
    /* The host is about to wait for it: for how many nanoseconds it may, below zero for ever. */
    int64_t (*arm)(void *interface);
    /* Drops a connection now, without `closed`; its operations complete as lost. A stale peer is ignored. */
    void (*close)(void *interface, moai_peer peer);
    /* Sends what is queued, then closes, with MOAI_CLOSED_BY_US. */
    void (*finish)(void *interface, moai_peer peer);
    /* MOAI_NONE for a stale peer. */
    moai_status (*path)(void *interface, moai_peer peer, moai_path *path);
    /* Sets `*identity`; with MOAI_IDENTITY_CERTIFIED one name a line, `spiffe://...` or `dns:...`. */
    moai_status (*identity)(void *interface, moai_peer peer, uint32_t *identity, moai_text *names);
    void (*stats)(void *interface, moai_stats *stats);
} moai_transport;

/* Work for a stream. */
enum { MOAI_WORK_TO_HOST = 1, MOAI_WORK_FROM_HOST = 2 };
typedef struct moai_span {
    void *handle; /* of memory that this domain has given */
    uint64_t offset; /* from `moai_memory.address` */
    uint64_t bytes;
} moai_span;
typedef struct moai_job {
    uint32_t size;
    uint32_t work;
    uint64_t name; /* given back with the completion */
    const moai_span *spans; /* valid during the call; checked: they lie in their memory */
    uint64_t span_count;
    uint8_t *buffer; /* the spans end to end; the stream's until the completion, as is the spans' memory */
    uint64_t bytes;
} moai_job;
typedef struct moai_finished {
    uint64_t name;
    moai_status status; /* MOAI_OK, or MOAI_E_FAILED: the device failed, it may be tried again */
    uint32_t reserved;
} moai_finished;

/* A device: memory, and the streams that are the only way to its bytes. Hosts hand their own devices to transports in
 * the same form. */
typedef struct moai_domain {
    uint32_t size;
    uint32_t kind;    /* of its memory: one that the processor cannot load from */
    const char *name; /* for people */
    void *context;
    void (*retain)(void *context); /* the table and the device live as long as they are retained; NULL: for ever */
    void (*release)(void *context);
    /* Zeroed memory. It comes retained once. */
    moai_status (*allocate)(void *context, uint64_t bytes, moai_memory *memory, moai_error *error);
    /* Memory that another process exported from such a device; believed as little as a stranger. `fd` stays the caller's. */
    moai_status (*import)(void *context, int32_t fd, uint64_t offset, uint64_t bytes, uint32_t writable,
                          moai_memory *memory, moai_error *error);
    moai_status (*open_stream)(void *context, void **stream, moai_error *error);
    /* Gives up what has not begun, and waits for what has. */
    void (*close_stream)(void *stream);
    /* MOAI_OK, or MOAI_BUSY if the queue is full. */
    moai_status (*submit)(void *stream, const moai_job *job, moai_error *error);
    /* The next job that is over: MOAI_OK or MOAI_NONE. */
    moai_status (*completed)(void *stream, moai_finished *finished);
    /* A descriptor that is readable as long as there are completions to fetch. */
    int32_t (*stream_fd)(void *stream);
} moai_domain;

/* What the host tells a plug-in of itself. */
enum { MOAI_LOG_ERROR = 1, MOAI_LOG_WARN = 2, MOAI_LOG_DEBUG = 3 };
typedef struct moai_host {
    uint32_t size;
    uint16_t major;
    uint16_t minor;
    const char *version; /* of MoAI Fabric */
    /* Writes a line to the host's log; from any thread. */
    void (*log)(uint32_t level, const char *text);
} moai_host;

typedef struct moai_plugin {
    uint32_t size;
    uint16_t major; /* MOAI_PROVIDER_MAJOR and _MINOR as compiled */
    uint16_t minor;
    const char *name;    /* of the plug-in, for people */
    const char *version; /* and its version */
    const moai_transport *const *transports;
    uint64_t transport_count;
    const moai_domain *const *domains;
    uint64_t domain_count;
} moai_plugin;

/* The one symbol of a plug-in. Called once; NULL if it cannot serve this host, with the reason in its log. */
const moai_plugin *moai_provider_v1(const moai_host *host);
typedef const moai_plugin *(*moai_provider_entry)(const moai_host *host);

#ifdef __cplusplus
}
#endif

#endif
