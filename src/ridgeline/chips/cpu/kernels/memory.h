// Memory straight from the operating system: zeroed, aligned to pages, in huge pages where it allows them; what is
// never touched costs nothing.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace ridgeline {

class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t bytes) : size_((bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) {
        if (size_ == 0) return;
        void* address = mmap(nullptr, size_ + ALIGNMENT, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (address == MAP_FAILED) throw std::bad_alloc();
        mapping_ = static_cast<uint8_t*>(address);
        const auto number = reinterpret_cast<uintptr_t>(mapping_);
        data_ = mapping_ + (ALIGNMENT - number % ALIGNMENT) % ALIGNMENT;
#if defined(MADV_HUGEPAGE)
        madvise(data_, size_, MADV_HUGEPAGE);
#endif
    }
    ~Memory() {
        if (mapping_ != nullptr) munmap(mapping_, size_ + ALIGNMENT);
    }
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(mapping_, other.mapping_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    static constexpr size_t ALIGNMENT = 2 << 20;  // a huge page
    uint8_t* mapping_ = nullptr;
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace ridgeline
