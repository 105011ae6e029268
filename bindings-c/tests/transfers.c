/* What engines do, through the C interface, both in one process: pulls by layers, pushes, cancels, deadlines, handles of the dead;
 * what their events say, and that every byte outside of dirty pages is as it was. */
#include <moai_fabric.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define SECOND UINT64_C(1000000000)

static int checks;

#define IS(condition)                                                                                        \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            printf("line %d: %s: last error: %s\n", __LINE__, #condition, moai_last_error_json());           \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)
#define OK(call) IS((call) == MOAI_OK)

enum { LAYERS = 2, HEADS = 2, DIM = 32, PAGES = 8, ROW = HEADS * DIM };

typedef struct {
    const char *name;
    uint32_t slots;
    moai_descriptor *descriptor;
    moai_region *regions[LAYERS];
    uint16_t *cache[LAYERS];
    moai_engine *engine;
} side;

static void start(side *it, const char *name, uint32_t slots, const char *layout) {
    moai_config *config;
    moai_builder *builder;
    it->name = name;
    it->slots = slots;
    OK(moai_config_new(&config));
    OK(moai_config_set(config, "MOAI_TRANSPORTS", "tcp"));
    OK(moai_builder_new(&builder));
    OK(moai_builder_model(builder, "test", "sha256:1", LAYERS));
    OK(moai_builder_parallel(builder, 1, 1, 1, NULL, NULL));
    OK(moai_builder_page_slots(builder, slots));
    OK(moai_builder_component(builder, "key", HEADS, DIM, "kv", "bf16", layout));
    OK(moai_builder_rope(builder, "key", "half", DIM, 0));
    OK(moai_builder_rank(builder, 0, PAGES));
    OK(moai_builder_rank_heads(builder, 0, 0, HEADS));
    OK(moai_builder_build(builder, &it->descriptor));
    moai_builder_free(builder);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t bytes;
        OK(moai_descriptor_region_bytes(it->descriptor, 0, layer, &bytes));
        it->cache[layer] = (uint16_t *)malloc(bytes);
        for (uint64_t at = 0; at < bytes / 2; at++)
            it->cache[layer][at] = (uint16_t)(0x3f00 + (at * 7 + layer) % 128);
        OK(moai_region_lend(it->cache[layer], bytes, MOAI_MEMORY_HOST, 0, free, it->cache[layer], &it->regions[layer]));
    }
    const uint32_t rank = 0;
    moai_engine_options options = moai_engine_options_init();
    options.name = name;
    options.produces = options.consumes = 1;
    options.ranks = &rank;
    options.rank_count = 1;
    options.regions = it->regions;
    options.region_count = LAYERS;
    OK(moai_engine_new(config, it->descriptor, &options, &it->engine));
    moai_config_free(config);
}

static void stop(side *it) {
    moai_engine_free(it->engine);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        moai_region_free(it->regions[layer]);
    moai_descriptor_free(it->descriptor);
}

static void know(side *it, side *other) {
    char *address;
    OK(moai_engine_address(other->engine, 0, &address));
    const uint32_t rank = 0;
    moai_node node = moai_node_init();
    node.ranks = &rank;
    node.rank_count = 1;
    node.addresses = (const char *const *)&address;
    node.address_count = 1;
    OK(moai_engine_know(it->engine, other->name, &node, 1));
    moai_text_free(address);
}

/* The next event of a kind; others are let go. */
static moai_event *next(side *it, uint32_t kind, moai_event_fields *fields) {
    *fields = moai_event_fields_init();
    for (;;) {
        moai_event *event;
        OK(moai_engine_poll(it->engine, 20 * SECOND, &event));
        OK(moai_event_read(event, fields));
        if (fields->kind == kind)
            return event;
        moai_event_free(event);
    }
}

static void expect(side *it, uint32_t kind, moai_event_fields *fields) { moai_event_free(next(it, kind, fields)); }

static const uint32_t its_pages[] = {4, 1, 6}, own_pages[] = {2, 5};
static const moai_pages its_list = {0, 1, 0, 3, its_pages}, own_list = {0, 0, 0, 2, own_pages};
enum { TOKENS = 40 };

static moai_request request_of(const moai_pages *list) {
    moai_request request = moai_request_init();
    request.tokens = TOKENS;
    request.lists = list;
    request.list_count = 1;
    request.digest = MOAI_DIGEST_FULL;
    return request;
}

static char *offer_of(side *it, uint64_t number, uint32_t progressive) {
    moai_request request = request_of(&its_list);
    moai_offer offer = moai_offer_init();
    offer.number = number;
    offer.request = &request;
    offer.lease_ns = 60 * SECOND;
    offer.progressive = progressive;
    offer.trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";
    char *handle;
    OK(moai_engine_offer(it->engine, &offer, &handle));
    return handle;
}

static uint64_t pull_of(side *it, const char *handle, uint64_t deadline_ns) {
    moai_request request = request_of(&own_list);
    moai_pull pull = moai_pull_init();
    pull.handle = handle;
    pull.request = &request;
    pull.deadline_ns = deadline_ns;
    pull.by_layer = 1;
    pull.name = "a request";
    uint64_t transfer;
    OK(moai_engine_pull(it->engine, &pull, &transfer));
    return transfer;
}

/* Row of a token and head: producers have [page slot head dim], consumers [page head slot dim]. */
static const uint16_t *its_row(const side *it, uint32_t layer, uint32_t token, uint32_t head) {
    uint32_t row = (its_pages[token / 16] * 16 + token % 16) * HEADS + head;
    return it->cache[layer] + row * DIM;
}
static uint16_t *own_row(const side *it, uint32_t layer, uint32_t token, uint32_t head) {
    uint32_t row = (own_pages[token / 32] * HEADS + head) * 32 + token % 32;
    return it->cache[layer] + row * DIM;
}

static int same(const side *its, const side *own, uint32_t layer) {
    for (uint32_t token = 0; token < TOKENS; token++)
        for (uint32_t head = 0; head < HEADS; head++)
            if (memcmp(its_row(its, layer, token, head), own_row(own, layer, token, head), DIM * 2))
                return 0;
    return 1;
}

static void clear(side *own) {
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        memset(own->cache[layer], 0, PAGES * 32 * ROW * 2);
}

int main(void) {
    side prefill, decode;
    start(&prefill, "prefill", 16, "[layer] page slot head dim");
    start(&decode, "decode", 32, "[layer] page head slot dim");
    know(&decode, &prefill);
    moai_event_fields fields;
    moai_event *event = next(&decode, MOAI_EVENT_PEER_UP, &fields);
    const char *text;
    OK(moai_event_engine(event, &text));
    IS(strcmp(text, "prefill") == 0 && fields.node == 0);
    uint64_t epoch;
    OK(moai_engine_epoch(prefill.engine, &epoch));
    IS(fields.epoch == epoch);
    IS(moai_event_report(event, &text) == MOAI_ABSENT);
    moai_event_free(event);
    expect(&prefill, MOAI_EVENT_PEER_UP, &fields);
    uint32_t ready = 0;
    char *why;
    OK(moai_engine_ready(decode.engine, &ready, &why));
    IS(ready == 1 && strstr(why, "1 compatible peer") != NULL);
    moai_text_free(why);

    /* Layers come as they are written, and can be waited for. */
    clear(&decode);
    char *handle = offer_of(&prefill, 1, 1);
    uint64_t transfer = pull_of(&decode, handle, 20 * SECOND);
    moai_text_free(handle);
    IS(moai_engine_wait_layer(decode.engine, transfer, 1, SECOND / 20) == MOAI_TIMEOUT);
    OK(moai_engine_layer_ready(prefill.engine, 1, 1, TOKENS));
    OK(moai_engine_wait_layer(decode.engine, transfer, 1, 20 * SECOND));
    IS(same(&prefill, &decode, 1) && !same(&prefill, &decode, 0));
    IS(moai_engine_wait_layer(decode.engine, transfer, 0, 0) == MOAI_TIMEOUT);
    expect(&decode, MOAI_EVENT_LAYER, &fields);
    IS(fields.layer == 1 && fields.transfer == transfer);
    OK(moai_engine_layer_ready(prefill.engine, 1, MOAI_ALL_LAYERS, TOKENS));
    OK(moai_engine_wait_layer(decode.engine, transfer, MOAI_ALL_LAYERS, MOAI_FOREVER));
    IS(same(&prefill, &decode, 0));
    event = next(&decode, MOAI_EVENT_ENDED, &fields);
    IS(fields.outcome == MOAI_OUTCOME_COMMITTED && fields.fenced && fields.dirty_count == 0);
    OK(moai_event_report(event, &text));
    IS(strstr(text, "\"request\":\"a request\"") != NULL && strstr(text, "0123456789abcdef") != NULL);
    moai_dirty dirty = moai_dirty_init();
    IS(moai_event_dirty(event, 0, &dirty) == MOAI_ABSENT);
    moai_event_free(event);
    event = next(&prefill, MOAI_EVENT_RELEASED, &fields);
    IS(fields.number == 1 && fields.reason == MOAI_REASON_CONSUMED);
    moai_event_free(event);

    /* A push fills what was granted. */
    clear(&decode);
    moai_request request = request_of(&own_list);
    moai_grant grant = moai_grant_init();
    grant.number = 9;
    grant.request = &request;
    grant.lease_ns = 60 * SECOND;
    char *granted;
    OK(moai_engine_grant(decode.engine, &grant, &granted));
    moai_text_free(offer_of(&prefill, 2, 0));
    OK(moai_engine_push(prefill.engine, 2, granted));
    event = next(&decode, MOAI_EVENT_INVITED, &fields);
    IS(fields.number == 9);
    OK(moai_event_handle(event, &text));
    IS(strlen(text) > 40);
    transfer = fields.transfer;
    moai_event_free(event);
    OK(moai_engine_wait_layer(decode.engine, transfer, MOAI_ALL_LAYERS, 20 * SECOND));
    IS(same(&prefill, &decode, 0) && same(&prefill, &decode, 1));
    expect(&decode, MOAI_EVENT_ENDED, &fields);
    /* It is used up. */
    moai_text_free(offer_of(&prefill, 3, 0));
    OK(moai_engine_push(prefill.engine, 3, granted));
    event = next(&prefill, MOAI_EVENT_DECLINED, &fields);
    OK(moai_event_message(event, &text));
    IS(fields.number == 3 && fields.reason == MOAI_REASON_CONSUMED && strlen(text) > 0);
    moai_event_free(event);
    moai_text_free(granted);
    OK(moai_engine_extend(prefill.engine, 3, 60 * SECOND));
    OK(moai_engine_withdraw(prefill.engine, 3));
    do
        expect(&prefill, MOAI_EVENT_RELEASED, &fields);
    while (fields.number != 3);
    IS(fields.reason == MOAI_REASON_WITHDRAWN);
    grant.number = 10;
    OK(moai_engine_grant(decode.engine, &grant, &granted));
    OK(moai_engine_revoke(decode.engine, 10));
    expect(&decode, MOAI_EVENT_RETURNED, &fields);
    IS(fields.number == 10);
    moai_text_free(granted);

    /* A transfer that is cancelled after its first layer names the pages that were written, and no others are. */
    clear(&decode);
    handle = offer_of(&prefill, 4, 1);
    transfer = pull_of(&decode, handle, 20 * SECOND);
    OK(moai_engine_layer_ready(prefill.engine, 4, 0, TOKENS));
    OK(moai_engine_wait_layer(decode.engine, transfer, 0, 20 * SECOND));
    OK(moai_engine_cancel(decode.engine, transfer));
    event = next(&decode, MOAI_EVENT_ENDED, &fields);
    IS(fields.outcome == MOAI_OUTCOME_CANCELLED && fields.reason == MOAI_REASON_CANCELLED && fields.dirty_count == 1);
    OK(moai_event_dirty(event, 0, &dirty));
    IS(dirty.rank == 0 && dirty.page_count == 2 && dirty.pages[0] == 2 && dirty.pages[1] == 5 && dirty.group[0] == 0);
    moai_event_free(event);
    IS(moai_engine_wait_layer(decode.engine, transfer, 1, 20 * SECOND) == MOAI_TRANSFER);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (uint32_t page = 0; page < PAGES; page++)
            for (uint32_t at = 0; at < 32 * ROW && page != 2 && page != 5; at++)
                IS(decode.cache[layer][page * 32 * ROW + at] == 0);

    /* One whose layers never come fails by its deadline, and says what was missing. */
    transfer = pull_of(&decode, handle, SECOND / 2);
    moai_text_free(handle);
    event = next(&decode, MOAI_EVENT_ENDED, &fields);
    OK(moai_event_message(event, &text));
    IS(fields.transfer == transfer && fields.outcome == MOAI_OUTCOME_FAILED && strlen(text) > 0);
    moai_event_free(event);

    /* A handle that no engine made. */
    handle = offer_of(&prefill, 5, 0);
    handle[strlen(handle) - 3] ^= 1;
    moai_request own = request_of(&own_list);
    moai_pull pull = moai_pull_init();
    pull.handle = handle;
    pull.request = &own;
    pull.deadline_ns = 5 * SECOND;
    moai_status pulled = moai_engine_pull(decode.engine, &pull, &transfer);
    IS(pulled == MOAI_OK || pulled == MOAI_VALUE);
    if (pulled == MOAI_OK) {
        expect(&decode, MOAI_EVENT_ENDED, &fields);
        IS(fields.outcome == MOAI_OUTCOME_FAILED && fields.reason == MOAI_REASON_FORGED && fields.dirty_count == 0);
    }
    moai_text_free(handle);

    /* What was counted. */
    char *counted;
    OK(moai_engine_stats(decode.engine, &counted));
    IS(strstr(counted, "\"committed\":2") != NULL && strstr(counted, "\"cancelled\":1") != NULL);
    moai_text_free(counted);
    OK(moai_engine_metrics(decode.engine, &counted));
    IS(strstr(counted, "moai_transfers_total{") != NULL && strstr(counted, "moai_ready 1") != NULL);
    moai_text_free(counted);

    /* The other engine is closed: this one hears of it. Descriptors wake, and stay awake when all is over. */
    OK(moai_engine_close(prefill.engine));
    event = next(&decode, MOAI_EVENT_PEER_LOST, &fields);
    OK(moai_event_message(event, &text));
    moai_event_free(event);
    int32_t fd;
    OK(moai_engine_fd(decode.engine, &fd));
    OK(moai_engine_close(decode.engine));
    struct pollfd waits = {fd, POLLIN, 0};
    IS(poll(&waits, 1, 1000) == 1);
    moai_status polled;
    while ((polled = moai_engine_poll(decode.engine, 0, &event)) == MOAI_OK)
        moai_event_free(event);
    IS(polled == MOAI_OVER && poll(&waits, 1, 0) == 1);
    stop(&prefill);
    stop(&decode);
    printf("%d checks hold\n", checks);
    return 0;
}
