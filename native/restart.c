/* Restart-indexed JPEGs: the same coefficients, coded so that a decoder can begin at many places.
 *
 * A restart marker every few MCUs lets a decoder of a crop jump over what lies beside it, if it
 * knows where the markers are.  The pixels stay what they were, and code tables made for the image
 * pay for the markers.  libjpeg reads and writes the coefficients; nothing here touches a pixel.
 */
#include "internal.h"

#ifdef HAVE_LIBJPEG

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

#define MOST_PIXELS 178956970 /* where Pillow calls it a decompression bomb */
#define MOST_SCANS 500        /* a progressive file of more is made to waste time */

struct job {
    struct jpeg_error_mgr errors; /* first, since libjpeg hands out its address */
    struct jpeg_progress_mgr progress;
    struct jpeg_destination_mgr sink;
    struct jpeg_decompress_struct source;
    struct jpeg_compress_struct target;
    jmp_buf escape;
    int status;  /* why `escape` was taken */
    int warning; /* MN_CORRUPT or MN_TRUNCATED, once libjpeg has warned */
    int writing;
    uint8_t *out;
    size_t capacity, length;
    int interval;
    int64_t expected; /* segments */
};

static void give_up(struct job *job, int status)
{
    job->status = status;
    longjmp(job->escape, 1);
}

static void on_error(j_common_ptr info)
{
    struct job *job = (struct job *)info->err;

    switch (info->err->msg_code) {
    case JERR_OUT_OF_MEMORY:
    case JERR_NO_BACKING_STORE:
        give_up(job, MN_NO_MEMORY);
        break;
    case JERR_NO_SOI:
        give_up(job, MN_NOT_JPEG);
        break;
    case JERR_INPUT_EOF:
        give_up(job, MN_TRUNCATED);
        break;
    case JERR_SOF_UNSUPPORTED:
    case JERR_BAD_PRECISION:
    case JERR_ARITH_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_IMAGE_TOO_BIG:
    case JERR_COMPONENT_COUNT:
        give_up(job, MN_UNSUPPORTED);
        break;
    default:
        /* What could be read but not be written is sound, just not expressible this way: an MCU
         * of too many blocks, for instance, in a file that keeps its components apart. */
        give_up(job, job->warning ? job->warning : job->writing ? MN_UNSUPPORTED : MN_CORRUPT);
    }
}

/* libjpeg goes on after damage; the copy would then hold its guess, and hide that there was any. */
static void on_message(j_common_ptr info, int level)
{
    struct job *job = (struct job *)info->err;

    if (level >= 0)
        return;
    if (info->err->msg_code == JWRN_JPEG_EOF)
        job->warning = MN_TRUNCATED;
    else if (!job->warning)
        job->warning = MN_CORRUPT;
}

static void on_output(j_common_ptr info)
{
    (void)info; /* the caller says it, not standard error */
}

static void on_progress(j_common_ptr info)
{
    struct job *job = (struct job *)info->err;

    if (info->is_decompressor && ((j_decompress_ptr)info)->input_scan_number > MOST_SCANS)
        give_up(job, MN_UNSUPPORTED);
}

/* ---- where libjpeg writes; its own memory destination leaks when an error ends it early ---- */

static void begin_sink(j_compress_ptr info)
{
    struct job *job = (struct job *)info->err;

    job->sink.next_output_byte = job->out;
    job->sink.free_in_buffer = job->capacity;
}

static boolean grow_sink(j_compress_ptr info)
{
    struct job *job = (struct job *)info->err;
    size_t full = job->capacity;
    uint8_t *larger = realloc(job->out, 2 * full);

    if (!larger)
        give_up(job, MN_NO_MEMORY);
    job->out = larger;
    job->capacity = 2 * full;
    job->sink.next_output_byte = job->out + full;
    job->sink.free_in_buffer = full;
    return TRUE;
}

static void end_sink(j_compress_ptr info)
{
    struct job *job = (struct job *)info->err;

    job->length = job->capacity - job->sink.free_in_buffer;
}

/* ---- reading, writing ---- */

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* All of the file's coefficients, or no return. */
static jvirt_barray_ptr *read_source(struct job *job, const uint8_t *data, int64_t length)
{
    j_decompress_ptr source = &job->source;
    jvirt_barray_ptr *coefficients;

    jpeg_create_decompress(source);
    source->progress = &job->progress;
    jpeg_mem_src(source, data, (unsigned long)length);
    jpeg_read_header(source, TRUE);
    if ((int64_t)source->image_width * source->image_height > MOST_PIXELS)
        give_up(job, MN_TOO_LARGE);
    if (source->data_precision != 8 || source->arith_code)
        give_up(job, MN_UNSUPPORTED);
    if (source->jpeg_color_space != JCS_GRAYSCALE && source->jpeg_color_space != JCS_YCbCr &&
        source->jpeg_color_space != JCS_RGB)
        give_up(job, MN_UNSUPPORTED);
    /* JFIF says YCbCr and Adobe says RGB: decoders differ in whom they believe. */
    if (source->saw_JFIF_marker && source->saw_Adobe_marker && source->Adobe_transform == 0 &&
        source->num_components == 3)
        give_up(job, MN_UNSUPPORTED);
    coefficients = jpeg_read_coefficients(source);
    if (job->warning)
        give_up(job, job->warning);
    return coefficients;
}

/* MCUs between restarts: the smallest of low..high that divides a row, so that segments lie in
 * columns; else a row, which always does. */
static int choose_interval(int per_row, int low, int high)
{
    for (int k = low > 1 ? low : 1; k <= high && k < per_row; k++)
        if (per_row % k == 0)
            return k;
    return per_row;
}

static void write_target(struct job *job, jvirt_barray_ptr *coefficients, int low, int high)
{
    j_decompress_ptr source = &job->source;
    j_compress_ptr target = &job->target;
    /* One component's MCU is a block, whatever sampling factors the file gives it. */
    int single = source->num_components == 1;
    int per_row = (int)ceil_div(source->image_width, single ? 8 : 8 * source->max_h_samp_factor);
    int rows = (int)ceil_div(source->image_height, single ? 8 : 8 * source->max_v_samp_factor);

    job->writing = 1;
    jpeg_create_compress(target);
    job->capacity = 65536;
    job->out = malloc(job->capacity);
    if (!job->out)
        give_up(job, MN_NO_MEMORY);
    job->sink.init_destination = begin_sink;
    job->sink.empty_output_buffer = grow_sink;
    job->sink.term_destination = end_sink;
    target->dest = &job->sink;
    /* Chooses markers by colour space: JFIF for grey and YCbCr, Adobe's for RGB.  With these every
     * decoder sees what libjpeg saw, also where it had to guess from the components' numbers. */
    jpeg_copy_critical_parameters(source, target);
    if (target->jpeg_color_space == JCS_YCbCr)
        for (int i = 0; i < 3; i++)
            target->comp_info[i].component_id = i + 1;
    target->optimize_coding = TRUE;
    job->interval = choose_interval(per_row, low, high);
    job->expected = (int64_t)(per_row / job->interval) * rows;
    target->restart_interval = (unsigned)job->interval;
    jpeg_write_coefficients(target, coefficients);
    jpeg_finish_compress(target);
    jpeg_finish_decompress(source);
    if (job->warning)
        give_up(job, job->warning);
}

/* Where the scan's data begins; 0 if there is none.  For files that libjpeg has just written. */
static size_t find_scan(const uint8_t *data, size_t length)
{
    size_t at = 2;

    while (at + 4 <= length && data[at] == 0xFF) {
        int marker = data[at + 1];
        at += 2 + (size_t)(data[at + 2] << 8 | data[at + 3]);
        if (marker == 0xDA)
            return at;
    }
    return 0;
}

/* Lengths of the segments, or no return. */
static uint16_t *measure_segments(struct job *job)
{
    size_t from = find_scan(job->out, job->length), at = from;
    int64_t count = 0;
    uint16_t *lengths = malloc((size_t)job->expected * sizeof *lengths);

    if (!lengths)
        give_up(job, MN_NO_MEMORY);
    while (from && count < job->expected) {
        const uint8_t *mark = memchr(job->out + at, 0xFF, job->length - at);
        int marker;

        if (!mark || (size_t)(mark - job->out) + 2 > job->length)
            break;
        at = (size_t)(mark - job->out) + 2;
        marker = mark[1];
        if (marker != 0xD9 && (marker < 0xD0 || marker > 0xD7))
            continue; /* a stuffed byte of data */
        if (at - from > 65535) {
            free(lengths);
            give_up(job, MN_UNSUPPORTED);
        }
        lengths[count++] = (uint16_t)(at - from);
        from = at;
        if (marker == 0xD9)
            break;
    }
    if (count != job->expected || from != job->length) {
        free(lengths);
        give_up(job, MN_CORRUPT);
    }
    return lengths;
}

/* Apart from its caller, whose variables a longjmp would leave undefined. */
static int run(struct job *job, const uint8_t *data, int64_t length, int low, int high,
               uint16_t **segments)
{
    if (setjmp(job->escape))
        return job->status;
    write_target(job, read_source(job, data, length), low, high);
    *segments = measure_segments(job);
    return MN_OK;
}

int mn_restart_index(const uint8_t *data, int64_t length, int low, int high, uint8_t **out,
                     int64_t *out_length, uint16_t **segments, int64_t *num_segments)
{
    struct job *job;
    int status;

    *out = NULL;
    *segments = NULL;
    *out_length = *num_segments = 0;
    if (length <= 0)
        return MN_EMPTY;
    if (length < 2 || data[0] != 0xFF || data[1] != 0xD8)
        return MN_NOT_JPEG;
    job = calloc(1, sizeof *job);
    if (!job)
        return MN_NO_MEMORY;
    job->source.err = job->target.err = jpeg_std_error(&job->errors);
    job->errors.error_exit = on_error;
    job->errors.emit_message = on_message;
    job->errors.output_message = on_output;
    job->progress.progress_monitor = on_progress;

    status = run(job, data, length, low, high, segments);

    jpeg_destroy_compress(&job->target); /* these do nothing to what was not created */
    jpeg_destroy_decompress(&job->source);
    if (status == MN_OK) {
        *out = job->out;
        *out_length = (int64_t)job->length;
        *num_segments = job->expected;
    } else {
        free(job->out);
    }
    free(job);
    return status;
}

#else

int mn_restart_index(const uint8_t *data, int64_t length, int low, int high, uint8_t **out,
                     int64_t *out_length, uint16_t **segments, int64_t *num_segments)
{
    (void)data, (void)length, (void)low, (void)high;
    *out = NULL;
    *segments = NULL;
    *out_length = *num_segments = 0;
    return MN_UNSUPPORTED;
}

#endif

void mn_free(void *memory) { free(memory); }
