/* A producer: has the cache of one request in pages of 16 tokens, bf16, and offers it.
 *
 *   producer            prints where it listens and the handle of its offer, and ends when the offer was pulled
 *
 * The consumer beside it has another layout, page size and format. */
#include "cache.h"

enum { SLOTS = 16, PAGES = 12 };

/* The upper half of a float: exact for the values of this example. */
static uint16_t bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

int main(void) {
    CHECK(moai_log_start(NULL, NULL, NULL));

    /* The cache: one allocation for each layer, in it keys and values apart, in each a page's tokens with all heads side by side. */
    const char *layout = "[layer] part page slot head dim";
    moai_builder *builder;
    CHECK(moai_builder_new(&builder));
    CHECK(moai_builder_engine(builder, "example producer"));
    CHECK(moai_builder_model(builder, "example", NULL, LAYERS));
    CHECK(moai_builder_page_slots(builder, SLOTS));
    CHECK(moai_builder_component(builder, "key", HEADS, DIM, "kv", "bf16", layout));
    CHECK(moai_builder_component(builder, "value", HEADS, DIM, "kv", "bf16", layout));
    CHECK(moai_builder_rank(builder, 0, PAGES));
    moai_descriptor *descriptor;
    CHECK(moai_builder_build(builder, &descriptor));
    moai_builder_free(builder);

    /* Memory for it, that processes of this host can map. */
    moai_region *regions[LAYERS];
    uint16_t *cache[LAYERS];
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t bytes;
        void *pointer;
        CHECK(moai_descriptor_region_bytes(descriptor, 0, layer, &bytes));
        CHECK(moai_region_new(MOAI_MEMORY_SHARED, bytes, &regions[layer]));
        CHECK(moai_region_pointer(regions[layer], &pointer));
        cache[layer] = (uint16_t *)pointer;
    }

    moai_config *config;
    CHECK(moai_config_from_env(&config));
    uint32_t rank = 0;
    moai_engine_options options = moai_engine_options_init();
    options.name = "prefill";
    options.produces = 1;
    options.ranks = &rank;
    options.rank_count = 1;
    options.regions = regions;
    options.region_count = LAYERS;
    moai_engine *engine;
    CHECK(moai_engine_new(config, descriptor, &options, &engine));

    /* "Prefill": every token's keys and values, in the pages that the request was given. */
    const uint32_t pages[] = {5, 0, 7, 1, 2, 3, 11};
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (uint32_t part = 0; part < 2; part++)
            for (uint32_t token = 0; token < TOKENS; token++)
                for (uint32_t head = 0; head < HEADS; head++)
                    for (uint32_t dim = 0; dim < DIM; dim++) {
                        uint32_t row = (part * PAGES + pages[token / SLOTS]) * SLOTS + token % SLOTS;
                        cache[layer][(row * HEADS + head) * DIM + dim] =
                            bf16(value_of(layer, part, token, head, dim));
                    }

    moai_pages list = {0, 1, 0, sizeof pages / sizeof *pages, pages};
    moai_request request = moai_request_init();
    request.tokens = TOKENS;
    request.lists = &list;
    request.list_count = 1;
    moai_offer offer = moai_offer_init();
    offer.number = 1;
    offer.request = &request;
    offer.lease_ns = 60 * SECOND;
    char *handle;
    CHECK(moai_engine_offer(engine, &offer, &handle));

    /* A server would answer the request with these. */
    printf("%s", handle);
    moai_text_free(handle);
    uint32_t addresses;
    CHECK(moai_engine_address_count(engine, &addresses));
    for (uint32_t index = 0; index < addresses; index++) {
        char *address;
        CHECK(moai_engine_address(engine, index, &address));
        printf(" %s", address);
        moai_text_free(address);
    }
    printf("\n");
    fflush(stdout);

    /* Its pages are the request's until the offer is released. */
    uint32_t reason = MOAI_REASON_OTHER;
    for (int released = 0; !released;) {
        moai_event *event;
        CHECK(moai_engine_poll(engine, 90 * SECOND, &event));
        moai_event_fields fields = moai_event_fields_init();
        CHECK(moai_event_read(event, &fields));
        released = fields.kind == MOAI_EVENT_RELEASED && fields.number == offer.number;
        reason = fields.reason;
        moai_event_free(event);
    }

    moai_engine_free(engine);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        moai_region_free(regions[layer]);
    moai_config_free(config);
    moai_descriptor_free(descriptor);
    if (reason != MOAI_REASON_CONSUMED) {
        fprintf(stderr, "the offer ended with reason %u\n", reason);
        return 1;
    }
    return 0;
}
