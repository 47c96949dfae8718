// Cosines and sines of rotary positions, made when a text first gets that far: a long context that nobody uses costs
// neither time nor memory. Knows frequencies; not layers. Rows never change once made.
#pragma once
#include <vector>

#include "machine/platform.h"
#include "machine/thread_pool.h"

namespace tuili {

// Of one kind of rotation: radians per position of each rotated pair, and what cosines and sines are multiplied by.
struct RopeFrequencies {
    std::vector<float> radians;  // [dim / 2]
    double factor = 1.0;
};

class RopeTable {
  public:
    RopeTable() = default;
    RopeTable(const RopeFrequencies& frequencies, int max_positions);  // throws std::bad_alloc

    // Makes the rows of positions [0, num_positions) that are not there yet; num_positions <= max_positions.
    void extend(int num_positions, ThreadPool& pool);

    const float* cos = nullptr;  // [positions][dim / 2]
    const float* sin = nullptr;

  private:
    void make_row(int position);

    RopeFrequencies frequencies_;
    int max_positions_ = 0;
    int num_ready_ = 0;
    Pages rows_;
};

}  // namespace tuili
