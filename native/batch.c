/* Batches: threads, files, resizing, statuses. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- kinds of processors ---- */

const struct kernels *mn_kernels = &mn_kernels_portable;

static const struct kernels *best(void)
{
#if defined(__x86_64__) || defined(__i386__)
    if (__builtin_cpu_supports("avx2"))
        return &mn_kernels_avx2;
#endif
    return &mn_kernels_portable;
}

static __attribute__((constructor)) void choose(void) { mn_kernels = best(); }

int mn_abi(void) { return MN_ABI; }

const char *mn_path(void) { return mn_kernels->name; }

int mn_use_path(const char *name)
{
    const struct kernels *known[] = {best(), &mn_kernels_portable};
    for (int i = 0; i < 2; i++) {
        if (!strcmp(known[i]->name, name)) {
            mn_kernels = known[i];
            return 0;
        }
    }
    return -1;
}

/* ---- memory ---- */

uint8_t *mn_reserve(struct buffer *b, size_t size)
{
    if (b->capacity >= size)
        return b->data;
    free(b->data);
    size_t wanted = (size + size / 4 + 63) & ~(size_t)63;
    void *memory = NULL;
    if (posix_memalign(&memory, 64, wanted))
        memory = NULL;
    b->data = memory;
    b->capacity = memory ? wanted : 0;
    return memory;
}

static void drop_buffer(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){NULL, 0};
}

#define KEEP ((size_t)16 << 20)

static void for_buffers(struct scratch *s, size_t keep)
{
    struct buffer *all[] = {&s->planes[0], &s->planes[1], &s->planes[2], &s->rgbx, &s->row,
                            &s->across, &s->down, &s->rows, &s->scan};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->capacity > keep)
            drop_buffer(all[i]);
}

void mn_shrink(struct scratch *s) { for_buffers(s, KEEP); }

/* ---- threads ---- */

struct job {
    void (*work)(struct scratch *scratch, struct job *job, int64_t index);
    struct mn_item *items;
    const struct mn_view *views;
    int64_t count, max_pixels;
    int out_width, out_height;
    uint8_t *out;
    int64_t taken, done; /* under the pool's lock */
    struct job *next;
};

struct mn_pool {
    pthread_mutex_t lock;
    pthread_cond_t has_work, has_finished;
    struct job *first, *last; /* jobs of which something is left to be taken */
    int ends, num_threads;
    pthread_t threads[];
};

/* Images, not jobs, are handed out one by one, so the threads of a pool go over to the next batch
 * while the last images of this one are still being decoded. */
static void *serve(void *argument)
{
    struct mn_pool *pool = argument;
    struct scratch *scratch = NULL;
    if (posix_memalign((void **)&scratch, 64, sizeof *scratch))
        scratch = NULL;
    if (scratch)
        memset(scratch, 0, sizeof *scratch);
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->first && !pool->ends)
            pthread_cond_wait(&pool->has_work, &pool->lock);
        if (pool->ends)
            break;
        struct job *job = pool->first;
        int64_t index = job->taken++;
        if (job->taken == job->count) {
            pool->first = job->next;
            if (!pool->first)
                pool->last = NULL;
        }
        pthread_mutex_unlock(&pool->lock);
        if (scratch) {
            job->work(scratch, job, index);
            mn_shrink(scratch);
        } else {
            job->items[index].status = MN_NO_MEMORY;
        }
        pthread_mutex_lock(&pool->lock);
        if (++job->done == job->count)
            pthread_cond_broadcast(&pool->has_finished);
    }
    pthread_mutex_unlock(&pool->lock);
    if (scratch) {
        for_buffers(scratch, 0);
        mn_turbo_free(scratch);
        free(scratch);
    }
    return NULL;
}

static void run(struct mn_pool *pool, struct job *job)
{
    if (job->count <= 0)
        return;
    pthread_mutex_lock(&pool->lock);
    if (pool->last)
        pool->last->next = job;
    else
        pool->first = job;
    pool->last = job;
    pthread_cond_broadcast(&pool->has_work);
    while (job->done < job->count)
        pthread_cond_wait(&pool->has_finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

struct mn_pool *mn_pool_new(int threads)
{
    if (threads < 1)
        threads = 1;
    struct mn_pool *pool = calloc(1, sizeof *pool + (size_t)threads * sizeof(pthread_t));
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pthread_cond_init(&pool->has_finished, NULL);
    for (; pool->num_threads < threads; pool->num_threads++)
        if (pthread_create(&pool->threads[pool->num_threads], NULL, serve, pool))
            break;
    if (!pool->num_threads) {
        mn_pool_free(pool);
        return NULL;
    }
    return pool;
}

void mn_pool_free(struct mn_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->ends = 1;
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->num_threads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->has_work);
    pthread_cond_destroy(&pool->has_finished);
    free(pool);
}

/* ---- files and headers ---- */

#define MOST_BYTES ((int64_t)1 << 30)

/* Memory for what is read, kept for the next batch: a fresh page costs more than to fill it. */

#ifdef __SANITIZE_ADDRESS__
#define LARGEST 0 /* none is kept, so that each access beside it is seen */
#else
#define LARGEST 20
#endif
#define SMALLEST 12
#define MOST_KEPT ((size_t)128 << 20)

struct block {
    struct block *next;
    size_t bits; /* it has 1 << bits bytes, this head included; above LARGEST: another number */
};

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *kept[LARGEST + 1];
static size_t kept_bytes;

static uint8_t *take_block(size_t size)
{
    struct block *block = NULL;
    size_t bits = SMALLEST;
    size += sizeof *block;
    while (bits <= LARGEST && (size_t)1 << bits < size)
        bits++;
    if (bits <= LARGEST) {
        size = (size_t)1 << bits;
        pthread_mutex_lock(&kept_lock);
        block = kept[bits];
        if (block) {
            kept[bits] = block->next;
            kept_bytes -= size;
        }
        pthread_mutex_unlock(&kept_lock);
    }
    if (!block) {
        block = malloc(size);
        if (!block)
            return NULL;
        block->bits = bits;
    }
    return (uint8_t *)(block + 1);
}

static void give_block(void *memory)
{
    if (!memory)
        return;
    struct block *block = (struct block *)memory - 1;
    size_t size = (size_t)1 << block->bits;
    pthread_mutex_lock(&kept_lock);
    if (block->bits <= LARGEST && kept_bytes + size <= MOST_KEPT) {
        block->next = kept[block->bits];
        kept[block->bits] = block;
        kept_bytes += size;
        block = NULL;
    }
    pthread_mutex_unlock(&kept_lock);
    free(block);
}

/* Read the image, and the table of segments before it, from an open file. */
static int read_open(struct mn_item *item, int file)
{
    struct stat about;
    if (fstat(file, &about) || !S_ISREG(about.st_mode))
        return MN_UNREADABLE;
    int64_t table = 2 * (int64_t)item->num_segments;
    int64_t begin = item->offset - table, size = table + item->length, got = 0;
    if (!item->length) { /* all of the file */
        begin = table = 0;
        size = about.st_size;
    }
    if (!size)
        return MN_EMPTY;
    if (size > MOST_BYTES)
        return MN_TOO_LARGE;
    if (begin < 0 || size > about.st_size || begin > about.st_size - size)
        return MN_UNREADABLE;
    uint8_t *memory = take_block((size_t)size);
    if (!memory)
        return MN_NO_MEMORY;
    while (got < size) {
        ssize_t n = pread(file, memory + got, (size_t)(size - got), (off_t)(begin + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) { /* it may have been cut short just now: a mapping would end the process */
            give_block(memory);
            return MN_UNREADABLE;
        }
        got += n;
    }
    item->owned = memory;
    item->segments = table ? (const uint16_t *)(const void *)memory : NULL;
    item->data = memory + table;
    item->length = size - table;
    return MN_OK;
}

static int read_file(struct mn_item *item)
{
    if (!item->path)
        return read_open(item, item->file);
    /* Without waiting, if it is a pipe that nobody writes to. */
    int file = open(item->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return errno == ENOENT || errno == ENOTDIR ? MN_MISSING : MN_UNREADABLE;
    int status = read_open(item, file);
    close(file);
    return status;
}

static uint32_t crc_table[8][256];

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        crc_table[0][i] = value;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 255];
}

uint32_t mn_crc32(const uint8_t *data, int64_t length)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_crc_table);
    uint32_t crc = ~0u;
    for (; length >= 8; length -= 8, data += 8) { /* eight bytes at a time */
        crc ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16
               | (uint32_t)data[3] << 24;
        crc = crc_table[7][crc & 255] ^ crc_table[6][crc >> 8 & 255] ^ crc_table[5][crc >> 16 & 255]
              ^ crc_table[4][crc >> 24] ^ crc_table[3][data[4]] ^ crc_table[2][data[5]]
              ^ crc_table[1][data[6]] ^ crc_table[0][data[7]];
    }
    for (; length > 0; length--, data++)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data) & 255];
    return ~crc;
}

/* Whether so many pixels can be in so few bytes.  Even an empty block takes a bit, so most of such a
 * picture is missing; libjpeg would take memory and seconds to fill it in.  A component may have as
 * few blocks as a fourth of the picture's. */
static int is_plausible(const struct header *header, int64_t length)
{
    return (length - header->scan) * 8 * 4 >= (int64_t)header->width * header->height / 64;
}

/* Whether the end marker is there: a crop may not reach the place where a file breaks off. */
static int has_end(const uint8_t *data, int64_t from, int64_t length)
{
    for (int64_t i = length - 2; i >= from; i--)
        if (data[i] == 0xFF && data[i + 1] == 0xD9)
            return 1;
    return 0;
}

static int is_as_written(const struct mn_item *item)
{
    const uint8_t *table = (const uint8_t *)item->segments;
    return mn_crc32(item->data, item->length) == item->checksum
           && (!table
               || mn_crc32(table, 2 * (int64_t)item->num_segments) == item->segments_checksum);
}

static void load(struct scratch *s, struct job *job, int64_t index)
{
    struct mn_item *item = &job->items[index];
    struct header header = {0};
    (void)s;
    if (item->status != MN_OK)
        return;
    if (!item->data && (item->path || item->length > 0)
        && (item->status = read_file(item)) != MN_OK)
        return;
    if (item->length <= 0) {
        item->status = MN_EMPTY;
        return;
    }
    if (item->verify && !is_as_written(item)) {
        item->status = MN_CHECKSUM;
        return;
    }
    item->verify = 0;
    item->status = mn_read_header(item->data, item->length, &header);
    if (item->status != MN_OK)
        return;
    item->width = header.width;
    item->height = header.height;
    if ((int64_t)header.width * header.height > job->max_pixels)
        item->status = MN_TOO_LARGE;
    else if (!has_end(item->data, header.scan, item->length)
             || (header.huffman && !is_plausible(&header, item->length)))
        item->status = MN_TRUNCATED;
    else if (!header.baseline && !mn_libjpeg())
        item->status = MN_UNSUPPORTED;
}

/* ---- resizing, as Pillow does ---- */

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/* Weights as whole numbers whose sum is 1 << PRECISION.  0: weights of both signs nearly cancel, as
 * they do beside the limits, and would be too large for 16 bits or for the sums of the kernels. */
static int round_weights(double *w, int n, double sum)
{
    int total = 0, size = 0, largest = 0;
    for (int t = 0; t < n; t++) {
        double value = w[t] / sum * (1 << PRECISION);
        if (!(fabs(value) < INT16_MAX - size)) /* nor if it is no number */
            return 0;
        int rounded = (int)lrint(value);
        w[t] = rounded;
        total += rounded;
        size += abs(rounded);
        if (w[t] > w[largest])
            largest = t;
    }
    w[largest] += (1 << PRECISION) - total; /* a grey picture stays as grey as it was */
    return fabs(w[largest]) < INT16_MAX;
}

/* Weights of `count` outputs over [from, to); taps stay in [low, high).  0, or no memory. */
static int make_axis(struct axis *axis, struct buffer *memory, double from, double to, int low,
                     int high, int count, int filter, int mirrored, int is_across)
{
    double scale = (to - from) / count, stretch = scale < 1 ? 1 : scale;
    double support = (filter == MN_BICUBIC ? 2 : 1) * stretch;
    double (*weight)(double) = filter == MN_BICUBIC ? bicubic : bilinear;
    int unit = is_across ? 4 : 2, most = (int)ceil(2 * support - 1e-9) + 1;
    if (most > high - low) /* a box may be far larger than its limits */
        most = high - low;
    int taps = (most + unit - 1) / unit * unit;
    size_t copies = is_across ? 4 : 1;
    size_t weights = (size_t)count * (size_t)taps * copies * sizeof(int16_t);
    size_t starts = ((size_t)count * sizeof(int) + 63) & ~(size_t)63;
    weights = (weights + 63) & ~(size_t)63;
    uint8_t *place = mn_reserve(memory, weights + starts + (size_t)taps * sizeof(double));
    if (!place)
        return MN_NO_MEMORY;
    axis->weights = (int16_t *)(void *)place;
    axis->start = (int *)(void *)(place + weights);
    double *w = (double *)(void *)(place + weights + starts);
    memset(place, 0, weights);
    axis->taps = taps;
    axis->low = high;
    axis->high = low;
    for (int i = 0; i < count; i++) {
        double centre = from + (i + 0.5) * scale, sum = 0;
        int first = (int)floor(centre - support + 0.5), end = (int)floor(centre + support + 0.5);
        first = first < low ? low : first > high - 1 ? high - 1 : first;
        end = end > high ? high : end < first + 1 ? first + 1 : end;
        int n = end - first > taps ? taps : end - first;
        for (int t = 0; t < n; t++)
            sum += w[t] = weight((t + first - centre + 0.5) / stretch);
        if (!round_weights(w, n, sum)) { /* the pixel next to the centre alone */
            int nearest = (int)floor(centre) - first;
            memset(w, 0, (size_t)n * sizeof *w);
            w[nearest < 0 ? 0 : nearest > n - 1 ? n - 1 : nearest] = 1 << PRECISION;
        }
        int place_of = mirrored ? count - 1 - i : i;
        int16_t *to_weights = axis->weights + (size_t)place_of * (size_t)taps * copies;
        for (int t = 0; t < n; t++) {
            if (is_across) { /* see `across` in kernels.inc */
                int16_t *group = to_weights + t / 4 * 16 + (t % 4 / 2) * 8 + t % 2;
                group[0] = group[2] = group[4] = group[6] = (int16_t)w[t];
            } else {
                to_weights[t] = (int16_t)w[t];
            }
        }
        axis->start[place_of] = first;
        if (first < axis->low)
            axis->low = first;
        if (first + n > axis->high)
            axis->high = first + n;
    }
    return MN_OK;
}

static int make_axes(struct scratch *s, const struct mn_item *item, const struct mn_view *view,
                     int out_width, int out_height, struct axis *across, struct axis *down)
{
    double width = view->x1 - view->x0, height = view->y1 - view->y0;
    if (!(width > 0 && height > 0) || !(view->x0 > -1e6 && view->x1 < 1e6)
        || !(view->y0 > -1e6 && view->y1 < 1e6) || view->left < 0 || view->top < 0
        || view->right > item->width || view->bottom > item->height || view->left >= view->right
        || view->top >= view->bottom || out_width < 1 || out_height < 1)
        return MN_UNSUPPORTED;
    int status = make_axis(across, &s->across, view->x0, view->x1, view->left, view->right,
                           out_width, view->filter, view->flip, 1);
    if (status != MN_OK)
        return status;
    return make_axis(down, &s->down, view->y0, view->y1, view->top, view->bottom, out_height,
                     view->filter, 0, 0);
}

static int resize(struct scratch *s, const struct pixels *from, struct axis *across,
                  const struct axis *down, int out_width, int out_height, uint8_t *out)
{
    int bytes = (across->high - across->low) * 4;
    /* `across` reads whole groups of taps, the last ones with weight 0. */
    size_t room = (size_t)bytes + 4 * (size_t)across->taps + SLACK;
    uint8_t *row = mn_reserve(&s->row, room);
    if (!row)
        return MN_NO_MEMORY;
    memset(row + bytes, 0, room - (size_t)bytes);
    for (int x = 0; x < out_width; x++)
        across->start[x] -= across->low;
    for (int y = 0; y < out_height; y++) {
        const uint8_t *source = from->data + (down->start[y] - from->top) * from->stride
                                + (ptrdiff_t)(across->low - from->left) * 4;
        mn_kernels->down(source, from->stride, down->weights + (size_t)y * (size_t)down->taps,
                         down->taps, row, bytes);
        mn_kernels->across(row, across->start, across->weights, across->taps,
                           out + (size_t)y * (size_t)out_width * 3, out_width);
    }
    return MN_OK;
}

static void decode(struct scratch *s, struct job *job, int64_t index)
{
    struct mn_item *item = &job->items[index];
    struct axis across, down;
    struct pixels pixels;
    if (item->status != MN_OK)
        return;
    if (!item->data) { /* not loaded */
        item->status = MN_EMPTY;
        return;
    }
    item->status = make_axes(s, item, &job->views[index], job->out_width, job->out_height, &across,
                             &down);
    if (item->status != MN_OK)
        return;
    struct region region = {across.low, down.low, across.high, down.high};
    int status = mn_baseline_decode(s, item, &region, job->out ? &pixels : NULL);
    if (status == MN_UNSUPPORTED && job->out)
        status = mn_turbo_decode(s, item, &region, &pixels);
    if (status == MN_OK && job->out) {
        size_t size = (size_t)job->out_width * (size_t)job->out_height * 3;
        status = resize(s, &pixels, &across, &down, job->out_width, job->out_height,
                        job->out + (size_t)index * size);
    }
    item->status = status;
}

static void resize_rgb(struct scratch *s, struct job *job, int64_t index)
{
    struct mn_item *item = &job->items[index];
    struct axis across, down;
    if (!item->data || item->length / 3 < (int64_t)item->width * item->height) {
        item->status = MN_TRUNCATED;
        return;
    }
    item->status = make_axes(s, item, &job->views[index], job->out_width, job->out_height, &across,
                             &down);
    if (item->status != MN_OK)
        return;
    int width = across.high - across.low, height = down.high - down.low;
    ptrdiff_t stride = ((ptrdiff_t)width * 4 + 63) & ~(ptrdiff_t)63;
    uint8_t *rgbx = mn_reserve(&s->rgbx, (size_t)stride * (size_t)height + SLACK);
    if (!rgbx) {
        item->status = MN_NO_MEMORY;
        return;
    }
    for (int y = 0; y < height; y++)
        mn_kernels->rgb(item->data + ((size_t)(down.low + y) * (size_t)item->width
                                      + (size_t)across.low) * 3,
                        rgbx + y * stride, width);
    struct pixels pixels = {rgbx, stride, across.low, down.low};
    item->status = resize(s, &pixels, &across, &down, job->out_width, job->out_height,
                          job->out + (size_t)index * (size_t)job->out_width
                                         * (size_t)job->out_height * 3);
}

/* ---- the interface ---- */

void mn_load(struct mn_pool *pool, struct mn_item *items, int64_t count, int64_t max_pixels)
{
    struct job job = {.work = load, .items = items, .count = count, .max_pixels = max_pixels};
    run(pool, &job);
}

void mn_decode(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
               int64_t count, int out_width, int out_height, uint8_t *out)
{
    struct job job = {.work = decode, .items = items, .views = views, .count = count,
                      .out_width = out_width, .out_height = out_height, .out = out};
    run(pool, &job);
}

void mn_entropy(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
                int64_t count)
{
    mn_decode(pool, items, views, count, 224, 224, NULL);
}

void mn_resize(struct mn_pool *pool, struct mn_item *items, const struct mn_view *views,
               int64_t count, int out_width, int out_height, uint8_t *out)
{
    struct job job = {.work = resize_rgb, .items = items, .views = views, .count = count,
                      .out_width = out_width, .out_height = out_height, .out = out};
    run(pool, &job);
}

void mn_release(struct mn_item *items, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        give_block(items[i].owned);
        if (items[i].owned) {
            items[i].data = NULL;
            items[i].segments = NULL;
        }
        items[i].owned = NULL;
    }
}
