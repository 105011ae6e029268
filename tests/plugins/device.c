/*
 * A domain in plain C: memory of a "device" that the processor does not load from, by the rules of moai_provider.h.
 *
 * Its memory is a sealed memfd, mapped for this file alone; what the host is told as its address is a reservation without
 * access. A stream does its work at once and tells of it when asked.
 */
#include "moai_provider.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH 64

struct memory {
    int fd, references, writable;
    uint64_t bytes;
    char *own;  /* how this file reaches it */
    void *host; /* what the host believes to be its address */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

extern const moai_domain device_domain;

static moai_status fail(moai_error *error, const char *text) {
    if (error) {
        error->text.length = strlen(text);
        uint64_t bytes = error->text.length < error->text.capacity ? error->text.length : error->text.capacity;
        memcpy(error->text.data, text, bytes);
    }
    return MOAI_E_FAILED;
}

static void retain(void *handle) {
    pthread_mutex_lock(&lock);
    ((struct memory *)handle)->references++;
    pthread_mutex_unlock(&lock);
}

static void release(void *handle) {
    struct memory *one = handle;
    pthread_mutex_lock(&lock);
    int left = --one->references;
    pthread_mutex_unlock(&lock);
    if (left)
        return;
    uint64_t room = one->bytes ? one->bytes : 1;
    munmap(one->own, room);
    munmap(one->host, room);
    close(one->fd);
    free(one);
}

/* Describes a file that is sealed against shrinking; takes it over. */
static moai_status give(int fd, uint64_t offset, uint64_t bytes, int writable, moai_memory *out, moai_error *error) {
    struct memory *one = calloc(1, sizeof *one);
    uint64_t room = bytes ? bytes : 1;
    if (one) {
        one->own = mmap(NULL, room, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)offset);
        one->host = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (!one || one->own == MAP_FAILED || one->host == MAP_FAILED) {
        free(one);
        close(fd);
        return MOAI_E_OUT_OF_MEMORY;
    }
    (void)error;
    one->fd = fd;
    one->references = 1;
    one->writable = writable;
    one->bytes = bytes;
    moai_memory memory = {sizeof memory, MOAI_KIND_SIM, writable ? MOAI_MEMORY_WRITABLE : 0, fd, offset, bytes,
                          one->host, one, retain, release, &device_domain};
    *out = memory;
    return MOAI_OK;
}

static moai_status allocate(void *context, uint64_t bytes, moai_memory *memory, moai_error *error) {
    (void)context;
    if (bytes > (uint64_t)INT64_MAX)
        return MOAI_E_OUT_OF_MEMORY;
    int fd = memfd_create("device", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return fail(error, "memfd_create failed");
    if (ftruncate(fd, (off_t)(bytes ? bytes : 1)) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
        close(fd);
        return errno == EFBIG || errno == ENOMEM || errno == EINVAL ? MOAI_E_OUT_OF_MEMORY
                                                                    : fail(error, "ftruncate failed");
    }
    return give(fd, 0, bytes, 1, memory, error);
}

static moai_status import(void *context, int32_t fd, uint64_t offset, uint64_t bytes, uint32_t writable,
                          moai_memory *memory, moai_error *error) {
    (void)context;
    struct stat stat;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &stat))
        return fail(error, "only a memfd that is sealed against shrinking can be imported");
    if (offset % 4096 || offset > (uint64_t)stat.st_size || bytes > (uint64_t)stat.st_size - offset)
        return fail(error, "the file does not reach so far, or the offset is no page's");
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? fail(error, "no descriptor is left") : give(fd, offset, bytes, writable != 0, memory, error);
}

struct stream {
    int event;
    moai_finished finished[DEPTH];
    unsigned first, count;
};

static moai_status open_stream(void *context, void **out, moai_error *error) {
    (void)context;
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return MOAI_E_OUT_OF_MEMORY;
    stream->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (stream->event < 0) {
        free(stream);
        return fail(error, "eventfd failed");
    }
    *out = stream;
    return MOAI_OK;
}

static void close_stream(void *raw) {
    struct stream *stream = raw;
    close(stream->event);
    free(stream);
}

static moai_status submit(void *raw, const moai_job *job, moai_error *error) {
    (void)error;
    struct stream *stream = raw;
    if (stream->count == DEPTH)
        return MOAI_BUSY;
    moai_finished finished = {job->name, MOAI_OK, 0};
    uint8_t *buffer = job->buffer;
    for (uint64_t at = 0; at < job->span_count; at++) {
        const moai_span *span = &job->spans[at];
        struct memory *memory = span->handle;
        char *bytes = memory->own + span->offset;
        if (job->work == MOAI_WORK_TO_HOST)
            memcpy(buffer, bytes, span->bytes);
        else if (memory->writable)
            memcpy(bytes, buffer, span->bytes);
        else
            finished.status = MOAI_E_FAILED;
        buffer += span->bytes;
    }
    if (!stream->count) {
        uint64_t one = 1;
        if (write(stream->event, &one, sizeof one) < 0) { /* it is readable already */
        }
    }
    stream->finished[(stream->first + stream->count++) % DEPTH] = finished;
    return MOAI_OK;
}

static moai_status completed(void *raw, moai_finished *out) {
    struct stream *stream = raw;
    if (!stream->count)
        return MOAI_NONE;
    *out = stream->finished[stream->first];
    stream->first = (stream->first + 1) % DEPTH;
    if (!--stream->count) {
        uint64_t events;
        if (read(stream->event, &events, sizeof events) < 0) { /* it was not readable */
        }
    }
    return MOAI_OK;
}

static int32_t stream_fd(void *raw) { return ((struct stream *)raw)->event; }

const moai_domain device_domain = {sizeof device_domain, MOAI_KIND_SIM, "device", NULL, NULL, NULL,
                                   allocate, import, open_stream, close_stream, submit, completed, stream_fd};

static const moai_domain *const domains[] = {&device_domain};

static const moai_plugin plugin = {sizeof plugin, MOAI_PROVIDER_MAJOR, MOAI_PROVIDER_MINOR, "device", "1.0",
                                   NULL, 0, domains, 1};

const moai_plugin *moai_provider_v1(const moai_host *host) {
    (void)host;
    return &plugin;
}
