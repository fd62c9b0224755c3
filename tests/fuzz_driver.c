/* Feeds damaged JPEGs to the native decoder; made and run by tests/fuzz_native.py.
 *
 *   fuzz_driver fuzz SEED SECONDS FIRST FILE...   damaged files; FIRST: the iteration to begin with
 *   fuzz_driver threads SEED SECONDS 0 FILE...    sound files, several threads at one pool
 *   fuzz_driver sums SEED 0 0 FILE...             a checksum of each file's pixels
 *
 * Every iteration depends on SEED and its number alone.  Buffers have exactly the bytes that they
 * need, so that sanitizers see each access beside them.
 */
#include "../native/mobilenext.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef HAVE_LIBJPEG
#include <jpeglib.h>
#endif

#define BATCH 12
#define LONGEST 30 /* seconds that a batch may take, with sanitizers and on a busy machine */

struct bytes {
    uint8_t *data;
    int64_t length;
};

static struct bytes *seeds;
static int num_seeds;
static long iteration;
static struct {
    long images, good, refused, compared, absurd, indexed, tables, stored, resized;
} counts;

static uint64_t state;

static uint32_t random32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static int64_t below(int64_t n) { return n > 0 ? (int64_t)(random32() % (uint64_t)n) : 0; }

static int one_in(int n) { return below(n) == 0; }

static double fraction(void) { return (double)random32() / 4294967296.0; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *must(void *memory)
{
    if (!memory) {
        fprintf(stderr, "no memory for the driver itself\n");
        exit(2);
    }
    return memory;
}

/* ---- damage ---- */

/* Where the n-th marker is whose second byte is in low..high; -1: nowhere. */
static int64_t find_marker(struct bytes b, int low, int high)
{
    int64_t found = -1, seen = 0;
    for (int64_t i = 0; i + 1 < b.length; i++)
        if (b.data[i] == 0xFF && b.data[i + 1] >= low && b.data[i + 1] <= high && b.data[i + 1])
            if (one_in((int)++seen))
                found = i;
    return found;
}

static void set(struct bytes b, int64_t at, int value)
{
    if (at >= 0 && at < b.length)
        b.data[at] = (uint8_t)value;
}

static void set16(struct bytes b, int64_t at, int value)
{
    set(b, at, value >> 8);
    set(b, at + 1, value & 255);
}

static int hostile16(void)
{
    static const int values[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 64, 255, 256, 2047, 2048,
                                 4096, 8191, 32767, 32768, 65534, 65535};
    return one_in(3) ? (int)below(65536) : values[below(sizeof values / sizeof *values)];
}

/* Put `length` bytes in place of `removed` ones. */
static void replace(struct bytes *b, int64_t at, int64_t removed, const uint8_t *data, int64_t length)
{
    int64_t size = b->length - removed + length;
    uint8_t *fresh = must(malloc((size_t)size + 1));
    memcpy(fresh, b->data, (size_t)at);
    if (length)
        memcpy(fresh + at, data, (size_t)length);
    memcpy(fresh + at + length, b->data + at + removed, (size_t)(b->length - at - removed));
    free(b->data);
    *b = (struct bytes){fresh, size};
}

static void damage(struct bytes *b)
{
    int64_t scan = find_marker(*b, 0xDA, 0xDA), at;
    if (b->length < 8)
        return;
    if (scan < 2)
        scan = b->length;
    switch (below(17)) {
    case 0: /* cut off */
        at = below(b->length);
        replace(b, at, b->length - at, NULL, 0);
        break;
    case 1: /* bytes anywhere */
        for (int64_t n = 1 + below(8); n > 0; n--)
            set(*b, below(b->length), (int)below(256));
        break;
    case 2: /* bits of the header */
        for (int64_t n = 1 + below(4); n > 0; n--)
            b->data[below(scan)] ^= (uint8_t)(1 << below(8));
        break;
    case 3: /* bits of the scan */
        for (int64_t n = 1 + below(4); n > 0 && scan < b->length; n--)
            b->data[scan + below(b->length - scan)] ^= (uint8_t)(1 << below(8));
        break;
    case 4: /* another marker */
        at = find_marker(*b, 1, 0xFE);
        set(*b, at < 0 ? -1 : at + 1, one_in(2) ? 0xC0 + (int)below(64) : (int)below(256));
        break;
    case 5: /* another size of a segment */
        at = find_marker(*b, 0xC0, 0xFE);
        if (at >= 0)
            set16(*b, at + 2, hostile16());
        break;
    case 6: /* the frame's size */
        at = find_marker(*b, 0xC0, 0xC2);
        if (at >= 0)
            set16(*b, at + 5 + 2 * below(2), one_in(2) ? hostile16() : 1 + (int)below(600));
        break;
    case 7: /* the frame's components: number, ids, sampling factors, tables */
        at = find_marker(*b, 0xC0, 0xC2);
        if (at >= 0)
            set(*b, at + 9 + below(10),
                one_in(2) ? (int)below(256) : 17 * (1 + (int)below(2)) + (int)below(2));
        break;
    case 8: /* the kind of the frame */
        at = find_marker(*b, 0xC0, 0xC2);
        set(*b, at < 0 ? -1 : at + 1, 0xC0 + (int)below(16));
        break;
    case 9: /* code tables */
        at = find_marker(*b, 0xC4, 0xC4);
        for (int64_t n = 1 + below(3); n > 0 && at >= 0; n--)
            set(*b, at + 4 + below(one_in(2) ? 17 : 60),
                one_in(2) ? (int)below(256) : (int)below(8));
        break;
    case 10: /* quantisation */
        at = find_marker(*b, 0xDB, 0xDB);
        if (at >= 0)
            set(*b, at + 4 + below(65), (int)below(256));
        break;
    case 11: { /* a restart interval, there or not */
        uint8_t dri[6] = {0xFF, 0xDD, 0, 4, (uint8_t)(one_in(2) ? below(256) : 0),
                          (uint8_t)below(16)};
        at = find_marker(*b, 0xDD, 0xDD);
        if (at >= 0 && at < scan)
            set16(*b, at + 4, hostile16());
        else if (scan < b->length)
            replace(b, scan, 0, dri, 6);
        break;
    }
    case 12: { /* restart markers that come unasked, or with another number */
        uint8_t mark[2] = {0xFF, (uint8_t)(0xD0 + below(8))};
        at = find_marker(*b, 0xD0, 0xD7);
        if (at >= 0 && one_in(2))
            set(*b, at + 1, mark[1]);
        else if (scan < b->length)
            replace(b, scan + below(b->length - scan), 0, mark, 2);
        break;
    }
    case 13: { /* two files */
        const struct bytes *other = &seeds[below(num_seeds)];
        int64_t from = below(other->length), to = below(b->length);
        replace(b, to, b->length - to, other->data + from, other->length - from);
        break;
    }
    case 14: /* bytes that are missing */
        at = below(b->length);
        replace(b, at, below(b->length - at < 40 ? b->length - at : 40), NULL, 0);
        break;
    case 15: { /* bytes that come twice */
        uint8_t piece[64];
        int64_t size = 1 + below(b->length < 64 ? b->length : 64);
        memcpy(piece, b->data + below(b->length - size + 1), (size_t)size);
        replace(b, below(b->length), 0, piece, size);
        break;
    }
    default: /* the scan's header */
        if (scan < b->length)
            set(*b, scan + 4 + below(10), one_in(2) ? (int)below(256) : (int)below(4));
    }
}

static struct bytes exact(struct bytes b)
{
    struct bytes copy = {must(malloc(b.length ? (size_t)b.length : 1)), b.length};
    memcpy(copy.data, b.data, (size_t)b.length);
    return copy;
}

static struct bytes damaged(void)
{
    struct bytes b = exact(seeds[below(num_seeds)]);
    for (int64_t n = below(4); n > 0; n--)
        damage(&b);
    if (!one_in(4)) { /* an end marker, or the decoder would look no further */
        static const uint8_t end[2] = {0xFF, 0xD9};
        replace(&b, b.length, 0, end, 2);
    }
    struct bytes copy = exact(b); /* without room behind it */
    free(b.data);
    return copy;
}

/* Segment lengths: made up, or the right ones with an error. */
static uint16_t *table_for(struct mn_item *item, const uint16_t *right, int64_t num_right)
{
    int64_t count = right && !one_in(6) ? num_right : 1 + below(200);
    if (right && one_in(6))
        count = num_right - 1 + below(3);
    count = count < 1 ? 1 : count;
    uint16_t *table = must(malloc((size_t)count * sizeof *table));
    int high = one_in(2) ? 65536 : 400;
    for (int64_t i = 0; i < count; i++)
        table[i] = right && i < num_right ? right[i] : (uint16_t)below(high);
    for (int64_t n = below(4); right && n > 0; n--)
        table[below(count)] = (uint16_t)(one_in(2) ? below(high) : table[0] + below(5) - 2);
    item->segments = table;
    item->num_segments = (uint32_t)count;
    return table;
}

/* All seeds, one after the other, as a shard has them. */
static FILE *shard;
static int64_t shard_bytes;

static void write_shard(void)
{
    shard = must(tmpfile());
    for (int i = 0; i < num_seeds; i++) {
        fwrite(seeds[i].data, 1, (size_t)seeds[i].length, shard);
        shard_bytes += seeds[i].length;
    }
    if (fflush(shard)) {
        fprintf(stderr, "no room for the driver's own file\n");
        exit(2);
    }
}

/* A part of the shard: an image, perhaps with a table before it, or a place that can't be. */
static void place_in_shard(struct mn_item *item)
{
    int chosen = (int)below(num_seeds);
    item->file = fileno(shard);
    item->length = seeds[chosen].length;
    for (int i = 0; i < chosen; i++)
        item->offset += seeds[i].length;
    if (one_in(3))
        item->num_segments = one_in(8) ? random32() : (uint32_t)below(200);
    if (one_in(4))
        item->length += below(2000) - 1000;
    if (one_in(4))
        item->offset += one_in(2) ? below(200) - 100 : below(2 * shard_bytes);
    if (one_in(30))
        item->offset = (int64_t)((uint64_t)random32() << 32 | random32());
    if (one_in(30))
        item->length = (int64_t)((uint64_t)random32() << 32 | random32());
    item->verify = one_in(10);
}

/* ---- what is seen ---- */

/* Somewhere beside an edge of the limits, within or beyond them: by a hair or by far. */
static void any_span(double *from, double *to, int low, int high)
{
    static const double scales[] = {0.01, 1, 4, 30, 1e3, 5e5};
    int n = (int)(sizeof scales / sizeof *scales);
    *from = (one_in(2) ? low : high) + (2 * fraction() - 1) * scales[below(n)];
    *to = *from + fraction() * scales[below(n)];
}

static struct mn_view any_view(int width, int height)
{
    struct mn_view v = {.filter = (int)below(2), .flip = (int)below(2)};
    v.left = (int)below(width);
    v.top = (int)below(height);
    v.right = v.left + 1 + (int)below(width - v.left);
    v.bottom = v.top + 1 + (int)below(height - v.top);
    v.x0 = v.left;
    v.y0 = v.top;
    v.x1 = v.right;
    v.y1 = v.bottom;
    if (one_in(4)) { /* between the pixels, or outside of the limits */
        v.x0 += (double)below(1000) / 50 - 10;
        v.x1 += (double)below(1000) / 50;
        v.y0 += (double)below(1000) / 50 - 10;
        v.y1 += (double)below(1000) / 50;
    }
    if (one_in(4)) {
        any_span(&v.x0, &v.x1, v.left, v.right);
        any_span(&v.y0, &v.y1, v.top, v.bottom);
    }
    if (one_in(50))
        v.right = (int)random32();
    if (one_in(50))
        v.y1 = one_in(2) ? -1e300 : 1e300;
    return v;
}

static struct mn_view crop_view(int width, int height, int w, int h)
{
    struct mn_view v = {0};
    v.left = (int)below(width - w + 1);
    v.top = (int)below(height - h + 1);
    v.right = v.left + w;
    v.bottom = v.top + h;
    v.x0 = v.left;
    v.y0 = v.top;
    v.x1 = v.right;
    v.y1 = v.bottom;
    return v;
}

/* ---- libjpeg's opinion ---- */

#ifdef HAVE_LIBJPEG
static jmp_buf escape;
static int warned;

static void on_error(j_common_ptr info)
{
    (void)info;
    longjmp(escape, 1);
}

static void on_message(j_common_ptr info, int level)
{
    (void)info;
    warned |= level < 0;
}

/* RGB pixels, or NULL if libjpeg finds something wrong with the file. */
static uint8_t *by_libjpeg(const uint8_t *data, int64_t length, int width, int height)
{
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    uint8_t *volatile pixels = NULL;
    warned = 0;
    info.err = jpeg_std_error(&errors);
    errors.error_exit = on_error;
    errors.emit_message = on_message;
    if (setjmp(escape)) {
        jpeg_destroy_decompress(&info);
        free(pixels);
        return NULL;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, (unsigned long)length);
    jpeg_read_header(&info, TRUE);
    if (info.num_components == 4 || info.num_components == 2)
        on_error((j_common_ptr)&info);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    if ((int)info.output_width != width || (int)info.output_height != height || warned)
        on_error((j_common_ptr)&info);
    pixels = must(malloc((size_t)width * (size_t)height * 3));
    while (info.output_scanline < info.output_height && !warned) {
        JSAMPROW row = pixels + (size_t)info.output_scanline * (size_t)width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    if (warned)
        on_error((j_common_ptr)&info);
    jpeg_finish_decompress(&info);
    if (warned)
        on_error((j_common_ptr)&info);
    jpeg_destroy_decompress(&info);
    return pixels;
}
/* Whether coefficients are so large that 16 bits may not hold what the inverse DCT makes of them: no
 * picture's are, and there libjpeg's own code for different processors differs too. */
static int is_absurd(const uint8_t *data, int64_t length)
{
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    volatile int found = 0;
    info.err = jpeg_std_error(&errors);
    errors.error_exit = on_error;
    errors.emit_message = on_message;
    if (setjmp(escape)) {
        jpeg_destroy_decompress(&info);
        return found;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, (unsigned long)length);
    jpeg_read_header(&info, TRUE);
    jvirt_barray_ptr *all = jpeg_read_coefficients(&info);
    for (int c = 0; c < info.num_components; c++) {
        jpeg_component_info *part = &info.comp_info[c];
        for (JDIMENSION y = 0; y < part->height_in_blocks; y++) {
            JBLOCKARRAY row =
                info.mem->access_virt_barray((j_common_ptr)&info, all[c], y, 1, FALSE);
            for (JDIMENSION x = 0; x < part->width_in_blocks; x++) {
                long sum = 0;
                for (int i = 0; i < 64; i++)
                    sum += labs((long)row[0][x][i] * part->quant_table->quantval[i]);
                found |= sum > 5800;
            }
        }
    }
    jpeg_destroy_decompress(&info);
    return found;
}
#else
static int is_absurd(const uint8_t *data, int64_t length)
{
    (void)data, (void)length;
    return 0;
}

static uint8_t *by_libjpeg(const uint8_t *data, int64_t length, int width, int height)
{
    (void)data, (void)length, (void)width, (void)height;
    return NULL;
}
#endif

static void keep(const char *name, const uint8_t *data, int64_t length)
{
    FILE *file = fopen(name, "wb");
    if (file) {
        fwrite(data, 1, (size_t)length, file);
        fclose(file);
    }
}

static int compare(const struct mn_item *item, const struct mn_view *view, const uint8_t *out,
                   int width, int height)
{
    if ((int64_t)item->width * item->height > 1000000)
        return 0;
    uint8_t *expected = by_libjpeg(item->data, item->length, item->width, item->height);
    if (!expected)
        return 0;
    counts.compared++;
    for (int y = 0; y < height; y++) {
        const uint8_t *row =
            expected + ((size_t)(view->top + y) * (size_t)item->width + (size_t)view->left) * 3;
        if (memcmp(row, out + (size_t)y * (size_t)width * 3, (size_t)width * 3)) {
            if (is_absurd(item->data, item->length)) {
                counts.absurd++;
                break;
            }
            fprintf(stderr,
                    "iteration %ld: pixels of row %d differ from libjpeg's: %dx%d at %d,%d of "
                    "%dx%d, segments %u; see differs.jpg, %lld bytes\n",
                    iteration, y, width, height, view->left, view->top, item->width, item->height,
                    item->segments ? item->num_segments : 0, (long long)item->length);
            keep("differs.jpg", item->data, item->length);
            if (item->segments)
                keep("differs.segments", (const uint8_t *)item->segments,
                     2 * (int64_t)item->num_segments);
            free(expected);
            return 1;
        }
    }
    free(expected);
    return 0;
}

/* ---- passes ---- */

static int one_batch(struct mn_pool *pool)
{
    struct mn_item items[BATCH] = {{0}};
    struct mn_view views[BATCH];
    struct bytes files[BATCH];
    uint16_t *tables[BATCH] = {NULL};
    char is_crop[BATCH];
    int wrong = 0, width = 1 + (int)below(48), height = 1 + (int)below(48);
    size_t size = (size_t)width * (size_t)height * 3;
    uint8_t *out = must(malloc(BATCH * size));

    for (int i = 0; i < BATCH; i++) {
        files[i] = damaged();
        uint16_t *segments = NULL;
        int64_t num_segments = 0, length = 0;
        uint8_t *indexed = NULL;
        if (one_in(4)) {
            const struct bytes source = one_in(2) ? files[i] : seeds[below(num_seeds)];
            int status = mn_restart_index(source.data, source.length, (int)below(12) - 1,
                                          (int)below(20) - 1, &indexed, &length, &segments,
                                          &num_segments);
            if (status == MN_OK) {
                counts.indexed++;
                free(files[i].data);
                files[i] = exact((struct bytes){indexed, length});
            }
        }
        items[i].data = files[i].data;
        items[i].length = files[i].length;
        if (segments || one_in(6)) {
            counts.tables++;
            tables[i] = table_for(&items[i], segments, num_segments);
        }
        mn_free(indexed);
        mn_free(segments);
        if (one_in(6)) {
            counts.stored++;
            items[i] = (struct mn_item){0};
            place_in_shard(&items[i]);
        }
    }
    mn_load(pool, items, BATCH, one_in(10) ? 20000000 : 1000000);
    for (int i = 0; i < BATCH; i++) {
        int w = items[i].width, h = items[i].height;
        is_crop[i] = items[i].status == MN_OK && w >= width && h >= height && !one_in(3);
        views[i] = is_crop[i] ? crop_view(w, h, width, height)
                              : any_view(w > 0 ? w : 1, h > 0 ? h : 1);
    }
    if (one_in(8)) {
        struct mn_item copies[BATCH];
        memcpy(copies, items, sizeof copies);
        mn_entropy(pool, copies, views, BATCH);
    }
    const char *path = mn_path();
    if (one_in(4))
        mn_use_path("portable");
    mn_decode(pool, items, views, BATCH, width, height, out);
    mn_use_path(path);
    for (int i = 0; i < BATCH; i++) {
        counts.images++;
        counts.good += items[i].status == MN_OK;
        counts.refused += items[i].status != MN_OK;
        if (items[i].status == MN_OK && is_crop[i])
            wrong |= compare(&items[i], &views[i], out + (size_t)i * size, width, height);
        free(files[i].data);
        free(tables[i]);
    }
    mn_release(items, BATCH);
    free(out);
    return wrong;
}

/* A grey picture stays as grey as it is, whatever is seen of it. */
static int resize_grey(struct mn_pool *pool)
{
    int w = 1 + (int)below(90), h = 1 + (int)below(90), grey = (int)below(256), wrong = 0;
    int width = 1 + (int)below(48), height = 1 + (int)below(48);
    int64_t size = (int64_t)w * h * 3;
    size_t bytes = (size_t)width * (size_t)height * 3;
    uint8_t *pixels = must(malloc((size_t)size)), *out = must(malloc(bytes));
    memset(pixels, grey, (size_t)size);
    struct mn_item item = {.data = pixels, .width = w, .height = h};
    item.length = one_in(10) ? below(size) : size;
    struct mn_view view = any_view(w, h);
    mn_resize(pool, &item, &view, 1, width, height, out);
    if (item.length < size)
        wrong = item.status != MN_TRUNCATED;
    else if (item.status == MN_OK)
        for (size_t i = 0; i < bytes; i++)
            wrong |= out[i] != grey;
    counts.resized += item.status == MN_OK;
    if (wrong)
        fprintf(stderr,
                "iteration %ld: grey %d of %d x %d, %lld bytes, became another; box %.17g %.17g "
                "%.17g %.17g within %d %d %d %d, filter %d, to %d x %d\n",
                iteration, grey, w, h, (long long)item.length, view.x0, view.y0, view.x1, view.y1,
                view.left, view.top, view.right, view.bottom, view.filter, width, height);
    free(pixels);
    free(out);
    return wrong;
}

static struct mn_pool *shared_pool;
static double deadline;

static void *user(void *argument)
{
    int number = (int)(intptr_t)argument, size = 40;
    uint8_t *out = must(malloc((size_t)num_seeds * (size_t)(size * size * 3)));
    struct mn_item *items = must(malloc((size_t)num_seeds * sizeof *items));
    struct mn_view *views = must(malloc((size_t)num_seeds * sizeof *views));
    uint32_t first = 0;
    do {
        memset(items, 0, (size_t)num_seeds * sizeof *items);
        for (int i = 0; i < num_seeds; i++) {
            items[i].data = seeds[i].data;
            items[i].length = seeds[i].length;
        }
        mn_load(shared_pool, items, num_seeds, 4000000);
        for (int i = 0; i < num_seeds; i++) {
            double w = items[i].width, h = items[i].height;
            views[i] = (struct mn_view){0, 0, w, h, 0, 0, (int)w, (int)h, i % 2, number % 2};
        }
        memset(out, 0, (size_t)num_seeds * (size_t)(size * size * 3));
        mn_decode(shared_pool, items, views, num_seeds, size, size, out);
        uint32_t sum = mn_crc32(out, (int64_t)num_seeds * size * size * 3);
        if (first && sum != first) {
            fprintf(stderr, "the same files gave other pixels\n");
            exit(1);
        }
        first = sum;
        uint8_t *indexed;
        uint16_t *segments;
        int64_t length, count;
        const struct bytes *one = &seeds[number % num_seeds];
        mn_restart_index(one->data, one->length, 6, 16, &indexed, &length, &segments, &count);
        mn_free(indexed);
        mn_free(segments);
    } while (now() < deadline);
    free(out);
    free(items);
    free(views);
    return NULL;
}

static int share(double seconds)
{
    pthread_t users[4];
    shared_pool = mn_pool_new(3);
    deadline = now() + seconds;
    for (int i = 0; i < 4; i++)
        if (pthread_create(&users[i], NULL, user, (void *)(intptr_t)i))
            return 2;
    for (int i = 0; i < 4; i++)
        pthread_join(users[i], NULL);
    mn_pool_free(shared_pool);
    return 0;
}

/* The same lines on every kind of processor. */
static int sums(void)
{
    struct mn_pool *pool = mn_pool_new(2);
    enum { SIZE = 57 };
    uint8_t *out = must(malloc(SIZE * SIZE * 3));
    fprintf(stderr, "path %s\n", mn_path());
    for (int i = 0; i < num_seeds; i++) {
        struct mn_item item = {.data = seeds[i].data, .length = seeds[i].length};
        mn_load(pool, &item, 1, 40000000);
        printf("%d status %d %dx%d", i, item.status, item.width, item.height);
        for (int n = 0; n < 6 && item.status == MN_OK; n++) {
            struct mn_view view = any_view(item.width, item.height);
            memset(out, 0, SIZE * SIZE * 3);
            mn_decode(pool, &item, &view, 1, SIZE, SIZE, out);
            printf(" %d:%08x", item.status, mn_crc32(out, SIZE * SIZE * 3));
            item.status = MN_OK;
        }
        printf("\n");
    }
    free(out);
    mn_pool_free(pool);
    return 0;
}

static void read_seed(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        fprintf(stderr, "%s: can't be read\n", path);
        exit(2);
    }
    struct bytes b = {NULL, ftell(file)};
    b.data = must(malloc(b.length ? (size_t)b.length : 1));
    rewind(file);
    if (fread(b.data, 1, (size_t)b.length, file) != (size_t)b.length)
        exit(2);
    fclose(file);
    seeds = must(realloc(seeds, (size_t)(num_seeds + 1) * sizeof *seeds));
    seeds[num_seeds++] = b;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
void __sanitizer_set_death_callback(void (*callback)(void));
static void at_death(void) { fprintf(stderr, "in iteration %ld\n", iteration); }
#define SET_DEATH_CALLBACK() __sanitizer_set_death_callback(at_death)
#else
#define SET_DEATH_CALLBACK() (void)0
#endif

int main(int argc, char **argv)
{
    if (argc < 6)
        return 2;
    uint64_t seed = strtoull(argv[2], NULL, 10);
    double begin = now(), seconds = atof(argv[3]), slowest = 0;
    long first = atol(argv[4]), slowest_iteration = 0;
    int wrong = 0;
    for (int i = 5; i < argc; i++)
        read_seed(argv[i]);
    state = 88172645463325252ULL + seed;
    SET_DEATH_CALLBACK();
    write_shard();
    if (!strcmp(argv[1], "threads"))
        wrong = share(seconds);
    else if (!strcmp(argv[1], "sums"))
        wrong = sums();
    else {
        struct mn_pool *pool = mn_pool_new(3);
        for (iteration = first; now() - begin < seconds && !wrong; iteration++) {
            state = (seed << 32 ^ (uint64_t)iteration) * 0x9E3779B97F4A7C15ULL | 1;
            for (int i = 0; i < 4; i++)
                random32();
            double start = now();
            alarm(LONGEST); /* a hang ends the process */
            wrong = one_batch(pool) | resize_grey(pool);
            if (now() - start > slowest) {
                slowest = now() - start;
                slowest_iteration = iteration;
            }
        }
        alarm(0);
        mn_pool_free(pool);
        printf("%ld iterations: %ld images, %ld decoded, %ld refused, %ld compared with libjpeg, "
               "%ld of them differ beyond the range of pictures, %ld indexed, %ld segment tables, "
               "%ld from a shard, %ld resized; slowest %.2f s (iteration %ld)\n",
               iteration - first, counts.images, counts.good, counts.refused, counts.compared,
               counts.absurd, counts.indexed, counts.tables, counts.stored, counts.resized, slowest,
               slowest_iteration);
    }
    fclose(shard);
    for (int i = 0; i < num_seeds; i++)
        free(seeds[i].data);
    free(seeds);
    return wrong;
}
