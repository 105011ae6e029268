/* What callers get wrong: NULL, sizes and versions, freed handles, handles of another kind, values that cannot be, wrong threads and
 * processes. Each is refused by a status that names the field, and writes no output. */
#include <moai_fabric.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int checks, wrong;

static void is(int holds, const char *what, int line) {
    checks++;
    if (!holds) {
        wrong++;
        printf("line %d: %s: last error: %s\n", line, what, moai_last_error_json());
    }
}

#define IS(condition) is((condition), #condition, __LINE__)
/* The call is refused, with this status and field. */
#define REFUSED(call, status, field_)                                                                      \
    do {                                                                                                   \
        moai_status got_ = (call);                                                                         \
        is(got_ == (status) && moai_last_error_status() == (status) &&                                     \
               strcmp(moai_last_error_field(), field_) == 0,                                               \
           #call " is " #status " at " field_, __LINE__);                                                  \
    } while (0)
#define OK(call) is((call) == MOAI_OK, #call, __LINE__)

static const char *const JSON =
    "{\"version\":1,\"model\":{\"layers\":2},\"parallel\":{},\"page_slots\":16,"
    "\"components\":[{\"name\":\"key\",\"heads\":4,\"dim\":64,\"pool\":\"kv\",\"format\":{\"element\":\"bf16\"},"
    "\"layout\":\"[layer] page slot head dim\"}],\"ranks\":[{\"rank\":0,\"pages\":8}]}";
enum { REGION_BYTES = 8 * 16 * 4 * 64 * 2 };

static moai_config *config(void) {
    moai_config *config = NULL;
    OK(moai_config_new(&config));
    return config;
}

static moai_descriptor *descriptor(void) {
    moai_descriptor *descriptor = NULL;
    OK(moai_descriptor_from_json(JSON, &descriptor));
    return descriptor;
}

static void null_everywhere(void) {
    REFUSED(moai_config_new(NULL), MOAI_NULL, "config");
    REFUSED(moai_config_from_env(NULL), MOAI_NULL, "config");
    REFUSED(moai_config_set(NULL, "MOAI_BIND", ""), MOAI_NULL, "config");
    REFUSED(moai_config_get(NULL, NULL, NULL), MOAI_NULL, "config");
    REFUSED(moai_config_check(NULL), MOAI_NULL, "config");
    REFUSED(moai_region_new(MOAI_MEMORY_HOST, 1, NULL), MOAI_NULL, "region");
    REFUSED(moai_region_lend(NULL, 1, MOAI_MEMORY_HOST, 0, NULL, NULL, NULL), MOAI_NULL, "region");
    REFUSED(moai_region_pointer(NULL, NULL), MOAI_NULL, "region");
    REFUSED(moai_region_bytes(NULL, NULL), MOAI_NULL, "region");
    REFUSED(moai_region_kind(NULL, NULL), MOAI_NULL, "region");
    moai_dlpack dlpack = moai_dlpack_init();
    REFUSED(moai_dlpack_read(NULL, 0, NULL), MOAI_NULL, "out");
    REFUSED(moai_dlpack_read(NULL, 0, &dlpack), MOAI_NULL, "tensor");
    REFUSED(moai_region_from_dlpack(NULL, 0, NULL), MOAI_NULL, "region");
    REFUSED(moai_tensor_layout(NULL, NULL, NULL), MOAI_NULL, "json");
    REFUSED(moai_descriptor_from_json(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_json(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_digest(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_layers(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_ranks(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_groups(NULL, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_group_name(NULL, 0, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_regions(NULL, 0, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_region_bytes(NULL, 0, 0, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_region_name(NULL, 0, 0, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_descriptor_pages_needed(NULL, 0, 0, 1, NULL), MOAI_NULL, "descriptor");
    REFUSED(moai_builder_new(NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_engine(NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_model(NULL, NULL, NULL, 1), MOAI_NULL, "builder");
    REFUSED(moai_builder_parallel(NULL, 1, 1, 1, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_page_slots(NULL, 1), MOAI_NULL, "builder");
    REFUSED(moai_builder_group(NULL, NULL, NULL, 0, 0, 0), MOAI_NULL, "builder");
    REFUSED(moai_builder_component(NULL, NULL, 1, 1, NULL, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_component_tensor(NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_scale(NULL, NULL, NULL, NULL, 0), MOAI_NULL, "builder");
    REFUSED(moai_builder_scale_rule(NULL, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_rope(NULL, NULL, NULL, 1, 0), MOAI_NULL, "builder");
    REFUSED(moai_builder_rotation(NULL, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_part(NULL, NULL, 0), MOAI_NULL, "builder");
    REFUSED(moai_builder_in_group(NULL, NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_piece(NULL, NULL, NULL, 0, 1), MOAI_NULL, "builder");
    REFUSED(moai_builder_rank(NULL, 0, 1), MOAI_NULL, "builder");
    REFUSED(moai_builder_rank_layers(NULL, 0, NULL, 0), MOAI_NULL, "builder");
    REFUSED(moai_builder_rank_heads(NULL, 0, 0, 1), MOAI_NULL, "builder");
    REFUSED(moai_builder_json(NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_builder_build(NULL, NULL), MOAI_NULL, "builder");
    REFUSED(moai_negotiate(NULL, NULL, NULL), MOAI_NULL, "producer");
    REFUSED(moai_agreement_digest(NULL, NULL), MOAI_NULL, "agreement");
    REFUSED(moai_agreement_text(NULL, NULL), MOAI_NULL, "agreement");
    REFUSED(moai_agreement_json(NULL, NULL), MOAI_NULL, "agreement");
    REFUSED(moai_engine_new(NULL, NULL, NULL, NULL), MOAI_NULL, "config");
    REFUSED(moai_engine_close(NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_address_count(NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_address(NULL, 0, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_epoch(NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_know(NULL, NULL, NULL, 0), MOAI_NULL, "engine");
    REFUSED(moai_engine_follow(NULL, NULL, 0), MOAI_NULL, "engine");
    REFUSED(moai_engine_announce(NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_offer(NULL, NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_layer_ready(NULL, 1, 0, 1), MOAI_NULL, "engine");
    REFUSED(moai_engine_extend(NULL, 1, 1), MOAI_NULL, "engine");
    REFUSED(moai_engine_withdraw(NULL, 1), MOAI_NULL, "engine");
    REFUSED(moai_engine_reuse(NULL, 0, 0), MOAI_NULL, "engine");
    REFUSED(moai_engine_push(NULL, 1, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_pull(NULL, NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_cancel(NULL, 1), MOAI_NULL, "engine");
    REFUSED(moai_engine_wait_layer(NULL, 1, 0, 0), MOAI_NULL, "engine");
    REFUSED(moai_engine_grant(NULL, NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_revoke(NULL, 1), MOAI_NULL, "engine");
    REFUSED(moai_handle_json(NULL, NULL), MOAI_NULL, "json");
    REFUSED(moai_engine_poll(NULL, 0, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_fd(NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_event_read(NULL, NULL), MOAI_NULL, "event");
    REFUSED(moai_event_engine(NULL, NULL), MOAI_NULL, "event");
    REFUSED(moai_event_message(NULL, NULL), MOAI_NULL, "event");
    REFUSED(moai_event_handle(NULL, NULL), MOAI_NULL, "event");
    REFUSED(moai_event_report(NULL, NULL), MOAI_NULL, "event");
    REFUSED(moai_event_dirty(NULL, 0, NULL), MOAI_NULL, "event");
    REFUSED(moai_engine_stats(NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_metrics(NULL, NULL), MOAI_NULL, "engine");
    REFUSED(moai_engine_ready(NULL, NULL, NULL), MOAI_NULL, "engine");
    moai_config_free(NULL);
    moai_region_free(NULL);
    moai_descriptor_free(NULL);
    moai_builder_free(NULL);
    moai_agreement_free(NULL);
    moai_engine_free(NULL);
    moai_event_free(NULL);
    OK(moai_text_free(NULL));
    IS(moai_config_key(moai_config_key_count()) == NULL);
    IS(moai_config_key_count() > 10 && strcmp(moai_config_key(0), "MOAI_BIND") == 0);
}

static void handles(void) {
    moai_config *one = config();
    moai_descriptor *side = descriptor();
    char *text = (char *)&text;
    /* Of another kind: as if a cast had gone wrong. */
    REFUSED(moai_config_check((moai_config *)(void *)side), MOAI_HANDLE, "config");
    REFUSED(moai_descriptor_json((moai_descriptor *)(void *)one, &text), MOAI_HANDLE, "descriptor");
    /* Addresses are no handles. */
    int local = 0;
    REFUSED(moai_config_check((moai_config *)(void *)&local), MOAI_HANDLE, "config");
    /* Freed, also when its place is in use again. */
    moai_config_free(one);
    moai_config *other = config();
    REFUSED(moai_config_check(one), MOAI_HANDLE, "config");
    moai_config_free(one);
    OK(moai_config_check(other));
    moai_config_free(other);
    IS(text == (char *)&text); /* outputs of failures are not written */
    OK(moai_descriptor_json(side, &text));
    IS(strcmp(text, JSON) == 0);
    OK(moai_text_free(text));
    REFUSED(moai_text_free(text), MOAI_HANDLE, "text");
    REFUSED(moai_text_free((char *)&local), MOAI_HANDLE, "text");
    moai_descriptor_free(side);
}

static void structs(void) {
    uint64_t shape = 2;
    int64_t stride = 1;
    const char *label = "page", *strange = "pages";
    moai_tensor good = moai_tensor_init(), bad;
    good.dims = 1;
    good.element_bytes = 2;
    good.labels = &label;
    good.shape = &shape;
    good.strides = &stride;
    char *json = NULL;
    bad = good, bad.size -= 8;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_STRUCT, "tensor.size");
    IS(strstr(moai_last_error_message(), "moai_tensor_init()") != NULL);
    bad = good, bad.version = 2;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_STRUCT, "tensor.version");
    IS(strcmp(moai_last_error_ours(), "1") == 0 && strcmp(moai_last_error_theirs(), "2") == 0);
    bad = good, bad.labels = NULL;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_NULL, "tensor.labels");
    bad = good, bad.labels = &strange;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_TENSOR, "tensor");
    bad = good, bad.in_bytes = 7;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_VALUE, "tensor.in_bytes");
    REFUSED(moai_tensor_layout(&good, "layers", &json), MOAI_VALUE, "regions");
    moai_cut cut = {"slot", 0, 1, 0, 0};
    bad = good, bad.cuts = &cut, bad.cut_count = 1;
    REFUSED(moai_tensor_layout(&bad, NULL, &json), MOAI_TENSOR, "tensor.cuts[0]");
    REFUSED(moai_tensor_layout((const moai_tensor *)(const void *)((const char *)&good + 1), NULL, &json), MOAI_VALUE,
            "tensor");
    IS(json == NULL);
    moai_event_fields fields = moai_event_fields_init();
    IS(fields.size == sizeof fields && fields.version == 1 && fields.kind == 0);
}

static void settings(void) {
    moai_config *one = config();
    char *value = NULL;
    REFUSED(moai_config_set(one, "MOAI_BINDS", "x"), MOAI_CONFIG, "MOAI_BINDS");
    IS(strstr(moai_last_error_hint(), "MOAI_TRANSPORTS") != NULL);
    REFUSED(moai_config_set(one, "MOAI_BIND", "nowhere"), MOAI_CONFIG, "MOAI_BIND");
    REFUSED(moai_config_set(one, "MOAI_LOG", "debug"), MOAI_CONFIG, "MOAI_LOG");
    REFUSED(moai_config_set(one, "MOAI_BIND", NULL), MOAI_NULL, "value");
    REFUSED(moai_config_set(one, "MOAI_BIND", "\xff"), MOAI_UTF8, "value");
    REFUSED(moai_config_get(one, "bind", &value), MOAI_CONFIG, "bind");
    OK(moai_config_set(one, "MOAI_TRANSPORTS", "tcp"));
    OK(moai_config_get(one, "MOAI_TRANSPORTS", &value));
    IS(value && strcmp(value, "tcp") == 0);
    moai_text_free(value);
    OK(moai_config_set(one, "MOAI_TLS_CERT", "/no/such/file"));
    IS(moai_config_check(one) == MOAI_CONFIG);
    moai_config_free(one);
}

static void descriptions(void) {
    moai_descriptor *side = NULL;
    REFUSED(moai_descriptor_from_json("{", &side), MOAI_DESCRIPTOR, "line 1, column 1");
    moai_builder *builder;
    OK(moai_builder_new(&builder));
    OK(moai_builder_model(builder, "m", NULL, 2));
    OK(moai_builder_page_slots(builder, 16));
    OK(moai_builder_component(builder, "key", 4, 64, "kv", "bf16", "[layer] page slot head dims"));
    OK(moai_builder_rank(builder, 0, 8));
    REFUSED(moai_builder_build(builder, &side), MOAI_DESCRIPTOR, "components[0].layout");
    REFUSED(moai_builder_part(builder, "value", 1), MOAI_VALUE, "component");
    REFUSED(moai_builder_rank_heads(builder, 1, 0, 4), MOAI_VALUE, "rank");
    REFUSED(moai_builder_rope(builder, "key", "both", 64, 0), MOAI_VALUE, "pairing");
    REFUSED(moai_builder_rotation(builder, "key", "hadamard x"), MOAI_VALUE, "rotation");
    const double scales[3] = {1, 2, 3};
    REFUSED(moai_builder_scale(builder, "key", "tensor", scales, 3), MOAI_VALUE, "value_count");
    REFUSED(moai_builder_scale(builder, "key", "row", scales, 1), MOAI_VALUE, "granularity");
    IS(side == NULL);
    moai_builder_free(builder);

    moai_descriptor *a = descriptor(), *b = NULL;
    OK(moai_builder_new(&builder));
    OK(moai_builder_model(builder, "m", NULL, 3));
    OK(moai_builder_page_slots(builder, 16));
    OK(moai_builder_component(builder, "key", 8, 64, "kv", "bf16", "[layer] page slot head dim"));
    OK(moai_builder_rank(builder, 0, 8));
    OK(moai_builder_build(builder, &b));
    moai_builder_free(builder);
    moai_agreement *agreement = NULL;
    REFUSED(moai_negotiate(a, b, &agreement), MOAI_INCOMPATIBLE, "model.layers");
    IS(strcmp(moai_last_error_ours(), "2") == 0 && strcmp(moai_last_error_theirs(), "3") == 0);
    IS(strstr(moai_last_error_json(), "components.key.heads") != NULL); /* every obstacle */
    OK(moai_negotiate(a, a, &agreement));
    char *text;
    OK(moai_agreement_text(agreement, &text));
    IS(strstr(text, "rank 0 to rank 0") != NULL);
    moai_text_free(text);
    moai_agreement_free(agreement);
    uint32_t number = 77;
    REFUSED(moai_descriptor_regions(a, 1, &number), MOAI_ABSENT, "rank");
    IS(number == 77);
    uint64_t pages;
    OK(moai_descriptor_pages_needed(a, 0, 0, 17, &pages));
    IS(pages == 2);
    REFUSED(moai_descriptor_pages_needed(a, 0, 1, 17, &pages), MOAI_ABSENT, "group");
    moai_descriptor_free(a);
    moai_descriptor_free(b);
}

/* dlpack.h's structs, as a framework has them. */
typedef struct {
    void *data;
    struct { int32_t type, id; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;
typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *);
} dl_managed;
typedef struct dl_versioned {
    struct { uint32_t major, minor; } version;
    void *context;
    void (*deleter)(struct dl_versioned *);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;

static int deleted;
static moai_status within;
static void delete_managed(dl_managed *tensor) {
    (void)tensor;
    deleted++;
    moai_config *config = NULL;
    within = moai_config_new(&config); /* not from within a callback */
}
static void delete_versioned(dl_versioned *tensor) {
    (void)tensor;
    deleted++;
}

static void memory(void) {
    static uint16_t storage[64];
    int64_t shape[2] = {4, 16}, strides[2] = {16, 1};
    dl_managed tensor = {{storage, {1, 0}, 2, {4, 16, 1}, shape, strides, 0}, NULL, delete_managed};
    dl_managed bad;
    moai_region *region = NULL;
    moai_dlpack said = moai_dlpack_init();
    OK(moai_dlpack_read(&tensor, 0, &said));
    IS(said.is_contiguous && said.is_dense && said.bytes == sizeof storage && strcmp(said.element, "bf16") == 0);
    bad = tensor, bad.tensor.device.type = 2;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_UNSUPPORTED, "device.device_type");
    bad = tensor, bad.tensor.device.type = 10;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_UNSUPPORTED, "device.device_type");
    bad = tensor, bad.tensor.ndim = 9;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_TENSOR, "ndim");
    bad = tensor, bad.tensor.dtype.bits = 4;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_TENSOR, "dtype");
    bad = tensor, bad.tensor.data = NULL;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_TENSOR, "data");
    int64_t gaps[2] = {32, 1}, empty[2] = {4, 0};
    bad = tensor, bad.tensor.strides = gaps;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_TENSOR, "strides[0]");
    IS(strcmp(moai_last_error_ours(), "16") == 0 && strcmp(moai_last_error_theirs(), "32") == 0);
    bad = tensor, bad.tensor.shape = empty;
    REFUSED(moai_region_from_dlpack(&bad, 0, &region), MOAI_TENSOR, "shape[1]");
    REFUSED(moai_region_from_dlpack(&tensor, 2, &region), MOAI_VALUE, "versioned");
    dl_versioned newer = {{1, 0}, NULL, delete_versioned, 1, tensor.tensor};
    REFUSED(moai_region_from_dlpack(&newer, 1, &region), MOAI_TENSOR, "flags");
    newer.version.major = 2;
    REFUSED(moai_region_from_dlpack(&newer, 1, &region), MOAI_TENSOR, "version");
    IS(deleted == 0 && region == NULL);
    newer.version.major = 1, newer.flags = 0, newer.tensor.strides = NULL;
    OK(moai_region_from_dlpack(&newer, 1, &region));
    moai_region_free(region);
    IS(deleted == 1);
    OK(moai_region_from_dlpack(&tensor, 0, &region));
    void *pointer;
    OK(moai_region_pointer(region, &pointer));
    IS(pointer == storage);
    moai_region_free(region);
    IS(deleted == 2 && within == MOAI_THREAD);

    region = NULL;
    REFUSED(moai_region_new(0, 1, &region), MOAI_VALUE, "kind");
    REFUSED(moai_region_new(MOAI_MEMORY_CUDA, 1, &region), MOAI_UNSUPPORTED, "kind");
    REFUSED(moai_region_new(MOAI_MEMORY_HOST, UINT64_MAX, &region), MOAI_MEMORY, "bytes");
    REFUSED(moai_region_lend(NULL, 1, MOAI_MEMORY_HOST, 0, NULL, NULL, &region), MOAI_NULL, "pointer");
    REFUSED(moai_region_lend(storage, 8, MOAI_MEMORY_ROCM, 0, NULL, NULL, &region), MOAI_UNSUPPORTED, "kind");
    REFUSED(moai_region_lend(storage, 8, MOAI_MEMORY_SHARED, 0, NULL, NULL, &region), MOAI_UNSUPPORTED, "kind");
    REFUSED(moai_region_lend(storage, 8, MOAI_MEMORY_HOST, 3, NULL, NULL, &region), MOAI_VALUE, "device");
    REFUSED(moai_region_lend(storage, UINT64_MAX, MOAI_MEMORY_HOST, 0, NULL, NULL, &region), MOAI_VALUE, "bytes");
    IS(region == NULL);
}

static void *poll_for_ever(void *engine) {
    moai_event *event = NULL;
    moai_status status;
    while ((status = moai_engine_poll((moai_engine *)engine, MOAI_FOREVER, &event)) == MOAI_OK)
        moai_event_free(event);
    return (void *)(intptr_t)status;
}

static void engines(void) {
    moai_config *settings = config();
    OK(moai_config_set(settings, "MOAI_TRANSPORTS", "tcp"));
    moai_descriptor *side = descriptor();
    moai_region *regions[2], *small, *twice[2];
    OK(moai_region_new(MOAI_MEMORY_HOST, REGION_BYTES, &regions[0]));
    OK(moai_region_new(MOAI_MEMORY_HOST, REGION_BYTES, &regions[1]));
    OK(moai_region_new(MOAI_MEMORY_HOST, REGION_BYTES - 1, &small));
    uint32_t rank = 0, strange = 1;
    moai_engine_options good = moai_engine_options_init(), bad;
    good.name = "one";
    good.produces = good.consumes = 1;
    good.ranks = &rank;
    good.rank_count = 1;
    good.regions = regions;
    good.region_count = 2;
    moai_engine *engine = NULL;
    REFUSED(moai_engine_new(settings, side, NULL, &engine), MOAI_NULL, "options");
    REFUSED(moai_engine_new(settings, side, &good, NULL), MOAI_NULL, "engine");
    bad = good, bad.size++;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_STRUCT, "options.size");
    bad = good, bad.name = "no/name";
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.name");
    bad = good, bad.produces = bad.consumes = 0;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.produces");
    bad = good, bad.consumes = 2;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.consumes");
    bad = good, bad.rank_count = 0;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.rank_count");
    bad = good, bad.ranks = &strange;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.ranks[0]");
    bad = good, bad.region_count = 1;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.region_count");
    bad = good, bad.loss_ns = 1;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.loss_ns");
    twice[0] = regions[0], twice[1] = small;
    bad = good, bad.regions = twice;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.regions[1]");
    twice[1] = regions[0];
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_VALUE, "options.regions[1]");
    IS(strstr(moai_last_error_message(), "overlaps") != NULL);
    twice[1] = (moai_region *)(void *)side;
    REFUSED(moai_engine_new(settings, side, &bad, &engine), MOAI_HANDLE, "options.regions[1]");
    /* One that cannot listen leaves the regions as they were. */
    moai_config *nowhere = config();
    OK(moai_config_set(nowhere, "MOAI_BIND", "10.1.2.3:0"));
    REFUSED(moai_engine_new(nowhere, side, &good, &engine), MOAI_CONFIG, "address");
    OK(moai_config_set(nowhere, "MOAI_INSECURE", "1"));
    OK(moai_config_set(nowhere, "MOAI_TRANSPORTS", "tcp"));
    IS(moai_engine_new(nowhere, side, &good, &engine) == MOAI_SYSTEM);
    moai_config_free(nowhere);
    IS(engine == NULL);
    good.counts_reuse = 1;
    OK(moai_engine_new(settings, side, &good, &engine));
    moai_engine *second = NULL;
    REFUSED(moai_engine_new(settings, side, &good, &second), MOAI_BUSY, "options.regions[0]");

    uint32_t pages[4] = {0, 1, 2, 3}, far[1] = {99};
    moai_pages list = {0, 1, 0, 1, pages};
    moai_request request = moai_request_init();
    request.tokens = 16;
    request.lists = &list;
    request.list_count = 1;
    moai_offer offer = moai_offer_init();
    offer.number = 1;
    offer.request = &request;
    offer.lease_ns = UINT64_C(60000000000);
    char *handle = NULL;
    moai_offer other;
    other = offer, other.number = 0;
    REFUSED(moai_engine_offer(engine, &other, &handle), MOAI_VALUE, "offer.number");
    other = offer, other.lease_ns = 0;
    REFUSED(moai_engine_offer(engine, &other, &handle), MOAI_VALUE, "offer.lease_ns");
    other = offer, other.request = NULL;
    REFUSED(moai_engine_offer(engine, &other, &handle), MOAI_NULL, "offer.request");
    other = offer, other.reserved = 1;
    REFUSED(moai_engine_offer(engine, &other, &handle), MOAI_VALUE, "offer.reserved");
    other = offer, other.trace = "00-zz";
    REFUSED(moai_engine_offer(engine, &other, &handle), MOAI_VALUE, "offer.trace");
    request.version = 9;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_STRUCT, "offer.request.version");
    request.version = 1, request.digest = 9;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_VALUE, "offer.request.digest");
    request.digest = 0, request.layer_start = 1, request.layer_end = 3;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_VALUE, "offer.request.layer_end");
    request.layer_start = request.layer_end = 0, list.group = 1;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_REQUEST, "offer.request.lists[0]");
    list.group = 0, list.pages = NULL;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_NULL, "offer.request.lists[0].pages");
    list.pages = far;
    REFUSED(moai_engine_offer(engine, &offer, &handle), MOAI_REQUEST, "request");
    IS(strstr(moai_last_error_message(), "99") != NULL && handle == NULL);
    list.pages = pages;
    OK(moai_engine_offer(engine, &offer, &handle));
    char *json;
    OK(moai_handle_json(handle, &json));
    IS(strstr(json, "\"kind\":\"offer\"") != NULL && strstr(json, "\"tokens\":16") != NULL);
    moai_text_free(json);

    moai_pull pull = moai_pull_init();
    pull.request = &request;
    uint64_t transfer = 77;
    REFUSED(moai_engine_pull(engine, &pull, &transfer), MOAI_NULL, "pull.handle");
    pull.handle = "no handle!";
    REFUSED(moai_engine_pull(engine, &pull, &transfer), MOAI_VALUE, "pull.handle");
    pull.handle = handle, pull.by_layer = 3;
    REFUSED(moai_engine_pull(engine, &pull, &transfer), MOAI_VALUE, "pull.by_layer");
    IS(transfer == 77);
    moai_text_free(handle);
    REFUSED(moai_engine_wait_layer(engine, 99, 0, 0), MOAI_VALUE, "transfer");
    REFUSED(moai_engine_wait_layer(engine, 99, 2, 0), MOAI_VALUE, "layer");
    REFUSED(moai_engine_layer_ready(engine, 1, 2, 16), MOAI_VALUE, "layer");
    OK(moai_engine_reuse(engine, 0, 7));
    REFUSED(moai_engine_reuse(engine, 0, 8), MOAI_ABSENT, "page");
    REFUSED(moai_engine_reuse(engine, 1, 0), MOAI_VALUE, "rank");
    REFUSED(moai_engine_follow(engine, NULL, 0), MOAI_CONFIG, "MOAI_DIRECTORY");
    const char *address = "nowhere";
    moai_node node = moai_node_init();
    node.ranks = &rank;
    node.rank_count = 1;
    node.addresses = &address;
    node.address_count = 1;
    REFUSED(moai_engine_know(engine, "two", &node, 1), MOAI_VALUE, "nodes[0].addresses[0]");
    node.size = 8;
    REFUSED(moai_engine_know(engine, "two", &node, 1), MOAI_STRUCT, "nodes[0].size");
    moai_event *event = NULL;
    REFUSED(moai_engine_poll(engine, 0, &event), MOAI_TIMEOUT, "");

    /* A child has no thread of the engine's. It says so through a pipe: Valgrind takes its exit status for what such a child, without the
     * stacks of its parent's threads, cannot free. */
    int ends[2];
    IS(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        char *text = NULL;
        char refused = moai_engine_stats(engine, &text) == MOAI_THREAD;
        _exit(write(ends[1], &refused, 1) == 1 ? 0 : 1);
    }
    char refused = 0;
    close(ends[1]);
    IS(read(ends[0], &refused, 1) == 1 && refused);
    close(ends[0]);
    waitpid(child, NULL, 0);

    /* A second thread must not poll; closing ends the wait of the first. */
    pthread_t thread;
    void *ended = NULL;
    pthread_create(&thread, NULL, poll_for_ever, engine);
    moai_status polled = MOAI_TIMEOUT;
    for (int tries = 0; tries < 5000 && polled != MOAI_THREAD; tries++) {
        usleep(1000);
        polled = moai_engine_poll(engine, 0, &event);
        if (polled == MOAI_OK)
            moai_event_free(event);
    }
    IS(polled == MOAI_THREAD);
    OK(moai_engine_close(engine));
    pthread_join(thread, &ended);
    IS((moai_status)(intptr_t)ended == MOAI_OVER);
    REFUSED(moai_engine_close(engine), MOAI_OVER, "engine");
    REFUSED(moai_engine_withdraw(engine, 1), MOAI_OVER, "engine");
    /* Its regions are free for another. */
    OK(moai_engine_new(settings, side, &good, &second));
    moai_region_free(regions[0]);
    void *pointer;
    REFUSED(moai_region_pointer(regions[0], &pointer), MOAI_HANDLE, "region");
    /* Freeing ends waits as closing does. */
    pthread_create(&thread, NULL, poll_for_ever, second);
    usleep(20000);
    moai_engine_free(second);
    pthread_join(thread, &ended);
    IS((moai_status)(intptr_t)ended == MOAI_OVER || (moai_status)(intptr_t)ended == MOAI_HANDLE);
    moai_engine_free(engine);
    REFUSED(moai_engine_stats(engine, &json), MOAI_HANDLE, "engine");
    moai_region_free(regions[1]);
    moai_region_free(small);
    moai_descriptor_free(side);
    moai_config_free(settings);
}

int main(void) {
    IS(moai_last_error_status() == MOAI_OK && moai_last_error_message()[0] == 0);
    IS(moai_abi_version() == 1 && strcmp(moai_status_name(MOAI_THREAD), "MOAI_THREAD") == 0);
    null_everywhere();
    handles();
    structs();
    settings();
    descriptions();
    memory();
    engines();
    printf("%d checks, %d wrong\n", checks, wrong);
    return wrong != 0;
}
