// The three maps of a convolution by oneDNN: (x, w) -> y, (δ, w) -> dx, (x, δ) -> dw.
//
// A convolution is described by integers alone (`Description`). From these a `Plan` is made: oneDNN's primitive, the
// formats in which it wants the operands, and what it needs beside them. Plans are kept by description, for all call
// sites and programs, so a second call of the same shape prepares nothing.

#include <array>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <vector>

#include "handlers.h"
#include "oneapi/dnnl/dnnl.hpp"
#include "turn.h"

namespace jaxconv {
namespace {

using dnnl::memory;
using Dims = memory::dims;

enum Map : int64_t { kConv = 0, kInputGrad = 1, kKernelGrad = 2 };

// So many products are done by one thread, in some 10 microseconds, before another has woken up.
constexpr double kAlone = 1 << 18;
constexpr int64_t kHead = 8, kPerAxis = 7, kMostAxes = 3;

// What Python writes: [map, dtype, dtype of the result, groups, batch, inputs, outputs, threads], then the layout of x,
// of w and of y, each [axis of the first index, axis of the second, axes of the spatial ones] with (batch, channel) for
// x and y and (out, in) for w, then for each spatial axis [n, out, taps, stride, dilation, lo, hi].
using Description = std::vector<int64_t>;

struct Axis {
  int64_t n, out, k, stride, dilation, lo, hi;
};

struct Convolution {
  Map map;
  memory::data_type dtype, result;
  int64_t groups, batch, inputs, outputs, threads;
  Dims x, w, y;  // layouts
  std::vector<Axis> axes;

  // The products that are added up.
  double products() const {
    double count = static_cast<double>(batch) * static_cast<double>(inputs / groups) * static_cast<double>(outputs);
    for (const Axis& axis : axes) count *= static_cast<double>(axis.out) * static_cast<double>(axis.k);
    return count;
  }

  Dims spatial(int64_t Axis::* of) const {
    Dims sizes;
    for (const Axis& axis : axes) sizes.push_back(axis.*of);
    return sizes;
  }
};

// dtype codes of `ffi::DataType`, which are those of XLA's PrimitiveType.
memory::data_type dtype_of(int64_t code) {
  switch (static_cast<ffi::DataType>(code)) {
    case ffi::DataType::F32: return memory::data_type::f32;
    case ffi::DataType::BF16: return memory::data_type::bf16;
    case ffi::DataType::F16: return memory::data_type::f16;
    default: return memory::data_type::undef;
  }
}

bool is_permutation(Dims order) {
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<int64_t>(i)) return false;
  }
  return true;
}

Dims joined(int64_t first, int64_t second, const Dims& rest) {
  Dims sizes = {first, second};
  sizes.insert(sizes.end(), rest.begin(), rest.end());
  return sizes;
}

// Throws std::invalid_argument: nothing that is inconsistent goes on to oneDNN.
Convolution parsed(const Description& d) {
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  const int64_t numbers = static_cast<int64_t>(d.size());
  const int64_t rank = (numbers - kHead - 6) / (kPerAxis + 3);
  require(rank >= 1 && rank <= kMostAxes && numbers == kHead + 6 + rank * (kPerAxis + 3),
          "a convolution must be described by 14 + 10 rank numbers, and have 1 to 3 spatial axes");
  for (int64_t number : d) require(number >= 0 && number < (int64_t{1} << 31), "sizes must fit 31 bits");
  Convolution c{static_cast<Map>(d[0]), dtype_of(d[1]), dtype_of(d[2]), d[3], d[4], d[5], d[6], d[7], {}, {}, {}, {}};
  require(d[0] <= kKernelGrad, "the map must be one of three");
  require(c.dtype != memory::data_type::undef && c.result != memory::data_type::undef, "an unknown dtype");
  require(c.groups >= 1 && c.batch >= 1 && c.inputs >= 1 && c.outputs >= 1, "sizes must be at least 1");
  require(c.inputs % c.groups == 0 && c.outputs % c.groups == 0, "groups must divide the channels");
  require(c.threads >= 1 && c.threads <= 4096, "threads must be 1 to 4096");
  const int64_t* next = d.data() + kHead;
  for (Dims* layout : {&c.x, &c.w, &c.y}) {
    layout->assign(next, next + rank + 2);
    next += rank + 2;
    require(is_permutation(*layout), "a layout must name each axis once");
  }
  for (; next != d.data() + numbers; next += kPerAxis) {
    const Axis axis{next[0], next[1], next[2], next[3], next[4], next[5], next[6]};
    require(axis.n >= 1 && axis.out >= 1 && axis.k >= 1 && axis.stride >= 1 && axis.dilation >= 1,
            "sizes along an axis must be at least 1");
    const int64_t slack = axis.n + axis.lo + axis.hi - ((axis.k - 1) * axis.dilation + 1);
    require(slack >= 0 && slack / axis.stride + 1 == axis.out, "out must be slack // stride + 1");
    c.axes.push_back(axis);
  }
  require(countable(joined(c.batch, c.inputs, c.spatial(&Axis::n))) &&
              countable(joined(c.batch, c.outputs, c.spatial(&Axis::out))) &&
              countable(joined(c.inputs / c.groups, c.outputs, c.spatial(&Axis::k))),
          "the bytes of an array must fit 63 bits");
  return c;
}

// One array of the layer: its shape as XLA has it, and its sizes and strides as oneDNN wants them.
struct Array {
  Dims shape, dims, strides;

  Array(const Dims& sizes, const Dims& layout) : shape(sizes.size()), dims(sizes), strides(sizes.size()) {
    for (size_t i = 0; i < sizes.size(); ++i) shape[layout[i]] = sizes[i];
    Dims steps(sizes.size());
    int64_t step = 1;
    for (size_t i = sizes.size(); i-- > 0;) steps[i] = step, step *= shape[i];
    for (size_t i = 0; i < sizes.size(); ++i) strides[i] = steps[layout[i]];
  }

  // oneDNN counts the groups of a kernel by an axis of their own: the first half of that of the outputs.
  Array& split(int64_t groups) {
    if (groups == 1) return *this;
    dims[0] /= groups;
    dims.insert(dims.begin(), groups);
    strides.insert(strides.begin(), strides[0] * dims[1]);
    return *this;
  }

  // The same sizes, (batch, *spatial, channel) in memory: the one order in which data are computed on.
  Array channels_last() const {
    const int64_t last = static_cast<int64_t>(dims.size()) - 1;
    Dims layout = {0, last};
    for (int64_t i = 1; i < last; ++i) layout.push_back(i);
    return Array(dims, layout);
  }

  memory::desc desc(memory::data_type dtype) const { return memory::desc(dims, dtype, strides); }
};

const dnnl::engine& cpu() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // outlives every thread
  return *engine;
}

// oneDNN's primitive for one description, with everything around it that does not change from call to call.
struct Plan {
  struct Operand {
    Dims shape;             // in XLA's buffer
    memory::desc given;     // the same, as oneDNN sees it
    memory::desc wanted;    // what the primitive computes on
    dnnl::primitive reorder;  // between the two, if they differ
    int argument = 0;
    bool moved = false;
    size_t offset = 0;  // in the scratch memory, if moved
  };

  explicit Plan(const Convolution& c);

  std::array<Operand, 3> operands;  // the map's two, then its result
  dnnl::primitive compute;
  memory::desc scratchpad;
  size_t scratchpad_offset = 0, scratch = 0;
  int threads;
  std::string implementation;
};

dnnl::primitive_attr with_own_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

Plan::Plan(const Convolution& c) : threads(c.products() <= kAlone ? 1 : static_cast<int>(c.threads)) {
  omp_set_num_threads(threads);
  const Array x(joined(c.batch, c.inputs, c.spatial(&Axis::n)), c.x);
  const Array y(joined(c.batch, c.outputs, c.spatial(&Axis::out)), c.y);
  const Array w = Array(joined(c.outputs, c.inputs / c.groups, c.spatial(&Axis::k)), c.w).split(c.groups);
  Dims dilation = c.spatial(&Axis::dilation);
  for (auto& d : dilation) d -= 1;  // oneDNN counts the gaps
  const Dims stride = c.spatial(&Axis::stride), lo = c.spatial(&Axis::lo), hi = c.spatial(&Axis::hi);
  const auto any = memory::format_tag::any;
  const auto attributes = with_own_scratchpad();
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto kind = c.map == kConv ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;

  auto made = [&](Map map) { return c.map == map ? c.result : c.dtype; };
  auto last = [](const Array& a, memory::data_type dtype) { return a.channels_last().desc(dtype); };
  const memory::desc dx = last(x, made(kInputGrad)), dy = last(y, made(kConv)), dw(w.dims, made(kKernelGrad), any);
  // For a gradient the forward pass is a hint, in one dtype.
  const dnnl::convolution_forward::primitive_desc forward(
      cpu(), kind, algorithm, last(x, c.dtype), memory::desc(w.dims, c.dtype, any),
      last(y, c.map == kConv ? c.result : c.dtype), stride, dilation, lo, hi, attributes);
  auto take = [&](const auto& described, std::array<std::pair<const Array*, int>, 3> roles,
                  std::array<memory::desc, 3> wanted) {
    for (size_t i = 0; i < 3; ++i) {
      Operand& operand = operands[i];
      operand.shape = roles[i].first->shape;
      operand.given = roles[i].first->desc(i == 2 ? c.result : c.dtype);
      operand.wanted = wanted[i];
      operand.argument = roles[i].second;
      operand.moved = operand.given != operand.wanted;
    }
    scratchpad = described.scratchpad_desc();
    implementation = described.impl_info_str();
  };
  if (c.map == kConv) {
    compute = dnnl::convolution_forward(forward);
    take(forward, {{{&x, DNNL_ARG_SRC}, {&w, DNNL_ARG_WEIGHTS}, {&y, DNNL_ARG_DST}}},
         {forward.src_desc(), forward.weights_desc(), forward.dst_desc()});
  } else if (c.map == kInputGrad) {
    const dnnl::convolution_backward_data::primitive_desc back(cpu(), algorithm, dx, dw, dy, stride, dilation, lo, hi,
                                                               forward, attributes);
    compute = dnnl::convolution_backward_data(back);
    take(back, {{{&y, DNNL_ARG_DIFF_DST}, {&w, DNNL_ARG_WEIGHTS}, {&x, DNNL_ARG_DIFF_SRC}}},
         {back.diff_dst_desc(), back.weights_desc(), back.diff_src_desc()});
  } else {
    const dnnl::convolution_backward_weights::primitive_desc back(cpu(), algorithm, dx, dw, dy, stride, dilation, lo,
                                                                  hi, forward, attributes);
    compute = dnnl::convolution_backward_weights(back);
    take(back, {{{&x, DNNL_ARG_SRC}, {&y, DNNL_ARG_DIFF_DST}, {&w, DNNL_ARG_DIFF_WEIGHTS}}},
         {back.src_desc(), back.diff_dst_desc(), back.diff_weights_desc()});
  }

  auto room = [this](size_t bytes) {
    const size_t offset = (scratch + 63) / 64 * 64;
    scratch = offset + bytes;
    return offset;
  };
  for (size_t i = 0; i < 3; ++i) {
    Operand& operand = operands[i];
    if (!operand.moved) continue;
    operand.offset = room(operand.wanted.get_size());
    const auto &from = i < 2 ? operand.given : operand.wanted, &to = i < 2 ? operand.wanted : operand.given;
    operand.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(cpu(), from, cpu(), to));
  }
  scratchpad_offset = room(scratchpad.get_size());
}

// The plans that were made, the last used first.
class Plans {
 public:
  std::shared_ptr<const Plan> of(const Description& description) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = places_.find(description);
    if (found != places_.end()) {
      plans_.splice(plans_.begin(), plans_, found->second);
      return plans_.front().second;
    }
    std::shared_ptr<const Plan> plan;
    Turn::take([&] { plan = std::make_shared<const Plan>(parsed(description)); });
    plans_.emplace_front(description, plan);
    places_[description] = plans_.begin();
    if (plans_.size() > kMost) {
      places_.erase(plans_.back().first);
      plans_.pop_back();
    }
    return plans_.front().second;
  }

 private:
  static constexpr size_t kMost = 4096;
  std::mutex mutex_;
  std::list<std::pair<Description, std::shared_ptr<const Plan>>> plans_;
  std::map<Description, std::list<std::pair<Description, std::shared_ptr<const Plan>>>::iterator> places_;
};

Plans*& all_plans() {
  static auto* all = new Plans;
  return all;
}

Plans& plans() {
  static std::once_flag once;
  // A child may have inherited a lock that nobody will open: it begins anew, as `Turn` does.
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { all_plans() = new Plans; }); });
  return *all_plans();
}

// Memory for one call at a time, kept for the next unless it is large.
class Scratch {
 public:
  std::byte* of(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = static_cast<std::byte*>(std::aligned_alloc(4096, size_));
      if (memory_ == nullptr) size_ = 0;
    }
    return memory_;
  }
  void trim() {
    if (size_ <= kKept) return;
    std::free(memory_);
    memory_ = nullptr, size_ = 0;
  }

 private:
  static constexpr size_t kKept = size_t{64} << 20;
  std::byte* memory_ = nullptr;
  size_t size_ = 0;
};

// One convolution at a time, on the thread of `Turn`: each has all cores.
void run(const Plan& plan, const std::array<void*, 3>& buffers) {
  static auto* scratch = new Scratch;
  omp_set_num_threads(plan.threads);
  std::byte* base = scratch->of(plan.scratch);
  if (plan.scratch > 0 && base == nullptr) throw std::bad_alloc();
#ifdef JAXCONV_POISON
  // Every bit set is a NaN of every dtype: what is read before it is written shows in the result.
  if (plan.scratch > 0) std::memset(base, 0xff, plan.scratch);
  std::memset(buffers[2], 0xff, plan.operands[2].given.get_size());
#endif
  dnnl::stream stream(cpu());
  std::array<memory, 3> given, wanted;
  std::unordered_map<int, memory> arguments;
  for (size_t i = 0; i < 3; ++i) {
    const Plan::Operand& operand = plan.operands[i];
    given[i] = memory(operand.given, cpu(), buffers[i]);
    wanted[i] = operand.moved ? memory(operand.wanted, cpu(), base + operand.offset) : given[i];
    arguments.emplace(operand.argument, wanted[i]);
    if (i < 2 && operand.moved) {
      operand.reorder.execute(stream, {{DNNL_ARG_FROM, given[i]}, {DNNL_ARG_TO, wanted[i]}});
    }
  }
  arguments.emplace(DNNL_ARG_SCRATCHPAD, memory(plan.scratchpad, cpu(), base + plan.scratchpad_offset));
  plan.compute.execute(stream, arguments);
  if (plan.operands[2].moved) {
    plan.operands[2].reorder.execute(stream, {{DNNL_ARG_FROM, wanted[2]}, {DNNL_ARG_TO, given[2]}});
  }
  stream.wait();
  scratch->trim();
}

ffi::Error mismatch(const char* which, const Dims& expected) {
  std::ostringstream text;
  for (int64_t n : expected) text << " " << n;
  return refused("the ", which, " of a convolution must have the shape", text.str(), " and the dtype it was lowered for");
}

template <typename Buffer>
bool fits(const Buffer& buffer, const Dims& shape, int64_t dtype) {
  const auto dims = buffer.dimensions();
  return static_cast<int64_t>(buffer.element_type()) == dtype && std::equal(dims.begin(), dims.end(), shape.begin(), shape.end());
}

ffi::Error convolve(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> result,
                    ffi::Span<const int64_t> convolution) {
  try {
    Description description(convolution.begin(), convolution.end());
    if (description.size() > 7) description[7] = team(pool);
    const auto plan = plans().of(description);
    if (!fits(a, plan->operands[0].shape, description[1])) return mismatch("first operand", plan->operands[0].shape);
    if (!fits(b, plan->operands[1].shape, description[1])) return mismatch("second operand", plan->operands[1].shape);
    if (!fits(*result, plan->operands[2].shape, description[2])) return mismatch("result", plan->operands[2].shape);
    const std::array<void*, 3> buffers = {a.untyped_data(), b.untyped_data(), result->untyped_data()};
    Turn::take([&] { run(*plan, buffers); });
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(said("jaxconv: oneDNN: ", error.what()));
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxconv: no memory for a convolution's scratch space");
  } catch (const std::exception& error) {
    return refused(error.what());
  }
}

}  // namespace
}  // namespace jaxconv

JAXCONV_HANDLER(jaxconv_onednn_convolution, jaxconv::convolve,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Arg<xla::ffi::AnyBuffer>()
                    .Ret<xla::ffi::AnyBuffer>()
                    .Attr<xla::ffi::Span<const int64_t>>("convolution"));

// Whether oneDNN takes a convolution: the name of its implementation into `text` and 0, or why not and 1.
extern "C" JAXCONV_EXPORT int jaxconv_onednn_probe(const int64_t* numbers, int64_t count, char* text, int64_t size) {
  auto say = [&](const std::string& what) {
    std::strncpy(text, what.c_str(), static_cast<size_t>(size - 1));
    text[size - 1] = '\0';
  };
  try {
    const auto plan = jaxconv::plans().of(jaxconv::Description(numbers, numbers + count));
    say(plan->implementation);
    return 0;
  } catch (const std::exception& error) {
    say(error.what());
    return 1;
  }
}
