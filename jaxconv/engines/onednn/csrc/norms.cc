// Normalisations backwards: from what XLA hands over to the passes of norm_loops.h, on XLA's threads.

#include <new>
#include <vector>

#include "arrays.h"

namespace jaxconv {
namespace {

// Elements of a chunk, and its fewest rows and its most: more would be added up less exactly.
constexpr int64_t kChunk = 1 << 14, kFewestRows = 32, kMostRows = 128;

// What Python writes: so many independent normalisations, of arrays (outer, inner, groups · members), where statistics
// are over the inner axis and the members of a group, or, by rows, over all channels.
struct Norm {
  int64_t batch, outer, inner, groups, members, by_rows, centred;

  int64_t channels() const { return groups * members; }
  int64_t rows() const { return outer * inner; }
  int64_t statistics() const { return by_rows ? rows() : outer * groups; }
  int64_t padded() const { return (channels() + kVector - 1) / kVector * kVector; }
  int64_t chunk() const { return std::clamp(kChunk / channels(), kFewestRows, kMostRows); }
};

struct Parameters {
  const float *mean, *inverse, *scale;
  float *dscale, *dshift;
};

// [rows of chunk i] of a number of rows.
struct Chunks {
  int64_t rows, each;
  int64_t count() const { return (rows + each - 1) / each; }
  int64_t begin(int64_t i) const { return i * each; }
  int64_t end(int64_t i) const { return std::min(rows, (i + 1) * each); }
};

// Σ over the chunks, in float64, of the two sums that each has for a channel.
void summed(const float* partial, int64_t chunks, int64_t stride, int64_t c, double (&sums)[2]) {
  sums[0] = sums[1] = 0;
  for (int64_t i = 0; i < chunks; ++i) {
    sums[0] += partial[2 * i * stride + c], sums[1] += partial[(2 * i + 1) * stride + c];
  }
}

void by_rows(const ffi::ThreadPool& pool, const Norm& n, const NormLoops& loops, const NormArrays& arrays,
             const Parameters& p) {
  const int64_t channels = n.channels(), stride = n.padded();
  const Chunks chunks{n.rows(), n.chunk()};
  std::vector<float> partial(2 * stride * chunks.count(), 0.0f), scale(stride, 0.0f);
  std::copy(p.scale, p.scale + channels, scale.begin());
  parallel(pool, chunks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      loops.rows(arrays, chunks.begin(i), chunks.end(i), channels, p.mean, p.inverse, scale.data(), n.centred != 0,
                 partial.data() + 2 * i * stride, stride);
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sums[2];
    summed(partial.data(), chunks.count(), stride, c, sums);
    p.dshift[c] = static_cast<float>(sums[0]), p.dscale[c] = static_cast<float>(sums[1]);
  }
}

void by_columns(const ffi::ThreadPool& pool, const Norm& n, const NormLoops& loops, const NormArrays& arrays,
                const Parameters& p) {
  const int64_t channels = n.channels(), stride = n.padded();
  const Chunks chunks{n.inner, n.chunk()};
  const int64_t each = chunks.count(), all = n.outer * each;
  std::vector<float> partial(2 * stride * all, 0.0f), factors(4 * stride * n.outer, 0.0f);
  std::vector<double> dscale(channels, 0.0), dshift(channels, 0.0);
  // mean, a, b and c of NormSpread, for each outer index and channel.
  for (int64_t o = 0; o < n.outer; ++o) {
    for (int64_t c = 0; c < channels; ++c) factors[4 * o * stride + c] = p.mean[o * n.groups + c / n.members];
  }
  const auto over_chunks = [&](const auto& body) {
    parallel(pool, all, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t o = i / each, first = o * n.inner;
        body(i, first + chunks.begin(i % each), first + chunks.end(i % each), factors.data() + 4 * o * stride);
      }
    });
  };
  over_chunks([&](int64_t i, int64_t first, int64_t last, const float* mean) {
    loops.sums(arrays, first, last, channels, mean, partial.data() + 2 * i * stride, stride);
  });
  const double m = static_cast<double>(n.inner) * static_cast<double>(n.members);
  for (int64_t o = 0; o < n.outer; ++o) {
    float* f = factors.data() + 4 * o * stride;
    for (int64_t group = 0; group < n.groups; ++group) {
      const double inverse = p.inverse[o * n.groups + group];
      double along_one = 0, along_normal = 0;
      for (int64_t c = group * n.members; c < (group + 1) * n.members; ++c) {
        double sums[2];
        summed(partial.data() + 2 * o * each * stride, each, stride, c, sums);
        sums[1] *= inverse;
        dshift[c] += sums[0], dscale[c] += sums[1];
        along_one += p.scale[c] * sums[0], along_normal += p.scale[c] * sums[1];
      }
      for (int64_t c = group * n.members; c < (group + 1) * n.members; ++c) {
        f[stride + c] = static_cast<float>(inverse * p.scale[c]);
        f[2 * stride + c] = static_cast<float>(-inverse * inverse * along_normal / m);
        f[3 * stride + c] = n.centred ? static_cast<float>(-inverse * along_one / m) : 0;
      }
    }
  }
  std::copy(dscale.begin(), dscale.end(), p.dscale);
  std::copy(dshift.begin(), dshift.end(), p.dshift);
  over_chunks([&](int64_t, int64_t first, int64_t last, const float* f) {
    loops.spread(arrays, first, last, channels, f, stride);
  });
}

const char* parse(ffi::Span<const int64_t> d, Norm& n) {
  if (d.size() != 7) return "a description of another length";
  if (!countable({d[0], d[1], d[2], d[3], d[4]})) return "sizes must fit 63 bits in bytes";
  n = {d[0], d[1], d[2], d[3], d[4], d[5], d[6]};
  if (n.by_rows && (n.inner != 1 || n.groups != 1)) return "rows of one group";
  return nullptr;
}

ffi::Error norm_gradient(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> mean,
                         ffi::Buffer<ffi::F32> inverse, ffi::Buffer<ffi::F32> scale, ffi::Result<ffi::AnyBuffer> dx,
                         ffi::ResultBuffer<ffi::F32> dscale, ffi::ResultBuffer<ffi::F32> dshift,
                         ffi::Span<const int64_t> norm) {
  Norm n;
  if (const char* wrong = parse(norm, n)) return refused("a normalisation: ", wrong);
  Float dtype;
  const auto kind = x.element_type();
  if (!float_of(kind, dtype) || g.element_type() != kind || dx->element_type() != kind) {
    return refused("a normalisation: arrays of different dtypes, or of an unknown one");
  }
  const NormLoops* passes = loops().norm(dtype);
  if (passes == nullptr) return refused("a normalisation: another dtype than float32, bfloat16 or float16");
  const int64_t size = n.rows() * n.channels(), statistics = n.statistics(), channels = n.channels();
  const auto has = [&](const auto& a, int64_t count) { return holds(a, n.batch * count); };
  if (!has(g, size) || !has(x, size) || !has(*dx, size) || !has(mean, statistics) || !has(inverse, statistics) ||
      !has(scale, channels) || !has(*dscale, channels) || !has(*dshift, channels)) {
    return refused("a normalisation: arrays of other sizes than it was lowered for");
  }
  const int64_t bytes = size * static_cast<int64_t>(ffi::ByteWidth(kind));
  const auto at = [](auto* p, int64_t offset) { return p == nullptr ? p : p + offset; };
  try {
    for (int64_t b = 0; b < n.batch; ++b) {
      const NormArrays arrays{at(static_cast<const char*>(g.untyped_data()), b * bytes),
                              at(static_cast<const char*>(x.untyped_data()), b * bytes),
                              at(static_cast<char*>(dx->untyped_data()), b * bytes)};
      const Parameters p{at(mean.typed_data(), b * statistics), at(inverse.typed_data(), b * statistics),
                         at(scale.typed_data(), b * channels), at(dscale->typed_data(), b * channels),
                         at(dshift->typed_data(), b * channels)};
      std::fill_n(p.dscale, channels, 0.0f), std::fill_n(p.dshift, channels, 0.0f);
      if (size > 0) (n.by_rows ? by_rows : by_columns)(pool, n, *passes, arrays, p);
    }
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxconv: no memory for the sums of a normalisation");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxconv

JAXCONV_HANDLER(jaxconv_norm_gradient, jaxconv::norm_gradient,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Ret<xla::ffi::AnyBuffer>()
                    .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                    .Attr<xla::ffi::Span<const int64_t>>("norm"));
