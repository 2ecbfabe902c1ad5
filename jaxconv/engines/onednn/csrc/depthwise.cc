// The kernel gradient of a depthwise convolution, channels last: rows of x against rows of δ, for each tap.

#include <new>
#include <vector>

#include "arrays.h"

namespace jaxconv {
namespace {

constexpr int64_t kMostAxes = 4;
// Into so many parts the rows are divided, whatever the number of threads; fewer where their sums would be larger.
constexpr int64_t kPieces = 64, kSums = 1 << 22;

struct Axis {
  int64_t n, out, k, stride, dilation, lo;
};

// What Python writes: [batch, channels] and for each axis [n, out, taps, stride, dilation, lo], of which lo may be negative.
struct Depthwise {
  int64_t batch, channels, rank;
  Axis axes[kMostAxes];

  int64_t product(int64_t Axis::* of, int64_t axes_counted) const {
    int64_t product = 1;
    for (int64_t i = 0; i < axes_counted; ++i) product *= axes[i].*of;
    return product;
  }
  const Axis& last() const { return axes[rank - 1]; }
};

const char* parse(ffi::Span<const int64_t> d, Depthwise& layer) {
  const int64_t numbers = static_cast<int64_t>(d.size());
  layer.rank = (numbers - 2) / 6;
  if (numbers < 8 || numbers != 2 + 6 * layer.rank || layer.rank > kMostAxes) return "a description of another length";
  for (int64_t i = 0; i < numbers; ++i) {
    if (d[i] >= (int64_t{1} << 31) || d[i] <= -(int64_t{1} << 31)) return "sizes must fit 31 bits";
  }
  layer.batch = d[0], layer.channels = d[1];
  if (layer.batch < 1 || layer.channels < 1) return "sizes must be at least 1";
  for (int64_t i = 0; i < layer.rank; ++i) {
    const int64_t* a = &d[2 + 6 * i];
    layer.axes[i] = {a[0], a[1], a[2], a[3], a[4], a[5]};
    for (int64_t j = 0; j < 5; ++j) {
      if (a[j] < 1) return "sizes along an axis must be at least 1";
    }
  }
  for (auto of : {&Axis::n, &Axis::out, &Axis::k}) {
    std::vector<int64_t> sizes = {layer.batch, layer.channels};
    for (int64_t i = 0; i < layer.rank; ++i) sizes.push_back(layer.axes[i].*of);
    if (!countable(sizes)) return "the bytes of an array must fit 63 bits";
  }
  return nullptr;
}

// The row-major index as one for each of `count` axes.
void unravel(int64_t index, const Depthwise& layer, int64_t Axis::* of, int64_t count, int64_t* to) {
  for (int64_t i = count; i-- > 0;) to[i] = index % (layer.axes[i].*of), index /= layer.axes[i].*of;
}

// First and last + 1 of the outputs for which a tap reads an input, along an axis.
std::pair<int64_t, int64_t> reading(const Axis& a, int64_t tap) {
  const int64_t offset = tap * a.dilation - a.lo;
  const int64_t first = offset < 0 ? (-offset + a.stride - 1) / a.stride : 0;
  const int64_t last = a.n - offset <= 0 ? 0 : (a.n - offset - 1) / a.stride + 1;
  return {first, std::max(first, std::min(last, a.out))};
}

// One row of δ against the rows of x that the taps of all but the last axis read, added to sums[tap, channel].
void row(const Depthwise& layer, DepthwiseRow loop, const char* x, const char* g, int64_t width, int64_t index,
         float* sums, int64_t stride) {
  const int64_t outer = layer.rank - 1, rows = layer.product(&Axis::out, outer), taps = layer.product(&Axis::k, outer);
  const int64_t example = index / rows;
  int64_t p[kMostAxes], tap[kMostAxes];
  unravel(index % rows, layer, &Axis::out, outer, p);
  const Axis& last = layer.last();
  for (int64_t t = 0; t < taps; ++t) {
    unravel(t, layer, &Axis::k, outer, tap);
    int64_t at = example;
    bool inside = true;
    for (int64_t i = 0; i < outer && inside; ++i) {
      const Axis& a = layer.axes[i];
      const int64_t q = p[i] * a.stride + tap[i] * a.dilation - a.lo;
      inside = 0 <= q && q < a.n;
      at = at * a.n + q;
    }
    if (!inside) continue;
    for (int64_t j = 0; j < last.k; ++j) {
      const auto [begin, end] = reading(last, j);
      if (begin == end) continue;
      const int64_t q = begin * last.stride + j * last.dilation - last.lo;
      loop(x + (at * last.n + q) * layer.channels * width, g + (index * last.out + begin) * layer.channels * width,
           end - begin, last.stride, layer.channels, sums + (t * last.k + j) * stride);
    }
  }
}

ffi::Error depthwise_kernel_grad(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer g,
                                 ffi::ResultBuffer<ffi::F32> dw, ffi::Span<const int64_t> depthwise) {
  Depthwise layer;
  if (const char* wrong = parse(depthwise, layer)) return refused("a depthwise convolution: ", wrong);
  Float dtype;
  if (!float_of(x.element_type(), dtype) || g.element_type() != x.element_type() || dtype == Float::kF64) {
    return refused("a depthwise convolution: x and δ must be float32, bfloat16 or float16, both the same");
  }
  const int64_t taps = layer.product(&Axis::k, layer.rank), each = layer.channels;
  const auto has = [&](const auto& a, int64_t count) { return holds(a, count * each); };
  if (!has(x, layer.batch * layer.product(&Axis::n, layer.rank)) ||
      !has(g, layer.batch * layer.product(&Axis::out, layer.rank)) || !has(*dw, taps)) {
    return refused("a depthwise convolution: arrays of other sizes than it was lowered for");
  }
  const int64_t rows = layer.batch * layer.product(&Axis::out, layer.rank - 1);
  const int64_t stride = (each + kVector - 1) / kVector * kVector;
  const int64_t pieces = std::min(rows, std::clamp<int64_t>(kSums / (taps * stride), 2, kPieces));
  const int64_t width = static_cast<int64_t>(ffi::ByteWidth(x.element_type()));
  const DepthwiseRow loop = loops().depthwise(dtype);
  try {
    std::vector<float> partial(static_cast<size_t>(pieces * taps * stride), 0.0f);
    parallel(pool, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        for (int64_t i = rows * piece / pieces; i < rows * (piece + 1) / pieces; ++i) {
          row(layer, loop, static_cast<const char*>(x.untyped_data()), static_cast<const char*>(g.untyped_data()), width,
              i, partial.data() + piece * taps * stride, stride);
        }
      }
    });
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < each; ++c) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) sum += partial[(piece * taps + t) * stride + c];
        dw->typed_data()[t * each + c] = static_cast<float>(sum);
      }
    }
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxconv: no memory for the sums of a kernel gradient");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxconv

JAXCONV_HANDLER(jaxconv_depthwise_kernel_grad, jaxconv::depthwise_kernel_grad,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Attr<xla::ffi::Span<const int64_t>>("depthwise"));
