/* Statistics of two next-token laws from float32 logits: the definitions of core/laws.py, row by row, for any compiler.

   A row is read three times: for its largest logits, for every sum that is linear in the logits, and for JS and TV; the
   next row is fetched into the cache meanwhile. Loops are plain, for the compiler to vectorise; sums are float32 within
   a tile of columns and double across tiles. exp and log are polynomials of relative error below 1e-7: least-maximum
   fits of (e^r - 1 - r)/r^2 on |r| <= ln(2)/2 and of (ln(1 + f) - f + f^2/2)/f^3 between sqrt(1/2) and sqrt(2). */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { RUN = 64, TILE = 2048, SHORT_TILE = 128, LINE = 16 }; /* LINE: floats that the cache fetches at once */
static const float LOWEST = -1e30f;                /* stands for -inf where a product with probability 0 must be 0 */
static const float BELOW_ONE = 1 - 1 / 4194304.0f; /* the step of float32 between 2 and 4, where 3 + u lies */
static const float SHIFTER = 12582912.0f;          /* 1.5 * 2^23: adding it rounds to a whole number */
static const float LEAST = -87;                    /* exp below is 0: not worth the digits in a sum, ... */
static const float NOTHING = -103;                 /* ... but in float32 a probability is 0 from here on */

static inline float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
static inline uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, sizeof bits); return bits; }

/* exp(x) for x <= 0; 0 below LEAST. */
static inline float exp_of(float x)
{
    float bounded = x < LEAST ? LEAST : x;
    float shifted = bounded * 1.44269504f + SHIFTER, n = shifted - SHIFTER;
    float r = bounded - n * 0.693145752f - n * 1.42860677e-6f; /* ln 2 in two parts, the first with few digits */
    float y = 0.00138145475f * r + 0.00836874545f;
    y = ((y * r + 0.041668389f) * r + 0.166665211f) * r + 0.49999994f;
    y = y * (r * r) + r + 1;
    return x < LEAST ? 0 : from_bits(to_bits(y) + (to_bits(shifted) << 23));
}

/* ln(x) for normal x > 0. */
static inline float log_of(float x)
{
    int32_t exponent = (int32_t)(to_bits(x) - to_bits(0.70710678f)) >> 23;
    float f = from_bits(to_bits(x) - ((uint32_t)exponent << 23)) - 1;
    float y = -0.0763437152f * f + 0.12761533f;
    y = ((y * f - 0.131602079f) * f + 0.142017648f) * f - 0.166233554f;
    y = ((y * f + 0.200012267f) * f - 0.250008225f) * f + 0.333333313f;
    return (y * f - 0.5f) * (f * f) + f + (float)exponent * 0.693147181f;
}

/* Writes the largest of each whole run of RUN logits and how many are above a value; returns the largest of all. NaN is
   passed over. */
static float run_maxima(const float *logits, int64_t vocabulary, float value, float *maxima, int64_t *above)
{
    float largest = -INFINITY;
    int64_t runs = vocabulary / RUN;
    *above = 0;
    for (int64_t run = 0; run < runs; run++) {
        float most = -INFINITY;
        int32_t more = 0;
#pragma omp simd reduction(max : most) reduction(+ : more)
        for (int i = 0; i < RUN; i++) {
            most = logits[run * RUN + i] > most ? logits[run * RUN + i] : most;
            more += logits[run * RUN + i] > value;
        }
        maxima[run] = most;
        largest = most > largest ? most : largest;
        *above += more;
    }
    for (int64_t i = runs * RUN; i < vocabulary; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
        *above += logits[i] > value;
    }
    return largest;
}

/* Sums over a row of p = exp(zp - top_p), p*x, p*(x - y), the same of q, and on how many tokens a law has mass that the
   other excludes. excluding: some logits are -inf; otherwise these numbers stay 0 and a -inf gives NaN. */
static inline void linear_sums(
    const float *zp, const float *zq, int64_t vocabulary, float top_p, float top_q, int excluding, double sums[8])
{
    memset(sums, 0, 8 * sizeof *sums);
    for (int64_t start = 0; start < vocabulary; start += TILE) {
        int stop = vocabulary - start < TILE ? (int)(vocabulary - start) : TILE;
        float sum_p = 0, sum_q = 0, p_x = 0, q_y = 0, p_d = 0, q_d = 0, lost_p = 0, lost_q = 0;
#pragma omp simd reduction(+ : sum_p, sum_q, p_x, q_y, p_d, q_d, lost_p, lost_q)
        for (int i = 0; i < stop; i++) {
            float x = zp[start + i] - top_p, y = zq[start + i] - top_q;
            float p = exp_of(x), q = exp_of(y);
            if (excluding) {
                lost_p += y == -INFINITY && x > NOTHING ? 1 : 0;
                lost_q += x == -INFINITY && y > NOTHING ? 1 : 0;
                x = x < LOWEST ? LOWEST : x;
                y = y < LOWEST ? LOWEST : y;
            }
            sum_p += p;
            sum_q += q;
            p_x += p * x;
            q_y += q * y;
            p_d += p * (x - y);
            q_d += q * (x - y);
        }
        double tile[8] = {sum_p, sum_q, p_x, q_y, p_d, q_d, lost_p, lost_q};
        for (int k = 0; k < 8; k++) sums[k] += tile[k];
    }
}

/* JS and TV times the sum of p; q is `ratio` times exp(zq - top_q). next_p, next_q: logits that will be read next. */
static void curved_sums(
    const float *zp, const float *zq, int64_t vocabulary, float top_p, float top_q, float ratio,
    const float *next_p, const float *next_q, double *js, double *tv)
{
    *js = *tv = 0;
    for (int64_t start = 0; start < vocabulary; start += SHORT_TILE) { /* short, so that fetching is spread out */
        int stop = vocabulary - start < SHORT_TILE ? (int)(vocabulary - start) : SHORT_TILE;
        for (int i = 0; i < stop; i += LINE) {
            __builtin_prefetch(next_p + start + i);
            __builtin_prefetch(next_q + start + i);
        }
        float bent = 0, apart = 0;
#pragma omp simd reduction(+ : bent, apart)
        for (int i = 0; i < stop; i++) {
            float p = exp_of(zp[start + i] - top_p), q = ratio * exp_of(zq[start + i] - top_q);
            float total = p + q, difference = p - q;
            float three = 3 + BELOW_ONE * (difference / (total < FLT_MIN ? FLT_MIN : total));
            bent += p * log_of(three - 2) + q * log_of(4 - three);
            apart += fabsf(difference);
        }
        *js += 0.5 * bent;
        *tv += 0.5 * apart;
    }
}

/* One row; stride_p, stride_q: where the next row begins, 0 after the last. */
static void row(
    const float *zp, const float *zq, int64_t stride_p, int64_t stride_q, int64_t vocabulary,
    int64_t token, float *maxima_p, float *maxima_q, float found[8], int64_t ranks[2])
{
    float top_p = run_maxima(zp, vocabulary, zp[token], maxima_p, ranks);
    float top_q = run_maxima(zq, vocabulary, zq[token], maxima_q, ranks + 1);
    double sums[8], js, tv;
    linear_sums(zp, zq, vocabulary, top_p, top_q, 0, sums);
    if (!isfinite(sums[2] + sums[3] + sums[4] + sums[5])) linear_sums(zp, zq, vocabulary, top_p, top_q, 1, sums);
    double sum_p = isnan(sums[2]) ? NAN : sums[0], sum_q = isnan(sums[3]) ? NAN : sums[1]; /* exp_of may lose a NaN */
    double log_p = log(sum_p), log_q = log(sum_q);
    curved_sums(
        zp, zq, vocabulary, top_p, top_q, (float)(sum_p / sum_q), zp + stride_p, zq + stride_q, &js, &tv);
    found[0] = (float)(top_p + log_p);
    found[1] = (float)(top_q + log_q);
    found[2] = (float)(js / sum_p);
    found[3] = sums[6] > 0 ? INFINITY : (float)(sums[4] / sum_p - log_p + log_q);
    found[4] = sums[7] > 0 ? INFINITY : (float)(log_p - log_q - sums[5] / sum_q);
    found[5] = (float)(tv / sum_p);
    found[6] = (float)(log_p - sums[2] / sum_p);
    found[7] = (float)(log_q - sums[3] / sum_q);
}

/* For each row: found[8] = both log-sum-exps and the six of DIVERGENCES, the largest logit of each run of both, and how
   many tokens are more probable than the row's own token under both. Strides of the logits count floats from row to
   row; the other arrays are dense. */
void shiftscope_laws(
    const float *logits_p, const float *logits_q, int64_t stride_p, int64_t stride_q, int64_t rows, int64_t vocabulary,
    const int64_t *tokens, float *maxima_p, float *maxima_q, float *found, int64_t *ranks)
{
    int64_t runs = vocabulary / RUN;
    for (int64_t r = 0; r < rows; r++) {
        int64_t more = r + 1 < rows;
        row(logits_p + r * stride_p, logits_q + r * stride_q, more * stride_p, more * stride_q, vocabulary,
            tokens[r], maxima_p + r * runs, maxima_q + r * runs, found + r * 8, ranks + r * 2);
    }
}
