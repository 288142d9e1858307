// Single layers on a CPU for networks other than ConvNets, compiled together with kernels.cpp, whose parts they use: 3x3
// convolution, and instance norm with an optional residual and ReLU.

// Convolution with stride 1 and padding 1: [count][side][side][channels_in] -> [count][side][side][channels_out]; weight
// as for `winograd_forward`. Tiles of all images are grouped, so that weights are read once per TILES tiles.
extern "C" void winograd_convolve(const float* images, const Shape* shape, const float* weight, float* out,
                                  int threads) {
    const Shape s = *shape;
    const long across = s.side / 4, tiles = across * across, all = s.count * tiles;
    const long together = std::min(TILES, (all + threads - 1) / threads), area = s.side * s.side;
#pragma omp parallel num_threads(threads)
    {
        Transformed group(s, together);
#pragma omp for schedule(static)
        for (long first = 0; first < all; first += together) {
            const long number = std::min(together, all - first);
            group.take(images, first, number);
            for (long c = 0; c < s.channels_out; c += BLOCK) {
                group.multiply(weight + c * POSITIONS * s.channels_in);
                for (long t = 0; t < number; t++) {
                    const long tile = (first + t) % tiles;
                    float* map = out + (first + t) / tiles * area * s.channels_out + c;
                    for (long v = 0; v < BLOCK; v += L)
                        transform_output(group.product.get() + t * BLOCK + v, group.product_stride, map + v, s.side,
                                         s.channels_out, tile / across * 4, tile % across * 4);
                }
            }
        }
    }
}

constexpr long WIDE = 32;          // channels normalised together: two cache lines of each position
constexpr long VECTORS = WIDE / L;
constexpr long STRETCH = 32;       // positions that are summed before they are added to the total, for small rounding

struct Maps {  // [count][area][channels]
    long count, area, channels, with_relu;
};

// Sums of N values of `term(position, vector)` over the positions, each for WIDE channels.
template <int N, class Term>
static inline void sums(long area, vec (*total)[VECTORS], const Term& term) {
    for (int n = 0; n < N; n++)
        for (long i = 0; i < VECTORS; i++) total[n][i] = vec{};
    for (long start = 0; start < area; start += STRETCH) {
        vec part[N][VECTORS] = {};
        for (long p = start; p < std::min(start + STRETCH, area); p++)
#pragma GCC unroll 8
            for (long i = 0; i < VECTORS; i++) term(p, i, part);
        for (int n = 0; n < N; n++)
            for (long i = 0; i < VECTORS; i++) total[n][i] += part[n][i];
    }
}

// relu((x - mean) / sqrt(variance + eps) * weight + bias + residual); residual may be null. Mean and 1 / sqrt(variance
// + eps) are written to `moments`, [2][count][channels].
extern "C" void norm_relu_forward(const float* x, const Maps* maps, const float* weight, const float* bias, float eps,
                                  const float* residual, float* out, float* moments, int threads) {
    const Maps m = *maps;
    const float count = float(m.area);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long n = 0; n < m.count; n++)
        for (long k = 0; k < m.channels; k += WIDE) {
            const long start = n * m.area * m.channels + k;
            const float* map = x + start;
            float* mean_at = moments + n * m.channels + k;
            float* inverse_at = mean_at + m.count * m.channels;
            vec total[1][VECTORS], mean[VECTORS], scale[VECTORS], shift[VECTORS];
            sums<1>(m.area, total, [&](long p, long i, auto& part) { part[0][i] += load(map + p * m.channels + i * L); });
            for (long i = 0; i < VECTORS; i++) mean[i] = total[0][i] / splat(count);
            sums<1>(m.area, total, [&](long p, long i, auto& part) {
                const vec d = load(map + p * m.channels + i * L) - mean[i];
                part[0][i] += d * d;
            });
            for (long i = 0; i < VECTORS; i++) {
                vec inverse;
                for (long j = 0; j < L; j++) inverse[j] = 1.0f / __builtin_sqrtf(total[0][i][j] / count + eps);
                store(mean_at + i * L, mean[i]);
                store(inverse_at + i * L, inverse);
                scale[i] = inverse * load(weight + k + i * L);
                shift[i] = load(bias + k + i * L) - mean[i] * scale[i];
            }
            for (long p = 0; p < m.area; p++)
#pragma GCC unroll 8
                for (long i = 0; i < VECTORS; i++) {
                    const long at = p * m.channels + i * L;
                    vec y = load(map + at) * scale[i] + shift[i];
                    if (residual) y += load(residual + start + at);
                    store(out + start + at, m.with_relu ? relu(y) : y);
                }
        }
}

// Gradients from that of the output, `grad`: of x; of the norm's weight and bias, per image, [count][channels]; and, if
// not null, of the residual. `out` is the output, or null without a residual, where it is computed again.
extern "C" void norm_relu_backward(const float* x, const Maps* maps, const float* weight, const float* bias,
                                   const float* out, const float* moments, const float* grad, float* grad_x,
                                   float* grad_weight, float* grad_bias, float* grad_residual, int threads) {
    const Maps m = *maps;
    const float count = float(m.area);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long n = 0; n < m.count; n++)
        for (long k = 0; k < m.channels; k += WIDE) {
            const long start = n * m.area * m.channels + k, own = n * m.channels + k;
            vec mean[VECTORS], inverse[VECTORS], scale[VECTORS], shift[VECTORS], total[2][VECTORS];
            for (long i = 0; i < VECTORS; i++) {
                mean[i] = load(moments + own + i * L);
                inverse[i] = load(moments + m.count * m.channels + own + i * L);
                scale[i] = inverse[i] * load(weight + k + i * L);
                shift[i] = load(bias + k + i * L) - mean[i] * scale[i];
            }
            const auto before_relu = [&](long at, long i, vec z) {  // gradient
                const vec g = load(grad + at), y = out ? load(out + at) : z * scale[i] + shift[i];
                return m.with_relu ? (y > vec{} ? g : vec{}) : g;
            };
            sums<2>(m.area, total, [&](long p, long i, auto& part) {
                const long at = start + p * m.channels + i * L;
                const vec z = load(x + at), g = before_relu(at, i, z);
                part[0][i] += g;
                part[1][i] += g * (z - mean[i]);
                if (grad_residual) store(grad_residual + at, g);
            });
            vec average[VECTORS], slope[VECTORS];
            for (long i = 0; i < VECTORS; i++) {
                const vec product = total[1][i] * inverse[i];
                store(grad_bias + own + i * L, total[0][i]);
                store(grad_weight + own + i * L, product);
                average[i] = total[0][i] / splat(count);
                slope[i] = product * inverse[i] / splat(count);
            }
            for (long p = 0; p < m.area; p++)
#pragma GCC unroll 8
                for (long i = 0; i < VECTORS; i++) {
                    const long at = start + p * m.channels + i * L;
                    const vec z = load(x + at);
                    store(grad_x + at, scale[i] * (before_relu(at, i, z) - average[i] - (z - mean[i]) * slope[i]));
                }
        }
}
