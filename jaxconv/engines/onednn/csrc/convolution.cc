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

constexpr int64_t kHead = 8, kPerAxis = 7, kMostAxes = 3;

// What Python writes: [map, bits of dtype, channels first, groups, batch, inputs, outputs, threads] and, per spatial
// axis, [n, out, taps, stride, dilation, lo, hi].
using Description = std::vector<int64_t>;

struct Axis {
  int64_t n, out, k, stride, dilation, lo, hi;
};

struct Convolution {
  Map map;
  memory::data_type dtype;
  bool channels_first;
  int64_t groups, batch, inputs, outputs, threads;
  std::vector<Axis> axes;

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

// Whether a product of sizes is one that 64 bits can count, in bytes.
bool countable(const Dims& dims) {
  int64_t count = 8;
  for (int64_t n : dims) {
    if (n < 0 || __builtin_mul_overflow(count, n, &count)) return false;
  }
  return true;
}

// Throws std::invalid_argument: nothing that is inconsistent goes on to oneDNN.
Convolution parsed(const Description& d) {
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(d.size() >= kHead && (d.size() - kHead) % kPerAxis == 0, "a description of another length");
  const int64_t rank = (static_cast<int64_t>(d.size()) - kHead) / kPerAxis;
  require(rank >= 1 && rank <= kMostAxes, "1 to 3 spatial axes");
  Convolution c{static_cast<Map>(d[0]), dtype_of(d[1]), d[2] != 0, d[3], d[4], d[5], d[6], d[7], {}};
  require(d[0] >= kConv && d[0] <= kKernelGrad, "an unknown map");
  require(c.dtype != memory::data_type::undef, "an unknown dtype");
  require(c.groups >= 1 && c.batch >= 1 && c.inputs >= 1 && c.outputs >= 1, "sizes must be at least 1");
  require(c.inputs % c.groups == 0 && c.outputs % c.groups == 0, "groups must divide the channels");
  require(c.threads >= 1 && c.threads <= 4096, "threads must be 1 to 4096");
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t* a = d.data() + kHead + i * kPerAxis;
    const Axis axis{a[0], a[1], a[2], a[3], a[4], a[5], a[6]};
    for (int64_t j = 0; j < kPerAxis; ++j) require(a[j] < (int64_t{1} << 31), "sizes must fit 31 bits");
    require(axis.n >= 1 && axis.out >= 1 && axis.k >= 1 && axis.stride >= 1 && axis.dilation >= 1, "positive sizes");
    require(axis.lo >= 0 && axis.hi >= 0, "padding must not crop");
    const int64_t slack = axis.n + axis.lo + axis.hi - ((axis.k - 1) * axis.dilation + 1);
    require(slack >= 0 && slack / axis.stride + 1 == axis.out, "out must be slack // stride + 1");
    c.axes.push_back(axis);
  }
  auto sizes = [](int64_t a, int64_t b, Dims rest) {
    rest.insert(rest.begin(), {a, b});
    return rest;
  };
  require(countable(sizes(c.batch, c.inputs, c.spatial(&Axis::n))) &&
              countable(sizes(c.batch, c.outputs, c.spatial(&Axis::out))) &&
              countable(sizes(c.inputs / c.groups, c.outputs, c.spatial(&Axis::k))),
          "sizes must fit 63 bits in bytes");
  return c;
}

// Shapes as XLA has them, logical dims and strides as oneDNN wants them: one array of the layer.
struct Array {
  Dims shape, dims, strides;

  memory::desc desc(memory::data_type dtype) const { return memory::desc(dims, dtype, strides); }
};

Array data(const Convolution& c, int64_t channels, const Dims& spatial) {
  Array a;
  a.dims = {c.batch, channels};
  a.dims.insert(a.dims.end(), spatial.begin(), spatial.end());
  const size_t rank = spatial.size();
  std::vector<size_t> order(rank + 2);  // of the logical dims in memory, outermost first
  for (size_t i = 0; i < rank + 2; ++i) order[i] = i;
  if (!c.channels_first) {
    order.erase(order.begin() + 1);
    order.push_back(1);
  }
  a.strides.resize(rank + 2);
  int64_t step = 1;
  for (size_t i = rank + 2; i-- > 0;) {
    a.strides[order[i]] = step;
    step *= a.dims[order[i]];
  }
  for (size_t i : order) a.shape.push_back(a.dims[i]);
  return a;
}

// (*taps, in, out) or (out, in, *taps), `in` of one group and `out` of all; grouped dims split `out` in front.
Array kernel(const Convolution& c) {
  const Dims taps = c.spatial(&Axis::k);
  const int64_t in = c.inputs / c.groups, out = c.outputs;
  Array a;
  Dims steps(taps.size());
  int64_t out_step, in_step, step;
  if (c.channels_first) {
    step = 1;
    for (size_t i = taps.size(); i-- > 0;) steps[i] = step, step *= taps[i];
    in_step = step;
    out_step = step * in;
    a.shape = {out, in};
    a.shape.insert(a.shape.end(), taps.begin(), taps.end());
  } else {
    out_step = 1;
    in_step = out;
    step = out * in;
    for (size_t i = taps.size(); i-- > 0;) steps[i] = step, step *= taps[i];
    a.shape = taps;
    a.shape.insert(a.shape.end(), {in, out});
  }
  a.dims = {out / c.groups, in};
  a.strides = {out_step, in_step};
  if (c.groups > 1) {
    a.dims.insert(a.dims.begin(), c.groups);
    a.strides.insert(a.strides.begin(), out_step * (out / c.groups));
  }
  a.dims.insert(a.dims.end(), taps.begin(), taps.end());
  a.strides.insert(a.strides.end(), steps.begin(), steps.end());
  return a;
}

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
  ffi::DataType dtype;
  std::string implementation;
};

template <typename Described>
std::string name_of(const Described& described) {
  return described.impl_info_str();
}

dnnl::primitive_attr with_own_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

Plan::Plan(const Convolution& c) : threads(static_cast<int>(c.threads)) {
  omp_set_num_threads(threads);
  const Array x = data(c, c.inputs, c.spatial(&Axis::n)), y = data(c, c.outputs, c.spatial(&Axis::out)), w = kernel(c);
  Dims dilation = c.spatial(&Axis::dilation);
  for (auto& d : dilation) d -= 1;  // oneDNN counts the gaps
  const Dims stride = c.spatial(&Axis::stride), lo = c.spatial(&Axis::lo), hi = c.spatial(&Axis::hi);
  const auto any = memory::format_tag::any;
  const auto attributes = with_own_scratchpad();
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto kind = c.map == kConv ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;

  auto layer = [&](bool as_given) {
    auto wish = [&](const Array& a) { return as_given ? a.desc(c.dtype) : memory::desc(a.dims, c.dtype, any); };
    const memory::desc dx = wish(x), dy = wish(y), dw(w.dims, c.dtype, any);
    dnnl::convolution_forward::primitive_desc forward(cpu(), kind, algorithm, dx, dw, dy, stride, dilation, lo, hi,
                                                      attributes);
    auto take = [&](const auto& described, std::array<std::pair<const Array*, int>, 3> roles,
                    std::array<memory::desc, 3> wanted) {
      for (size_t i = 0; i < 3; ++i) {
        Operand& operand = operands[i];
        operand.shape = roles[i].first->shape;
        operand.given = roles[i].first->desc(c.dtype);
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
      dnnl::convolution_backward_data::primitive_desc back(cpu(), algorithm, dx, dw, dy, stride, dilation, lo, hi,
                                                           forward, attributes);
      compute = dnnl::convolution_backward_data(back);
      take(back, {{{&y, DNNL_ARG_DIFF_DST}, {&w, DNNL_ARG_WEIGHTS}, {&x, DNNL_ARG_DIFF_SRC}}},
           {back.diff_dst_desc(), back.weights_desc(), back.diff_src_desc()});
    } else {
      dnnl::convolution_backward_weights::primitive_desc back(cpu(), algorithm, dx, dw, dy, stride, dilation, lo, hi,
                                                              forward, attributes);
      compute = dnnl::convolution_backward_weights(back);
      take(back, {{{&x, DNNL_ARG_SRC}, {&y, DNNL_ARG_DIFF_DST}, {&w, DNNL_ARG_DIFF_WEIGHTS}}},
           {back.src_desc(), back.diff_dst_desc(), back.diff_weights_desc()});
    }
  };
  const char* force = std::getenv("JC_FORMAT");
  layer(force ? force[0] == 'g' : !c.channels_first);

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

Plans& plans() {
  static auto* all = new Plans;
  return *all;
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
    if (!fits(*result, plan->operands[2].shape, description[1])) return mismatch("result", plan->operands[2].shape);
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
