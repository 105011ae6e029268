/*
 * A transport in plain C, with nothing but moai_provider.h: what a vendor starts from. `device.c` is a domain.
 *
 * The transport `loop` reaches interfaces of the same process, which find each other by number. Puts and gets copy at
 * once; messages and batches go through a queue. One lock guards everything, which is enough for an example. Peers that
 * are each other's are a pair of `struct link`.
 */
#include "moai_provider.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_INTERFACES 64
#define MAX_LINKS 64
#define MAX_REGISTERED 256
#define MAX_IMPORTED 256
#define MAX_FRAMES 64
#define MAX_MESSAGE (1u << 20)
#define MAX_BATCH (1u << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- errors ---- */

static moai_status fail(moai_error *error, moai_status status, uint64_t first, uint64_t second, const char *text) {
    if (error) {
        error->detail[0] = first;
        error->detail[1] = second;
        error->text.length = strlen(text);
        uint64_t bytes = error->text.length < error->text.capacity ? error->text.length : error->text.capacity;
        memcpy(error->text.data, text, bytes);
    }
    return status;
}

static moai_status say(moai_text *text, const char *what) {
    text->length = strlen(what);
    if (text->length > text->capacity)
        return MOAI_E_BUFFER;
    memcpy(text->data, what, text->length);
    return MOAI_OK;
}

/* ---- what there is ---- */

struct frame {
    int is_batch;
    uint64_t id;
    uint32_t bytes;
    uint8_t *data;
};

struct registered {
    uint32_t generation, uses, index, rights;
    moai_memory memory;
};

struct interface;

struct link {
    struct interface *owner;
    struct link *other; /* NULL once it is gone */
    uint32_t generation;
    int used, announced, incoming, finishing, wants_room;
    struct frame in[MAX_FRAMES]; /* frames for the owner */
    unsigned first, count;
    struct { uint8_t key[64]; } imported[MAX_IMPORTED];
    unsigned imports;
};

struct interface {
    int number, listens, event;
    struct link links[MAX_LINKS];
    struct registered registered[MAX_REGISTERED];
    moai_stats stats;
};

static struct interface *interfaces[MAX_INTERFACES];

static void wake(struct interface *one) {
    uint64_t more = 1;
    if (write(one->event, &more, sizeof more) < 0) { /* full: it is readable already */
    }
}

static moai_peer peer_of(struct link *link) {
    return (uint64_t)link->generation << 32 | (uint64_t)(link - link->owner->links);
}

static struct link *find(struct interface *one, moai_peer peer) {
    uint32_t index = (uint32_t)peer;
    if (index >= MAX_LINKS)
        return NULL;
    struct link *link = &one->links[index];
    return link->used && link->generation == (uint32_t)(peer >> 32) ? link : NULL;
}

static struct link *new_link(struct interface *owner) {
    for (int at = 0; at < MAX_LINKS; at++)
        if (!owner->links[at].used) {
            struct link *link = &owner->links[at];
            uint32_t generation = link->generation + 1;
            memset(link, 0, sizeof *link);
            link->generation = generation;
            link->owner = owner;
            link->used = 1;
            return link;
        }
    return NULL;
}

static void drop(struct link *link) {
    if (link->other) {
        link->other->other = NULL;
        wake(link->other->owner);
    }
    while (link->count) {
        free(link->in[link->first].data);
        link->first = (link->first + 1) % MAX_FRAMES;
        link->count--;
    }
    link->other = NULL;
    link->used = 0;
}

/* ---- the provider ---- */

static moai_status probe(void *context, moai_text *sentence, moai_error *error) {
    (void)context;
    (void)error;
    return say(sentence, "interfaces of this process");
}

static int number_of(const char *address) {
    int number = -1;
    return sscanf(address, "loop:%d", &number) == 1 && number >= 0 && number < MAX_INTERFACES ? number : -1;
}

static moai_status obstacle(void *context, const char *address, moai_error *error) {
    (void)context;
    int number = number_of(address);
    pthread_mutex_lock(&lock);
    int there = number >= 0 && interfaces[number] && interfaces[number]->listens;
    pthread_mutex_unlock(&lock);
    return there ? MOAI_OK : fail(error, MOAI_E_ELSEWHERE, 0, 0, "no such interface in this process");
}

static moai_status open_interface(void *context, const moai_options *options, void **out,
                                  moai_capabilities *capabilities, moai_error *error) {
    (void)context;
    struct interface *one = calloc(1, sizeof *one);
    if (!one)
        return fail(error, MOAI_E_OUT_OF_MEMORY, 0, 0, "");
    one->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (one->event < 0) {
        int code = errno;
        free(one);
        return fail(error, MOAI_E_SYSTEM, (uint64_t)code, 0, "eventfd");
    }
    one->listens = options->listens != 0;
    pthread_mutex_lock(&lock);
    one->number = -1;
    for (int at = 0; at < MAX_INTERFACES && one->number < 0; at++)
        if (!interfaces[at]) {
            interfaces[at] = one;
            one->number = at;
        }
    pthread_mutex_unlock(&lock);
    if (one->number < 0) {
        close(one->event);
        free(one);
        return fail(error, MOAI_E_FAILED, 0, 0, "there are 64 interfaces already");
    }
    capabilities->one_sided = 1;
    capabilities->max_message = MAX_MESSAGE;
    capabilities->max_batch = MAX_BATCH;
    capabilities->max_operation = 1ull << 40;
    capabilities->lanes = 1;
    for (int kind = MOAI_KIND_HOST; kind <= MOAI_KIND_SHARED; kind++)
        for (int operation = MOAI_OPERATION_PUT; operation <= MOAI_OPERATION_SEND; operation++)
            capabilities->reach[operation][kind] = MOAI_REACH_DIRECT;
    *out = one;
    return MOAI_OK;
}

static void release(struct registered *entry) {
    entry->memory.release(entry->memory.handle);
    entry->uses = 0;
}

static void destroy(void *raw) {
    struct interface *one = raw;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MAX_LINKS; at++)
        if (one->links[at].used)
            drop(&one->links[at]);
    for (int at = 0; at < MAX_REGISTERED; at++)
        if (one->registered[at].uses)
            release(&one->registered[at]);
    interfaces[one->number] = NULL;
    pthread_mutex_unlock(&lock);
    close(one->event);
    free(one);
}

static moai_status addresses(void *raw, moai_text *out) {
    struct interface *one = raw;
    char text[32];
    snprintf(text, sizeof text, one->listens ? "loop:%d" : "", one->number);
    return say(out, text);
}

static moai_status connect_to(void *raw, const char *address, moai_peer *peer, moai_error *error) {
    struct interface *one = raw;
    int number = number_of(address);
    pthread_mutex_lock(&lock);
    struct interface *far = number >= 0 ? interfaces[number] : NULL;
    moai_status status = MOAI_OK;
    if (!far || !far->listens) {
        status = fail(error, MOAI_E_UNREACHABLE, 0, 0, "no such interface in this process");
    } else {
        struct link *ours = new_link(one);
        struct link *theirs = ours ? new_link(far) : NULL;
        if (!theirs) {
            if (ours)
                ours->used = 0;
            status = fail(error, MOAI_E_TOO_MANY_PEERS, MAX_LINKS, 0, "");
        } else {
            ours->other = theirs;
            theirs->other = ours;
            theirs->incoming = 1;
            one->stats.connected++;
            far->stats.accepted++;
            *peer = peer_of(ours);
            wake(one);
            wake(far);
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* Room for a frame to the other side of a link; NULL with the status if there is none. */
static struct frame *room(struct interface *one, moai_peer peer, uint64_t bytes, moai_status *status) {
    struct link *link = find(one, peer);
    *status = !link ? MOAI_E_NO_SUCH_PEER : link->finishing ? MOAI_E_FINISHING : MOAI_OK;
    if (*status != MOAI_OK)
        return NULL;
    struct link *other = link->other;
    if (!other) { /* nobody reads it any more, which `closed` is about to tell */
        *status = MOAI_OK;
        return NULL;
    }
    if (other->count == MAX_FRAMES) {
        link->wants_room = 1;
        one->stats.busy++;
        *status = MOAI_BUSY;
        return NULL;
    }
    struct frame *frame = &other->in[(other->first + other->count) % MAX_FRAMES];
    frame->data = malloc(bytes ? bytes : 1);
    frame->bytes = (uint32_t)bytes;
    if (!frame->data) {
        *status = MOAI_E_OUT_OF_MEMORY;
        return NULL;
    }
    other->count++;
    wake(other->owner);
    return frame;
}

static moai_status send_message(void *raw, moai_peer peer, const uint8_t *data, uint64_t bytes, moai_error *error) {
    struct interface *one = raw;
    moai_status status;
    if (bytes > MAX_MESSAGE)
        return fail(error, MOAI_E_TOO_LARGE, bytes, MAX_MESSAGE, "");
    pthread_mutex_lock(&lock);
    struct frame *frame = room(one, peer, bytes, &status);
    if (frame) {
        frame->is_batch = 0;
        memcpy(frame->data, data, bytes);
        one->stats.messages_out++;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static moai_status post(void *raw, moai_peer peer, const moai_batch *batch, const moai_fill *fill, moai_error *error) {
    struct interface *one = raw;
    moai_status status;
    if (batch->bytes > MAX_BATCH)
        return fail(error, MOAI_E_TOO_LARGE, batch->bytes, MAX_BATCH, "");
    uint8_t *lost = NULL;
    pthread_mutex_lock(&lock);
    struct frame *frame = room(one, peer, batch->bytes, &status);
    if (frame) {
        frame->is_batch = 1;
        frame->id = batch->id;
        status = fill->fill(fill->context, frame->data, batch->bytes);
        one->stats.batches_out++;
    } else if (status == MOAI_OK && (lost = malloc(batch->bytes ? batch->bytes : 1))) {
        fill->fill(fill->context, lost, batch->bytes); /* taken, and lost with the connection */
    }
    pthread_mutex_unlock(&lock);
    free(lost);
    return status;
}

/* ---- memory ---- */

static moai_status register_memory(void *raw, uint32_t index, const moai_memory *memory, uint32_t rights,
                                   moai_registration *out, moai_error *error) {
    struct interface *one = raw;
    struct registered *slot = NULL;
    if (memory->kind > MOAI_KIND_SHARED)
        return fail(error, MOAI_E_UNSUPPORTED, MOAI_OPERATION_PUT, memory->kind, "only the processor copies");
    if (rights & MOAI_RIGHT_MAP)
        rights &= ~(uint32_t)MOAI_RIGHT_MAP; /* nothing is mapped, and a key says so */
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MAX_REGISTERED; at++) {
        struct registered *entry = &one->registered[at];
        if (entry->uses && entry->index == index && entry->rights == rights &&
            entry->memory.address == memory->address && entry->memory.bytes == memory->bytes) {
            slot = entry;
            break;
        }
        if (!entry->uses && !slot)
            slot = entry;
    }
    if (!slot) {
        pthread_mutex_unlock(&lock);
        return fail(error, MOAI_E_TOO_MANY_REGISTRATIONS, MAX_REGISTERED, 0, "");
    }
    if (!slot->uses++) {
        slot->generation++;
        slot->index = index;
        slot->rights = rights;
        slot->memory = *memory;
        memory->retain(memory->handle);
    }
    *out = (uint64_t)slot->generation << 32 | (uint64_t)(slot - one->registered);
    pthread_mutex_unlock(&lock);
    return MOAI_OK;
}

static struct registered *find_registered(struct interface *one, uint64_t number) {
    uint32_t slot = (uint32_t)number;
    if (slot >= MAX_REGISTERED)
        return NULL;
    struct registered *entry = &one->registered[slot];
    return entry->uses && entry->generation == (uint32_t)(number >> 32) ? entry : NULL;
}

static moai_status deregister(void *raw, moai_registration number, moai_error *error) {
    (void)error;
    struct interface *one = raw;
    moai_status status = MOAI_OK;
    pthread_mutex_lock(&lock);
    struct registered *entry = find_registered(one, number);
    if (!entry)
        status = MOAI_E_NOT_REGISTERED;
    else if (entry->uses > 1)
        entry->uses--;
    else
        release(entry);
    pthread_mutex_unlock(&lock);
    return status;
}

/* A key is the registration's number behind a magic number; 0 elsewhere. */
static const uint8_t magic[8] = {'l', 'o', 'o', 'p', 'k', 'e', 'y', '1'};

static moai_status remote_key(void *raw, moai_peer peer, moai_registration number, uint8_t key[64], moai_error *error) {
    (void)error;
    struct interface *one = raw;
    moai_status status = MOAI_OK;
    pthread_mutex_lock(&lock);
    if (!find(one, peer)) {
        status = MOAI_E_NO_SUCH_PEER;
    } else if (!find_registered(one, number)) {
        status = MOAI_E_NOT_REGISTERED;
    } else {
        memset(key, 0, 64);
        memcpy(key, magic, sizeof magic);
        memcpy(key + 8, &number, sizeof number);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static moai_status import_key(void *raw, moai_peer peer, const uint8_t *key, uint64_t bytes, uint32_t *number,
                              moai_error *error) {
    struct interface *one = raw;
    moai_status status = MOAI_OK;
    if (bytes != 64 || memcmp(key, magic, sizeof magic))
        return fail(error, MOAI_E_KEY, 0, 0, "64 bytes that begin with loopkey1 were expected");
    pthread_mutex_lock(&lock);
    struct link *link = find(one, peer);
    if (!link) {
        status = MOAI_E_NO_SUCH_PEER;
    } else if (link->imports == MAX_IMPORTED) {
        status = MOAI_E_TOO_MANY_IMPORTS;
    } else {
        memcpy(link->imported[link->imports].key, key, 64);
        *number = link->imports++;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* Where a walk over lists stands. */
struct walk {
    const moai_pieces *list, *end;
    uint64_t offset;
    uint32_t index, within;
};

/* The rest of the piece that a walk is in; 0 at the end. */
static uint32_t rest(struct walk *walk, uint64_t *start) {
    while (walk->list < walk->end && walk->offset == walk->list->offset_count) {
        walk->list++;
        walk->offset = 0;
    }
    if (walk->list == walk->end)
        return 0;
    *start = walk->list->offsets[walk->offset] + walk->list->stride * walk->index + walk->within;
    return walk->list->bytes - walk->within;
}

static void step(struct walk *walk, uint32_t bytes) {
    walk->within += bytes;
    if (walk->within == walk->list->bytes) {
        walk->within = 0;
        if (++walk->index == walk->list->count) {
            walk->index = 0;
            walk->offset++;
        }
    }
}

/* Whether the remote lists lie in memory that its owner still has, and allows that with. */
static moai_status admit(struct link *link, const moai_pieces *remote, uint64_t count, uint32_t right,
                         moai_error *error) {
    for (uint64_t at = 0; at < count; at++) {
        const moai_pieces *list = &remote[at];
        if (list->region >= link->imports)
            return fail(error, MOAI_E_NOT_IMPORTED, list->region, 0, "");
        uint64_t number;
        memcpy(&number, link->imported[list->region].key + 8, sizeof number);
        struct registered *entry = find_registered(link->other->owner, number);
        if (!entry)
            return fail(error, MOAI_E_REFUSED, MOAI_REFUSAL_GENERATION, 0, "");
        if (!(entry->rights & right))
            return fail(error, MOAI_E_REFUSED, MOAI_REFUSAL_RIGHTS, 0, "");
        /* The host has checked that this does not overflow. */
        uint64_t reach = (list->count > 1 ? list->stride * (list->count - 1) : 0) + list->bytes;
        for (uint64_t offset = 0; offset < list->offset_count; offset++)
            if (reach > entry->memory.bytes || list->offsets[offset] > entry->memory.bytes - reach)
                return fail(error, MOAI_E_REFUSED, MOAI_REFUSAL_BOUNDS, 0, "");
    }
    return MOAI_OK;
}

static moai_status move(struct interface *one, int is_put, const moai_regions *regions, moai_peer peer,
                        const moai_pieces *local, uint64_t local_count, const moai_pieces *remote,
                        uint64_t remote_count, moai_error *error) {
    pthread_mutex_lock(&lock);
    struct link *link = find(one, peer);
    moai_status status = MOAI_OK;
    uint64_t moved = 0;
    if (!link || !link->other)
        status = MOAI_E_NO_SUCH_PEER;
    else if (link->finishing)
        status = MOAI_E_FINISHING;
    else
        status = admit(link, remote, remote_count, is_put ? MOAI_RIGHT_WRITE : MOAI_RIGHT_READ, error);
    if (status == MOAI_OK) {
        struct walk here = {local, local + local_count, 0, 0, 0}, there = {remote, remote + remote_count, 0, 0, 0};
        uint64_t from = 0, to = 0;
        for (uint32_t left; (left = rest(&here, &from)); moved += left) {
            uint32_t more = rest(&there, &to);
            left = left < more ? left : more;
            const moai_memory *ours =
                (const moai_memory *)(const void *)((const char *)regions->at + here.list->region * regions->stride);
            uint64_t number;
            memcpy(&number, link->imported[there.list->region].key + 8, sizeof number);
            struct registered *theirs = find_registered(link->other->owner, number);
            char *a = (char *)ours->address + from, *b = (char *)theirs->memory.address + to;
            memmove(is_put ? b : a, is_put ? a : b, left);
            step(&here, left);
            step(&there, left);
        }
        if (is_put) {
            one->stats.puts++;
            one->stats.put_bytes += moved;
        } else {
            one->stats.gets++;
            one->stats.got_bytes += moved;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static moai_status put(void *raw, const moai_regions *regions, moai_peer peer, const moai_pieces *local,
                       uint64_t local_count, const moai_pieces *remote, uint64_t remote_count, uint64_t token,
                       moai_error *error) {
    (void)token;
    return move(raw, 1, regions, peer, local, local_count, remote, remote_count, error);
}

static moai_status get(void *raw, const moai_regions *regions, moai_peer peer, const moai_pieces *local,
                       uint64_t local_count, const moai_pieces *remote, uint64_t remote_count, uint64_t token,
                       moai_error *error) {
    (void)token;
    return move(raw, 0, regions, peer, local, local_count, remote, remote_count, error);
}

static moai_status map(void *raw, moai_peer peer, uint32_t number, moai_memory *memory, moai_error *error) {
    (void)raw;
    (void)peer;
    (void)number;
    (void)memory;
    return fail(error, MOAI_E_UNSUPPORTED, MOAI_OPERATION_MAP, MOAI_KIND_HOST, "nothing is mapped");
}

static moai_status flush(void *raw, moai_peer peer, uint64_t token, moai_error *error) {
    (void)token;
    (void)error;
    pthread_mutex_lock(&lock);
    moai_status status = find(raw, peer) ? MOAI_OK : MOAI_E_NO_SUCH_PEER;
    pthread_mutex_unlock(&lock);
    return status;
}

static moai_status completion(void *raw, moai_completion *out) {
    (void)raw;
    (void)out;
    return MOAI_NONE; /* everything is done at once */
}

/* ---- progress ---- */

/* Puts the payload of a batch where the handler wants it. */
static moai_status land(const moai_handler *handler, moai_peer peer, const struct frame *frame, struct interface *one) {
    moai_batch batch = {frame->id, frame->bytes, 0};
    uint32_t direct = 0;
    moai_status status = handler->landing(handler->context, peer, &batch, &direct, NULL);
    if (status != MOAI_OK || !direct) {
        one->stats.staged_bytes += status == MOAI_OK ? frame->bytes : 0;
        return status != MOAI_OK ? status : handler->landed(handler->context, peer, &batch, frame->data, NULL);
    }
    for (uint32_t from = 0; from < frame->bytes;) {
        moai_piece pieces[64];
        uint64_t count = 0;
        status = handler->pieces(handler->context, peer, &batch, from, pieces, 64, &count, NULL);
        const moai_regions *regions = status == MOAI_OK ? handler->regions(handler->context) : NULL;
        if (!regions || count == 0 || count > 64)
            return MOAI_E_REJECTED;
        for (uint64_t at = 0; at < count; at++) {
            const moai_piece *piece = &pieces[at];
            if (piece->region >= regions->count || piece->bytes == 0 || piece->bytes > frame->bytes - from)
                return MOAI_E_REJECTED;
            const moai_memory *memory =
                (const moai_memory *)(const void *)((const char *)regions->at + piece->region * regions->stride);
            if (memory->kind > MOAI_KIND_SHARED || piece->offset > memory->bytes ||
                piece->bytes > memory->bytes - piece->offset)
                return MOAI_E_REJECTED;
            memcpy((char *)memory->address + piece->offset, frame->data + from, piece->bytes);
            from += piece->bytes;
        }
        one->stats.direct_pieces += count;
    }
    one->stats.direct_bytes += frame->bytes;
    return handler->landed(handler->context, peer, &batch, NULL, NULL);
}

static void close_link(struct interface *one, struct link *link, const moai_handler *handler, uint32_t reason,
                       const char *text) {
    moai_closed why = {sizeof why, reason, {0, 0}, text};
    moai_peer peer = peer_of(link);
    drop(link);
    one->stats.closed++;
    pthread_mutex_unlock(&lock);
    handler->closed(handler->context, peer, &why);
    pthread_mutex_lock(&lock);
}

/* One round over all peers, with the lock held but for the handler's calls. Returns whether there was something. */
static int progress(struct interface *one, const moai_handler *handler) {
    int busy = 0;
    for (int at = 0; at < MAX_LINKS; at++) {
        struct link *link = &one->links[at];
        if (!link->used)
            continue;
        moai_peer peer = peer_of(link);
        if (!link->announced) {
            link->announced = busy = 1;
            pthread_mutex_unlock(&lock);
            handler->connected(handler->context, peer, (uint32_t)link->incoming);
            pthread_mutex_lock(&lock);
        }
        for (int turn = 0; turn < 16 && link->count; turn++) {
            struct frame frame = link->in[link->first];
            link->first = (link->first + 1) % MAX_FRAMES;
            link->count--;
            busy = 1;
            if (link->other && link->other->wants_room)
                wake(link->other->owner);
            pthread_mutex_unlock(&lock);
            moai_status status = MOAI_OK;
            if (link->finishing) { /* nothing is delivered any more */
            } else if (frame.is_batch) {
                status = land(handler, peer, &frame, one);
                one->stats.batches_in += status == MOAI_OK;
            } else {
                status = handler->message(handler->context, peer, frame.data, frame.bytes, NULL);
                one->stats.messages_in += status == MOAI_OK;
            }
            free(frame.data);
            pthread_mutex_lock(&lock);
            if (status != MOAI_OK) {
                close_link(one, link, handler, MOAI_CLOSED_REJECTED, "the handler refuses");
                break;
            }
        }
        if (link->used && link->wants_room && link->other && link->other->count < MAX_FRAMES) {
            link->wants_room = 0;
            busy = 1;
            pthread_mutex_unlock(&lock);
            handler->writable(handler->context, peer);
            pthread_mutex_lock(&lock);
        }
        if (link->used && link->finishing && (!link->other || !link->other->count)) {
            close_link(one, link, handler, MOAI_CLOSED_BY_US, NULL);
            busy = 1;
        } else if (link->used && !link->other && !link->count) {
            close_link(one, link, handler, MOAI_CLOSED_BY_PEER, NULL);
            busy = 1;
        }
    }
    return busy;
}

static moai_status poll_once(void *raw, int64_t timeout_ns, const moai_handler *handler, moai_error *error) {
    (void)error;
    struct interface *one = raw;
    struct timespec nap = {0, 100000}; /* an example may sleep 0.1 ms at a time */
    for (int64_t slept = 0;; slept += nap.tv_nsec) {
        uint64_t events;
        if (read(one->event, &events, sizeof events) < 0) { /* nothing is new */
        }
        pthread_mutex_lock(&lock);
        int busy = progress(one, handler);
        pthread_mutex_unlock(&lock);
        if (busy || (timeout_ns >= 0 && slept >= timeout_ns))
            return MOAI_OK;
        nanosleep(&nap, NULL);
    }
}

static int32_t wait_fd(void *raw) { return ((struct interface *)raw)->event; }

static int64_t arm(void *raw) {
    struct interface *one = raw;
    int64_t limit = -1;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MAX_LINKS; at++) {
        struct link *link = &one->links[at];
        if (link->used && (link->count || !link->announced || !link->other))
            limit = 0;
        else if (link->used && link->finishing && limit < 0)
            limit = 1000000; /* nobody wakes us when the other side has read all */
    }
    pthread_mutex_unlock(&lock);
    return limit;
}

static void close_peer(void *raw, moai_peer peer) {
    struct interface *one = raw;
    pthread_mutex_lock(&lock);
    struct link *link = find(one, peer);
    if (link) {
        drop(link);
        one->stats.closed++;
    }
    pthread_mutex_unlock(&lock);
}

static void finish(void *raw, moai_peer peer) {
    struct interface *one = raw;
    pthread_mutex_lock(&lock);
    struct link *link = find(one, peer);
    if (link) {
        link->finishing = 1;
        wake(one);
    }
    pthread_mutex_unlock(&lock);
}

static moai_status path(void *raw, moai_peer peer, moai_path *out) {
    struct interface *one = raw;
    char text[32];
    pthread_mutex_lock(&lock);
    struct link *link = find(one, peer);
    int number = link && link->other ? link->other->owner->number : 0;
    pthread_mutex_unlock(&lock);
    if (!link)
        return MOAI_NONE;
    snprintf(text, sizeof text, "loop:%d", number);
    say(&out->peer, text);
    say(&out->why, "copies within this process");
    return MOAI_OK;
}

static moai_status identity(void *raw, moai_peer peer, uint32_t *identity, moai_text *names) {
    (void)raw;
    (void)peer;
    (void)names;
    *identity = MOAI_IDENTITY_NONE;
    return MOAI_OK;
}

static void stats(void *raw, moai_stats *out) {
    struct interface *one = raw;
    uint32_t size = out->size < sizeof *out ? out->size : (uint32_t)sizeof *out;
    pthread_mutex_lock(&lock);
    memcpy((char *)out + 8, (char *)&one->stats + 8, size - 8);
    pthread_mutex_unlock(&lock);
}

static const moai_transport loop_transport = {
    sizeof loop_transport, 0, "loop", NULL, probe, obstacle, open_interface, destroy, addresses, connect_to,
    send_message, post, register_memory, deregister, remote_key, import_key, put, get, map, flush, completion,
    poll_once, wait_fd, arm, close_peer, finish, path, identity, stats};

static const moai_transport *const transports[] = {&loop_transport};

static const moai_plugin plugin = {sizeof plugin, MOAI_PROVIDER_MAJOR, MOAI_PROVIDER_MINOR, "loop", "1.0",
                                   transports, 1, NULL, 0};

const moai_plugin *moai_provider_v1(const moai_host *host) {
    host->log(MOAI_LOG_DEBUG, "the loop is here");
    return &plugin;
}
