// Pools: from what XLA hands over to the walk of window_loops.h, on XLA's threads.

#include <new>
#include <vector>

#include "arrays.h"

namespace jaxconv {
namespace {

constexpr int64_t kHead = 4, kPerAxis = 8, kMostAxes = 3, kMostTaps = 1 << 15;
constexpr int64_t kMostMeetings = int64_t{1} << 20;  // each takes 24 bytes of memory
// Meetings that a thread is worth waking up for.
constexpr int64_t kGrain = 1 << 15;

// What Python writes: [what, transposed, batch, lanes] and, per spatial axis, [n, out, taps, stride, dilation, lo, before,
// after]: so much padding before and after the inputs counts as elements in an average.
struct Axis {
  int64_t n = 1, out = 1, k = 1, stride = 1, dilation = 1, lo = 0, before = 0, after = 0;

  int64_t position(int64_t p, int64_t tap) const { return stride * p + dilation * tap - lo; }

  // How many elements of window p count.
  int64_t counted(int64_t p) const {
    int64_t count = 0;
    for (int64_t j = 0; j < k; ++j) count += position(p, j) >= -before && position(p, j) < n + after;
    return count;
  }
};

struct Description {
  Window what;
  bool transposed;
  int64_t batch, lanes;
  Axis axes[kMostAxes];  // the last ones are given, those before them have one element and one tap

  int64_t inputs() const { return batch * axes[0].n * axes[1].n * axes[2].n * lanes; }
  int64_t outputs() const { return batch * axes[0].out * axes[1].out * axes[2].out * lanes; }
  int64_t taps() const { return axes[0].k * axes[1].k * axes[2].k; }
};

const char* parse(ffi::Span<const int64_t> d, Description& to) {
  const int64_t size = static_cast<int64_t>(d.size()), rank = (size - kHead) / kPerAxis;
  if (size < kHead || (size - kHead) % kPerAxis != 0 || rank < 1 || rank > kMostAxes) return "1 to 3 spatial axes";
  if (d[0] < 0 || d[0] > static_cast<int64_t>(Window::kAverage)) return "an unknown kind of window";
  to.what = static_cast<Window>(d[0]), to.transposed = d[1] != 0, to.batch = d[2], to.lanes = d[3];
  if (to.what < Window::kSum && to.transposed != (to.what == Window::kPut)) return "a direction that does not go with it";
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t* a = d.begin() + kHead + i * kPerAxis;
    for (int64_t j = 0; j < kPerAxis; ++j) {
      if (a[j] >= int64_t{1} << 31 || a[j] <= -(int64_t{1} << 31)) return "sizes must fit 31 bits";
    }
    if (a[0] < 0 || a[1] < 0 || a[2] < 1 || a[3] < 1 || a[4] < 1) return "positive sizes";
    to.axes[kMostAxes - rank + i] = {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]};
  }
  const Axis(&x)[kMostAxes] = to.axes;
  if (to.batch < 0 || to.lanes < kFewestLanes) return "at least 8 channels";
  if (!countable({to.batch, x[0].n, x[1].n, x[2].n, to.lanes}) ||
      !countable({to.batch, x[0].out, x[1].out, x[2].out, to.lanes})) {
    return "sizes must fit 63 bits in bytes";
  }
  if (!countable({x[0].k, x[1].k, x[2].k}) || to.taps() > kMostTaps) return "too many taps";
  for (const Axis& axis : to.axes) {
    if (std::max(axis.n, axis.out) * axis.k > kMostMeetings) return "too many meetings along one axis";
  }
  return nullptr;
}

// The walk with the memory that its lists lie in.
struct Lists {
  Walk walk{};
  std::vector<int64_t> begin[kMostAxes];
  std::vector<Link> links[kMostAxes];
  std::vector<int64_t> counted[kMostAxes];

  explicit Lists(const Description& d) {
    walk.most = d.taps();
    walk.lanes = d.lanes;
    int64_t weight = 1;
    for (int64_t i = kMostAxes; i-- > 0; weight *= d.axes[i].k) {
      const int64_t results = d.transposed ? d.axes[i].n : d.axes[i].out;
      counted[i].resize(std::max(d.axes[i].n, d.axes[i].out), 1);
      for (int64_t p = 0; p < d.axes[i].out && d.what == Window::kAverage; ++p) counted[i][p] = d.axes[i].counted(p);
      d.transposed ? transposed(d.axes[i], weight, i) : forwards(d.axes[i], weight, i);
      walk.axes[i] = {results, d.axes[i].n + d.axes[i].out - results, begin[i].data(), links[i].data(), counted[i].data()};
    }
  }

  void forwards(const Axis& a, int64_t weight, int64_t i) {
    begin[i].push_back(0);
    for (int64_t p = 0; p < a.out; ++p) {
      for (int64_t k = 0; k < a.k; ++k) {
        const int64_t at = a.position(p, k);
        if (at >= 0 && at < a.n) links[i].push_back({k * weight, at, 1});
      }
      begin[i].push_back(static_cast<int64_t>(links[i].size()));
    }
  }

  void transposed(const Axis& a, int64_t weight, int64_t i) {
    begin[i].push_back(0);
    for (int64_t at = 0; at < a.n; ++at) {
      for (int64_t k = 0; k < a.k; ++k) {
        const int64_t reach = at + a.lo - a.dilation * k;
        if (reach < 0 || reach % a.stride != 0 || reach / a.stride >= a.out) continue;
        links[i].push_back({k * weight, reach / a.stride, counted[i][reach / a.stride]});
      }
      begin[i].push_back(static_cast<int64_t>(links[i].size()));
    }
  }
};

ffi::Error windows(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Span<const int64_t> window) {
  Description d;
  if (const char* wrong = parse(window, d)) return refused("a window: ", wrong);
  const bool takes = d.what == Window::kTake || d.what == Window::kPut, remembers = d.what == Window::kRemember;
  if (arguments.size() != (takes ? 2u : 1u) || results.size() != (remembers ? 2u : 1u)) {
    return refused("a window: another number of arrays");
  }
  const auto operand = *arguments.get<ffi::AnyBuffer>(0);
  const auto result = **results.get<ffi::AnyBuffer>(0);
  Float dtype;
  if (!float_of(operand.element_type(), dtype) || operand.element_type() != result.element_type()) {
    return refused("a window: other dtypes than one of float32, bfloat16, float16 and float64");
  }
  const int64_t inputs = d.inputs(), outputs = d.outputs();
  if (!holds(operand, d.transposed ? outputs : inputs) || !holds(result, d.transposed ? inputs : outputs)) {
    return refused("a window: arrays of other sizes than ", inputs, " elements read and ", outputs, " made");
  }
  WindowArrays arrays{operand.untyped_data(), nullptr, result.untyped_data(), nullptr};
  bool wide = false;
  if (takes || remembers) {
    const auto taps = takes ? *arguments.get<ffi::AnyBuffer>(1) : **results.get<ffi::AnyBuffer>(1);
    wide = taps.element_type() == ffi::DataType::U16;
    if ((!wide && taps.element_type() != ffi::DataType::U8) || d.taps() > (wide ? 1 << 16 : 1 << 8) || !holds(taps, outputs)) {
      return refused("a window: taps of another dtype or size than ", outputs, " of 8 or 16 bits");
    }
    (takes ? const_cast<void*&>(arrays.taken) : arrays.remembered) = taps.untyped_data();
  }
  const WindowLoop loop = loops().window(d.what, d.transposed, dtype, wide);
  if ((d.transposed ? inputs : outputs) == 0) return ffi::Error::Success();
  try {
    const Lists lists(d);
    const Walk& walk = lists.walk;
    const int64_t row = walk.axes[2].results * walk.lanes;
    const int64_t rows = d.batch * walk.axes[0].results * walk.axes[1].results;
    const int64_t grain = std::max<int64_t>(kGrain / (row * std::min<int64_t>(d.taps(), kGrain)), 1);
    parallel(pool, rows, grain, [&](int64_t begin, int64_t end) { loop(walk, arrays, begin, end); });
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxconv: no memory for the geometry of a window");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxconv

JAXCONV_HANDLER(jaxconv_windows, jaxconv::windows,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .RemainingArgs()
                    .RemainingRets()
                    .Attr<xla::ffi::Span<const int64_t>>("window"));
