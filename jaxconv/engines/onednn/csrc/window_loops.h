// Windows as a walk: each element of the result meets some elements of an operand, each at one tap.
//
// Read forwards, a result p meets the inputs s·p + d·k − lo; transposed, a result i meets the windows p with
// i = s·p + d·k − lo. Both are a list of meetings per position of each axis, in the order of the taps, so that a pool, a
// sum and their transposes are one walk with different things to do at a meeting.
#pragma once

#include <cstdint>

namespace jaxconv {

struct Link {
  int64_t tap;      // its number, times the taps of the axes further in
  int64_t at;       // a position of the operand
  int64_t counted;  // if that is a window: how many elements along this axis it averages over
};

// The links of result position p are links[begin[p]] … links[begin[p + 1] − 1].
struct Meetings {
  int64_t results, operands;
  const int64_t* begin;
  const Link* links;
  const int64_t* counted;  // if the results are windows: how many elements along this axis each averages over
};

struct Walk {
  Meetings axes[3];
  int64_t most;   // meetings of one result, those with padding included
  int64_t lanes;  // channels, which lie side by side; at least kFewestLanes
};

// From arrays to arrays, for the rows first … last − 1 of the result: a row is what lies along the last axis.
struct WindowArrays {
  const void* operand;  // x or δ
  const void* taken;    // the remembered taps, if they are an operand
  void* result;         // y or dx
  void* remembered;     // the remembered taps, if they are a result
};
using WindowLoop = void (*)(const Walk&, const WindowArrays&, int64_t first, int64_t last);

// A sum and an average go both ways, from inputs to windows and back.
enum class Window : int64_t { kRemember = 0, kMaximum = 1, kTake = 2, kPut = 3, kSum = 4, kAverage = 5 };
enum class Float : int64_t { kF32 = 0, kBF16 = 1, kF16 = 2, kF64 = 3 };

constexpr int64_t kFewestLanes = 8;

}  // namespace jaxconv
