/*
 * A plug-in that breaks the rules of moai_provider.h, each time it is compiled (WRONG=number) another one. The test
 * beside it, plugins.rs, says what must come of each.
 */
#include "moai_provider.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#ifndef WRONG
#define WRONG 0
#endif

#define PEER ((moai_peer)1 << 32)

struct interface {
    int event, connecting, connected, polls;
    uint64_t tokens[8];
    int in_flight;
    moai_handler kept;
};

static moai_status probe(void *context, moai_text *sentence, moai_error *error) {
    (void)context;
    (void)error;
    sentence->length = WRONG == 48 ? UINT64_MAX : 0;
    return MOAI_OK;
}

static moai_status obstacle(void *context, const char *address, moai_error *error) {
    (void)context;
    (void)address;
    (void)error;
    return WRONG == 49 ? -999 : MOAI_OK;
}

static moai_status open_interface(void *context, const moai_options *options, void **out, moai_capabilities *can,
                                  moai_error *error) {
    (void)context;
    (void)options;
    if (WRONG == 23) {
        error->text.length = UINT64_MAX;
        return -999;
    }
    can->max_message = can->max_batch = 1 << 16;
    can->max_operation = 1 << 20;
    can->lanes = 1;
    for (int operation = 0; operation < 4; operation++)
        can->reach[operation][MOAI_KIND_HOST] = WRONG == 21 ? 9 : MOAI_REACH_DIRECT;
    if (WRONG == 24)
        can->max_message = 0;
    if (WRONG == 20)
        return MOAI_OK;
    struct interface *one = calloc(1, sizeof *one);
    one->event = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    *out = one;
    return MOAI_OK;
}

static void destroy(void *raw) {
    struct interface *one = raw;
    close(one->event);
    free(one);
}

static moai_status addresses(void *raw, moai_text *out) {
    (void)raw;
    const char *text = WRONG == 47 ? "other:1\nno address\nwrong:1" : "wrong:1";
    out->length = WRONG == 51 ? UINT64_MAX : strlen(text);
    memcpy(out->data, text, strlen(text));
    return MOAI_OK;
}

static moai_status connect_to(void *raw, const char *address, moai_peer *peer, moai_error *error) {
    (void)address;
    (void)error;
    ((struct interface *)raw)->connecting = 1;
    *peer = WRONG == 29 ? UINT64_MAX : PEER;
    return MOAI_OK;
}

static moai_status send_message(void *raw, moai_peer peer, const uint8_t *data, uint64_t bytes, moai_error *error) {
    (void)raw;
    (void)peer;
    (void)data;
    (void)bytes;
    (void)error;
    return WRONG == 50 ? MOAI_IN_FLIGHT : MOAI_OK;
}

static moai_status post(void *raw, moai_peer peer, const moai_batch *batch, const moai_fill *fill, moai_error *error) {
    (void)raw;
    (void)peer;
    (void)error;
    uint8_t *room = calloc(1, batch->bytes + 100);
    if (WRONG == 39)
        fill->fill(fill->context, room, batch->bytes + 100);
    else if (WRONG != 52)
        fill->fill(fill->context, room, batch->bytes);
    if (WRONG == 40)
        fill->fill(fill->context, room, batch->bytes);
    free(room);
    return WRONG == 53 ? MOAI_BUSY : MOAI_OK;
}

static moai_status register_memory(void *raw, uint32_t index, const moai_memory *memory, uint32_t rights,
                                   moai_registration *out, moai_error *error) {
    (void)raw;
    (void)index;
    (void)memory;
    (void)rights;
    (void)error;
    *out = WRONG == 54 ? 5 : PEER;
    return MOAI_OK;
}

static moai_status deregister(void *raw, moai_registration number, moai_error *error) {
    (void)raw;
    (void)number;
    (void)error;
    return MOAI_OK;
}

static moai_status remote_key(void *raw, moai_peer peer, moai_registration number, uint8_t key[64], moai_error *error) {
    (void)raw;
    (void)peer;
    (void)number;
    (void)error;
    memset(key, 0, 64);
    return MOAI_OK;
}

static moai_status import_key(void *raw, moai_peer peer, const uint8_t *key, uint64_t bytes, uint32_t *number,
                              moai_error *error) {
    (void)raw;
    (void)peer;
    (void)key;
    (void)bytes;
    (void)error;
    *number = 0;
    return MOAI_OK;
}

static moai_status put(void *raw, const moai_regions *regions, moai_peer peer, const moai_pieces *local,
                       uint64_t local_count, const moai_pieces *remote, uint64_t remote_count, uint64_t token,
                       moai_error *error) {
    (void)regions;
    (void)peer;
    (void)local;
    (void)local_count;
    (void)remote;
    (void)remote_count;
    struct interface *one = raw;
    if (WRONG == 34)
        return 77;
    if (WRONG == 46) {
        memset(error->text.data, 'x', error->text.capacity);
        error->text.length = UINT64_MAX;
        return -999;
    }
    one->tokens[one->in_flight++ % 8] = token;
    return MOAI_IN_FLIGHT;
}

static void release_nothing(void *handle) { (void)handle; }

static moai_status map(void *raw, moai_peer peer, uint32_t number, moai_memory *memory, moai_error *error) {
    (void)raw;
    (void)peer;
    (void)number;
    (void)error;
    static char bytes[100];
    moai_memory given = {sizeof given, MOAI_KIND_HOST, 0, -1, 0, 100, bytes, bytes, release_nothing, release_nothing, NULL};
    if (WRONG == 43)
        given.address = NULL;
    if (WRONG == 44)
        given.kind = 99;
    if (WRONG == 55)
        given.bytes = UINT64_MAX;
    if (WRONG == 56)
        given.release = NULL;
    if (WRONG == 57)
        given.size = 3;
    if (WRONG == 58)
        given.fd = 1 << 20;
    if (WRONG == 59)
        given.flags = MOAI_MEMORY_WRITABLE;
    if (WRONG == 60)
        given.address = (void *)(UINTPTR_MAX - 50);
    *memory = given;
    return MOAI_OK;
}

static moai_status flush(void *raw, moai_peer peer, uint64_t token, moai_error *error) {
    (void)raw;
    (void)peer;
    (void)token;
    (void)error;
    return MOAI_OK;
}

static moai_status completion(void *raw, moai_completion *out) {
    struct interface *one = raw;
    moai_completion well = {one->tokens[0], PEER, MOAI_ENDED_WELL, 0};
    *out = well;
    if (WRONG == 30)
        out->token = 12345;
    if (WRONG == 32)
        out->peer = PEER + 1;
    if (WRONG == 33)
        out->outcome = 99;
    if (WRONG == 61)
        out->outcome = MOAI_ENDED_REFUSED, out->code = -5;
    if (WRONG == 62)
        return -5;
    if (!one->in_flight)
        return MOAI_NONE;
    if (WRONG != 31) /* which tells of the same one for ever */
        one->in_flight = 0;
    return MOAI_OK;
}

static void *elsewhere(void *raw) {
    struct interface *one = raw;
    one->kept.message(one->kept.context, PEER, (const uint8_t *)"x", 1, NULL);
    return NULL;
}

static moai_status poll_once(void *raw, int64_t timeout_ns, const moai_handler *handler, moai_error *error) {
    (void)timeout_ns;
    (void)error;
    struct interface *one = raw;
    void *context = handler->context;
    if (one->connecting && !one->connected) {
        one->connected = 1;
        handler->connected(context, PEER, 0);
        one->kept = *handler;
        return MOAI_OK;
    }
    if (!one->connected || one->polls++)
        return MOAI_OK;
    moai_closed why = {sizeof why, WRONG == 63 ? 99 : MOAI_CLOSED_BY_PEER, {0, 0}, NULL};
    moai_batch batch = {1, 10, 0};
    uint32_t direct;
    uint64_t count;
    moai_piece pieces[4];
    (void)batch;
    (void)direct;
    (void)count;
    (void)pieces;
    switch (WRONG) {
    case 35: handler->message(context, PEER + 7, (const uint8_t *)"x", 1, NULL); break;
    case 36: handler->message(context, PEER, (const uint8_t *)"x", 1ull << 40, NULL); break;
    case 37: handler->closed(context, PEER, &why); handler->closed(context, PEER, &why); break;
    case 38: handler->connected(context, PEER + 7, 0); break;
    case 41: handler->connected(context, PEER, 1); break;
    case 42: {
        pthread_t thread;
        pthread_create(&thread, NULL, elsewhere, one);
        pthread_join(thread, NULL);
        break;
    }
    case 45: handler->landed(context, PEER, &batch, NULL, NULL); break;
    case 63: handler->closed(context, PEER, &why); break;
    case 64: handler->closed(context, PEER, NULL); break;
    case 65: handler->message(context, PEER, NULL, 5, NULL); break;
    case 66: batch.bytes = UINT32_MAX; handler->landing(context, PEER, &batch, &direct, NULL); break;
    case 67: handler->pieces(context, PEER, &batch, 0, pieces, 4, &count, NULL); break;
    case 68: handler->connected(context, (1ull << 32) | (1u << 29), 1); break;
    case 69:
        for (uint32_t index = 1; index < 5000; index++)
            handler->connected(context, PEER | index, 1);
        break;
    case 70: handler->landing(context, PEER, &batch, NULL, NULL); break;
    case 71: handler->landing(context, PEER, NULL, &direct, NULL); break;
    case 72: return -999;
    }
    return MOAI_OK;
}

static int32_t wait_fd(void *raw) { return WRONG == 22 ? -1 : WRONG == 25 ? 1 << 20 : ((struct interface *)raw)->event; }

static int64_t arm(void *raw) {
    struct interface *one = raw;
    if (WRONG == 73 && one->connected)
        one->kept.message(one->kept.context, PEER, (const uint8_t *)"x", 1, NULL);
    return -1;
}

static void close_peer(void *raw, moai_peer peer) {
    (void)raw;
    (void)peer;
}

static moai_status path(void *raw, moai_peer peer, moai_path *out) {
    (void)raw;
    (void)peer;
    out->peer.length = out->why.length = UINT64_MAX;
    return MOAI_OK;
}

static moai_status identity(void *raw, moai_peer peer, uint32_t *identity, moai_text *names) {
    (void)raw;
    (void)peer;
    *identity = WRONG == 74 ? 99 : MOAI_IDENTITY_CERTIFIED;
    memcpy(names->data, "root", 4);
    names->length = 4;
    return MOAI_OK;
}

static void stats(void *raw, moai_stats *out) {
    (void)raw;
    out->puts = UINT64_MAX;
    out->busy = UINT64_MAX;
}

static const moai_transport wrong_transport = {
    WRONG == 3 ? 40 : sizeof wrong_transport, 0, WRONG == 5 ? NULL : WRONG == 6 ? "Wrong!" : "wrong", NULL, probe, obstacle,
    open_interface, destroy, addresses, connect_to, send_message, post, register_memory, deregister, remote_key,
    import_key, put, WRONG == 4 ? NULL : put, map, flush, completion, poll_once, wait_fd, arm, close_peer, close_peer, path,
    identity, stats};

static moai_status allocate(void *context, uint64_t bytes, moai_memory *memory, moai_error *error);
static moai_status import(void *context, int32_t fd, uint64_t offset, uint64_t bytes, uint32_t writable,
                          moai_memory *memory, moai_error *error) {
    (void)fd;
    (void)offset;
    (void)writable;
    return allocate(context, bytes, memory, error);
}

struct stream {
    int event;
    uint64_t name;
    int has;
};

static moai_status open_stream(void *context, void **out, moai_error *error) {
    (void)context;
    (void)error;
    struct stream *stream = calloc(1, sizeof *stream);
    stream->event = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    *out = WRONG == 80 ? NULL : stream;
    return MOAI_OK;
}

static void close_stream(void *raw) { (void)raw; }

static moai_status submit(void *raw, const moai_job *job, moai_error *error) {
    (void)error;
    struct stream *stream = raw;
    stream->name = job->name;
    stream->has++;
    return WRONG == 81 ? MOAI_BUSY : WRONG == 82 ? -999 : MOAI_OK;
}

static moai_status completed(void *raw, moai_finished *out) {
    struct stream *stream = raw;
    if (!stream->has)
        return MOAI_NONE;
    stream->has -= WRONG != 84; /* which tells of the same one for ever */
    out->name = stream->name + (WRONG == 83);
    out->status = WRONG == 85 ? -999 : MOAI_OK;
    return WRONG == 86 ? 55 : MOAI_OK;
}

static int32_t stream_fd(void *raw) { return WRONG == 87 ? -1 : ((struct stream *)raw)->event; }

const moai_domain wrong_domain = {WRONG == 9 ? 20 : sizeof wrong_domain, WRONG == 10 ? MOAI_KIND_HOST : MOAI_KIND_SIM,
                                  "wrong", NULL, NULL, NULL, allocate, import, open_stream, close_stream,
                                  WRONG == 11 ? NULL : submit, completed, stream_fd};

static moai_status allocate(void *context, uint64_t bytes, moai_memory *memory, moai_error *error) {
    (void)context;
    (void)error;
    static char room[4096];
    moai_memory given = {sizeof given, MOAI_KIND_SIM, MOAI_MEMORY_WRITABLE, -1, 0, bytes, room, room, release_nothing,
                         release_nothing, &wrong_domain};
    if (WRONG == 88)
        given.bytes = bytes - 1;
    if (WRONG == 89)
        given.domain = NULL;
    if (WRONG == 90)
        given.kind = MOAI_KIND_HOST;
    *memory = given;
    return WRONG == 91 ? -999 : MOAI_OK;
}

static const moai_transport *const transports[] = {WRONG == 12 ? NULL : &wrong_transport, &wrong_transport};
static const moai_domain *const domains[] = {&wrong_domain};

static const moai_plugin plugin = {WRONG == 1 ? 30 : sizeof plugin,
                                   WRONG == 2 ? 2 : MOAI_PROVIDER_MAJOR,
                                   7, /* a newer minor version is taken */
                                   WRONG == 13 ? NULL : "wrong",
                                   "0.1",
                                   WRONG == 14 ? NULL : transports,
                                   WRONG == 7 ? UINT64_MAX : WRONG == 15 ? 2 : WRONG == 16 ? 0 : 1,
                                   domains,
                                   WRONG == 16 ? 0 : 1};

#ifdef NO_SYMBOL
#define moai_provider_v1 moai_provider_v2
const moai_plugin *moai_provider_v2(const moai_host *host);
#endif

const moai_plugin *moai_provider_v1(const moai_host *host) {
    (void)host;
    return WRONG == 8 ? NULL : &plugin;
}
