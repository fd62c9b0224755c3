/* Decodes crops of JPEG images into batches of uint8 pixels.  The interface that Python calls.
 *
 * A batch takes two calls, mn_load and mn_decode, since the crop of a picture depends on its size.
 * Both work on a pool of threads, take no lock of the caller's, and never end the process: what is
 * wrong with an image is its status.
 */
#ifndef MOBILENEXT_H
#define MOBILENEXT_H

#include <stdint.h>

#define MN_API __attribute__((visibility("default")))
#define MN_ABI 2 /* compared by Python; one more with every change of a struct or a meaning */

enum mn_status {
    MN_OK = 0,
    MN_NOT_JPEG = 1,    /* another format, or none */
    MN_UNSUPPORTED = 2, /* a JPEG of a kind that this build does not decode */
    MN_CORRUPT = 3,     /* a JPEG that breaks the format's rules */
    MN_TRUNCATED = 4,   /* ends before its end marker */
    MN_TOO_LARGE = 5,   /* more pixels than allowed */
    MN_UNREADABLE = 6,  /* the file can't be read */
    MN_MISSING = 7,     /* there is no such file */
    MN_CHECKSUM = 8,    /* bytes differ from those that were written */
    MN_NO_MEMORY = 9,
    MN_EMPTY = 10,      /* no bytes */
};

enum mn_filter { MN_BILINEAR = 0, MN_BICUBIC = 1 };

/* One encoded image; mirrored by ITEM in mobilenext/data/encoded.py.
 *
 * Its bytes are given (data, length), or mn_load reads them: from the file called `path`, all of it
 * if length is 0; or, where there is no path either, from the open file `file`.  If part of a file
 * is read, the table of segments, where there is one, lies right before the image. */
struct mn_item {
    const char *path;
    const uint8_t *data;
    int64_t offset;            /* of the image in the file */
    int64_t length;            /* of the image */
    const uint16_t *segments;  /* lengths of the restart segments with their markers, or NULL */
    uint32_t num_segments;
    uint32_t checksum;         /* CRC-32 of the image */
    uint32_t segments_checksum; /* CRC-32 of the table */
    int32_t file;
    int32_t verify;            /* 1: compare the checksums; 0 once they were found equal */
    int32_t status;
    int32_t width, height;     /* set by mn_load */
    void *owned;               /* freed by mn_release */
};

/* What becomes of an image; mirrored by VIEW in mobilenext/data/encoded.py.
 *
 * The box (x0, y0, x1, y1), in pixels of the image, becomes out_width x out_height pixels.  Filter
 * taps do not leave [left, right) x [top, bottom). */
struct mn_view {
    double x0, y0, x1, y1;
    int32_t left, top, right, bottom;
    int32_t filter;
    int32_t flip; /* 1: mirror left and right */
};

struct mn_pool;

MN_API int mn_abi(void);
/* "avx2", "neon" or "portable"; mn_use_path(name) chooses one that this processor has, for tests. */
MN_API const char *mn_path(void);
MN_API int mn_use_path(const char *name);
/* libjpeg-turbo's version as 1000000 * major + 1000 * minor + patch, or 0 if built without. */
MN_API int mn_libjpeg(void);

MN_API struct mn_pool *mn_pool_new(int threads);
MN_API void mn_pool_free(struct mn_pool *pool);

/* Read files and headers: status, width and height of each item. */
MN_API void mn_load(struct mn_pool *pool, struct mn_item *items, int64_t count, int64_t max_pixels);
/* Decode items whose status is 0 into out (count, out_height, out_width, 3); may set statuses. */
MN_API void mn_decode(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
                      int64_t count, int out_width, int out_height, uint8_t *out);
/* Entropy decoding alone of what mn_decode would need: what no decoder of these bytes can beat. */
MN_API void mn_entropy(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
                       int64_t count);
/* The same from RGB pixels (height, width, 3) in memory: item.data, length, width, height are given. */
MN_API void mn_resize(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
                      int64_t count, int out_width, int out_height, uint8_t *out);
MN_API void mn_release(struct mn_item *items, int64_t count);

/* The image with the same coefficients, entropy-coded anew with a restart every `interval` MCUs, an
 * interval of low..high that divides the MCUs of a row if there is one.  Status; on MN_OK *out
 * (freed by mn_free) has *out_length bytes, and *segments (freed by mn_free) *num_segments lengths.
 */
MN_API int mn_restart_index(const uint8_t *data, int64_t length, int low, int high,
                            uint8_t **out, int64_t *out_length,
                            uint16_t **segments, int64_t *num_segments);
MN_API void mn_free(void *memory);
MN_API uint32_t mn_crc32(const uint8_t *data, int64_t length);

#endif
