#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace tuili {

size_t cache_block_bytes(const ModelSpec& spec, CacheFormat format, int group, int block_size) {
    size_t bytes = 0;
    for (const auto& layer : spec.layers) {
        const auto& a = layer.attention;
        if (a.cache_group == group) bytes += a.num_kv_heads * cache_plane_bytes(format, a.head_dim, block_size);
    }
    return bytes;
}

int cache_group_window(const ModelSpec& spec, int group) {
    int widest = 0;
    for (const auto& layer : spec.layers) {
        const auto& a = layer.attention;
        if (a.cache_group != group) continue;
        if (a.sliding_window == 0) return 0;
        widest = std::max(widest, a.sliding_window);
    }
    return widest;
}

KvCache::KvCache(const ModelSpec& spec, CacheFormat format, int block_size, const std::vector<int>& num_blocks)
    : format_(format), block_size_(block_size), num_blocks_(num_blocks) {
    const bool has_size = block_size > 0 && block_size % 16 == 0 && kAttentionChunk % block_size == 0;
    const bool has_counts = num_blocks.size() == static_cast<size_t>(spec.num_cache_groups) &&
                            *std::min_element(num_blocks.begin(), num_blocks.end()) >= 0;
    if (!has_size || !has_counts) throw std::invalid_argument("block_size or num_blocks is out of range");
    size_t num_bytes = 0;
    std::vector<size_t> next;  // of each group: where its next layer begins, in block 0
    for (int group = 0; group < spec.num_cache_groups; group++) {
        next.push_back(num_bytes);
        groups_.push_back({num_bytes, cache_block_bytes(spec, format, group, block_size)});
        num_bytes += groups_.back().block_bytes * num_blocks[group];
    }
    pages_ = Pages(num_bytes);
    for (const auto& layer : spec.layers) {
        const auto& a = layer.attention;
        const size_t plane = cache_plane_bytes(format, a.head_dim, block_size);
        layers_.push_back({plane, groups_[a.cache_group].block_bytes, pages_.data() + next[a.cache_group]});
        next[a.cache_group] += plane * a.num_kv_heads;
    }
}

void KvCache::copy_block(int group, int source, int target) {
    const auto [first, block_bytes] = groups_[group];
    uint8_t* blocks = pages_.data() + first;
    std::memcpy(blocks + target * block_bytes, blocks + source * block_bytes, block_bytes);
}

void KvCache::give_back_blocks(int group, int first, int last) {
    const auto [first_byte, block_bytes] = groups_[group];
    pages_.give_back(first_byte + first * block_bytes, first_byte + last * block_bytes);
}

}  // namespace tuili
