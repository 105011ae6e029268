/* SPDX-License-Identifier: Apache-2.0
 *
 * MoAI Fabric: moves KV caches between unlike engines, and translates them on the way.
 *
 * Conventions
 * -----------
 * Objects     are opaque. `moai_X_new` and its like make one, `moai_X_free` ends it; freeing NULL does nothing. What an
 *             object points to is nothing of the caller's: the value names an entry of a table within the library, so that a
 *             freed object, one of another kind and a number that was made up are refused with MOAI_BAD_HANDLE.
 * Outputs     come last. They are written only if the function returns MOAI_OK (moai_engine_wait says what else it may write).
 * Text        is UTF-8 and ends with a zero. What goes in is copied. What comes out as `char **` is the caller's: free it with
 *             moai_text_free. `const char *` in a structure that the library fills belongs to the object it came from.
 * Status      every function that can fail returns one. Numbers keep their meaning for good and are never used again.
 * Errors      moai_last_error tells of the last call on this thread that failed: what, in which field, both values, the way
 *             out.
 * Structures  begin with their size, set by the caller: sizeof the structure it was compiled with. Fields are only ever added at
 *             the end; those that an older caller does not have are taken as zero, which is always the default. A size that no
 *             version had is refused with MOAI_BAD_STRUCT. Those without a size never change. MOAI_INIT makes one that is all
 *             default: `moai_offer offer = MOAI_INIT(moai_offer);`
 * Lists       are a pointer and a count. With a count of zero the pointer may be NULL.
 * Threads     any object may be used by any thread, by several at once too, except that it must not be freed while another
 *             call uses it: that call then ends with MOAI_OK or MOAI_BAD_HANDLE as if it came before or after. Errors belong to
 *             their thread. Nothing of the library may be called in the child of a fork (MOAI_FORKED), nor from within the log's
 *             callback (MOAI_BAD_THREAD).
 * Time        is in seconds, as a double; negative means without limit where a wait says so, and is refused elsewhere.
 * Panics      do not cross: a bug in the library is MOAI_INTERNAL, with what it said.
 * ABI         libmoai_fabric.so.1 keeps these names and meanings; symbols have version MOAI_1, and new ones come with later
 *             versions.
 */
#ifndef MOAI_FABRIC_H
#define MOAI_FABRIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- version */

/* Version of this header. The library's is the same or later if its major version is. */
#define MOAI_VERSION_MAJOR 0
#define MOAI_VERSION_MINOR 1
#define MOAI_VERSION_PATCH 0
/* Version of the ABI: that of the soname. */
#define MOAI_ABI 1

/* A structure of which all is default. */
#ifdef __cplusplus
#define MOAI_INIT(type) ([] { type made{}; made.size = sizeof(type); return made; }())
#else
#define MOAI_INIT(type) ((type){.size = sizeof(type)})
#endif

/* The library's version, as "0.1.0". Never fails. The text is static. */
const char *moai_version(void);
/* The library's MOAI_ABI. */
uint32_t moai_abi(void);

/* ----------------------------------------------------------------- status */

typedef int32_t moai_status;

#define MOAI_OK 0
/* Nothing happened in the time that was given. Not an error; moai_last_error is not touched. */
#define MOAI_TIMEOUT 1
/* An argument is NULL, out of range, or not text in UTF-8. */
#define MOAI_BAD_ARGUMENT 2
/* No living object of that kind. */
#define MOAI_BAD_HANDLE 3
/* A structure's size is of no version. */
#define MOAI_BAD_STRUCT 4
/* A call from within a callback. */
#define MOAI_BAD_THREAD 5
/* A call in the child of a fork. */
#define MOAI_FORKED 6
/* A setting is unknown or has no such value. */
#define MOAI_BAD_CONFIG 7
/* A description that says nothing that can be, or that does not fit the memory. */
#define MOAI_BAD_DESCRIPTION 8
/* Two sides that cannot be joined. */
#define MOAI_INCOMPATIBLE 9
/* Memory that is not what is needed: not contiguous, too small, read-only, of another device. */
#define MOAI_BAD_MEMORY 10
/* Not in this build or release of the library. */
#define MOAI_UNSUPPORTED 11
/* A request that does not fit its side: pages, tokens, layers. */
#define MOAI_BAD_REQUEST 12
/* An offer, a grant or a handle was refused, here or by the peer; `theirs` of the error names the reason. */
#define MOAI_REFUSED 13
/* The object is in use: memory that an engine has. */
#define MOAI_IN_USE 14
/* The operating system refused something. */
#define MOAI_SYSTEM 15
/* The engine has ended. */
#define MOAI_ENDED 16
/* A bug in the library. */
#define MOAI_INTERNAL 17

/* The name of a status, as "MOAI_BAD_HANDLE"; of one that is unknown, "unknown". Never fails. The text is static. */
const char *moai_status_name(moai_status status);

/* What went wrong. Texts are never NULL; what does not apply is empty. */
typedef struct moai_error {
    size_t size;
    moai_status status;
    /* A sentence for people. It has all of the below in it. */
    const char *message;
    /* Which argument, setting or field: "offer.groups[0].pages", "components[1].layout". */
    const char *field;
    /* What is there on this side, or was given. */
    const char *ours;
    /* What is there on the other side, or was expected; of MOAI_REFUSED the reason. */
    const char *theirs;
    /* The way out. */
    const char *hint;
} moai_error;

/* Tells of the last call on this thread that failed. Texts hold until the next call on this thread that fails, or
 * moai_error_clear. Without any the status is MOAI_OK. */
moai_status moai_last_error(moai_error *error);
void moai_error_clear(void);

/* Frees text that the library gave. */
void moai_text_free(char *text);

/* -------------------------------------------------------------------- log */

#define MOAI_LOG_ERROR 1
#define MOAI_LOG_WARN 2
#define MOAI_LOG_INFO 3
#define MOAI_LOG_DEBUG 4
#define MOAI_LOG_TRACE 5

/* Called for each line of the log, by any thread, one at a time. It must not call the library, and must not unwind. */
typedef void (*moai_log_callback)(int32_t level, const char *target, const char *message, void *context);

/* Has lines of `filter`, as "info,moai_transport=debug", told to a callback; once in a process. A NULL filter is what
 * MOAI_LOG says, or "warn". MOAI_IN_USE if somebody has the log already. */
moai_status moai_log_to(moai_log_callback callback, void *context, const char *filter);

/* ----------------------------------------------------------------- config */

/* Settings of a process: transports, addresses, security, limits. Keys are the names of environment variables ("MOAI_BIND"). */
typedef struct moai_config moai_config;

/* With all settings at their defaults; the environment is not looked at. */
moai_status moai_config_new(moai_config **config);
/* As the environment has it. A MOAI_ variable that nobody knows is MOAI_BAD_CONFIG, with its name as the field. */
moai_status moai_config_from_env(moai_config **config);
/* Sets one; NULL makes it the default again. The whole is checked: what two settings say against each other is refused, and
 * nothing is changed. */
moai_status moai_config_set(moai_config *config, const char *key, const char *value);
/* The value that a setting has, default or not. */
moai_status moai_config_get(const moai_config *config, const char *key, char **value);
/* All of them as JSON: a list of {"key", "value", "is_default", "meaning"}. */
moai_status moai_config_list(const moai_config *config, char **json);
void moai_config_free(moai_config *config);

/* ----------------------------------------------------------------- memory */

/* Memory that a cache lies in. */
typedef struct moai_region moai_region;

typedef int32_t moai_memory_kind;
/* Of the process. */
#define MOAI_MEMORY_HOST 1
/* Of the process, locked. */
#define MOAI_MEMORY_PINNED 2
/* That other processes of the host may map: what moves without being sent. Only moai_region_new makes it. */
#define MOAI_MEMORY_SHARED 3
/* Of devices: MOAI_UNSUPPORTED in this release. Stage it in host memory. */
#define MOAI_MEMORY_CUDA 4
#define MOAI_MEMORY_ROCM 5

/* Lends memory of the caller's to the library. It must be readable, and writable if an engine consumes into it, until the region is
 * freed, which is possible once no engine has it. `device` is 0 for host memory. */
moai_status moai_region_lend(void *address, size_t bytes, moai_memory_kind kind, int32_t device, moai_region **region);
/* Allocates zeroed memory: host, pinned or shared. */
moai_status moai_region_new(size_t bytes, moai_memory_kind kind, moai_region **region);

/* What a tensor looks like. */
typedef struct moai_tensor {
    size_t size;
    /* Of the first element. */
    void *address;
    /* From the lowest byte to the highest, and where the lowest is: below `address` if a stride is negative. */
    void *lowest;
    size_t bytes;
    /* Bits of an element, its DLPack type code, and lanes. */
    uint8_t type_code;
    uint8_t bits;
    uint16_t lanes;
    int32_t dimensions;
    /* In elements; of the region, until it is freed. */
    const int64_t *shape;
    const int64_t *strides;
    int32_t is_contiguous;
    int32_t is_read_only;
} moai_tensor;

/* Takes a DLManagedTensor (`is_versioned` 0) or a DLManagedTensorVersioned (1), of DLPack 1.x and older: host memory only. The
 * library has it from now on if this succeeds, and calls its deleter once the region is freed, on the thread that frees it. The
 * region is all that the tensor spans. With `contiguous` not 0, one with gaps or of another order is MOAI_BAD_MEMORY. */
moai_status moai_region_from_dlpack(void *managed, int32_t is_versioned, int32_t contiguous, moai_region **region,
                                    moai_tensor *tensor);

moai_status moai_region_address(const moai_region *region, void **address);
moai_status moai_region_bytes(const moai_region *region, size_t *bytes);
moai_status moai_region_kind(const moai_region *region, moai_memory_kind *kind);
/* MOAI_IN_USE as long as an engine has it. */
moai_status moai_region_free(moai_region *region);

/* ------------------------------------------------------------ description */

/* What one side's cache is: a cache description (the book's chapter "Description") that was read and checked. */
typedef struct moai_descriptor moai_descriptor;

/* Reads a description in JSON. MOAI_BAD_DESCRIPTION names the field and what is wrong with it. */
moai_status moai_descriptor_read(const char *json, moai_descriptor **descriptor);
/* The description as JSON, as it was read or built. */
moai_status moai_descriptor_json(const moai_descriptor *descriptor, char **json);
/* Ranks that it has. */
moai_status moai_descriptor_ranks(const moai_descriptor *descriptor, uint32_t *ranks);
/* Regions of a rank in order, as JSON: a list of {"name", "bytes"}. The regions of an engine come in this order, each with at
 * least so many bytes. */
moai_status moai_descriptor_regions(const moai_descriptor *descriptor, uint32_t rank, char **json);
void moai_descriptor_free(moai_descriptor *descriptor);

/* A dimension of a tensor. */
typedef struct moai_axis {
    /* A word of the layout notation: "page", "slot", "head", "dim", "dim/8", "dim%8", "layer", "part". */
    const char *label;
    uint64_t extent;
    /* In bytes. */
    uint64_t stride_bytes;
} moai_axis;

/* The `layout` of a component whose tensor has these dimensions, as JSON for a description: {"text", "offset_bytes",
 * "strides_bytes"}. `regions` are axes that have a tensor for each of their indices, as "layer". */
moai_status moai_layout_of_tensor(const moai_axis *axes, size_t axis_count, uint64_t offset_bytes, uint64_t element_bytes,
                                  const char *const *regions, size_t region_count, char **json);

/* Builds a description from parts, each a piece of JSON as the book has it. */
typedef struct moai_builder moai_builder;

/* Of a model of so many layers. `engine` and `model_digest` may be NULL. */
moai_status moai_builder_new(uint32_t layers, const char *engine, const char *model_digest, moai_builder **builder);
/* Sizes of tensor, pipeline and context parallelism; `rank_order` and `cp_unit` may be NULL. */
moai_status moai_builder_parallel(moai_builder *builder, uint32_t tp, uint32_t pp, uint32_t cp, const char *rank_order,
                                  const char *cp_unit);
/* Tokens a page, where there are no groups. */
moai_status moai_builder_page_slots(moai_builder *builder, uint32_t slots);
/* A group of layers, as JSON. */
moai_status moai_builder_group(moai_builder *builder, const char *json);
/* A component of `heads` heads (of all ranks) of `dim` elements in a pool. `format` is an element ("bf16") or JSON; `layout` is
 * notation, or JSON as moai_layout_of_tensor gives it; `more` is JSON with further fields ("rope", "part", "group"), or NULL. */
moai_status moai_builder_component(moai_builder *builder, const char *name, uint32_t heads, uint32_t dim, const char *pool,
                                   const char *format, const char *layout, const char *more);
/* A rank with so many pages; `more` is JSON with further fields ("layers", "heads", "groups"), or NULL. */
moai_status moai_builder_rank(moai_builder *builder, uint32_t rank, uint32_t pages, const char *more);
/* Reads what was built; the builder stays as it is. */
moai_status moai_builder_build(const moai_builder *builder, moai_descriptor **descriptor);
void moai_builder_free(moai_builder *builder);

/* ------------------------------------------------------------ negotiation */

/* Whether what `producer` describes can be moved to `consumer`, and how: a report of the plan for people. MOAI_INCOMPATIBLE if
 * not; the error's message has every obstacle, each with both values. */
moai_status moai_check(const moai_descriptor *producer, const moai_descriptor *consumer, char **report);
/* The same as JSON, also if they do not fit: {"compatible", "obstacles": [{"field", "producer", "consumer", "why"}], "pairs":
 * [{"producer", "consumer"}], "digest"}. MOAI_OK whether they fit or not. */
moai_status moai_check_json(const moai_descriptor *producer, const moai_descriptor *consumer, char **json);

/* ----------------------------------------------------------------- engine */

/* One process of an engine, at work in a thread of its own. */
typedef struct moai_engine moai_engine;

/* What it is. */
typedef struct moai_engine_setup {
    size_t size;
    /* Name of the engine, the same for all its nodes. */
    const char *engine;
    /* Number of this node within the engine. */
    uint32_t node;
    /* 1 if others may pull from it, or it pushes. */
    int32_t produces;
    /* 1 if it pulls, or grants. */
    int32_t consumes;
    /* Life of the engine: drawn at random when its processes start, the same for all of them; greater than that of an earlier
     * life. 0 takes the time of day, which is right for an engine of one node. */
    uint64_t epoch;
    /* Key of the engine that seals its handles, the same for all its nodes: 32 bytes. NULL draws one, which is right for an engine
     * of one node. */
    const uint8_t *key;
    size_t key_bytes;
    /* Ranks that this node holds. */
    const uint32_t *ranks;
    size_t rank_count;
    /* The cache of the whole engine. */
    const moai_descriptor *descriptor;
    /* Regions of the first rank in the order of its description, then those of the next. The engine has them until it is freed. */
    moai_region *const *regions;
    size_t region_count;
    /* A peer that says nothing for so long is lost; 0 is 3 s. Heartbeats come three times as often. */
    double loss_seconds;
} moai_engine_setup;

/* Starts it, listening as the settings say. */
moai_status moai_engine_start(const moai_config *config, const moai_engine_setup *setup, moai_engine **engine);
/* Where it listens, as a JSON list of addresses for moai_node. */
moai_status moai_engine_addresses(const moai_engine *engine, char **json);
/* {"engine", "node", "epoch", "ranks", "addresses"} as JSON, to be given to peers that are configured by hand. */
moai_status moai_engine_describe(const moai_engine *engine, char **json);

/* A node of another engine. */
typedef struct moai_node {
    size_t size;
    uint32_t node;
    const uint32_t *ranks;
    size_t rank_count;
    const char *const *addresses;
    size_t address_count;
} moai_node;

/* Says which nodes an engine has. Links to all of them are kept up from now on. `nodes` is an array of structures of
 * nodes[0].size bytes each. */
moai_status moai_engine_know(moai_engine *engine, const char *name, const moai_node *nodes, size_t node_count);
/* Finds the nodes of some engines in the directory of the settings (MOAI_DIRECTORY), and keeps links to them. */
moai_status moai_engine_follow(moai_engine *engine, const char *const *names, size_t name_count);
/* Tells the directory of the settings where this node is, until the engine is freed. */
moai_status moai_engine_announce(moai_engine *engine);

/* Pages of a request in one group of layers of one rank, in the order of its tokens. */
typedef struct moai_pages {
    uint32_t rank;
    /* Index of the group in the description; 0 without groups. */
    uint32_t group;
    const uint32_t *pages;
    size_t page_count;
} moai_pages;

/* Ranks that have the same block table are given once with this as their rank. */
#define MOAI_ALL_RANKS UINT32_MAX

/* What of a cache is meant. */
typedef struct moai_request {
    size_t size;
    /* Tokens of the request, from 0. */
    uint32_t tokens;
    /* The first token that is to be moved; those before are there already. */
    uint32_t first;
    const moai_pages *pages;
    size_t pages_count;
    /* What it is called in reports and logs; may be NULL. */
    const char *name;
} moai_request;

/* Pages that are kept for whoever has the handle. */
typedef struct moai_offer {
    size_t size;
    /* The same on all nodes of the engine, and never used again in this life of it. */
    uint64_t number;
    const moai_request *request;
    /* How long the pages are kept without a transfer. */
    double lease_seconds;
    /* The only engine that may pull them; NULL for any. */
    const char *bound;
    /* 1 if layers become ready one by one, by moai_engine_layer_ready; otherwise all is. */
    int32_t progressive;
    /* W3C traceparent; may be NULL. */
    const char *trace;
} moai_offer;

/* Offers pages. The handle is text of a few hundred bytes that may travel through a router or in a URL. */
moai_status moai_engine_offer(moai_engine *engine, const moai_offer *offer, char **handle);
/* The first `tokens` tokens of a layer of a progressive offer are written. */
moai_status moai_engine_layer_ready(moai_engine *engine, uint64_t offer, uint32_t layer, uint32_t tokens);
/* Keeps an offer's pages for at least so long from now. */
moai_status moai_engine_extend(moai_engine *engine, uint64_t offer, double lease_seconds);
/* Takes an offer back. MOAI_EVENT_RELEASED says when its pages are free. */
moai_status moai_engine_withdraw(moai_engine *engine, uint64_t offer);
/* Pushes an offer into pages that another engine grants. MOAI_REFUSED says why it cannot; MOAI_EVENT_DECLINED if it is refused
 * there. */
moai_status moai_engine_push(moai_engine *engine, uint64_t offer, const char *grant);

/* A request that is fetched. */
typedef struct moai_pull {
    size_t size;
    /* Of an offer. */
    const char *handle;
    const moai_request *request;
    /* From now to the outcome, at most. */
    double deadline_seconds;
    /* 1 to be told of each layer as it is placed: MOAI_EVENT_LAYER. */
    int32_t by_layer;
    /* 1 if pages must not be mapped, but sent. */
    int32_t unmapped;
} moai_pull;

/* Begins to pull. It has one outcome, before its deadline: MOAI_EVENT_ENDED with this transfer. */
moai_status moai_engine_pull(moai_engine *engine, const moai_pull *pull, uint64_t *transfer);

/* Pages that a push may fill. */
typedef struct moai_grant {
    size_t size;
    /* As of an offer. */
    uint64_t number;
    const moai_request *request;
    /* How long it waits for a producer. */
    double lease_seconds;
    /* From the producer's invitation to the outcome, at most. */
    double deadline_seconds;
    /* The only engine that may fill them; NULL for any. */
    const char *bound;
    int32_t by_layer;
    int32_t unmapped;
} moai_grant;

/* Grants pages. MOAI_EVENT_INVITED tells of the transfer that fills them, MOAI_EVENT_RETURNED that none does. */
moai_status moai_engine_grant(moai_engine *engine, const moai_grant *grant, char **handle);
/* Takes a grant back. */
moai_status moai_engine_revoke(moai_engine *engine, uint64_t grant);
/* Ends a transfer; MOAI_EVENT_ENDED follows, if it has not come already. */
moai_status moai_engine_cancel(moai_engine *engine, uint64_t transfer);
/* Waits until all of a layer of a transfer by layer is placed, or the transfer has ended: MOAI_OK, MOAI_REFUSED if it ended
 * otherwise than committed, MOAI_TIMEOUT. What it learns is still told as an event. */
moai_status moai_engine_wait_layer(moai_engine *engine, uint64_t transfer, uint32_t layer, double seconds);

/* What its node has counted, as JSON. */
moai_status moai_engine_stats(const moai_engine *engine, char **json);
/* Its metrics in the text form of Prometheus. */
moai_status moai_engine_metrics(const moai_engine *engine, char **text);
/* 1 if it can talk to at least one compatible peer. */
moai_status moai_engine_is_ready(const moai_engine *engine, int32_t *ready);
/* Links that are ready. */
moai_status moai_engine_links(const moai_engine *engine, uint32_t *links);
/* Ends it: peers hear of it, transfers fail, and once this returns its memory is neither read nor written. */
moai_status moai_engine_free(moai_engine *engine);

/* ----------------------------------------------------------------- events */

/* Something that happened. */
typedef struct moai_event moai_event;

typedef int32_t moai_event_kind;
/* A node can be talked to; it cannot any more. */
#define MOAI_EVENT_PEER_UP 1
#define MOAI_EVENT_PEER_LOST 2
/* A later life of this engine is known to a peer: this one should end. */
#define MOAI_EVENT_SUPERSEDED 3
/* Consumer: all of a layer is placed with equal digests. The transfer may still fail. */
#define MOAI_EVENT_LAYER 4
/* Consumer: how a transfer ended. Once. */
#define MOAI_EVENT_ENDED 5
/* Consumer: pages of a transfer that had ended without its fence are free. */
#define MOAI_EVENT_FENCED 6
/* Consumer: a producer has begun to fill a grant. */
#define MOAI_EVENT_INVITED 7
/* Consumer: pages of a grant that no transfer took are free. */
#define MOAI_EVENT_RETURNED 8
/* Producer: pages of an offer are free. */
#define MOAI_EVENT_RELEASED 9
/* Producer: an offer has ended, and its pages may still be read; MOAI_EVENT_RELEASED follows. */
#define MOAI_EVENT_QUARANTINED 10
/* Producer: a part of an offer was served. */
#define MOAI_EVENT_SERVED 11
/* Producer: a push was not taken. */
#define MOAI_EVENT_DECLINED 12

typedef int32_t moai_outcome;
#define MOAI_OUTCOME_NONE 0
/* Complete, placed, digests equal. */
#define MOAI_OUTCOME_COMMITTED 1
#define MOAI_OUTCOME_FAILED 2
#define MOAI_OUTCOME_CANCELLED 3

/* What there is to know of an event. Texts are of the event, never NULL, empty where they do not apply. */
typedef struct moai_event_info {
    size_t size;
    moai_event_kind kind;
    /* LAYER, ENDED, FENCED, INVITED. */
    uint64_t transfer;
    /* RELEASED, QUARANTINED, SERVED, DECLINED: of the offer; INVITED, RETURNED: of the grant. */
    uint64_t number;
    /* LAYER: global layer. */
    uint32_t layer;
    /* PEER_UP, PEER_LOST. */
    uint32_t node;
    uint64_t epoch;
    /* PEER_*, SUPERSEDED, SERVED, DECLINED: the other engine. */
    const char *engine;
    /* ENDED: the outcome. SERVED: MOAI_OUTCOME_COMMITTED or MOAI_OUTCOME_FAILED. */
    moai_outcome outcome;
    /* ENDED: whether its pages are free. If not they are quarantined until MOAI_EVENT_FENCED. */
    int32_t fenced;
    /* A word that programs may compare ("lease_expired"), and a sentence; of what failed or ended. */
    const char *reason;
    const char *why;
    /* ENDED, RELEASED: the report as a line of JSON for logs. */
    const char *report;
    /* INVITED: handle of the producer's offer. */
    const char *handle;
} moai_event_info;

/* Waits for the next event: at most so long, or for good if negative; 0 does not wait. MOAI_TIMEOUT, MOAI_ENDED. */
moai_status moai_engine_wait(moai_engine *engine, double seconds, moai_event **event);
/* A file descriptor that poll(2) finds readable while events wait. It is the engine's: do not read or close it. */
moai_status moai_engine_fd(const moai_engine *engine, int *fd);
moai_status moai_event_info_get(const moai_event *event, moai_event_info *info);
/* ENDED otherwise than committed: pages that may hold part of what was to come, all others are untouched. Lists of groups of ranks,
 * by index; pages are of the event. */
moai_status moai_event_dirty_count(const moai_event *event, size_t *count);
moai_status moai_event_dirty(const moai_event *event, size_t index, uint32_t *rank, const char **group, const uint32_t **pages,
                             size_t *page_count);
void moai_event_free(moai_event *event);

/* ---------------------------------------------------------------- handles */

/* What a handle says, as JSON: {"kind", "engine", "epoch", "number", "expires_ms"}. It is not known to be genuine: only the engine
 * that sealed it can tell. */
moai_status moai_handle_describe(const char *handle, char **json);

/* -------------------------------------------------------------- providers */

/* The ways of moving bytes and whether they can be used here, as a JSON list of {"name", "usable", "why"}. */
moai_status moai_providers(const moai_config *config, char **json);

#ifdef __cplusplus
}
#endif
#endif
