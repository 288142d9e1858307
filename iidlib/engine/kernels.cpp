// One block of a ConvNet on a CPU: 3x3 convolution, instance norm, ReLU, 2x2 average pooling, and its gradients.
//
// The output of a block's convolution is much larger than the result after pooling. Here it never leaves the cache: a
// few channels of one image are convolved, normalised and pooled before the next ones, and the backward pass recomputes
// them instead of reading them back. Images are [H][W][K] (channels-last), float32. The convolution's bias is skipped,
// since the norm cancels it.
//
// There are two convolutions: a direct one for few input channels, and Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR
// 2016), with a quarter of the multiplications, for many. Weights are packed, output channels in blocks of `block()`.

#include <algorithm>
#include <cstring>
#include <memory>

#ifdef _OPENMP
extern "C" int omp_get_thread_num();
#else
static int omp_get_thread_num() { return 0; }
#endif

#if defined(__AVX512F__)
constexpr long L = 16;
#elif defined(__AVX__)
constexpr long L = 8;
#else
constexpr long L = 4;
#endif
constexpr long BLOCK = 2 * L;               // output channels computed together: two vectors
constexpr long ROWS = L == 16 ? 8 : 6;      // of a matrix product computed together; ROWS x BLOCK values fill registers
constexpr long POSITIONS = 36;              // of a transformed tile, 6x6
constexpr long TILES = 64;                  // most tiles transformed at a time
constexpr long TAPS = 36;                   // most taps of a direct convolution: 3x3 of 4 input channels

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

struct Norm {  // z * scale + shift is the normalised, affine value; (z - mean) * inverse is the normalised value
    vec mean, inverse, scale, shift;
};

// Sum over all pixels of a map: of each row, then of the rows; `add(sum, y, x)` adds a pixel. An addition waits for the
// one before, so four rows are summed side by side, in the same order each.
template <typename Add>
static inline vec total_of(long side, const Add& add) {
    vec total{};
    long y = 0;
    for (; y + 4 <= side; y += 4) {
        vec rows[4] = {};
        for (long x = 0; x < side; x++)
#pragma GCC unroll 4
            for (long i = 0; i < 4; i++) add(rows[i], y + i, x);
        for (long i = 0; i < 4; i++) total += rows[i];
    }
    for (; y < side; y++) {
        vec row{};
        for (long x = 0; x < side; x++) add(row, y, x);
        total += row;
    }
    return total;
}

// Mean, then variance, of L channels of a map [side][side][stride].
static Norm norm_of(const float* map, long side, long stride, const float* weight, const float* bias, float eps) {
    const float count = float(side * side);
    const auto at = [&](long y, long x) { return load(map + (y * side + x) * stride); };
    Norm norm;
    norm.mean = total_of(side, [&](vec& sum, long y, long x) { sum += at(y, x); }) / splat(count);
    const vec squares = total_of(side, [&](vec& sum, long y, long x) {
        const vec d = at(y, x) - norm.mean;
        sum += d * d;
    });
    for (long i = 0; i < L; i++) norm.inverse[i] = 1.0f / __builtin_sqrtf(squares[i] / count + eps);
    norm.scale = norm.inverse * load(weight);
    norm.shift = load(bias) - norm.mean * norm.scale;
    return norm;
}

// Norm, ReLU and pooling of L channels: map [side][side][stride] -> out [side/2][side/2][channels].
static void norm_relu_pool(const float* map, long side, long stride, const float* weight, const float* bias, float eps,
                           float* out, long channels) {
    const Norm norm = norm_of(map, side, stride, weight, bias, eps);
    const vec scale = norm.scale, shift = norm.shift;
    for (long y = 0; y < side / 2; y++)
        for (long x = 0; x < side / 2; x++) {
            const float* p = map + (2 * y * side + 2 * x) * stride;
            const vec sum = relu(load(p) * scale + shift) + relu(load(p + stride) * scale + shift) +
                            relu(load(p + side * stride) * scale + shift) +
                            relu(load(p + (side + 1) * stride) * scale + shift);
            store(out + (y * (side / 2) + x) * channels, sum * splat(0.25f));
        }
}

// Replaces the map by its gradient, computed from that of `out`; also the gradients of the norm's weight and bias.
static void norm_relu_pool_backward(float* map, long side, long stride, const float* weight, const float* bias,
                                    float eps, const float* grad, long channels, float* grad_weight,
                                    float* grad_bias) {
    const Norm norm = norm_of(map, side, stride, weight, bias, eps);
    const auto gradient = [&](vec z, long y, long x) {  // before ReLU
        const vec g = load(grad + (y / 2 * (side / 2) + x / 2) * channels) * splat(0.25f);
        return z * norm.scale + norm.shift > vec{} ? g : vec{};
    };
    vec sum{}, product{};
    for (long y = 0; y < side; y++) {
        vec row{}, row_product{};
        for (long x = 0; x < side; x++) {
            const vec z = load(map + (y * side + x) * stride), g = gradient(z, y, x);
            row += g;
            row_product += g * ((z - norm.mean) * norm.inverse);
        }
        sum += row;
        product += row_product;
    }
    store(grad_bias, sum);
    store(grad_weight, product);
    const float count = float(side * side);
    const vec mean = sum / splat(count), slope = product / splat(count);
    for (long y = 0; y < side; y++)
        for (long x = 0; x < side; x++) {
            float* p = map + (y * side + x) * stride;
            const vec z = load(p), normalised = (z - norm.mean) * norm.inverse;
            store(p, norm.scale * (gradient(z, y, x) - mean - normalised * slope));
        }
}

// c (+)= a b, R x depth times depth x BLOCK: a[r][k] is at a + r * a_row + k * a_depth; rows of b are b_row apart, rows
// of c c_row apart.
template <bool ADD, long R>
static inline void product(const float* a, long a_row, long a_depth, const float* b, long b_row, long depth, float* c,
                           long c_row) {
    vec sum[R][2] = {};
    for (long k = 0; k < depth; k++) {
        const vec b0 = load(b + k * b_row), b1 = load(b + k * b_row + L);
#pragma GCC unroll 8
        for (long r = 0; r < R; r++) {
            const vec x = splat(a[r * a_row + k * a_depth]);
            sum[r][0] += x * b0;
            sum[r][1] += x * b1;
        }
    }
#pragma GCC unroll 8
    for (long r = 0; r < R; r++) {
        float* p = c + r * c_row;
        store(p, ADD ? load(p) + sum[r][0] : sum[r][0]);
        store(p + L, ADD ? load(p + L) + sum[r][1] : sum[r][1]);
    }
}

// The same for an even number of rows; the values of a row do not depend on the number of rows.
template <bool ADD>
static inline void products(const float* a, long a_row, long a_depth, const float* b, long b_row, long depth, float* c,
                            long c_row, long rows) {
    long r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        product<ADD, ROWS>(a + r * a_row, a_row, a_depth, b, b_row, depth, c + r * c_row, c_row);
    for (; r + 4 <= rows; r += 4)
        product<ADD, 4>(a + r * a_row, a_row, a_depth, b, b_row, depth, c + r * c_row, c_row);
    for (; r < rows; r += 2)
        product<ADD, 2>(a + r * a_row, a_row, a_depth, b, b_row, depth, c + r * c_row, c_row);
}

// N adjacent pixels of a row, BLOCK channels; `in` is a padded image, whose value for a tap is `offsets` further on.
template <int N>
static inline void pixels(const float* in, const long* offsets, long taps, const float* weight, float* out) {
    vec sum[N][2] = {};
    for (long t = 0; t < taps; t++) {
        const float* p = in + offsets[t];
        const vec w0 = load(weight + t * BLOCK), w1 = load(weight + t * BLOCK + L);
#pragma GCC unroll 8
        for (long r = 0; r < N; r++) {
            const vec x = splat(p[r]);
            sum[r][0] += x * w0;
            sum[r][1] += x * w1;
        }
    }
#pragma GCC unroll 8
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

// Transforms a tile of L channels at the image's row y0 and column x0 (possibly outside) into 36 positions.
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

// Writes a tile of L channels to a map [side][side][channels].
static inline void transform_output(const float* in, long stride, float* map, long side, long channels, long y0,
                                    long x0) {
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
        for (long j = 0; j < 4; j++) store(map + ((y0 + i) * side + x0 + j) * channels, o[j]);
    }
}

// Transposes of input_line and output_line, for gradients.
static inline void input_line_backward(const vec v[6], vec d[6]) {
    const vec sum = v[1] + v[2], gap = v[1] - v[2], far_sum = v[3] + v[4], far_gap = v[3] - v[4];
    d[0] = 4.0f * v[0];
    d[1] = 4.0f * v[5] - 4.0f * gap - 2.0f * far_gap;
    d[2] = -5.0f * v[0] - 4.0f * sum - far_sum;
    d[3] = gap + 2.0f * far_gap - 5.0f * v[5];
    d[4] = v[0] + sum + far_sum;
    d[5] = v[5];
}

static inline void output_line_backward(const vec o[4], vec m[6]) {
    const vec even = o[0] + o[2], odd = o[1] + o[3];
    const vec far_even = o[0] + 4.0f * o[2], far_odd = 2.0f * o[1] + 8.0f * o[3];
    m[0] = o[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = far_even + far_odd;
    m[4] = far_even - far_odd;
    m[5] = o[3];
}

// Gradient of 36 positions from that of one tile of a map [side][side][L].
static inline void transform_output_backward(const float* map, long side, long y0, long x0, float* out, long stride) {
    vec half[6][4];
    for (long j = 0; j < 4; j++) {
        vec o[4], m[6];
        for (long i = 0; i < 4; i++) o[i] = load(map + ((y0 + i) * side + x0 + j) * L);
        output_line_backward(o, m);
        for (long i = 0; i < 6; i++) half[i][j] = m[i];
    }
    for (long i = 0; i < 6; i++) {
        vec m[6];
        output_line_backward(half[i], m);
        for (long j = 0; j < 6; j++) store(out + (6 * i + j) * stride, m[j]);
    }
}

// Adds the gradient of 36 positions to an image [side][side][channels] where the tile overlaps it.
static inline void transform_input_backward(const float* in, long stride, float* image, long side, long channels,
                                            long y0, long x0) {
    vec half[6][6];
    for (long j = 0; j < 6; j++) {
        vec v[6], d[6];
        for (long i = 0; i < 6; i++) v[i] = load(in + (6 * i + j) * stride);
        input_line_backward(v, d);
        for (long i = 0; i < 6; i++) half[i][j] = d[i];
    }
    for (long i = 0; i < 6; i++) {
        vec d[6];
        input_line_backward(half[i], d);
        for (long j = 0; j < 6; j++) {
            const long y = y0 + i, x = x0 + j;
            if (y < 0 || y >= side || x < 0 || x >= side) continue;
            float* p = image + (y * side + x) * channels;
            store(p, load(p) + d[j]);
        }
    }
}

struct Shape {
    long count, side, channels_in, channels_out;
};

// Direct convolution of BLOCK channels of a padded image [channels_in][side+2][side+2] into a map [side][side][BLOCK].
static void convolve(const float* padded, const Shape& s, const float* weight, float* map) {
    const long line = s.side + 2, taps = s.channels_in * 9;
    long offsets[TAPS];
    for (long t = 0; t < taps; t++) offsets[t] = t / 9 * line * line + t % 9 / 3 * line + t % 3;
    for (long y = 0; y < s.side; y++) {
        const float* row = padded + y * line;
        float* target = map + y * s.side * BLOCK;
        long x = 0;
        // two pixels are slow, since each addition waits for the one before: 32 = 4 * 6 + 2 * 4
        for (; x + ROWS <= s.side && s.side - x != ROWS + 2; x += ROWS)
            pixels<ROWS>(row + x, offsets, taps, weight, target + x * BLOCK);
        for (; x + 4 <= s.side; x += 4) pixels<4>(row + x, offsets, taps, weight, target + x * BLOCK);
        for (; x < s.side; x += 2) pixels<2>(row + x, offsets, taps, weight, target + x * BLOCK);
    }
}

// Number of images that go through Winograd's algorithm together: enough for long matrix products, few enough for the
// cache and for every thread to have work.
static long images_together(const Shape& s, int threads) {
    const long tiles = (s.side / 4) * (s.side / 4);
    return std::max(1l, std::min(TILES / tiles, (s.count + threads - 1) / threads));
}

// Transformed images and a block of their convolution.
struct Transformed {
    const Shape s;
    const long across, tiles, most, in_stride, product_stride;  // strides from position to position
    long rows = 0;                                              // tiles in use
    Buffer in, product;

    // For at most `tiles_together` tiles, rounded up to an even number. Positions are padded by a cache line, so that those
    // of a tile do not map to the same cache lines.
    Transformed(const Shape& shape, long tiles_together)
        : s(shape),
          across(s.side / 4),
          tiles(across * across),
          most((tiles_together + 1) / 2 * 2),
          in_stride(most * s.channels_in + 16),
          product_stride(most * BLOCK + 16),
          in(new float[POSITIONS * in_stride]()),
          product(new float[POSITIONS * product_stride]()) {}

    // Transforms tiles, numbered across all images.
    void take(const float* images, long first, long number) {
        rows = number;
        for (long t = first; t < first + number; t++) {
            const float* image = images + t / tiles * s.side * s.side * s.channels_in;
            for (long k = 0; k < s.channels_in; k += L)
                transform_input(image + k, s.side, s.channels_in, t % tiles / across * 4 - 1, t % across * 4 - 1,
                                in.get() + (t - first) * s.channels_in + k, in_stride);
        }
    }

    // weight [36][channels_in][BLOCK]
    void multiply(const float* weight) {
        for (long p = 0; p < POSITIONS; p++)
            products<false>(in.get() + p * in_stride, s.channels_in, 1, weight + p * s.channels_in * BLOCK, BLOCK,
                            s.channels_in, product.get() + p * product_stride, BLOCK, (rows + 1) / 2 * 2);
    }

    // Writes L channels of an image's convolution, starting at v, to a map [side][side][L].
    void convolution(long image, long v, float* map) const {
        for (long t = 0; t < tiles; t++)
            transform_output(product.get() + (image * tiles + t) * BLOCK + v, product_stride, map, s.side, L,
                             t / across * 4, t % across * 4);
    }
};

extern "C" long block() { return BLOCK; }

struct Strides {
    long image, channel, row, column;
};

static void pad(const float* image, const Strides& by, const Shape& s, float* padded) {
    const long line = s.side + 2, plane = line * line;
    for (long k = 0; k < s.channels_in; k++)
        for (long y = 0; y < s.side; y++)
            for (long x = 0; x < s.side; x++)
                padded[k * plane + (y + 1) * line + x + 1] = image[k * by.channel + y * by.row + x * by.column];
}

// images [count][side][side][channels_in] with strides in floats; weight [channels_out/BLOCK][channels_in*9][BLOCK].
extern "C" void direct_forward(const float* images, const Strides* by, const Shape* shape, const float* weight,
                               const float* norm_weight, const float* norm_bias, float eps, float* out, int threads) {
    const Shape s = *shape;
    const long pooled = (s.side / 2) * (s.side / 2) * s.channels_out;
#pragma omp parallel num_threads(threads)
    {
        Buffer padded(new float[s.channels_in * (s.side + 2) * (s.side + 2)]());
        Buffer map(new float[s.side * s.side * BLOCK]);
#pragma omp for schedule(static)
        for (long n = 0; n < s.count; n++) {
            pad(images + n * by->image, *by, s, padded.get());
            for (long c = 0; c < s.channels_out; c += BLOCK) {
                convolve(padded.get(), s, weight + c * s.channels_in * 9, map.get());
                for (long v = 0; v < BLOCK; v += L)
                    norm_relu_pool(map.get() + v, s.side, BLOCK, norm_weight + c + v, norm_bias + c + v, eps,
                                   out + n * pooled + c + v, s.channels_out);
            }
        }
    }
}

// Gradients from that of the output, grad [count][side/2][side/2][channels_out]: of the norm's weight and bias, per
// image, [count][channels_out]; if not null, of the images, [count][channels_in][side][side], and of the packed
// weights, per thread, added to the given values. `transposed` is [channels_out/BLOCK][taps/BLOCK][BLOCK][BLOCK], the
// weights with taps = channels_in * 9, zero-padded to a multiple of BLOCK, along the last axis.
extern "C" void direct_backward(const float* images, const Strides* by, const Shape* shape, const float* weight,
                                const float* transposed, const float* norm_weight, const float* norm_bias, float eps,
                                const float* grad, float* grad_norm_weight, float* grad_norm_bias, float* grad_images,
                                float* grad_weight, int threads) {
    const Shape s = *shape;
    const long line = s.side + 2, plane = line * line, area = s.side * s.side, pooled = area / 4 * s.channels_out;
    const long taps = s.channels_in * 9, columns = (taps + BLOCK - 1) / BLOCK * BLOCK;
#pragma omp parallel num_threads(threads)
    {
        Buffer padded(new float[s.channels_in * plane]()), map(new float[area * BLOCK]());
        Buffer patches(new float[grad_images ? area * columns : 1]);
#pragma omp for schedule(static)
        for (long n = 0; n < s.count; n++) {
            pad(images + n * by->image, *by, s, padded.get());
            if (grad_images) std::fill_n(patches.get(), area * columns, 0.0f);
            for (long c = 0; c < s.channels_out; c += BLOCK) {
                convolve(padded.get(), s, weight + c * taps, map.get());
                for (long v = 0; v < BLOCK; v += L)
                    norm_relu_pool_backward(map.get() + v, s.side, BLOCK, norm_weight + c + v, norm_bias + c + v, eps,
                                            grad + n * pooled + c + v, s.channels_out,
                                            grad_norm_weight + n * s.channels_out + c + v,
                                            grad_norm_bias + n * s.channels_out + c + v);
                if (grad_images)
                    for (long j = 0; j < columns; j += BLOCK)
                        products<true>(map.get(), BLOCK, 1, transposed + (c * columns + j * BLOCK), BLOCK, BLOCK,
                                       patches.get() + j, columns, area);
                if (grad_weight) {
                    float* own = grad_weight + (omp_get_thread_num() * s.channels_out + c) * taps;
                    for (long k = 0; k < s.channels_in; k++) {
                        vec sum[9][2] = {};
                        for (long y = 0; y < s.side; y++)
                            for (long x = 0; x < s.side; x++) {
                                const float* p = padded.get() + k * plane + y * line + x;
                                const float* m = map.get() + (y * s.side + x) * BLOCK;
                                const vec m0 = load(m), m1 = load(m + L);
#pragma GCC unroll 9
                                for (long t = 0; t < 9; t++) {
                                    const vec value = splat(p[t / 3 * line + t % 3]);
                                    sum[t][0] += value * m0;
                                    sum[t][1] += value * m1;
                                }
                            }
                        for (long t = 0; t < 9; t++) {
                            float* p = own + (k * 9 + t) * BLOCK;
                            store(p, load(p) + sum[t][0]);
                            store(p + L, load(p + L) + sum[t][1]);
                        }
                    }
                }
            }
            if (!grad_images) continue;
            float* target = grad_images + n * s.channels_in * area;
            for (long k = 0; k < s.channels_in; k++)
                for (long y = 0; y < s.side; y++)
                    for (long x = 0; x < s.side; x++) {
                        float sum = 0;
                        for (long i = 0; i < 3; i++)
                            for (long j = 0; j < 3; j++) {
                                const long py = y + 1 - i, px = x + 1 - j;  // the output that read it through this tap
                                if (py < 0 || py >= s.side || px < 0 || px >= s.side) continue;
                                sum += patches[(py * s.side + px) * columns + k * 9 + i * 3 + j];
                            }
                        target[k * area + y * s.side + x] = sum;
                    }
        }
    }
}

// images [count][side][side][channels_in]; weight [channels_out/BLOCK][36][channels_in][BLOCK], transformed.
extern "C" void winograd_forward(const float* images, const Shape* shape, const float* weight, const float* norm_weight,
                                 const float* norm_bias, float eps, float* out, int threads) {
    const Shape s = *shape;
    const long together = images_together(s, threads), tiles = (s.side / 4) * (s.side / 4);
    const long pooled = (s.side / 2) * (s.side / 2) * s.channels_out;
#pragma omp parallel num_threads(threads)
    {
        Transformed group(s, together * tiles);
        Buffer map(new float[s.side * s.side * L]);
#pragma omp for schedule(static)
        for (long first = 0; first < s.count; first += together) {
            const long number = std::min(together, s.count - first);
            group.take(images, first * tiles, number * tiles);
            for (long c = 0; c < s.channels_out; c += BLOCK) {
                group.multiply(weight + c * POSITIONS * s.channels_in);
                for (long n = 0; n < number; n++)
                    for (long v = 0; v < BLOCK; v += L) {
                        group.convolution(n, v, map.get());
                        norm_relu_pool(map.get(), s.side, L, norm_weight + c + v, norm_bias + c + v, eps,
                                       out + (first + n) * pooled + c + v, s.channels_out);
                    }
            }
        }
    }
}

// Gradients as in `direct_backward`: of the images, [count][side][side][channels_in], and of the transformed weights,
// [36][channels_in][channels_out], per thread, added. `transposed` is [channels_in/BLOCK][36][channels_out][BLOCK].
extern "C" void winograd_backward(const float* images, const Shape* shape, const float* weight, const float* transposed,
                                  const float* norm_weight, const float* norm_bias, float eps, const float* grad,
                                  float* grad_norm_weight, float* grad_norm_bias, float* grad_images,
                                  float* grad_weight, int threads) {
    const Shape s = *shape;
    const long together = images_together(s, threads), tiles = (s.side / 4) * (s.side / 4);
    const long image = s.side * s.side * s.channels_in;
    const long pooled = (s.side / 2) * (s.side / 2) * s.channels_out;
#pragma omp parallel num_threads(threads)
    {
        Transformed group(s, together * tiles);
        const long across = group.across, stride = group.most * s.channels_out + 16;
        Buffer map(new float[s.side * s.side * L]), outer(new float[POSITIONS * stride]());
#pragma omp for schedule(static)
        for (long first = 0; first < s.count; first += together) {
            const long number = std::min(together, s.count - first), rows = number * tiles;
            group.take(images, first * tiles, number * tiles);
            for (long c = 0; c < s.channels_out; c += BLOCK) {
                group.multiply(weight + c * POSITIONS * s.channels_in);
                for (long n = 0; n < number; n++)
                    for (long v = 0; v < BLOCK; v += L) {
                        const long at = (first + n) * s.channels_out + c + v;
                        group.convolution(n, v, map.get());
                        norm_relu_pool_backward(map.get(), s.side, L, norm_weight + c + v, norm_bias + c + v, eps,
                                                grad + (first + n) * pooled + c + v, s.channels_out,
                                                grad_norm_weight + at, grad_norm_bias + at);
                        for (long t = 0; t < tiles; t++)
                            transform_output_backward(map.get(), s.side, t / across * 4, t % across * 4,
                                                      outer.get() + (n * tiles + t) * s.channels_out + c + v, stride);
                    }
            }
            if (grad_images) {
                float* target = grad_images + first * image;
                std::fill_n(target, number * image, 0.0f);
                for (long k = 0; k < s.channels_in; k += BLOCK) {
                    for (long p = 0; p < POSITIONS; p++)
                        products<false>(outer.get() + p * stride, s.channels_out, 1,
                                        transposed + (k * POSITIONS + p * BLOCK) * s.channels_out, BLOCK,
                                        s.channels_out, group.product.get() + p * group.product_stride, BLOCK,
                                        (rows + 1) / 2 * 2);
                    for (long t = 0; t < rows; t++)
                        for (long v = 0; v < BLOCK; v += L)
                            transform_input_backward(group.product.get() + t * BLOCK + v, group.product_stride,
                                                     target + t / tiles * image + k + v, s.side, s.channels_in,
                                                     t % tiles / across * 4 - 1, t % across * 4 - 1);
                }
            }
            if (grad_weight)
                for (long p = 0; p < POSITIONS; p++)
                    for (long c = 0; c < s.channels_out; c += BLOCK)
                        products<true>(group.in.get() + p * group.in_stride, 1, s.channels_in,
                                       outer.get() + p * stride + c, s.channels_out, rows,
                                       grad_weight + (omp_get_thread_num() * POSITIONS + p) * s.channels_in *
                                                         s.channels_out + c,
                                       s.channels_out, s.channels_in);
        }
    }
}
