/*
 * MoAI Fabric: moves the KV cache of a language model between engines that are not alike. C99 and C++17.
 *
 * CONVENTIONS
 *
 * Handles. Objects are opaque: `moai_X_new` (or another maker) gives one, `moai_X_free` takes it back. A handle is a number
 *   in the shape of a pointer (a kind, a place in a table, a generation), never an address: following one faults, and a
 *   handle that was freed, is of another kind or was never given out is refused with MOAI_HANDLE by every function that is
 *   given it. Freeing NULL does nothing. Freeing an object while another thread is inside a call on it is safe: it goes
 *   when that call ends.
 * Results. Functions that can fail return a `moai_status`; MOAI_OK is 0. Outputs come last, and are written if and only if
 *   the result is MOAI_OK. Numbers of statuses, kinds and reasons are never given another meaning; later versions may add
 *   some.
 * Errors. The calling thread keeps the last failure: its status, a message, the field (argument, member, key or path into a
 *   description) that is to blame, both values where two are compared, and what to do about it. A call that succeeds leaves it.
 *   No panic and no exception leaves the library: a defect of ours is MOAI_INTERNAL.
 * Arguments. A pointer must not be NULL unless its description says so; NULL where it must not be is MOAI_NULL. Texts are
 *   UTF-8 and end with a NUL. An array of length 0 may be NULL. The library copies what it keeps, except memory that is lent.
 * Texts that come out. `char **` outputs belong to the caller, who gives them back with moai_text_free. `const char *`
 *   results belong to the library: their descriptions say how long they last.
 * Structs. Every struct that goes in or is filled begins with `size` (its sizeof) and `version` (1), which the caller sets:
 *   `moai_X_init()` gives one with both set and all else zero. Another size or version is refused with MOAI_STRUCT. Zero or
 *   NULL in any other member is its default. Members are only ever added together with a new version; libraries go on
 *   taking old ones. `reserved` members must be 0.
 * Threads. Every function may be called from any thread, and one handle may be used by several threads at once, with these
 *   exceptions, which are refused with MOAI_THREAD: two threads in moai_engine_poll of one engine; two threads that
 *   change one builder or configuration at the same moment; any call but moai_last_error_* and moai_text_free from
 *   within a callback; and an engine, or memory of the library's own, in a child of fork() (start engines after forking).
 * Time. Durations are nanoseconds in uint64_t; MOAI_FOREVER waits without end where a wait may.
 * Memory. Bytes of a region that is given to an engine are read and written by the engine's thread: of a producer, pages of
 *   an offer from moai_engine_offer until MOAI_EVENT_RELEASED; of a consumer, pages of a pull until MOAI_EVENT_ENDED with
 *   `fenced`, or MOAI_EVENT_FENCED. Keep out of those pages meanwhile; all others are the caller's. What was written before
 *   moai_engine_offer or moai_engine_layer_ready is what is sent; what an event tells of can be read after it was polled.
 * ABI. The shared object is libmoai_fabric.so.1; its symbols have the version MOAI_1. Within it functions are added, never
 *   changed or removed.
 */
#ifndef MOAI_FABRIC_H
#define MOAI_FABRIC_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Statuses ------------------------------------------------------------------------------------------------------ */

typedef int32_t moai_status;

enum {
    MOAI_OK = 0,
    MOAI_TIMEOUT = 1,      /* nothing happened in time: ask again */
    MOAI_NULL = 2,         /* an argument or member is NULL and must not be */
    MOAI_HANDLE = 3,       /* a handle was freed, is of another kind, or is none */
    MOAI_STRUCT = 4,       /* a struct's size or version is not one that this library knows */
    MOAI_VALUE = 5,        /* an argument or member has a value that cannot be */
    MOAI_UTF8 = 6,         /* a text is not UTF-8 */
    MOAI_CONFIG = 7,       /* a configuration key is unknown, or its value cannot be */
    MOAI_DESCRIPTOR = 8,   /* a description is not one of a cache */
    MOAI_INCOMPATIBLE = 9, /* two descriptors do not fit: moai_last_error_json has every obstacle */
    MOAI_TENSOR = 10,      /* a tensor is no layout, not dense, or read-only */
    MOAI_UNSUPPORTED = 11, /* this build cannot do it, as memory of a CUDA or ROCm device */
    MOAI_MEMORY = 12,      /* memory cannot be had */
    MOAI_REQUEST = 13,     /* an offer, pull or grant is not one of this engine's cache */
    MOAI_REFUSED = 14,     /* a transfer cannot begin, or too many events wait; the message says why */
    MOAI_SYSTEM = 15,      /* the system refused, or a transport could not be opened */
    MOAI_OVER = 16,        /* the engine was closed, or its thread is gone */
    MOAI_THREAD = 17,      /* the wrong thread, or process: see Threads above */
    MOAI_BUSY = 18,        /* a region has an engine already, or logging has started already */
    MOAI_INTERNAL = 19,    /* a defect of this library: please report the message */
    MOAI_ABSENT = 20,      /* an event has no such thing, or an index is past the end */
    MOAI_TRANSFER = 21     /* the transfer that was waited for failed or was cancelled */
};

#define MOAI_FOREVER UINT64_MAX
#define MOAI_ALL_LAYERS UINT32_MAX

/* ---- Library, texts, last error ------------------------------------------------------------------------------------ */

/* Version of the library, as "0.1.0". Lasts for ever. */
const char *moai_version(void);
/* Version of this ABI: 1. */
uint32_t moai_abi_version(void);
/* The constant's name of a status, as "MOAI_OK"; "unknown" for other numbers. Lasts for ever. */
const char *moai_status_name(moai_status status);

/* Gives a text back. MOAI_HANDLE if the library did not give it out, or has it back already; NULL is fine. */
moai_status moai_text_free(char *text);

/* Of the last failure on this thread. The texts last until the next failure on it, and are "" where there is nothing to say. */
moai_status moai_last_error_status(void); /* MOAI_OK if nothing has failed */
const char *moai_last_error_message(void); /* for people, with everything below in it */
const char *moai_last_error_field(void);   /* as "options.name", "MOAI_BIND", "components[1].layout" */
const char *moai_last_error_ours(void);    /* the value on this side; of moai_negotiate, the producer's */
const char *moai_last_error_theirs(void);  /* the value it was held against; of moai_negotiate, the consumer's */
const char *moai_last_error_hint(void);    /* what to do about it */
/* All of it: {"status","name","message","field","ours","theirs","hint"}; after MOAI_INCOMPATIBLE also
 * "obstacles":[{"field","producer","consumer","resolve"}]. */
const char *moai_last_error_json(void);

/* Takes one line of the log, without its end of line. Called on any thread, one call at a time. */
typedef void (*moai_log_fn)(void *user, const char *line);
/* Starts logging, once in a process. `filter` is as of MOAI_LOG (error, warn, debug, trace, or by module); NULL takes
 * MOAI_LOG, or "warn" without it. `log` NULL writes to stderr. MOAI_BUSY if the process logs already. Without this call
 * the library logs nothing. */
moai_status moai_log_start(const char *filter, moai_log_fn log, void *user);

/* ---- Configuration ------------------------------------------------------------------------------------------------- */

/* Settings by the names of the environment's variables, as MOAI_BIND or MOAI_TRANSPORTS. */
typedef struct moai_config moai_config;

/* The defaults; the environment is not read. */
moai_status moai_config_new(moai_config **config);
/* The defaults, changed by the MOAI_* variables of the environment; one that is unknown is refused. */
moai_status moai_config_from_env(moai_config **config);
void moai_config_free(moai_config *config);
/* Sets a key. MOAI_CONFIG names the key if it is unknown or the value cannot be. Keys that need one another (certificates and
 * their keys) are checked together, by moai_config_check and moai_engine_new. */
moai_status moai_config_set(moai_config *config, const char *key, const char *value);
/* The effective value of a key. */
moai_status moai_config_get(const moai_config *config, const char *key, char **value);
/* Checks all keys together. */
moai_status moai_config_check(const moai_config *config);
/* How many keys there are. */
uint32_t moai_config_key_count(void);
/* Name and one line of help of a key, by its number from 0; NULL past the end. They last for ever. */
const char *moai_config_key(uint32_t index);
const char *moai_config_key_help(uint32_t index);

/* ---- Memory -------------------------------------------------------------------------------------------------------- */

/* A run of bytes in one kind of memory. */
typedef struct moai_region moai_region;

enum {
    MOAI_MEMORY_HOST = 1,   /* of this process */
    MOAI_MEMORY_PINNED = 2, /* of this process, never moved to swap */
    MOAI_MEMORY_SHARED = 3, /* that other processes of this host can map: pages are read in place */
    MOAI_MEMORY_CUDA = 101, /* refused by this build with MOAI_UNSUPPORTED: stage through pinned memory */
    MOAI_MEMORY_ROCM = 102  /* likewise */
};

/* Called once, when the library is done with lent memory, on any thread. */
typedef void (*moai_release_fn)(void *user);

/* Allocates zeroed memory of kind host, pinned or shared. */
moai_status moai_region_new(uint32_t kind, uint64_t bytes, moai_region **region);
/* Takes memory of the caller, as an engine's tensor, without copying: `bytes` from `pointer`, initialized, writable, of kind host or
 * pinned. `device` is the number of the device that the memory is on, 0 for host memory. It stays where it is until
 * `release` is called with `user` (`release` may be NULL: then until the region was freed and its engine closed). Memory
 * that is lent twice must not overlap in one engine. */
moai_status moai_region_lend(void *pointer, uint64_t bytes, uint32_t kind, int32_t device, moai_release_fn release,
                             void *user, moai_region **region);
/* Gives the handle up. Memory that an engine uses stays until that engine is closed. */
void moai_region_free(moai_region *region);
/* Where its bytes are; they last as long as the region, or the engine that it was given to. */
moai_status moai_region_pointer(const moai_region *region, void **pointer);
moai_status moai_region_bytes(const moai_region *region, uint64_t *bytes);
moai_status moai_region_kind(const moai_region *region, uint32_t *kind);

/* What a DLPack tensor says of itself. */
#define MOAI_DLPACK_DIMS 8
typedef struct moai_dlpack {
    uint32_t size;
    uint32_t version;
    void *data;              /* of the first element: byte_offset is added already */
    uint64_t bytes;          /* from the first byte of an element to the last */
    int32_t device_type;     /* DLPack's number: 1 CPU, 2 CUDA, 3 pinned by CUDA, 10 ROCm, 11 pinned by ROCm, … */
    int32_t device_id;
    uint32_t element_bytes;
    uint32_t dims;
    int64_t shape[MOAI_DLPACK_DIMS];
    int64_t strides[MOAI_DLPACK_DIMS]; /* in elements, filled in where the tensor leaves them out */
    uint32_t is_contiguous;  /* row-major without gaps */
    uint32_t is_dense;       /* without gaps or overlaps, in whatever order of dimensions */
    uint32_t is_read_only;
    uint32_t reserved;
    const char *element;     /* as a description names it ("bf16", "f16", "f32", "e4m3fn", …), "" if it is none of ours. Lasts for ever */
} moai_dlpack;

/* Reads a tensor: `tensor` is a DLManagedTensor, or a DLManagedTensorVersioned if `versioned` is 1. Keeps nothing of it. MOAI_TENSOR
 * names the field that cannot be. Tensors of any device can be read. */
moai_status moai_dlpack_read(const void *tensor, uint32_t versioned, moai_dlpack *out);
/* Takes a tensor as a region, without copying. It must be on the CPU (or pinned), dense and writable; otherwise MOAI_UNSUPPORTED or
 * MOAI_TENSOR names the field. On success the tensor is the library's, which calls its deleter when it is done, on any thread
 * (in Python: rename the capsule to used_dltensor). On failure it stays the caller's. */
moai_status moai_region_from_dlpack(void *tensor, uint32_t versioned, moai_region **region);

/* ---- Tensors to layouts -------------------------------------------------------------------------------------------- */

/* Keeps indices start..end of the dimension `label`. With `drop`, that is one index, and the dimension is gone. */
typedef struct moai_cut {
    const char *label;
    uint64_t start;
    uint64_t end;
    uint32_t drop;
    uint32_t reserved;
} moai_cut;

/* A tensor as a framework gives it: a label, size and stride for each dimension. Labels are words of the layout notation:
 * layer, part, page, head, slot, dim, or halves of a split axis, as dim/8 and dim%8. */
typedef struct moai_tensor {
    uint32_t size;
    uint32_t version;
    uint32_t dims;
    uint32_t element_bytes;
    const char *const *labels;
    const uint64_t *shape;
    const int64_t *strides;   /* in elements, or in bytes: see in_bytes */
    int64_t offset;           /* of the first element from the region's start, likewise */
    uint32_t in_bytes;        /* 1 if strides and offset count bytes */
    uint32_t cut_count;
    const moai_cut *cuts;     /* in order, as one would cut the tensor to get one component */
} moai_tensor;

/* The layout of a tensor as a description's `layout` field, in JSON. `regions` names the axes of which each index is a tensor of
 * its own, as "layer" or "layer part"; NULL is none. */
moai_status moai_tensor_layout(const moai_tensor *tensor, const char *regions, char **json);

/* ---- Descriptors --------------------------------------------------------------------------------------------------- */

/* One side of a transfer, an engine with all its ranks, fully described and checked. Never changes. */
typedef struct moai_descriptor moai_descriptor;

/* Reads and checks a description. MOAI_DESCRIPTOR names the first field that cannot be, or line and column. */
moai_status moai_descriptor_from_json(const char *json, moai_descriptor **descriptor);
void moai_descriptor_free(moai_descriptor *descriptor);
/* The description, as it was given or built. */
moai_status moai_descriptor_json(const moai_descriptor *descriptor, char **json);
/* SHA-256 of that text: the same for the same text. `digest` has 32 bytes. */
moai_status moai_descriptor_digest(const moai_descriptor *descriptor, uint8_t *digest);
moai_status moai_descriptor_layers(const moai_descriptor *descriptor, uint32_t *layers);
moai_status moai_descriptor_ranks(const moai_descriptor *descriptor, uint32_t *ranks);
moai_status moai_descriptor_groups(const moai_descriptor *descriptor, uint32_t *groups);
/* Name of a group of layers; "" for the only one of a description without groups. */
moai_status moai_descriptor_group_name(const moai_descriptor *descriptor, uint32_t group, char **name);
/* Regions of a rank, in the order in which moai_engine_new takes them. */
moai_status moai_descriptor_regions(const moai_descriptor *descriptor, uint32_t rank, uint32_t *regions);
moai_status moai_descriptor_region_bytes(const moai_descriptor *descriptor, uint32_t rank, uint32_t region,
                                         uint64_t *bytes);
moai_status moai_descriptor_region_name(const moai_descriptor *descriptor, uint32_t rank, uint32_t region, char **name);
/* How many pages of a group a rank lists for a request of so many tokens. */
moai_status moai_descriptor_pages_needed(const moai_descriptor *descriptor, uint32_t rank, uint32_t group,
                                         uint32_t tokens, uint64_t *pages);

/* Builds a description piece by piece. The pieces are checked together by moai_builder_build; only what is meaningless by itself is refused
 * before. A component or rank is named by what it was added as. */
typedef struct moai_builder moai_builder;

/* Begins an empty one: tp, pp and cp are 1, all else is missing. */
moai_status moai_builder_new(moai_builder **builder);
void moai_builder_free(moai_builder *builder);
/* Engine and version: reported, never compared. */
moai_status moai_builder_engine(moai_builder *builder, const char *engine);
/* `digest` identifies the weights and may be NULL; where both sides give it, it is compared. */
moai_status moai_builder_model(moai_builder *builder, const char *name, const char *digest, uint32_t layers);
/* `rank_order` names the axes from the slowest to the fastest, as "pp cp tp", which NULL is. `cp_unit` is "token", "page" or
 * "contiguous", NULL where cp is 1. */
moai_status moai_builder_parallel(moai_builder *builder, uint32_t tp, uint32_t pp, uint32_t cp, const char *rank_order,
                                  const char *cp_unit);
/* Tokens a page. */
moai_status moai_builder_page_slots(moai_builder *builder, uint32_t page_slots);
/* Layers with page lists of their own. `page_slots` 0 is the description's; `window` 0 is none, else only that many last
 * tokens are held. */
moai_status moai_builder_group(moai_builder *builder, const char *name, const uint32_t *layers, uint32_t layer_count,
                               uint32_t page_slots, uint32_t window);
/* A kind of row, as key, value or latent: global heads, elements a row, the name of the pool of regions that holds it, its exact element
 * ("bf16", "e4m3fn", …) and its layout in the notation, dense. */
moai_status moai_builder_component(moai_builder *builder, const char *name, uint32_t heads, uint32_t dim,
                                   const char *pool, const char *element, const char *layout);
/* The same with the layout of a tensor, as moai_tensor_layout finds it. */
moai_status moai_builder_component_tensor(moai_builder *builder, const char *name, uint32_t heads, uint32_t dim,
                                          const char *pool, const char *element, const moai_tensor *tensor,
                                          const char *regions);
/* Scales outside of the element: `granularity` is "tensor", "head" or "token_head" (then the scales are a component of their own,
 * named NAME.scale). Constants: 0 or 1 value, one a layer, or `value_count` = layers × heads, layer by layer. */
moai_status moai_builder_scale(moai_builder *builder, const char *component, const char *granularity,
                               const double *values, uint32_t value_count);
/* By which rule of the element a writer picks scales, as "pow2". */
moai_status moai_builder_scale_rule(moai_builder *builder, const char *component, const char *rule);
/* `pairing` is "half" or "interleaved"; `dims` rotary elements from `offset`. */
moai_status moai_builder_rope(moai_builder *builder, const char *component, const char *pairing, uint32_t dims,
                              uint32_t offset);
/* Rotation after RoPE: "none", "hadamard N" or "signed". */
moai_status moai_builder_rotation(moai_builder *builder, const char *component, const char *rotation);
/* Position on the `part` axis. */
moai_status moai_builder_part(moai_builder *builder, const char *component, uint32_t part);
/* Confines a component to a group of layers. */
moai_status moai_builder_in_group(moai_builder *builder, const char *component, const char *group);
/* The component is dims start..end of another. */
moai_status moai_builder_piece(moai_builder *builder, const char *component, const char *of, uint32_t start,
                               uint32_t end);
/* A rank, with so many pages in each region. Ranks are added in order, from 0. */
moai_status moai_builder_rank(moai_builder *builder, uint32_t rank, uint32_t pages);
/* The rank's global layers, where they are not an equal share. */
moai_status moai_builder_rank_layers(moai_builder *builder, uint32_t rank, const uint32_t *layers, uint32_t layer_count);
/* The rank's global heads start..end, where they are not by `tp`. */
moai_status moai_builder_rank_heads(moai_builder *builder, uint32_t rank, uint32_t start, uint32_t end);
/* The description as it is so far, unchecked. */
moai_status moai_builder_json(const moai_builder *builder, char **json);
/* Checks it, and makes a descriptor. The builder stays, to be gone on with. */
moai_status moai_builder_build(const moai_builder *builder, moai_descriptor **descriptor);

/* ---- Negotiation --------------------------------------------------------------------------------------------------- */

/* Two descriptors that fit, and how every row travels. Never changes. */
typedef struct moai_agreement moai_agreement;

/* MOAI_INCOMPATIBLE if they do not fit: the last error is the first obstacle, its message and JSON have all. */
moai_status moai_negotiate(const moai_descriptor *producer, const moai_descriptor *consumer,
                           moai_agreement **agreement);
void moai_agreement_free(moai_agreement *agreement);
/* 32 bytes that are equal on both sides if both mean the same. */
moai_status moai_agreement_digest(const moai_agreement *agreement, uint8_t *digest);
/* The plan, for people: who sends what to whom, in which format, and who converts. */
moai_status moai_agreement_text(const moai_agreement *agreement, char **text);
/* The same in JSON: {"digest","carriages":[{"component","producer","consumer","layers","exchange","converts","reason"}],
 * "pairs":[{"producer","consumer","steps"}]}. */
moai_status moai_agreement_json(const moai_agreement *agreement, char **json);

/* ---- Engines ------------------------------------------------------------------------------------------------------- */

/* One process of an engine: it has its ranks' memory, listens, keeps links to other engines and moves any number of requests, in a thread
 * of its own. */
typedef struct moai_engine moai_engine;

typedef struct moai_engine_options {
    uint32_t size;
    uint32_t version;
    const char *name;       /* 1 to 96 letters, digits, '.', '_' and '-', the same in all processes of the engine */
    uint32_t node;          /* number of this process in the engine */
    uint32_t produces;      /* 1 if it offers */
    uint32_t consumes;      /* 1 if it pulls; one of the two at least */
    uint32_t rank_count;
    const uint32_t *ranks;  /* that this process holds */
    uint64_t epoch;         /* life of the engine, the same in all its processes; 0 draws one, for engines of one process */
    const uint8_t *key;     /* 32 secret bytes, the same in all its processes; NULL draws them, likewise */
    moai_region *const *regions; /* of the first rank, then of the next …, each as moai_descriptor_regions has them */
    uint32_t region_count;
    uint32_t counts_reuse;  /* 1 if moai_engine_reuse is called before a page is written for something else */
    uint64_t heartbeat_ns;  /* 0: 1 s */
    uint64_t loss_ns;       /* a peer that is silent for so long is lost; 0: 3 s */
} moai_engine_options;

/* Starts an engine, listening as the configuration says. With MOAI_METRICS it tells metrics over HTTP. The regions are the engine's
 * until it is closed; if it cannot be started they are free as before. */
moai_status moai_engine_new(const moai_config *config, const moai_descriptor *descriptor,
                            const moai_engine_options *options, moai_engine **engine);
/* Ends it, so that peers hear of it. After that no byte of its regions is read or written, and they can be given to another
 * engine. Waits for half a second at most. A second time: MOAI_OVER. */
moai_status moai_engine_close(moai_engine *engine);
/* Closes it, if that is not done, and gives the handle up. */
void moai_engine_free(moai_engine *engine);

/* Where it listens, in every way in which it does, as "tcp:127.0.0.1:4000". Other processes give these to moai_engine_know. */
moai_status moai_engine_address_count(const moai_engine *engine, uint32_t *count);
moai_status moai_engine_address(const moai_engine *engine, uint32_t index, char **address);
/* Its epoch, also if it was drawn. */
moai_status moai_engine_epoch(const moai_engine *engine, uint64_t *epoch);

/* One process of another engine. */
typedef struct moai_node {
    uint32_t size;
    uint32_t version;
    uint32_t number;
    uint32_t rank_count;
    const uint32_t *ranks;
    const char *const *addresses;
    uint32_t address_count;
    uint32_t reserved;
} moai_node;

/* Says which nodes an engine has. Links to all of them are kept up from now on. */
moai_status moai_engine_know(moai_engine *engine, const char *name, const moai_node *nodes, uint32_t node_count);
/* Finds the nodes of some engines in the directory of the configuration (MOAI_DIRECTORY), and keeps links to them. */
moai_status moai_engine_follow(moai_engine *engine, const char *const *names, uint32_t name_count);
/* Announces this process in that directory until the engine is closed. MOAI_SYSTEM if that takes no announcements. */
moai_status moai_engine_announce(moai_engine *engine);

/* ---- Requests: offers, pulls, grants ------------------------------------------------------------------------------- */

/* Pages of some ranks and one group, in the order of the tokens that each of them holds. */
typedef struct moai_pages {
    uint32_t first_rank;
    uint32_t rank_count; /* 0: 1 */
    uint32_t group;
    uint32_t page_count;
    const uint32_t *pages;
} moai_pages;

enum {
    MOAI_DIGEST_DEFAULT = 0, /* as MOAI_DIGEST_WIRE */
    MOAI_DIGEST_OFF = 1,
    MOAI_DIGEST_SAMPLE = 2,  /* all rows of one token in some, chosen by a secret */
    MOAI_DIGEST_WIRE = 3,    /* all rows that go over a wire, a sample of those that are mapped */
    MOAI_DIGEST_FULL = 4     /* all rows */
};

typedef struct moai_request {
    uint32_t size;
    uint32_t version;
    uint32_t tokens;        /* of the request */
    uint32_t held;          /* of a pull or grant: so many first tokens are there already, and are not moved */
    uint32_t layer_start;   /* global layers start..end; 0 and 0 is all */
    uint32_t layer_end;
    uint32_t digest;        /* MOAI_DIGEST_…, the same on both sides */
    uint32_t list_count;
    const moai_pages *lists;
} moai_request;

typedef struct moai_offer {
    uint32_t size;
    uint32_t version;
    uint64_t number;        /* never used again in this life of the engine, the same in all its processes; not 0 */
    const moai_request *request;
    uint64_t lease_ns;      /* how long the pages are kept without a transfer */
    const char *bound_to;   /* the only engine that may pull them; NULL is anyone */
    const char *name;       /* what the request is called in reports; NULL is its number */
    const char *trace;      /* a W3C traceparent, or NULL */
    uint32_t progressive;   /* 1: layers become ready one by one, by moai_engine_layer_ready */
    uint32_t reserved;
} moai_offer;

/* Offers a request's pages to whoever has the handle, a text of letters, digits, '-' and '_' that goes with the request through
 * whatever router there is. MOAI_EVENT_RELEASED says when the pages are free. */
moai_status moai_engine_offer(moai_engine *engine, const moai_offer *offer, char **handle);
/* The first `tokens` tokens of a global layer, or of MOAI_ALL_LAYERS, are written. */
moai_status moai_engine_layer_ready(moai_engine *engine, uint64_t offer, uint32_t layer, uint32_t tokens);
/* Keeps an offer's pages for at least so long from now. An offer that has ended stays so. */
moai_status moai_engine_extend(moai_engine *engine, uint64_t offer, uint64_t lease_ns);
/* Takes an offer back; MOAI_EVENT_RELEASED follows when its pages are free. */
moai_status moai_engine_withdraw(moai_engine *engine, uint64_t offer);
/* A page of a rank of this process is about to be written for something else: what was read of it since it was offered is discarded.
 * Needs `counts_reuse`. */
moai_status moai_engine_reuse(moai_engine *engine, uint32_t rank, uint32_t page);
/* Asks the engine that made a grant to pull an offer into it. MOAI_REFUSED says why it cannot be; MOAI_EVENT_DECLINED tells if that engine does
 * not take it. */
moai_status moai_engine_push(moai_engine *engine, uint64_t offer, const char *grant);

typedef struct moai_pull {
    uint32_t size;
    uint32_t version;
    const char *handle;
    const moai_request *request;
    uint64_t deadline_ns;   /* from now to the outcome, at most; 0 is the configuration's */
    const char *name;       /* what the request is called in reports; may be NULL */
    uint32_t by_layer;      /* 1: layers are told of one by one, and can be waited for */
    uint32_t no_map;        /* 1: pages are not read where the producer has them */
} moai_pull;

/* Begins to pull a request. MOAI_EVENT_ENDED tells how that ended, by the deadline. MOAI_REFUSED if it cannot begin. */
moai_status moai_engine_pull(moai_engine *engine, const moai_pull *pull, uint64_t *transfer);
/* Ends a transfer; MOAI_EVENT_ENDED follows when its pages are free, by its deadline at the latest. */
moai_status moai_engine_cancel(moai_engine *engine, uint64_t transfer);
/* Waits on the consumer until a global layer of a transfer with `by_layer` is placed and compared, or until all of the transfer is
 * committed with MOAI_ALL_LAYERS. MOAI_TRANSFER if it failed or was cancelled, MOAI_TIMEOUT if neither happened in time. Any number of
 * threads may wait; events are not taken by it. Of transfers that have ended the last 4096 are remembered. */
moai_status moai_engine_wait_layer(moai_engine *engine, uint64_t transfer, uint32_t layer, uint64_t timeout_ns);

typedef struct moai_grant {
    uint32_t size;
    uint32_t version;
    uint64_t number;        /* as of an offer */
    const moai_request *request;
    uint64_t lease_ns;      /* how long it waits for a producer */
    uint64_t deadline_ns;   /* from the invitation to the outcome, at most; 0 is the configuration's */
    const char *bound_to;   /* the only engine that may fill it; NULL is anyone */
    const char *name;
    uint32_t by_layer;
    uint32_t no_map;
} moai_grant;

/* Grants pages to be filled by a push: the handle goes to the producer. MOAI_EVENT_INVITED has the transfer that does it. */
moai_status moai_engine_grant(moai_engine *engine, const moai_grant *grant, char **handle);
/* Takes a grant back; MOAI_EVENT_RETURNED follows when its pages are free. */
moai_status moai_engine_revoke(moai_engine *engine, uint64_t grant);

/* What a handle says, in JSON: {"kind":"offer"|"grant","engine","epoch","number","tokens","expires_unix_ms","bound_to"}. Not whether its engine
 * made it: only that engine can tell. */
moai_status moai_handle_json(const char *handle, char **json);

/* ---- Events -------------------------------------------------------------------------------------------------------- */

/* Something that happened. Never changes. */
typedef struct moai_event moai_event;

enum {
    MOAI_EVENT_PEER_UP = 1,     /* engine, node, epoch: it can be talked to */
    MOAI_EVENT_PEER_LOST = 2,   /* engine, node, message: it cannot any more, or what it says does not fit */
    MOAI_EVENT_SUPERSEDED = 3,  /* engine: a later life of this engine is known to a peer; this one should end */
    MOAI_EVENT_LAYER = 4,       /* consumer: transfer, layer: placed, with equal digests; the transfer may still fail */
    MOAI_EVENT_ENDED = 5,       /* consumer: transfer, outcome, fenced, reason, message, dirty, report. Once */
    MOAI_EVENT_FENCED = 6,      /* consumer: transfer: pages of one that had ended without `fenced` are free */
    MOAI_EVENT_INVITED = 7,     /* consumer: number of the grant, transfer, handle: a producer has begun to fill it */
    MOAI_EVENT_RETURNED = 8,    /* consumer: number of the grant, reason: its pages are free */
    MOAI_EVENT_RELEASED = 9,    /* producer: number of the offer, reason, outcome, report: its pages are free */
    MOAI_EVENT_QUARANTINED = 10, /* producer: number, reason: it has ended, and its pages may still be read */
    MOAI_EVENT_SERVED = 11,     /* producer: number, engine, rank, peer_rank, outcome, reason, message: a part was served */
    MOAI_EVENT_DECLINED = 12    /* producer: number, engine, reason, message: a push was not taken */
};

enum {
    MOAI_OUTCOME_NONE = 0,      /* the event has no outcome */
    MOAI_OUTCOME_COMMITTED = 1, /* complete, placed, digests equal */
    MOAI_OUTCOME_FAILED = 2,    /* reason, message; dirty pages may hold part of what was to come, all others are untouched */
    MOAI_OUTCOME_CANCELLED = 3  /* likewise */
};

/* Why. The numbers that engines tell each other. */
enum {
    MOAI_REASON_OTHER = 0,
    MOAI_REASON_VERSION = 1,
    MOAI_REASON_NOT_ALLOWED = 2,
    MOAI_REASON_STALE_EPOCH = 3,
    MOAI_REASON_DUPLICATE = 4,
    MOAI_REASON_DISAGREE = 5,       /* the two sides' descriptions do not fit */
    MOAI_REASON_MISDIRECTED = 6,
    MOAI_REASON_BUSY = 7,           /* a limit is reached */
    MOAI_REASON_UNKNOWN_OFFER = 8,
    MOAI_REASON_CONSUMED = 9,       /* all of it was pulled: how an offer is meant to end */
    MOAI_REASON_RESTARTED = 10,     /* the engine that made the handle has restarted */
    MOAI_REASON_EXPIRED = 11,       /* the lease has run out */
    MOAI_REASON_FORGED = 12,
    MOAI_REASON_ELSEWHERE = 13,     /* the handle is for another engine */
    MOAI_REASON_REUSED = 14,        /* the pages hold something else by now */
    MOAI_REASON_WITHDRAWN = 15,
    MOAI_REASON_NOT_OWED = 16,
    MOAI_REASON_DEADLINE = 17,
    MOAI_REASON_CANCELLED = 18,
    MOAI_REASON_OTHER_PART = 19,
    MOAI_REASON_LOCAL = 20,         /* this side could not go on, or reaches no node */
    MOAI_REASON_PROTOCOL = 21,
    MOAI_REASON_DIGEST = 22,        /* what arrived is not what was sent */
    MOAI_REASON_LOST = 23           /* the peer was lost */
};

/* The next event, if one happens in time; it is freed by moai_event_free. MOAI_TIMEOUT if none does, MOAI_OVER once the engine is
 * closed and all was told. One thread at a time. Where more than 65,536 events wait, those of layers and of transfers that
 * committed are no longer kept, as moai_engine_wait_layer tells of them; while as many others wait, offers, pulls, pushes and
 * grants are MOAI_REFUSED. */
moai_status moai_engine_poll(moai_engine *engine, uint64_t timeout_ns, moai_event **event);
/* A descriptor for poll, select and epoll: readable while an event waits, and once the engine is over. Never read from it nor close it; it lasts
 * until moai_engine_free. */
moai_status moai_engine_fd(const moai_engine *engine, int32_t *fd);

typedef struct moai_event_fields {
    uint32_t size;
    uint32_t version;
    uint32_t kind;        /* MOAI_EVENT_… : says which of the others mean something */
    uint32_t outcome;     /* MOAI_OUTCOME_… */
    uint64_t transfer;
    uint64_t number;      /* of the offer or grant */
    uint64_t epoch;
    uint32_t node;
    uint32_t layer;
    uint32_t rank;
    uint32_t peer_rank;
    uint32_t reason;      /* MOAI_REASON_… */
    uint32_t fenced;      /* 1: the pages are free */
    uint32_t dirty_count; /* lists of dirty pages, for moai_event_dirty */
    uint32_t reserved;
} moai_event_fields;

void moai_event_free(moai_event *event);
/* Fills in what the event says. */
moai_status moai_event_read(const moai_event *event, moai_event_fields *fields);
/* The other engine's name, the message for people, the handle: MOAI_ABSENT where the event has none. They last until the event is freed. */
moai_status moai_event_engine(const moai_event *event, const char **engine);
moai_status moai_event_message(const moai_event *event, const char **message);
moai_status moai_event_handle(const moai_event *event, const char **handle);
/* The report in JSON: bytes read, on the wire, written and mapped, chunks, times, routes and the outcome. Of ENDED and RELEASED. Lasts
 * likewise. */
moai_status moai_event_report(const moai_event *event, const char **json);

/* Dirty pages of one rank and group, in ascending order. */
typedef struct moai_dirty {
    uint32_t size;
    uint32_t version;
    uint32_t rank;
    uint32_t page_count;
    const uint32_t *pages; /* last until the event is freed */
    const char *group;     /* name of the group, "" without groups; likewise */
} moai_dirty;

/* The list of that number, from 0; MOAI_ABSENT past the end. */
moai_status moai_event_dirty(const moai_event *event, uint32_t index, moai_dirty *dirty);

/* ---- What an engine counts ----------------------------------------------------------------------------------------- */

/* Counters of the protocol, and "links" and "entries" (of its tables), in JSON. */
moai_status moai_engine_stats(const moai_engine *engine, char **json);
/* Everything counted, in the text format that Prometheus reads (OpenMetrics). */
moai_status moai_engine_metrics(const moai_engine *engine, char **text);
/* Whether at least one compatible peer is linked; `why`, which may be NULL, says it in words. */
moai_status moai_engine_ready(const moai_engine *engine, uint32_t *ready, char **why);

/* ---- Structs to begin with ----------------------------------------------------------------------------------------- */

#define MOAI_INIT(name)                         \
    static inline name name##_init(void) {      \
        name value;                             \
        memset(&value, 0, sizeof value);        \
        value.size = (uint32_t)sizeof value;    \
        value.version = 1;                      \
        return value;                           \
    }
MOAI_INIT(moai_dlpack)
MOAI_INIT(moai_tensor)
MOAI_INIT(moai_engine_options)
MOAI_INIT(moai_node)
MOAI_INIT(moai_request)
MOAI_INIT(moai_offer)
MOAI_INIT(moai_pull)
MOAI_INIT(moai_grant)
MOAI_INIT(moai_event_fields)
MOAI_INIT(moai_dirty)
#undef MOAI_INIT

#ifdef __cplusplus
}
#endif

#endif
