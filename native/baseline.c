/* Sequential Huffman JPEGs of 8 bits: only the blocks of a region become pixels.
 *
 * Entropy decoding costs more than all the rest, so it is done once, for as few bits as possible:
 * it stops behind the region's last row, only counts where blocks lie outside, and jumps over whole
 * segments where restart markers allow it (with an index of them it does not even look for them).
 * The pixels are those of libjpeg's default decoder, bit for bit.  Whatever is unusual is left to
 * libjpeg: MN_UNSUPPORTED.
 */
#include "internal.h"

/* Place of the k-th coefficient in zigzag order; those that an end-of-block or broken data run over
 * go to the place behind the block. */
static const uint8_t ZIGZAG[64 + END] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33,
    40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
    [64 ... 63 + END] = 64,
};

struct component {
    int id, h, v;
    int quant, dc, ac;
    uint8_t *plane; /* samples of the decoded MCUs */
    ptrdiff_t stride;
};

struct frame {
    int width, height, num_components;
    int baseline, huffman, is_ycc;
    struct component components[3];
    int h_max, v_max;
    uint16_t quant[4][64 + END]; /* in zigzag order */
    int has_quant;
    const uint8_t *tables[2][4]; /* where the code of a class and number is defined */
    int restart_interval;
    int64_t scan;
};

static int be16(const uint8_t *p) { return p[0] << 8 | p[1]; }

/* ---- header ---- */

static int read_quant(struct frame *f, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        int wide = *p >> 4, number = *p & 15;
        p++;
        if (wide > 1 || number > 3 || end - p < 64 * (1 + wide))
            return MN_CORRUPT;
        for (int k = 0; k < 64; k++, p += 1 + wide)
            f->quant[number][k] = (uint16_t)(wide ? be16(p) : *p);
        f->has_quant |= 1 << number;
    }
    return MN_OK;
}

static int find_codes(struct frame *f, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        if (end - p < 17)
            return MN_CORRUPT;
        int class = *p >> 4, number = *p & 15, total = 0;
        for (int i = 1; i <= 16; i++)
            total += p[i];
        if (class > 1 || number > 3 || total > 256 || end - p < 17 + total)
            return MN_CORRUPT;
        f->tables[class][number] = p + 1;
        p += 17 + total;
    }
    return MN_OK;
}

static int read_frame(struct frame *f, const uint8_t *p, const uint8_t *end, int marker)
{
    if (f->num_components || end - p < 6)
        return MN_CORRUPT;
    f->height = be16(p + 1);
    f->width = be16(p + 3);
    f->num_components = p[5];
    f->huffman = marker >= 0xC0 && marker <= 0xC2;
    f->baseline = (marker == 0xC0 || marker == 0xC1) && p[0] == 8
                  && (f->num_components == 1 || f->num_components == 3);
    if (!f->width || !f->num_components || end - p < 6 + 3 * f->num_components)
        return MN_CORRUPT;
    if (!f->height) /* given later, by a DNL marker */
        return MN_UNSUPPORTED;
    for (int i = 0; f->baseline && i < f->num_components; i++) {
        struct component *c = &f->components[i];
        c->id = p[6 + 3 * i];
        c->h = p[7 + 3 * i] >> 4;
        c->v = p[7 + 3 * i] & 15;
        c->quant = p[8 + 3 * i];
        if (c->h < 1 || c->v < 1 || c->h > 4 || c->v > 4 || c->quant > 3)
            return MN_CORRUPT;
    }
    return MN_OK;
}

/* The scan's header; leaves baseline set only for what this file decodes. */
static int read_scan(struct frame *f, const uint8_t *p, const uint8_t *end)
{
    if (!f->num_components || end - p < 1 || end - p < 4 + 2 * p[0])
        return MN_CORRUPT;
    if (!f->baseline)
        return MN_OK;
    int n = p[0];
    const uint8_t *spectrum = p + 1 + 2 * n;
    if (n != f->num_components || spectrum[0] != 0 || spectrum[1] != 63 || spectrum[2] != 0) {
        f->baseline = 0;
        return MN_OK;
    }
    for (int i = 0; i < n; i++) {
        struct component *c = &f->components[i];
        if (p[1 + 2 * i] != c->id) {
            f->baseline = 0;
            return MN_OK;
        }
        c->dc = p[2 + 2 * i] >> 4;
        c->ac = p[2 + 2 * i] & 15;
        if (c->dc > 3 || c->ac > 3)
            return MN_CORRUPT;
    }
    struct component *c = f->components;
    if (n == 1) {
        c->h = c->v = 1; /* a scan of one component has no interleaving */
    } else {
        f->baseline = c[0].h <= 2 && c[0].v <= 2 && c[1].h == 1 && c[1].v == 1 && c[2].h == 1
                      && c[2].v == 1;
    }
    f->h_max = c[0].h;
    f->v_max = c[0].v;
    return MN_OK;
}

static int parse(const uint8_t *data, int64_t length, struct frame *f)
{
    int jfif = 0, adobe = -1;
    memset(f, 0, sizeof *f);
    if (length < 4 || data[0] != 0xFF || data[1] != 0xD8)
        return MN_NOT_JPEG;
    const uint8_t *p = data + 2, *end = data + length;
    for (;;) {
        while (p < end && *p != 0xFF) /* libjpeg passes over such bytes too */
            p++;
        while (p < end && *p == 0xFF)
            p++;
        if (p >= end)
            return MN_TRUNCATED;
        int marker = *p++;
        if (marker == 0 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8))
            continue;
        if (marker == 0xD9)
            return MN_CORRUPT;
        if (end - p < 2)
            return MN_TRUNCATED;
        int size = be16(p);
        if (size < 2)
            return MN_CORRUPT;
        if (end - p < size)
            return MN_TRUNCATED;
        const uint8_t *body = p + 2, *next = p + size;
        int status = MN_OK;
        if (marker == 0xDB)
            status = read_quant(f, body, next);
        else if (marker == 0xC4)
            status = find_codes(f, body, next);
        else if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC8 && marker != 0xCC)
            status = read_frame(f, body, next, marker);
        else if (marker == 0xDD)
            status = size == 4 ? (f->restart_interval = be16(body), MN_OK) : MN_CORRUPT;
        else if (marker == 0xE0 && size >= 16 && !memcmp(body, "JFIF", 5))
            jfif = 1;
        else if (marker == 0xEE && size >= 14 && !memcmp(body, "Adobe", 5))
            adobe = body[11];
        else if (marker == 0xDA) {
            status = read_scan(f, body, next);
            f->scan = next - data;
        }
        if (status != MN_OK)
            return status;
        if (marker == 0xDA)
            break;
        p = next;
    }
    /* The colours of three components, as libjpeg guesses them. */
    const struct component *c = f->components;
    int rgb_ids = c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B';
    f->is_ycc = jfif || (adobe >= 0 ? adobe != 0 : !rgb_ids);
    if (f->num_components == 3 && !f->is_ycc)
        f->baseline = 0;
    /* libjpeg uses a simpler upsampling for such narrow pictures. */
    if (f->h_max == 2 && f->width <= 4)
        f->baseline = 0;
    return MN_OK;
}

int mn_read_header(const uint8_t *data, int64_t length, struct header *header)
{
    struct frame f;
    int status = parse(data, length, &f);
    header->width = f.width;
    header->height = f.height;
    header->scan = f.scan;
    header->baseline = f.baseline;
    header->huffman = f.huffman;
    return status;
}

/* ---- bits ---- */

/* Its shifts by a variable are twice as short as those of all x86-64 processors. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) \
    && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FOR_BMI2 __attribute__((target_clones("bmi2", "default")))
#else
#define FOR_BMI2
#endif

/* Bits come from a copy of the scan without stuffed zeros, made a piece ahead of them, so that
 * taking more of them needs no look at each byte. */
struct bits {
    uint64_t next;              /* the next bits, the first one on top */
    int count;                  /* how many of them are there */
    const uint8_t *p;           /* in the copy */
    uint8_t *end;               /* of the copy */
    const uint8_t *raw, *limit; /* what is not copied yet */
    int finished;               /* a marker or the limit is reached */
};

#define PIECE ((ptrdiff_t)8192)
#define MOST_MCU ((ptrdiff_t)2560) /* bytes: 10 blocks of 64 coefficients of 26 bits, and more */

/* Have the next MCU's bytes in the copy, as far as there are any. */
static __attribute__((noinline)) void extend_copy(struct bits *b)
{
    const uint8_t *stop = b->limit - b->raw > PIECE ? b->raw + PIECE : b->limit;
    while (b->raw < stop) {
        const uint8_t *ff = memchr(b->raw, 0xFF, (size_t)(stop - b->raw));
        const uint8_t *to = ff ? ff : stop;
        memcpy(b->end, b->raw, (size_t)(to - b->raw));
        b->end += to - b->raw;
        b->raw = to;
        if (!ff)
            continue;
        if (b->limit - ff < 2 || ff[1] != 0) {
            b->finished = 1;
            break;
        }
        *b->end++ = 0xFF;
        b->raw += 2;
    }
    if (b->raw >= b->limit)
        b->finished = 1;
    memset(b->end, 0, 16); /* libjpeg, too, goes on with zeros */
}

static inline void prepare(struct bits *b)
{
    while (UNLIKELY(b->end - b->p < MOST_MCU && !b->finished))
        extend_copy(b);
}

static int overran(const struct bits *b) { return (b->p - b->end) * 8 > b->count; }

/* At least 56 bits, enough for two coefficients of at most 26. */
static inline __attribute__((always_inline)) void refill(struct bits *b)
{
    uint64_t word;
    memcpy(&word, b->p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    b->next |= word >> b->count;
    b->p += (63 - b->count) >> 3;
    b->count |= 56;
}

static inline __attribute__((always_inline)) void drop(struct bits *b, uint32_t count)
{
    b->next <<= count; /* below 64 */
    b->count -= (int)count;
}

/* The value behind a code (T.81, F.2.2.1), without a branch. */
static inline __attribute__((always_inline)) int value_of(uint64_t next, struct coefficient c)
{
    uint64_t bits = next << c.length;
    int positive = (int)((int64_t)bits >> 63); /* all ones, or zero */
    return (int)(bits >> c.shift) + (c.bias & ~positive);
}

static inline __attribute__((always_inline)) int dc_difference(struct bits *b,
                                                               const struct huffman *t, int *bad)
{
    refill(b);
    struct coefficient c = t->fast[b->next >> (64 - FAST_BITS)];
    if (UNLIKELY(!c.drop)) {
        c = mn_huffman_find(t, b->next, 1);
        *bad |= !c.drop;
    }
    int value = c.shift ? value_of(b->next, c) : 0;
    drop(b, c.drop);
    return value;
}

#define FIRST_IS_END (1 + END + 1)

/* The AC coefficients of a block, dequantised, into `out`, which has zeros.  Returns FIRST_IS_END
 * if there are none; sets *bad if the data is broken. */
static inline __attribute__((always_inline)) int ac_coefficients(struct bits *in,
                                                                 const struct huffman *t,
                                                                 const uint16_t *quant,
                                                                 int16_t *out, int *bad)
{
    struct bits b = *in;
    int k = 1;
#define ONE()                                                               \
    struct coefficient c = t->fast[b.next >> (64 - FAST_BITS)];             \
    if (UNLIKELY(!c.drop)) {                                                \
        c = mn_huffman_find(t, b.next, 0);                                  \
        if (!c.drop) {                                                      \
            *bad = 1;                                                       \
            return k;                                                       \
        }                                                                   \
        if (c.places == 16 && !c.shift) { /* only zeros */                  \
            drop(&b, c.drop);                                               \
            k += 16;                                                        \
            continue;                                                       \
        }                                                                   \
    }                                                                       \
    const int value = value_of(b.next, c);                                  \
    drop(&b, c.drop);                                                       \
    k += c.places;                                                          \
    out[ZIGZAG[k - 1]] = (int16_t)(value * quant[k - 1]);
    /* What one refill gives is enough for two. */
    do {
        refill(&b);
        {
            ONE()
        }
        if (k >= 64)
            break;
        {
            ONE()
        }
    } while (k < 64);
#undef ONE
    *bad |= k > 64 && k < FIRST_IS_END;
    in->next = b.next;
    in->count = b.count;
    in->p = b.p;
    return k;
}

/* Pass over them. */
static inline __attribute__((always_inline)) void skip_coefficients(struct bits *b,
                                                                    const struct huffman *t,
                                                                    int *bad)
{
    int k = 1;
    while (k < 64) {
        refill(b);
        uint32_t entry = t->skip[b->next >> (64 - SKIP_BITS)];
        if (LIKELY(entry)) {
            int all = k + (int)(entry >> 8 & 255), ends = entry >> 31;
            if (LIKELY(all + ends <= 64)) {
                drop(b, entry & 63);
                k = all;
                if (ends)
                    return;
                continue;
            }
            /* The block ends before the last of these symbols: take them one by one. */
            drop(b, entry >> 16 & 63);
            k += entry >> 24 & 127;
            if (!(entry >> 24 & 127))
                return;
            continue;
        }
        struct coefficient c = mn_huffman_find(t, b->next, 0);
        if (!c.drop) {
            *bad = 1;
            return;
        }
        drop(b, c.drop);
        if (c.places > END)
            return;
        k += c.places;
    }
    *bad |= k > 64;
}

/* ---- scan ---- */

struct cursor {
    struct bits bits;
    int64_t mcu; /* the next one */
    int predictions[3];
    uint8_t *copy;
    const uint8_t *data_end;
    uint32_t segment; /* the present one's number */
    /* with an index of segments: */
    const uint16_t *segments;
    uint32_t num_segments;
    const uint8_t *segment_end;
};

static void restart(struct cursor *c, const uint8_t *start, const uint8_t *end)
{
    c->bits = (struct bits){.p = c->copy, .end = c->copy, .raw = start, .limit = end};
    memset(c->predictions, 0, sizeof c->predictions);
}

/* Begin segment `number`, which is not before the present one. */
static int begin_segment(const struct frame *f, struct cursor *c, uint32_t number)
{
    c->mcu = (int64_t)number * f->restart_interval;
    if (c->segments) {
        if (number >= c->num_segments)
            return MN_CORRUPT;
        const uint8_t *start = c->segment_end;
        while (c->segment < number) {
            start = c->segment_end;
            c->segment++;
            if (c->segments[c->segment] < 2
                || c->data_end - c->segment_end < c->segments[c->segment])
                return MN_CORRUPT;
            c->segment_end += c->segments[c->segment];
        }
        /* Of another file, or written over: the marker that ends the segment before is elsewhere. */
        if (start[-2] != 0xFF || start[-1] != 0xD0 + (int)((number - 1) & 7))
            return MN_CORRUPT;
        restart(c, start, c->segment_end - 2); /* a marker of two bytes is behind each */
        return MN_OK;
    }
    const uint8_t *p = c->bits.raw;
    for (; c->segment < number; c->segment++) {
        for (;;) {
            p = p < c->data_end ? memchr(p, 0xFF, (size_t)(c->data_end - p)) : NULL;
            if (!p || c->data_end - p < 2)
                return MN_UNSUPPORTED;
            if (p[1] == 0) {
                p += 2;
            } else if (p[1] == 0xFF) {
                p++;
            } else if (p[1] == 0xD0 + (int)(c->segment & 7)) {
                p += 2;
                break;
            } else {
                return MN_UNSUPPORTED; /* libjpeg has its ways when markers are lost */
            }
        }
    }
    restart(c, p, c->data_end);
    return MN_OK;
}

static inline __attribute__((always_inline)) void next_dc(struct cursor *c, int component,
                                                          const struct huffman *t, int *bad)
{
    c->predictions[component] = (int16_t)(c->predictions[component]
                                          + dc_difference(&c->bits, t, bad));
}

/* Come to the beginning of MCU `target`, as cheaply as can be. */
FOR_BMI2 static int seek(const struct frame *f, struct scratch *s, struct cursor *c, int64_t target)
{
    int bad = 0;
    while (c->mcu < target) {
        if (f->restart_interval) {
            uint32_t number = (uint32_t)(target / f->restart_interval);
            if (number > c->segment) {
                int status = begin_segment(f, c, number);
                if (status != MN_OK)
                    return status;
                continue;
            }
        }
        prepare(&c->bits);
        for (int i = 0; i < f->num_components; i++) {
            const struct component *part = &f->components[i];
            for (int block = part->h * part->v; block > 0; block--) {
                next_dc(c, i, &s->dc[part->dc], &bad);
                skip_coefficients(&c->bits, &s->ac[part->ac], &bad);
            }
        }
        c->mcu++;
        if (UNLIKELY(bad | overran(&c->bits)))
            return MN_UNSUPPORTED;
    }
    return MN_OK;
}

static void flush(struct scratch *s)
{
    if (!s->entropy_only)
        mn_kernels->idct(s->blocks, s->pending, s->num_pending);
    s->num_pending = 0;
}

static void fill(uint8_t *to, ptrdiff_t stride, int dc)
{
    int value = ((dc + 4) >> 3) + 128;
    value = value < 0 ? 0 : value > 255 ? 255 : value;
    for (int y = 0; y < 8; y++)
        memset(to + y * stride, value, 8);
}

/* By a loop that becomes vector stores: compilers turn memset into something slow. */
static inline __attribute__((always_inline)) void clear(int16_t *block)
{
    typedef int64_t pair __attribute__((vector_size(16)));
    for (int i = 0; i < 64; i += 8)
        *(pair *)(void *)(block + i) = (pair){0, 0};
}

/* Decode MCUs first..last of MCU row `row` into the planes, whose corner is (first, top). */
FOR_BMI2 static int decode_row(const struct frame *f, struct scratch *s, struct cursor *c, int across,
                      int row, int top, int first, int last)
{
    int64_t begin = (int64_t)row * across;
    int bad = 0;
    for (int m = first; m <= last; m++) {
        if (f->restart_interval && (begin + m) / f->restart_interval > c->segment) {
            int status = begin_segment(f, c, (uint32_t)((begin + m) / f->restart_interval));
            if (status != MN_OK)
                return status;
        }
        if (c->mcu != begin + m) {
            int status = seek(f, s, c, begin + m);
            if (status != MN_OK)
                return status;
        }
        prepare(&c->bits);
        for (int i = 0; i < f->num_components; i++) {
            const struct component *part = &f->components[i];
            const struct huffman *dc = &s->dc[part->dc], *ac = &s->ac[part->ac];
            const uint16_t *quant = f->quant[part->quant];
            for (int y = 0; y < part->v; y++) {
                for (int x = 0; x < part->h; x++) {
                    int16_t *block = s->blocks[s->num_pending];
                    clear(block);
                    next_dc(c, i, dc, &bad);
                    int end = ac_coefficients(&c->bits, ac, quant, block, &bad);
                    block[0] = (int16_t)(c->predictions[i] * quant[0]);
                    uint8_t *to = part->plane + ((row - top) * part->v + y) * 8 * part->stride
                                  + ((m - first) * part->h + x) * 8;
                    if (s->entropy_only) {
                        continue;
                    } else if (end == FIRST_IS_END) {
                        fill(to, part->stride, block[0]);
                    } else {
                        s->pending[s->num_pending] = (struct pending){to, part->stride};
                        if (++s->num_pending == BLOCKS)
                            flush(s);
                    }
                }
            }
        }
        c->mcu++;
        if (UNLIKELY(bad | overran(&c->bits)))
            return MN_UNSUPPORTED;
    }
    flush(s);
    return MN_OK;
}

/* ---- pixels ---- */

static int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* One row of a chroma component at full width, samples [left, right) of it into `out`. */
static const uint8_t *chroma_row(const struct frame *f, const struct component *part, int y,
                                 int first, int top, int left, int right, uint8_t *out)
{
    int h = f->h_max, v = f->v_max;
    int columns = (f->width + h - 1) / h, rows = (f->height + v - 1) / v;
    int offset = first * 8, base = top * 8;
    if (h == 1 && v == 1)
        return part->plane + (y - base) * part->stride + (left - offset);
    const uint8_t *near = part->plane + (y / v - base) * part->stride - offset;
    if (v == 1) {
        mn_kernels->double_row(near, out, columns, left / 2, (right + 1) / 2);
        return out + left % 2;
    }
    int other = clamp(y % 2 ? y / 2 + 1 : y / 2 - 1, 0, rows - 1);
    const uint8_t *far = part->plane + (other - base) * part->stride - offset;
    if (h == 1) {
        mn_kernels->double_down(near + left, far + left, out, right - left, y % 2 ? 2 : 1);
        return out;
    }
    mn_kernels->double_both(near, far, out, columns, left / 2, (right + 1) / 2);
    return out + left % 2;
}

/* Whether the last segment ends with the end marker.  Markers count modulo 8, so a length that takes
 * in the next eight segments as well leads to a marker of the right number. */
static int segments_fit(const struct cursor *c, const uint8_t *start, const uint8_t *end)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < c->num_segments; i++)
        sum += c->segments[i];
    return sum >= 2 && sum <= end - start && start[sum - 2] == 0xFF && start[sum - 1] == 0xD9;
}

int mn_baseline_decode(struct scratch *s, const struct mn_item *item, const struct region *want,
                       struct pixels *out)
{
    struct frame f;
    int status = parse(item->data, item->length, &f);
    if (status != MN_OK)
        return status;
    if (!f.baseline)
        return MN_UNSUPPORTED;
    for (int i = 0; i < f.num_components; i++) {
        const struct component *part = &f.components[i];
        const uint8_t *dc = f.tables[0][part->dc], *ac = f.tables[1][part->ac];
        if (!dc || !ac || !(f.has_quant >> part->quant & 1))
            return MN_UNSUPPORTED;
        int again = 0; /* components share tables */
        for (int j = 0; j < i; j++)
            again |= (f.components[j].dc == part->dc) | (f.components[j].ac == part->ac) << 1;
        if ((!(again & 1) && mn_huffman_build(&s->dc[part->dc], dc, dc + 16, 1))
            || (!(again & 2) && mn_huffman_build(&s->ac[part->ac], ac, ac + 16, 0)))
            return MN_UNSUPPORTED;
    }

    /* Blocks that the region needs, with a chroma sample around it for the upsampling. */
    int mcu_width = 8 * f.h_max, mcu_height = 8 * f.v_max;
    int across = (f.width + mcu_width - 1) / mcu_width;
    int down = (f.height + mcu_height - 1) / mcu_height;
    int x_margin = f.h_max == 2 ? 2 : 0, y_margin = f.v_max == 2 ? 2 : 0;
    int first = clamp(want->left - x_margin, 0, f.width - 1) / mcu_width;
    int last = clamp(want->right - 1 + x_margin, 0, f.width - 1) / mcu_width;
    int top = clamp(want->top - y_margin, 0, f.height - 1) / mcu_height;
    int bottom = clamp(want->bottom - 1 + y_margin, 0, f.height - 1) / mcu_height;
    if (last >= across || bottom >= down)
        return MN_CORRUPT;
    for (int i = 0; i < f.num_components; i++) {
        struct component *part = &f.components[i];
        part->stride = (last - first + 1) * part->h * 8;
        size_t size = (size_t)part->stride * (size_t)((bottom - top + 1) * part->v * 8);
        part->plane = mn_reserve(&s->planes[i], size + SLACK);
        if (!part->plane)
            return MN_NO_MEMORY;
    }
    int width = want->right - want->left, height = want->bottom - want->top;
    ptrdiff_t stride = ((ptrdiff_t)width * 4 + 63) & ~(ptrdiff_t)63;
    uint8_t *rgbx = NULL;
    uint8_t *rows[2] = {NULL, NULL};
    if (out) {
        rgbx = mn_reserve(&s->rgbx, (size_t)stride * (size_t)height + SLACK);
        size_t row = ((size_t)width + 2 * SLACK) & ~(size_t)63;
        rows[0] = mn_reserve(&s->rows, 2 * row);
        if (!rgbx || !rows[0])
            return MN_NO_MEMORY;
        rows[1] = rows[0] + row;
    }

    struct cursor c = {0};
    c.data_end = item->data + item->length;
    c.copy = mn_reserve(&s->scan, (size_t)(item->length - f.scan) + 2 * (size_t)MOST_MCU);
    if (!c.copy)
        return MN_NO_MEMORY;
    const uint8_t *start = item->data + f.scan, *end = c.data_end;
    if (item->segments && f.restart_interval && item->num_segments) {
        c.segments = item->segments;
        c.num_segments = item->num_segments;
        int64_t expected = ((int64_t)across * down + f.restart_interval - 1) / f.restart_interval;
        if (c.num_segments != expected || c.segments[0] < 2
            || end - start < c.segments[0] || !segments_fit(&c, start, end))
            return MN_CORRUPT;
        c.segment_end = start + c.segments[0];
        end = c.segment_end - 2;
    }
    restart(&c, start, end);
    s->num_pending = 0;
    s->entropy_only = !out;
    int y = want->top;
    for (int row = top; row <= bottom; row++) {
        status = decode_row(&f, s, &c, across, row, top, first, last);
        if (status != MN_OK)
            return status;
        if (!out)
            continue;
        /* Rows whose blocks are there; the last one waits for the chroma row below it. */
        int ready = (row + 1) * mcu_height - (row < bottom ? y_margin / 2 : 0);
        for (; y < want->bottom && y < ready; y++) {
            uint8_t *to = rgbx + (y - want->top) * stride;
            const struct component *part = f.components;
            const uint8_t *luma = part->plane + (y - top * mcu_height) * part->stride
                                  + (want->left - first * mcu_width);
            if (f.num_components == 1) {
                mn_kernels->grey(luma, to, width);
                continue;
            }
            const uint8_t *chroma[2];
            for (int i = 0; i < 2; i++)
                chroma[i] = chroma_row(&f, &part[i + 1], y, first, top, want->left, want->right,
                                       rows[i]);
            mn_kernels->ycc(luma, chroma[0], chroma[1], to, width);
        }
    }
    if (out)
        *out = (struct pixels){rgbx, stride, want->left, want->top};
    return MN_OK;
}
