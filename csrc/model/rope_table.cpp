#include "model/rope_table.h"

#include <algorithm>
#include <cmath>

namespace tuili {
namespace {

constexpr int kItemRows = 16;
constexpr int kStepRows = 64;  // at least so many at a time, so that decoding seldom comes here

}  // namespace

RopeTable::RopeTable(const RopeFrequencies& frequencies, int max_positions)
    : frequencies_(frequencies),
      max_positions_(max_positions),
      rows_(2 * frequencies.radians.size() * max_positions * sizeof(float)) {
    cos = reinterpret_cast<const float*>(rows_.data());
    sin = cos + frequencies.radians.size() * max_positions;
}

void RopeTable::extend(int num_positions, ThreadPool& pool) {
    if (num_positions <= num_ready_) return;
    const int first = num_ready_;
    const int last = std::min(max_positions_, (num_positions + kStepRows - 1) / kStepRows * kStepRows);
    pool.run([&](Worker& worker) {
        worker.stage((last - first + kItemRows - 1) / kItemRows, [&](int item) {
            const int begin = first + item * kItemRows;
            for (int position = begin; position < std::min(begin + kItemRows, last); position++) make_row(position);
        });
    });
    num_ready_ = last;
}

// Angles are float32 products of float32 factors, as models were trained with; their cosines are exact to float32.
void RopeTable::make_row(int position) {
    const size_t num_pairs = frequencies_.radians.size();
    float* cosines = reinterpret_cast<float*>(rows_.data()) + position * num_pairs;
    float* sines = cosines + num_pairs * max_positions_;
    for (size_t pair = 0; pair < num_pairs; pair++) {
        const double angle = static_cast<float>(position) * frequencies_.radians[pair];
        cosines[pair] = static_cast<float>(std::cos(angle) * frequencies_.factor);
        sines[pair] = static_cast<float>(std::sin(angle) * frequencies_.factor);
    }
}

}  // namespace tuili
