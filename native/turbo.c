/* JPEGs that baseline.c leaves out, progressive and CMYK ones for instance, by libjpeg-turbo. */
#include "internal.h"

#ifndef HAVE_LIBJPEG

int mn_libjpeg(void) { return 0; }

int mn_turbo_decode(struct scratch *s, const struct mn_item *item, const struct region *want,
                    struct pixels *out)
{
    (void)s;
    (void)item;
    (void)want;
    (void)out;
    return MN_UNSUPPORTED;
}

void mn_turbo_free(struct scratch *s) { (void)s; }

#else

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

#define MOST_SCANS 200 /* a hostile file may ask for passes over the image without end */

struct turbo {
    struct jpeg_decompress_struct state;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    int status;
};

int mn_libjpeg(void) { return LIBJPEG_TURBO_VERSION_NUMBER; }

static void fail(j_common_ptr state)
{
    struct turbo *t = state->client_data;
    t->status = state->err->msg_code == JERR_OUT_OF_MEMORY ? MN_NO_MEMORY : MN_CORRUPT;
    longjmp(t->escape, 1);
}

static void message(j_common_ptr state, int level)
{
    struct turbo *t = state->client_data;
    if (level < 0 && state->err->msg_code == JWRN_JPEG_EOF) {
        t->status = MN_TRUNCATED;
        longjmp(t->escape, 1);
    }
}

static void watch(j_common_ptr state)
{
    struct turbo *t = state->client_data;
    if (t->state.input_scan_number > MOST_SCANS) {
        t->status = MN_CORRUPT;
        longjmp(t->escape, 1);
    }
}

void mn_turbo_free(struct scratch *s)
{
    free(s->turbo);
    s->turbo = NULL;
}

/* Inks, stored inverted as Adobe does and as Pillow takes for granted, to RGBX as Pillow does. */
static void from_cmyk(const uint8_t *inks, uint8_t *rgbx, int count)
{
    for (int i = 0; i < count; i++) {
        int light = inks[4 * i + 3]; /* 255 less black */
        for (int c = 0; c < 3; c++) {
            int product = (255 - inks[4 * i + c]) * light + 128;
            int value = light - ((product + (product >> 8)) >> 8);
            rgbx[4 * i + c] = (uint8_t)(value < 0 ? 0 : value);
        }
        rgbx[4 * i + 3] = 128;
    }
}

int mn_turbo_decode(struct scratch *s, const struct mn_item *item, const struct region *want,
                    struct pixels *out)
{
    struct turbo *t = s->turbo ? s->turbo : (s->turbo = calloc(1, sizeof *t));
    if (!t)
        return MN_NO_MEMORY;
    /* A new one for each image: it keeps code tables, and a file without would be decoded by those
     * of the file before. */
    struct jpeg_decompress_struct *state = &t->state;
    state->err = jpeg_std_error(&t->errors);
    t->errors.error_exit = fail;
    t->errors.emit_message = message;
    t->progress.progress_monitor = watch;
    state->client_data = t;
    if (setjmp(t->escape)) {
        jpeg_destroy_decompress(state);
        return t->status;
    }
    jpeg_create_decompress(state);
    jpeg_mem_src(state, item->data, (unsigned long)item->length);
    jpeg_read_header(state, TRUE);
    state->progress = &t->progress;
    int is_cmyk = state->jpeg_color_space == JCS_CMYK || state->jpeg_color_space == JCS_YCCK;
    if (!is_cmyk && state->num_components != 1 && state->num_components != 3) {
        jpeg_destroy_decompress(state);
        return MN_UNSUPPORTED;
    }
    state->out_color_space = is_cmyk ? JCS_CMYK : JCS_EXT_RGBX;
    jpeg_start_decompress(state);
    if ((int)state->output_width != item->width || (int)state->output_height != item->height) {
        jpeg_destroy_decompress(state);
        return MN_CORRUPT;
    }
    int width = item->width, height = want->bottom - want->top;
    ptrdiff_t stride = ((ptrdiff_t)width * 4 + 63) & ~(ptrdiff_t)63;
    uint8_t *rgbx = mn_reserve(&s->rgbx, (size_t)stride * (size_t)height + SLACK);
    uint8_t *line = mn_reserve(&s->rows, (size_t)stride + SLACK);
    if (!rgbx || !line) {
        jpeg_destroy_decompress(state);
        return MN_NO_MEMORY;
    }
    while ((int)state->output_scanline < want->bottom) {
        int y = (int)state->output_scanline;
        uint8_t *to = y < want->top ? line : rgbx + (y - want->top) * stride;
        JSAMPROW row = is_cmyk ? line : to;
        if (jpeg_read_scanlines(state, &row, 1) != 1)
            break;
        if (is_cmyk && y >= want->top)
            from_cmyk(line, to, width);
    }
    jpeg_destroy_decompress(state);
    *out = (struct pixels){rgbx, stride, 0, want->top};
    return MN_OK;
}

#endif
