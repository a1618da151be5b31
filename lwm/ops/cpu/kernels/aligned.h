// Memory that vectors are read from and written to.
#pragma once

#include <cstdint>
#include <vector>

namespace lwm {

// Numbers at the start of a line of cache, at first 0.
class Aligned {
 public:
  explicit Aligned(int64_t size) : room_(size + kLine) {
    const auto at = reinterpret_cast<uintptr_t>(room_.data()) / sizeof(float);
    start_ = room_.data() + (kLine - at % kLine) % kLine;
  }
  float* data() { return start_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(float);
  std::vector<float> room_;
  float* start_;
};

}  // namespace lwm
