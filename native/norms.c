/* Batch norm of a batch's own statistics, with ReLU6 and an addition behind it, and its gradient.

   Feature maps are float32, channels last: rows of `channels` values. All sums go over the rows of
   a block, one after the other, then over the blocks, in double; blocks depend on the number of
   channels alone. So the bits are the same for any number of threads and any width of vectors.

   OpenMP's functions are left undefined: they are those of the library that torch has loaded, so
   that there is one pool of threads. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

enum { ABI = 2, BLOCK = 32768 /* values: 128 KB, which stay in a core's cache between passes */ };

typedef struct {
    int64_t rows, channels, per_block, blocks;
} Shape;

static Shape shape_of(int64_t rows, int64_t channels) {
    Shape s = {rows, channels, BLOCK / channels, 0};
    if (s.per_block < 1) s.per_block = 1;
    s.blocks = (rows + s.per_block - 1) / s.per_block;
    return s;
}

static int64_t rows_in(const Shape *s, int64_t block) {
    return block < s->blocks - 1 ? s->per_block : s->rows - block * s->per_block;
}

/* ---- blocks: bound by memory, so plain loops are as fast as any ---- */

/* A mean that has been rounded, and sums of the distances from it and of their squares. */
FOR_EACH_PROCESSOR
static void moments(const float *restrict x, int64_t rows, int64_t channels, float *restrict mean,
                    float *restrict sum, float *restrict squares) {
    for (int64_t c = 0; c < channels; c++) mean[c] = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) mean[c] += x[r * channels + c];
    for (int64_t c = 0; c < channels; c++) {
        mean[c] /= (float)rows;
        sum[c] = squares[c] = 0;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) {
            float d = x[r * channels + c] - mean[c];
            sum[c] += d;
            squares[c] += d * d;
        }
}

FOR_EACH_PROCESSOR
static void normalize(const float *restrict x, const float *restrict shortcut, float *restrict y,
                      int64_t rows, int64_t channels, int64_t added, const float *restrict mean,
                      const float *restrict scale, const float *restrict shift, float low,
                      float high) {
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * channels;
        float *to = y + r * channels;
        for (int64_t c = 0; c < channels; c++) {
            float v = (from[c] - mean[c]) * scale[c] + shift[c];
            v = v < low ? low : v; /* keeps NaN */
            to[c] = v > high ? high : v;
        }
        for (int64_t c = 0; c < added; c++) to[c] += shortcut[r * channels + c];
    }
}

/* The gradient before ReLU6, whose own is 0 at 0 and at 6. */
static inline float through(float x, float g, float mean, float scale, float shift, float low,
                            float high) {
    float v = (x - mean) * scale + shift;
    return (v <= low) | (v >= high) ? 0.0f : g;
}

FOR_EACH_PROCESSOR
static void gradient_sums(const float *restrict x, const float *restrict dy, int64_t rows,
                          int64_t channels, const float *restrict mean,
                          const float *restrict scale, const float *restrict shift, float low,
                          float high, float *restrict sum, float *restrict product) {
    for (int64_t c = 0; c < channels; c++) sum[c] = product[c] = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * channels, *g = dy + r * channels;
        for (int64_t c = 0; c < channels; c++) {
            float d = through(from[c], g[c], mean[c], scale[c], shift[c], low, high);
            sum[c] += d;
            product[c] += d * (from[c] - mean[c]);
        }
    }
}

FOR_EACH_PROCESSOR
static void gradient(const float *restrict x, const float *restrict dy, float *restrict dx,
                     int64_t rows, int64_t channels, const float *restrict mean,
                     const float *restrict scale, const float *restrict shift, float low,
                     float high, const float *restrict constant, const float *restrict slope) {
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * channels, *g = dy + r * channels;
        float *to = dx + r * channels;
        for (int64_t c = 0; c < channels; c++) {
            float d = through(from[c], g[c], mean[c], scale[c], shift[c], low, high);
            to[c] = scale[c] * d - constant[c] - (from[c] - mean[c]) * slope[c];
        }
    }
}

/* ---- whole feature maps ---- */

EXPORT int mn_norms_abi(void) { return ABI; }

/* Floats that `work` of both functions below has to hold. */
EXPORT int64_t mn_norm_work(int64_t rows, int64_t channels) {
    Shape s = shape_of(rows, channels);
    return 3 * (s.blocks + 1) * channels;
}

/* y = clamp((x - mean) * scale + bias, low, high), plus the shortcut in the first `added` channels.

   `kept` gets five rows for the gradient: mean, what rounding took from it, 1 / deviation, scale,
   and shift, which is the bias and has back what rounding took. Running statistics move towards
   the batch's by `momentum`; the variance as it is estimated from a sample. */
EXPORT void mn_norm(const float *x, const float *shortcut, float *y, int64_t rows,
                    int64_t channels, int64_t added, const float *weight, const float *bias,
                    float *running_mean, float *running_var, double momentum, double eps,
                    float low, float high, float *kept, float *work, int threads) {
    Shape s = shape_of(rows, channels);
#pragma omp parallel for schedule(static) num_threads(threads) if (s.blocks > 1)
    for (int64_t b = 0; b < s.blocks; b++) {
        float *to = work + 3 * b * channels;
        moments(x + b * s.per_block * channels, rows_in(&s, b), channels, to, to + channels,
                to + 2 * channels);
    }
    float *means = kept, *rest = kept + channels, *inverse = kept + 2 * channels,
          *scale = kept + 3 * channels, *shift = kept + 4 * channels;
    for (int64_t c = 0; c < channels; c++) {
        double mean = 0, squares = 0, seen = 0; /* of blocks so far: Chan, Golub and LeVeque */
        for (int64_t b = 0; b < s.blocks; b++) {
            const float *of = work + 3 * b * channels + c;
            double count = (double)rows_in(&s, b), all = seen + count;
            double off = of[channels] / count, apart = of[0] + off - mean;
            mean += apart * (count / all);
            squares += of[2 * channels] - off * off * count + apart * apart * (seen * count / all);
            seen = all;
        }
        if (squares < 0) squares = 0; /* of equal values, rounding leaves anything near 0 */
        double deviation = 1 / sqrt(squares / seen + eps);
        means[c] = (float)mean;
        rest[c] = (float)(mean - means[c]);
        inverse[c] = (float)deviation;
        scale[c] = (float)(weight[c] * deviation);
        shift[c] = (float)(bias[c] - (double)rest[c] * scale[c]);
        running_mean[c] = (float)(momentum * mean + (1 - momentum) * running_mean[c]);
        running_var[c] =
            (float)(momentum * (squares / (seen - 1)) + (1 - momentum) * running_var[c]);
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (s.blocks > 1)
    for (int64_t b = 0; b < s.blocks; b++) {
        int64_t first = b * s.per_block * channels;
        normalize(x + first, shortcut + (added ? first : 0), y + first, rows_in(&s, b), channels,
                  added, means, scale, shift, low, high);
    }
}

/* Gradients of x, weight and bias. */
EXPORT void mn_norm_backward(const float *x, const float *dy, float *dx, int64_t rows,
                             int64_t channels, float low, float high, const float *kept,
                             float *dweight, float *dbias, float *work, int threads) {
    Shape s = shape_of(rows, channels);
    const float *mean = kept, *rest = kept + channels, *inverse = kept + 2 * channels,
                *scale = kept + 3 * channels, *shift = kept + 4 * channels;
#pragma omp parallel for schedule(static) num_threads(threads) if (s.blocks > 1)
    for (int64_t b = 0; b < s.blocks; b++) {
        int64_t first = b * s.per_block * channels;
        gradient_sums(x + first, dy + first, rows_in(&s, b), channels, mean, scale, shift, low,
                      high, work + 2 * b * channels, work + (2 * b + 1) * channels);
    }
    float *constant = work + 2 * s.blocks * channels, *slope = constant + channels;
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t b = 0; b < s.blocks; b++) {
            sum += work[2 * b * channels + c];
            product += work[(2 * b + 1) * channels + c];
        }
        product -= sum * rest[c];
        double deviation = inverse[c];
        double steep = scale[c] * deviation * deviation * product / (double)rows;
        dweight[c] = (float)(product * deviation);
        dbias[c] = (float)sum;
        constant[c] = (float)(scale[c] * sum / (double)rows - steep * rest[c]);
        slope[c] = (float)steep;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (s.blocks > 1)
    for (int64_t b = 0; b < s.blocks; b++) {
        int64_t first = b * s.per_block * channels;
        gradient(x + first, dy + first, dx + first, rows_in(&s, b), channels, mean, scale, shift,
                 low, high, constant, slope);
    }
}
