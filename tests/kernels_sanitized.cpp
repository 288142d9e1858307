// Calls every kernel at many shapes, to be compiled with the sanitizers of addresses and undefined behaviour.

#include <cstdio>
#include <vector>

#include "kernels.cpp"
#include "layers.cpp"

using Floats = std::vector<float>;

static Floats counted(long size) {
    Floats x(size);
    for (long i = 0; i < size; i++) x[i] = float(i % 13) - 6;
    return x;
}

static void direct(long side, long count, long in, long out) {
    const long pooled = side * side / 4, columns = (in * 9 + BLOCK - 1) / BLOCK * BLOCK;
    const Floats x = counted(count * in * side * side), weight(out * in * 9, 0.1f), transposed(out * columns, 0.1f);
    const Floats gain(out, 1.0f), shift(out, 0.0f), grad(count * out * pooled, 1.0f);
    Floats result(count * out * pooled), of_gain(count * out), of_shift(count * out), of_x(x.size());
    Floats of_weight(2 * out * in * 9);
    const Strides by{in * side * side, side * side, side, 1};
    const Shape shape{count, side, in, out};
    direct_forward(x.data(), &by, &shape, weight.data(), gain.data(), shift.data(), 1e-5f, result.data(), 2);
    direct_backward(x.data(), &by, &shape, weight.data(), transposed.data(), gain.data(), shift.data(), 1e-5f,
                    grad.data(), of_gain.data(), of_shift.data(), of_x.data(), of_weight.data(), 2);
    direct_backward(x.data(), &by, &shape, weight.data(), nullptr, gain.data(), shift.data(), 1e-5f, grad.data(),
                    of_gain.data(), of_shift.data(), nullptr, nullptr, 2);
}

static void winograd(long side, long count, long in, long out) {
    const long pooled = side * side / 4;
    const Floats x = counted(count * in * side * side), weight(36 * out * in, 0.1f);
    const Floats gain(out, 1.0f), shift(out, 0.0f), grad(count * out * pooled, 1.0f);
    Floats result(count * out * pooled), of_gain(count * out), of_shift(count * out), of_x(x.size());
    Floats of_weight(2 * 36 * out * in);
    const Shape shape{count, side, in, out};
    winograd_forward(x.data(), &shape, weight.data(), gain.data(), shift.data(), 1e-5f, result.data(), 2);
    winograd_backward(x.data(), &shape, weight.data(), weight.data(), gain.data(), shift.data(), 1e-5f, grad.data(),
                      of_gain.data(), of_shift.data(), of_x.data(), of_weight.data(), 2);
    winograd_backward(x.data(), &shape, weight.data(), nullptr, gain.data(), shift.data(), 1e-5f, grad.data(),
                      of_gain.data(), of_shift.data(), nullptr, nullptr, 2);
}

static void convolution(long side, long count, long in, long out) {
    const Floats x = counted(count * in * side * side), weight(36 * out * in, 0.1f);
    Floats result(count * out * side * side);
    const Shape shape{count, side, in, out};
    winograd_convolve(x.data(), &shape, weight.data(), result.data(), 2);
}

static void norm(long area, long count, long channels) {
    const Floats x = counted(count * channels * area), gain(channels, 1.0f), shift(channels, 0.0f), grad(x.size(), 1.0f);
    Floats result(x.size()), moments(2 * count * channels), of_x(x.size()), of_residual(x.size());
    Floats of_gain(count * channels), of_shift(count * channels);
    for (long with_relu : {0l, 1l})
        for (bool added : {false, true}) {
            const Maps maps{count, area, channels, with_relu};
            norm_relu_forward(x.data(), &maps, gain.data(), shift.data(), 1e-5f, added ? grad.data() : nullptr,
                              result.data(), moments.data(), 2);
            norm_relu_backward(x.data(), &maps, gain.data(), shift.data(), added ? result.data() : nullptr,
                               moments.data(), grad.data(), of_x.data(), of_gain.data(), of_shift.data(),
                               added ? of_residual.data() : nullptr, 2);
        }
}

int main() {
    for (long side : {2l, 6l, 8l, 28l})
        for (long count : {1l, 5l})
            for (long in : {1l, 3l, 4l}) direct(side, count, in, 2 * BLOCK);
    for (long side : {4l, 8l, 12l})
        for (long count : {1l, 5l, 17l})
            for (long in : {BLOCK, 2 * BLOCK}) winograd(side, count, in, 3 * BLOCK);
    for (long side : {4l, 8l, 12l})
        for (long count : {1l, 5l, 17l})
            for (long in : {BLOCK, 2 * BLOCK}) convolution(side, count, in, 3 * BLOCK);
    for (long area : {1l, 6l, 33l, 64l})
        for (long count : {1l, 5l}) norm(area, count, 3 * WIDE);
    std::puts("clean");
}
