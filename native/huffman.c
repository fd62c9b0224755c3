/* Tables that turn the next bits of a scan into a coefficient, or into a number of coefficients. */
#include "internal.h"

static struct coefficient describe(int length, int symbol, int is_dc)
{
    int size = symbol & 15;
    struct coefficient c = {.drop = (uint8_t)(length + size), .length = (uint8_t)length,
                            .shift = (uint8_t)(-size & 63), .bias = 1 - (1 << size)};
    c.places = (uint8_t)(is_dc ? 1 : symbol ? (symbol >> 4) + 1 : END + 1);
    return c;
}

struct coefficient mn_huffman_find(const struct huffman *t, uint64_t bits, int is_dc)
{
    uint32_t code = (uint32_t)(bits >> 48);
    int length = 1;
    while (code >= t->limit[length])
        length++;
    int place = length > 16 ? -1 : (int)(code >> (16 - length)) + t->first[length];
    if (place < 0 || place >= t->count)
        return (struct coefficient){0};
    return describe(length, t->values[place], is_dc);
}

/* The symbols that fit into `bits`, found by the lengths of one symbol each in `one`: drop and
 * coefficients, for an end-of-block no coefficients. */
static uint32_t skip_entry(const uint8_t (*one)[2], uint32_t bits)
{
    uint32_t drop = one[bits][0], places = one[bits][1] & 127;
    if (!drop)
        return 0;
    uint32_t entry = drop << 16 | places << 24, ends = one[bits][1] >> 7;
    while (!ends && drop < SKIP_BITS && places < 48) {
        const uint8_t *next = one[bits << drop & ((1u << SKIP_BITS) - 1)];
        /* Bits behind the last one are zeros here: a code that needs them is not known. */
        if (!next[0] || drop + next[0] > SKIP_BITS)
            break;
        drop += next[0];
        places += next[1] & 127;
        ends = next[1] >> 7;
    }
    return entry | drop | places << 8 | ends << 31;
}

int mn_huffman_build(struct huffman *table, const uint8_t *counts, const uint8_t *values, int is_dc)
{
    uint8_t one[1 << SKIP_BITS][2]; /* bits of a symbol, and coefficients; 128: an end-of-block */
    uint32_t code = 0;
    int place = 0;
    memset(table->fast, 0, sizeof table->fast);
    memset(one, 0, sizeof one);
    for (int length = 1; length <= 16; length++) {
        table->first[length] = place - (int32_t)code;
        for (int i = 0; i < counts[length - 1]; i++, code++, place++) {
            if (place >= 256 || code >= 1u << length)
                return -1;
            int symbol = values[place], size = symbol & 15;
            /* Sizes beyond these are for 12 bits a sample, runs without a size for other scans. */
            if (is_dc ? symbol > 11 : size > 10 || (!size && symbol % 0xF0))
                return -1;
            table->values[place] = (uint8_t)symbol;
            /* 16 zeros in a row are rare, and the one symbol whose value must not be stored. */
            if (length <= FAST_BITS && (is_dc || symbol != 0xF0)) {
                struct coefficient entry = describe(length, symbol, is_dc);
                uint32_t base = code << (FAST_BITS - length);
                for (uint32_t rest = 0; rest < 1u << (FAST_BITS - length); rest++)
                    table->fast[base + rest] = entry;
            }
            if (length <= SKIP_BITS && !is_dc) {
                uint32_t base = code << (SKIP_BITS - length);
                for (uint32_t rest = 0; rest < 1u << (SKIP_BITS - length); rest++) {
                    one[base + rest][0] = (uint8_t)(length + size);
                    one[base + rest][1] = (uint8_t)(symbol ? (symbol >> 4) + 1 : 128);
                }
            }
        }
        table->limit[length] = code << (16 - length);
        code <<= 1;
    }
    table->limit[17] = UINT32_MAX;
    table->count = place;
    for (uint32_t bits = 0; !is_dc && bits < 1u << SKIP_BITS; bits++)
        table->skip[bits] = skip_entry(one, bits);
    return place > 0 ? 0 : -1;
}
