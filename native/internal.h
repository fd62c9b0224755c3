/* What the files of the native decoder share.
 *
 *   batch.c      threads, files, statuses: the interface
 *   baseline.c   sequential Huffman JPEGs (nearly all there are): decodes only the blocks of a crop
 *   huffman.c    code tables
 *   kernels.inc  arithmetic on pixels, compiled for each kind of processor
 *   turbo.c      all other JPEGs, by libjpeg-turbo
 *   restart.c    writes restart-indexed JPEGs, by libjpeg-turbo
 */
#ifndef MN_INTERNAL_H
#define MN_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mobilenext.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ---- Huffman codes (T.81, annexes C and F) ---- */

#define FAST_BITS 10
#define SKIP_BITS 11
#define END 80 /* zero coefficients that an end-of-block stands for: more than there can be */

/* What the next FAST_BITS bits begin with. */
struct coefficient {
    uint8_t drop;   /* bits of code and value; 0: see mn_huffman_find */
    uint8_t length; /* bits of the code */
    uint8_t shift;  /* 64 less the bits of the value; 0 if it has none */
    uint8_t places; /* zero coefficients before it, and itself */
    int32_t bias;   /* is added to values that begin with a 0 bit */
};

/* `skip`, to count coefficients without looking at them: all symbols that the next SKIP_BITS bits
 * have room for; 0 if not even one.
 *   bits 0-5    bits to drop for all of them
 *   bits 8-15   coefficients of all of them
 *   bits 16-21  bits to drop for the first one
 *   bits 24-30  coefficients of the first one
 *   bit 31      the last one is an end-of-block, which is not among the coefficients */
struct huffman {
    struct coefficient fast[1 << FAST_BITS];
    uint32_t skip[1 << SKIP_BITS];
    uint32_t limit[18];  /* codes of l bits, moved up to 16 bits, are below limit[l] */
    int32_t first[17];   /* place of the first value of l bits, less its code */
    uint8_t values[256];
    int32_t count;
};

/* counts: codes of 1..16 bits; values: their symbols.  0, or -1 if this is no code. */
int mn_huffman_build(struct huffman *table, const uint8_t *counts, const uint8_t *values, int is_dc);

/* What the next bits, the first one on top, begin with if the table does not say; drop is 0 if there
 * is no such code. */
struct coefficient mn_huffman_find(const struct huffman *table, uint64_t bits, int is_dc);

/* ---- scratch memory of a thread ---- */

struct buffer {
    uint8_t *data;
    size_t capacity;
};

/* At least `size` bytes aligned to 64, contents undefined; NULL if there is no memory. */
uint8_t *mn_reserve(struct buffer *buffer, size_t size);

struct region {
    int left, top, right, bottom; /* right and bottom are outside */
};

/* RGBX pixels of a part of an image. */
struct pixels {
    const uint8_t *data; /* of the pixel (left, top) */
    ptrdiff_t stride;
    int left, top;
};

struct axis {
    int *start;         /* first source pixel of each output */
    int16_t *weights;   /* for each output, `taps` of them; see kernels.inc for their order */
    int taps;           /* the same for all outputs, a multiple of 4 across and 2 down */
    int low, high;      /* source pixels that are used: low..high-1 */
};

struct pending {
    uint8_t *destination;
    ptrdiff_t stride;
};

#define BLOCKS 32
#define BLOCK 72 /* a place for what has none, behind the 64 coefficients */

struct scratch {
    struct buffer planes[3], rgbx, row, across, down, rows, scan;
    struct huffman dc[4], ac[4];
    int16_t blocks[BLOCKS + 1][BLOCK] __attribute__((aligned(64)));
    struct pending pending[BLOCKS + 1];
    int num_pending;
    int entropy_only;
    void *turbo; /* what turbo.c needs, made when first needed */
};

/* Give back what a huge image needed. */
void mn_shrink(struct scratch *scratch);

/* ---- decoders ---- */

struct header {
    int width, height;
    int64_t scan; /* where the first scan's data begins; 0 if the header ends before */
    int baseline; /* of the kind that baseline.c decodes */
    int huffman;  /* sequential or progressive, without arithmetic coding */
};

/* Status.  Reads up to the first scan. */
int mn_read_header(const uint8_t *data, int64_t length, struct header *header);

/* Status; MN_UNSUPPORTED asks for mn_turbo_decode.  With out == NULL: only entropy decoding. */
int mn_baseline_decode(struct scratch *scratch, const struct mn_item *item,
                       const struct region *region, struct pixels *out);
int mn_turbo_decode(struct scratch *scratch, const struct mn_item *item,
                    const struct region *region, struct pixels *out);
void mn_turbo_free(struct scratch *scratch);

/* ---- arithmetic ---- */

struct kernels {
    const char *name;
    /* Inverse DCT of dequantised blocks into 8 x 8 bytes each, as libjpeg's "islow". */
    void (*idct)(int16_t (*blocks)[BLOCK], const struct pending *pending, int count);
    /* Rows of Y, Cb, Cr to RGBX. */
    void (*ycc)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *rgbx, int count);
    void (*grey)(const uint8_t *y, uint8_t *rgbx, int count);
    void (*rgb)(const uint8_t *rgb, uint8_t *rgbx, int count);
    /* libjpeg's "fancy" upsampling of one row.  `count` samples, of which [from, to) are needed,
     * give 2 * (to - from) bytes; sums_*: of two rows, 3 * near + far. */
    void (*double_row)(const uint8_t *in, uint8_t *out, int count, int from, int to);
    void (*double_both)(const uint8_t *near, const uint8_t *far, uint8_t *out, int count, int from,
                        int to);
    void (*double_down)(const uint8_t *near, const uint8_t *far, uint8_t *out, int count, int bias);
    /* One row as a weighted sum of rows, then pixels of it. */
    void (*down)(const uint8_t *source, ptrdiff_t stride, const int16_t *weights, int taps,
                 uint8_t *out, int bytes);
    void (*across)(const uint8_t *row, const int *start, const int16_t *weights, int taps,
                   uint8_t *out, int width);
};

extern const struct kernels mn_kernels_portable;
#if defined(__x86_64__) || defined(__i386__)
extern const struct kernels mn_kernels_avx2;
#endif
extern const struct kernels *mn_kernels;

#define PRECISION 14 /* bits behind the point of filter weights */
#define SLACK 128    /* bytes behind a row that kernels may read or write */

#endif
