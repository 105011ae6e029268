/* What both examples know: the model's shape, the values that a prefill would have computed, and how failures are told. */
#ifndef CACHE_H
#define CACHE_H

#include <moai_fabric.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, HEADS = 4, DIM = 64, TOKENS = 100 };

#define SECOND UINT64_C(1000000000)

/* A whole number below 128, which bf16 and f32 both hold exactly. */
static inline float value_of(uint32_t layer, uint32_t part, uint32_t token, uint32_t head, uint32_t dim) {
    return (float)((layer * 31 + part * 57 + token * 7 + head * 13 + dim) % 128) - 64.0f;
}

/* Ends the program with the library's own sentence if a call failed. */
#define CHECK(call)                                                                         \
    do {                                                                                    \
        moai_status status_ = (call);                                                       \
        if (status_ != MOAI_OK) {                                                           \
            fprintf(stderr, "%s: %s: %s\n", #call, moai_status_name(status_),               \
                    moai_last_error_message());                                             \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

#endif
