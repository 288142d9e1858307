// One block of a ConvNet on a CPU, forward only: 3x3 convolution, instance norm, ReLU, 2x2 average pooling.
//
// A block's convolution is many times larger than what comes out after pooling. Here it never leaves the cache: a few
// channels of one image are convolved, normalised and pooled before the next ones. Images are [H][W][K] (channels-last),
// float32. The convolution's bias is left out, since the norm takes it away again.
//
// Two convolutions: a direct one for images of few channels, and Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016),
// which multiplies four times less, for many channels. Weights come packed, channels out in blocks of `block()`.

#include <algorithm>
#include <cstring>
#include <memory>

#if defined(__AVX512F__)
constexpr long L = 16;
#elif defined(__AVX__)
constexpr long L = 8;
#else
constexpr long L = 4;
#endif
constexpr long BLOCK = 2 * L;   // channels out that are computed together: two vectors
constexpr long ROWS = 8;        // of a matrix product that are computed together; with BLOCK, what the registers hold
constexpr long POSITIONS = 36;  // of a transformed tile, 6x6
constexpr long TILES = 64;      // transformed at a time, at most

typedef float vec __attribute__((vector_size(L * sizeof(float))));

static inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof(v)); }
static inline vec splat(float x) { return x - vec{}; }  // exact, and compiled to a single broadcast
static inline vec relu(vec v) { return v < vec{} ? vec{} : v; }  // NaN stays NaN

using Buffer = std::unique_ptr<float[]>;

// Instance norm, affine, ReLU and pooling of L channels: map [side][side][stride] -> out [side/2][side/2][channels].
static void norm_relu_pool(const float* map, long side, long stride, const float* weight, const float* bias, float eps,
                           float* out, long channels) {
    const float count = float(side * side);
    vec total{};
    for (long y = 0; y < side; y++) {
        vec row{};
        for (long x = 0; x < side; x++) row += load(map + (y * side + x) * stride);
        total += row;
    }
    const vec mean = total / splat(count);
    total = vec{};
    for (long y = 0; y < side; y++) {
        vec row{};
        for (long x = 0; x < side; x++) {
            const vec d = load(map + (y * side + x) * stride) - mean;
            row += d * d;
        }
        total += row;
    }
    vec scale, gain = load(weight);
    for (long i = 0; i < L; i++) scale[i] = gain[i] / __builtin_sqrtf(total[i] / count + eps);
    const vec shift = load(bias) - mean * scale;
    for (long y = 0; y < side / 2; y++)
        for (long x = 0; x < side / 2; x++) {
            const float* p = map + (2 * y * side + 2 * x) * stride;
            const vec sum = relu(load(p) * scale + shift) + relu(load(p + stride) * scale + shift) +
                            relu(load(p + side * stride) * scale + shift) +
                            relu(load(p + (side + 1) * stride) * scale + shift);
            store(out + (y * (side / 2) + x) * channels, sum * splat(0.25f));
        }
}

// ROWS x depth times depth x BLOCK; `a` has rows `stride` apart, `b` is packed, `c` has rows BLOCK apart.
static inline void product(const float* a, long stride, const float* b, long depth, float* c) {
    vec sum[ROWS][2] = {};
    for (long k = 0; k < depth; k++) {
        const vec b0 = load(b + k * BLOCK), b1 = load(b + k * BLOCK + L);
#pragma GCC unroll 8
        for (long r = 0; r < ROWS; r++) {
            const vec x = splat(a[r * stride + k]);
            sum[r][0] += x * b0;
            sum[r][1] += x * b1;
        }
    }
    for (long r = 0; r < ROWS; r++) {
        store(c + r * BLOCK, sum[r][0]);
        store(c + r * BLOCK + L, sum[r][1]);
    }
}

// N neighbouring pixels of a row, BLOCK channels: `in` is a padded plane a channel.
template <int N>
static inline void pixels(const float* in, long channels, long plane, long line, const float* weight, float* out) {
    vec sum[N][2] = {};
    for (long k = 0; k < channels; k++)
        for (long i = 0; i < 3; i++)
            for (long j = 0; j < 3; j++) {
                const float* p = in + k * plane + i * line + j;
                const vec w0 = load(weight), w1 = load(weight + L);
                weight += BLOCK;
#pragma GCC unroll 8
                for (long r = 0; r < N; r++) {
                    const vec x = splat(p[r]);
                    sum[r][0] += x * w0;
                    sum[r][1] += x * w1;
                }
            }
    for (long r = 0; r < N; r++) {
        store(out + r * BLOCK, sum[r][0]);
        store(out + r * BLOCK + L, sum[r][1]);
    }
}

static inline void input_line(const vec d[6], vec v[6]) {
    const vec odd = d[3] - 4.0f * d[1], even = d[4] - 4.0f * d[2], near = 2.0f * (d[3] - d[1]), far = d[4] - d[2];
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = far + near;
    v[4] = far - near;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

static inline void output_line(const vec m[6], vec o[4]) {
    const vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    o[0] = m[0] + p + r;
    o[1] = q + 2.0f * s;
    o[2] = p + 4.0f * r;
    o[3] = q + 8.0f * s + m[5];
}

// One tile of L channels, from the image's row y0 and column x0 (which may lie outside), to its 36 positions.
static inline void transform_input(const float* image, long side, long channels, long y0, long x0, float* out,
                                   long stride) {
    vec half[6][6];
    for (long j = 0; j < 6; j++) {
        vec d[6], v[6];
        for (long i = 0; i < 6; i++) {
            const long y = y0 + i, x = x0 + j;
            const bool inside = y >= 0 && y < side && x >= 0 && x < side;
            d[i] = inside ? load(image + (y * side + x) * channels) : vec{};
        }
        input_line(d, v);
        for (long i = 0; i < 6; i++) half[i][j] = v[i];
    }
    for (long i = 0; i < 6; i++) {
        vec v[6];
        input_line(half[i], v);
        for (long j = 0; j < 6; j++) store(out + (6 * i + j) * stride, v[j]);
    }
}

static inline void transform_output(const float* in, long stride, float* map, long side, long y0, long x0) {
    vec half[4][6];
    for (long j = 0; j < 6; j++) {
        vec m[6], o[4];
        for (long i = 0; i < 6; i++) m[i] = load(in + (6 * i + j) * stride);
        output_line(m, o);
        for (long i = 0; i < 4; i++) half[i][j] = o[i];
    }
    for (long i = 0; i < 4; i++) {
        vec o[4];
        output_line(half[i], o);
        for (long j = 0; j < 4; j++) store(map + ((y0 + i) * side + x0 + j) * L, o[j]);
    }
}

extern "C" long block() { return BLOCK; }

// images [count][side][side][channels_in], by strides in floats; weight [channels_out/BLOCK][channels_in*9][BLOCK].
extern "C" void direct_block(const float* images, long count, long side, long channels_in, long stride_image,
                             long stride_channel, long stride_row, long stride_column, const float* weight,
                             long channels_out, const float* norm_weight, const float* norm_bias, float eps, float* out,
                             int threads) {
    const long line = side + 2, plane = line * line;
#pragma omp parallel num_threads(threads)
    {
        Buffer padded(new float[channels_in * plane]()), map(new float[side * side * BLOCK]);
#pragma omp for
        for (long n = 0; n < count; n++) {
            for (long k = 0; k < channels_in; k++)
                for (long y = 0; y < side; y++)
                    for (long x = 0; x < side; x++)
                        padded[k * plane + (y + 1) * line + x + 1] =
                            images[n * stride_image + k * stride_channel + y * stride_row + x * stride_column];
            float* pooled = out + n * (side / 2) * (side / 2) * channels_out;
            for (long c = 0; c < channels_out; c += BLOCK) {
                const float* w = weight + c * channels_in * 9;
                for (long y = 0; y < side; y++) {
                    const float* row = padded.get() + y * line;
                    float* target = map.get() + y * side * BLOCK;
                    long x = 0;
                    for (; x + 8 <= side; x += 8) pixels<8>(row + x, channels_in, plane, line, w, target + x * BLOCK);
                    for (; x < side; x += 2) pixels<2>(row + x, channels_in, plane, line, w, target + x * BLOCK);
                }
                for (long v = 0; v < BLOCK; v += L)
                    norm_relu_pool(map.get() + v, side, BLOCK, norm_weight + c + v, norm_bias + c + v, eps,
                                   pooled + c + v, channels_out);
            }
        }
    }
}

// images [count][side][side][channels_in]; weight [channels_out/BLOCK][36][channels_in][BLOCK], transformed.
extern "C" void winograd_block(const float* images, long count, long side, long channels_in, const float* weight,
                               long channels_out, const float* norm_weight, const float* norm_bias, float eps, float* out,
                               int threads) {
    const long across = side / 4, tiles = across * across;
    // images: enough for long matrix products, few enough for the cache, and for every thread to have some
    const long together = std::max(1l, std::min(TILES / tiles, (count + threads - 1) / threads));
    // whole ROWS, the last ones unused, so that a tile's values do not depend on how many there are
    const long most = (together * tiles + ROWS - 1) / ROWS * ROWS, groups = (count + together - 1) / together;
    // a line of padding, so that the positions of a tile do not fall on the same lines of the cache
    const long in_stride = most * channels_in + 16, out_stride = most * BLOCK + 16;
#pragma omp parallel num_threads(threads)
    {
        Buffer in(new float[POSITIONS * in_stride]()), products(new float[POSITIONS * out_stride]);
        Buffer map(new float[side * side * L]);
#pragma omp for
        for (long g = 0; g < groups; g++) {
            const long first = g * together, last = std::min(count, first + together), rows = (last - first) * tiles;
            for (long t = 0; t < rows; t++) {
                const float* image = images + (first + t / tiles) * side * side * channels_in;
                const long y0 = t % tiles / across * 4 - 1, x0 = t % across * 4 - 1;
                for (long k = 0; k < channels_in; k += L)
                    transform_input(image + k, side, channels_in, y0, x0, in.get() + t * channels_in + k, in_stride);
            }
            for (long c = 0; c < channels_out; c += BLOCK) {
                for (long p = 0; p < POSITIONS; p++) {
                    const float* a = in.get() + p * in_stride;
                    const float* b = weight + (c * POSITIONS + p * BLOCK) * channels_in;
                    float* target = products.get() + p * out_stride;
                    for (long r = 0; r < rows; r += ROWS)
                        product(a + r * channels_in, channels_in, b, channels_in, target + r * BLOCK);
                }
                for (long n = first; n < last; n++)
                    for (long v = 0; v < BLOCK; v += L) {
                        for (long t = 0; t < tiles; t++)
                            transform_output(products.get() + ((n - first) * tiles + t) * BLOCK + v, out_stride,
                                             map.get(), side, t / across * 4, t % across * 4);
                        norm_relu_pool(map.get(), side, L, norm_weight + c + v, norm_bias + c + v, eps,
                                       out + n * (side / 2) * (side / 2) * channels_out + c + v, channels_out);
                    }
            }
        }
    }
}
