// The paged key/value cache: where each layer's blocks lie. Knows sizes and addresses; what a plane holds is
// attention.inl's, which block belongs to whom is the engine's.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "machine/platform.h"
#include "model/model_spec.h"

namespace tuili {

// Bytes that one block of a group takes over all its layers.
size_t cache_block_bytes(const ModelSpec& spec, CacheFormat format, int group, int block_size);

// The widest window among a group's layers; 0 when one of them sees everything.
int cache_group_window(const ModelSpec& spec, int group);

// Memory of a group is [block][layer][kv head][plane]: a block is one piece, so that who is the first to use it makes
// the system find and clear pages for that one. With layers outside, a step that came to new pages in one layer came to
// them in all, and stood still for as many large pages as there are layers.
class KvCache {
  public:
    KvCache() = default;
    // num_blocks[group]; throws std::bad_alloc.
    KvCache(const ModelSpec& spec, CacheFormat format, int block_size, const std::vector<int>& num_blocks);

    CacheFormat format() const { return format_; }
    int block_size() const { return block_size_; }
    int num_blocks(int group) const { return num_blocks_[group]; }
    bool is_allocated() const { return block_size_ > 0; }

    // Bytes from a block of a layer to the next.
    size_t block_stride(int layer) const { return layers_[layer].block_stride; }
    // The plane of a kv head in block 0.
    uint8_t* plane(int layer, int kv_head) const { return layers_[layer].start + kv_head * layers_[layer].plane_bytes; }
    void copy_block(int group, int source, int target);
    // The memory of blocks [first, last) goes back to the system, but for pages that others have a part in.
    void give_back_blocks(int group, int first, int last);

  private:
    struct Group {
        size_t first_byte;
        size_t block_bytes;
    };
    struct Layer {
        size_t plane_bytes;
        size_t block_stride;
        uint8_t* start;
    };

    CacheFormat format_ = CacheFormat::kBf16;
    int block_size_ = 0;
    std::vector<int> num_blocks_;
    std::vector<Group> groups_;
    std::vector<Layer> layers_;
    Pages pages_;
};

}  // namespace tuili
