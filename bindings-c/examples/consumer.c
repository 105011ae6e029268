/* A consumer: pulls a producer's offer into pages of 32 tokens, f32, heads outside of tokens, and compares every value.
 *
 *   consumer HANDLE ADDRESS...          what the producer printed */
#include "cache.h"

#include <poll.h>

enum { SLOTS = 32, PAGES = 8 };

static void done_with(void *memory) { free(memory); }

int main(int count, char **words) {
    if (count < 3) {
        fprintf(stderr, "usage: consumer HANDLE ADDRESS...\n");
        return 2;
    }
    CHECK(moai_log_start(NULL, NULL, NULL));

    /* The engine's tensors: one for each layer, [pages, part, heads, slots, dim]. Of each, the indices of `part` are components. */
    const char *labels[] = {"page", "part", "head", "slot", "dim"};
    const uint64_t shape[] = {PAGES, 2, HEADS, SLOTS, DIM};
    const int64_t strides[] = {2 * HEADS * SLOTS * DIM, HEADS * SLOTS * DIM, SLOTS * DIM, DIM, 1};
    moai_builder *builder;
    CHECK(moai_builder_new(&builder));
    CHECK(moai_builder_engine(builder, "example consumer"));
    CHECK(moai_builder_model(builder, "example", NULL, LAYERS));
    CHECK(moai_builder_page_slots(builder, SLOTS));
    for (uint32_t part = 0; part < 2; part++) {
        moai_cut cut = {"part", part, part + 1, 1, 0};
        moai_tensor tensor = moai_tensor_init();
        tensor.dims = 5;
        tensor.element_bytes = sizeof(float);
        tensor.labels = labels;
        tensor.shape = shape;
        tensor.strides = strides;
        tensor.cuts = &cut;
        tensor.cut_count = 1;
        CHECK(moai_builder_component_tensor(builder, part ? "value" : "key", HEADS, DIM, "kv", "f32", &tensor,
                                            "layer"));
    }
    CHECK(moai_builder_rank(builder, 0, PAGES));
    moai_descriptor *descriptor;
    CHECK(moai_builder_build(builder, &descriptor));
    moai_builder_free(builder);

    /* Memory of our own, lent to the engine. */
    moai_region *regions[LAYERS];
    float *cache[LAYERS];
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t bytes;
        CHECK(moai_descriptor_region_bytes(descriptor, 0, layer, &bytes));
        cache[layer] = (float *)calloc(1, bytes);
        if (!cache[layer])
            return 1;
        CHECK(moai_region_lend(cache[layer], bytes, MOAI_MEMORY_HOST, 0, done_with, cache[layer], &regions[layer]));
    }

    moai_config *config;
    CHECK(moai_config_from_env(&config));
    uint32_t rank = 0;
    moai_engine_options options = moai_engine_options_init();
    options.name = "decode";
    options.consumes = 1;
    options.ranks = &rank;
    options.rank_count = 1;
    options.regions = regions;
    options.region_count = LAYERS;
    moai_engine *engine;
    CHECK(moai_engine_new(config, descriptor, &options, &engine));

    moai_node node = moai_node_init();
    node.ranks = &rank;
    node.rank_count = 1;
    node.addresses = (const char *const *)(words + 2);
    node.address_count = (uint32_t)count - 2;
    CHECK(moai_engine_know(engine, "prefill", &node, 1));

    const uint32_t pages[] = {3, 1, 0, 6};
    moai_pages list = {0, 1, 0, sizeof pages / sizeof *pages, pages};
    moai_request request = moai_request_init();
    request.tokens = TOKENS;
    request.lists = &list;
    request.list_count = 1;
    moai_pull pull = moai_pull_init();
    pull.handle = words[1];
    pull.request = &request;
    pull.deadline_ns = 60 * SECOND;
    pull.by_layer = 1;
    uint64_t transfer;
    CHECK(moai_engine_pull(engine, &pull, &transfer));

    /* A model could compute its first layer now; the outcome is an event. */
    CHECK(moai_engine_wait_layer(engine, transfer, 0, 60 * SECOND));
    int32_t fd;
    CHECK(moai_engine_fd(engine, &fd));
    moai_event_fields ended = moai_event_fields_init();
    while (ended.kind != MOAI_EVENT_ENDED || ended.transfer != transfer) {
        struct pollfd waits = {fd, POLLIN, 0};
        if (poll(&waits, 1, 60 * 1000) != 1)
            return 1;
        moai_event *event;
        moai_status polled = moai_engine_poll(engine, 0, &event);
        if (polled == MOAI_TIMEOUT) /* counted, and about to be told */
            continue;
        CHECK(polled);
        CHECK(moai_event_read(event, &ended));
        const char *report;
        if (ended.kind == MOAI_EVENT_ENDED && moai_event_report(event, &report) == MOAI_OK)
            printf("%s\n", report);
        moai_event_free(event);
    }

    uint32_t wrong = ended.outcome != MOAI_OUTCOME_COMMITTED;
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t token = 0; token < TOKENS; token++)
                for (uint32_t head = 0; head < HEADS; head++)
                    for (uint32_t dim = 0; dim < DIM; dim++) {
                        uint32_t row = ((pages[token / SLOTS] * 2 + part) * HEADS + head) * SLOTS + token % SLOTS;
                        wrong += cache[layer][row * DIM + dim] != value_of(layer, part, token, head, dim);
                    }

    moai_engine_free(engine);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        moai_region_free(regions[layer]);
    moai_config_free(config);
    moai_descriptor_free(descriptor);
    printf("%u of %u values are wrong\n", wrong, LAYERS * 2 * TOKENS * HEADS * DIM);
    return wrong != 0;
}
